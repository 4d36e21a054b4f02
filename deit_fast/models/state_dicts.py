"""Reading state dicts with timm's names: the sizes of the model that they belong to; and renaming blocks."""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

Weights = Mapping[str, Tensor]


class WeightsError(ValueError):
    """Tensors that are no model's of the family that has recognised them. The message goes on from the file's name."""


class Sizes(NamedTuple):
    """What a state dict says of its model."""

    entry: dict[str, Any]
    """Fields of `Architecture` that tell the zoo's entry from the family's others."""
    layer_scale: bool
    """Whether the blocks have LayerScale."""
    fields: dict[str, Any]
    """Fields of the recipe's model section, but for name, num_classes, layer_scale and activation."""


def count_blocks(tensors: Weights) -> int:
    """One more than the largest N of names blocks.N.*, and 0 where there are none."""
    return max((int(match[1]) + 1 for name in tensors if (match := re.match(r"blocks\.(\d{1,4})\.", name))), default=0)


def square_grid(patches: int) -> tuple[int, int]:
    """Height and width, in patches, of a square of `patches`. Raises WeightsError for no square number."""
    side = math.isqrt(patches)
    if side * side != patches or not side:
        raise WeightsError(f"has {patches} patch positions: expected the square of a number")
    return side, side


def image_side(grid: tuple[int, int] | None, patch_size: int) -> int:
    """Side in pixels of the images of a square grid, and 224 where the tensors do not say it. Raises WeightsError."""
    if grid is None:
        return 224
    if grid[0] != grid[1]:
        raise WeightsError(f"has a grid of {grid[0]} x {grid[1]} patches: expected a square one")
    return grid[0] * patch_size


def rename_blocks(tensors: Weights, table: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors, of any shape [...], each with its name changed by `rename_block`."""
    return {rename_block(name, table): tensor for name, tensor in tensors.items()}


def inverse(table: Mapping[str, str]) -> dict[str, str]:
    """NEW to OLD of a table for `rename_blocks`."""
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
