"""Shards of an object store on this machine's disk: fetched before they are needed, evicted for shards needed sooner.

The disk is only a cache: bytes that are missing here are read from the store. The processes of a machine can therefore
share a folder without messages to one another. If one process evicts a shard too early for another one, the other
process reads ranges from the store and need not wait for the whole shard.
"""

import os
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import BinaryIO
from weakref import WeakSet

from tqdm import tqdm

from deit_fast.data.sources.shard_files import Kept, ShardFiles
from deit_fast.runtime.errors import RunError, StorageError, one_line
from deit_fast.runtime.files import cache_folder, exclusive
from deit_fast.runtime.object_store import Object, stream_object

_TRANSFERS = 16  # transfers of a machine at once, because one connection does not use a network's full bandwidth
_SHARE = 0.8  # fraction of the disk that may be used if no limit is given
_LOOK_SECONDS = 0.5  # between looks at the shards that other processes fetched or removed
_ARRIVAL_SECONDS = 10.0  # longest wait for a shard on its way while no bytes arrive
_LONGEST_SECONDS = 60.0  # longest wait in all: signals are handled between batches
_REST_SECONDS = 60.0  # pause after a failure of the disk or the store


class Disk:
    """The disk space of this machine for the shards of several data sets together, whichever process fetches them."""

    def __init__(self) -> None:
        self.caches: WeakSet[ShardCache] = WeakSet()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Keeps other processes from beginning, finishing or removing shards, so that shards can be counted.

        Raises OSError where the folder cannot be written.
        """
        with exclusive(cache_folder() / ".room.lock"):
            yield

    def share(self) -> int:
        """80 % of the bytes that are free or taken by these shards. Raises OSError where the disk reports no sizes."""
        theirs = sum(found.bytes for each in self.caches for found in each.files.kept().values())
        return int(_SHARE * (_free() + theirs))

    def make_room(self, cache: "ShardCache", shard: int, evict: bool) -> bool:
        """Whether there is room for a shard that is about to be fetched. Evicts other shards first if `evict` is set.

        Only shards that are needed later than this one are evicted, the latest first. Call this within `changing`.
        Raises OSError.
        """
        kept = {each: each.files.kept() for each in self.caches}
        own = kept[cache].pop(shard, None)
        full = cache.files.sizes[shard] + sum(each.files.sizes[number] for each in kept for number in kept[each])
        here = sum(found.bytes for each in kept.values() for found in each.values()) + (own.bytes if own else 0)
        lacking = max(full - cache.limit, full - here - _free())
        candidates = [(cache, number) for number in cache.evictable(kept[cache], shard)] if evict else []
        for other in self.caches if evict else ():
            if other is not cache:
                candidates += [(other, number) for number in other.evictable(kept[other])]
        if lacking > sum(each.files.sizes[number] for each, number in candidates):
            return False
        for each, number in candidates:
            if lacking <= 0:
                break
            if each.files.evict(number):
                lacking -= each.files.sizes[number]
        return lacking <= 0


SHARED = Disk()  # shared by this process's training data and validation data


class ShardCache:
    """The shards of a data set on this machine's disk; safe to use from several threads.

    disk: the space for these shards, shared with other data sets.
    """

    def __init__(self, shards: Sequence[Object], disk: Disk = SHARED) -> None:
        self.files = ShardFiles(shards)
        self._limit: int | None = None
        self.disk = disk
        disk.caches.add(self)
        self.stopped = threading.Event()
        """Set while no shards are expected: threads that wait for the store then give up."""
        self._shards = shards
        self._most = max(1, _TRANSFERS // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        self._speaks = os.environ.get("LOCAL_RANK", "0") == "0"

        self._changed = threading.Condition()  # guards all attributes below
        self._news = False  # tells the thread that plans transfers to look again
        self._looking = False  # whether that thread is running
        self._plan: tuple[int, ...] = ()
        self._place: dict[int, int] = {}  # place of each shard in the plan
        self._window: frozenset[int] = frozenset()  # shards that must not be evicted
        self._moved = False  # whether the window moved on, so that its new shards were expected before
        self._by_range: set[int] = set()  # shards of the window of which ranges were read from the store
        self._seen: set[int] = set()  # shards of the window that were on the disk at some time
        self._fetching: set[int] = set()
        self._refused: set[int] = set()  # shards that the store refuses permanently
        self._full = False
        self._arrived_at = self._rest_until = 0.0
        self._said: set[str] = set()

    @property
    def limit(self) -> int:
        """Bytes that the disk may hold of this data set and of those that share the disk. Raises OSError."""
        if self._limit is None:
            self._limit = self.disk.share()
        return self._limit

    @limit.setter
    def limit(self, limit: int | None) -> None:
        self._limit = limit

    def expect(self, shards: Sequence[int], protected: int) -> None:
        """Fetches these shards in the order of their next use. An empty sequence ends the fetching and its threads.

        protected: the number of shards at the beginning that must not be evicted.
        """
        with self._changed:
            window = frozenset(shards[:protected])
            if window != self._window:
                self._moved = not window.isdisjoint(self._window)
            self._plan, self._window = tuple(shards), window
            self._place = {shard: place for place, shard in enumerate(self._plan)}
            self._by_range &= window
            self._seen &= window
            self._full = False
            self.stopped.clear() if self._plan else self.stopped.set()
            if self._plan and not self._looking:
                self._looking = True
                threading.Thread(target=self._look, name="deit-fast-shards", daemon=True).start()
            self._tell()

    def read(self, shard: int, start: int, size: int) -> bytes | None:
        """Bytes of a shard from the disk; None where they have to be read from the store.

        If the shard was expected before its turn came, the call waits while the shard arrives. It does not wait for the
        first shards of a run, so that training starts at once, nor for a shard for which an earlier wait was in vain.
        """
        data = self.files.read(shard, start, size)
        if data is None and self._is_coming(shard):
            data = self._await(shard, start, size)
        if data is None:
            with self._changed:
                if shard in self._window:
                    self._by_range.add(shard)
                    if shard in self._seen:  # it was removed by another process
                        self._tell()
        return data

    def evictable(self, kept: dict[int, Kept], after: int | None = None) -> Iterable[int]:
        """Kept shards that may be evicted, last needed first: outside the window, needed later than shard `after`."""
        place, never = self._place, len(self._place)
        bound = max(len(self._window) - 1, -1 if after is None else place.get(after, never))
        free = [shard for shard in kept if place.get(shard, never) > bound]
        return sorted(free, key=lambda shard: (-place.get(shard, never), kept[shard].changed_at))

    def _await(self, shard: int, start: int, size: int) -> bytes | None:
        began = arrived_at = time.monotonic()
        arrived, data = 0, None
        while data is None and self._is_coming(shard):
            now, before = time.monotonic(), arrived
            arrived = self.files.arrived(shard)  # fetched by any process
            arrived_at = now if arrived != before else max(arrived_at, self._arrived_at)
            if now > min(arrived_at + _ARRIVAL_SECONDS, began + _LONGEST_SECONDS):
                return None
            with self._changed:
                self._changed.wait(_LOOK_SECONDS / 10)
            data = self.files.read(shard, start, size)
        return data

    def _is_coming(self, shard: int) -> bool:
        with self._changed:
            expected = self._moved and shard in self._window and shard not in self._by_range | self._refused
            stuck = self._full and shard not in self._fetching
            return expected and not stuck and time.monotonic() >= self._rest_until

    def _tell(self) -> None:
        self._news = True
        self._changed.notify_all()

    def _look(self) -> None:
        """The thread that begins transfers, as long as there is a plan."""
        while True:
            with self._changed:
                if not self._plan:
                    self._looking = False
                    return
                plan, self._news = self._plan, False
            try:
                complete = time.monotonic() >= self._rest_until and self._begin(plan)
            except OSError as error:
                complete = False
                self._rest("disk", f"{error.filename or cache_folder()}: {error.strerror or one_line(error)}")
            with self._changed:
                if not self._news:
                    # Without room a look is useless until a batch ends, and the end of a batch notifies this thread.
                    self._changed.wait(None if complete else _LOOK_SECONDS * (10 if self._full else 1))

    def _begin(self, plan: tuple[int, ...]) -> bool:
        """Begins transfers while there is room; returns whether all planned shards are here. Raises OSError."""
        here = {shard for shard, found in self.files.kept().items() if found.whole}
        with self._changed:
            self._seen |= here & self._window
            missing = [shard for shard in plan if shard not in here and shard not in self._refused]
        complete = not missing
        missing = [shard for shard in missing if shard not in self._fetching]
        if missing and len(self._fetching) < self._most:
            with self.disk.changing():
                self._full = not all(self._fetch(shard) for shard in missing if len(self._fetching) < self._most)
        return complete

    def _fetch(self, shard: int) -> bool:
        """Begins to fetch a shard, unless another process does; False where there is no room. Raises OSError.

        A shard of the window that was on the disk before was evicted by a process that is ahead of this one. It is
        fetched again only if no other shard has to be evicted for it.
        """
        with ExitStack() as held:
            file = held.enter_context(self.files.fetching(shard))
            if file is None:
                return True
            if not self.disk.make_room(self, shard, evict=shard not in self._seen):
                return False
            with self._changed:
                self._fetching.add(shard)
            work = (shard, file, held.pop_all())
            threading.Thread(target=self._run, args=work, name="deit-fast-fetch", daemon=True).start()
        return True

    def _run(self, shard: int, file: BinaryIO, held: ExitStack) -> None:
        """One transfer."""
        try:
            with held:
                try:
                    self._append(shard, file)
                    os.fsync(file.fileno())
                    with self.disk.changing():
                        self.files.finish(shard, file)
                except OSError:
                    file.truncate(0)  # frees the space, as the disk may be full
                    raise
        except OSError as error:
            self._rest("disk", f"{self._shards[shard].uri}: cannot be kept ({error.strerror or one_line(error)})")
        except StorageError as error:
            self._rest("store", str(error))
        except RunError as error:
            self._refused.add(shard)
            self._say(str(error), f"{error}; the run ends when it needs an image of it")
        finally:
            with self._changed:
                self._fetching.discard(shard)
                self._tell()

    def _append(self, shard: int, file: BinaryIO) -> None:
        """Fetches the bytes of a shard that the file lacks; stops where there is no plan any more."""
        for piece in stream_object(self._shards[shard], os.fstat(file.fileno()).st_size, self.stopped.wait):
            left = memoryview(piece)
            while left:
                left = left[file.write(left) :]
            self._arrived_at = time.monotonic()
            if self.stopped.is_set():
                return

    def _rest(self, what: str, reason: str) -> None:
        """Fetches nothing for a while."""
        if self.stopped.is_set():  # stopping ends transfers with errors too
            return
        self._rest_until = time.monotonic() + _REST_SECONDS
        self._say(what, f"{reason}; shards are not kept on this machine now, their images come from the store")

    def _say(self, what: str, line: str) -> None:
        """Prints a line on stderr, once for each `what`."""
        if self._speaks and what not in self._said:
            tqdm.write(f"deit-fast: {line}", file=sys.stderr)
        self._said.add(what)


def _free() -> int:
    """Free bytes on the disk of the shards. Raises OSError."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    return shutil.disk_usage(folder).free
