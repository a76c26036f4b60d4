"""Pass: the layers of two networks share codebooks (co-compress, paper 000; NeuralMerger).

The steps, in order: fully connected layers over maps become convolutions; layers are
paired; output scales are taken out of the weights; each pair gets its K and r; channels are
reordered; the pairs are clustered from front to back; the codewords are calibrated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np
import torch

from edgeid.converters.codebook.calibration import CodebookCalibration, calibrate
from edgeid.converters.codebook.coded_weights import Coding
from edgeid.converters.codebook.pairing import Pairing, pair_layers
from edgeid.converters.codebook.plan import (
    Importance,
    embedding_cosines,
    measure_importance,
    reorder_channels,
)
from edgeid.converters.codebook.report import codebook_report
from edgeid.converters.codebook.sensitivity import (
    Sensitivity,
    check_budget,
    choose_codings,
    forget_sensitivity,
    measure,
)
from edgeid.converters.codebook.sharing import measure_sharing
from edgeid.converters.codebook.turns import code_in_turns, forget_turns
from edgeid.converters.graphs.fully_connected import as_convolutions
from edgeid.converters.graphs.output_scales import with_output_scales
from edgeid.converters.recipe import Context, Pass, PassResult
from edgeid.runtime.codebook import Codebook
from edgeid.runtime.encoding import Dense, FloatArray, encode_float16, encode_int8
from edgeid.runtime.errors import DataError, GraphError
from edgeid.runtime.format import ModelFile, dump_model
from edgeid.runtime.graph import Graph

HELD_OUT = 10  # one sample in so many is kept from clustering and calibration,
HELD_MOST = 256  # but no more than these
DRAWN = 256  # fresh inputs at once


@dataclass(frozen=True)
class LayerCoding:
    """K and r of one layer as the user wants them.

    Attributes:
        weight: name of its weight; its partner has the same codebooks.
        k: codewords of a sub-space.
        r: length of a sub-vector.
    """

    weight: str
    k: int
    r: int


@dataclass(frozen=True)
class SharedCodebooks(Pass):
    """Code the weights of one or two networks; the layers of two share their codebooks.

    Networks may differ in depth and width. No labels are needed.

    Attributes:
        entries: the networks, one or two; others stay as they are.
        budget: bytes of a model file with this graph, without score calibration and golden
            vectors; K and r of each layer are chosen to fit. None: ``k`` and ``r`` everywhere.
        k, r: codewords of a sub-space, length of a sub-vector.
        layers: exceptions, which hold with a budget too.
        reorder: permute channels so that similar sub-vectors share a sub-space.
        narrow: layers with fewer input or output channels are not coded.
        samples: of each entry that weigh errors; more take more time and memory.
        rounds: of refinement of codewords and indices against the original layers' outputs,
            in turn; 0 leaves what k-means made.
        turns: in which layers are coded, front to back; after each, ``between`` steps of
            calibration train what is left to make good what was lost (``code_in_turns``).
        between: see there.
        apart: under a budget, layers of a pair may have codebooks of their own instead, each
            with its K and r, where that makes the smaller error; takes twice as long to
            choose. Sharing binds a pair to one K and r, which costs where one network needs
            finer codebooks than the other.
        shortest: sub-vectors that a budget may choose, at least; of all entries, or of each by
            name (2 where one is not named), and of weights for which it differs. From 4 on the
            native engine looks up where it would multiply for 2, and 8 is faster still.
        largest: codewords of a sub-space that a budget may choose, at most. From 64 down the
            native engine looks up, however many outputs there are.
        compare: measure what sharing saves against separate codebooks of equal error; takes
            as long as the choice under a budget.
        rest: how weights that are not coded are stored. Scales, shifts, biases and slopes
            are float16 as well, except with "float32" and where they would lose by it.
        calibration: training of the codewords; ``steps=0`` for none.
    """

    entries: tuple[str, ...] = ("face", "voice")
    budget: int | None = None
    k: int = 64
    r: int = 8
    layers: tuple[LayerCoding, ...] = ()
    reorder: bool = True
    narrow: int = 8
    samples: int = 256
    rounds: int = 4
    turns: int = 1
    between: int = 200
    apart: bool = False
    shortest: Literal[2, 4, 8] | dict[str, Literal[2, 4, 8]] = 2
    largest: Literal[16, 32, 64, 256] = 256
    compare: bool = False
    rest: Literal["float32", "float16", "int8"] = "float16"
    calibration: CodebookCalibration = field(default_factory=CodebookCalibration)

    name: ClassVar[str] = "codebook"

    def requires(self, graph: Graph, context: Context) -> None:
        Coding(self.k, self.r).validate()
        self.calibration.validate()
        if self.samples < 1 or (self.budget is not None and self.budget < 1):
            raise DataError(f"samples {self.samples} and budget {self.budget} must be positive")
        if self.apart and (self.budget is None or self.compare):
            raise DataError("apart needs a budget, and cannot be compared with codebooks apart")
        if self.rounds < 0 or self.between < 0:
            raise DataError(f"rounds {self.rounds}, between {self.between}: must not be negative")
        if not {*self.calibration.entries} <= {*self.entries}:
            raise DataError(
                f"calibration: entries {[*self.calibration.entries]} are not all of "
                f"{[*self.entries]}, which are coded"
            )
        if self.turns < 1:
            raise DataError(f"turns {self.turns}: layers are coded in 1 or more")
        for entry in self.entries:
            graph.entry(entry)
            context.inputs(entry)
        coded = {t for pair in self._pairing(graph).pairs for t in pair.tensors}
        known = {*self.entries, *coded}
        strangers = () if isinstance(self.shortest, int) else self.shortest.keys() - known
        if strangers:
            raise DataError(f"shortest: {sorted(strangers)} are none of {sorted(known)}")
        for layer in self.layers:
            Coding(layer.k, layer.r).validate()
            if layer.weight not in coded:
                raise DataError(f"K and r for {layer.weight!r}, which is not coded: {coded}")

    def call(self, graph: Graph, context: Context) -> PassResult:
        torch.set_num_threads(context.threads)
        pairing = self._pairing(graph)
        coded = [name for pair in pairing.pairs for name in pair.tensors]
        original = with_output_scales(as_convolutions(graph), coded)
        used, held = _split(context, self.entries)
        if self.budget is not None:  # fail before the long work
            stored = self._vectors_stored(self._rest_stored(original, coded))
            check_budget(stored, pairing, self.budget, self._fixed(pairing))
        importance = measure_importance(original, pairing, used, self.samples)
        sensitivity = self._sensitivity(original, pairing, importance, used)
        if sensitivity is not None:
            pairing, sensitivity = sensitivity.divided(pairing)
        codings = sensitivity.codings if sensitivity else self._given(pairing)
        sharing = None
        if self.compare:
            known = sensitivity or measure(original, pairing, importance, used)
            sharing = measure_sharing(original, pairing, codings, importance, known, used)
        if self.reorder:
            original = reorder_channels(original, pairing, codings, importance)
        stored = self._rest_stored(original, coded)
        clustered = code_in_turns(
            original,
            stored,
            pairing,
            codings,
            used,
            samples=self.samples,
            rounds=self.rounds,
            turns=self.turns,
            training=replace(self.calibration, steps=self.between),
        )
        result = calibrate(original, clustered, self.calibration, used)
        stages = {
            "clustered": self._vectors_stored(clustered.graph),
            "calibrated": self._vectors_stored(result.coded.graph),
        }
        cosines = {
            stage: embedding_cosines(original, graph, held, self.entries)
            for stage, graph in stages.items()
        }
        best = max(stages, key=lambda stage: (sum(cosines[stage].values()), stage == "clustered"))
        lines, figures = codebook_report(pairing, result, cosines, sensitivity, sharing)
        forget_turns(context.work)
        forget_sensitivity(context.work)
        lines += (f"stored as {best}: nearer to the original on samples kept for this",)
        return PassResult(stages[best], lines, figures)

    def ensures(self, before: Graph, after: Graph, _context: Context) -> None:
        for pair in self._pairing(before).pairs:
            for name in pair.tensors:
                if not isinstance(after.tensors.get(name), Codebook):
                    raise GraphError(f"weight {name!r} is not coded")
        if self.budget is not None:
            size = len(dump_model(ModelFile(after)))
            if size > self.budget:
                raise GraphError(f"the model takes {size} bytes, above the budget {self.budget}")

    def _pairing(self, graph: Graph) -> Pairing:
        return pair_layers(as_convolutions(graph), self.entries, self.narrow)

    def _sensitivity(
        self, original: Graph, pairing: Pairing, importance: Importance, used: Context
    ) -> Sensitivity | None:
        """The choice of K and r under a budget."""
        if self.budget is None:
            return None
        coded = [name for pair in pairing.pairs for name in pair.tensors]
        stored = self._vectors_stored(self._rest_stored(original, coded))
        return choose_codings(
            original,
            stored,
            pairing,
            importance,
            used,
            budget=self.budget,
            fixed=self._fixed(pairing),
            apart=self.apart,
            shortest=self._shortest(),
            largest=self.largest,
        )

    def _fixed(self, pairing: Pairing) -> dict[int, Coding]:
        """The codings that the user wants under a budget too, by number of the pair."""
        named = {layer.weight for layer in self.layers}
        return {
            number: coding
            for number, coding in enumerate(self._given(pairing))
            if named & set(pairing.pairs[number].tensors)
        }

    def _shortest(self) -> dict[str, int]:
        """For each entry."""
        if isinstance(self.shortest, int):
            return dict.fromkeys(self.entries, self.shortest)
        return dict.fromkeys(self.entries, 2) | self.shortest

    def _given(self, pairing: Pairing) -> tuple[Coding, ...]:
        """K and r of every pair as the user wants them."""
        own = {layer.weight: Coding(layer.k, layer.r) for layer in self.layers}
        return tuple(
            next((own[t] for t in pair.tensors if t in own), Coding(self.k, self.r))
            for pair in pairing.pairs
        )

    def _rest_stored(self, graph: Graph, coded: Sequence[str]) -> Graph:
        """The weights of the entries that are not coded as ``rest`` says."""
        if self.rest == "float32":
            return graph
        encode = encode_float16 if self.rest == "float16" else encode_int8
        names = self._own_tensors(graph) - set(coded)
        tensors = {
            name: encode(tensor.decode())
            if name in names and isinstance(tensor, Dense) and len(tensor.shape) > 1
            else tensor
            for name, tensor in graph.tensors.items()
        }
        return replace(graph, tensors=tensors)

    def _vectors_stored(self, graph: Graph) -> Graph:
        """Scales, shifts, biases and slopes of the entries as float16, once they are final."""
        if self.rest == "float32":
            return graph
        names = self._own_tensors(graph)
        tensors = {
            name: encode_float16(tensor.decode())
            if name in names and len(tensor.shape) == 1 and _fits_float16(tensor.decode())
            else tensor
            for name, tensor in graph.tensors.items()
        }
        return replace(graph, tensors=tensors)

    def _own_tensors(self, graph: Graph) -> set[str]:
        return {n for e in self.entries for x in graph.layers_of(e) for n in x.tensor_names()}


def _fits_float16(values: FloatArray) -> bool:
    """Whether rounding changes no value by more than its thousandth, but for tiny ones."""
    largest = float(np.abs(values).max())
    if largest > float(np.finfo(np.float16).max):
        return False
    rounded = values.astype(np.float16).astype(np.float32)
    return bool(np.allclose(rounded, values, rtol=1e-3, atol=1e-6 * largest))


def _split(context: Context, entries: Sequence[str]) -> tuple[Context, Context]:
    """Samples to work with, and samples to judge by; the same where there are few.

    Half are fresh inputs where an entry has a source of them: codewords fit what they were
    fitted to.
    """
    used, held = {}, {}
    for entry in entries:
        samples = context.inputs(entry)
        if entry in context.fresh:
            rng = np.random.default_rng((context.seed, HELD_OUT, HELD_MOST))
            changed = rng.permutation(len(samples))[: len(samples) // 2]
            samples = samples.copy()
            parts = [changed[start : start + DRAWN] for start in range(0, len(changed), DRAWN)]
            for part in context.track(parts, f"fresh inputs: {entry}"):
                samples[part] = context.fresh[entry](len(part), rng)
        last = min(HELD_MOST, len(samples) // HELD_OUT)
        used[entry] = samples[: len(samples) - last]
        held[entry] = samples[len(samples) - last :] if last else samples
    return replace(context, samples=used), replace(context, samples=held)
