"""Every command with arguments, files and databases of every odd kind: a sentence and exit code 2, never a traceback,
and nothing that was there is lost."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.bundle import BundleError
from models.encoders import EncoderUnavailableError
from models.errors import sentence_of
from service import __main__ as serving
from service import backup, bootstrap, export
from service.settings import Settings, SettingsError
from tests.service.running import sign
from tests.training.tiny import write_vectors
from training import cli

FUZZ = settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
MAINS = {"service": serving.main, "service.backup": backup.main, "service.export": export.main}
SECRET = "s3cret"


@dataclass(frozen=True)
class Said:
    """What a command has said and how it ended."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The one sentence of a refusal."""
        assert self.code == 2, self.err
        assert "Traceback" not in self.out + self.err
        assert "fault of Lacuna" not in self.err
        return self.err.splitlines()[-1]


def lacuna(*arguments: str | Path, database: str | None = None) -> Said:
    """The command in this process, which becomes the service's programs where another one would."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace", write_through=True)
    environment = {} if database is None else {"LACUNA_DATABASE_URL": database}
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(sys, "argv", ["lacuna", *map(str, arguments)]))
        stack.enter_context(mock.patch.object(os, "execv", _become))
        stack.enter_context(mock.patch.dict(os.environ, environment))
        stack.enter_context(redirect_stdout(out))
        stack.enter_context(redirect_stderr(err))
        stopped = stack.enter_context(pytest.raises(SystemExit))
        cli.main()
    code = stopped.value.code
    assert code is None or isinstance(code, int)
    printed, told = (stream.buffer.getvalue().decode() for stream in (out, err))  # type: ignore[attr-defined]
    return Said(code or 0, printed, told)


def _become(_program: str, arguments: list[str]) -> None:
    raise SystemExit(MAINS[arguments[2]](arguments[3:]))


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with odd things in it, which stay as they are."""
    for name in [name for name in os.environ if name.upper().startswith("LACUNA_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(serving, "configure_for", lambda *_: None)
    monkeypatch.setattr(serving.Supervisor, "run", lambda _: 0)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "letter").write_text("dear")
    (tmp_path / "letter").write_text("dear")
    (tmp_path / "empty").touch()
    (tmp_path / "bytes").write_bytes(random.Random(1).randbytes(5000))
    (tmp_path / "object").write_text('{"format": 1, "schema_version": 1}')
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / os.fsdecode(b"odd-\xff\xfe")).write_bytes(b"\xff")
    before = _contents(tmp_path)
    yield tmp_path
    after = _contents(tmp_path)
    assert {name: after.get(name) for name in before} == before


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


PLACES = [
    *("folder", "letter", "bytes", "object", "loop", "gone", os.fsdecode(b"odd-\xff\xfe"), os.fsdecode(b"\xff/\xfe")),
    *(
        "nowhere",
        "nowhere/x",
        "letter/x",
        ".",
        "..",
        "/",
        "/dev",
        "/dev/null/x",
        "/proc/self/mem",
        "x" * 300,
        "a/" * 3000,
    ),
    *(
        "",
        " ",
        "-",
        "--",
        "-x",
        "--help",
        "~",
        "*",
        "$HOME",
        "file:///x",
        "http://x",
        "s3://x/y",
        "C:\\x",
        "a\nb",
        "\u2028",
    ),
]
ODD_PLACES = st.sampled_from(PLACES)
DATABASES = st.sampled_from(
    [
        *(f"sqlite+aiosqlite:///{place}" for place in PLACES),
        *("", "x", "mysql://x", "sqlite://", "sqlite+aiosqlite:///:memory:", "sqlite+aiosqlite:///letter?mode=ro"),
        *(
            f"postgresql+asyncpg://me:{SECRET}@127.0.0.1:1{rest}"
            for rest in ("", "/", "/x", "/x?sslmode=require", "/x?y=z")
        ),
        *(
            f"postgresql+asyncpg://me:{SECRET}@{rest}"
            for rest in ("h:x/y", "@h/y", "a..b/y", "[::1/y", "127.0.0.1:1:1/y")
        ),
        *("postgresql+asyncpg://x:1/y?sslrootcert=letter", os.fsdecode(b"postgresql+asyncpg://\xff/x"), "\udcff"),
    ]
)
NAMES = st.sampled_from(
    ["", "x", "\udcff", "a\nb", "dgmrec", "tiktok", "-1", "NaN", "1e400", "--json", "../x", "x" * 5000]
)
ANSWERS = {0, 1, 2}


