"""One module per codebase: its names of the weights, to timm's and, where we export them, back.

A module with a `CODEBASE` reads a layout, one with an `EXPORT` (of formats/__init__.py) writes it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class TimmWeights:
    """Tensors with timm's names, and what their file says of the model beside them."""

    tensors: dict[str, Tensor]
    """By timm's names, each of its weight's shape [...]."""
    heads: int | None = None
    """Of the attention, where the shapes say it. timm's do not, so None is the zoo's."""
    grid: tuple[int, int] | None = None
    """Height and width of the position embeddings in patches; None: a square."""
    tanh: bool = False
    """Trained with GELU's tanh approximation."""
    mean: Any = None
    """Channel means, of images in [0, 1]; not validated. None: ImageNet's."""
    std: Any = None
    """Channel standard deviations, as `mean`."""
    fixed_positions: bool = False
    """Whether a file without position embeddings is one of a model whose positions are fixed sines and cosines."""


@dataclass(frozen=True)
class Codebase:
    """The names that a codebase gives the weights of its vision transformers."""

    source: str
    """Its name in words."""
    recognises: Callable[[dict[str, Tensor]], bool]
    """Whether tensors have its names (and shapes: values are not looked at)."""
    to_timm: Callable[[dict[str, Tensor]], TimmWeights]
    """The same weights with timm's names and shapes. Raises BadFileError for a name that the codebase does not have."""
    weights_key: str | None = None
    """Where the codebase's training files have the model's weights; None: a file is the weights alone."""
    average_key: str | None = None
    """Where they have the moving average; None: they have none."""
    average_sign: str | None = None
    """A key that says that the moving average is where `average_key` says, and has the model's weights itself; None:
    the average has a key of its own."""
    priority: int = 0
    """Of several codebases that recognise tensors the one of the highest priority renames them."""
