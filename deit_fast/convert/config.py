"""Text beside weights: timm's or transformers' config.json, or the options of a training script."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deit_fast.convert.formats.lazy_tensor import BadFileError
from deit_fast.convert.formats.metadata import JSON_LIMIT, check_names, parse_json
from deit_fast.convert.locate import CONFIG, WEIGHT_FILES
from deit_fast.runtime.errors import one_line
from deit_fast.zoo import FAMILIES
from deit_fast.zoo.class_names import IMAGENETS

_PROCESSOR = "preprocessor_config.json"
_TIMM_CROP = 0.875  # timm's default, for a config without one
_INTERPOLATIONS = ("bicubic", "bilinear")
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # PIL's numbers
_TANH = ("gelu_tanh", "gelu_new", "gelu_fast", "gelu_pytorch_tanh")
_EPSILONS = (1e-12, 1e-6)  # transformers' default, which it also uses for models that were trained with timm's


@dataclass(frozen=True)
class Notes:
    """The facts in the text beside weights. Values are as they were found; users of a value validate it."""

    classes: list[str] | None = None
    """Names of the K classes."""
    tanh: bool = False
    """Whether it was trained with GELU's tanh approximation."""
    heads: int | None = None
    """Number of attention heads."""
    size: tuple[int, int] | None = None
    """Height and width of the images, px."""
    data: dict[str, Any] = field(default_factory=dict)
    """Fields of a recipe's data section: crop ratio, interpolation, mean and standard deviation."""
    lost: list[str] = field(default_factory=list)
    """Settings that evaluation here does not support, in words."""
    architecture: str | None = None
    """timm's name of the model."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """timm's arguments for the model."""
    whence: str = CONFIG
    """The source of these facts, in words."""


def read_notes(path: Path) -> Notes | None:
    """The facts in a folder's config.json, or in the one beside a file named as a folder's weights are; if any.

    Raises BadFileError for a config.json that is too large, that is not plain data, or that names another kind of
    model.
    """
    folder = path if path.is_dir() else path.parent
    if not (folder / CONFIG).is_file() or not (path.is_dir() or path.name in WEIGHT_FILES):
        return None
    config = _read_object(folder / CONFIG)
    if "model_type" in config and "architecture" not in config:
        processor = _read_object(folder / _PROCESSOR) if (folder / _PROCESSOR).is_file() else {}
        return _transformers_notes(config, processor)
    return _timm_notes(config)


def read_options(options: Mapping[str, Any]) -> Notes:
    """The facts in the options of a training script: `args` in the files of timm and of facebookresearch/deit.

    The same names may mean anything in other scripts, so values of an unexpected form are ignored.
    """
    arguments, data = options.get("model_kwargs"), dict[str, Any]()
    kwargs = arguments if isinstance(arguments, dict) else {}
    for ratio in (options.get("eval_crop_ratio"), options.get("crop_pct")):
        if isinstance(ratio, float | int) and 0 < ratio <= 1:
            data["eval_crop_ratio"] = ratio
    for key, lowest in (("mean", 0.0), ("std", 1e-6)):
        colour: Any = options.get(key)
        if _is_triple(colour) and min(colour) >= lowest:
            data[key] = tuple(colour)
    if options.get("interpolation") in _INTERPOLATIONS:
        data["eval_interpolation"] = options["interpolation"]
    sizes = (kwargs.get("img_size"), options.get("img_size"), options.get("input_size"))
    size = next((pair for each in sizes if (pair := _pair(each)) is not None), None)
    return Notes(size=size, data=data, whence="args")


