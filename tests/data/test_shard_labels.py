"""Shards as others write them: where the label is, how keys end, and one line where neither is clear."""

import json
from pathlib import Path

import numpy as np
import pytest

from deit_fast.cli.main import main
from deit_fast.data.sources.open import open_source
from deit_fast.data.sources.salvage import SalvagedShards
from deit_fast.data.tools.check import check_source, open_to_check
from deit_fast.runtime.errors import DataError
from tests.image_files import encode, refused, write, write_tar

pytestmark = pytest.mark.usefixtures("cache")

IMAGES = [encode(10 + number) for number in range(4)]
LABELS = [2, 0, 1, 2]
NAMES = ["ant", "bee", "cow"]


def opened(folder: Path) -> list[tuple[bytes, str]]:
    """Every image with its class, the same at all doors: strict, salvaging and checking."""
    found = []
    for source in (
        open_source(str(folder), "train"),
        open_source(str(folder), "train", open_shards=SalvagedShards),
        open_to_check(str(folder), "train"),
        open_source(f"file://{folder}", "train"),
    ):
        assert not getattr(source, "faults", None)
        found.append(
            [
                (source.read(index).tobytes(), source.classes[label])
                for index, label in enumerate(source.labels.tolist())
            ]
        )
    assert all(each == found[0] for each in found)
    return found[0]


LABEL_FORMS = {
    "cls": lambda label: ("cls", str(label).encode()),
    "cls with a mark": lambda label: ("cls", b"\xef\xbb\xbf%d\r\n" % label),
    "json": lambda label: ("json", json.dumps({"filename": "n.JPEG", "label": label, "width": 3}).encode()),
    "json class_id": lambda label: ("json", json.dumps({"class_id": label, "class_name": "x"}).encode()),
    "json text": lambda label: ("json", json.dumps({"label": str(label)}).encode()),
    "json alone": lambda label: ("json", json.dumps(label).encode()),
    "txt": lambda label: ("txt", b"%d\n" % label),
    "target.cls": lambda label: ("target.cls", str(label).encode()),
}


@pytest.mark.parametrize("form", LABEL_FORMS)
@pytest.mark.parametrize("key", ["s{}", "deep/er.d/s{}", "a/{}"])
@pytest.mark.parametrize("image", ["jpg", "input.jpg", "JPEG"])
def test_numbers_of_every_kind(tmp_path: Path, form: str, key: str, image: str) -> None:
    content: dict[str, bytes] = {}
    for number, label in enumerate(LABELS):
        ending, data = LABEL_FORMS[form](label)
        content |= {f"{key.format(number)}.{image}": IMAGES[number], f"{key.format(number)}.{ending}": data}
    write_tar(tmp_path / "train-0.tar", content)
    assert opened(tmp_path) == [(data, str(label)) for data, label in zip(IMAGES, LABELS, strict=True)]


def test_the_published_shards_of_imagenet(tmp_path: Path) -> None:
    content: dict[str, bytes] = {}
    for number, label in enumerate(LABELS):  # timm/imagenet-1k-wds
        content[f"n0144076{label}_{number}.cls"] = str(label).encode()
        content[f"n0144076{label}_{number}.jpg"] = IMAGES[number]
        content[f"n0144076{label}_{number}.json"] = json.dumps({"label": label, "filename": "x.JPEG"}).encode()
    write_tar(tmp_path / "imagenet1k-train-0000.tar", content)
    assert opened(tmp_path) == [(data, str(label)) for data, label in zip(IMAGES, LABELS, strict=True)]


@pytest.mark.parametrize("form", ["cls", "json", "txt", "json name"])
def test_names_of_classes_txt(tmp_path: Path, form: str) -> None:
    content: dict[str, bytes] = {}
    for number, label in enumerate(LABELS):
        name = NAMES[label]
        data = {"json": json.dumps({"label": name}), "json name": json.dumps({"class_name": name})}.get(form, name)
        content |= {f"s{number}.jpg": IMAGES[number], f"s{number}.{form.split()[0]}": data.encode()}
    write_tar(tmp_path / "train-0.tar", content)
    kind = form.split()[0]
    assert f"expected a class number in the .{kind} of s0.jpg, found 'cow' (to give classes by name" in refused(
        tmp_path, "train"
    )
    write(tmp_path / "classes.txt", b"ant\nbee\ncow\ndog\n")
    assert opened(tmp_path) == [(data, NAMES[label]) for data, label in zip(IMAGES, LABELS, strict=True)]
    write(tmp_path / "classes.txt", b"ant\nbee\n")
    assert "found 'cow'" in refused(tmp_path, "train")


@pytest.mark.parametrize("above", ["", "train/", "./", "a.b/"])
def test_folders_that_are_labels(tmp_path: Path, above: str, capsys: pytest.CaptureFixture[str]) -> None:
    parts: tuple[dict[str, bytes], dict[str, bytes]] = {}, {}
    for number, label in enumerate(LABELS):
        parts[number % 2][f"{above}{NAMES[label]}/{number}.JPEG"] = IMAGES[number]
    for number, part in enumerate(parts):  # the classes of one shard are not those of the other
        write_tar(tmp_path / f"train-{number}.tar", part)
    expected = [(IMAGES[number], NAMES[LABELS[number]]) for number in (0, 2, 1, 3)]
    assert opened(tmp_path) == expected
    assert open_source(str(tmp_path), "train").classes == NAMES
    assert main(["data", "check", str(tmp_path), "--threads", "1"]) == 0
    assert "4 images of 3 classes" in capsys.readouterr().out
    write(tmp_path / "classes.txt", b"cow\nbee\nant\n")
    assert opened(tmp_path) == expected
    assert open_source(str(tmp_path), "train").classes == ["cow", "bee", "ant"]
    write(tmp_path / "classes.txt", b"cow\nbee\n")
    assert refused(tmp_path, "train") == (
        f"{tmp_path / 'classes.txt'}: expected the names of all folders in the shards, 'ant' is not there"
    )


