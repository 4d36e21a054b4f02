"""facebookresearch/deit's names (models_v2.py, resmlp_models.py, and of patchconvnet_models.py the head per class).

DeiT, its distilled form and CaiT have timm's own, and PatchConvNet is built here with the reference's.
"""

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from deit_fast.convert.formats import Export
from deit_fast.convert.formats.lazy_tensor import BadFileError
from deit_fast.convert.names import Codebase, TimmWeights
from deit_fast.recipe.schema import Recipe
from deit_fast.runtime.files import atomic_path

# A block of parallel branches: branch 0 has the plain names, branch 1 another 1 at the end.
_BRANCH = {
    "norm1": "attns.0.norm",
    "attn": "attns.0.attn",
    "gamma_1": "attns.0.ls.gamma",
    "norm11": "attns.1.norm",
    "attn1": "attns.1.attn",
    "gamma_1_1": "attns.1.ls.gamma",
    "norm2": "ffns.0.norm",
    "mlp": "ffns.0.mlp",
    "gamma_2": "ffns.0.ls.gamma",
    "norm21": "ffns.1.norm",
    "mlp1": "ffns.1.mlp",
    "gamma_2_1": "ffns.1.ls.gamma",
}
_SCALE = {"gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}
_RESMLP = {"attn": "linear_tokens", "mlp": "mlp_channels", "gamma_1": "ls1", "gamma_2": "ls2"}


def facebook_family(names: set[str]) -> str | None:
    """Which of the reference's files has these names, where they are not timm's as well."""
    if "head.0.weight" in names and "blocks_token_only.0.gamma_1" in names:
        return "class_tokens"
    if "blocks.0.norm11.weight" in names:
        return "parallel"
    if "blocks.0.norm1.alpha" in names and "patch_embed.proj.weight" in names:
        return "resmlp"
    if "blocks.0.gamma_1" in names and not any(name.startswith("blocks_token_only.") for name in names):
        return "deit3"
    return None


def from_facebook(tensors: dict[str, Tensor], family: str) -> dict[str, Tensor]:
    """timm's names and shapes of a family of `facebook_family`; unknown names stay as they are."""
    if family == "class_tokens":
        return _join_heads(tensors)
    renamed = {}
    for name, tensor in tensors.items():
        if family == "resmlp":
            name = name.replace("patch_embed.", "stem.", 1) if name.startswith("patch_embed.") else name
            if name.endswith((".alpha", ".beta")):
                tensor = tensor.reshape(1, 1, -1)
        table = {"parallel": _BRANCH, "resmlp": _RESMLP, "deit3": _SCALE}[family]
        renamed[_rename(name, table)] = tensor
    return renamed


def to_facebook(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The reference's names of a model with timm's: the inverse of `from_facebook`."""
    if "patch_embed.proj.0.0.weight" in tensors:  # PatchConvNet
        return _split_head(tensors) if tensors["cls_token"].shape[1] > 1 else dict(tensors)
    renamed = {}
    resmlp = "stem.proj.weight" in tensors and any(name.endswith(".norm1.alpha") for name in tensors)
    tables = [_RESMLP] if resmlp else [_BRANCH, _SCALE]
    table = {new: old for names in tables for old, new in names.items()}
    for name, tensor in tensors.items():
        if resmlp:
            name = re.sub(r"^stem\.", "patch_embed.", name)
            if name.endswith((".alpha", ".beta")):
                tensor = tensor.flatten()
        renamed[_rename(name, table)] = tensor
    return renamed


def _join_heads(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A linear layer per class, each of one output, as the one layer head."""
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("head.")}
    count = sum(name.startswith("head.") for name in tensors) // 2
    for kind in ("weight", "bias"):
        rows = [tensors.get(f"head.{label}.{kind}") for label in range(count)]
        if any(row is None or row.shape[:1] != (1,) for row in rows):
            raise BadFileError(f"has not one row head.K.{kind} for each of {count} classes")
        kept[f"head.{kind}"] = torch.cat([row for row in rows if row is not None])
    return kept


def _split_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `_join_heads`."""
    split = {name: tensor for name, tensor in tensors.items() if not name.startswith("head.")}
    for label in range(len(tensors["head.weight"])):
        for kind in ("weight", "bias"):
            split[f"head.{label}.{kind}"] = tensors[f"head.{kind}"][label : label + 1].clone()
    return split


def _rename(name: str, table: dict[str, str]) -> str:
    """`blocks.3.OLD.rest` as `blocks.3.NEW.rest`."""
    match = re.match(r"(blocks\.\d+\.)(.+)$", name)
    if match is None:
        return name
    block, part = match.groups()
    for old, new in table.items():
        if part == old or part.startswith(f"{old}."):
            return f"{block}{new}{part.removeprefix(old)}"
    return name


def _to_timm(tensors: dict[str, Tensor]) -> TimmWeights:
    family = facebook_family(set(tensors))
    return TimmWeights(tensors if family is None else from_facebook(tensors, family))


def _write(model: nn.Module, recipe: Recipe, classes: list[str] | None, path: Path) -> list[str]:
    """Writes {"model": ...}, as the reference's own files are."""
    with atomic_path(path) as temporary:
        torch.save({"model": to_facebook(model.state_dict())}, temporary)
    if recipe.model.activation == "gelu_tanh":
        return ["the format cannot say that the model was trained with GELU's tanh approximation"]
    return []


CODEBASE = Codebase(
    "facebookresearch/deit",
    recognises=lambda tensors: facebook_family(set(tensors)) is not None,
    to_timm=_to_timm,
    weights_key="model",
    average_key="model_ema",
)
EXPORT = Export("facebook", ".pth", _write)
