"""Checkpoints that run code in a reader that trusts pickles: all known ways, in every container."""

import argparse
import atexit
import copyreg
import cProfile
import ctypes
import functools
import importlib
import io
import marshal
import operator
import os
import pickle
import pkgutil
import pydoc
import runpy
import shutil
import struct
import subprocess
import timeit
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from multiprocessing.util import spawnv_passfds
from pathlib import Path

import numpy as np
import numpy.testing._private.utils as numpy_testing
import torch
import torch.utils.collect_env
from torch.fx.graph_module import reduce_graph_module
from torch.jit.unsupported_tensor_ops import execWrapper


class Call:
    """Pickles as a call of `function`, as in a malicious file."""

    def __init__(self, function: object, *arguments: object, state: object = None) -> None:
        self.function, self.arguments, self.state = function, arguments, state

    def __call__(self) -> None:
        """Callable, so that it can be the function of another Call."""

    def __reduce__(self) -> tuple:
        return (self.function, self.arguments) if self.state is None else (self.function, self.arguments, self.state)


def torch_zip(content: bytes, storages: dict[str, bytes] | None = None, **how: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **how) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
        for name, data in (storages or {}).items():
            archive.writestr(f"archive/data/{name}", data)
    return buffer.getvalue()


def legacy(content: bytes) -> bytes:
    parts = [pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    return b"".join([*parts, content, pickle.dumps([], 2)])


CONTAINERS: dict[str, Callable[[bytes], bytes]] = {"pickle": bytes, "zip": torch_zip, "legacy": legacy}
TOUCH = shutil.which("touch") or "/usr/bin/touch"


def shell(proof: str) -> str:
    return f"touch {proof}"


def python(proof: str) -> str:
    return f"open({proof!r}, 'w')"


def memory_map(proof: str, *named: str) -> tuple:
    """numpy.memmap's __new__ creates the file, by NEWOBJ or, with keywords, by NEWOBJ_EX."""
    if named:
        return copyreg.__newobj_ex__, (np.memmap, (proof,), {"dtype": "uint8", "mode": "w+", "shape": (1,)})  # type: ignore[attr-defined]
    return copyreg.__newobj__, (np.memmap, proof, "uint8", "w+", 0, (1,))  # type: ignore[attr-defined]


class New:
    """Pickles as the operation NEWOBJ or NEWOBJ_EX."""

    def __init__(self, reduced: tuple) -> None:
        self.reduced = reduced

    @property
    def __class__(self) -> type:  # pickle compares it with the class to be made
        return np.memmap

    def __reduce_ex__(self, protocol: int) -> tuple:
        return self.reduced


# Route -> function that builds it around the file that it creates, and the name in the message of the refusal. Each
# route runs in a trusting reader, which test_convert_safety shows, except those in NO_PROOF.
ROUTES: dict[str, tuple[Callable[[str], object], str]] = {
    "os.system": (lambda f: Call(os.system, shell(f)), "posix.system"),
    "eval": (lambda f: Call(eval, python(f)), "builtins.eval"),
    "exec": (lambda f: Call(exec, python(f)), "builtins.exec"),
    "open": (lambda f: Call(open, f, "w"), "io.open"),
    "import": (lambda f: Call(__import__, "os"), "builtins.__import__"),
    "getattr-chain": (lambda f: Call(Call(getattr, Call(__import__, "os"), "system"), shell(f)), "builtins.__import__"),
    "getattr-of-getattr": (lambda f: Call(getattr, getattr, "__self__"), "builtins.getattr"),
    "getattr-of-an-allowed-class": (lambda f: Call(getattr, argparse.Namespace, "__init__"), "builtins.getattr"),
    "subprocess": (lambda f: Call(subprocess.Popen, ["touch", f]), "subprocess.Popen"),
    "nested": (lambda f: {"model": OrderedDict(a=[Call(tuple, (Call(os.system, shell(f)),))])}, "posix.system"),
    "path-method": (lambda f: Call(Path.touch, Path(f)), "pathlib.Path.touch"),
    "torch.load": (lambda f: Call(torch.storage._load_from_bytes, pickle.dumps(Call(os.system, shell(f)))),
                   "torch.storage._load_from_bytes"),
    "rebuild": (lambda f: Call(torch._tensor._rebuild_from_type_v2, os.system, str, (shell(f),), {}),
                "torch._tensor._rebuild_from_type_v2"),
    "numpy-load": (lambda f: Call(np.load, f), "numpy.load"),
    "numpy-reconstruct": (lambda f: Call(np.empty(0).__reduce__()[0], os.system, (0,), b"b"), "posix.system"),
    "partial": (lambda f: Call(Call(functools.partial, os.system, shell(f))), "functools.partial"),
    "state": (lambda f: Call(argparse.Namespace, state=Call(os.system, shell(f))), "posix.system"),
    "popen": (lambda f: Call(os.popen, shell(f)), "os.popen"),
    "spawn": (lambda f: Call(os.posix_spawn, TOUCH, ["touch", f], {}), "posix.posix_spawn"),
    "getoutput": (lambda f: Call(subprocess.getoutput, shell(f)), "subprocess.getoutput"),
    "passfds": (lambda f: Call(spawnv_passfds, TOUCH.encode(), [b"touch", f.encode()], []),
                "multiprocessing.util.spawnv_passfds"),
    "runpy": (lambda f: Call(runpy._run_code, python(f), {}), "runpy._run_code"),
    "timeit": (lambda f: Call(timeit.timeit, "pass", python(f)), "timeit.timeit"),
    "profile": (lambda f: Call(cProfile.run, python(f)), "cProfile.run"),
    "functools.reduce": (lambda f: Call(functools.reduce, eval, [python(f), {}]), "_functools.reduce"),
    "map": (lambda f: Call(list, Call(map, os.system, [shell(f)])), "builtins.list"),
    "methodcaller": (lambda f: Call(Call(operator.methodcaller, "touch"), Path(f)), "operator.methodcaller"),
    "reconstructor": (lambda f: Call(copyreg._reconstructor, subprocess.Popen, subprocess.Popen, ["touch", f]),
                      "copyreg._reconstructor"),
    "newobj": (lambda f: New(memory_map(f)), "numpy.memmap"),
    "newobj-ex": (lambda f: New(memory_map(f, "named")), "numpy.memmap"),
    "savetxt": (lambda f: Call(np.savetxt, f, [1]), "numpy.savetxt"),
    "copyfile": (lambda f: Call(shutil.copyfile, "/etc/passwd", f), "shutil.copyfile"),
    "file-io": (lambda f: Call(io.FileIO, f, "w"), "_io.FileIO"),
    "importlib": (lambda f: Call(Call(operator.attrgetter("system"), Call(importlib.import_module, "os")), shell(f)),
                  "operator.attrgetter"),
    "resolve-name": (lambda f: Call(Call(pkgutil.resolve_name, "os:system"), shell(f)), "pkgutil.resolve_name"),
    "ctypes": (lambda f: Call(Call(getattr, Call(ctypes.CDLL, None), "system"), shell(f).encode()), "ctypes.CDLL"),
    "atexit": (lambda f: Call(atexit.register, os.system, shell(f)), "atexit.register"),
    "pager": (lambda f: Call(pydoc.pipepager, "", shell(f)), "pydoc.pipepager"),
    "runstring": (lambda f: Call(numpy_testing.runstring, python(f), {}), "numpy.testing._private.utils.runstring"),
    "collect-env": (lambda f: Call(torch.utils.collect_env.run, shell(f)), "torch.utils.collect_env.run"),
    "jit-exec": (lambda f: Call(execWrapper, python(f), {}, {}), "torch.jit.unsupported_tensor_ops.execWrapper"),
    "graph-module": (lambda f: Call(reduce_graph_module, {"_code": f"def forward(self): {python(f)}\n{python(f)}"}, ""),
                     "torch.fx.graph_module.reduce_graph_module"),
    "safe-globals": (lambda f: [Call(torch.serialization.add_safe_globals, [os.system]), Call(os.system, shell(f))],
                     "torch.serialization.add_safe_globals"),
}  # fmt: skip
NO_PROOF = {"import", "getattr-of-getattr", "getattr-of-an-allowed-class", "numpy-load", "numpy-reconstruct"}


def short_text(content: str) -> bytes:
    return b"X" + struct.pack("<I", len(content)) + content.encode()


def function_of_code(proof: str) -> bytes:
    """types.FunctionType around marshalled code, called."""
    code = marshal.dumps(compile(python(proof), "x", "exec"))
    text = b"B" + struct.pack("<I", len(code)) + code
    return b"\x80\x03ctypes\nFunctionType\n(cmarshal\nloads\n(" + text + b"tR}tR(tR."


def from_memo(proof: str) -> bytes:
    """The names come out of the memo, so that the stack shows none of them next to STACK_GLOBAL."""
    names = short_text("posix") + b"\x940" + short_text("system") + b"\x940"
    return b"\x80\x04" + names + b"h\x00h\x01\x93" + short_text(shell(proof)) + b"\x85R."


# Handmade pickles: how to build them, the message of the refusal, and whether they run in a trusting reader.
OPERATIONS: dict[str, tuple[Callable[[str], bytes], str, bool]] = {
    "protocol-0": (lambda f: f"cposix\nsystem\n(S'{shell(f)}'\ntR.".encode(), "starts with", True),
    "inst": (lambda f: f"\x80\x02(S'{shell(f)}'\niposix\nsystem\n.".encode("latin1"), "operation INST", True),
    "obj": (lambda f: f"\x80\x02(cposix\nsystem\nS'{shell(f)}'\no.".encode("latin1"), "posix.system", True),
    "function-of-code": (function_of_code, "types.FunctionType", True),
    "stack-global-of-memo": (from_memo, "posix.system", True),
    "python-2": (lambda f: f"\x80\x02c__builtin__\neval\n(S\"{python(f)}\"\ntR.".encode("latin1"), "builtins.eval",
                 True),
    "dotted": (lambda f: b"\x80\x04" + short_text("shutil") + short_text("os.system") + b"\x93" + short_text(shell(f))
               + b"\x85R.", "shutil.os.system", True),
    "ext": (lambda f: b"\x80\x04\x82\x01.", "operation EXT1", False),
    "namespace-class": (lambda f: b"\x80\x02cargparse\nNamespace\n)\x81}S'__class__'\ncposix\nsystem\nsb.",
                        "posix.system", False),
    "reduce-text": (lambda f: b"\x80\x02ccollections\nOrderedDict\nS'touch'\nR.", "calls a Constructor", False),
    "reduce-list": (lambda f: b"\x80\x02]K\x01R.", "calls a list", False),
    "build-int": (lambda f: b"\x80\x02K\x01}b.", "sets the state of a int", False),
    "build-slots": (lambda f: b"\x80\x02cargparse\nNamespace\n)\x81N}" + short_text("__dict__")
                    + b"cposix\nsystem\ns\x86b.",
                    "posix.system", False),
    "persid": (lambda f: f"\x80\x02P{f}\n.".encode("latin1"), "operation PERSID", False),
    "binpersid": (lambda f: b"\x80\x02(S'x'\nK\x01tQ.", "operation BINPERSID", False),
    "tuple-key": (lambda f: b"\x80\x02}(K\x01K\x02tK\x01s.", "a tuple as key", False),
}  # fmt: skip


def array_of_objects(proof: str) -> bytes:
    buffer = io.BytesIO()
    array = np.empty(1, object)
    array[0] = Call(os.system, shell(proof))
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def arrays_of_objects(proof: str) -> bytes:
    return other_zip({"model.npy": array_of_objects(proof)})


def other_zip(entries: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def evil(proof: str) -> bytes:
    return pickle.dumps(Call(os.system, shell(proof)), 4)


# Other archives that some loader runs.
ARCHIVES: dict[str, tuple[Callable[[str], bytes], str]] = {
    "npy": (array_of_objects, "starts with"),
    "npz": (arrays_of_objects, "not one of torch.save"),
    "nested-zip": (lambda f: other_zip({"archive.zip": torch_zip(evil(f))}), "not one of torch.save"),
    "two-pickles": (lambda f: other_zip({"a/data.pkl": pickle.dumps({}), "b/data.pkl": evil(f)}),
                    "not one of torch.save"),
    "package": (lambda f: other_zip({"p/.data/version": b"6", "p/model/model.pkl": evil(f)}), "not one of torch.save"),
    "torchscript": (lambda f: other_zip({"m/version": b"3", "m/code/__torch__.py": python(f).encode(),
                                         "m/constants.pkl": evil(f), "m/data.pkl": b"\x80\x02c__torch__\nM\n)\x81."}),
                    "__torch__.M"),
    "prefixed-zip": (lambda f: evil(f)[:-1] + torch_zip(pickle.dumps({}, 2)), "posix.system"),
}  # fmt: skip


def hostile_files(proof: str) -> dict[str, tuple[bytes, str]]:
    """Every file by its name, with a part of the line with which it has to be refused."""
    files: dict[str, tuple[bytes, str]] = {}
    for route, (build, name) in ROUTES.items():
        for protocol in (2, 4):
            expected = f"asks for {spelled(route, name, protocol)}"
            content = pickle.dumps({"model": build(proof)}, protocol)
            files |= {f"{route}-{kind}-{protocol}": (pack(content), expected) for kind, pack in CONTAINERS.items()}
    for operation, (write, expected, _) in OPERATIONS.items():
        files[operation] = write(proof), expected
    for archive, (write, expected) in ARCHIVES.items():
        files[archive] = write(proof), expected
    return files


# Protocol 2 writes a dotted name with getattr, keywords of __new__ with partial, and Python 2's names as Python 2 did.
PYTHON_2 = {
    "path-method": "builtins.getattr",
    "subprocess": "commands.Popen",
    "getoutput": "commands.getoutput",
    "functools.reduce": "builtins.reduce",
    "reconstructor": "copy_reg._reconstructor",
    "newobj-ex": "functools.partial",
}


def spelled(route: str, name: str, protocol: int) -> str:
    return PYTHON_2.get(route, name) if protocol == 2 else name
