"""Parses a recipe's sections from plain data, with a line for every mistake, and merges changes into a section.

Nothing here imports torch.
"""

import json
from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from deit_fast.recipe.other_names import hint, near_hint
from deit_fast.recipe.sections import Section
from deit_fast.runtime.errors import RecipeError, brief, one_line, suggest


def parse_section(name: str, base: type[Section], content: Any) -> tuple[Section | None, list[str]]:
    """The section `name` from plain data; or None, and a line for each key with a mistake, one per key.

    base: the section's class, or the common base class of its kinds. A `content` that is such a section already is
    kept.
    """
    if isinstance(content, base):
        return content, []
    if not isinstance(content, dict):
        return None, [f"{name}={brief(repr(content))}: expected a table of keys and values"]
    kind = kind_of(base, content)
    live = kind.keys_with(content)
    known = {key: value for key, value in content.items() if key in live}
    section, lines, wrong = None, list[str](), set[str]()
    try:
        section = kind.model_validate_json(json.dumps(known, default=str))
    except ValidationError as error:
        found = error.errors()
        for each in found:
            key = str(each["loc"][0]) if each["loc"] else ""
            if not key or key not in wrong:  # pydantic reports several errors for one value of a union or a tuple
                lines += _explain(name, kind, each, found)
            wrong.add(key)
    refused = [_refuse(name, base, kind, key, content, wrong) for key in content if key not in known]
    lines = [line for line in refused if line] + lines
    return (None if lines else section), lines


def kind_of(base: type[Section], content: Mapping[str, Any]) -> type[Section]:
    """The class of a section with these values; `base` where its name belongs to no kind."""
    name = content.get("name", base.model_fields["name"].default if base.kinds() else None)
    return base.kinds().get(name, base) if isinstance(name, str) else base


def all_fields(base: type[Section]) -> dict[str, FieldInfo]:
    """The fields of all kinds of a section."""
    return {key: field for kind in (*base.kinds().values(), base) for key, field in kind.model_fields.items()}


def merge_section(base: type[Section], old: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A section's values `old`, updated by `changes`.

    If the changes give the section another kind, an old value is kept only where the new kind has the same key with the
    same meaning, that is with the same type and default. Keys in `changes` are always kept; `parse_section` refuses
    wrong ones.
    """
    merged = {**old, **changes}
    before, after = kind_of(base, old), kind_of(base, merged)
    live = after.keys_with(merged)
    same = {key for key in live if key in before.model_fields and _means(before, key) == _means(after, key)}
    return {**{key: value for key, value in old.items() if key in same}, **changes}


def read_word(text: str, field: FieldInfo | None) -> Any:
    """A typed value: JSON where it parses, a list for comma-separated JSON or names, else the word itself."""
    if field is not None and field.annotation is str:
        return text
    for candidate in (text, f"[{text}]") if "," in text else (text,):
        try:
            return json.loads(candidate, parse_constant=str)
        except (ValueError, RecursionError):  # not JSON, or numbers and nesting beyond Python's limits
            continue
    return text.split(",") if field is not None and field.annotation == tuple[str, ...] else text


def unknown_key(key: str, name: str, choices: Iterable[str]) -> str:
    """The line about an unknown key; `name` is the key's last part."""
    listed = list(choices)
    meant = hint(name) or suggest(name, listed) or near_hint(name)
    return f"{brief(key)}: no such key; expected one of {', '.join(listed)}{meant}"


def read_val_fraction(val: object) -> float | None:
    """The fraction in --val=0.1; None if --val names validation data.

    Raises RecipeError for a number that is no fraction.
    """
    try:
        fraction = float(str(val))
    except ValueError:
        if str(val).strip().endswith("%"):
            raise RecipeError(f"--val {val}: expected a share from 0 to below 1, such as 0.1, or data") from None
        return None
    if not (isfinite(fraction) and 0 <= fraction < 1):
        raise RecipeError(
            f"--val {val}: expected a share from 0 to below 1, such as 0.1, or data; a folder of that name is ./{val}"
        )
    return fraction


def _means(kind: type[Section], key: str) -> tuple[Any, Any]:
    field = kind.model_fields[key]
    return field.annotation, field.default


def _refuse(
    name: str, base: type[Section], kind: type[Section], key: str, content: dict[str, Any], wrong: set[str]
) -> str | None:
    """The line about a key that a section with this content lacks; None if another mistake is the reason."""
    live = kind.keys_with(content)
    if key in kind.model_fields:
        mark = kind.condition_of(key, content)
        assert mark is not None
        cause, value = mark.key, content.get(mark.key, kind.model_fields[mark.key].default)
        owners: Iterable[Any] = mark.values
        relation = " other than " if mark.unless else "="
    elif key in all_fields(base):
        cause, value = "name", content.get("name", kind.model_fields["name"].default)
        owners = [each for each, other in base.kinds().items() if key in other.model_fields]
        relation = "="
    else:
        return unknown_key(f"{name}.{key}", key, live)
    if cause in wrong:
        return None
    where = f"{name}.{cause}{relation}{' or '.join(map(repr, owners))}"
    return (
        f"{name}.{key}={brief(repr(content[key]))}: no such key with {name}.{cause}={value!r}; "
        f"expected one of {', '.join(live)} (it is of {where})"
    )


def _explain(name: str, kind: type[Section], error: ErrorDetails, others: Iterable[ErrorDetails]) -> list[str]:
    """One pydantic error as `key=value: expected ...`; several lines for an error of a section's own rules.

    others: all errors of the section. For a union they include one error per member about the same value.
    """
    if error["type"] == "value_error":  # the section's own messages name their key already
        return [brief(line, 1000) for line in str(error["ctx"]["error"]).splitlines()]
    if not error["loc"]:
        return [f"{name}: expected values that JSON can hold ({brief(one_line(error['msg']))})"]
    parts = [str(part) for part in error["loc"]]
    # After the key, pydantic names the members of a union. Only a position in a tuple is of use to a reader.
    key = ".".join([name, parts[0], *(part for part in parts[1:] if part.isdecimal())])
    if error["type"] == "missing":
        return [f"{key}: missing, and it has no default"]
    place = error["loc"][: len(parts) - (len(parts) > 1 and not parts[-1].isdecimal())]
    alike = [each for each in others if each["loc"][: len(place)] == place and each["loc"] != place] or [error]
    said = (one_line(each["msg"]).removeprefix("Input should be ").removeprefix("a valid ") for each in alike)
    expected = " or ".join(dict.fromkeys(said))
    nullable = type(None) in get_args(kind.model_fields[parts[0]].annotation)
    return [f"{key}={brief(repr(error['input']))}: expected {expected}{' or null' if nullable else ''}"]
