"""Compress a graph by the recipe of a ladder that keeps to a size, an accuracy, or both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgeid.converters.named_recipes import Ladder, Recipe
from edgeid.converters.recipe import Context, PassReport, finished_steps, run_recipe
from edgeid.converters.report.steps import Judge, Rate, Step
from edgeid.runtime.errors import DataError
from edgeid.runtime.format import ModelFile, dump_model
from edgeid.runtime.graph import Graph

ORIGINAL = "original"


@dataclass(frozen=True)
class Limits:
    """What the compressed networks have to keep to.

    Attributes:
        budget: bytes of a model file with them; None: any.
        max_drop: percentage points by which an accuracy may be worse than the original's;
            None: any.
    """

    budget: int | None = None
    max_drop: float | None = None

    def __post_init__(self) -> None:
        if self.budget is not None and self.budget < 1:
            raise DataError(f"a budget of {self.budget} bytes: at least 1 is needed")
        if self.max_drop is not None and not 0 <= self.max_drop <= 100:
            raise DataError(f"a drop of {self.max_drop} points: 0 to 100 is needed")


@dataclass(frozen=True)
class Compressed:
    """A compressed graph.

    Attributes:
        graph: what the last pass made.
        recipe: of the passes that were run.
        steps: the original, then the graph after each pass.
        size: bytes of a model file with the graph alone.
        drops: entry -> percentage points lost; empty where nothing was judged.
        tried: a line for every recipe that was run and not taken.
    """

    graph: Graph
    recipe: Recipe
    steps: tuple[Step, ...]
    size: int
    drops: dict[str, float]
    tried: tuple[str, ...] = ()


def compress(
    graph: Graph,
    ladder: Ladder,
    context: Context,
    limits: Limits,
    judge: Judge | None = None,
) -> Compressed:
    """Run recipes of a ladder until one keeps to the limits.

    Without an allowed drop the mildest that fits the budget is taken; with one the strongest
    whose drop is allowed. Recipes are judged by a rate of each entry on held-out people.

    Raises:
        DataError: no recipe keeps to the limits, saying how near the nearest came; or a drop
            is limited where there are no named people to judge by.
        EdgeIDError: as ``run_recipe``.
    """
    if limits.max_drop is not None and judge is None:
        raise DataError(
            "a largest drop needs people to measure by: put the files of each person into a "
            "folder of their own"
        )
    before = judge(graph) if judge is not None else {}
    tried: list[str] = []
    smallest: int | None = None
    for recipe in _order(ladder, limits):
        made, reports = run_recipe(recipe, graph, context)
        size = len(dump_model(ModelFile(made)))
        drops = _drops(before, judge(made)) if judge is not None else {}
        steps = _steps(recipe, graph, context, reports)
        problem = _problem(size, drops, limits)
        if problem is None:
            return Compressed(made, recipe, steps, size, drops, tuple(tried))
        tried.append(f"{_summary(recipe)}: {problem}")
        smallest = size if smallest is None else min(smallest, size)
    raise DataError(
        f"no recipe keeps to the limits (smallest: {smallest:,} bytes): {'; '.join(tried)}"
    )


def _order(ladder: Ladder, limits: Limits) -> Sequence[Recipe]:
    """The recipes in the order in which they are tried."""
    if limits.max_drop is not None:
        return ladder.recipes[::-1]
    if limits.budget is not None:
        return ladder.recipes
    return ladder.recipes[ladder.usual : ladder.usual + 1]


def _problem(size: int, drops: Mapping[str, float], limits: Limits) -> str | None:
    if limits.budget is not None and size > limits.budget:
        return f"{size:,} bytes, above the budget of {limits.budget:,}"
    worst = max(drops, key=lambda entry: drops[entry], default=None)
    if limits.max_drop is not None and worst is not None and drops[worst] > limits.max_drop:
        return f"{worst} loses {drops[worst]:.2f} points, above {limits.max_drop:g}"
    return None


def _drops(before: Mapping[str, Rate], after: Mapping[str, Rate]) -> dict[str, float]:
    """Percentage points by which each rate got worse; below 0 where it got better."""
    return {
        entry: 100 * (new.value - before[entry].value) * (1 if new.lower_is_better else -1)
        for entry, new in after.items()
    }


def _steps(
    recipe: Recipe, graph: Graph, context: Context, reports: Sequence[PassReport]
) -> tuple[Step, ...]:
    steps = [Step(ORIGINAL, graph, None)]
    graphs = (made for _, made in finished_steps(recipe, graph, context))
    for number, (report, made) in enumerate(zip(reports, graphs, strict=True), 1):
        steps.append(Step(f"{number} {report.name}", made, report))
    return tuple(steps)


def _summary(recipe: Recipe) -> str:
    """The passes with the options that differ from their defaults."""
    words = []
    for step in recipe:
        usual, chosen = type(step)().to_dict(), step.to_dict()
        options = [f"{k}={v}" for k, v in chosen.items() if v != usual.get(k)]
        words.append(f"{step.name}({', '.join(options)})")
    return " + ".join(words)
