"""`LazyNames`: names of many images, each made when it is asked for."""

from collections.abc import Callable, Sequence
from typing import overload


class LazyNames(Sequence[str]):
    """N names; `make` returns the name of an index."""

    def __init__(self, count: int, make: Callable[[int], str]) -> None:
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        indices = range(self._count)[index]
        return self._make(indices) if isinstance(indices, int) else [self._make(each) for each in indices]
