"""Bayesian optimisation: a Gaussian process of what trials have shown, and where it promises most.

J. Snoek, H. Larochelle, R. P. Adams, Practical Bayesian optimization of machine learning
algorithms, NIPS 2012. Points lie in the unit cube.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Random = np.random.Generator

# A priori: log-normal length scales, of which each range holds about two, and hardly any noise.
_LENGTH, _LENGTH_SPREAD = 0.5, 1.0
_NOISE, _NOISE_SPREAD = 1e-4, 2.0
_CLIMBS = 400
_CANDIDATES = 2048
_NEAR_EACH, _NEAREST, _FARTHEST = 300, 0.02, 0.2  # candidates near a good point, and how near
_GOOD_POINTS = 3
_HOPELESS = 0.25  # share of the trials


def propose(points: F64, merits: F64, random: Random) -> F64:
    """Return the point of largest expected improvement, (d,).

    Parameters
    ----------
    points
        (n, d) what was tried; at least two.
    merits
        (n,) finite, larger is better.
    """
    # How bad the worst ones are says nothing of the best, and would bend the process.
    values = np.maximum(merits, np.quantile(merits, _HOPELESS))
    spread = float(values.std())
    values = (values - values.mean()) / (spread if spread > 0.0 else 1.0)
    process = fit(points, values, random)
    best = points[np.argsort(-merits, kind="stable")[:_GOOD_POINTS]].repeat(_NEAR_EACH, axis=0)
    steps = np.exp(random.uniform(math.log(_NEAREST), math.log(_FARTHEST), (len(best), 1)))
    near = np.clip(best + steps * random.normal(size=best.shape), 0.0, 1.0)
    candidates = np.concatenate([random.random((_CANDIDATES, points.shape[1])), near])
    gain = expected_improvement(*process.predict(candidates), float(values.max()))
    return np.asarray(candidates[np.argmax(gain)])


@dataclass(frozen=True)
class GaussianProcess:
    """A process of zero mean, given what it is at some points.

    Attributes
    ----------
    points
        (n, d).
    lengths
        (d,) length scale of each dimension.
    variance
        Of the process.
    cholesky
        (n, n) lower factor of the correlations of what was seen.
    whitened
        (n,) what was seen, solved with it.
    """

    points: F64
    lengths: F64
    variance: float
    cholesky: F64
    whitened: F64

    def predict(self, points: F64) -> tuple[F64, F64]:
        """Return mean and standard deviation at points, (m,) each (Rasmussen, Williams, 2.25)."""
        across = np.linalg.solve(self.cholesky, matern(self.points, points, self.lengths))
        variance = self.variance * (1.0 - np.einsum("ij,ij->j", across, across))
        return across.T @ self.whitened, np.sqrt(np.maximum(variance, 1e-12))


def matern(a: F64, b: F64, lengths: F64) -> F64:
    """Return the correlations of points (n, d) and (m, d), (n, m): Matérn, ν = 5/2."""
    distance = np.sqrt(5.0 * (((a[:, None] - b) / lengths) ** 2).sum(axis=-1))
    return np.asarray((1.0 + distance + distance**2 / 3.0) * np.exp(-distance))


def fit(points: F64, values: F64, random: Random) -> GaussianProcess:
    """Return the process whose length scales and noise are most probable given the values.

    Found by climbing at random: there are few points, and many directions that matter little.
    """
    d = points.shape[1]
    parameters = np.append(np.full(d, math.log(_LENGTH)), math.log(_NOISE))
    height, process = log_posterior(parameters, points, values)
    size = 0.5
    for _ in range(_CLIMBS):
        step = size * random.normal(size=d + 1) * (random.random(d + 1) < max(0.4, 1.0 / (d + 1)))
        other_height, other = log_posterior(parameters + step, points, values)
        if other_height > height:
            parameters, height, process = parameters + step, other_height, other
            size = min(1.3 * size, 1.0)
        else:
            size = max(0.97 * size, 0.02)
    return process


def log_posterior(parameters: F64, points: F64, values: F64) -> tuple[float, GaussianProcess]:
    """Return the log density of parameters given values, up to a constant, and the process.

    Parameters
    ----------
    parameters
        (d + 1,) logarithms of the length scales, and of the share of noise in the variance. The
        variance of the process is where the density is largest.
    """
    lengths, noise = np.exp(parameters[:-1]), float(np.exp(parameters[-1]))
    correlation = matern(points, points, lengths)
    correlation[np.diag_indices_from(correlation)] += noise + 1e-10
    cholesky = np.asarray(np.linalg.cholesky(correlation), np.float64)
    whitened = np.asarray(np.linalg.solve(cholesky, values), np.float64)
    n = values.size
    variance = max(float(whitened @ whitened) / n, 1e-12)
    likelihood = -0.5 * n * math.log(variance) - float(np.log(np.diag(cholesky)).sum())
    prior = (((parameters[:-1] - math.log(_LENGTH)) / _LENGTH_SPREAD) ** 2).sum()
    prior += ((parameters[-1] - math.log(_NOISE)) / _NOISE_SPREAD) ** 2
    process = GaussianProcess(points, lengths, variance, cholesky, whitened)
    return likelihood - 0.5 * float(prior), process


def expected_improvement(mean: F64, deviation: F64, best: float) -> F64:
    """Return by how much a normal variable is expected to exceed the best, (m,)."""
    z = (mean - best) / deviation
    below = np.array([0.5 * math.erfc(-v / math.sqrt(2.0)) for v in z])
    density = np.exp(-0.5 * z**2) / math.sqrt(2.0 * math.pi)
    return np.asarray(deviation * (z * below + density))
