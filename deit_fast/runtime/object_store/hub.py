"""Files of the Hub's model repositories, through huggingface_hub with its cache, token and offline mode."""

import logging
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from deit_fast.runtime.errors import RunError, StorageError, one_line
from deit_fast.runtime.exit_status import ExitStatus, status_of
from deit_fast.runtime.files import hash_file
from deit_fast.runtime.object_store.uris import DeniedError, MissingError, ask
from deit_fast.runtime.patience import BusyError

_MODEL = re.compile(r"hf://(?!(?:datasets|spaces|buckets)/)([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.*))?", re.IGNORECASE)


class HubPlace(NamedTuple):
    """A place in a model repository."""

    repository: str
    """OWNER/NAME."""
    revision: str | None
    """A branch, tag or commit; None for the default branch."""
    path: str
    """Path in the repository; "" for its root."""

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return f"hf://{self.repository}{at}" + (f"/{self.path}" if self.path else "")


def hub_model(uri: str) -> HubPlace | None:
    """The place that hf://OWNER/NAME[@REVISION][/PATH] names; None for other URIs, such as hf://datasets/OWNER/NAME."""
    found = _MODEL.fullmatch(uri.rstrip("/"))
    return found and HubPlace(found[1], unquote(found[2]) if found[2] else None, found[3] or "")


def fetch_from_hub(place: HubPlace) -> Path:
    """The file in huggingface_hub's cache, below a folder of its commit; downloaded if it is not there.

    Downloads are compared with the SHA-256 that the Hub publishes for large files. Without a network, the cached file
    is used. Raises RunError, one line: MissingError where the repository has no such file, StorageError where the Hub
    or the disk goes on failing.
    """
    try:
        from huggingface_hub import hf_hub_download, try_to_load_from_cache
    except ImportError:
        raise RunError(f"{place}: expected huggingface_hub, not installed: pip install 'deit_fast[cloud]'") from None

    def download() -> Path:
        try:
            return Path(hf_hub_download(place.repository, place.path, revision=place.revision))
        except Exception as error:  # raised by huggingface_hub, its HTTP library, or the disk
            raise _translate(place, error) from None

    if not (logger := logging.getLogger("huggingface_hub.utils._http")).level:
        logger.setLevel(logging.ERROR)  # it would print two lines per attempt beside this package's one
    try:
        before = try_to_load_from_cache(place.repository, place.path, revision=place.revision)
    except ValueError as error:
        raise RunError(f"{place}: expected hf://OWNER/NAME ({one_line(error)[:200]})") from None
    path = ask(str(place), download)
    blob = path.resolve()
    is_new = not (isinstance(before, str) and Path(before).resolve() == blob)
    if is_new and len(blob.name) == 64 and (found := hash_file(blob)) != blob.name:
        blob.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise RunError(f"{place}: its SHA-256 is {found}, expected {blob.name}, as the Hub says")
    return path


def _translate(place: HubPlace, error: Exception) -> Exception:
    from huggingface_hub import constants, errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    whole = place._replace(path="")
    if isinstance(error, errors.LocalEntryNotFoundError):
        if constants.is_offline_mode():
            return RunError(f"{place}: expected in {constants.HF_HUB_CACHE}, as HF_HUB_OFFLINE is set, and not there")
        cause = error.__cause__
        said = getattr(getattr(cause, "response", None), "status_code", None)
        if said is not None:
            return _refused(whole, said)
        reason = one_line(cause or error)[:150]  # huggingface_hub has retried for half a minute
        return StorageError(f"{whole}: not in its cache; no network ({reason}): give the path of a copy")
    if isinstance(error, errors.GatedRepoError):
        return DeniedError(
            f"{whole}: access denied; its owner grants it, and HF_TOKEN or `hf auth login` holds a token"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return RunError(
            f"{whole}: no such repository, or no right to it: a private one needs HF_TOKEN or `hf auth login`"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return RunError(f"{whole}: no such revision")
    if isinstance(error, errors.EntryNotFoundError):
        return MissingError(f"{place}: no such file")
    if status is not None:
        return _refused(whole, status)
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        kind = RunError if status_of(error) is ExitStatus.REFUSED else StorageError
        return kind(f"{error.filename}: cannot be written ({error.strerror})")
    return error


def _refused(place: HubPlace, status: int) -> Exception:
    if status >= 500 or status in (408, 429):
        return BusyError(f"the Hub answers {status}")
    if status in (401, 403):
        return DeniedError(f"{place}: access denied ({status}); HF_TOKEN or `hf auth login` may hold another token")
    return RunError(f"{place}: cannot be read ({status})")
