"""Encoded images, files and shards for tests of data sets, and the message of a data set that cannot be opened."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deit_fast.data.sources.open import open_source
from deit_fast.runtime.errors import DataError


def encode(height: int = 12, width: int = 17, kind: str = "JPEG", mode: str = "RGB", **options: object) -> bytes:
    random = np.random.default_rng(height * width)
    image = Image.fromarray(random.integers(0, 255, (height, width, 3), np.uint8)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def write_tar(path: Path, members: dict[str, bytes], kind: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def samples(start: int, count: int, suffix: str = "jpg") -> dict[str, bytes]:
    members = {}
    for number in range(start, start + count):
        members[f"s{number:03}.{suffix}"] = encode(10 + number, 20)
        members[f"s{number:03}.cls"] = f"{number % 3}\n".encode()
    return members


def refused(uri: Path | str, split: str | None = None, kind: type[Exception] = DataError) -> str:
    """The message of the error that opening raises; it has to be one line."""
    with pytest.raises(kind) as error:
        open_source(str(uri), split)
    assert "\n" not in str(error.value)
    return str(error.value)
