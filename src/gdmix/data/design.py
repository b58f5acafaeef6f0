"""Rows and a frozen index to compressed sparse rows, without a Python loop over rows.

The rules, for every form of a bag: a null is an absent feature, a value of zero is not
stored, a feature that is not in the index is left out and counted, a feature that stands twice
in a row is summed, a value that is not finite is left out (both are reported: `validate` makes
them an error). In a hashed bag, features of a row that share a column are summed, and one that
stands twice can't be told from these. The intercept has no column here: solvers and scorers add
it as coefficient 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gdmix.config import FeatureBag
from gdmix.data.feature_index import FeatureIndex, as_terms, ntv_keys, split_keys
from gdmix.data.schema import BagSource, bag_sources
from gdmix.glm.compiled import kernel
from gdmix.glm.matrix import CsrMatrix

I64 = NDArray[np.int64]


@dataclass(frozen=True)
class RowProblem:
    """Rows that hold something unusable.

    Attributes
    ----------
    column
        The column it was found in.
    what
        What is wrong, as the end of "n rows with ...".
    rows
        (k,) their positions, ascending.
    example
        What the first of them holds, if that helps.
    """

    column: str
    what: str
    rows: I64
    example: str = ""


@dataclass
class EncodedBag:
    """The rows of one bag.

    Attributes
    ----------
    matrix
        (rows, features of the index).
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


def is_dense_bag(bag: FeatureBag, types: Mapping[str, pa.DataType]) -> bool:
    """Whether a bag's matrix is dense.

    It is if the bag is made of fixed-size lists alone, or of numbers that may be missing, and is
    not hashed.
    """
    if bag.hash_buckets is not None:
        return False
    return keeps_missing(bag, types) or all(s.kind == "dense" for s in bag_sources(bag, types))


def keeps_missing(bag: FeatureBag, types: Mapping[str, pa.DataType]) -> bool:
    """Whether a missing number of a bag is NaN in its matrix, and no finding; it then is dense."""
    kinds = {source.kind for source in bag_sources(bag, types)}
    return bag.missing == "keep" and kinds <= {"numeric", "dense"}


def encode_bag(batch: pa.RecordBatch, bag: FeatureBag, index: FeatureIndex) -> EncodedBag:
    """Return the design matrix of a bag for the rows of a batch."""
    types: Mapping[str, pa.DataType] = {f.name: f.type for f in batch.schema}
    problems: list[RowProblem] = []
    sources = bag_sources(bag, types)
    missing = np.nan if keeps_missing(bag, types) else 0.0
    entries = [
        _only_finite(
            source, _entries(batch, source, bag, index, problems, missing), problems, missing
        )
        for source in sources
    ]
    unknown = sum(int(np.count_nonzero((e.columns < 0) & (e.values != 0))) for e in entries)
    if is_dense_bag(bag, types):
        matrix = _dense_matrix(batch.num_rows, entries, len(index), missing)
        return EncodedBag(matrix, problems, unknown)
    matrix, repeated = _assemble(batch.num_rows, entries, len(index))
    twice = np.flatnonzero(repeated >= 0)
    if twice.size and bag.hash_buckets is None:
        column = ", ".join(s.column for s in sources if s.kind in ("multi_hot", "ntv", "indexed"))
        first = int(repeated[twice[0]])
        name, term = index.names[first].as_py(), index.terms[first].as_py()
        example = f"feature '{name}'" + (f", term '{term}'" if term else "")
        problems.append(RowProblem(column, "a feature that stands twice", twice, example))
    return EncodedBag(matrix, problems, unknown)


def _dense_matrix(n: int, sources: list[_Entries], n_columns: int, missing: float) -> CsrMatrix:
    """Return the matrix of all columns; a row without a list is all `missing`."""
    table = np.full((n, n_columns), missing, np.float32)
    for entries in sources:
        present = np.flatnonzero(entries.counts)
        if present.size:
            width = entries.values.size // present.size
            columns = entries.columns[:width]
            known = columns >= 0
            block = entries.values.reshape(-1, width)[:, known]
            table[np.ix_(present, columns[known])] = block
    return CsrMatrix.dense(table, np.arange(n))


