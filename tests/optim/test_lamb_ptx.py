"""The LAMB kernels compile for an H100 or H200 without one, to 16-byte accesses and no atomics."""

import os
import re

import pytest

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")

TYPES = {
    "pointers": "*i64", "group_pointers": "*i64", "sizes": "*i64", "chunk_tensor": "*i32", "first_chunk": "*i32",
    "tensor_group": "*i32", "begin": "i32", "constants": "*fp64", "chunks": "i32", "max_norm": "fp32",
    "average_gain": "fp32",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "constants", "wide"),
    [
        ("_grad_norm", {"CHUNK": 4096, "ALIGNED": 4, "COPIES": False}, 4),
        ("_grad_norm", {"CHUNK": 4096, "ALIGNED": 0, "COPIES": False}, 0),
        ("_grad_norm", {"CHUNK": 4096, "ALIGNED": 8, "COPIES": True}, 6),
        ("_clip", {"BLOCK": 4096}, 0),
        ("_moments", {"CHUNK": 4096, "ALIGNED": 4, "COPIES": False}, 24),
        ("_moments", {"CHUNK": 4096, "ALIGNED": 8, "COPIES": True}, 26),
        ("_add_up", {"CHUNK": 4096, "BLOCK": 1024}, 0),
        ("_apply", {"CHUNK": 4096, "ALIGNED": 4, "COPIES": False}, 24),
        ("_apply", {"CHUNK": 4096, "ALIGNED": 8, "COPIES": True}, 26),
    ],
)
def test_compiles(name: str, constants: dict, wide: int) -> None:
    """`wide`: accesses of 16 bytes per thread, of 256 threads, for the tensors that the kernel passes over.

    With copies there is one more way through: a gradient that is read, or a copy that is written, of 2 bytes an
    element, half as many accesses as for fp32.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from deit_fast.optim import lamb_triton

    kernel = getattr(lamb_triton, name)
    signature = {a: "constexpr" if a in constants else TYPES.get(a, "*fp32") for a in kernel.arg_names}
    fixed = {(kernel.arg_names.index(a),): value for a, value in constants.items()}
    options = {"num_warps": lamb_triton.WARPS}
    compiled = triton.compile(ASTSource(kernel, signature, fixed), target=GPUTarget("cuda", 90, 32), options=options)
    ptx = compiled.asm["ptx"]
    assert len(re.findall(r"(?:ld|st)\.global\.v4\.b32", ptx)) == wide
    assert not re.search(r"\b(?:atom|red)\.", ptx)
