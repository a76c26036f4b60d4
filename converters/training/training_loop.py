"""The training loop: seeds, progress, checkpoints, resumption."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from edgeid.converters.networks.cnn20 import CNN20, settle_statistics
from edgeid.converters.networks.cnn20_graph import settle_norms
from edgeid.converters.networks.weight_average import average_networks
from edgeid.converters.training.checkpoint import (
    Checkpoint,
    Objective,
    is_model_file,
    start_network,
)
from edgeid.converters.training.muon import Muon
from edgeid.runtime.blas import blas_threads
from edgeid.runtime.errors import DataError

OTHER_RATE = 0.15  # of what is no matrix, relative to the rate

Batch = tuple[Tensor, ...]


@dataclass(frozen=True)
class TrainOptions:
    """How long and how fast.

    Attributes:
        steps: optimiser steps of the one-cycle schedule.
        batch: samples a step.
        rate: peak learning rate, which for ``Muon`` is some tenth of that for SGD.
        optimiser: "muon" needs fewer samples.
        seed: of weights, sampling and augmentation.
        threads: of torch; 2 collapse when anything else uses the cores.
        save_every: steps between checkpoints.
        start: a finished checkpoint whose network is trained further, and its heads if it learnt
            as this one does, at the full margin; or a model file, whose network is, with new
            heads; None starts from random weights.
        keep: share of the network at ``start`` in the weights of the result, 0..1: less of what
            it could do is forgotten, see ``average_networks``.
        progress: whether to show a progress bar.
    """

    steps: int = 2000
    batch: int = 128
    rate: float = 0.2
    optimiser: Literal["sgd", "muon"] = "sgd"
    seed: int = 1
    threads: int = 1
    save_every: int = 100
    start: Path | None = None
    keep: float = 0.0
    progress: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.keep <= 1:
            raise DataError(f"keep lies in 0..1, got {self.keep}")
        if self.keep and self.start is None:
            raise DataError(f"keep {self.keep} needs a network to start from: give start as well")


def train(
    objective: Objective,
    draw: Callable[[np.random.Generator], Batch],
    options: TrainOptions,
    out: Path,
    title: str,
) -> Path:
    """Train ``objective`` on batches from ``draw``, with checkpoints at ``out``; resumes them.

    Each step draws from a generator of its own, seeded by the step: a resumed training sees
    what an unbroken one would have seen.
    """
    torch.set_num_threads(options.threads)
    objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser, schedule = _optimiser(objective, options)
    checkpoint = Checkpoint(out, objective, optimiser, schedule)
    first = checkpoint.resume()
    if first == 0 and options.start is not None:
        checkpoint.start_from(options.start, title)
        if is_model_file(options.start):
            settle_norms(objective.network, _inputs(draw, options, 10))
    bar = tqdm(
        range(first, options.steps),
        initial=first,
        total=options.steps,
        desc=title,
        disable=not options.progress,
    )
    trained_heads = options.start is not None and checkpoint.has_heads(options.start)
    smooth = 0.0
    for step in bar:
        with blas_threads(options.threads):
            batch = draw(np.random.default_rng((options.seed, step)))
        objective.train()
        with torch.autocast("cpu", torch.bfloat16):
            loss = objective.loss(batch, 1.0 if trained_heads else step / options.steps)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(objective.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        smooth = loss.item() if step == first else 0.98 * smooth + 0.02 * loss.item()
        bar.set_postfix(loss=f"{smooth:.4f}")
        if (step + 1) % options.save_every == 0 and step + 1 < options.steps:
            checkpoint.save(step + 1)
    if first < options.steps:
        settle_statistics(objective.network, _inputs(draw, options, 20))
        if options.keep and options.start is not None:
            assert isinstance(objective.network, CNN20)
            start = start_network(options.start, title)
            mean = average_networks(start, objective.network, options.keep)
            settle_norms(mean, _inputs(draw, options, 10))
            objective.network.load_state_dict(mean.state_dict())
        checkpoint.save(options.steps)
    return out


def _inputs(
    draw: Callable[[np.random.Generator], Batch], options: TrainOptions, count: int
) -> list[Tensor]:
    """Inputs of the network in batches that no step is trained on."""
    seeds = [(options.seed, options.steps + i) for i in range(count)]
    return [draw(np.random.default_rng(seed))[0] for seed in seeds]


def _optimiser(
    objective: Objective, options: TrainOptions
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """The optimiser with its one-cycle schedule."""
    one_cycle = torch.optim.lr_scheduler.OneCycleLR
    if options.optimiser == "sgd":
        sgd = torch.optim.SGD(
            objective.parameters(), options.rate, momentum=0.9, weight_decay=5e-4, nesterov=True
        )
        return sgd, one_cycle(sgd, options.rate, total_steps=options.steps, pct_start=0.15)
    matrices = [p for p in objective.network.parameters() if p.ndim > 1]
    known = {id(p) for p in matrices}
    others = [p for p in objective.parameters() if id(p) not in known]
    muon = Muon(matrices, others, options.rate, other_rate=OTHER_RATE * options.rate)
    rates = [group["lr"] for group in muon.param_groups]
    return muon, one_cycle(muon, rates, options.steps, pct_start=0.1, cycle_momentum=False)
