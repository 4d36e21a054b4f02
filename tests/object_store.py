"""A local S3 server (moto) behind a proxy that counts requests and lets some of them fail."""

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("moto", reason="needs moto and s3fs, from the extras: test, cloud")

import fsspec
import s3fs
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BUCKET = "bucket"
Fault = Callable[[str, str], str]


class S3:
    """fault: the fault of a request (method, path): "", "403", "500", or "cut" in the middle."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.seen: Counter[tuple[str, str]] = Counter()
        self.fault: Fault = lambda method, path: ""

    @property
    def files(self) -> Any:
        return fsspec.filesystem("s3", use_listings_cache=False)

    def put(self, name: str, content: bytes | Path) -> str:
        self.files.pipe_file(f"{BUCKET}/{name}", content if isinstance(content, bytes) else content.read_bytes())
        return f"s3://{BUCKET}/{name}"

    def names(self, prefix: str) -> set[str]:
        return {name.removeprefix(f"{BUCKET}/{prefix}/") for name in self.files.find(f"{BUCKET}/{prefix}")}

    def count(self, method: str, end: str) -> int:
        return sum(count for (verb, path), count in self.seen.items() if verb == method and path.endswith(end))


@contextmanager
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    moto = DomainDispatcherApplication(create_backend_app)
    lock = threading.Lock()

    def door(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        with lock:
            store.seen[method, path] += 1
            store.seen["COPY", path] += "HTTP_X_AMZ_COPY_SOURCE" in environ
        fault = store.fault(method, path)
        if fault in ("403", "500"):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start(f"{fault} of the test", [("Content-Length", "0")])
            return [b""]
        answer = moto(environ, start)
        if fault == "cut":
            whole = b"".join(answer)
            return [whole[: len(whole) // 2]]  # the connection ends before its Content-Length
        return answer

    server = make_server("127.0.0.1", 0, door, threaded=True)
    store = S3(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    for key in [key for key in os.environ if key.startswith("AWS_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # botocore's own retries inside ours would pause for seconds each
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        from moto.backends import get_backend

        get_backend("s3").reset()
        store.files.mkdir(BUCKET)
        yield store
    finally:
        server.shutdown()
        thread.join()
        s3fs.S3FileSystem.clear_instance_cache()
