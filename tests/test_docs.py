"""The docs name what exists, and their tables are those of the raw results."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from typer.main import get_command

from models.dgmrec.config import DGMRecConfig
from service.main import create_app
from service.settings import Settings, describe_settings
from training.cli import app
from training.cli.configs import iris_configs, lrmm_configs
from training.cli.options import parse_settings
from training.content import DataOptions
from training.evaluate import LEAVE_ONE_OUT_MODELS, RATING_MODELS, Plan, Protocol
from training.trainer import TrainerConfig

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = {page.name: page.read_text("utf-8") for page in PAGES}
METHODS = "GET|POST|PUT|PATCH|DELETE"


@pytest.mark.parametrize("name", TEXT)
def test_commands_exist(name: str) -> None:
    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    used = set(re.findall(r"(?:^|`)lacuna ([a-z]+)", TEXT[name], flags=re.MULTILINE))
    assert used <= known


def test_every_command_is_documented() -> None:
    documented = " ".join(TEXT.values()) + (ROOT / "Makefile").read_text("utf-8")
    for command in get_command(app).commands:  # type: ignore[attr-defined]
        assert f"lacuna {command}" in documented


@pytest.mark.parametrize("name", TEXT)
def test_endpoints_exist(name: str, tmp_path: Path) -> None:
    routes = create_app(Settings.load(data_dir=tmp_path)).openapi()["paths"]
    patterns = [re.compile(re.sub(r"\{[^}]*\}", "[^/]+", path)) for path in routes]
    for _, path in re.findall(rf"\b({METHODS}) (/[^\s`?|,]*)", TEXT[name]):
        assert any(pattern.fullmatch(path) for pattern in patterns), path


@pytest.mark.parametrize("name", TEXT)
def test_settings_exist(name: str) -> None:
    known = {setting for setting, _, _ in describe_settings()} | {
        "LACUNA_TEST_DATA",
        "LACUNA_URL",
        "LACUNA_KEY",
        "LACUNA_CACHE",
    }
    assert set(re.findall(r"\bLACUNA_[A-Z_]*[A-Z]\b", TEXT[name])) <= known


@pytest.mark.parametrize("name", TEXT)
def test_links_lead_somewhere(name: str) -> None:
    page = next(page for page in PAGES if page.name == name)
    for target in re.findall(r"\]\(([^)#:]+)\)", TEXT[name]):
        assert (page.parent / target).exists(), target


def test_tables_are_those_of_the_raw_results() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "tables.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def benchmark(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_papers_tables_are_made_of_runs_that_exist() -> None:
    paper = benchmark("paper")
    documented = set(re.findall(r"benchmarks/paper.py (\w+)", (ROOT / "docs" / "evaluation.md").read_text("utf-8")))
    numbered = {f"{kind}{number}" for kind, numbers in (("table", "2345"), ("figure", "3456")) for number in numbers}
    assert documented == numbered | {"decisions"}
    for what in documented:
        runs = list(paper.runs(what))
        assert len({(run.protocol, run.name) for run in runs}) == len(runs) > 0
        for run in runs:
            config = DGMRecConfig.model_validate(
                parse_settings([f"{name}={value}" for name, value in run.settings.items()])
            )
            assert run.variant is None or config != DGMRecConfig(), run
            Plan(run.model, Protocol(run.protocol), DataOptions(), (config, TrainerConfig()))


def test_the_tables_of_lrmm_are_made_of_runs_that_exist() -> None:
    benchmark("paper")  # which it imports
    paper = benchmark("paper_lrmm")
    documented = set(
        re.findall(r"benchmarks/paper_lrmm.py (\w+)", (ROOT / "docs" / "evaluation.md").read_text("utf-8"))
    )
    assert documented == {"table2", "table3", "table4", "figure4", "figure5", "figure6"}
    for what in documented:
        runs = list(paper.runs(what))
        assert len({run.name for run in runs}) == len(runs) > 0
        for run in runs:
            assert run.model in RATING_MODELS
            settings = parse_settings([f"{name}={value}" for name, value in run.settings.items()])
            paper_form = (run.variant or "").startswith("form-paper")
            assert run.model != "lrmm" or lrmm_configs(settings)[0].form == ("paper" if paper_form else "lacuna")


def test_the_tables_of_iris_are_made_of_runs_that_exist() -> None:
    benchmark("paper")  # which it imports
    paper = benchmark("paper_iris")
    documented = set(
        re.findall(r"benchmarks/paper_iris.py (\w+)", (ROOT / "docs" / "evaluation.md").read_text("utf-8"))
    )
    assert documented == {"table2", "table4", "table5", "figure6", "beta", "reasons"}
    for what in documented:
        runs = list(paper.runs(what, ("image", "text")))
        assert len({run.name for run in runs}) == len(runs) > 0
        for run in runs:
            assert run.model in LEAVE_ONE_OUT_MODELS
            settings = parse_settings([f"{name}={value}" for name, value in run.settings.items()])
            assert iris_configs(settings)[0].form == ("lacuna" if run.variant is None else "paper")
