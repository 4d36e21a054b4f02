"""Protocols of store_server.py besides plain HTTP, as far as fsspec uses them: those of S3, GCS and the Hub."""

import base64
import hashlib
import json
import re
import secrets
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote
from xml.sax.saxutils import escape

from .store_state import Answer, Request, Store, answer_object, version

_PAGE = 1000  # entries on a page of a listing, as in S3 and GCS
_LFS_BYTES = 4096  # Hub files from this size on lie on a content network
_uploads: dict[str, tuple[str, bytes]] = {}  # GCS's resumable uploads: name, and bytes so far


def _list_keys(root: Path, prefix: str, delimiter: str, after: str, limit: int) -> tuple[list[str], list[str], str]:
    """Keys and common prefixes below a bucket, and the last of them if there are more."""
    below = root / prefix.rpartition("/")[0]
    found = sorted(str(path.relative_to(root)) for path in below.rglob("*") if path.is_file())
    entries = dict.fromkeys(
        prefix + key[len(prefix) :].partition(delimiter)[0] + delimiter
        if delimiter and delimiter in key[len(prefix) :]
        else key
        for key in found
        if key.startswith(prefix)
    )
    left = [entry for entry in entries if entry > after]
    page, more = left[:limit], left[limit:]
    folders = [entry for entry in page if delimiter and entry.endswith(delimiter)]
    return [entry for entry in page if entry not in folders], folders, page[-1] if more else ""


def answer_s3(store: Store, request: Request) -> Answer:
    """Answers ListObjectsV2 of a bucket, or HEAD of it."""
    bucket, query = request.path.strip("/").partition("/")[0], request.query
    root = store.place(bucket)
    if not root.is_dir():
        return Answer(404, b"<Error><Code>NoSuchBucket</Code><Message>none</Message></Error>")
    if request.method == "HEAD":
        return Answer(200)
    prefix, limit = query.get("prefix", ""), min(_PAGE, int(query.get("max-keys") or _PAGE))
    after = unquote(query.get("continuation-token", ""))
    keys, folders, last = _list_keys(root, prefix, query.get("delimiter", ""), after, limit)
    items = "".join(
        f"<Contents><Key>{escape(key)}</Key><Size>{(root / key).stat().st_size}</Size>"
        f"<ETag>&quot;{version(root / key)}&quot;</ETag><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
        "<StorageClass>STANDARD</StorageClass></Contents>"
        for key in keys
    ) + "".join(f"<CommonPrefixes><Prefix>{escape(each)}</Prefix></CommonPrefixes>" for each in folders)
    more = f"<NextContinuationToken>{escape(last)}</NextContinuationToken>" if last else ""
    text = (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(keys) + len(folders)}</KeyCount>"
        f"<MaxKeys>{limit}</MaxKeys><IsTruncated>{'true' if last else 'false'}</IsTruncated>{more}{items}"
        "</ListBucketResult>"
    )
    return Answer(200, text.encode(), {"Content-Type": "application/xml"})


