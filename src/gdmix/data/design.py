"""Rows and a frozen index to compressed sparse rows, without a Python loop over rows.

The rules, for every form of a bag: a null is an absent feature, a value of zero is not
stored, a feature that is not in the index is left out and counted, a feature that stands twice
in a row is summed (and reported: `validate` makes it an error). The intercept has no column
here: solvers and scorers add it as coefficient 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gdmix.config import FeatureBag
from gdmix.data.feature_index import FeatureIndex, as_terms, join_keys
from gdmix.data.schema import BagSource, bag_sources
from gdmix.glm.compiled import kernel
from gdmix.glm.matrix import CsrMatrix

I64 = NDArray[np.int64]


@dataclass(frozen=True)
class RowProblem:
    """Rows of a batch that hold something unusable.

    Attributes
    ----------
    column
        The column it was found in.
    what
        What is wrong, as the end of "n rows ...".
    rows
        (k,) positions within the batch, ascending.
    example
        One offending value, if that helps.
    """

    column: str
    what: str
    rows: I64
    example: str = ""


@dataclass
class EncodedBag:
    """One bag of one batch.

    Attributes
    ----------
    matrix
        (rows of the batch, features of the index).
    problems
        What `validate` needs to know.
    unknown
        Number of values whose feature is not in the index.
    """

    matrix: CsrMatrix
    problems: list[RowProblem] = field(default_factory=list)
    unknown: int = 0


@dataclass(frozen=True)
class _Entries:
    """Values of one source: row i has `counts[i]` of them, in the flat arrays."""

    counts: I64
    columns: I64
    values: NDArray[np.float32]


def encode_bag(batch: pa.RecordBatch, bag: FeatureBag, index: FeatureIndex) -> EncodedBag:
    """Return the design matrix of a bag for one batch of rows."""
    types: Mapping[str, pa.DataType] = {f.name: f.type for f in batch.schema}
    problems: list[RowProblem] = []
    sources = bag_sources(bag, types)
    entries = []
    for source in sources:
        part = _entries(batch, source, bag, index, problems)
        _note_not_finite(source, part, problems)
        entries.append(part)
    known = sum(_count_known(e.columns, e.values) for e in entries)
    stored = sum(int(np.count_nonzero(e.values)) for e in entries)
    matrix, twice = _assemble(batch.num_rows, entries, len(index))
    if twice.size:
        names = ", ".join(s.column for s in sources)
        problems.append(RowProblem(names, "hold the same feature twice", twice))
    return EncodedBag(matrix, problems, stored - known)


def _entries(
    batch: pa.RecordBatch,
    source: BagSource,
    bag: FeatureBag,
    index: FeatureIndex,
    problems: list[RowProblem],
) -> _Entries:
    column = batch.column(source.column)
    n = len(column)
    if source.kind == "numeric":
        values = _floats(column)
        return _Entries(np.ones(n, np.int64), np.full(n, index.column(source.column)), values)
    if source.kind == "categorical":
        codes = _look_up_terms(source.column, as_terms(column), index)
        counts = np.ones(n, np.int64)
        values = _present(column)
        return _Entries(counts, codes, values)
    if source.kind == "dense":
        present = _present(column) > 0
        size = column.type.list_size
        columns = index.lookup(source.column, pa.array([str(i) for i in range(size)]))
        values = _floats(column.flatten())
        return _Entries(np.where(present, size, 0), np.tile(columns, int(present.sum())), values)
    counts = _lengths(column)
    items = column.flatten()
    if source.kind == "multi_hot":
        terms = as_terms(column)
        return _Entries(counts, _look_up_terms(source.column, terms, index), _present(terms))
    if source.kind == "ntv":
        keys = join_keys(
            pc.struct_field(items, "name"), pc.struct_field(items, "term")
        ).dictionary_encode()
        parts = pc.split_pattern(keys.dictionary, "\x01", max_splits=1)
        known = index.lookup_pairs(pc.list_element(parts, 0), pc.list_element(parts, 1))
        return _Entries(counts, _by_code(keys, known), _floats(pc.struct_field(items, "value")))
    return _indexed_entries(batch, source, bag, index, problems)


def _indexed_entries(
    batch: pa.RecordBatch,
    source: BagSource,
    bag: FeatureBag,
    index: FeatureIndex,
    problems: list[RowProblem],
) -> _Entries:
    """Read a pair of index and value lists; the index is the column number itself."""
    assert source.values is not None
    indices, values = batch.column(source.column), batch.column(source.values)
    counts, value_counts = _lengths(indices), _lengths(values)
    flat = _integers(indices.flatten())
    weights = _floats(values.flatten())
    unequal = np.flatnonzero(counts != value_counts)
    if unequal.size:
        problems.append(
            RowProblem(source.column, f"have a length other than '{source.values}'", unequal)
        )
        shared = np.where(counts == value_counts, counts, 0)
        flat = flat[np.repeat(counts == value_counts, counts)]
        weights = weights[np.repeat(counts == value_counts, value_counts)]
        counts = shared
    # With a feature list the width is given, so an index beyond it is a mistake; without one
    # it is a feature that training did not see.
    wrong = (flat < 0) | ((flat >= len(index)) & (bag.feature_list is not None))
    if wrong.any():
        rows = np.unique(np.repeat(np.arange(len(counts)), counts)[wrong])
        what = f"hold an index outside the feature index (0 to {len(index) - 1})"
        problems.append(RowProblem(source.column, what, rows, str(flat[wrong][0])))
    return _Entries(counts, np.where((flat < 0) | (flat >= len(index)), -1, flat), weights)


def _look_up_terms(column: str, terms: pa.Array, index: FeatureIndex) -> I64:
    encoded = terms.dictionary_encode()
    return _by_code(encoded, index.lookup(column, encoded.dictionary))


def _by_code(encoded: pa.DictionaryArray, columns: I64) -> I64:
    codes = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)
    return np.asarray(np.append(columns, -1)[codes])


def _lengths(column: pa.Array) -> I64:
    return _integers(pc.fill_null(pc.list_value_length(column), 0))


def _integers(column: pa.Array) -> I64:
    return np.asarray(pc.fill_null(column, -1).to_numpy(zero_copy_only=False), np.int64)


def _floats(column: pa.Array) -> NDArray[np.float32]:
    """Return values as float32; null is 0, and so not stored."""
    if not pa.types.is_floating(column.type):
        column = column.cast(pa.float64(), safe=False)
    values = pc.fill_null(column, 0).to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore"):
        return np.asarray(values, np.float32)


def _present(column: pa.Array) -> NDArray[np.float32]:
    return np.asarray(column.is_valid().to_numpy(zero_copy_only=False), np.float32)


def _note_not_finite(source: BagSource, entries: _Entries, problems: list[RowProblem]) -> None:
    bad = ~np.isfinite(entries.values)
    if bad.any():
        rows = np.unique(np.repeat(np.arange(entries.counts.size), entries.counts)[bad])
        what = "are NaN, infinite, or too large for single precision"
        problems.append(RowProblem(source.values or source.column, what, rows))


def _assemble(n: int, sources: list[_Entries], n_columns: int) -> tuple[CsrMatrix, I64]:
    """Lay the sources' values side by side, row by row; also return rows with duplicates."""
    counts = np.zeros(n, np.int64)
    starts = []
    for entries in sources:
        start = np.concatenate(([0], np.cumsum(entries.counts)))
        starts.append(start)
        _count_stored(start, entries.columns, entries.values, counts)
    indptr = np.concatenate(([0], np.cumsum(counts)))
    indices = np.empty(indptr[-1], np.uint32)
    values = np.empty(indptr[-1], np.float32)
    cursor = indptr[:-1].copy()
    for entries, start in zip(sources, starts, strict=True):
        _store(start, entries.columns, entries.values, cursor, indices, values)
    twice = np.zeros(n, np.bool_)
    kept = _sum_duplicates(indptr, indices, values, np.full(n_columns, -1, np.int64), twice)
    matrix = CsrMatrix(indptr, indices[:kept], values[:kept], n_columns)
    return matrix, np.flatnonzero(twice)


