"""The published results: whole, sourced, about things that the table and the zoo know; and the devices they were on."""

import re

import pytest

from deit_fast.recipe.table import RECIPES
from deit_fast.zoo import ARCHITECTURES, PUBLISHED
from deit_fast.zoo.devices import DEVICES, device_named
from deit_fast.zoo.reference_results import find_curve, find_facts, reference_results

OTHERS = {"vit_base_patch16", "vit_large_patch16", "vit_giant_patch14", "vit_small_patch16", "vit_tiny_patch16",
          "vit5_small_patch16", "vit5_base_patch16"}  # fmt: skip


def test_every_fact_is_whole_and_has_a_source() -> None:
    facts = reference_results()
    assert len(facts) > 150
    for fact in facts:
        assert (fact.value is None) == bool(fact.points), fact
        assert fact.unit, fact
        assert re.search(r"[\w-]+/[\w.-]+(#\d+|@[0-9a-f]{7})|arXiv \d{4}\.\d{5}|documentation", fact.source), fact
        assert fact.model is None or fact.model in ARCHITECTURES or fact.model in OTHERS, fact
        assert fact.recipe is None or fact.recipe in RECIPES, fact
        epochs = [epoch for epoch, _ in fact.points]
        assert epochs == sorted(set(epochs)), fact
        if fact.recipe:
            assert fact.model == RECIPES[fact.recipe].model.name, fact
        if fact.what == "top1_by_epoch":
            assert all(0 <= value <= 100 for _, value in fact.points), fact


def test_the_authors_curves_end_where_their_tables_do() -> None:
    """The zoo's accuracies are those of README_revenge.md; the logs are of the same runs."""
    logs = [fact for fact in find_facts("top1_by_epoch") if fact.trust == "authors' log"]
    assert len(logs) == 18
    for fact in logs:
        assert fact.recipe is not None
        recipe = RECIPES[fact.recipe]
        epoch, top1 = fact.points[-1]
        assert epoch == recipe.schedule.epochs
        assert find_curve(fact.recipe) is fact
        data = "ImageNet-21k, ImageNet-1k" if "21k_1k" in fact.recipe else "ImageNet-1k"
        rows = [row.top1 for row in PUBLISHED if (row.name, row.resolution, row.training) ==
                (recipe.model.name, recipe.model.image_size, data) and row.top1]  # fmt: skip
        if rows and "_21k_224" not in fact.recipe:
            assert top1 == pytest.approx(rows[0], abs=0.1), fact.recipe


def test_what_is_asked_for() -> None:
    rates = find_facts("train_images_per_second", model="deit3_base_patch16", resolution=224)
    assert {fact.value for fact in rates} >= {374.05}
    assert {fact.what for fact in find_facts("hours", "seconds_per_epoch")} == {"hours", "seconds_per_epoch"}
    assert find_curve("demo_pretrain") is None
    curve = find_curve("deit3_small_1k_224")
    assert curve is not None
    assert dict(curve.points)[400] == 74.446


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"), ("1 H100 SXM 80GB", "h100"), ("NVIDIA H200", "h200"),
        ("8 A100, 1 node", "a100"), ("DGX A100 80GB", "a100"), ("NVIDIA GeForce RTX 3090", "3090"),
        ("1 RTX 3090", "3090"), ("NVIDIA L4", "l4"), ("NVIDIA L40S", "l40s"), ("Tesla V100-SXM2-32GB", "v100"),
        ("8 V100 (1 node)", "v100"), ("Tesla T4", "t4"), ("NVIDIA A10", "a10"),
        ("TPU v4-64 slice (32 chips)", "tpu-v4"), ("8 RTX 2080 Ti", None), ("TPU v3-8", None), ("not stated", None),
        ("", None),
    ],
)  # fmt: skip
def test_devices_are_known_by_their_texts(text: str, name: str | None) -> None:
    assert device_named(text) is (None if name is None else DEVICES[name])
