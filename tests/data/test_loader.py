"""Order, resume, errors and clean-up of the loaders, on small images through the real pipelines."""

import io
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from deit_fast.data.loader.batches import Batch, EvalLoader, TrainLoader
from deit_fast.data.loader.dali import Pipeline
from deit_fast.data.loader.order import FullOrder
from deit_fast.data.loader.sampler import TrainSampler
from deit_fast.data.sources.base import Source
from deit_fast.data.sources.open import open_source
from deit_fast.recipe.sections import Augment, Data
from deit_fast.runtime.errors import DataError
from tests.oracles import three_augment as oracle

SIZE = 32
CPU = torch.device("cpu")
BATCH = 12


@pytest.fixture(scope="module")
def source(folder_data: Path) -> Source:
    return open_source(str(folder_data), "train")


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("deit-fast")]
    assert not left


class Broken(Source):
    """A source with some images replaced by other bytes, or by an exception."""

    def __init__(self, source: Source, replaced: dict[int, bytes | Exception]) -> None:
        super().__init__(source.uri, source.classes, source.labels)
        self._source, self._replaced = source, replaced

    def read(self, index: int) -> NDArray[np.uint8]:
        replacement = self._replaced.get(index)
        if isinstance(replacement, Exception):
            raise replacement
        return self._source.read(index) if replacement is None else np.frombuffer(replacement, np.uint8)

    def name(self, index: int) -> str:
        return self._source.name(index)


def train_loader(
    source: Source,
    stop: int,
    start: int = 0,
    threads: int = 1,
    parts: int = 1,
    augment: Augment | None = None,
    repeats: int = 1,
) -> TrainLoader:
    samplers = [TrainSampler(FullOrder(len(source), 0), repeats, BATCH, parts, part) for part in range(parts)]
    return TrainLoader(source, augment or Augment(), SIZE, samplers, 0, CPU, threads, start_step=start, stop_step=stop)


def collect(loader: TrainLoader | EvalLoader) -> list[Batch]:
    try:
        return list(loader)
    finally:
        loader.close()


def assert_same(actual: list[Batch], expected: list[Batch]) -> None:
    assert [(batch.epoch, batch.step) for batch in actual] == [(batch.epoch, batch.step) for batch in expected]
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(one.indices, other.indices)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.images, other.images)


# Training


def test_batches_follow_the_sampler_across_epochs(source: Source) -> None:
    batches = collect(train_loader(source, stop=10))
    sampler = TrainSampler(FullOrder(len(source), 0), 1, BATCH)
    assert sampler.steps_per_epoch == 8
    assert [batch.step for batch in batches] == list(range(10))
    assert [batch.epoch for batch in batches] == [0] * 8 + [1] * 2
    for batch in batches:
        chosen = sampler.batch(batch.step)
        np.testing.assert_array_equal(batch.indices, chosen.indices)
        np.testing.assert_array_equal(batch.positions, chosen.positions)
        np.testing.assert_array_equal(batch.labels.numpy(), source.labels[chosen.indices])
        assert batch.images.shape == (BATCH, 3, SIZE, SIZE)
        assert batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.valid == BATCH
    assert sorted(np.concatenate([batch.indices for batch in batches[:8]])) == list(range(96))


@pytest.mark.parametrize(
    "augment",
    [Augment(), Augment(crop="src"), Augment(policy="rand_augment", color_jitter=0.0)],
    ids=["rrc", "src", "rand_augment"],
)
def test_restart_gives_the_same_pixels(source: Source, augment: Augment) -> None:
    whole = collect(train_loader(source, stop=10, augment=augment))
    resumed = collect(train_loader(source, start=6, stop=10, augment=augment))
    assert_same(resumed, whole[6:])
    assert not torch.equal(whole[0].images, whole[1].images)


def test_thread_count_changes_nothing(source: Source) -> None:
    assert_same(collect(train_loader(source, stop=4, threads=3)), collect(train_loader(source, stop=4)))


def test_images_belong_to_their_indices(source: Source) -> None:
    """With nothing random in the recipe the batch is the oracle's picture of each index."""
    augment = Augment(scale=(1.0, 1.0), ratio=(1e-9, 1e9), flip=0.0, policy="none", color_jitter=0.0)
    (batch,) = collect(train_loader(source, stop=1, augment=augment))
    for place, index in enumerate(batch.indices.tolist()):
        image = oracle.decode(source.read(index))
        # The aspect ratio is drawn from everything, so no crop fits and the fallback takes the whole image.
        expected = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)).astype(int)
        assert np.abs(batch.images[place].permute(1, 2, 0).numpy() - expected).mean() < 1


def test_accumulation_passes_come_in_order_and_make_up_the_whole_batch(source: Source) -> None:
    whole = collect(train_loader(source, stop=3))
    passes = collect(train_loader(source, stop=3, parts=2))
    assert [batch.step for batch in passes] == [0, 0, 1, 1, 2, 2]
    for step, batch in enumerate(whole):
        parts = passes[2 * step : 2 * step + 2]
        assert batch.positions is not None
        joined = torch.empty_like(batch.images)
        for part in parts:
            assert part.positions is not None
            joined[part.positions] = part.images
        assert torch.equal(joined, batch.images[np.argsort(batch.positions)])


def test_repeated_views_differ(source: Source) -> None:
    (batch,) = collect(train_loader(source, stop=1, repeats=3))
    images, counts = np.unique(batch.indices, return_counts=True)
    assert counts.tolist() == [3] * 4
    views = batch.images[batch.indices == images[0]]
    assert not torch.equal(views[0], views[1])


