"""The DALI pipelines of training and evaluation: encoded bytes and drawn parameters in, uint8 views [B, 3, S, S] out.

The device is one argument. DALI is imported only when a pipeline is built.
"""

import io
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from deit_fast.data.augment.policies import POLICIES, operation_names
from deit_fast.data.augment.view_params import ViewParams
from deit_fast.data.loader.backend import choose_backend
from deit_fast.data.loader.dali import (
    HW_DECODER_LOAD,
    Feed,
    Pipeline,
    decode_images,
    decode_window,
    import_dali,
    window,
)
from deit_fast.data.native import BLACK, REFLECTED, WINDOW_FIRST
from deit_fast.recipe.sections import Augment


def train_pipeline(
    augment: Augment,
    image_size: int,
    feed: Feed,
    batch: int,
    device: torch.device,
    threads: int,
    decode_once: bool = False,
    hw_decoder_load: float = HW_DECODER_LOAD,
    backend: str = "auto",
) -> Pipeline:
    """Augmented views, uint8 [B, 3, S, S]; `feed` returns the inputs of `train_inputs`, for exactly `batch` views.

    decode_once: an image with several views in the batch is decoded only for the first of them.
    hw_decoder_load: fraction of the images that a GPU's hardware decoders get.
    backend: what makes the views of decoded images, as in `choose_backend`.
    Raises RunError where DALI is missing, RecipeError for an unknown operation in augment.rand_extra.
    """
    import_dali()
    from nvidia.dali import types

    on_gpu, native = device.type == "cuda", choose_backend(backend, device, augment) == "native"
    kernel = types.INTERP_LINEAR if augment.interpolation == "bilinear" else types.INTERP_CUBIC
    make = _native_graph(augment, image_size, kernel) if native else _dali_graph(augment, image_size, kernel)

    def graph(encoded: Any, parameters: dict[str, Any]) -> Any:
        if decodes_windows(augment, decode_once):
            geometry = parameters.pop("geometry")
            images = decode_window(encoded, geometry, on_gpu, hw_decoder_load)
        else:
            images = decode_images(encoded, on_gpu, hw_decoder_load)
        return make(images, parameters)

    names = _train_names(augment, decode_once)
    chooses = not native and (augment.policy != "none" or augment.color_jitter > 0)
    return Pipeline(graph, names, feed, batch, device, threads, conditionals=chooses)


_Graph = Callable[[Any, dict[str, Any]], Any]
"""(decoded images, or the windows that views show; other parameters by name) -> uint8 [S, S, 3]."""


def _native_graph(augment: Augment, image_size: int, kernel: Any) -> _Graph:
    from deit_fast.data.augment.native_graph import native_views
    from deit_fast.data.augment.policy_graph import native_functions

    border = WINDOW_FIRST if crops_first(augment) else BLACK if augment.crop == "pad" else REFLECTED
    functions = native_functions(operation_names(augment)) if augment.policy in POLICIES else []
    return lambda images, parameters: native_views(images, parameters, border, image_size, kernel, functions)


def _dali_graph(augment: Augment, image_size: int, kernel: Any) -> _Graph:
    from nvidia.dali import fn

    from deit_fast.data.augment.resize import resize
    from deit_fast.data.augment.view_graph import augment_views, resize_and_window

    if augment.policy in POLICIES:
        from deit_fast.data.augment.policy_graph import find_operations

        find_operations(operation_names(augment))  # outside the graph, because DALI wraps errors inside a graph

    def graph(images: Any, parameters: dict[str, Any]) -> Any:
        geometry, drawn = parameters.get("geometry"), parameters.get("kernel", kernel)
        if "first_view" in parameters:  # until here, the places of an image's other views held a small dummy image
            images = fn.permute_batch(images, indices=parameters["first_view"])
        if crops_first(augment):
            windows = images if geometry is None else window(images, geometry)
            views = resize(windows, [image_size, image_size], drawn)
        else:
            border: Literal["pad", "reflect_101"] = "pad" if augment.crop == "pad" else "reflect_101"
            views = resize_and_window(images, geometry, image_size, drawn, border)
        return augment_views(views, augment, parameters["flip"], parameters, image_size)

    return graph


