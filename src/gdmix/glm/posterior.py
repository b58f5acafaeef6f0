"""Scores under uncertain coefficients: their variance, and coefficients drawn at random.

Coefficients are taken to be normal, N(theta, C), with C = dispersion H^-1 where their Hessian H
is known, else diag(variances) (Laplace's approximation; what a prior holds, too). The variance of
a score is x' C x. With L L' = H and e standard normal, theta + sqrt(dispersion) L'^-1 e is a draw.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gdmix import memory
from gdmix.glm import cholesky
from gdmix.glm.compiled import kernel
from gdmix.glm.matrix import CsrMatrix
from gdmix.glm.objective import dot, is_dense
from gdmix.glm.random_bits import standard_normal
from gdmix.glm.row_order import order_rows
from gdmix.glm.threads import map_threads, split_evenly

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Triangles = tuple[I64, F64]  # pointers and lower triangles, row by row; empty of some, or of all

NO_TRIANGLES: Triangles = np.empty(0, np.int64), np.empty(0)
_ROWS_PER_TASK = 65_536


def covariance(hessian: F64, d: int, dispersion: float) -> F64:
    """Return ``dispersion H^-1``, (d, d), of a lower triangle; 0 of what H does not determine."""
    matrix = np.empty((d, d))
    _unpack(d, hessian, matrix)
    cholesky.factorize(d, matrix, np.zeros(d))
    cholesky.invert(d, matrix, np.empty(d))
    matrix *= dispersion
    return matrix


def score_variances_fixed(
    design: CsrMatrix, intercept: bool, variances: F64, matrix: F64, threads: int = 1
) -> F64:
    """Return the variance of each row's score under one model, (n,).

    Parameters
    ----------
    variances
        (columns + 1,) of the coefficients, intercept first.
    matrix
        Their covariance, instead; (0, 0) if it is not known.
    """
    result = memory.empty(design.n_rows)

    def work(rows: tuple[int, int]) -> None:
        _variances_fixed(
            *rows,
            design.indptr,
            design.indices,
            design.values,
            design.n_columns,
            1.0 if intercept else 0.0,
            variances,
            matrix,
            result,
        )

    n = design.n_rows
    map_threads(work, split_evenly(n, max(n // _ROWS_PER_TASK + 1, 4 * threads)), threads)
    return result


def score_variances_random(
    design: CsrMatrix,
    entity: NDArray[np.int32],
    intercept: bool,
    models: tuple[I64, NDArray[np.uint32], F64],
    triangles: Triangles = NO_TRIANGLES,
    dispersion: float = 1.0,
    threads: int = 1,
) -> F64:
    """Return the variance of each row's score under its own entity's model, (n,).

    Rows are taken entity by entity, so that each Hessian is factorised once.

    Parameters
    ----------
    entity
        (n,) number of the row's entity, negative for one without a model, whose rows have 0.
    models
        Pointers, columns and variances of the coefficients, ragged.
    triangles
        Their Hessians, where an entity has one.
    """
    indptr, columns, variances = models
    n_entities = indptr.size - 1
    row_ptr, rows = order_rows(entity, n_entities, max(design.n_rows, 1))
    result = memory.zeros(design.n_rows)

    def work(entities: tuple[int, int]) -> None:
        _variances_random(
            *entities,
            row_ptr,
            rows.order,
            design.indptr,
            design.indices,
            design.values,
            1.0 if intercept else 0.0,
            indptr,
            columns,
            variances,
            *triangles,
            float(dispersion),
            result,
        )

    map_threads(work, split_evenly(n_entities, 16 * threads), threads)
    return result


def draw(
    key: np.uint64,
    chosen: I64,
    indptr: I64,
    values: F64,
    variances: F64,
    triangles: Triangles = NO_TRIANGLES,
    dispersion: float = 1.0,
) -> F64:
    """Return a draw of the chosen models' coefficients, ragged.

    The draw of a model depends on the key and on what the model is, not on which are chosen.

    Parameters
    ----------
    key
        Of the stream of random numbers.
    chosen
        Numbers of models.
    indptr, values, variances
        Ragged, of all models.
    triangles
        Their Hessians, where a model has one.
    """
    result = memory.empty(int((indptr[chosen + 1] - indptr[chosen]).sum()))
    _draw(key, chosen, indptr, values, variances, *triangles, float(dispersion), result)
    return result


@kernel
def _unpack(d: int, packed: F64, matrix: NDArray[np.float64]) -> None:
    """Fill the lower triangle of a matrix."""
    k = 0
    for i in range(d):
        for j in range(i + 1):
            matrix[i, j] = packed[k]
            k += 1


@kernel
def _variances_fixed(
    first: int,
    last: int,
    indptr: I64,
    indices: NDArray[np.uint32],
    values: NDArray[np.float32],
    n_columns: int,
    intercept: float,
    variances: F64,
    matrix: NDArray[np.float64],
    result: F64,
) -> None:
    dense = is_dense(indices, values)
    whole = matrix.size > 0
    for i in range(first, last):
        start = indptr[i]
        size = n_columns if dense else indptr[i + 1] - start
        total = intercept * intercept * (matrix[0, 0] if whole else variances[0])
        for k in range(size):
            j = k + 1 if dense else np.int64(indices[start + k]) + 1
            value = np.float64(values[start + k])
            if not whole:
                total += value * value * variances[j]
                continue
            half = intercept * matrix[j, 0]
            for m in range(k):
                other = m + 1 if dense else np.int64(indices[start + m]) + 1
                half += values[start + m] * matrix[max(j, other), min(j, other)]
            total += value * (2.0 * half + value * matrix[j, j])
        result[i] = max(total, 0.0)


@kernel
def _variances_random(
    first: int,
    last: int,
    row_ptr: I64,
    order: I64,
    row_indptr: I64,
    row_indices: NDArray[np.uint32],
    row_values: NDArray[np.float32],
    intercept: float,
    indptr: I64,
    columns: NDArray[np.uint32],
    variances: F64,
    triangle_ptr: I64,
    triangles: F64,
    dispersion: float,
    result: F64,
) -> None:
    dense = is_dense(row_indices, row_values)
    widest = 1
    for e in range(first, last):
        if row_ptr[e + 1] > row_ptr[e]:
            widest = max(widest, indptr[e + 1] - indptr[e])
    x = np.empty(widest)
    nothing = np.zeros(widest)
    room = np.empty(widest * widest if triangle_ptr.size > 0 else 0)
    for e in range(first, last):
        a, b = indptr[e], indptr[e + 1]
        if row_ptr[e + 1] == row_ptr[e] or a == b:
            continue
        d = b - a
        whole = triangle_ptr.size > 0 and triangle_ptr[e + 1] > triangle_ptr[e]
        factor = room[: d * d].reshape((d, d)) if whole else room[:0].reshape((0, 0))
        if whole:
            _unpack(d, triangles[triangle_ptr[e] :], factor)
            cholesky.factorize(d, factor, nothing)
        for k in range(row_ptr[e], row_ptr[e + 1]):
            i = order[k]
            _local_row(i, dense, row_indptr, row_indices, row_values, intercept, columns[a:b], x)
            total = 0.0
            if whole:
                cholesky.solve_lower(d, factor, x)
                total = dispersion * dot(d, x, x)
            else:
                for j in range(d):
                    total += x[j] * x[j] * variances[a + j]
            result[i] = total


@kernel
def _local_row(
    i: int,
    dense: bool,
    indptr: I64,
    indices: NDArray[np.uint32],
    values: NDArray[np.float32],
    intercept: float,
    columns: NDArray[np.uint32],
    x: F64,
) -> None:
    """Fill in a row's values of the given columns, which ascend; column 0 is the intercept."""
    for j in range(columns.size):
        if columns[j] == 0:
            x[j] = intercept
        else:
            x[j] = values[indptr[i] + np.int64(columns[j]) - 1] if dense else 0.0
    if dense:
        return
    for q in range(indptr[i], indptr[i + 1]):
        wanted = indices[q] + np.uint32(1)
        low, high = 0, columns.size
        while low < high:
            middle = (low + high) // 2
            if columns[middle] < wanted:
                low = middle + 1
            else:
                high = middle
        if low < columns.size and columns[low] == wanted:
            x[low] = values[q]


@kernel
def _draw(
    key: np.uint64,
    chosen: I64,
    indptr: I64,
    values: F64,
    variances: F64,
    triangle_ptr: I64,
    triangles: F64,
    dispersion: float,
    result: F64,
) -> None:
    widest = 1
    for e in chosen:
        widest = max(widest, indptr[e + 1] - indptr[e])
    nothing = np.zeros(widest)
    room = np.empty(widest * widest if triangle_ptr.size > 0 else 0)
    target = 0
    for e in chosen:
        a, d = indptr[e], indptr[e + 1] - indptr[e]
        own = result[target : target + d]
        target += d
        for j in range(d):
            own[j] = standard_normal(key, a + j)
        if triangle_ptr.size > 0 and triangle_ptr[e + 1] > triangle_ptr[e]:
            factor = room[: d * d].reshape((d, d))
            _unpack(d, triangles[triangle_ptr[e] :], factor)
            cholesky.factorize(d, factor, nothing)
            cholesky.solve_upper(d, factor, own)
            for j in range(d):
                own[j] *= math.sqrt(dispersion)
        else:
            for j in range(d):
                own[j] *= math.sqrt(variances[a + j])
        for j in range(d):
            own[j] += values[a + j]
