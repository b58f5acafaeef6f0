"""The objective of one coordinate, once: margins, gradient, Hessian, and their products.

    F(theta) = sum_i w_i loss(y_i, z_i) + 1/2 sum_j penalty_j theta_j^2
    z_i      = offset_i + intercept * theta_0 + x_i . theta_1:

``theta[0]`` is the intercept and ``intercept`` is 1.0, or 0.0 for a model without one: its
column is then zero, and so is its coefficient. ``penalty`` is a vector, one L2 weight per
coefficient. ``indptr`` may start anywhere: a slice of the row pointers of many entities is
the problem of one of them. Where there are values but no ``indices``, every row holds every
column (`matrix.CsrMatrix`). Functions work on the first `n` rows and fill arrays that the
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
def add_scaled(n: int, factor: float, x: F64, y: F64) -> None:
    """Add `factor` times `x` to `y`, the first `n` entries."""
    for i in range(n):
        y[i] += factor * x[i]


@kernel
def is_dense(indices: NDArray[np.uint32], values: NDArray[np.float32]) -> bool:
    """Whether every row holds every column."""
    return indices.size == 0 and values.size > 0


@kernel
def dense_dot(start: int, values: NDArray[np.float32], x: F64) -> float:
    """Return the inner product of a row of all columns with `x`."""
    row = values[start : start + x.size]
    total = 0.0
    for j in range(x.size):
        total += row[j] * x[j]
    return total


@kernel
def add_dense_row(factor: float, start: int, values: NDArray[np.float32], x: F64) -> None:
    """Add `factor` times a row of all columns to `x`."""
    row = values[start : start + x.size]
    for j in range(x.size):
        x[j] += factor * row[j]


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
    if is_dense(indices, values):
        for i in range(n):
            z[i] = offset[i] + constant + dense_dot(indptr[i], values, slopes)
        return
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
    if is_dense(indices, values):
        for i in range(n):
            z[i] = constant + dense_dot(indptr[i], values, slopes)
        return
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
    if is_dense(indices, values):
        for i in range(n):
            total += d1[i]
            add_dense_row(d1[i], indptr[i], values, slopes)
        gradient[0] += intercept * total
        return
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
    if is_dense(indices, values):
        for i in range(n):
            z[i] = constant + dense_dot(indptr[i], values, slopes)
            total += d2[i] * z[i]
            add_dense_row(d2[i] * z[i], indptr[i], values, out)
        product[0] += intercept * total
        return
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
def add_hessian_product_paired(
    n: int,
    indptr: NDArray[np.int64],
    indices: NDArray[np.uint32],
    values: NDArray[np.float32],
    intercept: float,
    d2: F64,
    z: F64,
    pairs: NDArray[np.float64],
) -> None:
    """Do as `add_hessian_product`, for vectors too long for the innermost cache.

    Parameters
    ----------
    pairs
        (d, 2): direction and product side by side, so that a feature costs one cache line.
    """
    slopes = pairs[1:]
    constant = intercept * pairs[0, 0]
    total = 0.0
    if is_dense(indices, values):
        x, out = slopes[:, 0].copy(), np.zeros(slopes.shape[0])
        for i in range(n):
            z[i] = constant + dense_dot(indptr[i], values, x)
            total += d2[i] * z[i]
            add_dense_row(d2[i] * z[i], indptr[i], values, out)
        slopes[:, 1] += out
        pairs[0, 1] += intercept * total
        return
    for i in range(n):
        margin = constant
        for q in range(np.uint64(indptr[i]), np.uint64(indptr[i + 1])):
            margin += values[q] * slopes[indices[q], 0]
        z[i] = margin
        margin *= d2[i]
        total += margin
        for q in range(np.uint64(indptr[i]), np.uint64(indptr[i + 1])):
            slopes[indices[q], 1] += margin * values[q]
    pairs[0, 1] += intercept * total


@kernel
def curvature_change(n: int, d2: F64, known_d2: F64) -> tuple[float, float]:
    """Return the sum of ``|d2 - known_d2|``, and that of `d2`."""
    change = 0.0
    total = 0.0
    for i in range(n):
        change += abs(d2[i] - known_d2[i])
        total += d2[i]
    return change, total


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
    if is_dense(indices, values):
        for i in range(n):
            row = values[indptr[i] : indptr[i] + slopes.size]
            total += d2[i]
            for j in range(row.size):
                value = np.float64(row[j])
                slopes[j] += d2[i] * value * value
        diagonal[0] += intercept * intercept * total
        return
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
    n_columns: int,
    hessian: NDArray[np.float64],
) -> None:
    """Add the lower triangle of ``X' diag(d2) X`` to `hessian`, (m, m) with m >= columns + 1."""
    if is_dense(indices, values):
        _add_dense_hessian(n, indptr, values, intercept, d2, n_columns, hessian)
        return
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
def _add_dense_hessian(
    n: int,
    indptr: NDArray[np.int64],
    values: NDArray[np.float32],
    intercept: float,
    d2: F64,
    n_columns: int,
    hessian: NDArray[np.float64],
) -> None:
    """Do as `add_hessian`, four rows of X at a time: a quarter of the traffic with `hessian`."""
    m = n_columns
    i = 0
    while i + 4 <= n:
        r0 = values[indptr[i] : indptr[i] + m]
        r1 = values[indptr[i + 1] : indptr[i + 1] + m]
        r2 = values[indptr[i + 2] : indptr[i + 2] + m]
        r3 = values[indptr[i + 3] : indptr[i + 3] + m]
        hessian[0, 0] += intercept * intercept * (d2[i] + d2[i + 1] + d2[i + 2] + d2[i + 3])
        for j in range(m):
            target = hessian[j + 1]
            s0, s1 = d2[i] * r0[j], d2[i + 1] * r1[j]
            s2, s3 = d2[i + 2] * r2[j], d2[i + 3] * r3[j]
            target[0] += intercept * (s0 + s1 + s2 + s3)
            own = target[1 : j + 2]
            for k in range(own.size):
                own[k] += s0 * r0[k] + s1 * r1[k] + s2 * r2[k] + s3 * r3[k]
        i += 4
    while i < n:
        row = values[indptr[i] : indptr[i] + m]
        hessian[0, 0] += intercept * intercept * d2[i]
        for j in range(m):
            target = hessian[j + 1]
            scaled = d2[i] * row[j]
            target[0] += intercept * scaled
            own = target[1 : j + 2]
            for k in range(own.size):
                own[k] += scaled * row[k]
        i += 1


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
    dense = is_dense(indices, values)
    for i in range(n):
        size = abs(offset[i]) + intercept * abs(theta[0])
        row = intercept
        count = slopes.size if dense else indptr[i + 1] - indptr[i]
        for k in range(count):
            q = np.uint64(indptr[i] + k)
            size += abs(values[q] * slopes[k if dense else indices[q]])
            row += abs(values[q])
        total += row * (abs(d1[i]) + d2[i] * (1.0 + size))
    for j in range(theta.size):
        total += penalty[j] * abs(theta[j])
    return 8.0 * 2.220446049250313e-16 * total
