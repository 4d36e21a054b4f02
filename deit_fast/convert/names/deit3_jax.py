"""deit3-jax's parameters (affjljoo3581/deit3-jax, src/modeling.py): flax kernels [in, out], heads apart.

Its position embedding never has a class slot, so DeiT III goes in and out unchanged, and a DeiT's class slot is added
to the class token, which is where it ends up in the forward pass. Its GELU is flax's default, the tanh approximation.
"""

from typing import Any

import torch
from torch import Tensor

from deit_fast.convert.formats.lazy_tensor import BadFileError, Stored


def is_deit3_jax(tree: Any) -> bool:
    root = tree.get("model", tree) if isinstance(tree, dict) else None
    return isinstance(root, dict) and isinstance(root.get("embed"), dict) and "wte" in root["embed"]


def from_deit3_jax(tree: dict[str, Any]) -> tuple[dict[str, Tensor], int, tuple[int, int] | None]:
    """timm's names and shapes, the number of heads, and the grid of positions (None for fixed sine positions).

    Raises BadFileError for a parameter that is missing, and for one that the layout does not have.
    """
    flat = dict(_leaves(tree.get("model", tree)))

    def take(name: str) -> Tensor:
        if name not in flat:
            raise BadFileError(f"has no {name}, which deit3-jax writes")
        return flat.pop(name).tensor()

    timm = {
        "patch_embed.proj.weight": take("embed.wte.kernel").permute(3, 2, 0, 1),
        "patch_embed.proj.bias": take("embed.wte.bias"),
    }
    grid = None
    if "embed.cls_token" in flat:  # without: the mean of the patches is pooled
        timm["cls_token"] = take("embed.cls_token")
    if "embed.wpe" in flat:
        positions = take("embed.wpe")
        grid = (positions.shape[0], positions.shape[1])
        timm["pos_embed"] = positions.flatten(0, 1)[None]
    heads = depth = 0
    while f"layer_{depth}.attn.wq.kernel" in flat:
        layer, block = f"layer_{depth}", f"blocks.{depth}"
        kernels = [take(f"{layer}.attn.w{kind}.kernel") for kind in "qkv"]
        heads = kernels[0].shape[1]
        timm[f"{block}.attn.qkv.weight"] = torch.cat([kernel.flatten(1).T for kernel in kernels])
        timm[f"{block}.attn.qkv.bias"] = torch.cat([take(f"{layer}.attn.w{kind}.bias").flatten() for kind in "qkv"])
        timm[f"{block}.attn.proj.weight"] = take(f"{layer}.attn.wo.kernel").flatten(0, 1).T
        timm[f"{block}.attn.proj.bias"] = take(f"{layer}.attn.wo.bias")
        for number in "12":
            timm[f"{block}.mlp.fc{number}.weight"] = take(f"{layer}.ff.w{number}.kernel").T
            timm[f"{block}.mlp.fc{number}.bias"] = take(f"{layer}.ff.w{number}.bias")
            timm[f"{block}.norm{number}.weight"] = take(f"{layer}.norm{number}.scale")
            timm[f"{block}.norm{number}.bias"] = take(f"{layer}.norm{number}.bias")
            if f"{layer}.scale{number}" in flat:
                timm[f"{block}.ls{number}.gamma"] = take(f"{layer}.scale{number}")
        depth += 1
    timm["norm.weight"], timm["norm.bias"] = take("norm.scale"), take("norm.bias")
    if "head.kernel" in flat:
        timm["head.weight"], timm["head.bias"] = take("head.kernel").T, take("head.bias")
    if flat:
        raise BadFileError(f"has {', '.join(sorted(flat)[:3])}, which deit3-jax does not write")
    return {name: tensor.contiguous() for name, tensor in timm.items()}, heads, grid


def to_deit3_jax(tensors: dict[str, Tensor], heads: int, grid: tuple[int, int]) -> dict[str, Any]:
    """deit3-jax's tree of a model with timm's names. Raises BadFileError for what deit3-jax has no place for."""
    left = {name: tensor.float() for name, tensor in tensors.items()}
    if "dist_token" in left:
        raise BadFileError("has a dist_token, for which deit3-jax has no place")
    layer_names = {"norm1": "norm1", "norm2": "norm2", "mlp.fc1": "ff.w1", "mlp.fc2": "ff.w2"}
    flat: dict[str, Tensor] = {"embed.wte.kernel": left.pop("patch_embed.proj.weight").permute(2, 3, 1, 0)}
    flat["embed.wte.bias"] = left.pop("patch_embed.proj.bias")
    positions = left.pop("pos_embed")[0]
    if "cls_token" in left:
        flat["embed.cls_token"] = left.pop("cls_token")
        if len(positions) == grid[0] * grid[1] + 1:
            flat["embed.cls_token"] = flat["embed.cls_token"] + positions[0]
            positions = positions[1:]
    if len(positions) != grid[0] * grid[1]:
        raise BadFileError(f"has {len(positions)} positions: deit3-jax has a place for {grid[0]} x {grid[1]}")
    flat["embed.wpe"] = positions.unflatten(0, grid)
    for name in [name for name in left if name.startswith("blocks.")]:
        _, index, part = name.split(".", 2)
        layer, module, kind = f"layer_{index}", *part.rsplit(".", 1)
        value = left[name]
        if module == "attn.qkv":
            for letter, weight in zip("qkv", value.chunk(3), strict=True):
                target = f"{layer}.attn.w{letter}"
                if kind == "weight":
                    flat[f"{target}.kernel"] = weight.T.unflatten(1, (heads, -1))
                else:
                    flat[f"{target}.bias"] = weight.unflatten(0, (heads, -1))
        elif module == "attn.proj":
            flat[f"{layer}.attn.wo.{'kernel' if kind == 'weight' else 'bias'}"] = (
                value.T.unflatten(0, (heads, -1)) if kind == "weight" else value
            )
        elif module in ("ls1", "ls2"):
            flat[f"{layer}.scale{module[-1]}"] = value
        elif module in layer_names:
            weight_name = "scale" if module.startswith("norm") else "kernel"
            flat[f"{layer}.{layer_names[module]}.{weight_name if kind == 'weight' else 'bias'}"] = (
                value.T if value.ndim == 2 else value
            )
        else:
            continue
        del left[name]
    flat["norm.scale"], flat["norm.bias"] = left.pop("norm.weight"), left.pop("norm.bias")
    if "head.weight" in left:
        flat["head.kernel"], flat["head.bias"] = left.pop("head.weight").T, left.pop("head.bias")
    if left:
        raise BadFileError(f"has {', '.join(sorted(left)[:3])}, for which deit3-jax has no place")
    return {"model": _nested(flat)}


def _leaves(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Stored]]:
    found = []
    for key, value in tree.items():
        if isinstance(value, dict):
            found += _leaves(value, f"{prefix}{key}.")
        elif isinstance(value, Stored):
            found.append((f"{prefix}{key}", value))
        else:
            raise BadFileError(f"has {prefix}{key}={str(value)[:20]!a}: expected an array")
    return found


def _nested(flat: dict[str, Tensor]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *folders, leaf = name.split(".")
        branch = tree
        for folder in folders:
            branch = branch.setdefault(folder, {})
        branch[leaf] = value
    return tree
