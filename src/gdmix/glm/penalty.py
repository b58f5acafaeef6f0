"""The quadratic part of the penalty: of one problem, and of the problems of many entities.

    penalty(theta) = theta' (diag(weights) + matrix) theta / 2

An L2 weight, weights per feature, a normalisation folded into raw units and a Gaussian prior are
all of this form; a prior's mean is folded into the offset. The matrix is there for a prior with a
full Hessian, and for a penalised intercept that is measured at the means of the features:
``w / 2 (theta_0 + m' theta_1:)^2``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gdmix import memory
from gdmix.glm import cholesky
from gdmix.glm.compiled import kernel
from gdmix.glm.objective import dot

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@dataclass(frozen=True)
class QuadraticPenalty:
    """The quadratic penalty of one problem.

    Attributes
    ----------
    weights
        (d,) non-negative.
    matrix
        (d, d) symmetric positive semidefinite, or None.
    """

    weights: F64
    matrix: F64 | None = None

    def product(self, theta: F64) -> F64:
        """Return ``(diag(weights) + matrix) theta``."""
        result = self.weights * theta
        if self.matrix is not None:
            result += self.matrix @ theta
        return result

    def between(self, a: F64, b: F64) -> float:
        """Return ``a' (diag(weights) + matrix) b``."""
        return dot(a.size, a, self.product(b))

    def whole_matrix(self) -> F64 | None:
        """Return the matrix, wherever its rows are."""
        return self.matrix

    @property
    def diagonal(self) -> F64:
        """The matrix's diagonal and the weights."""
        return self.weights if self.matrix is None else self.weights + np.diag(self.matrix)


@dataclass(frozen=True)
class EntityPenalty:
    """Penalties of many entities that differ by coefficient, ragged as their coefficients.

    Attributes
    ----------
    weights
        L2 weight of each coefficient.
    l1
        L1 weight of each; empty: none.
    means, intercept_weight
        The intercept is penalised at these means of the features, with this weight: to `weights`
        it then has 0. An entry per coefficient, that of an intercept is 1; empty: none.
    hessian_ptr, hessians
        Entity e has a prior of the lower triangle ``hessians[hessian_ptr[e]:hessian_ptr[e + 1]]``,
        row by row, or none where that is empty; empty: no entity has.
    """

    weights: F64
    l1: F64 = field(default_factory=lambda: np.empty(0))
    means: F64 = field(default_factory=lambda: np.empty(0))
    intercept_weight: float = 0.0
    hessian_ptr: I64 = field(default_factory=lambda: np.empty(0, np.int64))
    hessians: F64 = field(default_factory=lambda: np.empty(0))

    @property
    def has_matrices(self) -> bool:
        """Whether entities have more than a weight per coefficient."""
        return self.means.size > 0 or self.hessian_ptr.size > 0

    @property
    def is_l1(self) -> bool:
        """Whether there is an L1 part."""
        return self.l1.size > 0

    def of_entity(self, coefficient_ptr: I64, e: int) -> QuadraticPenalty:
        """Return one entity's quadratic part."""
        own = slice(int(coefficient_ptr[e]), int(coefficient_ptr[e + 1]))
        d = own.stop - own.start
        matrix = np.zeros((d, d))
        filled = fill_matrix(
            e, own.start, self.means, self.intercept_weight, self.hessian_ptr, self.hessians, matrix
        )
        return QuadraticPenalty(self.weights[own], matrix if filled else None)

    def means_between(self, coefficient_ptr: I64, means: F64) -> F64:
        """Return ``(diag(weights) + M)^-1 M means``, M the Hessians: 0 where both are 0.

        That is the mean of a prior around `means` and one around zero.
        """
        result = memory.zeros(means.size)
        _means_between(
            coefficient_ptr, self.weights, self.hessian_ptr, self.hessians, means, result
        )
        return result

    def products(self, coefficient_ptr: I64, theta: F64) -> F64:
        """Return every entity's quadratic part times its coefficients, ragged."""
        result = memory.empty(theta.size)
        np.multiply(self.weights, theta, out=result)
        if self.has_matrices:
            _add_products(
                coefficient_ptr,
                self.means,
                self.intercept_weight,
                self.hessian_ptr,
                self.hessians,
                theta,
                result,
            )
        return result