def check(said: Said) -> None:
    """Whatever it was, it is told in words."""
    assert said.code in ANSWERS
    assert "Traceback" not in said.out + said.err
    assert "fault of Lacuna" not in said.err, said.err
    assert SECRET not in said.out + said.err
    assert said.code == 0 or said.err.strip() or said.out.strip()


# --- any arguments ---------------------------------------------------------------------------------------------------


@FUZZ
@given(st.sampled_from(["backup", "restore", "export"]), ODD_PLACES, DATABASES, st.sampled_from([[], ["--force"]]))
def test_copies_of_a_database(command: str, place_: str, database: str, options: list[str]) -> None:
    check(lacuna(command, *options, "--", place_, database=database))


@FUZZ
@given(st.sampled_from(["items", "feedback", "x"]), ODD_PLACES, NAMES, NAMES, ODD_PLACES)
def test_imports(kind: str, file: str, url: str, key: str, report: str) -> None:
    check(lacuna("import", kind, file, f"--url={url}", f"--key={key}", f"--report={report}"))


@FUZZ
@given(st.lists(ODD_PLACES, max_size=3), ODD_PLACES, st.none() | ODD_PLACES, st.lists(NAMES, max_size=2), NAMES)
def test_reports(results: list[str], html: str, bundle: str | None, users: list[str], title: str) -> None:
    html = f"made/{html}" if html in ("letter", "bytes", "object", "gone") or not html.isascii() else html
    options = [f"--html={html}", f"--title={title}", *(f"--user={user}" for user in users)]
    check(lacuna("report", *options, *([] if bundle is None else [f"--bundle={bundle}"]), "--", *results))


@FUZZ
@given(
    st.sampled_from(["dgmrec", "lrmm", "iris", "all", "x"]),
    ODD_PLACES,
    ODD_PLACES,
    st.lists(st.tuples(st.sampled_from(["mask", "image-encoder", "set", "device", "seed", "image-weights"]), NAMES)),
)
def test_trainings(model: str, data: str, out: str, options: list[tuple[str, str]]) -> None:
    more = [f"--{name}={value}" for name, value in options]
    check(lacuna("train", model, f"--data={data}", f"--out={out}", *more))


@FUZZ
@given(
    NAMES | st.sampled_from(["popularity", "svd", "iris", "nn"]),
    ODD_PLACES,
    st.sampled_from(["missing", "retrieval", "rating", "leave-one-out", "new-items", "ratio", "x"]),
    st.lists(st.tuples(st.sampled_from(["mask", "imputer", "split", "variant", "set", "seeds", "target"]), NAMES)),
)
def test_evaluations(model: str, data: str, protocol: str, options: list[tuple[str, str]]) -> None:
    more = [f"--{name}={value}" for name, value in options]
    check(lacuna("evaluate", f"--data={data}", f"--protocol={protocol}", *more, "--", model))


@FUZZ
@given(st.sampled_from(["lacuna", "movielens", "amazon", "folder", "x", ""]), ODD_PLACES, ODD_PLACES)
def test_preparations(dataset: str, source: str, out: str) -> None:
    check(lacuna("prepare", f"--source={source}", f"--out={out}", "--", dataset))


@settings(FUZZ, max_examples=25)
@given(ODD_PLACES, NAMES, NAMES, DATABASES, st.sampled_from(["1", "2", "x"]))
def test_servings(bundle: str, host: str, data_dir: str, database: str, workers: str) -> None:
    options = [f"--host={host}", f"--data-dir=made/{data_dir}", f"--workers={workers}", "--port=0"]
    check(lacuna("serve", *options, f"--bundle={bundle}", database=database or None))


@pytest.mark.parametrize("out", ["letter", "folder", "letter/x", "/dev/null/x", "loop", "", "x" * 300])
def test_demos(out: str) -> None:
    said = lacuna("demo", "--bundle-only", f"--out={out}", "--items=100", "--users=50")
    assert said.sentence
    check(said)


# --- damaged files ---------------------------------------------------------------------------------------------------


INSERTED = [b"\xff", b"\0", b"NaN", b"\xef\xbb\xbf", b"\\ud800", b"[" * 2000]


