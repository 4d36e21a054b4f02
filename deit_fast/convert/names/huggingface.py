"""transformers' names of ViT and DeiT (models/deit/convert_deit_timm_to_pytorch.py): query, key and value apart."""

import re

import torch
from torch import Tensor

from deit_fast.convert.formats.lazy_tensor import BadFileError
from deit_fast.convert.names import Codebase, TimmWeights

_OUTER = {
    "embeddings.cls_token": "cls_token",
    "embeddings.distillation_token": "dist_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
    "classifier.weight": "head.weight",
    "classifier.bias": "head.bias",
    "cls_classifier.weight": "head.weight",
    "cls_classifier.bias": "head.bias",
    "distillation_classifier.weight": "head_dist.weight",
    "distillation_classifier.bias": "head_dist.bias",
}
_LAYER = {
    "layernorm_before": "norm1",
    "attention.output.dense": "attn.proj",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
_QKV = ("query", "key", "value")


def _recognises(tensors: dict[str, Tensor]) -> bool:
    return any(f"{model}encoder.layer.0.attention.attention.query.weight" in tensors for model in ("", "vit.", "deit."))


def _to_timm(tensors: dict[str, Tensor]) -> TimmWeights:
    """Raises BadFileError for a name that transformers' ViT and DeiT do not have."""
    renamed, parts = {}, {}
    for name, tensor in tensors.items():
        inner = re.sub(r"^(vit|deit)\.", "", name)
        layer = re.match(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias)$", inner)
        if inner in _OUTER:
            renamed[_OUTER[inner]] = tensor
        elif layer and layer[2] in _LAYER:
            renamed[f"blocks.{layer[1]}.{_LAYER[layer[2]]}.{layer[3]}"] = tensor
        elif layer and layer[2].removeprefix("attention.attention.") in _QKV:
            parts[f"blocks.{layer[1]}.attn.qkv.{layer[3]}", layer[2].rpartition(".")[2]] = tensor
        elif not inner.startswith("pooler."):  # no classifier uses the pooler
            raise BadFileError(f"has {name[:80]!a}, which transformers' ViT and DeiT do not have")
    for fused in dict.fromkeys(name for name, _ in parts):
        if any((fused, kind) not in parts for kind in _QKV):
            raise BadFileError(f"has not all three of {fused}'s query, key and value")
        renamed[fused] = torch.cat([parts[fused, kind] for kind in _QKV])
    return TimmWeights(renamed)


CODEBASE = Codebase("transformers", _recognises, _to_timm)
