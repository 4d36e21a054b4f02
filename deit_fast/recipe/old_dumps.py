"""Recipes that older versions wrote into files and checkpoints: removed fields are dropped, so that runs can resume.

Removed fields are dropped from stored recipes, and refused in words that a user types today.

In older versions every section had the fields of all its kinds, so an old dump holds for example optim.momentum beside
LAMB's fields. The fields that do not belong to the section's kind are dropped from such dumps. Only its content tells a
run's old recipe.json from a file that a user wrote: an old dump has all fields of all kinds at once, which no user
would write and no dump of today has. A user who edits an old dump is therefore not told about a key that has no effect,
as in those versions.
"""

from collections.abc import Collection
from typing import Any

from deit_fast.recipe.parse import all_fields, kind_of
from deit_fast.recipe.sections import Section

_OLD = {
    "augment": {"crop", "policy", "erase", "scale", "ratio", "rand_ops", "rand_magnitude", "rand_std", "erase_mode",
                "erase_count"},
    "distill": {"kind", "teacher", "alpha", "tau"},
    "optim": {"name", "momentum", "betas", "eps"},
}  # fmt: skip

_REMOVED = {"run.cuda_graph", "run.roi_decode"}
_REMOVED_VALUES = {"run.hw_decoder_load": "auto"}  # the default replaces them


def drop_removed(content: dict[str, Any], typed: Collection[str] = ()) -> dict[str, Any]:
    """The content without removed fields and removed values of fields; keys in `typed` are kept, to be refused."""

    def stays(path: str, value: Any) -> bool:
        return path in typed or (path not in _REMOVED and value != _REMOVED_VALUES.get(path, ...))

    return {
        name: {key: value for key, value in part.items() if stays(f"{name}.{key}", value)}
        if isinstance(part, dict) else part
        for name, part in content.items()
    }  # fmt: skip


def drop_unread(content: dict[str, Any], sections: dict[str, type[Section]]) -> dict[str, Any]:
    """An old dump without the fields that do not belong to its kinds of section; unknown keys are kept, to be refused.

    Any other content is returned unchanged.
    """
    if not all(isinstance(content.get(name), dict) and keys <= content[name].keys() for name, keys in _OLD.items()):
        return content
    kept = dict(content)
    for name in _OLD:
        base, values = sections[name], content[name]
        live = kind_of(base, values).keys_with(values)
        kept[name] = {key: value for key, value in values.items() if key in live or key not in all_fields(base)}
    return kept
