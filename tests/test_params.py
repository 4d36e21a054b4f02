"""Random parameters of views, against the references' distributions, and of mixing, against timm."""

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import timm.data.mixup as timm_mixup
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from timm.data import auto_augment

from deit_fast.data import params
from deit_fast.data.params import draw_mix, draw_views
from deit_fast.data.policies import AUTO_POLICY, OPERATIONS
from deit_fast.sections import Augment, Mix
from tests.oracles.statistics import kolmogorov_smirnov, uneven
from tests.views import views_of


@pytest.mark.parametrize("policy", ["three_augment", "rand_augment", "auto_augment"])
@pytest.mark.parametrize("crop", ["rrc", "src", "rrc_linear", "pad"])
def test_a_view_depends_on_nothing_but_its_key(policy: str, crop: str) -> None:
    augment = Augment.model_validate({"policy": policy, "crop": crop, "color_jitter": 0.0, "interpolation": "random"})
    indices, views = np.arange(60) // 3, np.arange(60) % 3
    sizes = np.random.default_rng(0).integers(100, 400, (60, 2)).astype(np.int32)
    whole = draw_views(augment, 224, 5, 2, indices, views, sizes)
    some = np.random.default_rng(1).permutation(60)[:17]
    part = draw_views(augment, 224, 5, 2, indices[some], views[some], sizes[some])
    for field, values in vars(whole).items():
        np.testing.assert_array_equal(values[some], getattr(part, field), err_msg=field)
    for change in ({"seed": 6}, {"epoch": 3}, {"views": views + 3}, {"indices": indices + 20}):
        inputs: dict[str, Any] = {"seed": 5, "epoch": 2, "indices": indices, "views": views, "sizes": sizes}
        other = views_of(augment, **(inputs | change))
        assert (other.geometry != whole.geometry).any(axis=1).mean() > 0.9, change


def test_three_augment_draws_have_the_reference_distribution() -> None:
    drawn = views_of(Augment())
    assert abs(uneven(np.bincount(drawn.operation, minlength=3))) < 5
    assert abs(uneven(np.histogram(drawn.sigma, 50, (0.1, 2.0))[0])) < 5
    assert abs(uneven(np.histogram(drawn.sigma[drawn.operation == params.BLUR], 20, (0.1, 2.0))[0])) < 5
    assert abs(drawn.flip.mean() - 0.5) < 0.02
    for factors in drawn.jitter.T:
        assert abs(uneven(np.histogram(factors, 50, (0.7, 1.3))[0])) < 5
    orders, counts = np.unique(drawn.order, axis=0, return_counts=True)
    assert [sorted(order) for order in orders.tolist()] == [[0, 1, 2]] * 6
    assert abs(uneven(counts)) < 5
    assert drawn.policy_op.shape == drawn.policy_level.shape == drawn.policy_sign.shape == (20_000, 0)
    columns = np.column_stack(
        (drawn.geometry, drawn.flip, drawn.operation, drawn.sigma, drawn.jitter, drawn.order[:, 0])
    )
    correlation = np.corrcoef(columns.T.astype(np.float64))[4:, 4:]
    assert np.abs(correlation - np.eye(7)).max() < 5 / math.sqrt(20_000)


def test_rand_augment_draws_have_timms_distribution() -> None:
    drawn = views_of(Augment(policy="rand_augment", color_jitter=0.0, rand_ops=3, rand_magnitude=9.5))
    assert drawn.policy_op.shape == (20_000, 3)
    assert set(drawn.operation.tolist()) == {-1}
    assert (drawn.jitter == 1).all()
    assert abs((drawn.policy_op < 0).mean() - 0.5) < 0.01
    for op in drawn.policy_op.T:
        assert abs(uneven(np.bincount(op[op >= 0], minlength=15))) < 5
    assert abs(drawn.policy_sign.mean()) < 0.02
    assert set(np.unique(drawn.policy_sign)) == {-1.0, 1.0}
    reference = np.random.default_rng(0).normal(9.5, 0.5, 60_000).clip(0, 10)
    assert kolmogorov_smirnov(drawn.policy_level.ravel(), reference) < 1.95
    assert np.abs(np.corrcoef(drawn.policy_op.T) - np.eye(3)).max() < 0.05


