"""Coding in turns: what is not coded yet is trained to make good what coding has lost so far.

The layers that come last are the easiest to train around an error, and the hardest to code. So
they are left as they are while those before them are coded, and trained against the original
whenever a turn is done: as in incremental network quantisation (Zhou et al., ICLR 2017), where the
weights that are still whole compensate for those that are quantised already.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edgeid.converters.codebook.calibration import CodebookCalibration, calibrate
from edgeid.converters.codebook.coded_weights import CodedPair, Coding
from edgeid.converters.codebook.coding import CodedGraph, code_graph
from edgeid.converters.codebook.pair_files import pair_file, read_pair, write_pair
from edgeid.converters.codebook.pairing import Pairing
from edgeid.converters.recipe import Context
from edgeid.runtime.errors import ModelError
from edgeid.runtime.format import ModelFile, read_model, write_model
from edgeid.runtime.graph import Graph

TRAINED = "trained"  # folder of what a turn has come to
GRAPH = "graph.edgeid"  # there, written last: a turn that has it is done
Done = tuple[Graph, tuple[CodedPair, ...]]


def code_in_turns(
    original: Graph,
    graph: Graph,
    pairing: Pairing,
    codings: Sequence[Coding],
    context: Context,
    *,
    samples: int,
    rounds: int,
    turns: int,
    training: CodebookCalibration,
) -> CodedGraph:
    """See ``code_graph``; turns that are done are kept in ``context.work``.

    Args:
        turns: in which the pairs are coded, no more than there are pairs; 1 trains nothing.
        training: after each turn but the last, of all codewords so far and all weights that
            are left.
    """
    count = len(pairing.pairs)
    ends = sorted({-(-count * turn // turns) for turn in range(1, turns + 1)})
    before: Graph = graph
    done: tuple[CodedPair, ...] = ()

    def coded(part: Pairing, inside: Context) -> CodedGraph:
        # reproducing what was trained is better than what that was trained towards
        towards = before if done else original
        return code_graph(
            towards, before, part, codings, inside, samples=samples, rounds=rounds, done=done
        )

    for turn, end in enumerate(ends[:-1]):
        part = replace(pairing, pairs=pairing.pairs[:end])
        inside = replace(context, work=context.work / f"turn-{turn}")
        kept = _read_turn(inside.work / TRAINED, part, graph, codings)
        if kept is None:
            left = [name for pair in pairing.pairs[end:] for name in pair.tensors]
            own = replace(inside, seed=context.seed + turn + 1)  # inputs that no other turn draws
            trained = calibrate(original, coded(part, inside), training, own, left).coded
            kept = trained.graph, trained.pairs
            _write_turn(inside.work / TRAINED, *kept)
        before, done = kept
    return coded(pairing, context)


def forget_turns(work: Path) -> None:
    """Remove what ``code_in_turns`` kept."""
    for path in work.glob("turn-*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in work.glob("pair-*.npz"):
        path.unlink(missing_ok=True)


def _write_turn(folder: Path, graph: Graph, pairs: Sequence[CodedPair]) -> None:
    for number, pair in enumerate(pairs):
        write_pair(pair, pair_file(folder, number))
    write_model(ModelFile(graph), folder / GRAPH)


def _read_turn(folder: Path, part: Pairing, graph: Graph, codings: Sequence[Coding]) -> Done | None:
    """A turn that is done; None where it is not."""
    try:
        trained = read_model(folder / GRAPH).graph
    except ModelError:
        return None
    pairs = []
    for number, (pair, coding) in enumerate(zip(part.pairs, codings, strict=False)):
        kept = read_pair(pair_file(folder, number), pair, graph, coding)
        if kept is None:
            return None
        pairs.append(kept)
    return trained, tuple(pairs)
