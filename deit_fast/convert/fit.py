"""Fits weights to a model with another resolution, token layout or number of classes, with a row for each change."""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deit_fast.convert.detect import Weights
from deit_fast.convert.imagenet21k import cut_head, maps_to_1k, pairs_to_1k
from deit_fast.convert.recognise import describe_weights, differences
from deit_fast.models.build import ImageModel, build_model, families
from deit_fast.recipe.schema import Recipe
from deit_fast.recipe.sections import Model
from deit_fast.runtime.errors import RunError
from deit_fast.runtime.table import plain_table
from deit_fast.zoo import find_architecture

# Weights that `load_fitted` can fit, by the first part of their names.
_FITTED = ("pos_embed", "dist_token", "head", "head_dist")

# Published finetuning changes the resolution by a factor of up to 2.3: 224 -> 384 (DeiT, DeiT III, CaiT) is 1.7, 128 ->
# 224 and 126 -> 224 (DeiT III's largest models) are 1.8, and 224 -> 512, which is usual for ViTs, is 2.3. Further away,
# resampled position embeddings are smooth surfaces of few points and tell neighbouring patches hardly apart.
_FAR = 2.5


class Change(NamedTuple):
    """A difference between a checkpoint and the model into which it was loaded."""

    weight: str
    """Name of the weight, or of the head."""
    done: str
    """The kind of change: resampled, mapped, folded, padded, dropped, computed or initialised."""
    found: str
    """The checkpoint's state, in words."""
    now: str
    """The model's state, in words."""

    def __str__(self) -> str:
        return f"{self.weight}: {self.done}, {self.found} -> {self.now}"


def format_changes(changes: list[Change]) -> list[str]:
    """The changes as lines of a table for the user; empty without changes."""
    return plain_table(changes)


