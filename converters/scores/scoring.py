"""Learning the scoring back end of a modality: PCA, Joint Bayesian, factors for the file.

Paper 001, section 3: descriptors are projected to 200 dimensions by PCA and compared by the
Joint Bayesian classifier. Voices get the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

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

SHRINKAGES = (0.0, 0.25, 0.5, 0.75, 1.0)
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
        shrinkage: 0 takes S_mu and S_epsilon as learnt, which is the paper's way; 1 makes
            them multiples of the identity matrix, which scores much like a centred cosine.
            With a few samples for each number in S_epsilon, what holds for other people lies
            between; ``choose_shrinkage`` finds it.
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
    embeddings: ArrayLike, labels: ArrayLike, options: BackendOptions | None = None
) -> Backend:
    """The scoring back end of a modality, for the model file.

    Args:
        embeddings: (N, d) as the network of the file gives them; their lengths do not count.
        labels: (N,) identities. Best people that the network was not trained on: of those it
            was trained on it shows less variation than of others. And never the people of
            the calibration, whose scores would be too good.

    Raises:
        DataError: as ``fit_joint_bayesian``; or an embedding of length 0.
    """
    options = options or BackendOptions()
    return _Learnt.of(embeddings, labels, options).backend(options)


def choose_shrinkage(
    embeddings: ArrayLike,
    labels: ArrayLike,
    options: BackendOptions | None = None,
    shares: Sequence[float] = SHRINKAGES,
    folds: int = 3,
) -> tuple[BackendOptions, dict[float, float]]:
    """The options with the shrinkage that verifies best on people who were held out.

    Identities are parted into ``folds``; each is scored by a back end of the others. Of equal
    figures the largest shrinkage wins: it asks least of the data.

    Returns:
        The options, and the mean equal error rate of each share.

    Raises:
        DataError: as ``learn_backend``, for the people of a fold.
    """
    options = options or BackendOptions()
    if folds < 2 or not shares:
        raise DataError(f"needs two folds or more and one share or more, got {folds}, {shares}")
    rows, codes = check_labelled(embeddings, labels)
    fold_of = np.random.default_rng(0).permutation(int(codes.max()) + 1)[codes] % folds
    errors = {float(share): 0.0 for share in shares}
    for fold in range(folds):
        held = fold_of == fold
        learnt = _Learnt.of(rows[~held], codes[~held], options)
        for share in errors:
            backend = learnt.backend(replace(options, shrinkage=share))
            errors[share] += pair_error(rows[held], codes[held], backend) / folds
    best = min(errors, key=lambda share: (errors[share], -share))
    return replace(options, shrinkage=best), errors


@dataclass(frozen=True, eq=False)
class _Learnt:
    """A model over principal components (k, d) around a centre (d,); one sample a person."""

    model: JointBayesian
    components: Array
    centre: Array
    some: Array

    @classmethod
    def of(cls, embeddings: ArrayLike, labels: ArrayLike, options: BackendOptions) -> _Learnt:
        rows, codes = check_labelled(embeddings, labels)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        if not lengths.min() > 0:
            raise DataError("an embedding is zero: leave out samples that have none")
        rows = rows / lengths
        centre = rows.mean(axis=0)
        components = _principal_components(rows - centre, codes, options.dimensions)
        model = fit_joint_bayesian((rows - centre) @ components.T, codes, options.iterations)
        first = np.unique(codes, return_index=True)[1][:SCALE_SAMPLES]
        return cls(model, components, centre, rows[first])

    def backend(self, options: BackendOptions) -> Backend:
        """The factors, as a file stores them."""
        basis, psi = _regular(self.model.shrunk(options.shrinkage)).diagonalised()
        matrix = basis @ self.components
        # an eigenvector has two signs; one of them has to be the rule for equal bytes
        largest = np.abs(matrix).argmax(axis=1)
        matrix *= np.sign(matrix[np.arange(len(matrix)), largest])[:, None]
        encode = encode_int8 if options.weights == "int8" else encode_float16
        projection: Tensor = encode(matrix.astype(np.float32))
        offset = projection.decode().astype(np.float64) @ self.centre
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
