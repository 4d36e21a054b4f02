import shutil

import pytest
import torch
from torchvision.transforms import functional as TF

from deit_fast.infer.precision import Classifier, choose_dtype
from deit_fast.models.build import build_model
from deit_fast.recipe.schema import Recipe
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.errors import RecipeError
from deit_fast.runtime.world import World
from deit_fast.training.objective import MicroBatch, Mixing
from deit_fast.training.prepare import build_state, prepare
from deit_fast.training.step import Meter, TrainStep

CPU = World(0, 1, torch.device("cpu"))
SMALL = ["model.image_size=16", "run.global_batch=8", "model.num_classes=5", "run.precision=fp32"]


def make(words: list[str] = ()) -> tuple[Recipe, TrainStep]:
    recipe = get_recipe("demo_pretrain", [*SMALL, *words])
    torch.manual_seed(recipe.run.seed_of("init"))
    return recipe, prepare(recipe, build_state(recipe, build_model(recipe.model)), CPU, torch.float32)


def batch(seed: int = 0, size: int = 8, mixed: bool = False) -> MicroBatch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (size, 3, 16, 16), dtype=torch.uint8, generator=generator)
    labels = torch.randint(5, (size,), generator=generator)
    mixing = None
    if mixed:
        half = torch.rand(size // 2, generator=generator)
        mixing = Mixing(torch.cat([half, half.flip(0)]), torch.zeros(size, 4, dtype=torch.int32), torch.zeros(size) > 0)
    return MicroBatch(images.to(memory_format=torch.channels_last), labels, mixing)


def weights(step: TrainStep) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in step.state.model.parameters()])


def test_normalisation_is_torchvisions() -> None:
    recipe, step = make()
    images = batch().images
    expected = TF.normalize(images.float() / 255, recipe.data.mean, recipe.data.std)
    torch.testing.assert_close(step.classifier.normalise(images), expected, rtol=1e-5, atol=1e-6)
    assert step.classifier.normalise(images).is_contiguous(memory_format=torch.channels_last)


def test_loss_falls_on_one_batch() -> None:
    _, step = make(["optim.lr=1e-2"])
    losses = []
    for _ in range(30):
        step([batch()], 1e-2)
        losses.append(step.meter.sums[0].item() - sum(losses))
    assert losses[-1] < 0.2 * losses[0]
    assert step.meter.sums[2].item() == 30


def test_accumulated_batches_are_one_batch() -> None:
    _, whole = make()
    _, halves = make(["run.accumulation=2"])
    full = batch(mixed=True)

    # Folded halves: each holds pairs of the whole batch's reversal, so that mixing finds the same partners.
    def cut(*rows: list[int]) -> list[MicroBatch]:
        return [MicroBatch(full.images[i], full.labels[i], Mixing(*(t[i] for t in full.mixing))) for i in rows]

    _, apart = make(["run.accumulation=2"])
    for _ in range(3):
        whole([full], 1e-3)
        halves(cut([0, 1, 6, 7], [2, 3, 4, 5]), 1e-3)
        apart(cut([0, 1, 2, 3], [4, 5, 6, 7]), 1e-3)
    torch.testing.assert_close(weights(whole), weights(halves), rtol=0, atol=5e-5)
    assert (weights(whole) - weights(apart)).abs().max() > 1e-3  # other partners are another batch


def test_a_non_finite_step_is_skipped_and_counted() -> None:
    _, step = make()
    step([batch()], 1e-3)
    with torch.no_grad():
        step.state.model.head.bias[0] = float("nan")
    before = weights(step)
    for expected in (1, 2):
        step([batch()], 1e-3)
        assert step.meter.skipped_in_a_row.item() == expected
    assert torch.equal(weights(step).nan_to_num(7.0), before.nan_to_num(7.0))
    assert step.meter.sums.tolist()[2:] == [1, 2]
    assert torch.isfinite(step.meter.sums).all()
    with torch.no_grad():
        step.state.model.head.bias[0] = 0.0
    step([batch()], 1e-3)
    assert step.meter.skipped_in_a_row.item() == 0


def test_the_meter_knows_whose_loss_began_it() -> None:
    meter, bad, good = Meter.on(CPU.device), torch.tensor(float("nan")), torch.tensor(1.0)
    skipped, began = torch.ones(()), []
    for losses in ((bad, good, good), (good, bad, bad)):
        for loss in losses:
            meter.add(loss, bad, skipped)
        began.append(bool(meter.began_here))
        meter.add(good, good, torch.zeros(()))
    assert began == [True, False]


