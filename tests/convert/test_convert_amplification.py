"""Small files that claim much: by naming one thing many times, by sizes in words, by the model they seem to be of."""

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgpack
import pytest
import torch
from safetensors.torch import save

from deit_fast.convert.detect import load_weights
from deit_fast.infer.predict import load_model
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.errors import RunError
from tests.convert.test_convert_safety import flax_array, refused, storage_reference, tensor_pickle
from tests.malicious import legacy, torch_zip
from tests.oracles import foreign_checkpoints as oracle

STORAGE = b"\x80\x02(X\x07\0\0\0storagectorch\nFloatStorage\n"
PATHS = b"cpathlib\nPosixPath\n("
NEST = b")" + b"2\x86" * 60  # a tuple of tuples of tuples: 2^60 leaves in 121 bytes
LARGE = b"X" + struct.pack("<I", 4_000_000) + b"a" * 4_000_000


def python(content: bytes) -> bytes:
    return b"\x80\x04" + content + b"."


def repeated(setup: bytes, step: bytes, times: int = 1000) -> bytes:
    """A list of `times` results of `step`, which may name what `setup` left in memo 0."""
    return python(setup + b"q\x000](" + step * times + b"e")


def overlapping_zip() -> bytes:
    """A thousand entries, all of which are the same 4 MB."""
    names = [str(number) for number in range(1000)]
    parts = b"".join(
        b"X\x03\0\0\0" + name.rjust(3, "0").encode() + b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage_reference("FloatStorage", name, 1_000_000)
        + b"".join(pickle.dumps(x, 2)[2:-1] for x in (0, (1_000_000,), (1,), False, {})) + b"tRs"
        for name in names
    )  # fmt: skip
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}" + parts + b".")
        archive.writestr("archive/data/0", bytes(4_000_000))
        one = archive.getinfo("archive/data/0")
        for name in names[1:]:
            other = zipfile.ZipInfo(f"archive/data/{name}")
            other.header_offset, other.CRC = one.header_offset, one.CRC
            other.file_size = other.compress_size = one.file_size
            archive.filelist.append(other)
            archive.NameToInfo[other.filename] = other
    return buffer.getvalue()


def large_directory() -> bytes:
    entry = b"PK\x01\x02" + bytes(24) + struct.pack("<H", 1) + bytes(16) + b"x"
    count = 300_000
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 65535, 65535, count * len(entry), 4, 0)
    return b"PK\x03\x04" + entry * count + end


def header(content: dict | bytes, data: bytes = b"") -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text + data


TENSOR = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}


def described(recipe: object, classes: object = None) -> bytes:
    """Weights of a nano model with our header; `recipe` and `classes` are its JSON, or what is dumped as it."""
    words = {"recipe": recipe, "classes": classes}
    metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in words.items()}
    return save({"head.weight": torch.zeros(1)}, {"format": "pt", **metadata})


FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "dtype-of-tuples": (lambda: python(b"cnumpy\ndtype\n(" + NEST + b"tR"), "has a tuple: expected a text"),
    "name-of-tuples": (lambda: python(NEST + b"X\x01\0\0\0x\x93"), "has a tuple: expected a text"),
    "encoding-of-tuples": (lambda: python(b"c_codecs\nencode\n(X\x01\0\0\0x" + NEST + b"tR"), "has a tuple"),
    "storage-of-tuples": (lambda: torch_zip(STORAGE + NEST + b"NNtQ."),
                          "has a tuple: expected a text"),
    "legacy-key-of-tuples": (lambda: legacy(STORAGE + NEST + b"NK\x01NtQ."),
                             "has a tuple: expected a text"),
    "format-of-tuples": (lambda: python(b"}X\x06\0\0\0recipe}sX\x05\0\0\0model}sX\x06\0\0\0format" + NEST + b"s"),
                         "expected a deit_fast checkpoint of format 1"),
    "recipe-of-tuples": (lambda: python(b"}X\x06\0\0\0recipe}X\x01\0\0\0a" + NEST + b"ssX\x05\0\0\0model}s"
                                        b"X\x06\0\0\0formatK\x01s"), "describes itself with more than 100000 values"),
    "paths-joined": (lambda: python(PATHS + LARGE + b"tR" + (b"q\x000" + PATHS + b"h\x00h\x00tR") * 40),
                     "holds a Inert|more of itself"),
    "bytes-of-a-number": (lambda: python(b"cnumpy._core.numeric\n_frombuffer\n(\x8a\x05\0\0\0\0\x10NK\x01X\x01\0\0\0C"
                                         b"tR"),
                          "has an array of a int: expected bytes"),
    "bytes-of-torch": (lambda: torch_zip(b"\x80\x02c__builtin__\nbytearray\n\x8a\x05\0\0\0\0\x01\x85R."),
                       "asks for builtins.bytearray"),
    "copied-lists": (lambda: repeated(b"](" + b"N" * 400_000 + b"e", b"cbuiltins\ntuple\n(h\x00tR"), "more of itself"),
    "copied-dictionaries": (lambda: repeated(b"}(" + b"".join(b"J" + struct.pack("<i", n) + b"N" for n in range(90_000))
                                             + b"u", b"cargparse\nNamespace\n)Rh\x00b"), "more of itself"),
    "copied-text": (lambda: repeated(LARGE, b"c_codecs\nencode\n(h\x00tR"), "more of itself"),
    "copied-text-as-items": (lambda: repeated(LARGE, b"cbuiltins\nset\n(h\x00tR", 3), "more of itself|holds a list"),
    "overlapping-entries": (overlapping_zip, "bytes of tensors in a file of"),
    "zip-directory": (large_directory, "has a zip directory of"),
    "msgpack-lists-in-lists": (lambda: b"\x81\xa5model" + b"\xdd\x00\x40\x00\x00" * 500 + bytes(5_000_000),
                               "no readable msgpack"),
    "msgpack-lists-in-an-array": (lambda: msgpack.packb({"model": msgpack.ExtType(1, b"\xdd\x00\x40\x00\x00" * 500
                                  + bytes(5_000_000))}), "no readable msgpack|damaged"),
    "msgpack-names": (lambda: b"\xdf\x00\x0f\x00\x00" + b"".join(b"\xa6%06d\xc0" % n for n in range(0xF0000)),
                      "no readable msgpack"),
    "flax-paths": (lambda: (b"\x81\xda\x10\x00" + b"a" * 4096) * 400 + b"\x01",
                   "a name of more than 300 characters"),
    "flax-rank": (lambda: flax_array((1,) * 60, bytes(4)), "no readable msgpack|damaged"),
    "safetensors-many": (lambda: header({f"{n:06d}": EMPTY for n in range(190_000)}), "claims a header of"),
    "safetensors-quite-many": (lambda: header({f"{n:06d}": EMPTY for n in range(36_000)}), "expected the weights"),
    "safetensors-duplicates": (lambda: header(b'{"w":%s,"w":%s}' % ((json.dumps(TENSOR).encode(),) * 2), bytes(4)),
                               "expected the weights|readable safetensors"),
    "safetensors-overlap": (lambda: header({"a": TENSOR, "b": TENSOR}, bytes(4)), "readable safetensors"),
    "safetensors-deep": (lambda: header(b"{" + b'"a":{' * 100_000), "readable safetensors"),
    "recipe-deep": (lambda: described("[" * 100_000), "damaged"),
    "recipe-wide": (lambda: described({"a": [0] * 200_000}), "more than 100000 values"),
    "recipe-number": (lambda: described("9" * 10_000), "damaged"),
    "recipe-a-list": (lambda: described([]), "has a list as its recipe"),
    "classes-of-numbers": (lambda: described({}, [1, 2]), "class names of another kind"),
    "classes-many": (lambda: described({}, ["a"] * 200_000), "more than 100000 values"),
    "depth-in-digits": (lambda: save({f"blocks.{'9' * 5000}.x": torch.zeros(1), "patch_embed.proj.weight":
                                      torch.zeros(1, 1, 1, 1)}), "expected the weights"),
    "positions-without-dimensions": (lambda: save({"patch_embed.proj.weight": torch.zeros(192, 3, 16, 16),
                                     "blocks.11.x": torch.zeros(1), "pos_embed": torch.zeros(())}),
                                     "has pos_embed []: expected 3 dimensions"),
    "mixing-without-dimensions": (lambda: save({"patch_embed.proj.weight": torch.zeros(192, 3, 16, 16),
                                  "blocks.0.linear_tokens.weight": torch.zeros(())}), "damaged"),
    "nan-as-a-name": (lambda: python(b"}G\x7f\xf8\0\0\0\0\0\0" + b"Ns"), "has 'nan' of type NoneType"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_small_files_stay_small(tmp_path: Path, name: str) -> None:
    build, message = FILES[name]
    (tmp_path / "x.bin").write_bytes(build())
    found = refused(tmp_path / "x.bin")
    assert any(part in found for part in message.split("|")), found


def test_a_storage_that_many_tensors_share(tmp_path: Path) -> None:
    one = torch.zeros(1_000_000)
    torch.save({"model": {f"w{number}": one for number in range(1000)}}, tmp_path / "x.pth")
    assert "bytes of tensors in a file of" in refused(tmp_path / "x.pth")
    torch.save({"model": {"a.weight": one, "b.weight": one}}, tmp_path / "x.pth")  # tied weights are fine
    assert "expected the weights" in refused(tmp_path / "x.pth")


def giant() -> dict[str, torch.Tensor]:
    """Tensors without elements that look like the giant model."""
    return {"patch_embed.proj.weight": torch.zeros(1664, 0, 14, 14), "pos_embed": torch.zeros(1, 256, 0),
            "blocks.47.ls1.gamma": torch.zeros(0), "cls_token": torch.zeros(1, 1, 0),
            "blocks.0.ls1.gamma": torch.zeros(0), "head.weight": torch.zeros(1000, 0)}  # fmt: skip


def test_no_model_is_built_for_weights_that_are_not_there(tmp_path: Path) -> None:
    torch.save({"model": giant()}, tmp_path / "x.pth")
    assert load_weights(tmp_path / "x.pth").recipe.model.name == "deit3_giant_48_patch14"
    with pytest.raises(RunError, match="weights of another architecture"):
        load_model(tmp_path / "x.pth")


@pytest.mark.parametrize(("words", "message"), [
    (["model.num_classes=1000000000"], "model.num_classes=1000000000: head.bias [5]"),
    (["model.image_size=400000", "model.num_classes=5"], "model.image_size=400000, model.num_classes=5"),
    (["model.name=deit3_giant_48_patch14", "model.image_size=32", "model.num_classes=5"], "weights of another archi"),
])  # fmt: skip
def test_a_recipe_is_its_weights(tmp_path: Path, words: list[str], message: str) -> None:
    tensors = {name.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma"): value
               for name, value in oracle.reference_weights(128, 4, 4, 8, 5).items()}  # fmt: skip
    recipe = get_recipe("demo_pretrain", words).model_dump(mode="json")
    (tmp_path / "x").write_bytes(save(tensors, {"recipe": json.dumps(recipe)}))
    with pytest.raises(RunError) as error:
        load_model(tmp_path / "x")
    assert any(part in str(error.value) for part in message.split("|"))
    (tmp_path / "x").write_bytes(save(tensors, {"recipe": json.dumps({**recipe, "model": {"name": [0] * 9}})}))
    with pytest.raises(RunError, match=r"x: model\.name"):
        load_model(tmp_path / "x")


@pytest.mark.parametrize("content", [b"[" * 200_000, b" " * 5_000_000 + b"{}", b'{"pretrained_cfg": 3}', b"[]",
                                     b'{"label_names": [1]}', b'{"pretrained_cfg": {"mean": ["a"]}}',
                                     b'{"pretrained_cfg": {"std": 1e999}}', b"9" * 9999, b"\xff\xfe"])  # fmt: skip
def test_configs_that_are_none(tmp_path: Path, content: bytes) -> None:
    torch.save({"model": oracle.reference_weights(128, 4, 4, 8, 5)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_bytes(content)
    refused(tmp_path)


def test_pipes_devices_and_links(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is no regular file" in refused(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    assert "is no regular file" in refused(tmp_path / "zeros")
    (tmp_path / "loop").symlink_to("loop")
    assert "cannot be read" in refused(tmp_path / "loop")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "model.safetensors").write_bytes(b"")
    os.mkfifo(tmp_path / "folder" / "config.json")
    assert "is a folder: expected a file of weights" in refused(tmp_path / "folder")


def test_whole_files_still_load(tmp_path: Path) -> None:
    whole = tensor_pickle(4, 0, (2, 2), (2, 1))
    (tmp_path / "x").write_bytes(torch_zip(whole, {"0": bytes(16)}))
    assert "expected the weights" in refused(tmp_path / "x")
