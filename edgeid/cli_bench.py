"""The command ``bench``: how fast a model runs on this machine, engine by engine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from edgeid.command import Commands, Outcome, add_command

if TYPE_CHECKING:
    from edgeid.speed import EngineSpeed, SpeedReport


def add_commands(commands: Commands) -> None:
    """Add ``bench`` to the parser."""
    from edgeid.runtime.engine import ENGINES

    parser = add_command(commands, "bench", bench, "time a model on this machine")
    parser.add_argument("--model", default="default", help="an .edgeid file (default: built in)")
    parser.add_argument(
        "--engine", choices=ENGINES, help="this one alone, in one process (default: all, in turns)"
    )
    parser.add_argument("--threads", type=int, help="of one inference (default: EDGEID_THREADS)")
    parser.add_argument(
        "--rounds", type=int, default=3, help="processes of each engine (default: 3)"
    )
    parser.add_argument(
        "--seconds", type=float, default=0.5, help="for each network and process (default: 0.5)"
    )
    parser.add_argument(
        "--tune",
        action="store_true",
        help="first choose the fastest kernel of every layer for the native engine, and keep it",
    )
    parser.add_argument("--layers", type=int, default=24, help="slowest layers shown (default: 24)")


def bench(options: argparse.Namespace) -> Outcome:
    from edgeid.runtime.engine import thread_count
    from edgeid.runtime.errors import DataError
    from edgeid.speed import SpeedReport, machine, measure_engine, measure_engines

    if not 0 <= options.seconds <= 3600 or not 1 <= options.rounds <= 1000:
        raise DataError(
            f"{options.rounds} rounds of {options.seconds} seconds: 1..1000 of 0..3600 are possible"
        )
    threads = thread_count(options.threads)
    tuned = _tune(options.model, threads) if options.tune else []
    if options.engine is None:
        report = measure_engines(options.model, threads, options.seconds, options.rounds)
    else:
        one = measure_engine(options.model, options.engine, threads, options.seconds)
        report = SpeedReport(options.model, machine(), threads, (one,), {})
    return Outcome(report.to_dict(), [*tuned, *report_lines(report, options.layers)])


def _tune(model: str, threads: int) -> list[str]:
    from edgeid.runtime.format import read_model
    from edgeid.runtime.model import default_model
    from edgeid.runtime.native.engine import tune

    path = default_model() if model == "default" else Path(model)
    choices, kept = tune(read_model(path).graph, threads)
    changed = [
        f"  {entry}, {layer}: {level}"
        for entry, layers in choices.items()
        for layer, level in layers.items()
    ]
    return [f"{len(changed)} layers are faster by another instruction set ({kept})", *changed, ""]


def report_lines(report: SpeedReport, layers: int) -> list[str]:
    """The report for people: engines, then the slowest layers of the fastest engine."""
    from edgeid.bar_chart import Bar, draw_bars

    own = report.machine
    lines = [
        f"{report.model} on {own['processor']}, {own['cores']} cores, {own['system']}, "
        f"{report.threads} thread{'s' if report.threads > 1 else ''}"
    ]
    for entry in report.engines[0].entries if report.engines else ():
        times = [(one.engine, one.entries[entry]) for one in report.engines]
        bars = [Bar(n, t.minimum, f"{t.minimum:.2f} ms (median {t.median:.2f})") for n, t in times]
        lines += ["", *draw_bars(f"{entry}, one input, the fastest run", bars)]
    lines += ["", *(_memory_line(one) for one in report.engines)]
    lines += [f"{name}: not measured: {why}" for name, why in report.absent.items()]
    for one in report.engines:
        for entry, found in one.layers.items():
            slowest = sorted(found, key=lambda row: row.milliseconds, reverse=True)[:layers]
            kept = [row for row in found if row in slowest]
            total = sum(row.milliseconds for row in found)
            title = f"{one.engine}, {entry}: {len(kept)} of {len(found)} layers, {total:.2f} ms"
            rows = [
                Bar(f"{row.layer} ({row.kernel})", row.milliseconds, f"{row.milliseconds:.3f} ms")
                for row in kept
            ]
            lines += ["", *draw_bars(title, rows)]
    return lines


def _memory_line(one: EngineSpeed) -> str:
    memory = "" if one.peak is None else f", {one.peak:.0f} MiB of memory at most"
    return f"{one.engine}: loaded and checked in {one.load:.0f} ms{memory}"
