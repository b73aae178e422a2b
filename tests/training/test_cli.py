"""The `lacuna` command: what it does, and that a mistake is answered by one sentence and exit code 2."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from models.bundle import Bundle
from tests.training.commands import Run, refused
from tests.training.sources import put
from tests.training.tiny import ITEMS, events, vector_records, write_vectors
from training.cli import evaluate as cli_evaluate
from training.cli import train as cli_train
from training.content import DataOptions
from training.datasets import load_dataset, write_dataset
from training.recipe import Recipe

TINY = ["--threads", "1", "--budget", "0"]
for setting in ("epochs=2", "batch_size=64", "embedding_size=8", "rank=4", "neighbours=4", "layers=2"):
    TINY += ["--set", setting]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "tiny"
    write_vectors(folder)
    return folder


# --- help ----------------------------------------------------------------------------------------------------------


def test_help_lists_the_commands(lacuna: Run) -> None:
    code, out, _ = lacuna("--help")
    assert code == 0
    for command in ("demo", "prepare", "train", "evaluate", "serve", "import"):
        assert f" {command} " in out


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("demo", ["--out", "--bundle-only", "--items", "--users"]),
        ("prepare", ["--out", "--source"]),
        (
            "train",
            [
                "dgmrec|lrmm|iris|all",
                "--data",
                "--out",
                "--missing",
                "--set",
                "--json",
                "--fresh",
                "--device",
                "--no-catalogue",
            ],
        ),
        ("evaluate", ["--data", "--protocol", "--seeds", "--mask", "--imputer", "--json"]),
        ("import", ["--url", "--key"]),
    ],
)
def test_help_of_a_command(lacuna: Run, command: str, options: list[str]) -> None:
    code, out, _ = lacuna(command, "--help")
    assert code == 0
    for option in options:
        assert option in out


def test_without_arguments(lacuna: Run) -> None:
    code, out, err = lacuna()
    assert code == 2
    assert "Usage" in out + err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "No such command"),
        (["train", "dgmerc", "--data", "x", "--out", "y"], "Invalid value"),
        (["train", "dgmrec", "--data", "x"], "Missing option"),
        (["train", "dgmrec", "--data", "x", "--out", "y", "--missing", "0.96"], "Invalid value"),
        (["evaluate", "dgmrec", "--data", "x", "--seeds", "0"], "Invalid value"),
        (["evaluate", "dgmrec", "--data", "x", "--protocol", "mising"], "Invalid value"),
        (["import", "users", "x"], "Invalid value"),
        (["demo", "--items", "10"], "Invalid value"),
    ],
)
def test_usage_errors(lacuna: Run, arguments: list[str], message: str) -> None:
    code, _, err = lacuna(*arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


# --- prepare -------------------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "items.jsonl").write_text("".join(json.dumps(record) + "\n" for record in vector_records()))
    (folder / "feedback.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events()))
    return folder


def test_prepare(lacuna: Run, source: Path, tmp_path: Path) -> None:
    code, out, err = lacuna("prepare", "lacuna", "--source", source, "--out", tmp_path / "out")
    assert (code, out) == (0, "")
    assert f"source: {ITEMS} items, 24 users, 336 feedback events in {tmp_path / 'out'}" in err.replace("\n", "")
    assert len(load_dataset(tmp_path / "out").items) == ITEMS


def test_prepare_with_an_unknown_reader(lacuna: Run, tmp_path: Path) -> None:
    sentence = refused(lacuna("prepare", "netflix", "--out", tmp_path / "out"))
    assert "no dataset reader 'netflix'; there are lacuna, ml-100k" in sentence


def test_prepare_without_a_source(lacuna: Run, tmp_path: Path) -> None:
    assert "needs a source" in refused(lacuna("prepare", "lacuna", "--out", tmp_path / "out"))
    missing = tmp_path / "absent"
    sentence = refused(lacuna("prepare", "lacuna", "--source", missing, "--out", tmp_path / "out"))
    assert f"{missing} does not exist" in sentence
    missing.write_text("a file")
    sentence = refused(lacuna("prepare", "movielens", "--source", missing, "--out", tmp_path / "out"))
    assert f"the dataset movielens needs a source: {missing} is no folder" in sentence


def test_prepare_says_what_it_left_out_and_changed(lacuna: Run, tmp_path: Path) -> None:
    films = tmp_path / "ml-latest-small"
    put(films / "ratings.csv", "userId,movieId,rating,timestamp\n1,1,4.5,1\n1,1,4.5,1\n1,2,0.5,2\n2,2,5,3\n")
    put(films / "movies.csv", "movieId,title,genres\n1,One (1999),Drama\n2,Two,War\n2,Two,War\n")
    code, out, err = lacuna("prepare", "movielens", "--source", films, "--out", tmp_path / "out")
    assert (code, out) == (0, "")
    assert [line for line in err.splitlines() if not line.endswith("...")][1:4] == [
        "left out: 1 repeated rows of films, merged",
        "left out: 1 repeated rows of feedback, merged",
        "changed: 4 ratings mapped linearly from 0.5..5 onto 1..5",
    ]


def test_prepare_of_a_bad_row(lacuna: Run, source: Path, tmp_path: Path) -> None:
    with (source / "feedback.jsonl").open("a") as stream:
        stream.write('{"user": "u", "item": "nobody", "type": "click"}\n')
    sentence = refused(lacuna("prepare", "lacuna", "--source", source, "--out", tmp_path / "out"))
    assert "feedback.jsonl, line 337" in sentence
    assert not (tmp_path / "out").exists()


def test_prepare_over_something_else(lacuna: Run, source: Path) -> None:
    sentence = refused(lacuna("prepare", "lacuna", "--source", source, "--out", source))
    assert "is no prepared dataset; choose another place" in sentence


# --- train ---------------------------------------------------------------------------------------------------------


def test_train(lacuna: Run, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    code, printed, err = lacuna(
        "train", "dgmrec", "--data", data, "--out", out, "--missing", "0.3", "--seed", "5", "--json", *TINY
    )
    assert code == 0
    account = json.loads(printed)
    bundle = Bundle.load(out)
    assert account["version"] == bundle.version
    config = account["models"]["dgmrec"]["config"]
    assert (config["seed"], config["embedding_size"], config["layers"]) == (5, 8, 2)
    assert account["data"]["missing_cells"] > 0.3
    assert "best epoch" in err
    assert "(synthetic data)" in err
    assert f"bundle {bundle.version} in" in err


def test_train_without_catalogue(lacuna: Run, data: Path, tmp_path: Path) -> None:
    code, printed, _ = lacuna("train", "dgmrec", "--data", data, "--out", tmp_path / "b", "--no-catalogue", *TINY)
    assert (code, printed) == (0, "")
    assert Bundle.load(tmp_path / "b").file("catalogue/items.jsonl") is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "epoch=3"], "no setting 'epoch'; there are "),
        (["--set", "lean=0"], "the setting 'lean' is called 'knn_smoothing' now"),
        (["--set", "steady=0.5"], "the setting 'steady' is called 'constant_fraction' now"),
        (["--set", "hide_rate=0.5"], "the setting 'hide_rate' is gone: what it set is a constant now"),
        (["--set", "epochs=many"], "the setting 'epochs': Input should be a valid integer"),
        (["--set", "epochs=0"], "the setting 'epochs': Input should be greater than or equal to 1"),
        (["--set", "gate=relu"], "the setting 'gate': "),
        (["--set", "epochs"], "--set wants NAME=VALUE, not 'epochs'"),
        (["--device", "tpu"], "no device 'tpu'; there are cpu, cuda and auto"),
        (["--mask", "60"], "no published mask '60'"),
        ([*TINY, "--set", "metric=recal@20"], "no metric 'recal@20'; there are recall@20"),
        ([*TINY, "--set", "learning_rate=1e30"], "training diverged in epoch 1"),
    ],
)
def test_train_refuses(lacuna: Run, data: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    sentence = refused(lacuna("train", "dgmrec", "--data", data, "--out", tmp_path / "b", *arguments))
    assert message in sentence
    assert not (tmp_path / "b").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_train_on_a_device_that_is_not_there(lacuna: Run, data: Path, tmp_path: Path) -> None:
    sentence = refused(lacuna("train", "dgmrec", "--data", data, "--out", tmp_path / "b", "--device", "cuda"))
    assert "there is no CUDA device here" in sentence


def test_train_on_no_dataset(lacuna: Run, tmp_path: Path) -> None:
    sentence = refused(lacuna("train", "dgmrec", "--data", tmp_path / "absent", "--out", tmp_path / "b"))
    assert "is no prepared dataset: it has no dataset.json (`lacuna prepare` makes one)" in sentence


def test_train_on_a_damaged_dataset(lacuna: Run, tmp_path: Path) -> None:
    write_vectors(tmp_path / "tiny")
    items = tmp_path / "tiny" / "items.jsonl"
    items.write_bytes(items.read_bytes()[:-20])
    sentence = refused(lacuna("train", "dgmrec", "--data", tmp_path / "tiny", "--out", tmp_path / "b"))
    assert f"items.jsonl, line {ITEMS}" in sentence


def test_train_into_a_foreign_folder(lacuna: Run, data: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    sentence = refused(lacuna("train", "dgmrec", "--data", data, "--out", tmp_path, *TINY))
    assert "exists and is no bundle; choose another place" in sentence
    assert (tmp_path / "letter.txt").read_text() == "dear"


def test_train_where_nothing_can_be_written(lacuna: Run, data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    sentence = refused(lacuna("train", "dgmrec", "--data", data, "--out", tmp_path / "file" / "b", *TINY))
    assert "file" in sentence


def test_a_fault_is_one_sentence_too(lacuna: Run, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise LookupError("surprise")

    monkeypatch.setattr(cli_evaluate, "load_dataset", fail)
    code, _, err = lacuna("evaluate", "popularity", "--data", data)
    assert code == 2
    assert err.startswith("lacuna: a fault of Lacuna itself, LookupError at training/cli/evaluate.py, line ")
    assert err.endswith(": surprise\n")


def test_a_result_that_cannot_be_written_is_found_out_before_the_training(
    lacuna: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        pytest.fail("it trains")

    monkeypatch.setattr(cli_evaluate, "evaluate", never)
    (tmp_path / "file").touch()
    for place, said in ((tmp_path, "is a folder"), (tmp_path / "file" / "x.json", "File exists")):
        assert said in refused(lacuna("evaluate", "dgmrec", "--data", data, "--json", place))


def test_a_result_replaces_another_only_when_it_is_whole(
    lacuna: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "result.json"
    file.write_text("good")
    monkeypatch.setattr(cli_evaluate, "evaluate", lambda *_, **__: {"mean": {}, "std": {}, "odd": object()})
    assert "fault" in lacuna("evaluate", "popularity", "--data", data, "--json", file)[2]
    assert (file.read_text(), len(list(tmp_path.iterdir()))) == ("good", 1)


def test_training_from_within_the_folder_of_the_data(
    lacuna: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_vectors(tmp_path / "data")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "data")
    assert lacuna("train", "dgmrec", "--data", ".", "--out", "../made", *TINY)[0] == 0
    monkeypatch.chdir(tmp_path / "empty")
    assert lacuna("train", "dgmrec", "--data", "../data", "--out", ".", *TINY)[0] == 0
    assert {file.name for file in tmp_path.iterdir()} == {"data", "made", "empty"}
    assert (
        Bundle.load(tmp_path / "empty").manifest.models.keys() == Bundle.load(tmp_path / "made").manifest.models.keys()
    )
    assert "no place for a folder" in refused(lacuna("train", "dgmrec", "--data", "/", "--out", "x"))


def test_version(lacuna: Run) -> None:
    assert lacuna("--version")[:2] == (0, f"lacuna {importlib.metadata.version('lacuna')}\n")


@pytest.mark.parametrize(("chosen", "policy"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "active"}, "ACTIVE")])
def test_threads_wait_without_spinning_unless_told_otherwise(chosen: dict[str, str], policy: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    told = subprocess.run(
        [sys.executable, "-m", "training", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**environment, "OMP_DISPLAY_ENV": "true", **chosen},
    )
    assert "COMMAND" in told.stdout
    found = set(re.findall(r"OMP_WAIT_POLICY ?= ?'(\w+)'", told.stderr))
    if not found:
        pytest.skip("PyTorch's OpenMP does not tell its settings here")
    assert found == {policy}


def test_interrupted_training_says_how_to_go_on(lacuna: Run, data: Path, tmp_path: Path) -> None:
    """Ctrl-C in a real process; then the same command ends what was begun."""
    arguments = ["train", "dgmrec", "--data", str(data), "--out", str(tmp_path / "b"), *TINY]
    checkpoint = tmp_path / ".b.dgmrec-checkpoint"
    # What runs in the background of a shell would ignore the signal.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    start = [sys.executable, "-c", f"{heed}; from training.cli import main; main()"]
    with subprocess.Popen(
        [*start, *arguments, "--set", "epochs=100000", "--set", "patience=100000"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        _wait_for(checkpoint, process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "interrupted; the same command goes on where it was"
    assert not (tmp_path / "b").exists()
    assert checkpoint.is_file()
    assert lacuna(*arguments)[0] == 0
    Bundle.load(tmp_path / "b")
    assert not checkpoint.exists()


def _wait_for(file: Path, process: subprocess.Popen[str]) -> None:
    waited = threading.Event()
    for _ in range(600):
        if file.is_file():
            return
        assert process.poll() is None, process.communicate()[1]
        waited.wait(0.1)
    pytest.fail("no checkpoint after a minute")


# --- evaluate ------------------------------------------------------------------------------------------------------


def test_evaluate(lacuna: Run, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "deep" / "result.json"
    code, printed, err = lacuna("evaluate", "dgmrec", "--data", data, "--seeds", "2", "--json", file, *TINY)
    assert code == 0
    result = json.loads(file.read_text())
    assert json.loads(printed) == {"mean": result["mean"], "std": result["std"]}
    assert [run["seed"] for run in result["runs"]] == [1, 2]
    assert result["command"].startswith("lacuna evaluate dgmrec --data ")
    assert (result["config"]["missing"], result["config"]["levels"]) == (0.0, True)
    assert "seed 2" in err


def test_evaluate_a_baseline_with_a_share_missing(lacuna: Run, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    code, _, _ = lacuna("evaluate", "content", "--data", data, "--missing", "0.2", "--seeds", "1", "--json", file)
    assert code == 0
    config = json.loads(file.read_text())["config"]
    assert (config["missing"], config["levels"]) == (0.2, False)


def test_evaluate_ratio(lacuna: Run, data: Path) -> None:
    code, printed, err = lacuna("evaluate", "popularity", "--data", data, "--protocol", "ratio", "--seeds", "1")
    assert code == 0
    assert "recall@20[missing=80%]" in json.loads(printed)["mean"]
    assert "80% of the cells missing" in err


def test_evaluate_what_makes_no_sense(lacuna: Run, data: Path) -> None:
    assert "has no model 'easy'" in refused(lacuna("evaluate", "easy", "--data", data))
    answer = lacuna("evaluate", "ease", "--data", data, "--protocol", "retrieval")
    assert "the protocol retrieval has no model 'ease'" in refused(answer)


def test_evaluate_ratings_that_are_not_there(lacuna: Run, data: Path) -> None:
    arguments = ("--data", data, "--protocol", "rating")
    assert "has no ratings to learn from" in refused(lacuna("evaluate", "offset", *arguments))
    assert "the protocol rating has no model 'ease'; it has lrmm, offset" in refused(
        lacuna("evaluate", "ease", *arguments)
    )
    answer = lacuna("evaluate", "ease", "--data", data, "--item-reviews", 1)
    assert "the protocol missing has no use for --item-reviews" in refused(answer)


@pytest.mark.parametrize("protocol", ["rating", "leave-one-out"])
@pytest.mark.parametrize("option", [("--imputer", "mean"), ("--budget", "5m"), ("--validation-only",)])
def test_an_option_that_a_protocol_does_not_use_is_refused(
    lacuna: Run, tmp_path: Path, protocol: str, option: tuple[str, ...]
) -> None:
    answer = lacuna("evaluate", "popularity", "--data", tmp_path, "--protocol", protocol, *option)
    assert f"the protocol {protocol} has no use for {option[0]}" in refused(answer)


@pytest.mark.parametrize("option", [("--mask", "0.60"), ("--split", "time")])
def test_ratings_have_splits_of_their_own_and_no_masks(lacuna: Run, tmp_path: Path, option: tuple[str, str]) -> None:
    answer = lacuna("evaluate", "lrmm", "--data", tmp_path, "--protocol", "rating", *option)
    assert f"the protocol rating has no use for {option[0]}" in refused(answer)


def test_a_form_is_one_that_the_model_has(lacuna: Run, tmp_path: Path) -> None:
    arguments = ("--data", tmp_path, "--protocol", "rating")
    assert "the setting 'form'" in refused(lacuna("evaluate", "lrmm", *arguments, "--form", "other"))
    answer = lacuna("evaluate", "lrmm", *arguments, "--form", "paper", "--set", "members=2")
    assert "there is no setting 'members'" in refused(answer)
    sentence = refused(lacuna("evaluate", "svd", *arguments, "--item-reviews", 0))
    assert "svd cannot be trained where no item has a rating" in sentence
    sentence = refused(lacuna("evaluate", "lrmm", *arguments, "--set", "memberz=2"))
    assert "there is no setting 'memberz'" in sentence
    assert "document_words" in sentence
    sentence = refused(lacuna("evaluate", "lrmm", *arguments, "--set", "taste_size=2"))
    assert "the setting 'taste_size' is called 'factor_size' now" in sentence
    sentence = refused(lacuna("evaluate", "lrmm", *arguments, "--set", "tone_folds=2"))
    assert "the setting 'tone_folds' is gone" in sentence


def test_train_lrmm_without_ratings(lacuna: Run, data: Path, tmp_path: Path) -> None:
    sentence = refused(lacuna("train", "lrmm", "--data", data, "--out", tmp_path / "bundle"))
    assert "has no ratings to learn from" in sentence
    assert not (tmp_path / "bundle").exists()


IRIS = (
    "--threads",
    "1",
    "--set",
    "epochs=1",
    "--set",
    "members=1",
    "--set",
    "als_epochs=1",
    "--set",
    "interest_size=2",
)


ALL = (*TINY, "--set", "members=1", "--set", "als_epochs=1", "--set", "interest_size=2", "--set", "epochs=1")


@pytest.fixture
def rated(tmp_path: Path) -> Path:
    """A dataset with ratings."""
    folder = tmp_path / "rated"
    rows = [{**event, "type": "rating", "value": 1 + row % 5} for row, event in enumerate(events())]
    write_dataset(folder, vector_records(), rows, name="rated", source="test", synthetic=True)
    return folder


def test_train_all(lacuna: Run, rated: Path, tmp_path: Path) -> None:
    """With ratings there are three models, each with the settings that it has, or that are said to be its own."""
    out, own = tmp_path / "bundle", ("--set", "lrmm.members=2")
    code, printed, err = lacuna("train", "all", "--data", rated, "--out", out, "--seed", "3", "--json", *ALL, *own)
    assert code == 0, err
    models = json.loads(printed)["models"]
    assert list(models) == ["dgmrec", "iris", "lrmm"]
    assert set(models) == set(Bundle.load(out).manifest.models)
    assert models["dgmrec"]["config"]["seed"] == 3
    assert models["dgmrec"]["config"]["embedding_size"] == 8
    assert [models[name]["config"]["model"]["members"] for name in ("iris", "lrmm")] == [1, 2]
    assert Bundle.load(out).file("catalogue/items.jsonl") is not None
    assert "left out" not in err


@pytest.mark.parametrize("fresh", [False, True])
def test_train_all_afresh(
    lacuna: Run, rated: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, fresh: bool
) -> None:
    """No model's checkpoint is looked at."""
    out = tmp_path / "bundle"
    for name in ("dgmrec", "iris", "lrmm"):
        (tmp_path / f".bundle.{name}-checkpoint").write_text("of an interrupted run")
    code, _, err = lacuna("train", "all", "--data", rated, "--out", out, *ALL, *(["--fresh"] if fresh else []))
    assert code == 0, err
    assert caplog.text.count("starts anew") == (0 if fresh else 3)
    assert not list(tmp_path.glob(".bundle.*"))


