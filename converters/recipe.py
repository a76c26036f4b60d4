"""A recipe: passes in the order in which they change a network, run with checks and resumed.

A pass is a frozen dataclass whose fields are its options. It states what it needs
(``requires``), what it does (``call``) and what must hold afterwards (``ensures``). A recipe
is a sequence of passes that can be read from top to bottom::

    recipe = (Codebook(budget=1_000_000), LogMinMax(bits=6))
    graph, reports = run_recipe(recipe, graph, Context(samples, work=Path("work")))

There is no registry: passes are imported and listed. The shape follows onnx/ir-py's passes.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from edgeid.converters.graphs.embedding_similarity import embed_samples, similarity
from edgeid.converters.pass_options import options_from_dict, options_to_dict
from edgeid.converters.recipe_progress import PassReport, Progress, graph_key
from edgeid.runtime.encoding import FloatArray
from edgeid.runtime.errors import DataError, EdgeIDError, GraphError
from edgeid.runtime.graph import Graph

__all__ = [
    "Context",
    "Figures",
    "Pass",
    "PassReport",
    "PassResult",
    "finished_steps",
    "recipe_from_json",
    "recipe_to_json",
    "run_recipe",
    "stored_bytes",
]

Figures = dict[str, float | int | str]
Fresh = Callable[[int, np.random.Generator], FloatArray]
T = TypeVar("T")


@dataclass(frozen=True)
class Context:
    """What passes work with, beside the graph.

    Attributes:
        samples: calibration inputs of each entry, float32 (N, *shape), as the networks take
            them; no labels. Entries may be missing where no pass needs them.
        work: folder in which finished passes are kept, so that a run resumes. A pass sees
            a folder of its own here, for what it wants to resume from inside.
        seed: of everything random.
        threads: of torch and of the engines.
        progress: whether to show progress bars.
        labels: who is in each sample, int64 (N,) of 0, 1, 2 ..., for passes that can use it;
            entries without labels are left out.
        fresh: of entries that have such a source, what gives so many further inputs (n, *shape)
            each time, like speech that is altered whenever it is drawn.
    """

    samples: dict[str, FloatArray]
    work: Path
    seed: int = 1
    threads: int = 1
    progress: bool = True
    labels: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    fresh: dict[str, Fresh] = field(default_factory=dict)

    def track(self, items: Iterable[T], what: str, total: int | None = None) -> Iterable[T]:
        """``items`` behind a progress bar with the remaining time."""
        shown: Iterable[T] = tqdm(items, desc=what, total=total, disable=not self.progress)
        return shown

    def inputs(self, entry: str) -> FloatArray:
        """The samples of an entry; raises DataError where there are none."""
        if entry not in self.samples:
            raise DataError(f"no sample inputs for entry {entry!r}; there are {[*self.samples]}")
        return self.samples[entry]

    def identities(self, entry: str) -> NDArray[np.int64]:
        """The labels of an entry's samples; raises DataError where there are none."""
        if entry not in self.labels:
            raise DataError(f"entry {entry!r} needs labels: who is in each sample")
        return self.labels[entry]

    def validate(self, graph: Graph) -> None:
        """Raise DataError unless the samples are inputs of the graph's entries."""
        shapes = {entry.name: entry.shape for entry in graph.entries}
        for name, x in self.samples.items():
            if name not in shapes:
                raise DataError(f"samples for {name!r}, but the graph has {[*shapes]}")
            if x.dtype != np.float32 or x.shape[1:] != shapes[name] or not len(x):
                raise DataError(
                    f"samples of {name!r} are {x.dtype} {x.shape}, "
                    f"needed are float32 (N, {', '.join(map(str, shapes[name]))}), N >= 1"
                )
            if not math.isfinite(float(x.min())) or not math.isfinite(float(x.max())):
                raise DataError(f"samples of {name!r} hold NaN or infinity")
        for name, labels in self.labels.items():
            if name not in self.samples or labels.shape != (len(self.samples[name]),):
                raise DataError(f"labels of {name!r} {labels.shape} do not fit its samples")
        if self.threads < 1 or self.seed < 0:
            raise DataError(f"threads {self.threads} must be 1 or more, seed {self.seed} 0 or more")


