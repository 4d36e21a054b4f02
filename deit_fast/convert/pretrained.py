"""Weights from outside this machine: published ones by name, and others by URI; fetched once, checked and cached.

Published weights are cached as CACHE/weights/FILE, where users may put them too; `WEIGHTS` names a mirror or a folder
of such files. Other objects are cached under their version, and the Hub's models in the Hub's own cache. A file enters
the cache only after its content was checked, and its hash too if one is published.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from deit_fast.convert.detect import Weights, load_weights
from deit_fast.convert.locate import CHECKPOINTS, CONFIG, RUN_FILES, WEIGHT_FILES, find_weights, newest_run
from deit_fast.convert.recognise import describe_weights, differences
from deit_fast.runtime.errors import RunError, StorageError
from deit_fast.runtime.files import cache_folder, hash_file
from deit_fast.runtime.object_store import (
    HubPlace,
    MissingError,
    absolute_place,
    fetch,
    fetch_from_hub,
    find_object,
    hub_model,
    is_folder,
    is_remote,
    is_web,
    list_objects,
    local_place,
    without_query,
)
from deit_fast.runtime.patience import UnreachableError, patiently
from deit_fast.zoo import Published, check_given, published_hash, published_row

T = TypeVar("T")

WEIGHTS = "DEIT_FAST_WEIGHTS"
"""The environment variable with the base URI, or the folder, of published weights."""
_CONNECT_SECONDS = 5.0  # retries of a first connection end after this: without a network it will not succeed


def open_weights(given: str | Path, ema: bool = False) -> Weights:
    """`load_weights` of anything that a user may name: a file, a folder, a URI, the name of published weights.

    Published weights have to be of their entry's architecture and resolution. Raises RunError or RecipeError.
    """
    weights, row = load_weights(fetch_weights(given), ema), published_row(given)
    return weights if row is None else _as_published(weights, row)


def fetch_weights(given: str | Path, any_model: bool = False) -> Path:
    """The path itself; or for a name or a URI, the fetched file or folder on this machine.

    any_model: whether a URI may hold weights of a model that is not in the zoo. Raises RunError, also for a file whose
    SHA-256 does not begin as its name says; StorageError where a network or a store goes on failing.
    """
    check_given(given)
    if row := published_row(given):
        return _fetch_published(str(given), row)
    if not is_remote(given):
        return Path(given)
    uri = str(given).rstrip("/")
    if place := hub_model(uri):
        return _fetch_repository(place, any_model)
    if not is_folder(uri):
        return _fetch_single(uri, any_model)
    folder = uri
    if uri.rpartition("/")[2] != CHECKPOINTS:
        folder = f"{newest_run(uri, list_objects(uri)[0])}/{CHECKPOINTS}"
    there = {each.name for each in list_objects(folder)[1]}
    return _fetch_single(next((f"{folder}/{name}" for name in RUN_FILES if name in there), uri), any_model)


def describe_origin(given: str | Path, weights: Weights) -> dict[str, str]:
    """The facts that a run keeps about its initial weights: name or place, address if any, and the file's SHA-256."""
    found = {"weights": name_origin(given)}
    if row := published_row(given):
        found["address"] = str(row.weights)
    if weights.file is not None:
        found["sha256"] = hash_file(find_weights(weights.file))
    return found


def name_origin(given: str | Path) -> str:
    """The user's name for weights in a form that is equal for all names of the same weights; without a signature.

    A path is absolute, so that the name can be used from any folder.
    """
    row = published_row(given)
    return without_query(absolute_place(given)) if row is None else str(row.weights_name)


def _fetch_published(given: str, row: Published) -> Path:
    file, kept = str(row.weights_file), cache_folder() / "weights" / str(row.weights_file)
    mirror = os.environ.get(WEIGHTS, "").strip()
    if mirror and not is_remote(mirror):
        folder = Path(mirror).expanduser()
        if not folder.is_dir():
            raise RunError(f"{WEIGHTS}={mirror}: expected a URI, or a folder that is there")
        if (folder / file).is_file():
            return _checked(folder / file)
        if not kept.is_file():
            raise RunError(f"{given}: not in the cache; expected {file} in {WEIGHTS}={mirror}, or at {kept}")
    if kept.is_file():
        return _checked(kept)
    address = f"{mirror.rstrip('/')}/{file}" if mirror else str(row.weights)
    try:
        found = _without_network_soon(lambda: find_object(address), address)
        return fetch(found, kept, file, lambda path: _accept(path, address, row))
    except RunError as error:
        if _no_network(error):
            raise StorageError(f"{given}: not in the cache; no network ({error.__cause__}): put the file at {kept}, from {address}") from None  # fmt: skip  # noqa: E501
        if given == address:
            raise
        raise type(error)(f"{given}: {error}") from None


