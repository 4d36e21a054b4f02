"""The fields of a recipe's model section that an architecture supports."""

from collections.abc import Mapping
from typing import Any

from deit_fast.runtime.errors import RecipeError
from deit_fast.zoo.architectures import find_architecture, find_family

STEM_PATCH_SIZE = 16


def check_fields(name: str, fields: Mapping[str, Any]) -> None:
    """Raises RecipeError, one line, where the entry `name` cannot be built with these `fields`."""
    architecture, family = find_architecture(name), find_family(name)
    patch_size = architecture.patch_size

    def refuse(key: str, expected: str, reason: str) -> None:
        value = "null" if fields[key] is None else repr(fields[key])
        raise RecipeError(f"model.{key}={value}: expected {expected} with model.name={name!r}, {reason}")

    if fields["image_size"] < patch_size:
        refuse("image_size", f"at least {patch_size}", "whose patches are that large")
    resolved = {**fields, "layer_scale": architecture.layer_scale} if fields["layer_scale"] == "auto" else fields
    for key, only in family.fixed.items():
        if resolved[key] != only:
            refuse(key, "null" if only is None else repr(only), "which has no other")
    if fields["layer_scale"] is None and family.needs_layer_scale:
        refuse("layer_scale", "a number or 'auto'", "which cannot do without")
    if fields["pool"] == "avg" and architecture.distilled:
        refuse("pool", "'token'", "which has a head for each of its two tokens")
    if fields["stem"] == "hmlp" and patch_size != STEM_PATCH_SIZE:
        refuse("stem", "'patch'", f"whose patches are {patch_size} x {patch_size} and not 16 x 16")
