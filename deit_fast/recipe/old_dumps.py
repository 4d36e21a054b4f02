"""Recipes as runs and checkpoints stored them before a section had only the fields that its kind of section reads.

Their dumps hold every field of every kind, such as optim.momentum beside LAMB's; what no kind reads is dropped here, so
that such a run goes on. Nothing but its content tells a run's recipe.json from a file that a user wrote. Fields that
exclude each other, all of them at once, are what no user writes and every old dump has; dumps of today have no such
field. A user who edits an old dump is not told of a key without effect, as before.
"""

from typing import Any

from deit_fast.recipe.parse import all_fields, kind_of
from deit_fast.recipe.sections import Section

_OLD = {
    "augment": {"crop", "policy", "erase", "scale", "ratio", "rand_ops", "rand_magnitude", "rand_std", "erase_mode",
                "erase_count"},
    "distill": {"kind", "teacher", "alpha", "tau"},
    "optim": {"name", "momentum", "betas", "eps"},
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
