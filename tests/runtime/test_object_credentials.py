"""Who is shown which secret: tokens, netrc, signatures that end, proxies, certificates; and where none may appear."""

import base64
import datetime
import ipaddress
import json
import logging
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from benchmarks.store_server import Store, serve
from deit_fast.runtime import patience
from deit_fast.runtime.errors import RunError, StorageError
from deit_fast.runtime.object_store import addresses, fetch, find_object, list_objects, read_object, read_range, uris
from tests.loopback import place, serve_loopback

pytestmark = pytest.mark.usefixtures("cache")
SECRET = "s3cr3t-of-mine"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(uris, "_renewed", {})
    with serve_loopback(monkeypatch, tmp_path) as store:
        for scheme in ("http", "hf"):
            (place(store, scheme)[1] / "a.bin").write_bytes(b"content" * 1000)
        (tmp_path / "home").mkdir()
        yield store


def shown(store: Store) -> set[str]:
    return {each.headers.get("authorization", "") for each in store.requests}


def refused(uri: str, kind: type[RunError] = RunError) -> str:
    with pytest.raises(kind) as error:
        read_object(uri)
    assert "\n" not in str(error.value)
    assert error.value.__cause__ is None or error.value.__suppress_context__ or kind is StorageError
    return str(error.value)


def test_the_token_is_shown_and_never_told(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    uri, store.token = f"{store.url}/bucket/set/a.bin", SECRET
    message = refused(uri)
    assert message.startswith(f"{uri}: access denied (401 Unauthorized)")
    monkeypatch.setenv("DEIT_FAST_HTTP_TOKEN", f" {SECRET}\n")
    found = find_object(uri)
    assert fetch(found).read_bytes() == read_object(uri) == b"content" * 1000
    assert read_range(uri, 7, 7, found.version) == b"content"
    assert shown(store) == {"", f"Bearer {SECRET}"}
    store.token = "another"
    message = refused(uri)
    assert "DEIT_FAST_HTTP_TOKEN or ~/.netrc holds another one" in message
    store.fault = lambda request: "503"
    message += refused(uri, StorageError)
    captured = capfd.readouterr()
    assert SECRET not in message + caplog.text + captured.out + captured.err + str(found)


@pytest.mark.parametrize("status", ["301", "302", "307", "308"])
def test_a_redirect_to_another_host_takes_no_token_along(
    store: Store, monkeypatch: pytest.MonkeyPatch, status: str, tmp_path: Path
) -> None:
    monkeypatch.setenv("DEIT_FAST_HTTP_TOKEN", SECRET)
    uri, store.token = f"{store.url}/bucket/set/a.bin", SECRET
    with serve(tmp_path) as other:
        for host, kept in ((other.url, False), (f"http://localhost:{store.port}", False), ("", True)):
            store.requests.clear()
            other.requests.clear()
            target = f"{host}/bucket/set/b.bin"
            (store.root / "bucket/set/b.bin").write_bytes(b"the other")
            store.fault = lambda request, to=target: f"{status} {to}" if request.path.endswith("a.bin") else ""
            if host.endswith(str(store.port)):
                assert "401" in refused(uri)
            else:
                assert read_object(uri) == b"the other"
            (target_request,) = [each for each in store.requests + other.requests if each.path.endswith("b.bin")][:1]
            assert ("authorization" in target_request.headers) is kept
            assert store.requests[0].headers["authorization"] == f"Bearer {SECRET}"
        store.fault = lambda request: f"{status} ftp://127.0.0.1/b.bin"
        assert "expected at most 5 redirects, to http:// or https://" in refused(uri)
        store.fault = lambda request: f"{status} {uri}"
        assert "expected at most 5 redirects" in refused(uri)


def test_plain_http_to_another_machine_carries_no_token(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy stands for the other machine: it sees what leaves this one."""
    monkeypatch.setenv("DEIT_FAST_HTTP_TOKEN", SECRET)
    monkeypatch.setenv("http_proxy", store.url.replace("http://", "http://me:proxy-password@"))
    assert read_object("http://data.example/bucket/set/a.bin") == b"content" * 1000
    (request,) = store.requests
    assert "authorization" not in request.headers
    assert request.headers["proxy-authorization"] == "Basic " + base64.b64encode(b"me:proxy-password").decode()
    store.token = SECRET
    assert "DEIT_FAST_HTTP_TOKEN and ~/.netrc go over https:// only" in refused("http://data.example/bucket/set/a.bin")
    monkeypatch.setenv("no_proxy", "data.example")
    assert "proxy-password" not in refused("http://data.example/bucket/set/a.bin", StorageError)


def test_netrc(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    uri, store.token = f"{store.url}/bucket/set/a.bin", SECRET
    path = tmp_path / "home" / ".netrc"
    path.write_text(f"machine other.example login me password x\ndefault login me password {SECRET}\n")
    path.chmod(0o600)
    assert "access denied (401" in refused(uri)  # what is said of all hosts is said of none
    assert shown(store) == {""}
    path.write_text(f"machine 127.0.0.1 login me password {SECRET}\n")
    assert read_object(uri) == b"content" * 1000
    assert shown(store) == {"", "Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()}
    named = tmp_path / "own-netrc"
    named.write_text("machine 127.0.0.1 login me password wrong\n")
    named.chmod(0o600)
    monkeypatch.setenv("NETRC", str(named))
    assert "access denied (401" in refused(uri)
    monkeypatch.setenv("DEIT_FAST_HTTP_TOKEN", SECRET)  # comes first
    assert read_object(uri) == b"content" * 1000
    monkeypatch.delenv("DEIT_FAST_HTTP_TOKEN")
    named.write_text(f"machine 127.0.0.1 login me\n nonsense {SECRET}\n")
    message = refused(uri)
    assert message.startswith(f"{named}: expected a netrc file (")
    assert SECRET not in message


@pytest.mark.parametrize(
    ("uri", "line"),
    [
        (f"http://me:{SECRET}@127.0.0.1/a", "http://127.0.0.1: expected a URI without a name and a password"),
        (f"https://{SECRET}@127.0.0.1/a?b", "https://127.0.0.1: expected a URI without a name and a password"),
        ("http:///a.tar", "http:///a.tar: expected a host's name in the URI"),
    ],
)
def test_uris_that_are_refused(store: Store, uri: str, line: str) -> None:
    message = refused(uri)
    assert message.startswith(line)
    assert SECRET not in message
    assert not store.requests


def test_a_signature_in_a_uri_is_not_told(store: Store) -> None:
    uri = f"{store.url}/bucket/set/a.bin?sig={SECRET}"
    assert read_object(uri) == b"content" * 1000
    store.fault = lambda request: "403"
    assert SECRET not in refused(uri)
    store.fault = lambda request: "drop"
    assert SECRET not in refused(uri, StorageError)


def test_a_token_of_several_lines_is_refused_untold(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEIT_FAST_HTTP_TOKEN", f"{SECRET}\r\nHost: evil")
    message = refused(f"{store.url}/bucket/set/a.bin")
    assert message == "DEIT_FAST_HTTP_TOKEN: expected one line of ASCII"
    assert not store.requests


def test_s3_takes_new_credentials_when_the_old_ones_end(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """~/.aws/credentials of a profile, written anew while the process runs, as a side container does."""
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(key)
    path = tmp_path / "home" / ".aws" / "credentials"
    path.parent.mkdir()
    monkeypatch.setenv("AWS_PROFILE", "mine")

    def write(key: str) -> None:
        path.write_text(f"[mine]\naws_access_key_id = {key}\naws_secret_access_key = {SECRET}\n")

    write("first")
    uri, store.access_key = "s3://bucket/set/a.bin", "first"
    found = find_object(uri)
    assert read_range(uri, 0, 7, found.version) == b"content"
    store.access_key = "second"
    write("second")
    store.requests.clear()
    assert read_range(uri, 7, 7, found.version) == b"content"
    assert [each.status for each in store.requests if each.method == "GET"] == [403, 206]
    store.access_key = "third"
    write("third")
    uris._renewed.clear()
    assert find_object(uri) == found  # what is listed and written takes the new ones too
    store.access_key = "fourth"
    store.requests.clear()
    uris._renewed.clear()
    with pytest.raises(RunError, match=r"s3://bucket/set/a\.bin: access denied") as error:
        read_range(uri, 7, 7, found.version)
    assert SECRET not in str(error.value)
    assert "Signature" not in str(error.value)
    assert len(store.requests) <= 5


def test_a_signature_that_expired_is_made_anew(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = "s3://bucket/set/a.bin"
    found = find_object(uri)
    read_range(uri, 0, 7, found.version)
    (signed,) = [each.query["X-Amz-Signature"] for each in store.requests if "X-Amz-Signature" in each.query]
    store.fault = lambda request: "400" if request.query.get("X-Amz-Signature") == signed else ""  # S3's ExpiredToken
    monkeypatch.setattr(addresses, "_SIGNED_SECONDS", 3599)  # two signatures of one second are the same
    assert read_range(uri, 7, 7, found.version) == b"content"


def test_google_application_credentials(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A service account's file, through gcsfs: its token is asked for once, and anew when it is no longer taken."""
    key = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    account = {"type": "service_account", "project_id": "p", "private_key_id": "1", "private_key": key.decode(),
               "client_email": "me@p.iam.gserviceaccount.com", "token_uri": f"{store.url}/token"}  # fmt: skip
    (tmp_path / "account.json").write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "account.json"))
    uri, store.token = "gs://bucket/set/a.bin", "first"
    found = find_object(uri)
    assert read_range(uri, 0, 7, found.version) == read_range(uri, 7, 7, found.version) == b"content"
    assert store.count("POST", "/token") == 1
    store.token = "second"
    assert read_range(uri, 7, 7, found.version) == b"content"
    assert store.count("POST", "/token") == 2
    store.fault = lambda request: "403" if request.method == "GET" else ""
    with pytest.raises(RunError, match=r"gs://bucket/set/a\.bin: access denied") as error:
        read_range(uri, 7, 7, found.version)
    assert "second" not in str(error.value)


