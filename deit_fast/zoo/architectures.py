"""The model table: one entry per architecture of every family, and the aliases of the entries."""

from fnmatch import fnmatchcase

from deit_fast.runtime.discover import discover
from deit_fast.runtime.errors import RecipeError, suggest
from deit_fast.zoo.family import Architecture, Family


def _families() -> dict[str, Family]:
    """The families by name, in the order of the zoo."""
    found = discover("deit_fast.zoo.families", "FAMILY", Family)
    for name, family in found.items():
        for entry in (*family.architectures.values(), *family.toys.values()):
            if entry.family != name:
                raise TypeError(f"deit_fast.zoo.families.{name}: expected entries of family={name!r}, got {entry}")
    return dict(sorted(found.items(), key=lambda item: item[1].position))


def _architectures() -> dict[str, Architecture]:
    entries = [item for family in FAMILIES.values() for item in family.architectures.items()]
    published = {row.name for family in FAMILIES.values() for row in family.published}
    return dict(sorted(entries, key=lambda item: item[0] not in published))


FAMILIES: dict[str, Family] = _families()
ARCHITECTURES: dict[str, Architecture] = _architectures()

# Names of timm and of facebookresearch/deit: the entry, and the resolution that the name implies.
ALIASES: dict[str, tuple[str, int]] = {
    alias: meant for family in FAMILIES.values() for alias, meant in family.aliases.items()
}


def resolve_name(name: str) -> tuple[str, int]:
    """The entry for `name`, which is an entry or an alias; and the resolution that the name implies, by default 224.

    Raises RecipeError, one line, for any other name.
    """
    if name in ARCHITECTURES:
        return name, 224
    if name not in ALIASES:
        near = suggest(name, [*ARCHITECTURES, *ALIASES])
        raise RecipeError(f"model.name={name!r}: expected a model of the zoo, which deit-fast zoo lists{near}")
    return ALIASES[name]


def find_architecture(name: str) -> Architecture:
    """The entry with this name or alias. Raises RecipeError, one line, where there is none."""
    return ARCHITECTURES[resolve_name(name)[0]]


def find_family(name: str) -> Family:
    """The family of the entry with this name or alias. Raises RecipeError, one line, where there is none."""
    return FAMILIES[find_architecture(name).family]


def list_models(pattern: str = "*") -> list[str]:
    """Entries that match a shell pattern, or that have an alias which matches, in the order of the table."""
    also = {entry for alias, (entry, _) in ALIASES.items() if fnmatchcase(alias, pattern)}
    return [name for name in ARCHITECTURES if name in also or fnmatchcase(name, pattern)]
