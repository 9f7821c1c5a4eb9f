"""Imports point one way, heavy libraries stay in their rooms, and files stay one sitting's reading."""
import ast
from pathlib import Path

import pytest

import minires

PACKAGE = Path(minires.__file__).parent
# Each room may import from those before it, and from its own.
ORDER = ["errors", "arguments", "reprs", "files", "machine", "backends", "init", "watching", "layer", "layers", "losses",
         "optim", "schedules", "models", "plan", "data", "plots", "interop", "training", "evaluation", "study", "bench",
         "commands", "cli", "__main__"]
DATA_KNOWS = {"arguments", "data", "errors", "init", "reprs"}


def imports_of(path):
    """The rooms of minires that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "minires" else [node.module]
        yield from (name.split(".")[1] for name in names if name.startswith("minires."))


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.name != "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    own = room(path)
    for other in imports_of(path):
        if other in ("__version__", "backends", own):
            continue
        assert ORDER.index(other) < ORDER.index(own), f"{path.name} in {own} imports {other}"
        if own == "data":
            assert other in DATA_KNOWS


def test_every_room_is_in_the_order():
    assert {room(path) for path in FILES} == set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_is_one_sitting(path):
    assert len(path.read_text().splitlines()) <= 400
