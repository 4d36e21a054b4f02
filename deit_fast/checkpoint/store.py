"""A run folder that is kept in an object store: this machine works in a local copy and uploads its changes.

The store decides which run continues. A local copy with its own checkpoints is used only while the store holds exactly
the state that this copy last uploaded or downloaded. Two cases are therefore harmless: a machine that returns with an
outdated copy, and a run that was deleted from the store in order to start over. Old files enter the new run in neither
case.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from deit_fast.checkpoint.format import SEAL, SUFFIXES, verify_checkpoint
from deit_fast.checkpoint.resume import find_checkpoints, step_of
from deit_fast.runtime.errors import RunError
from deit_fast.runtime.files import atomic_path, exclusive
from deit_fast.runtime.object_store import (
    Object,
    cached_place,
    copy_object,
    fetch,
    find_object,
    list_objects,
    local_place,
    read_object,
    remove_object,
    write_object,
)  # fmt: skip
from deit_fast.runtime.world import World

_CHECKPOINTS = "checkpoints"
_RESULT = "result.json"
_CARRIED = ("metrics.jsonl", _RESULT)  # downloaded beside the checkpoints when a run resumes
_MARK = ".stored"  # holds the newest seal in the store when this copy was last equal to the store

_Content = tuple[int, int, int]  # inode, time and size of a file, which change when it is written again


class RunStore:
    """The run at `uri`, and its copy in `folder`, below the cache folder."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self.folder = local_place(self.uri)
        self._stored: dict[str, _Content] = {}
        """Files in the store by name, as this process last saw them."""

    def pull(self) -> list[str]:
        """Makes the copy equal to the store: the newest whole checkpoint, the best one, metrics and result.

        Returns a line for each damaged checkpoint in the store. Raises RunError.
        """
        try:
            with exclusive(self.folder / ".pull.lock"):
                return self._pull()
        except OSError as error:
            raise RunError(f"{error.filename or self.folder}: cannot be written ({error.strerror})") from None

    def push(self, prune: bool = True) -> None:
        """Brings the store up to date. A checkpoint counts there once its seal is uploaded, which comes last.

        prune: remove steps from the store that the copy no longer has; not to be used right after a pull, which fetches
        only the newest. Raises RunError where the store or the copy fails; checkpoints that were whole in the store
        stay whole.
        """
        try:
            self._push(prune)
        except OSError as error:
            raise RunError(f"{self.uri}: cannot be brought up to date ({error})") from None

    def check_writable(self) -> None:
        """Raises RunError where the store accepts no writes, so that this is known before days of training."""
        write_object(f"{self.uri}/.writable", b"\n")
        remove_object(f"{self.uri}/.writable")

    def begin(self, recipe: dict[str, Any]) -> None:
        """Marks the place in the store as this run's before the run has a checkpoint. Raises RunError."""
        write_object(f"{self.uri}/recipe.json", json.dumps(recipe, indent=2).encode())

    def _pull(self) -> list[str]:
        checkpoints, mark = self.folder / _CHECKPOINTS, self.folder / _MARK
        objects = {each.name: each for each in list_objects(f"{self.uri}/{_CHECKPOINTS}")[1]}
        seals = sorted((name for name in objects if name.endswith(SEAL)), key=lambda n: step_of(Path(n)), reverse=True)
        steps = [name for name in seals if step_of(Path(name)) >= 0]
        newest = read_object(objects[steps[0]].uri) if steps else b""
        if newest != (mark.read_bytes() if mark.exists() else b""):
            shutil.rmtree(checkpoints, ignore_errors=True)
            for name in _CARRIED:
                (self.folder / name).unlink(missing_ok=True)
            beside = {each.name: each for each in list_objects(self.uri)[1]}
            for name in beside.keys() & set(_CARRIED):
                (self.folder / name).write_bytes(read_object(beside[name].uri))
        damaged = []
        for name in [*steps, *({f"last{SEAL}"} & objects.keys() if not steps else ())]:
            try:
                self._pull_checkpoint(objects, name)
                break
            except RunError as error:
                damaged.append(f"{self.uri}: {error}")
        if f"best{SEAL}" in objects:
            try:
                self._pull_checkpoint(objects, f"best{SEAL}")
            except RunError as error:
                damaged.append(f"{self.uri}: {error}")
        for name in seals:
            seal = checkpoints / name
            if seal.exists() and seal.read_bytes() == read_object(objects[name].uri):
                for path in (seal, *(seal.with_suffix(suffix) for suffix in SUFFIXES)):
                    self._stored[f"{_CHECKPOINTS}/{path.name}"] = _content(path)
        self._set_mark(newest)
        return damaged

    def _pull_checkpoint(self, objects: dict[str, Object], seal: str) -> None:
        path = self.folder / _CHECKPOINTS / seal
        sealed = read_object(objects[seal].uri)
        names = [path.with_suffix(suffix).name for suffix in SUFFIXES]
        if not _is_whole(path, sealed):
            path.unlink(missing_ok=True)
            for name in names:
                if name not in objects:
                    raise RunError(f"{objects[seal].uri}: expected {name} beside it")
                path.with_name(name).unlink(missing_ok=True)
                fetch(objects[name], path.with_name(name))
            with atomic_path(path) as temporary:
                temporary.write_bytes(sealed)
            try:
                verify_checkpoint(path.with_suffix(".pt"))
            except RunError:
                path.unlink()
                raise

    def _push(self, prune: bool) -> None:
        local = {str(path.relative_to(self.folder)): path for path in self.folder.rglob("*") if _belongs(path)}
        folders = ("", f"/{_CHECKPOINTS}")
        present = {each.uri.removeprefix(f"{self.uri}/") for f in folders for each in list_objects(self.uri + f)[1]}
        if _RESULT in present - local.keys():  # of a run that continues now
            remove_object(f"{self.uri}/{_RESULT}")
        for name in sorted(local, key=_order):
            self._send(name, local[name], present)
        gone = [name for name in present - local.keys() if _is_step(name)] if prune else []
        for name in sorted(gone, key=lambda name: not name.endswith(SEAL)):  # seals first
            remove_object(f"{self.uri}/{name}")
            self._stored.pop(name, None)
        seals = sorted((name for name in local if _is_step(name) and name.endswith(SEAL)), key=lambda n: _step(n))
        self._set_mark(local[seals[-1]].read_bytes() if seals else b"")

    def _send(self, name: str, path: Path, present: set[str]) -> None:
        content = _content(path)
        if name in present and self._stored.get(name) == content:
            return
        uri = f"{self.uri}/{name}"
        if not name.startswith(f"{_CHECKPOINTS}/"):  # such a file may grow meanwhile
            write_object(uri, path.read_bytes())
        elif same := next((each for each, stored in self._stored.items() if stored == content and each != name), None):
            copy_object(f"{self.uri}/{same}", uri)  # last and best, which are links on this machine
        else:
            write_object(uri, path)
        self._stored[name] = content

    def _set_mark(self, seal: bytes) -> None:
        with atomic_path(self.folder / _MARK) as temporary:
            temporary.write_bytes(seal)


