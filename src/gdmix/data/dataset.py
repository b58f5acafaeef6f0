"""One source of rows, read, checked and turned into arrays."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gdmix.config import Task, ValidateMode
from gdmix.data.design import encode_bag
from gdmix.data.feature_index import FeatureIndex, FeatureIndexBuilder
from gdmix.data.read import Source, open_rows
from gdmix.data.schema import KEY_HINT, RowSchema, is_key
from gdmix.data.validate import Findings, as_floats, check_roles, counted
from gdmix.errors import DataError
from gdmix.glm.matrix import CsrMatrix

log = logging.getLogger("gdmix")

_ROWS_PER_BATCH = 1_000_000
_NONE = np.empty(0, np.int64)


@dataclass(frozen=True)
class Dataset:
    """Rows as arrays.

    Attributes
    ----------
    label
        What messages call it.
    uid
        (n,) int64, unique; the row's position where the data have none.
    response
        (n,) float64; NaN where rows are only scored and have none.
    weight, offset
        (n,) float64.
    bags
        One design matrix of n rows per feature bag.
    keys
        Entity and grouping columns: Arrow arrays of int64 or large_string.
    """

    label: str
    uid: NDArray[np.int64]
    response: NDArray[np.float64]
    weight: NDArray[np.float64]
    offset: NDArray[np.float64]
    bags: Mapping[str, CsrMatrix]
    keys: Mapping[str, pa.Array]

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.uid.size

    def design(self, bags: Sequence[str]) -> CsrMatrix:
        """Return the named bags side by side; without any, the design of an intercept."""
        if not bags:
            return CsrMatrix.empty(self.n_rows)
        return CsrMatrix.hstack([self.bags[b] for b in bags])

    def take(self, rows: NDArray[np.int64]) -> Dataset:
        """Return the given rows."""
        return Dataset(
            self.label,
            self.uid[rows],
            self.response[rows],
            self.weight[rows],
            self.offset[rows],
            {name: matrix.take(rows) for name, matrix in self.bags.items()},
            {name: key.take(pa.array(rows)) for name, key in self.keys.items()},
        )


def load_training(
    source: Source, schema: RowSchema, task: Task, mode: ValidateMode, label: str = "training data"
) -> tuple[Dataset, Mapping[str, FeatureIndex]]:
    """Read training rows and build the feature index of every bag from them.

    Raises
    ------
    DataError
        With every finding of `gdmix.data.validate`.
    """
    name, table = _read(source, schema, label)
    dataset, indices = _encode(name, table, schema, None, task, mode)
    for bag, index in indices.items():
        log.info("%s: bag '%s' has %s features", name, bag, f"{len(index):,}")
    return dataset, indices


def load_rows(
    source: Source,
    schema: RowSchema,
    indices: Mapping[str, FeatureIndex],
    task: Task,
    mode: ValidateMode,
    label: str = "data",
) -> Dataset:
    """Read rows under frozen feature indices; features unknown to them are left out, counted.

    Raises
    ------
    DataError
        With every finding of `gdmix.data.validate`.
    """
    name, table = _read(source, schema, label)
    return _encode(name, table, schema, indices, task, mode)[0]


def _read(source: Source, schema: RowSchema, label: str) -> tuple[str, pa.Table]:
    rows = open_rows(source, label)
    table = rows.read(schema.select(rows.schema, rows.label))
    if table.num_rows == 0 and schema.needs_response:
        raise DataError(f"{rows.label}: has no rows")
    log.info("%s: %s", rows.label, counted(table.num_rows))
    return rows.label, table


def _encode(
    name: str,
    table: pa.Table,
    schema: RowSchema,
    frozen: Mapping[str, FeatureIndex] | None,
    task: Task,
    mode: ValidateMode,
) -> tuple[Dataset, Mapping[str, FeatureIndex]]:
    """Check and encode rows; without frozen indices they are training rows that make them."""
    batches = _batches(table)
    indices = _build_indices(batches, schema) if frozen is None else frozen
    bags = {bag: encode_bag(batches, spec, indices[bag]) for bag, spec in schema.bags.items()}
    uid_column = schema.role_column("uid", table.schema.names)
    uid, not_int64 = (
        as_int64(table[uid_column]) if uid_column else (np.arange(table.num_rows), _NONE)
    )
    keys = {column: as_keys(table[column]) for column in schema.keys}
    if mode != "off":
        findings = Findings(name, table.num_rows, table[uid_column] if uid_column else None)
        check_roles(table, schema, task, frozen is None, findings)
        findings.add(uid_column or "", "an id beyond int64", not_int64)
        for column, (key, not_key) in keys.items():
            findings.add(column, _not_a_key(key), not_key)
        for encoded in bags.values():
            for problem in encoded.problems:
                findings.add(problem.column, problem.what, problem.rows, problem.example)
        keep = findings.settle(mode)
        if not keep.all():
            _report_dropped(findings)
            # Start again: the model is that of the rows that are left, features included.
            return _encode(name, table.filter(pa.array(keep)), schema, frozen, task, mode)
    for bag, encoded in bags.items():
        if encoded.unknown:
            text = "%s: bag '%s': ignored %s values of features that are not in the feature index"
            log.warning(text, name, bag, f"{encoded.unknown:,}")
    dataset = Dataset(
        name,
        uid,
        _role(table, schema, "response", np.nan),
        _role(table, schema, "weight", 1.0),
        _role(table, schema, "offset", 0.0),
        {bag: encoded.matrix for bag, encoded in bags.items()},
        {column: key for column, (key, _) in keys.items()},
    )
    return dataset, indices


def _report_dropped(findings: Findings) -> None:
    for line in findings.lines:
        log.warning(line)
    dropped = int(findings.rows.sum())
    log.warning("%s: dropped %s of %s", findings.source, f"{dropped:,}", counted(findings.n_rows))
    if dropped == findings.n_rows:
        raise DataError(f"{findings.source}: no row is left after dropping those with findings")


def _build_indices(batches: list[pa.RecordBatch], schema: RowSchema) -> dict[str, FeatureIndex]:
    types = {f.name: f.type for f in batches[0].schema}
    builders = {bag: FeatureIndexBuilder(spec, types) for bag, spec in schema.bags.items()}
    for batch in batches:
        for builder in builders.values():
            builder.update(batch)
    return {bag: builder.freeze() for bag, builder in builders.items()}


def _batches(table: pa.Table) -> list[pa.RecordBatch]:
    """Cut into batches: large enough to amortise a call, small enough for scratch memory."""
    if not table.num_columns or not table.num_rows:
        return [pa.RecordBatch.from_pylist([], schema=table.schema)]
    if table.num_rows / table.column(0).num_chunks < _ROWS_PER_BATCH / 10:
        table = table.combine_chunks()
    batches: list[pa.RecordBatch] = table.to_batches(max_chunksize=_ROWS_PER_BATCH)
    return batches


def _role(table: pa.Table, schema: RowSchema, role: str, default: float) -> NDArray[np.float64]:
    column = schema.role_column(role, table.schema.names)
    if column is None:
        return np.full(table.num_rows, default)
    return as_floats(table[column], fill=default)


def as_int64(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return an integer column, nulls as 0, and the positions of values beyond int64."""
    wrapped = pc.fill_null(column.cast(pa.int64(), safe=False), 0).to_numpy()
    if not pa.types.is_uint64(column.type):
        return wrapped, _NONE
    return wrapped, np.flatnonzero(wrapped < 0)


