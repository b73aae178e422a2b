"""The house's own rules: no ring of files, no long functions, and tests that leave alone what is private and what is
shipped."""

from __future__ import annotations

import ast
import inspect
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("models", "training", "service")
LINES, PARAMETERS = 50, 10
PRIVATE = 12  # accesses to private names in tests, at most
PUBLIC = {"_mapping", "_asdict", "_replace", "_fields"}  # of SQLAlchemy's rows and of named tuples

Function = ast.FunctionDef | ast.AsyncFunctionDef


def files() -> dict[str, Path]:
    """Every module by its dotted name; a package is its `__init__`."""
    found = {}
    for path in (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(source: str, modules: Mapping[str, object]) -> set[str]:
    """The modules that a source imports, wherever in it, for types alone too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            inside = names & modules.keys()
            found |= inside | ({node.module} if names - inside else set())
    return found & modules.keys()


def rings(graph: Mapping[str, set[str]]) -> set[frozenset[str]]:
    """Rings of a graph, each without the edges that would close it again once it was found."""
    left, found = {name: set(others) for name, others in graph.items()}, set()
    while True:
        try:
            TopologicalSorter(left).prepare()
        except CycleError as error:
            ring = error.args[1]
            found.add(frozenset(ring))
            left[ring[1]].discard(ring[0])
            left[ring[0]].discard(ring[1])
        else:
            return found


def test_no_two_files_import_each_other_straight_or_in_a_ring() -> None:
    modules = files()
    graph = {name: imports(path.read_text("utf-8"), modules) - {name} for name, path in modules.items()}
    assert sum(map(len, graph.values())) > 300
    assert not joined(rings(graph))


def joined(found: set[frozenset[str]]) -> list[list[frozenset[str]]]:
    """Rings by what they have in common."""
    groups: list[list[frozenset[str]]] = []
    for ring in sorted(found, key=sorted):
        touching = [group for group in groups if any(ring & other for other in group)]
        groups = [group for group in groups if group not in touching]
        groups.append([ring, *(other for group in touching for other in group)])
    return groups


def test_a_ring_is_found_however_it_is_closed() -> None:
    modules = {"a": 1, "a.b": 1, "c": 1, "d": 1}
    assert imports("import c\nfrom a import b\ndef f():\n    from d import g", modules) == {"a.b", "c", "d"}
    assert imports("from a import b, g\nimport typing\nif typing.TYPE_CHECKING:\n    import d", modules) == {
        "a",
        "a.b",
        "d",
    }
    assert rings({"a": {"c"}, "c": {"d"}, "d": set()}) == set()
    assert rings({"a": {"c"}, "c": {"d"}, "d": {"a"}, "b": {"a"}}) == {frozenset("acd")}
    both = rings({"a": {"b"}, "b": {"a", "c"}, "c": {"b"}, "d": {"a"}})
    assert {frozenset().union(*group) for group in joined(both)} == {frozenset("abc")}


def functions(source: str) -> Iterator[Function]:
    return (node for node in ast.walk(ast.parse(source)) if isinstance(node, Function))


def too_long(function: Function) -> bool:
    """Whether a function has too many lines or parameters; a command's parameters are its options, and not counted."""
    arguments = function.args
    places = [*arguments.posonlyargs, *arguments.args]
    count = len(places[1:] if places and places[0].arg in ("self", "cls") else places) + len(arguments.kwonlyargs)
    first = function.lineno
    if any("typer." in ast.unparse(place.annotation) for place in places if place.annotation):
        count, first = 0, function.body[0].lineno
    assert function.end_lineno is not None
    return function.end_lineno - first + 1 > LINES or count > PARAMETERS


def test_functions_are_short() -> None:
    long = {
        f"{path.relative_to(ROOT)}:{function.name}"
        for path in files().values()
        for function in functions(path.read_text("utf-8"))
        if too_long(function)
    }
    assert not long


@pytest.mark.parametrize(
    ("source", "long"),
    [
        ("def f(self, a, b, c, d, e, f, g, h, i, j): pass", False),
        ("def f(a, b, c, d, e, f, g, h, i, j, *, k): pass", True),
        ("def f(a: Annotated[int, typer.Option()], b, c, d, e, f, g, h, i, j, k): pass", False),
        ("def f():\n" + "    x = 1\n" * 49, False),
        ("async def f():\n" + "    x = 1\n" * 50, True),
        ("def f(a: Annotated[int, typer.Option()]):\n" + "    x = 1\n" * 51, True),
    ],
)
def test_what_is_too_long(source: str, long: bool) -> None:
    (function,) = functions(source)
    assert too_long(function) is long


def is_private(name: object) -> bool:
    last = str(name).rpartition(".")[2]
    return last.startswith("_") and not last.startswith("__") and last not in PUBLIC


def private_accesses(source: str) -> list[str]:
    """Private names of others that a source reads, imports or replaces; what a class says of itself is its own."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                pass
            case ast.Attribute(attr=name) if is_private(name):
                found.append(name)
            case ast.ImportFrom(names=names):
                found += [alias.name for alias in names if is_private(alias.name)]
            case ast.Call(func=ast.Attribute(attr="setattr"), args=[ast.Constant(value=name), *_]) if is_private(name):
                found.append(str(name))
            case ast.Call(args=[_, ast.Constant(value=name), *_]) if "attr" in ast.unparse(node.func):
                found += [str(name)] if is_private(name) else []
    return found


def test_tests_leave_what_is_private_alone() -> None:
    sources = [path.read_text("utf-8") for path in sorted((ROOT / "tests").rglob("*.py")) if path != Path(__file__)]
    found = [name for source in sources for name in private_accesses(source)]
    assert len(sources) > 100
    assert len(found) <= PRIVATE, found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("self._a = a._b._c", ["_c", "_b"]),
        ("from a import _b, c, __main__", ["_b"]),
        ("row._mapping, a.__class__", []),
        ("monkeypatch.setattr(a, '_b', 1)\nsetattr(a, 'b', 1)\ngetattr(a, '_c')", ["_b", "_c"]),
        ("monkeypatch.setattr('a.b._c', 1)", ["a.b._c"]),
    ],
)
def test_what_is_private(source: str, found: list[str]) -> None:
    assert private_accesses(source) == found


USE_CASES = "service.pipeline"


def replaced(source: str) -> list[str]:
    """Functions of the pipeline that a test puts others in the place of, by whatever module it names them, and modules
    of the pipeline where it names the function, or finds the module, at run time."""
    tree = ast.parse(source)
    aliases, found = _aliases(tree), []
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="import_module") | ast.Attribute(attr="import_module")):
                found += [USE_CASES] if USE_CASES in ast.unparse(node.args[0]) else []
            case ast.Call() if ast.unparse(node.func).endswith((".setattr", "patch.object", "mock.patch")):
                target = _named(node.args, aliases)
                if inspect.isfunction(target) and target.__module__.startswith(USE_CASES):
                    found.append(f"{target.__module__}.{target.__qualname__}")
                elif inspect.ismodule(target) and target.__name__.startswith(USE_CASES):
                    found.append(target.__name__)
    return found


def _aliases(tree: ast.AST) -> dict[str, str]:
    """What the names that a test imports stand for."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.asname: alias.name for alias in node.names if alias.asname}
    return found


def _named(arguments: Sequence[ast.expr], aliases: Mapping[str, str]) -> object:
    """The object that `setattr`'s first arguments name: by its path, or by its owner and its name there, and the owner
    itself where the name is none that can be read; None for what is not the service's."""
    match arguments:
        case [ast.Constant(value=str(path)), *_]:
            pass
        case [owner, name, *_]:
            first, dot, rest = ast.unparse(owner).partition(".")
            path = f"{aliases.get(first, first)}{dot}{rest}"
            path += f".{name.value}" if isinstance(name, ast.Constant) else ""
        case _:
            return None
    if not path.startswith("service."):
        return None
    try:
        return pkgutil.resolve_name(path)
    except (ImportError, AttributeError):
        return None


def test_tests_run_the_use_cases_that_are_shipped() -> None:
    sources = {path: path.read_text("utf-8") for path in sorted((ROOT / "tests").rglob("*.py"))}
    assert len(sources) > 100
    assert not {path.name: found for path, source in sources.items() if (found := replaced(source))}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from service.pipeline import items\nmonkeypatch.setattr(items, 'put_item', f)", ["items.put_item"]),
        ("from service.pipeline import items as it\ncut.setattr(it, 'put_item', f)", ["items.put_item"]),
        ("import service.pipeline.items\nm.setattr(service.pipeline.items, 'put_item', f)", ["items.put_item"]),
        ("from service.api import items\nm.setattr(items.patch, 'patch_item', f)", ["patch.patch_item"]),
        ("monkeypatch.setattr('service.pipeline.items.put_item', f)", ["items.put_item"]),
        ("with mock.patch('service.pipeline.items.put_item'): pass", ["items.put_item"]),
        (
            "from service.pipeline.history import Histories\nmock.patch.object(Histories, 'of', f)",
            ["history.Histories.of"],
        ),
        ("from service.pipeline import items\nmonkeypatch.setattr(items, name, f)", ["items"]),
        ("for name in names: m.setattr(importlib.import_module(f'service.pipeline.{name}'), 'f', f)", [""]),
        ("from service.pipeline import rank\nmonkeypatch.setattr(rank, 'CANDIDATES', 8)", []),
        ("from service.adapters.sql.store import SqlStore\nm.setattr(SqlStore, 'write_items', f)", []),
        ("monkeypatch.setattr(engine, 'cache', None)", []),
    ],
)
def test_what_replaces_a_use_case(source: str, found: list[str]) -> None:
    assert replaced(source) == [f"{USE_CASES}.{name}".rstrip(".") for name in found]