def _count_known(columns: I64, values: NDArray[np.float32]) -> int:
    return int(np.count_nonzero((columns >= 0) & (values != 0)))


@kernel
def _count_stored(start: I64, columns: I64, values: NDArray[np.float32], counts: I64) -> None:
    for i in range(counts.size):
        for q in range(start[i], start[i + 1]):
            if columns[q] >= 0 and values[q] != 0:
                counts[i] += 1


@kernel
def _store(
    start: I64,
    columns: I64,
    values: NDArray[np.float32],
    cursor: I64,
    indices: NDArray[np.uint32],
    stored: NDArray[np.float32],
) -> None:
    for i in range(cursor.size):
        position = cursor[i]
        for q in range(start[i], start[i + 1]):
            if columns[q] >= 0 and values[q] != 0:
                indices[position] = columns[q]
                stored[position] = values[q]
                position += 1
        cursor[i] = position


@kernel
def _sum_duplicates(
    indptr: I64,
    indices: NDArray[np.uint32],
    values: NDArray[np.float32],
    last_seen: I64,
    twice: NDArray[np.bool_],
) -> int:
    """Sum a row's repeated columns in place; mark such rows; return the new length.

    `last_seen[j]` is where column j was last stored: at or after the row's start, it is a
    repetition.
    """
    kept = 0
    start = indptr[0]
    for i in range(indptr.size - 1):
        stop = indptr[i + 1]
        row_start = kept
        for q in range(start, stop):
            j = indices[q]
            if last_seen[j] >= row_start:
                values[last_seen[j]] += values[q]
                twice[i] = True
            else:
                last_seen[j] = kept
                indices[kept] = j
                values[kept] = values[q]
                kept += 1
        start = stop
        indptr[i + 1] = kept
    return kept
