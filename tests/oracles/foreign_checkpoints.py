"""Checkpoints in the form of other codebases with random weights, and the outputs of their models: slow and obvious.

The layouts follow the descriptions of each format, not the converter. `reference_weights` uses the names of
facebookresearch/deit; the other writers store the same numbers in their own layout.
"""

import argparse
import pickle
from pathlib import Path

import msgpack
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def reference_weights(
    dim: int,
    depth: int,
    patch: int,
    grid: int,
    classes: int,
    slots: int = 0,
    scale: bool = True,
    distilled: bool = False,
    parallel: bool = False,
    seed: int = 0,
) -> dict[str, Tensor]:
    """A vision transformer of models.py (slots=1 or 2) or models_v2.py (slots=0, LayerScale)."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, spread: float = 0.05) -> Tensor:
        return torch.randn(*shape, generator=generator) * spread

    weights = {
        "cls_token": draw(1, 1, dim),
        "pos_embed": draw(1, grid * grid + slots, dim, spread=0.5),
        "patch_embed.proj.weight": draw(dim, 3, patch, patch),
        "patch_embed.proj.bias": draw(dim),
    }
    if distilled:
        weights["dist_token"] = draw(1, 1, dim)
    for index in range(depth):
        for second in ("", "1") if parallel else ("",):
            block = f"blocks.{index}."
            for norm in ("norm1", "norm2"):
                weights[f"{block}{norm}{second}.weight"] = 1 + draw(dim)
                weights[f"{block}{norm}{second}.bias"] = draw(dim)
            for name, rows, columns in (("attn{}.qkv", 3 * dim, dim), ("attn{}.proj", dim, dim),
                                        ("mlp{}.fc1", 4 * dim, dim), ("mlp{}.fc2", dim, 4 * dim)):  # fmt: skip
                weights[f"{block}{name.format(second)}.weight"] = draw(rows, columns)
                weights[f"{block}{name.format(second)}.bias"] = draw(rows)
            if scale:
                for gamma in ("gamma_1", "gamma_2"):
                    weights[f"{block}{gamma}{'_1' if second else ''}"] = 0.5 + draw(dim)
    weights |= {"norm.weight": 1 + draw(dim), "norm.bias": draw(dim)}
    for head in ("head", "head_dist") if distilled else ("head",):
        weights |= {f"{head}.weight": draw(classes, dim, spread=0.3), f"{head}.bias": draw(classes)}
    return weights


NANO = {"dim": 128, "depth": 4, "patch": 4, "grid": 8, "classes": 10}  # deit3_nano_patch4 at 32 px
TINY = {"dim": 192, "depth": 12, "patch": 16, "grid": 2, "classes": 10, "scale": False}  # deit_tiny_patch16 at 32 px
DEIT3 = reference_weights(**NANO)
DEIT = reference_weights(**TINY, slots=1)
DISTILLED = reference_weights(**TINY, slots=2, distilled=True)


def reference_logits(weights: dict[str, Tensor], images: Tensor, heads: int, approximate: str = "none") -> Tensor:
    """The forward pass in evaluation, in double precision."""
    w = {name: value.double() for name, value in weights.items()}
    dim, _, patch, _ = w["patch_embed.proj.weight"].shape

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (dim,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def attention(x: Tensor, name: str) -> Tensor:
        batch, count, _ = x.shape
        q, k, v = (part.reshape(batch, count, heads, -1).transpose(1, 2)
                   for part in linear(x, f"{name}.qkv").split(dim, dim=2))  # fmt: skip
        scores = (q @ k.transpose(2, 3) / (dim // heads) ** 0.5).softmax(dim=3)
        return linear((scores @ v).transpose(1, 2).reshape(batch, count, dim), f"{name}.proj")

    def mlp(x: Tensor, name: str) -> Tensor:
        return linear(F.gelu(linear(x, f"{name}.fc1"), approximate=approximate), f"{name}.fc2")

    x = F.conv2d(images.double(), w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=patch)
    x = x.flatten(2).transpose(1, 2)
    tokens = [w[name].expand(len(images), -1, -1) for name in ("cls_token", "dist_token") if name in w]
    if w["pos_embed"].shape[1] == x.shape[1]:
        x = torch.cat([*tokens, x + w["pos_embed"]], dim=1)
    else:
        x = torch.cat([*tokens, x], dim=1) + w["pos_embed"]
    index = 0
    while f"blocks.{index}.norm1.weight" in w:
        block = f"blocks.{index}."
        seconds = [("", "")] + ([("1", "_1")] if f"{block}norm11.weight" in w else [])
        one = torch.ones(dim, dtype=torch.float64)
        x = x + sum(w.get(f"{block}gamma_1{tail}", one) * attention(norm(x, f"{block}norm1{end}"), f"{block}attn{end}")
                    for end, tail in seconds)  # fmt: skip
        x = x + sum(w.get(f"{block}gamma_2{tail}", one) * mlp(norm(x, f"{block}norm2{end}"), f"{block}mlp{end}")
                    for end, tail in seconds)  # fmt: skip
        index += 1
    x = norm(x, "norm")
    if "head_dist.weight" in w:
        return (linear(x[:, 0], "head") + linear(x[:, 1], "head_dist")) / 2
    return linear(x[:, 0], "head")


def write_training_file(path: Path, weights: dict[str, Tensor], ema: dict[str, Tensor]) -> None:
    """checkpoint.pth of facebookresearch/deit main.py under submitit: the Namespace has a Path in it."""
    options = argparse.Namespace(lr=4e-3, output_dir=Path("/checkpoint/someone/1"), model="deit_tiny_patch16_LS")
    moments = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}}, "param_groups": [{"params": [0]}]}
    torch.save({"model": weights, "optimizer": moments, "lr_scheduler": {"t": 1}, "epoch": 5, "model_ema": ema,
                "scaler": {"scale": 65536.0}, "args": options}, path)  # fmt: skip


def mmpretrain_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in weights.items():
        if name.startswith("blocks."):
            _, index, rest = name.split(".", 2)
            for old, new in (("norm1.", "ln1."), ("norm2.", "ln2."), ("mlp.fc1.", "ffn.layers.0.0."),
                             ("mlp.fc2.", "ffn.layers.1."), ("gamma_1", "attn.gamma1.weight"),
                             ("gamma_2", "ffn.gamma2.weight")):  # fmt: skip
                if rest.startswith(old):
                    rest = new + rest[len(old) :]
                    break
            renamed[f"backbone.layers.{index}.{rest}"] = value
        elif name.startswith("head"):
            renamed[f"head.layers.{name}"] = value
        elif name.startswith("norm."):
            renamed[f"backbone.ln1.{name[5:]}"] = value
        else:
            renamed["backbone." + name.replace("patch_embed.proj.", "patch_embed.projection.")] = value
    return renamed


def transformers_names(weights: dict[str, Tensor], model: str) -> dict[str, Tensor]:
    """`model`: "vit" or "deit" (distilled: with both classifiers)."""
    renamed = {}
    heads = {"head": "cls_classifier" if "dist_token" in weights else "classifier",
             "head_dist": "distillation_classifier"}  # fmt: skip
    embeddings = {"cls_token": "cls_token", "dist_token": "distillation_token", "pos_embed": "position_embeddings"}
    for name, value in weights.items():
        module, _, kind = name.rpartition(".")
        if name in embeddings:
            renamed[f"{model}.embeddings.{embeddings[name]}"] = value
        elif module == "patch_embed.proj":
            renamed[f"{model}.embeddings.patch_embeddings.projection.{kind}"] = value
        elif module == "norm":
            renamed[f"{model}.layernorm.{kind}"] = value
        elif module in heads:
            renamed[f"{heads[module]}.{kind}"] = value
        else:
            _, index, part = module.split(".", 2)
            layer = f"{model}.encoder.layer.{index}"
            if part == "attn.qkv":
                for number, letter in enumerate(("query", "key", "value")):
                    third = len(value) // 3
                    rows = value[number * third : (number + 1) * third].clone()
                    renamed[f"{layer}.attention.attention.{letter}.{kind}"] = rows
            else:
                new = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense",
                       "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}[part]  # fmt: skip
                renamed[f"{layer}.{new}.{kind}"] = value
    return renamed


def write_pdparams(path: Path, weights: dict[str, Tensor], half: bool, named: bool, protocol: int = 4) -> None:
    """paddle.save: numpy arrays by name, linear weights [in, out]; from 2.1 on each with its variable's name."""
    arrays = {}
    for number, (name, value) in enumerate(weights.items()):
        array = value.numpy()
        if name.endswith("weight") and array.ndim == 2:
            array = np.ascontiguousarray(array.T)
        array = array.astype(np.float16) if half else array
        arrays[name] = (f"linear_{number}.w_0", array) if named else array
    if not named:
        arrays["StructuredToParameterName@@"] = {name: f"linear_{name}" for name in weights}
    path.write_bytes(pickle.dumps(arrays, protocol=protocol))


