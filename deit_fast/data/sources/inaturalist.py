"""iNaturalist 2018 and 2019 as published: train2018.json, val2018.json and the images they list, at a taxonomic level.

This is facebookresearch/deit's INatDataset with another order of classes. Here classes are ordered by name, species by
id; the reference numbers classes in the order in which the training annotations first mention them.
"""

import json
import os
import re
from itertools import groupby
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from deit_fast.data.sources.kept_listing import Watched, keep_listing
from deit_fast.data.sources.listed_files import ListedFiles
from deit_fast.data.sources.listing import Listing, ListingBuilder
from deit_fast.data.sources.source_format import Request, SourceFormat, validation_beside
from deit_fast.runtime.errors import DataError, one_line
from deit_fast.runtime.patience import patiently

_ANNOTATIONS = re.compile(r"train(20\d\d)\.json")


class INaturalist(ListedFiles):
    """The images that SPLIT{year}.json lists; the classes of every split are those of the training annotations.

    category: "name" makes a class of each species; a level such as "genus" makes a class of each of its distinct names.
    The taxonomy is read from categories.json where that exists (the names in train2018.json are obfuscated), else from
    the annotations.
    """

    def __init__(self, uri: str, folder: Path, year: str, split: str, category: str) -> None:
        kind = f"{split}{year}.json by {category}"
        kept = keep_listing(folder, kind, lambda watched: _list(folder, year, split, category, watched))
        super().__init__(uri, folder, kept)


def _list(folder: Path, year: str, split: str, category: str, watched: Watched) -> Listing:
    """Reads the annotations. Raises DataError where they are not as published, or where the first image is missing."""
    path, first, taxonomy = folder / f"{split}{year}.json", folder / f"train{year}.json", folder / "categories.json"
    for each in ("", *(each.name for each in (path, first, taxonomy) if each.exists())):
        watched.add(each, os.stat(folder / each))
    training = _read(first)
    listed = training if split == "train" else _read(path)
    try:
        categories = _read(taxonomy) if taxonomy.is_file() else training["categories"]
        classes, label_of = _number_classes(categories, training["annotations"], category)
        category_of = {each["image_id"]: each["category_id"] for each in listed["annotations"]}
        names = [str(each["file_name"]) for each in listed["images"]]
        ids = [category_of[each["id"]] for each in listed["images"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: expected images with annotations whose categories have id and {category!r}, "
            f"in it or in categories.json ({type(error).__name__} {one_line(error)})"
        ) from None
    if not names:
        raise DataError(f"{path}: expected images, it lists none")
    unknown = next((each for each in ids if each not in label_of), None)
    if unknown is not None:
        raise DataError(f"{path}: category {unknown}: expected one with images in train{year}.json")
    listing = ListingBuilder()
    for inside, paths in groupby(_place_images(folder, names), os.path.dirname):
        if not listing.count:
            watched.add(inside, os.stat(folder / inside))  # where the archives have the first image
        listing.add(inside, [os.path.basename(each) for each in paths])
    return listing.finish(np.array([label_of[each] for each in ids], np.int64), classes)


def _number_classes(
    categories: list[dict[str, Any]], annotations: list[dict[str, Any]], category: str
) -> tuple[list[str], dict[int, int]]:
    """Names of the classes that the annotations have, and the class of every such category's id."""
    trained = sorted({each["category_id"] for each in annotations})
    value_of = {each["id"]: str(each[category]) for each in categories}
    if category == "name":
        return [value_of[each] for each in trained], {each: label for label, each in enumerate(trained)}
    classes = sorted({value_of[each] for each in trained})
    label_of = {value: label for label, value in enumerate(classes)}
    return classes, {each: label_of[value_of[each]] for each in trained}


def _place_images(folder: Path, names: list[str]) -> list[str]:
    """Paths in the folder of the files listed: as the archives have them, or without the folders of supercategories.

    The reference reads the second form: train_val2018/Plantae/7477/x.jpg at train_val2018/7477/x.jpg.
    """
    for shorten in (False, True):
        paths = [str(PurePath(re.sub(r"^([^/]+)/[^/]+/", r"\1/", name) if shorten else name)) for name in names]
        if (folder / paths[0]).is_file():
            return paths
    raise DataError(f"{folder / names[0]}: expected the first image that the annotations list, found none")


def _read(path: Path) -> Any:
    try:
        return json.loads(patiently(path.read_bytes, str(path)))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected readable annotations ({one_line(error)})") from None


def _find_year(request: Request) -> str | None:
    """The year of the train{year}.json in the folder. Raises DataError where there are two."""
    years = sorted(
        match[1] for name in request.files if name[-5:] == ".json" and (match := _ANNOTATIONS.fullmatch(name))
    )
    if len(years) > 1:
        raise DataError(f"{request.path}: expected the annotations of one year, found train{years[0]}.json and others")
    return years[0] if years else None


def _open(request: Request) -> INaturalist:
    year = _find_year(request)
    assert year is not None
    return INaturalist(request.uri, request.path, year, request.own_split(), request.category)


def _find_validation(request: Request) -> str | None:
    return request.uri if f"val{_find_year(request)}.json" in request.files else validation_beside(request)


SOURCE = SourceFormat(
    recognises=lambda request: _find_year(request) is not None,
    open=_open,
    find_validation=_find_validation,
    has_taxonomy=True,
)
