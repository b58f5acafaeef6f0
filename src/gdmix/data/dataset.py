"""One source of rows, read, checked and turned into arrays, batch by batch."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gdmix import memory
from gdmix.config import FeatureBag, Task, ValidateMode
from gdmix.data.dense_rows import DenseStack
from gdmix.data.derived_keys import derive_keys, part_kinds
from gdmix.data.design import EncodedBag, encode_bag, is_dense_bag
from gdmix.data.feature_index import FeatureIndex, FeatureIndexBuilder, HashedIndex
from gdmix.data.feature_selection import check_selectable, select_features
from gdmix.data.keys import Keys, KeysBuilder, as_int64, as_keys, key_type, not_a_key
from gdmix.data.read import RowSource, Source, open_rows
from gdmix.data.schema import RowSchema
from gdmix.data.validate import (
    Findings,
    as_floats,
    check_classes,
    check_roles,
    check_unique,
    counted,
)
from gdmix.errors import DataError
from gdmix.glm.matrix import CsrMatrix, CsrStack
from gdmix.glm.threads import map_ordered

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

log = logging.getLogger("gdmix")

_ROWS_PER_BATCH = 1_000_000
_KEPT_SHARE = 0.1  # of the memory limit: batches that need not be read again
_DEFAULTS = {"response": np.nan, "weight": 1.0, "offset": 0.0}


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
        Entity and grouping columns.
    """

    label: str
    uid: I64
    response: F64
    weight: F64
    offset: F64
    bags: Mapping[str, CsrMatrix]
    keys: Mapping[str, Keys]

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.uid.size

    def design(self, bags: Sequence[str]) -> CsrMatrix:
        """Return the named bags side by side; without any, the design of an intercept."""
        if not bags:
            return CsrMatrix.empty(self.n_rows)
        return CsrMatrix.hstack([self.bags[b] for b in bags])


def load_training(
    source: Source,
    schema: RowSchema,
    task: Task,
    mode: ValidateMode,
    label: str = "training data",
    threads: int = 1,
    always: Mapping[str, FeatureIndex] | None = None,
) -> tuple[Dataset, Mapping[str, FeatureIndex]]:
    """Read training rows and build the feature index of every bag from them.

    Parameters
    ----------
    always
        By bag, features that are not to be left out for being rare or of little correlation.

    Raises
    ------
    ConfigError
        If features of a bag are to be selected that can't be.
    DataError
        With every finding of `gdmix.data.validate`.
    """
    rows = _Rows(open_rows(source, label), schema)
    types = {field.name: field.type for field in rows.schema}
    for bag, spec in schema.bags.items():
        check_selectable(bag, spec, types)
    dataset, indices = _Reader(rows, schema, task, mode, threads).read(None)
    dataset, indices = _selected(dataset, indices, schema, always or {}, threads)
    for bag, index in indices.items():
        what = "is hashed into %s columns" if isinstance(index, HashedIndex) else "has %s features"
        log.info(f"%s: bag '%s' {what}", rows.label, bag, f"{len(index):,}")
    return dataset, indices


def load_rows(
    source: Source,
    schema: RowSchema,
    indices: Mapping[str, FeatureIndex],
    task: Task,
    mode: ValidateMode,
    label: str = "data",
    threads: int = 1,
    first_row: int = 0,
) -> Dataset:
    """Read rows under frozen feature indices; features unknown to them are left out, counted.

    Parameters
    ----------
    first_row
        Number of the first of them, where they are some of many.

    Raises
    ------
    DataError
        With every finding of `gdmix.data.validate`.
    """
    rows = _Rows(open_rows(source, label), schema, first_row)
    return _Reader(rows, schema, task, mode, threads).read(indices)[0]


def scan_features(source: RowSource, schema: RowSchema) -> dict[str, FeatureIndexBuilder]:
    """Return what the rows of a source add to the feature index of every bag."""
    return _scanned(_Rows(source, schema), schema)


def encode_rows(
    source: RowSource,
    schema: RowSchema,
    indices: Mapping[str, FeatureIndex],
    task: Task,
    mode: ValidateMode,
    first_row: int = 0,
) -> tuple[Dataset, Findings, dict[str, int]]:
    """Turn some rows of a source into arrays; what is wrong with them is returned, not raised.

    So is, by bag, the number of values of features that are not in the feature index.

    Parameters
    ----------
    first_row
        Number of the first of them within the source.
    """
    rows = _Rows(source, schema, first_row)
    findings = Findings(rows.label)
    dataset, unknown = _Reader(rows, schema, task, mode, 1)._encode(indices, findings)
    return dataset, findings, unknown


