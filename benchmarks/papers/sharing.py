"""Paper 000: what sharing codebooks saves, against two networks compressed separately.

    python -m benchmarks.papers.sharing [--seed 1] [--coded] [--quick]

The claim of co-compression is that one codebook for two networks is smaller than two. A
codebook of a network's own fits it better, though, and its K and r may be chosen for that
network alone, so the comparison that counts is at equal accuracy or at equal size. Done here
for the pair and the sizes of ``co_compress``:

- by expected error: bytes of shared codebooks against bytes of separate ones whose expected
  error of the embeddings is equal (``SharedCodebooks(compare=True)`` reports the same);
- as coded (``--coded``, long): both networks with codebooks of their own in a file of the
  same size, K and r chosen layer by layer for each, refined but not calibrated; cosine to the
  originals and EER on the calibration people beside those of the shared file (of
  ``co_compress``, same seed).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.papers.co_compress import DEFAULT, POINTS, codebooks
from benchmarks.papers.default_pair import (
    HELD,
    WORK,
    held_figures,
    held_inputs,
    original_pair,
    size,
    training_inputs,
)
from benchmarks.papers.figures import RESULTS, arguments, save_results, table
from edgeid.converters.codebook.budget import allocate, cheapest, rest_bytes
from edgeid.converters.codebook.pairing import pair_layers
from edgeid.converters.codebook.plan import decoded, measure_importance
from edgeid.converters.codebook.sensitivity import Sensitivity, coding_choices, measure
from edgeid.converters.codebook.shared_codebooks import LayerCoding, SharedCodebooks
from edgeid.converters.codebook.sharing import Sharing
from edgeid.converters.graphs.fully_connected import as_convolutions
from edgeid.converters.graphs.output_scales import with_output_scales
from edgeid.converters.recipe import Context, run_recipe
from edgeid.runtime.graph import Graph

ENTRIES = ("face", "voice")


class Comparison:
    """Shared and separate codebooks of the pair: what each way could take and would cost."""

    def __init__(self, graph: Graph, context: Context, samples: int) -> None:
        self.context = context
        self.pairing = pair_layers(as_convolutions(graph), ENTRIES)
        coded = [name for pair in self.pairing.pairs for name in pair.tensors]
        self.graph = with_output_scales(as_convolutions(graph), coded)
        self.importance = measure_importance(self.graph, self.pairing, context, samples)
        self.shared: Sensitivity = measure(self.graph, self.pairing, self.importance, context)
        self.rest = rest_bytes(self.graph, coded)
        self.alone = {}
        steps = zip(self.pairing.pairs, self.shared.factors, strict=True)
        for pair, factor in context.track(list(steps), "separate codebooks"):
            for name in pair.tensors:
                weight = decoded(self.graph, (name,))
                cost = {name: self.importance.of(name)}
                self.alone[name] = coding_choices(weight, cost, factor, context.seed)

    def expected(self, nbytes: int) -> dict[str, Any]:
        """Shared codebooks of so many bytes, against separate ones of equal expected error."""
        chosen = allocate(self.shared.choices, nbytes)
        separate = [
            next(choice for choice in self.alone[name] if choice.coding == of_pair.coding)
            for pair, of_pair in zip(self.pairing.pairs, chosen, strict=True)
            for name in pair.tensors
        ]
        error = sum(choice.error for choice in chosen)
        found = Sharing(
            shared_bytes=sum(choice.nbytes for choice in chosen),
            shared_error=error,
            separate_bytes=sum(choice.nbytes for choice in separate),
            separate_error=sum(choice.error for choice in separate),
            best_error=error,
            equal_bytes=cheapest(list(self.alone.values()), error),
        )
        at_equal_bytes = allocate(list(self.alone.values()), found.shared_bytes)
        return {
            "line": found.line(),
            **found.figures(),
            "separate_error_at_equal_bytes": sum(choice.error for choice in at_equal_bytes),
            **{
                f"separate_bytes/{entry}": sum(
                    choice.nbytes
                    for name, choice in zip(self.alone, at_equal_bytes, strict=True)
                    if name.startswith(f"{entry}/")
                )
                for entry in ENTRIES
            },
        }

    def layers(self, entry: str, nbytes: int) -> tuple[LayerCoding, ...]:
        """K and r of one network's layers where both have codebooks of their own."""
        chosen = allocate(list(self.alone.values()), nbytes)
        return tuple(
            LayerCoding(name, choice.coding.k, choice.coding.r)
            for name, choice in zip(self.alone, chosen, strict=True)
            if name.startswith(f"{entry}/")
        )


