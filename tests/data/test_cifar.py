"""CIFAR's downloads: torchvision's pixels and labels, lossless through DALI, and pickles that run nothing."""

import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from numpy.typing import NDArray

from deit_fast.data.loader.batches import EvalLoader
from deit_fast.data.sources.open import find_validation, open_source
from deit_fast.recipe.sections import Data
from deit_fast.runtime.errors import DataError
from tests.image_files import refused, write

Batch = tuple[NDArray[np.uint8], list[int]]  # pixels [N, 3072], labels [N]
NAMES = {10: [f"name {n}" for n in range(10)], 100: [f"fine_{n}" for n in range(100)]}


def batches(classes: int) -> dict[str, Batch]:
    """The batches of a data set of a few images, by the names that its python version has."""
    names = ["train", "test"] if classes == 100 else [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
    made = {}
    for seed, name in enumerate(names):
        random = np.random.default_rng(seed)
        made[name] = random.integers(0, 256, (4, 3072), np.uint8), random.integers(0, classes, 4).tolist()
    return made


def dump_python2(content: object) -> bytes:
    """A pickle as Python 2 with numpy 1 wrote CIFAR's: protocol 2, text as bytes, arrays through _reconstruct."""
    if isinstance(content, str):
        return b"T" + struct.pack("<i", len(content)) + content.encode()  # BINSTRING
    if isinstance(content, int):
        return b"J" + struct.pack("<i", content)
    if isinstance(content, list):
        return b"](" + b"".join(map(dump_python2, content)) + b"e"
    if isinstance(content, dict):
        return b"}(" + b"".join(dump_python2(part) for pair in content.items() for part in pair) + b"u"
    assert isinstance(content, np.ndarray)
    assert content.dtype == np.uint8
    by_column = not content.flags.c_contiguous
    data = content.tobytes(order="F" if by_column else "C")
    shape = b"(" + b"".join(map(dump_python2, content.shape)) + b"t"
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    state = b"(K\x01" + shape + dtype + (b"\x88" if by_column else b"\x89")
    state += b"T" + struct.pack("<i", len(data)) + data + b"t"
    return b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R" + state + b"b"


def write_pickle(path: Path, content: object) -> None:
    write(path, b"\x80\x02" + dump_python2(content) + b".")


def write_python(root: Path, classes: int) -> Path:
    folder = root / ("cifar-100-python" if classes == 100 else "cifar-10-batches-py")
    for number, (name, (pixels, labels)) in enumerate(batches(classes).items()):
        data = np.asfortranarray(pixels) if number == 0 else pixels
        content = {"batch_label": name, "data": data, "filenames": [f"{n}.png" for n in range(4)]}
        content["fine_labels" if classes == 100 else "labels"] = labels
        content |= {"coarse_labels": [0] * 4} if classes == 100 else {}
        write_pickle(folder / name, content)
    key = "fine_label_names" if classes == 100 else "label_names"
    write_pickle(folder / ("meta" if classes == 100 else "batches.meta"), {key: NAMES[classes], "num_vis": 3072})
    return folder


def write_binary(root: Path, classes: int) -> Path:
    folder = root / ("cifar-100-binary" if classes == 100 else "cifar-10-batches-bin")
    for name, (pixels, labels) in batches(classes).items():
        coarse = b"\x05" if classes == 100 else b""
        records = [coarse + bytes([label]) + row.tobytes() for row, label in zip(pixels, labels, strict=True)]
        write(folder / f"{name}.bin", b"".join(records))
    names = "fine_label_names.txt" if classes == 100 else "batches.meta.txt"
    write(folder / names, ("\n".join(NAMES[classes]) + "\n\n").encode())
    return folder


WRITERS = [(write, classes) for write in (write_python, write_binary) for classes in (10, 100)]


@pytest.mark.parametrize(("write_version", "classes"), WRITERS)
def test_every_version_has_torchvisions_pixels_and_labels(
    write_version: object, classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_python(tmp_path, classes)
    folder = str(write_version(tmp_path, classes))  # type: ignore[operator]
    reader = torchvision.datasets.CIFAR100 if classes == 100 else torchvision.datasets.CIFAR10
    monkeypatch.setattr(reader, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    assert find_validation(folder) == folder
    for split in ("train", "val"):
        source = open_source(folder, split)  # type: ignore[arg-type]
        reference = reader(str(tmp_path), train=split == "train")
        assert source.classes == NAMES[classes] == reference.classes
        assert source.labels.tolist() == reference.targets
        images = torch.cat([batch.images[: batch.valid] for batch in
                            EvalLoader(source, Data(), 32, 3, torch.device("cpu"), threads=1)])  # fmt: skip
        assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), reference.data)  # decoded and resized by DALI
        assert source.header(0, source.read(0))[:2] == (32, 32)
        assert source.name(1).endswith(":00001.ppm")


class Bomb:
    def __reduce__(self) -> object:
        return os.mkdir, ("exploded",)


def test_a_pickle_that_runs_code_is_refused_unrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_python(tmp_path, 10)
    for protocol in range(6):
        write(folder / "test_batch", pickle.dumps({"data": Bomb()}, protocol))
        assert "is not in CIFAR's files" in refused(folder, "val")
    for name in (b"cnumpy\nload\n", b"cnumpy.testing\nruncommand\n", b"cbuiltins\neval\n", b"cdeit_fast.cli\nmain\n"):
        write(folder / "test_batch", b"\x80\x02" + name + b"U\x011\x85R.")
        assert "is not in CIFAR's files" in refused(folder, "val")
    write(
        folder / "test_batch", b"\x80\x02cnumpy\ndtype\n}U\x05stateK\x01sb."
    )  # a state for the stand-in's class itself
    assert "test_batch: expected a file of CIFAR's python version" in refused(folder, "val")
    assert not (tmp_path / "exploded").exists()
    pickle.loads(pickle.dumps(Bomb()))  # what it would have done
    assert (tmp_path / "exploded").exists()


def test_what_is_no_batch_is_named(tmp_path: Path) -> None:
    folder, (pixels, labels) = write_python(tmp_path, 10), batches(10)["test_batch"]
    for content in (
        {"data": pixels},
        {"data": pixels[:, :5], "labels": labels},
        {"data": pixels, "labels": labels[:3]},
        {"data": pixels, "labels": [-1, 0, 0, 0]},
        {"data": pixels, "labels": ["0", "1", "2", "3"]},
        {"data": [1, 2], "labels": labels},
        {"data": pixels[:0], "labels": []},
        [1],
    ):
        write_pickle(folder / "test_batch", content)
        assert refused(folder, "val").startswith(f"{folder / 'test_batch'}: expected"), content
    write_pickle(folder / "test_batch", {"data": pixels, "labels": [0, 1, 2, 10]})
    assert refused(folder, "val") == (
        f"{folder / 'batches.meta'}: expected a name for each of at least 11 classes, found 10"
    )
    write_pickle(folder / "batches.meta", {"names": []})
    assert "expected the names of the classes" in refused(folder, "val")
    binary = write_binary(tmp_path, 10)
    with open(binary / "data_batch_3.bin", "ab") as file:
        file.write(b"x")
    assert refused(binary, "train") == (
        f"{binary / 'data_batch_3.bin'}: expected records of 3073 bytes, found {4 * 3073 + 1} bytes in all"
    )
    (binary / "data_batch_3.bin").unlink()
    assert "data_batch_3.bin: expected a readable file" in refused(binary, "train")
    with pytest.raises(DataError, match="asked for its training or its validation"):
        open_source(str(binary))
