"""Images without class folders: every published file of labels, and one line for one that does not fit."""

from pathlib import Path

import numpy as np
import pytest

from deit_fast.cli.main import main
from deit_fast.data.sources.classes import match_classes
from deit_fast.data.sources.open import find_validation, open_source
from deit_fast.runtime.errors import DataError
from tests.image_files import encode, refused, write

SYNSETS = ["n02119789", "n01440764", "n02123045", "n01440764"]
CLASSES = ["n01440764", "n02119789", "n02123045"]
LABELS = [1, 0, 2, 0]
NAMES = [f"ILSVRC2012_val_{number:08}" for number in range(1, 5)]

LISTS = {
    "LOC_val_solution.csv": "ImageId,PredictionString\n"
    + "".join(f"{NAMES[n]},{SYNSETS[n]} 1 2 3 4 {SYNSETS[n]} 5 6 7 8 \n" for n in (2, 0, 3, 1)),
    "imagenet_2012_validation_synset_labels.txt": "".join(f"{synset}\n" for synset in SYNSETS),
    "val.txt": "".join(f"{name}.JPEG {label}\n" for name, label in zip(NAMES, LABELS, strict=True)),
    "labels.csv": "id,breed\n" + "".join(f'{name},"{synset}"\n' for name, synset in zip(NAMES, SYNSETS, strict=True)),
    "labels.txt": "image;class\n" + "".join(f"{name};{synset}\n" for name, synset in zip(NAMES, SYNSETS, strict=True)),
    "labels.tsv": "".join(f"./{name}.JPEG\t{synset}\tx\n" for name, synset in zip(NAMES, SYNSETS, strict=True)),
    "val_labels.txt": "".join(f"{label}\n" for label in LABELS),
    "metadata.csv": "\ufefffile_name,label\r\n"
    + "".join(f"{name}.JPEG,{label}\r\n" for name, label in zip(NAMES, LABELS, strict=True)),
}


def imagenet_val(root: Path) -> Path:
    for number, name in enumerate(NAMES):
        write(root / f"{name}.JPEG", encode(10 + number))
    return root


def check_labels(uri: Path, **given: Path) -> None:
    source = open_source(str(uri), "val", **given)
    assert [Path(source.name(index)).stem for index in range(4)] == NAMES
    assert source.labels.tolist() == LABELS
    assert source.classes in (CLASSES, ["0", "1", "2"])
    assert [source.read(number).tobytes() for number in range(4)] == [encode(10 + number) for number in range(4)]
    match_classes(source, CLASSES, "the model's classes")


@pytest.mark.parametrize("name", LISTS)
def test_imagenets_validation_set_as_it_comes(tmp_path: Path, name: str) -> None:
    root = imagenet_val(tmp_path / "set" / "val")
    named = write(tmp_path / "elsewhere" / "file", LISTS[name].encode())
    check_labels(root, labels=named)
    for place in (root.parent, root):  # beside the folder or in it, found by its name
        found = write(place / name, LISTS[name].encode())
        check_labels(root)
        assert open_source(str(root)).place == f"{root}, labels of {found}"
        found.unlink()
    write(root.parent / "train" / CLASSES[0] / "a.JPEG", encode())
    write(root.parent / name, LISTS[name].encode())
    check_labels(root.parent)
    assert find_validation(str(root.parent)) == str(root)


def test_kaggles_folders(tmp_path: Path) -> None:
    root = imagenet_val(tmp_path / "ILSVRC" / "Data" / "CLS-LOC" / "val")
    write(tmp_path / "LOC_val_solution.csv", LISTS["LOC_val_solution.csv"].encode())
    check_labels(root)


def test_tiny_imagenets_validation_set_as_it_comes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "tiny-imagenet-200"
    lines = ""
    for number in range(12):
        write(root / "val" / "images" / f"val_{number}.JPEG", encode(10 + number))
        lines += f"val_{number}.JPEG\t{CLASSES[number % 3]}\t0\t32\t44\t62\n"
        write(root / "train" / CLASSES[number % 3] / "images" / f"{number}.JPEG", encode())
        write(root / "test" / "images" / f"test_{number}.JPEG", encode())
    for name in CLASSES:
        write(root / "train" / name / f"{name}_boxes.txt", b"0.JPEG\t0\t1\t2\t3\n")
    for name in ("wnids.txt", "words.txt"):
        write(root / name, "".join(f"{each}\n" for each in CLASSES).encode())
    assert f"{root}/val/images: expected a folder of images for every class, found 12 images and no file" in refused(
        root, "val"
    )
    write(root / "val" / "val_annotations.txt", lines.encode())
    train, val = open_source(str(root), "train"), open_source(str(root), "val")
    assert train.classes == val.classes == CLASSES
    assert {Path(val.name(index)).stem: label for index, label in enumerate(val.labels.tolist())} == {
        f"val_{number}": number % 3 for number in range(12)
    }
    assert main(["data", "check", str(root), "--threads", "1"]) == 0
    assert capsys.readouterr().out.count("12 images of 3 classes") == 2
    assert main(["data", "shard", str(root), str(tmp_path / "out"), "--workers", "1"]) == 0
    stored = open_source(str(tmp_path / "out"), "val")
    assert np.bincount(stored.labels).tolist() == [4, 4, 4]
    assert stored.classes == CLASSES


