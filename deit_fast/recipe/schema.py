"""A recipe: every setting of a training as frozen, validated data, with overriding, deriving, and a line per mistake.

Data paths, run folders and the number of processes are not part of a recipe. Nothing in this module imports torch.
"""

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from pydantic import SerializeAsAny

from deit_fast.recipe.batch_rate import describe_batch, settle_rate
from deit_fast.recipe.old_dumps import drop_removed, drop_unread
from deit_fast.recipe.other_names import hint
from deit_fast.recipe.parse import all_fields, merge_section, parse_section, read_word, unknown_key
from deit_fast.recipe.rules import broken_rules
from deit_fast.recipe.sections import Augment, Data, Distill, Loss, Mix, Model, Optim, Run, Schedule, Section
from deit_fast.runtime.errors import RecipeError, brief, suggest


class Recipe(Section):
    """All settings that decide what is learned.

    Raises pydantic's ValidationError; `parse_recipe` turns it into lines.
    """

    name: str
    """Name in the recipe table, or of the file it came from."""
    description: str = ""
    """Source, what differs from it, cost and published result."""
    model: Model
    """The network."""
    data: Data = Data()
    """The images, and how they are evaluated."""
    augment: Augment = Augment()
    """What is done to each view of an image."""
    mix: Mix = Mix()
    """Mixup and CutMix."""
    loss: Loss = Loss()
    """The loss of the labels."""
    distill: Distill = Distill()
    """The teacher, if there is one."""
    optim: SerializeAsAny[Optim]
    """The optimizer and its values."""
    schedule: Schedule = Schedule()
    """The learning rate over time."""
    run: Run
    """Batch, seeds, precision, and what is written when."""

    def problems(self) -> Iterator[str]:
        """The lines of the rules between sections that this recipe breaks."""
        yield from broken_rules({name: getattr(self, name) for name in SECTIONS})

    def describe_batch(self, base: "Recipe") -> str:
        """A line where the batch size differs from that of `base`, which the learning rate is meant for; else ""."""
        return describe_batch(self.optim, self.run, base.optim, base.run)

    def pass_size(self, processes: int) -> int:
        """Images in one forward pass of one of `processes` processes; Cosub's two passes count twice."""
        return self.run.global_batch // (processes * self.run.passes) * (2 if self.loss.cosub else 1)

    def check_processes(self, count: int) -> None:
        """Raises RecipeError where the batch cannot be divided among `count` processes."""
        batch, passes = self.run.global_batch, self.run.passes
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
        """Raises RecipeError for distillation without a teacher's weights (`path`), and for weights without it."""
        if self.distill.kind == "none" and path:
            raise RecipeError(f"--teacher {path}: expected none with distill.kind='none'")
        if self.distill.kind != "none" and not path:
            raise RecipeError(
                f"distill.kind={self.distill.kind!r}: expected --teacher with weights of "
                f"distill.teacher={self.distill.teacher!r}, at every start of the run"
            )

    def override(self, words: Iterable[str]) -> "Recipe":
        """A copy with `section.key=value` words applied; values are JSON, bare words or comma-separated tuples.

        If a word changes a section's kind, as optim.name does, values that both kinds have are kept. The order of the
        words does not matter. A single text is split into words. Raises RecipeError with a line for each unknown key,
        each wrong type or choice and each combination that cannot work.
        """
        return parse_with_words(self.model_dump(mode="json"), words)

    def taken_over(self, words: Iterable[str]) -> "Recipe":
        """Like `override`, for a trained model that is used elsewhere: the recipe's own run.device is ignored."""
        return self.derive(run={"device": "auto"}).override(words)

    def derive(self, **changes: "str | Section | dict[str, Any]") -> "Recipe":
        """A copy with another name, another description, or changed sections: fields in a dict, or a whole section.

        Raises RecipeError, as `override` does.
        """
        content: dict[str, Any] = dict(self)
        typed = [f"{name}.{key}" for name, each in changes.items() if isinstance(each, dict) for key in each]
        for name, each in changes.items():
            if isinstance(each, Section):
                content[name] = each.model_dump(mode="json")
            elif name in SECTIONS and isinstance(each, dict):
                content[name] = merge_section(SECTIONS[name], content[name].model_dump(mode="json"), each)
            else:
                content[name] = each
        return parse_recipe(content, typed=typed)


