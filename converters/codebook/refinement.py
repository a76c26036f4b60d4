"""Codewords and indices chosen for what a layer puts out, not for how near its weights are.

Clustering weighs each weight by itself, as if the inputs of a layer were uncorrelated. They
are strongly correlated, and an error in one weight can be made good by another. Here the
error is that of the outputs over whole input patches, the inputs being those behind the layers
coded already and the targets those of the original network. Indices are re-assigned one
sub-vector after the other with all others fixed (iterated conditional modes, Besag 1986),
in turn with a least-squares update of all codewords at once by conjugate gradients. "And the
bit goes down" (Stock et al. 2020, section 3.2) alternates likewise but assigns with the
codewords' own error alone; the first assignment lets the weights not yet coded make good
what the coded ones leave, as in GPTQ (Frantar et al. 2023, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from edgeid.converters.codebook.coded_weights import CodedPair
from edgeid.converters.codebook.output_error import OutputError
from edgeid.runtime.codebook import quantise_codewords

CONJUGATE_STEPS = 12


def refine(pair: CodedPair, errors: Mapping[str, OutputError], rounds: int) -> CodedPair:
    """Better codewords and indices.

    Args:
        pair: as clustering made it.
        errors: of each of its weights.
        rounds: of assignment and update in turn.
    """
    state = _State(pair, errors)
    for number in range(rounds):
        for name in pair.shapes:
            state.assign(name, compensated=number == 0)
        state.update()
    for name in pair.shapes:
        state.assign(name)
    return state.pair()


class _State:
    """Codewords, gains and indices while they are refined."""

    def __init__(self, pair: CodedPair, errors: Mapping[str, OutputError]) -> None:
        self._pair, self._errors = pair, errors
        self.codewords = pair.codewords.clone()
        self.gains = dict(pair.gains)
        # (spaces, taps, out)
        self.indices = {
            name: rows.reshape(len(rows), -1, pair.shapes[name][0]).clone()
            for name, rows in pair.indices.items()
        }

    def table(self, name: str) -> Tensor:
        """(its sub-spaces, K, r)."""
        gain = self.gains[name]
        return self.codewords[: len(gain)] * gain[:, None, None]

    def weight(self, name: str, codewords: Tensor | None = None) -> Tensor:
        """(blocks, r, out) that the indices name."""
        gain = self.gains[name]
        table = self.codewords if codewords is None else codewords
        table = table[: len(gain)] * gain[:, None, None]
        _, k, r = table.shape
        flat = self.indices[name] + k * torch.arange(len(table))[:, None, None]
        found = functional.embedding(flat, table.reshape(-1, r))  # spaces, taps, out, r
        return found.flatten(0, 1).transpose(1, 2)

    def gathered(self, name: str, slope: Tensor) -> Tensor:
        """The adjoint of ``weight``: (blocks, r, out) -> (spaces, K, r) of the codewords."""
        gain, indices = self.gains[name], self.indices[name]
        spaces, taps, out = indices.shape
        _, k, r = self.codewords.shape
        values = slope.transpose(1, 2).reshape(spaces, taps * out, r) * gain[:, None, None]
        total = torch.zeros(len(self.codewords) * k, r)
        flat = indices.reshape(spaces, -1) + k * torch.arange(spaces)[:, None]
        total.index_add_(0, flat.reshape(-1), values.reshape(-1, r))
        return total.reshape(self.codewords.shape)

    def error(self) -> float:
        """Summed over the weights."""
        return sum(error.value(self.weight(name)) for name, error in self._errors.items())

    def assign(self, name: str, compensated: bool = False) -> None:
        """One sweep over the blocks of a weight.

        Args:
            name: of the weight.
            compensated: start from the original and code the blocks from the last to the
                first; each is judged as if those before could still make good its error.
        """
        error, table, indices = self._errors[name], self.table(name), self.indices[name]
        compensated = compensated and error.triangular
        weight = error.start.clone() if compensated else self.weight(name)
        residual = error.residual(weight)
        _, taps, _ = indices.shape
        r = table.shape[2]
        ridge = error.ridge * torch.eye(r)
        for block in reversed(range(len(weight))):
            space, tap = divmod(block, taps)
            last = (block + 1) * r if error.triangular else residual.shape[0]
            first = block * r if compensated else 0
            rows = error.rows[block, :, first:last]
            square = rows @ rows.T + ridge
            slope = rows @ residual[first:last]
            if error.ridge:
                slope += error.ridge * (weight[block] - error.start[block])
            wanted = square @ weight[block] - slope  # (r, out)
            costs = ((table[space] @ square) * table[space]).sum(1, keepdim=True)
            chosen = torch.argmin(costs - 2 * (table[space] @ wanted), dim=0)
            indices[space, tap] = chosen
            change = table[space][chosen].T - weight[block]
            weight[block] += change
            residual[:last] += error.rows[block, :, :last].T @ change

    def update(self) -> None:
        """Codewords by least squares with the indices fixed, then rounded."""
        slope = sum(
            (self.gathered(n, e.slope(self.weight(n))) for n, e in self._errors.items()),
            torch.zeros_like(self.codewords),
        )

        def normal(change: Tensor) -> Tensor:
            parts = (
                self.gathered(n, e.normal(self.weight(n, change))) for n, e in self._errors.items()
            )
            return sum(parts, torch.zeros_like(change))

        diagonal = torch.zeros_like(self.codewords)
        for name, error in self._errors.items():
            square = error.rows.square().sum(2) + error.ridge  # (blocks, r)
            gain = self.gains[name].repeat_interleave(self.indices[name].shape[1])
            each = square[:, :, None] * gain[:, None, None] * error.reach
            diagonal += self.gathered(name, each)
        change = conjugate_gradients(normal, -slope, diagonal, CONJUGATE_STEPS)
        values, scale = quantise_codewords((self.codewords + change).numpy())
        self.codewords = torch.from_numpy(values * scale[:, None, None])

    def pair(self) -> CodedPair:
        """As the graph will hold it."""
        indices = {name: rows.flatten(1) for name, rows in self.indices.items()}
        return replace(self._pair, codewords=self.codewords, indices=indices)


def conjugate_gradients(
    normal: Callable[[Tensor], Tensor], wanted: Tensor, diagonal: Tensor, steps: int
) -> Tensor:
    """x with ``normal(x)`` near ``wanted``, from 0 on, preconditioned by a diagonal.

    Args:
        normal: symmetric and positive semi-definite.
        wanted: of any shape.
        diagonal: of ``normal``; where it is 0, so stays x.
        steps: at most.
    """
    inverse = torch.where(diagonal > 0, 1 / diagonal.clamp_min(1e-30), 0.0)
    found = torch.zeros_like(wanted)
    left = wanted.clone()
    step = inverse * left
    energy = float((left * step).sum())
    first = energy
    for _ in range(steps):
        if energy <= 1e-10 * first:
            break
        image = normal(step)
        length = energy / max(float((step * image).sum()), 1e-30)
        found += length * step
        left -= length * image
        scaled = inverse * left
        new = float((left * scaled).sum())
        step = scaled + (new / energy) * step
        energy = new
    return found
