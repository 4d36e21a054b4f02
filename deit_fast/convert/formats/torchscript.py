"""TorchScript, for libtorch and older servers: normalised float images [B, 3, S, S] -> logits [B, K], with free B.

Class names and the preprocessing of images are in extra files of the archive. torch deprecates TorchScript in favour of
the format that program.py writes.
"""

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from deit_fast.convert.formats import Export
from deit_fast.convert.formats.program import describe_input, example_images, program_metadata
from deit_fast.recipe.schema import Recipe
from deit_fast.runtime.files import atomic_path


def _write(model: nn.Module, recipe: Recipe, classes: list[str] | None, path: Path) -> list[str]:
    """Writes a file that `torch.jit.load` reads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the deprecation, and constants that are correct for a model of one image size
        traced = torch.jit.trace(model, example_images(recipe), check_trace=False)  # Exported.difference checks it
        with atomic_path(path) as temporary:
            torch.jit.save(traced, temporary, _extra_files=program_metadata(recipe, classes))
    return [describe_input(recipe)]


def _reload(path: Path) -> Callable[[Tensor], Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.load(path)


EXPORT = Export("torchscript", ".torchscript", _write, _reload)
