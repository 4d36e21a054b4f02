"""torch.compile where the compiler fails: one line, the same decision on all processes, and the eager run."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deit_fast.infer.compile import try_gradient
from deit_fast.infer.precision import build_predictor
from deit_fast.models.build import build_model
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.errors import RunError
from deit_fast.runtime.world import World
from deit_fast.training.prepare import build_state, prepare
from deit_fast.training.step import TrainStep
from tests.training.test_step import SMALL, batch, weights
from tests.training.test_train import environment

CPU = torch.device("cpu")
WORDS = ["run.compile=on", "model.drop_path=0.5", "optim.lr=1e-2"]


def failing(_: Any, __: Any) -> Callable[..., Any]:
    """A backend for torch.compile on a machine without a compiler."""
    raise RuntimeError("no working\nC++ compiler")


def with_backend(monkeypatch: pytest.MonkeyPatch, backend: Any) -> None:
    plain = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: plain(module, backend=backend))


def make(*words: str, world: World | None = None) -> TrainStep:
    recipe = get_recipe("demo_pretrain", [*SMALL, *words])
    torch.manual_seed(0)
    return prepare(recipe, build_state(recipe, build_model(recipe.model)), world or World(0, 1, CPU), torch.float32)


def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """run.compile=auto as it is where there is a GPU."""
    monkeypatch.setattr("deit_fast.infer.compile.wants_compile", lambda run, device: run.compile != "off")


def test_auto_goes_on_eagerly_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_backend(monkeypatch, failing)
    on_a_gpu(monkeypatch)
    fallen, eager = make(*WORDS, "run.compile=auto"), make(*WORDS, "run.compile=off")
    for seed in range(3):
        for step in (fallen, eager):
            step([batch(seed)], 1e-2)
    assert torch.equal(weights(fallen), weights(eager))  # the attempt drew and moved nothing
    images = batch().images
    model = fallen.state.model.eval()
    with torch.no_grad():
        assert torch.equal(fallen.predictor(model)(images), fallen.classifier(images))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("torch.compile failed (")
    assert line.endswith("): running eagerly")
    assert "no working C++ compiler" in line


def test_on_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with_backend(monkeypatch, failing)
    with pytest.raises(RunError, match=r"^run\.compile='on': .*no working C\+\+ compiler") as caught:
        make(*WORDS)
    assert "\n" not in str(caught.value)
    recipe = get_recipe("demo_pretrain", [*SMALL, *WORDS])
    predict = build_predictor(build_model(recipe.model).eval(), recipe, torch.float32, World(0, 1, CPU))
    with pytest.raises(RunError, match=r"run\.compile='on'"), torch.no_grad():
        predict(batch().images)


def test_out_of_memory_is_no_failure_of_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(nn.Module):
        def forward(self, *_: Any) -> None:
            raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(torch, "compile", lambda module: Full())
    with pytest.raises(torch.OutOfMemoryError):
        make(*WORDS)


def test_a_failing_evaluation_goes_on_eagerly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_backend(monkeypatch, failing)
    on_a_gpu(monkeypatch)
    step = make("run.compile=auto")
    predict = step.predictor(step.state.model.eval())
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(predict(batch().images), step.classifier(batch().images))
    assert capsys.readouterr().out.count("running eagerly") == 1


def test_the_attempt_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it succeeds: the first step after it is the step without it. aot_eager runs what torch runs."""
    with_backend(monkeypatch, "aot_eager")
    compiled, eager = make(*WORDS), make(*WORDS, "run.compile=off")
    for seed in range(3):
        for step in (compiled, eager):
            step([batch(seed)], 1e-2)
    assert compiled.compiled
    torch.testing.assert_close(weights(compiled), weights(eager), rtol=0, atol=1e-6)


def test_each_model_of_a_process_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch keeps 8 graphs of a function, here 2, then runs it eagerly and says nothing. A backend sees all."""
    graphs: list[int] = []

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    with_backend(monkeypatch, count)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=2):
        for classes in (5, 6, 7):
            before = len(graphs)
            step = make("run.compile=on", f"model.num_classes={classes}")
            assert step.compiled
            assert len(graphs) == before + 1, f"the model of {classes} classes runs eagerly"


def test_gradients_random_state_and_running_statistics_stay() -> None:
    torch.manual_seed(3)
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    module[1].bias.requires_grad_(False)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    random = torch.get_rng_state()
    ran = []
    module.register_forward_hook(lambda _, __, output: ran.append(output) or output.sum())
    try_gradient(module, (torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0)),), CPU)
    assert len(ran) == 1
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_one_process_that_fails_decides_for_both() -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    command = [sys.executable, *launcher, "tests.infer.test_compile"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = sorted(done.stdout.splitlines())
    assert [line for line in lines if line.startswith("torch.compile failed (rank 1, ")] == lines[-1:]
    assert lines[:-1] == ["cut into 0 by auto", "cut into 0 by auto", "cut into 1 by on", "cut into 1 by on"]


if __name__ == "__main__":
    from deit_fast.runtime.world import join_world, leave_world

    joined = join_world()
    graphs: list[Any] = []
    patch = pytest.MonkeyPatch()
    on_a_gpu(patch)

    def counting(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph

    for mode, backend in (("auto", failing if joined.rank else counting), ("on", counting)):
        with patch.context() as inner:
            with_backend(inner, backend)
            graphs.clear()
            step = make(*WORDS, f"run.compile={mode}", world=joined)
            for seed in range(3):
                images, labels, _, _ = batch(seed)
                part = batch(seed)._replace(images=images.chunk(2)[joined.rank], labels=labels.chunk(2)[joined.rank])
                step([part], 1e-2)
            found = len(graphs) if mode == "on" else int(step.compiled)
        sys.stdout.write(f"cut into {found} by {mode}\n")  # at once: two processes write here
        sys.stdout.flush()
        gathered = joined.gather(weights(step))
        assert torch.equal(*gathered)
    leave_world(joined)
