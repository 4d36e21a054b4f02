"""The operations that RandAugment and AutoAugment draw from: modules that hold `OPERATIONS`, a tuple of `Operation`.

policy_graph.py makes one branch of the graph for each graph function that operations share. Which operations a policy
draws, and in which order, is decided in policies.py and not in this folder.

The facts (operations, level to argument, fill, resampling) are timm 1.0.31's `data/auto_augment.py`; the arithmetic is
PIL's. The remaining differences from PIL on uint8 images, in levels of 0 to 255 (measured at 224 px, held by tests):

* Invert, Posterize, Solarize, SolarizeAdd: none. (PosterizeIncreasing at level 10 keeps no bit and gives black, as PIL
  did before a newer version refused such an argument.)
* AutoContrast, Color, Contrast, Brightness, Sharpness: 1 in below 0.5 % of the values, from float32.
* Equalize: 1 in a quarter of the values; DALI rounds the cumulated histogram before it can be rescaled as PIL's.
* Rotate, ShearX, ShearY, TranslateXRel, TranslateYRel: 1 in below 0.5 % of the values. About one pixel in ten thousand
  differs by more, because in float32 its source coordinate falls on the boundary between two pixels.

The native path (data/native/operations.c) has all of these operations too and takes the same arguments. Its results are
equal to PIL's, except for a difference of 1 in below 1 % of a warp's values, which comes from float32 weights.

Why nvidia.dali.auto_aug (DALI 2.4) is not used. It departs from timm and PIL in these points:

* Its random numbers come from operators inside the graph: no view is a function of (seed, epoch, index, view).
* Its RandAugment has other operations: it has Identity, and lacks Invert and SolarizeAdd. It applies each operation
  always, where timm applies it half of the time. It uses one fixed magnitude bin, where timm draws a level around a
  mean. Its Posterize keeps 8 to 4 bits where timm keeps 4 to 0.
* Its AutoAugment "image_net" is the policy of TPU EfficientNet (timm's "v0"). The paper's policy is
  "reduced_image_net", in which Posterize keeps 0 to 4 bits by the level, but at least 1 (timm: 4 to 8), and thresholds
  are fractions (timm: whole numbers).
* Rotate, shears, translations: nearest or linear interpolation (timm: bicubic), one fill value for all channels (timm:
  the mean colour); relative translations reach 100/224 in RandAugment and the whole image in AutoAugment (timm: 0.45).
* Brightness, Color, AutoContrast and Contrast round (PIL truncates). The centre of Contrast is the mean luma (PIL
  rounds both the luma and its mean). Sharpness filters the border (PIL copies it). Equalize is OpenCV's.

The operations here correct each of these differences by arithmetic in the graph.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from nvidia.dali.data_node import DataNode

Arguments = Callable[[NDArray[np.float64], NDArray[np.float64], int], NDArray[np.float64]]
"""(levels [m], 0 to 10; signs [m], -1 or 1; S, the views' side, px) -> the arguments [m, A] of m images. m may be 0."""


def no_arguments(level: NDArray[np.float64], sign: NDArray[np.float64], image_size: int) -> NDArray[np.float64]:
    """Arguments [m, 0] of an operation without arguments, which does the same at every level."""
    return np.zeros((len(level), 0))


@dataclass(frozen=True)
class Operation:
    """An image operation, stronger at higher levels. It is deterministic: levels and signs are drawn before it runs."""

    name: str
    """Its name in policies and in augment.rand_extra."""
    apply: Callable[[DataNode, DataNode, int], DataNode]
    """DALI graph function (images uint8 [S, S, 3]; arguments float32 [R, 6], on the CPU; S) -> uint8 [S, S, 3].
    Operations with the same function share one condition of the graph, which is cheaper than one for each operation."""
    arguments: Arguments = no_arguments
    """The arguments for a level and a sign. `apply` gets them in rows of 6, followed by zeros."""
    native: str | None = None
    """The native path's function for the same operation and arguments: a name in native.OPERATIONS, or None.
    A policy that may draw an operation without a native function is applied by DALI's graph."""
