"""safetensors files, read by their own library; the header of files that deit_fast wrote contains the recipe."""

import mmap
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from deit_fast.convert.formats import Container
from deit_fast.convert.formats.lazy_tensor import BadFileError
from deit_fast.convert.formats.metadata import parse_json
from deit_fast.convert.own_format import FORMAT
from deit_fast.runtime.errors import one_line

_HEADER_LIMIT = 3_000_000  # bytes of the header: 20,000 tensors, or the names of 21,843 classes


def _read(path: Path, mapped: mmap.mmap) -> dict[str, Any]:
    """The tensors; or, if there is a recipe beside them, a dictionary in the form of deit_fast's .pt files."""
    header, size = int.from_bytes(mapped[:8], "little"), len(mapped)
    if header > min(size - 8, _HEADER_LIMIT):
        raise BadFileError(f"claims a header of {header} bytes in {size}; it may be truncated")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise BadFileError(f"expected a readable safetensors file ({one_line(error)[:150]})") from None
    if "recipe" not in metadata:
        return tensors
    recipe, classes = parse_json(metadata["recipe"]), parse_json(metadata.get("classes", "null"))
    if not isinstance(recipe, dict):
        raise BadFileError(f"has a {type(recipe).__name__} as its recipe: expected an object")
    return {"format": FORMAT, "recipe": recipe, "classes": classes, "model": tensors}


# The eight bytes before the brace are a length, and may equal the first bytes of another container.
CONTAINER = Container("safetensors", recognises=lambda mapped: mapped[8:9] == b"{", read=_read, priority=1)
