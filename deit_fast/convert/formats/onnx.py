"""ONNX, for machines without this package: normalised float images [B, 3, S, S] -> logits [B, K], with free B.

Class names and the preprocessing of images are in the file's metadata. Writing needs the extra `export`.
"""

import contextlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

from deit_fast.convert.formats import Export
from deit_fast.convert.formats.program import describe_input, example_images, program_metadata
from deit_fast.recipe.schema import Recipe
from deit_fast.runtime.errors import RunError

_INLINE_LIMIT = 1_500_000_000  # bytes of weights; protobuf, and so an .onnx file, is limited to 2 GiB


def _write(model: nn.Module, recipe: Recipe, classes: list[str] | None, path: Path) -> list[str]:
    """Writes `path`, and `path`.data beside it if the weights are too large for one file. Raises RunError."""
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise RunError(f"{path}: expected the package {error.name}: pip install 'deit_fast[export]'") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    large = sum(weight.nbytes for weight in model.state_dict().values()) > _INLINE_LIMIT
    # The .onnx contains the name of the file with the weights, so both get their final names before they are moved.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder, _quiet():
        torch.onnx.export(model, (example_images(recipe),), Path(folder) / path.name, dynamo=True,
                          external_data=large, verbose=False,
                          input_names=["images"], output_names=["logits"],
                          dynamic_shapes=({0: Dim("batch", min=1)},))  # fmt: skip
        described = onnx.load(Path(folder) / path.name, load_external_data=False)
        onnx.helper.set_model_props(described, program_metadata(recipe, classes))
        onnx.save(described, Path(folder) / path.name)
        for part in sorted(Path(folder).iterdir(), key=lambda part: part.name == path.name):
            os.replace(part, path.with_name(part.name))
    return [describe_input(recipe)]


def _reload(path: Path) -> Callable[[Tensor], Tensor]:
    """Runs the file with onnxruntime on the CPU. Raises RunError where onnxruntime is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise RunError(f"{path}: expected the package {error.name}: pip install 'deit_fast[export]'") from None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides the exporter's progress on stdout, and its notes on operators that no vision model uses."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


EXPORT = Export("onnx", ".onnx", _write, _reload)
