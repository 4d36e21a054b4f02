"""Memory that is left, by files as the kernel writes them; a GPU that torch does not see."""

import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from deit_fast.recipe.table import get_recipe
from deit_fast.runtime import hardware, world
from deit_fast.runtime.errors import RunError
from deit_fast.runtime.hardware import describe_hidden_gpu
from deit_fast.runtime.host_memory import available_memory
from deit_fast.runtime.world import choose_device
from tests.conftest import ROOT

GIB = 2**30


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """/proc of a machine with 8 GiB to give."""
    write(tmp_path / "proc" / "meminfo", f"MemTotal: 99999999 kB\nMemAvailable:   {8 * GIB // 1024} kB\n")
    return tmp_path / "proc"


def test_of_this_machine() -> None:
    found = available_memory()
    assert found is not None
    assert 0 <= found <= psutil.virtual_memory().total


def test_of_the_system(proc: Path, tmp_path: Path) -> None:
    assert available_memory(proc, tmp_path / "none") == 8 * GIB
    assert available_memory(tmp_path / "none", tmp_path / "none") is None


@pytest.mark.parametrize(("path", "folders"), [("/job/step", ["job", "job/step"]), ("/of/the/host", [""]), ("/", [""])])
def test_of_a_control_group(path: str, folders: list[str], proc: Path, tmp_path: Path) -> None:
    """The tightest of a group and those around it; in a container the path may be the host's."""
    groups = tmp_path / "groups"
    write(proc / "self" / "cgroup", f"0::{path}\n")
    for number, folder in enumerate(folders):
        write(groups / folder / "memory.max", "max\n" if number else f"{4 * GIB}\n")
        write(groups / folder / "memory.current", f"{3 * GIB}\n")
        write(groups / folder / "memory.stat", f"anon 5\ninactive_file {GIB}\n")
    assert available_memory(proc, groups) == 2 * GIB  # the page cache goes when it is needed
    write(groups / folders[-1] / "memory.max", f"{3 * GIB}\n")
    assert available_memory(proc, groups) == GIB
    write(groups / folders[-1] / "memory.max", "1\n")
    assert available_memory(proc, groups) == 0


def test_of_a_control_group_of_the_first_version(proc: Path, tmp_path: Path) -> None:
    write(proc / "self" / "cgroup", "5:cpu,cpuacct:/x\n3:memory:/job\n")
    group = tmp_path / "groups" / "memory" / "job"
    write(group / "memory.limit_in_bytes", f"{5 * GIB}\n")
    write(group / "memory.usage_in_bytes", f"{2 * GIB}\n")
    write(group / "memory.stat", "total_inactive_file 0\n")
    assert available_memory(proc, tmp_path / "groups") == 3 * GIB


def test_of_a_limit(proc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(proc / "self" / "status", f"Name: python\nVmSize:\t {GIB // 1024} kB\n")
    monkeypatch.setattr(resource, "getrlimit", lambda which: (3 * GIB, 3 * GIB))
    assert available_memory(proc, tmp_path / "none") == 2 * GIB


ARENAS = """
import ctypes, sys, threading
from deit_fast.runtime.host_memory import limit_arenas

limit_arenas(2)
libc, there = ctypes.CDLL(None), threading.Barrier(9)
libc.malloc.restype = ctypes.c_void_p
def allocate():
    libc.malloc(200_000)
    there.wait()
    there.wait()
threads = [threading.Thread(target=allocate) for _ in range(8)]
for thread in threads:
    thread.start()
there.wait()
libc.malloc_stats()  # to stderr
there.wait()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")
@pytest.mark.parametrize(("variables", "arenas"), [({}, 2), ({"MALLOC_ARENA_MAX": "5"}, 5)])
def test_threads_share_the_arenas_unless_the_user_says_how_many(variables: dict[str, str], arenas: int) -> None:
    """glibc's own count, where 8 threads have allocated at one time."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES")
    }
    done = subprocess.run([sys.executable, "-c", ARENAS], env={**environment, "PYTHONPATH": str(ROOT), **variables},
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert sum(line.startswith("Arena ") for line in done.stderr.splitlines()) == arenas


def test_a_gpu_that_torch_does_not_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    none, gpus = tmp_path / "none", tmp_path / "gpus"
    assert describe_hidden_gpu(none, none) == ""
    write(gpus / "0000:01:00.0" / "information", "Model: NVIDIA H100\n")
    write(tmp_path / "dev" / "nvidia0", "")
    write(tmp_path / "bare" / "nvidiactl", "")  # a driver without a GPU
    assert describe_hidden_gpu(none, tmp_path / "bare") == ""
    monkeypatch.setattr(torch.version, "cuda", None)
    for found in (describe_hidden_gpu(gpus, none), describe_hidden_gpu(none, tmp_path / "dev")):
        assert "torch does not see" in found
        assert found.endswith(f"torch {torch.__version__} is built without CUDA")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert describe_hidden_gpu(gpus, none).endswith(f"CUDA_VISIBLE_DEVICES={hidden!r} hides it")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")

    def old_driver() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old\n(found version 11040).")

    monkeypatch.setattr(torch.cuda, "init", old_driver)
    assert describe_hidden_gpu(gpus, none).endswith("driver on your system is too old (found version 11040).")


def test_run_device(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(world, "describe_hidden_gpu", lambda: "this machine has an NVIDIA GPU")
    assert choose_device("auto").type == choose_device("cpu").type == "cpu"
    assert capsys.readouterr().err == "deit-fast: WARNING: this machine has an NVIDIA GPU; running on the CPU\n"
    with pytest.raises(RunError, match=r"run.device='cuda': expected an NVIDIA GPU that torch sees, this machine has"):
        choose_device("cuda")
    monkeypatch.setattr(world, "describe_hidden_gpu", lambda: "")
    with pytest.raises(RunError, match="found none here"):
        choose_device("cuda")
    monkeypatch.setenv("RANK", "1")
    choose_device("auto")
    assert not capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("cpu").type == "cpu"
    trained = get_recipe("demo_pretrain", ["run.device=cuda"])
    assert trained.taken_over([]).run.device == "auto"  # a trained model is used where there is no GPU
    assert trained.taken_over(["run.device=cuda"]).run.device == "cuda"
    assert hardware.has_bf16(torch.device("cpu")) in (True, False)
