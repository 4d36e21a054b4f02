"""Folders of web servers, which cannot be listed: objects are asked for by the names that an index would have."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from deit_fast.data.sources.splits import split_names
from deit_fast.runtime.errors import RunError, StorageError
from deit_fast.runtime.object_store import MissingError, Object, find_object

INDEX_STEMS = ("train", "val", "test", "shards")
"""File names of an index without suffix: the split in the names of its shards, or the last one without a split."""
INDEX_SUFFIX = ".index.json"
ROWS_SUFFIX = ".index.npy"
_ASKED_AT_ONCE = 64


def find_all(uris: Sequence[str]) -> dict[str, Object]:
    """The existing ones of these objects, by URI, in the order given.

    Raises RunError where a server fails to answer.
    """
    found = {}
    for uri, answer in _ask(uris):
        if isinstance(answer, Object):
            found[uri] = answer
        elif not isinstance(answer, MissingError):
            raise answer
    return found


def see_folder(uri_of: Callable[[str], str]) -> tuple[set[str], list[Object]]:
    """Names of a folder's split folders that have an index; and the folder's own indexes and classes.txt.

    uri_of: the URI of a name in the folder. Raises RunError where a server refuses every request.
    """
    indexes = {uri_of(f"{stem}{INDEX_SUFFIX}"): stem for stem in INDEX_STEMS}
    answers = _ask([*indexes, uri_of("classes.txt")])
    files = [answer for _, answer in answers if isinstance(answer, Object)]
    rows = [uri_of(f"{indexes[each.uri]}{ROWS_SUFFIX}") for each in files if each.uri in indexes]
    files += find_all(rows).values()
    if rows:
        return set(), files
    inside = {uri_of(f"{name}/{stem}{INDEX_SUFFIX}"): name for name in split_names() for stem in INDEX_STEMS}
    answers += (below := _ask(list(inside)))
    folders = {inside[uri] for uri, answer in below if isinstance(answer, Object)}
    refused = [answer for _, answer in answers if not isinstance(answer, Object | MissingError)]
    if len(refused) == len(answers):
        raise refused[0]
    return folders, files


def _ask(uris: Sequence[str]) -> list[tuple[str, Object | RunError]]:
    """Each object, or the reason why there is none. Raises StorageError where a server goes on failing."""

    def find(uri: str) -> Object | RunError:
        try:
            return find_object(uri)
        except StorageError:
            raise
        except RunError as error:  # some servers deny access to missing objects
            return error

    pool = ThreadPoolExecutor(_ASKED_AT_ONCE)
    try:
        return list(zip(uris, pool.map(find, uris), strict=True))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
