"""Scores of rows from coefficients: the linear predictor of one coordinate, no offset."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gdmix import memory
from gdmix.glm.compiled import kernel
from gdmix.glm.entities import EntityBlock
from gdmix.glm.matrix import CsrMatrix
from gdmix.glm.objective import is_dense, margins
from gdmix.glm.threads import map_threads, split_evenly

F64 = NDArray[np.float64]
_ROWS_PER_TASK = 65_536
_ROWS_PER_PART = 20_000


def score_fixed(design: CsrMatrix, coefficients: F64, threads: int = 1) -> F64:
    """Return ``X beta + b``, (n,).

    Parameters
    ----------
    coefficients
        (columns + 1,), intercept first.
    """
    z = memory.empty(design.n_rows)

    def work(rows: tuple[int, int]) -> None:
        a, b = rows
        margins(
            b - a,
            design.indptr[a : b + 1],
            design.indices,
            design.values,
            1.0,
            coefficients,
            z[a:b],
        )

    map_threads(work, _row_slices(design.n_rows), threads)
    return z


def score_block(block: EntityBlock, coefficients: F64, threads: int = 1) -> F64:
    """Return the scores of a block's rows, (n,) in the block's row order.

    Parameters
    ----------
    coefficients
        Ragged, laid out by the block's `coefficient_ptr`.
    """
    z = memory.empty(block.n_rows)

    def work(entities: tuple[int, int]) -> None:
        _score_block_range(
            *entities,
            block.row_ptr,
            block.coefficient_ptr,
            block.indptr,
            block.indices,
            block.values,
            coefficients,
            z,
        )

    map_threads(work, entity_parts(block, threads), threads)
    return z


def entity_parts(block: EntityBlock, threads: int) -> list[tuple[int, int]]:
    """Cut a block's entities into parts: enough for all threads, none too small to be worth it."""
    return split_evenly(block.n_entities, min(16 * threads, 1 + block.n_rows // _ROWS_PER_PART))


def score_random(
    design: CsrMatrix,
    entity: NDArray[np.int32],
    indptr: NDArray[np.int64],
    columns: NDArray[np.uint32],
    coefficients: F64,
    threads: int = 1,
) -> F64:
    """Return each row's score under its own entity's model, (n,); 0 where there is none.

    Parameters
    ----------
    entity
        (n,) number of the row's entity, negative for an unseen one.
    indptr, columns, coefficients
        Ragged models: entity e has coefficients ``indptr[e]:indptr[e + 1]`` of coordinate
        columns ``columns[...]``, ascending; column 0 is the intercept, 1 + j is feature j.
    """
    z = memory.empty(design.n_rows)

    def work(rows: tuple[int, int]) -> None:
        _score_random_range(
            *rows,
            design.indptr,
            design.indices,
            design.values,
            entity,
            indptr,
            columns,
            coefficients,
            z,
        )

    map_threads(work, _row_slices(design.n_rows), threads)
    return z


def _row_slices(n: int) -> list[tuple[int, int]]:
    return split_evenly(n, n // _ROWS_PER_TASK + 1)


@kernel
def _score_block_range(
    first: int,
    last: int,
    row_ptr: NDArray[np.int64],
    coefficient_ptr: NDArray[np.int64],
    indptr: NDArray[np.int64],
    indices: NDArray[np.uint32],
    values: NDArray[np.float32],
    coefficients: F64,
    z: F64,
) -> None:
    for e in range(first, last):
        a, b = row_ptr[e], row_ptr[e + 1]
        theta = coefficients[coefficient_ptr[e] : coefficient_ptr[e + 1]]
        margins(b - a, indptr[a : b + 1], indices, values, 1.0, theta, z[a:b])


@kernel
def _score_random_range(
    first: int,
    last: int,
    row_indptr: NDArray[np.int64],
    row_indices: NDArray[np.uint32],
    row_values: NDArray[np.float32],
    entity: NDArray[np.int32],
    indptr: NDArray[np.int64],
    columns: NDArray[np.uint32],
    coefficients: F64,
    z: F64,
) -> None:
    dense = is_dense(row_indices, row_values)
    for i in range(first, last):
        e = entity[i]
        total = 0.0
        if e >= 0:
            start, stop = indptr[e], indptr[e + 1]
            if start < stop and columns[start] == 0:
                total = coefficients[start]
            if dense:
                row = row_values[row_indptr[i] :]
                for k in range(start, stop):
                    if columns[k] > 0:
                        total += row[columns[k] - np.uint32(1)] * coefficients[k]
                z[i] = total
                continue
            for q in range(row_indptr[i], row_indptr[i + 1]):
                wanted = row_indices[q] + np.uint32(1)
                low, high = start, stop
                while low < high:
                    middle = (low + high) // 2
                    if columns[middle] < wanted:
                        low = middle + 1
                    else:
                        high = middle
                if low < stop and columns[low] == wanted:
                    total += row_values[q] * coefficients[low]
        z[i] = total
