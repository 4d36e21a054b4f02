"""A policy's operations in DALI's graph, with one branch for each function that operations share (operations/)."""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from nvidia.dali.data_node import DataNode

from deit_fast.data.augment.operations import Operation
from deit_fast.data.augment.policies import RAND_OPERATIONS
from deit_fast.data.native import OPERATIONS
from deit_fast.runtime.discover import discover
from deit_fast.runtime.errors import RecipeError

_Branch = Callable[[DataNode, DataNode, int], DataNode]


def operation_arguments(
    names: tuple[str, ...],
    op: NDArray[np.int32],
    level: NDArray[np.float32],
    sign: NDArray[np.float32],
    image_size: int,
) -> dict[str, NDArray[np.generic]]:
    """The inputs of `apply_operations` for B views and n operations each.

    names: the policy's operations (`policies.operation_names`). op: indices into names, -1 for none. level: 0 to 10.
    sign: -1 or 1. Each of these is [B, n]. Returns policy_branch, int32 [B, n], where 0 means no operation, and
    policy_arguments, float32 [B, n, A], which holds each operation's own arguments and then zeros up to A, the largest
    number of arguments of any of them.
    """
    operations = find_operations(names)
    branches = _branches(operations)
    branch = np.zeros(op.shape, np.int32)
    chosen = [op == number for number in range(len(operations))]
    values = []
    for operation, where in zip(operations, chosen, strict=True):
        branch[where] = branches.index(operation.apply)
        values.append(operation.arguments(level[where].astype(np.float64), sign[where].astype(np.float64), image_size))
    arguments = np.zeros((*op.shape, max(each.shape[1] for each in values)), np.float32)
    for where, each in zip(chosen, values, strict=True):
        arguments[where, : each.shape[1]] = each
    return {"policy_branch": branch, "policy_arguments": arguments}


def apply_operations(
    images: DataNode, names: tuple[str, ...], count: int, parameters: dict[str, DataNode], image_size: int
) -> DataNode:
    """Applies `count` operations in a row to uint8 [S, S, 3]. `parameters` are those of `operation_arguments`."""
    branches = _branches(find_operations(names))
    for step in range(count):
        branch, arguments = parameters["policy_branch"][step], parameters["policy_arguments"][step]
        images = _choose(images, branch, arguments, image_size, branches)
    return images


def native_functions(names: tuple[str, ...]) -> list[int]:
    """For each policy_branch of `operation_arguments`, the index of its native function in native.OPERATIONS.

    Every operation in `names` must have a native function. Raises what `find_operations` raises.
    """
    natives = {operation.apply: operation.native or "" for operation in find_operations(names)}
    return [OPERATIONS.index(native) for native in ("skip", *natives.values())]


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


def _branches(operations: Sequence[Operation]) -> list[_Branch]:
    """The distinct functions to choose from. The first leaves an image as it is."""
    return list(dict.fromkeys([_skip, *(operation.apply for operation in operations)]))


def _skip(images: DataNode, arguments: DataNode, image_size: int) -> DataNode:
    return images


def _choose(
    images: DataNode, branch: DataNode, arguments: DataNode, image_size: int, branches: Sequence[_Branch]
) -> DataNode:
    """Runs branch number `branch` on the images.

    The conditions follow one another and are not nested: DALI splits every batch and every constant once more for each
    level of nesting, with one operator for each split.
    """
    for number in range(1, len(branches)):
        if branch == number:
            images = branches[number](images, arguments, image_size)
    return images
