"""One module per container of tensors: its bytes become arrays by name, and nothing in them is run.

A module with a `CONTAINER` reads files, one with an `EXPORT` writes them. The other modules are what these share:
lazy_tensor.py (tensors that still lie in their file), stored_zip.py (archives), unpickler.py and constructors.py
(pickles as data), metadata.py (the words beside the tensors in their file) and timm_folder.py (timm's config.json).
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
    """In words, for the refusal of a file of another kind."""
    recognises: Callable[[mmap.mmap], bool]
    """Whether the file, of one byte or more, is of this kind: its first bytes say, never its name."""
    read: Callable[[Path, mmap.mmap], Any]
    """A dictionary of LazyTensor or Tensor by name. A training file's may have more dictionaries and plain data in it.

    The file lies at the path and is mapped. Nothing in it may be run or imported, and its lengths are held against
    the file's size before memory is taken. Raises BadFileError, or any ValueError, LookupError and the like for damage.
    """
    priority: int = 0
    """Of several containers that recognise a file the one of the highest priority reads it."""


@dataclass(frozen=True)
class Export:
    """A format that a model can be written in."""

    name: str
    """Its name, as --format takes it."""
    ending: str
    """Ending of the files that get this format without --format."""
    write: Callable[[nn.Module, Recipe, list[str] | None, Path], list[str]]
    """Writes a model in evaluation mode, with its recipe and class names, to the path. Returns notes for the user.

    Raises BadFileError, RunError where the format has no place for the model.
    """
    reload: Callable[[Path], Callable[[Tensor], Tensor] | None] = lambda path: None
    """The format's own reader, as a function from float images [B, 3, S, S] to logits [B, K]; None: load_weights."""
