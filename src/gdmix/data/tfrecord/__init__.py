"""TFRecord files of ``tf.train.Example`` and ``SequenceExample`` as Arrow rows.

An ``Example`` is one row, and each of its features a column. A ``SequenceExample`` holds all
rows of one entity: a feature of its context has one value for each row (or one for all: the
entity's id), a feature list has one feature for each row; it is read as these rows.

Which columns there are, and their types, is told from the first records. A feature with at most
one value in each of them is a scalar, unless it is called ``..._indices`` or ``..._values``:
those are lists, as is any other feature. Where a later record holds what does not fit, reading
ends with an error that names it; ``tensor_metadata.json``, if there is one, has the last word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gdmix.data.schema import is_list
from gdmix.data.tfrecord.columns import KINDS, Feature, Part, is_utf8, scan_records, spread
from gdmix.data.tfrecord.framing import read_records
from gdmix.data.tfrecord.metadata import TensorMetadata
from gdmix.data.tfrecord.wire import EMPTY, FEATURES, Cells
from gdmix.errors import DataError, did_you_mean

_GROUPED = {b"tfrecord": b"SequenceExample"}
_LIST_NAME = re.compile(r"_(indices|values)\d*$")
_SAMPLE = 10_000
_MOST_CELLS = 1 << 20  # (columns, records) that are decoded at a time


def read_schema(
    path: Path,
    metadata: TensorMetadata | None = None,
    records: int | None = _SAMPLE,
    grouped: bool | None = None,
) -> pa.Schema:
    """Return the columns of a file.

    Parameters
    ----------
    metadata
        What is known of the columns beforehand.
    records
        How many records to look at; None for all.
    grouped
        Whether these are ``SequenceExample``; None to tell it from their feature lists.
        (Without any, a ``SequenceExample`` is the same bytes as an ``Example``.)

    Returns
    -------
    pyarrow.Schema
        In order of first occurrence, then those that only the metadata know. Its own metadata
        tell `read_batches` whether the records are grouped.

    Raises
    ------
    DataError
        If the file is damaged, or a feature is now of one type and now of another.
    """
    names: list[str] = []
    seen: dict[str, _Seen] = {}
    lists = False
    for found in read_records(path, 1024):
        part = scan_records(path, found.head(records), names, "add")
        for name in names:
            seen.setdefault(name, _Seen()).update(part.feature(name))
        lists |= bool(part.grouped.any())
        if records is not None and found.first + len(found.starts) >= records:
            break
    grouped = lists if grouped is None else grouped
    fields = {name: pa.field(name, seen[name].type(name, grouped)) for name in names}
    if metadata:
        fields |= {f.name: f for f in metadata.fields()}
    return pa.schema(list(fields.values()), _GROUPED if grouped else None)


def read_batches(
    path: Path,
    columns: Sequence[str] | None = None,
    schema: pa.Schema | None = None,
    batch_rows: int = 1 << 16,
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a file, which is read a few megabytes at a time.

    Parameters
    ----------
    columns
        At least one; None for all.
    schema
        From `read_schema`; None to call it.
    batch_rows
        The most rows a batch may have.

    Raises
    ------
    DataError
        Naming the record, if the file is damaged or a record does not fit the schema.
    """
    everything = columns is None and schema is None
    schema = read_schema(path) if schema is None else schema
    names = schema.names if columns is None else list(columns)
    for name in names:
        if name not in schema.names:
            raise DataError(f"{path}: has no feature '{name}'{did_you_mean(name, schema.names)}")
    schema = pa.schema([schema.field(name) for name in names], schema.metadata)
    limit = max(1, min(batch_rows, _MOST_CELLS // max(1, len(names))))
    constant: dict[str, bool] = {}
    for found in read_records(path, limit):
        part = scan_records(path, found, names, "refuse" if everything else "skip")
        if (schema.metadata or {}).items() >= _GROUPED.items():
            yield from _rows_of_groups(part, schema, constant, limit)
            continue
        if part.grouped.any():
            part.fail(int(np.argmax(part.grouped)), "is a SequenceExample, others are Examples")
        arrays = [part.feature(f.name).column(f.type) for f in schema]
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)


@dataclass
class _Seen:
    """What was seen of one feature."""

    item: pa.DataType = pa.null()
    most: int = 0
    of_lists: bool = False

    def update(self, feature: Feature) -> None:
        if feature.holds(FEATURES):
            self.of_lists = True
            feature = feature.of_lists()
        if self.item == pa.null():
            self.item = feature.first_item()
        if self.item == pa.string() and not is_utf8(feature.values(pa.binary())):
            self.item = pa.binary()
        feature.expect(KINDS.get(self.item, EMPTY))
        self.most = max(self.most, int(feature.cells.counts.max(initial=0)))

    def type(self, name: str, grouped: bool) -> pa.DataType:
        in_context = grouped and not self.of_lists
        if (self.most <= 1 and not _LIST_NAME.search(name)) or in_context:
            return self.item
        if self.item == pa.null():
            return pa.list_(pa.float32() if "_values" in name else pa.int64())
        return pa.list_(self.item)


def _rows_of_groups(
    part: Part, schema: pa.Schema, constant: dict[str, bool], batch_rows: int
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of ``SequenceExample`` records.

    Parameters
    ----------
    constant
        Whether a context feature has one value for all rows of a record, as far as is known.
    """
    columns = []
    for f in schema:
        feature = part.feature(f.name)
        if feature.holds(FEATURES):
            columns.append((_of_rows(feature).column(f.type), False))
        elif is_list(f.type) or _is_constant(feature, constant):
            columns.append((feature.column(f.type), True))
        else:
            present = np.repeat(feature.cells.counts > 0, part.lengths)
            columns.append((spread(feature.values(f.type), present), False))
    record_of_row = np.repeat(np.arange(len(part.lengths)), part.lengths)
    for first in range(0, len(record_of_row), batch_rows):
        rows = slice(first, first + batch_rows)
        records = pa.array(record_of_row[rows])
        arrays = [a.take(records) if is_constant else a[rows] for a, is_constant in columns]
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def _is_constant(feature: Feature, constant: dict[str, bool]) -> bool:
    counts, rows = feature.cells.counts, feature.part.lengths
    several = (rows > 1) & (counts > 0)
    one, each = several & (counts == 1), several & (counts == rows)
    if (one | each).any():
        constant.setdefault(feature.name, bool(one[np.argmax(one | each)]))
    is_constant = constant.get(feature.name, True)
    _refuse_lengths(feature, several & ~(one if is_constant else each))
    return is_constant


def _of_rows(feature: Feature) -> Feature:
    """Return a feature list that has one feature for each row, as these."""
    counts, rows = feature.cells.counts, feature.part.lengths
    _refuse_lengths(feature, (counts > 0) & (counts != rows))
    found = feature.of_lists()
    present = np.repeat(counts > 0, rows)
    if present.all():
        return found
    cells = Cells.allocate(len(present))
    cells.kinds[present], cells.counts[present] = found.cells.kinds, found.cells.counts
    cells.begins[present], cells.ends[present] = found.cells.begins, found.cells.ends
    return Feature(feature.part, feature.name, cells, np.repeat(np.arange(len(rows)), rows))


def _refuse_lengths(feature: Feature, unfit: NDArray[np.bool_]) -> None:
    counts, rows = feature.cells.counts, feature.part.lengths
    feature.refuse(unfit, lambda r: f"has {counts[r]} values or lists for {rows[r]} rows")
