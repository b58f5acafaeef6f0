"""Rows grouped by entity, each entity with its own local columns.

The local index numbers just the features that occur for an entity, in ascending order of the
coordinate's columns: millions of small dense problems instead of one sparse giant, and the same
model whatever the order of rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gdmix import memory
from gdmix.glm.compiled import kernel
from gdmix.glm.entities import EntityBlock
from gdmix.glm.matrix import CsrMatrix
from gdmix.glm.row_order import RowOrder, order_rows, part_matrix
from gdmix.glm.threads import map_ordered, map_threads, split_evenly

I64 = NDArray[np.int64]

_PART_SHARE = 0.1  # of the memory limit
_VALUES_PER_TASK = 8_000_000

# The six highest bits of this number times a power of two tell which one (de Bruijn).
_DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
_BIT_NUMBER = np.argsort((_DE_BRUIJN << np.arange(64, dtype=np.uint64)) >> np.uint64(58))


@dataclass(frozen=True)
class GroupedRows:
    """A block and what ties it to the rows it was made of.

    Attributes
    ----------
    block
        The rows grouped by entity.
    rows
        Which rows of the data they are.
    columns
        (coefficients,) uint32 coordinate column of each local coefficient: 0 is the
        intercept, 1 + j is column j of the design. Ascending within an entity.
    """

    block: EntityBlock
    rows: RowOrder
    columns: NDArray[np.uint32]


def group_rows(
    design: CsrMatrix,
    entity: NDArray[np.int32],
    n_entities: int,
    response: NDArray[np.float64],
    weight: NDArray[np.float64],
    threads: int = 1,
    max_part_rows: int | None = None,
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
    max_part_rows
        Rows whose memory may be read in any order; default: as many as a share of the memory
        limit holds.
    """
    limit = max_part_rows or _rows_of_part(design)
    row_ptr, rows = order_rows(entity, n_entities, limit)
    design = part_matrix(design, rows)
    if design.is_dense:
        arrays, all_columns = _dense_layout(design, rows, n_entities)
        block = EntityBlock(row_ptr, *arrays, rows.gather(response), rows.gather(weight))
        return GroupedRows(block, rows, all_columns)
    indptr = memory.zeros(rows.order.size + 1, np.int64)
    _row_lengths(rows.order, design.indptr, indptr[1:])
    np.cumsum(indptr, out=indptr)
    indices = memory.empty(int(indptr[-1]), np.uint32)
    values = memory.empty(int(indptr[-1]), np.float32)
    sizes = np.empty(n_entities, np.int64)

    def fill(part: tuple[int, int]) -> NDArray[np.uint32]:
        first, last = part
        stored = indptr[row_ptr[last]] - indptr[row_ptr[first]]
        columns = np.empty(last - first + stored, np.uint32)
        used = _fill_entities(
            first,
            last,
            row_ptr,
            rows.order,
            design.indptr,
            design.indices,
            design.values,
            indptr,
            indices,
            values,
            sizes,
            columns,
            np.empty(design.n_columns + 1, np.uint32),
            np.zeros(design.n_columns // 64 + 1, np.uint64),
        )
        return columns[:used].copy()

    tasks = split_evenly(n_entities, max(4 * threads, int(indptr[-1]) // _VALUES_PER_TASK))
    columns = memory.Stack(np.uint32)
    for own in map_ordered(fill, tasks, threads):
        columns.append(own)
    block = EntityBlock(
        row_ptr,
        memory.pointers(sizes),
        indptr,
        indices,
        values,
        rows.gather(response),
        rows.gather(weight),
    )
    return GroupedRows(block, rows, columns.finish())


def _dense_layout(
    design: CsrMatrix, rows: RowOrder, n_entities: int
) -> tuple[tuple[I64, I64, NDArray[np.uint32], NDArray[np.float32]], NDArray[np.uint32]]:
    """Return a block's pointers and values, and columns: every entity has all, none is copied."""
    width = design.n_columns + 1
    starts = memory.zeros(rows.order.size + 1, np.int64)
    np.take(design.indptr, rows.order, out=starts[:-1], mode="clip")
    coefficient_ptr = memory.empty(n_entities + 1, np.int64)
    np.multiply(np.arange(n_entities + 1), width, out=coefficient_ptr)
    columns = memory.empty(n_entities * width, np.uint32)
    columns.reshape(n_entities, width)[:] = np.arange(width)
    return (coefficient_ptr, starts, design.indices, design.values), columns


def group_passive(
    design: CsrMatrix,
    entity: NDArray[np.int32],
    layout: GroupedRows,
    threads: int = 1,
    max_part_rows: int | None = None,
) -> tuple[GroupedRows, NDArray[np.bool_]]:
    """Group rows that are only scored, by the local columns that other rows have given.

    Parameters
    ----------
    entity
        (n,) entity number of each row, negative where the row is left out.
    layout
        The rows that the models are trained on. Features that a row's model lacks are left out.

    Returns
    -------
    tuple
        The rows, their block without labels, and (columns,) the coordinate columns that some
        row has and its model lacks.
    """
    limit = max_part_rows or _rows_of_part(design)
    row_ptr, rows = order_rows(entity, layout.block.n_entities, limit)
    design = part_matrix(design, rows)
    missing = np.zeros(design.n_columns + 1, np.bool_)
    no_labels = np.empty(0), np.empty(0)
    if design.is_dense:
        own, columns = _dense_layout(design, rows, layout.block.n_entities)
        return GroupedRows(EntityBlock(row_ptr, *own, *no_labels), rows, columns), missing
    indptr = memory.zeros(rows.order.size + 1, np.int64)
    indices, values = np.empty(0, np.uint32), np.empty(0, np.float32)
    tasks = split_evenly(layout.block.n_entities, 16 * threads)

    def localize(part: tuple[int, int]) -> None:
        _localize(
            *part,
            row_ptr,
            rows.order,
            design.indptr,
            design.indices,
            design.values,
            layout.block.coefficient_ptr,
            layout.columns,
            indptr,
            indices,
            values,
            missing,
        )

    map_threads(localize, tasks, threads)  # the first time it counts
    np.cumsum(indptr, out=indptr)
    indices = memory.empty(int(indptr[-1]), np.uint32)
    values = memory.empty(int(indptr[-1]), np.float32)
    map_threads(localize, tasks, threads)
    block = EntityBlock(row_ptr, layout.block.coefficient_ptr, indptr, indices, values, *no_labels)
    return GroupedRows(block, rows, layout.columns), missing


def with_columns(
    rows: GroupedRows, indptr: I64, columns: NDArray[np.uint32], chosen: I64
) -> GroupedRows:
    """Give entities columns that their rows need not have: those that other models have.

    Parameters
    ----------
    indptr, columns
        Ragged: the columns of the other models, ascending.
    chosen
        (E,) the other model of each entity; -1 where there is none.
    """
    block = rows.block
    if block.is_dense:
        return rows
    sizes = memory.empty(block.n_entities, np.int64)
    nothing = np.empty(0, np.uint32)
    arguments = block.coefficient_ptr, rows.columns, indptr, columns, chosen
    _merge_columns(*arguments, sizes, nothing, nothing)  # the first time it counts
    merged_ptr = memory.pointers(sizes)
    merged = memory.empty(int(merged_ptr[-1]), np.uint32)
    numbers = memory.empty(rows.columns.size, np.uint32)
    _merge_columns(*arguments, merged_ptr, merged, numbers)
    indices = memory.empty(block.indices.size, np.uint32)
    _renumber_rows(
        block.row_ptr, block.coefficient_ptr, block.indptr, block.indices, numbers, indices
    )
    wider = replace(block, coefficient_ptr=merged_ptr, indices=indices)
    return GroupedRows(wider, rows.rows, merged)


def columns_of_rows(design: CsrMatrix, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return (columns,) the coordinate columns, intercept first, that some chosen row has."""
    found = np.zeros(design.n_columns + 1, np.bool_)
    found[0] = chosen.any()
    if design.is_dense:
        found[:] = found[0]
        return found
    _mark_columns(design.indptr, design.indices, chosen, found)
    return found


def _rows_of_part(design: CsrMatrix) -> int:
    size = design.indices.nbytes + design.values.nbytes
    return rows_in_memory(design.n_rows, 8 + size / max(design.n_rows, 1))


def rows_in_memory(n: int, bytes_per_row: float) -> int:
    """Return how many of n rows' memory may be read in any order."""
    limit = memory.limit_bytes()
    return max(n if limit is None else int(_PART_SHARE * limit / bytes_per_row), 1)


@kernel
def _row_lengths(order: I64, indptr: I64, lengths: I64) -> None:
    for k in range(order.size):
        i = order[k]
        lengths[k] = indptr[i + 1] - indptr[i]


@kernel
def _fill_entities(
    first: int,
    last: int,
    row_ptr: I64,
    order: I64,
    source_indptr: I64,
    source_indices: NDArray[np.uint32],
    source_values: NDArray[np.float32],
    indptr: I64,
    indices: NDArray[np.uint32],
    values: NDArray[np.float32],
    sizes: I64,
    columns: NDArray[np.uint32],
    local: NDArray[np.uint32],
    marks: NDArray[np.uint64],
) -> int:
    """Copy rows entity by entity, renumbered; return how many `columns` were written.

    An entity's rows lie anywhere, and waiting for them is most of the time: they are read once,
    in a loop that does nothing else. Scratch: `local`, the local number of a coordinate column;
    `marks`, one bit per column, all 0 between entities.
    """
    used = 0
    for e in range(first, last):
        own = columns[used:]
        own[0] = 0
        size = 1
        target = np.uint64(indptr[row_ptr[e]])
        start = target
        for k in range(row_ptr[e], row_ptr[e + 1]):
            i = order[k]
            for q in range(np.uint64(source_indptr[i]), np.uint64(source_indptr[i + 1])):
                indices[target] = source_indices[q] + np.uint32(1)
                values[target] = source_values[q]
                target += np.uint64(1)
        for t in range(start, target):
            column = indices[t]
            word, bit = column >> np.uint32(6), np.uint64(1) << np.uint64(column & np.uint32(63))
            if marks[word] & bit == 0:
                marks[word] |= bit
                own[size] = column
                size += 1
        if size * 8 > marks.size:
            _read_marks(marks, own[1:size])
        else:
            _shell_sort(own[1:size])
        for c in range(1, size):
            local[own[c]] = c - 1
            marks[own[c] >> np.uint32(6)] = 0
        for t in range(start, target):
            indices[t] = local[indices[t]]
        sizes[e] = size
        used += size
    return used


@kernel
def _localize(
    first: int,
    last: int,
    row_ptr: I64,
    order: I64,
    source_indptr: I64,
    source_indices: NDArray[np.uint32],
    source_values: NDArray[np.float32],
    coefficient_ptr: I64,
    columns: NDArray[np.uint32],
    indptr: I64,
    indices: NDArray[np.uint32],
    values: NDArray[np.float32],
    missing: NDArray[np.bool_],
) -> None:
    """Copy rows entity by entity, renumbered; without room for any, write their lengths."""
    for e in range(first, last):
        own = columns[coefficient_ptr[e] + 1 : coefficient_ptr[e + 1]]
        for k in range(row_ptr[e], row_ptr[e + 1]):
            i = order[k]
            found = 0
            for q in range(np.uint64(source_indptr[i]), np.uint64(source_indptr[i + 1])):
                wanted = source_indices[q] + np.uint32(1)
                low, high = 0, own.size
                while low < high:
                    middle = (low + high) // 2
                    if own[middle] < wanted:
                        low = middle + 1
                    else:
                        high = middle
                if low == own.size or own[low] != wanted:
                    missing[wanted] = True
                    continue
                if indices.size > 0:
                    indices[indptr[k] + found] = low
                    values[indptr[k] + found] = source_values[q]
                found += 1
            if indices.size == 0:
                indptr[k + 1] = found


@kernel
def _mark_columns(
    indptr: I64, indices: NDArray[np.uint32], chosen: NDArray[np.bool_], found: NDArray[np.bool_]
) -> None:
    for i in range(chosen.size):
        if chosen[i]:
            for q in range(np.uint64(indptr[i]), np.uint64(indptr[i + 1])):
                found[indices[q] + np.uint32(1)] = True


@kernel
def _read_marks(marks: NDArray[np.uint64], columns: NDArray[np.uint32]) -> None:
    """Write the numbers of the set bits, ascending."""
    c = 0
    for word in range(marks.size):
        bits = marks[word]
        while bits != 0:
            lowest = bits & (~bits + np.uint64(1))
            columns[c] = word * 64 + _BIT_NUMBER[(lowest * _DE_BRUIJN) >> np.uint64(58)]
            bits ^= lowest
            c += 1


@kernel
def _shell_sort(a: NDArray[np.uint32]) -> None:
    """Sort in place: few numbers mostly, now and then many."""
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


@kernel
def _merge_columns(
    coefficient_ptr: I64,
    own_columns: NDArray[np.uint32],
    indptr: I64,
    other_columns: NDArray[np.uint32],
    chosen: I64,
    target: I64,
    merged: NDArray[np.uint32],
    numbers: NDArray[np.uint32],
) -> None:
    """Merge two ascending lists of columns per entity.

    Parameters
    ----------
    target
        Without room in `merged` filled with the sizes, else where each entity's list begins.
    numbers
        Filled with the place of each own column in the merged list.
    """
    for e in range(chosen.size):
        a, a_end = coefficient_ptr[e], coefficient_ptr[e + 1]
        b, b_end = 0, 0
        if chosen[e] >= 0:
            b, b_end = indptr[chosen[e]], indptr[chosen[e] + 1]
        size = 0
        while a < a_end or b < b_end:
            from_own = b >= b_end or (a < a_end and own_columns[a] <= other_columns[b])
            column = own_columns[a] if from_own else other_columns[b]
            if merged.size > 0:
                merged[target[e] + size] = column
                if from_own:
                    numbers[a] = size
            if b < b_end and other_columns[b] == column:
                b += 1
            if from_own:
                a += 1
            size += 1
        if merged.size == 0:
            target[e] = size


@kernel
def _renumber_rows(
    row_ptr: I64,
    coefficient_ptr: I64,
    indptr: I64,
    indices: NDArray[np.uint32],
    numbers: NDArray[np.uint32],
    renumbered: NDArray[np.uint32],
) -> None:
    """Write local columns under new numbers: column j is the entity's coefficient 1 + j."""
    for e in range(row_ptr.size - 1):
        own = numbers[coefficient_ptr[e] : coefficient_ptr[e + 1]]
        for q in range(indptr[row_ptr[e]], indptr[row_ptr[e + 1]]):
            renumbered[q] = own[indices[q] + np.uint32(1)] - np.uint32(1)
