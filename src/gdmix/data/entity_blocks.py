"""Rows grouped by entity, each entity with its own local columns.

The local index numbers just the features that occur for an entity, in ascending order of the
coordinate's columns: millions of small dense problems instead of one sparse giant, and the same
model whatever the order of rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gdmix.glm.compiled import kernel
from gdmix.glm.entities import EntityBlock
from gdmix.glm.matrix import CsrMatrix
from gdmix.glm.threads import map_threads, split_evenly

I64 = NDArray[np.int64]


@dataclass(frozen=True)
class GroupedRows:
    """A block and what ties it to the rows it was made of.

    Attributes
    ----------
    block
        The rows grouped by entity.
    order
        (n,) row of the data that is row k of the block.
    columns
        (coefficients,) uint32 coordinate column of each local coefficient: 0 is the
        intercept, 1 + j is column j of the design. Ascending within an entity.
    """

    block: EntityBlock
    order: I64
    columns: NDArray[np.uint32]


def group_rows(
    design: CsrMatrix,
    entity: I64,
    n_entities: int,
    response: NDArray[np.float64],
    weight: NDArray[np.float64],
    threads: int = 1,
) -> GroupedRows:
    """Group rows by entity.

    Parameters
    ----------
    entity
        (n,) entity number of each row, negative where the row has none and is left out.
    n_entities
        E; entities without rows are kept and have an intercept only.
    response, weight
        (n,).
    """
    row_ptr, order = _counting_sort(entity, n_entities)
    parts = split_evenly(n_entities, 4 * threads)
    sizes = np.zeros(n_entities, np.int64)

    def count(part: tuple[int, int]) -> None:
        seen = np.full(design.n_columns, -1, np.int32)
        _count_features(*part, row_ptr, order, design.indptr, design.indices, seen, sizes)

    map_threads(count, parts, threads)
    coefficient_ptr = np.concatenate(([0], np.cumsum(sizes + 1)))
    counts = np.diff(design.indptr)[order]
    indptr = np.concatenate(([0], np.cumsum(counts)))
    indices = np.empty(indptr[-1], np.uint32)
    values = np.empty(indptr[-1], np.float32)
    columns = np.empty(coefficient_ptr[-1], np.uint32)

    def fill(part: tuple[int, int]) -> None:
        local = np.full(design.n_columns, -1, np.int64)
        _fill_entities(
            *part,
            row_ptr,
            order,
            coefficient_ptr,
            design.indptr,
            design.indices,
            design.values,
            local,
            indptr,
            indices,
            values,
            columns,
        )

    map_threads(fill, parts, threads)
    block = EntityBlock(
        row_ptr, coefficient_ptr, indptr, indices, values, response[order], weight[order]
    )
    return GroupedRows(block, order, columns)


@kernel
def _counting_sort(entity: I64, n_entities: int) -> tuple[I64, I64]:
    """Return row pointers and the stable order of rows by entity."""
    row_ptr = np.zeros(n_entities + 1, np.int64)
    for e in entity:
        if e >= 0:
            row_ptr[e + 1] += 1
    for e in range(n_entities):
        row_ptr[e + 1] += row_ptr[e]
    cursor = row_ptr[:-1].copy()
    order = np.empty(row_ptr[n_entities], np.int64)
    for i in range(entity.size):
        e = entity[i]
        if e >= 0:
            order[cursor[e]] = i
            cursor[e] += 1
    return row_ptr, order


@kernel
def _count_features(
    first: int,
    last: int,
    row_ptr: I64,
    order: I64,
    indptr: I64,
    indices: NDArray[np.uint32],
    seen: NDArray[np.int32],
    sizes: I64,
) -> None:
    for e in range(first, last):
        size = 0
        for k in range(row_ptr[e], row_ptr[e + 1]):
            i = order[k]
            for q in range(np.uint64(indptr[i]), np.uint64(indptr[i + 1])):
                j = indices[q]
                if seen[j] != e:
                    seen[j] = e
                    size += 1
        sizes[e] = size


@kernel
def _fill_entities(
    first: int,
    last: int,
    row_ptr: I64,
    order: I64,
    coefficient_ptr: I64,
    source_indptr: I64,
    source_indices: NDArray[np.uint32],
    source_values: NDArray[np.float32],
    local: I64,
    indptr: I64,
    indices: NDArray[np.uint32],
    values: NDArray[np.float32],
    columns: NDArray[np.uint32],
) -> None:
    for e in range(first, last):
        own = columns[coefficient_ptr[e] : coefficient_ptr[e + 1]]
        own[0] = 0
        size = 1
        for k in range(row_ptr[e], row_ptr[e + 1]):
            i = order[k]
            for q in range(np.uint64(source_indptr[i]), np.uint64(source_indptr[i + 1])):
                j = source_indices[q]
                if local[j] < 0:
                    local[j] = 0
                    own[size] = j + np.uint32(1)
                    size += 1
        _shell_sort(own)
        for c in range(1, size):
            local[own[c] - np.uint32(1)] = c - 1
        for k in range(row_ptr[e], row_ptr[e + 1]):
            i = order[k]
            target = np.uint64(indptr[k])
            for q in range(np.uint64(source_indptr[i]), np.uint64(source_indptr[i + 1])):
                indices[target] = local[source_indices[q]]
                values[target] = source_values[q]
                target += np.uint64(1)
        for c in range(1, size):
            local[own[c] - np.uint32(1)] = -1


@kernel
def _shell_sort(a: NDArray[np.uint32]) -> None:
    """Sort in place: short arrays mostly, now and then a long one (Ciura's gaps)."""
    gap = 1
    while gap * 9 // 4 < a.size:
        gap = gap * 9 // 4 + 1
    while gap > 0:
        for i in range(gap, a.size):
            value = a[i]
            j = i
            while j >= gap and a[j - gap] > value:
                a[j] = a[j - gap]
                j -= gap
            a[j] = value
        gap = 0 if gap == 1 else max(1, gap * 4 // 9)