def test_iterating_again_starts_again_and_ends_the_first(source: Source) -> None:
    loader = train_loader(source, stop=6)
    first = iter(loader)
    opening = [next(first) for _ in range(2)]
    again = list(loader)
    assert_same(again[:2], opening)
    assert [batch.step for batch in again] == list(range(6))
    assert list(first) == []
    assert_same(list(loader), again)
    loader.close()


@pytest.mark.parametrize("taken", [0, 1, 6])
def test_leaving_early_leaks_nothing_and_does_not_disturb_the_next_pass(source: Source, taken: int) -> None:
    loader = train_loader(source, stop=6)
    stream = iter(loader)
    for _ in range(taken):
        next(stream)
    loader.close()
    loader.close()
    assert len(list(loader)) == 6
    loader.close()


def test_closing_while_the_source_is_slow_does_not_hang(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    read = source.read

    def slow(index: int) -> NDArray[np.uint8]:
        gate.wait(0.2)
        return read(index)

    monkeypatch.setattr(source, "read", slow)
    loader = train_loader(source, stop=50)
    next(iter(loader))
    loader.close()


# Evaluation


def test_evaluation_takes_every_image_once_and_pads_the_last_batch(source: Source) -> None:
    loader = EvalLoader(source, Data(eval_crop_ratio=0.875), SIZE, 40, CPU, threads=1)
    assert len(loader) == 3
    batches = list(loader)
    assert [batch.valid for batch in batches] == [40, 40, 16]
    assert all(len(batch.images) == len(batch.labels) == 40 for batch in batches)
    seen = np.concatenate([batch.indices[: batch.valid] for batch in batches])
    np.testing.assert_array_equal(seen, np.arange(96))
    for index in (0, 57, 95):
        batch, place = batches[index // 40], index % 40
        expected = oracle.evaluation_view(oracle.decode(source.read(index)), SIZE, 0.875)
        actual = batch.images[place].permute(1, 2, 0).numpy().astype(int)
        assert np.abs(actual - np.asarray(expected)).mean() < 0.5
        assert batch.labels[place] == source.labels[index]
    assert_same(list(loader), batches)
    loader.close()


def test_evaluation_over_ranks_is_complete_and_even(source: Source) -> None:
    world = [collect(EvalLoader(source, Data(), SIZE, 7, CPU, 1, rank, 5)) for rank in range(5)]
    assert len({len(batches) for batches in world}) == 1
    seen = np.concatenate([batch.indices[: batch.valid] for batches in world for batch in batches])
    assert sorted(seen) == list(range(96))


def test_a_rank_without_images_still_has_its_batches(source: Source) -> None:
    class Few(Broken):
        def __len__(self) -> int:
            return 3

    batches = collect(EvalLoader(Few(source, {}), Data(), SIZE, 2, CPU, 1, rank=0, world_size=4))
    assert [batch.valid for batch in batches] == [0]
    assert batches[0].images.shape == (2, 3, SIZE, SIZE)


# Errors


@pytest.mark.parametrize("tail", [b"", bytes(200)], ids=["truncated", "broken inside"])
def test_an_undecodable_image_is_named(source: Source, tail: bytes) -> None:
    encoded = source.read(41).tobytes()
    damaged = encoded[: len(encoded) // 2] + tail
    loader = EvalLoader(Broken(source, {41: damaged}), Data(), SIZE, 16, CPU, threads=2)
    taken: list[int] = []
    with pytest.raises(DataError) as error:
        taken.extend(batch.step for batch in loader)
    loader.close()
    assert taken == [0, 1]  # the batches before it arrive
    assert source.name(41) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"not an image at all", b"GIF89a" + bytes(20)])
def test_bytes_without_a_header_are_named(source: Source, content: bytes) -> None:
    loader = EvalLoader(Broken(source, {5: content}), Data(), SIZE, 16, CPU, threads=1)
    with pytest.raises(DataError) as error:
        list(loader)
    loader.close()
    assert source.name(5) in str(error.value)
    assert "\n" not in str(error.value)


def test_what_the_source_raises_reaches_the_consumer_as_it_is(source: Source) -> None:
    problem = PermissionError("no such luck")
    loader = train_loader(
        Broken(source, {int(TrainSampler(FullOrder(96, 0), 1, BATCH).batch(2).indices[3]): problem}), stop=8
    )
    taken: list[int] = []
    with pytest.raises(PermissionError) as error:
        taken.extend(batch.step for batch in loader)
    loader.close()
    assert error.value is problem
    assert taken == [0, 1]


def test_a_decompression_bomb_is_refused_by_its_header(source: Source) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG")
    content = bytearray(buffer.getvalue())
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = (60000).to_bytes(2, "big") * 2
    loader = EvalLoader(Broken(source, {7: bytes(content)}), Data(), SIZE, 16, CPU, threads=1)
    with pytest.raises(DataError, match="its header says 60000 x 60000") as error:
        list(loader)
    loader.close()
    assert source.name(7) in str(error.value)


def test_an_error_of_dali_that_no_image_explains_stays_itself(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(EvalLoader):
        in_flight = 1

        def _build_pipeline(self) -> Pipeline:
            pipeline = super()._build_pipeline()
            monkeypatch.setattr(pipeline, "run", self.fail)
            return pipeline

        def fail(self) -> torch.Tensor:
            for _ in range(self.in_flight):
                self._feed()
            raise RuntimeError("out of memory")

    for in_flight in (1, 0):
        loader = Failing(source, Data(), SIZE, 4, CPU, threads=1)
        loader.in_flight = in_flight
        with pytest.raises(RuntimeError, match="out of memory"):
            list(loader)
        loader.close()
