"""Mixup and CutMix draws and what they do to a batch, against timm's Mixup: by replaying draws, and in distribution."""

from typing import Any

import numpy as np
import pytest
import timm.data.mixup as timm_mixup
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp
from torch import Tensor

from deit_fast.data.augment import mix as mixing
from deit_fast.data.augment.mix import MixParams, draw_mix, mix_images, mix_targets
from deit_fast.recipe.sections import Mix
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.errors import RecipeError

CLASSES, SIZE = 7, 20
MINMAX = (0.2, 0.8)
MODES = ("batch", "pair", "elem")


def batch(size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, 3, SIZE, SIZE, generator=generator), torch.randint(CLASSES, (size,), generator=generator)


def timm_mixer(mix: Mix, **options: Any) -> timm_mixup.Mixup:
    return timm_mixup.Mixup(mix.mixup, mix.cutmix, mix.cutmix_minmax, mix.prob, mix.switch_prob, mix.mode, **options)


def mixed(images: Tensor, labels: Tensor, drawn: MixParams) -> tuple[Tensor, Tensor]:
    lam, box, cutmix = (torch.from_numpy(array) for array in (drawn.lam, drawn.box, drawn.cutmix))
    return mix_images(images, lam, box, cutmix), mix_targets(labels, CLASSES, 0.1, lam)


