"""A pipeline as files for kubectl: one for each stage, numbered in the order of their execution."""

from collections.abc import Sequence
from pathlib import Path

import yaml
from deit_fast.components.arguments import parse_pairs
from deit_fast.components.manifest import render
from deit_fast.components.manifests import find_kinds

from .stages import Stage
from .state import PipelineError, explain


def write_manifests(stages: Sequence[Stage], folder: Path, cfg: str) -> list[str]:
    """Writes the files into a new or an existing folder, and returns the commands that run the stages one by one.

    stages: in an order in which each follows its needs. cfg: `KEY=VALUE,...`, where `kind` is the kind of the jobs.
    Raises PipelineError where the files cannot be written; a wrong option raises SystemExit.
    """
    given = {"kind": "jobset", **parse_pairs("cfg", cfg)}
    kind = given.pop("kind")
    place = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    texts = {}
    for number, stage in enumerate(stages, 1):
        words = [f"--as={kind}", *place, *stage.where, *stage.arguments]
        texts[folder / f"{number}-{stage.name}.yaml"] = render(stage.component.rpartition(":")[2], words)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise PipelineError(f"--manifests {folder}: {explain(error)}") from error
    commands = []
    for path, text in texts.items():
        *_, job = yaml.safe_load_all(text)
        name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
        waited = f"{job['kind'].lower()}.{find_kinds()[kind].api['group']}/{name}"
        wait = f"kubectl wait -n {namespace} --for={find_kinds()[kind].done} --timeout=-1s {waited}"
        commands.append(f"kubectl apply -f {path} && {wait}")
    return commands
