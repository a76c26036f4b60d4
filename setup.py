"""Map the two top-level folders into the package; everything else is in pyproject.toml."""

from setuptools import find_packages, setup

CONVERTERS = [f"edgeid.converters.{name}" for name in find_packages("converters")]

setup(
    packages=["edgeid", "edgeid.converters", *CONVERTERS, "edgeid.runtime"],
    package_dir={"edgeid.converters": "converters", "edgeid.runtime": "runtime"},
    package_data={
        "edgeid": ["py.typed", "default.edgeid", "samples/*"],
        "edgeid.converters": ["*.json"],
    },
)
