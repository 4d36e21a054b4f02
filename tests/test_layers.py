"""Imports run one way: held over the syntax trees, so that a module cannot come to depend on what uses it."""

import ast
import configparser
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

# Highest first: the rooms of deit_fast/. A room imports its own modules and those of rooms further down.
ROOMS = ["cli", "training", "infer", "checkpoint", "convert", "optim", "models", "data", "recipe", "zoo", "runtime"]
# The rooms of deit_fast/data/, by the same rule.
DATA_ROOMS = ["tools", "loader", "augment", "native", "sources"]

PACKAGE = ROOT / "deit_fast"
SOURCES = sorted(PACKAGE.rglob("*.py"))
# What an installed user finds under deit_fast although the repository keeps it beside it.
MAPPED = {"components", "pipelines", "benchmarks"}
# What of it a room may use: the command line prints a component's job.
BESIDE = {"cli": {"components"}}  # pipelines and benchmarks are whole commands, run by their names


def imported_modules(path: Path) -> set[str]:
    """Dotted names that the file imports from deit_fast anywhere, also inside functions: `recipe.schema` and so on."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert not node.level or path.relative_to(ROOT).parts[0] == "pipelines", f"{path.name}: a relative import"
            # Of a package its modules may be imported by name: then the room is in the names.
            bare = node.module in ("deit_fast", "deit_fast.data")
            names = [f"{node.module}.{alias.name}" for alias in node.names] if bare else [node.module or ""]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.removeprefix("deit_fast.") for name in names if name.startswith("deit_fast.")}
    return found


def check_downward(path: Path, own: str, imported: set[str], rooms: list[str]) -> None:
    assert own in rooms, f"{path}: expected a room of {rooms}"
    for name in imported - {own}:
        assert name in rooms, f"{path} imports {name}: expected a room of {rooms}"
        assert rooms.index(name) > rooms.index(own), f"{path} imports {name}, which is above {own}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_upward_import(path: Path) -> None:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts == ("__init__",):
        pytest.skip("the package's own front door names what is below it lazily")
    imported = imported_modules(path)
    rooms = {name.split(".")[0] for name in imported} - BESIDE.get(parts[0], set())
    check_downward(path, parts[0], rooms, ROOMS)
    if parts[0] == "data" and len(parts) > 2:
        inside = {name.split(".")[1] for name in imported if name.startswith("data.")}
        check_downward(path, parts[1], inside, DATA_ROOMS)


def test_every_module_stands_in_a_room() -> None:
    assert [path.name for path in PACKAGE.glob("*.py")] == ["__init__.py"]
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(ROOMS)
    assert {path.parent.name for path in (PACKAGE / "data").glob("*/__init__.py")} == set(DATA_ROOMS)
    assert [path.name for path in (PACKAGE / "data").glob("*.py")] == ["__init__.py"]


def test_contributors_are_told_the_rooms_in_the_same_order() -> None:
    assert " -> ".join(ROOMS) in " ".join((ROOT / "CONTRIBUTING.md").read_text().split())


def test_every_package_is_installed() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    packages = {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("__init__.py")}
    mapped = {f"deit_fast.{'.'.join(path.parent.relative_to(ROOT).parts)}"
              for name in MAPPED for path in (ROOT / name).rglob("__init__.py")}  # fmt: skip
    assert listed == packages | mapped


OUTSIDE = [path for folder in ("components", "pipelines") for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda p: str(p.relative_to(ROOT)))
def test_components_and_pipelines_know_recipes_only(path: Path) -> None:
    assert {name.split(".")[0] for name in imported_modules(path)} - MAPPED <= {"recipe", "zoo", "runtime"}


def test_components_and_pipelines_do_without_torch() -> None:
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in OUTSIDE]
    code = f"""
import importlib, sys
for name in {names}:
    importlib.import_module(name)
    assert 'torch' not in sys.modules, name
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", [*SOURCES, *(p for d in sorted(MAPPED) for p in sorted((ROOT / d).rglob("*.py")))],
                         ids=lambda p: str(p.relative_to(ROOT)))  # fmt: skip
def test_no_file_does_too_much(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300


@pytest.mark.parametrize(
    "statement",
    [
        "import deit_fast; deit_fast.list_recipes()",
        "import deit_fast.cli.main",
        "import components.deit",
        "import pipelines.dag, pipelines.deit3",
    ],
)
def test_no_torch_for_a_recipe(statement: str) -> None:
    code = f"{statement}\nimport sys; sys.exit('torch' in sys.modules or 'nvidia.dali' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment).returncode == 0
