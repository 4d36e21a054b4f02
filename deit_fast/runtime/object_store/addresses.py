"""Where an object's bytes are to be had by HTTP, and with which headers: signed, with a token, or as they are.

s3: a presigned URL of s3fs's own client, so that endpoint, profile and credentials are those that also list and write.
gs: gcsfs's bearer token. hf: the Hub's resolve URL with its token; the store behind it gets none, and its address is
kept for a while. http(s): DEIT_FAST_HTTP_TOKEN or an entry of netrc.
"""

import base64
import ipaddress
import netrc
import os
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from deit_fast.runtime.errors import RunError, one_line
from deit_fast.runtime.object_store.uris import WEB, connect, host_of, renew_credentials, scheme_of, without_query

TOKEN = "DEIT_FAST_HTTP_TOKEN"
"""The environment variable with the bearer token of http(s)."""
_SIGNED_SECONDS = 3600  # a presigned URL's life, of which three quarters are used
_TARGET_SECONDS = 600.0  # the Hub's redirects hold for an hour
_locating = threading.Lock()


class Address(NamedTuple):
    """A URL to GET, with its headers, Range aside."""

    url: str
    headers: dict[str, str]
    authority: str | None = None
    """A file of CA certificates that the store's own settings name."""
    version: str | None = None
    """What the Hub said that is there, where `url` is the address behind it."""


_kept: dict[str, tuple[float, Any, Address]] = {}  # by URI: until when, of which file system, and the address


def address_of(uri: str, version: str | None) -> Address:
    """Where the object's bytes are; `version`, where given, is a condition if the scheme has one for HTTP.

    Raises RunError where there are no credentials, and what the libraries raise where a store of credentials fails.
    """
    scheme = scheme_of(uri)
    if scheme in WEB:
        return _with_condition(_web(uri), version)
    system = connect(uri)
    if scheme == "gs":
        return _google(system, uri, version)
    if (address := _still_good(system, uri)) is None:
        with _locating:  # many readers of one object ask for its address once
            if (address := _still_good(system, uri)) is None:
                address = _hub(system, uri) if scheme == "hf" else _s3(system, uri)
                if scheme == "s3":
                    _kept[uri] = time.monotonic() + 0.75 * _SIGNED_SECONDS, system, address
    return address if scheme == "hf" else _with_condition(address, version)


def _still_good(system: Any, uri: str) -> Address | None:
    until, kept_by, address = _kept.get(uri, (0.0, None, None))
    return address if kept_by is system and time.monotonic() < until else None


def keep_target(uri: str, address: Address) -> None:
    """Notes where the Hub sent us for the object."""
    _kept[uri] = time.monotonic() + _TARGET_SECONDS, connect(uri), address


def renew(uri: str) -> None:
    """Forgets the address, and has the credentials read anew where the scheme knows how."""
    _kept.pop(uri, None)
    if renew_credentials(uri) and scheme_of(uri) == "s3":
        connect(uri).info(uri)  # follows a bucket to its region, which the client remembers


def _with_condition(address: Address, version: str | None) -> Address:
    if not version or version.startswith("W/"):  # a weak ETag matches nothing
        return address
    name = "If-Unmodified-Since" if version.endswith("GMT") else "If-Match"
    return address._replace(headers=address.headers | {name: version})


def _s3(system: Any, uri: str) -> Address:
    url = system.sign(uri, expiration=_SIGNED_SECONDS)
    return Address(url, {}, system.session.get_config_variable("ca_bundle"))


def _google(system: Any, uri: str, version: str | None) -> Address:
    headers = {"Accept-Encoding": "gzip"}  # as it is stored
    system.credentials.apply(headers)
    return Address(system.url(uri) + (f"&ifGenerationMatch={version}" if version else ""), headers)


def _hub(system: Any, uri: str) -> Address:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    place = system.resolve_path(uri)
    url = hf_hub_url(place.repo_id, place.path_in_repo, repo_type=place.repo_type, revision=place.revision,
                     endpoint=system.endpoint)  # fmt: skip
    token = {name: value for name, value in build_hf_headers().items() if name.lower() == "authorization"}
    return Address(url, token)


def _web(uri: str) -> Address:
    if not (host := host_of(uri)):
        raise RunError(f"{without_query(uri)}: expected a host's name in the URI")
    if "@" in uri.partition("://")[2].partition("/")[0]:
        raise RunError(
            f"{scheme_of(uri)}://{host}: expected a URI without a name and a password, which {TOKEN} or ~/.netrc holds"
        )
    return Address(uri, _authorization(host) if scheme_of(uri) == "https" or _is_loopback(host) else {})


def _authorization(host: str) -> dict[str, str]:
    if token := os.environ.get(TOKEN, "").strip():
        if not (token.isascii() and token.isprintable()):
            raise RunError(f"{TOKEN}: expected one line of ASCII")
        return {"Authorization": f"Bearer {token}"}
    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    try:
        login, _, password = netrc.netrc(path).hosts.get(host) or ("", "", "")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (netrc.NetrcParseError, OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else one_line(getattr(error, "msg", "not text"))
        raise RunError(f"{path}: expected a netrc file ({reason})") from None
    basic = base64.b64encode(f"{login}:{password or ''}".encode()).decode()
    return {"Authorization": f"Basic {basic}"} if login or password else {}


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
