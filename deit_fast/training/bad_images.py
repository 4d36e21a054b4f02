"""The images that a run could not use: counted over all processes, named once, and the end of a run with too many."""

from collections.abc import Iterable
from pathlib import Path

from deit_fast.data.loader.batches import Batch
from deit_fast.data.sources.base import Source
from deit_fast.runtime.errors import DataError, printable
from deit_fast.runtime.files import atomic_path
from deit_fast.runtime.world import World


class BadImages:
    """Distinct images that could not be used, and why; others took their places.

    known: those that the checkpoint had, image -> reason; it is added to, the same on every process. A repaired image
    that no checkpoint has is thereby forgotten by a resumed run. allowed: the largest share of the source's images.
    """

    def __init__(self, known: dict[int, str], source: Source, allowed: float, world: World, out: Path) -> None:
        self._known, self._source, self._allowed, self._world = known, source, allowed, world
        self._path = out / "bad_files.txt"
        self._new: dict[int, str] = {}
        self._write()

    def add(self, batches: Iterable[Batch]) -> None:
        """Notes those of this process's batches."""
        for batch in batches:
            self._new.update(batch.bad)

    def agree(self) -> list[str]:
        """Puts the processes' notes together, and returns what is to be said, a line or none; a collective.

        The main process lists all in out/bad_files.txt: name, tab, reason. Raises DataError, on every process the same,
        where they are more than the allowed share.
        """
        new = {image: reason for image, reason in self._new.items() if image not in self._known}
        self._new = {}
        if not self._world.any(bool(new)):
            return []
        before = len(self._known)
        for found in self._world.gather(new):
            self._known.update(found)
        self._write()
        count, images = len(self._known), len(self._source)
        if count > self._allowed * images:
            raise DataError(
                f"data.max_bad={self._allowed:g}: {count} of {images} images cannot be used, {self._path} names them; "
                "mend or remove them (deit-fast data check finds all), or allow more"
            )
        return [f"{count - before} more images cannot be used, {count} of {images} in all: {self._path} names them"]

    def _write(self) -> None:
        if not self._world.is_main:
            return
        if not self._known:
            self._path.unlink(missing_ok=True)
            return
        lines = [f"{printable(self._source.name(image))}\t{self._known[image]}\n" for image in sorted(self._known)]
        with atomic_path(self._path) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8")