def answer_gcs(store: Store, request: Request) -> Answer:
    """Answers GCS's JSON API: metadata, listing and media, and gcsfs's writes: uploads, copies, removals."""
    path, query = request.path, request.query
    if path.startswith("/upload/"):
        return _upload_gcs(store, request)
    found = re.fullmatch(r"(?:/download)?/storage/v1/b/([^/]+)(?:/(o)(?:/(.+))?)?", path)
    if not found:
        return Answer(404)
    bucket, listing, key = found.groups()
    root = store.place(bucket)
    if not root.is_dir():
        return _json({"error": {"code": 404, "message": "The specified bucket does not exist."}}, 404)
    if not listing:
        return _json({"kind": "storage#bucket", "id": bucket, "name": bucket, "timeCreated": "2026-01-01T00:00:00Z"})
    if key is None:
        limit = min(_PAGE, int(query.get("maxResults") or _PAGE))
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        keys, folders, last = _list_keys(root, prefix, delimiter, query.get("pageToken", ""), limit)
        items = [_resource(store, bucket, each) for each in keys]
        return _json({"kind": "storage#objects", "items": items, "prefixes": folders}
                     | ({"nextPageToken": last} if last else {}))  # fmt: skip
    if copied := re.fullmatch(r"(.+)/(?:rewriteTo|copyTo)/b/([^/]+)/o/(.+)", key):
        source, target = root / copied[1], store.place(copied[2]) / copied[3]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
        return _json({"done": True, "resource": _resource(store, copied[2], copied[3])})
    if not (root / key).is_file():
        return _json({"error": {"code": 404, "message": f"No such object: {bucket}/{key}"}}, 404)
    if request.method == "DELETE":
        (root / key).unlink()
        return Answer(204)
    if query.get("ifGenerationMatch", _generation(root / key)) != _generation(root / key):
        return _json({"error": {"code": 412, "message": "conditionNotMet"}}, 412)
    if query.get("alt") == "media":
        return answer_object(store, Request("GET", f"/{bucket}/{key}", {}, {}))
    return _json(_resource(store, bucket, key))


def _upload_gcs(store: Store, request: Request) -> Answer:
    bucket, query = request.path.split("/b/")[1].partition("/")[0], request.query
    if "upload_id" in query:
        name, before = _uploads[query["upload_id"]]
        _uploads[query["upload_id"]] = name, (content := before + request.body)
        if request.headers.get("content-range", "").endswith("/*"):
            return Answer(308, headers={"Range": f"bytes=0-{len(content) - 1}"} if content else {})
        del _uploads[query["upload_id"]]
    elif query["uploadType"] == "resumable":
        _uploads[token := secrets.token_hex(8)] = query.get("name") or json.loads(request.body)["name"], b""
        return Answer(200, headers={"Location": f"{store.url}{request.path}?uploadType=resumable&upload_id={token}"})
    elif query["uploadType"] == "multipart":
        boundary = re.search(r'boundary="?([^";]+)', request.headers["content-type"])
        assert boundary
        _, description, media, _ = request.body.split(f"--{boundary[1]}".encode())
        name = json.loads(description.partition(b"\n\n")[2] or description.partition(b"\r\n\r\n")[2])["name"]
        content = re.split(rb"\r?\n\r?\n", media, maxsplit=1)[1]
        content = content.removesuffix(b"\n").removesuffix(b"\r")
    else:
        name, content = query["name"], request.body
    place = store.place(bucket) / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)
    return _json(_resource(store, bucket, name))


def _generation(path: Path) -> str:
    return str(int(version(path)[:13], 16))


def _resource(store: Store, bucket: str, key: str) -> dict[str, object]:
    path = store.place(bucket) / key
    changed = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat().replace("+00:00", "Z")
    return {
        "kind": "storage#object", "bucket": bucket, "name": key, "id": f"{bucket}/{key}",
        "size": str(path.stat().st_size),
        "generation": _generation(path), "metageneration": "1", "etag": f"C{version(path)}=", "updated": changed,
        "timeCreated": changed, "storageClass": "STANDARD", "contentType": "application/octet-stream",
        "md5Hash": base64.b64encode(hashlib.md5(path.read_bytes()).digest()).decode(),
        "mediaLink": f"{store.url}/download/storage/v1/b/{bucket}/o/{key.replace('/', '%2F')}?alt=media",
    }  # fmt: skip


