"""iNaturalist's annotations: classes at every level, both layouts of the images, and one line for what is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from deit_fast.data.sources.open import find_validation, open_source
from deit_fast.runtime.errors import DataError
from tests.image_files import encode, refused, write

# id: name, genus, kingdom; category 3 has no training images.
SPECIES = {
    0: ("Zea mays", "Zea", "Plantae"),
    1: ("Apis mellifera", "Apis", "Animalia"),
    2: ("Apis cerana", "Apis", "Animalia"),
    3: ("Ursus arctos", "Ursus", "Animalia"),
    11: ("Acer rubrum", "Acer", "Plantae"),
}
TRAIN = [11, 2, 0, 1, 2]  # the categories of the images, in their order
VAL = [0, 11, 1]


def categories() -> list[dict[str, Any]]:
    rows = [{"id": key, "name": n, "genus": g, "kingdom": k} for key, (n, g, k) in SPECIES.items()]
    return rows[::-1]  # the order in the file decides nothing


def write_inat(root: Path, year: int = 2018, *, apart: bool = True, short: bool = False) -> Path:
    """The files of a year. apart: the taxonomy is in categories.json. short: no folders of supercategories."""
    obfuscated = [{"id": key, "name": str(key), "supercategory": "Plantae"} for key in SPECIES]
    for split, labels in (("train", TRAIN), ("val", VAL)):
        images = []
        for number, label in enumerate(labels):
            name = f"train_val{year}/{SPECIES[label][2]}/{label}/{split}{number}.jpg"
            images.append({"id": 100 + number, "file_name": name})
            stored = name.replace(f"/{SPECIES[label][2]}/", "/") if short else name
            write(root / stored, encode(10 + number, 20 + label))
        annotations = [{"id": 7 * n, "image_id": 100 + n, "category_id": label} for n, label in enumerate(labels)]
        content = {"images": images, "annotations": annotations[::-1]}
        content["categories"] = obfuscated if apart else categories()
        write(root / f"{split}{year}.json", json.dumps(content).encode())
    if apart:
        write(root / "categories.json", json.dumps(categories()).encode())
    return root


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("short", [True, False])
def test_the_class_is_the_level_asked_for(tmp_path: Path, apart: bool, short: bool) -> None:
    root = str(write_inat(tmp_path, 2018 if short else 2019, apart=apart, short=short))
    for category, classes in (
        ("name", ["Zea mays", "Apis mellifera", "Apis cerana", "Acer rubrum"]),  # in the order of their ids
        ("genus", ["Acer", "Apis", "Zea"]),
        ("kingdom", ["Animalia", "Plantae"]),
    ):
        field = ("name", "genus", "kingdom").index(category)
        for split, labels in (("train", TRAIN), ("val", VAL)):
            source = open_source(root, split, category)  # type: ignore[arg-type]
            assert source.classes == classes
            assert [source.classes[label] for label in source.labels] == [SPECIES[label][field] for label in labels]
            for number, label in enumerate(labels):
                assert source.name(number).endswith(f"/{label}/{split}{number}.jpg")
                assert source.header(number, source.read(number))[:2] == (10 + number, 20 + label)
    assert find_validation(root) == root


def test_errors_name_the_file(tmp_path: Path) -> None:
    root = write_inat(tmp_path)
    path = root / "val2018.json"
    whole = json.loads(path.read_text())

    def change(**parts: Any) -> str:
        path.write_text(json.dumps({**whole, **parts}))
        return refused(root, "val")

    assert "asked for its training or its validation" in refused(root)
    with pytest.raises(DataError, match=r"expected images with annotations .* 'family'"):
        open_source(str(root), "train", "family")
    assert change(images=[]) == f"{path}: expected images, it lists none"
    assert "category 3: expected one with images in train2018.json" in change(
        annotations=[{**each, "category_id": 3} for each in whole["annotations"]]
    )
    assert change(annotations=[]).startswith(f"{path}: expected images with annotations")
    assert change(images=7).startswith(f"{path}: expected images with annotations")
    path.write_text(json.dumps(whole)[:50])
    assert refused(root, "val").startswith(f"{path}: expected readable annotations")
    path.unlink()
    assert refused(root, "val").startswith(f"{path}: expected readable annotations")
    assert find_validation(str(root)) is None
    (root / "train_val2018").rename(root / "elsewhere")
    assert "expected the first image that the annotations list" in refused(root, "train")
    (root / "train2019.json").touch()
    assert "annotations of one year" in refused(root, "train")


def test_other_data_has_no_taxonomy(folder_data: Path) -> None:
    with pytest.raises(DataError, match=r"data.category='genus': expected iNaturalist's annotations"):
        open_source(str(folder_data), "train", "genus")
