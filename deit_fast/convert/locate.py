"""Where the weights are: a file itself, the folder of a model or of a run."""

import re
from collections.abc import Iterable
from pathlib import Path

from deit_fast.convert.formats.lazy_tensor import BadFileError

CONFIG = "config.json"
"""What timm and transformers call a model's description, beside its weights."""
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""What timm and transformers call the weights in a model's folder, the one that they take first."""
RUN_FILES = ("best.pt", "last.pt")
"""Checkpoints of a run folder, the one that is taken first."""
CHECKPOINTS = "checkpoints"
"""The folder of a run that has them."""


def find_weights(path: Path) -> Path:
    """`path` itself, or the weights in it: of a model's folder, or of a run's folder its best, else last checkpoint.

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
    if folder.is_dir():
        raise BadFileError(
            f"is the folder of a run without a checkpoint: expected {' or '.join(RUN_FILES)} in {folder}"
        )
    raise BadFileError(
        "is a folder: expected a file of weights, or a model's folder of timm or transformers, with config.json and "
        f"{' or '.join(WEIGHT_FILES)}, or a run's folder, with {CHECKPOINTS}/"
    )


def newest_run(uri: str, folders: Iterable[str]) -> str:
    """The newest run of those that the store has at `uri`, by the names of the folders there.

    One that starts over in a store is kept below URI/later-N, since nothing can be renamed there.
    """
    later = [int(found[1]) for name in folders if (found := re.fullmatch(r"later-(\d+)", name))]
    return f"{uri}/later-{max(later)}" if later else uri
