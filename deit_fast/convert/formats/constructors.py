"""The meaning of names in a pickle: constructors of plain data, none of which touches more than its arguments."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from deit_fast.convert.formats.lazy_tensor import DTYPES, BadFileError, LazyTensor, Storage, lazy_array

SAVE_STATE_DICT = "expected its state dict, which torch.save(model.state_dict(), FILE) writes"
"""The end of the message that refuses a file with a whole module or program."""


class UnknownNameError(BadFileError):
    """A pickle uses a name that is not in the table."""


class Namespace(dict[str, Any]):
    """An argparse.Namespace as plain data."""


class OrderedDict(dict[Any, Any]):
    """A collections.OrderedDict as plain data, with the names of modules that torch notes in a state dict."""

    modules: tuple[str, ...] = ()

    def build(self, attributes: Any) -> None:
        """Takes the names from a pickled state dict's attributes."""
        metadata = attributes.get("_metadata") if isinstance(attributes, dict) else None
        if isinstance(metadata, dict):
            self.modules = tuple(name for name in metadata if isinstance(name, str))


@dataclass(frozen=True)
class Constructor:
    """An entry of the table: `make` is called where the pickle calls the object with this name."""

    name: str
    make: Callable[..., Any]


@dataclass
class NumpyType:
    """A numpy.dtype as torch's type; None if torch has no such type."""

    dtype: torch.dtype | None
    name: str

    def build(self, state: tuple[Any, ...]) -> None:
        """Takes a pickled dtype's state. Raises BadFileError for big-endian ones."""
        if state[1] not in ("<", "|", "="):
            raise BadFileError("has big-endian arrays: expected little-endian ones")


@dataclass
class NumpyArray:
    """An array: numpy pickles an empty one and then its contents; `contents` is None in between."""

    contents: LazyTensor | None = None

    def build(self, state: tuple[Any, ...]) -> None:
        """Takes a pickled array's state. Raises BadFileError for elements that are not plain numbers."""
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, NumpyType) or dtype.dtype is None or not isinstance(raw, bytes):
            raise BadFileError(f"has an array of {getattr(dtype, 'name', 'objects')!r}: expected plain numbers")
        self.contents = lazy_array(raw, dtype.dtype, shape, bool(fortran))


@dataclass
class Inert:
    """A class of another package, nothing of which is used."""

    state: Any = field(default=None, repr=False)


def as_text(value: Any) -> str:
    """A text or a number as text. Raises BadFileError for anything else: printing nested tuples can take forever."""
    if type(value) not in (str, int):
        raise BadFileError(f"has a {type(value).__name__}: expected a text")
    return str(value)


def _tensor(storage: Any, offset: int, shape: Any, stride: Any, *_: Any) -> LazyTensor:
    if not isinstance(storage, Storage):
        raise BadFileError("has a tensor without a storage")
    return LazyTensor(storage, offset, tuple(shape), tuple(stride))


def _numpy_type(name: Any, *_: Any) -> NumpyType:
    code = as_text(name)
    try:
        known = DTYPES.get(np.dtype(code).name) if len(code) < 8 else None
    except TypeError:
        known = None
    return NumpyType(known, code[:20])


def _numpy_scalar(dtype: NumpyType, raw: bytes = b"") -> Any:
    if dtype.dtype is None:
        return None
    return lazy_array(raw, dtype.dtype, (1,)).tensor()[0].item()


def _frombuffer(raw: bytes, dtype: NumpyType, shape: tuple[int, ...], order: str) -> NumpyArray:
    if not isinstance(raw, bytes | bytearray):  # bytes(n) would make n zero bytes
        raise BadFileError(f"has an array of a {type(raw).__name__}: expected bytes")
    array = NumpyArray()
    array.build((1, shape, dtype, order == "F", bytes(raw)))
    return array


def _encode(content: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise BadFileError(f"has text in {as_text(encoding)[:20]!a}: expected latin1")
    return content.encode("latin1")


def build_dict(items: Any = ()) -> dict[Any, Any]:
    """A dictionary of pairs. Raises BadFileError as `set_item` does."""
    result: dict[Any, Any] = {}
    for key, value in items:
        set_item(result, key, value)
    return result


def _attribute(owner: Any, name: str) -> None:
    """Replaces getattr: mmengine's history pickles references to its own methods, which are not needed."""
    if not isinstance(owner, Constructor) or owner.make is not Inert:
        raise BadFileError("asks for builtins.getattr")


_PLACES = ("", "._local")
_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path", "PurePath")
_ALLOWED: dict[str, Any] = {
    "collections.OrderedDict": lambda items=(): OrderedDict(build_dict(items)),
    "argparse.Namespace": Namespace,
    "torch.Size": lambda *items: tuple(*items),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch.device": lambda *_: Inert(),
    "numpy.ndarray": NumpyArray,
    "numpy.dtype": _numpy_type,
    "_codecs.encode": _encode,
    "builtins.tuple": lambda items=(): tuple(items),
    "builtins.set": lambda items=(): list(items),
    "builtins.getattr": _attribute,
    "mmengine.logging.history_buffer.HistoryBuffer": Inert,
    **{f"pathlib{part}.{name}": lambda *_: Inert() for name in _PATHS for part in _PLACES},
    **{f"numpy.{core}.multiarray._reconstruct": lambda *_: NumpyArray() for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _numpy_scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _frombuffer for core in ("core", "_core")},
}  # fmt: skip
_STORAGES = {"Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64",
             "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool"}  # fmt: skip
_CONSTANTS: dict[str, torch.dtype] = {
    **{f"torch.{name}Storage": DTYPES[dtype] for name, dtype in _STORAGES.items()},
    **{f"torch.{name}": dtype for name, dtype in DTYPES.items()},
}


def resolve_name(module: str, name: str) -> Any:
    """The object for a pickle's name. Raises BadFileError for a name that is not in the table."""
    path = f"{module.replace('__builtin__', 'builtins')}.{name}"
    if path in _CONSTANTS:
        return _CONSTANTS[path]
    if path not in _ALLOWED:
        raise UnknownNameError(f"asks for {ascii(path)[1:101].rstrip(chr(39))}, which a checkpoint has no need of")
    return Constructor(path, _ALLOWED[path])


def set_item(target: dict[Any, Any], key: Any, value: Any) -> None:
    """`target[key] = value`. Raises BadFileError for a key that is not a plain value."""
    if type(key) not in (str, int, bytes, float, bool, type(None)):  # hashing nested tuples can take forever
        raise BadFileError(f"has a dictionary with a {type(key).__name__} as key")
    target[key] = value
