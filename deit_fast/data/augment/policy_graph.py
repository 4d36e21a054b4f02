"""A policy's operations in DALI's graph: one branch for each function that the operations share (operations/)."""

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
    """What `apply_operations` takes, of B views and n operations each.

    names: the policy's (`policies.operation_names`). op: indices of them, -1 skips; level: 0 to 10; sign: -1 or 1; each
    [B, n]. Returns policy_branch int32 [B, n], 0 for skipping, and policy_arguments float32 [B, n, A]: an operation's
    own, then zeros up to the most that one of them takes.
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
    """`count` operations in a row on uint8 [S, S, 3]. Parameters as `operation_arguments` returns them."""
    branches = _branches(find_operations(names))
    for step in range(count):
        branch, arguments = parameters["policy_branch"][step], parameters["policy_arguments"][step]
        images = _choose(images, branch, arguments, image_size, branches)
    return images


def native_functions(names: tuple[str, ...]) -> list[int]:
    """The native path's function of each policy_branch that `operation_arguments` gives: numbers of native.OPERATIONS.

    Each of the operations has one. Raises as `find_operations`.
    """
    natives = {operation.apply: operation.native or "" for operation in find_operations(names)}
    return [OPERATIONS.index(native) for native in ("skip", *natives.values())]


@cache
def find_operations(names: tuple[str, ...]) -> list[Operation]:
    """The operations of these names, in their order, from operations/.

    Raises RecipeError for a name of augment.rand_extra that is none, TypeError for two operations of one name and for a
    native function that is none.
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
    """The functions to choose from; the first leaves an image as it is."""
    return list(dict.fromkeys([_skip, *(operation.apply for operation in operations)]))


def _skip(images: DataNode, arguments: DataNode, image_size: int) -> DataNode:
    return images


def _choose(
    images: DataNode, branch: DataNode, arguments: DataNode, image_size: int, branches: Sequence[_Branch]
) -> DataNode:
    """The branch of the number `branch`.

    One condition after the other: a condition inside another one splits each batch and each constant that it uses once
    more, an operator each, per batch.
    """
    for number in range(1, len(branches)):
        if branch == number:
            images = branches[number](images, arguments, image_size)
    return images
