"""The records of a TFRecord file as Arrow columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gdmix.data.schema import is_list
from gdmix.data.tfrecord.framing import Records
from gdmix.data.tfrecord.wire import (
    ABSENT,
    BYTES,
    EMPTY,
    FEATURES,
    FLOATS,
    INTEGERS,
    OK,
    TWICE,
    UNKNOWN,
    Cells,
    join_names,
    locate,
    read_bytes,
    read_floats,
    read_integers,
    scan,
)
from gdmix.errors import DataError

I64 = NDArray[np.int64]

KINDS = {pa.string(): BYTES, pa.binary(): BYTES, pa.float32(): FLOATS, pa.int64(): INTEGERS}
_WHAT = {BYTES: "text", FLOATS: "floats", INTEGERS: "integers", FEATURES: "a feature list"}
_MOST_FEATURES = 4096


@dataclass(frozen=True)
class Part:
    """Some records of a file, and where their features lie.

    Attributes
    ----------
    lengths
        (records,) length of the longest list of values or features.
    grouped
        (records,) whether it is a ``SequenceExample``.
    """

    path: Path
    records: Records
    names: Sequence[str]
    cells: Cells
    lengths: I64
    grouped: NDArray[np.bool_]

    def feature(self, name: str) -> Feature:
        """Return one feature of all records."""
        return Feature(self, name, self.cells.column(self.names.index(name)))

    def fail(self, record: int, what: str) -> NoReturn:
        """Raise an error that names the record; the first of a file is number 1."""
        raise DataError(f"{self.path}: record {self.records.first + record + 1}: {what}")


def scan_records(
    path: Path, records: Records, names: list[str], unknown: Literal["add", "skip", "refuse"]
) -> Part:
    """Find the features of records.

    Parameters
    ----------
    unknown
        What to do with a feature that is none of `names`; added ones come last.
    """
    n = len(records.starts)
    cells = Cells.allocate(len(names) + (64 if unknown == "add" else 0), n)
    lengths, grouped = np.zeros(n, np.int64), np.zeros(n, np.bool_)
    part = Part(path, records, names, cells, lengths, grouped)
    where = records.data, records.starts, records.ends
    record = 0
    while len(names) <= len(cells.kinds):
        text, stops = join_names(names)
        code, record, begin, end = scan(
            *where, record, text, stops, unknown == "skip", cells, lengths, grouped
        )
        if code == OK:
            return part
        try:
            what = f"feature {(name := records.data[begin:end].tobytes().decode())[:80]!r}"
        except UnicodeDecodeError:
            part.fail(record, "the name of a feature is not UTF-8")
        if code == TWICE:
            part.fail(record, f"{what} stands twice")
        if code != UNKNOWN:
            part.fail(record, f"{what if name else 'it'} is malformed: is it a tf.train.Example?")
        if unknown == "refuse":
            part.fail(record, f"{what} is in no earlier one; name the columns to read")
        if len(names) == _MOST_FEATURES:
            part.fail(record, f"there are more than {_MOST_FEATURES:,} features")
        names.append(name)
    return scan_records(path, records, names, unknown)  # with more room


@dataclass(frozen=True)
class Feature:
    """One feature of some records, or of the rows in them.

    Attributes
    ----------
    cells
        (rows,) where it lies.
    record_of_row
        (rows,) None where each record is a row.
    """

    part: Part
    name: str
    cells: Cells
    record_of_row: I64 | None = None

    def holds(self, kind: int) -> bool:
        """Whether any cell holds this kind."""
        return bool((self.cells.kinds == kind).any())

    def first_item(self) -> pa.DataType:
        """Return the type of the first value; null if there is none."""
        kinds = self.cells.kinds
        held = kinds[(kinds != ABSENT) & (kinds != EMPTY)]
        return next((item for item, kind in KINDS.items() if kind in held[:1]), pa.null())

    def expect(self, kind: int) -> None:
        """Refuse cells that hold another kind."""
        kinds = self.cells.kinds
        self.refuse(
            (kinds != kind) & (kinds != ABSENT) & (kinds != EMPTY),
            lambda row: f"holds {_WHAT[int(kinds[row])]}, not {_WHAT.get(kind, 'nothing')}",
        )

    def refuse(self, rows: NDArray[np.bool_], what: Callable[[int], str]) -> None:
        """Raise an error if there are such rows; `what` is called with the first one."""
        if rows.any():
            row = int(np.argmax(rows))
            record = row if self.record_of_row is None else int(self.record_of_row[row])
            self.part.fail(record, f"feature {self.name[:80]!r} {what(row)}")

    def of_lists(self) -> Feature:
        """Return the features of its feature lists, those of each record after the other."""
        self.expect(FEATURES)
        found = Cells.allocate(int(self.cells.counts.sum()))
        malformed = locate(self.part.records.data, self.cells, found)
        if malformed >= 0:
            self.part.fail(malformed, f"feature list {self.name[:80]!r} is malformed")
        record_of_row = np.repeat(np.arange(len(self.cells.kinds)), self.cells.counts)
        return Feature(self.part, self.name, found, record_of_row)

    def column(self, kind: pa.DataType) -> pa.Array:
        """Return a column with a value, or a list of values, for each cell."""
        counts = self.cells.counts
        if not is_list(kind):
            more = "values; say in tensor_metadata.json that it is a list"
            self.refuse(counts > 1, lambda row: f"has {counts[row]} {more}")
            return spread(self.values(kind), counts > 0)
        values = self.values(kind.value_type)
        stops = np.zeros(len(counts) + 1, np.int32)
        np.cumsum(counts, out=stops[1:])
        missing = (self.cells.kinds == ABSENT) | (self.cells.kinds == EMPTY)
        mask = pa.array(missing) if missing.any() else None
        return pa.ListArray.from_arrays(pa.array(stops), values, type=kind, mask=mask)

    def values(self, item: pa.DataType) -> pa.Array:
        """Return the values of all cells, one after the other."""
        kind = KINDS.get(item, EMPTY)
        self.expect(kind)
        data, total = self.part.records.data, int(self.cells.counts.sum())
        if kind == INTEGERS:
            integers = np.empty(total, np.int64)
            read_integers(data, self.cells, integers)
            return pa.array(integers)
        if kind == FLOATS:
            floats = np.empty(total, np.float32)
            read_floats(data, self.cells, floats.view(np.uint8))
            return pa.array(floats)
        if kind == EMPTY:
            return pa.nulls(0)
        stops = np.empty(total + 1, np.int32)
        text = np.empty(int((self.cells.ends - self.cells.begins).sum()), np.uint8)
        read_bytes(data, self.cells, stops, text)
        buffers = [None, pa.py_buffer(stops), pa.py_buffer(text)]
        values = pa.Array.from_buffers(pa.binary(), total, buffers)
        if item == pa.string() and not is_utf8(values):
            value = next(i for i in range(total) if not is_utf8(values[i : i + 1]))
            row = np.searchsorted(np.cumsum(self.cells.counts), value, "right")
            here = np.arange(len(self.cells.counts)) == row
            self.refuse(here, lambda row: "is text that is not UTF-8")
        return values.view(item)


def spread(values: pa.Array, present: NDArray[np.bool_]) -> pa.Array:
    """Return the values with nulls between them."""
    if present.all():
        return values
    return values.take(pa.array(np.cumsum(present) - 1, mask=~present))


def is_utf8(values: pa.Array) -> bool:
    """Whether all values of a binary array are text."""
    try:
        values.cast(pa.string())
    except pa.ArrowInvalid:
        return False
    return True
