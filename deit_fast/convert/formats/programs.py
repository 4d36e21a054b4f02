"""Programs of a model, for machines without this code: ONNX and torch.export's .pt2.

Both take float images [B, 3, S, S], normalised with the recipe's mean and standard deviation, and give logits [B, K];
B is free, S is the recipe's. ONNX needs the extra `export`.
"""

import contextlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

from deit_fast.runtime.errors import RunError
from deit_fast.runtime.files import atomic_path

_INLINE_LIMIT = 1_500_000_000  # bytes of weights; protobuf, and so an .onnx file, ends at 2 GiB


def export_onnx(model: nn.Module, images: Tensor, path: Path) -> None:
    """Writes `path`, and beside it `path`.data where the weights are too large for one file. Raises RunError."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise RunError(f"{path}: expected the package {error.name}: pip install 'deit_fast[export]'") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    large = sum(weight.nbytes for weight in model.state_dict().values()) > _INLINE_LIMIT
    # The file with the weights is named inside the other, so both get their names before they get their place.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder, _quiet():
        torch.onnx.export(model, (images,), Path(folder) / path.name, dynamo=True, external_data=large, verbose=False,
                          input_names=["images"], output_names=["logits"],
                          dynamic_shapes=({0: Dim("batch", min=1)},))  # fmt: skip
        for part in sorted(Path(folder).iterdir(), key=lambda part: part.name == path.name):
            os.replace(part, path.with_name(part.name))


def run_onnx(path: Path, images: Tensor) -> Tensor:
    """Logits of an .onnx file by onnxruntime, on the CPU. Raises RunError where that is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise RunError(f"{path}: expected the package {error.name}: pip install 'deit_fast[export]'") from None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def export_program(model: nn.Module, images: Tensor, path: Path) -> None:
    """Writes a .pt2 file, which `torch.export.load(path).module()` makes a module of."""
    program = torch.export.export(model, (images,), dynamic_shapes=({0: Dim("batch", min=1)},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def run_program(path: Path, images: Tensor) -> Tensor:
    """Logits of a .pt2 file."""
    with open(path, "rb") as file:
        module = torch.export.load(io.BytesIO(file.read())).module()
    with torch.no_grad():
        return module(images)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's progress on stdout and its notes on operators that no vision model has."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
