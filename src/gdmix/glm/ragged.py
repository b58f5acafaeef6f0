"""Models of many entities, ragged: other columns, other entities, another layout.

Model e has the coefficients ``indptr[e]:indptr[e + 1]``, of ascending columns.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gdmix import memory
from gdmix.glm.compiled import kernel

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U32 = NDArray[np.uint32]
Ragged = tuple[I64, U32, F64]


def renumber_columns(models: Ragged, numbers: I64) -> Ragged:
    """Give columns new numbers.

    Parameters
    ----------
    models
        Pointers, columns, values.
    numbers
        New number of each column; negative where the column is left out.
    """
    counts = memory.zeros(models[0].size - 1, np.int64)
    _count_known(models[0], models[1], numbers, counts)
    indptr = memory.pointers(counts)
    columns, values = _room(indptr)
    _renumber_columns(*models, numbers, indptr, columns, values)
    return indptr, columns, values


def take_models(models: Ragged, chosen: I64) -> Ragged:
    """Return the chosen models, in that order."""
    indptr = memory.pointers(np.diff(models[0])[chosen])
    columns, values = _room(indptr)
    _take_models(*models, chosen, indptr, columns, values)
    return indptr, columns, values


def lay_out(models: Ragged, chosen: I64, indptr: I64, columns: U32) -> F64:
    """Return the coefficients of other columns: 0 where a model lacks one.

    Parameters
    ----------
    chosen
        (E,) the model of each of the other layout's entities; negative where it has none.
    indptr, columns
        The other layout.
    """
    values = memory.zeros(columns.size)
    _lay_out(*models, chosen, indptr, columns, values)
    return values


def lay_out_triangles(
    models: Ragged,
    triangles: tuple[I64, F64],
    chosen: I64,
    numbers: I64,
    indptr: I64,
    columns: U32,
) -> tuple[I64, F64]:
    """Return symmetric matrices of models in another layout: 0 where a model lacks a column.

    Parameters
    ----------
    triangles
        Pointers and lower triangles, row by row, of the models; empty for those without.
    chosen
        (E,) the model of each of the other layout's entities; negative where it has none.
    numbers
        New number of each column; negative where it is left out.
    indptr, columns
        The other layout.
    """
    counts = np.diff(indptr)
    present = (chosen >= 0) & (np.diff(triangles[0])[chosen] > 0)
    ends = memory.pointers(np.where(present, counts * (counts + 1) // 2, 0))
    result = memory.zeros(int(ends[-1]))
    width = 1 + int(max(columns.max(initial=0), numbers.max(initial=0)))
    places = np.full(width, -1)
    _lay_out_triangles(
        models[0], models[1], *triangles, chosen, numbers, indptr, columns, places, ends, result
    )
    return ends, result


def _room(indptr: I64) -> tuple[U32, F64]:
    return memory.empty(int(indptr[-1]), np.uint32), memory.empty(int(indptr[-1]))


@kernel
def _count_known(indptr: I64, columns: U32, numbers: I64, counts: I64) -> None:
    for e in range(counts.size):
        for k in range(indptr[e], indptr[e + 1]):
            if numbers[columns[k]] >= 0:
                counts[e] += 1


@kernel
def _renumber_columns(
    indptr: I64,
    columns: U32,
    values: F64,
    numbers: I64,
    new_indptr: I64,
    new_columns: U32,
    new_values: F64,
) -> None:
    """Insert each coefficient where its column belongs: mostly at the end."""
    for e in range(indptr.size - 1):
        first = end = new_indptr[e]
        for k in range(indptr[e], indptr[e + 1]):
            number = numbers[columns[k]]
            if number < 0:
                continue
            place = end
            while place > first and new_columns[place - 1] > number:
                new_columns[place] = new_columns[place - 1]
                new_values[place] = new_values[place - 1]
                place -= 1
            new_columns[place] = number
            new_values[place] = values[k]
            end += 1


@kernel
def _take_models(
    indptr: I64,
    columns: U32,
    values: F64,
    chosen: I64,
    new_indptr: I64,
    new_columns: U32,
    new_values: F64,
) -> None:
    for e in range(chosen.size):
        source = indptr[chosen[e]]
        for k in range(new_indptr[e], new_indptr[e + 1]):
            new_columns[k] = columns[source]
            new_values[k] = values[source]
            source += 1


@kernel
def _lay_out(
    indptr: I64,
    columns: U32,
    values: F64,
    chosen: I64,
    new_indptr: I64,
    new_columns: U32,
    new_values: F64,
) -> None:
    for e in range(chosen.size):
        if chosen[e] < 0:
            continue
        k, stop = indptr[chosen[e]], indptr[chosen[e] + 1]
        for place in range(new_indptr[e], new_indptr[e + 1]):
            while k < stop and columns[k] < new_columns[place]:
                k += 1
            if k < stop and columns[k] == new_columns[place]:
                new_values[place] = values[k]


@kernel
def _lay_out_triangles(
    indptr: I64,
    columns: U32,
    triangle_ptr: I64,
    triangles: F64,
    chosen: I64,
    numbers: I64,
    new_indptr: I64,
    new_columns: U32,
    places: I64,
    new_triangle_ptr: I64,
    new_triangles: F64,
) -> None:
    """Copy entry by entry. Scratch: `places`, of each new column, -1 between entities."""
    for e in range(chosen.size):
        to = new_triangle_ptr[e]
        if new_triangle_ptr[e + 1] == to:
            continue
        first = indptr[chosen[e]]
        for k in range(first, indptr[chosen[e] + 1]):
            if numbers[columns[k]] >= 0:
                places[numbers[columns[k]]] = k - first
        source = triangle_ptr[chosen[e]]
        for i in range(new_indptr[e], new_indptr[e + 1]):
            for j in range(new_indptr[e], i + 1):
                p, q = places[new_columns[i]], places[new_columns[j]]
                if p >= 0 and q >= 0:
                    p, q = max(p, q), min(p, q)
                    new_triangles[to] = triangles[source + p * (p + 1) // 2 + q]
                to += 1
        for k in range(first, indptr[chosen[e] + 1]):
            if numbers[columns[k]] >= 0:
                places[numbers[columns[k]]] = -1
