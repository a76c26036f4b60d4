"""Calibration of a coded graph: codewords are trained until it behaves like the original.

The targets are the original's embeddings and the outputs of its layers on the same inputs,
so no labels are needed (METHODS.md section 1). Indices stay as refinement has chosen them: trained
along by the straight-through estimate, they were worse than those kept. Weights that are yet to be
coded can be trained along: they make good what those before them have lost.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from edgeid.converters.codebook.coding import CodedGraph
from edgeid.converters.codebook.module import CodebookModule
from edgeid.converters.graphs.embedding_loss import embedding_loss
from edgeid.converters.graphs.torch_graph import GraphModule
from edgeid.converters.recipe import Context
from edgeid.runtime.encoding import FloatArray
from edgeid.runtime.errors import DataError
from edgeid.runtime.graph import Graph
from edgeid.runtime.replacement import replace_file

CHECKPOINT = "calibration.pt"
PROBE = 64  # samples on which the loss is measured


@dataclass(frozen=True)
class CodebookCalibration:
    """How codewords are trained.

    Attributes:
        steps: of Adam; 0 leaves the codebooks as they are.
        batch: samples of each entry in a step.
        rate: peak learning rate, relative to the size of what is trained.
        layers: weight of the layers' outputs beside the embeddings.
        blend: share of a batch made of blends of two samples: inputs between those that
            there are, which the original can label as well.
        jitter: pixels (of a log-mel window: bands and frames) by which samples are moved, at
            most; the few that there are count for more.
        mirrored: entries whose samples are turned left to right half the time, as faces may be.
            None of the three is for fresh inputs, which are taken as they come.
        entries: that are trained; none: all. What others read as well stays as it is.
        save_every: steps between checkpoints.
        bfloat16: compute convolutions in bfloat16, about twice as fast where the machine
            knows it.
    """

    steps: int = 600
    batch: int = 64
    rate: float = 5e-3
    layers: float = 0.1
    blend: float = 0.25
    jitter: int = 0
    mirrored: tuple[str, ...] = ()
    entries: tuple[str, ...] = ()
    save_every: int = 50
    bfloat16: bool = False

    def validate(self) -> None:
        """Raise DataError naming what is out of range."""
        for name, least in (("steps", 0), ("batch", 2), ("save_every", 1)):
            if getattr(self, name) < least:
                raise DataError(f"calibration: {name} is {getattr(self, name)}, at least {least}")
        if not 0 < self.rate <= 0.5:
            raise DataError(f"calibration: rate {self.rate} must lie in (0, 0.5]")
        if not 0 <= self.blend <= 1:
            raise DataError(f"calibration: blend {self.blend} must lie in 0..1")
        if not 0 <= self.jitter <= 16:
            raise DataError(f"calibration: jitter {self.jitter} must lie in 0..16")
        if self.layers < 0:
            raise DataError(f"calibration: layers {self.layers} must not be negative")


@dataclass(frozen=True)
class Calibrated:
    """A calibrated graph.

    Attributes:
        coded: with trained codewords.
        before, after: the loss on the first samples.
    """

    coded: CodedGraph
    before: float
    after: float


def calibrate(
    original: Graph,
    coded: CodedGraph,
    options: CodebookCalibration,
    context: Context,
    free: Sequence[str] = (),
) -> Calibrated:
    """Train the codewords of ``coded`` against ``original``; a checkpoint in work is resumed.

    Args:
        original: float weights under the same names, channels in the same order.
        coded: what ``code_graph`` made of it.
        options: how long and how fast.
        context: its samples are the inputs, fresh ones where it has them; no labels.
        free: weights that are not coded, and trained along.

    Raises:
        DataError: the samples or a checkpoint do not fit, or training has diverged.
    """
    options.validate()
    torch.set_num_threads(context.threads)
    training = _Training(original, coded, options, context, free)
    before = training.probe_loss()
    first = training.resume()
    for step in context.track(range(first, options.steps), "calibration", options.steps - first):
        training.step(step)
        if (step + 1) % options.save_every == 0 and step + 1 < options.steps:
            training.save(step + 1)
    student = training.student
    after = training.probe_loss()
    if not math.isfinite(after):
        raise DataError(f"calibration diverged at rate {options.rate}: lower it")
    (context.work / CHECKPOINT).unlink(missing_ok=True)
    graph = replace(coded, graph=student.to_graph(), pairs=student.pairs())
    return Calibrated(graph, before, after)


class _Training:
    """The state of a calibration: student, optimiser, collected gradients."""

    def __init__(
        self,
        original: Graph,
        coded: CodedGraph,
        options: CodebookCalibration,
        context: Context,
        free: Sequence[str] = (),
    ) -> None:
        self.options, self.context, self.coded = options, context, coded
        entries = coded.entries()
        self.entries = tuple(e for e in entries if e in options.entries or not options.entries)
        self.teacher = GraphModule(original, entries).requires_grad_(False)
        self.student = CodebookModule(coded.graph, entries, coded.pairs)
        self.outputs = coded.outputs()
        self.spreads = {entry: self._spreads(entry) for entry in self.entries}
        self.student.requires_grad_(False)
        self.trained = self.student.trainable(self.entries, free)
        for parameter in self.trained:
            parameter.requires_grad_(True)
        groups = [{"params": [p], "peak": options.rate * _size(p)} for p in self.trained]
        self.optimiser = torch.optim.Adam(groups, lr=options.rate, betas=(0.9, 0.99))

    def step(self, step: int) -> None:
        """One batch of every entry and one step of Adam."""
        rate = _schedule(step / self.options.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["peak"]
        self.optimiser.zero_grad()
        rng = np.random.default_rng((self.context.seed, step))
        for entry in self.entries:
            self.loss(entry, self._draw(entry, rng)).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.trained, 5.0)
        self.optimiser.step()
        with torch.no_grad():
            for gain in self.student.gains:
                gain.clamp_(min=1e-3)

    def loss(self, entry: str, x: Tensor) -> Tensor:
        """Cosine and structure of the embeddings, and the outputs of the coded layers."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.options.bfloat16):
            with torch.no_grad():
                wanted = self.teacher.activations(x, entry)
            found = self.student.activations(x, entry)
        output = self.student.graph.entry(entry).output
        unit, target = (
            functional.normalize(values[output].float().flatten(1)) for values in (found, wanted)
        )
        loss = embedding_loss(unit, target)
        if self.options.layers == 0:
            return loss
        errors = [
            (found[name].float() - wanted[name].float()).square().mean() / spread
            for name, spread in self.spreads[entry].items()
        ]
        return loss + self.options.layers * torch.stack(errors).mean()

    @torch.no_grad()
    def _spreads(self, entry: str) -> dict[str, Tensor]:
        """Variance of the original layers' outputs, channel means apart, on a few samples."""
        x = torch.from_numpy(self.context.inputs(entry)[:PROBE])
        wanted = self.teacher.activations(x, entry)
        return {name: _spread(wanted[name]) for name in self.outputs[entry]}

    @torch.no_grad()
    def probe_loss(self) -> float:
        """The loss on the first samples of every entry."""
        return sum(
            float(self.loss(entry, torch.from_numpy(self.context.inputs(entry)[:PROBE])))
            for entry in self.entries
        )

    def save(self, step: int) -> None:
        """Write a checkpoint beside the old one, then rename it there."""
        state = {
            "step": step,
            "student": self.student.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        stream = io.BytesIO()
        torch.save(state, stream)
        self.context.work.mkdir(parents=True, exist_ok=True)
        replace_file(self.context.work / CHECKPOINT, stream.getvalue())

    def resume(self) -> int:
        """The next step: that of the checkpoint, if there is one."""
        path = self.context.work / CHECKPOINT
        if not path.is_file():
            return 0
        try:
            state = torch.load(path, weights_only=True, map_location="cpu")
            self._load(state)
        except Exception as error:
            raise DataError(
                f"{path} is no checkpoint of this calibration ({error}): remove it to start anew"
            ) from error
        return int(state["step"])

    def _load(self, state: Mapping[str, Any]) -> None:
        self.student.load_state_dict(state["student"])
        self.optimiser.load_state_dict(state["optimiser"])

    def _draw(self, entry: str, rng: np.random.Generator) -> Tensor:
        if entry in self.context.fresh:
            return torch.from_numpy(self.context.fresh[entry](self.options.batch, rng))
        samples = self.context.inputs(entry)
        size = min(self.options.batch, len(samples))
        x = self._varied(entry, rng.permutation(len(samples))[:size], rng)
        blended = round(self.options.blend * size)
        if blended:
            share = rng.uniform(0.3, 0.7, (blended, *[1] * (x.ndim - 1))).astype(np.float32)
            others = self._varied(entry, rng.integers(len(samples), size=blended), rng)
            x[:blended] = share * x[:blended] + (1 - share) * others
        return torch.from_numpy(x)

    def _varied(
        self, entry: str, chosen: NDArray[np.int64], rng: np.random.Generator
    ) -> FloatArray:
        """Samples of an entry, moved and mirrored as the options say."""
        x = self._moved(self.context.inputs(entry)[chosen], rng)
        if entry in self.options.mirrored:
            turned = rng.random(len(x)) < 0.5
            x[turned] = x[turned][..., ::-1]
        return x

    def _moved(self, x: FloatArray, rng: np.random.Generator) -> FloatArray:
        """Maps (N, C, H, W), each shifted; what comes in from outside repeats the border."""
        most = self.options.jitter
        if not most or x.ndim != 4:
            return x
        height, width = x.shape[2:]
        wide = np.pad(x, ((0, 0), (0, 0), (most, most), (most, most)), mode="edge")
        corners = rng.integers(2 * most + 1, size=(len(x), 2))
        parts = [
            image[:, top : top + height, left : left + width]
            for image, (top, left) in zip(wide, corners, strict=True)
        ]
        return np.stack(parts)


def _spread(output: Tensor) -> Tensor:
    axes = (0, *range(2, output.ndim))
    return output.var(axes, correction=0).mean().clamp_min(1e-12)


def _size(parameter: Tensor) -> float:
    """Root mean square, and at least a thousandth."""
    return max(1e-3, float(parameter.detach().square().mean().sqrt()))


def _schedule(progress: float) -> float:
    """Linear rise over the first tenth, then half a cosine down to nothing."""
    if progress < 0.1:
        return (progress + 0.01) / 0.11
    return 0.5 * (1 + math.cos(math.pi * (progress - 0.1) / 0.9))
