"""PASSL's names (PaddlePaddle/PASSL): those of DeiT, with linear weights as paddle has them, [in, out]."""

from typing import Any

from torch import Tensor

from deit_fast.convert.formats.lazy_tensor import BadFileError, Stored

_NAME_TABLE = "StructuredToParameterName@@"  # paddle.save's table of variable names, not a weight


def passl_arrays(tree: Any) -> dict[str, Stored] | None:
    """The arrays of a .pdparams file, a dictionary of numpy arrays; None for anything else."""
    if not isinstance(tree, dict):
        return None
    arrays = {}
    for name, value in tree.items():
        if name == _NAME_TABLE:
            continue
        if isinstance(value, tuple) and len(value) == 2:  # paddle 2.1 and later: (variable's name, array)
            value = value[1]
        if not isinstance(name, str) or not isinstance(value, Stored):
            return None
        arrays[name] = value
    return arrays


def from_passl(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's shapes. Raises BadFileError where the linear weights are not paddle's way round."""
    qkv = tensors.get("blocks.0.attn.qkv.weight")
    if qkv is None or qkv.ndim != 2 or qkv.shape[1] != 3 * qkv.shape[0]:
        raise BadFileError("has numpy arrays, but not those of PASSL's DeiT (blocks.0.attn.qkv.weight of [D, 3 x D])")
    return {name: tensor.T.contiguous() if tensor.ndim == 2 else tensor for name, tensor in tensors.items()}