def resample_positions(positions: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Position embeddings [1, H x W, D] on another grid: bicubic in fp32, as in facebookresearch/deit main.py.

    timm's resampling is antialiased. In torch that is another bicubic kernel (a = -0.5 instead of -0.75), even where
    the grid grows: from 8 x 8 to 12 x 12, a random embedding (std 0.02) differs by up to 0.007.
    """
    image = positions.float().reshape(1, *old, -1).permute(0, 3, 1, 2)
    resampled = F.interpolate(image, new, mode="bicubic", align_corners=False)
    return resampled.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)


def fit_distillation(tensors: dict[str, Tensor], own: dict[str, Tensor]) -> list[Change]:
    """Drops the distillation token and head where the model has none; initialises them where the weights have none.

    tensors, own: the weights, changed in place, and the model's state dict. The token is [1, 1, D]; its slot in
    pos_embed [1, slots + N, D] is dropped or added with it. Returns a row for each change.
    """
    names = ("dist_token", "head_dist.weight", "head_dist.bias")
    changes = []
    if "dist_token" in tensors and "dist_token" not in own:
        positions, slots = tensors.get("pos_embed"), 2
        for name in names:
            if tensors.pop(name, None) is not None:
                changes.append(Change(name, "dropped", "distilled", "no distillation token"))
        if positions is not None and _has_slots(positions, slots):
            tensors["pos_embed"] = torch.cat([positions[:, :1], positions[:, 2:]], dim=1)
            changes.append(Change("pos_embed", "dropped", "a distillation slot", "none"))
    elif "dist_token" in own and "dist_token" not in tensors:
        for name in names:
            tensors[name] = own[name]
            changes.append(Change(name, "initialised", "not distilled", str(list(own[name].shape))))
        positions = tensors.get("pos_embed")
        if positions is not None and _has_slots(positions, 1):
            tensors["pos_embed"] = torch.cat([positions[:, :1], own["pos_embed"][:, 1:2].to(positions), positions[:, 1:]], 1)  # fmt: skip  # noqa: E501
            changes.append(Change("pos_embed", "initialised", "no distillation slot", "one"))
    return changes


def fit_positions(
    tensors: dict[str, Tensor], own: dict[str, Tensor], grid: tuple[int, int], old_grid: tuple[int, int] | None
) -> list[Change]:
    """Resamples the patches' positions to `grid`, and moves the class slot to where the model has it.

    tensors, own: the weights, changed in place, and the model's state dict; pos_embed is [1, slots + H x W, D]. grid,
    old_grid: (H, W) in patches, of the model and, where it is known, of the weights. Returns a row for each change.

    A class slot is a constant added to the class token, so folding it into the token, or a slot of zeros, changes
    nothing in the model's output. Raises RunError where the positions are no square and `old_grid` is None.
    """
    positions, expected = tensors.get("pos_embed"), own.get("pos_embed")
    if positions is None or expected is None or positions.ndim != 3 or positions.shape[2] != expected.shape[2]:
        return []
    wanted = expected.shape[1] - grid[0] * grid[1]
    slots, old_grid = _split(positions.shape[1], 1 if "cls_token" in tensors else 0, "dist_token" in tensors,
                             old_grid or (grid if positions.shape[1] - grid[0] * grid[1] in (0, 1, 2) else None))  # fmt: skip  # noqa: E501
    changes = []
    prefix, patches = positions[:, :slots], positions[:, slots:]
    if old_grid != grid:
        patches = resample_positions(patches, old_grid, grid)
        changes.append(Change("pos_embed", "resampled", "{} x {}".format(*old_grid), "{} x {}".format(*grid)))
    if slots == 1 and wanted == 0:
        token = tensors["cls_token"]
        tensors["cls_token"] = (token.float() + prefix.float()).to(token.dtype)
        prefix = prefix[:, :0]
        changes.append(Change("cls_token", "folded", "a class slot in pos_embed", "added to the token"))
    elif slots == 0 and wanted > 0:
        prefix = torch.zeros_like(patches[:, :wanted])
        changes.append(Change("pos_embed", "padded", "no slots of tokens", f"{wanted} of zeros"))
    tensors["pos_embed"] = torch.cat([prefix, patches], dim=1)
    return changes


def fix_positions(tensors: dict[str, Tensor], own: dict[str, Tensor]) -> list[Change]:
    """Replaces any positions of the weights by the model's own fixed sines and cosines [1, N, D].

    tensors, own: the weights, changed in place, and the model's state dict. Returns a row if the two differed.
    """
    found, tensors["pos_embed"] = tensors.get("pos_embed"), own["pos_embed"]
    if (
        found is not None
        and found.shape == own["pos_embed"].shape
        and torch.equal(found.to(own["pos_embed"]), own["pos_embed"])
    ):
        return []
    return [Change("pos_embed", "computed", "none" if found is None else str(list(found.shape)), "sines and cosines")]


def _has_slots(positions: Tensor, slots: int) -> bool:
    return math.isqrt(positions.shape[1] - slots) ** 2 == positions.shape[1] - slots


def _split(positions: int, token: int, distilled: bool, grid: tuple[int, int] | None) -> tuple[int, tuple[int, int]]:
    """The number of positions for tokens, and the grid of the other positions."""
    for slots in (token + 1, 0) if distilled else (token, 0):
        patches = positions - slots
        side = math.isqrt(max(patches, 0))
        if grid is not None and patches == grid[0] * grid[1]:
            return slots, grid
        if patches > 0 and side * side == patches:
            return slots, (side, side)
    raise RunError(f"pos_embed has {positions} positions: expected those of a square of patches, or their grid")


def fit_head(name: str, tensors: dict[str, Tensor], own: dict[str, Tensor]) -> list[Change]:
    """Fits the head `name`, weight [K, D] and bias [K], to the model's classes; returns a row if it changed.

    A head of ImageNet-21k is cut down if the model's is ImageNet-1k's. Any other head is replaced by the model's
    initial one. tensors, own: the weights, changed in place, and the model's state dict.
    """
    weight, bias = f"{name}.weight", f"{name}.bias"
    if weight not in own or bias not in own:
        return []
    found, wanted = tensors.get(weight), own[weight].shape[0]
    if found is not None and bias in tensors and found.shape[0] != wanted and maps_to_1k(found.shape[0], wanted):
        tensors[weight], tensors[bias] = cut_head(found, tensors[bias])
        count = len(pairs_to_1k(found.shape[0]))
        return [Change(name, "mapped", f"{found.shape[0]} classes", f"{count} of {wanted} by name")]
    if found is None or found.shape[0] != wanted:
        classes = "none" if found is None else f"{found.shape[0]} classes"
        tensors[weight], tensors[bias] = own[weight], own[bias]
        return [Change(name, "initialised", classes, f"{wanted} classes")]
    return []


def load_fitted(model: nn.Module, tensors: dict[str, Tensor], grid: tuple[int, int] | None = None) -> list[Change]:
    """Loads `tensors`, with timm's names, into a model with another resolution, token layout or number of classes.

    Returns a row for each difference: positions resampled (from a square, or from `grid`), a class slot moved, a
    distillation head dropped or initialised, a head of ImageNet-21k cut down to 1k, or a head of other classes
    initialised.

    pos_embed is [1, slots + N, D], a head [K, D]. Every other weight has to be present with the model's shape. grid:
    (H, W) of the tensors, in patches. Raises RunError for weights of another architecture.
    """
    tensors, own = dict(tensors), model.state_dict()
    changes = fit_distillation(tensors, own)
    if "pos_embed" in dict(model.named_buffers()):
        changes += fix_positions(tensors, own)
    elif "pos_embed" in own:
        patches: Any = model.patch_embed
        changes += fit_positions(tensors, own, patches.grid_size, grid)
    for head in ("head", "head_dist"):
        changes += fit_head(head, tensors, own)
    _check_shapes(tensors, own)
    model.load_state_dict(tensors)
    return changes


def build_initialised(section: Model, weights: Weights, seed: int | None = None) -> tuple[ImageModel, list[Change]]:
    """The model of `section` with `weights`, on the CPU, and a row for each change that `load_fitted` made.

    seed: for weights that are missing, as in `build_model`. Shapes are compared before the model is built, so that a
    small file cannot cause a large allocation. Raises RunError.
    """
    own = weights.recipe.model
    side = own.image_size // find_architecture(own.name).patch_size
    try:
        _check_shapes(*({name: each[name] for name in each if name.split(".")[0] not in _FITTED}
                        for each in (weights.tensors, describe_weights(section))))  # fmt: skip
        model = build_model(section, seed)
        return model, load_fitted(model, weights.tensors, (side, side))
    except RunError as error:
        theirs = f"; they are of {own.name} at {own.image_size} px, the model is {section.name}"
        hint = theirs if section.name != own.name else ""
        raise RunError(f"{weights.file or 'the weights'}: {error}{hint}") from None


def far_resolution(section: Model, weights: Weights) -> list[str]:
    """A line if the position embeddings are of a resolution that is far from that of the model `section`; else none."""
    patch, old, new = find_architecture(section.name).patch_size, weights.recipe.model.image_size, section.image_size
    times = max(old, new) / min(old, new)
    if times <= _FAR or "pos_embed" not in weights.tensors:
        return []
    grids = ["{0} px ({1} x {1} patches)".format(side, side // patch) for side in (old, new)]
    return [
        f"the weights are of {grids[0]} and the model is of {grids[1]}: a factor of {times:.1f}, where published "
        f"finetuning stays below {_FAR}; much is learned anew: take weights of a nearer resolution (deit-fast zoo), a "
        f"model.image_size nearer to {old}, or finetune at resolutions in between first"
    ]


def need_head(weights: Weights, recipe: Recipe) -> None:
    """Raises RunError where the weights have no head, and `recipe` (theirs, with words) no number of classes."""
    if weights.recipe.model.num_classes is None and recipe.model.num_classes is None:
        raise RunError(
            f"{weights.file}: the file has no head: expected one with a head; --init trains one, and "
            "model.num_classes=K makes a random one of K classes"
        )


def _check_shapes(tensors: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    """Raises RunError where `tensors` do not fit a model with the state dict `own`."""
    wrong = differences(tensors, own)
    fixed = [family.one_resolution for family in families().values() if family.one_resolution]
    if wrong and any(all(part in each for each in wrong) for part in fixed):
        raise RunError(f"weights of another resolution, to which they cannot be resampled ({wrong[0]})")
    if wrong:
        raise RunError(f"weights of another architecture: {'; '.join(wrong[:3])} ({len(wrong)} in all)")
