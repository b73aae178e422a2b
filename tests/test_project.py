"""The project's shell: what the Makefile, the requirements, the image and the composition promise each other."""

import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import OF_COMMANDS, Settings

ROOT = Path(__file__).parent.parent
PACKAGES = ("models", "training", "service")

# Needed at run time without an import of ours: drivers and servers that a library looks up by name.
LOADED_BY_NAME = {"asyncpg", "httptools", "onnx", "python-multipart"}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(name: str) -> dict[str, str]:
    """Distribution -> version specifier, as a requirements file lists them."""
    lines = (line.split(" #")[0].strip() for line in read(name).splitlines())
    found = (re.match(r"([A-Za-z0-9._-]+)(?:\[[a-z,]+\])?(.*)", line) for line in lines if line[:1].isalnum())
    return {normalised(match[1]): match[2].strip(" \\") for match in found if match}


def assigned(text: str) -> set[str]:
    """The variables that an environment file names, commented out or not."""
    return set(re.findall(r"^#?([A-Z_]+)=", text, flags=re.MULTILINE))


def setting_names() -> set[str]:
    return {f"LACUNA_{name.upper()}" for name in Settings.model_fields}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load(read("docker-compose.yml"))
    return parsed


@pytest.fixture(scope="module")
def dockerfile() -> str:
    return read("Dockerfile").replace("\\\n", " ")


# Makefile


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "--no-print-directory", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def test_make_without_a_target_lists_all_of_them() -> None:
    targets = set(re.search(r"^\.PHONY: (.*)$", read("Makefile"), flags=re.MULTILINE)[1].split())  # type: ignore[index]
    listed = set(re.findall(r"^  make (\w+)  ", make().stdout, flags=re.MULTILINE))
    assert listed == targets
    assert {"help", "demo", "serve", "test", "check", "lock", "clean"} <= listed


def test_make_refuses_another_python_in_one_sentence(tmp_path: Path) -> None:
    refused = make("PYTHON=/nowhere/python3.10", f"VENV={tmp_path}/venv", f"{tmp_path}/venv/bin/python")
    assert refused.returncode != 0
    assert "needs Python 3.11" in refused.stderr
    assert not (tmp_path / "venv").exists()


def test_make_accepts_python_311(tmp_path: Path) -> None:
    planned = make("--dry-run", f"PYTHON={sys.executable}", f"VENV={tmp_path}/venv", f"{tmp_path}/venv/bin/python")
    assert planned.returncode == 0
    assert f"-m venv {tmp_path}/venv" in planned.stdout


# Requirements


def third_party_imports() -> Iterator[tuple[str, Path]]:
    for path in (file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
                names = [
                    name.value for name in node.args if isinstance(name, ast.Constant) and isinstance(name.value, str)
                ]
            for name in (name.partition(".")[0] for name in names):
                if name not in sys.stdlib_module_names and name not in PACKAGES:
                    yield name, path.relative_to(ROOT)


def test_every_import_is_a_direct_requirement_and_every_requirement_is_imported() -> None:
    providers = importlib.metadata.packages_distributions()
    direct = set(requirements("requirements.in"))
    imported: set[str] = set()
    for name, path in third_party_imports():
        distributions = {normalised(distribution) for distribution in providers.get(name, [])}
        assert distributions & direct, f"{path} imports {name}, which requirements.in does not list"
        imported |= distributions
    assert direct - imported == LOADED_BY_NAME


@pytest.mark.parametrize("kind", ["", "-dev"])
def test_lock_pins_every_direct_requirement(kind: str) -> None:
    lock = requirements(f"requirements{kind}.txt")
    apart = set(requirements("requirements-torch.txt"))
    assert set(requirements(f"requirements{kind}.in")) - apart <= set(lock)
    assert all(version.startswith("==") for version in lock.values())


def test_lock_leaves_torch_to_its_own_file_and_cuda_out() -> None:
    locked = {**requirements("requirements.txt"), **requirements("requirements-dev.txt")}
    assert not [name for name in locked if name.startswith(("torch", "nvidia-", "cuda-", "triton"))]
    assert set(requirements("requirements-torch.txt")) == {"torch", "torchvision"}


def test_locks_agree_where_they_overlap() -> None:
    runtime, development = requirements("requirements.txt"), requirements("requirements-dev.txt")
    shared = runtime.keys() & development.keys()
    assert {name: runtime[name] for name in shared} == {name: development[name] for name in shared}


def test_only_the_torch_requirements_name_an_index() -> None:
    named = [path.name for path in sorted(ROOT.glob("requirements*")) if "://" in path.read_text(encoding="utf-8")]
    assert named == ["requirements-torch.txt"]


# Layout and package


LAYOUT = {
    ".": "README.md LICENSE Makefile pyproject.toml Dockerfile docker-compose.yml docs benchmarks",
    "models": "arrays modality vocabulary graph linalg files losses projection evidence imputers dgmrec lrmm iris "
    "encoders bundle",
    "training": "cli datasets dgmrec lrmm iris baselines demo features splits masking sampling trainer metrics "
    "checkpoint bundles evaluate report",
    "service": "main settings bootstrap domain ports pipeline adapters api metrics migrations",
    "tests": "models training service contracts",
}


@pytest.mark.parametrize(("folder", "rooms"), LAYOUT.items())
def test_layout_of_the_design_exists(folder: str, rooms: str) -> None:
    """A room is a module or, once it has grown, a folder."""
    present = {name for path in (ROOT / folder).iterdir() for name in (path.name, path.stem)}
    assert set(rooms.split()) <= present


def test_wheel_carries_code_and_migrations(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "requirements.in"):
        shutil.copy(ROOT / name, source)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    build = "import sys, setuptools.build_meta as b; b.build_wheel(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=source, check=True, capture_output=True, timeout=120
    )
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        str(path.relative_to(source))
        for package in PACKAGES
        for path in (source / package).rglob("*")
        if path.is_file()
    }
    assert wanted <= held