@pytest.mark.parametrize("minmax", [None, MINMAX])
@pytest.mark.parametrize("mode", MODES)
def test_timms_draws_replayed(mode: str, minmax: tuple[float, float] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    size, mix = 32, Mix(mode=mode, cutmix_minmax=minmax, prob=0.9)
    shares = {"batch": size, "pair": 2, "elem": 1}[mode]
    images, labels = batch(size)
    kinds = set()
    for seed in range(12):
        with monkeypatch.context() as patch:
            boxes, lams, chosen = [], [], []
            theirs = timm_mixer(mix, label_smoothing=0.1, num_classes=CLASSES)
            find_box, draw = timm_mixup.cutmix_bbox_and_lam, {
                "batch": theirs._params_per_batch, "pair": theirs._params_per_elem, "elem": theirs._params_per_elem,
            }[mode]  # fmt: skip

            def record_box(*values: Any, find_box=find_box, boxes=boxes, **options: Any) -> Any:
                boxes.append(find_box(*values, **options))
                return boxes[-1]

            def record_draw(*values: Any, draw=draw, lams=lams, chosen=chosen) -> Any:
                lam, cutmix = draw(*values)
                lams.extend(np.atleast_1d(lam).tolist())
                chosen.extend(np.atleast_1d(cutmix).tolist())
                return lam, cutmix

            patch.setattr(timm_mixup, "cutmix_bbox_and_lam", record_box)
            patch.setattr(theirs, "_params_per_batch" if mode == "batch" else "_params_per_elem", record_draw)
            np.random.seed(seed)  # noqa: NPY002 (timm draws from the global generator)
            expected, targets = theirs(images.clone(), labels)
        units, place = size // shares, iter(boxes)
        drawn = []
        for lam, cutmix in zip(lams, chosen, strict=True):
            box = (0, 0, 0, 0)
            if cutmix and lam != 1:
                (top, bottom, left, right), lam = next(place)
                box = (top, left, bottom, right)
            drawn.append((lam, box, cutmix and lam != 1))
            kinds.add("none" if lam == 1 else "cutmix" if cutmix else "mixup")
        assert len(drawn) == units
        lam, box, cutmix = zip(*drawn, strict=True)
        # timm's pairs are positions i and size - 1 - i; ours are given a draw per position.
        of = {"batch": [0] * size, "pair": [min(i, size - 1 - i) for i in range(size)], "elem": list(range(size))}[mode]
        replayed = MixParams(np.array(lam, np.float32)[of], np.array(box, np.int32)[of], np.array(cutmix, np.bool_)[of])
        ours, our_targets = mixed(images, labels, replayed)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(our_targets, targets.float(), rtol=0, atol=1e-6)
    assert kinds == {"none", "mixup", "cutmix"}


@pytest.mark.parametrize("mix", [
    *(Mix(group=group) for group in (2, 8, 24, 64)),
    *(Mix(mode=mode, cutmix_minmax=minmax, prob=0.8) for mode in ("pair", "elem") for minmax in (None, MINMAX)),
    Mix(cutmix_minmax=MINMAX, group=8, cutmix=0.0),
])  # fmt: skip
def test_our_draws_through_timm(mix: Mix, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every group of images that share a draw, and every pair or image alone, is mixed as timm would with that draw."""
    total = 64
    images, labels = batch(total)
    seen = []
    for step in range(6):
        drawn = draw_mix(mix, 0, step, np.arange(total), total, SIZE)
        ours, our_targets = mixed(images, labels, drawn)
        if mix.mode == "batch":
            ranks = [min(position, total - 1 - position) for position in range(total)]
            half = mix.group // 2
            parts = [[p for p in range(total) if n * half <= ranks[p] < (n + 1) * half] for n in range(-(-32 // half))]
        else:
            parts = [list(range(total))]
        for members in parts:
            units = {"batch": members[:1], "pair": members[: len(members) // 2], "elem": members}[mix.mode]
            lam, box, cutmix = drawn.lam[units], drawn.box[units], drawn.cutmix[units]
            boxes = iter([((b[0], b[2], b[1], b[3]), one) for b, one, cut in zip(box, lam, cutmix, strict=True)
                          if cut and one != 1])  # fmt: skip
            theirs = timm_mixer(mix, label_smoothing=0.1, num_classes=CLASSES)
            if mix.mode == "batch":
                monkeypatch.setattr(theirs, "_params_per_batch", lambda lam=lam, cut=cutmix: (float(lam[0]), cut[0]))
            else:
                monkeypatch.setattr(theirs, "_params_per_elem", lambda size, lam=lam, cut=cutmix: (lam.copy(), cut))
            monkeypatch.setattr(timm_mixup, "cutmix_bbox_and_lam", lambda *_, boxes=boxes, **__: next(boxes))
            expected, targets = theirs(images[members].clone(), labels[members])
            torch.testing.assert_close(ours[members], expected, rtol=0, atol=1e-6)
            torch.testing.assert_close(our_targets[members], targets.float(), rtol=0, atol=1e-6)
            seen += [(one, cut) for one, cut in zip(lam.tolist(), cutmix.tolist(), strict=True)]
    blends = [lam for lam, cutmix in seen if not cutmix and lam != 1]  # areas of small boxes may be equal by chance
    assert len(set(blends)) == len(blends)  # every unit and step draws anew
    assert {cutmix for _, cutmix in seen} == {False, True}


class Scripted:
    """Stands in for a generator whose draws are given."""

    def __init__(self, lam: float, row: int, column: int) -> None:
        self.lam, self.centre = lam, np.array([row, column])

    def random(self) -> float:
        return 0.0

    def beta(self, first: float, second: float) -> float:
        assert first == second == 1.0
        return self.lam

    def randint(self, high: int, size: int) -> np.ndarray:
        assert (self.centre < high).all()
        assert size == 2
        return self.centre


@settings(max_examples=300)
@given(st.integers(1, 400), st.floats(0, 1), st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True))
def test_cutmix_box_equals_timm(size: int, lam: float, row: float, column: float) -> None:
    centre = int(row * size), int(column * size)
    drawn = iter(centre)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np.random, "randint", lambda *_, **__: next(drawn))
        (top, bottom, left, right), kept = timm_mixup.cutmix_bbox_and_lam((3, size, size), lam)
    ours_kept, box, cutmix = mixing._draw(Mix(), Scripted(lam, *centre), size)
    assert cutmix
    assert ours_kept == pytest.approx(kept, abs=1e-12)
    assert (box == (top, left, bottom, right)) or (kept == 1 and box == (0, 0, 0, 0))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fields", [
    {}, {"mixup": 0.0}, {"cutmix": 0.0}, {"mixup": 0.2, "prob": 0.7, "switch_prob": 0.1}, {"cutmix_minmax": MINMAX},
    {"mixup": 0.0, "cutmix": 0.0, "cutmix_minmax": (0.1, 0.5), "prob": 0.9},
], ids=["both", "cutmix", "mixup", "probabilities", "minmax", "minmax-only"])  # fmt: skip
def test_draws_have_timms_distribution(fields: dict[str, Any], mode: str) -> None:
    """Lambda, share of CutMix, share left alone, and the boxes' areas, sides and places."""
    count, size = 5000, 64
    mix = Mix(mode=mode, group=2, **fields)
    drawn = draw_mix(mix, 1, 0, np.arange(count), 2 * count, size)
    np.random.seed(0)  # noqa: NPY002 (what timm draws from)
    timm = timm_mixer(mix)
    if mode == "batch":
        lam, cut = (np.array(values) for values in zip(*(timm._params_per_batch() for _ in range(count)), strict=True))
    else:
        lam, cut = timm._params_per_elem(count)
    cut = cut & (lam != 1)
    found = [timm_mixup.cutmix_bbox_and_lam((3, size, size), one, mix.cutmix_minmax) for one in lam[cut]]
    boxes = np.array([(top, left, bottom, right) for (top, bottom, left, right), _ in found]).reshape(-1, 4)
    assert abs(drawn.cutmix.mean() - cut.mean()) < 0.04
    alone = ~drawn.cutmix & (drawn.lam == 1)
    assert abs(alone.mean() - (~cut & (lam == 1)).mean()) < 0.04
    assert (alone.mean() == 0) == (mix.prob == 1)
    box = drawn.box.astype(np.int64)[drawn.cutmix]
    pairs = [
        (drawn.lam[drawn.cutmix], np.array([kept for _, kept in found], np.float32)),
        (drawn.lam[~drawn.cutmix & ~alone], lam[~cut & (lam != 1)].astype(np.float32)),
        (box[:, 2] - box[:, 0], boxes[:, 2] - boxes[:, 0]),
        (box[:, 3] - box[:, 1], boxes[:, 3] - boxes[:, 1]),
        *((box[:, side], boxes[:, side]) for side in (0, 1) if mix.cutmix_minmax),
    ]
    for ours, reference in pairs:
        assert (len(ours) == 0) == (len(reference) == 0)
        if len(ours):
            assert ks_2samp(ours, reference).pvalue > 1e-3
    area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
    np.testing.assert_allclose(drawn.lam[drawn.cutmix], 1 - area / size**2, rtol=1e-6)
    assert not drawn.box[~drawn.cutmix].any()
    assert ((drawn.lam >= 0) & (drawn.lam <= 1)).all()


@given(st.integers(1, 40), st.sampled_from([2, 4, 6, 16, 256]), st.integers(0, 100), st.integers(0, 10**6),
       st.sampled_from(MODES))  # fmt: skip
def test_draws_are_the_same_for_any_partition(pairs: int, group: int, seed: int, step: int, mode: str) -> None:
    total, mix = 2 * pairs, Mix(group=group, mode=mode)
    whole = draw_mix(mix, seed, step, np.arange(total), total, 32)
    if mode == "elem":
        assert pairs < 3 or not np.array_equal(whole.lam, whole.lam[::-1])
    else:
        np.testing.assert_array_equal(whole.lam, whole.lam[::-1])
        np.testing.assert_array_equal(whole.box, whole.box[::-1])
    some = np.random.default_rng(seed).permutation(total)[: total // 2]
    part = draw_mix(mix, seed, step, some, total, 32)
    for field, values in vars(whole).items():
        np.testing.assert_array_equal(values[some], getattr(part, field), err_msg=field)


def test_no_mixing_leaves_every_image_whole() -> None:
    for mix in (Mix(prob=0.0), Mix(mixup=0.0, cutmix=0.0), Mix(prob=0.0, cutmix_minmax=MINMAX, mode="elem")):
        drawn = draw_mix(mix, 0, 0, np.arange(64), 64, 32)
        assert (drawn.lam == 1).all()
        assert not drawn.box.any()
        assert not drawn.cutmix.any()


@pytest.mark.parametrize("mode", MODES)
def test_an_empty_batch(mode: str) -> None:
    drawn = draw_mix(Mix(mode=mode), 0, 0, np.arange(0), 64, 32)
    assert (drawn.lam.dtype, drawn.box.dtype, drawn.cutmix.dtype) == (np.float32, np.int32, np.bool_)
    assert drawn.box.shape == (0, 4)


def test_a_range_within_one_pixel_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"mix\.cutmix_minmax=\[0\.21, 0\.24\]: expected a range of more"):
        get_recipe("demo_pretrain", ["mix.cutmix_minmax=0.21,0.24"])
