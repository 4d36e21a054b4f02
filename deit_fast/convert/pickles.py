"""Pickles read as data, by a stack machine that cannot import, call or look up anything of a file's choosing.

Python's own unpickler executes; torch's weights_only reader runs constructors that take memory at a file's word. Here
a pickle's names stand for the few constructors of the table below, none of which touches more than its arguments, and
any other name ends the reading: "asks for posix.system". Opcodes are split by pickletools, which never allocates more
than the file has.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
import torch

from deit_fast.convert.stored import DTYPES, BadFileError, Storage, Stored, stored_array

MAX_OPCODES = 500_000
"""A training checkpoint of the largest model has about 200,000."""


_SLACK = 1_000_000  # bytes and items that constructors may copy beyond what was read: short texts are named again


class Namespace(dict[str, Any]):
    """An argparse.Namespace, as plain data."""


@dataclass(frozen=True)
class _Constructor:
    name: str
    make: Callable[..., Any]


@dataclass
class _NumpyType:
    dtype: torch.dtype | None
    name: str

    def build(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", "|", "="):
            raise BadFileError("has big-endian arrays: expected little-endian ones")


@dataclass
class _NumpyArray:
    """numpy pickles an empty array, then its contents; `stored` is None in between."""

    stored: Stored | None = None

    def build(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _NumpyType) or dtype.dtype is None or not isinstance(raw, bytes):
            raise BadFileError(f"has an array of {getattr(dtype, 'name', 'objects')!r}: expected plain numbers")
        self.stored = stored_array(raw, dtype.dtype, shape, bool(fortran))


@dataclass
class _Inert:
    """A class of another package, of which nothing is used."""

    state: Any = field(default=None, repr=False)


def text(value: Any) -> str:
    """A text or a number as text. Raises BadFileError for all else: that of nested tuples can take forever to write."""
    if type(value) not in (str, int):
        raise BadFileError(f"has a {type(value).__name__}: expected a text")
    return str(value)


def _tensor(storage: Any, offset: int, shape: Any, stride: Any, *_: Any) -> Stored:
    if not isinstance(storage, Storage):
        raise BadFileError("has a tensor without a storage")
    return Stored(storage, offset, tuple(shape), tuple(stride))


def _numpy_type(name: Any, *_: Any) -> _NumpyType:
    code = text(name)
    try:
        known = DTYPES.get(np.dtype(code).name) if len(code) < 8 else None
    except TypeError:
        known = None
    return _NumpyType(known, code[:20])


def _numpy_scalar(dtype: _NumpyType, raw: bytes = b"") -> Any:
    if dtype.dtype is None:
        return None
    return stored_array(raw, dtype.dtype, (1,)).tensor()[0].item()


def _frombuffer(raw: bytes, dtype: _NumpyType, shape: tuple[int, ...], order: str) -> _NumpyArray:
    if not isinstance(raw, bytes | bytearray):  # bytes(n) would be n bytes of zeros
        raise BadFileError(f"has an array of a {type(raw).__name__}: expected bytes")
    array = _NumpyArray()
    array.build((1, shape, dtype, order == "F", bytes(raw)))
    return array


def _encode(content: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise BadFileError(f"has text in {text(encoding)[:20]!a}: expected latin1")
    return content.encode("latin1")


def _mapping(items: Any = ()) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    for key, value in items:
        _set(result, key, value)
    return result


def _attribute(owner: Any, name: str) -> None:
    """mmengine's history pickles references to its own methods, which are not needed."""
    if not isinstance(owner, _Constructor) or owner.make is not _Inert:
        raise BadFileError("asks for builtins.getattr")


_PLACES = ("", "._local")
_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path", "PurePath")
_ALLOWED: dict[str, Any] = {
    "collections.OrderedDict": _mapping,
    "argparse.Namespace": Namespace,
    "torch.Size": lambda *items: tuple(*items),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda stored, *_: stored,
    "torch.device": lambda *_: _Inert(),
    "numpy.ndarray": _NumpyArray,
    "numpy.dtype": _numpy_type,
    "_codecs.encode": _encode,
    "builtins.tuple": lambda items=(): tuple(items),
    "builtins.set": lambda items=(): list(items),
    "builtins.getattr": _attribute,
    "mmengine.logging.history_buffer.HistoryBuffer": _Inert,
    **{f"pathlib{part}.{name}": lambda *_: _Inert() for name in _PATHS for part in _PLACES},
    **{f"numpy.{core}.multiarray._reconstruct": lambda *_: _NumpyArray() for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _numpy_scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _frombuffer for core in ("core", "_core")},
}  # fmt: skip
_STORAGES = {"Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64",
             "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool"}  # fmt: skip
_CONSTANTS: dict[str, torch.dtype] = {
    **{f"torch.{name}Storage": DTYPES[dtype] for name, dtype in _STORAGES.items()},
    **{f"torch.{name}": dtype for name, dtype in DTYPES.items()},
}