def test_folders_that_are_no_labels(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "one" / "train-0.tar", {f"data/{n}.jpg": IMAGES[n] for n in range(3)})
    assert refused(tmp_path / "one", "train").startswith(f"{shard}: expected KEY.jpg and KEY.cls side by side")
    assert "all in the folder 'data'" in refused(tmp_path / "one", "train")
    content = {"cat/0.jpg": IMAGES[0], "cat/0.cls": b"0", "dog/1.jpg": IMAGES[1]}  # one label was lost
    write_tar(tmp_path / "lost" / "train-0.tar", content)
    assert "dog/1 has no cls" in refused(tmp_path / "lost", "train")
    assert [reason for _, reason in check_source(open_to_check(str(tmp_path / "lost"), "train"), 1).bad] == [
        "dog/1 has no cls"
    ]
    write_tar(tmp_path / "mixed" / "train-0.tar", {"cat/0.jpg": IMAGES[0], "dog/1.jpg": IMAGES[1]})
    write_tar(tmp_path / "mixed" / "train-1.tar", {"cat/2.jpg": IMAGES[2], "cat/2.cls": b"1"})
    assert "train-0.tar: expected labels (KEY.cls) as in train-1.tar, found none" in refused(
        tmp_path / "mixed", "train"
    )
    assert [reason for _, reason in check_source(open_to_check(str(tmp_path / "mixed"), "train"), 1).bad] == [
        "cat/0 has no cls", "dog/1 has no cls",
    ]  # fmt: skip


@pytest.mark.parametrize("key", ["photo.{}", "2024.05.{}", "v1.0/img.{}.small", "x/n01.{}.{}"])
def test_keys_with_dots(tmp_path: Path, key: str) -> None:
    content: dict[str, bytes] = {}
    for number, label in enumerate(LABELS):
        name = key.format(*[f"{number:03}"] * 2)
        content |= {f"{name}.jpg": IMAGES[number], f"{name}.cls": str(label).encode()}
    write_tar(tmp_path / "train-0.tar", content)
    assert opened(tmp_path) == [(data, str(label)) for data, label in zip(IMAGES, LABELS, strict=True)]
    name = key.format("003", "003")
    del content[f"{name}.cls"]  # whose label is which, nobody knows from here on
    write_tar(tmp_path / "train-0.tar", content)
    assert refused(tmp_path, "train").startswith(f"{tmp_path / 'train-0.tar'}: expected")


@pytest.mark.parametrize(
    ("content", "both"),
    [
        ({"a.input.jpg": IMAGES[0], "a.output.jpg": IMAGES[1], "a.cls": b"0"}, "a.input.jpg and a.output.jpg"),
        ({"a.jpg": IMAGES[0], "a.one.cls": b"0", "a.two.cls": b"1"}, "a.one.cls and a.two.cls"),
        ({"a.1.jpg": IMAGES[0], "a.2.cls": b"1"}, "a.1.jpg and a.2.cls"),
        ({"a.1.jpg": IMAGES[0], "a.1.cls": b"0", "a.2.jpg": IMAGES[1]}, "a.2 has no cls"),
    ],
)
def test_what_may_be_either_is_refused_with_the_rule(tmp_path: Path, content: dict[str, bytes], both: str) -> None:
    shard = write_tar(tmp_path / "train-0.tar", content)
    message = refused(tmp_path, "train")
    assert message.startswith(f"{shard}: expected ")
    assert both in message
    assert "a key ends at the first dot" in message
    assert len(check_source(open_to_check(str(tmp_path), "train"), 1).bad) == 1
    with pytest.raises(DataError):
        open_source(str(tmp_path), "train", open_shards=SalvagedShards)


def test_a_plain_ending_goes_before_others(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "train-0.tar",
        {"a.jpg": IMAGES[0], "a.mask.png": IMAGES[1], "a.cls": b"1", "a.json": b'{"label": 2}', "a.txt": b"a caption"},
    )
    assert opened(tmp_path) == [(IMAGES[0], "1")]


@pytest.mark.parametrize(
    "label", [b"{}", b'{"label": true}', b'{"label": -1}', b'{"label": 1.5}', b"[1]", b"{", b"\xff"]
)
def test_a_json_without_a_class_is_named(tmp_path: Path, label: bytes) -> None:
    write_tar(tmp_path / "train-0.tar", {"a.jpg": IMAGES[0], "a.json": label})
    assert "expected a class number in the .json of a.jpg, found " in refused(tmp_path, "train")
    ((name, reason),) = check_source(open_to_check(str(tmp_path), "train"), 1).bad
    assert (Path(name).name, reason.startswith("a.json: expected a class number below")) == ("train-0.tar", True)


def test_a_cut_shard_of_folders_is_salvaged(tmp_path: Path) -> None:
    content = {f"{NAMES[n % 3]}/{n}.jpg": encode(10 + n) for n in range(9)}
    shard = write_tar(tmp_path / "train-0.tar", content)
    write_tar(tmp_path / "train-1.tar", content)
    whole = open_source(str(tmp_path), "train", open_shards=SalvagedShards)
    data = shard.read_bytes()
    shard.write_bytes(data[: data.index(encode(15)) + 5])
    source = open_source(str(tmp_path), "train", open_shards=SalvagedShards)
    assert len(source) == 18
    assert np.array_equal(source.labels[:5], whole.labels[:5])
    assert np.array_equal(source.labels[9:], whole.labels[9:])
    with pytest.raises(DataError, match="lost with its shard"):
        source.read(5)
