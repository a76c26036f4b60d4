"""Map the two top-level folders into the package; everything else is in pyproject.toml."""

from setuptools import setup

setup(
    packages=["edgeid", "edgeid.converters", "edgeid.runtime"],
    package_dir={"edgeid.converters": "converters", "edgeid.runtime": "runtime"},
    package_data={
        "edgeid": ["py.typed", "default.edgeid", "samples/*"],
        "edgeid.converters": ["*.json"],
    },
)
