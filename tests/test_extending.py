"""docs/extending.md, followed: its files are written into a copy of the repository, and its tests run there."""

import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
SECTIONS: dict[str, str] = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))
BLOCK = re.compile(r'^```\w+ title="([^"]+)"\n(.*?)^```$', re.M | re.S)
THINGS = [
    "A model family", "An optimizer", "A data source", "An augmentation operation", "A checkpoint format",
    "An evaluation metric", "A log sink", "A scheduler of the pipelines",
]  # fmt: skip


def files_of(section: str) -> dict[str, str]:
    """The files that a section has one write, by their paths."""
    return dict(BLOCK.findall(SECTIONS[section]))


def follow_the_page(parent: Path) -> dict[str, list[str]]:
    """What became of each case of the page's tests, by their file: "passed", or what failed."""
    copy = parent / "deit_fast"
    kept = ("deit_fast", "components", "pipelines", "benchmarks", "tests", "docs")
    for folder in kept:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, copy / name)
    tests = []
    for section in SECTIONS:
        for name, content in files_of(section).items():
            path = copy / name
            assert not path.exists(), f"{section}: {name} is there already"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
            tests += [name] if name.startswith("tests/") else []
    report = copy / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *tests,
               "tests/test_layers.py"]  # fmt: skip
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert report.exists(), done.stdout[-3000:] + done.stderr[-3000:]
    found: dict[str, list[str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        failure = next((f"{case.get('name')}: {each.text}" for each in case if each.tag in ("failure", "error")), None)
        module = (case.get("classname") or "").replace(".", "/") + ".py"
        found.setdefault(module, []).append(failure or "passed")
    return found


def test_the_page_has_every_extension_point() -> None:
    assert list(SECTIONS) == THINGS


@pytest.mark.parametrize("section", THINGS)
def test_two_files_and_a_test_are_enough(section: str) -> None:
    names = files_of(section)
    tests = [name for name in names if name.startswith("tests/")]
    assert len(tests) == 1, names.keys()
    assert 1 <= len(names) - len(tests) <= 2, names.keys()


def test_the_page_works_and_the_rooms_stay_in_order(tmp_path: Path) -> None:
    """One test, because all sections are followed in one copy."""
    outcomes = follow_the_page(tmp_path)
    tests = {name: section for section in THINGS for name in files_of(section) if name.startswith("tests/")}
    wrong = {
        section: [outcome for outcome in outcomes.get(name, ["did not run"]) if outcome != "passed"]
        for name, section in {**tests, "tests/test_layers.py": "The rooms"}.items()
    }
    assert not any(wrong.values()), "\n".join(f"{section}: {failed}" for section, failed in wrong.items() if failed)
