"""The learning rate of a batch of another size: optim.lr="auto", and what a run says where its batch was changed.

A recipe's own rate is for its own batch. "auto" is a word for the distance from there, and no recipe holds it: the
number takes its place where words, or a file with a `base`, are put over the recipe that has both.

For SGD and AdamW the rate grows with the batch (Goyal et al., arXiv:1706.02677; facebookresearch/deit main.py), for
LAMB with its square root (You et al., arXiv:1904.00962). timm has the square root for AdamW too.
"""

import math
from collections.abc import Mapping
from typing import Any

from deit_fast.recipe.sections import Optim, Run

AUTO = "auto"
_ROOT = {"lamb"}


def rate_for(optimizer: str, rate: float, batch: int, wanted: int) -> float:
    """The rate for a batch of `wanted` views, of an optimizer whose rate is `rate` for `batch`; six digits of it."""
    ratio = wanted / batch
    return float(f"{rate * (math.sqrt(ratio) if optimizer in _ROOT else ratio):.6g}")


def settle_rate(content: dict[str, Any], base: Mapping[str, Any]) -> str:
    """Puts the number in the place of optim.lr="auto" in a recipe's plain `content`; a line on what is wrong, or none.

    base: the plain recipe whose rate and batch are known. What is wrong with other values is left to the parser.
    """
    optim, run = content.get("optim"), content.get("run")
    if not isinstance(optim, dict) or not isinstance(run, dict) or optim.get("lr") != AUTO:
        return ""
    before, name = dict(base.get("optim", {})), optim.get("name", Optim.model_fields["name"].default)
    optim["lr"] = 1.0  # of which the parser has nothing to say besides
    if not isinstance(before.get("lr"), int | float):
        return "optim.lr='auto': expected a number, or words over a recipe that has one"
    if before.get("name") != name:
        return f"optim.lr='auto': expected a number, because the recipe's is for optim.name={before.get('name')!r}"
    batch, wanted = base.get("run", {}).get("global_batch"), run.get("global_batch")
    if isinstance(batch, int) and isinstance(wanted, int) and wanted > 0:
        optim["lr"] = rate_for(name, before["lr"], batch, wanted)
    return ""


def describe_batch(optim: Optim, run: Run, base_optim: Optim, base_run: Run) -> str:
    """A line where a recipe's batch is not the one that its learning rate is for, else nothing."""
    same_rate = (optim.name, optim.lr) == (base_optim.name, base_optim.lr)
    if run.global_batch == base_run.global_batch or not same_rate:
        return ""
    rate = rate_for(optim.name, optim.lr, base_run.global_batch, run.global_batch)
    how = "by the square root of the batch" if optim.name in _ROOT else "with the batch"
    return (
        f"run.global_batch={run.global_batch}: the recipe's is {base_run.global_batch}, and optim.lr={optim.lr:g} is "
        f"for that; optim.lr=auto makes it {rate:g}, {how}"
    )
