"""The sequence of merged models on the disk: one ``.edgeid`` file for each number of blocks."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeid.converters.graphs.weight_calibration import Task
from edgeid.converters.recipe import Figures
from edgeid.runtime.errors import DataError, ModelError
from edgeid.runtime.format import ModelFile, read_model, write_model
from edgeid.runtime.graph import Graph
from edgeid.runtime.replacement import replace_file


@dataclass(frozen=True)
class MergedModel:
    """A model of the sequence.

    Attributes:
        blocks: merged so far.
        graph: with both entries; merged layers share their weights.
        path: of its file.
        weights: in all, what is shared counted once.
        size: of the file in bytes.
        figures: of the round that made it.
    """

    blocks: int
    graph: Graph
    path: Path
    weights: int
    size: int
    figures: Figures

    def line(self) -> str:
        """For people."""
        losses = ", ".join(
            f"{key} {value:.4f}" for key, value in self.figures.items() if isinstance(value, float)
        )
        return f"{self.blocks} blocks merged: {self.weights:,} weights, {losses or 'as trained'}"


@dataclass(frozen=True)
class ModelSequence:
    """The models under a folder.

    Attributes:
        work: the folder.
        key: of all that the sequence depends on; stored in each file.
        tasks: whose own parameters (classification heads) are kept beside the models.
    """

    work: Path
    key: str
    tasks: Sequence[Task] = ()

    def path(self, blocks: int) -> Path:
        """Of the model with so many merged blocks."""
        return self.work / f"{blocks:02}.edgeid"

    def read(self, blocks: int) -> MergedModel | None:
        """The model if it is there and whole, with the heads that go with it.

        Raises:
            DataError: it belongs to another sequence.
        """
        path = self.path(blocks)
        if not path.exists():
            return None
        try:
            file = read_model(path)
            key, figures = file.card["key"], file.card["figures"]
        except (ModelError, KeyError):  # damaged: the round is run again
            return None
        if key != self.key:
            raise DataError(
                f"{path} was merged from other networks or with other options: "
                "move the folder away or name another"
            )
        if not self._read_heads(blocks):
            return None
        return self._model(blocks, file.graph, figures)

    def keep(self, blocks: int, graph: Graph, figures: Figures) -> MergedModel:
        """Write a model; raises ModelError where the disk does not take it."""
        self.work.mkdir(parents=True, exist_ok=True)
        heads = self._heads()
        if heads:  # first, so that a model is never without its heads
            stream = io.BytesIO()
            torch.save({entry: head.state_dict() for entry, head in heads.items()}, stream)
            replace_file(self._heads_path(blocks), stream.getvalue())
        card: dict[str, Any] = {"key": self.key, "blocks": blocks, "figures": figures}
        write_model(ModelFile(graph=graph, card=card), self.path(blocks))
        return self._model(blocks, graph, figures)

    def _model(self, blocks: int, graph: Graph, figures: Figures) -> MergedModel:
        path = self.path(blocks)
        return MergedModel(blocks, graph, path, graph.weight_count, path.stat().st_size, figures)

    def _heads(self) -> dict[str, nn.Module]:
        return {t.entry: t.loss for t in self.tasks if isinstance(t.loss, nn.Module)}

    def _heads_path(self, blocks: int) -> Path:
        return self.work / f"{blocks:02}.heads.pt"

    def _read_heads(self, blocks: int) -> bool:
        heads = self._heads()
        if not heads:
            return True
        try:
            state = torch.load(self._heads_path(blocks), weights_only=True, map_location="cpu")
            for entry, head in heads.items():
                head.load_state_dict(state[entry])
        except Exception:  # torch raises many kinds for a damaged or missing file
            return False
        return True