def pull_everywhere(store: RunStore, world: World) -> list[str]:
    """Makes the copies of the run on every machine equal; files that only the main process has are uploaded first.

    Returns lines for the user. Raises RunError, in every process.
    """
    lines: list[str] = []
    error = ""
    if world.is_main:
        try:
            lines = store.pull()
            store.check_writable()
            if find_checkpoints(store.folder / _CHECKPOINTS):
                store.push(prune=False)
        except RunError as reason:
            error = str(reason)
    lines, error = world.broadcast((lines, error))
    if not error and not world.is_main and os.environ.get("LOCAL_RANK", "0") == "0":  # one process of each machine
        try:
            store.pull()
        except RunError as reason:
            error = str(reason)
    if errors := [each for each in world.gather(error) if each]:
        raise RunError(errors[0])
    return lines


def fetch_sealed(uri: str) -> Path:
    """Downloads the checkpoint at URI.pt with its .safetensors and .sha256. Raises RunError."""
    folder = cached_place(find_object(uri)).with_suffix("")  # a folder per version: the seal has names
    stem, name = uri.removesuffix(".pt"), Path(uri).stem
    for suffix in (*SUFFIXES, SEAL):
        fetch(find_object(f"{stem}{suffix}"), folder / f"{name}{suffix}")
    return folder / f"{name}.pt"


def _is_whole(seal: Path, sealed: bytes) -> bool:
    """Whether the copy holds exactly this checkpoint."""
    try:
        verify_checkpoint(seal.with_suffix(".pt"))
        return seal.read_bytes() == sealed
    except (RunError, OSError):
        return False


def _belongs(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".")


def _content(path: Path) -> _Content:
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _is_step(name: str) -> bool:
    return name.startswith(f"{_CHECKPOINTS}/step-")


def _step(name: str) -> int:
    return step_of(Path(name))


def _order(name: str) -> tuple[int, bool, str]:
    """Upload order: metrics before their checkpoint, a step's files, best, the step's seal, last, the result."""
    is_seal, kind = name.endswith(SEAL), name.removeprefix(f"{_CHECKPOINTS}/").partition("-")[0].partition(".")[0]
    if not name.startswith(f"{_CHECKPOINTS}/"):
        return (9 if name == _RESULT else 0), False, name
    return {"step": 3 if is_seal else 1, "best": 2}.get(kind, 4), is_seal, name