def test_shards_keep_the_names_where_validation_has_numbers(tmp_path: Path) -> None:
    for name in CLASSES:
        write(tmp_path / "set" / "train" / name / "a.JPEG", encode())
    imagenet_val(tmp_path / "set" / "val")
    write(tmp_path / "set" / "val.txt", LISTS["val.txt"].encode())
    assert main(["data", "shard", str(tmp_path / "set"), str(tmp_path / "out"), "--workers", "1"]) == 0
    assert (tmp_path / "out" / "classes.txt").read_text().split() == CLASSES
    assert np.bincount(open_source(str(tmp_path / "out"), "val").labels).tolist() == [2, 1, 1]


def test_the_development_kits_numbers(tmp_path: Path) -> None:
    root = imagenet_val(tmp_path / "val")
    ids = {"n02119789": 1, "n02123045": 2, "n01440764": 3}  # not in the order of the synsets
    path = tmp_path / "ILSVRC2012_devkit_t12" / "data" / "ILSVRC2012_validation_ground_truth.txt"
    write(path, "".join(f"{ids[synset]}\n" for synset in SYNSETS).encode())
    message = refused(root)
    assert message.startswith(f"{path}: expected classes by name, or by number from 0 on; found numbers from 1 on")
    assert "put the kit's meta.mat beside the file" in message
    scipy_io = pytest.importorskip("scipy.io", reason="needs scipy to write a meta.mat")
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    rows = [(number, synset, "a thing", 0) for synset, number in ids.items()] + [(1001, "n00000001", "things", 3)]
    scipy_io.savemat(path.with_name("meta.mat"), {"synsets": np.array(rows, dtype=kind)})
    check_labels(root)
    write(path.with_name("meta.mat"), b"none")
    assert "meta.mat: expected the development kit's synsets" in refused(root)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a\nb\n", "has 4 images, the file 2 lines"),
        (f"{NAMES[0]} a\n{NAMES[1]} b\n", f"found 2; {NAMES[2]}.JPEG has none"),
        ("".join(f"{name} a\n" for name in [*NAMES, "other"]), "other is none of them"),
        ("".join(f"{name},\n" for name in NAMES), f"expected a class behind the name of {NAMES[0]}, found none"),
        ("".join(f"{name}\n" for name in NAMES), f"expected a class behind the name of {NAMES[0]}, found none"),
        ("".join(f"{name} a\n" for name in NAMES) + f"{NAMES[1]} b\n", f"expected one class of {NAMES[1]}, found 'a'"),
        ("1\n2\n3\n1\n", "by number from 0 on; found numbers from 1 on"),
        ("", "has 4 images, the file 0 lines"),
    ],
)
def test_a_file_that_does_not_fit(tmp_path: Path, text: str, told: str) -> None:
    root = imagenet_val(tmp_path / "val")
    path = write(tmp_path / "file.txt", text.encode())
    with pytest.raises(DataError) as error:
        open_source(str(root), labels=path)
    assert str(error.value).startswith(f"{path}: expected ")
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_list_needs_one_order_of_the_images(tmp_path: Path) -> None:
    for number in (0, 1, 10, 2):
        write(tmp_path / "val" / f"val_{number}.JPEG", encode())
    path = write(tmp_path / "val_labels.txt", b"a\nb\na\nb\n")
    assert refused(tmp_path / "val").startswith(f"{path}: expected the name of its image in every line")


def test_what_is_missing_is_said(tmp_path: Path, folder_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = imagenet_val(tmp_path / "val")
    message = refused(root)
    assert message.startswith(
        f"{root}: expected a folder of images for every class, found 4 images and no file of their"
    )
    assert "--labels FILE" in message
    assert "LOC_val_solution.csv" in message
    path = write(tmp_path / "synsets", LISTS["val_labels.txt"].encode())
    assert main(["data", "check", str(root), "--labels", str(path), "--threads", "1"]) == 0
    assert "4 images of 3 classes" in capsys.readouterr().out
    assert main(["data", "check", str(folder_data), "--labels", str(path)]) == 2
    assert f"--labels {path}: expected a folder of images without class folders" in capsys.readouterr().err
    assert main(["data", "check", str(root), "--labels", str(tmp_path / "none")]) == 2
    assert f"{tmp_path / 'none'}: expected a line for each image" in capsys.readouterr().err