def coded_apart(
    graph: Graph, comparison: Comparison, nbytes: int, step: SharedCodebooks
) -> tuple[Graph, list[str]]:
    """Both networks with codebooks of their own, of so many bytes together."""
    passes = [
        SharedCodebooks(
            entries=(entry,),
            layers=comparison.layers(entry, nbytes),
            samples=step.samples,
            rounds=step.rounds,
            calibration=step.calibration,
        )
        for entry in ENTRIES
    ]
    made, reports = run_recipe(passes, graph, comparison.context)
    return made, [line for report in reports for line in report.lines]


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All sizes of ``co_compress``."""
    work = options.work or Path("work/papers/sharing")
    graph = original_pair(WORK)
    count = 8000 if options.coded else 600
    samples = training_inputs(WORK, options.seed, count)
    context = Context(samples, work, options.seed, options.threads)
    comparison = Comparison(graph, context, 32 if options.quick else 256)
    results: dict[str, Any] = {"paper": "000", "seed": options.seed, "quick": options.quick}
    for name in options.point:
        budget = int(size(graph) / POINTS[name].times)
        step = codebooks(budget, 0)
        nbytes = coded_bytes(name, options.seed) or budget - comparison.rest
        results[name] = {"coded_bytes": nbytes, "expected": comparison.expected(nbytes)}
        save_results(options.out or RESULTS / f"sharing-seed{options.seed}.json", results)
        if options.coded:
            held = held_inputs(WORK, 200 if options.quick else HELD)
            made, lines = coded_apart(graph, comparison, nbytes, step)
            results[name]["separate"] = {
                "bytes": size(made),
                "held": held_figures(made, graph, held),
                "lines": lines,
            }
            results[name]["shared"] = shared_run(name, options.seed)
            save_results(options.out or RESULTS / f"sharing-seed{options.seed}.json", results)
    return results


def _of_co_compress(name: str, seed: int) -> dict[str, Any] | None:
    path = RESULTS / f"co_compress-{name}-seed{seed}.json"
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text())["points"][name]
    return found


def coded_bytes(name: str, seed: int) -> int | None:
    """Of the shared file of ``co_compress``: indices, codebooks and scales."""
    found = _of_co_compress(name, seed)
    if found is None:
        return None
    return int(found["figures"]["index_bytes"]) + int(found["figures"]["codebook_bytes"])


def shared_run(name: str, seed: int) -> dict[str, Any] | None:
    """What ``co_compress`` found, for comparison."""
    found = _of_co_compress(name, seed)
    return None if found is None else {key: found[key] for key in ("bytes", "held", "lines")}


def markdown(results: dict[str, Any], names: list[str]) -> str:
    """Shared beside separate."""
    rows = []
    for name in names:
        for way in ("shared", "separate"):
            part = results[name].get(way)
            if part is not None:
                held = part["held"]
                cosines = [f"{held[e]['cosine']:.4f}" for e in ENTRIES]
                eers = [f"{100 * held[e]['eer']:.2f}" for e in ENTRIES]
                rows.append([f"{name}, {way}", f"{part['bytes']:,}", *cosines, *eers])
    head = ["codebooks", "bytes", "cosine face", "cosine voice", "EER face, %", "EER voice, %"]
    lines = [f"{name}: {results[name]['expected']['line']}" for name in names]
    return "\n".join([*lines, *(["", table(head, rows)] if rows else [])])


def main() -> None:
    """Compare, print, keep."""
    parser = arguments(__doc__)
    parser.add_argument("--point", nargs="+", choices=DEFAULT, default=DEFAULT)
    parser.add_argument("--coded", action="store_true", help="code both ways, do not only expect")
    options = parser.parse_args()
    print(markdown(run(options), options.point))


if __name__ == "__main__":
    main()
