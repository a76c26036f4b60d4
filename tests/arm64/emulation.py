"""A pytest plugin for a machine that has the device profile alone and is emulated.

Unless files are named, the runtime's tests are run: those files that import nothing of edgeid
but edgeid.runtime. What needs a package that only the development extras bring is skipped with
the name of the package; no list is kept by hand. Emulated code takes about a hundred times as
long: hypothesis has no deadline and fewer examples, and child processes start through the script
in ``EDGEID_EMULATED_PYTHON``, which starts the emulator.
"""

from __future__ import annotations

import ast
import os
import re
import sys
import tomllib
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = 10


def development_packages() -> set[str]:
    """The import names of what the extras install."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    names = (re.split(r"[\s<>=~!]", need)[0] for extra in extras for need in extra)
    return {name.replace("-", "_") for name in names}


DEVELOPMENT = development_packages()


def pytest_configure() -> None:
    sys.executable = os.environ["EDGEID_EMULATED_PYTHON"]
    settings.register_profile(
        "emulated", deadline=None, max_examples=EXAMPLES, suppress_health_check=list(HealthCheck)
    )
    settings.load_profile("emulated")


def of_the_runtime(path: Path) -> bool:
    """Whether all that a test file imports of edgeid, at its top, is the runtime."""
    names = [
        name
        for statement in ast.parse(path.read_text()).body
        if isinstance(statement, ast.Import | ast.ImportFrom)
        for name in imported(statement)
    ]
    own = [name for name in names if name.partition(".")[0] == "edgeid"]
    return bool(own) and all(f"{name}.".startswith("edgeid.runtime.") for name in own)


def imported(statement: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(statement, ast.Import):
        return [alias.name for alias in statement.names]
    module = statement.module or ""
    return [f"{module}.{alias.name}" for alias in statement.names] if not statement.level else []


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if config.args_source is config.ArgsSource.ARGS or collection_path.suffix != ".py":
        return None
    return None if of_the_runtime(collection_path) else True


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A file that cannot be imported for want of a development package is skipped."""
    report = yield
    missing = re.findall(r"No module named '(\w+)", str(report.longrepr))
    if report.failed and missing and missing[-1] in DEVELOPMENT:
        report.outcome = "skipped"
        report.longrepr = (str(collector.path), 1, f"Skipped: needs {missing[-1]}")
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """So is a test that imports one in its body."""
    try:
        return (yield)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in DEVELOPMENT:
            raise
        pytest.skip(f"needs {error.name}")
