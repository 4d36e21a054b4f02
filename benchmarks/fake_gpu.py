"""Simulates an H100 without a GPU, as far as torch needs it to trace, and Inductor to generate code for it.

`environment` builds two small libraries with gcc, which another process loads. That process calls `pretend` before
anything of torch's compiler is imported. Its fake tensors (`torch._subclasses.FakeTensorMode`) can then be on `cuda:0`.
torch.compile generates the kernels that it would generate for sm_90, and none of them can run.
"""

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from deit_fast.runtime.errors import RunError

_SOURCE = Path(__file__).with_name("fake_gpu.c")
_NAME = "NVIDIA H100 80GB HBM3"
_PROPERTIES = SimpleNamespace(
    name=_NAME, major=9, minor=0, multi_processor_count=132, warp_size=32, max_threads_per_multi_processor=2048,
    max_threads_per_block=1024, regs_per_multiprocessor=65536, total_memory=80 << 30, shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448, shared_memory_per_multiprocessor=233472, L2_cache_size=50 << 20,
    gcnArchName="", uuid="none", is_integrated=False, clock_rate=1980000, memory_clock_rate=2619000,
    memory_bus_width=5120,
)  # fmt: skip


def environment(folder: Path) -> dict[str, str]:
    """The environment of a process that may call `pretend`; builds the libraries in `folder`.

    Raises RunError where this machine lacks gcc or this torch lacks CUDA's headers.
    """
    if shutil.which("gcc") is None:
        raise RunError("traffic: expected gcc on PATH, found none")
    torch_library = Path(torch.__file__).parent / "lib" / "libcaffe2_nvrtc.so"
    headers = sorted(Path(torch.__file__).parents[1].glob("nvidia/*/include/driver_types.h"))
    if not torch_library.exists() or not headers:
        raise RunError(
            f"traffic: expected torch built for CUDA with its headers beside it, got torch {torch.__version__}"
        )
    # A library of torch refers to the driver, which is not installed either. Its functions are stubs that do nothing.
    names = sorted({name.decode() for name in re.findall(rb"\0(cu[A-Z]\w+)(?=\0)", torch_library.read_bytes())})
    stubs = folder / "driver.c"
    stubs.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in names))
    driver, runtime = folder / "libcuda.so.1", folder / "runtime.so"
    for target, source, include in ((driver, stubs, []), (runtime, _SOURCE, [f"-I{headers[0].parent}"])):
        command = ["gcc", "-shared", "-fPIC", "-w", *include, "-I", str(_empty_headers(folder)), str(source)]
        done = subprocess.run([*command, "-o", str(target)], capture_output=True, text=True)
        if done.returncode:
            raise RunError(f"traffic: expected gcc to build {source.name}: {done.stderr.strip()[-300:]}")
    return os.environ | {
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("LD_LIBRARY_PATH")])),
        "LD_PRELOAD": str(runtime),
    }


def _empty_headers(folder: Path) -> Path:
    """driver_types.h includes the CUDA compiler's crt/host_defines.h; fake_gpu.c defines what is needed of it."""
    (folder / "crt").mkdir(exist_ok=True)
    (folder / "crt" / "host_defines.h").touch()
    return folder


def pretend() -> None:
    """Makes this process see one H100. Needs the variables of `environment`."""
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    _patch_torch()
    _patch_triton()
    _patch_inductor()


@contextlib.contextmanager
def assemble() -> Iterator[list[dict[str, Any]]]:
    """Assembles all configurations of each Triton kernel that Inductor generates: name, registers, bytes of stack.

    A kernel that spills registers uses a stack.
    """
    import triton
    from torch._inductor.runtime import triton_heuristics

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    autotuner: Any = triton_heuristics.CachingAutotuner
    idle, found = autotuner.precompile, []

    def assemble_all(self: Any, *args: Any, **kwargs: Any) -> None:
        for configuration in self.configs:
            binary = self._precompile_config(configuration).kernel.asm["cubin"]
            with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
                Path(file.name).write_bytes(binary)
                said = subprocess.run(
                    [tool, "-res-usage", file.name], check=True, capture_output=True, text=True
                ).stdout
            usage = re.search(r"REG:(\d+) STACK:(\d+)", said)
            assert usage is not None, said
            name = self.inductor_meta["kernel_name"]
            found.append({"name": name, "registers": int(usage[1]), "stack": int(usage[2])})

    autotuner.precompile = assemble_all
    try:
        yield found
    finally:
        autotuner.precompile = idle


