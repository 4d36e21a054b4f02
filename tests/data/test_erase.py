"""Random erasing: its boxes against timm's, its noise as statistics, its filling in plain loops, on any partition."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from deit_fast.data.augment.erase import draw_erasing, erase, normal_noise
from deit_fast.data.loader.batches import TrainLoader
from deit_fast.data.loader.sampler import build_order, build_samplers
from deit_fast.data.sources.open import open_source
from deit_fast.recipe.sections import Augment
from deit_fast.recipe.table import get_recipe
from deit_fast.training.objective import BatchBuilder, Erasing, MicroBatch
from tests.oracles.erase import timms_boxes
from tests.oracles.statistics import same_shares
from tests.training.test_step import CPU, batch, make, weights

ALPHA = 1e-3
MANY = np.arange(4000)


def draws(count: int = 4000, size: int = 64, **fields: object) -> np.ndarray:
    augment = Augment(**{"erase": 1.0, **fields})  # type: ignore[arg-type]
    return draw_erasing(augment, size, 3, 1, np.arange(count), np.zeros(count, np.int64)).boxes


@pytest.mark.parametrize(("size", "boxes"), [(64, 1), (224, 1), (64, 3), (16, 2)])
def test_boxes_are_distributed_like_timms(size: int, boxes: int) -> None:
    """timm's own boxes, read off the zeros that it leaves in images of ones; the first of each view."""
    ours = draws(size=size, erase_count=boxes)
    theirs = timms_boxes(4000, size, boxes)
    assert same_shares((ours[..., 2] > 0).sum(1), (theirs[..., 2] > 0).sum(1)) > ALPHA
    ours, theirs = (each.reshape(-1, 4)[each.reshape(-1, 4)[:, 2] > 0].astype(float) for each in (ours, theirs))
    for measure in (
        lambda box: (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]),
        lambda box: (box[:, 2] - box[:, 0]) / (box[:, 3] - box[:, 1]),
        lambda box: box[:, 0],
        lambda box: box[:, 1],
        lambda box: box[:, 0] / (size - box[:, 2] + box[:, 0]),
        lambda box: box[:, 1] / (size - box[:, 3] + box[:, 1]),
    ):
        assert stats.ks_2samp(measure(ours), measure(theirs)).pvalue > ALPHA


def test_as_many_views_as_asked_for_are_erased_inside_the_image() -> None:
    for share in (0.0, 0.25, 1.0):
        boxes = draws(20_000, erase=share, **({"erase_count": 2} if share else {}))
        assert abs((boxes[:, 0, 2] > 0).mean() - share) < 0.012
    assert boxes.dtype == np.int32
    assert boxes.min() >= 0
    assert boxes.max() <= 64
    assert ((boxes[..., 2:] > boxes[..., :2]).all(-1) | ~boxes.any(-1)).all()


def test_draws_depend_on_nothing_but_their_key() -> None:
    augment = Augment(erase=0.5, erase_count=2)
    indices, views = np.arange(60) // 3, np.arange(60) % 3
    whole = draw_erasing(augment, 32, 5, 2, indices, views)
    some = np.random.default_rng(0).permutation(60)[:17]
    part = draw_erasing(augment, 32, 5, 2, indices[some], views[some])
    np.testing.assert_array_equal(part.boxes, whole.boxes[some])
    np.testing.assert_array_equal(part.keys, whole.keys[some])
    assert len(np.unique(whole.keys, axis=0)) == 60
    for seed, epoch, shift in ((6, 2, 0), (5, 3, 0), (5, 2, 3)):
        assert (draw_erasing(augment, 32, seed, epoch, indices, views + shift).keys != whole.keys).all()


def test_filling_equals_a_loop() -> None:
    """Boxes that overlap, hang at the border or are empty; the later one on top."""
    images = torch.randn(4, 3, 16, 12)
    boxes = torch.tensor(
        [[[0, 0, 5, 5], [3, 3, 16, 12]], [[2, 1, 4, 12], [0, 0, 0, 0]], [[0] * 4] * 2, [[15, 11, 16, 12], [0, 0, 1, 1]]]
    )
    keys = torch.arange(8).view(4, 2)
    for mode in ("pixel", "rand", "const"):
        filled = erase(images, boxes, keys, mode)
        for image, result, pair in zip(images, filled, boxes.tolist(), strict=True):
            outside = torch.ones(16, 12, dtype=torch.bool)
            for top, left, bottom, right in pair:
                outside[top:bottom, left:right] = False
            assert torch.equal(result[:, outside], image[:, outside])
            assert (result[:, ~outside] != image[:, ~outside]).all()
            values = result[:, ~outside]
            assert mode != "const" or not values.any()
            assert mode != "pixel" or values.unique().numel() == values.numel()
        if mode == "rand":
            first, second = filled[0, :, :3, :3], filled[0, :, 4:, 4:]
            assert (first == first[:, :1, :1]).all()
            assert (second == second[:, :1, :1]).all()
            colours = torch.cat([filled[0, :, 0, 0], filled[0, :, 4, 4], filled[1, :, 2, 1]])
            assert colours.unique().numel() == 9


