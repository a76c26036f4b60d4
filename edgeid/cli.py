"""The command ``edgeid``: parse, run one command, print its outcome, give the exit status."""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from edgeid import cli_eval, cli_models, cli_people
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
    parser.add_argument("--version", action="version", version=f"edgeid {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    cli_people.add_commands(commands)
    cli_models.add_commands(commands)
    cli_eval.add_commands(commands)
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
    try:
        # A terminal may not know every character of a name.
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (head, say) has gone; the exit status still holds. Without this the
        # interpreter would complain when it flushes again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(code: str, message: str, as_json: bool, status: int = FAILED) -> int:
    if as_json:
        _write(json.dumps({"error": {"code": code, "message": message}}) + "\n")
    else:
        one_line = " ".join(message.split()).encode("utf-8", "backslashreplace").decode()
        print(f"edgeid: {one_line}", file=sys.stderr)
    return status
