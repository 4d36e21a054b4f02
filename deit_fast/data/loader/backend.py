"""Chooses what makes the views of decoded images: the native path or DALI's graph, both with PIL's arithmetic."""

import torch

from deit_fast.data import native
from deit_fast.data.augment.policies import POLICIES, operation_names
from deit_fast.recipe.sections import Augment
from deit_fast.runtime.errors import RunError


def choose_backend(wanted: str, device: torch.device, augment: Augment | None = None) -> str:
    """The backend "native" or "dali", for run.image_backend: "auto" is native wherever it supports `augment`.

    On GPUs the backend is always DALI's graph. Raises RunError where native is required but unavailable.
    """
    if device.type == "cuda" or wanted == "dali":
        return "dali"
    lacking = _lacking(augment)
    if wanted == "native" and lacking:
        raise RunError(f"run.image_backend='native': {lacking}; 'auto' takes DALI's graph then")
    return "dali" if lacking else "native"


def _lacking(augment: Augment | None) -> str:
    """Why the native path cannot make the views, in words; "" if it can."""
    if native.library() is None:
        return "expected the package to be built with a C compiler"
    if augment is not None and augment.policy in POLICIES:
        from deit_fast.data.augment.policy_graph import find_operations

        without = [each.name for each in find_operations(operation_names(augment)) if each.native is None]
        if without:
            return f"expected operations that have a native function, got {', '.join(without)}"
    return ""
