"""A schema as the program that reads it, and what was read as Arrow columns."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gdmix.data.avro.schema import AvroType, arrow_type
from gdmix.data.avro.wire import MOST_DEPTH, Memory, Op

I64 = NDArray[np.int64]

_WIDTHS = {"boolean": 1, "int": 4, "float": 4, "enum": 4, "long": 8, "double": 8}
_TEXT = ("string", "bytes", "fixed")
_READ = {
    "boolean": Op.BOOLEAN,
    "int": Op.INT,
    "long": Op.LONG,
    "float": Op.FLOAT,
    "double": Op.DOUBLE,
    "string": Op.TEXT,
    "bytes": Op.TEXT,
    "fixed": Op.FIXED,
    "enum": Op.ENUM,
}
_READ_AS = {
    ("int", "long"): Op.LONG,
    ("int", "double"): Op.LONG_AS_DOUBLE,
    ("long", "double"): Op.LONG_AS_DOUBLE,
    ("float", "double"): Op.FLOAT_AS_DOUBLE,
    ("int", "string"): Op.LONG_AS_TEXT,
    ("long", "string"): Op.LONG_AS_TEXT,
}
_ABSENT = {1: Op.PUSH, 4: Op.PUSH_INT, 8: Op.PUSH_LONG}
_ROOM = 1024  # elements of a region, at first


@dataclass
class Column:
    """Where a column's parts lie: regions, or -1."""

    avro: AvroType
    type: pa.DataType
    valid: int = -1
    ends: int = -1
    data: int = -1
    children: list[Column] = field(default_factory=list)


class ReadProgram:
    """The instructions that read a row.

    Attributes
    ----------
    code
        (instructions, 4), see `wire`.
    columns
        By name, those that are kept; the others are passed over.
    widths
        Bytes of an element of each region.
    begun
        Elements that each region begins with: ends of lists and texts begin with a zero.

    Raises
    ------
    ValueError
        If a column that is kept can't be an Arrow column.
    """

    def __init__(self, record: AvroType, names: Collection[str]) -> None:
        self.columns: dict[str, Column] = {}
        self._code: list[list[int]] = []
        self._widths: list[int] = []
        self._begun: list[int] = []
        for name, avro in record.fields:
            if name in names:
                self.columns[name] = self._column(avro)
            self._read(avro, self.columns.get(name), 0)
        self._emit(Op.ROW_END)
        self.code = np.array(self._code, np.int64)
        self.widths = np.array(self._widths, np.int64)
        self.begun = np.array(self._begun, np.int64)

    def _region(self, width: int, begun: int = 0) -> int:
        self._widths.append(width)
        self._begun.append(begun)
        return len(self._widths) - 1

    def _emit(self, op: Op, region: int = -1, argument: int = 0, target: int = 0) -> int:
        self._code.append([int(op), region, argument, target])
        return len(self._code) - 1

    def _aim(self, instruction: int) -> None:
        self._code[instruction][3] = len(self._code)

    def _column(self, avro: AvroType) -> Column:
        value = avro.value()
        column = Column(value, arrow_type(avro))
        if avro.nullable and value.kind != "null":
            column.valid = self._region(1)
        if value.kind in ("array", "map", *_TEXT):
            column.ends = self._region(4, 1)
        if value.kind in _TEXT:
            column.data = self._region(1)
        elif value.kind in _WIDTHS:
            column.data = self._region(_WIDTHS[value.kind])
        if value.kind == "map":
            column.children.append(self._column(AvroType("string")))
        column.children += [self._column(part) for part in value.parts]
        column.children += [self._column(part) for _, part in value.fields]
        return column

    def _read(self, avro: AvroType, column: Column | None, depth: int) -> None:
        if avro.kind != "union":
            self._read_value(avro, column, depth)
            return
        self._emit(Op.UNION, -1, len(avro.parts))
        branches = [self._emit(Op.GOTO) for _ in avro.parts]
        exits = []
        for branch, part in zip(branches, avro.parts, strict=True):
            self._aim(branch)
            if part.kind == "null" and column:
                self._absent(column)
            elif part.kind != "null":
                if column and column.valid >= 0:
                    self._emit(Op.PUSH, column.valid, 1)
                self._read_value(part, column, depth)
            if branch != branches[-1]:
                exits.append(self._emit(Op.GOTO))
        for leave in exits:
            self._aim(leave)

    def _read_value(self, avro: AvroType, column: Column | None, depth: int) -> None:
        children: list[Column | None] = list(column.children) if column else []
        children = children or [None] * (len(avro.fields) + 2)
        if avro.kind == "null":
            return
        if avro.kind == "record":
            for (_, part), child in zip(avro.fields, children, strict=False):
                self._read(part, child, depth)
        elif avro.kind in ("array", "map"):
            if depth == MOST_DEPTH:
                raise ValueError("its lists are too deep")
            self._emit(Op.ARRAY)
            block = self._emit(Op.BLOCK, column.ends if column else -1)
            if avro.kind == "map":
                self._read(AvroType("string"), children[0], depth + 1)
            self._read(avro.parts[0], children[avro.kind == "map"], depth + 1)
            self._emit(Op.NEXT, target=block)
            self._aim(block)
        else:
            kind = column.avro.kind if column else avro.kind
            op = _READ_AS.get((avro.kind, kind), _READ[avro.kind])
            region = -1
            if column:
                region = column.ends if kind in _TEXT else column.data
            self._emit(op, region, avro.size or len(avro.symbols))

    def _absent(self, column: Column) -> None:
        """Add what stands for a value that is not there: all regions stay in step."""
        if column.valid >= 0:
            self._emit(Op.PUSH, column.valid, 0)
        if column.ends >= 0:
            self._emit(Op.REPEAT, column.ends)
        elif column.data >= 0:
            self._emit(_ABSENT[self._widths[column.data]], column.data)
        else:
            for child in column.children:
                self._absent(child)


