"""What streaming needs, told before a step: the disk, the blocks that fit, how well they mix; and what is refused."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from deit_fast.checkpoint.format import check_same_recipe
from deit_fast.cli import main as cli
from deit_fast.data.loader.mixing import is_sorted
from deit_fast.data.loader.order import BlockOrder, FullOrder, Order
from deit_fast.data.loader.streaming_plan import (
    check_disk,
    describe_plan,
    disk_needed,
    fitting_block,
    pairs_again,
    recommended_block,
)
from deit_fast.data.sources.base import Source
from deit_fast.recipe.schema import parse_recipe
from deit_fast.recipe.sections import Data
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.errors import RecipeError
from deit_fast.runtime.world import World
from deit_fast.training.job import agree_on_disk
from tests.image_files import encode, write_tar
from tests.training.test_train import WORDS

SHARDS, EACH, CLASSES, BATCH = 64, 250, 20, 200
EDGES = np.arange(SHARDS + 1) * EACH
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


# How well blocks mix


def batches_of(order: Order, epoch: int) -> NDArray[np.int64]:
    """The batch of each image in an epoch, -1 for those left over."""
    share = BATCH // order.lanes
    steps = order.length // BATCH
    found = np.full(SHARDS * EACH, -1)
    for lane in range(order.lanes):
        found[order.images(epoch, lane, 0, steps * share)] = np.repeat(np.arange(steps), share)
    return found


def met_again(order: Order) -> float:
    """Pairs of one batch that are in one batch of the next epoch too, over a full shuffle's expectation; 3 epochs."""
    ratios = []
    for epoch in range(3):
        one, other = batches_of(order, epoch), batches_of(order, epoch + 1)
        used = (one >= 0) & (other >= 0)
        together = np.bincount(one[used] * 1000 + other[used])
        pairs = (together * (together - 1)).sum() / 2
        alone = np.bincount(one[used])
        ratios.append(pairs / ((alone * (alone - 1)).sum() / 2 * (BATCH - 1) / (SHARDS * EACH - 1)))
    return float(np.mean(ratios))


def unevenness(order: Order, labels: NDArray[np.int64]) -> float:
    """Chi-square of a batch's classes over its degrees of freedom, mean over an epoch: 1 for a full shuffle."""
    batches = batches_of(order, 0)
    expected, found = BATCH / CLASSES, []
    for batch in range(batches.max() + 1):
        counts = np.bincount(labels[batches == batch], minlength=CLASSES)
        found.append(((counts - expected) ** 2 / expected).sum() / (CLASSES - 1))
    return float(np.mean(found))


@pytest.mark.parametrize(("block", "lanes"), [(0, 1), (4, 1), (8, 1), (16, 1), (64, 1), (8, 2), (4, 4), (8, 4)])
def test_blocks_mix_as_well_as_the_plan_says(block: int, lanes: int) -> None:
    """Where a block is several batches, as in the first: of 4 shards, 5 batches."""
    order = BlockOrder(EDGES, 0, block, lanes) if block else FullOrder(SHARDS * EACH, 0, EDGES)
    assert met_again(order) == pytest.approx(pairs_again(SHARDS, block, lanes), rel=0.15)
    shuffled = np.random.default_rng(0).permutation(np.arange(SHARDS * EACH) % CLASSES)
    assert unevenness(order, shuffled) == pytest.approx(1, abs=0.12)
    by_class = np.sort(shuffled)
    assert is_sorted(by_class, EDGES)
    assert not is_sorted(shuffled, EDGES)
    if 0 < block * lanes < 64:
        assert unevenness(order, by_class) > 1.5


def test_the_recommended_block_is_nearly_a_full_shuffle() -> None:
    for shards in (100, 300, 640, 2048, 10_240):
        block = recommended_block(shards)
        assert block == pytest.approx(2 * np.sqrt(shards), abs=0.51)
        assert 1 < pairs_again(shards, block) <= 1.27
    assert [recommended_block(shards) for shards in (1, 2, 3, 4)] == [1, 2, 3, 4]
    assert pairs_again(3, 3) == pairs_again(2048, 0) == 1


# Sorted shards


