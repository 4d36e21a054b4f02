"""Published weights by name: the zoo's, timm's or mmpretrain's name, or the address. Their rows say where they are."""

import os
import re
from pathlib import Path

from deit_fast.runtime.errors import RecipeError, RunError, suggest
from deit_fast.runtime.object_store import is_remote
from deit_fast.zoo.architectures import ALIASES, ARCHITECTURES, FAMILIES
from deit_fast.zoo.family import Published
from deit_fast.zoo.published import PUBLISHED

# timm's name for the weights of an architecture, after a dot; it means the first of a row's tags that the entry has.
_TIMM_TAGS = {
    "fb_in1k": ("1k", "distilled"),  # timm's names do not repeat that a model is distilled
    "fb_in22k_ft_in1k": ("21k",),
    "fb_dist_in1k": ("distilled",),
    "fb_distilled_in1k": ("distilled",),
    "fb_dino": ("dino",),
}
_NAME = re.compile(r"([^@:.]+)(?:@(\d+)(?:px)?)?(?::([\w-]+)|\.([\w-]+))?", re.ASCII)
_WEIGHTS = [row for row in PUBLISHED if row.weights is not None]
_BY_FILE = {row.weights_file: row for row in _WEIGHTS}
_BY_ADDRESS = {row.weights: row for row in _WEIGHTS}
_OTHER_NAMES = {name: _BY_FILE[file] for family in FAMILIES.values() for name, file in family.weights_names.items()}
_HUB = re.compile(r"(?:hf[-_]hub:|(?=(?:timm|facebook)/))([^/:]+/[^/:]+)")  # as timm and transformers name models
_HASH = re.compile(r"-([0-9a-f]{8,64})\.")


def find_weights_row(name: str) -> Published | None:
    """The row of the published weights with this name; None if it cannot be the name of any.

    The name is ENTRY, ENTRY@PX, ENTRY:TAG or ENTRY@PX:TAG as `deit-fast zoo` lists them, where ENTRY may be an alias of
    the architecture; or timm's ARCHITECTURE.TAG or former name, mmpretrain's name, or the address. Without PX the
    weights have the resolution that the name implies, else 224 px, else the lowest one. Without TAG they are the zoo's
    first. Raises RecipeError, one line, for an entry without such weights.
    """
    if row := _OTHER_NAMES.get(name) or _BY_ADDRESS.get(name):
        return row
    parts = _NAME.fullmatch(name)
    if parts is None or not (parts[1] in ARCHITECTURES or parts[1] in ALIASES):
        return None
    entry, implied = (parts[1], None) if parts[1] in ARCHITECTURES else ALIASES[parts[1]]
    of_entry = [row for row in _WEIGHTS if row.name == entry]
    if not of_entry:
        raise RecipeError(f"{name}: expected a model with published weights, and {entry} has none (see deit-fast zoo)")
    sides = [row.resolution for row in of_entry]
    side = int(parts[2] or implied or (224 if 224 in sides else min(sides)))
    tags = (parts[3],) if parts[3] else _TIMM_TAGS.get(parts[4], (parts[4],)) if parts[4] else ()
    found = [row for row in of_entry if row.resolution == side]
    if tags:
        found = [row for tag in tags for row in found if row.tag == tag]
    if not found:
        known = " or ".join(str(row.weights_name) for row in of_entry)
        raise RecipeError(f"{name}: expected {known}, the published weights of {entry}")
    return found[0]


def published_row(given: str | Path) -> Published | None:
    """The row of a checkpoint that a user named; None for an existing path, and for names of no published weights.

    Raises what `find_weights_row` raises.
    """
    text = str(given).rstrip("/")
    return None if not is_remote(text) and os.path.exists(given) else find_weights_row(text)


def check_given(given: str | Path) -> None:
    """Raises RunError or RecipeError, one line, for a checkpoint that is no path, no URI and no name of weights."""
    if not is_remote(given) and not os.path.exists(given) and published_row(given) is None:
        raise RunError(f"{given}: no such checkpoint{_near(str(given))}")


def _near(name: str) -> str:
    """` (did you mean 'deit3_small_patch16'?)`, or "" where no name of weights or of a model with some is close."""
    if found := _HUB.fullmatch(name):
        return f" (did you mean 'hf://{found[1]}'?)"
    if "/" in name:
        return ""
    if name in _BY_FILE:
        return f" (did you mean '{_BY_FILE[name].weights_name}'?)"
    entries = {row.name for row in _WEIGHTS}
    others = [alias for alias, (entry, _) in ALIASES.items() if entry in entries]
    return suggest(name, [*sorted(entries), *others, *(str(row.weights_name) for row in _WEIGHTS), *_OTHER_NAMES])


def published_hash(file: str) -> str | None:
    """The beginning of a file's SHA-256 from its name, as torch.hub and mmpretrain publish files; None without one.

    Eight digits without a letter are taken for a date and not for a hash.
    """
    found = _HASH.findall(file)
    return found[-1] if found and not (len(found[-1]) == 8 and found[-1].isdecimal()) else None
