"""Places: the content of a path or of a URI in a store in one form, so that the same code chooses from both."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

from deit_fast.data.sources.folder_walk import has_images, is_image
from deit_fast.data.sources.hidden import is_hidden
from deit_fast.data.sources.web_folder import find_all, see_folder
from deit_fast.runtime.braces import expand_braces, has_braces
from deit_fast.runtime.errors import DataError, RunError, StorageError
from deit_fast.runtime.object_store import Object, is_remote, is_web, list_objects, without_query

_WILDCARDS = ("*", "?", "[")
FILE_SUFFIXES = (".tar", ".index.json")
"""Suffixes of file names that can stand for a data set."""

Files = Mapping[str, Object | None]
"""Names or URIs, in order, each with its object in a store; None for a file of this machine, which is not yet looked
at."""


@dataclass(frozen=True)
class Place:
    """A folder and its content. Anything else (a file, a range, a glob, a missing path) has no files and no folders."""

    uri: str
    """Path or URI, without a slash at its end."""
    files: Files
    """The files in the folder by name, without hidden ones."""
    folders: frozenset[str]
    """Names of the folders in the folder, without hidden ones."""

    @cached_property
    def shards(self) -> list[str]:
        """Names of the tar files in the folder, in order."""
        return sorted(name for name in self.files if name.endswith(".tar"))

    @cached_property
    def named(self) -> Files:
        """The files for which the place's name stands, by path or URI; of a range in braces, the files that exist.

        Raises what `look` raises.
        """
        if has_braces(self.uri) and (is_remote(self.uri) or not _is_file(self.uri)):
            return _find_named(expand_braces(self.uri))
        return match_files(self.uri)

    def holds_images(self, folder: str) -> bool:
        """Whether the folder `folder` of the place holds an image directly, not in folders of its own."""
        inside = join_place(self.uri, folder)
        if is_remote(inside):
            return any(is_image(name) for name in look(inside).files)
        return has_images(inside)  # stops at the first image


def find_place(uri: str) -> Place:
    """The place that a user names. Raises what `look` raises."""
    if not is_remote(uri):
        return look(str(Path(os.path.expanduser(uri))))
    bare = without_query(uri).rstrip("/")
    uri = bare + uri.removeprefix(without_query(uri))
    if bare.endswith(":"):
        raise RunError(f"{bare}//: expected the name of a bucket or of a host, and of what is in it")
    if has_braces(uri) or has_wildcards(uri) or without_query(uri).endswith(FILE_SUFFIXES):
        return Place(uri, {}, frozenset())  # no folder: nothing to list
    return look(uri)


def look(uri: str) -> Place:
    """The content of the folder at a path or URI; empty where there is no such folder.

    Raises OSError for a folder of this machine that cannot be listed, RunError where a store fails to answer.
    """
    if is_remote(uri):
        inside, objects = see_folder(lambda name: join_place(uri, name)) if is_web(uri) else list_objects(uri)
        seen = {each.name: each for each in objects if not is_hidden(each.name)}
        return Place(
            uri if is_web(uri) else uri.rstrip("/"), seen, frozenset(name for name in inside if not is_hidden(name))
        )
    folders, files = set[str](), dict[str, Object | None]()
    with suppress(FileNotFoundError, NotADirectoryError):
        for entry in os.scandir(uri or "."):
            if not is_hidden(entry.name):
                if entry.is_dir():
                    folders.add(entry.name)
                else:
                    files[entry.name] = None
    return Place(uri, files, frozenset(folders))


def split_place(uri: str) -> tuple[str, str]:
    """Folder and last part of a path or URI. For a bucket, host or repository, which has no parent, itself and "".

    A query, which may hold the right to read, stays with the folder.
    """
    if not is_remote(uri):
        return os.path.dirname(uri), os.path.basename(uri)
    bare = without_query(uri)
    query = uri.removeprefix(bare)
    scheme, _, path = bare.rstrip("/").partition("://")
    parts = path.strip("/").split("/")
    roots = 1 if scheme != "hf" else 3 if parts[0] in ("datasets", "spaces") else 2
    if len(parts) <= roots:
        return bare.rstrip("/") + query, ""
    folder, _, name = path.rpartition("/")
    return f"{scheme}://{folder}{query}", name


def join_place(folder: str, name: str) -> str:
    """Path or URI of the entry `name` in a folder."""
    if not is_remote(folder):
        return os.path.join(folder, name)
    bare = without_query(folder)
    return f"{bare.rstrip('/')}/{name}{folder.removeprefix(bare)}"


def _find_named(uris: list[str]) -> Files:
    """The existing ones of these files, by path or URI, in the order given.

    Raises OSError or RunError where the storage fails, so that a failure does not count as a missing file.
    """
    if not is_remote(uris[0]):
        return {uri: None for uri in uris if _is_file(uri)}
    if is_web(uris[0]):
        return find_all(uris)
    folders = dict.fromkeys(split_place(uri)[0] for uri in uris)
    there = {each.uri: each for folder in folders for each in list_objects(folder)[1]}
    return {uri: there[uri] for uri in uris if uri in there}


def match_files(pattern: str) -> Files:
    """The files that match a path or URI with or without wildcards, by path or URI, in the order of their names.

    If a file has exactly this name, wildcard characters included, that file alone matches. Raises what `look` raises.
    """
    if not has_wildcards(pattern) or (not is_remote(pattern) and _is_file(pattern)):
        return _find_named([pattern])
    if is_web(pattern):
        expected = "a range such as train-{0000..0009}.tar, since a web server lists no folders"
        raise RunError(f"{without_query(pattern)}: expected {expected}")
    folder, name = split_place(pattern)
    matches = dict[str, Object | None]()
    for each in _match_folders(folder):
        files = look(each).files
        names = [name] if name in files else sorted(found for found in files if fnmatchcase(found, name))
        matches |= {join_place(each, found): files[found] for found in names}
    return matches


def list_remote_images(uri: str) -> list[str]:
    """URIs of the images below a folder of a store, by folder and then by name, as for a local folder."""
    waiting, walked = [look(uri)], list[Place]()
    while waiting:
        walked.append(place := waiting.pop())
        waiting += [look(join_place(place.uri, name)) for name in place.folders]
    return [
        join_place(place.uri, name)
        for place in sorted(walked, key=lambda place: place.uri)
        for name in sorted(place.files)
        if is_image(name)
    ]


def has_wildcards(uri: str) -> bool:
    """Whether a path or URI contains a *, a ? or a [."""
    return any(character in without_query(uri) for character in _WILDCARDS)


def _match_folders(pattern: str) -> Iterator[str]:
    if not has_wildcards(pattern):
        yield pattern
        return
    folder, name = split_place(pattern)
    for each in _match_folders(folder):
        folders = look(each).folders
        names = [name] if name in folders else sorted(each for each in folders if fnmatchcase(each, name))
        yield from (join_place(each, name) for name in names)


def _is_file(path: str) -> bool:
    """Whether there is a file. Raises OSError where the storage fails; os.path.exists would return False then."""
    try:
        return not os.path.isdir(path) and bool(os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return False


@contextmanager
def told_as_data_errors(uri: str) -> Iterator[None]:
    """Raises DataError, one line, for errors of `look` in the block, StorageError for a store without an answer."""
    try:
        yield
    except StorageError:
        raise
    except RunError as error:
        raise DataError(str(error)) from None
    except OSError as error:
        raise DataError(f"{error.filename or uri}: expected a readable folder ({error.strerror or error})") from None