class Rows:
    """Rows that are being read.

    Attributes
    ----------
    memory
        The regions, for `decode_rows`.
    count
        Number of rows.
    """

    def __init__(self, program: ReadProgram) -> None:
        self._program = program
        room = np.full(len(program.widths), _ROOM, np.int64)
        self._begin(room)

    @property
    def size(self) -> int:
        """Bytes of memory."""
        return len(self.memory.octets)

    def grow(self, region: int) -> None:
        """Make room in a region, and in those that will soon want it."""
        old, widths = self.memory, self._program.widths
        wanted = 2 * old.counts > old.sizes
        wanted[region] = True
        self._allocate(np.where(wanted, 2 * old.sizes, old.sizes), old.counts)
        for r, width in enumerate(widths):
            size, source, goal = width * old.counts[r], width * old.bases[r], self._bytes[r]
            self.memory.octets[goal : goal + size] = old.octets[source : source + size]

    def take(self) -> list[pa.Array]:
        """Return the columns, and begin anew.

        Raises
        ------
        ValueError
            Naming a column whose strings are not UTF-8.
        """
        arrays = []
        for name, column in self._program.columns.items():
            try:
                arrays.append(self._array(column, self.count))
            except pa.ArrowInvalid:
                raise ValueError(f"column {name!r} has a string that is not UTF-8") from None
        self._begin(self.memory.sizes)
        return arrays

    def _begin(self, sizes: I64) -> None:
        self.count = 0
        self._allocate(sizes, self._program.begun.copy())
        for r in np.flatnonzero(self._program.begun):
            self.memory.ints[self.memory.bases[r]] = 0

    def _allocate(self, sizes: I64, counts: I64) -> None:
        widths = self._program.widths
        ends = np.cumsum((sizes * widths + 7) // 8 * 8)
        self._bytes = np.concatenate([[0], ends])[: len(ends)]
        octets = np.empty(int(ends[-1]) if len(ends) else 0, np.uint8)
        self.memory = Memory.of(octets, self._bytes // widths, sizes, counts)

    def _array(self, column: Column, n: int) -> pa.Array:
        kind = column.avro.kind
        if kind == "null":
            return pa.nulls(n)
        present = self._elements(column.valid, n) if column.valid >= 0 else None
        valid = None if present is None or present.all() else _bits(present)
        if kind == "record":
            children = [self._array(c, n) for c in column.children]
            return pa.Array.from_buffers(column.type, n, [valid], children=children)
        if column.ends >= 0:
            ends = self._elements(column.ends, 4 * (n + 1))
            last = int(ends.view(np.int32)[-1])
            buffers = [valid, pa.py_buffer(ends)]
            if kind in _TEXT:
                buffers.append(pa.py_buffer(self._elements(column.data, last)))
                text = pa.Array.from_buffers(pa.binary(), n, buffers)
                return text.cast(column.type)
            children = [self._array(c, last) for c in column.children]
            if kind == "map":
                entry = pa.struct([column.type.key_field, column.type.item_field])
                children = [pa.Array.from_buffers(entry, last, [None], children=children)]
            return pa.Array.from_buffers(column.type, n, buffers, children=children)
        values = self._elements(column.data, _WIDTHS[kind] * n)
        if kind == "boolean":
            return pa.Array.from_buffers(pa.bool_(), n, [valid, _bits(values)])
        if kind == "enum":
            codes = pa.Array.from_buffers(pa.int32(), n, [valid, pa.py_buffer(values)])
            return pa.array(column.avro.symbols, pa.string()).take(codes)
        return pa.Array.from_buffers(column.type, n, [valid, pa.py_buffer(values)])

    def _elements(self, region: int, size: int) -> NDArray[np.uint8]:
        begin = int(self._bytes[region])
        return self.memory.octets[begin : begin + size]


def _bits(flags: NDArray[np.uint8]) -> pa.Buffer:
    return pa.py_buffer(np.packbits(flags, bitorder="little"))
