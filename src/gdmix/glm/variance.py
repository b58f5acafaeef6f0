"""How well coefficients are determined: variances and Hessians at an optimum.

The Hessian of the objective is H = X' diag(d2) X + penalty. A variance is ``simple``, 1 / H_jj: of
one coefficient, the others known; or ``full``, (H^-1)_jj: the others unknown too. Of a linear
model both are to be multiplied by the dispersion.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gdmix import memory
from gdmix.glm import cholesky
from gdmix.glm.compiled import kernel
from gdmix.glm.entities import EntityBlock
from gdmix.glm.losses import evaluate_rows
from gdmix.glm.objective import add_hessian, add_hessian_diagonal, add_margins
from gdmix.glm.penalty import EntityPenalty, fill_matrix
from gdmix.glm.threads import map_threads, split_evenly

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Curvature:
    """What `entity_curvature` finds, ragged as the coefficients.

    Attributes
    ----------
    simple
        1 / H_jj; 0 where that is 0.
    full
        (H^-1)_jj; empty if it was not asked for.
    hessians
        Lower triangles, row by row, one entity after another; empty if not asked for.
    freedom
        Degrees of freedom: the number of coefficients less tr(H^-1 penalty), over all entities;
        if only `simple` is asked for, of H its diagonal alone.
    """

    simple: F64
    full: F64
    hessians: F64
    freedom: float


def entity_curvature(
    block: EntityBlock,
    offset: F64,
    coefficients: F64,
    *,
    loss: int,
    penalty: EntityPenalty,
    intercept: bool,
    full: bool,
    hessians: bool,
    threads: int = 1,
) -> Curvature:
    """Return the curvature of every entity's objective.

    Parameters
    ----------
    offset
        (n,) scores added before the entity's own, in the block's row order.
    coefficients
        Where: ragged, laid out by the block's `coefficient_ptr`.
    """
    sizes = np.diff(block.coefficient_ptr)
    total = int(sizes.sum())
    simple = memory.empty(total)
    inverse = memory.empty(total if full else 0)
    hessian_ptr = hessian_pointers(block.coefficient_ptr)
    packed = memory.empty(int(hessian_ptr[-1]) if hessians else 0)

    freedom = memory.zeros(block.n_entities)

    def work(part: tuple[int, int]) -> None:
        _curvature_range(
            *part,
            loss,
            block.row_ptr,
            block.coefficient_ptr,
            block.indptr,
            block.indices,
            block.values,
            block.response,
            block.weight,
            offset,
            1.0 if intercept else 0.0,
            penalty.weights,
            penalty.means,
            float(penalty.intercept_weight),
            penalty.hessian_ptr,
            penalty.hessians,
            coefficients,
            hessian_ptr,
            simple,
            inverse,
            packed,
            freedom,
        )

    map_threads(work, split_evenly(block.n_entities, 16 * threads), threads)
    return Curvature(simple, inverse, packed, float(freedom.sum()))


def hessian_pointers(coefficient_ptr: I64) -> I64:
    """Return where each entity's lower triangle begins, (E + 1,)."""
    sizes = np.diff(coefficient_ptr)
    return memory.pointers(sizes * (sizes + 1) // 2)


def packed_lower(matrix: F64) -> F64:
    """Return the lower triangle of a matrix, row by row."""
    return matrix[np.tril_indices(matrix.shape[0])]


def unpacked(lower: F64) -> F64:
    """Return the symmetric matrix of a lower triangle."""
    d = int(np.sqrt(2 * lower.size))
    matrix = np.zeros((d, d))
    matrix[np.tril_indices(d)] = lower
    return matrix + np.tril(matrix, -1).T


@kernel
def _curvature_range(
    first: int,
    last: int,
    loss: int,
    row_ptr: I64,
    coefficient_ptr: I64,
    indptr: I64,
    indices: NDArray[np.uint32],
    values: NDArray[np.float32],
    response: F64,
    weight: F64,
    offset: F64,
    intercept: float,
    weights: F64,
    means: F64,
    intercept_weight: float,
    prior_ptr: I64,
    priors: F64,
    coefficients: F64,
    hessian_ptr: I64,
    simple: F64,
    full: F64,
    packed: F64,
    freedom: F64,
) -> None:
    most_rows, widest = 1, 1
    for e in range(first, last):
        most_rows = max(most_rows, row_ptr[e + 1] - row_ptr[e])
        widest = max(widest, coefficient_ptr[e + 1] - coefficient_ptr[e])
    coupled = means.size > 0 or prior_ptr.size > 0
    inverted = full.size > 0 or packed.size > 0
    whole = inverted or coupled
    z, d1, d2 = np.empty(most_rows), np.empty(most_rows), np.empty(most_rows)
    column, inverse = np.empty(widest), np.empty(widest)
    room = np.empty(widest * widest if whole else 0)
    penalty_room = np.empty(widest * widest if coupled else 0)
    for e in range(first, last):
        a, b = row_ptr[e], row_ptr[e + 1]
        start, d = coefficient_ptr[e], coefficient_ptr[e + 1] - coefficient_ptr[e]
        theta = coefficients[start : start + d]
        rows = indptr[a : b + 1]
        n = b - a
        add_margins(n, rows, indices, values, intercept, theta, offset[a:b], z)
        evaluate_rows(loss, n, z, response[a:b], weight[a:b], d1, d2)
        diagonal = simple[start : start + d]
        for j in range(d):
            diagonal[j] = weights[start + j]
        add_hessian_diagonal(n, rows, indices, values, intercept, d2, diagonal)
        if whole:
            hessian = room[: d * d].reshape((d, d))
            fill_matrix(e, start, means, intercept_weight, prior_ptr, priors, hessian)
            if coupled:
                penalty_room[: d * d] = room[: d * d]
            for j in range(d):
                diagonal[j] += hessian[j, j]
                hessian[j, j] += weights[start + j]
            add_hessian(n, rows, indices, values, intercept, d2, d - 1, hessian)
            if packed.size > 0:
                k = hessian_ptr[e]
                for i in range(d):
                    for j in range(i + 1):
                        packed[k] = hessian[i, j]
                        k += 1
            if inverted:
                cholesky.factorize(d, hessian, weights[start : start + d])
                cholesky.inverse_diagonal(d, hessian, column, inverse)
        for j in range(d):
            diagonal[j] = 1.0 / diagonal[j] if diagonal[j] > 0.0 else 0.0
            variance = inverse[j] if inverted else diagonal[j]
            if full.size > 0:
                full[start + j] = variance
            if variance > 0.0:
                freedom[e] += 1.0 - weights[start + j] * variance
            if coupled:
                row = penalty_room[j * d : (j + 1) * d]
                if inverted:
                    column[:d] = row
                    cholesky.solve(d, hessian, column)
                    freedom[e] -= column[j]
                else:
                    freedom[e] -= row[j] * variance
