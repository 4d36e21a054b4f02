"""timm's own names, to which all others are renamed; facebookresearch/deit uses them too, for DeiT and CaiT.

This module also writes timm's folder: model.safetensors and config.json.
"""

import json
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from deit_fast.convert.formats import Export
from deit_fast.convert.formats.timm_folder import timm_config
from deit_fast.convert.names import Codebase, TimmWeights
from deit_fast.models import timm
from deit_fast.recipe.schema import Recipe
from deit_fast.runtime.files import atomic_path, write_json

_WEIGHTS = "model.safetensors"


def _write(model: nn.Module, recipe: Recipe, classes: list[str] | None, path: Path) -> list[str]:
    """Writes a folder for `timm.create_model("local-dir:FOLDER", pretrained=True)`, or to a .safetensors's folder.

    The header contains recipe and classes, by which deit_fast reads the file as its own. Raises RunError for a model
    that timm lacks.
    """
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    config = timm_config(recipe, classes)
    weights = _weights_of(path)
    header = {"recipe": json.dumps(recipe.model_dump(mode="json")), "classes": json.dumps(classes)}
    with atomic_path(weights) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", **header})
    write_json(weights.parent / "config.json", config)
    if weights.name == _WEIGHTS:
        return [] if weights != path else [f"{path.with_name('config.json')}: timm's description, written beside it"]
    return [f"timm reads a folder's {_WEIGHTS} first; {weights.name} should be alone in it, or so named"]


def _reload(path: Path) -> Callable[[Tensor], Tensor] | None:
    weights = _weights_of(path)
    if weights.name != _WEIGHTS:
        return None
    return timm.create_model(f"local-dir:{weights.parent}", pretrained=True).eval()


def _weights_of(path: Path) -> Path:
    return path if path.suffix == ".safetensors" else path / _WEIGHTS


CODEBASE = Codebase(
    "facebookresearch/deit or timm",
    recognises=lambda tensors: True,  # shapes are checked when the model is inferred
    to_timm=TimmWeights,
    weights_key="state_dict",
    average_key="state_dict_ema",
    priority=-1,
)
EXPORT = Export("timm", ".safetensors", _write, _reload)
