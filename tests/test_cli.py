from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeid import cli, cli_people
from edgeid.cli import build_parser, main
from edgeid.command import Outcome
from edgeid.runtime.model import Model

pytestmark = pytest.mark.usefixtures("home")

COMMANDS = [
    ["enroll"],
    ["verify"],
    ["identify"],
    ["list"],
    ["remove"],
    ["demo"],
    ["train", "face"],
    ["train", "voice"],
    ["train", "landmarks"],
    ["train", "detector"],
    ["label"],
    ["inspect"],
    ["convert"],
    ["calibrate"],
    ["export"],
    ["eval", "faces"],
    ["eval", "voices"],
    ["eval", "people"],
    ["bench"],
]

Run = Callable[..., tuple[int, Any]]


@pytest.fixture
def files(tmp_path: Path) -> dict[int, str]:
    """Inputs of the fake model by their angle."""
    found = {}
    for degrees in (0, 10, 90, 255):
        path = tmp_path / f"{degrees}.bin"
        path.write_bytes(bytes([degrees]))
        found[degrees] = str(path)
    return found


@pytest.fixture
def run(
    fake_model: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """A command line on the fake model: exit status and the JSON object."""
    monkeypatch.setattr(Model, "load", lambda *_, **__: fake_model)

    def call(*arguments: str) -> tuple[int, Any]:
        capsys.readouterr()
        status = main([*arguments, "--json"])
        printed = capsys.readouterr()
        assert printed.err == ""
        return status, json.loads(printed.out)

    return call


def _leaves(parser: argparse.ArgumentParser) -> Iterator[list[str]]:
    below = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not below:
        yield []
    for name, child in below[0].choices.items() if below else ():
        yield from ([name, *rest] for rest in _leaves(child))


# ---- help and usage


def test_list_of_commands_is_complete() -> None:
    assert list(_leaves(build_parser())) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_and_json(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main([*command, "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert "--json" in text
    assert f"usage: edgeid {' '.join(command)}" in text


def test_main_help_names_status_and_environment(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for word in ("EDGEID_HOME", "EDGEID_DATA", "EDGEID_THREADS", "exit status"):
        assert word in text
    for command in COMMANDS:
        assert f"\n    {command[0]} " in text


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["verify", "--nonsense"],
        ["verify", "--fmr", "x"],
        ["enroll"],
        ["train"],
        ["convert", "--out", "x"],
        ["verify", "--us", "ann"],
        ["verify", "--engine", "quantum"],
    ],
)
def test_usage_errors(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("edgeid: ")
    assert printed.err.count("\n") == 1
    assert main([*arguments, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "usage"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.startswith("edgeid 0.")


# ---- people


def test_from_enrolment_to_removal(run: Run, files: dict[int, str]) -> None:
    status, record = run(
        "enroll", "ann", "--image", files[0], "--image", files[10], "--audio", files[0]
    )
    assert (status, record["user"]["faces"], record["user"]["voices"]) == (0, 2, 1)
    status, record = run("verify", "--image", files[0], "--audio", files[0], "--user", "ann")
    assert (status, record["accepted"], record["modality"]) == (0, True, "fused")
    status, record = run("verify", "--image", files[90], "--user", "ann")
    assert (status, record["accepted"], record["user"]) == (1, False, "ann")
    status, record = run("identify", "--image", files[10])
    assert (status, record["user"]) == (0, "ann")
    status, record = run("identify", "--image", files[90])
    assert (status, record["user"], record["best"]["user"]) == (1, None, "ann")
    assert run("verify", "--image", files[0])[0] == 0
    status, record = run("list")
    assert (status, [user["name"] for user in record["users"]]) == (0, ["ann"])
    status, record = run("remove", "ann")
    assert (status, record["removed"]["name"]) == (0, "ann")
    assert run("list")[1] == {"users": []}


def test_options_reach_the_decision(run: Run, files: dict[int, str]) -> None:
    assert run("enroll", "ann", "--image", files[0], "--audio", files[0])[0] == 0
    status, record = run("verify", "--audio", files[0], "--user", "ann", "--fmr", "0.01")
    assert (status, record["fmr"]) == (1, 0.01)
    status, record = run("verify", "--audio", files[0], "--user", "ann", "--voice-alone")
    assert (status, record["modality"]) == (0, "voice")
    assert run("enroll", "ann", "--image", files[0])[1]["error"]["code"] == "duplicate-user"
    assert run("enroll", "ann", "--image", files[0], "--replace")[1]["replaced"] is True


def test_home_and_store_options(run: Run, files: dict[int, str], tmp_path: Path) -> None:
    home, store = tmp_path / "other", tmp_path / "x.db"
    place = ["--home", str(home), "--store", str(store)]
    assert run("enroll", "ann", "--image", files[0], *place)[0] == 0
    assert os.listdir(home) == ["key"]
    assert store.exists()
    assert len(run("list", *place)[1]["users"]) == 1
    assert run("list")[1] == {"users": []}


def test_text_for_people(
    run: Run, files: dict[int, str], capsys: pytest.CaptureFixture[str]
) -> None:
    run("enroll", "zoë", "--image", files[0])
    assert main(["verify", "--image", files[0], "--audio", files[0], "--user", "zoë"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("accepted: zoë, score 1.000, threshold 0.600, false match rate 0.001\n")
    assert "  no-voice-template: " in text
    assert main(["verify", "--image", files[90]]) == 1
    assert capsys.readouterr().out.startswith("rejected: nobody, score ")
    assert main(["list"]) == 0
    assert capsys.readouterr().out.startswith("zoë  1 face, 0 voices, since 20")
    assert main(["remove", "zoë"]) == 0
    assert main(["list"]) == 0
    assert capsys.readouterr().out == "removed zoë\nnobody is enrolled\n"


# ---- errors


def test_errors_are_json_with_their_code(run: Run, files: dict[int, str], tmp_path: Path) -> None:
    def code(*arguments: str) -> str:
        status, record = run(*arguments)
        assert status == 2
        assert set(record) == {"error"}
        assert set(record["error"]) == {"code", "message"}
        return str(record["error"]["code"])

    image = ["--image", files[0]]
    assert code("verify", *image, "--user", "ann") == "unknown-user"
    assert code("remove", "ann") == "unknown-user"
    assert code("verify") == "bad-input"
    assert code("enroll", "ann") == "bad-input"
    assert code("enroll", "a\nb", *image) == "bad-input"
    assert code("enroll", "ann", "--image", files[255]) == "face-blurred"
    assert code("enroll", "ann", "--audio", files[0]) == "bad-input"
    assert code("verify", *image, "--fmr", "1e-9") == "calibration"
    assert code("verify", *image, "--fmr", "nan") == "calibration"
    assert code("list", "--store", str(tmp_path)) == "store"
    assert code("list", "--store", files[0]) == "store-corrupt"
    assert code("list", "--store", str(tmp_path / "missing" / "x.db")) == "store-full"
    assert code("list", "--home", files[0]) == "store"


@pytest.mark.parametrize("path", ["", "\0", "/", "/dev/null", "missing", "x" * 5000, "\udc80", "~"])
@pytest.mark.parametrize("option", ["--image", "--audio", "--store", "--home", "--model"])
def test_hostile_paths_are_errors_not_tracebacks(
    option: str, path: str, files: dict[int, str], tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, fake_model: Any,
) -> None:  # fmt: skip
    if option != "--model":
        monkeypatch.setattr(Model, "load", lambda *_, **__: fake_model)
    monkeypatch.chdir(tmp_path)
    status = main(["verify", "--image", files[0], option, path, "--user", "ann"])
    printed = capsys.readouterr()
    assert status == 2
    assert printed.out == ""
    assert printed.err.startswith("edgeid: ")
    assert printed.err.count("\n") == 1
    assert "please report" not in printed.err


def test_wrong_key_is_told(run: Run, files: dict[int, str], home: Path) -> None:
    run("enroll", "ann", "--image", files[0])
    (home / "key").chmod(0o644)
    status, record = run("list")
    assert (status, record["error"]["code"]) == (2, "wrong-key")
    assert "chmod 600" in record["error"]["message"]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device", "x"), 2, "system"),
        (MemoryError(), 2, "memory"),
        (KeyError("x"), 2, "internal"),
        (RecursionError(), 2, "internal"),
    ],
)
def test_whatever_happens_is_one_line(
    error: BaseException,
    status: int,
    code: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(_: argparse.Namespace) -> Outcome:
        raise error

    monkeypatch.setattr(cli_people, "list_users", fail)
    assert main(["list"]) == status
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert main(["list", "--json"]) == status
    assert json.loads(capsys.readouterr().out)["error"]["code"] == code


def test_model_that_is_no_model(files: dict[int, str], home: Path, tmp_path: Path) -> None:
    assert main(["verify", "--image", files[0], "--model", files[0]]) == 2
    assert main(["inspect", files[0]]) == 2
    assert main(["inspect", str(tmp_path)]) == 2
    assert not home.exists()  # neither key nor store were made


# ---- as a process


def process(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgeid", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


def test_process_exit_status_and_closed_pipe() -> None:
    assert process("list").returncode == 0
    done = process("remove", "nobody")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("edgeid: nobody named 'nobody'")
    script = f"{sys.executable} -m edgeid list --json | true; exit ${{PIPESTATUS[0]}}"
    closed = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert (closed.returncode, closed.stderr) == (0, "")


@pytest.mark.parametrize("output", ["> /dev/full", "> /dev/full 2>&1", ">&-", ">&- 2>&-"])
@pytest.mark.parametrize("option", ["", "--json"])
def test_process_whose_output_cannot_be_written(output: str, option: str) -> None:
    script = f"{sys.executable} -m edgeid remove nobody {option} {output}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    script = f"{sys.executable} -m edgeid list {option} {output}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == (2 if "full" in output else 0)
    assert "Traceback" not in done.stderr


def test_process_on_an_ascii_terminal() -> None:
    done = process("remove", "zoë", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_missing_extra_prints_the_install_line() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from edgeid.cli import main\n"
        "sys.exit(main(['train', 'face', '--out', 'x', '--json']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "missing-extra"
    assert "pip install edgeid[convert]" in error["message"]


def test_parser_error_is_ours() -> None:
    with pytest.raises(cli.UsageError, match="edgeid verify --help"):
        build_parser().parse_args(["verify", "--fmr", "x"])
