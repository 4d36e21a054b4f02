"""One module per container of tensors: its bytes become arrays by name, and nothing in a file is run.

A module with a `CONTAINER` reads files, one with an `EXPORT` writes them. The other modules are shared: lazy_tensor.py
(tensors that are not yet read from their file), stored_zip.py (archives), unpickler.py and constructors.py (pickles as
data), metadata.py (text beside the tensors in a file) and timm_folder.py (timm's config.json).
"""

import mmap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from deit_fast.recipe.schema import Recipe


@dataclass(frozen=True)
class Container:
    """A kind of file that holds tensors."""

    name: str
    """The kind in words, for refusing a file of another kind."""
    recognises: Callable[[mmap.mmap], bool]
    """Whether a file of at least one byte is of this kind, told by its first bytes and never by its name."""
    read: Callable[[Path, mmap.mmap], Any]
    """Returns a dictionary of LazyTensor or Tensor by name; a training file's may contain more dictionaries and plain
    data.

    The file lies at the path and is mapped. Nothing in it may be run or imported, and lengths in it are compared with
    the file's size before memory is allocated. Raises BadFileError, or ValueError, LookupError and the like for damage.
    """
    priority: int = 0
    """If several containers recognise a file, the one with the highest priority reads it."""


@dataclass(frozen=True)
class Export:
    """A format in which a model can be written."""

    name: str
    """Its name, for --format."""
    ending: str
    """Suffix of the files that have this format without --format."""
    write: Callable[[nn.Module, Recipe, list[str] | None, Path], list[str]]
    """Writes a model in evaluation mode, with its recipe and class names, to the path. Returns notes for the user.

    Raises BadFileError, and RunError where the format cannot hold the model.
    """
    reload: Callable[[Path], Callable[[Tensor], Tensor] | None] = lambda path: None
    """The format's own reader, as a function from float images [B, 3, S, S] to logits [B, K]; None means
    load_weights."""
