"""URIs of objects, their errors, and the fsspec file system that lists and writes an object's store."""

import errno
import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from deit_fast.runtime.errors import RunError, StorageError, one_line
from deit_fast.runtime.exit_status import ExitStatus, status_of
from deit_fast.runtime.patience import BusyError, Pause, patiently

WEB = ("http", "https")
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "hf": "huggingface_hub", "file": "fsspec"}
_WRITABLE = ("s3", "gs", "file")
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
_DENIED = re.compile(r"^Forbidden|\((?:401|403)\)")  # phrases of gcsfs and s3fs for errors without a type of their own
_SHOWN_REASON = 300  # most characters of a library's message
_RENEWED_SECONDS = 5.0
_EVER = 10**9  # makes the client treat every token as expired
_renewed: dict[str, float] = {}  # by scheme: time of the last renewal
_renewing = threading.Lock()

Result = TypeVar("Result")


class Object(NamedTuple):
    """An object as its store lists it."""

    uri: str
    size: int
    """Size, bytes."""
    version: str
    """Changes whenever the content changes. s3: the ETag; gs: the generation; hf: SHA-256 or the blob's hash; http: the
    ETag, else the time; file: the time in nanoseconds."""

    @property
    def name(self) -> str:
        """The last part of its URI, without the query."""
        return without_query(self.uri).rpartition("/")[2]


class MissingError(RunError):
    """There is no such object."""


class ChangedError(RunError):
    """The object in the store was replaced or removed after it was listed."""


class DeniedError(RunError):
    """The credentials were refused: 401 or 403, or S3's 400 for an expired token or another region."""


def is_remote(uri: object) -> bool:
    """Whether this is a URI with a scheme rather than a path."""
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", str(uri)) is not None


def absolute_place(place: str | Path) -> str:
    """The place in a form that means the same in every folder: a URI as it is, a path from the root.

    Symlinks are kept, and so is "..", whose meaning would change behind one.
    """
    return str(place) if is_remote(place) else str(Path(os.path.expanduser(place)).absolute())


def scheme_of(uri: str) -> str:
    """The part before ://, in lower case."""
    return uri.partition("://")[0].lower()


def is_web(uri: str) -> bool:
    """Whether this is a URI of http or https, whose servers cannot list."""
    return is_remote(uri) and scheme_of(uri) in WEB


def without_query(uri: str) -> str:
    """The URI for messages and file names: http(s) without its query, which may be a signature."""
    return uri.partition("?")[0] if scheme_of(uri) in WEB else uri


def check_writable(uri: str) -> None:
    """Raises RunError for a URI with a read-only scheme."""
    if scheme_of(uri) not in _WRITABLE:
        raise RunError(f"{without_query(uri)}: expected a path, s3://, gs:// or file://")


def connect(uri: str, writes: bool = False) -> Any:
    """fsspec's file system for the URI's scheme. Raises RunError where there is none."""
    scheme = scheme_of(uri)
    if writes:
        check_writable(uri)
    if scheme in WEB:
        raise RunError(f"{without_query(uri)}: expected a file, since a web server lists no folders")
    if scheme not in _PACKAGES:
        raise RunError(f"{without_query(uri)}: expected a path, s3://, gs://, hf://, http://, https:// or file://")
    try:
        import fsspec

        options: dict[str, Any] = {"auto_mkdir": True} if scheme == "file" else {}
        if scheme == "s3":  # else presigned URLs have version 2, which newer stores refuse
            settings = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
            options["config_kwargs"] = {"signature_version": "s3v4", **settings}
        system = fsspec.filesystem(scheme, use_listings_cache=False, **options)
        if scheme == "gs" and not (logger := logging.getLogger("gcsfs")).level:
            logger.setLevel(logging.CRITICAL)  # else it prints a traceback for each failure
        return system
    except ImportError:
        package = _PACKAGES[scheme]
        raise RunError(f"{uri}: expected {package}, not installed: pip install 'deit_fast[cloud]'") from None
    except Exception as error:  # gcsfs looks for credentials here
        raise refusal(uri, error) or error from None


def ask(uri: str, action: Callable[[], Result], pause: Pause | None = None) -> Result:
    """The result of an action on the object or folder. Failures that may pass are retried, as `patiently` does.

    Raises RunError, one line that names the URI: MissingError where there is no such object, StorageError where the
    store goes on failing.
    """

    def translated() -> Result:
        try:
            return action()
        except (RunError, BusyError):
            raise
        except Exception as error:  # botocore, aiohttp, httpx and google-auth raise many kinds
            raise refusal(uri, error) or BusyError(_reason(error)) from None

    def with_fresh_credentials() -> Result:
        try:
            return translated()
        except DeniedError:
            if not renew_credentials(uri):
                raise
        return translated()

    return patiently(with_fresh_credentials, without_query(uri), pause=pause, doing="reached")


def renew_credentials(uri: str) -> bool:
    """Reads the credentials of s3 or gs anew, unless this was just done. Returns whether they may have changed.

    Raises what the libraries raise.
    """
    scheme = scheme_of(uri)
    if scheme not in ("s3", "gs"):
        return False
    with _renewing:
        if time.monotonic() - _renewed.get(scheme, -_RENEWED_SECONDS) >= _RENEWED_SECONDS:  # by one of many threads
            _renewed[scheme] = time.monotonic()
            system = connect(uri)
            if scheme == "s3":
                system.connect(refresh=True)
            else:
                system.credentials.maybe_refresh(_EVER)
        return True


def refusal(uri: str, error: Exception) -> RunError | None:
    """The error, in one line, if a user has to correct something; None for an error that may pass."""
    reason, name = _reason(error), type(error).__name__
    status = getattr(getattr(error, "response", None), "status_code", None) or getattr(error, "code", None)
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return MissingError(f"{without_query(uri)}: {_missing(uri)}")
    if isinstance(error, PermissionError) or status in (401, 403) or _DENIED.search(reason):
        if scheme_of(uri) == "hf":
            reason = f"{status}; HF_TOKEN or `hf auth login` may hold another token"
        return DeniedError(f"{without_query(uri)}: access denied ({reason})")
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return StorageError(f"{uri}: cannot be written ({error.strerror})")
    if "Credential" in name:
        return RunError(f"{uri}: expected credentials for the store ({reason})")
    lasting = isinstance(error, OSError) and error.errno is not None and status_of(error) is ExitStatus.REFUSED
    wrong = isinstance(error, ValueError | NotImplementedError) and not isinstance(error, json.JSONDecodeError)
    if lasting or wrong or name in ("ParamValidationError", "ProfileNotFound", "ConfigParseError"):
        return RunError(f"{uri}: {reason}")
    return None


def _reason(error: Exception) -> str:
    return one_line(error)[:_SHOWN_REASON] or type(error).__name__


def _missing(uri: str) -> str:
    scheme = scheme_of(uri)
    if scheme == "hf":
        return "no such file or repository, or no right to it: a private one needs HF_TOKEN or `hf auth login`"
    return "no such file" if scheme in WEB else "no such object or bucket"


def missing(uri: str) -> MissingError:
    """The error for a missing object."""
    return MissingError(f"{without_query(uri)}: {_missing(uri)}")


def host_of(url: str) -> str:
    """The host name in a URL, in lower case; "" where there is none."""
    return urlsplit(url).hostname or ""
