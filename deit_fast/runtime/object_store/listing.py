"""The content of a store: whether an object or a folder is at a URI, and the objects in a folder."""

import os
from typing import Any

from deit_fast.runtime.errors import RunError
from deit_fast.runtime.object_store.reads import find_by_reading
from deit_fast.runtime.object_store.uris import WEB, MissingError, Object, ask, connect, scheme_of


def find_object(uri: str) -> Object:
    """The object at a URI. Raises RunError, one line, where there is none or where access is refused."""
    if scheme_of(uri) in WEB or scheme_of(uri) == "hf":
        return find_by_reading(uri)

    def find() -> Object:
        info = connect(uri).info(uri)
        if info["type"] != "file":
            raise RunError(f"{uri}: expected an object, found a folder")
        return Object(uri, info["size"], _version(uri, info))

    return ask(uri, find)


def is_folder(uri: str) -> bool:
    """Whether a folder, and no object, is at a URI; False for http(s). Raises RunError where there is neither."""
    return scheme_of(uri) not in WEB and ask(uri, lambda: connect(uri).info(uri))["type"] != "file"


def modified_at(uri: str) -> float | None:
    """Time at which the object was written, seconds since 1970, by the store's clock; None without an object or a time.

    Raises RunError where the store fails to answer.
    """
    try:
        return float(ask(uri, lambda: connect(uri).modified(uri)).timestamp())
    except MissingError:
        return None


def list_objects(uri: str) -> tuple[set[str], list[Object]]:
    """Names of the folders in a folder, and its objects in the order of their names; both are empty without a folder.

    Raises RunError where the store or the bucket fails to answer, and for http(s), which cannot list.
    """
    folder = uri.rstrip("/")
    try:
        found = ask(folder, lambda: connect(folder).ls(folder, detail=True))
    except MissingError:
        scheme, _, path = folder.partition("://")
        if scheme == "hf":  # hf has no empty folders
            root = "/".join(path.split("/")[: 3 if path.startswith(("datasets/", "spaces/")) else 2])
            ask(f"hf://{root}", lambda: connect(folder).info(f"hf://{root}"))
        elif scheme != "file":
            bucket = f"{scheme}://{path.partition('/')[0]}"
            ask(bucket, lambda: connect(bucket).info(bucket))
        return set(), []
    names = {info["name"].rstrip("/").rpartition("/")[2]: info for info in found}
    objects = [
        Object(f"{folder}/{name}", info["size"], _version(folder, info))
        for name, info in sorted(names.items())
        if info["type"] == "file" and name
    ]
    return {name for name, info in names.items() if info["type"] == "directory"}, objects


def _version(uri: str, info: dict[str, Any]) -> str:
    scheme = scheme_of(uri)
    if scheme == "file":
        return str(os.stat(info["name"]).st_mtime_ns)
    if scheme == "hf":
        lfs = info.get("lfs")
        return str(lfs["sha256"] if lfs else info["blob_id"])
    return str(info["generation"] if scheme == "gs" else info.get("ETag", ""))
