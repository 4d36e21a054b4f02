"""Tells which folders and shards of a data set belong to which split, by their names; the names are those of timm."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from deit_fast.runtime.errors import DataError

Split = Literal["train", "val"]
"""The training or the validation images. A test split belongs to neither, and is read only where it is named."""

_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "eval", "evaluation"),
    "test": ("test", "testing"),
}
_SPLIT_OF = {name: split for split, names in _NAMES.items() for name in names}
_IN_WORDS = {"train": "a training split", "val": "a validation split"}
_MORE_WORDS = {"dev", "fold", "holdout", "trainset", "trainval", "testset", "unlabeled", "unlabelled", "valset"}
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")  # splits img_train, trainSet and val2017 into words
_NUMBERED = re.compile(r"(\d+|\*|\{.*\})(-of-\d+)?\.tar$")


def split_of(folder: str) -> str | None:
    """The split that a folder of this name holds: "train", "val" or "test"; None for any other name."""
    return _SPLIT_OF.get(folder.casefold())


def split_of_shard(name: str) -> str | None:
    """The split in the name of a shard, "val" for imagenet1k-validation-00.tar; None where the name has none."""
    return _SPLIT_OF.get(_split_word(name))


def split_names() -> list[str]:
    """The usual names of a split's folder."""
    return list(_SPLIT_OF)


def shard_glob(names: Iterable[str], split: Split) -> str | None:
    """A glob that matches the split's shards among a folder's files; "" (the folder itself) where no glob would do.

    None where no shard belongs to the split.
    """
    patterns = {_pattern(name) for name in names if name.endswith(".tar") and split_of_shard(name) == split}
    return (patterns.pop() if len(patterns) == 1 else "") if patterns else None


def _pattern(name: str) -> str:
    """The glob for a shard and its siblings: train-*.tar for train-0003.tar; the name itself if it has no number."""
    return _NUMBERED.sub("*.tar", name)


def group_by_split(folders: Iterable[str]) -> dict[str, list[str]]:
    """The folders with a split's name, in order, by split."""
    found: dict[str, list[str]] = {}
    for name in sorted(folders):
        if (split := split_of(name)) is not None:
            found.setdefault(split, []).append(name)
    return found


def split_folders(uri: str, folders: Iterable[str], holds_images: Callable[[str], bool]) -> dict[str, list[str]]:
    """The folders in `uri` by split; {} where the folders are classes, or where there are none.

    A folder named train is taken for a class if it holds images and stands beside folders with other names.
    holds_images: whether the folder of that name has images directly in it. Raises DataError, one line, where both
    readings are possible.
    """
    names = sorted(folders)
    found = group_by_split(names)
    others = [name for name in names if not _is_like_a_split(name)]
    if {"train", "val"} <= found.keys() or not (found and others):
        return found
    nested = [name for each in found.values() for name in each if not holds_images(name)]
    classes = [name for name in others if holds_images(name)]
    if nested and classes:
        raise DataError(
            f"{uri}: expected splits or a folder of images for every class; found {nested[0]}/, which holds folders as "
            f"a split does, beside {classes[0]}/, which holds images as a class does; name {_join(uri, nested[0])}"
        )
    return found if nested else {}


def refuse_split_like(uri: str, folders: Iterable[str], holds_images: Callable[[str], bool]) -> None:
    """Raises DataError where all folders have names that contain a split's word, because these are not classes.

    Folders that hold images and all contain the word of the same split (test_positive, test_negative) may be classes.
    """
    names = sorted(folders)
    if not names or not all(map(_is_like_a_split, names)):
        return
    if any(map(holds_images, names)) and len({frozenset(_split_words(name)) for name in names}) == 1:
        return
    raise DataError(
        f"{uri}: expected a folder of images for every class, or train/ and val/; found {_list(names)}, named like "
        f"splits; name {_or(uri, names)}"
    )


def take_split(uri: str, found: dict[str, list[str]], split: Split | None) -> str:
    """The folder of the split among those of `split_folders`. Raises DataError where there is none, or several."""
    there = [name for each in found.values() for name in each]
    if split is None:
        raise DataError(f"{uri}: expected one split, found {_list(there)}; name {_or(uri, there)}")
    names = found.get(split, [])
    if not names:
        wanted = ", ".join(f"{name}/" for name in _NAMES[split])
        raise DataError(
            f"{uri}: expected {_IN_WORDS[split]} ({wanted}), found {_list(there)}; to take other images, name "
            f"{_or(uri, there)}"
        )
    if len(names) > 1:
        raise DataError(f"{uri}: expected one split, found {_list(names)}; name {_or(uri, names)}")
    return names[0]


def take_shards(uri: str, names: Sequence[str], split: Split | None) -> list[str]:
    """The shards of the split, by name; all shards where no name contains a split. Raises DataError."""
    splits = {name: split_of_shard(name) for name in names}
    if not any(splits.values()):
        return list(names)
    if split is None:
        refuse_mixed(uri, names)
        return list(names)
    chosen = [name for name in names if splits[name] == split]
    if not chosen:
        patterns = sorted({_pattern(name) for name, found in splits.items() if found})
        raise DataError(
            f"{uri}: expected {split}-*.tar, found {len(names)} other shards, {names[0]} first; to take other images, "
            f"name {_or(uri, patterns)}"
        )
    _refuse_several(uri, {_split_word(name): name for name in reversed(chosen)})
    return chosen


def refuse_mixed(uri: str, names: Sequence[str]) -> None:
    """Raises DataError where the names of shards contain different splits."""
    _refuse_several(uri, {split: name for name in reversed(names) if (split := split_of_shard(name)) is not None})


def _refuse_several(uri: str, shards: dict[str, str]) -> None:
    if len(shards) > 1:
        patterns = sorted(map(_pattern, shards.values()))
        folder = uri.rpartition("/")[0] if uri.endswith(".tar") else uri
        raise DataError(f"{uri}: expected one split, found {' and '.join(patterns)}; name {_or(folder, patterns)}")


def _split_word(name: str) -> str:
    """The last word of a shard's name that names a split; "" where there is none."""
    words = re.findall(r"[a-z]+", _NUMBERED.sub("", name.casefold()).removesuffix(".tar"))
    return next((word for word in reversed(words) if word in _SPLIT_OF), "")


def _is_like_a_split(name: str) -> bool:
    """Whether a word of the name names a split: seg_train, testSet, val2017."""
    return bool(_split_words(name))


def _split_words(name: str) -> set[str]:
    """The splits named by words of the name."""
    words = (word.casefold() for word in _WORD.findall(name))
    return {_SPLIT_OF.get(word, word) for word in words if word in _SPLIT_OF or word in _MORE_WORDS}


def _list(names: Sequence[str]) -> str:
    return " and ".join(f"{name}/" for name in names)


def _or(uri: str, names: Sequence[str]) -> str:
    return " or ".join(_join(uri, name) for name in names)


def _join(uri: str, name: str) -> str:
    return f"{uri.rstrip('/')}/{name}"
