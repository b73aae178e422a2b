"""The main job, over HTTP, as it happens: items with holes in, recommendations out, a restart in between.

Starts the service on a fresh database, posts an item with only a picture, one with only a text and one with neither,
follows them through search and recommendation, gives feedback, restarts, compares. Every step checks what it claims;
the transcript is written as Markdown.

    python benchmarks/walkthrough.py --bundle build/ml-100k-bundle --picture poster.jpg --query "toys come to life" \
        --title "Matrix, The (1999)" --text "A hacker learns ..." --category Action --out docs/walkthrough.md
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

SHOWN = 3  # entries of a list that the transcript shows


class Service:
    """`lacuna serve` as a process of its own."""

    def __init__(self, bundle: Path, data: Path, image_weights: Path | None = None) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._arguments = [sys.executable, "-m", "service", "--bundle", str(bundle), "--port", str(self.port)]
        self._arguments += ["--data-dir", str(data), "--log-level", "warning"]
        if image_weights is not None:
            self._arguments += ["--image-weights", str(image_weights)]
        self._process: subprocess.Popen[bytes] | None = None
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)

    def start(self) -> float:
        """Start and wait until it is ready; the seconds that took."""
        begin = time.perf_counter()
        self._process = subprocess.Popen(self._arguments, env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"})
        while time.perf_counter() - begin < 180:
            if self._process.poll() is not None:
                raise RuntimeError(f"the service stopped with exit code {self._process.returncode}")
            try:
                if self.client.get("/health/ready").status_code == 200:
                    return time.perf_counter() - begin
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise TimeoutError("the service was not ready within three minutes")

    def stop(self) -> None:
        """Ask it to stop, and wait until it has."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(30)
            self._process = None


