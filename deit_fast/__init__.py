"""deit_fast: DeiT III vision transformers, trained fast and faithfully.

Each name below is imported when it is first used. torch is therefore imported only by models, and DALI only where
images are read; recipes import neither.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deit_fast.infer.create import create_model
    from deit_fast.infer.evaluate import evaluate_checkpoint as evaluate
    from deit_fast.infer.predict import LoadedModel, Prediction, extract_features, load_model, predict
    from deit_fast.recipe.table import get_recipe, list_recipes
    from deit_fast.training.run import train
    from deit_fast.zoo import list_models

__version__ = "0.1.0"

__all__ = [
    "LoadedModel",
    "Prediction",
    "create_model",
    "evaluate",
    "extract_features",
    "get_recipe",
    "list_models",
    "list_recipes",
    "load_model",
    "predict",
    "train",
]

_HOMES = {
    "create_model": "deit_fast.infer.create",
    "evaluate": "deit_fast.infer.evaluate",
    "get_recipe": "deit_fast.recipe.table",
    "list_models": "deit_fast.zoo",
    "list_recipes": "deit_fast.recipe.table",
    "train": "deit_fast.training.run",
}
_NAMES = {"evaluate": "evaluate_checkpoint"}  # for names that their module calls otherwise


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'deit_fast' has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "deit_fast.infer.predict")), _NAMES.get(name, name))


def __dir__() -> list[str]:
    return __all__