def _entries(
    batch: pa.RecordBatch,
    source: BagSource,
    bag: FeatureBag,
    index: FeatureIndex,
    problems: list[RowProblem],
    missing: float,
) -> _Entries:
    column = batch.column(source.column)
    ones = np.ones(len(column), np.int64)
    if source.kind == "numeric":
        columns = np.full(len(column), index.column(source.feature))
        return _Entries(ones, columns, _floats(column, missing))
    if source.kind == "categorical":
        terms = as_terms(column)
        return _Entries(ones, _look_up(source, terms, index), _present(terms))
    if source.kind == "dense":
        return _dense_entries(column, source, index, problems, missing)
    if source.kind == "multi_hot":
        terms = as_terms(column)
        return _Entries(_lengths(column), _look_up(source, terms, index), _present(terms))
    if source.kind == "ntv":
        items = column.flatten()
        keys = ntv_keys(items).dictionary_encode()
        columns = index.lookup_pairs(*split_keys(keys.dictionary))
        values = _floats(pc.struct_field(items, "value")) * _present(keys)
        return _Entries(_lengths(column), _by_code(keys, columns), values)
    return _indexed_entries(batch, source, bag, index, problems)


def _dense_entries(
    column: pa.Array,
    source: BagSource,
    index: FeatureIndex,
    problems: list[RowProblem],
    missing: float,
) -> _Entries:
    present = _present(column) > 0
    size, trained = column.type.list_size, index.count(source.feature)
    if trained is not None and size != trained:
        what = f"a list of {size} numbers, where training had {trained}"
        problems.append(RowProblem(source.column, what, np.flatnonzero(present)))
    columns = index.lookup(source.feature, pa.array([str(i) for i in range(size)], pa.string()))
    counts = np.where(present, size, 0)
    values = _floats(column.flatten(), missing)
    return _Entries(counts, np.tile(columns, int(present.sum())), values)


def _indexed_entries(
    batch: pa.RecordBatch,
    source: BagSource,
    bag: FeatureBag,
    index: FeatureIndex,
    problems: list[RowProblem],
) -> _Entries:
    """Read a pair of index and value lists.

    With a feature list the index is the column's number. Without one it is the feature's term.
    """
    assert source.values is not None
    indices = _lists(batch.column(source.column), pa.int64())
    values = _lists(batch.column(source.values), pa.float64())
    counts, value_counts = _lengths(indices), _lengths(values)
    numbers, weights = indices.flatten(), _floats(values.flatten())
    equal = counts == value_counts
    if not equal.all():
        what = f"a length other than that of '{source.values}'"
        problems.append(RowProblem(source.column, what, np.flatnonzero(~equal)))
        numbers = numbers.filter(pa.array(np.repeat(equal, counts)))
        weights = weights[np.repeat(equal, value_counts)]
        counts = np.where(equal, counts, 0)
    numbers = numbers.cast(pa.int64(), safe=False)
    weights = weights * _present(numbers)
    known = np.asarray(pc.fill_null(numbers, 0).to_numpy(zero_copy_only=False))
    listed = bag.feature_list is not None
    outside = (known < 0) | ((known >= len(index)) & listed)
    if outside.any():
        rows = np.unique(np.repeat(np.arange(len(counts)), counts)[outside])
        what = f"an index outside the feature list (0 to {len(index) - 1})"
        example = f"index {known[outside][0]}"
        problems.append(
            RowProblem(source.column, what if listed else "a negative index", rows, example)
        )
    columns = np.where(outside, -1, known) if listed else _look_up(source, numbers, index)
    return _Entries(counts, columns, weights)


