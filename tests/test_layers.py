"""Imports run one way: held over the syntax trees, so that a module cannot come to depend on what uses it."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

# Lowest first; a module may import its own package's modules and anything on a lower line.
LAYERS = [
    {"errors", "progress", "stopping", "watchdog"},
    {"zoo", "files", "labels"},
    {"objects"},
    {"sections"},
    {"recipe"},
    {"distributed"},
    {"sharding"},
    {"recipes", "data", "models", "optim", "losses", "schedule"},
    {"captured", "compiled", "convert"},
    {"checkpoint", "classifier", "distill", "show"},
    {"objective"},
    {"metrics", "profile", "step", "evaluation_report"},
    {"bad_images", "create", "divergence", "evaluate", "export", "inference", "loader_setting", "resuming", "saving"},
    {"run_store"},
    {"trainer"},
    {"train"},
    {"commands"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
SOURCES = sorted((ROOT / "deit_fast").rglob("*.py"))


def package_imports(path: Path) -> set[str]:
    """Top names of deit_fast that the file imports anywhere, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert not node.level or path.parent.name == "pipelines", f"{path.name}: a relative import"
            names = [node.module or ""] + [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("deit_fast.") and name.count(".") >= 1}
    return found & LEVEL.keys()


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_upward_import(path: Path) -> None:
    if path == ROOT / "deit_fast" / "__init__.py":
        pytest.skip("the package's own front door names what is below it lazily")
    name = path.relative_to(ROOT / "deit_fast").parts[0].removesuffix(".py")
    for imported in package_imports(path) - {name}:
        assert LEVEL[imported] < LEVEL[name], f"{path.name} imports {imported}"


@pytest.mark.parametrize("path", [p for d in ("components", "pipelines") for p in sorted((ROOT / d).glob("*.py"))],
                         ids=lambda p: str(p.relative_to(ROOT)))  # fmt: skip
def test_components_and_pipelines_know_recipes_only(path: Path) -> None:
    assert package_imports(path) <= {"sections", "recipe", "recipes", "errors", "zoo", "files", "objects"}
    code = f"import {path.parent.name}.{path.stem}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


FOLDERS = ("components", "pipelines", "benchmarks")


@pytest.mark.parametrize("path", [*SOURCES, *(p for d in FOLDERS for p in sorted((ROOT / d).glob("*.py")))],
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
