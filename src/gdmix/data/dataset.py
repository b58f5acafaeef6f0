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
from gdmix.data.design import EncodedBag, encode_bag
from gdmix.data.feature_index import FeatureIndex, FeatureIndexBuilder
from gdmix.data.read import Source, open_rows
from gdmix.data.schema import RowSchema
from gdmix.data.validate import Findings, as_floats, check_roles, check_training_labels
from gdmix.errors import DataError
from gdmix.glm.matrix import CsrMatrix

log = logging.getLogger("gdmix")

_ROWS_PER_BATCH = 1_000_000


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
) -> tuple[Dataset, dict[str, FeatureIndex]]:
    """Read training rows and build the feature index of every bag from them.

    Raises
    ------
    DataError
        With every finding of `gdmix.data.validate`.
    """
    name, table, findings = _read_checked(source, schema, task, mode, label)
    builders = {bag: FeatureIndexBuilder(spec, _types(table)) for bag, spec in schema.bags.items()}
    for batch in _batches(table):
        for builder in builders.values():
            builder.update(batch)
    indices = {bag: builder.freeze() for bag, builder in builders.items()}
    dataset = _encode(table, schema, indices, mode, findings, name)
    if mode != "off":
        column = schema.roles.column("response")
        check_training_labels(name, column, dataset.response, dataset.weight, task)
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
    name, table, findings = _read_checked(source, schema, task, mode, label)
    return _encode(table, schema, indices, mode, findings, name)


def _read_checked(
    source: Source, schema: RowSchema, task: Task, mode: ValidateMode, label: str
) -> tuple[str, pa.Table, Findings]:
    rows = open_rows(source, label)
    table = rows.read(schema.select(rows.schema, rows.label))
    if table.num_rows == 0 and schema.needs_response:
        raise DataError(f"{rows.label}: has no rows")
    findings = Findings(rows.label, _uid(table, schema))
    if mode != "off":
        check_roles(table, schema, task, findings)
    if mode == "drop" and findings.lines:
        keep, lines = findings.settle(mode)
        _warn(lines)
        table = table.filter(pa.array(keep))
        findings = Findings(rows.label, _uid(table, schema))
        _require_rows(table.num_rows, rows.label)
    log.info("%s: %s rows", rows.label, f"{table.num_rows:,}")
    return rows.label, table, findings


def _encode(
    table: pa.Table,
    schema: RowSchema,
    indices: Mapping[str, FeatureIndex],
    mode: ValidateMode,
    findings: Findings,
    name: str,
) -> Dataset:
    parts: dict[str, list[EncodedBag]] = {bag: [] for bag in schema.bags}
    first = 0
    problems: dict[tuple[str, str], list[NDArray[np.int64]]] = {}
    examples: dict[tuple[str, str], str] = {}
    for batch in _batches(table):
        for bag, spec in schema.bags.items():
            encoded = encode_bag(batch, spec, indices[bag])
            parts[bag].append(encoded)
            for problem in encoded.problems:
                key = (problem.column, problem.what)
                problems.setdefault(key, []).append(problem.rows + first)
                examples.setdefault(key, problem.example)
        first += batch.num_rows
    for (column, what), rows in problems.items():
        findings.add(column, what, np.concatenate(rows), examples[column, what])
    for bag, encoded_batches in parts.items():
        unknown = sum(e.unknown for e in encoded_batches)
        if unknown:
            text = "%s: bag '%s': ignored %s values of features that training did not see"
            log.warning(text, name, bag, f"{unknown:,}")
    dataset = Dataset(
        name,
        findings.uid,
        _role(table, schema, "response", np.nan),
        _role(table, schema, "weight", 1.0),
        _role(table, schema, "offset", 0.0),
        {bag: CsrMatrix.vstack([e.matrix for e in batches]) for bag, batches in parts.items()},
        {column: key_array(table[column], column, name) for column in schema.keys},
    )
    keep, lines = findings.settle(mode)
    if not lines:
        return dataset
    _warn(lines)
    _require_rows(int(keep.sum()), name)
    return dataset.take(np.flatnonzero(keep))


def _require_rows(n: int, name: str) -> None:
    if n == 0:
        raise DataError(f"{name}: no row is left after dropping those with findings")


def _warn(lines: list[str]) -> None:
    for line in lines:
        log.warning(line)


def _types(table: pa.Table) -> dict[str, pa.DataType]:
    return {f.name: f.type for f in table.schema}


def _batches(table: pa.Table) -> list[pa.RecordBatch]:
    """Cut into batches: large enough to amortise a call, small enough for scratch memory."""
    if not table.num_columns or not table.num_rows:
        return [pa.RecordBatch.from_pylist([], schema=table.schema)]
    chunks = max(table.column(0).num_chunks, 1)
    if table.num_rows / chunks < _ROWS_PER_BATCH / 10:
        table = table.combine_chunks()
    batches: list[pa.RecordBatch] = table.to_batches(max_chunksize=_ROWS_PER_BATCH)
    return batches


def _uid(table: pa.Table, schema: RowSchema) -> NDArray[np.int64]:
    column = schema.role_column("uid", table.schema.names)
    if column is None:
        return np.arange(table.num_rows)
    filled = pc.fill_null(table[column].cast(pa.int64()), 0)
    return np.asarray(filled.to_numpy(), np.int64)


def _role(table: pa.Table, schema: RowSchema, role: str, default: float) -> NDArray[np.float64]:
    column = schema.role_column(role, table.schema.names)
    if column is None:
        return np.full(table.num_rows, default)
    return as_floats(table[column], fill=default)


def key_array(column: pa.ChunkedArray, name: str, source: str) -> pa.Array:
    """Return an entity or grouping column as one Arrow array of int64 or large_string.

    Raises
    ------
    DataError
        If a value is neither.
    """
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    target = pa.int64() if pa.types.is_integer(kind) else pa.large_string()
    try:
        values = column.cast(kind).cast(target)
    except pa.ArrowException:
        what = "an int64" if pa.types.is_integer(kind) else "UTF-8 text"
        raise DataError(f"{source}: column '{name}': holds a value that is not {what}") from None
    return values.combine_chunks() if values.num_chunks != 1 else values.chunk(0)


def key_codes(key: pa.Array) -> NDArray[np.int64]:
    """Return dense numbers of a key column's distinct values, (n,); a null is -1."""
    indices = key.dictionary_encode().indices.fill_null(-1)
    return np.asarray(indices.to_numpy(zero_copy_only=False), np.int64)
