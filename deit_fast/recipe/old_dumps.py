"""Recipes that files and checkpoints hold from before: what is no longer a field is dropped, so that a run goes on.

Fields that were removed are dropped wherever they were stored, and refused where they are typed today.

Before a section had only the fields that its kind of section reads, dumps held every field of every kind, such as
optim.momentum beside LAMB's. What no kind reads is dropped from such dumps. Nothing but its content tells a run's
recipe.json from a file that a user wrote. Fields that exclude each other, all of them at once, are what no user writes
and every old dump has; dumps of today have no such field. A user who edits an old dump is not told of a key without
effect, as before.
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
_REMOVED_VALUES = {"run.hw_decoder_load": "auto"}  # the default counts instead


def drop_removed(content: dict[str, Any], typed: Collection[str] = ()) -> dict[str, Any]:
    """The content without the fields, and the values of fields, that are no more, but for the keys in `typed`."""

    def stays(path: str, value: Any) -> bool:
        return path in typed or (path not in _REMOVED and value != _REMOVED_VALUES.get(path, ...))

    return {
        name: {key: value for key, value in part.items() if stays(f"{name}.{key}", value)}
        if isinstance(part, dict) else part
        for name, part in content.items()
    }  # fmt: skip


def drop_unread(content: dict[str, Any], sections: dict[str, type[Section]]) -> dict[str, Any]:
    """An old dump without the fields that its kinds of section do not have; keys of no kind stay, to be refused.

    What is no old dump is returned as it is.
    """
    if not all(isinstance(content.get(name), dict) and keys <= content[name].keys() for name, keys in _OLD.items()):
        return content
    kept = dict(content)
    for name in _OLD:
        base, values = sections[name], content[name]
        live = kind_of(base, values).keys_with(values)
        kept[name] = {key: value for key, value in values.items() if key in live or key not in all_fields(base)}
    return kept
