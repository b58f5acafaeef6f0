"""A factorization in plain numpy: its objective, and one round of its posterior."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gdmix.data.dataset import Dataset
from gdmix.model.factorization import FactorizationModel

F64 = NDArray[np.float64]


class Oracle:
    """``sum w loss + l2/2 (|U - X Gu|^2 + |Gu|^2 + |V - Z Gv|^2 + |Gv|^2)`` of (U, Gu, V, Gv)."""

    def __init__(
        self,
        task: str,
        e: NDArray[np.int32],
        f: NDArray[np.int32],
        y: F64,
        w: F64,
        offset: F64,
        l2: float,
        rank: int,
        designs: Any,
    ) -> None:
        self.task, self.e, self.f, self.y, self.w, self.offset = task, e, f, y, w, offset
        self.l2, self.rank = l2, rank
        sizes = int(e.max()) + 1, int(f.max()) + 1
        self.designs = designs or tuple(np.zeros((size, 0)) for size in sizes)
        self.shapes = [n for x in self.designs for n in x.shape]
        self.size = sum(self.shapes) * rank

    def parts(self, x: F64) -> list[F64]:
        ends = np.cumsum(self.shapes) * self.rank
        return [part.reshape(-1, self.rank) for part in np.split(x, ends[:-1])]

    def derivatives(self, own: F64) -> tuple[F64, F64]:
        z = self.offset + own
        if self.task == "logistic_regression":
            p = 1 / (1 + np.exp(-z))
            return self.w * (p - self.y), self.w * p * (1 - p)
        if self.task == "linear_regression":
            return self.w * (z - self.y), self.w
        return self.w * (np.exp(z) - self.y), self.w * np.exp(z)

    def value(self, x: F64) -> float:
        u, g, v, h = self.parts(x)
        z = self.offset + (u[self.e] * v[self.f]).sum(axis=1)
        losses = {
            "logistic_regression": lambda: np.logaddexp(0.0, z) - self.y * z,
            "linear_regression": lambda: 0.5 * (z - self.y) ** 2,
            "poisson_regression": lambda: np.exp(z) - self.y * z,
        }
        away = [u - self.designs[0] @ g, g, v - self.designs[1] @ h, h]
        penalty = 0.5 * self.l2 * sum(float((a**2).sum()) for a in away)
        return float(self.w @ losses[self.task]()) + penalty

    def gradient(self, x: F64) -> F64:
        u, g, v, h = self.parts(x)
        d1, _ = self.derivatives((u[self.e] * v[self.f]).sum(axis=1))
        result = []
        for own, other, a, b, design, c in (
            (self.e, self.f, u, v, self.designs[0], g),
            (self.f, self.e, v, u, self.designs[1], h),
        ):
            away = self.l2 * (a - design @ c)
            of_factors = away.copy()
            np.add.at(of_factors, own, d1[:, None] * b[other])
            result += [of_factors, self.l2 * c - design.T @ away]
        return np.concatenate([part.ravel() for part in result])


def unpacked(packed: NDArray[np.float32], rank: int) -> F64:
    """Return whole matrices of packed lower triangles."""
    result = np.zeros((len(packed), rank, rank))
    a, b = np.tril_indices(rank)
    result[:, a, b] = packed
    result[:, b, a] = packed
    return result


def posterior_step(train: Dataset, model: FactorizationModel) -> list[tuple[F64, F64]]:
    """Return mean and covariance of every entity's factors after one round, squared loss.

    The second side is updated first, then the first: for each entity the normal posterior under
    the expectations of the other side's factors and of their products (Lim & Teh 2007). The
    residual variance is the expected squared residual before the round.
    """
    codes = [train.keys[side.key].codes for side in model.sides]
    means = [side.factors.astype(float) for side in model.sides]
    rank = means[0].shape[1]
    covariances = [unpacked(side.covariances, rank) for side in model.sides]
    y, w = train.response - train.offset, train.weight
    u, v = means[0][codes[0]], means[1][codes[1]]
    cu, cv = covariances[0][codes[0]], covariances[1][codes[1]]
    second = np.einsum("ij,ijk,ik->i", v, cu, v) + np.einsum("ij,ijk,ik->i", u, cv, u)
    second += np.einsum("ijk,ikj->i", cu, cv)
    variance = w @ ((y - (u * v).sum(axis=1)) ** 2 + second) / np.count_nonzero(w)
    for own in (1, 0):
        other, side = 1 - own, model.sides[own]
        bag = side.features[0]
        matrix = train.bags[bag]
        for k in range(len(side)):
            rows = np.flatnonzero(codes[own] == k)
            design = np.zeros(matrix.n_columns + 1)
            design[0] = 1.0
            first = slice(matrix.indptr[rows[0]], matrix.indptr[rows[0] + 1])
            design[1 + matrix.indices[first]] = matrix.values[first]
            prior = design @ side.regression
            met = codes[other][rows]
            x, c = means[other][met], covariances[other][met]
            precision = np.diag(side.l2) / variance
            pull = precision @ prior
            for i, row in enumerate(rows):
                precision += w[row] / variance * (np.outer(x[i], x[i]) + c[i])
                pull += w[row] / variance * y[row] * x[i]
            covariances[own][k] = np.linalg.inv(precision)
            means[own][k] = covariances[own][k] @ pull
    return list(zip(means, covariances, strict=True))
