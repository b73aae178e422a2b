"""A real bundle, made once, and the real service over it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
import pytest
import torch
from filelock import FileLock

from models.bundle import EncoderRef
from models.dgmrec.config import DGMRecConfig
from models.encoders import Encoder, load_encoder
from service import bootstrap
from tests.service import irises
from tests.service.running import Running, seeded, settings_for
from training.content import DataOptions
from training.datasets import load_dataset
from training.datasets.prepared import write_dataset
from training.demo.catalogue import prepare_demo
from training.dgmrec.recipe import DGMRecRecipe
from training.progress import Terminal
from training.recipe import train_into_bundle
from training.trainer import TrainerConfig

ITEMS, USERS, SEED = 120, 40, 7
AUDIO = 12  # length of the ready vectors of the modality `audio`
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def kept(pytestconfig: pytest.Config) -> Path:
    """Where bundles and exported encoders are kept, from one test session to the next while nothing they are made
    from changes. The processes of one session share it (`_one_at_a_time`)."""
    total = hashlib.sha256()
    sources = [
        *(REPOSITORY / "models").rglob("*.py"),
        *(REPOSITORY / "training").rglob("*.py"),
        *(Path(__file__), Path(irises.__file__)),
    ]
    for file in sorted(sources):
        total.update(file.read_bytes())
    assert pytestconfig.cache is not None
    form = pytestconfig.getoption("form")
    folder = pytestconfig.cache.mkdir(f"lacuna-demo-{form}") / total.hexdigest()[:16]
    with _one_at_a_time(folder):
        if not folder.is_dir():
            for old in folder.parent.iterdir():
                if old.is_dir():
                    shutil.rmtree(old)
            (folder / "encoders").mkdir(parents=True)
    return folder


@pytest.fixture(scope="session")
def demo_folder(kept: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder for the services of this process, with the graphs that the bundles' encoders were exported to."""
    return _data_folder(kept, tmp_path_factory.mktemp("data"))


@pytest.fixture
def data_dir(kept: Path, tmp_path: Path) -> Path:
    """The same for one test alone."""
    folder = tmp_path / "data"
    folder.mkdir()
    return _data_folder(kept, folder)


def _data_folder(kept: Path, folder: Path) -> Path:
    (folder / "encoders").symlink_to(kept / "encoders")
    return folder


def _one_at_a_time(folder: Path) -> FileLock:
    """What is kept in `folder` is made by the process that first asks for it, while the others wait."""
    return FileLock(folder.parent / "lock")


@pytest.fixture(scope="session", autouse=True)
def encoders_are_loaded_once() -> Iterator[None]:
    """Services of one process share the encoders that they would load alike: it takes a second and 300 MB each time."""
    loaded: dict[str, Encoder[Any]] = {}

    def load(entry: EncoderRef, bundle_path: Path, **options: Any) -> Encoder[Any]:
        key = entry.model_dump_json()  # it holds the weights' hash
        if key not in loaded:
            loaded[key] = load_encoder(entry, bundle_path, **options)
        return loaded[key]

    with mock.patch.object(bootstrap, "load_encoder", load):
        yield


@pytest.fixture(scope="session")
def plain_bundle(kept: Path, pytestconfig: pytest.Config) -> Path:
    """A small bundle of the demo catalogue: text, image, and `audio` as ready vectors; DGMRec alone, in the form that
    `--form` names."""
    with _one_at_a_time(kept):
        return _bundle(kept, "plain", form=pytestconfig.getoption("form"))


@pytest.fixture(scope="session")
def paper_bundle(kept: Path) -> Path:
    """The same in the paper's form."""
    with _one_at_a_time(kept):
        return _bundle(kept, "paper", form="paper")


@pytest.fixture(scope="session")
def demo_bundle(kept: Path, plain_bundle: Path) -> Path:
    """The same with an IRIS."""
    with _one_at_a_time(kept):
        return _with_iris(plain_bundle, kept / "bundle")


@pytest.fixture(scope="session")
def other_bundle(kept: Path) -> Path:
    """The same catalogue trained again: another image encoder, other weights, another version."""
    with _one_at_a_time(kept):
        return _with_iris(_bundle(kept, "other-plain", seed=SEED + 1), kept / "other")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _bundle(folder: Path, name: str, *, seed: int = SEED, form: Literal["lacuna", "paper"] = "lacuna") -> Path:
    path = folder / name
    if not path.is_dir():
        data = _dataset(folder)
        with Terminal() as terminal:
            recipe = DGMRecRecipe(
                DGMRecConfig(seed=seed, embedding_size=32, rank=48, form=form),
                TrainerConfig(seed=seed, epochs=2, learning_rate=5e-3, batch_size=1024),
            )
            options = DataOptions(seed=seed, threads=1, cache=folder / "encoders")
            train_into_bundle(recipe, load_dataset(data), path, options, terminal=terminal, source=data)
    return path


def _with_iris(source: Path, path: Path) -> Path:
    if not path.is_dir():
        irises.with_iris(source, path)
    return path


def _dataset(folder: Path) -> Path:
    """The demo's items, 60 % of them with a sound that tells their category."""
    data = folder / "data"
    if data.is_dir():
        return data
    prepare_demo(folder / "silent", items=ITEMS, users=USERS, seed=SEED)
    rng = np.random.default_rng(SEED)
    items = [json.loads(line) for line in (folder / "silent" / "items.jsonl").read_text().splitlines()]
    events = [json.loads(line) for line in (folder / "silent" / "feedback.jsonl").read_text().splitlines()]
    kinds = sorted({item["categories"][0] for item in items})
    for item in items:
        if rng.random() < 0.6:
            sound = rng.normal(scale=0.2, size=AUDIO)
            sound[kinds.index(item["categories"][0]) % AUDIO] += 1
            item["modalities"]["audio"] = {"vector": [round(value, 4) for value in sound.tolist()]}
    write_dataset(data, items, events, name="demo (synthetic)", source="the demo with sounds", synthetic=True)
    return data


@pytest.fixture(scope="session")
def seeded_file(demo_bundle: Path, demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite database as the service leaves it after its first start with the bundle; to be copied, not used."""
    return seeded(demo_bundle, demo_folder, tmp_path_factory.mktemp("seeded") / "lacuna.db")


@pytest.fixture(scope="module")
def running(
    seeded_file: Path, demo_bundle: Path, demo_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """The real service over the demo catalogue on SQLite, shared by a module's tests: each uses ids of its own."""
    file = shutil.copy(seeded_file, tmp_path_factory.mktemp("running") / "lacuna.db")
    with Running(settings_for(demo_bundle, demo_folder, Path(file))) as service:
        yield service


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def anywhere(request: pytest.FixtureRequest, demo_bundle: Path, demo_folder: Path) -> Iterator[Running]:
    """The same on each database."""
    if request.param == "sqlite":
        yield request.getfixturevalue("running")
        return
    with Running(settings_for(demo_bundle, demo_folder, request.getfixturevalue("postgres_url"))) as service:
        yield service


@pytest.fixture
def alone(seeded_file: Path, demo_bundle: Path, demo_folder: Path, tmp_path: Path) -> Iterator[Running]:
    """A service of the test's own."""
    file = shutil.copy(seeded_file, tmp_path / "lacuna.db")
    with Running(settings_for(demo_bundle, demo_folder, Path(file))) as service:
        yield service
