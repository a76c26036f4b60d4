"""Map the two top-level folders into the package and name the C extension; the rest is in
pyproject.toml."""

import os
from glob import glob

from setuptools import Extension, find_packages, setup


def packages(folder: str) -> list[str]:
    return [f"edgeid.{folder}", *(f"edgeid.{folder}.{name}" for name in find_packages(folder))]


# with a sanitizer the unrolled kernels take many minutes at -O3
OPTIMISATION = "-O1" if "-fsanitize" in os.environ.get("CFLAGS", "") else "-O3"

# Files for another processor are empty on this one, and an instruction set is named in the file
# that uses it: there are no flags a file.
NATIVE = Extension(
    "edgeid.runtime._native",
    sources=sorted(glob("runtime/csrc/*.c")),
    depends=sorted(glob("runtime/csrc/*.h")),
    define_macros=[("Py_LIMITED_API", "0x030B0000")],
    extra_compile_args=[
        "-std=c11",
        OPTIMISATION,
        "-ffp-contract=off",
        "-fvisibility=hidden",
        "-pthread",
    ],
    extra_link_args=["-pthread"],
    py_limited_api=True,
    optional=True,  # without a compiler the other engines serve
)

setup(
    packages=["edgeid", *packages("converters"), *packages("runtime")],
    package_dir={"edgeid.converters": "converters", "edgeid.runtime": "runtime"},
    package_data={
        "edgeid": ["py.typed", "default.edgeid", "samples/*"],
        "edgeid.converters": ["*.json"],
        "edgeid.runtime": ["*.pyi"],
    },
    ext_modules=[NATIVE],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
