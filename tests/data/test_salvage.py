"""Damaged shards in training: whole samples keep label and place, lost ones are bad images, the run goes on or ends."""

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from deit_fast.cli import main as cli
from deit_fast.data.sources.open import open_source
from deit_fast.data.sources.salvage import SalvagedShards
from deit_fast.runtime.errors import DataError
from deit_fast.runtime.exit_status import ExitStatus
from tests.hostile import batches_of
from tests.image_files import refused, samples, write, write_tar
from tests.training.test_train import WORDS

PARTS = ["--per-shard", "32", "--workers", "1"]

pytestmark = pytest.mark.usefixtures("cache")


def salvage(uri: Path) -> SalvagedShards:
    source = open_source(str(uri), "train" if uri.is_dir() else None, open_shards=SalvagedShards)
    assert isinstance(source, SalvagedShards)
    return source


def whole_of(source: SalvagedShards) -> dict[int, tuple[bytes, int]]:
    found = {}
    for index in range(len(source)):
        with contextlib.suppress(DataError):
            found[index] = source.read(index).tobytes(), int(source.labels[index])
    return found


def expected(start: int, count: int) -> list[tuple[bytes, int]]:
    members = samples(start, count)
    return [(members[f"s{n:03}.jpg"], n % 3) for n in range(start, start + count)]


def three(folder: Path, counts: tuple[int, int, int] = (8, 8, 8)) -> list[Path]:
    return [write_tar(folder / f"train-{n}.tar", samples(20 * n, count)) for n, count in enumerate(counts)]


