"""State dicts with timm's names: reading the sizes of their model, and renaming their blocks."""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

Weights = Mapping[str, Tensor]


class WeightsError(ValueError):
    """Tensors that a family recognised, but that fit none of its models.

    The message continues after the file's name.
    """


class Sizes(NamedTuple):
    """The facts about a model that its state dict gives."""

    entry: dict[str, Any]
    """Fields of `Architecture` that tell the model's entry in the zoo from the family's other entries."""
    layer_scale: bool
    """Whether the blocks have LayerScale."""
    fields: dict[str, Any]
    """Fields of the recipe's model section, without name, num_classes, layer_scale and activation."""


def count_blocks(tensors: Weights) -> int:
    """The number of blocks: one more than the largest N in names blocks.N.*, or 0 without such names."""
    return max((int(match[1]) + 1 for name in tensors if (match := re.match(r"blocks\.(\d{1,4})\.", name))), default=0)


def square_grid(patches: int) -> tuple[int, int]:
    """Height and width, in patches, of a square grid of `patches`. Raises WeightsError where they form no square."""
    side = math.isqrt(patches)
    if side * side != patches or not side:
        raise WeightsError(f"has {patches} patch positions: expected the square of a number")
    return side, side


def image_side(grid: tuple[int, int] | None, patch_size: int) -> int:
    """Side in pixels of the images of a square grid; 224 where the grid is unknown. Raises WeightsError."""
    if grid is None:
        return 224
    if grid[0] != grid[1]:
        raise WeightsError(f"has a grid of {grid[0]} x {grid[1]} patches: expected a square one")
    return grid[0] * patch_size


def rename_blocks(tensors: Weights, table: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors, of any shape [...], each with its name changed by `rename_block`."""
    return {rename_block(name, table): tensor for name, tensor in tensors.items()}


def inverse(table: Mapping[str, str]) -> dict[str, str]:
    """The inverse of a table for `rename_blocks`: NEW to OLD."""
    return {new: old for old, new in table.items()}


def rename_block(name: str, table: Mapping[str, str]) -> str:
    """`blocks.3.OLD.rest` as `blocks.3.NEW.rest`, by a table of OLD to NEW; any other name stays as it is."""
    match = re.match(r"(blocks\.\d+\.)(.+)$", name)
    if match is None:
        return name
    block, part = match.groups()
    for old, new in table.items():
        if part == old or part.startswith(f"{old}."):
            return f"{block}{new}{part.removeprefix(old)}"
    return name
