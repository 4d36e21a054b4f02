"""Hostile and damaged files: nothing in them runs, nothing takes memory at their word, and each costs one line."""

import json
import pickle
import resource
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgpack
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from deit_fast.convert.detect import load_weights
from deit_fast.runtime.errors import RunError
from tests.malicious import NO_PROOF, OPERATIONS, ROUTES, Call, hostile_files, spelled, torch_zip
from tests.oracles import foreign_checkpoints as oracle
from tests.training.test_train import environment

WEIGHTS = oracle.reference_weights(16, 1, 4, 2, 3)


def refused(path: Path, within: float = 5.0) -> str:
    """The one line that refuses the file, in at most `within` seconds of this thread's CPU time, and in 100 MB.

    The slowest takes half a second on a quiet machine, and twice that on a busy one. A cost that the file names, or
    one that grows with the square of its size, takes minutes.
    """
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.thread_time()
    with pytest.raises(RunError) as error:
        load_weights(path)
    assert time.thread_time() - start < within
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < 400 + len(str(path))
    return message


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[bytes, str]]]:
    proof = tmp_path_factory.mktemp("proof") / "ran"
    return proof, hostile_files(str(proof))


@pytest.mark.parametrize("name", hostile_files("PROOF"))
def test_no_code_of_a_file_runs(tmp_path: Path, hostile: tuple[Path, dict[str, tuple[bytes, str]]], name: str) -> None:
    proof, path = hostile[0], tmp_path / "x.pth"
    content, message = hostile[1][name]
    path.write_bytes(content)
    assert message in refused(path)
    assert not proof.exists()


TRUSTING = """
import pickle, sys, torch
from pathlib import Path

for path in sorted(Path(sys.argv[1]).iterdir()):
    with open(path, "rb") as file:
        try:
            torch.load(file, weights_only=False) if path.suffix == ".zip" else pickle.load(file)
        except Exception:
            pass
"""


def test_the_routes_run_where_they_are_trusted(tmp_path: Path) -> None:
    """Files that nobody needs to refuse would prove nothing: each of these makes its file."""
    (tmp_path / "files").mkdir()
    expected = set()
    for route, (build, _) in ROUTES.items():
        for protocol, suffix, pack in ((4, "pickle", bytes), (2, "zip", torch_zip)):
            proof = tmp_path / f"{route}.{suffix}.ran"
            content = pack(pickle.dumps({"model": build(str(proof))}, protocol))
            (tmp_path / "files" / f"{route}.{suffix}").write_bytes(content)
            expected |= {proof} if route not in NO_PROOF else set()
    for name, (write, _, runs) in OPERATIONS.items():
        proof = tmp_path / f"{name}.ran"
        (tmp_path / "files" / f"{name}.pickle").write_bytes(write(str(proof)))
        expected |= {proof} if runs else set()
    assert len({spelled(route, name, 4) for route, (_, name) in ROUTES.items() if route not in NO_PROOF}) > 30
    subprocess.run([sys.executable, "-c", TRUSTING, str(tmp_path / "files")], env=environment(), check=True)
    deadline = time.monotonic() + 60  # some only start a process
    while time.monotonic() < deadline and not all(proof.exists() for proof in expected):
        time.sleep(0.05)
    assert sorted(proof.name for proof in expected if not proof.exists()) == []


def storage_reference(dtype: str, key: str, count: int) -> bytes:
    """The opcodes of ("storage", torch.XStorage, key, "cpu", count) as a persistent id."""
    number = pickle.dumps(count, 2)[2:-1]
    return (b"(X\x07\0\0\0storagectorch\n" + dtype.encode() + b"\nX" + struct.pack("<I", len(key)) + key.encode()
            + b"X\x03\0\0\0cpu" + number + b"tQ")  # fmt: skip


