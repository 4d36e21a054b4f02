"""Finds the weights: a file itself, or those in a model's or a run's folder."""

import re
from collections.abc import Iterable
from pathlib import Path

from deit_fast.convert.formats.lazy_tensor import BadFileError

CONFIG = "config.json"
"""File name of a model's description beside its weights, in timm and transformers."""
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""File names of the weights in a model's folder, in timm and transformers; the first existing one is used."""
RUN_FILES = ("best.pt", "last.pt")
"""Checkpoints in a run's folder; the first existing one is used."""
RECIPE = "recipe.json"
"""File name of a run's recipe."""
CHECKPOINTS = "checkpoints"
"""The subfolder of a run that holds them."""


def find_weights(path: Path) -> Path:
    """`path` itself; or in a model's folder its weights, in a run's folder its best, else its last checkpoint.

    Raises BadFileError for any other folder.
    """
    if not path.is_dir():
        return path
    for name in WEIGHT_FILES:
        if (path / CONFIG).is_file() and (path / name).is_file():
            return path / name
    folder = path if path.name == CHECKPOINTS else path / CHECKPOINTS
    for name in RUN_FILES:
        if (folder / name).is_file():
            return folder / name
    if folder.is_dir() or (path / RECIPE).is_file():
        raise BadFileError(
            f"is the folder of a run without a checkpoint: expected {' or '.join(RUN_FILES)} in {folder}"
        )
    raise BadFileError(
        "is a folder: expected a file of weights, or a model's folder of timm or transformers, with config.json and "
        f"{' or '.join(WEIGHT_FILES)}, or a run's folder, with {CHECKPOINTS}/"
    )


def newest_run(uri: str, folders: Iterable[str]) -> str:
    """The newest of the runs that the store has at `uri`, by the names of the folders there.

    A run that starts over in a store is kept below URI/later-N, since nothing can be renamed there.
    """
    later = [int(found[1]) for name in folders if (found := re.fullmatch(r"later-(\d+)", name))]
    return f"{uri}/later-{max(later)}" if later else uri