def _look_up(source: BagSource, terms: pa.Array, index: FeatureIndex) -> I64:
    encoded = terms.dictionary_encode()
    return _by_code(encoded, index.lookup(source.feature, encoded.dictionary))


def _by_code(encoded: pa.DictionaryArray, columns: I64) -> I64:
    codes = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)
    return np.asarray(np.append(columns, -1)[codes])


def _lists(column: pa.Array, item: pa.DataType) -> pa.Array:
    """Return a column of lists; one that has no value at all has no type of its own."""
    return column.cast(pa.list_(item)) if pa.types.is_null(column.type) else column


def _lengths(column: pa.Array) -> I64:
    lengths = pc.fill_null(pc.list_value_length(column), 0)
    return np.asarray(lengths.to_numpy(zero_copy_only=False), np.int64)


def _floats(column: pa.Array, missing: float = 0.0) -> NDArray[np.float32]:
    """Return values as float32; null is `missing`: a 0 is not stored."""
    if not pa.types.is_floating(column.type):
        column = column.cast(pa.float64(), safe=False)
    values = column.to_numpy(zero_copy_only=False)
    if column.null_count:
        values = np.where(column.is_valid().to_numpy(zero_copy_only=False), values, missing)
    with np.errstate(over="ignore"):
        values = np.asarray(values, np.float32)
    # A kernel that is given Arrow's own, read-only memory would be compiled once more.
    return values if values.flags.writeable else values.copy()


def _present(column: pa.Array) -> NDArray[np.float32]:
    return np.asarray(column.is_valid().to_numpy(zero_copy_only=False), np.float32)


def _only_finite(
    source: BagSource, entries: _Entries, problems: list[RowProblem], missing: float
) -> _Entries:
    """Note and zero what is not finite: kernels are compiled to know no NaN."""
    usable = np.isfinite(entries.values)
    if np.isnan(missing):
        usable |= np.isnan(entries.values)
    if usable.all():
        return entries
    rows = np.unique(np.repeat(np.arange(entries.counts.size), entries.counts)[~usable])
    infinite = "infinity or a number too large for single precision"
    what = infinite if np.isnan(missing) else f"NaN, {infinite}"
    problems.append(RowProblem(source.values or source.column, what, rows))
    return _Entries(entries.counts, entries.columns, np.where(usable, entries.values, 0))


def _assemble(n: int, sources: list[_Entries], n_columns: int) -> tuple[CsrMatrix, I64]:
    """Lay the sources' values side by side, row by row.

    Returns
    -------
    tuple
        The matrix, and (n,) a column that a row held more than once, else -1.
    """
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
    repeated = np.full(n, -1)
    bits = max(int(2 * counts.max(initial=0)).bit_length(), 1)
    last_seen = np.full(1 << bits, -1)
    kept = _sum_duplicates(indptr, indices, values, last_seen, 64 - bits, repeated)
    return CsrMatrix(indptr, indices[:kept], values[:kept], n_columns), repeated


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
    shift: int,
    repeated: I64,
) -> int:
    """Sum a row's repeated columns in place; note one of them; return the new length.

    `last_seen` is a hash table of where columns were last stored, larger than any row: what is
    before the row's start is an empty slot.
    """
    mask = np.uint64(last_seen.size - 1)
    kept = 0
    start = indptr[0]
    for i in range(indptr.size - 1):
        stop = indptr[i + 1]
        row_start = kept
        for q in range(start, stop):
            j = indices[q]
            # Fibonacci hashing (Knuth, The Art of Computer Programming, 6.4).
            slot = (np.uint64(j) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(shift)
            while last_seen[slot] >= row_start and indices[last_seen[slot]] != j:
                slot = (slot + np.uint64(1)) & mask
            if last_seen[slot] >= row_start:
                values[last_seen[slot]] += values[q]
                repeated[i] = j
            else:
                last_seen[slot] = kept
                indices[kept] = j
                values[kept] = values[q]
                kept += 1
        start = stop
        indptr[i + 1] = kept
    return kept