@pytest.mark.parametrize("dtype", [np.int64, np.uint32, np.uint16])
@pytest.mark.parametrize(("classes", "each"), [(2, 400), (10, 50), (1000, 40)])
def test_sorted_shards_are_told_from_shuffled_ones(classes: int, each: int, dtype: type) -> None:
    rng = np.random.default_rng(classes)
    rows = np.zeros(classes * each, [("offset", "<u4"), ("label", dtype)])  # labels are a view with gaps
    rows["label"] = np.repeat(np.arange(classes), each)
    edges = np.linspace(0, len(rows), 21).astype(np.int64)
    assert is_sorted(rows["label"], edges)
    parts = rows["label"].reshape(20, -1)
    rng.permuted(parts, axis=1, out=parts)  # shuffled within each shard alone
    assert is_sorted(rows["label"], edges)
    halves = np.concatenate([rng.permutation(half) for half in np.array_split(rows["label"], 2)])
    assert is_sorted(halves, edges)
    for _ in range(20):
        assert not is_sorted(rng.permutation(rows["label"]), edges)


def test_rare_classes_and_few_images_are_no_sorting() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        rare = rng.zipf(1.3, 3000) % 500
        assert not is_sorted(rare, np.array([0, 10, 700, 700, 1500, 2900, 3000]))
        assert not is_sorted(rng.integers(0, 3, 12), np.array([0, 3, 6, 9, 12]))
    assert not is_sorted(np.zeros(100, np.int64), np.array([0, 50, 100]))
    assert not is_sorted(np.arange(10) // 5, np.array([0, 10]))
    assert not is_sorted(np.arange(2), np.array([0, 1, 2]))


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


@pytest.mark.usefixtures("cache")
def test_a_run_in_blocks_and_lanes_goes_on_in_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = np.random.default_rng(0).permutation(np.arange(48) % 3).tolist()
    data, out = write_shards(tmp_path / "mixed", labels, 6), tmp_path / "out"
    words = ["data.block=2", "data.lanes=2", "schedule.epochs=1", "schedule.warmup_epochs=0", "run.log_every=9"]
    assert start(data, out, *words) == 0
    capsys.readouterr()
    for other in ("data.block=3", "data.lanes=1", "data.block=0 data.lanes=1"):
        assert start(data, out, *words, *other.split()) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"deit-fast: {other.split()[0]}: expected 2, with which {out}/checkpoints/step-")
    shutil.rmtree(tmp_path / "mixed")
    write_shards(tmp_path / "mixed", labels, 6)
    assert start(data, out, *words, "data.cache_limit=7") == 0  # free at every start
    assert "finished already" in capsys.readouterr().out


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


def test_all_processes_hear_of_the_node_that_has_too_little_room() -> None:
    class Gathered(World):
        def gather(self, value: object) -> list[object]:
            return ["", value, "data.cache_limit=1: of another node"]

    world = Gathered(0, 3, torch.device("cpu"))
    recipe, local = get_recipe("demo_pretrain"), Fetched(np.full(4, GIB), 4 * GIB)
    validation = Fetched(np.full(4, GIB), 0)
    with pytest.raises(RecipeError, match="of another node"):
        agree_on_disk(recipe, local, validation, [0], world)
    assert validation.limits == [None]


def test_the_plan_is_a_page() -> None:
    lines = list(describe_plan("s3://bucket/train-*.tar", np.full(2048, 635_000_000), 13_000_000, 1000))
    assert lines[0] == "s3://bucket/train-*.tar: 13,000,000 images in 2,048 shards, 1,211.2 GiB"
    rows = [line.split() for line in lines if line[:1].isdigit() and "GiB" in line]
    assert [row[0] for row in rows] == ["46", "91", "182", "364", "0"]
    assert [row[3] for row in rows] == ["1.93", "1.23", "1.06", "1.01", "1.00"]
    assert [row[1] for row in rows] == ["55.6", "111.2", "221.2", "484.9", "1,211.2"]
    assert "data.block=91 is recommended" in "\n".join(lines)
    assert "at 1000 MB/s at least 22 min, 9,996 images/s" in lines[-1]
    assert "1 s, 1,000 images/s" in list(describe_plan("a.tar", np.array([10_000_000]), 100, 100))[-1]
