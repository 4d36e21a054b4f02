"""A store on loopback, for tests and measurements: files below a folder as HTTP, S3, GCS and the Hugging Face Hub.

    python -m benchmarks.store_server ROOT [--port 0] [--latency 0.03] [--rate 100e6] [--token T] [--503 P] [--cut P]

prints its port and serves until it is killed. `GET /_requests` returns the requests so far as JSON. `POST /_set` takes
`{"latency": 0.03, ...}`. In a test, `with serve(root) as store` serves in a thread of the test's process. The file
ROOT/BUCKET/KEY is http://127.0.0.1:PORT/BUCKET/KEY. With the variables of `store.environment` it is s3://BUCKET/KEY and
gs://BUCKET/KEY too. ROOT/datasets/OWNER/NAME/FILE is hf://datasets/OWNER/NAME/FILE, and ROOT/models/OWNER/NAME/FILE is
hf://OWNER/NAME/FILE, which is read-only. Only gs:// can be written.
"""

import argparse
import asyncio
import contextlib
import io
import json
import ssl
import threading
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO
from urllib.parse import parse_qs, unquote, urlsplit

from .store_protocols import answer_gcs, answer_hub, answer_s3
from .store_state import Answer, Request, Store, answer_object, version

_CHUNK = 1 << 17
_BEAT = 0.1  # seconds between the chunks of a slow body, so that a new rate soon holds for it too


def _route(store: Store, request: Request) -> Answer:
    first = request.path.split("/")[1]
    if first in ("storage", "upload", "download"):
        return answer_gcs(store, request)
    if first in ("api", "cdn") or "/resolve/" in request.path:
        return answer_hub(store, request)
    if "list-type" in request.query or (request.method == "HEAD" and request.path.strip("/").count("/") == 0):
        return answer_s3(store, request)
    return answer_object(store, request)


def _answer(store: Store, request: Request, fault: str) -> Answer:
    if request.path == "/_requests":
        return Answer(200, json.dumps([{**asdict(each), "body": len(each.body)} for each in store.requests]).encode())
    if request.path == "/_set":
        for name, value in json.loads(request.body).items():
            setattr(store, name, value)
        return Answer(200)
    if fault.partition(" ")[0].isdecimal():
        status, _, target = fault.partition(" ")
        more = {"Location": target} if target else {}
        return Answer(int(status), headers=more | ({"Retry-After": store.retry_after} if store.retry_after else {}))
    if not store.admits(request):
        signed = "X-Amz-Signature" in request.query or "AWS4" in request.headers.get("authorization", "")
        return Answer(403 if signed else 401)
    if request.path == "/token":
        token = {"access_token": store.token, "token_type": "Bearer", "expires_in": 3600}
        return Answer(200, json.dumps(token).encode(), {"Content-Type": "application/json"})
    return _route(store, request)


async def _send(store: Store, request: Request, answer: Answer, fault: str, writer: asyncio.StreamWriter) -> bool:
    """Writes the answer. Returns whether the connection stays open."""
    status, body, headers = answer.status, answer.body, dict(answer.headers)
    with open(body, "rb") if isinstance(body, Path) else io.BytesIO(body) as file:
        if isinstance(body, Path) and version(body) not in headers.get("ETag", version(body)):  # replaced meanwhile
            return False
        return await _send_piece(store, request, status, body, headers, fault, writer, file)


async def _send_piece(
    store: Store, request: Request, status: int, body: bytes | Path, headers: dict[str, str], fault: str,
    writer: asyncio.StreamWriter, file: BinaryIO,
) -> bool:  # fmt: skip
    size = body.stat().st_size if isinstance(body, Path) else len(body)
    start, stop = 0, size
    if status == 200 and request.range and fault != "whole" and isinstance(body, Path):
        start, last = request.range
        if start >= size:
            status, body, start, stop = 416, b"", 0, 0
            headers["Content-Range"] = f"bytes */{size}"
        else:
            status, stop = 206, size if last is None else min(size, last + 1)
            start += fault == "shift"
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    if fault == "short":
        stop = start + (stop - start) // 2
    request.status = status
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", f"Content-Length: {stop - start}"]
    writer.write(("\r\n".join(lines + [f"{name}: {value}" for name, value in headers.items()]) + "\r\n\r\n").encode())
    await writer.drain()
    if request.method == "HEAD":
        return True
    if fault == "stall":
        await asyncio.sleep(store.stall_seconds)
        return False
    end = start + (stop - start) // 2 if fault == "cut" else stop
    file.seek(start)
    while start < end:
        chunk = max(1, int(min(_CHUNK, store.rate * _BEAT)))
        data = file.read(min(chunk, end - start))
        await store.pace(len(data))
        writer.write(data)
        await writer.drain()
        request.sent += len(data)
        start += len(data)
    return fault != "cut"


async def _read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding") != "chunked":
        return await reader.readexactly(int(headers.get("content-length") or 0))
    body = b""
    while count := int(await reader.readline(), 16):
        body += await reader.readexactly(count)
        await reader.readline()
    await reader.readline()
    return body


async def _serve_client(store: Store, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while line := await reader.readline():
            method, target, _ = line.decode("latin-1").split(" ", 2)
            headers = {}
            while (line := await reader.readline()) not in (b"\r\n", b""):
                name, _, value = line.decode("latin-1").partition(":")
                headers[name.strip().lower()] = value.strip()
            body = await _read_body(reader, headers)
            parts = urlsplit(target)
            query = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
            request = Request(method, unquote(parts.path), query, headers, body)
            fault = ""
            if not request.path.startswith("/_"):
                store.requests.append(request)
                await asyncio.sleep(store.latency)
                fault = store.choose_fault(request)
            if fault == "drop" or not await _send(store, request, _answer(store, request, fault), fault, writer):
                break
    except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
        pass
    finally:
        writer.close()


async def _listen(store: Store, context: ssl.SSLContext | None = None) -> asyncio.Server:
    serve_client = partial(_serve_client, store)
    server = await asyncio.start_server(serve_client, "127.0.0.1", store.port, limit=1 << 20, backlog=1024, ssl=context)
    store.port = server.sockets[0].getsockname()[1]
    return server


async def _stop(server: asyncio.Server) -> None:
    server.close()
    clients = asyncio.all_tasks() - {asyncio.current_task()}
    for client in clients:
        client.cancel()
    await asyncio.gather(*clients, return_exceptions=True)


@contextlib.contextmanager
def serve(root: Path, context: ssl.SSLContext | None = None) -> Iterator[Store]:
    """The store in a thread of this process while the block runs; over TLS if `context` is given."""
    store, loop = Store(root), asyncio.new_event_loop()
    server = loop.run_until_complete(_listen(store, context))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        asyncio.run_coroutine_threadsafe(_stop(server), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.store_server")
    parser.add_argument("root", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.03, help="seconds")
    parser.add_argument("--rate", type=float, default=100e6, help="bytes a second, of all bodies together")
    parser.add_argument("--token")
    parser.add_argument("--503", type=float, default=0.0, dest="unavailable", help="share of the answers")
    parser.add_argument("--cut", type=float, default=0.0, help="share of the bodies")

    async def run() -> None:
        store = Store(**vars(parser.parse_args()))
        server = await _listen(store)
        print(store.port, flush=True)
        await server.serve_forever()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run())


if __name__ == "__main__":
    main()
