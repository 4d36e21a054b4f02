"""The base of all sections: their settings, the types of their values, and fields that exist under a condition."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
DecayRate = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class When:
    """Marks a field that its section has only while the field `key` has one of `values`.

    With `unless`, the section has it only while `key` has none of them.
    """

    key: str
    values: tuple[Any, ...]
    unless: bool = False

    def holds(self, value: Any) -> bool:
        """Whether the section has the field while `key` has this value."""
        return (value in self.values) != self.unless


class Section(BaseModel):
    """A part of a recipe: frozen, strict, with exactly the fields that the class lists, each with its meaning.

    A field whose `When` does not hold cannot be given, and is not dumped.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False,
                              use_attribute_docstrings=True)  # fmt: skip

    @classmethod
    def kinds(cls) -> Mapping[str, type["Section"]]:
        """The classes of a section that has a class for each value of its field `name`; empty for other sections."""
        return {}

    @classmethod
    def keys_with(cls, content: Mapping[str, Any]) -> list[str]:
        """The fields of a section with these values, in order."""
        lacking = {key for key in _conditions(cls) if cls.condition_of(key, content)}
        return [key for key in cls.model_fields if key not in lacking]

    @classmethod
    def condition_of(cls, key: str, content: Mapping[str, Any]) -> When | None:
        """The condition by which a section with these values lacks its field `key`; None if it has the field."""
        for mark in _conditions(cls).get(key, ()):
            if not mark.holds(content.get(mark.key, cls.model_fields[mark.key].default)):
                return mark
        return None

    def problems(self) -> Iterator[str]:
        """Mistakes in the combination of values, a line each; sections with such rules override this method."""
        yield from ()

    @model_validator(mode="after")
    def check(self) -> Self:
        """Raises ValueError with a line for each of `problems`; pydantic turns it into a ValidationError."""
        values = self.__dict__
        refused = {key: mark for key in self.model_fields_set if (mark := self.condition_of(key, values))}
        lines = [f"{key}={values[key]!r}: no such key with {mark.key}={values[mark.key]!r}"
                 for key, mark in refused.items()]  # fmt: skip
        lines += self.problems()
        if lines:
            raise ValueError("\n".join(lines))
        return self

    @model_serializer(mode="wrap")
    def dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The fields that the section has with these values, without those whose condition does not hold."""
        kept = self.keys_with(self.__dict__)
        return {key: value for key, value in handler(self).items() if key in kept}


@cache
def _conditions(section: type[Section]) -> dict[str, tuple[When, ...]]:
    """The `When` marks of the fields that have some; cached, because an import parses the whole table."""
    marks = {key: tuple(each for each in field.metadata if isinstance(each, When))
             for key, field in section.model_fields.items()}  # fmt: skip
    return {key: each for key, each in marks.items() if each}
