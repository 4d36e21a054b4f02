"""The training loss of a batch against its formulas in plain torch: Cosub, distillation, evaluation-mode finetuning."""

import copy
import shutil

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor, nn

from deit_fast.data.augment.mix import mix_images, mix_targets
from deit_fast.infer.precision import Classifier
from deit_fast.models.build import check_drop_path
from deit_fast.models.stochastic_depth import draw_rows
from deit_fast.recipe.sections import Distill
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.errors import RecipeError
from deit_fast.training.distill import Teacher
from deit_fast.training.objective import Objective, cosub_loss, distillation_loss
from deit_fast.training.prepare import build_state, prepare
from deit_fast.training.step import TrainStep
from tests.training.test_step import CPU, SMALL, batch, make, weights

MIXED = ["mix.mixup=0.8", "mix.group=8"]
COSUB = [*MIXED, "loss.name=bce", "loss.cosub=true", "model.drop_path=0.5"]
DISTILLED = ["model.name=deit_tiny_distilled_patch16", *MIXED]


def bce(logits: Tensor, targets: Tensor) -> Tensor:
    probabilities = logits.sigmoid()
    return -(targets * probabilities.log() + (1 - targets) * (1 - probabilities).log()).mean()


def distilled_model() -> VisionTransformerDistilled:
    torch.manual_seed(0)
    return VisionTransformerDistilled(img_size=16, patch_size=4, embed_dim=32, depth=1, num_heads=2, num_classes=5)


def small_teacher() -> Teacher:
    torch.manual_seed(1)
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )
    with torch.no_grad():
        layers[1].running_mean.normal_()
        layers[5].weight.mul_(10)  # or its decisions are all the same
    return Teacher(layers.requires_grad_(False).eval())


def distilling_step(*words: str) -> TrainStep:
    recipe = get_recipe("demo_pretrain", [*SMALL, *DISTILLED, *words])
    return prepare(recipe, build_state(recipe, distilled_model()), CPU, torch.float32, small_teacher())


def test_cosub_is_its_formula_with_its_gradients() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(8, 5, requires_grad=True), (torch.rand(4, 5) > 0.6).float()
    loss = cosub_loss(logits, targets * 0.3)  # binarised
    first, second = logits[:4], logits[4:]
    expected = 0.25 * bce(first, targets) + 0.25 * bce(second, targets)
    expected = expected + 0.25 * bce(first, second.detach().sigmoid()) + 0.25 * bce(second, first.detach().sigmoid())
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], torch.autograd.grad(expected, logits)[0])


@pytest.mark.parametrize("mode", ["subset", "bernoulli"])
def test_cosub_runs_the_mixed_batch_twice_with_draws_of_their_own(mode: str) -> None:
    _, step = make([*COSUB, f"model.drop_path_mode={mode}"])
    images, labels, mixing, _ = batch(mixed=True)
    seen = []
    step.state.model.register_forward_hook(lambda model, inputs, output: seen.append((inputs[0], output)))
    step.state.model.train()
    loss = step.objective(images, labels, mixing)
    ((inputs, logits),) = seen
    once = mix_images(step.classifier.normalise(images), *mixing)
    assert torch.equal(inputs, torch.cat([once, once]))
    assert (logits[:8] != logits[8:]).any(dim=1).sum() >= 7  # of eight images, one may draw the same twice
    targets = (mix_targets(labels, 5, 0.0, mixing.lam) > 0).float()
    first, second = logits[:8].detach(), logits[8:].detach()
    terms = [bce(first, targets), bce(second, targets), bce(first, second.sigmoid()), bce(second, first.sigmoid())]
    torch.testing.assert_close(loss.detach(), sum(terms) / 4)
    step.state.model.eval()
    step.objective(images, labels, mixing)
    torch.testing.assert_close(seen[1][1][:8], seen[1][1][8:])


def test_cosubs_subset_is_drawn_from_the_doubled_batch() -> None:
    torch.manual_seed(0)
    kept = torch.zeros(4000, 16)
    for row in kept:
        row[draw_rows(16, 8, row.device)] = 1
    both = (kept[:, :8] * kept[:, 8:]).mean()  # an image's two passes: all but independent
    assert both.item() == pytest.approx(0.5 * 7 / 15, abs=0.02)
    recipe = get_recipe("demo_pretrain", [*SMALL, *COSUB, "model.drop_path=0.1"])
    check_drop_path(recipe.model, 2 * 4)  # one pass over 4 would keep all
    with pytest.raises(RecipeError, match="expected a larger batch than 4"):
        check_drop_path(recipe.model, 4)


