"""The learning rate for another batch size: optim.lr="auto", and the line that a run prints if its batch was changed.

A recipe's learning rate is meant for the recipe's own batch size. The value "auto" scales that rate to the new batch
size. It is resolved to a number as soon as words, or a file with a `base`, are applied to the recipe that has both; no
finished recipe contains "auto".

For SGD and AdamW the rate is proportional to the batch size (Goyal et al., arXiv:1706.02677; facebookresearch/deit
main.py). For LAMB it is proportional to the square root of the batch size (You et al., arXiv:1904.00962). timm uses the
square root for AdamW too.
"""

import math
from collections.abc import Mapping
from typing import Any

from deit_fast.recipe.sections import Optim, Run

AUTO = "auto"
_ROOT = {"lamb"}


def rate_for(optimizer: str, rate: float, batch: int, wanted: int) -> float:
    """The rate for a batch of `wanted` views, rounded to six digits; `rate` is the optimizer's for `batch` views."""
    ratio = wanted / batch
    return float(f"{rate * (math.sqrt(ratio) if optimizer in _ROOT else ratio):.6g}")


def settle_rate(content: dict[str, Any], base: Mapping[str, Any]) -> str:
    """Replaces optim.lr="auto" in a recipe's plain `content` by a number; returns a line on a mistake, else "".

    base: the plain recipe with the known rate and batch size. Mistakes in other values are left to the parser.
    """
    optim, run = content.get("optim"), content.get("run")
    if not isinstance(optim, dict) or not isinstance(run, dict) or optim.get("lr") != AUTO:
        return ""
    before, name = dict(base.get("optim", {})), optim.get("name", Optim.model_fields["name"].default)
    optim["lr"] = 1.0  # a valid number, so that the parser reports no second mistake
    if not isinstance(before.get("lr"), int | float):
        return "optim.lr='auto': expected a number, or words over a recipe that has one"
    if before.get("name") != name:
        return f"optim.lr='auto': expected a number, because the recipe's is for optim.name={before.get('name')!r}"
    batch, wanted = base.get("run", {}).get("global_batch"), run.get("global_batch")
    if isinstance(batch, int) and isinstance(wanted, int) and wanted > 0:
        optim["lr"] = rate_for(name, before["lr"], batch, wanted)
    return ""


def describe_batch(optim: Optim, run: Run, base_optim: Optim, base_run: Run) -> str:
    """A line where a recipe's batch size is not the one that its learning rate is meant for, else ""."""
    same_rate = (optim.name, optim.lr) == (base_optim.name, base_optim.lr)
    if run.global_batch == base_run.global_batch or not same_rate:
        return ""
    rate = rate_for(optim.name, optim.lr, base_run.global_batch, run.global_batch)
    how = "by the square root of the batch" if optim.name in _ROOT else "with the batch"
    return (
        f"run.global_batch={run.global_batch}: the recipe's is {base_run.global_batch}, and optim.lr={optim.lr:g} is "
        f"for that; optim.lr=auto makes it {rate:g}, {how}"
    )
