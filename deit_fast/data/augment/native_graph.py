"""The native image path as one node of DALI's graph: all steps after decoding, in one call per batch.

The node takes the same parameters as the graph functions that it replaces: `resize`, `resize_and_window` and
`augment_views`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn, types
from nvidia.dali.data_node import DataNode

from deit_fast.data.augment.view_params import BICUBIC, BILINEAR
from deit_fast.data.native import VIEW, make_views

_FIELDS = {"geometry": "geometry", "first_view": "image", "kernel": "kernel", "flip": "flip", "operation": "operation",
           "sigma": "sigma", "order": "order", "factors": "factors"}  # fmt: skip
"""`train_inputs`' name of each parameter, and the name of its field in `native.VIEW`."""
_POLICY = "policy_chosen", "policy_arguments"
_LINEAR = int(types.INTERP_LINEAR)
_Arrays = Sequence[NDArray[Any]]


def native_views(
    images: DataNode,
    parameters: dict[str, DataNode],
    border: int,
    image_size: int,
    kernel: Any,
    functions: Sequence[int] = (),
) -> DataNode:
    """Decoded images uint8 [H, W, 3] -> views [S, S, 3]: cropped, resized, flipped and augmented as `parameters` say.

    parameters: named as `train_inputs` names them. A step whose parameter is absent is not done; without geometry a
    view shows the whole image. border: how the geometry is to be read. kernel: the resize's filter, INTERP_CUBIC or
    INTERP_LINEAR, for recipes that do not draw it per view. functions: for each function of policy_chosen, the
    number of the native one in native/operations.c.
    """
    names = [name for name in (*_FIELDS, *_POLICY) if name in parameters]
    nodes = [parameters[name] for name in names]
    make = _maker(names, border, image_size, int(kernel), np.array(functions, np.int32), Pipeline.current().num_threads)
    return fn.python_function(images, *nodes, function=make, batch_processing=True, output_layouts=["HWC"])


def _maker(
    names: Sequence[str], border: int, image_size: int, kernel: int, functions: NDArray[np.int32], threads: int
) -> Callable[..., list[NDArray[np.uint8]]]:
    out = np.empty((0, image_size, image_size, 3), np.uint8)  # reused: DALI copies it before the next call

    def make(images: _Arrays, *columns: _Arrays) -> list[NDArray[np.uint8]]:
        nonlocal out
        if len(out) < len(images):
            out = np.empty((len(images), image_size, image_size, 3), np.uint8)
        drawn = {name: np.stack(column) for name, column in zip(names, columns, strict=True)}
        views = np.zeros(len(images), VIEW)
        views["image"], views["operation"], views["order"] = np.arange(len(images)), -1, -1
        views["geometry"][:, 2:] = [image.shape[:2] for image in images]
        for name in drawn.keys() & _FIELDS.keys():
            views[_FIELDS[name]] = drawn[name]
        views["kernel"] = np.where(drawn.get("kernel", kernel) == _LINEAR, BILINEAR, BICUBIC)
        policy = native_policy(drawn[_POLICY[0]], drawn[_POLICY[1]], functions) if len(functions) else (None, None)
        make_views(images, views, border, image_size, threads, out, *policy)
        return list(out[: len(images)])

    return make


def native_policy(
    chosen: NDArray[np.bool_], arguments: NDArray[np.float32], functions: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """`make_views`' operations and arguments from policy_chosen, policy_arguments and the native functions' numbers."""
    return chosen @ functions, arguments.reshape(*arguments.shape[:2], -1)  # number 0 is none