KEYS = torch.from_numpy(draw_erasing(Augment(erase=1.0), 32, 0, 0, np.arange(64), np.zeros(64, np.int64)).keys)


def test_the_noise_is_standard_normal() -> None:
    noise = normal_noise(KEYS, torch.arange(3 * 64 * 64)).double()
    assert noise.shape == (64, 12288)
    assert torch.isfinite(noise).all()
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > ALPHA
    per_key = [stats.kstest(row.numpy(), "norm").pvalue for row in noise]
    assert stats.kstest(per_key, "uniform").pvalue > ALPHA  # no key is better or worse than chance
    for moment, expected, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((noise**moment).mean()) - expected) < 4 * (spread / noise.numel()) ** 0.5
    assert noise.abs().max() > 4.5  # 1 in 150,000


def test_the_noise_is_independent() -> None:
    """Between pixels next to each other, rows, channels, views, and keys or counters that differ in one bit."""
    noise = normal_noise(KEYS, torch.arange(3 * 64 * 64).view(3, 64, 64)).double()
    flat = noise.flatten(1)
    far = 4 / flat.numel() ** 0.5
    for lag in (1, 2, 3, 7, 8, 64, 65, 128, 4096, 8192):
        assert abs(float((flat[:, lag:] * flat[:, :-lag]).mean())) < 1.5 * far, lag
        assert abs(float((flat[:, lag:] ** 2 * flat[:, :-lag] ** 2).mean()) - 1) < 6 * far, lag
    between = torch.corrcoef(flat) - torch.eye(64)
    assert between.abs().max() < 5.5 / flat.shape[1] ** 0.5
    assert stats.kstest(between[np.triu_indices(64, 1)].numpy() * flat.shape[1] ** 0.5, "norm").pvalue > ALPHA
    for bit in range(32):
        for word in range(2):
            other = KEYS.clone()
            other[:, word] ^= 1 << bit
            again = normal_noise(other, torch.arange(2048)).double()
            assert abs(float((again * flat[:, :2048]).mean())) < 4.5 / again.numel() ** 0.5, (bit, word)
    spectrum = (torch.fft.rfft(flat).abs() ** 2)[:, 1:-1] / flat.shape[1]  # white: exponential at every frequency
    assert stats.kstest(spectrum.flatten()[::7].numpy(), "expon").pvalue > ALPHA


def test_the_hash_is_exact_integer_arithmetic() -> None:
    """The first word against unbounded integers, so that no product left 64 bits on the way."""

    def scramble(word: int) -> int:
        word ^= word >> 16
        word = word * 0x7FEB352D % 2**32
        word ^= word >> 15
        word = word * 0x846CA68B % 2**32
        return word ^ word >> 16

    keys = torch.tensor([[2**32 - 1, 2**32 - 1], [0, 0], [123456789, 3987654321]])
    counters = torch.tensor([0, 1, 77, 2**30])
    ours = normal_noise(keys, counters)
    for row, (first, second) in zip(ours.tolist(), keys.tolist(), strict=True):
        for value, counter in zip(row, counters.tolist(), strict=True):
            u, v = (
                (scramble(scramble((c + first) % 2**32) ^ second) + 0.5) / 2**32 for c in (2 * counter, 2 * counter + 1)
            )
            assert value == pytest.approx(np.sqrt(-2 * np.log(u)) * np.cos(2 * np.pi * v), abs=2e-3)


@pytest.mark.gpu
def test_the_gpu_draws_the_same_noise() -> None:
    """The same integers; logarithm and cosine differ in their last bits."""
    counter = torch.arange(3 * 64 * 64)
    on_gpu = normal_noise(KEYS.cuda(), counter.cuda()).cpu()
    torch.testing.assert_close(on_gpu, normal_noise(KEYS, counter), rtol=1e-4, atol=1e-4)