def test_train_all_leaves_out_what_the_data_do_not_suffice_for(lacuna: Run, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    code, printed, err = lacuna("train", "all", "--data", data, "--out", out, *ALL)
    assert (code, printed) == (0, "")
    assert set(Bundle.load(out).manifest.models) == {"dgmrec", "iris"}
    said = [line for line in err.splitlines() if line.startswith("left out: ")]
    assert said == ["left out: lrmm, as the dataset tiny has no ratings to learn from"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("memberz=2", "no setting 'memberz'; there are"),
        ("sentence_size=-1", "the setting 'sentence_size'"),
        ("iris.memberz=2", "no setting 'memberz'; there are"),
        ("lrmm.sentence_size=-1", "the setting 'sentence_size'"),
        ("easy.members=2", "no setting 'easy.members'; there are"),
    ],
)
def test_train_all_knows_its_settings_before_it_begins(
    lacuna: Run, data: Path, tmp_path: Path, setting: str, message: str
) -> None:
    """Those of the last model, too."""
    sentence = refused(lacuna("train", "all", "--data", data, "--out", tmp_path / "b", "--set", setting))
    assert message in sentence
    assert not (tmp_path / "b").exists()


def test_train_iris_beside_dgmrec(lacuna: Run, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    assert lacuna("train", "dgmrec", "--data", data, "--out", out, *TINY)[0] == 0
    code, printed, err = lacuna("train", "iris", "--data", data, "--out", out, *IRIS, "--json")
    assert code == 0
    assert set(json.loads(printed)["models"]) == {"dgmrec", "iris"} == set(Bundle.load(out).manifest.models)
    assert "test hr@10" in err
    sentence = refused(lacuna("train", "iris", "--data", data, "--out", out, "--set", "memberz=2"))
    assert "there is no setting 'memberz'" in sentence
    assert all(name in sentence for name in ("members", "als_epochs", "patience"))


@pytest.mark.parametrize("option", [("--form", "paper"), ("--set", "form=paper")])
def test_train_iris_as_the_paper_has_it(lacuna: Run, data: Path, tmp_path: Path, option: tuple[str, str]) -> None:
    out, settings = tmp_path / "bundle", ("--set", "epochs=1", "--set", "embedding_size=4", "--threads", "1")
    code, printed, _ = lacuna("train", "iris", "--data", data, "--out", out, *option, *settings, "--json")
    assert code == 0
    model = json.loads(printed)["models"]["iris"]
    assert (model["form"], model["config"]["model"]["form"], model["config"]["model"]["members"]) == ("paper",) * 2 + (
        1,
    )
    sentence = refused(lacuna("train", "iris", "--data", data, "--out", out, *option, "--set", "rank=3"))
    assert "the setting 'rank' belongs to form=lacuna" in sentence


def test_evaluate_leave_one_out(lacuna: Run, data: Path, tmp_path: Path) -> None:
    arguments = ("--data", data, "--protocol", "leave-one-out")
    assert "the protocol leave-one-out has no model 'dgmrec'; it has iris, popularity" in refused(
        lacuna("evaluate", "dgmrec", *arguments)
    )
    assert "has no leave-one-out split 'last' (it has: none)" in refused(
        lacuna("evaluate", "iris", *arguments, "--split", "last")
    )
    assert "leave-one-out needs 99 negatives a user" in refused(lacuna("evaluate", "popularity", *arguments))
    folder = tmp_path / "larger"
    extra = [{"id": f"extra-{row}", "title": f"Number {row}"} for row in range(60)]
    write_dataset(folder, [*vector_records(), *extra], events(), name="larger", source="test")
    file = tmp_path / "result.json"
    arguments = ("--data", folder, "--protocol", "leave-one-out", "--seeds", "1", "--json", file)
    assert lacuna("evaluate", "iris", *arguments, *IRIS, "--set", 'reads=["audio"]', "--variant", "audio")[0] == 0
    result = json.loads(file.read_text())
    assert (result["protocol"], result["variant"], result["config"]["model"]["reads"]) == (
        "leave-one-out",
        "audio",
        ["audio"],
    )
    assert {"hr@10", "ndcg@10", "faithful"} <= set(result["mean"])


def test_evaluate_with_an_unknown_setting(lacuna: Run, data: Path) -> None:
    assert "no setting 'layer'" in refused(lacuna("evaluate", "dgmrec", "--data", data, "--set", "layer=2"))


# --- demo and serve ------------------------------------------------------------------------------------------------


@pytest.fixture
def became(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines that this process would have become."""
    asked: list[list[str]] = []

    def execv(_path: str, arguments: list[str]) -> None:
        asked.append(arguments)

    monkeypatch.setattr(os, "execv", execv)
    return asked


def test_serve_hands_everything_on(lacuna: Run, became: list[list[str]]) -> None:
    assert lacuna("serve", "--bundle", "x", "--port", "9000")[0] == 0
    assert lacuna("serve", "--help")[0] == 0
    start = [sys.executable, "-m", "service"]
    assert became == [[*start, "--bundle", "x", "--port", "9000"], [*start, "--help"]]


def test_backup_and_restore_are_the_services(lacuna: Run, became: list[list[str]]) -> None:
    assert lacuna("backup", "copy.zip")[0] == lacuna("restore", "copy.zip")[0] == 0
    assert lacuna("backup", "--force", "--", "-odd.zip")[0] == 0
    start = [sys.executable, "-m", "service.backup"]
    assert became == [
        [*start, "create", "--", "copy.zip"],
        [*start, "restore", "--", "copy.zip"],
        [*start, "create", "--force", "--", "-odd.zip"],
    ]


def test_export_is_the_services(lacuna: Run, became: list[list[str]]) -> None:
    assert lacuna("export", "folder")[0] == lacuna("export", "folder", "--force")[0] == 0
    start = [sys.executable, "-m", "service.export"]
    assert became == [[*start, "--", "folder"], [*start, "--force", "--", "folder"]]


def test_demo_serves_the_bundle_that_is_there(lacuna: Run, became: list[list[str]], data: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    assert lacuna("train", "dgmrec", "--data", data, "--out", out, *TINY)[0] == 0
    before = (out / "manifest.json").read_bytes()
    assert lacuna("demo", "--out", out)[0] == 0
    assert became == [[sys.executable, "-m", "service", "--bundle", str(out)]]
    assert (out / "manifest.json").read_bytes() == before
    assert lacuna("demo", "--out", out, "--bundle-only")[0] == 0
    assert len(became) == 1


def test_demo_makes_the_bundle(
    lacuna: Run, became: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training itself is tested elsewhere: here, that it gets the demo's data."""
    trained: list[Any] = []

    def train(recipes: Sequence[Recipe], data: Path, out: Path, options: DataOptions, **_: Any) -> None:
        trained.append(([recipe.name for recipe in recipes], len(load_dataset(data).items), out, options.seed))

    monkeypatch.setattr(cli_train, "train_recipes", train)
    out = tmp_path / "demo"
    assert lacuna("demo", "--out", out, "--items", "100", "--users", "50")[0] == 0
    assert trained == [(["dgmrec", "iris"], 100, out, cli_train.DEMO_SEED)]
    assert became == [[sys.executable, "-m", "service", "--bundle", str(out)]]


@pytest.mark.parametrize("name", ["demo (synthetic)", "tiny"])
def test_demo_makes_a_bundle_of_another_lacuna_anew_if_it_is_its_own(
    lacuna: Run,
    became: list[list[str]],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    out = tmp_path / "demo"
    assert lacuna("train", "dgmrec", "--data", data, "--out", out, *TINY)[0] == 0
    manifest = json.loads((out / "manifest.json").read_text("utf-8"))
    manifest["data"]["name"] = name
    manifest["models"]["dgmrec"]["config"]["of_another_lacuna"] = 1
    (out / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    trained: list[Path] = []
    monkeypatch.setattr(cli_train, "prepare_demo", lambda *_, **__: None)
    monkeypatch.setattr(cli_train, "train_recipes", lambda _, __, out, *___, **____: trained.append(out))
    assert lacuna("demo", "--out", out)[0] == 0
    assert trained == ([out] if name.startswith("demo") else [])  # what is somebody's own is not replaced
    assert ("it is made anew" in caplog.text) == bool(trained)
    assert len(became) == 1
