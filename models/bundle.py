"""Bundles: the only contract between the trainer and the service.

A bundle is a folder: `manifest.json`, `*.safetensors`, vocabularies as JSON, and optionally the catalogue it was
trained on (`items.jsonl`, `feedback.jsonl`). Every file's sha256 stands in the manifest; nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from models.files import folder_beside, replace_folder
from models.vocabulary import Vocabulary

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
MANIFEST_BYTES = 16 << 20  # more than any manifest has
MANIFEST_DEPTH = 64
REASON = 300  # letters of what went wrong that a message quotes
# The catalogue that a bundle may bring: POST bodies without the withheld cells, their raw features by modality
# `[n, dim_m]` with `<modality>.observed` uint8 `[n]`, rows in the order of the items, and the feedback events.
CATALOGUE_ITEMS = "catalogue/items.jsonl"
CATALOGUE_FEATURES = "catalogue/features.safetensors"
CATALOGUE_FEEDBACK = "catalogue/feedback.jsonl"

_IDS = TypeAdapter(list[str])


class BundleError(ValueError):
    """A folder that is no usable bundle; the message is one sentence that says what is wrong."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EncoderRef(_Part):
    """Which encoder made a modality's features.

    `id` is `sentence-transformers:<name>`, `torchvision:<name>` or `catalogue`; `weights_sha256` the hash of its
    weights; `file` the weights' file inside the bundle where the bundle ships them.
    """

    kind: Literal["text", "image"]
    id: str
    dim: int = Field(ge=1)
    weights_sha256: str
    file: str | None = None


class ModalityEntry(_Part):
    """A modality of the bundle. Without an encoder its features only come as ready vectors."""

    name: str
    dim: int = Field(ge=1)
    encoder: EncoderRef | None = None


class DataEntry(_Part):
    """What the bundle was trained on."""

    name: str
    synthetic: bool
    users: int
    items: int
    interactions: int
    missing_cells: float = Field(ge=0, le=1, description="share of item-modality cells that are missing")
    fingerprint: str
    min_rating: float | None = Field(None, description="ratings below this value do not count as interest")
    title_as_text: bool = Field(True, description="the title of an item without a text counts as its text")
    until: datetime | None = Field(None, description="when the newest of the feedback that it was trained on happened")


class ModelEntry(_Part):
    """A trained model inside the bundle: its config, its measured metrics and its tensors' file."""

    form: str = Field("lacuna", description="lacuna, or paper: the model as its paper has it")
    config: dict[str, Any]
    metrics: dict[str, float]
    file: str
    refitted: bool = Field(
        False,
        description="the metrics are of a fit without the held-out feedback, the weights of the same fit on all of it",
    )


class Manifest(_Part):
    """`manifest.json`."""

    schema_version: int
    version: str
    created_at: datetime
    lacuna_version: str
    data: DataEntry
    modalities: tuple[ModalityEntry, ...]
    models: dict[str, ModelEntry]
    files: dict[str, str] = Field(description="sha256 of every other file, by its path in the bundle")

    @property
    def identity(self) -> str:
        """What tells the bundle from every other: the sha256 of its manifest, which has those of all its files."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


class Bundle:
    """A loaded, verified bundle. `Bundle.load(path)` needs nothing else."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def load(cls, path: str | Path) -> Bundle:
        """Read and verify a bundle.

        Raises:
            BundleError: the folder is missing, damaged, foreign or of another schema version.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        for name, expected in manifest.files.items():
            file = folder / name
            inside = (folder / part for part in (Path(name), *Path(name).parents[:-1]))
            if any(map(os.path.islink, inside)):
                raise BundleError(f"the bundle {folder} is refused: {_short(name)} is a link, which may lead anywhere")
            if not os.path.isfile(file):
                raise BundleError(f"the bundle {folder} is incomplete: {_short(name)} is missing")
            if file_sha256(file) != expected:
                raise BundleError(f"the bundle {folder} is damaged: {name} does not match its checksum")
        return cls(folder, manifest)

    @property
    def version(self) -> str:
        """The bundle's own version, such as `2026-11-21.1-9f86d081`: a day, its bundles, and a name of the contents."""
        return self.manifest.version

    def file(self, name: str) -> Path | None:
        """The path of one of the bundle's files, or None where the bundle does not hold it."""
        return self.path / name if name in self.manifest.files else None

    @contextmanager
    def reading(self, model: str) -> Iterator[None]:
        """Turn what goes wrong while a model is rebuilt into one sentence.

        Raises:
            BundleError: the bundle's model is none that this Lacuna can read.
        """
        try:
            yield
        except (ValidationError, RuntimeError, KeyError, TypeError, ValueError) as error:
            reason = shorten(str(error), REASON)
            raise BundleError(
                f"the {model} model of the bundle {self.path} does not fit this Lacuna, train it anew: {reason}"
            ) from error

    def tensors(self, name: str) -> dict[str, NDArray[Any]]:
        """The arrays of one safetensors file of the bundle."""
        if name not in self.manifest.files:
            raise BundleError(f"the bundle {self.path} does not list {name}")
        try:
            return load_file(self.path / name)
        except SafetensorError as error:
            raise BundleError(f"the bundle {self.path} is damaged: {name}: {shorten(str(error), REASON)}") from None

    def require_finite(self) -> None:
        """Check that no value of its models is missing.

        Raises:
            BundleError: a tensor holds NaN.
        """
        for entry in self.manifest.models.values():
            for name, tensor in self.tensors(entry.file).items():
                if np.issubdtype(tensor.dtype, np.floating) and np.isnan(tensor).any():
                    raise BundleError(f"the bundle {self.path} is damaged: {name} in {entry.file} holds NaN")

    def vocabulary(self, name: str) -> Vocabulary:
        """The vocabulary stored as `<name>.json`."""
        if f"{name}.json" not in self.manifest.files:
            raise BundleError(f"the bundle {self.path} has no vocabulary {name!r}")
        try:
            ids = _IDS.validate_json((self.path / f"{name}.json").read_bytes(), strict=True)
            return Vocabulary(ids)
        except ValueError:
            raise BundleError(f"the bundle {self.path} is damaged: {name}.json is no list of different ids") from None