@dataclass(frozen=True)
class PassResult:
    """What a pass made: the new graph, lines for people, figures for the report."""

    graph: Graph
    lines: tuple[str, ...] = ()
    figures: Figures = field(default_factory=dict)


class Pass(Protocol):
    """One step of a recipe; inherit from it and decorate with ``@dataclass(frozen=True)``."""

    name: ClassVar[str]
    keeps_scales: ClassVar[bool] = False
    """Whether activation scales that were calibrated before the pass are right after it."""

    def requires(self, graph: Graph, context: Context) -> None:
        """Raise GraphError or DataError unless the pass can be run on the graph."""

    def call(self, graph: Graph, context: Context) -> PassResult:
        """Do it. The graph that is handed in stays as it is."""
        ...

    def ensures(self, before: Graph, after: Graph, context: Context) -> None:
        """Raise GraphError unless the pass has had its effect, and no other."""

    def to_dict(self) -> dict[str, Any]:
        """JSON form: the pass's name and options, as the model file keeps them."""
        return {"pass": self.name, **options_to_dict(self)}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Self:
        """The pass that ``to_dict`` wrote; raises DataError naming the option that is wrong."""
        if not isinstance(value, dict) or value.get("pass") != cls.name:
            raise DataError(f"expected the pass {cls.name!r}, found {value!r:.80}")
        options = {key: item for key, item in value.items() if key != "pass"}
        made: Self = options_from_dict(cls, options, f"pass {cls.name!r}")
        return made


def recipe_to_json(passes: Iterable[Pass]) -> list[dict[str, Any]]:
    """The recipe as a model file keeps it."""
    return [step.to_dict() for step in passes]


def recipe_from_json(value: object, kinds: Iterable[type[Pass]]) -> tuple[Pass, ...]:
    """The recipe that ``recipe_to_json`` wrote.

    Args:
        value: out of a model file or a JSON file.
        kinds: the classes of passes that it may name.

    Raises:
        DataError: naming the step that is unknown or malformed.
    """
    by_name = {kind.name: kind for kind in kinds}
    if not isinstance(value, list):
        raise DataError(f"a recipe is a list of passes, not {type(value).__name__}")
    made = []
    for number, step in enumerate(value, 1):
        name = step.get("pass") if isinstance(step, dict) else None
        if not isinstance(name, str) or name not in by_name:
            raise DataError(f"step {number}: pass {name!r:.80} is none of {', '.join(by_name)}")
        made.append(by_name[name].from_dict(step))
    return tuple(made)


def stored_bytes(graph: Graph) -> int:
    """Bytes of the weights in a file; what several tensors share counts once."""
    parts = [part for tensor in graph.tensors.values() for part in tensor.parts().values()]
    sizes = {
        (p.dtype.str, p.shape, hashlib.sha256(np.ascontiguousarray(p).data).digest()): p.nbytes
        for p in parts
    }
    return sum(sizes.values())


def run_recipe(
    passes: Sequence[Pass], graph: Graph, context: Context
) -> tuple[Graph, tuple[PassReport, ...]]:
    """Run the passes in order; those that an earlier run finished are read from ``work``.

    What is resumed depends on the graph, samples, seed and all options up to that pass: with
    any of them changed the work is done anew, beside the old. An interruption loses the
    pass in which it falls, and nothing that was written is ever half a file.

    Raises:
        EdgeIDError: of the type that the pass raised, with the pass's name and those before.
    """
    graph.validate()
    context.validate(graph)
    keys = _keys(passes, graph, context)
    progress = Progress(context.work)
    done, resumed, reports = progress.resume(keys, graph)
    original = embed_samples(graph, context.samples, context.threads) if done < len(passes) else {}
    graph = resumed
    for number in range(done, len(passes)):
        own = replace(context, work=progress.folder(keys[number]))
        with _named(passes, number, own.work):
            graph, report = _run(passes[number], graph, own, original)
        reports = (*reports, report)
        progress.keep(keys[number], graph, reports)
    return graph, reports


