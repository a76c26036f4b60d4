"""Learning the scoring back end of a modality: PCA, Joint Bayesian, factors for the file.

Paper 001, section 3: descriptors are projected to 200 dimensions by PCA and compared by the
Joint Bayesian classifier. Voices get the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeid.converters.scores.joint_bayesian import (
    JointBayesian,
    check_labelled,
    fit_joint_bayesian,
)
from edgeid.converters.scores.verification import pair_error
from edgeid.runtime.encoding import Tensor, encode_float16, encode_int8
from edgeid.runtime.errors import DataError
from edgeid.runtime.scoring_backend import Backend

Array = NDArray[np.float64]
Codes = NDArray[np.intp]

SHRINKAGES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
FEWEST = 10  # people of a set that says anything when it is left out
SCALE_SAMPLES = 1000  # identities among which the scale of scores is measured
# Bounds on what no data can tell: variation of S_epsilon (of the mean variance, and of unit
# length) and psi. They keep the factors far from the limits of ``Backend``.
SMALLEST_VARIATION = 1e-6, 1e-10
LARGEST_RATIO = 1e5


@dataclass(frozen=True)
class BackendOptions:
    """How a back end is learnt.

    Attributes:
        dimensions: most dimensions of the PCA. Fewer are taken where the samples beyond one
            an identity are fewer than twice as many, and could not tell S_epsilon.
        iterations: most rounds of EM.
        shrinkage: 0 takes mean, S_mu and S_epsilon as learnt, which is the paper's way; at 1
            the mean is 0 and they are multiples of the identity matrix, which ranks as the
            cosine does. What holds for other people, and for recordings of another kind,
            lies between; ``choose_shrinkage`` finds it.
        weights: "int8" (one scale a dimension) or "float16".
    """

    dimensions: int = 200
    iterations: int = 100
    shrinkage: float = 0.5
    weights: str = "int8"

    def __post_init__(self) -> None:
        if min(self.dimensions, self.iterations) < 1:
            raise DataError(f"dimensions and iterations must be 1 or more: {self}")
        if not 0 <= self.shrinkage <= 1:
            raise DataError(f"shrinkage lies in 0..1, got {self.shrinkage}")
        if self.weights not in ("int8", "float16"):
            raise DataError(f"weights are 'int8' or 'float16', not {self.weights!r}")


def learn_backend(
    embeddings: ArrayLike,
    labels: ArrayLike,
    options: BackendOptions | None = None,
    sets: ArrayLike | None = None,
) -> Backend:
    """The scoring back end of a modality, for the model file.

    Args:
        embeddings: (N, d) as the network of the file gives them; their lengths do not count.
        labels: (N,) identities. Best people that the network was not trained on: of those it
            was trained on it shows less variation than of others. And never the people of
            the calibration, whose scores would be too good.
        sets: (N,) which set of data each is from, if there are several. People of one set
            share a room, a microphone or a camera: what tells sets apart does not tell
            people apart, and is left out of both covariances.

    Raises:
        DataError: as ``fit_joint_bayesian``; or an embedding of length 0.
    """
    options = options or BackendOptions()
    rows, codes = check_labelled(embeddings, labels)
    return _Learnt.of(rows, codes, options, _set_codes(sets, len(rows))).backend(options)


@dataclass(frozen=True, eq=False)
class HeldPeople:
    """Embeddings (N, d), identities (N,) and sets (N,) of people who taught nothing so far."""

    embeddings: ArrayLike
    labels: ArrayLike
    sets: ArrayLike


def choose_shrinkage(
    embeddings: ArrayLike,
    labels: ArrayLike,
    options: BackendOptions | None = None,
    shares: Sequence[float] = SHRINKAGES,
    folds: int = 3,
    sets: ArrayLike | None = None,
    others: HeldPeople | None = None,
) -> tuple[BackendOptions, dict[float, float]]:
    """The options with the shrinkage that verifies best on what was held out.

    Held out is each set of data in turn that has ``FEWEST`` people, where two have: a device
    records its users like none of them. Otherwise identities are parted into ``folds``. The
    largest shrinkage wins whose mean error over what was held out is above the least by no more
    than the standard error of the difference: it asks least of the data. Where that is 1, a
    back end has nothing to add to the cosine.

    Args:
        sets: as for ``learn_backend``.
        others: people whom the network was not trained on, to be scored in the place of those
            who are held out: of people it was trained on a network shows less variation, and
            they promise gains that others do not have. Fewer than ``FEWEST`` are not looked at.

    Returns:
        The options, and the mean equal error rate of each share.

    Raises:
        DataError: as ``learn_backend``, for the people of a fold.
    """
    options = options or BackendOptions()
    if folds < 2 or not shares:
        raise DataError(f"needs two folds or more and one share or more, got {folds}, {shares}")
    rows, codes = check_labelled(embeddings, labels)
    names = np.zeros(len(rows), np.intp) if sets is None else np.asarray(sets)
    set_of = _set_codes(names, len(rows))
    errors: dict[float, list[float]] = {float(share): [] for share in shares}
    for learnt_from, scored in _held_out(rows, codes, names, others, folds):
        learnt = _Learnt.of(rows[learnt_from], codes[learnt_from], options, set_of[learnt_from])
        for share, found in errors.items():
            backend = learnt.backend(replace(options, shrinkage=share))
            found.append(pair_error(*scored, backend))
    best = np.array(min(errors.values(), key=np.mean))
    enough = [share for share, found in errors.items() if _as_good(np.array(found), best)]
    chosen = replace(options, shrinkage=max(enough))
    return chosen, {share: float(np.mean(found)) for share, found in errors.items()}


def _held_out(
    rows: Array, codes: Codes, sets: NDArray[Any], others: HeldPeople | None, folds: int
) -> list[tuple[NDArray[np.bool_], tuple[Array, Codes]]]:
    """Which samples (N,) are learnt from and which embeddings and identities are scored."""
    scored = rows, codes, sets
    if others is not None:
        scored = *check_labelled(others.embeddings, others.labels), np.asarray(others.sets)
        _set_codes(scored[2], len(scored[0]))
        if scored[1].max() + 1 < FEWEST:
            return _held_out(rows, codes, sets, None, folds)
    large = [
        one
        for one in np.unique(scored[2])
        if len(np.unique(scored[1][scored[2] == one])) >= FEWEST and (sets != one).any()
    ]
    if len(large) > 1:
        parts = [(sets != one, scored[2] == one) for one in large]
    elif others is not None:
        every = np.ones(len(rows), np.bool_)
        parts = [(every, scored[1] % folds == fold) for fold in range(folds)]
    else:
        fold_of = np.random.default_rng(0).permutation(int(codes.max()) + 1)[codes] % folds
        parts = [(fold_of != fold, fold_of == fold) for fold in range(folds)]
    return [(learnt, (scored[0][part], scored[1][part])) for learnt, part in parts]


def _as_good(errors: Array, best: Array) -> bool:
    """Whether errors (folds,) are above the best ones by chance, as far as one can tell."""
    worse = errors - best
    deviation = float(worse.std(ddof=1) / np.sqrt(len(worse)))
    return bool(worse.mean() <= deviation)


def _set_codes(sets: ArrayLike | None, count: int) -> Codes:
    """0, 1, ... for each sample's set; DataError unless there are as many as samples."""
    if sets is None:
        return np.zeros(count, np.intp)
    names = np.asarray(sets)
    if names.shape != (count,):
        raise DataError(f"sets {names.shape}: needs one for each of {count} embeddings")
    return np.asarray(np.unique(names, return_inverse=True)[1], np.intp)


