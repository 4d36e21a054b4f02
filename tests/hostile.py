"""Images and shards damaged by a seeded generator, and checks of everything that reads them."""

import io
import tarfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from deit_fast.data.loader.batches import Batch, TrainLoader
from deit_fast.data.loader.order import FullOrder
from deit_fast.data.loader.sampler import TrainSampler
from deit_fast.data.sources.base import Source
from deit_fast.data.sources.list_shards import ListedShards
from deit_fast.data.sources.open import open_source
from deit_fast.data.sources.salvage import SalvagedShards
from deit_fast.recipe.sections import Augment
from deit_fast.runtime.errors import DataError, printable
from tests.image_files import encode, write_tar

SIZE = 16
BATCH = 12
CPU = torch.device("cpu")
# Only crop and flip, so that an image keeps its colour, which tells its class.
AUGMENT = Augment(policy="none", color_jitter=0.0)
OPTIONS = [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}, {"format": "PNG"}, {"format": "WEBP"}]
KINDS = ("flips", "cut", "splice", "zeros", "garbage", "empty", "grown", "header", "huge", "gif", "missing")


class Memory(Source):
    """Images of three colours, one for each class, some of them damaged; only the pixels tell the class."""

    def __init__(self, images: list[bytes | None]) -> None:
        super().__init__("memory", ["red", "green", "blue"], np.arange(len(images)) % 3)
        self.images = images

    def read(self, index: int) -> NDArray[np.uint8]:
        image = self.images[index]
        if image is None:
            raise DataError(f"{printable(self.name(index))}: expected a readable file (No such file or directory)")
        return np.frombuffer(image, np.uint8)

    def name(self, index: int) -> str:
        return f"image\n{index:03}.jpg"