def _patch_torch() -> None:
    def constant(value: Any) -> Callable[..., Any]:
        return lambda *args, **kwargs: value

    cuda: Any = torch.cuda
    state = torch.zeros(16, dtype=torch.uint8)
    stream = SimpleNamespace(cuda_stream=0)
    answers = {
        "is_available": True, "device_count": 1, "current_device": 0,
        "get_device_properties": _PROPERTIES, "_get_device_properties": _PROPERTIES,
        "get_device_capability": (9, 0), "get_device_name": _NAME, "synchronize": None, "_lazy_init": None,
        "is_bf16_supported": True, "is_initialized": True, "get_rng_state": state, "set_rng_state": None,
        "get_rng_state_all": [state], "set_rng_state_all": None, "is_current_stream_capturing": False,
        "current_stream": stream,
    }  # fmt: skip
    for name, value in answers.items():
        setattr(cuda, name, constant(value))
    cuda.random.get_rng_state, cuda.random.set_rng_state = constant(state), constant(None)
    cuda.graphs.is_current_stream_capturing = constant(False)
    torch.accelerator.is_available = constant(False)
    bindings = {
        "getDevice": 0, "getDeviceCount": 1, "setDevice": None, "exchangeDevice": 0, "maybeExchangeDevice": 0,
        "getCurrentRawStream": 0, "init": None, "getCurrentStream": (0, 0, 1), "setStream": None,
        "isCurrentStreamCapturing": False,
    }  # fmt: skip
    for name, value in bindings.items():
        setattr(torch._C, f"_cuda_{name}", constant(value))


def _patch_triton() -> None:
    from torch._inductor.runtime import triton_helpers
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    properties = {"max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32, "max_num_regs": 65536,
                  "sm_clock_rate": 1, "mem_clock_rate": 1, "mem_bus_width": 1}  # fmt: skip

    class Driver:
        launcher_cls = None
        utils = SimpleNamespace(get_device_properties=lambda device: properties)

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 90, 32)

        def get_current_device(self) -> int:
            return 0

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cuda", 0)

        def get_current_stream(self, *device: Any) -> int:
            return 0

        def get_device_interface(self) -> Any:
            return torch.cuda

    driver.set_active(Driver())
    triton_helpers.set_driver_to_gpu = lambda: None


def _patch_inductor() -> None:
    """Keeps all passes but one, which times kernels in order to pad matrix products; these are multiples of 8 here."""
    import torch._functorch.config as functorch_config
    import torch._inductor.config as config
    from torch._inductor.fx_passes import joint_graph
    from torch._inductor.runtime import triton_heuristics
    from torch.utils._python_dispatch import TorchDispatchMode

    functorch_config.force_non_lazy_backward_lowering = True
    functorch_config.enable_autograd_cache = False
    config.fx_graph_cache = False
    config.compile_threads = 1
    config.shape_padding = False
    for name in ("use_static_cuda_launcher", "use_static_triton_launcher"):
        if hasattr(config, name):
            setattr(config, name, False)
    autotuner: Any = triton_heuristics.CachingAutotuner
    autotuner.precompile = lambda self, *args, **kwargs: None

    class OnHost(TorchDispatchMode):
        """Computes folded constants on the host, where they have the same values."""

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = dict(kwargs or {})
            if "device" in kwargs:
                kwargs["device"] = torch.device("cpu")
            return function(*args, **kwargs)

    folder: Any = joint_graph.UniformValueConstantFolder
    deduce = folder._deduce_value

    def deduce_on_host(self: Any, node: Any) -> Any:
        with OnHost():
            return deduce(self, node)

    folder._deduce_value = deduce_on_host
    # Graph patterns are traced with small tensors, some of them real ones; these are moved to the host too.
    start = joint_graph.lazy_init
    joint_graph.lazy_init = lambda device=None: start(torch.device("cpu"))
