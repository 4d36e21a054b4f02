"""The Dockerfile, without Docker: it copies all an installation needs and installs the extras of `make install`."""

import configparser
import fnmatch
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

LINES = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]


def instructions(name: str) -> list[str]:
    return [line.split(maxsplit=1)[1] for line in LINES if line.split()[0] == name]


def sources() -> list[str]:
    return [source for line in instructions("COPY") for source in line.split()[:-1]]


def test_every_instruction_is_one() -> None:
    assert {line.split()[0] for line in LINES} <= {"FROM", "ARG", "RUN", "WORKDIR", "COPY", "CMD"}
    assert LINES[0].startswith("FROM python:")
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    minimum = setup["options"]["python_requires"].removeprefix(">=")
    assert f"python:{minimum}-" in LINES[0]


def test_it_installs_what_make_install_does_but_docs_and_tests() -> None:
    makefile = re.search(r"'\.\[\$\(DALI\),(.*?),docs,test\]'", (ROOT / "Makefile").read_text())
    image = [match for line in instructions("RUN") for match in re.findall(r'"\.\[\$DALI,(.*?)\]"', line)]
    assert makefile
    assert image == [makefile[1]]
    assert instructions("ARG") == ["DALI=" + re.findall(r"^DALI \?= (\w+)", (ROOT / "Makefile").read_text(), re.M)[0]]


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    for source in sources():
        assert (ROOT / source).exists()
        ignored = False
        for rule in rules:  # the last that matches decides
            if fnmatch.fnmatch(source, rule.removeprefix("!")):
                ignored = not rule.startswith("!")
        assert not ignored, source


def test_the_commands_of_the_components_run_from_what_is_copied(tmp_path: Path) -> None:
    """A package built from the copied files alone has every module, entry point and data file of the checkout's."""
    for source in sources():
        (tmp_path / source).symlink_to(ROOT / source)
    code = (
        "from setuptools import find_namespace_packages, setup; import sys; sys.argv = ['setup', '-q', 'build_py', "
        "'--build-lib', 'built', 'egg_info', '--egg-base', 'built']; setup()"
    )
    (tmp_path / "built").mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, capture_output=True)
    built = {str(path.relative_to(tmp_path / "built")) for path in (tmp_path / "built" / "deit_fast").rglob("*.py")}
    for folder in ("deit_fast", "components", "pipelines", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            name = path.relative_to(ROOT)
            assert str(name if folder == "deit_fast" else Path("deit_fast") / name) in built
    entries = configparser.ConfigParser(delimiters=("=",))
    entries.read(next((tmp_path / "built").glob("*.egg-info")) / "entry_points.txt")
    for group in entries.sections():
        for target in entries[group].values():
            module = target.partition(":")[0]
            if module.startswith("deit_fast"):
                assert f"{module.replace('.', '/')}.py" in built
