"""The kernels of a block are assembled for an H100 or H200 without one: wide accesses, no atomics, nothing spilled."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")

_FP32 = ("stream", "gamma", "scale", "weight", "bias", "deviation", "grad", "sums")
_BF16 = ("branch", "branch_grad", "out", "normed", "out_grad", "given", "given_grad", "query", "key", "value", "merged")
TYPES = {
    **dict.fromkeys(_FP32, "*fp32"), **dict.fromkeys(_BF16, "*bf16"), **dict.fromkeys(("branch_place", "norm_place"),
    "*i32"), "eps": "fp32",
}  # fmt: skip
STRIDES = ("width", "by_sample", "by_token", "by_head")
"""Multiples of 16 at run time, as Triton then sees."""


def rows(width: int, add: bool, norm: bool) -> dict[str, Any]:
    block = triton.next_power_of_2(width)
    return {"WIDTH": width, "BLOCK": block, "ADD": add, "GAMMA": add, "NORM": norm, "SUBSET": True}


TILE = {"ROWS": 32, "COLUMNS": 128}
# Per thread: 8 channels of a row are two accesses of 16 bytes in fp32 and one in bf16; a tile's 32 elements are four.
CASES = [
    ("_add_norm", rows(768, True, True), 13),  # x, y, gamma, x; weight, bias, out, unit
    ("_add_norm", rows(768, False, True), 8),
    ("_add_norm", rows(1280, True, False), 7),
    ("_add_norm_backward", rows(768, True, True), 20),  # weight, gamma; g, d, unit, g, y, dy; four sums
    ("_add_norm_backward", rows(1280, True, True), 20),
    ("_add_norm_backward", rows(1024, False, True), 12),
    ("_gelu_backward", {**TILE, "TANH": False}, 12),
    ("_gelu_backward", {**TILE, "TANH": True}, 12),
    ("_merge_heads", {**TILE, "WIDTH": 1280, "HEAD": 80}, 8),
]


@pytest.mark.parametrize(("name", "constants", "wide"), CASES)
def test_is_assembled(name: str, constants: dict[str, Any], wide: int, tmp_path: Path) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from deit_fast.models import block_kernels

    kernel = getattr(block_kernels, name)
    names = kernel.arg_names
    signature = {each: "constexpr" if each in constants else TYPES.get(each, "i32") for each in names}
    fixed = {(names.index(each),): value for each, value in constants.items()}
    even = [each for each in names if signature[each].startswith("*") or each in STRIDES]
    hints = {(names.index(each),): [["tt.divisibility", 16]] for each in even}
    warps = 2 * block_kernels.WARPS if constants.get("BLOCK", 0) > 1024 else block_kernels.WARPS
    source = ASTSource(kernel, signature, fixed, hints)
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps}).asm["ptx"]
    assert len(re.findall(r"(?:ld|st)\.global\S*\.v4\.b32", ptx)) == wide
    assert not re.search(r"\b(?:atom|red)\.", ptx)
    (tmp_path / "kernel.ptx").write_text(ptx)
    assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    command = [assembler, "-v", "-arch=sm_90a", tmp_path / "kernel.ptx", "-o", tmp_path / "kernel.cubin"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in said
