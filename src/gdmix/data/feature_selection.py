"""Which features of a bag a model gets, by what the training rows say of them.

A rare feature tells little (`min_count`), and of many those are kept that the response goes with
most (`max_features`). The same measure chooses features entity by entity, in proportion to the
entity's rows (`features_to_samples_ratio`), as Photon ML has it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gdmix import memory
from gdmix.config import FeatureBag
from gdmix.data.active_rows import kth_smallest
from gdmix.data.correlation import ROUNDING, correlations
from gdmix.data.entity_blocks import GroupedRows
from gdmix.data.feature_index import FeatureIndex
from gdmix.data.feature_summary import FeatureSummary, summarize
from gdmix.data.schema import bag_sources
from gdmix.errors import ConfigError
from gdmix.glm.compiled import kernel
from gdmix.glm.matrix import CsrMatrix
from gdmix.glm.threads import map_threads, split_evenly

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

log = logging.getLogger("gdmix")

_DIGITS = 12  # correlations that agree in these are a tie, which the lower column wins
_TASKS_PER_THREAD = 16


@dataclass(frozen=True)
class Selection:
    """The features of a bag that are kept.

    Attributes
    ----------
    index
        Of these alone.
    design
        (n, columns) the rows under this index.
    """

    index: FeatureIndex
    design: CsrMatrix


def check_selectable(name: str, bag: FeatureBag, types: Mapping[str, pa.DataType]) -> None:
    """Refuse to leave single features out of a list that is a feature by its position.

    Raises
    ------
    ConfigError
        If a bag with `min_count` or `max_features` has a column of fixed-size lists.
    """
    for source in bag_sources(bag, types):
        if bag.is_selected and source.kind == "dense":
            key = "min_count" if bag.min_count > 1 else "max_features"
            raise ConfigError(
                f"features.{name}.{key}: column '{source.column}' holds lists of fixed size, "
                "which are kept whole; put it into a bag of its own"
            )


def select_features(
    name: str,
    bag: FeatureBag,
    index: FeatureIndex,
    design: CsrMatrix,
    response: F64,
    weight: F64,
    always: FeatureIndex | None = None,
    threads: int = 1,
) -> Selection:
    """Leave out features by `min_count`, and then all but `max_features` of them.

    Parameters
    ----------
    name
        What the log calls the bag.
    design
        (n, columns) the training rows, sparse.
    response, weight
        (n,) of these rows.
    always
        Features that stay whatever the rows say, and don't count.
    """
    summary = summarize(design, weight, threads)

    def measured() -> F64:
        return correlations(design, response, weight, summary, threads)

    columns = choose_features(name, bag, index, summary, measured, always)
    if columns is None:
        return Selection(index, design)
    return Selection(index.take(columns), with_columns(design, columns))


def choose_features(
    name: str,
    bag: FeatureBag,
    index: FeatureIndex,
    summary: FeatureSummary,
    measured: Callable[[], F64],
    always: FeatureIndex | None = None,
) -> I64 | None:
    """Return the columns of a bag that are kept, ascending; None if all are.

    Parameters
    ----------
    name, bag, always
        As of `select_features`.
    index, summary
        Of all columns.
    measured
        Called if it matters: returns their correlations with the response, (columns,).
    """
    enough = summary.nnz >= bag.min_count
    stays = np.zeros(len(index), np.bool_)
    if always is not None:
        stays = always.find(index.names, index.terms) >= 0
    kept = enough | stays
    if not kept.all():
        rare = f"{kept.size - np.count_nonzero(kept):,} of {kept.size:,}"
        text = "%s: left out %s features that fewer than %s training rows have"
        log.info(text, name, rare, f"{bag.min_count:,}")
    if bag.max_features is not None:
        eligible = np.flatnonzero(enough & ~stays)
        if eligible.size > bag.max_features:
            score = np.abs(measured())[eligible]
            # Stable: the lower column wins a tie.
            order = np.argsort(-np.round(score, _DIGITS), kind="stable")
            kept[eligible[order[bag.max_features :]]] = False
            text = "%s: kept the %s of %s features of largest correlation with the response"
            log.info(text, name, f"{bag.max_features:,}", f"{eligible.size:,}")
    if not kept.any() and len(index):
        log.warning("%s: no feature is left", name)
    return None if kept.all() else np.flatnonzero(kept)


def with_columns(design: CsrMatrix, columns: I64) -> CsrMatrix:
    """Return a sparse matrix of the chosen columns, which ascend, numbered anew."""
    numbers = np.full(design.n_columns, -1, np.int64)
    numbers[columns] = np.arange(columns.size)
    indptr = memory.zeros(design.n_rows + 1, np.int64)
    _count_chosen(design.indptr, design.indices, numbers, indptr)
    np.cumsum(indptr, out=indptr)
    indices = memory.empty(int(indptr[-1]), np.uint32)
    values = memory.empty(int(indptr[-1]), np.float32)
    _copy_chosen(design.indices, design.values, numbers, indices, values)
    return CsrMatrix(indptr, indices, values, columns.size)


def limit_features(
    rows: GroupedRows, ratio: float, n_columns: int, threads: int = 1
) -> tuple[GroupedRows, NDArray[np.bool_]]:
    """Leave each entity with n rows at most ``ceil(ratio n)`` features, and the intercept.

    Kept are those of largest correlation, by magnitude, with the response among the entity's
    rows, weighted; of a tie the lower columns. A feature that is constant there, or a constant
    response, has correlation 0.

    Parameters
    ----------
    rows
        Sparse.
    n_columns
        Number of coordinate columns, the intercept's included.

    Returns
    -------
    tuple
        The rows without the other features, and (n_columns,) the coordinate columns that some
        entity lost.
    """
    block = rows.block
    most = np.ceil(np.diff(block.row_ptr) * ratio)
    tasks = split_evenly(block.n_entities, _TASKS_PER_THREAD * threads)
    numbers = memory.empty(rows.columns.size, np.int32)
    sizes = np.empty(block.n_entities, np.int64)
    dropped = np.zeros(n_columns, np.bool_)
    width = int(np.diff(block.coefficient_ptr).max(initial=1))

    def choose(part: tuple[int, int]) -> None:
        _choose_features(
            *part,
            block.row_ptr,
            block.coefficient_ptr,
            block.indptr,
            block.indices,
            block.values,
            block.response,
            block.weight,
            most,
            10.0**_DIGITS,
            np.empty((4, width)),
            numbers,
            sizes,
        )

    map_threads(choose, tasks, threads)
    if int(sizes.sum()) == rows.columns.size:
        return rows, dropped
    coefficient_ptr = memory.pointers(sizes)
    columns = memory.empty(int(coefficient_ptr[-1]), np.uint32)
    _keep_columns(rows.columns, numbers, columns, dropped)
    indptr = memory.zeros(block.indptr.size, np.int64)
    indices, values = np.empty(0, np.uint32), np.empty(0, np.float32)

    def copy(part: tuple[int, int]) -> None:
        _renumber_rows(
            *part,
            block.row_ptr,
            block.coefficient_ptr,
            block.indptr,
            block.indices,
            block.values,
            numbers,
            indptr,
            indices,
            values,
        )

    map_threads(copy, tasks, threads)  # the first time it counts
    np.cumsum(indptr, out=indptr)
    indices = memory.empty(int(indptr[-1]), np.uint32)
    values = memory.empty(int(indptr[-1]), np.float32)
    map_threads(copy, tasks, threads)
    block = replace(
        block, coefficient_ptr=coefficient_ptr, indptr=indptr, indices=indices, values=values
    )
    return GroupedRows(block, rows.rows, columns), dropped


@kernel
def _count_chosen(indptr: I64, indices: NDArray[np.uint32], numbers: I64, lengths: I64) -> None:
    for i in range(indptr.size - 1):
        count = 0
        for q in range(np.uint64(indptr[i]), np.uint64(indptr[i + 1])):
            if numbers[indices[q]] >= 0:
                count += 1
        lengths[i + 1] = count


@kernel
def _copy_chosen(
    indices: NDArray[np.uint32],
    values: NDArray[np.float32],
    numbers: I64,
    new_indices: NDArray[np.uint32],
    new_values: NDArray[np.float32],
) -> None:
    target = np.uint64(0)
    for q in range(indices.size):
        number = numbers[indices[q]]
        if number >= 0:
            new_indices[target] = number
            new_values[target] = values[q]
            target += np.uint64(1)


@kernel
def _choose_features(
    first: int,
    last: int,
    row_ptr: I64,
    coefficient_ptr: I64,
    indptr: I64,
    indices: NDArray[np.uint32],
    values: NDArray[np.float32],
    response: F64,
    weight: F64,
    most: F64,
    scale: float,
    scratch: F64,
    numbers: NDArray[np.int32],
    sizes: I64,
) -> None:
    """Give the features that each entity keeps their numbers, the others -1; set `sizes`."""
    for e in range(first, last):
        start, stop = coefficient_ptr[e], coefficient_ptr[e + 1]
        own = numbers[start + 1 : stop]
        numbers[start] = 0
        sizes[e] = stop - start
        if own.size <= most[e]:
            for j in range(own.size):
                own[j] = j
            continue
        score = scratch[0, : own.size]
        _score_features(
            row_ptr[e], row_ptr[e + 1], indptr, indices, values, response, weight, score, scratch
        )
        for j in range(own.size):
            score[j] = np.floor(score[j] * scale + 0.5)
        k = int(most[e])
        work = scratch[1, : own.size]
        work[:] = score
        least = kth_smallest(work, own.size - k)
        above = 0
        for j in range(own.size):
            if score[j] > least:
                above += 1
        ties, kept = k - above, 0
        for j in range(own.size):
            own[j] = -1
            if score[j] > least or (score[j] == least and ties > 0):
                if score[j] == least:
                    ties -= 1
                own[j] = kept
                kept += 1
        sizes[e] = 1 + kept


@kernel
def _score_features(
    first: int,
    last: int,
    indptr: I64,
    indices: NDArray[np.uint32],
    values: NDArray[np.float32],
    response: F64,
    weight: F64,
    score: F64,
    scratch: F64,
) -> None:
    """Write the magnitude of each local feature's correlation with the response.

    Sums are of deviations from the first value, so that values far from 0 cost no digits: of
    the response, and of a feature that all rows have.
    """
    whole, total, y_scale = 0.0, 0.0, 0.0
    for i in range(first, last):
        y = response[i] - response[first]
        whole += weight[i]
        total += weight[i] * y
        y_scale += weight[i] * y * y
    mean = response[first] + (total / whole if whole > 0.0 else 0.0)
    y_squares = 0.0
    for i in range(first, last):
        y_squares += weight[i] * (response[i] - mean) * (response[i] - mean)
    shift, sums, squares = scratch[1], scratch[2], scratch[3]
    for j in range(score.size):
        shift[j], sums[j], squares[j], score[j] = 0.0, 0.0, 0.0, 0.0
    if y_squares <= ROUNDING * y_scale:
        return
    for i in range(first, last):
        for q in range(np.uint64(indptr[i]), np.uint64(indptr[i + 1])):
            score[indices[q]] += 1.0
    for i in range(first, last):
        for q in range(np.uint64(indptr[i]), np.uint64(indptr[i + 1])):
            j = indices[q]
            if score[j] == last - first:
                shift[j], score[j] = values[q], 0.0
    for j in range(score.size):
        score[j] = 0.0
    for i in range(first, last):
        y = weight[i] * (response[i] - mean)
        for q in range(np.uint64(indptr[i]), np.uint64(indptr[i + 1])):
            j = indices[q]
            x = values[q] - shift[j]
            sums[j] += weight[i] * x
            squares[j] += weight[i] * x * x
            score[j] += x * y
    for j in range(score.size):
        x_squares = squares[j] - sums[j] * sums[j] / whole
        if x_squares > ROUNDING * squares[j]:
            score[j] = abs(score[j]) / np.sqrt(x_squares * y_squares)
        else:
            score[j] = 0.0


@kernel
def _keep_columns(
    columns: NDArray[np.uint32],
    numbers: NDArray[np.int32],
    new_columns: NDArray[np.uint32],
    dropped: NDArray[np.bool_],
) -> None:
    kept = 0
    for k in range(columns.size):
        if numbers[k] >= 0:
            new_columns[kept] = columns[k]
            kept += 1
        else:
            dropped[columns[k]] = True


@kernel
def _renumber_rows(
    first: int,
    last: int,
    row_ptr: I64,
    coefficient_ptr: I64,
    indptr: I64,
    indices: NDArray[np.uint32],
    values: NDArray[np.float32],
    numbers: NDArray[np.int32],
    new_indptr: I64,
    new_indices: NDArray[np.uint32],
    new_values: NDArray[np.float32],
) -> None:
    """Copy what rows keep; without room for any, write their lengths."""
    for e in range(first, last):
        own = numbers[coefficient_ptr[e] + 1 : coefficient_ptr[e + 1]]
        for i in range(row_ptr[e], row_ptr[e + 1]):
            found = 0
            for q in range(np.uint64(indptr[i]), np.uint64(indptr[i + 1])):
                number = own[indices[q]]
                if number < 0:
                    continue
                if new_indices.size > 0:
                    new_indices[new_indptr[i] + found] = number
                    new_values[new_indptr[i] + found] = values[q]
                found += 1
            if new_indices.size == 0:
                new_indptr[i + 1] = found
