"""DALI graph functions of the crops, the flip, 3-Augment and the colour jitter.

Nothing here is random: every function is a pure function of images and of parameters drawn by `view_params.py`. The
same functions build the CPU and the GPU graph. Images are uint8 HWC, RGB. Parameters are CPU nodes, because DALI takes
predicates of conditionals and named arguments from the CPU only; `beside` moves a parameter to the images' device for
arithmetic.

Rounding follows PIL, which truncates where DALI rounds; see `truncate`.
"""

from typing import Any, Literal

from nvidia.dali import fn, types
from nvidia.dali import math as dali_math
from nvidia.dali.data_node import DataNode
from nvidia.dali.pipeline import do_not_convert

from deit_fast.data.augment.policies import POLICIES, count_operations, operation_names
from deit_fast.data.augment.resize import resize
from deit_fast.data.augment.view_params import GREYSCALE, SOLARISE
from deit_fast.recipe.sections import Augment

BRIGHTNESS, CONTRAST, SATURATION = range(3)

# Rounding v - 0.498 to the nearest integer truncates v + 0.002. The result is PIL's, except where float32 noise moves a
# value just below an integer.
TRUNCATE = -0.498
"""Added to a value before it is rounded to the nearest integer, it makes that PIL's truncation."""


@do_not_convert
def truncate(values: DataNode) -> DataNode:
    """Float [H, W, C] -> uint8 [H, W, C], clamped to 0..255 and truncated as PIL does.

    brightness_contrast is the fastest DALI operator for such a cast.
    """
    return fn.brightness_contrast(values, brightness_shift=TRUNCATE / 255, dtype=types.UINT8)


@do_not_convert
def beside(parameter: DataNode, images: DataNode) -> DataNode:
    """A CPU parameter, a number [] or a vector [n], on the device of `images`, as arithmetic with them needs it."""
    return parameter.gpu() if images.device == "gpu" else parameter


@do_not_convert
def resize_and_window(
    images: DataNode,
    geometry: DataNode,
    image_size: int,
    kernel: Any = types.INTERP_CUBIC,
    border: Literal["reflect_101", "pad"] = "reflect_101",
) -> DataNode:
    """Resize uint8 [H, W, 3] to geometry[0:2] (height, width), then cut the S x S window at geometry[2:4] (top, left).

    geometry: int32 [4], px. kernel: INTERP_CUBIC, INTERP_LINEAR or a node of these values.

    border: a random window may reach 4 pixels beyond the image. "reflect_101" reflects the image there without
    repeating the edge, as Simple Random Crop does with torchvision's padding_mode "reflect". "pad" makes these pixels
    black.
    """
    return fn.slice(
        resize(images, geometry[0:2], kernel),
        start=geometry[2:4],
        shape=[image_size, image_size],
        axis_names="HW",
        out_of_bounds_policy=border,
    )


@do_not_convert
def flip(images: DataNode, horizontal: DataNode) -> DataNode:
    """uint8 [S, S, 3], mirrored left to right where `horizontal` (int32 []) is 1."""
    return fn.flip(images, horizontal=horizontal, vertical=0)


@do_not_convert
def luma(images: DataNode) -> DataNode:
    """uint8 [H, W, 3] -> uint8 [H, W, 1], the greyscale image of PIL's convert("L")."""
    return fn.color_space_conversion(images, image_type=types.RGB, output_type=types.GRAY)


def three_augment(images: DataNode, operation: DataNode, sigma: DataNode) -> DataNode:
    """Exactly one of greyscale, solarise (threshold 128) and Gaussian blur per image: DeiT III, arXiv:2204.07118.

    images: uint8 [S, S, 3]. operation: int32 [], numbered as in ViewParams. sigma: float32 [], of the blur, px. The
    blur here is a Gaussian; PIL's is three box filters that approximate a Gaussian.
    """
    if operation == GREYSCALE:
        grey = luma(images)
        images = fn.cat(grey, grey, grey, axis=2)
    elif operation == SOLARISE:
        images = dali_math.min(images, ~images)  # below 128 v is smaller than 255 - v, from 128 on it is larger
    else:
        images = fn.gaussian_blur(images, sigma=sigma)
    return images


def enhance(images: DataNode, kind: DataNode, factor: DataNode) -> DataNode:
    """One of PIL's ImageEnhance operations per image, `degenerate + (image - degenerate) * factor`: uint8 [H, W, 3].

    kind: a number [], BRIGHTNESS, CONTRAST or SATURATION. factor: float32 []; 1 changes nothing. The degenerate image
    is black (BRIGHTNESS), the rounded mean luma (CONTRAST) or the greyscale image (SATURATION).
    """
    if kind == SATURATION:
        weight = beside(factor, images)
        images = truncate(images * weight + luma(images) * (1.0 - weight))
    else:
        centre = dali_math.floor(fn.reductions.mean(luma(images)) + 0.5) * beside(kind == CONTRAST, images)
        images = _scale_about(images, centre, factor)
    return images


@do_not_convert
def _scale_about(images: DataNode, centre: DataNode, factor: DataNode) -> DataNode:
    if images.device == "cpu":
        scaled = fn.brightness_contrast(
            images, contrast=factor, contrast_center=centre, brightness_shift=TRUNCATE / 255, dtype=types.UINT8
        )
    else:  # the centre is on the GPU: as a named argument it would cost a copy and a wait
        scaled = truncate((images - centre) * factor.gpu() + centre)
    return scaled


def color_jitter(images: DataNode, order: DataNode, factors: DataNode) -> DataNode:
    """Brightness, contrast and saturation, each applied once, in an order given per image.

    order: int32 [3], the kind of each step. factors: float32 [3], the factor of each step, in the order of the steps.
    """
    for step in range(3):
        images = enhance(images, order[step], factors[step])
    return images


def augment_views(
    images: DataNode, augment: Augment, horizontal: DataNode, parameters: dict[str, DataNode], image_size: int
) -> DataNode:
    """All augmentation after the crop, on uint8 [S, S, 3]: flip, policy, jitter. A step that is off adds no operator.

    horizontal: int32 [], 1 mirrors. parameters: named as by `train_inputs`, each without the batch dimension.
    """
    images = flip(images, horizontal)
    if augment.policy == "three_augment":
        images = three_augment(images, parameters["operation"], parameters["sigma"])
    if augment.policy in POLICIES:
        from deit_fast.data.augment.policy_graph import apply_operations

        names, count = operation_names(augment), count_operations(augment)
        images = apply_operations(images, names, count, parameters, image_size)
    if augment.color_jitter:
        images = color_jitter(images, parameters["order"], parameters["factors"])
    return images
