"""One HTTP GET over a pool of connections, with redirects; the type of an error says whether a retry may help."""

import functools
import os
import re
import ssl
import threading
import urllib.request
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

from deit_fast.runtime.errors import RunError, one_line
from deit_fast.runtime.object_store.addresses import Address
from deit_fast.runtime.object_store.uris import DeniedError, host_of
from deit_fast.runtime.patience import BusyError, UnreachableError

CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0  # longest time without a byte
_CONNECTIONS = 64  # kept connections per host; more are opened as needed
_REDIRECTS = 5
_PASSING = {408, 425, 429}  # statuses that may pass, besides all from 500 on
_AUTHORITIES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
_SETTINGS = (*_AUTHORITIES, *_PROXIES, *map(str.upper, _PROXIES), "REQUEST_METHOD")  # the last disables HTTP_PROXY

_making = threading.Lock()


class Opened(NamedTuple):
    """A response whose body is not read yet."""

    body: Any
    """urllib3's response."""
    url: str
    """The URL after the last redirect."""
    linked: str | None
    """The Hub's facts about the object behind its redirect."""


def get(address: Address, name: str, span: str | None) -> Opened:
    """The response to a GET of the address, with status 200, 206, 404, 410, 412 or 416; its body is not read yet.

    span: the value of Range, if any. Raises BusyError for failures that may pass, DeniedError, and RunError for others.
    """
    import urllib3

    url, headers, linked = address.url, {"Accept-Encoding": "identity", **address.headers}, None
    if span:
        headers["Range"] = span
    for _ in range(_REDIRECTS + 1):
        try:
            body = _pool(url, address.authority).urlopen(
                "GET", url, headers=headers, redirect=False, retries=False, preload_content=False,
                enforce_content_length=True, timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS),
            )  # fmt: skip
        except urllib3.exceptions.HTTPError as error:
            raise _translate(error, url, name) from None
        linked = body.headers.get("X-Linked-Etag", linked)
        target = body.get_redirect_location()
        if not target:
            _check(body, name)
            return Opened(body, url, linked)
        body.close()
        target = urljoin(url, target)
        if urlsplit(target).scheme not in ("http", "https"):
            break
        if urlsplit(target)[:2] != urlsplit(url)[:2]:  # another host must not get this one's secrets
            headers = {key: value for key, value in headers.items() if key.lower() != "authorization"}
        url = target
    raise RunError(f"{name}: expected at most {_REDIRECTS} redirects, to http:// or https://")


def read_piece(opened: Opened, count: int, name: str) -> bytes:
    """Up to `count` more bytes of the body; empty at its end. Raises BusyError."""
    import urllib3

    try:
        return bytes(opened.body.read(count, decode_content=False))
    except urllib3.exceptions.HTTPError as error:
        raise _translate(error, opened.url, name) from None


def _check(body: Any, name: str) -> None:
    status = body.status
    if status in (200, 206, 404, 410, 412, 416):
        return
    said = _reason(body)
    wait = _retry_after(body.headers.get("Retry-After", ""))
    body.close()
    if status in _PASSING or status >= 500:
        raise BusyError(said, wait)
    if status in (400, 401, 403):
        raise DeniedError(f"{name}: access denied ({said})")
    raise RunError(f"{name}: cannot be read ({said})")


def _reason(body: Any) -> str:
    """The status in words, with S3's error code if the body has one."""
    try:
        code = re.search(rb"<Code>(\w+)</Code>", body.read(2000, decode_content=False))
    except Exception:  # the status alone is reported then
        code = None
    phrase = HTTPStatus(body.status).phrase if body.status in HTTPStatus._value2member_map_ else "unknown"
    return f"{body.status} {code[1].decode() if code else phrase}"


def _retry_after(value: str) -> float:
    """The seconds in a Retry-After header; 0 where it has none."""
    if value.isascii() and value.isdecimal():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return 0.0


def _translate(error: Exception, url: str, name: str) -> Exception:
    """BusyError, or RunError where waiting is useless. Messages leave out the URL, whose query may be a signature."""
    import urllib3.exceptions as errors

    if isinstance(error, errors.LocationValueError):
        return RunError(f"{name}: expected a URL")
    text, host = one_line(error), host_of(url)
    if isinstance(error, errors.SSLError) and "CERTIFICATE_VERIFY_FAILED" in text:
        return RunError(f"{name}: the certificate of {host} is not trusted; REQUESTS_CA_BUNDLE names other authorities")
    if isinstance(error, errors.NewConnectionError):  # in urllib3 1.26 a time-out is one too
        return UnreachableError(f"no connection to {host}: {text.rpartition(': ')[2]}")
    if isinstance(error, errors.ConnectTimeoutError | errors.ProxyError):
        return UnreachableError(f"no connection to {host}: {type(error).__name__}")
    if isinstance(error, errors.TimeoutError):
        return BusyError(f"{host} does not answer")
    if isinstance(error, errors.IncompleteRead):
        return BusyError("the transfer was cut")
    return BusyError(f"{type(error).__name__} of {host}")


def _pool(url: str, authority: str | None) -> Any:
    parts = urlsplit(url)
    set_now = tuple(os.environ.get(each) for each in _SETTINGS)
    with _making:  # of many readers that start at once, one makes the pool
        return _find_pool(os.getpid(), parts.scheme, parts.netloc, authority, set_now)


@functools.lru_cache(maxsize=256)
def _find_pool(process: int, scheme: str, netloc: str, authority: str | None, set_now: tuple[str | None, ...]) -> Any:
    """The pool for a host under the present environment; `set_now` holds the variables that matter, as a cache key."""
    proxies = {} if urllib.request.proxy_bypass(netloc) else urllib.request.getproxies()
    named = next((os.environ[each] for each in _AUTHORITIES if os.environ.get(each)), None)
    return _make_pool(process, proxies.get(scheme) or proxies.get("all"), scheme == "https", authority or named)


@functools.lru_cache(maxsize=8)
def _make_pool(process: int, proxy: str | None, secure: bool, authority: str | None) -> Any:
    """A pool of one process: a forked process makes its own."""
    import urllib3

    context = _trust(authority) if secure else None
    kept = {"num_pools": 32, "maxsize": _CONNECTIONS, "block": False, "ssl_context": context}
    if proxy is None:
        return urllib3.PoolManager(**kept)
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    parts = urlsplit(proxy)
    try:
        user = f"{parts.username}:{parts.password or ''}" if parts.username else None
        return urllib3.ProxyManager(proxy, proxy_headers=urllib3.make_headers(proxy_basic_auth=user), **kept)
    except (urllib3.exceptions.HTTPError, ValueError):
        raise RunError(f"{parts.scheme}://{parts.hostname}: expected an HTTP proxy in the environment") from None


def _trust(authority: str | None) -> ssl.SSLContext:
    """The trusted certificates: the system's, or those in the file or folder `authority`."""
    from urllib3.util.ssl_ import create_urllib3_context

    context = create_urllib3_context(cert_reqs=ssl.CERT_REQUIRED)  # the standard library's fails for IP addresses
    try:
        if authority is None:
            import certifi

            context.load_default_certs()
            context.load_verify_locations(certifi.where())  # a slim container has no certificates of its own
        else:
            context.load_verify_locations(**{"capath" if os.path.isdir(authority) else "cafile": authority})
    except OSError as error:
        raise RunError(f"{authority}: expected a file of CA certificates ({error.strerror or error})") from None
    return context
