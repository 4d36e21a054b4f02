"""A recipe: what is learned, as frozen, validated data; parsed, overridden and refused in one line.

Where and on how many is not in here. Nothing in this module imports torch.
"""

import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self, get_args

from pydantic import ValidationError, model_validator
from pydantic_core import ErrorDetails

from deit_fast.recipe.sections import Augment, Data, Distill, Loss, Mix, Model, Optim, Run, Schedule, Section
from deit_fast.runtime.errors import RecipeError, brief, one_line, suggest
from deit_fast.zoo import find_architecture, find_family


class Recipe(Section):
    """All that decides what is learned. Raises pydantic's ValidationError; `parse_recipe` makes one line of it."""

    name: str
    """Name in the recipe table, or of the file it came from."""
    description: str = ""
    """Source, what differs from it, cost and published result."""
    model: Model
    data: Data = Data()
    augment: Augment = Augment()
    mix: Mix = Mix()
    loss: Loss = Loss()
    distill: Distill = Distill()
    optim: Optim
    schedule: Schedule = Schedule()
    run: Run

    @model_validator(mode="after")
    def check(self) -> Self:
        model, run = self.model, self.run
        architecture, family = find_architecture(model.name), find_family(model.name)
        if self.distill.kind != "none" and not architecture.distilled:
            raise ValueError(
                f"distill.kind={self.distill.kind!r}: expected a model with a distillation token, "
                f"got model.name={model.name!r}"
            )
        if self.optim.trainable == "attention" and self.distill.kind != "none":
            raise ValueError(
                f"optim.trainable='attention': expected 'all' with distill.kind={self.distill.kind!r}, "
                "whose distillation head would stay as it is"
            )
        if self.loss.cosub and not model.drop_path:
            raise ValueError("loss.cosub=true: expected model.drop_path above 0, or its two passes are the same")
        if self.loss.cosub and self.distill.kind != "none":
            raise ValueError(f"loss.cosub=true: expected distill.kind='none', got {self.distill.kind!r}")
        if minmax := self.mix.cutmix_minmax:
            low, high = (int(model.image_size * share) for share in minmax)
            if low >= high:
                raise ValueError(
                    f"mix.cutmix_minmax={list(minmax)}: expected a range of more than a pixel at "
                    f"model.image_size={model.image_size}"
                )
        if not model.train_mode and (self.loss.cosub or self.distill.kind != "none"):
            cause = "loss.cosub=true" if self.loss.cosub else f"distill.kind={self.distill.kind!r}"
            raise ValueError(f"model.train_mode=false: expected true with {cause}")
        if not family.has_attention:
            without = f"with model.name={model.name!r}, whose blocks have no self-attention"
            if self.optim.trainable == "attention":
                raise ValueError(f"optim.trainable='attention': expected 'all' {without}")
            if self.optim.split_qkv:
                raise ValueError(f"optim.split_qkv=true: expected false {without}")
        if self.optim.layer_decay is not None and not family.layers_in_order:
            raise ValueError(
                f"optim.layer_decay={self.optim.layer_decay:g}: expected null with model.name={model.name!r}, "
                "which does not tell its layers' order"
            )
        if run.parallel == "fsdp" and model.stem == "hmlp":
            raise ValueError(
                "run.parallel='fsdp': expected 'ddp' with model.stem='hmlp', whose running statistics only DDP keeps "
                "the same on every process"
            )
        if self.optim.split_qkv and self.optim.name != "lamb":
            raise ValueError(f"optim.split_qkv=true: expected optim.name='lamb', got {self.optim.name!r}")
        for key in ("min_lr", "warmup_lr"):
            if (rate := getattr(self.schedule, key)) > self.optim.lr:
                raise ValueError(f"schedule.{key}={rate:g}: expected at most optim.lr={self.optim.lr:g}")
        if run.cuda_graph and run.accumulation > 1:
            raise ValueError(f"run.cuda_graph=true: expected run.accumulation=1, got {run.accumulation}")
        if run.cuda_graph and self.optim.name != "lamb":
            raise ValueError(f"run.cuda_graph=true: expected optim.name='lamb', got {self.optim.name!r}")
        if run.compute_copy:
            if run.precision == "fp32":
                raise ValueError("run.compute_copy=true: expected run.precision='bf16' or 'auto', got 'fp32'")
            for key, found, wanted in (
                ("run.accumulation", run.accumulation, 1),  # a sum in bf16 would lose bits
                ("run.parallel", run.parallel, "ddp"),
                ("optim.name", self.optim.name, "lamb"),
            ):
                if found != wanted:
                    raise ValueError(f"run.compute_copy=true: expected {key}={wanted!r}, got {found!r}")
        if run.global_batch % run.accumulation:
            raise ValueError(
                f"run.accumulation={run.accumulation}: expected a divisor of run.global_batch={run.global_batch}"
            )
        if self.mix.active and (run.global_batch // run.accumulation) % 2:
            raise ValueError(
                f"run.global_batch={run.global_batch}: expected an even batch for each of run.accumulation="
                f"{run.accumulation} passes, which mix.mixup and mix.cutmix pair up"
            )
        return self

    def pass_size(self, processes: int) -> int:
        """Images in one forward pass of one process: its views, and Cosub's second pass over them."""
        return self.run.global_batch // (processes * self.run.accumulation) * (2 if self.loss.cosub else 1)

    def check_processes(self, count: int) -> None:
        """Raises RecipeError where the batch cannot be divided over `count` processes."""
        batch, passes = self.run.global_batch, self.run.accumulation
        per_pass, rest = divmod(batch, count * passes)
        if rest:
            raise RecipeError(
                f"run.global_batch={batch}: expected a multiple of {count} processes times run.accumulation={passes}"
            )
        if self.mix.active and per_pass % 2:
            raise RecipeError(
                f"run.global_batch={batch}: expected an even batch for each of {count} processes and run.accumulation="
                f"{passes} passes, which mix.mixup and mix.cutmix pair up, got {per_pass}"
            )

    def check_teacher(self, path: object) -> None:
        """Raises RecipeError unless a teacher's weights are given, as `path`, exactly where there is distillation."""
        if self.distill.kind == "none" and path:
            raise RecipeError(f"--teacher {path}: expected none with distill.kind='none'")
        if self.distill.kind != "none" and not path:
            raise RecipeError(
                f"distill.kind={self.distill.kind!r}: expected --teacher with weights of "
                f"distill.teacher={self.distill.teacher!r}, at every start of the run"
            )

    def override(self, words: Iterable[str]) -> "Recipe":
        """A copy with `section.key=value` words applied; values are JSON, bare words or comma-separated tuples.

        Raises RecipeError for an unknown key, a wrong type or choice, or a combination that cannot work.
        """
        content = self.model_dump(mode="json")
        for word in words:
            path, equals, text = word.partition("=")
            section, dot, key = path.partition(".")
            if not (equals and dot and key):
                raise RecipeError(f"{brief(repr(word))}: expected section.key=value, for example optim.lr=1e-3")
            field = _section_fields(section).get(key)  # an unknown key is refused with the rest
            content[section][key] = _value(text, str_only=field is not None and field.annotation is str)
        return parse_recipe(content)


SECTIONS: dict[str, type[Section]] = {
    name: field.annotation
    for name, field in Recipe.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}


def parse_recipe(content: dict[str, Any], source: str = "") -> Recipe:
    """A Recipe from plain data. Raises RecipeError with the first thing wrong; `source` names the file, if any."""
    try:
        return Recipe.model_validate_json(json.dumps(content))
    except ValidationError as error:
        raise RecipeError((f"{source}: " if source else "") + _explain(error.errors()[0])) from None


def parse_model(content: dict[str, Any]) -> Model:
    """A model section from plain data. Raises RecipeError with the first thing wrong."""
    try:
        return Model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise RecipeError(_explain({**first, "loc": ("model", *first["loc"])})) from None


def load_recipe_file(path: Path) -> Recipe:
    """A recipe from a .toml or .json file, such as the recipe.json of a run folder; "null" is TOML's missing null.

    Raises RecipeError, one line that names the file.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        reason = brief(one_line(error))
        raise RecipeError(f"{path}: expected a readable .toml or .json recipe ({reason})") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: expected a table of sections, got {type(content).__name__}")
    if path.suffix == ".toml":
        content = {key: _with_nulls(value) if isinstance(value, dict) else value for key, value in content.items()}
    return parse_recipe({"name": path.stem, **content}, source=str(path))


def _with_nulls(section: dict[str, Any]) -> dict[str, Any]:
    return {key: None if value == "null" else value for key, value in section.items()}


def _section_fields(section: str) -> dict[str, Any]:
    if section not in SECTIONS:
        raise RecipeError(
            f"{brief(section)}: no such section; expected one of {', '.join(SECTIONS)}{suggest(section, SECTIONS)}"
        )
    return SECTIONS[section].model_fields


def _value(text: str, str_only: bool) -> Any:
    """JSON where it parses, a list for comma-separated JSON, else the word itself."""
    if str_only:
        return text
    for candidate in (text, f"[{text}]") if "," in text else (text,):
        try:
            return json.loads(candidate, parse_constant=str)
        except (ValueError, RecursionError):  # no JSON, or numbers and nesting beyond what Python reads
            continue
    return text


def _explain(error: ErrorDetails) -> str:
    """One pydantic error as `key=value: expected ...`."""
    if error["type"] == "value_error":  # our own cross-field messages name their key already
        return brief(str(error["ctx"]["error"]), 1000)
    names = [str(part) for part in error["loc"]]
    key = brief(".".join(name for name in names if not name.startswith(("float", "int", "constrained", "tuple"))))
    if error["type"] == "extra_forbidden":
        fields = _section_fields(names[0]) if len(names) > 1 else Recipe.model_fields
        return f"{key}: no such key; expected one of {', '.join(fields)}{suggest(names[-1], fields)}"
    if error["type"] == "missing":
        return f"{key}: missing, and it has no default"
    expected = one_line(error["msg"]).removeprefix("Input should be ").removeprefix("a valid ")
    field = SECTIONS[names[0]].model_fields[names[1]] if len(names) > 1 and names[0] in SECTIONS else None
    nullable = field is not None and type(None) in get_args(field.annotation)
    return f"{key}={brief(repr(error['input']))}: expected {expected}{' or null' if nullable else ''}"