def answer_hub(store: Store, request: Request) -> Answer:
    """Answers the Hub's API: description, tree, paths-info and files of a dataset, which lies at /datasets/OWNER/NAME.

    Of a model, which lies at /models/OWNER/NAME, only files are served, which is all that huggingface_hub downloads.
    """
    if found := re.fullmatch(r"/(?!datasets/)([^/]+/[^/]+)/resolve/[^/]+/(.+)", request.path):
        return _answer_model(store, request, f"models/{found[1]}", found[2])
    if found := re.fullmatch(r"/(datasets/[^/]+/[^/]+)/resolve/[^/]+/(.+)", request.path):
        path = store.place(f"{found[1]}/{found[2]}")
        if not path.is_file():
            return Answer(404, headers={"X-Error-Code": "EntryNotFound"})
        linked = {"X-Linked-Etag": f'"{_lfs_hash(path)}"', "X-Linked-Size": str(path.stat().st_size)}
        if path.stat().st_size >= _LFS_BYTES:  # on another host, which must not get the Hub's token
            target = f"http://localhost:{store.port}/cdn/{version(path)}/{found[1]}/{found[2]}"
            return Answer(302, headers={"Location": target, **linked})
        answer = answer_object(store, Request(request.method, f"/{found[1]}/{found[2]}", {}, request.headers))
        return Answer(answer.status, answer.body, answer.headers | {"ETag": f'"{_blob_hash(path)}"'})
    if request.path.startswith("/cdn/"):  # serves objects by their content's hash
        _, _, hashed, name = request.path.split("/", 3)
        path = store.place(name)
        if not path.is_file() or version(path) != hashed:
            return Answer(404)
        return answer_object(store, Request(request.method, f"/{name}", {}, request.headers))
    found = re.fullmatch(r"/api/(datasets/[^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?", request.path)
    if not found or not (root := store.place(found[1])).is_dir():
        return Answer(404, headers={"X-Error-Code": "RepoNotFound"})
    kind, below = found[2], found[4] or ""
    if kind == "paths-info":
        asked = json.loads(request.body)["paths"]
        return _json([_hub_entry(root, root / each) for each in asked if (root / each).exists()])
    if kind == "tree":
        folder = root / below
        if not folder.is_dir():
            return Answer(404, headers={"X-Error-Code": "EntryNotFound"})
        listed = folder.rglob("*") if request.query.get("recursive", "").lower() in ("true", "1") else folder.iterdir()
        return _json([_hub_entry(root, each) for each in sorted(listed)])
    siblings = [{"rfilename": str(each.relative_to(root))} for each in sorted(root.rglob("*")) if each.is_file()]
    return _json({"id": found[1].removeprefix("datasets/"), "sha": "0" * 40, "private": False, "disabled": False,
                  "gated": False, "tags": [], "downloads": 0, "likes": 0, "siblings": siblings})  # fmt: skip


def _answer_model(store: Store, request: Request, repository: str, name: str) -> Answer:
    root, path = store.place(repository), store.place(f"{repository}/{name}")
    if not root.is_dir():
        return Answer(404, headers={"X-Error-Code": "RepoNotFound"})
    commit = {"X-Repo-Commit": hashlib.sha1(repr(sorted(map(version, root.rglob("*.*")))).encode()).hexdigest()}
    if not path.is_file():
        return Answer(404, headers={"X-Error-Code": "EntryNotFound", **commit})
    answer = answer_object(store, Request(request.method, f"/{repository}/{name}", {}, request.headers))
    described = {"ETag": f'"{_blob_hash(path)}"', **commit}
    if path.stat().st_size >= _LFS_BYTES:
        described["X-Linked-Etag"] = f'"{hashlib.sha256(path.read_bytes()).hexdigest()}"'
        described["X-Linked-Size"] = str(path.stat().st_size)
    return Answer(answer.status, answer.body, answer.headers | described)


def _hub_entry(root: Path, path: Path) -> dict[str, object]:
    name = str(path.relative_to(root))
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
    size = path.stat().st_size
    lfs = {"lfs": {"oid": _lfs_hash(path), "size": size, "pointerSize": 130}} if size >= _LFS_BYTES else {}
    return {"type": "file", "path": name, "oid": _blob_hash(path), "size": size, **lfs}


def _lfs_hash(path: Path) -> str:
    return version(path) * 2


def _blob_hash(path: Path) -> str:
    return version(path).ljust(40, "0")


def _json(content: object, status: int = 200) -> Answer:
    return Answer(status, json.dumps(content).encode(), {"Content-Type": "application/json"})
