"""Prints the facts of a release's CRDs: see the package."""

import json
import sys
from pathlib import Path

import yaml

from tests.kubernetes.schemas import PROJECTS, reduce_crd

project, release, *files = sys.argv[1:]
kinds = {}
for file in files:
    crd = yaml.safe_load(Path(file).read_text())["spec"]
    for version in crd["versions"]:
        if version["served"] and not version.get("deprecated"):
            name = f"{crd['group']}/{version['name']} {crd['names']['kind']}"
            kinds[name] = reduce_crd(version["schema"]["openAPIV3Schema"])
source = f"the CRDs of github.com/{PROJECTS[project]}, tag {release}: {', '.join(Path(file).name for file in files)}"
print(json.dumps({"source": source, "kinds": kinds}, separators=(",", ":")))