def erased_batch() -> MicroBatch:
    drawn = draw_erasing(Augment(erase=1.0, erase_count=2), 16, 0, 0, np.arange(8), np.zeros(8, np.int64))
    erasing = Erasing(torch.from_numpy(drawn.boxes), torch.from_numpy(drawn.keys))
    return batch(mixed=True)._replace(erasing=erasing)


@pytest.mark.parametrize(("mode", "backend"), [("pixel", "inductor"), ("rand", "eager"), ("const", "eager")])
def test_it_compiles_without_graph_breaks(mode: str, backend: str) -> None:
    images, boxes = torch.randn(4, 3, 16, 16), torch.from_numpy(draws(4, size=16, erase_count=2))
    torch._dynamo.reset()
    compiled = torch.compile(erase, fullgraph=True, backend=backend)  # a graph break is an error
    torch.testing.assert_close(compiled(images, boxes, KEYS[:4], mode), erase(images, boxes, KEYS[:4], mode))


def test_two_processes_see_what_one_sees(folder_data: Path) -> None:
    """The loader's boxes and keys, by place in the global batch, for one process and for two of two passes each."""
    source = open_source(str(folder_data), "train")
    words = ["run.global_batch=16", "model.num_classes=3", "data.repeats=2", "augment.erase=0.5", "augment.flip=0.5"]

    def by_position(world: int, passes: int) -> dict[tuple[int, int], tuple[list[int], list[int]]]:
        recipe = get_recipe("demo_pretrain", [*words, f"run.accumulation={passes}"])
        seen = {}
        for rank in range(world):
            samplers = build_samplers(recipe, build_order(recipe, source), rank, world)
            loader = TrainLoader(source, recipe.augment, 24, samplers, 7, CPU.device, 1, start_step=5, stop_step=7)
            for loaded in loader:
                taken = BatchBuilder(recipe, CPU.device)(loaded)
                assert taken.erasing is not None
                for place, box, key in zip(loaded.positions, *(part.tolist() for part in taken.erasing), strict=True):
                    seen[loaded.step, int(place)] = box, key
            loader.close()
        return seen

    one = by_position(1, 1)
    assert len(one) == 2 * 16
    assert one == by_position(2, 2)
    assert 8 < sum(any(box[0]) for box, _ in one.values()) < 24


def test_nothing_is_carried_where_nothing_is_erased(folder_data: Path) -> None:
    source = open_source(str(folder_data), "train")
    recipe = get_recipe("demo_pretrain", ["run.global_batch=8", "model.num_classes=3"])
    samplers = build_samplers(recipe, build_order(recipe, source), 0, 1)
    loader = TrainLoader(source, recipe.augment, 24, samplers, 7, CPU.device, 1, stop_step=1)
    (loaded,) = list(loader)
    assert loaded.erasing is None
    assert BatchBuilder(recipe, CPU.device)(loaded).erasing is None


def test_the_step_erases_before_it_mixes() -> None:
    """A run with boxes is one on images whose boxes were filled by hand, before mixing."""
    given = erased_batch()
    _, step = make(["augment.erase=1.0"])
    _, by_hand = make()
    inputs = erase(step.classifier.normalise(given.images), *given.erasing, "pixel")
    by_hand.classifier.normalise = lambda images: inputs  # type: ignore[method-assign]
    step([given], 1e-3)
    by_hand([given._replace(erasing=None)], 1e-3)
    assert torch.equal(weights(step), weights(by_hand))
    _, untouched = make()
    untouched([given._replace(erasing=None)], 1e-3)
    assert not torch.equal(weights(step), weights(untouched))


def test_accumulation_sees_the_same_noise() -> None:
    """Folded halves of a batch, as passes or processes get them, against the batch as one."""
    _, whole = make(["augment.erase=1.0"])
    _, halves = make(["augment.erase=1.0", "run.accumulation=2"])
    full = erased_batch()

    def cut(rows: list[int]) -> MicroBatch:
        mixing, erasing = (type(each)(*(t[rows] for t in each)) for each in (full.mixing, full.erasing))
        return MicroBatch(full.images[rows], full.labels[rows], mixing, erasing)

    for _ in range(3):
        whole([full], 1e-3)
        halves([cut([0, 1, 6, 7]), cut([2, 3, 4, 5])], 1e-3)
    torch.testing.assert_close(weights(whole), weights(halves), rtol=0, atol=5e-5)