def test_auto_augment_draws_have_timms_distribution() -> None:
    """Every outcome of a sub-policy, both, one or no operation, as often as timm's probabilities say."""
    drawn = views_of(Augment(policy="auto_augment", color_jitter=0.0))
    expected: Counter[tuple[int, ...]] = Counter()
    policy = auto_augment.auto_augment_policy_original({})
    for pair in policy:
        for applied in itertools.product((False, True), repeat=2):
            share = math.prod(op.prob if yes else 1 - op.prob for op, yes in zip(pair, applied, strict=True))
            ops = (OPERATIONS.index(op.name) if yes else -1 for op, yes in zip(pair, applied, strict=True))
            expected[tuple(ops)] += share / len(policy)
    found = Counter(map(tuple, drawn.policy_op.tolist()))
    outcomes = [outcome for outcome, share in expected.items() if share > 0]
    assert found.keys() <= set(outcomes)
    shares = np.array([expected[outcome] for outcome in outcomes]) / sum(expected.values())
    assert chisquare([found[outcome] for outcome in outcomes], 20_000 * shares).pvalue > 1e-3
    assert abs(drawn.policy_sign.mean()) < 0.02
    assert np.abs(np.corrcoef(drawn.policy_sign.T, drawn.policy_op.T) - np.eye(4))[:2].max() < 0.04


def test_auto_augments_policy_is_timms() -> None:
    theirs = auto_augment.auto_augment_policy_original({})
    assert tuple(tuple((op.name, op.prob, op.magnitude) for op in pair) for pair in theirs) == AUTO_POLICY
    drawn = views_of(Augment(policy="auto_augment", color_jitter=0.0))
    pairs = [[(op.name, op.magnitude) for op in pair] for pair in theirs]
    for ops, levels in zip(drawn.policy_op[:500].tolist(), drawn.policy_level[:500].tolist(), strict=True):
        names = [OPERATIONS[op] if op >= 0 else None for op in ops]
        assert any(
            all(level == m and name in (None, n) for name, level, (n, m) in zip(names, levels, pair, strict=True))
            for pair in pairs
        )


@pytest.mark.parametrize(("interpolation", "share"), [("bicubic", 0.0), ("bilinear", 1.0), ("random", 0.5)])
def test_the_resize_kernel(interpolation: str, share: float) -> None:
    drawn = views_of(Augment(interpolation=interpolation))  # type: ignore[arg-type]
    assert abs(drawn.interpolation.mean() - share) < (0.02 if share == 0.5 else 1e-9)
    np.testing.assert_array_equal(drawn.geometry, views_of(Augment()).geometry)


def test_settings_that_switch_off_leave_the_rest_alone() -> None:
    everything, less = views_of(Augment(), 500), views_of(Augment(flip=0.0, color_jitter=0.0, policy="none"), 500)
    np.testing.assert_array_equal(everything.geometry, less.geometry)
    assert not less.flip.any()
    assert (less.jitter == 1).all()
    assert (less.operation == -1).all()
    assert views_of(Augment(flip=1.0), 500).flip.all()


def test_dtypes_and_an_empty_batch() -> None:
    for count in (0, 5):
        drawn = views_of(Augment(policy="rand_augment", color_jitter=0.0), count)
        kinds = {name: (value.dtype.name, len(value)) for name, value in vars(drawn).items()}
        whole = ("geometry", "interpolation", "flip", "operation", "order", "policy_op")
        assert kinds == {name: ("int32" if name in whole else "float32", count) for name in kinds}
    mixed = draw_mix(Mix(), 0, 0, np.arange(0), 64, 32)
    assert (mixed.lam.dtype, mixed.box.dtype, mixed.cutmix.dtype) == (np.float32, np.int32, np.bool_)
    assert mixed.box.shape == (0, 4)