@kernel
def fill_matrix(
    e: int,
    start: int,
    means: F64,
    intercept_weight: float,
    hessian_ptr: I64,
    hessians: F64,
    matrix: NDArray[np.float64],
) -> bool:
    """Fill an entity's (d, d) matrix, both triangles; return whether it has any.

    Parameters
    ----------
    start
        Place of its first coefficient.
    """
    d = matrix.shape[0]
    filled = False
    for i in range(d):
        row = matrix[i]
        for j in range(d):
            row[j] = 0.0
    if means.size > 0:
        filled = True
        for i in range(d):
            row = matrix[i]
            scaled = intercept_weight * means[start + i]
            for j in range(d):
                row[j] = scaled * means[start + j]
    if hessian_ptr.size > 0 and hessian_ptr[e + 1] > hessian_ptr[e]:
        filled = True
        k = hessian_ptr[e]
        for i in range(d):
            for j in range(i + 1):
                matrix[i, j] += hessians[k]
                if i != j:
                    matrix[j, i] += hessians[k]
                k += 1
    return filled


@kernel
def _add_products(
    coefficient_ptr: I64,
    means: F64,
    intercept_weight: float,
    hessian_ptr: I64,
    hessians: F64,
    theta: F64,
    result: F64,
) -> None:
    for e in range(coefficient_ptr.size - 1):
        a, b = coefficient_ptr[e], coefficient_ptr[e + 1]
        if means.size > 0:
            scaled = intercept_weight * dot(b - a, means[a:b], theta[a:b])
            for j in range(a, b):
                result[j] += scaled * means[j]
        if hessian_ptr.size > 0 and hessian_ptr[e + 1] > hessian_ptr[e]:
            k = hessian_ptr[e]
            for i in range(a, b):
                for j in range(a, i):
                    result[i] += hessians[k] * theta[j]
                    result[j] += hessians[k] * theta[i]
                    k += 1
                result[i] += hessians[k] * theta[i]
                k += 1


@kernel
def penalty_product(penalty: F64, matrix: NDArray[np.float64], x: F64, product: F64) -> None:
    """Fill ``product = (diag(penalty) + matrix) x``; the matrix may be (0, 0)."""
    d = penalty.size
    for i in range(d):
        product[i] = penalty[i] * x[i]
    if matrix.size > 0:
        for i in range(d):
            product[i] += dot(d, matrix[i], x)


@kernel
def _means_between(
    coefficient_ptr: I64,
    weights: F64,
    hessian_ptr: I64,
    hessians: F64,
    means: F64,
    result: F64,
) -> None:
    widest = 1
    for e in range(coefficient_ptr.size - 1):
        widest = max(widest, coefficient_ptr[e + 1] - coefficient_ptr[e])
    room = np.empty(widest * widest)
    none = np.empty(0)
    for e in range(coefficient_ptr.size - 1):
        a, b = coefficient_ptr[e], coefficient_ptr[e + 1]
        d = b - a
        matrix = room[: d * d].reshape((d, d))
        if not fill_matrix(e, a, none, 0.0, hessian_ptr, hessians, matrix):
            continue
        relaxed = False
        for i in range(d):
            # Of a coefficient that the Hessian does not know, the mean is 0 and stays it.
            relaxed = relaxed or (weights[a + i] > 0.0 and matrix[i, i] > 0.0)
            result[a + i] = dot(d, matrix[i], means[a:b])
        if not relaxed:
            for i in range(a, b):
                result[i] = means[i]
            continue
        for i in range(d):
            matrix[i, i] += weights[a + i]
        cholesky.factorize(d, matrix, weights[a:b])
        cholesky.solve(d, matrix, result[a:b])
