"""A policy's operations in DALI's graph, with one condition for each function that operations share (operations/).

The operations are applied in stages. Auto contrast changes nothing when it follows itself. So it is in no stage of the
other functions, but alone in a stage between each two of them. There it is the operation of the step before, or the
last step's, after which nothing comes. This saves one auto contrast and its condition.
"""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from nvidia.dali.data_node import DataNode

from deit_fast.data.augment.operations import Operation
from deit_fast.data.augment.operations.histogram import auto_contrast
from deit_fast.data.augment.policies import RAND_OPERATIONS
from deit_fast.data.native import OPERATIONS
from deit_fast.runtime.discover import discover
from deit_fast.runtime.errors import RecipeError

_Function = Callable[[DataNode, DataNode, int], DataNode]

_ROW = 6  # columns in which a function gets its arguments: those of a map [2, 3], or of a matrix [3, 6]
_ONCE = auto_contrast


def operation_arguments(
    names: tuple[str, ...],
    op: NDArray[np.int32],
    level: NDArray[np.float32],
    sign: NDArray[np.float32],
    image_size: int,
) -> dict[str, NDArray[np.generic]]:
    """The inputs of `apply_operations` for B views and n operations each.

    names: the policy's operations (`policies.operation_names`). op: indices into names, -1 for none. level: 0 to 10.
    sign: -1 or 1. Each of these is [B, n]. Returns policy_chosen, bool [B, stages, F], which holds at most one True
    for the F functions of a stage, and policy_arguments, float32 [B, stages, R, 6], which holds each operation's own
    arguments row by row, and then zeros.
    """
    operations = find_operations(names)
    functions = _functions(operations)
    count = op.shape[1]
    made = []
    for number, operation in enumerate(operations):
        view, step = np.nonzero(op == number)
        given = level[view, step].astype(np.float64), sign[view, step].astype(np.float64)
        stage = np.minimum(2 * step + 1, max(2 * count - 3, 1)) if operation.apply is _ONCE else 2 * step
        made.append((view, stage, functions.index(operation.apply), operation.arguments(*given, image_size)))
    chosen = np.zeros((len(op), _stages(count), len(functions)), bool)
    rows = -(-max(values.shape[1] for *_, values in made) // _ROW)
    arguments = np.zeros((len(op), _stages(count), rows * _ROW), np.float32)
    for view, stage, function, values in made:
        chosen[view, stage, function] = True
        arguments[view, stage, : values.shape[1]] = values
    return {"policy_chosen": chosen, "policy_arguments": arguments.reshape(*chosen.shape[:2], rows, _ROW)}


def apply_operations(
    images: DataNode, names: tuple[str, ...], count: int, parameters: dict[str, DataNode], image_size: int
) -> DataNode:
    """Applies `count` operations in a row to uint8 [S, S, 3]. `parameters` are those of `operation_arguments`.

    The conditions follow one another and are not nested: DALI splits every batch and every constant once more for each
    level of nesting, with one operator for each split.
    """
    functions = _functions(find_operations(names))
    for stage in range(_stages(count)):
        arguments = parameters["policy_arguments"][stage]
        for number in [number for number, each in enumerate(functions) if (each is _ONCE) == (stage % 2 == 1)]:
            if parameters["policy_chosen"][stage, number]:
                images = functions[number](images, arguments, image_size)
    return images


def _stages(count: int) -> int:
    """The number of stages of `count` operations in a row, of which every second one is auto contrast's."""
    return max(2 * count - 1, 2)


def native_functions(names: tuple[str, ...]) -> list[int]:
    """For each function of `operation_arguments`' policy_chosen, the index of its native one in native.OPERATIONS.

    Every operation in `names` must have a native function. Raises what `find_operations` raises.
    """
    natives = {operation.apply: operation.native or "" for operation in find_operations(names)}
    return [OPERATIONS.index(native) for native in natives.values()]


@cache
def find_operations(names: tuple[str, ...]) -> list[Operation]:
    """The operations with these names, in the order of the names, from operations/.

    Raises RecipeError for an unknown name in augment.rand_extra, TypeError where two operations share a name or where
    one names an unknown native function.
    """
    found: dict[str, Operation] = {}
    for module, operations in discover("deit_fast.data.augment.operations", "OPERATIONS", tuple).items():
        for operation in operations:
            if operation.name in found:
                raise TypeError(f"operations/{module}.py: expected a new name, {operation.name!r} is another module's")
            if operation.native not in (None, *OPERATIONS):
                others = ", ".join(OPERATIONS)
                raise TypeError(f"operations/{module}.py: expected native of {others}, got {operation.native!r}")
            found[operation.name] = operation
    for name in names:
        if name not in found or (name in RAND_OPERATIONS and names.count(name) > 1):
            others = ", ".join(sorted(found.keys() - set(RAND_OPERATIONS)))
            raise RecipeError(f"augment.rand_extra: expected operations beyond RandAugment's ({others}), got {name!r}")
    return [found[name] for name in names]


def _functions(operations: Sequence[Operation]) -> list[_Function]:
    """The distinct functions of these operations."""
    return list(dict.fromkeys(operation.apply for operation in operations))
