"""What a checkpoint says in words beside its tensors: recipe, class names, timm's config.json. Held to be small."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deit_fast.convert.formats.lazy_tensor import BadFileError

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""What timm and transformers call the weights in a model's folder, the one that they take first."""
_JSON_LIMIT = 4_000_000  # bytes; the names of 21,843 classes are a tenth of it
_VALUES_LIMIT = 100_000


@dataclass(frozen=True)
class Notes:
    """What the config.json of a model's folder says that its weights do not."""

    classes: list[str] | None = None
    """Names of the K classes."""
    tanh: bool = False
    """Trained with GELU's tanh approximation."""
    mean: Any = None
    """Channel means, of images in [0, 1]; not validated."""
    std: Any = None
    """Channel standard deviations, of images in [0, 1]; not validated."""


def find_weights(path: Path) -> Path:
    """`path` itself, or the weights in it where it is a model's folder. Raises BadFileError for any other folder."""
    if not path.is_dir():
        return path
    for name in WEIGHT_FILES:
        if (path / "config.json").is_file() and (path / name).is_file():
            return path / name
    raise BadFileError(
        "is a folder: expected a file of weights, or a model's folder of timm or transformers, with config.json and "
        + " or ".join(WEIGHT_FILES)
    )


def read_notes(folder: Path) -> Notes:
    """What the config.json of timm's folders says; transformers' says nothing that its weights do not.

    Raises BadFileError for one that is too large, or that is no plain data.
    """
    with open(folder / "config.json", "rb") as file:
        config = parse_json(file.read(_JSON_LIMIT + 1))
    if not isinstance(config, dict):
        raise BadFileError(f"has a config.json with a {type(config).__name__}: expected an object")
    pretrained, model = config.get("pretrained_cfg") or {}, config.get("model_args") or {}
    tanh = model.get("act_layer") == "gelu_tanh"
    names = config.get("label_names") or pretrained.get("label_names")
    if isinstance(names, dict):  # timm's form for labels with gaps
        names = None
    return Notes(check_names(names), tanh, pretrained.get("mean"), pretrained.get("std"))


def parse_json(content: str | bytes) -> Any:
    """Plain data from JSON. Raises BadFileError for more than 4 MB of it, and as `check_plain`.

    What is no JSON raises ValueError, and too deep a nesting RecursionError.
    """
    if len(content) > _JSON_LIMIT:
        raise BadFileError(f"has more than {_JSON_LIMIT} bytes of JSON: expected a few thousand")
    return check_plain(json.loads(content))


def check_plain(value: Any) -> Any:
    """`value` itself. Raises BadFileError where it is not plain data, or holds more than 100,000 values.

    A pickle can hold a list many times over in itself, which to print or to validate would take forever.
    """
    waiting, seen = [value], 0
    while waiting:
        each = waiting.pop()
        seen += 1
        if isinstance(each, dict):
            waiting += [*each.keys(), *each.values()]
        elif isinstance(each, list | tuple):
            waiting += each
        elif not isinstance(each, str | int | float | None):
            raise BadFileError(f"describes itself with a {type(each).__name__}: expected plain data")
        if seen + len(waiting) > _VALUES_LIMIT:
            raise BadFileError(f"describes itself with more than {_VALUES_LIMIT} values")
    return value


def check_names(classes: Any) -> list[str] | None:
    """The names of classes, or None. Raises BadFileError for anything else."""
    if classes is None:
        return None
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise BadFileError("has class names of another kind: expected a list of texts")
    return classes