def test_moving_average() -> None:
    _, step = make(["optim.ema_decay=0.9"])
    expected = weights(step)
    for seed in range(3):
        step([batch(seed)], 1e-3)
        expected = 0.9 * expected + 0.1 * weights(step)
    average = torch.cat([p.flatten() for p in step.state.ema.parameters()])
    torch.testing.assert_close(average, expected)
    assert make(["optim.ema_decay=null"])[1].state.ema is None


@pytest.mark.parametrize("name", ["lamb", "adamw"])
def test_the_published_decay_against_float64(name: str) -> None:
    """At 0.99996 an update is of the size of fp32's rounding: it must not drown in it."""
    _, step = make(["optim.ema_decay=0.99996", f"optim.name={name}"])
    start = weights(step).double()
    expected = start.clone()
    for seed in range(60):
        step([batch(seed)], 1e-2)
        expected = 0.99996 * expected + (1 - 0.99996) * weights(step).double()
    average = torch.cat([p.flatten() for p in step.state.ema.parameters()]).double()
    assert (average - expected).norm() < 0.01 * (expected - start).norm()


@pytest.mark.parametrize("words", [["model.drop_path=0.5"], ["model.dropout=0.5"]], ids=["drop-path", "dropout"])
def test_randomness_is_a_function_of_seed_and_step(words: list[str]) -> None:
    _, first = make(words)
    _, second = make(words)
    for seed in range(3):
        torch.rand(7)  # what else draws from the global generator does not matter
        first([batch(seed)], 1e-3)
        torch.rand(5)
        second([batch(seed)], 1e-3)
    assert torch.equal(weights(first), weights(second))
    _, other = make([*words, "run.seed=1"])
    other.state.model.load_state_dict(make(words)[1].state.model.state_dict())
    for seed in range(3):
        other([batch(seed)], 1e-3)
    assert not torch.equal(weights(first), weights(other))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on CPUs needs g++, which is not installed")
def test_compiled_step_is_the_eager_step_and_compiles_once() -> None:
    words = ["mix.mixup=0.8", "mix.group=8", "loss.name=bce"]
    _, eager = make(words)
    _, compiled = make([*words, "run.compile=on"])
    with torch._dynamo.config.patch(error_on_recompile=True):  # pytest's monkeypatch would hide the key when it undoes
        for seed in range(5):
            eager([batch(seed, mixed=True)], 1e-3 * (seed or 1))
            compiled([batch(seed, mixed=True)], 1e-3 * (seed or 1))
    torch.testing.assert_close(weights(eager), weights(compiled), rtol=0, atol=1e-4)
    explained = torch._dynamo.explain(compiled.objective)(*batch(9, mixed=True))
    assert explained.graph_break_count == 0


def test_bf16_gives_fp32_logits() -> None:
    recipe = get_recipe("demo_pretrain", SMALL)
    classifier = Classifier(build_model(recipe.model), recipe, torch.bfloat16, CPU.device).eval()
    logits = classifier(batch().images)
    assert logits.dtype == torch.float32
    exact = Classifier(classifier.model, recipe, torch.float32, CPU.device)(batch().images)
    torch.testing.assert_close(logits, exact, rtol=0.1, atol=0.02)
    assert not torch.equal(logits, exact)


def test_bf16_where_there_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deit_fast.infer.precision.has_bf16", lambda device: False)
    run = get_recipe("demo_pretrain", ["run.precision=bf16"]).run
    with pytest.raises(RecipeError, match=r"run\.precision='bf16'"):
        choose_dtype(run, CPU.device)
    assert choose_dtype(get_recipe("demo_pretrain").run, CPU.device) == torch.float32


@pytest.mark.gpu
def test_the_step_never_waits_for_the_gpu() -> None:
    device = torch.device("cuda")
    recipe = get_recipe("demo_pretrain", ["model.image_size=16", "run.global_batch=8", "model.num_classes=5"])
    step = prepare(
        recipe, build_state(recipe, build_model(recipe.model).to(device)), World(0, 1, device), torch.bfloat16
    )
    images, labels, _, _ = batch()
    on_gpu = MicroBatch(images.to(device), labels.to(device), None)
    for _ in range(3):
        step([on_gpu], 1e-3)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            step([on_gpu], 1e-3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
