"""AutoContrast and Equalize: each channel by its own histogram, the same at every level."""

from nvidia.dali import fn, types
from nvidia.dali import math as dali_math
from nvidia.dali.data_node import DataNode

from deit_fast.data.augment.operations import Operation
from deit_fast.data.augment.view_graph import TRUNCATE, truncate


def auto_contrast(images: DataNode, arguments: DataNode, image_size: int) -> DataNode:
    """Stretches every channel of uint8 [S, S, 3] to 0..255; a constant channel stays. Takes no arguments."""
    low = fn.reductions.min(images, axes=[0, 1], keep_dims=True)
    span = fn.reductions.max(images, axes=[0, 1], keep_dims=True) - low
    below = span - types.Constant(1).uint8()  # 255 for a constant channel, which then is one from 0 to 255
    return truncate((images - dali_math.min(low, ~below)) * (255.0 / dali_math.max(span, below)))


def equalize(images: DataNode, arguments: DataNode, image_size: int) -> DataNode:
    """Equalises each channel of uint8 [S, S, 3] with DALI's equalize, which is OpenCV's formula. Takes no arguments.

    OpenCV counts the pixels up to and including a level, PIL the pixels below it: on the inverted image the two counts
    are complements. PIL also divides by the number of pixels per level, rounded down to an integer, and does nothing
    where that number is 0.
    """
    depth = fn.reductions.max(images, axes=[0, 1], keep_dims=True) - images  # inverted; equalising ignores an offset
    below = fn.reductions.sum(dali_math.min(depth, types.Constant(1).uint8()), axes=[0, 1], keep_dims=True)
    per_level = below / 255.0
    step = dali_math.floor(per_level)
    nothing = step < 1.0
    scale = per_level / dali_math.max(step, nothing * 1e9)
    values = ~fn.equalize(depth) * scale + images * nothing
    return fn.brightness_contrast(values, brightness_shift=(0.5 + TRUNCATE) / 255, dtype=types.UINT8)


OPERATIONS = (
    Operation("AutoContrast", auto_contrast, native="auto_contrast"),
    Operation("Equalize", equalize, native="equalize"),
)
