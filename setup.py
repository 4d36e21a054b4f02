"""The one thing that setup.cfg cannot say: the native image path, which a wheel has where a C compiler built it."""

from pathlib import Path

from setuptools import Extension, setup

NATIVE = Path("deit_fast/data/native")
# Python's own flags often have -fwrapv, with which loops over sums of int indices are not vectorised.
FLAGS = ["-O3", "-fno-wrapv", "-std=gnu11", "-ffp-contract=off", "-fvisibility=hidden", "-pthread", "-Wno-psabi"]

setup(
    ext_modules=[
        Extension(
            "deit_fast.data.native._views",
            sources=sorted(str(path) for path in NATIVE.glob("*.c")),
            depends=sorted(str(path) for path in NATIVE.glob("*.h")),
            extra_compile_args=FLAGS,
            extra_link_args=["-pthread"],
            libraries=["m"],
            py_limited_api=True,  # it has no Python in it: one file for all versions
            optional=True,  # without a compiler the package is whole, and DALI's graph makes the pixels
        )
    ]
)