def as_keys(column: pa.ChunkedArray) -> tuple[pa.Array, NDArray[np.int64]]:
    """Return an entity or grouping column as one array of int64 or large_string.

    Returns
    -------
    tuple
        The array, and the positions of values that are neither: there it is null.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    target = pa.int64() if pa.types.is_integer(column.type) else pa.large_string()
    rows = _NONE
    try:
        keys = column.cast(target)
    except pa.ArrowException:
        rows = as_int64(column)[1] if target == pa.int64() else _not_utf8(column)
        mask = np.zeros(len(column), np.bool_)
        mask[rows] = True
        keys = pc.if_else(pa.array(mask), pa.scalar(None, column.type), column).cast(target)
    return keys.combine_chunks() if keys.num_chunks != 1 else keys.chunk(0), rows


def key_array(column: pa.ChunkedArray, name: str, source: str) -> pa.Array:
    """Return an entity or grouping column as one array of int64 or large_string.

    Raises
    ------
    DataError
        If a value is neither.
    """
    if not is_key(column.type):
        raise DataError(f"{source}: column '{name}' is {column.type}, expected {KEY_HINT}")
    keys, rows = as_keys(column)
    if rows.size:
        text = f"{counted(rows.size)} with {_not_a_key(keys)}"
        raise DataError(f"{source}: column '{name}': {text}")
    return keys


def _not_a_key(keys: pa.Array) -> str:
    integers = pa.types.is_integer(keys.type)
    return "an id beyond int64: cast them to text" if integers else "an id that is not UTF-8 text"


def _not_utf8(column: pa.ChunkedArray) -> NDArray[np.int64]:
    encoded = column.combine_chunks().dictionary_encode()
    bad = [not _decodes(value) for value in encoded.dictionary.to_pylist()]
    codes = encoded.indices.fill_null(-1).to_numpy()
    return np.flatnonzero(np.append(bad, False)[codes])


def _decodes(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def key_codes(key: pa.Array) -> NDArray[np.int64]:
    """Return dense numbers of a key column's distinct values, (n,); a null is -1."""
    indices = key.dictionary_encode().indices.fill_null(-1)
    return np.asarray(indices.to_numpy(zero_copy_only=False), np.int64)
