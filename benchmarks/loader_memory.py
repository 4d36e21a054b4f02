"""Memory of one side of a race, measured in a process that imports only that side; `race_memory` starts the process."""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from deit_fast.data.sources.base import Source
from deit_fast.data.sources.open import open_source
from deit_fast.recipe.schema import Recipe, parse_recipe

from . import loader_ours
from .images import Sample
from .timed_command import time_command

OURS = "ours"
_PASSES = 3
_SAMPLE_SECONDS = 0.1


def race_memory(name: str, case: str, source: Source, recipe: Recipe, batch: int, steps: int, workers: int) -> float:
    """Peak PSS in MB (2**20) of passes by "ours" or a peer, including worker processes, on a CPU.

    case: of a race, without `race_`. source: from `open_images`. Raises RunError where the process fails.
    """
    asked = {"name": name, "case": case, "uri": source.uri, "images": len(source), "batch": batch, "steps": steps,
             "workers": workers, "recipe": recipe.model_dump(mode="json")}  # fmt: skip
    with tempfile.NamedTemporaryFile(prefix="deit-fast-race-", suffix=".log") as log:
        command = [sys.executable, "-m", f"{__package__}.loader_memory", json.dumps(asked)]
        return time_command(command, Path(log.name), _SAMPLE_SECONDS).peak_pss_mb


def _side(
    name: str, case: str, uri: str, images: int, recipe: Recipe, batch: int, steps: int, workers: int
) -> Callable[[], None]:
    """A pass over the images by one side."""
    source: Source = Sample(open_source(uri, "train"), images)
    device = torch.device("cpu")
    if case == "evaluation":
        loader, source = loader_ours.evaluation(source, recipe, batch, device)
        shown = np.arange(steps * batch) % len(source)
    else:
        recipe, repeats = loader_ours.race_recipe(recipe, case), loader_ours.race_repeats(case)
        loader, shown = loader_ours.training(source, recipe, repeats, batch, steps, device)  # type: ignore[assignment]
    if name != OURS:
        from .loader_peers import build_peer

        return build_peer(name, case, source, shown.tolist(), recipe.model.image_size, recipe.data, batch, workers)
    normalise = loader_ours.normaliser(recipe, device)

    def run() -> None:
        for each in loader:
            normalise(each.images)

    return run


def _main() -> None:
    torch.set_num_threads(1)
    asked = json.loads(sys.argv[1])
    run = _side(**{**asked, "recipe": parse_recipe(asked["recipe"])})
    for _ in range(_PASSES):
        run()


if __name__ == "__main__":
    _main()
