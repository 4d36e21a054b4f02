#!/usr/bin/env bash
# litdata 0.2.76: an S3 endpoint on plain http is read while obstore is away, and not at all once it is installed.
#
# MinIO, Ceph and other stores in one's own network often speak http. litdata passes the endpoint (storage_options, or
# AWS_ENDPOINT_URL) to two clients: boto3, which fetches index.json, and obstore, which fetches the chunks and which
# refuses http unless its client is built with allow_http. litdata builds it with options of its own that lack this one,
# and AWS_ALLOW_HTTP in the environment does not help. The data set opens, knows its length, and fails at the first
# sample with "BadScheme". obstore is a hard requirement of litdata, so that a plain installation has it; removed, boto3
# fetches the chunks too, and all samples come.
#
# Output seen (Python 3.11.7):
#   litdata 0.2.76, obstore 0.12.1: length 100, then RuntimeError: ... source: BadScheme
#   litdata 0.2.76, no obstore: length 100, sum 4950
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check 'litdata==0.2.76' 'obstore==0.12.1' 'boto3==1.43.117' \
    'moto[server]==5.2.5' 'torch==2.14.1'
cat >"$work/read.py" <<'PYTHON'
import os
import sys
from importlib import metadata
from pathlib import Path


def sample(number):
    return {"number": number}


def main(work: Path) -> None:
    import boto3
    import litdata
    from litdata.streaming.resolver import Dir
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    os.environ |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1",
                   "AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": "true"}
    if not (work / "made").exists():
        litdata.optimize(sample, list(range(100)), str(work / "made"), chunk_bytes=1000, num_workers=1, verbose=False)
    store = boto3.client("s3")
    store.create_bucket(Bucket="bucket")
    for path in (work / "made").iterdir():
        store.upload_file(str(path), "bucket", f"made/{path.name}")

    with_obstore = "obstore" in {each.name for each in metadata.distributions()}
    data = litdata.StreamingDataset(Dir(path=str(work / f"cache{with_obstore}"), url="s3://bucket/made"),
                                    storage_options={"endpoint_url": endpoint})
    obstore = f"obstore {metadata.version('obstore')}" if with_obstore else "no obstore"
    said = f"litdata {metadata.version('litdata')}, {obstore}: length {len(data)},"
    if with_obstore:
        try:
            list(data)
        except RuntimeError as error:
            assert "BadScheme" in str(error), error
            print(said, "then RuntimeError: ... source: BadScheme", flush=True)
        else:
            sys.exit("changed: obstore reads from an endpoint on http")
    else:
        total = sum(int(row["number"]) for row in data)
        print(said, f"sum {total}", flush=True)
        assert total == 4950
    os._exit(0)  # litdata's threads of the failed read would keep the process


if __name__ == "__main__":
    main(Path(sys.argv[1]))
PYTHON
"$work/venv/bin/python" "$work/read.py" "$work" 2>/dev/null
"$work/venv/bin/pip" uninstall --quiet --yes obstore
"$work/venv/bin/python" "$work/read.py" "$work" 2>/dev/null
