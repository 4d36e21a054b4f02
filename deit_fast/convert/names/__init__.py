"""One module per codebase: maps its names of the weights to timm's and, for export, back.

A module with a `CODEBASE` reads a layout, one with an `EXPORT` (of formats/__init__.py) writes it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class TimmWeights:
    """Tensors with timm's names, and other facts about the model in their file."""

    tensors: dict[str, Tensor]
    """By timm's names, each with its weight's shape [...]."""
    heads: int | None = None
    """Number of attention heads, if the shapes show it. timm's do not: None means the zoo's number."""
    grid: tuple[int, int] | None = None
    """Height and width of the grid of position embeddings, in patches; None means a square."""
    tanh: bool = False
    """Whether it was trained with GELU's tanh approximation."""
    mean: Any = None
    """Channel means, of images in [0, 1]; not validated. None means ImageNet's."""
    std: Any = None
    """Channel standard deviations, in the form of `mean`."""
    fixed_positions: bool = False
    """Whether a file without position embeddings belongs to a model with fixed sine and cosine positions."""


@dataclass(frozen=True)
class Codebase:
    """The names that a codebase gives to the weights of its vision transformers."""

    source: str
    """Its name, for people."""
    recognises: Callable[[dict[str, Tensor]], bool]
    """Whether tensors have its names (and shapes: values are not read)."""
    to_timm: Callable[[dict[str, Tensor]], TimmWeights]
    """Renames and reshapes the weights to timm's form. Raises BadFileError for a name that the codebase does not
    use."""
    weights_key: str | None = None
    """Key of the model's weights in the codebase's training files; None if a file is the weights alone."""
    average_key: str | None = None
    """Key of the moving average there; None if there is none."""
    average_sign: str | None = None
    """If this key exists, `average_key` holds the moving average and this key the model's weights. None: the average
    has a key of its own."""
    priority: int = 0
    """If several codebases recognise tensors, the one with the highest priority renames them."""