def _fetch_single(uri: str, any_model: bool) -> Path:
    try:
        found = _without_network_soon(lambda: find_object(uri), without_query(uri))
    except StorageError as error:
        if not _no_network(error):
            raise
        if kept := _newest_copy(uri):
            when = datetime.fromtimestamp(kept.stat().st_mtime)
            print(f"deit-fast: {uri}: no network; {kept}, of {when:%Y-%m-%d %H:%M}, is taken", file=sys.stderr)
            return kept
        raise StorageError(
            f"{without_query(uri)}: not in the cache; no network ({error.__cause__}): give the path of a copy"
        ) from None
    # A web server may answer with a login page, so its files are checked. Objects in a store were put there on purpose.
    unseen = any_model or not is_web(uri)
    return fetch(found, None, found.name, lambda path: _accept(path, without_query(uri), any_model=unseen))


def _fetch_repository(place: HubPlace, any_model: bool) -> Path:
    """A file in a Hub model repository; or a folder with the weights and the files that describe them."""
    if place.path:
        try:
            return fetch_from_hub(place)
        except MissingError:
            if Path(place.path).suffix:  # folders have no suffix
                raise
    below = f"{place.path}/" if place.path else ""
    runs = [f"{name}" if place.path.endswith(CHECKPOINTS) else f"{CHECKPOINTS}/{name}" for name in RUN_FILES]
    described = False
    for name in (CONFIG, *WEIGHT_FILES, *runs):
        try:
            path = fetch_from_hub(place._replace(path=below + name))
        except MissingError:
            continue
        if name != CONFIG:
            return path.parent if described and name in WEIGHT_FILES and not any_model else path
        described = True
        place = place._replace(revision=path.parents[below.count("/")].name)  # later files are from the same commit
    raise RunError(f"{place}: expected a file of weights, or a folder with {' or '.join(WEIGHT_FILES)}")


def _without_network_soon(action: Callable[[], T], name: str) -> T:
    """The action's result. Without a network the action fails in seconds, not after the minute for a busy store."""
    try:
        return patiently(action, name, _CONNECT_SECONDS)
    except StorageError as error:
        if _no_network(error):
            raise
    return action()


def _no_network(error: RunError) -> bool:
    return isinstance(error, StorageError) and isinstance(error.__cause__, UnreachableError)


def _newest_copy(uri: str) -> Path | None:
    """The last fetched copy of the object, of any version; None where a query names the version."""
    place = local_place(uri)
    if "?" in uri:
        return None
    copies = [each for each in place.parent.glob(f"{place.stem}@*{place.suffix}") if each.is_file()]
    return max(copies, key=lambda path: path.stat().st_mtime, default=None)


def _accept(path: Path, address: str, row: Published | None = None, any_model: bool = False) -> None:
    """Raises RunError, with the address, where the file fetched from there is not the expected one."""
    try:
        _checked(path, address.rpartition("/")[2])
        if not any_model:
            weights = load_weights(path)
            if row is not None:
                _as_published(weights, row)
    except RunError as error:
        raise RunError(str(error).replace(str(path), address)) from None


def _checked(path: Path, name: str | None = None) -> Path:
    """The path. Raises RunError where the SHA-256 of the file does not begin as its `name` says."""
    expected = published_hash(name or path.name)
    if expected and not (found := hash_file(path)).startswith(expected):
        raise RunError(
            f"{path}: its SHA-256 begins with {found[: len(expected)]}, expected {expected}, as its name says"
        )
    return path


def _as_published(weights: Weights, row: Published) -> Weights:
    """The weights, with the row's resolution if their shapes do not show it. Raises RunError for another model."""
    model = weights.recipe.model
    expected = f"expected {row.name} at {row.resolution} px, as {row.weights_name} is"
    if model.name != row.name:
        raise RunError(f"{weights.file}: has weights of {model.name}: {expected}")
    if model.image_size == row.resolution:
        return weights
    fitting = model.model_copy(update={"image_size": row.resolution})
    if differences(describe_weights(model), describe_weights(fitting)):
        raise RunError(f"{weights.file}: has weights at {model.image_size} px: {expected}")
    return replace(weights, recipe=weights.recipe.derive(model={"image_size": row.resolution}))