@pytest.mark.parametrize("group", [2, 8, 24, 64])
def test_mixing_equals_timm_batch_mode_on_every_group(group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    size, total = 16, 64
    images = torch.rand(total, 3, size, size)
    seen = []
    for step in range(12):
        drawn = draw_mix(Mix(group=group), 0, step, np.arange(total), total, size)
        ours = images.clone()
        for position in range(total):
            partner, lam = images[total - 1 - position], float(drawn.lam[position])
            if drawn.cutmix[position]:
                top, left, bottom, right = drawn.box[position].tolist()
                ours[position, :, top:bottom, left:right] = partner[:, top:bottom, left:right]
            else:
                ours[position] = lam * images[position] + (1 - lam) * partner
        rank_in_pairs = [min(position, total - 1 - position) for position in range(total)]
        for start in range(0, total // 2, group // 2):
            members = [p for p in range(total) if start <= rank_in_pairs[p] < start + group // 2]
            lam, cutmix = float(drawn.lam[members[0]]), bool(drawn.cutmix[members[0]])
            top, left, bottom, right = drawn.box[members[0]].tolist()
            timm = timm_mixup.Mixup(mixup_alpha=0.8, cutmix_alpha=1.0)
            monkeypatch.setattr(timm, "_params_per_batch", lambda lam=lam, cutmix=cutmix: (lam, cutmix))
            box = (top, bottom, left, right)
            monkeypatch.setattr(timm_mixup, "cutmix_bbox_and_lam", lambda *_, box=box, lam=lam, **__: (box, lam))
            theirs = images[members].clone()
            timm._mix_batch(theirs)
            torch.testing.assert_close(ours[members], theirs)
            seen.append((cutmix, lam))
    blends = [lam for cutmix, lam in seen if not cutmix]  # areas of small boxes may be equal by chance
    assert len(set(blends)) == len(blends)  # every group and step draws anew
    assert {cutmix for cutmix, _ in seen} == {False, True}


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
    ours_kept, box, cutmix = params._draw_group(Mix(), Scripted(lam, *centre), size)
    assert cutmix
    assert ours_kept == pytest.approx(kept, abs=1e-12)
    assert (box == (top, left, bottom, right)) or (kept == 1 and box == (0, 0, 0, 0))


@pytest.mark.parametrize("mix", [Mix(), Mix(mixup=0.0), Mix(cutmix=0.0), Mix(mixup=0.2, prob=0.7, switch_prob=0.1)])
def test_mixing_has_timms_distribution(mix: Mix) -> None:
    count = 6000
    drawn = draw_mix(mix.model_copy(update={"group": 2}), 1, 0, np.arange(count), 2 * count, 64)
    np.random.seed(0)  # noqa: NPY002 - what timm draws from
    timm = timm_mixup.Mixup(mix.mixup, mix.cutmix, prob=mix.prob, switch_prob=mix.switch_prob)
    theirs = [timm._params_per_batch() for _ in range(count)]
    areas = np.array([timm_mixup.cutmix_bbox_and_lam((3, 64, 64), lam)[1] for lam, cut in theirs if cut])
    blends = np.array([lam for lam, cut in theirs if not cut])
    assert abs(drawn.cutmix.mean() - len(areas) / count) < 0.04
    for ours, reference in ((drawn.lam[drawn.cutmix], areas), (drawn.lam[~drawn.cutmix], blends)):
        assert (len(ours) == 0) == (len(reference) == 0)
        if len(ours):
            assert kolmogorov_smirnov(ours, reference.astype(np.float32)) < 1.95
    box = drawn.box.astype(np.int64)
    area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
    np.testing.assert_allclose(drawn.lam[drawn.cutmix], 1 - area[drawn.cutmix] / 64**2, rtol=1e-6)
    assert not area[~drawn.cutmix].any()
    assert ((drawn.lam >= 0) & (drawn.lam <= 1)).all()


@given(st.integers(1, 40), st.sampled_from([2, 4, 6, 16, 256]), st.integers(0, 100), st.integers(0, 10**6))
def test_mixing_is_the_same_for_any_partition(pairs: int, group: int, seed: int, step: int) -> None:
    total = 2 * pairs
    whole = draw_mix(Mix(group=group), seed, step, np.arange(total), total, 32)
    np.testing.assert_array_equal(whole.lam, whole.lam[::-1])
    np.testing.assert_array_equal(whole.box, whole.box[::-1])
    some = np.random.default_rng(seed).permutation(total)[: total // 2]
    part = draw_mix(Mix(group=group), seed, step, some, total, 32)
    for field, values in vars(whole).items():
        np.testing.assert_array_equal(values[some], getattr(part, field), err_msg=field)


def test_no_mixing_leaves_every_image_whole() -> None:
    for mix in (Mix(prob=0.0), Mix(mixup=0.0, cutmix=0.0)):
        drawn = draw_mix(mix, 0, 0, np.arange(64), 64, 32)
        assert (drawn.lam == 1).all()
        assert not drawn.box.any()
        assert not drawn.cutmix.any()