def report_unknown(label: str, bags: Mapping[str, FeatureBag], unknown: Mapping[str, int]) -> None:
    """Say how many values of features were left out, by bag, as the feature index has none."""
    for bag, count in unknown.items():
        if count:
            text = "ignored %s values of features that are not in the feature index"
            # Where training left features out, that is no surprise.
            level = logging.INFO if bags[bag].is_selected else logging.WARNING
            log.log(level, f"%s: bag '%s': {text}", label, bag, f"{count:,}")


def _scanned(rows: _Rows, schema: RowSchema) -> dict[str, FeatureIndexBuilder]:
    types = {f.name: f.type for f in rows.schema}
    builders = {b: FeatureIndexBuilder(spec, types) for b, spec in schema.bags.items()}
    if any(builder.needs_rows for builder in builders.values()):
        for _, batch in rows.batches(again=True):
            for builder in builders.values():
                builder.update(batch)
    return builders


def _selected(
    rows: Dataset,
    indices: Mapping[str, FeatureIndex],
    schema: RowSchema,
    always: Mapping[str, FeatureIndex],
    threads: int,
) -> tuple[Dataset, Mapping[str, FeatureIndex]]:
    """Leave out the features that their bags say."""
    bags, indices = dict(rows.bags), dict(indices)
    for bag, spec in schema.bags.items():
        if spec.is_selected:
            chosen = select_features(
                f"{rows.label}: bag '{bag}'",
                spec,
                indices[bag],
                bags[bag],
                rows.response,
                rows.weight,
                always.get(bag),
                threads,
            )
            bags[bag], indices[bag] = chosen.design, chosen.index
    return replace(rows, bags=bags), indices


