"""Imports timm without torch's compiler, which takes a second and 150 MB and is needed only for compiling.

`import timm` imports torch._dynamo for two functions, neither of which is called for the models here: torchvision's
roi_align asks whether a device can compile, and methods of timm's NaFlexViT are excluded from compilation. During the
import both functions are replaced by stand-ins, which import the compiler when they are called.
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
    """torch._dynamo or torch._dynamo.utils: has the stand-ins, and takes all other names from the real module."""

    def __getattr__(self, name: str) -> Any:
        if name in ("__file__", "__path__"):  # imports look for these and do without; utils is no package
            raise AttributeError(name)
        _remove()
        return getattr(importlib.import_module(self.__name__), name)


def _is_compile_supported(device_type: Any) -> Any:
    return importlib.import_module("torch._dynamo.utils").is_compile_supported(device_type)


def _disable(fn: Any = None, recursive: bool = True, *, reason: str | None = None) -> Any:
    return torch._disable_dynamo(fn, recursive)  # torch's own decorator for methods that must not be compiled


_STAND_INS: dict[str, dict[str, Any]] = {
    "torch._dynamo": {"disable": _disable},
    "torch._dynamo.utils": {"is_compile_supported": _is_compile_supported},
}


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Installs the stand-ins, unless the compiler is imported or another thread could see the stand-ins."""
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
except ImportError:  # newer releases may use more of the compiler
    import timm

__all__ = ["timm"]
