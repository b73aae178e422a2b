"""Nothing is left of what was deleted: in no table, no snapshot, and no answer."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from service.adapters.sql.tables import metadata
from service.pipeline.snapshot import NAME
from tests.service.running import Running, base64_of, picture


def traces(service: Running, *marks: str) -> dict[str, list[str]]:
    """Rows of any table that hold one of the marks anywhere, in text or in bytes."""

    def search(connection: sa.Connection) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for table in metadata.sorted_tables:
            for row in connection.execute(sa.select(table)):
                plain = " ".join(str(bytes(value) if isinstance(value, memoryview) else value) for value in row)
                if any(mark in plain for mark in marks):
                    found.setdefault(table.name, []).append(plain)
        return found

    return service.run(service.engine.store.database.read(search))  # type: ignore[attr-defined]  # a SqlStore


def test_a_user_is_erased_everywhere(anywhere: Running) -> None:
    user, text = "erased-user-xk-erased", "secret words of a review"
    item = anywhere.create(title="mug of the erased")["id"]
    rows: list[dict[str, Any]] = [
        {"user": user, "item": item, "type": "review", "text": text, "value": 5},
        {"user": user, "item": "demo-0001", "type": "view", "recommendation_id": "r-of-xk-erased"},
    ]
    answer = anywhere.client.post("/feedback", json={"feedback": rows}, headers={"Idempotency-Key": "of-the-user"})
    assert answer.json()["accepted"] == 2
    anywhere.wait_until_idle()
    assert set(traces(anywhere, "xk-erased", text)) == {"feedback", "changes"}
    before = anywhere.get(f"/items/{item}")["modalities"]["image"]["basis"]
    assert "users" in before
    anywhere.ask("DELETE", f"/users/{user}", status=204)
    anywhere.wait_until_idle()
    left = traces(anywhere, "xk-erased", text)
    assert left == {}  # the log has a digest of the id
    assert "users" not in anywhere.get(f"/items/{item}")["modalities"]["image"]["basis"]
    anywhere.get(f"/users/{user}", status=404)
    anywhere.get(f"/recommend/{user}", status=404, strict=True)
    assert anywhere.get("/feedback", user=user)["items"] == []
    anywhere.check_index()


def test_an_item_is_erased_everywhere(alone: Running, tmp_path: Any) -> None:
    alone.engine.snapshots = tmp_path
    item, text = "erased-item-zq-erased", "words that only this item has"
    alone.create(id=item, title="Title zq-erased", modalities={"text": text}, metadata={"mark": "zq-erased"})
    alone.patch(item, {"modalities": {"image": base64_of(picture("orange"))}})
    alone.view(item, "shopper-001")
    alone.post("/admin/snapshot", None)
    held = set(traces(alone, "zq-erased", text))
    assert held >= {"items", "features", "changes", "imputation_errors"}
    assert b"zq-erased" in (tmp_path / NAME).read_bytes()
    media = alone.run(alone.engine.store.get_item(item)).observed["image"].media  # type: ignore[union-attr]
    alone.ask("DELETE", f"/items/{item}", status=204)
    alone.wait_until_idle()
    left = traces(alone, "zq-erased", text)
    assert left == {}  # the log has the item's row
    assert alone.run(alone.engine.store.get_media(media)) is None
    alone.post("/admin/snapshot", None)
    assert b"zq-erased" not in (tmp_path / NAME).read_bytes()
    for path in ("/recommend/nobody", "/recommend/shopper-001", "/items/demo-0001/similar"):
        assert item not in alone.found_by(path, n=500)
    alone.get(f"/items/{item}", status=404)
    alone.check_index()
