"""What the commands import on their way: a second and 150 MB of torch's compiler only where somebody compiles."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

LATE = ("torch._dynamo", "torch._inductor", "sympy", "torch.distributed.tensor", "torch.utils.tensorboard")
"""What is slow to import and none of the commands needs before the first step, on a CPU."""
NEVER = ("matplotlib", "tensorboard", "torchx", "scipy", "sklearn", "triton.language", "fsspec")

COMMANDS = """
import json, os, sys
from deit_fast.cli.main import main
from deit_fast.training.step import TrainStep

seen, first_step = {}, TrainStep.__call__
def look(name):
    seen[name] = [each for each in SLOW if each in sys.modules]
def step(self, *given):
    first_step(self, *given)
    if "first step" not in seen:
        look("first step")
TrainStep.__call__ = step
run, data, image = sys.argv[1:]
words = ["model.num_classes=3", "run.global_batch=32", "schedule.epochs=1", "schedule.warmup_epochs=0"]
assert main(["train", "demo_pretrain", "--data", data, "--out", run, *words]) == 0
look("trained")

# What training imported at its end, for its pictures, is forgotten: who asks for it has to import it again.
late = {each for each in seen["trained"] if not each.startswith("torch.")}
for name in [each for each in sys.modules if each.split(".")[0] in late or each in seen["trained"]]:
    del sys.modules[name]
assert main(["evaluate", run, "--data", data]) == 0
look("evaluated")
assert main(["predict", run, image]) == 0
look("predicted")

# And whoever wants the compiler has it, whole, with torchvision and timm as they are.
import torch, torchvision, timm
assert "torch._dynamo" not in sys.modules
roi_align = sys.modules["torchvision.ops.roi_align"]
asked = roi_align.is_compile_supported("cpu")
assert asked == torch._dynamo.utils.is_compile_supported("cpu")
assert torch._dynamo.__file__.endswith("__init__.py") and torch._dynamo.config.recompile_limit > 0
assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2)).tolist() == [2, 2]
boxes = torch.tensor([[0, 0, 0, 4, 4.0]])
assert torchvision.ops.roi_align(torch.ones(1, 1, 8, 8), boxes, 2).tolist() == [[[[1, 1], [1, 1]]]]
assert timm.create_model("test_vit").__class__ is sys.modules["timm.models.vision_transformer"].VisionTransformer
flexible = timm.create_model("naflexvit_base_patch16_gap", embed_dim=32, num_heads=2, depth=1, num_classes=2)
assert flexible(torch.zeros(1, 3, 64, 64)).shape == (1, 2)
print(json.dumps(seen), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def seen(folder_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The slow modules that were there at each place, in one process that trains, evaluates and predicts."""
    run = tmp_path_factory.mktemp("start") / "run"
    image = next((folder_data / "val" / "class0").iterdir())
    text = COMMANDS.replace("SLOW", repr([*LATE, *NEVER]))
    done = subprocess.run(
        [sys.executable, "-c", text, str(run), str(folder_data), str(image)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize("place", ["first step", "evaluated", "predicted"])
def test_what_a_command_has_imported(seen: dict[str, list[str]], place: str) -> None:
    assert seen[place] == []


def test_a_run_on_a_cpu_never_imports_the_compiler(seen: dict[str, list[str]]) -> None:
    assert not {"torch._dynamo", "torch._inductor", "torch.distributed.tensor"} & set(seen["trained"])
    assert "matplotlib" in seen["trained"]  # for curves.png: the test sees what is there