def oracle_distillation(kind: str, student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    if kind == "hard":
        chosen = [student[row].softmax(0)[int(teacher[row].argmax())] for row in range(len(student))]
        return -torch.stack(chosen).log().mean()
    p, q = (teacher / tau).softmax(1), (student / tau).softmax(1)
    return (p * (p.log() - q.log())).sum() * tau * tau / (student.shape[0] * student.shape[1])


@pytest.mark.parametrize(("kind", "tau", "alpha"), [("hard", 1.0, 0.5), ("soft", 1.0, 0.1), ("soft", 3.0, 0.7)])
def test_distillation_is_its_formula(kind: str, tau: float, alpha: float) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 5, requires_grad=True), 3 * torch.randn(6, 5)
    soft = {"tau": tau} if kind == "soft" else {}
    loss = distillation_loss(Distill.model_validate({"kind": kind, "alpha": alpha, **soft}), student, teacher)
    expected = oracle_distillation(kind, student, teacher, tau)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, student)[0], torch.autograd.grad(expected, student)[0])

    for name in ("bce", "cross_entropy"):
        step = distilling_step(f"distill.kind={kind}", *(f"distill.tau={tau}" for _ in soft), f"distill.alpha={alpha}",
                               f"loss.name={name}")  # fmt: skip
        images, labels, mixing, _ = batch(mixed=True)
        total = step.objective(images, labels, mixing)
        inputs = mix_images(step.classifier.normalise(images), *mixing)
        model = step.state.model.train()
        logits, student_logits = model(inputs)
        targets = mix_targets(labels, 5, 0.0, mixing.lam)
        base = -(targets * logits.softmax(1).log()).sum(1).mean() if name == "cross_entropy" else None
        base = bce(logits, (targets > 0).float()) if base is None else base
        taught = small_teacher().model(inputs)
        assert len(set(taught.argmax(1).tolist())) > 1
        expected = (1 - alpha) * base + alpha * oracle_distillation(kind, student_logits, taught, tau)
        torch.testing.assert_close(total, expected)


def test_the_teacher_is_no_part_of_the_student() -> None:
    step = distilling_step("distill.kind=hard")
    names = {name for name, _ in step.objective.named_parameters()}
    assert names == {f"classifier.model.{name}" for name, _ in step.state.model.named_parameters()}
    assert not list(step.objective.buffers())
    before = copy.deepcopy(step.objective.teacher.model.state_dict())
    for seed in range(3):
        step([batch(seed, mixed=True)], 1e-2)
    after = step.objective.teacher.model.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())  # batch norm's statistics too
    assert set(step.state.state_dict()["model"]) == set(distilled_model().state_dict())
    assert all(p.grad is None for p in step.objective.teacher.model.parameters())


def test_both_heads_learn_and_evaluation_is_their_mean() -> None:
    step = distilling_step("distill.kind=hard")
    before = weights(step)
    step([batch(mixed=True)], 1e-2)
    assert not torch.equal(weights(step), before)
    for head in ("head", "head_dist"):
        assert not torch.equal(getattr(step.state.model, head).weight, getattr(distilled_model(), head).weight)
    images = batch().images
    for model in (step.state.model.eval(), step.state.ema):
        features = model.forward_features(step.classifier.normalise(images))
        mean = (model.head(features[:, 0]) + model.head_dist(features[:, 1])) / 2
        torch.testing.assert_close(step.predictor(model)(images), mean)


def test_without_distillation_a_distilled_model_trains_the_mean_of_its_heads() -> None:
    recipe = get_recipe("demo_pretrain", [*SMALL, *DISTILLED])
    objective = Objective(Classifier(distilled_model().train(), recipe, torch.float32, CPU.device), recipe)
    images, labels, mixing, _ = batch(mixed=True)
    twin = distilled_model().train()
    twin.set_distilled_training(True)
    heads = twin(mix_images(objective.classifier.normalise(images), *mixing))
    targets = mix_targets(labels, 5, 0.0, mixing.lam)
    expected = -(targets * ((heads[0] + heads[1]) / 2).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(objective(images, labels, mixing), expected)


KINDS = {
    "cosub": COSUB,
    "soft": [*DISTILLED, "distill.kind=soft"],
    "checkpointing": [*MIXED, "model.drop_path=0.5", "run.grad_checkpointing=true"],
    "selective": [*MIXED, "model.drop_path=0.5", "run.grad_checkpointing=selective"],
}


def step_of(kind: str, *words: str) -> TrainStep:
    return distilling_step("distill.kind=soft", *words) if kind == "soft" else make([*KINDS[kind], *words])[1]


@pytest.mark.parametrize("kind", KINDS)
def test_no_graph_breaks(kind: str) -> None:
    step = step_of(kind)
    step.state.model.train()
    assert torch._dynamo.explain(step.objective)(*batch(9, mixed=True)).graph_break_count == 0


@pytest.mark.soak
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on CPUs needs g++, which is not installed")
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_steps_are_the_eager_ones(kind: str) -> None:
    # Inductor draws from its own generator; with torch's, the compiled step has to be the eager one.
    with torch._inductor.config.patch(fallback_random=True):
        eager, compiled = step_of(kind, "optim.name=adamw"), step_of(kind, "optim.name=adamw", "run.compile=on")
        for seed in range(3):
            with torch._dynamo.config.patch(error_on_recompile=seed > 0):
                eager([batch(seed, mixed=True)], 1e-3)
                compiled([batch(seed, mixed=True)], 1e-3)
    torch.testing.assert_close(weights(eager), weights(compiled), rtol=0, atol=1e-4)


def test_finetuning_in_evaluation_mode() -> None:
    """No dropout and no stochastic depth, but gradients: the step of a model that has neither."""
    words = ["model.drop_path=0.5", "model.dropout=0.5", "model.train_mode=false"]
    _, quiet = make(words)
    _, plain = make()
    for seed in range(2):
        quiet([batch(seed)], 1e-3)
        plain([batch(seed)], 1e-3)
        assert not quiet.state.model.training
    assert torch.equal(weights(quiet), weights(plain))
    assert quiet.meter.sums.tolist() == plain.meter.sums.tolist()
    _, loud = make(words[:2])
    loud([batch(0)], 1e-3)
    assert loud.state.model.training
