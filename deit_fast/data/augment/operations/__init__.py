"""The operations that RandAugment and AutoAugment draw from: modules that hold `OPERATIONS`, a tuple of `Operation`.

In goes a module, out comes a branch of the graph for each function that its operations share (policy_graph.py). Which
operations a policy draws, and in which order, is the policy's (policies.py), not this folder's.

The facts (operations, level to argument, fill, resampling) are timm 1.0.31's `data/auto_augment.py`; the arithmetic is
PIL's. What remains different from them on uint8 images, 0 to 255 (measured at 224 px; the tests hold it):

* Invert, Posterize, Solarize, SolarizeAdd: nothing. (PosterizeIncreasing at a level of exactly 10 keeps no bit: black,
  as in PIL until it refused to.)
* AutoContrast, Color, Contrast, Brightness, Sharpness: 1 in below 0.5 % of the values, from float32.
* Equalize: 1 in a quarter of the values; DALI rounds the cumulated histogram before it can be rescaled as PIL's.
* Rotate, ShearX, ShearY, TranslateXRel, TranslateYRel: 1 in below 0.5 % of the values, and more in about one pixel of
  ten thousand, whose coordinate falls on the edge between pixels up to float32.

The native path (data/native/operations.c) has all of them too, from the same arguments, and they are PIL's to the bit,
but for 1 in below 1 % of a warp's values, from float32 weights.

Why not DALI's own nvidia.dali.auto_aug (2.4), where it departs from timm and PIL:

* Randomness comes from operators inside the graph: no view is a function of (seed, epoch, index, view).
* Its RandAugment has other operations (Identity; no Invert, no SolarizeAdd), applies each always instead of half of the
  time, at one bin instead of a level drawn around it; Posterize keeps 8 to 4 bits where timm keeps 4 to 0.
* Its AutoAugment "image_net" is the policy of TPU EfficientNet (timm's "v0"); the paper's is "reduced_image_net", but
  there Posterize keeps the level's 0 to 4 bits, at least 1 (timm: 4 to 8), and thresholds are fractions (timm: whole).
* Rotate, shears, translations: nearest or linear (bicubic), one fill value for all channels (the mean colour);
  relative translations reach 100/224 in RandAugment and the whole image in AutoAugment (0.45).
* Brightness, Color, AutoContrast and Contrast round (PIL truncates); the centre of Contrast is the mean luma (PIL
  rounds the luma and its mean); Sharpness filters the border (PIL copies it); Equalize is OpenCV's.

Everything above that can be told from PIL is corrected here by arithmetic in the graph instead.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from nvidia.dali.data_node import DataNode

Arguments = Callable[[NDArray[np.float64], NDArray[np.float64], int], NDArray[np.float64]]
"""(levels [m], 0 to 10; signs [m], -1 or 1; S, the views' side, px) -> the arguments [m, A] of m images. m may be 0."""


def no_arguments(level: NDArray[np.float64], sign: NDArray[np.float64], image_size: int) -> NDArray[np.float64]:
    """[m, 0], of an operation that does the same at every level."""
    return np.zeros((len(level), 0))


@dataclass(frozen=True)
class Operation:
    """Something done to a view, harder at higher levels. Nothing in it is random: levels and signs are drawn before."""

    name: str
    """What policies and augment.rand_extra call it."""
    apply: Callable[[DataNode, DataNode, int], DataNode]
    """DALI graph function (images uint8 [S, S, 3]; arguments float32 [A or more], on the CPU; S) -> uint8 [S, S, 3].
    Operations with the same function share a branch of the graph, which is cheaper than a branch each."""
    arguments: Arguments = no_arguments
    """Its arguments by level and sign; `apply` gets them, and zeros after them."""
    native: str | None = None
    """The function of the native path that does the same with the same arguments, a name of native.OPERATIONS. Views of
    a policy that may draw an operation without one are made by DALI's graph."""
