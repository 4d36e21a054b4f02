"""Rules between the sections of a recipe. Each rule checks some sections together and has its own message.

A rule's parameters are the sections that it checks. It returns the line to print, or None. Rules within one section are
in the section's `problems`.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping

from deit_fast.recipe.sections import Data, Distill, LambOptim, Loss, Mix, Model, Optim, Run, Schedule, Section
from deit_fast.zoo import find_architecture, find_family

Rule = Callable[..., str | None]

RULES: dict[Rule, tuple[str, ...]] = {}
"""Each rule, with the names of the sections that it checks."""


def rule(check: Rule) -> Rule:
    """Decorator: adds a rule to RULES."""
    RULES[check] = tuple(inspect.signature(check).parameters)
    return check


def broken_rules(sections: Mapping[str, Section]) -> Iterator[str]:
    """The lines of all rules that these sections break. A rule that needs a missing section is skipped."""
    for check, names in RULES.items():
        if sections.keys() >= set(names) and (line := check(*(sections[name] for name in names))):
            yield line


@rule
def distillation_takes_a_token(model: Model, distill: Distill) -> str | None:
    if distill.kind == "none" or find_architecture(model.name).distilled:
        return None
    return f"distill.kind={distill.kind!r}: expected a model with a distillation token, got model.name={model.name!r}"


@rule
def distillation_trains_its_head(optim: Optim, distill: Distill) -> str | None:
    if optim.trainable == "all" or distill.kind == "none":
        return None
    return (
        f"optim.trainable={optim.trainable!r}: expected 'all' with distill.kind={distill.kind!r}, "
        "whose distillation head would stay as it is"
    )


@rule
def cosub_drops_paths(loss: Loss, model: Model) -> str | None:
    if not loss.cosub or model.drop_path:
        return None
    return "loss.cosub=true: expected model.drop_path above 0, or its two passes are the same"


@rule
def cosub_has_no_teacher(loss: Loss, distill: Distill) -> str | None:
    if not loss.cosub or distill.kind == "none":
        return None
    return f"loss.cosub=true: expected distill.kind='none', got {distill.kind!r}"


@rule
def cutmix_boxes_differ(mix: Mix, model: Model) -> str | None:
    if not mix.cutmix_minmax:
        return None
    low, high = (int(model.image_size * share) for share in mix.cutmix_minmax)
    if low < high:
        return None
    return (
        f"mix.cutmix_minmax={list(mix.cutmix_minmax)}: expected a range of more than a pixel at "
        f"model.image_size={model.image_size}"
    )


@rule
def two_outputs_take_train_mode(model: Model, loss: Loss, distill: Distill) -> str | None:
    if model.train_mode or not (loss.cosub or distill.kind != "none"):
        return None
    cause = "loss.cosub=true" if loss.cosub else f"distill.kind={distill.kind!r}"
    return f"model.train_mode=false: expected true with {cause}"


def _lacks_attention(model: Model) -> bool:
    return not find_family(model.name).has_attention


@rule
def trained_attention_exists(model: Model, optim: Optim) -> str | None:
    if optim.trainable != "attention" or not _lacks_attention(model):
        return None
    return (
        f"optim.trainable='attention': expected 'all' with model.name={model.name!r}, whose blocks have no "
        "self-attention"
    )


@rule
def split_attention_exists(model: Model, optim: Optim) -> str | None:
    if not (isinstance(optim, LambOptim) and optim.split_qkv and _lacks_attention(model)):
        return None
    return f"optim.split_qkv=true: expected false with model.name={model.name!r}, whose blocks have no self-attention"


@rule
def decayed_layers_have_an_order(model: Model, optim: Optim) -> str | None:
    if optim.layer_decay is None or find_family(model.name).layers_in_order:
        return None
    return (
        f"optim.layer_decay={optim.layer_decay:g}: expected null with model.name={model.name!r}, "
        "which does not tell its layers' order"
    )


@rule
def sharded_models_keep_no_statistics(run: Run, model: Model) -> str | None:
    if run.parallel != "fsdp" or model.stem != "hmlp":
        return None
    return (
        "run.parallel='fsdp': expected 'ddp' with model.stem='hmlp', whose running statistics only DDP keeps "
        "the same on every process"
    )


@rule
def the_rate_falls(schedule: Schedule, optim: Optim) -> str | None:
    if schedule.min_lr <= optim.lr:
        return None
    return f"schedule.min_lr={schedule.min_lr:g}: expected at most optim.lr={optim.lr:g}"


@rule
def the_warmup_rises(schedule: Schedule, optim: Optim) -> str | None:
    if schedule.warmup_lr <= optim.lr:
        return None
    return f"schedule.warmup_lr={schedule.warmup_lr:g}: expected at most optim.lr={optim.lr:g}"


@rule
def copies_are_bf16(run: Run) -> str | None:
    if not run.compute_copy or run.precision != "fp32":
        return None
    return "run.compute_copy=true: expected run.precision='bf16' or 'auto', got 'fp32'"


@rule
def copies_have_one_pass(run: Run) -> str | None:
    if not run.compute_copy or run.passes == 1:  # a sum over passes in bf16 would lose bits
        return None
    return f"run.compute_copy=true: expected run.accumulation=1, got {run.accumulation}"


@rule
def copies_are_whole(run: Run) -> str | None:
    if not run.compute_copy or run.parallel == "ddp":
        return None
    return f"run.compute_copy=true: expected run.parallel='ddp', got {run.parallel!r}"


@rule
def copies_are_written_by_lamb(run: Run, optim: Optim) -> str | None:
    if not run.compute_copy or optim.name == "lamb":
        return None
    return f"run.compute_copy=true: expected optim.name='lamb', got {optim.name!r}"


@rule
def passes_divide_the_batch(run: Run) -> str | None:
    if run.global_batch % run.passes == 0:
        return None
    return f"run.accumulation={run.accumulation}: expected a divisor of run.global_batch={run.global_batch}"


@rule
def lanes_divide_the_groups(data: Data, run: Run, mix: Mix) -> str | None:
    groups, rest = divmod(run.global_batch, mix.group)
    if data.lanes == 1 or not (rest or groups % data.lanes):
        return None
    found = f"{run.global_batch / mix.group:g}"
    return (
        f"data.lanes={data.lanes}: expected a divisor of the mixing groups of a batch, run.global_batch="
        f"{run.global_batch} / mix.group={mix.group}, which are {found}"
    )


@rule
def mixed_passes_are_even(run: Run, mix: Mix) -> str | None:
    size, rest = divmod(run.global_batch, run.passes)
    if not mix.active or rest or size % 2 == 0:
        return None
    return (
        f"run.global_batch={run.global_batch}: expected an even batch for each of run.accumulation="
        f"{run.passes} passes, which mix.mixup and mix.cutmix pair up"
    )
