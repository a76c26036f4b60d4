"""The plots of layers, codebooks and embeddings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgeid.converters.report.codebook_use import CodebookUse
from edgeid.converters.report.inline_svg import (
    GRID,
    MUTED,
    PAPER,
    SERIES,
    draw_svg,
    plain,
)
from edgeid.converters.report.layer_sensitivity import LayerSensitivity
from edgeid.converters.report.similarity import Similarity

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_sensitivity(layers: Sequence[LayerSensitivity], key: str) -> str:
    """A bar a layer, front to back; a cross for one that could not be compared."""

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        numbers = np.arange(1, len(layers) + 1)
        losses = np.array([0.0 if la.loss is None else la.loss for la in layers])
        axes.bar(numbers, losses, color=SERIES[0], width=0.72)
        gone = [n for n, layer in zip(numbers, layers, strict=True) if layer.loss is None]
        axes.plot(gone, [0.0] * len(gone), "x", color=MUTED, markersize=5, clip_on=False)
        axes.set_ylim(0, max(float(losses.max(initial=0.0)) * 1.08, 1e-6))
        axes.set_xlim(0.3, len(layers) + 0.7)
        axes.grid(axis="x", visible=False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("layer, front to back")
        axes.set_ylabel("1 - cosine to the original")

    worst = max(layers, key=lambda layer: layer.loss or 0.0)
    label = f"Sensitivity of {len(layers)} layers, the largest of {plain(worst.name)}"
    return draw_svg(draw, label, key, height=2.6)


def plot_cosines(similarity: Similarity, key: str) -> str:
    """Histogram of the cosines to the original embeddings."""
    cosines = similarity.cosines
    assert cosines is not None

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        low = min(float(cosines.min()), 0.995)
        low = max(-1.0, math.floor(200 * low) / 200)
        axes.hist(np.clip(cosines, low, 1.0), np.linspace(low, 1.0, 31).tolist(), color=SERIES[0])
        axes.axvline(float(cosines.mean()), color=SERIES[1], linewidth=1.4)
        axes.set_xlim(low, 1.0)
        axes.grid(axis="x", visible=False)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlabel("cosine of an embedding to the original one")
        axes.set_ylabel("samples")

    label = f"Histogram of {len(cosines)} cosines, mean {cosines.mean():.4f}"
    return draw_svg(draw, label, key, height=2.7)


def plot_pairs(similarity: Similarity, key: str) -> str:
    """Cosines between samples, before and after."""
    pairs = similarity.pairs

    def draw(axes: Axes) -> None:
        low = math.floor(10 * min(float(pairs.min()), 0.9)) / 10
        axes.plot([low, 1], [low, 1], color=MUTED, linewidth=1)
        axes.plot(*pairs.T, "o", color=SERIES[0], markersize=2.4, alpha=0.55, markeredgewidth=0)
        axes.set(xlim=(low, 1), ylim=(low, 1))
        axes.set_xlabel("cosine of two samples, original")
        axes.set_ylabel("of the same two, now")

    label = f"Cosines of {len(pairs)} pairs before and after, correlation " + (
        f"{similarity.correlation:.4f}"
    )
    return draw_svg(draw, label, key, height=2.7)


def plot_steps(steps: Sequence[tuple[str, Similarity]], key: str) -> str:
    """For each step the range of cosines to the originals: 5 to 95 % thin, half of them thick."""

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        for number, (_, one) in enumerate(steps):
            assert one.cosines is not None
            low, first, middle, third, high = np.percentile(one.cosines, (5, 25, 50, 75, 95))
            axes.plot([low, high], [number] * 2, color=SERIES[0], linewidth=1.4)
            axes.plot([first, third], [number] * 2, color=SERIES[0], linewidth=6, alpha=0.5)
            axes.plot([middle], [number], "o", color=SERIES[0], markeredgecolor=PAPER)
        axes.set_yticks(range(len(steps)), [plain(name, 18) for name, _ in steps])
        axes.set_ylim(len(steps) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("cosine to the original embedding")
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.axvline(1.0, color=GRID, linewidth=0.8)

    label = "Cosines to the original embeddings after each step"
    return draw_svg(draw, label, key, height=max(1.5, 0.75 + 0.28 * len(steps)))


def plot_bits(uses: Sequence[CodebookUse], key: str) -> str:
    """For each set of codebooks the bits of an index, stored and carried."""

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        numbers = np.arange(1, len(uses) + 1)
        axes.bar(numbers, [use.bits for use in uses], color=GRID, width=0.72)
        axes.bar(numbers, [use.entropy for use in uses], color=SERIES[0], width=0.72)
        axes.set_xlim(0.3, len(uses) + 0.7)
        axes.grid(axis="x", visible=False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("in the order of the table")
        axes.set_ylabel("bits of an index")

    return draw_svg(draw, "Bits of an index, stored and carried", key, height=2.6)


def plot_profiles(uses: Sequence[CodebookUse], key: str) -> str:
    """How often codewords are named, most to least frequent: each set thin, the mean bold."""

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        grid = np.linspace(0, 1, 129)
        curves = []
        for use in uses:
            centres = (np.arange(len(use.profile)) + 0.5) / len(use.profile)
            curves.append(np.interp(grid, centres, use.profile))
            axes.plot(100 * grid, curves[-1], color=SERIES[0], linewidth=0.8, alpha=0.35)
        axes.plot(100 * grid, np.mean(curves, axis=0), color=SERIES[0], linewidth=2)
        axes.axhline(1, color=SERIES[1], linewidth=1.2)
        axes.set_xlim(0, 100)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("codewords, most to least used, %")
        axes.set_ylabel("use against even use")

    return draw_svg(draw, "Use of the codewords from the most to the least frequent", key, 2.6)