class _Rows:
    """The rows of a source, batch by batch, as often as they are needed.

    Attributes
    ----------
    label
        What messages call them.
    schema
        Of the columns that are read.
    kept
        (n,) whether a row of the source is kept; None: all are.
    """

    def __init__(self, source: RowSource, schema: RowSchema, first_row: int = 0) -> None:
        self.label, self._first_row = source.label, first_row
        self._source, self._columns = source, schema.select(source.schema, source.label)
        self.schema = pa.schema([source.schema.field(c) for c in self._columns])
        self.kept: NDArray[np.bool_] | None = None
        self._all: list[pa.RecordBatch] | None = None

    def batches(self, again: bool) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yield batches, at least one, each with the number of its first row.

        Parameters
        ----------
        again
            Whether they will be asked for once more: they are then held, if they are few.
        """
        first, position = self._first_row, 0
        held: list[pa.RecordBatch] | None = [] if again else None
        size, limit = 0, memory.limit_bytes()
        for batch in self._all or self._read():
            size += batch.nbytes
            if held is not None and (limit is None or size <= _KEPT_SHARE * limit):
                held.append(batch)
            else:
                held = None
            if self.kept is not None:
                mask = self.kept[position : position + batch.num_rows]
                position += batch.num_rows
                batch = batch.filter(pa.array(mask))
            yield first, batch
            first += batch.num_rows
        self._all = self._all or held

    def _read(self) -> Iterator[pa.RecordBatch]:
        empty = True
        for table in self._source.stream(self._columns):
            chunks = table.column(0).num_chunks if table.num_columns else 1
            if table.num_rows < chunks * _ROWS_PER_BATCH // 10:
                table = table.combine_chunks()
            for batch in table.to_batches(max_chunksize=_ROWS_PER_BATCH):
                empty = empty and not batch.num_rows
                yield batch
        if empty:
            yield pa.RecordBatch.from_pylist([], schema=self.schema)


@dataclass(frozen=True)
class _Part:
    """A batch as arrays, and what was found in it."""

    uid: I64
    roles: Mapping[str, F64]
    keys: Mapping[str, pa.Array]
    bags: Mapping[str, EncodedBag]
    findings: Findings


class _Reader:
    """Turns rows into a dataset."""

    def __init__(
        self, rows: _Rows, schema: RowSchema, task: Task, mode: ValidateMode, threads: int
    ) -> None:
        self._rows, self._schema, self._task, self._mode = rows, schema, task, mode
        self._threads = threads
        names = rows.schema.names
        self._uid = schema.role_column("uid", names)
        self._roles = {r: c for r in _DEFAULTS if (c := schema.role_column(r, names))}

    def read(
        self, frozen: Mapping[str, FeatureIndex] | None
    ) -> tuple[Dataset, Mapping[str, FeatureIndex]]:
        """Check and encode; without frozen indices they are training rows that make them."""
        indices = self._index() if frozen is None else frozen
        findings = Findings(self._rows.label)
        dataset, unknown = self._encode(indices, findings)
        report_unknown(dataset.label, self._schema.bags, unknown)
        n = dataset.n_rows
        if n == 0 and self._schema.needs_response:
            raise DataError(f"{dataset.label}: has no rows")
        if self._mode != "off":
            if self._uid:
                check_unique(self._uid, dataset.uid, findings)
            labels = {self._roles.get("response", ""), self._roles.get("weight", "")}
            if frozen is None and not findings.columns & labels:
                label = dataset.response, dataset.weight, self._task
                check_classes(self._roles["response"], *label, findings)
            keep = findings.settle(self._mode, n, self._rows.schema.names)
            if keep is not None:
                _report_dropped(findings.lines(self._rows.schema.names), keep, dataset.label)
                # Start again: the model is that of the rows that are left, features included.
                self._rows.kept = keep
                return self.read(frozen)
        log.info("%s: %s", dataset.label, counted(n))
        return dataset, indices

    def _index(self) -> dict[str, FeatureIndex]:
        builders = _scanned(self._rows, self._schema)
        return {bag: builder.freeze() for bag, builder in builders.items()}

    def _encode(
        self, indices: Mapping[str, FeatureIndex], findings: Findings
    ) -> tuple[Dataset, dict[str, int]]:
        schema, name = self._schema, self._rows.label
        n = 0
        uid = memory.Stack(np.int64)
        roles = {role: memory.Stack(np.float64) for role in self._roles}
        types = {f.name: f.type for f in self._rows.schema}
        keys = {
            key: KeysBuilder(pa.large_string() if key in schema.derived else key_type(types[key]))
            for key in schema.keys
        }
        bags = {
            bag: (DenseStack if is_dense_bag(spec, types) else CsrStack)(len(indices[bag]))
            for bag, spec in schema.bags.items()
        }
        unknown = dict.fromkeys(bags, 0)

        def encode(numbered: tuple[int, pa.RecordBatch]) -> _Part:
            return self._encode_batch(*numbered, indices)

        batches = self._rows.batches(again=self._mode == "drop")
        for part in map_ordered(encode, batches, self._threads):
            n += part.uid.size
            uid.append(part.uid)
            for role, values in part.roles.items():
                roles[role].append(values)
            for column, own in part.keys.items():
                keys[column].append(own)
            for bag, encoded in part.bags.items():
                bags[bag].append(encoded.matrix)
                unknown[bag] += encoded.unknown
            findings.merge(part.findings)
        columns = {
            role: roles[role].finish() if role in roles else memory.full(n, default)
            for role, default in _DEFAULTS.items()
        }
        dataset = Dataset(
            name,
            uid.finish(),
            **columns,
            bags={bag: stack.finish() for bag, stack in bags.items()},
            keys={key: self._finished(key, builder) for key, builder in keys.items()},
        )
        return dataset, unknown

    def _finished(self, key: str, builder: KeysBuilder) -> Keys:
        keys = builder.finish()
        joined = len(self._schema.derived.get(key, ())) > 1
        return replace(keys, kinds=part_kinds(keys.values)) if joined else keys

    def _encode_batch(
        self, first: int, batch: pa.RecordBatch, indices: Mapping[str, FeatureIndex]
    ) -> _Part:
        column = batch.column(self._uid) if self._uid else None
        findings = Findings(self._rows.label, column, first)
        if column is None:
            uid = np.arange(first, first + batch.num_rows)
        else:
            uid, rows = as_int64(column)
            findings.add(self._uid or "", "an id beyond int64", rows)
        roles = {
            role: as_floats(batch.column(c), _DEFAULTS[role]) for role, c in self._roles.items()
        }
        keys, bags = {}, {}
        for name in self._schema.keys:
            if name in self._schema.derived:
                keys[name], problems = derive_keys(batch, self._schema.derived[name])
            else:
                keys[name], rows = as_keys(batch.column(name))
                problems = [(name, not_a_key(keys[name]), rows)]
            for problem in problems:
                findings.add(*problem)
        for bag, spec in self._schema.bags.items():
            bags[bag] = encode_bag(batch, spec, indices[bag])
            for odd in bags[bag].problems:
                findings.add(odd.column, odd.what, odd.rows, odd.example)
        if self._mode != "off":
            check_roles(batch, self._schema, self._task, findings)
        return _Part(uid, roles, keys, bags, findings)


def _report_dropped(lines: Sequence[str], keep: NDArray[np.bool_], source: str) -> None:
    for line in lines:
        log.warning(line)
    dropped = keep.size - int(np.count_nonzero(keep))
    log.warning("%s: dropped %s of %s", source, f"{dropped:,}", counted(keep.size))
    if dropped == keep.size:
        raise DataError(f"{source}: no row is left after dropping those with findings")