def test_hub_token_goes_to_the_hub_alone(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    uri, store.token = "hf://datasets/me/set/a.bin", SECRET
    assert refused(uri) == f"{uri}: access denied (401; HF_TOKEN or `hf auth login` may hold another token)"
    monkeypatch.setenv("HF_TOKEN", SECRET)
    type(addresses.connect(uri)).clear_instance_cache()
    found = find_object(uri)
    assert read_range(uri, 0, 7, found.version) == b"content"
    assert list_objects("hf://datasets/me/set")[1] == [found]
    behind = [each for each in store.requests if each.path.startswith("/cdn/")]
    assert behind
    assert all("authorization" not in each.headers for each in behind)


def test_certificates(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "loopback")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(True, None), True).sign(key, hashes.SHA256())
    )  # fmt: skip
    (tmp_path / "ca.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                                         serialization.NoEncryption()))  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "ca.pem", tmp_path / "key.pem")
    with serve(tmp_path, context) as secure:
        uri, secure.token = f"https://127.0.0.1:{secure.port}/bucket/set/a.bin", SECRET
        monkeypatch.setenv("DEIT_FAST_HTTP_TOKEN", SECRET)
        assert "the certificate of 127.0.0.1 is not trusted; REQUESTS_CA_BUNDLE names" in refused(uri)
        for variable in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
            monkeypatch.setenv(variable, str(tmp_path / "ca.pem"))
            assert read_object(uri) == b"content" * 1000
            monkeypatch.delenv(variable)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.pem"))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://127.0.0.1:{secure.port}")
        type(addresses.connect("s3://bucket")).clear_instance_cache()
        assert read_object("s3://bucket/set/a.bin") == b"content" * 1000
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
        assert refused(uri) == f"{tmp_path}/none.pem: expected a file of CA certificates (No such file or directory)"
