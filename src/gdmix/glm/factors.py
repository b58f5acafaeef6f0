"""Products of two entities' factors: scores, and what is uncertain about them.

A row's score is ``u_e' v_f``. With independent normal posteriors of u and v, of covariances C_e
and C_f, the expected loss is to second order that of the mean score plus half its curvature d2
times the variance of the score (Lim & Teh, KDD Cup and Workshop, 2007):

    Var(u' v) = v' C_e v + u' C_f u + tr(C_e C_f)

To u the covariances of the other side are thus a penalty ``u' Q_e u / 2``, Q_e = sum_i d2_i C_f(i),
and C_e is the inverse of ``sum_i d2_i (v v' + C_f(i)) + diag(l2)``.

A covariance is packed: the lower triangle, row by row, in single precision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gdmix import memory
from gdmix.glm import cholesky
from gdmix.glm.compiled import kernel
from gdmix.glm.entities import EntityBlock
from gdmix.glm.threads import map_threads, split_evenly

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

_ROWS_PER_TASK = 65_536


def packed_size(rank: int) -> int:
    """Return the number of entries of a packed covariance."""
    return rank * (rank + 1) // 2


def diagonal_places(rank: int) -> I64:
    """Return where the diagonal stands in a packed covariance."""
    return np.arange(1, rank + 1) * np.arange(2, rank + 2) // 2 - 1


def score_pairs(one: F32, other: F32, e: I32, f: I32, threads: int = 1) -> F64:
    """Return ``one[e] . other[f]`` of each row, (n,); 0 where e or f is negative.

    Parameters
    ----------
    one, other
        (entities, k) factors.
    e, f
        (n,) number of each row's entity.
    """
    z = memory.empty(e.size)
    _over_rows(_score_pairs, e.size, threads, one, other, e, f, z)
    return z


def variances_of_pairs(
    one: tuple[F32, F32], other: tuple[F32, F32], e: I32, f: I32, threads: int = 1
) -> F64:
    """Return the variance of each row's score, (n,); 0 where e or f is negative.

    Parameters
    ----------
    one, other
        Factors (entities, k), and packed covariances.
    """
    variance = memory.empty(e.size)
    _over_rows(_variances_of_pairs, e.size, threads, *one, *other, e, f, variance)
    return variance


def expected_curvatures(
    block: EntityBlock, curvature: F64, covariances: F32, rank: int, threads: int = 1
) -> F64:
    """Return Q of each entity, (E, packed).

    Parameters
    ----------
    block
        A dense block whose values are the factors of the other side.
    curvature
        (n,) d2 of the loss, in the block's row order.
    covariances
        (F, packed) of the other side.
    """
    result = np.zeros((block.n_entities, packed_size(rank)))
    _over_entities(
        _expected_curvatures, block, threads, block.indptr, rank, curvature, covariances, result
    )
    return result


def posterior_covariances(
    block: EntityBlock,
    curvature: F64,
    expected: F64,
    l2: F64,
    dispersion: float,
    threads: int = 1,
) -> tuple[F32, F64]:
    """Return C of each entity, (E, packed), and log|C|, (E,).

    Parameters
    ----------
    curvature
        (n,) d2 of the loss, in the block's row order.
    expected
        Q of each entity.
    l2
        (k,) L2 weight of each factor, positive.
    dispersion
        By which inverse Hessians are multiplied.
    """
    covariances = np.empty(expected.shape, np.float32)
    log_determinants = np.empty(block.n_entities)
    _over_entities(
        _posterior_covariances,
        block,
        threads,
        block.indptr,
        block.values,
        curvature,
        expected,
        l2,
        float(dispersion),
        covariances,
        log_determinants,
    )
    return covariances, log_determinants


def centres(block: EntityBlock, expected: F64, l2: F64, means: F64, threads: int = 1) -> F64:
    """Return ``(Q + diag(l2))^-1 diag(l2) mean`` of each entity, (E, k).

    There ``u' Q u + (u - mean)' diag(l2) (u - mean)`` is least.
    """
    result = np.empty(means.shape)
    _over_entities(_centres, block, threads, expected, l2, means, result)
    return result


def _over_rows(operation: Callable[..., None], n: int, threads: int, *arrays: Any) -> None:
    parts = split_evenly(n, n // _ROWS_PER_TASK + 1)
    map_threads(lambda part: operation(*part, *arrays), parts, threads)


def _over_entities(
    operation: Callable[..., None], block: EntityBlock, threads: int, *arrays: Any
) -> None:
    parts = split_evenly(block.n_entities, 16 * threads)
    map_threads(lambda part: operation(*part, block.row_ptr, *arrays), parts, threads)


@kernel
def _score_pairs(first: int, last: int, one: F32, other: F32, e: I32, f: I32, z: F64) -> None:
    for i in range(first, last):
        total = 0.0
        if e[i] >= 0 and f[i] >= 0:
            u, v = one[e[i]], other[f[i]]
            for j in range(u.size):
                total += np.float64(u[j]) * v[j]
        z[i] = total


@kernel
def _variances_of_pairs(
    first: int,
    last: int,
    one: F32,
    covariances: F32,
    other: F32,
    other_covariances: F32,
    e: I32,
    f: I32,
    variance: F64,
) -> None:
    for i in range(first, last):
        total = 0.0
        if e[i] >= 0 and f[i] >= 0:
            u, v, c, d = one[e[i]], other[f[i]], covariances[e[i]], other_covariances[f[i]]
            place = 0
            for a in range(u.size):
                for b in range(a + 1):
                    twice = 1.0 if a == b else 2.0
                    ca, da = np.float64(c[place]), np.float64(d[place])
                    total += twice * (ca * v[a] * v[b] + da * u[a] * u[b] + ca * da)
                    place += 1
        variance[i] = total


@kernel
def _expected_curvatures(
    first: int,
    last: int,
    row_ptr: I64,
    indptr: I64,
    rank: int,
    curvature: F64,
    covariances: F32,
    result: NDArray[np.float64],
) -> None:
    for e in range(first, last):
        own = result[e]
        for i in range(row_ptr[e], row_ptr[e + 1]):
            theirs = covariances[indptr[i] // rank]
            for p in range(own.size):
                own[p] += curvature[i] * theirs[p]


@kernel
def _posterior_covariances(
    first: int,
    last: int,
    row_ptr: I64,
    indptr: I64,
    values: F32,
    curvature: F64,
    expected: NDArray[np.float64],
    l2: F64,
    dispersion: float,
    covariances: F32,
    log_determinants: F64,
) -> None:
    rank = l2.size
    hessian = np.empty((rank, rank))
    column = np.empty(rank)
    for e in range(first, last):
        _unpack(expected[e], l2, hessian)
        for i in range(row_ptr[e], row_ptr[e + 1]):
            v = values[indptr[i] : indptr[i] + rank]
            for a in range(rank):
                scaled = curvature[i] * v[a]
                for b in range(a + 1):
                    hessian[a, b] += scaled * v[b]
        cholesky.factorize(rank, hessian, l2)
        log_determinants[e] = rank * np.log(dispersion) - cholesky.log_determinant(rank, hessian)
        for b in range(rank):
            for a in range(rank):
                column[a] = 0.0
            column[b] = dispersion
            cholesky.solve(rank, hessian, column)
            for a in range(b, rank):
                covariances[e, a * (a + 1) // 2 + b] = column[a]


@kernel
def _centres(
    first: int,
    last: int,
    row_ptr: I64,
    expected: NDArray[np.float64],
    l2: F64,
    means: NDArray[np.float64],
    result: NDArray[np.float64],
) -> None:
    rank = l2.size
    hessian = np.empty((rank, rank))
    for e in range(first, last):
        _unpack(expected[e], l2, hessian)
        for j in range(rank):
            result[e, j] = l2[j] * means[e, j]
        cholesky.factorize(rank, hessian, l2)
        cholesky.solve(rank, hessian, result[e])


@kernel
def _unpack(packed: F64, l2: F64, matrix: NDArray[np.float64]) -> None:
    """Fill the lower triangle with the packed matrix plus ``diag(l2)``."""
    place = 0
    for a in range(l2.size):
        for b in range(a + 1):
            matrix[a, b] = packed[place]
            place += 1
        matrix[a, a] += l2[a]
