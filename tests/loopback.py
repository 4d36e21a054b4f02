"""The store on loopback (benchmarks/store_server.py), set up for every library that reads a scheme."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("gcsfs", reason="needs s3fs and gcsfs, from the extra cloud")

import gcsfs
import huggingface_hub.constants
import s3fs

from benchmarks.store_server import Store, serve

SECRETS = ("AWS_", "HF_", "GOOGLE_", "DEIT_FAST_HTTP_TOKEN", "NETRC", "HTTP", "http", "NO_PROXY", "no_proxy",
           "SSL_CERT", "REQUESTS_CA", "CURL_CA")  # fmt: skip
SCHEMES = ("s3", "gs", "hf", "http", "file")


@contextmanager
def serve_loopback(monkeypatch: pytest.MonkeyPatch, root: Path) -> Iterator[Store]:
    """Serves `root`: its bucket/ is s3://bucket and gs://bucket, its datasets/me/set is hf://datasets/me/set."""

    for key in [key for key in os.environ if key.startswith(SECRETS)]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("HOME", str(root / "home"))
    with serve(root) as store:
        for key, value in store.environment.items():
            monkeypatch.setenv(key, value)
        monkeypatch.setenv("NO_GCE_CHECK", "true")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # botocore's own retries inside ours would pause for seconds each
        hub = huggingface_hub.constants  # it reads the environment only when it is imported
        template = hub.HUGGINGFACE_CO_URL_TEMPLATE.replace(hub.ENDPOINT, store.url)
        monkeypatch.setattr(hub, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(hub, "ENDPOINT", store.url)
        for kind in (s3fs.S3FileSystem, gcsfs.GCSFileSystem, huggingface_hub.HfFileSystem):
            kind.clear_instance_cache()
        yield store
    for kind in (s3fs.S3FileSystem, gcsfs.GCSFileSystem, huggingface_hub.HfFileSystem):
        kind.clear_instance_cache()


def place(store: Store, scheme: str) -> tuple[str, Path]:
    """The URI of a folder in a scheme, and the same folder on the disk."""
    folder = store.root / ("datasets/me/set" if scheme == "hf" else "bucket/set")
    folder.mkdir(parents=True, exist_ok=True)
    uris = {"hf": "hf://datasets/me/set", "http": f"{store.url}/bucket/set", "file": f"file://{folder}"}
    return uris.get(scheme, f"{scheme}://bucket/set"), folder