def read_manifest(folder: Path) -> Manifest:
    """Read and check `manifest.json` alone.

    Raises:
        BundleError: it is absent, no JSON, of another schema version, or lists unsafe paths.
    """
    raw = _raw_manifest(folder)
    schema = raw.get("schema_version") if isinstance(raw, dict) else None
    if schema != SCHEMA_VERSION:
        raise BundleError(
            f"the bundle {folder} has schema version {schema!r}, this Lacuna reads version {SCHEMA_VERSION}"
        )
    try:
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        where = _short(".".join(str(part) for part in error.errors()[0]["loc"]))
        raise BundleError(
            f"the bundle {folder} is damaged: {MANIFEST}, field {where}: {error.errors()[0]['msg']}"
        ) from None
    for name in manifest.files:
        if Path(name).is_absolute() or ".." in Path(name).parts or not name.isprintable():
            raise BundleError(f"the bundle {folder} is refused: it lists a file outside itself ({_short(name)})")
    for name in _named_files(manifest):
        if name not in manifest.files:
            raise BundleError(f"the bundle {folder} is refused: it does not list {_short(name)}, which it names")
    return manifest


def _short(name: str) -> str:
    return " ".join(name[:REASON].split())


def _raw_manifest(folder: Path) -> Any:
    file = folder / MANIFEST
    if not file.is_file():
        raise BundleError(f"{folder} is no bundle: it has no {MANIFEST}")
    if file.is_symlink() or file.stat().st_size > MANIFEST_BYTES:
        raise BundleError(f"the bundle {folder} is refused: {MANIFEST} is a link, or larger than any can be")
    try:
        raw = json.loads(file.read_bytes())
        _check_depth(raw)
    except (ValueError, RecursionError):
        raise BundleError(f"the bundle {folder} is damaged: {MANIFEST} is not valid JSON") from None
    return raw


def _check_depth(value: object, left: int = MANIFEST_DEPTH) -> None:
    """Raise ValueError where a value is nested deeper than any of a manifest."""
    if not left:
        raise ValueError("this is nested too deep")
    for below in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(below, left - 1)


def _named_files(manifest: Manifest) -> Iterator[str]:
    """The files that models and encoders are read from."""
    yield from (model.file for model in manifest.models.values())
    encoders = (modality.encoder for modality in manifest.modalities)
    yield from (encoder.file for encoder in encoders if encoder is not None and encoder.file is not None)


class BundleWriter:
    """Collects files in a temporary folder beside the target and puts them in place in one step.

    Use as a context manager; on an exception nothing appears at `path`. `finish` writes the manifest.

    Raises:
        BundleError: something else than a bundle stands at `path`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._files: dict[str, str] = {}

    def __enter__(self) -> BundleWriter:
        require_replaceable(self.path)
        self.folder = folder_beside(self.path)
        return self

    def __exit__(self, *exc: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, name: str, write: Callable[[Path], object]) -> None:
        """Let `write` create the file `name`, and record its checksum."""
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        write(file)
        file.chmod(0o644)  # some writers make it private; another user's service must read it
        self._files[name] = file_sha256(file)

    def tensors(self, name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write a safetensors file."""
        contiguous = {key: np.ascontiguousarray(value) for key, value in arrays.items()}
        self.add(name, lambda file: save_file(contiguous, file))

    def vocabulary(self, name: str, vocabulary: Vocabulary) -> None:
        """Write `<name>.json`."""
        self.add(f"{name}.json", lambda file: file.write_text(json.dumps(vocabulary.ids, ensure_ascii=False), "utf-8"))

    def contents_name(self, models: Mapping[str, ModelEntry]) -> str:
        """Eight letters that tell what has been added, with these models, from the contents of any other bundle."""
        digest = hashlib.sha256(json.dumps(sorted(self._files.items())).encode())
        for name, entry in sorted(models.items()):
            digest.update(f"{name}\0{entry.model_dump_json()}".encode())
        return digest.hexdigest()[:8]

    def finish(
        self,
        *,
        version: str,
        lacuna_version: str,
        data: DataEntry,
        modalities: tuple[ModalityEntry, ...],
        models: Mapping[str, ModelEntry],
    ) -> Manifest:
        """Write the manifest and move the bundle to its place, replacing what was there."""
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            version=version,
            created_at=datetime.now(UTC),
            lacuna_version=lacuna_version,
            data=data,
            modalities=modalities,
            models=dict(models),
            files=dict(sorted(self._files.items())),
        )
        (self.folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", "utf-8")
        replace_folder(self.folder, self.path)
        return manifest


def require_replaceable(path: Path) -> None:
    """Only a bundle, a damaged one too, or an empty folder may be replaced by a new bundle.

    Raises:
        BundleError: something else stands at `path`.
    """
    if path.exists() and not (path / MANIFEST).is_file() and not (path.is_dir() and not any(path.iterdir())):
        raise BundleError(f"{path} exists and is no bundle; choose another place")


def next_version(path: Path, today: str) -> str:
    """`<today>.<k>`, one above the version of a bundle that stands at `path`, whatever its contents' name."""
    try:
        day, _, rest = read_manifest(path).version.rpartition(".")
    except BundleError:
        return f"{today}.1"
    number = rest.partition("-")[0]
    return f"{today}.{int(number) + 1}" if day == today and number.isdigit() else f"{today}.1"


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
