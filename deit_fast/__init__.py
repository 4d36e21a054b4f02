"""deit_fast: DeiT III vision transformers, trained fast and faithfully.

The names below load torch only when they are used.
"""

from typing import TYPE_CHECKING, Any

from deit_fast.recipes import get_recipe, list_recipes
from deit_fast.zoo import list_models

if TYPE_CHECKING:
    from deit_fast.models.build import create_model

__all__ = ["create_model", "get_recipe", "list_models", "list_recipes"]


def __getattr__(name: str) -> Any:
    if name == "create_model":
        from deit_fast.models.build import create_model

        return create_model
    raise AttributeError(f"module 'deit_fast' has no attribute {name!r}")