def tensor_pickle(count: int, offset: int, shape: tuple, stride: tuple, key: str = "0") -> bytes:
    rest = b"".join(pickle.dumps(x, 2)[2:-1] for x in (offset, shape, stride, False, {}))
    reference = storage_reference("FloatStorage", key, count)
    return b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n(" + reference + rest + b"tRs."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tensor_pickle(4, 0, (2, 2), (2, 1)), "expected the weights"),  # whole: only its name is wrong
        (tensor_pickle(2**40, 0, (2**40,), (1,)), "1099511627776 elements in 16 bytes"),
        (tensor_pickle(4, 0, (10**12,), (0,)), "has a tensor of shape [1000000000000] in a storage of 4 elements"),
        (tensor_pickle(4, 3, (2,), (1,)), "has a tensor of shape [2] in a storage of 4 elements"),
        (tensor_pickle(4, 0, (4,), (-1,)), "impossible shape"),
        (tensor_pickle(4, 0, (2, 2), (1,)), "impossible shape"),
        (tensor_pickle(-1, 0, (1,), (1,)), "-1 elements"),
        (tensor_pickle(4, 0, (4,), (1,), "../../0"), "damaged or truncated"),
    ],
    ids=["whole", "storage", "expanded", "outside", "negative-stride", "ranks", "negative-count", "another-entry"],
)
def test_tensors_lie_within_their_storages(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(torch_zip(content, {"0": bytes(16)}))
    assert message in refused(path)


def zip_bomb() -> bytes:
    return torch_zip(pickle.dumps({}, 2), {"0": bytes(200_000_000)}, compression=zipfile.ZIP_DEFLATED)


def lying_zip() -> bytes:
    """Sizes of 3 GB in the directory of a file of 300 bytes."""
    whole = bytearray(torch_zip(tensor_pickle(2**29, 0, (2**29,), (1,)), {"0": bytes(16)}))
    entry = whole.rindex(b"PK\x01\x02")
    whole[entry + 20 : entry + 28] = struct.pack("<II", 3 << 30, 3 << 30)
    return bytes(whole)


def flax_array(shape: tuple, raw: bytes, name: str = "float32") -> bytes:
    inner = msgpack.packb((shape, name, raw), use_bin_type=True)
    return msgpack.packb({"model": {"embed": {"wte": msgpack.ExtType(1, inner)}}})


def numpy_pickle(shape: tuple) -> bytes:
    """numpy's three steps with a shape of the attacker's choice over 16 bytes."""
    empty = (np.ndarray, (0,), b"b")
    state = (1, shape, np.dtype("float32"), False, bytes(16))
    return pickle.dumps({"w": Call(np.empty(0).__reduce__()[0], *empty, state=state)}, 4)


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "zip-bomb": (zip_bomb, "has a compressed entry"),
    "zip-directory": (lying_zip, "truncated"),
    "not-of-torch": (lambda: torch_zip(b"").replace(b"data.pkl", b"data.txt"), "not one of torch.save"),
    "safetensors-2gb-header": (lambda: struct.pack("<Q", 2 << 30) + b"{" + bytes(100), "header of 2147483648 bytes"),
    "safetensors-large-header": (lambda: struct.pack("<Q", 2**63) + b"{" + bytes(100), "header of 9223372036854775808"),
    "safetensors-offsets": (
        lambda: (lambda h: struct.pack("<Q", len(h)) + h)(
            json.dumps({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()),
        "readable safetensors"),
    "msgpack-4gb-bytes": (lambda: b"\x81\xa5model\xc6\xff\xff\xff\xff", "damaged or truncated|no readable msgpack"),
    "msgpack-4g-array": (lambda: b"\x81\xa5model\xdd\xff\xff\xff\xff", "no readable msgpack"),
    "msgpack-4g-map": (lambda: b"\xdf\xff\xff\xff\xff", "no readable msgpack"),
    "msgpack-deep": (lambda: b"\x81\xa5model" + b"\x91" * 1_000_000, "no readable msgpack"),
    "msgpack-shape": (lambda: flax_array((10**12,), bytes(16)), "in 16 bytes"),
    "msgpack-objects": (lambda: flax_array((1,), bytes(16), "object"), "array of b'object'"),
    "msgpack-extension": (lambda: msgpack.packb({"model": msgpack.ExtType(7, b"x")}), "extension 7"),
    "numpy-shape": (lambda: numpy_pickle((10**12,)), "in 16 bytes"),
    "numpy-negative-shape": (lambda: numpy_pickle((-4,)), "impossible shape"),
    "pickle-bytes": (lambda: b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.", "damaged or truncated"),
    "pickle-memo": (lambda: b"\x80\x02}r\xff\xff\xff\x7f.", "has no weights"),
    "pickle-operations": (lambda: b"\x80\x02]" + b"N0" * 500_000 + b".", "more than 500000 operations"),
    "pickle-hash": (lambda: b"\x80\x02)" + b"2\x86" * 60 + b"q\x00}h\x00Ns.", "a tuple as key"),
    "zeros": (lambda: bytes(10_000), "starts with"),
    "one-byte": (lambda: b"\x80", "starts with"),
    "empty": (lambda: b"", "is empty"),
    "text": (lambda: b"epoch,loss\n1,0.5\n", "starts with b'epoch,los'"),
    "json": (lambda: b'{"model": {}}', "starts with"),
    "page": (lambda: b"<!DOCTYPE html><html>Not found</html>", "starts with b'<!DOCTYPE'"),
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_sizes_are_believed_after_they_are_checked(tmp_path: Path, bomb: str) -> None:
    build, message = BOMBS[bomb]
    path = tmp_path / "x.bin"
    path.write_bytes(build())
    found = refused(path)
    assert any(part in found for part in message.split("|")), found


def test_folder_and_absent(tmp_path: Path) -> None:
    assert "is a folder: expected a file of weights, or a model's folder of timm" in refused(tmp_path)
    assert "no such checkpoint" in refused(tmp_path / "absent.pth")


def tree_bytes() -> bytes:
    return oracle.flax_bytes(oracle.jax_tree(16, 1, 2, 4, 2, 3))


def written(how: str, folder: Path) -> bytes:
    path = folder / "whole"
    if how in ("zip", "legacy"):
        torch.save({"model": WEIGHTS}, path, _use_new_zipfile_serialization=how == "zip")
    elif how == "safetensors":
        save_file(WEIGHTS, path)
    elif how == "msgpack":
        path.write_bytes(tree_bytes())
    else:
        oracle.write_pdparams(path, WEIGHTS, half=False, named=True)
    return path.read_bytes()


FORMATS = ("zip", "legacy", "safetensors", "msgpack", "pdparams")


@pytest.mark.parametrize("how", FORMATS)
def test_truncated_files(tmp_path: Path, how: str) -> None:
    whole, path = written(how, tmp_path), tmp_path / "cut"
    for kept in (0.02, 0.3, 0.6, 0.9, 1 - 1 / len(whole)):
        path.write_bytes(whole[: int(len(whole) * kept)])
        assert "no such entry in deit_fast.zoo" not in refused(path)  # what the whole file gets


@pytest.mark.parametrize("how", FORMATS)
def test_damaged_files_cost_one_line_or_load(tmp_path: Path, how: str) -> None:
    rng = np.random.default_rng(0)
    whole, path = written(how, tmp_path), tmp_path / "damaged"
    for _ in range(60):
        content = bytearray(whole)
        for position in rng.integers(len(whole), size=3):  # anywhere, and where the structure is
            content[position] = rng.integers(256)
        for position in rng.integers(min(3000, len(whole)), size=2):
            content[position] = rng.integers(256)
        path.write_bytes(content)
        refused(path, within=2)  # no model of the zoo is this small: damage in a weight alone ends there
