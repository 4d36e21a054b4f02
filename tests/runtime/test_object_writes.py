"""Objects written, copied and removed; s3 is tested with the runs that are kept there (tests/checkpoint)."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.store_server import Store
from deit_fast.runtime.errors import RunError
from deit_fast.runtime.object_store import (
    copy_object,
    fetch,
    find_object,
    list_objects,
    read_object,
    remove_object,
    write_object,
)
from tests.loopback import place, serve_loopback

pytestmark = pytest.mark.usefixtures("cache")
CONTENT = bytes(range(256)) * 10_000


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    with serve_loopback(monkeypatch, tmp_path) as store:
        yield store


@pytest.mark.parametrize("scheme", ["gs", "file"])
def test_objects_are_written_copied_and_removed(store: Store, scheme: str, tmp_path: Path) -> None:
    folder, source = place(store, scheme)[0], tmp_path / "source.bin"
    source.write_bytes(CONTENT)
    write_object(f"{folder}/out/one.txt", b"one\r\n\n")
    write_object(f"{folder}/out/two.bin", source)
    copy_object(f"{folder}/out/two.bin", f"{folder}/out/three.bin")
    remove_object(f"{folder}/out/two.bin")
    remove_object(f"{folder}/out/two.bin")
    assert [each.name for each in list_objects(f"{folder}/out")[1]] == ["one.txt", "three.bin"]
    assert read_object(f"{folder}/out/one.txt") == b"one\r\n\n"
    assert fetch(find_object(f"{folder}/out/three.bin")).read_bytes() == CONTENT


@pytest.mark.parametrize("scheme", ["hf", "http"])
def test_what_is_only_read_is_not_written(store: Store, scheme: str) -> None:
    folder, path = place(store, scheme)
    path, uri = path / "a-0.tar", f"{folder}/a-0.tar"
    path.write_bytes(CONTENT)
    for write in (lambda: write_object(uri, b"x"), lambda: remove_object(uri), lambda: copy_object(uri, uri)):
        with pytest.raises(RunError, match="expected a path, s3://, gs:// or file://"):
            write()
    assert path.read_bytes() == CONTENT
    assert os.listdir(path.parent) == ["a-0.tar"]
