"""Rows in the order of their entities, and values carried between the two orders.

Few entities' rows lie together in data. To fetch them one by one from data much larger than
memory would read a page for each. Rows are therefore first parted by ranges of entities, in one
pass that reads in order and writes to a few places in turn; within a part they may lie anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gdmix import memory
from gdmix.glm.compiled import kernel
from gdmix.glm.matrix import CsrMatrix

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

MAX_PARTS = 255
_NO_PART = 255


@dataclass(frozen=True)
class RowOrder:
    """A block's order of rows.

    Attributes
    ----------
    n_rows
        Number of rows of the data.
    order
        (m,) int64: row k of the block is this one of the parted rows.
    part
        (n,) uint8 part of each row of the data, `_NO_PART` for a row that is left out; None
        where rows are not parted.
    part_ptr
        (parts + 1,) where each part begins among the parted rows.
    """

    n_rows: int
    order: I64
    part: NDArray[np.uint8] | None
    part_ptr: I64

    def gather(self, x: F64) -> F64:
        """Return the block's rows of x, (n,) to (m,)."""
        if self.part is not None:
            parted = memory.empty(self.order.size)
            _part_values(self.part, self.part_ptr[:-1].copy(), x, parted)
            x = parted
        result = memory.empty(self.order.size)
        np.take(x, self.order, out=result, mode="clip")  # any other mode would buffer the result
        return result

    def scatter(self, y: F64) -> F64:
        """Return values of the block's rows as (n,) in the order of the data, 0 elsewhere."""
        if self.part is None:
            result = memory.zeros(self.n_rows)
            result[self.order] = y
            return result
        parted = memory.empty(self.order.size)
        parted[self.order] = y
        result = memory.empty(self.n_rows)
        _unpart_values(self.part, self.part_ptr[:-1].copy(), parted, result)
        return result


def order_rows(
    entity: NDArray[np.int32], n_entities: int, max_part_rows: int
) -> tuple[I64, RowOrder]:
    """Return row pointers (E + 1,) and the stable order of rows by entity.

    Parameters
    ----------
    entity
        (n,) entity number of each row, negative where the row has none and is left out.
    max_part_rows
        Rows of a part, where possible.
    """
    row_ptr = memory.zeros(n_entities + 1, np.int64)
    _count_rows(entity, row_ptr)
    np.cumsum(row_ptr, out=row_ptr)
    m = int(row_ptr[-1])
    parts = min(-(-m // max_part_rows), n_entities, MAX_PARTS)
    order = memory.empty(m, np.int64)
    cursor = memory.copy(row_ptr[:-1])
    if parts <= 1:
        _place_rows(entity, cursor, order)
        return row_ptr, RowOrder(entity.size, order, None, np.array([0, m]))
    first = np.searchsorted(row_ptr, np.arange(1, parts) * m // parts)
    first = np.concatenate(([0], first, [n_entities]))
    part = memory.empty(entity.size, np.uint8)
    part_ptr = row_ptr[first]
    _part_rows(entity, first, part)
    parted = memory.empty(m, np.int32)
    _part_values(part, part_ptr[:-1].copy(), entity, parted)
    _place_rows(parted, cursor, order)
    return row_ptr, RowOrder(entity.size, order, part, part_ptr)


def kept_rows(kept: NDArray[np.bool_]) -> RowOrder:
    """Return some rows as one part, in the order of the data; `kept` is (n,)."""
    m = int(np.count_nonzero(kept))
    part = memory.full(kept.size, _NO_PART, np.uint8)
    part[kept] = 0
    order = memory.empty(m, np.int64)
    order[:] = np.arange(m)
    return RowOrder(kept.size, order, part, np.array([0, m]))


def part_matrix(design: CsrMatrix, rows: RowOrder) -> CsrMatrix:
    """Return a matrix with its rows parted."""
    if rows.part is None:
        return design
    if design.is_dense:
        starts = memory.zeros(rows.order.size + 1, np.int64)
        _part_values(rows.part, rows.part_ptr[:-1].copy(), design.indptr, starts)
        return CsrMatrix(starts, design.indices, design.values, design.n_columns)
    counts = memory.zeros(rows.order.size + 1, np.int64)
    _part_counts(rows.part, rows.part_ptr[:-1].copy(), design.indptr, counts[1:])
    np.cumsum(counts, out=counts)
    indices = memory.empty(int(counts[-1]), np.uint32)
    values = memory.empty(int(counts[-1]), np.float32)
    cursor = counts[rows.part_ptr[:-1]]
    _part_matrix(rows.part, cursor, design.indptr, design.indices, design.values, indices, values)
    return CsrMatrix(counts, indices, values, design.n_columns)


@kernel
def _count_rows(entity: NDArray[np.int32], row_ptr: I64) -> None:
    for e in entity:
        if e >= 0:
            row_ptr[e + 1] += 1


@kernel
def _place_rows(entity: NDArray[np.int32], cursor: I64, order: I64) -> None:
    for i in range(entity.size):
        e = entity[i]
        if e >= 0:
            order[cursor[e]] = i
            cursor[e] += 1


@kernel
def _part_rows(entity: NDArray[np.int32], first: I64, part: NDArray[np.uint8]) -> None:
    """Write the part of each row: part p begins with entity ``first[p]``."""
    for i in range(entity.size):
        e = entity[i]
        low, high = 0, first.size - 1
        while high - low > 1:
            middle = (low + high) // 2
            if first[middle] <= e:
                low = middle
            else:
                high = middle
        part[i] = low if e >= 0 else _NO_PART


@kernel
def _part_values(
    part: NDArray[np.uint8], next_row: I64, x: NDArray[Any], parted: NDArray[Any]
) -> None:
    for i in range(part.size):
        p = part[i]
        if p != _NO_PART:
            parted[next_row[p]] = x[i]
            next_row[p] += 1


@kernel
def _unpart_values(part: NDArray[np.uint8], next_row: I64, parted: F64, x: F64) -> None:
    for i in range(part.size):
        p = part[i]
        if p != _NO_PART:
            x[i] = parted[next_row[p]]
            next_row[p] += 1
        else:
            x[i] = 0.0


@kernel
def _part_counts(part: NDArray[np.uint8], next_row: I64, indptr: I64, counts: I64) -> None:
    for i in range(part.size):
        p = part[i]
        if p != _NO_PART:
            counts[next_row[p]] = indptr[i + 1] - indptr[i]
            next_row[p] += 1


@kernel
def _part_matrix(
    part: NDArray[np.uint8],
    cursor: I64,
    indptr: I64,
    indices: NDArray[np.uint32],
    values: NDArray[np.float32],
    new_indices: NDArray[np.uint32],
    new_values: NDArray[np.float32],
) -> None:
    for i in range(part.size):
        p = part[i]
        if p != _NO_PART:
            target = np.uint64(cursor[p])
            for q in range(np.uint64(indptr[i]), np.uint64(indptr[i + 1])):
                new_indices[target] = indices[q]
                new_values[target] = values[q]
                target += np.uint64(1)
            cursor[p] = target
