"""deit3-jax's parameters (affjljoo3581/deit3-jax, src/modeling.py): flax kernels [in, out], heads apart.

Its position embedding has no class slot. A DeiT III is therefore converted unchanged; a DeiT's class slot is added to
the class token, which gives the same result in the forward pass. Its GELU is flax's default, the tanh approximation.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from deit_fast.convert.formats import Export
from deit_fast.convert.formats.flax import write_flax
from deit_fast.convert.formats.lazy_tensor import BadFileError
from deit_fast.convert.names import Codebase, TimmWeights
from deit_fast.recipe.schema import Recipe
from deit_fast.runtime.files import atomic_path
from deit_fast.zoo import find_architecture


def _recognises(tensors: dict[str, Tensor]) -> bool:
    return any(name.removeprefix("model.").startswith("embed.wte.") for name in tensors)


def _to_timm(tensors: dict[str, Tensor]) -> TimmWeights:
    """Raises BadFileError for a missing parameter, and for one that the layout does not have."""
    flat = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}

    def take(name: str) -> Tensor:
        if name not in flat:
            raise BadFileError(f"has no {name}, which deit3-jax writes")
        return flat.pop(name)

    timm = {
        "patch_embed.proj.weight": take("embed.wte.kernel").permute(3, 2, 0, 1),
        "patch_embed.proj.bias": take("embed.wte.bias"),
    }
    grid = None
    if "embed.cls_token" in flat:  # without a class token, the mean of the patches is pooled
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
    return TimmWeights(
        {name: tensor.contiguous() for name, tensor in timm.items()}, heads, grid, tanh=True, fixed_positions=True
    )


def _from_timm(tensors: dict[str, Tensor], heads: int, grid: tuple[int, int]) -> dict[str, Tensor]:
    """deit3-jax's parameters by their paths. Raises BadFileError for weights that deit3-jax cannot hold."""
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
    return {f"model.{name}": value for name, value in flat.items()}


def _write(model: nn.Module, recipe: Recipe, classes: list[str] | None, path: Path) -> list[str]:
    entry = find_architecture(recipe.model.name)
    grid = (recipe.model.image_size // entry.patch_size,) * 2
    content = write_flax(_from_timm(model.state_dict(), entry.num_heads, grid))
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    if recipe.model.activation == "gelu":
        return ["deit3-jax computes GELU by its tanh approximation, this model exactly"]
    return []


CODEBASE = Codebase("deit3-jax", _recognises, _to_timm)
EXPORT = Export("deit3-jax", ".msgpack", _write)
