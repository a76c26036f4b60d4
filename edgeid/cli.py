"""The command ``edgeid``: parse, run one command, print its outcome, give the exit status."""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from edgeid import (
    cli_bench,
    cli_calibrate,
    cli_convert,
    cli_eval,
    cli_export,
    cli_models,
    cli_people,
)
from edgeid.command import FAILED, INTERRUPTED, Outcome
from edgeid.runtime.errors import EdgeIDError
from edgeid.version import __version__

_EPILOG = """\
exit status:
  0  accepted, or done
  1  rejected, nobody recognised, or a check failed
  2  usage or input error

environment:
  EDGEID_HOME     folder of the key and the template store
                  (default: edgeid in the user's data directory)
  EDGEID_DATA     folder of the data sets, for train, eval and demo (default: ../shared/data)
  EDGEID_THREADS  threads of one inference (default: 1)

Every command takes --json and then prints one JSON object; an error is
{"error": {"code": ..., "message": ...}}.
"""


class UsageError(Exception):
    """The command line cannot be understood."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = _Parser(
        prog="edgeid",
        description="Verify people by face and voice, on this device, offline.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("-V", "--version", action="version", version=f"edgeid {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    cli_people.add_commands(commands)
    cli_models.add_commands(commands)
    cli_convert.add_commands(commands)
    cli_calibrate.add_commands(commands)
    cli_export.add_commands(commands)
    cli_eval.add_commands(commands)
    cli_bench.add_commands(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; the exit status is 0, 1 or 2 as ``edgeid --help`` says.

    Only ``--help`` and ``--version`` leave by SystemExit, as argparse has it.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        options = build_parser().parse_args(given)
        outcome: Outcome = options.run(options)
        return _print(outcome, options.json)
    except KeyboardInterrupt:
        return _fail("interrupted", "interrupted", "--json" in given, INTERRUPTED)
    except Exception as error:
        return _fail(*_explain(error), "--json" in given)


def _explain(error: Exception) -> tuple[str, str]:
    """Code and message of an error."""
    if isinstance(error, EdgeIDError):
        return error.code, str(error)
    if isinstance(error, UsageError):
        return "usage", str(error)
    if isinstance(error, OSError):
        named = f"{error.filename}: " if error.filename is not None else ""
        return "system", f"{named}{error.strerror or error}"
    if isinstance(error, MemoryError):
        return "memory", "out of memory"
    # A fault of EdgeID's own: one line, with the place, is enough to report it.
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{os.path.basename(place.filename)}:{place.lineno}"
    return "internal", f"{type(error).__name__}: {error} ({where}); please report this"


def _print(outcome: Outcome, as_json: bool) -> int:
    if as_json:
        _write(json.dumps(outcome.record, allow_nan=False) + "\n")
    else:
        _write("".join(f"{line}\n" for line in outcome.lines))
    return outcome.status


def _write(text: str) -> None:
    """Print to standard output, whatever characters it knows.

    A reader that has gone (``| head``) is no error: the exit status still holds.

    Raises:
        OSError: it cannot be written to (a full disk).
    """
    stream = sys.stdout
    if stream is None:  # closed by whoever started the program
        return
    encoding = stream.encoding or "utf-8"
    try:
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except OSError as error:
        # The interpreter would try again at exit, complain, and change the exit status.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if not isinstance(error, BrokenPipeError):
            raise


def _fail(code: str, message: str, as_json: bool, status: int = FAILED) -> int:
    with suppress(OSError):  # where even this cannot be printed, the exit status has to do
        if as_json:
            _write(json.dumps({"error": {"code": code, "message": message}}) + "\n")
        else:
            line = " ".join(message.split()).encode("utf-8", "backslashreplace").decode()
            print(f"edgeid: {line}", file=sys.stderr)
    return status
