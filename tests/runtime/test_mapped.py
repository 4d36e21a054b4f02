"""Arrays in files: what was written or an error, mapped where that is safe; and which file system holds a path."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deit_fast.runtime import mapped, mounts

ARRAYS: dict[str, np.ndarray] = {
    "bytes": np.frombuffer(b"abc", np.uint8),
    "numbers": np.arange(7, dtype=np.uint32),
    "none": np.empty(0, np.int64),
    "table": np.arange(12, dtype=np.int64).reshape(3, 4),
    "large": np.array([2**64 - 1, 2**63], np.uint64),
}
CONTENT = {"name": "M\u00fc\udcff", "classes": ["a", "b"], "number": 3}


def is_mapped(array: Any) -> bool:
    while isinstance(array, np.ndarray):
        array = array.base
    return isinstance(memoryview(array).obj, mapped.mmap.mmap)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    mapped.write_arrays(path, CONTENT, ARRAYS)
    content, arrays = mapped.read_arrays(path)
    assert content == mapped.read_content(path) == CONTENT
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        assert np.array_equal(arrays[name], array)
        assert not arrays[name].flags.writeable
    assert is_mapped(arrays["table"])
    path.unlink()
    mapped.write_arrays(path, {}, {"other": np.arange(3)})  # a process that has the earlier file keeps its content
    assert np.array_equal(arrays["table"], ARRAYS["table"])


def test_any_damage_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    mapped.write_arrays(path, CONTENT, ARRAYS)
    whole = path.read_bytes()
    damaged = [whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :] for at in range(0, len(whole), 3)]
    damaged += [whole[:size] for size in range(len(whole))] + [whole + b"\0" * 8, b"[]", whole[:8] + b"\xff" * 99]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"^{path}: expected"):
            mapped.read_arrays(path)
    path.unlink()
    with pytest.raises(OSError, match="No such file"):
        mapped.read_arrays(path)


def test_a_network_file_systems_file_is_read_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mapped.write_arrays(tmp_path / "file", CONTENT, ARRAYS)
    monkeypatch.setattr(mapped, "find_mount", lambda path: mounts.Mount("nfs4", "server:/export"))
    content, arrays = mapped.read_arrays(tmp_path / "file")
    assert content == CONTENT
    assert all(np.array_equal(arrays[name], array) for name, array in ARRAYS.items())
    assert not is_mapped(arrays["table"])


MOUNTS = """22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 {device} / / rw,relatime shared:1 - {kind} {source} rw,errors=remount-ro
30 27 259:7 / /other rw master:1 - xfs /dev/nvme1n1 rw
"""


@pytest.mark.parametrize(
    ("kind", "source", "shared", "translated"),
    [
        ("ext4", "/dev/vda", False, False),
        ("nfs4", "10.0.0.7:/export/data", True, False),
        ("lustre", "10.0.0.1@tcp:/scratch", True, False),
        ("cifs", "//server/share", True, False),
        ("overlay", "overlay", False, False),
        ("fuse.gcsfuse", "bucket", False, True),
        ("fuse", "mountpoint-s3", False, True),
    ],
)
def test_the_file_system_of_a_path(
    tmp_path: Path, kind: str, source: str, shared: bool, translated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = os.stat(tmp_path).st_dev
    table = tmp_path / "mountinfo"
    table.write_text(MOUNTS.format(device=f"{os.major(number)}:{os.minor(number)}", kind=kind, source=source))
    monkeypatch.setattr(mounts, "MOUNTS", table)
    found = mounts.find_mount(tmp_path)
    assert found == (kind, source)
    assert (found.is_shared, found.is_translated) == (shared, translated)
    for text in ("", "27 1\n", MOUNTS.format(device="9:99999", kind="nfs", source="a:/")):
        table.write_text(text)
        assert mounts.find_mount(tmp_path) == ("", "")
    table.unlink()
    assert not mounts.find_mount(tmp_path).is_shared