def _read_object(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        text = file.read(JSON_LIMIT + 1)
    try:
        content = parse_json(text)
    except ValueError as error:
        raise BadFileError(f"has a {path.name} that is no JSON ({one_line(error)[:100]})") from None
    if not isinstance(content, dict):
        raise BadFileError(f"has a {path.name} with a {type(content).__name__}: expected an object")
    return content


def _timm_notes(config: dict[str, Any]) -> Notes:
    """timm's config.json, in today's form (preprocessing in pretrained_cfg) or that before 0.9 (one object)."""
    pretrained, arguments = config.get("pretrained_cfg") or config, config.get("model_args") or {}
    for key, value in (("pretrained_cfg", pretrained), ("model_args", arguments)):
        if not isinstance(value, dict):
            raise BadFileError(f"has a config.json with {key} of type {type(value).__name__}: expected an object")
    architecture = config.get("architecture")
    data = {key: _triple(pretrained[key]) for key in ("mean", "std") if pretrained.get(key) is not None}
    if pretrained.get("crop_pct") is not None or architecture is not None:
        data["eval_crop_ratio"] = pretrained.get("crop_pct") or _TIMM_CROP
    lost = _take_interpolation(data, pretrained.get("interpolation"))
    if (mode := pretrained.get("crop_mode")) not in (None, "center"):
        lost.append(f"crop_mode={mode!r}: the centre is cropped instead")
    size = arguments.get("img_size") or pretrained.get("input_size")
    names = next(
        (each[key] for each in (config, pretrained) for key in ("label_names", "labels") if each.get(key)), None
    )
    return Notes(
        _listed_names(names), arguments.get("act_layer") in _TANH, None, _pair(size), data, lost,
        str(architecture) if architecture is not None else None, arguments,
    )  # fmt: skip


def _transformers_notes(config: dict[str, Any], processor: dict[str, Any]) -> Notes:
    kind, act, eps = config["model_type"], config.get("hidden_act", "gelu"), config.get("layer_norm_eps", 1e-12)
    known = [each for family in FAMILIES.values() for each in family.transformers]
    if kind not in known:
        raise BadFileError(f"has a config.json with model_type={kind!a}: expected {' or '.join(known)}")
    if act != "gelu" and act not in _TANH:
        raise BadFileError(f"has a config.json with hidden_act={act!a}: expected 'gelu' or its tanh approximation")
    if eps not in _EPSILONS:
        raise BadFileError(f"has a config.json with layer_norm_eps={eps!r}: expected 1e-6, or transformers' 1e-12")
    names = _listed_names(config.get("id2label"))
    if names is not None and (len(names) in IMAGENETS or names[0] == "LABEL_0"):
        names = None  # descriptions of ImageNet's classes, whose names are WordNet ids; or no names at all
    data = _processor_colours(processor)
    resample: Any = processor.get("resample")
    lost = _take_interpolation(data, _RESAMPLE.get(resample, resample) if isinstance(resample, int) else resample)
    resized, cropped = _pair(processor.get("size")), _pair(processor.get("crop_size"))
    if resized is not None:
        crops = processor.get("do_center_crop") and cropped is not None and resized[0]
        data["eval_crop_ratio"] = cropped[0] / resized[0] if crops and cropped is not None else 1.0
        if not isinstance(processor["size"], dict) or "shortest_edge" not in processor["size"]:
            lost.append("size of both sides, to which images are squashed: the centre is cropped instead")
    heads = config.get("num_attention_heads")
    size = _pair(config.get("image_size"))
    return Notes(names, act in _TANH, heads if isinstance(heads, int) else None, size, data, lost)


def _processor_colours(processor: dict[str, Any]) -> dict[str, Any]:
    """Means and deviations of images in [0, 1], from a processor that has them for pixels times its factor."""
    if not processor.get("do_normalize", True):
        processor = {**processor, "image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0]}
    factor = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1.0
    pairs = (("mean", "image_mean"), ("std", "image_std"))
    data = {key: _triple(processor[name]) for key, name in pairs if processor.get(name) is not None}
    if not isinstance(factor, float | int) or factor <= 0:
        raise BadFileError(f"has a {_PROCESSOR} with rescale_factor={factor!a}: expected a positive number")
    if abs(255 * factor - 1) < 1e-6:
        return data
    return {key: tuple(each / (255 * factor) for each in value) if _is_triple(value) else value
            for key, value in data.items()}  # fmt: skip


def _take_interpolation(data: dict[str, Any], found: Any) -> list[str]:
    """Sets the interpolation if evaluation supports it; else returns a line about it."""
    if found in _INTERPOLATIONS:
        data["eval_interpolation"] = found
        return []
    return [f"interpolation={found!r}: bicubic instead"] if found is not None else []


def _listed_names(names: Any) -> list[str] | None:
    """Class names in the order of the labels, from a list or from {label: name}; missing labels get their number."""
    if isinstance(names, dict):
        labels = {int(label): name for label, name in names.items() if str(label).isdecimal()}
        if len(labels) != len(names) or not labels or max(labels) >= JSON_LIMIT // 40:
            return None
        names = [labels.get(label, str(label)) for label in range(max(labels) + 1)]
    return check_names(names)


def _triple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _is_triple(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(isinstance(each, float | int) for each in value)


def _pair(size: Any) -> tuple[int, int] | None:
    """Height and width from [C, H, W], [H, W], a side, or transformers' {height, width} or {shortest_edge}."""
    if isinstance(size, dict):
        side = size.get("shortest_edge")
        size = [size.get("height", side), size.get("width", side)]
    values = list(size)[-2:] if isinstance(size, list | tuple) else [size, size]
    if len(values) == 2 and all(type(value) is int and value > 0 for value in values):
        return values[0], values[1]
    return None


def describe(notes: Notes, data: Any) -> list[str]:
    """Lines on the facts that are used, as words of a recipe with section `data`'s values, and on the others."""
    taken = [f"data.{key}={json.dumps(getattr(data, key))}" for key in notes.data]
    if notes.classes is not None:
        taken.append(f"{len(notes.classes)} names of classes")
    lines = [f"taken from {notes.whence}: {', '.join(taken)}"] if taken else []
    return lines + [f"not taken from {notes.whence}: {each}" for each in notes.lost]
