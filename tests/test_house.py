"""The house: small rooms on five floors, few private names, cells that are called by name."""

import ast
import re

import nbformat
import pytest

from tests import cells
from tests.conftest import ROOT

# Lower them when the code gets smaller.
MOST_LINES, MOST_IN_A_ROOM, MOST_ROOMS, MOST_PRIVATE, MOST_BENCHMARK_LINES = 5619, 200, 34, 1, 1530
FLOORS = (  # a room imports rooms of lower floors, or such as stand before it on its own
    ("__init__", "score", "kind", "meaning", "schema", "files", "layouts", "tables", "sources"),
    ("settings", "machine", "cluster", "tasks", "data", "recipe", "gpus", "template", "prompt"),
    ("s3server", "storage", "stage", "model", "adapters", "progress"),
    ("callbacks", "training", "plots"),
    ("answers", "batch"),
    ("serving", "door", "replica", "endpoint", "session"),
)
NOTEBOOK = nbformat.read(ROOT / "README.ipynb", as_version=4)
CODE = {cell.id: cell.source for cell in NOTEBOOK.cells if cell.cell_type == "code"}
ORDER = [room for floor in FLOORS for room in floor]


def imported(source: str) -> list[tuple[str, bool]]:
    """What a source imports, anywhere in it: names with dots, those that `from ... import` names included."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def rooms(source: str) -> set[str]:
    """The rooms of tutorial/ that a source imports."""
    parts = [name.split(".") for name in imported(source) if name.split(".")[0] == "tutorial"]
    return {part[1] for part in parts if len(part) > 1 and (ROOT / "tutorial" / f"{part[1]}.py").is_file()}


def source_of(room: str) -> str:
    return (ROOT / "tutorial" / f"{room}.py").read_text()


def all_rooms() -> set[str]:
    """Every room that the notebook imports, itself or through another."""
    found, new = {"__init__"}, set().union(*(rooms(source) for source in CODE.values()))
    while new:
        found |= new
        new = set().union(*(rooms(source_of(room)) for room in new)) - found
    return found


def lines(text: str) -> int:
    return len(text.splitlines())


def test_the_rooms_are_small_and_few():
    sizes = {room: lines(source_of(room)) for room in all_rooms()}
    assert len(sizes) <= MOST_ROOMS, sorted(sizes)
    assert {room: size for room, size in sizes.items() if size > MOST_IN_A_ROOM} == {}
    assert sum(sizes.values()) <= MOST_LINES, sizes


def test_no_import_runs_upward():
    for room in all_rooms():
        upward = {other for other in rooms(source_of(room)) if ORDER.index(other) >= ORDER.index(room)}
        assert not upward, f"{room} imports {upward}"


def test_few_private_names():
    private = re.compile(r"\._(internal|private)\b")
    found = [
        name
        for path in (ROOT / "tutorial").glob("*.py")
        for name in {name for name in imported(path.read_text()) if private.search(name)}
    ]
    modules = {name for name in found if not any(name.startswith(f"{other}.") for other in found)}
    assert len(modules) <= MOST_PRIVATE, sorted(modules)


def test_the_benchmarks_are_small():
    sizes = {path.name: lines(path.read_text()) for path in (ROOT / "benchmarks").glob("*.py")}
    assert sum(sizes.values()) <= MOST_BENCHMARK_LINES, sizes


def test_no_source_is_patched():
    for path in [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "tutorial").glob("*.py")]:
        assert not re.search(r"source\w*\.replace\(", path.read_text()), path.name


@pytest.mark.parametrize("item", sorted({*cells.TRAIN, *cells.BATCH, "serve", "service"}))
def test_cells_that_tests_drive_are_there(item):
    ast.parse(CODE.get(item, item))
    assert item in CODE or " " in item, f"README.ipynb has no cell {item!r}"
