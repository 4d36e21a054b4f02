"""What streaming needs, told before a step: the disk and the blocks that fit; and what is refused."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import s3fs
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks.store_server import serve
from deit_fast.checkpoint.format import check_same_recipe
from deit_fast.cli import main as cli
from deit_fast.cli.show import derive_facts
from deit_fast.data.loader.order import BlockOrder
from deit_fast.data.loader.streaming_plan import (
    check_disk,
    describe_plan,
    disk_needed,
    fitting_block,
)
from deit_fast.data.sources.base import Source
from deit_fast.infer.evaluate import build_eval_loader
from deit_fast.recipe.schema import parse_recipe
from deit_fast.recipe.sections import Data
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.errors import RecipeError
from deit_fast.runtime.world import World
from deit_fast.training.job import agree_on_disk
from tests.image_files import encode, write_tar
from tests.training.test_train import WORDS

GIB = 2**30


class Fetched(Source):
    """Shards of a store, as far as the plan looks at them, on a disk with so many bytes."""

    def __init__(self, sizes: NDArray[np.int64], room: int) -> None:
        super().__init__("s3://bucket/train-*.tar", ["a"], np.zeros(len(sizes), np.int64))
        self.shard_bytes, self.shard_edges, self.room = sizes, np.arange(len(sizes) + 1), room
        self.limits: list[int | None] = []

    def read(self, index: int) -> NDArray[np.uint8]:
        raise NotImplementedError

    def name(self, index: int) -> str:
        raise NotImplementedError

    def limit_cache(self, limit: int | None) -> int | None:
        self.limits.append(limit)
        return self.room if limit is None else limit


def write_shards(root: Path, labels: list[int], shards: int) -> Path:
    for number, part in enumerate(np.array_split(labels, shards)):
        write_tar(root / f"train-{number:04}.tar", {
            f"s{number:03}-{place:03}.{suffix}": data for place, label in enumerate(part.tolist())
            for suffix, data in (("jpg", encode(16 + place, 20)), ("cls", b"%d" % label))
        })  # fmt: skip
    return root


def start(data: Path, out: Path, *words: str) -> int:
    return cli.main(["train", "demo_pretrain", "--data", str(data), "--out", str(out), *WORDS, *words])


@pytest.mark.usefixtures("cache")
def test_the_commands_refuse_a_block_of_sorted_shards_and_of_folders(
    tmp_path: Path, folder_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = np.repeat(np.arange(3), 16).tolist()
    data = write_shards(tmp_path / "sorted", labels, 6)
    assert start(data, tmp_path / "out", "data.block=2", "run.global_batch=16") == 2
    assert capsys.readouterr().err.splitlines() == [
        f"deit-fast: data.block=2: expected shards of shuffled images, those of {data} are sorted by class; deit-fast "
        "data shard writes shuffled ones, and data.block=0 shuffles all images"
    ]
    assert start(folder_data / "train", tmp_path / "out", "data.block=2") == 2
    assert capsys.readouterr().err.splitlines() == [
        f"deit-fast: data.block=2: expected data in shards, {folder_data / 'train'} is in none; 0 shuffles all images, "
        "and deit-fast data shard writes shards"
    ]


def test_checkpoints_of_before_there_were_blocks_are_of_the_full_shuffle() -> None:
    recipe = get_recipe("demo_pretrain")
    content = recipe.model_dump(mode="json")
    for key in ("block", "lanes", "cache_limit"):
        del content["data"][key]
    before = parse_recipe(content)
    check_same_recipe(recipe.override(["data.cache_limit=3"]), before, Path("last.pt"))
    with pytest.raises(RecipeError, match=r"^data\.block=8: expected 0, with which last\.pt was started"):
        check_same_recipe(recipe.override(["data.block=8"]), before, Path("last.pt"))


# The disk


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 50), min_size=2, max_size=60),
    st.integers(1, 20),
    st.sampled_from([1, 2, 4]),
    st.integers(0, 100),
)
def test_two_blocks_in_a_row_never_need_more_than_the_plan_says(
    images: list[int], block: int, lanes: int, epoch: int
) -> None:
    edges = np.concatenate([[0], np.cumsum(images)])
    sizes = np.array(images) * 1000 + 1  # larger shards have more images
    order = BlockOrder(edges, 1, block, lanes)
    if not order.length:
        return
    for held in range(1, lanes + 1):
        needed, pairs = disk_needed(sizes, block, lanes, held), []
        for lane in range(held):
            blocks = [(each, number) for each in (epoch, epoch + 1)
                      for number in range(len(order.block_edges(each, lane)) - 1)]  # fmt: skip
            both = [np.union1d(order.block_shards(one[0], lane, one[1]), order.block_shards(two[0], lane, two[1]))
                    for one, two in itertools.pairwise(blocks)]  # fmt: skip
            pairs.append(max(both, key=lambda shards: sizes[shards].sum()))
        assert sizes[np.unique(np.concatenate(pairs))].sum() <= needed <= sizes.sum()


@given(st.lists(st.integers(1, 100), min_size=1, max_size=30), st.integers(0, 1500), st.sampled_from([1, 2]))
def test_the_block_that_fits_is_the_largest_that_does(sizes: list[int], limit: int, lanes: int) -> None:
    shard_bytes = np.array(sizes)
    found = fitting_block(shard_bytes, limit, lanes)
    if found:
        assert disk_needed(shard_bytes, found, lanes) <= limit
    if found < len(sizes):
        assert disk_needed(shard_bytes, found + 1, lanes) > limit


def test_a_limit_below_two_blocks_is_refused_with_what_is_needed_and_what_fits() -> None:
    sizes = np.full(100, GIB)
    enough = Fetched(sizes, 1)
    check_disk(Data(block=10, cache_limit=20.0), enough, [0])
    assert enough.limits == [20 * GIB]
    for data, room, line in (
        (Data(block=10, cache_limit=19.9), 0,
         "data.cache_limit=19.9 (19.9 GiB): expected at least 20.0 GiB for two blocks of data.block=10 in "
         "s3://bucket/train-*.tar; data.block=8 fits"),
        (Data(cache_limit=50.0), 0,
         "data.cache_limit=50 (50.0 GiB): expected at least 100.0 GiB for all shards of s3://bucket/train-*.tar, "
         "which data.block=0 shuffles; data.block=25 fits"),
        (Data(block=4), 3 * GIB,
         "data.cache_limit=null (80 % of the free disk, 3.0 GiB): expected at least 8.0 GiB for two blocks of "
         "data.block=4 in s3://bucket/train-*.tar; data.block=1 fits"),
        (Data(block=4, cache_limit=1.0), 0,
         "data.cache_limit=1 (1.0 GiB): expected at least 8.0 GiB for two blocks of data.block=4 in "
         "s3://bucket/train-*.tar; not even data.block=1 fits, which needs 2.0 GiB"),
    ):  # fmt: skip
        with pytest.raises(RecipeError) as refused:
            check_disk(data, Fetched(sizes, room), [0])
        assert str(refused.value) == line
    lanes = Data(block=5, lanes=4, cache_limit=23.0)  # a lane has 25 or 26 shards, in 5 blocks of at most 6
    check_disk(lanes, Fetched(sizes, 0), [2])
    with pytest.raises(RecipeError, match=r"expected at least 48\.0 GiB"):
        check_disk(lanes, Fetched(sizes, 0), [2, 3, 0, 1])


@pytest.mark.usefixtures("cache")
def test_training_in_blocks_is_the_same_from_a_store_and_goes_on_as_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = np.random.default_rng(0).permutation(np.arange(48) % 3).tolist()
    data = write_shards(tmp_path / "bucket" / "set", labels, 6)
    assert cli.main(["data", "index", str(data)]) == 0
    largest = max(path.stat().st_size for path in data.glob("*.tar"))
    words = ["data.block=2", "schedule.epochs=1", "schedule.warmup_epochs=0", "run.log_every=1"]
    out = tmp_path / "local"
    assert start(data, out, *words) == 0
    capsys.readouterr()
    for word, before in (("data.block=3", 2), ("data.lanes=2", 1)):
        assert start(data, out, *words, word) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"deit-fast: {word}: expected {before}, with which {out}/checkpoints/step-")
    assert start(data, out, *words, "data.cache_limit=7") == 0  # free at every start
    assert "finished already" in capsys.readouterr().out
    with serve(tmp_path) as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        command = [
            "train",
            "demo_pretrain",
            "--data",
            "s3://bucket/set",
            "--out",
            str(tmp_path / "out"),
            *WORDS,
            *words,
        ]
        assert cli.main([*command, f"data.cache_limit={2 * largest / GIB}"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "for two blocks of data.block=2 in s3://bucket/set; data.block=1 fits" in line
        assert not (tmp_path / "out" / "checkpoints").exists()
        assert cli.main([*command, f"data.cache_limit={4 * largest / GIB}"]) == 0
    losses = [[json.loads(row)["loss"] for row in (tmp_path / out / "metrics.jsonl").read_text().splitlines()
               if "loss" in row] for out in ("local", "out")]  # fmt: skip
    assert losses[0] == losses[1]
    assert len(losses[0]) == 3


def test_show_says_what_a_block_means() -> None:
    assert "order" not in derive_facts(get_recipe("deit3_small_1k_224"))
    facts = derive_facts(get_recipe("deit3_small_1k_224", ["data.block=32", "data.lanes=2"]))
    assert facts["order"].startswith("32 shards shuffled together in each of 2 lanes; of S shards two images")
    assert "1 + S / 4,096 times" in facts["order"]


def test_all_processes_hear_of_the_node_that_has_too_little_room() -> None:
    class Gathered(World):
        def gather(self, value: object) -> list[object]:
            return ["", value, "data.cache_limit=1: of another node"]

    world = Gathered(0, 3, torch.device("cpu"))
    source = Fetched(np.full(4, GIB), 4 * GIB)
    with pytest.raises(RecipeError, match="of another node"):
        agree_on_disk(get_recipe("demo_pretrain"), source, [0], world)


def test_evaluation_gives_its_shards_the_limit() -> None:
    recipe = get_recipe("demo_pretrain", ["data.cache_limit=3"])
    for each, limit in ((recipe, 3 * GIB), (get_recipe("demo_pretrain"), None)):
        source = Fetched(np.full(4, GIB), 4 * GIB)
        build_eval_loader(each, source, World(0, 1, torch.device("cpu")))
        assert source.limits == [limit]


@pytest.mark.usefixtures("cache")
def test_the_index_command_prints_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_shards(tmp_path, [0, 1, 2] * 8, 6)
    size = sum(path.stat().st_size for path in data.glob("*.tar"))
    assert cli.main(["data", "index", str(data), "--plan", "2"]) == 0
    made, empty, *lines = capsys.readouterr().out.splitlines()
    assert made.startswith(f"{data}: 24 images of 3 classes in 6 shards")
    assert not empty
    assert lines[0] == f"{data}: 24 images in 6 shards, {size / 2**20:.1f} MiB"
    assert "data.block=5 is recommended" in "\n".join(lines)
    assert "at 2 MB/s at least 1 s" in lines[-1]
    assert cli.main(["data", "index", str(data), "--plan"]) == 0
    assert "at 1000 MB/s" in capsys.readouterr().out
    assert cli.main(["data", "index", str(data)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_the_plan_is_a_page() -> None:
    lines = list(describe_plan("s3://bucket/train-*.tar", [635_000_000] * 2048, 13_000_000, 1000))
    assert lines[0] == "s3://bucket/train-*.tar: 13,000,000 images in 2,048 shards, 1,211.2 GiB"
    rows = [line.split() for line in lines if line[:1].isdigit() and "GiB" in line]
    assert [row[0] for row in rows] == ["46", "91", "182", "364", "0"]
    assert [row[3] for row in rows] == ["1.93", "1.23", "1.06", "1.01", "1.00"]
    assert [row[1] for row in rows] == ["55.6", "111.2", "221.2", "484.9", "1,211.2"]
    assert "data.block=91 is recommended" in "\n".join(lines)
    assert "at 1000 MB/s at least 22 min, 9,996 images/s" in lines[-1]
    assert "1 s, 1,000 images/s" in list(describe_plan("a.tar", [10_000_000], 100, 100))[-1]