def damaged(data: bytes, draw: st.DataObject) -> bytes:
    """A file as disks, networks and editors leave it."""
    spoilt = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 3))):
        at = draw.draw(st.integers(0, max(len(spoilt) - 1, 0)))
        match draw.draw(st.sampled_from(["cut", "byte", "insert", "delete", "double"])):
            case "cut":
                del spoilt[at:]
            case "byte":
                spoilt[at : at + 1] = draw.draw(st.binary(min_size=1, max_size=1))
            case "insert":
                spoilt[at:at] = draw.draw(
                    st.sampled_from([b"\xff", b"\0", b"NaN", b"\xef\xbb\xbf", b"\\ud800", b"[" * 2000])
                )
            case "delete":
                del spoilt[at : at + draw.draw(st.integers(1, 50))]
            case "double":
                spoilt[at:at] = spoilt[at : at + 200]
    return bytes(spoilt)


RESULT = {
    "protocol": "missing",
    "dataset": "tiktok",
    "model": "dgmrec",
    "config": {"missing": 0.4, "model": {}, "trainer": {}},
    "command": "lacuna evaluate dgmrec",
    "machine": {"cpu": "one", "cores": 2, "threads": 2, "versions": {"torch": "2"}},
    "runs": [
        {"seed": seed, "metrics": {"recall@20": 0.1 * seed, "ndcg@20": 0.05}, "seconds": 3.5, "best_epoch": 4}
        for seed in (1, 2, 3)
    ],
    "mean": {"recall@20": 0.2},
}
ODD_VALUES = st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        1e308,
        float("nan"),
        float("inf"),
        "",
        "\ud800",
        "<script>",
        "x" * 5000,
        [],
        [[]],
        {},
        {"": {}},
        10**400,
    ]
)


