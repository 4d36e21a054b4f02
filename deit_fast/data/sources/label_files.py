"""Files of labels beside a flat folder of images, in the published forms: finding and reading them.

A table has an image and its class in each line: Tiny-ImageNet's val_annotations.txt, Kaggle's LOC_val_solution.csv,
Caffe's val.txt, labels.csv. A list has a class in each line, in the order of the images: ImageNet's synset labels, or
the numbers of ImageNet's development kit, which are resolved with the kit's meta.mat.
"""

import csv
import re
from collections.abc import Sequence
from pathlib import Path, PurePath

from deit_fast.data.sources.classes import one_form, read_text
from deit_fast.runtime.errors import DataError, RunError, brief, one_line, printable

_LEVELS = 4  # Kaggle's LOC_val_solution.csv lies three folders above ILSVRC/Data/CLS-LOC/val
_PUBLISHED = (
    "val_annotations.txt",
    "LOC_val_solution.csv",
    "imagenet_2012_validation_synset_labels.txt",
    "ILSVRC2012_validation_ground_truth.txt",
    "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt",
)
_GENERAL = ("labels", "annotations", "metadata")
_META = "meta.mat"
EXPECTED = (
    "a line for each image with its name and its class, or its class alone in the order of the images "
    "(LOC_val_solution.csv, val_annotations.txt, a list of synsets)"
)


def find_label_file(folder: Path) -> Path | None:
    """The file of labels for a folder of images: in the folder, beside it, or further up if it has a published name."""
    of_folder = [f"{folder.name}{end}" for end in ("", "_labels", "_annotations")]
    general = [f"{stem}.{suffix}" for stem in (*of_folder, *_GENERAL) for suffix in ("csv", "tsv", "txt")]
    places = [folder, *folder.absolute().parents][: _LEVELS + 1]
    found = [place / name for place in places for name in _PUBLISHED if (place / name).is_file()]
    found.sort(key=lambda path: "ground_truth" in path.name)  # last: such a file needs the kit's meta.mat as well
    found += [place / name for place in places[:2] for name in general if (place / name).is_file()]
    return found[0] if found else None


def label_files(path: Path) -> list[Path]:
    """The existing files that `read_labels` may read: the file at `path` and the development kit's meta.mat."""
    return [each for each in (path, path.with_name(_META)) if each.exists()]


def read_labels(path: Path, folder: str, names: Sequence[str]) -> list[str]:
    """The class of each image, as the file names or numbers it. names: of the folder's images, in their order.

    Raises DataError, one line, where an image has no label or a line names no image.
    """
    text = read_text(path, EXPECTED)
    rows = _read_rows(text)
    keys = _by_key(names)
    if any(_find(keys, row[0]) is not None for row in rows[:2]):
        labels = _take_table(path, folder, names, keys, rows)
    else:
        labels = _take_list(path, folder, names, [line.strip() for line in text.splitlines() if line.strip()])
    numbers = [int(label) for label in labels if label.isascii() and label.isdigit()]
    if len(numbers) == len(labels) and 0 not in numbers:
        return _take_devkit(path, numbers)
    return labels


def _read_rows(text: str) -> list[list[str]]:
    """The cells of each line, at least one; separated by tabs, commas, semicolons or white space."""
    lines = [line for line in text.splitlines() if line.strip()]
    first = lines[0] if lines else ""
    delimiter = next((each for each in "\t,;" if each in first), None)
    if delimiter is None:
        return [line.split() for line in lines]
    return [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter)]


def _by_key(names: Sequence[str]) -> dict[str, int | None]:
    """Image index by path in the folder, by file name, and by file name without suffix; None for a key of two images.

    Keys are precomposed characters (NFC), as is the text of the file of labels.
    """
    keys: dict[str, int | None] = {}
    for index, name in enumerate(one_form(names)):
        path = PurePath(name)
        for key in {name, path.name, path.stem, str(path.with_suffix(""))}:
            keys[key] = index if keys.get(key, index) == index else None
    return keys


def _find(keys: dict[str, int | None], name: str) -> int | None:
    index = keys.get(name.removeprefix("./"))
    return index if index is not None else keys.get(PurePath(name).name)


def _take_table(
    path: Path, folder: str, names: Sequence[str], keys: dict[str, int | None], rows: list[list[str]]
) -> list[str]:
    boxes = len(rows[0]) > 1 and rows[0][1] == "PredictionString"  # the class, then the corners of a box, repeated
    if _find(keys, rows[0][0]) is None:
        rows = rows[1:]  # without the column names
    labels: dict[int, str] = {}
    for row in rows:
        index = _find(keys, row[0])
        if index is None:
            raise DataError(
                f"{path}: expected labels of the {len(names)} images in {folder}, {brief(row[0])} is none of them"
            )
        label = row[1].split(" ")[0] if len(row) > 1 and boxes else row[1] if len(row) > 1 else ""
        if not label:
            raise DataError(f"{path}: expected a class behind the name of {brief(row[0])}, found none")
        if labels.setdefault(index, label) != label:
            raise DataError(f"{path}: expected one class of {brief(row[0])}, found {labels[index]!r} and {label!r}")
    missing = next((index for index in range(len(names)) if index not in labels), None)
    if missing is not None:
        raise DataError(
            f"{path}: expected a label for each of the {len(names)} images in {folder}, found {len(labels)}; "
            f"{printable(names[missing])} has none"
        )
    return [labels[index] for index in range(len(names))]


def _take_list(path: Path, folder: str, names: Sequence[str], lines: list[str]) -> list[str]:
    if len(lines) != len(names):
        raise DataError(
            f"{path}: expected {EXPECTED}; {folder} has {len(names)} images, the file {len(lines)} lines, "
            f"and no name of an image starts the first"
        )
    natural = sorted(names, key=lambda name: [int(part) if part.isdigit() else part for part in _PARTS.split(name)])
    if natural != list(names):
        raise DataError(
            f"{path}: expected the name of its image in every line, as their order by number is not that by name "
            f"({printable(natural[-1])} is not the last of {folder})"
        )
    return lines


_PARTS = re.compile(r"(\d+)")


def _take_devkit(path: Path, numbers: list[int]) -> list[str]:
    """Synsets of the ids in ImageNet's development kit, from the meta.mat beside its ground truth."""
    meta = path.with_name(_META)
    numbered = f"{path}: expected classes by name, or by number from 0 on; found numbers from {min(numbers)} on"
    if not meta.is_file():
        raise DataError(
            f"{numbered}, as ImageNet's development kit has them, whose order is not that of the sorted synsets; put "
            f"the kit's meta.mat beside the file, or take Kaggle's LOC_val_solution.csv or a list of synsets"
        )
    try:
        from scipy.io import loadmat
    except ImportError:
        raise RunError(f"{meta}: expected scipy, not installed, to read it: pip install scipy") from None
    try:
        synsets = loadmat(str(meta), squeeze_me=True)["synsets"]
        synset_of = {int(each["ILSVRC2012_ID"]): str(each["WNID"]) for each in synsets}
    except Exception as error:  # raised by scipy for a file that is no .mat
        raise DataError(f"{meta}: expected the development kit's synsets ({one_line(error)})") from None
    unknown = next((number for number in numbers if number not in synset_of), None)
    if unknown is not None:
        raise DataError(f"{path}: expected ids of {meta}, found {unknown}")
    return [synset_of[number] for number in numbers]
