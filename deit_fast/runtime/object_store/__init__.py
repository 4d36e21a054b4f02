"""Objects in stores, by URI (s3, gs, hf, http, https, file): listing, reading, fetching once per machine, writing.

fsspec lists and writes, so that credentials and endpoints are those of s3fs, gcsfs and huggingface_hub. All reading
uses one transport. Each of its modules builds on the ones before it: uris (names, errors, fsspec), addresses (an
object's URL and headers), http_get (one request), reads (ranges, retries, transfers that continue at the byte reached),
listing, fetching (onto this machine). Beside them, writes stores objects, and hub gets files of the Hub's model
repositories through huggingface_hub's cache.
"""

from deit_fast.runtime.object_store.fetching import (
    cached_place,
    fetch,
    fetch_all,
    fetch_file,
    local_place,
    partial_place,
)
from deit_fast.runtime.object_store.hub import HubPlace, fetch_from_hub, hub_model
from deit_fast.runtime.object_store.listing import find_object, is_folder, list_objects, modified_at
from deit_fast.runtime.object_store.reads import read_object, read_range, same_version, stream_object
from deit_fast.runtime.object_store.uris import (
    ChangedError,
    MissingError,
    Object,
    absolute_place,
    check_writable,
    is_remote,
    is_web,
    without_query,
)
from deit_fast.runtime.object_store.writes import copy_object, remove_object, write_object

__all__ = [
    "ChangedError",
    "HubPlace",
    "MissingError",
    "Object",
    "absolute_place",
    "cached_place",
    "check_writable",
    "copy_object",
    "fetch",
    "fetch_all",
    "fetch_file",
    "fetch_from_hub",
    "find_object",
    "hub_model",
    "is_folder",
    "is_remote",
    "is_web",
    "list_objects",
    "local_place",
    "modified_at",
    "partial_place",
    "read_object",
    "read_range",
    "remove_object",
    "same_version",
    "stream_object",
    "without_query",
    "write_object",
]