def cut(shard: Path, members: int) -> None:
    """Leaves that many members and a part of the header of another."""
    content, place = shard.read_bytes(), 0
    for _ in range(members):
        place += 512 + -(-int(content[place + 124 : place + 135], 8) // 512) * 512
    shard.write_bytes(content[: place + 300])


@pytest.mark.parametrize("indexed", [True, False])
def test_a_shard_that_is_cut_off(tmp_path: Path, indexed: bool) -> None:
    shards = three(tmp_path)
    if indexed:
        before = whole_of(salvage(tmp_path))
    cut(shards[1], 11)  # of the sixth sample the image alone
    assert "train-1.tar: expected" in refused(tmp_path, "train")
    source = salvage(tmp_path)
    found = whole_of(source)
    assert len(source) == 24  # without an index, as the largest shard has
    assert [found[index] for index in range(13)] == expected(0, 8) + expected(20, 5)
    assert [found[index] for index in range(16, 24)] == expected(40, 8)
    assert len(found) == 21
    if indexed:
        assert all(before[index] == sample for index, sample in found.items())
    (line,) = source.describe()
    assert line.startswith(f"{shards[1]}: ")
    assert line.endswith("; 3 of its images are lost")
    assert whole_of(salvage(tmp_path)) == found  # the index of what was left is not kept


@pytest.mark.parametrize("lacks", ["jpg", "cls"])
@pytest.mark.parametrize("indexed", [True, False])
def test_members_that_are_missing(tmp_path: Path, lacks: str, indexed: bool) -> None:
    shards = three(tmp_path)
    if indexed:
        before = whole_of(salvage(tmp_path))
    members = samples(20, 8)
    for number in (22, 25):
        del members[f"s{number:03}.{lacks}"]
    write_tar(shards[1], members)
    source = salvage(tmp_path)
    found = whole_of(source)
    assert (len(source), len(found)) == (24, 22)
    whole = [sample for place, sample in enumerate(expected(20, 8)) if place not in (2, 5)]
    assert [found[index] for index in sorted(found) if 8 <= index < 16] == whole
    lost = sorted(set(range(24)) - found.keys())
    assert lost == ([10, 13] if indexed else [14, 15])
    if indexed:
        assert all(before[index] == sample for index, sample in found.items())
        assert source.name(10) == f"{shards[1]}:image 3 of 8"
    missing = "image" if lacks == "jpg" else "cls"
    with pytest.raises(DataError, match=rf"lost with its shard: s022 has no {missing}, s025 has no {missing}"):
        source.read(lost[0])


@pytest.mark.parametrize("content", [b"", b"no tar" * 500, bytes(5000)], ids=["empty", "garbage", "zeros"])
def test_a_shard_of_which_nothing_is_left(tmp_path: Path, content: bytes) -> None:
    shards = three(tmp_path, (8, 5, 8))
    write(shards[1], content)
    source = salvage(tmp_path)
    assert len(source) == 24
    assert sorted(whole_of(source)) == [*range(8), *range(16, 24)]
    for shard in shards:
        write(shard, content)
    with pytest.raises(DataError, match=r"train-0\.tar: expected KEY\.jpg and KEY\.cls in a whole tar file"):
        salvage(tmp_path)


def test_an_index_of_other_images_has_no_say(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", samples(50, 9))
    salvage(shard)
    cut(write_tar(shard, samples(0, 8)), 5)
    source = salvage(shard)
    assert [source.name(index).rpartition(":")[2] for index in whole_of(source)] == ["s000.jpg", "s001.jpg"]


def test_what_is_no_damage_is_refused_still(tmp_path: Path) -> None:
    three(tmp_path)
    (tmp_path / "train-1.tar").unlink()
    (tmp_path / "train-1.tar").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"train-1\.tar: expected a readable \.tar shard"):
        salvage(tmp_path)


def test_other_samples_stay_as_they_were(tmp_path: Path) -> None:
    """With an index, batches of a damaged set differ from the sound one's only where a lost image would be."""
    shards = three(tmp_path)
    sound = batches_of(salvage(tmp_path), 0, 2)
    cut(shards[1], 11)
    damaged = batches_of(salvage(tmp_path), 0, 2)
    lost = {13, 14, 15}
    seen = set()
    for one, other in zip(sound, damaged, strict=True):
        for place, index in enumerate(one.indices.tolist()):
            if index in lost:
                seen.add(index)
                assert int(other.indices[place]) not in lost
                assert index in other.bad
                assert "lost with its shard" in other.bad[index]
            else:
                assert int(other.indices[place]) == index
                np.testing.assert_array_equal(one.images[place].numpy(), other.images[place].numpy())
                assert one.labels[place] == other.labels[place]
    assert seen == lost


def test_a_run_goes_on_and_one_with_too_many_ends(
    folder_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["data", "shard", str(folder_data), str(tmp_path / "set"), *PARTS]) == 0
    shards = sorted((tmp_path / "set").glob("train-*.tar"))
    cut(shards[1], 51)
    words = ["train", "demo_pretrain", "--data", str(tmp_path / "set"), *WORDS, "schedule.epochs=2"]
    assert cli.main([*words, "--out", str(tmp_path / "run"), "data.max_bad=0.1"]) == 0
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if "of its images are lost" in line]
    assert line.startswith(f"{shards[1]}: ")
    assert line.endswith("; 7 of its images are lost")
    assert json.loads((tmp_path / "run" / "result.json").read_text())["bad_images"] == 7
    named = (tmp_path / "run" / "bad_files.txt").read_text().splitlines()
    assert len(named) == 7
    assert all(line.startswith(f"{shards[1]}:") and "lost with its shard: " in line for line in named)
    assert cli.main([*words, "--out", str(tmp_path / "strict"), "data.max_bad=0.05"]) == ExitStatus.BAD_DATA
    assert "of 96 images cannot be used" in capsys.readouterr().err
    val = sorted((tmp_path / "set").glob("val-*.tar"))[0]
    shutil.copy(shards[1], val)
    assert cli.main([*words, "--out", str(tmp_path / "val"), "data.max_bad=1.0"]) == 2
    assert f"{val}: expected" in capsys.readouterr().err  # a score over fewer images is another score
