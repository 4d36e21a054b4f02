"""The URL and the headers with which an object's bytes are read by HTTP: signed, with a token, or without either.

s3: a presigned URL from s3fs's own client, so that endpoint, profile and credentials are the same as for listing and
writing. gs: gcsfs's bearer token. hf: the Hub's resolve URL with its token. The Hub redirects to a store, which does
not get the token; the redirect's target is kept for a while. http(s): DEIT_FAST_HTTP_TOKEN, or an entry in .netrc.
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
"""The environment variable with the bearer token for http(s)."""
_SIGNED_SECONDS = 3600  # lifetime of a presigned URL, of which three quarters are used
_TARGET_SECONDS = 600.0  # the Hub's redirects are valid for an hour
_locating = threading.Lock()


class Address(NamedTuple):
    """A URL to GET, and its headers without Range."""

    url: str
    headers: dict[str, str]
    authority: str | None = None
    """A file of CA certificates that the store's settings name."""
    version: str | None = None
    """The Hub's facts about the object, if `url` is the target of its redirect."""


_kept: dict[str, tuple[float, Any, Address]] = {}  # by URI: time of expiry, file system, address


def address_of(uri: str, version: str | None) -> Address:
    """The address of the object's bytes.

    `version`, if given, becomes a condition of the request, if HTTP has one for the scheme.

    Raises RunError where there are no credentials, and what the libraries raise where a store of credentials fails.
    """
    scheme = scheme_of(uri)
    if scheme in WEB:
        return _with_condition(_web(uri), version)
    system = connect(uri)
    if scheme == "gs":
        return _google(system, uri, version)
    if (address := _still_good(system, uri)) is None:
        with _locating:  # one of many readers asks for an object's address
            if (address := _still_good(system, uri)) is None:
                address = _hub(system, uri) if scheme == "hf" else _s3(system, uri)
                if scheme == "s3":
                    _kept[uri] = time.monotonic() + 0.75 * _SIGNED_SECONDS, system, address
    return address if scheme == "hf" else _with_condition(address, version)


def _still_good(system: Any, uri: str) -> Address | None:
    until, kept_by, address = _kept.get(uri, (0.0, None, None))
    return address if kept_by is system and time.monotonic() < until else None


def keep_target(uri: str, address: Address) -> None:
    """Keeps the target of the Hub's redirect for the object."""
    _kept[uri] = time.monotonic() + _TARGET_SECONDS, connect(uri), address


def forget_target(uri: str, address: Address) -> bool:
    """Forgets a kept redirect target; returns whether this was one.

    The Hub is then asked again, for a file replaced there.
    """
    is_target = scheme_of(uri) == "hf" and _kept.get(uri, (0.0, None, None))[2] is address
    if is_target:
        _kept.pop(uri, None)
    return is_target


def renew(uri: str) -> None:
    """Forgets the address, and reads the credentials anew if the scheme supports this."""
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
    headers = {"Accept-Encoding": "gzip"}  # without decompression in the store
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
