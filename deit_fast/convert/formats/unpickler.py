"""Reads pickles as data, with a stack machine that cannot import, call or look up anything that a file chooses.

Python's own unpickler executes code. Here names in a pickle stand for the few constructors in constructors.py, and any
other name ends the reading: "asks for posix.system". pickletools splits the opcodes, which never allocates more than
the size of the file.

torch.load(weights_only=True, mmap=True) is used to resume a run from its own sealed checkpoint. For other files it
cannot replace this reader (measured with torch 2.11 and the tests in tests/convert):

- Its table of safe names includes bytearray, so a zip archive of 273 bytes took 4 GiB in 1.6 s.
- It cannot read paddle's pickles, nor mmengine's history without a stand-in for each class. This reader of pickles
  would have to stay beside it; only torch_zip.py and stored_zip.py, 100 lines, would become unnecessary.
- It refuses with a paragraph that advises to trust the file, or with an assertion of its own, where 102 of 424 tests
  expect a line that names what the file asks for.

It is no faster: opening the tensors of a 346 MB checkpoint takes 8 ms and 4 MiB here, 11 ms and 1 MiB with torch.load.
"""

import pickletools
from collections.abc import Callable
from typing import IO, Any

from deit_fast.convert.formats.constructors import (
    Constructor,
    Inert,
    Namespace,
    NumpyArray,
    NumpyType,
    OrderedDict,
    as_text,
    build_dict,
    resolve_name,
    set_item,
)
from deit_fast.convert.formats.lazy_tensor import BadFileError

MAX_OPCODES = 500_000
"""Most opcodes; a training checkpoint of the largest model has about 200,000."""
_SLACK = 1_000_000  # bytes and items that may be copied beyond the bytes read, as short texts are named again


def read_pickle(file: IO[bytes] | Any, persistent: Callable[[Any], Any] | None = None) -> Any:
    """The object of the pickle at the file's position, made of dicts, lists, tuples, plain values and `LazyTensor`.

    file: has read, readline and tell. persistent: resolves torch's references to storages. Constructors never copy more
    than was read so far. Raises BadFileError for a pickle that wants more, or a name that is not in the table;
    ValueError, IndexError or TypeError for a damaged one.
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
        # A pickle can refer to an object again in two bytes, so copies of it would inflate memory.
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
                stack.append(build_dict(zip(items[::2], items[1::2], strict=True)))
            case "APPEND":
                item = stack.pop()
                _list(stack[-1]).append(item)
            case "APPENDS" | "ADDITEMS":
                items = since_mark()
                _list(stack[-1]).extend(items)
            case "SETITEM" | "SETITEMS":
                items = since_mark() if opcode.name == "SETITEMS" else [stack.pop(-2), stack.pop()]
                for key, value in zip(items[::2], items[1::2], strict=True):
                    set_item(_dict(stack[-1]), key, value)
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(_plain(memo[argument]))
            case "GLOBAL":
                stack.append(resolve_name(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(resolve_name(as_text(module), as_text(name)))
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
                stack.append(argument)  # a number, text or bytes
            case name:
                raise BadFileError(f"asks for the pickle operation {name}, which a checkpoint has no need of")
    raise EOFError("a pickle without an end")


def _construct(constructor: Any, arguments: Any) -> Any:
    if not isinstance(constructor, Constructor) or type(arguments) is not tuple:
        raise BadFileError(f"calls a {type(constructor).__name__}: expected the constructor of plain data")
    return constructor.make(*arguments)


def _build(target: Any, state: Any) -> None:
    if isinstance(target, NumpyArray | NumpyType | OrderedDict):
        target.build(state)
    elif isinstance(target, Namespace):
        target.update(_dict(state))
    elif not isinstance(target, dict | Inert):
        raise BadFileError(f"sets the state of a {type(target).__name__}")


def _plain(value: Any) -> Any:
    """The contents of a numpy array that has them by now."""
    return value.contents if isinstance(value, NumpyArray) and value.contents is not None else value


def _list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise BadFileError(f"appends to a {type(value).__name__}")
    return value


def _dict(value: Any) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise BadFileError(f"sets items of a {type(value).__name__}")
    return value
