"""The Joint Bayesian model of embeddings, learnt by expectation-maximisation.

A face (or voice) is x = mean + mu + epsilon, mu ~ N(0, S_mu) the identity and epsilon ~
N(0, S_epsilon) the variation of its samples (Chen et al., "Bayesian face revisited: a joint
formulation", ECCV 2012).

The paper's M-step takes covariances of the expected mu and epsilon alone. Here their posterior
covariances are added, as the exact M-step has it: every iteration raises the likelihood, and
identities with few samples do not pull S_mu down. All identities share one basis in which S_mu
and S_epsilon are diagonal, so an iteration costs a few products with the identity means,
whatever their numbers of samples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeid.runtime.errors import DataError

Array = NDArray[np.float64]
Codes = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class JointBayesian:
    """The model of the module's docstring over k dimensions.

    Attributes:
        mean: (k,).
        between, within: S_mu and S_epsilon, (k, k).
        log_likelihoods: nats a sample, before each iteration of EM and after the last.
    """

    mean: Array
    between: Array
    within: Array
    log_likelihoods: tuple[float, ...] = ()

    def ratio_matrices(self) -> tuple[Array, Array, float]:
        """A, G (k, k) and the constant of LLR = constant + (x'Ax + y'Ay - 2x'Gy) / 2.

        As Chen et al. derive them, for x and y without the mean; they leave the constant out.
        """
        total = self.between + self.within
        size = len(total)
        inverse = np.linalg.inv(np.block([[total, self.between], [self.between, total]]))
        g = np.asarray(inverse[:size, size:])
        a = np.linalg.inv(total) - inverse[:size, :size]
        joint = np.linalg.slogdet(np.block([[total, self.between], [self.between, total]]))[1]
        return np.asarray(a), g, float(np.linalg.slogdet(total)[1] - joint / 2)

    def log_likelihood_ratio(self, x: Array, y: Array) -> Array:
        """(n,) log-likelihood ratios of rows x (n, k) against rows y (n, k), by A and G."""
        a, g, constant = self.ratio_matrices()
        x, y = x - self.mean, y - self.mean
        own = np.einsum("ij,jk,ik->i", x, a, x) + np.einsum("ij,jk,ik->i", y, a, y)
        return np.asarray(constant + own / 2 - np.einsum("ij,jk,ik->i", x, g, y))

    def shrunk(self, share: float) -> JointBayesian:
        """Both covariances moved by ``share`` towards multiples of the identity matrix."""
        eye = np.eye(len(self.mean))
        between, within = (
            (1 - share) * s + share * np.trace(s) / len(s) * eye
            for s in (self.between, self.within)
        )
        return replace(self, between=between, within=within)

    def diagonalised(self) -> tuple[Array, Array]:
        """W (k, k) and psi (k,), falling: W S_epsilon W' = 1 and W S_mu W' = diag(psi)."""
        whitening = np.linalg.inv(np.linalg.cholesky(self.within))
        psi, basis = np.linalg.eigh(whitening @ self.between @ whitening.T)
        return (basis.T @ whitening)[::-1], np.maximum(psi[::-1], 0.0)


def fit_joint_bayesian(
    x: ArrayLike, labels: ArrayLike, iterations: int = 100, tolerance: float = 1e-5
) -> JointBayesian:
    """S_mu and S_epsilon of samples (N, k) with identities (N,), by EM.

    Identities may have any numbers of samples; those with one tell of the sum of the two.

    Args:
        iterations: at most so many, at least 1.
        tolerance: EM ends when the mean log-likelihood gains less, in nats a sample.

    Raises:
        DataError: shapes that do not fit, values that are not finite, fewer than two
            identities, or too few samples to tell S_epsilon (N - identities < k).
    """
    rows, codes = check_labelled(x, labels)
    counts = np.bincount(codes).astype(np.float64)
    if len(rows) - len(counts) < rows.shape[1]:
        raise DataError(
            f"{len(rows)} samples of {len(counts)} identities cannot tell the variation in "
            f"{rows.shape[1]} dimensions: take more samples an identity, or fewer dimensions"
        )
    mean = rows.mean(axis=0)
    statistics = _Statistics.of(rows - mean, codes)
    model = _initial(statistics, mean)
    history: list[float] = []
    for _ in range(iterations):
        likelihood, improved = _iterate(model, statistics)
        history.append(likelihood)
        if len(history) > 1 and history[-1] - history[-2] < tolerance:
            break
        model = improved
    else:
        history.append(_iterate(model, statistics)[0])
    return replace(model, log_likelihoods=tuple(history))


@dataclass(frozen=True, eq=False)
class _Statistics:
    """All that EM needs of the samples: counts (I,), means (I, k), scatter within (k, k)."""

    counts: Array
    means: Array
    scatter: Array

    @classmethod
    def of(cls, rows: Array, codes: Codes) -> _Statistics:
        counts = np.bincount(codes).astype(np.float64)
        sums = np.zeros((len(counts), rows.shape[1]))
        np.add.at(sums, codes, rows)
        means = sums / counts[:, None]
        rest = rows - means[codes]
        return cls(counts, means, rest.T @ rest)


def _initial(statistics: _Statistics, mean: Array) -> JointBayesian:
    """Covariance of the identity means, and within identities; a ridge keeps both regular."""
    means, counts = statistics.means, statistics.counts
    between = means.T @ means / len(means)
    within = statistics.scatter / (counts.sum() - len(counts))
    ridge = 1e-3 * np.trace(between + within) / len(mean) * np.eye(len(mean))
    if not ridge[0, 0] > 0:
        raise DataError("all embeddings are equal: there is nothing to learn")
    return JointBayesian(mean, between + ridge, within + ridge)


def _iterate(model: JointBayesian, statistics: _Statistics) -> tuple[float, JointBayesian]:
    """Mean log-likelihood of the model, and the model after one round of exact EM.

    In the basis W an identity with n samples of mean y has the posterior mean
    n psi / (1 + n psi) y and variance psi / (1 + n psi), in each dimension by itself.
    """
    basis, psi = model.diagonalised()
    counts = statistics.counts[:, None]
    y = statistics.means @ basis.T
    scatter = basis @ statistics.scatter @ basis.T
    samples = counts.sum()
    total = 1 + counts * psi
    determinant = -2 * np.linalg.slogdet(basis)[1]  # log |S_epsilon|
    twice = samples * (len(psi) * np.log(2 * np.pi) + determinant) + np.log(total).sum()
    twice += np.trace(scatter) + (counts * y**2 / total).sum()
    expected = y * (counts * psi / total)
    variance = psi / total
    between = (expected.T @ expected + np.diag(variance.sum(axis=0))) / len(y)
    rest = np.sqrt(counts) * (y - expected)
    within = (scatter + rest.T @ rest + np.diag((counts * variance).sum(axis=0))) / samples
    back = np.linalg.inv(basis)
    improved = replace(model, between=back @ between @ back.T, within=back @ within @ back.T)
    return float(-twice / 2 / samples), improved


def check_labelled(x: ArrayLike, labels: ArrayLike) -> tuple[Array, Codes]:
    """Float64 rows (N, d) and codes 0..I-1 (N,) of the identities; DataError, see the callers."""
    rows, names = np.asarray(x, np.float64), np.asarray(labels)
    if rows.ndim != 2 or not rows.size or names.shape != (len(rows),):
        raise DataError(f"embeddings {rows.shape} and labels {names.shape}: need (N, d) and (N,)")
    if not np.isfinite(rows).all():
        raise DataError("the embeddings hold NaN or infinity")
    identities, codes = np.unique(names, return_inverse=True)
    if len(identities) < 2:
        raise DataError(f"{len(identities)} identity: at least two are needed to tell them apart")
    return rows, np.asarray(codes, np.intp)
