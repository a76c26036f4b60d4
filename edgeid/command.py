"""What the commands of the command line share: their outcome, options and extras."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeid.runtime.errors import MissingExtraError

if TYPE_CHECKING:
    from edgeid.runtime.model import Model

DONE, REJECTED, FAILED, INTERRUPTED = 0, 1, 2, 130

_CONVERT_EXTRA = {
    *("torch", "onnx", "onnxscript", "scipy", "tqdm", "matplotlib"),
    *("ai_edge_litert", "ai_edge_quantizer", "flatbuffers", "kaldi_native_fbank"),
}


@dataclass(frozen=True)
class Outcome:
    """What a command has to say: for ``--json``, for people, and as the exit status."""

    record: dict[str, Any]
    lines: list[str] = field(default_factory=list)
    status: int = DONE


Run = Callable[[argparse.Namespace], Outcome]
Commands = Any  # argparse has no public name for what add_subparsers returns


def add_command(commands: Commands, name: str, run: Run, help_text: str) -> Any:
    """A parser for one command, with what all commands have."""
    sentence = help_text[0].upper() + help_text[1:] + "."
    parser = commands.add_parser(name, help=help_text, description=sentence, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)
    return parser


def add_model_options(parser: Any) -> None:
    """``--model`` and ``--engine``."""
    from edgeid.runtime.engine import ENGINES

    parser.add_argument("--model", default="default", help="an .edgeid file (default: built in)")
    parser.add_argument("--engine", default="auto", choices=ENGINES, help="what runs the network")


def load_model(options: argparse.Namespace) -> Model:
    """The model that the options name. Raises ModelError, EngineError."""
    from edgeid.runtime.model import Model

    return Model.load(
        options.model, engine=options.engine, detector=getattr(options, "detector", None)
    )


def data_directory() -> Path:
    """Folder of the data sets: ``EDGEID_DATA``, else ``../shared/data``."""
    return Path(os.environ.get("EDGEID_DATA") or "../shared/data")


@contextmanager
def convert_extra() -> Iterator[None]:
    """Say how to install what the block needs and cannot import.

    Raises:
        MissingExtraError: a package of ``edgeid[convert]`` is missing.
    """
    try:
        yield
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _CONVERT_EXTRA:
            raise
        raise MissingExtraError(
            f"this command needs {package}, which is not installed: pip install edgeid[convert]"
        ) from error
