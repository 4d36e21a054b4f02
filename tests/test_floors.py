"""floors.txt, by which `make floors` installs, names the oldest version of each package that setup.cfg allows."""

import configparser

from packaging.requirements import Requirement
from packaging.version import Version

from tests.conftest import ROOT


def test_the_constraints_are_the_floors_of_setup_cfg() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    lines = [line for text in listed for line in text.splitlines() if line and not line.startswith("#")]
    floors = {}
    for requirement in map(Requirement, lines):
        oldest = [each.version for each in requirement.specifier if each.operator == ">="]
        assert oldest or requirement.name == "setuptools", f"{requirement}: expected the oldest version that works"
        if oldest:
            floors[requirement.name] = Version(oldest[0])
    pinned = {}
    for line in (ROOT / "floors.txt").read_text().splitlines():
        if not line.startswith("#"):
            requirement = Requirement(line)
            (exact,) = requirement.specifier
            assert exact.operator == "==", line
            pinned[requirement.name] = Version(exact.version)
    assert pinned == floors
