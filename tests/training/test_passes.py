"""run.accumulation=auto, with memory that runs out above a number of images; out of memory amid a run, and after it."""

import errno
import json
import multiprocessing
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from PIL import Image

from deit_fast.cli.main import main
from deit_fast.recipe.schema import Recipe
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.errors import LacksMemoryError, RecipeError, StorageError, is_out_of_memory
from deit_fast.runtime.exit_status import ExitStatus
from deit_fast.runtime.world import World
from deit_fast.training import passes
from deit_fast.training.objective import Objective
from deit_fast.training.out_of_memory import MemoryGuard
from deit_fast.training.passes import Kept, PassMemory, first_that_fits, next_passes, possible_passes, settle_passes
from deit_fast.training.run import train
from tests.training.test_train import WORDS, command, environment, last_weights

ALONE = World(0, 1, torch.device("cpu"))
SHORT = [*WORDS, "schedule.epochs=1", "schedule.warmup_epochs=0", "run.checkpoint_every=2"]


def limit_images(monkeypatch: pytest.MonkeyPatch, most: int, error: Callable[[], BaseException] | None = None) -> None:
    """Passes of more than `most` images run out of memory from now on, as on a GPU."""
    forward = Objective.forward

    def limited(self: Objective, images: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(images) > most:
            raise error() if error else torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, images, *rest)

    monkeypatch.setattr(Objective, "forward", limited)


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Path:
    """Steps are tried, as on a GPU; the file in which the results are kept."""
    monkeypatch.setattr(passes, "tries_steps", lambda recipe, world: True)
    return cache / "passes.json"


def test_possible_passes() -> None:
    recipe = get_recipe("demo_pretrain", ["run.global_batch=24", "mix.group=24", "mix.mixup=0.8", "model.drop_path=0"])
    assert possible_passes(recipe, 1) == [1, 2, 3, 4, 6, 12]  # even ones, for mixing
    assert possible_passes(recipe, 2) == [1, 2, 3, 6]
    plain = recipe.override(["mix.mixup=0", "mix.cutmix=0"])
    assert possible_passes(plain, 1) == [1, 2, 3, 4, 6, 8, 12, 24]
    with pytest.raises(RecipeError, match=r"run.global_batch=24: expected a multiple of 5 processes"):
        possible_passes(recipe, 5)
    # Stochastic depth of a subset needs passes of which it drops one image at least.
    deep = plain.override(["model.drop_path=0.1", "model.drop_path_mode=subset"])
    assert max(possible_passes(deep, 1)) < 24
    assert next_passes(plain.override(["run.accumulation=4"]), 1) == 8
    assert next_passes(plain.override(["run.accumulation=24"]), 1) is None