def eval_pipeline(
    image_size: int,
    feed: Feed,
    batch: int,
    device: torch.device,
    threads: int,
    interpolation: str = "bicubic",
    backend: str = "auto",
) -> Pipeline:
    """Resized and centre-cropped images, uint8 [B, 3, S, S]; `feed` returns encoded images and `eval_geometry` [B, 4].

    interpolation: data.eval_interpolation. backend: as in `choose_backend`.
    """
    types = import_dali().types
    kernel = types.INTERP_LINEAR if interpolation == "bilinear" else types.INTERP_CUBIC
    on_gpu, native = device.type == "cuda", choose_backend(backend, device) == "native"

    def graph(encoded: Any, parameters: dict[str, Any]) -> Any:
        images = decode_images(encoded, on_gpu)
        if native:
            from deit_fast.data.augment.native_graph import native_views

            return native_views(images, parameters, REFLECTED, image_size, kernel)
        from deit_fast.data.augment.view_graph import resize_and_window

        return resize_and_window(images, parameters["geometry"], image_size, kernel)

    return Pipeline(graph, ["geometry"], feed, batch, device, threads)


def train_inputs(
    augment: Augment,
    image_size: int,
    encoded: list[NDArray[np.uint8]],
    params: ViewParams,
    decode_once: bool = False,
) -> list[Any]:
    """One batch as input of `train_pipeline`: B encoded images, then the parameters [B, ...] that the graph uses.

    decode_once: views of one image are recognised by the identity of their array.
    """
    types = import_dali().types
    available: dict[str, NDArray[Any]] = {
        "geometry": params.geometry,
        "kernel": np.array([types.INTERP_CUBIC, types.INTERP_LINEAR], np.int32)[params.interpolation],
        "flip": params.flip,
        "operation": params.operation,
        "sigma": params.sigma,
        "order": params.order,
        "factors": np.take_along_axis(params.jitter, params.order, axis=1),
    }
    if augment.policy in POLICIES:
        from deit_fast.data.augment.policy_graph import operation_arguments

        drawn = params.policy_op, params.policy_level, params.policy_sign
        available |= operation_arguments(operation_names(augment), *drawn, image_size)
    if decode_once:
        first: dict[int, int] = {}
        places = [first.setdefault(id(data), place) for place, data in enumerate(encoded)]
        encoded = [data if places[place] == place else small_image() for place, data in enumerate(encoded)]
        available["first_view"] = np.array(places, np.int32)
    return [encoded, *(available[name] for name in _train_names(augment, decode_once))]


def decodes(
    encoded: list[NDArray[np.uint8]],
    device: torch.device,
    windows: NDArray[np.int32] | None = None,
    threads: int = 1,
) -> bool:
    """Whether DALI decodes all of these images, or windows [B, 4] (top, left, height, width) of them, as in training.

    This builds a pipeline, which takes some milliseconds.
    """
    dali = import_dali()

    def graph(data: Any, parameters: dict[str, Any]) -> Any:
        on_gpu = device.type == "cuda"
        images = decode_images(data, on_gpu) if windows is None else decode_window(data, parameters["window"], on_gpu)
        return dali.fn.resize(images, size=[1, 1])

    names, inputs = ([], [encoded]) if windows is None else (["window"], [encoded, windows])
    try:
        Pipeline(graph, names, lambda: inputs, len(encoded), device, threads, prefetch=1).run()
    except RuntimeError:
        return False
    return True


def crops_first(augment: Augment) -> bool:
    """Whether a view is a window of the stored image, which is then resized to S x S."""
    return augment.crop in ("rrc", "rrc_linear")


def decodes_windows(augment: Augment, decode_once: bool) -> bool:
    """Whether `train_pipeline` decodes only each view's window, given by the inputs' geometry."""
    return crops_first(augment) and not decode_once


@cache
def small_image() -> NDArray[np.uint8]:
    """A JPEG of 16 x 16 px, uint8 [bytes], which every decoder accepts and which costs next to nothing."""
    stored = io.BytesIO()
    Image.new("RGB", (16, 16)).save(stored, "JPEG")
    return np.frombuffer(stored.getvalue(), np.uint8)


def _train_names(augment: Augment, decode_once: bool) -> list[str]:
    names = ["geometry", "flip", *(["first_view"] if decode_once else [])]
    if augment.interpolation == "random":
        names.append("kernel")
    if augment.policy == "three_augment":
        names += ["operation", "sigma"]
    if augment.policy in POLICIES:
        names += ["policy_chosen", "policy_arguments"]
    if augment.color_jitter:
        names += ["order", "factors"]
    return names