@dataclass(frozen=True, eq=False)
class _Learnt:
    """A model over principal components (k, d) around a centre (d,); one sample a person."""

    model: JointBayesian
    components: Array
    centre: Array
    some: Array

    @classmethod
    def of(cls, rows: Array, codes: Codes, options: BackendOptions, set_of: Codes) -> _Learnt:
        """Of rows (N, d) and codes as ``check_labelled`` gives them, people of some of them."""
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        if not lengths.min() > 0:
            raise DataError("an embedding is zero: leave out samples that have none")
        rows = rows / lengths
        codes = np.asarray(np.unique(codes, return_inverse=True)[1], np.intp)
        means = [rows[set_of == one].mean(axis=0) for one in np.unique(set_of)]
        centred = rows - np.stack(means)[np.unique(set_of, return_inverse=True)[1]]
        components = _principal_components(centred, codes, options.dimensions)
        model = fit_joint_bayesian(centred @ components.T, codes, options.iterations)
        first = np.unique(codes, return_index=True)[1][:SCALE_SAMPLES]
        return cls(model, components, rows.mean(axis=0), rows[first])

    def backend(self, options: BackendOptions) -> Backend:
        """The factors, as a file stores them."""
        basis, psi = _regular(self.model.shrunk(options.shrinkage)).diagonalised()
        components = self.components
        if options.shrinkage == 1 and len(components) == components.shape[1]:
            components = np.eye(len(components))  # any turn will do; this one int8 holds exactly
        matrix = basis @ components
        # an eigenvector has two signs; one of them has to be the rule for equal bytes
        largest = np.abs(matrix).argmax(axis=1)
        matrix *= np.sign(matrix[np.arange(len(matrix)), largest])[:, None]
        encode = encode_int8 if options.weights == "int8" else encode_float16
        projection: Tensor = encode(matrix.astype(np.float32))
        centre = (1 - options.shrinkage) * self.centre
        offset = projection.decode().astype(np.float64) @ centre
        ratio = np.minimum(psi, LARGEST_RATIO).astype(np.float32)
        unscaled = Backend(projection, offset.astype(np.float32), ratio, 1.0)
        scale = float(np.abs(unscaled.log_likelihood_ratio(self.some, self.some)).max())
        return replace(unscaled, scale=float(np.clip(scale, 1e-6, 1e6)))


def _regular(model: JointBayesian) -> JointBayesian:
    """With a little variation in every direction, so that no factor grows without bound."""
    share, least = SMALLEST_VARIATION
    variance = float(np.trace(model.between + model.within)) / len(model.mean)
    floor = max(share * variance, least) * np.eye(len(model.mean))
    return replace(model, within=model.within + floor)


def _principal_components(centred: Array, codes: Codes, dimensions: int) -> Array:
    """(k, d) orthonormal directions of most variance; see ``BackendOptions.dimensions``."""
    identities = int(codes.max()) + 1
    values, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    varied = int((values > 1e-9 * max(values[-1], 1e-12)).sum())
    count = min(dimensions, varied, (len(centred) - identities) // 2)
    if count < 1:
        raise DataError(
            f"{len(centred)} samples of {identities} identities that vary in {varied} dimensions: "
            "too few to learn how samples of one identity differ"
        )
    return np.asarray(vectors[:, ::-1][:, :count].T)
