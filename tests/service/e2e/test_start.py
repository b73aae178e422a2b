"""What keeps the service from starting is one sentence and exit code 2."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.__main__ import main
from tests.service.running import sign

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """The program sets up the process's logging, which here is the tests'."""
    root, handlers, level = logging.getLogger(), logging.getLogger().handlers[:], logging.getLogger().level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line that the program ends with."""
    assert main(["--port", "0", "--log-level", "error", *map(str, arguments)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def cut(bundle: Path) -> None:
    file = bundle / "dgmrec.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def edited(**changes: object) -> Callable[[Path], None]:
    return lambda bundle: sign(bundle, **changes)


def with_encoder(encoder_id: str, **changes: object) -> Callable[[Path], None]:
    def edit(bundle: Path) -> None:
        modalities = json.loads((bundle / "manifest.json").read_text())["modalities"]
        modalities[1]["encoder"] |= {"id": encoder_id, **changes}
        sign(bundle, modalities=modalities)

    return edit


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (cut, "is damaged: dgmrec.safetensors does not match its checksum"),
        (lambda bundle: (bundle / "users.json").unlink(), "is incomplete: users.json is missing"),
        (lambda bundle: (bundle / "manifest.json").unlink(), "is no bundle: it has no manifest.json"),
        (lambda bundle: (bundle / "manifest.json").write_text("{"), "manifest.json is not valid JSON"),
        (edited(schema_version=99), "has schema version 99, this Lacuna reads version 1"),
        (edited(surprise=1), "field surprise"),
        (edited(models={}), "holds no dgmrec model"),
        (with_encoder("torchvision:nosuchnet", file=None), "nosuchnet"),
        (with_encoder("cloud:embedder", file=None), "there is no encoder 'cloud:embedder'"),
        (with_encoder("catalogue", weights_sha256="0" * 64), "the bundle was made with catalogue weights 0000"),
    ],
)
def test_a_bundle_that_cannot_be_served(
    demo_bundle: Path,
    demo_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], None],
    sentence: str,
) -> None:
    bundle = shutil.copytree(demo_bundle, tmp_path / "bundle")
    spoil(bundle)
    database = f"sqlite+aiosqlite:///{tmp_path}/lacuna.db"
    said = refusal(capsys, "--bundle", bundle, "--data-dir", demo_folder, "--database-url", database)
    assert sentence in said
    assert not (tmp_path / "lacuna.db").exists()


def test_a_database_that_another_modality_fills(
    demo_bundle: Path, demo_folder: Path, seeded_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = shutil.copy(seeded_file, tmp_path / "lacuna.db")
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE features SET modality = 'smell' WHERE modality = 'audio'")
        connection.execute("DELETE FROM item_states")
    connection.close()
    said = refusal(
        capsys, "--bundle", demo_bundle, "--data-dir", demo_folder, "--database-url", f"sqlite+aiosqlite:///{file}"
    )
    assert "does not fit the database" in said
    assert "'smell'" in said


def test_a_database_that_is_none(
    demo_bundle: Path, demo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "lacuna.db"
    file.write_bytes(b"no database" * 1000)
    options = ("--bundle", demo_bundle, "--data-dir", demo_folder, "--database-url")
    assert refusal(capsys, *options, f"sqlite+aiosqlite:///{file}") == (
        f"LACUNA_DATABASE_URL names the SQLite file {file}, which cannot be used: file is not a database."
    )
    said = refusal(capsys, *options, "postgresql+asyncpg://me@127.0.0.1:1/x")
    named = "LACUNA_DATABASE_URL names the PostgreSQL database 'x' at 127.0.0.1:1"
    assert said == f"{named}, which cannot be used: Connection refused."
    assert "LACUNA_DATABASE_URL" in refusal(capsys, *options, "mysql://somewhere")


def test_the_program_itself(tmp_path: Path) -> None:
    """From a shell, without a bundle."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LACUNA_")}
    done = subprocess.run(
        [sys.executable, "-m", "service", "--port", "0", "--data-dir", tmp_path],
        env=environment | {"PYTHONPATH": str(REPOSITORY)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("LACUNA_BUNDLE is not set")
    assert "Traceback" not in done.stderr