def find(module: str, name: str) -> Any:
    """What a pickle's name stands for. Raises BadFileError for all but the names of the table."""
    path = f"{module.replace('__builtin__', 'builtins')}.{name}"
    if path in _CONSTANTS:
        return _CONSTANTS[path]
    if path not in _ALLOWED:
        raise BadFileError(f"asks for {ascii(path)[1:101].rstrip(chr(39))}, which a checkpoint has no need of")
    return _Constructor(path, _ALLOWED[path])


def _set(target: dict[Any, Any], key: Any, value: Any) -> None:
    if type(key) not in (str, int, bytes, float, bool, type(None)):  # nested tuples can take forever to hash
        raise BadFileError(f"has a dictionary with a {type(key).__name__} as key")
    target[key] = value


def read_pickle(file: IO[bytes] | Any, persistent: Callable[[Any], Any] | None = None) -> Any:
    """The object of the pickle at the file's position, of dicts, lists, tuples, plain values and `Stored` arrays.

    `file` has read, readline and tell; `persistent` resolves torch's references to storages. What constructors copy is
    never more than what was read so far. Raises BadFileError for a pickle that asks for more, or for anything not in
    the table, and ValueError, IndexError or TypeError for a damaged one.
    """
    stack: list[Any] = []
    start, copied = file.tell(), 0
    marked: list[list[Any]] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        nonlocal stack
        items, stack = stack, marked.pop()
        return items

    def account(argument: Any) -> None:
        # A pickle can name an object again in two bytes, so that each copy of it would be memory out of nothing.
        nonlocal copied
        if isinstance(argument, tuple):
            copied += sum(len(each) for each in argument if hasattr(each, "__len__"))
        if copied > file.tell() - start + _SLACK:
            raise BadFileError("has a pickle that makes more of itself than it has bytes")

    argument: Any
    for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if number > MAX_OPCODES:
            raise BadFileError(f"has a pickle of more than {MAX_OPCODES} operations")
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                marked.append(stack)
                stack = []
            case "POP":
                stack.pop()
            case "POP_MARK":
                since_mark()
            case "DUP":
                stack.append(stack[-1])
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST" | "EMPTY_SET":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "LIST" | "FROZENSET":
                items = since_mark()
                stack.append(items)
            case "TUPLE":
                items = since_mark()
                stack.append(tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                if len(stack) < count:
                    raise IndexError("stack underflow")
                stack[-count:] = [tuple(stack[-count:])]
            case "DICT":
                items = since_mark()
                stack.append(_mapping(zip(items[::2], items[1::2], strict=True)))
            case "APPEND":
                item = stack.pop()
                _list(stack[-1]).append(item)
            case "APPENDS" | "ADDITEMS":
                items = since_mark()
                _list(stack[-1]).extend(items)
            case "SETITEM" | "SETITEMS":
                items = since_mark() if opcode.name == "SETITEMS" else [stack.pop(-2), stack.pop()]
                for key, value in zip(items[::2], items[1::2], strict=True):
                    _set(_dict(stack[-1]), key, value)
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(_plain(memo[argument]))
            case "GLOBAL":
                stack.append(find(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(find(text(module), text(name)))
            case "REDUCE" | "NEWOBJ":
                arguments = stack.pop()
                account(arguments)
                stack[-1] = _plain(_construct(stack[-1], arguments))
            case "BUILD":
                state = stack.pop()
                account((state,))
                _build(stack[-1], state)
                stack[-1] = _plain(stack[-1])
            case "BINPERSID" if persistent is not None:
                stack[-1] = persistent(stack[-1])
            case name if opcode.arg is not None and not name.startswith(("EXT", "PERSID", "INST")):
                stack.append(argument)  # a number, a text or bytes
            case name:
                raise BadFileError(f"asks for the pickle operation {name}, which a checkpoint has no need of")
    raise EOFError("a pickle without an end")


def _construct(constructor: Any, arguments: Any) -> Any:
    if not isinstance(constructor, _Constructor) or type(arguments) is not tuple:
        raise BadFileError(f"calls a {type(constructor).__name__}: expected the constructor of plain data")
    return constructor.make(*arguments)


def _build(target: Any, state: Any) -> None:
    if isinstance(target, _NumpyArray | _NumpyType):
        target.build(state)
    elif isinstance(target, Namespace):
        target.update(_dict(state))
    elif not isinstance(target, dict | _Inert):  # attributes of an OrderedDict, as torch gives its state dicts
        raise BadFileError(f"sets the state of a {type(target).__name__}")


def _plain(value: Any) -> Any:
    """A numpy array that has its contents by now, as what it holds."""
    return value.stored if isinstance(value, _NumpyArray) and value.stored is not None else value


def _list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise BadFileError(f"appends to a {type(value).__name__}")
    return value


def _dict(value: Any) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise BadFileError(f"sets items of a {type(value).__name__}")
    return value