def finished_steps(
    passes: Sequence[Pass], graph: Graph, context: Context
) -> tuple[tuple[PassReport, Graph], ...]:
    """The report and the graph after each pass of a recipe that ``run_recipe`` has finished.

    Raises:
        DataError: a pass is not finished, or its file in ``work`` is damaged.
    """
    progress = Progress(context.work)
    steps = []
    for number, key in enumerate(_keys(passes, graph, context), 1):
        found = progress.read(key)
        if found is None:
            raise DataError(f"pass {number} ({key}) is not finished in {context.work}")
        steps.append((found[1][-1], found[0]))
    return tuple(steps)


def _plain(value: Any) -> float | int | str:
    """A figure as JSON keeps it: a figure that is none must not cost the work of hours."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if type(value) in (int, float, str) else str(value)


def _keys(passes: Sequence[Pass], graph: Graph, context: Context) -> list[str]:
    """For each pass a name of all that its result depends on."""
    arrays: dict[str, NDArray[Any]] = {
        **context.samples,
        **{f"labels/{k}": v for k, v in context.labels.items()},
    }
    key = graph_key(graph, arrays, context.seed)
    keys = []
    for number, step in enumerate(passes, 1):
        key = Progress.chain(key, step.to_dict())
        keys.append(f"{number:02}-{step.name}-{key[:16]}")
    return keys


def _run(
    step: Pass, graph: Graph, context: Context, original: Mapping[str, FloatArray]
) -> tuple[Graph, PassReport]:
    started = time.monotonic()
    if graph.scales and not step.keeps_scales:
        raise GraphError("it changes what activation scales were calibrated on: put it before them")
    step.requires(graph, context)
    result = step.call(graph, context)
    _check(graph, result.graph)
    step.ensures(graph, result.graph, context)
    seconds = round(time.monotonic() - started, 3)
    now = embed_samples(result.graph, context.samples, context.threads)
    report = PassReport(
        name=step.name,
        options=step.to_dict(),
        lines=tuple(result.lines),
        figures={key: _plain(value) for key, value in result.figures.items()},
        bytes_before=stored_bytes(graph),
        bytes_after=stored_bytes(result.graph),
        similarity=similarity(original, now),
        seconds=seconds,
    )
    return result.graph, report


@contextmanager
def _named(passes: Sequence[Pass], number: int, folder: Path) -> Iterator[None]:
    """A folder for a pass, and its place in whatever it raises."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make the work folder {folder}: {error.strerror}") from error
    try:
        yield
    except EdgeIDError as error:
        raise type(error)(f"{_place(passes, number)}: {error}") from error
    except BaseException as error:
        error.add_note(f"in {_place(passes, number)}; those are kept, run again to go on")
        raise
    finally:
        with suppress(OSError):
            folder.rmdir()  # where the pass left nothing in it


def _place(passes: Sequence[Pass], number: int) -> str:
    before = ", ".join(step.name for step in passes[:number]) or "none"
    return f"pass {number + 1} of {len(passes)}, {passes[number].name!r} (before it: {before})"


def _check(before: Graph, after: Graph) -> None:
    """What holds for every pass: the result is valid and has the same ways in."""
    after.validate()
    old, new = ({entry.name: entry.shape for entry in graph.entries} for graph in (before, after))
    if old != new:  # neither samples nor preprocessing would fit any more
        raise GraphError(f"the entries took {old}, now they take {new}")
