"""mmpretrain's names (open-mmlab/mmpretrain, models/backbones/vision_transformer.py and deit3.py)."""

import re

from torch import Tensor

from deit_fast.convert.formats.lazy_tensor import BadFileError
from deit_fast.convert.names import Codebase, TimmWeights

_OUTER = {
    "backbone.cls_token": "cls_token",
    "backbone.dist_token": "dist_token",
    "backbone.pos_embed": "pos_embed",
    "backbone.patch_embed.projection": "patch_embed.proj",
    "backbone.ln1": "norm",
    "head.layers.head": "head",
    "head.layers.head_dist": "head_dist",
}
_LAYER = {
    "ln1": "norm1",
    "ln2": "norm2",
    "attn.qkv": "attn.qkv",
    "attn.proj": "attn.proj",
    "ffn.layers.0.0": "mlp.fc1",
    "ffn.layers.1": "mlp.fc2",
}
_SCALE = {"attn.gamma1.weight": "ls1.gamma", "ffn.gamma2.weight": "ls2.gamma"}


def _to_timm(tensors: dict[str, Tensor]) -> TimmWeights:
    """Raises BadFileError for a name that mmpretrain's vision transformers do not have."""
    renamed = {}
    for name, tensor in tensors.items():
        layer = re.match(r"backbone\.layers\.(\d+)\.(.+)$", name)
        outer, _, kind = name.rpartition(".")
        if name in _OUTER:
            renamed[_OUTER[name]] = tensor
        elif outer in _OUTER:
            renamed[f"{_OUTER[outer]}.{kind}"] = tensor
        elif layer and layer[2] in _SCALE:
            renamed[f"blocks.{layer[1]}.{_SCALE[layer[2]]}"] = tensor
        elif layer and layer[2].rpartition(".")[0] in _LAYER:
            module, _, kind = layer[2].rpartition(".")
            renamed[f"blocks.{layer[1]}.{_LAYER[module]}.{kind}"] = tensor
        else:
            raise BadFileError(f"has {name[:80]!a}, which mmpretrain's vision transformers do not have")
    return TimmWeights(renamed)


CODEBASE = Codebase(
    "mmpretrain",
    recognises=lambda tensors: "backbone.patch_embed.projection.weight" in tensors,
    to_timm=_to_timm,
    weights_key="state_dict",
    average_key="state_dict",  # mmengine's EMAHook swaps the two when it saves:
    average_sign="ema_state_dict",
)
