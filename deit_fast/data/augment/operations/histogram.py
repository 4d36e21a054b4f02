"""AutoContrast and Equalize: each channel by its own histogram, the same at every level."""

from nvidia.dali import fn, types
from nvidia.dali import math as dali_math
from nvidia.dali.data_node import DataNode

from deit_fast.data.augment.operations import Operation
from deit_fast.data.augment.view_graph import truncate


def auto_contrast(images: DataNode, arguments: DataNode, image_size: int) -> DataNode:
    """Stretches every channel of uint8 [S, S, 3] to 0..255; a constant channel stays. Takes no arguments."""
    low = fn.reductions.min(images, axes=[0, 1], keep_dims=True)
    span = fn.reductions.max(images, axes=[0, 1], keep_dims=True) - low
    constant = dali_math.max(low - span * 255.0, 0.0)  # the value of a constant channel, else 0
    return truncate((images - low) * (255.0 / dali_math.max(span, 1.0)) + constant)


def equalize(images: DataNode, arguments: DataNode, image_size: int) -> DataNode:
    """Equalises each channel of uint8 [S, S, 3] with DALI's equalize, which is OpenCV's formula. Takes no arguments.

    OpenCV counts the pixels up to and including a level, PIL the pixels below it: on the inverted image the two counts
    are complements. PIL also divides by the number of pixels per level, rounded down to an integer, and does nothing
    where that number is 0.
    """
    top = fn.reductions.max(images, axes=[0, 1], keep_dims=True)
    at_top = fn.reductions.sum(fn.cast(images == top, dtype=types.FLOAT), axes=[0, 1], keep_dims=True)
    per_level = (float(image_size**2) - at_top) / 255.0
    step = dali_math.floor(per_level)
    changes = dali_math.min(step, 1.0)
    equalized = ~fn.equalize(~images) * (per_level / dali_math.max(step, 1.0)) + 0.5
    return truncate((equalized - images) * changes + images)


OPERATIONS = (
    Operation("AutoContrast", auto_contrast, native="auto_contrast"),
    Operation("Equalize", equalize, native="equalize"),
)
