"""Training checkpoints: everything needed to go on, or to use the network."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeid.converters.networks.cnn20 import CNN20
from edgeid.converters.networks.cnn20_graph import cnn20_of_graph
from edgeid.runtime.errors import DataError
from edgeid.runtime.format import read_model
from edgeid.runtime.replacement import replace_file


class Objective(nn.Module):
    """A network with its training heads; maps a batch to a loss."""

    network: nn.Module

    def loss(self, batch: tuple[torch.Tensor, ...], progress: float) -> torch.Tensor:
        """The loss of one batch, whose first item is the network's input.

        ``progress`` runs from 0 to 1 over the training.
        """
        raise NotImplementedError

    def shape(self) -> dict[str, Any]:
        """What a checkpoint says of the network beside its weights."""
        return {}


class CNN20Objective(Objective):
    """An objective whose checkpoint ``load_network`` reads."""

    network: CNN20

    def shape(self) -> dict[str, Any]:
        return _shape(self.network)


def _shape(made: CNN20) -> dict[str, Any]:
    return {"width": made.width, "dim": made.dim, "average_time": made.average_time}


@dataclass(frozen=True)
class Checkpoint:
    """What a training run saves to ``path`` and takes up again."""

    path: Path
    objective: Objective
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler

    def save(self, step: int) -> None:
        """Write beside ``path``, then rename: an interrupted save leaves the last one."""
        state = {
            "network": self.objective.network.state_dict(),
            "shape": self.objective.shape(),
            "objective": self.objective.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "step": step,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(self.path.name + ".part")
        torch.save(state, beside)
        os.replace(beside, self.path)

    def resume(self) -> int:
        """Take up a checkpoint at ``path`` if there is one; returns the next step."""
        if not self.path.is_file():
            return 0
        state = read_checkpoint(self.path)
        try:
            self.objective.load_state_dict(state["objective"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.schedule.load_state_dict(state["schedule"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise _other_training(self.path, error) from None
        return int(state["step"])

    def start_from(self, path: Path, entry: str) -> None:
        """Take the weights of a finished training, and its heads if it was one like this.

        Of a model file (.edgeid) the network of ``entry`` is taken, see ``cnn20_of_graph``.
        """
        try:
            if self.has_heads(path):
                self.objective.load_state_dict(read_checkpoint(path)["objective"])
                return
            network = start_network(path, entry)
            if _shape(network) != self.objective.shape():
                raise ValueError(f"a network of {_shape(network)}, not {self.objective.shape()}")
            self.objective.network.load_state_dict(network.state_dict())
        except (KeyError, RuntimeError, ValueError) as error:
            raise _other_training(path, error) from None

    def has_heads(self, path: Path) -> bool:
        """Whether ``path`` holds all that this objective learns, beside the network its heads."""
        if is_model_file(path):
            return False
        stored = read_checkpoint(path).get("objective", {})
        return set(stored) == set(self.objective.state_dict())


def is_model_file(path: Path) -> bool:
    """Whether a network comes from a model file, told by its name; else from a checkpoint."""
    return path.suffix == ".edgeid"


def start_network(path: Path, entry: str) -> CNN20:
    """The network of a checkpoint, or of an entry of a model file."""
    if is_model_file(path):
        return cnn20_of_graph(read_model(path).graph, entry)
    return load_network(path)


def _other_training(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} is a checkpoint of another training ({error}): move it away or name another"
    )


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint without running any code in it; DataError if it is none."""
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        raise DataError(f"{path} is not a training checkpoint: {error}") from None
    if not isinstance(state, dict) or not {"network", "shape", "step"} <= set(state):
        raise DataError(f"{path} is not a training checkpoint")
    return state


def load_network(path: Path) -> CNN20:
    """The trained network of a checkpoint, ready for inference."""
    state = read_checkpoint(path)
    if set(state["shape"]) != {"width", "dim", "average_time"}:
        raise DataError(f"{path} holds another network than CNN-20: {[*state['shape']]}")
    network = CNN20(**state["shape"])
    network.load_state_dict(state["network"])
    return network.eval()


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write a dictionary of tensors; a run that is cut short leaves the last whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    memory = io.BytesIO()
    torch.save(state, memory)
    replace_file(path, memory.getvalue())


def read_state(path: Path) -> dict[str, Any]:
    """Read what ``write_state`` wrote, without running any code in it; DataError if it is none."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no error class of its own
        raise DataError(f"{path} is not a readable checkpoint: {error}") from error
    if not isinstance(state, dict):
        raise DataError(f"{path} holds a {type(state).__name__}, not a dictionary of tensors")
    return state