def test_a_run_finds_by_trial_what_fits_and_trains_as_if_it_had_been_told(
    folder_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_gpu: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    limit_images(monkeypatch, 8)
    train("demo_pretrain", folder_data, tmp_path / "found", overrides=SHORT)
    printed = capfd.readouterr().out
    assert "batch     16 views = 1 process x 2 passes x 8 images (found by a trial)" in printed
    state = torch.load(tmp_path / "found" / "checkpoints" / "last.pt", weights_only=True)
    assert (state["recipe"]["run"]["accumulation"], state["processes"]) == (2, 1)
    assert json.loads((tmp_path / "found" / "recipe.json").read_text())["run"]["accumulation"] == "auto"
    train("demo_pretrain", folder_data, tmp_path / "told", overrides=[*SHORT, "run.accumulation=2"])
    told = last_weights(tmp_path / "told")
    assert all(torch.equal(value, told[name]) for name, value in last_weights(tmp_path / "found").items())

    [kept] = json.loads(on_gpu.read_text()).values()
    assert kept == {"fits": 8, "fails": 16}

    def no_trial(*_: object) -> bool:
        raise AssertionError("the result is known")

    monkeypatch.setattr(passes.StepTrial, "__call__", no_trial)
    recipe = get_recipe("demo_pretrain", SHORT)
    again = settle_passes(recipe, ALONE)
    assert (again.recipe.run.passes, again.reason) == (2, f"found by an earlier trial, {on_gpu}")
    # What is known of a pass of 8 images serves every batch; another resolution is another matter.
    assert settle_passes(recipe.override(["run.global_batch=32"]), ALONE).recipe.run.passes == 4
    with pytest.raises(AssertionError):
        settle_passes(recipe.override(["model.image_size=32"]), ALONE)


@pytest.mark.parametrize("content", ["", "[1]", '{"key": 3}', '{"key": {"fits": -1, "fails": "x"}}', "{"])
def test_a_damaged_or_forbidden_file_costs_a_trial(content: str, on_gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = get_recipe("demo_pretrain", SHORT)
    on_gpu.parent.mkdir(exist_ok=True)
    on_gpu.write_text(content.replace("key", passes._key(recipe, ALONE)))
    memory = PassMemory(recipe, ALONE)
    assert memory.recall(8) is None
    memory.note(8, fits=True)
    assert (memory.recall(8), memory.recall(4), memory.recall(16)) == (True, True, None)
    memory.note(4, fits=False)  # a run ended for want of memory: the later word counts
    assert (memory.recall(8), memory.recall(4), memory.recall(2)) == (False, False, None)

    def forbidden(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("deit_fast.runtime.remembered.write_json", forbidden)
    memory.note(2, fits=True)


def test_nothing_fits(on_gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit_images(monkeypatch, 0)
    recipe = get_recipe("demo_pretrain", [*SHORT, "model.drop_path=0", "run.global_batch=4", "mix.group=4"])
    for _ in range(2):  # what did not fit at all is tried again: something else may have had the memory
        with pytest.raises(LacksMemoryError, match=r"not even 2 images a pass fit \(CUDA out of memory"):
            settle_passes(recipe, ALONE)
    monkeypatch.undo()
    monkeypatch.setattr(passes, "tries_steps", lambda recipe, world: True)
    monkeypatch.setenv("DEIT_FAST_CACHE", str(on_gpu.parent))
    assert settle_passes(recipe, ALONE).reason == "found by a trial"


def test_a_checkpoints_number_is_kept_by_as_many_processes(on_gpu: Path) -> None:
    recipe = get_recipe("demo_pretrain", SHORT)
    for processes in (1, None):  # an earlier version's says nothing of them
        settled = settle_passes(recipe, ALONE, Kept(2, processes))
        assert (settled.recipe.run.passes, settled.reason) == (2, "the checkpoint's number")
    assert settle_passes(recipe, ALONE, Kept(2, 8)).recipe.run.passes == 1
    assert settle_passes(recipe, ALONE, Kept(7, 1)).recipe.run.passes == 1
    assert settle_passes(recipe.override(["run.accumulation=4"]), ALONE, Kept(2, 1)).recipe.run.passes == 4


def test_on_cpus_by_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = get_recipe("deit3_small_1k_224", ["run.global_batch=64", "mix.group=64", "run.precision=fp32"])
    monkeypatch.setattr(passes, "step_memory", lambda recipe, images, *_: SimpleNamespace(peak=images * 2**20))
    for free, expected in ((2**50, 1), (65 * 2**20 / 0.85, 1), (64 * 2**20 / 0.9, 2), (17 * 2**20 / 0.85, 4), (0, 32)):
        monkeypatch.setattr(passes, "available_memory", lambda free=free: int(free))
        assert settle_passes(recipe, ALONE).recipe.run.passes == expected, free
    monkeypatch.setattr(passes, "available_memory", lambda: None)
    assert settle_passes(recipe, ALONE) == (recipe.override(["run.accumulation=1"]), "the free memory is not known")


ERRORS: dict[str, Callable[[], BaseException]] = {
    "CUDA": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    "CPU": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 4398046511104 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "Python": MemoryError,
    "system": lambda: OSError(errno.ENOMEM, "Cannot allocate memory"),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_every_kind_of_error_becomes_the_line(kind: str) -> None:
    recipe = get_recipe("demo_pretrain", [*SHORT, "model.drop_path=0", "run.accumulation=2"])
    guard = MemoryGuard(recipe, ALONE)
    with pytest.raises(LacksMemoryError, match=r"too large; run\.parallel=fsdp"), guard:
        raise ERRORS[kind]()
    guard.state = SimpleNamespace(step=7)  # type: ignore[assignment]
    line = r"after step 7: run\.accumulation=4 makes it 4 images a pass instead of 8"
    with pytest.raises(LacksMemoryError, match=line), guard:
        raise ERRORS[kind]()
    with pytest.raises(StorageError), guard:
        raise StorageError("the disk is full")


def test_out_of_memory_is_one_line_and_a_resume_with_its_value_goes_on(
    folder_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "demo_pretrain", "--data", str(folder_data), "--out", str(tmp_path / "run"), *SHORT]
    calls = iter(range(100))
    with monkeypatch.context() as patch:
        forward = Objective.forward

        def full(self: Objective, *batch: Any) -> torch.Tensor:
            if next(calls) == 3:
                raise ERRORS["CPU"]()
            return forward(self, *batch)

        patch.setattr(Objective, "forward", full)
        assert main(words) == ExitStatus.OUT_OF_MEMORY == 71
    *_, line = capfd.readouterr().err.splitlines()
    assert line.startswith("deit-fast: out of memory (rank 0, CPU: ")
    assert "after step 3: run.accumulation=2 makes it 8 images a pass instead of 16; the same command" in line
    assert main([*words, "run.accumulation=2"]) == 0
    printed = capfd.readouterr().out
    assert "at step 2 of 6" in printed
    assert "run.accumulation=2: the run had 1 before" in printed
    assert main([*words, "run.accumulation=auto"]) == 0  # finished already, with the number of its last checkpoint
    assert "finished already" in capfd.readouterr().out


def test_no_fewer_images_and_no_step_at_all(
    folder_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "demo_pretrain", "--data", str(folder_data), *SHORT, "model.drop_path=0", "run.accumulation=8"]
    with monkeypatch.context() as patch:
        limit_images(patch, 1)
        assert main([*words, "--out", str(tmp_path / "a")]) == ExitStatus.OUT_OF_MEMORY
    assert "with 2 images a pass, which cannot be fewer: run.grad_checkpointing=true" in capfd.readouterr().err

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("deit_fast.training.run.initial_state", full)
    assert main([*words, "--out", str(tmp_path / "b")]) == ExitStatus.OUT_OF_MEMORY
    assert "before the first step: weights, moments and average alone are too large" in capfd.readouterr().err


def test_other_errors_are_not_taken_for_it() -> None:
    others = [RuntimeError("shape"), ValueError("out of memory"), KeyError("x"), StorageError("cannot allocate memory"),
              OSError(errno.ENOSPC, "full")]  # fmt: skip
    assert not any(map(is_out_of_memory, others))
    assert all(is_out_of_memory(each()) for each in ERRORS.values())
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))


def test_other_commands_end_with_the_same_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("deit_fast.infer.predict.load_model", full)
    monkeypatch.setattr("deit_fast.infer.evaluate.evaluate_checkpoint", full)
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    for words in (["predict", str(tmp_path), str(tmp_path / "image.png")], ["evaluate", str(tmp_path), "--data", "d"]):
        assert main(words) == ExitStatus.OUT_OF_MEMORY
        assert "deit-fast: out of memory (CUDA out of memory.)" in capfd.readouterr().err


# ------------------------------------------------------------------------------------------------ two processes
def _agree(rank: int, folder: Path, results: "multiprocessing.Queue[Any]") -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    world, tried = World(rank, 2, torch.device("cpu")), []
    recipe = get_recipe("demo_pretrain", ["run.global_batch=64", "mix.group=64"])

    def attempt(passes: int, images: int) -> bool:
        tried.append(images)
        return images <= (8 if rank else 16)  # rank 1's GPU is the smaller one

    class OwnMemory(PassMemory):
        """Of a machine of its own."""

        def __init__(self, recipe: Recipe, world: World) -> None:
            super().__init__(recipe, world)
            self.path = folder / f"passes{rank}.json"

    memory = OwnMemory(recipe, world)
    found = [first_that_fits(recipe, world, possible_passes(recipe, 2), attempt, memory) for _ in range(2)]
    results.put((rank, found, tried))
    dist.destroy_process_group()


def test_all_processes_agree(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_agree, args=(rank, tmp_path, results)) for rank in range(2)]
    for each in processes:
        each.start()
    seen = [results.get(timeout=300) for _ in processes]
    for each in processes:
        each.join()
    for _, found, tried in seen:
        assert found == [(4, True), (4, False)]
        assert tried == [32, 16, 8]


@pytest.mark.soak
def test_two_processes_train_with_what_fits_both(folder_data: Path, tmp_path: Path) -> None:
    words = command(folder_data, tmp_path / "run", *SHORT[len(WORDS) :], "model.drop_path=0", processes=2)
    words[words.index("deit_fast.cli")] = "tests.training.test_passes"
    changed = {**environment(), "DEIT_FAST_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(words, env=changed, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "16 views = 2 processes x 2 passes x 4 images (found by a trial)" in done.stdout
    assert done.stdout.count("batch     ") == 1
    [kept] = json.loads((tmp_path / "cache" / "passes.json").read_text()).values()
    assert kept == {"fits": 4, "fails": 8}


if __name__ == "__main__":  # deit-fast, as on GPUs of which the second has less memory
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(passes, "tries_steps", lambda recipe, world: True)
        world_rank = int(environment().get("RANK", "0"))
        limit_images(patched, 4 if world_rank else 8)
        sys.exit(main())