class Transcript:
    """Requests and answers as Markdown."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        """A paragraph."""
        self.lines += [text, ""]

    def head(self, text: str) -> None:
        """A heading."""
        self.lines += [f"## {text}", ""]

    def ask(self, method: str, path: str, body: Any = None, *, expect: int = 200, shown: bool = True) -> Any:
        """Send a request, record it and its answer, and check the status."""
        answer = self.client.request(method, path, json=body)
        found = answer.json() if answer.content else None
        if shown:
            self.lines += ["```", f"{method} {path}"]
            if body is not None:
                self.lines.append(_short(body))
            self.lines += ["", f"{answer.status_code} {answer.reason_phrase}", _short(found), "```", ""]
        if answer.status_code != expect:
            raise AssertionError(f"{method} {path}: expected {expect}, got {answer.status_code}: {answer.text[:400]}")
        return found


def _short(value: Any) -> str:
    return json.dumps(_cut(value), ensure_ascii=False, indent=1)


def _cut(value: Any) -> Any:
    """Long lists and strings cut, numbers rounded, for people."""
    if isinstance(value, dict):
        return {key: f"({len(below)} characters)" if key == "base64" else _cut(below) for key, below in value.items()}
    if isinstance(value, list):
        more = [f"... and {len(value) - SHOWN} more"] if len(value) > SHOWN + 1 else []
        return [_cut(below) for below in (value[:SHOWN] if more else value)] + more
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, str) and len(value) > 200:
        return value[:120] + f"... ({len(value)} characters)"
    return value


def _check(condition: object, claim: str) -> None:
    if not condition:
        raise AssertionError(claim)


def walk(service: Service, options: argparse.Namespace) -> list[str]:
    """All of it; the lines of the transcript."""
    log = Transcript(service.client)
    seconds = service.start()
    stats = log.ask("GET", "/stats", shown=False)
    log.say(
        f"`lacuna serve --bundle {options.bundle.name}` was ready after {seconds:.1f} s with {stats['items']} items"
        + (" of synthetic data." if stats["synthetic"] else ".")
    )
    states = "; ".join(
        f"{name}: {counts['observed']} observed, {counts['generated']} generated"
        for name, counts in stats["modalities"].items()
    )
    log.say(f"Modalities of the catalogue: {states}.")
    users = _users(service.client)

    log.head("An item with a picture and no text")
    picture = {"base64": base64.b64encode(options.picture.read_bytes()).decode()}
    made = log.ask("POST", "/items", {"id": "new-picture", "modalities": {"image": picture}}, expect=201)
    _check(made["modalities"]["image"]["state"] == "observed", "the picture is observed")
    _check(made["modalities"]["text"]["state"] == "generated", "the text is generated")
    log.say("What the generated text means, in items whose real text is nearest:")
    detail = log.ask("GET", "/items/new-picture/modalities/text?neighbours=5")
    _check(detail["neighbours"], "the generated text has neighbours")
    log.say("It is found by words that nobody wrote about it:")
    _found(log, "new-picture", options.query, "generated")
    _recommended(log, "new-picture", users)

    log.head("An item with a text and no picture")
    body = {"id": "new-text", "title": options.title, "modalities": {"text": options.text}}
    body |= {"categories": options.category}
    made = log.ask("POST", "/items", body, expect=201)
    _check(made["modalities"]["text"]["state"] == "observed", "the text is observed")
    _check(made["modalities"]["image"]["state"] == "generated", "the picture is generated")
    log.say("Its generated picture, in items whose real picture is nearest:")
    log.ask("GET", "/items/new-text/modalities/image?neighbours=5")
    _found(log, "new-text", options.text[:120], "observed")
    _recommended(log, "new-text", users)

    log.head("An item with neither")
    made = log.ask("POST", "/items", {"id": "new-nothing", "categories": options.category}, expect=201)
    _check(all(one["state"] == "generated" for one in made["modalities"].values()), "everything is generated")
    log.say("Nothing is known of it, so the modalities' means stand in, and the answer says so. Then it is watched:")
    visitors = users[:5]
    events = [{"user": user, "item": "new-nothing", "type": "view"} for user in visitors]
    accepted = log.ask("POST", "/feedback", {"feedback": events})
    _check(accepted["accepted"] == len(visitors), "all events are accepted")
    item = _wait_for_users(service.client, "new-nothing")
    log.say("A moment later its features are generated from what its users like:")
    log.ask("GET", "/items/new-nothing")
    _check(item["modalities"]["text"]["basis"] == ["users"], "the basis is its users")

    log.head("Feedback changes its user's list at once")
    user = users[0]
    before = log.ask("GET", f"/recommend/{quote(user)}?n=10")
    top = before["items"][0]["id"]
    log.ask("POST", "/feedback", {"feedback": [{"user": user, "item": top, "type": "view"}]})
    after = log.ask("GET", f"/recommend/{quote(user)}?n=10")
    _check(top not in [one["id"] for one in after["items"]], "what was seen is not recommended again")
    _check(after["items"] != before["items"], "the list has changed")

    log.head("Restart")
    time.sleep(1)
    asked = ["/items/new-picture", "/items/new-text", "/items/new-nothing", f"/recommend/{quote(user)}?n=50"]
    asked += [f"/recommend/{quote(one)}?n=50" for one in users[1:20]]
    asked += [f"/retrieve?text={quote(options.query)}&n=50", "/items/new-picture/modalities/text?vector=true"]
    old = {path: _stable(service.client.get(path).json()) for path in asked}
    service.stop()
    seconds = service.start()
    new = {path: _stable(service.client.get(path).json()) for path in asked}
    _check(old == new, "the answers after the restart are those before it")
    log.say(
        f"The service was stopped and started on the same database (ready after {seconds:.1f} s). {len(asked)} answers "
        "were compared with those from before, scores and generated vectors included: all are equal."
    )
    return log.lines


def _users(client: httpx.Client) -> list[str]:
    """Some users with feedback."""
    found: dict[str, None] = {}
    cursor = ""
    for _ in range(400):
        page = client.get(f"/feedback?limit=500{cursor}").json()
        found |= dict.fromkeys(event["user"] for event in page["items"])
        if not page["next_cursor"]:
            break
        cursor = f"&cursor={quote(page['next_cursor'])}"
    return list(found)


def _found(log: Transcript, item: str, query: str, state: str) -> None:
    path = f"/retrieve?text={quote(query)}&n=500"
    found = log.ask("GET", path, shown=False)["items"]
    places = [place for place, one in enumerate(found, start=1) if one["id"] == item]
    _check(places, f"{item} is not among the first 500 for {query!r}")
    hit = found[places[0] - 1]
    _check(hit["matched"] == {"modality": "text", "state": state}, f"{item} was matched through its {state} text")
    log.lines += ["```", f"GET {path}", "", f"place {places[0]} of {log_items(log)}:", _short(hit), "```", ""]


def log_items(log: Transcript) -> int:
    """Number of items in the catalogue."""
    return int(log.client.get("/stats").json()["items"])


def _recommended(log: Transcript, item: str, users: Sequence[str]) -> None:
    first: tuple[str, int, dict[str, Any]] | None = None
    count = 0
    for user in users:
        items = log.client.get(f"/recommend/{quote(user)}?n=20").json()["items"]
        for place, one in enumerate(items, start=1):
            if one["id"] == item:
                count += 1
                first = first or (user, place, one)
    _check(first, f"{item} is recommended to nobody of {len(users)} users")
    if first is None:
        return
    log.say(f"It stands among the first 20 of {count} of the {len(users)} users asked, for example:")
    log.lines += ["```", f"GET /recommend/{first[0]}?n=20", "", f"place {first[1]}:", _short(first[2]), "```", ""]


def _wait_for_users(client: httpx.Client, item: str) -> dict[str, Any]:
    for _ in range(100):
        found: dict[str, Any] = client.get(f"/items/{item}").json()
        if found["modalities"]["text"].get("basis") == ["users"]:
            return found
        time.sleep(0.1)
    raise AssertionError(f"{item} was not regenerated within ten seconds")


def _stable(answer: Any) -> Any:
    """Without what is new in every answer."""
    return {key: value for key, value in answer.items() if key != "recommendation_id"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Walk and write the transcript."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--picture", type=Path, required=True, help="a picture of an item that is not in the catalogue")
    parser.add_argument("--query", required=True, help="words that item should be found by")
    parser.add_argument("--title", required=True, help="title of another new item")
    parser.add_argument("--text", required=True, help="its text")
    parser.add_argument("--category", action="append", default=[])
    parser.add_argument("--image-weights", type=Path, default=os.environ.get("LACUNA_IMAGE_WEIGHTS"))
    parser.add_argument("--out", type=Path, help="the Markdown file; printed where left out")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as data:
        service = Service(options.bundle, Path(data), options.image_weights)
        try:
            lines = walk(service, options)
        finally:
            service.stop()
    text = "\n".join(
        ["# Walkthrough", "", "Written by `benchmarks/walkthrough.py`; long lists and strings are cut.", ""]
    )
    text += "\n" + "\n".join(lines)
    if options.out:
        options.out.write_text(text, "utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