def sound_images(count: int, rng: np.random.Generator) -> list[bytes]:
    images = []
    for index in range(count):
        coarse = rng.integers(0, 60, (5, 5, 3))
        coarse[..., index % 3] += 150
        height, width = rng.integers(20, 60, 2).tolist()
        picture = Image.fromarray(coarse.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
        stored = io.BytesIO()
        picture.save(stored, **{"format": "JPEG", "quality": 90, **OPTIONS[index % len(OPTIONS)]})
        images.append(stored.getvalue())
    return images


def damage(kind: str, data: bytes, other: bytes, rng: np.random.Generator) -> bytes | None:
    content = bytearray(data)
    place = int(rng.integers(len(content)))
    if kind == "flips":
        for each in rng.integers(len(content), size=int(rng.integers(1, 9))).tolist():
            content[each] ^= 1 << int(rng.integers(8))
    elif kind == "header":  # the part by which parsers decide how much to allocate
        for each in rng.integers(min(len(content), 250), size=3).tolist():
            content[each] = int(rng.integers(256))
    elif kind == "cut":
        del content[place:]
    elif kind == "splice":
        content[place:] = other[int(rng.integers(len(other))) :]
    elif kind == "zeros":
        content[place : place + 200] = bytes(len(content[place : place + 200]))
    elif kind == "grown":
        content[place:place] = rng.bytes(30)
    elif kind == "garbage":
        content[:] = rng.bytes(len(content))
    elif kind == "huge":
        frame = max(content.find(b"\xff\xc0"), content.find(b"\xff\xc2"))
        content[frame + 5 : frame + 9] = (60000).to_bytes(2, "big") * 2
    elif kind == "gif":
        stored = io.BytesIO()
        Image.new("RGB", (30, 30)).save(stored, "GIF")
        content[:] = stored.getvalue()
    elif kind == "missing":
        return None
    elif kind == "empty":
        content.clear()
    return bytes(content)


def refused_by_decoder(image: bytes) -> bytes:
    """A JPEG with a valid header and end, and an invalid Huffman table."""
    table = image.index(b"\xff\xc4")
    return image[: table + 5] + b"\xff" * 16 + image[table + 21 :]


def batches_of(source: Source, start: int, stop: int, parts: int = 1, part: int = 0) -> list[Batch]:
    samplers = [TrainSampler(FullOrder(len(source), 0), 1, BATCH, parts, part)]
    loader = TrainLoader(source, AUGMENT, SIZE, samplers, 0, CPU, 1, start_step=start, stop_step=stop)
    try:
        return list(loader)
    finally:
        loader.close()


def check_training(seed: int, images: int = 48, share: float = 0.5) -> dict[str, int]:
    """Trains an epoch with a fraction `share` of images damaged, and a part again; returns counts: damaged, bad."""
    rng = np.random.default_rng(seed)
    sound = sound_images(images, rng)
    damaged = {
        index: damage(str(rng.choice(KINDS)), sound[index], sound[index - 1], rng)
        for index in rng.choice(images, int(images * share), replace=False).tolist()
    }
    source = Memory([damaged.get(index, image) for index, image in enumerate(sound)])
    steps = images // BATCH
    batches, bad = batches_of(source, 0, steps), set()
    sampler = TrainSampler(FullOrder(images, 0), 1, BATCH)
    for step, batch in enumerate(batches):
        bad |= batch.bad.keys()
        assert batch.step == step
        assert batch.bad.keys() <= damaged.keys(), "a sound image is called bad"
        assert all("\n" not in reason for reason in batch.bad.values())
        colours = batch.images.float().mean((2, 3)).argmax(1)
        for place, planned in enumerate(sampler.batch(step).indices.tolist()):
            index = int(batch.indices[place])
            assert index == planned or planned in batch.bad, "a substituted image is not named"
            assert batch.labels[place] == index % 3
            if index not in damaged:
                assert colours[place] == batch.labels[place], "a wrong label"
            elif (content := damaged[index]) is None or not _pil_opens(content):
                raise AssertionError(f"image {index} was used and is none")
    assert len(batches) == steps
    start = int(rng.integers(steps))
    for one, other in zip(batches_of(source, start, steps), batches[start:], strict=True):
        np.testing.assert_array_equal(one.indices, other.indices)
        assert torch.equal(one.images, other.images)
        assert one.bad == other.bad
    return {"damaged": len(damaged), "bad": len(bad)}


def check_shard(seed: int, folder: Path) -> bool:
    """Checks that a damaged shard is refused or keeps its labels, also when it is salvaged.

    Returns whether it was refused.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 9, 6).tolist()
    members = {}
    for number, label in enumerate(labels):
        members |= {f"s{number}.jpg": encode(8 + number, 9), f"s{number}.cls": b"%d" % label}
    kind = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)[seed % 3]
    path = write_tar(folder / f"{seed}.tar", members, kind)
    with tarfile.open(path) as archive:
        texts = [member.offset_data for member in archive if member.name.endswith(".cls")]
    content = bytearray(path.read_bytes())
    way, place = int(rng.integers(4)), int(rng.integers(len(content)))
    if way == 0:
        for each in rng.integers(len(content), size=int(rng.integers(1, 5))).tolist():
            if each not in texts:  # a changed digit is a valid label, since tar has no checksum of contents
                content[each] ^= 1 << int(rng.integers(8))
    elif way == 1:
        del content[place:]
    elif way == 2:  # blocks are lost
        del content[place // 512 * 512 : place // 512 * 512 + 512 * int(rng.integers(1, 4))]
    else:  # blocks are repeated
        block = place // 512 * 512
        content[block:block] = content[block : block + 512 * int(rng.integers(1, 4))]
    path.write_bytes(content)
    listed = ListedShards(str(path), [path])
    assert all("\n" not in fault for _, fault in listed.faults)
    for index in range(len(listed)):
        member = listed.name(index).rpartition(":")[2]
        assert listed.labels[index] == labels[int(member[1])], "a wrong label"
    _check_salvaged(path, dict(zip((f"s{number}.jpg" for number in range(6)), labels, strict=True)), listed)
    try:
        source = open_source(str(path))
    except DataError:
        assert listed.faults, "training refuses what the check passes"
        return True
    for index in range(len(source)):
        member = source.name(index).rpartition(":")[2]
        assert source.labels[index] == labels[int(member[1])], "a wrong label"
        assert len(source.read(index)) == len(members[member])
    return False


def _check_salvaged(path: Path, labels: dict[str, int], listed: ListedShards) -> None:
    """Checks that every whole sample is present with its label, and that all others are lost."""
    try:
        source = SalvagedShards(str(path), [path])
    except DataError:
        assert not len(listed) or not listed.faults, "whole samples are refused"
        return
    used = set()
    for index in range(len(source)):
        member = source.name(index).rpartition(":")[2]
        try:
            source.read(index)
        except DataError:
            continue
        assert source.labels[index] == labels[member], "a wrong label"
        used.add(member)
    assert used == {listed.name(index).rpartition(":")[2] for index in range(len(listed))}
    assert bool(listed.faults) == bool(source.damaged)


def _pil_opens(content: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.format != "GIF"
    except Exception:
        return False