def test_command_line_entry_point_is_declared() -> None:
    assert tomllib.loads(read("pyproject.toml"))["project"]["scripts"]["lacuna"] == "training.__main__:main"


# Image and composition


def test_dockerfile_needs_no_frontend_and_ends_as_an_unprivileged_user(dockerfile: str) -> None:
    assert not re.search(r"^#\s*syntax=", dockerfile, flags=re.MULTILINE | re.IGNORECASE)
    final_stage = dockerfile.rsplit("\nFROM ", 1)[1]
    uid, gid = re.findall(r"^USER (\d+):(\d+)$", final_stage, flags=re.MULTILINE)[-1]
    assert int(uid) > 0
    assert int(gid) > 0
    assert "/health/ready" in re.findall(r"^HEALTHCHECK .*$", final_stage, flags=re.MULTILINE)[-1]


def test_image_sets_only_known_settings(dockerfile: str) -> None:
    named = set(re.findall(r"\b(LACUNA_[A-Z_]+)=", dockerfile))
    assert named
    assert named <= setting_names()


def test_nothing_started_by_us_reports_to_a_third_party(dockerfile: str) -> None:
    assert "ORT_DISABLE_TELEMETRY=1" in dockerfile
    assert re.search(r"^export ORT_DISABLE_TELEMETRY := 1$", read("Makefile"), flags=re.MULTILINE)


def test_image_context_holds_what_the_package_is_built_from() -> None:
    let_in = set(re.findall(r"^!(\S+)$", read(".dockerignore"), flags=re.MULTILINE))
    project = tomllib.loads(read("pyproject.toml"))
    files = {project["project"]["readme"], *project["project"]["license-files"], "pyproject.toml", "requirements.txt"}
    files |= set(project["tool"]["setuptools"]["dynamic"]["dependencies"]["file"])
    assert files | set(PACKAGES) <= let_in


def test_composition_sets_only_known_settings(compose: dict[str, Any]) -> None:
    named = {name for service in compose["services"].values() for name in service.get("environment", {})}
    named = {name for name in named if name.startswith("LACUNA_")} - set(OF_COMMANDS)
    assert {"LACUNA_BUNDLE", "LACUNA_DATABASE_URL", "LACUNA_REDIS_URL", "LACUNA_API_KEYS"} <= named
    assert named <= setting_names()


def test_environment_example_names_what_the_composition_reads_and_known_settings() -> None:
    example = assigned(read(".env.example"))
    substituted = set(re.findall(r"\$\{([A-Z_]+)", read("docker-compose.yml")))
    assert substituted <= example
    assert {name for name in example if name.startswith("LACUNA_")} <= setting_names() | set(OF_COMMANDS)
    assert {name for name in example if not name.startswith("LACUNA_")} <= substituted


def test_required_variables_have_no_value_in_the_example() -> None:
    required = set(re.findall(r"\$\{([A-Z_]+):\?", read("docker-compose.yml")))
    assert required == {"POSTGRES_PASSWORD", "LACUNA_API_KEYS"}
    assert required == set(re.findall(r"^([A-Z_]+)=$", read(".env.example"), flags=re.MULTILINE))


def test_deployment_page_explains_every_variable_of_the_composition() -> None:
    substituted = set(re.findall(r"\$\{([A-Z_]+)", read("docker-compose.yml")))
    assert substituted <= set(re.findall(r"`([A-Z_]+)`", read("docs/deployment.md")))


def test_service_waits_for_its_database_cache_and_bundle(compose: dict[str, Any]) -> None:
    services = compose["services"]
    awaited = {name: rule["condition"] for name, rule in services["service"]["depends_on"].items()}
    assert awaited == {
        "database": "service_completed_successfully",
        "redis": "service_healthy",
        "demo-bundle": "service_completed_successfully",
    }
    assert "healthcheck" in services["postgres"]
    assert "healthcheck" in services["redis"]


@pytest.mark.parametrize("name", ["service", "demo-bundle", "proxy"])
def test_containers_of_the_image_are_confined(compose: dict[str, Any], name: str) -> None:
    container = compose["services"][name]
    assert container["read_only"] is True
    assert container["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in container["security_opt"]


def test_every_container_has_its_memory_bounded(compose: dict[str, Any]) -> None:
    assert all("mem_limit" in container for container in compose["services"].values())


def test_every_container_has_its_processes_bounded(compose: dict[str, Any]) -> None:
    assert all("pids_limit" in container for container in compose["services"].values())


def test_service_is_published_on_loopback_by_default(compose: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert published == {"proxy": ["${PUBLISH:-127.0.0.1:8000}:8000"]}  # whatever is scaled, one port


# The suite


def test_every_test_has_an_id_of_its_own(request: pytest.FixtureRequest) -> None:
    """Of tests that share one, several processes (`make test`) would run one and say nothing of the others."""
    count = Counter(item.nodeid for item in request.session.items)
    assert [name for name, times in count.items() if times > 1] == []
