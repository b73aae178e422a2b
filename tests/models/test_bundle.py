"""Bundles: what was written is read back, whatever else stands there is refused in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from models.bundle import (
    MANIFEST,
    Bundle,
    BundleError,
    BundleWriter,
    DataEntry,
    EncoderRef,
    Manifest,
    ModalityEntry,
    ModelEntry,
    file_sha256,
    next_version,
    read_manifest,
)
from models.vocabulary import Vocabulary

DATA = DataEntry(
    name="toy", synthetic=True, users=2, items=3, interactions=4, missing_cells=0.5, fingerprint="f", min_rating=None
)
TEXT = ModalityEntry(name="text", dim=3, encoder=EncoderRef(kind="text", id="e", dim=3, weights_sha256="w"))
AUDIO = ModalityEntry(name="audio", dim=2)
MODEL = ModelEntry(config={"seed": 1}, metrics={"recall@20": 0.25}, file="model.safetensors")
WEIGHTS = np.arange(6, dtype=np.float32).reshape(2, 3)


def write(path: Path, version: str = "2026-11-21.1", note: str = "one") -> Manifest:
    with BundleWriter(path) as writer:
        writer.tensors("model.safetensors", {"a": WEIGHTS, "transposed": WEIGHTS.T})
        writer.vocabulary("items", Vocabulary(["ü", "b", "c"]))
        writer.add("catalogue/note.txt", lambda file: file.write_text(note))
        return writer.finish(
            version=version, lacuna_version="0", data=DATA, modalities=(TEXT, AUDIO), models={"dgmrec": MODEL}
        )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(tmp_path / "bundle")
    return tmp_path / "bundle"


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    raw = json.loads((path / MANIFEST).read_text())
    change(raw)
    (path / MANIFEST).write_text(json.dumps(raw))


def test_round_trip(path: Path) -> None:
    bundle = Bundle.load(path)
    assert bundle.version == "2026-11-21.1"
    assert bundle.manifest.data == DATA
    assert bundle.manifest.modalities == (TEXT, AUDIO)
    assert bundle.manifest.models == {"dgmrec": MODEL}
    assert bundle.vocabulary("items") == Vocabulary(["ü", "b", "c"])
    arrays = bundle.tensors("model.safetensors")
    assert np.array_equal(arrays["a"], WEIGHTS)
    assert np.array_equal(arrays["transposed"], WEIGHTS.T)  # whatever its strides were
    note = bundle.file("catalogue/note.txt")
    assert note is not None
    assert note.read_text() == "one"


def test_every_file_stands_in_the_manifest(path: Path) -> None:
    found = {str(file.relative_to(path)): file_sha256(file) for file in path.rglob("*") if file.is_file()}
    del found[MANIFEST]
    assert Bundle.load(path).manifest.files == found


def test_what_it_does_not_hold(path: Path) -> None:
    bundle = Bundle.load(path)
    (path / "stray.safetensors").write_bytes(b"")  # there, but not listed
    assert bundle.file("stray.safetensors") is None
    with pytest.raises(BundleError, match="does not list stray"):
        bundle.tensors("stray.safetensors")
    with pytest.raises(BundleError, match="no vocabulary 'users'"):
        bundle.vocabulary("users")


@pytest.mark.parametrize("name", ["model.safetensors", "items.json", "catalogue/note.txt"])
def test_flipped_bit(path: Path, name: str) -> None:
    data = bytearray((path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (path / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"damaged: {name} does not match its checksum"):
        Bundle.load(path)


def test_cut_file(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(BundleError, match=r"damaged: model\.safetensors"):
        Bundle.load(path)


def test_missing_file(path: Path) -> None:
    (path / "items.json").unlink()
    with pytest.raises(BundleError, match=r"incomplete: items\.json is missing"):
        Bundle.load(path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00"])
def test_manifest_that_is_no_json(path: Path, content: bytes) -> None:
    (path / MANIFEST).write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest\.json is not valid JSON"):
        Bundle.load(path)


@pytest.mark.parametrize("content", ["[]", "{}", "3", '{"schema_version": 2}', '{"schema_version": "1"}'])
def test_other_schema_version(path: Path, content: str) -> None:
    (path / MANIFEST).write_text(content)
    with pytest.raises(BundleError, match="this Lacuna reads version 1"):
        Bundle.load(path)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda raw: raw.pop("data"), "data"),
        (lambda raw: raw["data"].update(items="many"), r"data\.items"),
        (lambda raw: raw["modalities"][0].update(dim=0), r"modalities\.0\.dim"),
        (lambda raw: raw.update(surprise=1), "surprise"),
    ],
)
def test_manifest_with_a_bad_field(path: Path, change: Callable[[dict[str, Any]], object], field: str) -> None:
    edit(path, change)
    with pytest.raises(BundleError, match=f"damaged: manifest.json, field {field}: "):
        Bundle.load(path)


@pytest.mark.parametrize("name", ["../secret", "a/../../secret", "/etc/passwd"])
def test_path_escape(path: Path, name: str) -> None:
    edit(path, lambda raw: raw["files"].update({name: "0" * 64}))
    with pytest.raises(BundleError, match="lists a file outside itself"):
        Bundle.load(path)


@pytest.mark.parametrize("make", [Path.exists, Path.mkdir, Path.touch])
def test_no_bundle(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "other")
    with pytest.raises(BundleError, match=r"is no bundle: it has no manifest\.json"):
        Bundle.load(tmp_path / "other")


def test_old_bundle_is_replaced_whole(path: Path) -> None:
    (path / "stray.txt").write_text("of the old one")
    write(path, "2026-11-21.2", "two")
    bundle = Bundle.load(path)
    assert bundle.version == "2026-11-21.2"
    assert (path / "catalogue/note.txt").read_text() == "two"
    assert not (path / "stray.txt").exists()
    assert [file.name for file in path.parent.iterdir()] == ["bundle"]


def test_nothing_shows_before_the_end(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "bundle") as writer:
        writer.tensors("model.safetensors", {"a": WEIGHTS})
        assert not (tmp_path / "bundle").exists()
    assert not list(tmp_path.iterdir())  # never finished


def test_exception_leaves_the_old_one(path: Path) -> None:
    def half(file: Path) -> None:
        file.write_text("half")
        raise OSError("disk full")

    before = file_sha256(path / MANIFEST)
    with pytest.raises(OSError, match="full"), BundleWriter(path) as writer:
        writer.add("a", half)
    assert file_sha256(path / MANIFEST) == before
    assert [file.name for file in path.parent.iterdir()] == ["bundle"]


def test_foreign_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"dear")
    with pytest.raises(BundleError, match="photos exists and is no bundle; choose another place"):
        write(tmp_path / "photos")
    assert (tmp_path / "photos" / "holiday.jpg").read_bytes() == b"dear"


def test_foreign_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("dear")
    with pytest.raises(BundleError, match="letter exists and is no bundle"):
        write(tmp_path / "letter")
    assert (tmp_path / "letter").read_text() == "dear"


def test_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    write(tmp_path / "bundle")
    Bundle.load(tmp_path / "bundle")


def test_damaged_bundle_is_replaced(path: Path) -> None:
    (path / MANIFEST).write_text("{")
    write(path)
    Bundle.load(path)


def test_parents_are_made_and_others_may_read(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "down"
    write(path)
    assert path.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(
    ("version", "today", "expected"),
    [
        ("2026-11-21.1", "2026-11-21", "2026-11-21.2"),
        ("2026-11-21.9", "2026-11-21", "2026-11-21.10"),
        ("2026-11-21.9-0badcafe", "2026-11-21", "2026-11-21.10"),
        ("2026-11-20.4", "2026-11-21", "2026-11-21.1"),
        ("hand-made", "2026-11-21", "2026-11-21.1"),
        ("2026-11-21.x", "2026-11-21", "2026-11-21.1"),
    ],
)
def test_next_version(tmp_path: Path, version: str, today: str, expected: str) -> None:
    write(tmp_path / "bundle", version)
    assert next_version(tmp_path / "bundle", today) == expected


def test_contents_name_tells_bundles_apart(tmp_path: Path) -> None:
    """The same files and models have the same name, and others another one."""

    def named(weight: float, recall: float) -> str:
        with BundleWriter(tmp_path / "bundle") as writer:
            writer.tensors("model.safetensors", {"w": np.array([weight])})
            return writer.contents_name({"m": ModelEntry(config={}, metrics={"recall": recall}, file="model")})

    assert named(1.0, 0.5) == named(1.0, 0.5)
    assert len({named(1.0, 0.5), named(2.0, 0.5), named(1.0, 0.6)}) == 3


def test_next_version_where_there_is_none(tmp_path: Path) -> None:
    assert next_version(tmp_path / "bundle", "2026-11-21") == "2026-11-21.1"


def test_no_pickle_inside(path: Path) -> None:
    assert {file.suffix for file in path.rglob("*") if file.is_file()} == {".json", ".safetensors", ".txt"}
    assert set(load_file(path / "model.safetensors")) == {"a", "transposed"}
    assert read_manifest(path).models["dgmrec"].file == "model.safetensors"
