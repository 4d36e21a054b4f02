"""The samples of a shard: which members are an image and its label, and what the label says.

The rule is WebDataset's: neighbouring members whose names are equal up to the first dot of the last path component are
one sample; the rest of the name is the ending. If that rule finds several images in a sample, or none, names need only
be equal up to their last dot.
"""

import codecs
import json
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from deit_fast.data.sources.base import IMAGE_SUFFIXES
from deit_fast.runtime.errors import brief, printable

LABEL_ENDINGS = ("cls", "class", "label", "json", "txt")
"""Endings of members that hold a label. If a sample has several of them, the first in this order counts."""
RULE = "a key ends at the first dot, and a label is KEY.cls, KEY.json or KEY.txt, or the folder of all keys"
MAX_CLASSES = 10_000_000

_NUMBER_KEYS = ("label", "cls", "class", "class_id", "class_index", "label_id", "target")  # keys of a .json file
_NAME_KEYS = ("class_name", "label_name", "synset", "wnid")


class Pair(NamedTuple):
    """Names of the members that are a sample's image and its label; None where one is missing."""

    image: str | None
    label: str | None


def split_name(name: str) -> tuple[str, str]:
    """The key and the ending of a member's name; as in WebDataset, the ending starts at the last part's first dot."""
    folder, slash, last = name.rpartition("/")
    stem, _, ending = last.partition(".")
    return f"{folder}{slash}{stem}", ending


def folder_of(name: str) -> str:
    """Name of the folder that directly holds a member, as precomposed characters (NFC); "" without a folder."""
    return unicodedata.normalize("NFC", name.rpartition("/")[0].rpartition("/")[2].removeprefix("."))


def pair_members(names: Sequence[str]) -> list[Pair]:
    """The samples among neighbours with one key, usually one. Raises ValueError, one line, where it is unclear."""
    if len(names) == 2:  # the usual sample: KEY.jpg and KEY.cls
        image, label = names if names[1].endswith(".cls") else (names[1], names[0])
        if label.endswith(".cls") and image.endswith((".jpg", ".png")) and image[:-4] == label[:-4]:
            return [Pair(image, label)]
    try:
        found = _pair(names)
        if found.image is not None:
            return [found]
    except ValueError:
        parts = [_pair(list(part)) for _, part in groupby(names, key=lambda name: name.rpartition(".")[0])]
        if len(parts) < 2 or any(part.image is None for part in parts):
            raise
        return parts
    return [found]


def _pair(names: Sequence[str]) -> Pair:
    image = _only([name for name in names if name.lower().endswith(IMAGE_SUFFIXES)])
    of_ending = (_only([name for name in names if _last_ending(name) == ending]) for ending in LABEL_ENDINGS)
    label = next((name for name in of_ending if name is not None), None)
    if image is not None and label is not None:
        middles = [split_name(name)[1].rpartition(".")[0] for name in (image, label)]
        if middles[0] != middles[1] and any(part.isdigit() for middle in middles for part in middle.split(".")):
            raise ValueError(f"{printable(image)} and {printable(label)} may be of one sample or of two ({RULE})")
    return Pair(image, label)


def _only(names: list[str]) -> str | None:
    """The first name with a plain ending (KEY.jpg), else the only name (KEY.input.jpg).

    Raises ValueError for several.
    """
    plain = next((name for name in names if "." not in split_name(name)[1]), None)
    if plain is None and len(names) > 1:
        raise ValueError(
            f"{printable(names[0])} and {printable(names[1])} have one key, and either may be meant ({RULE})"
        )
    return plain or (names[0] if names else None)


def _last_ending(name: str) -> str:
    return split_name(name)[1].rpartition(".")[2].lower()


def parse_label(name: str, data: bytes, label_of: Mapping[str, int]) -> int:
    """The class in a label's member, given as a number or as a name in `label_of`. Raises ValueError, one line.

    label_of: class by name, names in precomposed characters (NFC).
    """
    if data.isdigit() and len(data) < 7:
        return int(data)
    kind = _last_ending(name)
    text = data.removeprefix(codecs.BOM_UTF8).decode("utf-8", errors="replace").strip()
    value = unicodedata.normalize("NFC", _read_json(name, text) if kind == "json" else text)
    number = int(value[:20]) if value.isascii() and value.isdigit() else label_of.get(value, MAX_CLASSES)
    if number >= MAX_CLASSES:
        raise ValueError(f"found {brief(value, 40)!r}")
    return number


def _read_json(name: str, text: str) -> str:
    """The number or the name of the class in a .json file, as text."""
    try:
        content: Any = json.loads(text)
    except ValueError:
        raise ValueError("found no JSON") from None
    if not isinstance(content, dict):
        content = {_NUMBER_KEYS[0]: content}
    found = [content[key] for key in (*_NUMBER_KEYS, *_NAME_KEYS) if key in content]
    value = next((each for each in found if isinstance(each, int | str) and not isinstance(each, bool)), None)
    if value is None:
        raise ValueError(f"found none of {', '.join(_NUMBER_KEYS + _NAME_KEYS)} in it")
    return str(value).strip()
