"""What an object is, what can be wrong with one, and the file system of fsspec that lists and writes its store."""

import errno
import json
import logging
import re
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from deit_fast.runtime.errors import RunError, StorageError, one_line
from deit_fast.runtime.exit_status import ExitStatus, status_of
from deit_fast.runtime.patience import BusyError, Pause, patiently

WEB = ("http", "https")
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "hf": "huggingface_hub", "file": "fsspec"}
_WRITABLE = ("s3", "gs", "file")
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
_DENIED = re.compile(r"^Forbidden|\((?:401|403)\)")  # gcsfs's and s3fs's words where they have no type for it
_SHOWN_REASON = 300  # characters of what a library says
_RENEWED_SECONDS = 5.0
_EVER = 10**9  # seconds that a token would have to be good for not to be asked for anew
_renewed: dict[str, float] = {}  # by scheme: when
_renewing = threading.Lock()

Result = TypeVar("Result")


class Object(NamedTuple):
    """An object as a store lists it."""

    uri: str
    size: int
    """Bytes."""
    version: str
    """Another one whenever the content is. s3: the ETag; gs: the generation; hf: SHA-256 or the blob's hash; http: the
    ETag, else the time; file: the time in nanoseconds."""

    @property
    def name(self) -> str:
        """The last part of its URI, without a query."""
        return without_query(self.uri).rpartition("/")[2]


class MissingError(RunError):
    """There is no such object."""


class ChangedError(RunError):
    """The object in the store is another one than was listed, or is gone."""


class DeniedError(RunError):
    """The credentials were not taken: 401 or 403, or S3's 400 for a token that expired or another region."""


def is_remote(uri: object) -> bool:
    """Whether it is a URI with a scheme rather than a path."""
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", str(uri)) is not None


def scheme_of(uri: str) -> str:
    """What stands before ://, in lower case."""
    return uri.partition("://")[0].lower()


def is_web(uri: str) -> bool:
    """Whether it is a URI of http or https, whose servers list nothing."""
    return is_remote(uri) and scheme_of(uri) in WEB


def without_query(uri: str) -> str:
    """The URI as messages show it and files are named: of http(s) without a query, which may be a signature."""
    return uri.partition("?")[0] if scheme_of(uri) in WEB else uri


def check_writable(uri: str) -> None:
    """Raises RunError for a URI whose scheme is only read."""
    if scheme_of(uri) not in _WRITABLE:
        raise RunError(f"{without_query(uri)}: expected a path, s3://, gs:// or file://")


def connect(uri: str, writes: bool = False) -> Any:
    """The file system of fsspec for the URI's scheme. Raises RunError where there is none."""
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
        if scheme == "s3":  # presigned URLs are else of version 2, which newer stores do not take
            settings = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
            options["config_kwargs"] = {"signature_version": "s3v4", **settings}
        system = fsspec.filesystem(scheme, use_listings_cache=False, **options)
        if scheme == "gs" and not (logger := logging.getLogger("gcsfs")).level:
            logger.setLevel(logging.CRITICAL)  # it prints a traceback of each failure; ours is one line
        return system
    except ImportError:
        package = _PACKAGES[scheme]
        raise RunError(f"{uri}: expected {package}, not installed: pip install 'deit_fast[cloud]'") from None
    except Exception as error:  # gcsfs looks for credentials here
        raise refusal(uri, error) or error from None


def ask(uri: str, action: Callable[[], Result], pause: Pause | None = None) -> Result:
    """The result of an action on the object or folder; failures that may pass are tried again, as `patiently` does.

    Raises RunError, one line that names the URI: MissingError where there is no such object, StorageError where the
    store goes on failing.
    """

    def translated() -> Result:
        try:
            return action()
        except (RunError, BusyError):
            raise
        except Exception as error:  # botocore, aiohttp, httpx and google-auth raise what they like
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
    """Has the credentials of s3 or gs read anew, unless that was just done. Returns whether there may be others now.

    Raises what the libraries raise.
    """
    scheme = scheme_of(uri)
    if scheme not in ("s3", "gs"):
        return False
    with _renewing:
        if time.monotonic() - _renewed.get(scheme, -_RENEWED_SECONDS) >= _RENEWED_SECONDS:  # of many threads, the first
            _renewed[scheme] = time.monotonic()
            system = connect(uri)
            if scheme == "s3":
                system.connect(refresh=True)
            else:
                system.credentials.maybe_refresh(_EVER)
        return True


def refusal(uri: str, error: Exception) -> RunError | None:
    """What a user has to mend where a library raised this error, one line; None for an error that may pass."""
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
    """The error where there is no such object."""
    return MissingError(f"{without_query(uri)}: {_missing(uri)}")


def host_of(url: str) -> str:
    """The host's name in a URL, in lower case; empty where there is none."""
    return urlsplit(url).hostname or ""
