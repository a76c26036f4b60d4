"""The recipes that have a name: for each method its settings, from mild to strong.

A user who wants others writes them down: recipes are tuples of passes, and files of JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from edgeid.converters.codebook.calibration import CodebookCalibration
from edgeid.converters.codebook.shared_codebooks import SharedCodebooks
from edgeid.converters.distillation.flame_pass import FlameSubstitution
from edgeid.converters.distillation.mimic_pass import Mimic
from edgeid.converters.distillation.transfer_pass import Transfer
from edgeid.converters.quantisation.activations import ActivationScales
from edgeid.converters.quantisation.binarisation import Binarise
from edgeid.converters.quantisation.encode import Encode, Weights
from edgeid.converters.quantisation.logminmax import LogMinMax
from edgeid.converters.quantisation.palette import Palette
from edgeid.converters.recipe import Pass, recipe_from_json
from edgeid.converters.zipper.naive_sharing import NaiveSharing
from edgeid.converters.zipper.zipper import Zipper
from edgeid.runtime.errors import DataError

Recipe = tuple[Pass, ...]
PASSES: tuple[type[Pass], ...] = (
    *(SharedCodebooks, Zipper, NaiveSharing, LogMinMax, Palette, Binarise),
    *(FlameSubstitution, Mimic, Transfer, Encode, ActivationScales),
)


@dataclass(frozen=True)
class Ladder:
    """Recipes of one method.

    Attributes:
        recipes: from the mildest to the strongest.
        usual: which of them is taken where neither a size nor an accuracy is asked for.
    """

    recipes: tuple[Recipe, ...]
    usual: int = 0


CODINGS = ((256, 4), (64, 4), (256, 8), (64, 8), (16, 8))  # (K, r): 2 bits a weight to half a bit


# Refinement does most of the work; these steps bring what is left at little cost.
CALIBRATION = CodebookCalibration(steps=100, batch=32, rate=4e-3, bfloat16=True)


def _codebook() -> tuple[Recipe, ...]:
    return tuple((SharedCodebooks(k=k, r=r, calibration=CALIBRATION),) for k, r in CODINGS)


LADDERS: dict[str, Callable[[], Ladder]] = {
    "plain": lambda: Ladder(((),)),
    "codebook": lambda: Ladder(_codebook(), usual=2),
    "zipper": lambda: Ladder(tuple((Zipper(blocks=n),) for n in range(2, 13, 2)), usual=3),
    "zipper-codebook": lambda: Ladder(
        tuple((Zipper(blocks=8), *recipe) for recipe in _codebook()), usual=2
    ),
    "logminmax": lambda: Ladder(tuple((LogMinMax(bits=b),) for b in range(11, 0, -1)), usual=6),
    "palette": lambda: Ladder(tuple((Palette(bits=b),) for b in range(10, 0, -1)), usual=4),
    "binary": lambda: Ladder(((Binarise(),),)),
    "flame": lambda: Ladder(
        tuple((FlameSubstitution(), LogMinMax(bits=b)) for b in range(9, 3, -1))
    ),
}
NAMES = tuple(LADDERS)


def named_ladder(
    name: str,
    weights: Weights = "float16",
    budget: int | None = None,
    *,
    scales: bool | None = None,
) -> Ladder:
    """The recipes of a name, each ending with what the engines need: weights that are left
    are encoded, and uint8 scales of the activations measured.

    Args:
        name: one of ``NAMES``.
        weights: how weights that no pass has encoded are stored, see ``Encode``.
        budget: bytes of the graph in a model file. Codebooks choose K and r of each layer by
            it; for the other methods it only says which recipe of the ladder will do.
        scales: whether scales of activations are measured; None leaves them out of "plain",
            which then needs no samples.

    Raises:
        DataError: there is no such name.
    """
    if name not in LADDERS:
        raise DataError(f"no recipe {name!r}; there are {', '.join(NAMES)}, or a .json file")
    ladder = LADDERS[name]()
    if budget is not None and name.endswith("codebook"):
        before = ladder.recipes[0][:-1]
        ladder = Ladder(((*before, SharedCodebooks(budget=budget, calibration=CALIBRATION)),))
    last: Recipe = (Encode(weights),)
    if scales or (scales is None and name != "plain"):
        last = (*last, ActivationScales())
    return replace(ladder, recipes=tuple((*recipe, *last) for recipe in ladder.recipes))


def read_recipe(path: Path) -> Recipe:
    """A recipe from a file: a list of passes with their options, as a model file keeps them.

    Raises:
        DataError: the file cannot be read, or what it says is no recipe; naming the step.
    """
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"the recipe {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"the recipe {path} is not JSON: {error}") from error
    return recipe_from_json(value, PASSES)