SECTIONS: dict[str, type[Section]] = {
    name: field.annotation
    for name, field in Recipe.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}
"""The class of each section; for a section with several kinds, their common base class."""


def merge(content: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A recipe's content with changes: name, description, and the changed values of each section."""
    merged = {**content, **changes}
    for name, section in SECTIONS.items():
        old, new = content.get(name, {}), changes.get(name)
        if isinstance(new, dict):
            merged[name] = merge_section(section, old, new) if isinstance(old, dict) else old
    return merged


def parse_with_words(content: dict[str, Any], words: Iterable[str], source: str = "") -> Recipe:
    """A Recipe from plain data with `section.key=value` words applied, as described for `Recipe.override`.

    Raises RecipeError with a line for each mistake in the data, which come from the file `source`, and in the words.
    """
    changes: dict[str, dict[str, Any]] = {}
    lines = []
    for word in words.split() if isinstance(words, str) else words:
        path, equals, text = word.partition("=")
        section, dot, key = path.partition(".")
        if not (equals and dot and key):
            meant = hint(path) if equals and not dot else ""
            lines.append(f"{brief(repr(word))}: expected section.key=value, for example optim.lr=1e-3{meant}")
        elif section not in SECTIONS:
            meant = hint(key.rpartition(".")[2]) or suggest(section, SECTIONS)
            expected = f"expected one of {', '.join(SECTIONS)}{meant}"
            lines.append(f"{brief(section)}: no such section; {expected}")
        else:
            field = all_fields(SECTIONS[section]).get(key)  # an unknown key is refused later, with other mistakes
            changes.setdefault(section, {})[key] = read_word(text, field)
    typed = [f"{brief(section)}.{brief(key)}" for section, values in changes.items() for key in values]
    merged = merge(content, changes)
    if line := settle_rate(merged, content):
        lines.append(line)
    return parse_recipe(merged, source, lines, typed)


def parse_recipe(
    content: dict[str, Any], source: str = "", mistakes: Iterable[str] = (), typed: Collection[str] = ()
) -> Recipe:
    """A Recipe from plain data or from sections. Raises RecipeError with a line for each mistake.

    source: the file, if any; lines name it, except for the keys in `typed`, which came as words. mistakes: lines about
    mistakes that are known already. A rule over several sections is checked only if these sections have no mistakes of
    their own.
    """
    fields = Recipe.model_fields
    lines = [unknown_key(key, _telling(key, each), fields) for key, each in content.items() if key not in fields]
    texts = {"name": content.get("name"), "description": content.get("description", "")}
    lines += [f"{key}={brief(repr(text))}: expected a text" for key, text in texts.items() if not isinstance(text, str)]
    content = drop_unread(drop_removed(content, typed), SECTIONS)
    sections: dict[str, Section] = {}
    for name, base in SECTIONS.items():
        if name in content:
            section, wrong = parse_section(name, base, content[name])
        elif fields[name].is_required():
            section, wrong = None, [f"{name}: missing, and it has no default"]
        else:
            section, wrong = fields[name].default, []
        lines += wrong
        if section is not None:
            sections[name] = section
    lines += broken_rules(sections)
    if source:
        words = tuple(f"{key}{end}" for key in typed for end in "=:.")
        lines = [line if line.startswith(words) else f"{source}: {line}" for line in lines]
    if lines := [*mistakes, *lines]:
        raise RecipeError("\n".join(lines))
    return Recipe.model_validate({**texts, **sections})


def _telling(key: str, content: Any) -> str:
    """What tells the meaning of an unknown section: the first of its keys whose meaning is known, else its name."""
    return next((each for each in content if hint(each)), key) if isinstance(content, dict) else key


def parse_model(content: dict[str, Any]) -> Model:
    """A model section from plain data. Raises RecipeError with a line for each mistake."""
    section, lines = parse_section("model", Model, content)
    if not isinstance(section, Model):
        raise RecipeError("\n".join(lines))
    return section
