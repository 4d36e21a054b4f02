"""PASSL's names (PaddlePaddle/PASSL): facebookresearch/deit's, with linear weights as paddle has them, [in, out]."""

from torch import Tensor

from deit_fast.convert.names import Codebase, TimmWeights, facebook


def _recognises(tensors: dict[str, Tensor]) -> bool:
    qkv = tensors.get("blocks.0.attn.qkv.weight")  # [D, 3 x D]; torch's is [3 x D, D]
    return qkv is not None and qkv.ndim == 2 and qkv.shape[1] == 3 * qkv.shape[0]


def _to_timm(tensors: dict[str, Tensor]) -> TimmWeights:
    turned = {name: tensor.T.contiguous() if tensor.ndim == 2 else tensor for name, tensor in tensors.items()}
    return facebook.CODEBASE.to_timm(turned) if facebook.CODEBASE.recognises(turned) else TimmWeights(turned)


# facebookresearch/deit's DeiT III has the same names; the shapes tell the two apart.
CODEBASE = Codebase("PASSL", _recognises, _to_timm, priority=1)
