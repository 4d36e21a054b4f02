"""Extension points: a package whose modules each hold one object of the same kind. Adding a module registers it."""

from collections.abc import Collection
from importlib import import_module
from pkgutil import iter_modules
from typing import TypeVar

T = TypeVar("T")


def discover(package: str, name: str, kind: type[T], among: Collection[str] | None = None) -> dict[str, T]:
    """The object called `name` of each module of `package` that has one, by the module's name, in alphabetical order.

    Modules without such an object are helpers of the package. Modules whose names begin with an underscore are not
    imported; if `among` is given, only the modules in it are imported. Raises TypeError where an object is not of the
    kind: `kind` is a class, or a protocol that can be checked at run time.
    """
    found: dict[str, T] = {}
    for module in sorted(each.name for each in iter_modules(import_module(package).__path__)):
        if module.startswith("_") or (among is not None and module not in among):
            continue
        value = getattr(import_module(f"{package}.{module}"), name, None)
        if value is None:
            continue
        if not isinstance(value, kind):
            raise TypeError(f"{package}.{module}.{name}: expected a {kind.__name__}, got {type(value).__name__}")
        found[module] = value
    return found
