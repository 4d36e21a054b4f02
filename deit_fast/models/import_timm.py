"""timm, imported without torch's compiler, which costs a second and 150 MB and serves those alone who compile.

`import timm` brings torch._dynamo along for two of its functions, and calls neither of them for a model of ours:
torchvision's roi_align asks one whether a device can compile, and methods of timm's NaFlexViT are not to be compiled.
During the import both are stand-ins, which import the compiler where they are called.
"""

import importlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch


class _Compiler(ModuleType):
    """torch._dynamo or its module utils: with the stand-ins as attributes, and the module itself behind any other."""

    def __getattr__(self, name: str) -> Any:
        if name in ("__file__", "__path__"):  # imports ask for them and go on without; utils is no package
            raise AttributeError(name)
        _remove()
        return getattr(importlib.import_module(self.__name__), name)


def _is_compile_supported(device_type: Any) -> Any:
    return importlib.import_module("torch._dynamo.utils").is_compile_supported(device_type)


def _disable(fn: Any = None, recursive: bool = True, *, reason: str | None = None) -> Any:
    return torch._disable_dynamo(fn, recursive)  # what torch puts around methods of its own, for the same reason


_STAND_INS: dict[str, dict[str, Any]] = {
    "torch._dynamo": {"disable": _disable},
    "torch._dynamo.utils": {"is_compile_supported": _is_compile_supported},
}


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Nothing is put in place where the compiler is there already, or where another thread could see the stand-ins."""
    if "torch._dynamo" not in sys.modules and threading.active_count() == 1:
        for name, functions in _STAND_INS.items():
            sys.modules[name] = module = _Compiler(name)
            vars(module).update(functions)
    try:
        yield
    finally:
        _remove()


def _remove() -> None:
    for name in _STAND_INS:
        if isinstance(sys.modules.get(name), _Compiler):
            del sys.modules[name]


try:
    with _without_compiler():
        import timm
except ImportError:  # releases that take more of the compiler
    import timm

__all__ = ["timm"]
