"""The objective of one coordinate, once: margins, gradient, Hessian, and their products.

    F(theta) = sum_i w_i loss(y_i, z_i) + 1/2 sum_j penalty_j theta_j^2
    z_i      = offset_i + intercept * theta_0 + x_i . theta_1:

``theta[0]`` is the intercept and ``intercept`` is 1.0, or 0.0 for a model without one: its
column is then zero, and so is its coefficient. ``penalty`` is a vector, one L2 weight per
coefficient. ``indptr`` may start anywhere: a slice of the row pointers of many entities is
the problem of one of them. Functions work on the first `n` rows and fill arrays that the
caller owns.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gdmix.glm.compiled import kernel

F64 = NDArray[np.float64]


@kernel
def dot(n: int, a: F64, b: F64) -> float:
    """Return the inner product of the first `n` entries (``numpy.dot`` would need SciPy)."""
    total = 0.0
    for i in range(n):
        total += a[i] * b[i]
    return total


@kernel
def add_margins(
    n: int,
    indptr: NDArray[np.int64],
    indices: NDArray[np.uint32],
    values: NDArray[np.float32],
    intercept: float,
    theta: F64,
    offset: F64,
    z: F64,
) -> None:
    """Fill ``z = offset + X theta``."""
    slopes = theta[1:]
    constant = intercept * theta[0]
    for i in range(n):
        total = offset[i] + constant
        for q in range(np.uint64(indptr[i]), np.uint64(indptr[i + 1])):
            total += values[q] * slopes[indices[q]]
        z[i] = total


@kernel
def margins(
    n: int,
    indptr: NDArray[np.int64],
    indices: NDArray[np.uint32],
    values: NDArray[np.float32],
    intercept: float,
    theta: F64,
    z: F64,
) -> None:
    """Fill ``z = X theta``."""
    slopes = theta[1:]
    constant = intercept * theta[0]
    for i in range(n):
        total = constant
        for q in range(np.uint64(indptr[i]), np.uint64(indptr[i + 1])):
            total += values[q] * slopes[indices[q]]
        z[i] = total


@kernel
def add_transposed(
    n: int,
    indptr: NDArray[np.int64],
    indices: NDArray[np.uint32],
    values: NDArray[np.float32],
    intercept: float,
    d1: F64,
    gradient: F64,
) -> None:
    """Add ``X' d1`` to `gradient`."""
    slopes = gradient[1:]
    total = 0.0
    for i in range(n):
        d = d1[i]
        total += d
        for q in range(np.uint64(indptr[i]), np.uint64(indptr[i + 1])):
            slopes[indices[q]] += d * values[q]
    gradient[0] += intercept * total


@kernel
def add_hessian_product(
    n: int,
    indptr: NDArray[np.int64],
    indices: NDArray[np.uint32],
    values: NDArray[np.float32],
    intercept: float,
    d2: F64,
    direction: F64,
    z: F64,
    product: F64,
) -> None:
    """Fill ``z = X direction`` and add ``X' (d2 z)`` to `product`, in one pass over the rows."""
    slopes = direction[1:]
    out = product[1:]
    constant = intercept * direction[0]
    total = 0.0
    for i in range(n):
        margin = constant
        for q in range(np.uint64(indptr[i]), np.uint64(indptr[i + 1])):
            margin += values[q] * slopes[indices[q]]
        z[i] = margin
        margin *= d2[i]
        total += margin
        for q in range(np.uint64(indptr[i]), np.uint64(indptr[i + 1])):
            out[indices[q]] += margin * values[q]
    product[0] += intercept * total


@kernel
def add_hessian_diagonal(
    n: int,
    indptr: NDArray[np.int64],
    indices: NDArray[np.uint32],
    values: NDArray[np.float32],
    intercept: float,
    d2: F64,
    diagonal: F64,
) -> None:
    """Add the diagonal of ``X' diag(d2) X`` to `diagonal`."""
    slopes = diagonal[1:]
    total = 0.0
    for i in range(n):
        d = d2[i]
        total += d
        for q in range(np.uint64(indptr[i]), np.uint64(indptr[i + 1])):
            value = np.float64(values[q])
            slopes[indices[q]] += d * value * value
    diagonal[0] += intercept * intercept * total


@kernel
def add_hessian(
    n: int,
    indptr: NDArray[np.int64],
    indices: NDArray[np.uint32],
    values: NDArray[np.float32],
    intercept: float,
    d2: F64,
    hessian: NDArray[np.float64],
) -> None:
    """Add the lower triangle of ``X' diag(d2) X`` to `hessian`, (m, m) with m >= columns + 1."""
    for i in range(n):
        d = d2[i]
        hessian[0, 0] += intercept * intercept * d
        for p in range(np.uint64(indptr[i]), np.uint64(indptr[i + 1])):
            row = indices[p] + np.uint32(1)
            scaled = d * values[p]
            target = hessian[row]
            target[0] += intercept * scaled
            for q in range(np.uint64(indptr[i]), np.uint64(p + np.uint64(1))):
                column = indices[q] + np.uint32(1)
                if column <= row:
                    target[column] += scaled * values[q]
                else:
                    hessian[column, row] += scaled * values[q]


@kernel
def rounding_floor(
    n: int,
    indptr: NDArray[np.int64],
    indices: NDArray[np.uint32],
    values: NDArray[np.float32],
    intercept: float,
    theta: F64,
    offset: F64,
    d1: F64,
    d2: F64,
    penalty: F64,
) -> float:
    """Return the norm below which a gradient computed in double precision is rounding error.

    First-order bound on the error of ``X' d1(z) + penalty theta``: the error of each margin,
    carried through d2, plus that of each product in the sums (Higham, Accuracy and Stability
    of Numerical Algorithms, 2002, section 3.1).
    """
    slopes = theta[1:]
    total = 0.0
    for i in range(n):
        size = abs(offset[i]) + intercept * abs(theta[0])
        row = intercept
        for q in range(np.uint64(indptr[i]), np.uint64(indptr[i + 1])):
            size += abs(values[q] * slopes[indices[q]])
            row += abs(values[q])
        total += row * (abs(d1[i]) + d2[i] * (1.0 + size))
    for j in range(theta.size):
        total += penalty[j] * abs(theta[j])
    return 8.0 * 2.220446049250313e-16 * total
