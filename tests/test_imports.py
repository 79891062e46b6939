"""Imports run one way downward, and the rooms that people import need nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import toolkit

PACKAGE = Path(toolkit.__file__).parent
FLOORS = (
    ("calls", "checks", "files", "work"),
    ("kernels",),
    ("attention", "routing"),
    ("layers",),
    ("models",),
    ("parallel",),
    ("compute",),
    ("data",),
    ("training",),
    ("scaling",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
HEAVY = (
    "lightning",
    "lightning_fabric",
    "pytorch_lightning",
    "tensorboard",
    "matplotlib",
    "plotly",
    "markdown",
    "transformers",
)


def imported_modules(source: str, package: str) -> set[str]:
    """Absolute names of what ``source``, a module of ``package``, imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def forbidden(source: str, room: str, package: str) -> set[str]:
    """The imports of ``source``, a module of ``room``, that do not lead down (or stay in the room)."""
    rooms = {name: name.split(".")[1] for name in imported_modules(source, package) if name.startswith("toolkit.")}
    return {
        name for name, target in rooms.items() if target in FLOOR and target != room and FLOOR[target] >= FLOOR[room]
    }


@pytest.mark.parametrize(
    ("room", "source", "found"),
    [
        ("routing", "from toolkit.attention import Causal", {"toolkit.attention.Causal"}),
        ("attention", "import toolkit.routing.router", {"toolkit.routing.router"}),
        ("layers", "def late():\n    from toolkit import models", {"toolkit.models"}),
        ("data", "from ..scaling import hull", {"toolkit.scaling.hull"}),
        ("layers", "from toolkit.routing import TopKRouter\nfrom .moe import MoE\nimport torch", set()),
        ("scaling", "from toolkit.data import corpus\nfrom toolkit.checks import require", set()),
        ("checks", "from toolkit.work import Work", {"toolkit.work.Work"}),
    ],
)
def test_the_check_itself_tells_right_from_wrong(room: str, source: str, found: set[str]) -> None:
    assert forbidden(source, room, f"toolkit.{room}") == found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way_downward(path: Path) -> None:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts == ("__init__",):  # the top holds no code, only what the package is
        assert not {name for name in imported_modules(path.read_text(), "toolkit") if name.startswith("toolkit")}
        return
    room = parts[0]
    assert room in FLOOR, f"{room} has no floor in the house"
    assert forbidden(path.read_text(), room, ".".join(["toolkit", *parts[:-1]])) == set()


def test_layers_routing_and_attention_import_nothing_heavy() -> None:
    code = (
        "import sys, toolkit.layers, toolkit.routing, toolkit.attention\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]"
