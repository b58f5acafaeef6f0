"""Cholesky factorisation of small matrices inside kernels.

Hand-written because ``numpy.linalg`` inside a kernel takes a minute to compile and calls
LAPACK at a cost that dominates matrices of ten by ten.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gdmix.glm.compiled import kernel


@kernel
def factorize(n: int, a: NDArray[np.float64], least: NDArray[np.float64]) -> None:
    """Overwrite the lower triangle of the leading n x n block with its Cholesky factor.

    The diagonal holds reciprocals. Four columns at a time share the loads of a row.

    Parameters
    ----------
    a
        (m, m), m >= n: a symmetric matrix of which ``A - diag(least)`` is positive
        semidefinite, in the lower triangle.
    least
        (n,) non-negative. No exact pivot is below it, so one that is has been lost to
        rounding and is raised to it. A pivot that is zero even so belongs to a column that
        depends on earlier ones: its reciprocal is set to zero, which leaves that unknown at
        zero, as a regression drops an aliased column.
    """
    for i in range(n):
        row = a[i]
        largest = row[i]
        j = 0
        while j + 4 <= i:
            r0, r1, r2, r3 = a[j], a[j + 1], a[j + 2], a[j + 3]
            t0 = t1 = t2 = t3 = 0.0
            for k in range(j):
                v = row[k]
                t0 += v * r0[k]
                t1 += v * r1[k]
                t2 += v * r2[k]
                t3 += v * r3[k]
            s0 = (row[j] - t0) * r0[j]
            s1 = (row[j + 1] - t1 - s0 * r1[j]) * r1[j + 1]
            s2 = (row[j + 2] - t2 - s0 * r2[j] - s1 * r2[j + 1]) * r2[j + 2]
            s3 = (row[j + 3] - t3 - s0 * r3[j] - s1 * r3[j + 1] - s2 * r3[j + 2]) * r3[j + 3]
            row[j], row[j + 1], row[j + 2], row[j + 3] = s0, s1, s2, s3
            j += 4
        while j < i:
            other = a[j]
            t = 0.0
            for k in range(j):
                t += row[k] * other[k]
            row[j] = (row[j] - t) * other[j]
            j += 1
        t = 0.0
        for k in range(i):
            t += row[k] * row[k]
        pivot = row[i] - t
        pivot = max(pivot, least[i])
        row[i] = 1.0 / math.sqrt(pivot) if pivot > 1e-14 * largest or least[i] > 0.0 else 0.0


@kernel
def solve(n: int, a: NDArray[np.float64], b: NDArray[np.float64]) -> None:
    """Overwrite `b` with the solution of ``A x = b``, given the factor of `factorize`."""
    solve_lower(n, a, b)
    solve_upper(n, a, b)


@kernel
def solve_lower(n: int, a: NDArray[np.float64], b: NDArray[np.float64]) -> None:
    """Overwrite `b` with the solution of ``L x = b``, given L; 0 at a pivot that is 0."""
    for i in range(n):
        row = a[i]
        t = 0.0
        for k in range(i):
            t += row[k] * b[k]
        b[i] = (b[i] - t) * row[i]


@kernel
def solve_upper(n: int, a: NDArray[np.float64], b: NDArray[np.float64]) -> None:
    """Overwrite `b` with the solution of ``L' x = b``, given L; 0 at a pivot that is 0."""
    for i in range(n - 1, -1, -1):
        row = a[i]
        v = b[i] * row[i]
        b[i] = v
        for k in range(i):
            b[k] -= v * row[k]


@kernel
def invert(n: int, a: NDArray[np.float64], scratch: NDArray[np.float64]) -> None:
    """Overwrite the factor with the lower triangle of the inverse; 0 at a pivot that is 0.

    Parameters
    ----------
    scratch
        (>= n,).
    """
    for i in range(n):  # the inverse M of the factor
        row = a[i]
        pivot = row[i]
        for j in range(i):
            scratch[j] = 0.0
        for k in range(i):
            for j in range(k + 1):
                scratch[j] += row[k] * a[k, j]
        for j in range(i):
            row[j] = -pivot * scratch[j]
    for i in range(n):  # M' M
        for j in range(i + 1):
            scratch[j] = 0.0
        for k in range(i, n):
            row = a[k]
            for j in range(i + 1):
                scratch[j] += row[i] * row[j]
        for j in range(i + 1):
            a[i, j] = scratch[j]


@kernel
def multiply_root(n: int, a: NDArray[np.float64], b: NDArray[np.float64]) -> None:
    """Overwrite `b` with ``L b``, given the factor L of `factorize`; 0 at a pivot that is 0."""
    for i in range(n - 1, -1, -1):
        row = a[i]
        t = b[i] / row[i] if row[i] > 0.0 else 0.0
        for k in range(i):
            t += row[k] * b[k]
        b[i] = t


@kernel
def log_determinant(n: int, a: NDArray[np.float64]) -> float:
    """Return the logarithm of the determinant, given the factor; without pivots that are 0."""
    total = 0.0
    for i in range(n):
        if a[i, i] > 0.0:
            total -= 2.0 * math.log(a[i, i])
    return total


@kernel
def inverse_diagonal(
    n: int, a: NDArray[np.float64], column: NDArray[np.float64], diagonal: NDArray[np.float64]
) -> None:
    """Fill the diagonal of the inverse, given the factor; 0 at a pivot that is 0.

    Parameters
    ----------
    column
        Scratch, (>= n,): one column of the factor's inverse.
    """
    for j in range(n):
        column[j] = a[j, j]
        total = column[j] * column[j]
        for i in range(j + 1, n):
            row = a[i]
            t = 0.0
            for k in range(j, i):
                t += row[k] * column[k]
            column[i] = -t * row[i]
            total += column[i] * column[i]
        diagonal[j] = total