def altered(value: object, draw: st.DataObject) -> object:
    """A value in which one thing, somewhere, is something else."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not keys or draw.draw(st.integers(0, 3)) == 0:
        return draw.draw(ODD_VALUES)
    key = draw.draw(st.sampled_from(keys))
    copy = dict(value) if isinstance(value, dict) else list(value)  # type: ignore[arg-type, call-overload]
    if draw.draw(st.integers(0, 4)) == 0:
        del copy[key]
    else:
        copy[key] = altered(copy[key], draw)
    return copy


@FUZZ
@given(st.data())
def test_reports_of_damaged_results(data: st.DataObject) -> None:
    good = json.dumps(RESULT).encode()
    folder = Path("results")
    folder.mkdir(exist_ok=True)
    (folder / "damaged.json").write_bytes(damaged(good, data))
    (folder / "altered.json").write_text(json.dumps(altered(RESULT, data)))
    (folder / "service.json").write_text(json.dumps(altered({"what": "latency", "machine": {}, "rows": [1]}, data)))
    check(lacuna("report", folder, "--html", "page.html"))
    (folder / "good.json").write_bytes(good)
    said = lacuna("report", folder, "--html", "page.html")
    assert said.code == 0, said.err
    check(said)
    (folder / "good.json").unlink()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd") / "tiny"
    write_vectors(folder)
    return folder


@pytest.mark.parametrize("sort", ["info", "swapped for a folder", "swapped for a file", "gone"])
@pytest.mark.parametrize("command", [["train", "dgmrec", "--out", "out"], ["evaluate", "popularity", "--seeds", "1"]])
def test_a_damaged_dataset(tiny: Path, command: list[str], sort: str) -> None:
    for name in [file.name for file in tiny.iterdir()] if sort != "info" else ["dataset.json"]:
        shutil.rmtree("data", ignore_errors=True)
        data = shutil.copytree(tiny, "data")
        file = Path(data) / name
        if sort == "info":
            file.write_text('{"format": 1, "name": "\\ud800", "counts": NaN}')
        else:
            file.unlink()
        if sort.endswith("folder"):
            file.mkdir()
        if sort.endswith("file"):
            file.write_bytes(b"\xff\0")
        assert lacuna(*command, "--data", data).sentence


@pytest.mark.parametrize(
    "options",
    [
        ["--set", "epochs"],
        ["--set", "epochs=many"],
        ["--set", "epochs=NaN"],
        ["--set", "epochs=1e400"],
        ["--set", "epochs=" + "9" * 5000],
        ["--set", "=1"],
        ["--set", "\udcff=1"],
        ["--set", "learning_rate=NaN"],
        ["--set", "embedding_size=-1"],
        ["--set", "embedding_size=[[[]]]"],
        ["--set", "layers=" + "[" * 5000],
        ["--mask", "nosuch"],
        ["--mask", "\udcff"],
        ["--device", "cuda:99"],
        ["--device", "tpu"],
        ["--device", ""],
        ["--seed", "-1", "--set", "epochs=x"],
        ["--seed", "9" * 30],
        ["--threads", "0"],
        ["--missing", "NaN"],
        ["--image-encoder", "torchvision:nosuch", "--set", "epochs=x"],
    ],
)
def test_a_training_with_odd_options(tiny: Path, options: list[str]) -> None:
    said = lacuna("train", "dgmrec", "--data", tiny, "--out", "out", *options)
    assert said.sentence
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--json", "folder"],
        ["--json", "letter/x"],
        ["--json", "x" * 300],
        ["--split", "nosuch", "--protocol", "leave-one-out"],
        ["--imputer", "nosuch"],
        ["--seeds", "9" * 30],
        ["--missing", "-1"],
        ["--target", "nowhere", "--protocol", "rating"],
        ["--item-reviews", "3"],
    ],
)
def test_an_evaluation_with_odd_options(tiny: Path, options: list[str]) -> None:
    model = {"leave-one-out": "iris", "rating": "lrmm"}.get(options[-1], "dgmrec")
    assert lacuna("evaluate", model, "--data", tiny, *options).sentence


# --- bundles ---------------------------------------------------------------------------------------------------------


def loaded(bundle: Path) -> str:
    """What keeps the service from using a bundle; nothing: empty."""
    try:
        bootstrap.load(Settings(bundle=bundle, data_dir=bundle.parent / "data"))
    except (SettingsError, BundleError, EncoderUnavailableError) as error:
        return sentence_of(error)
    return ""


@pytest.fixture
def bundle(demo_bundle: Path, place: Path, kept: Path) -> Path:
    (place / "data").mkdir()
    (place / "data" / "encoders").symlink_to(kept / "encoders")
    return Path(shutil.copytree(demo_bundle, place / "bundle"))


@settings(FUZZ, max_examples=40)
@given(st.data())
def test_a_damaged_bundle(bundle: Path, demo_bundle: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(str(file.relative_to(demo_bundle)) for file in demo_bundle.rglob("*.*"))))
    good = (demo_bundle / name).read_bytes()
    spoilt = damaged(good, data)
    (bundle / name).write_bytes(spoilt)
    said = loaded(bundle)
    assert said or spoilt == good or name == "manifest.json"
    assert "\n" not in said
    (bundle / name).write_bytes(good)


@settings(FUZZ, max_examples=100)
@given(st.data())
def test_a_bundle_with_an_odd_manifest(bundle: Path, demo_bundle: Path, data: st.DataObject) -> None:
    good = (demo_bundle / "manifest.json").read_bytes()
    (bundle / "manifest.json").write_text(json.dumps(altered(json.loads(good), data)))
    assert "\n" not in loaded(bundle)
    check(lacuna("report", "nowhere", "--html", "page.html", "--bundle", bundle))
    (bundle / "manifest.json").write_bytes(good)


@settings(FUZZ, max_examples=40)
@given(st.data())
def test_a_bundle_with_odd_content_under_a_right_checksum(bundle: Path, demo_bundle: Path, data: st.DataObject) -> None:
    """As another version of Lacuna would write it."""
    manifest = (demo_bundle / "manifest.json").read_bytes()
    name = data.draw(st.sampled_from(["items.json", "users.json", "dgmrec.safetensors", "iris.safetensors"]))
    good = (demo_bundle / name).read_bytes()
    if name.endswith(".json"):
        (bundle / name).write_text(json.dumps(altered(json.loads(good), data)))
    else:
        (bundle / name).write_bytes(damaged(good, data))
    sign(bundle, name)
    assert "\n" not in loaded(bundle)
    (bundle / name).write_bytes(good)
    (bundle / "manifest.json").write_bytes(manifest)


Spoil = Callable[[Path], object]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda bundle: (bundle / "manifest.json").write_bytes(b"\xff"),
        lambda bundle: (bundle / "manifest.json").write_text("[" * 100_000),
        lambda bundle: (bundle / "manifest.json").write_text('{"schema_version": NaN}'),
        lambda bundle: ((bundle / "manifest.json").unlink(), (bundle / "manifest.json").mkdir()),
        lambda bundle: ((bundle / "users.json").unlink(), (bundle / "users.json").mkdir()),
    ],
)
def test_what_a_command_says_of_a_damaged_bundle(bundle: Path, tiny: Path, spoil: Spoil) -> None:
    spoil(bundle)
    for command in (
        ["serve", "--port", "0", "--data-dir", "data", "--bundle", bundle],
        ["report", "nowhere", "--html", "page.html", "--bundle", bundle],
        ["train", "lrmm", "--data", tiny, "--out", bundle],
    ):
        assert lacuna(*command).sentence
