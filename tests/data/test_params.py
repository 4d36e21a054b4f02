"""Random parameters of views, against the references' distributions."""

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare, ks_2samp
from timm.data import auto_augment

from deit_fast.data.augment import view_params as params
from deit_fast.data.augment.policies import AUTO_POLICY, OPERATIONS
from deit_fast.data.augment.view_params import draw_views
from deit_fast.recipe.sections import Augment
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
    assert chisquare(np.bincount(drawn.operation, minlength=3)).pvalue > 1e-5
    assert chisquare(np.histogram(drawn.sigma, 50, (0.1, 2.0))[0]).pvalue > 1e-5
    assert chisquare(np.histogram(drawn.sigma[drawn.operation == params.BLUR], 20, (0.1, 2.0))[0]).pvalue > 1e-5
    assert abs(drawn.flip.mean() - 0.5) < 0.02
    for factors in drawn.jitter.T:
        assert chisquare(np.histogram(factors, 50, (0.7, 1.3))[0]).pvalue > 1e-5
    orders, counts = np.unique(drawn.order, axis=0, return_counts=True)
    assert [sorted(order) for order in orders.tolist()] == [[0, 1, 2]] * 6
    assert chisquare(counts).pvalue > 1e-5
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
        assert chisquare(np.bincount(op[op >= 0], minlength=15)).pvalue > 1e-5
    assert abs(drawn.policy_sign.mean()) < 0.02
    assert set(np.unique(drawn.policy_sign)) == {-1.0, 1.0}
    reference = np.random.default_rng(0).normal(9.5, 0.5, 60_000).clip(0, 10)
    assert ks_2samp(drawn.policy_level.ravel(), reference).pvalue > 1e-3
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