def flax_bytes(tree: dict) -> bytes:
    """msgpack as flax.serialization writes it: arrays are extension 1 of (shape, dtype name, bytes)."""

    def pack(array: np.ndarray) -> msgpack.ExtType:
        return msgpack.ExtType(1, msgpack.packb((array.shape, array.dtype.name, array.tobytes()), use_bin_type=True))

    return msgpack.packb(tree, default=pack, strict_types=True)


def jax_tree(dim: int, depth: int, heads: int, patch: int, grid: int, classes: int, seed: int = 0) -> dict:
    """Parameters of deit3-jax's ViT, learnable positions, class token, LayerScale."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int, spread: float = 0.05, middle: float = 0.0) -> np.ndarray:
        return (middle + spread * rng.normal(size=shape)).astype(np.float32)

    head = dim // heads
    model = {
        "embed": {"wte": {"kernel": draw(patch, patch, 3, dim), "bias": draw(dim)}, "cls_token": draw(1, 1, dim),
                  "wpe": draw(grid, grid, dim, spread=0.5)},
        "norm": {"scale": draw(dim, middle=1), "bias": draw(dim)},
        "head": {"kernel": draw(dim, classes, spread=0.3), "bias": draw(classes)},
    }  # fmt: skip
    for index in range(depth):
        model[f"layer_{index}"] = {
            "attn": {
                **{f"w{x}": {"kernel": draw(dim, heads, head), "bias": draw(heads, head)} for x in "qkv"},
                "wo": {"kernel": draw(heads, head, dim), "bias": draw(dim)},
            },
            "ff": {"w1": {"kernel": draw(dim, 4 * dim), "bias": draw(4 * dim)},
                   "w2": {"kernel": draw(4 * dim, dim), "bias": draw(dim)}},
            **{f"norm{n}": {"scale": draw(dim, middle=1), "bias": draw(dim)} for n in "12"},
            **{f"scale{n}": draw(dim, middle=0.5) for n in "12"},
        }  # fmt: skip
    return {"model": model}


def jax_logits(tree: dict, images: np.ndarray) -> np.ndarray:
    """deit3-jax's forward pass of images [B, H, W, 3], with einsums over its own kernels, in double precision."""
    model = tree["model"]
    kernel = model["embed"]["wte"]["kernel"].astype(np.float64)
    patch, _, _, dim = kernel.shape
    batch, height, width, _ = images.shape
    cut = images.astype(np.float64).reshape(batch, height // patch, patch, width // patch, patch, 3)
    x = np.einsum("bhpwqc,pqcd->bhwd", cut, kernel) + model["embed"]["wte"]["bias"] + model["embed"]["wpe"]
    x = np.concatenate([np.repeat(model["embed"]["cls_token"], batch, 0), x.reshape(batch, -1, dim)], axis=1)

    def norm(x: np.ndarray, p: dict) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]

    def gelu(x: np.ndarray) -> np.ndarray:  # flax.linen.gelu's default
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    index = 0
    while f"layer_{index}" in model:
        layer = model[f"layer_{index}"]
        y, p = norm(x, layer["norm1"]), layer["attn"]
        q, k, v = (np.einsum("bnd,dhe->bnhe", y, p[f"w{x}"]["kernel"]) + p[f"w{x}"]["bias"] for x in "qkv")
        scores = np.exp(np.einsum("bqhe,bkhe->bhqk", q / q.shape[-1] ** 0.5, k))
        scores /= scores.sum(-1, keepdims=True)
        y = np.einsum("bhqk,bkhe->bqhe", scores, v)
        x = x + layer["scale1"] * (np.einsum("bqhe,hed->bqd", y, p["wo"]["kernel"]) + p["wo"]["bias"])
        y, p = norm(x, layer["norm2"]), layer["ff"]
        y = gelu(y @ p["w1"]["kernel"] + p["w1"]["bias"]) @ p["w2"]["kernel"] + p["w2"]["bias"]
        x = x + layer["scale2"] * y
        index += 1
    return norm(x, model["norm"])[:, 0] @ model["head"]["kernel"] + model["head"]["bias"]
