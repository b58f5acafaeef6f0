"""Avro object container files as Arrow record batches.

int and long become int32 and int64, arrays lists, records structs, maps maps, enums strings,
fixed values bytes; a union with null is a column with nulls. A union of several other types is
read as the one that holds them all: numbers as int64 or float64, integers beside strings as
strings. Logical types are read as what they are made of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from gdmix.data.avro.columns import ReadProgram, Rows
from gdmix.data.avro.container import AvroFile
from gdmix.data.avro.schema import AvroType, arrow_field, parse_schema
from gdmix.data.avro.wire import (
    BAD_BRANCH,
    BAD_COUNT,
    BAD_INT,
    BAD_LENGTH,
    BAD_SYMBOL,
    CUT_OFF,
    GROW,
    OK,
    decode_rows,
)
from gdmix.errors import DataError, did_you_mean

_DEFECTS = {
    CUT_OFF: "a value goes beyond its end",
    BAD_LENGTH: "a string or list has a length that can't be",
    BAD_BRANCH: "a union has a branch that its schema does not have",
    BAD_COUNT: "a list has a number of items that can't be",
    BAD_SYMBOL: "an enum has a symbol that its schema does not have",
    BAD_INT: "an int is beyond 32 bits",
}
_BATCH_BYTES = 1 << 26
_MOST_BYTES = 1 << 30


def read_schema(path: Path) -> pa.Schema:
    """Return the columns of a file.

    Raises
    ------
    DataError
        If it is no Avro file of records, or a column can't be an Arrow column.
    """
    return _schema_of(path, _record_of(path, AvroFile(path)), None)


def read_batches(
    path: Path, columns: Sequence[str] | None = None, batch_rows: int = 1 << 16
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a file, block by block.

    Parameters
    ----------
    columns
        Those to read, in their order; None for all.
    batch_rows
        The most rows a batch may have; large rows make smaller batches.

    Raises
    ------
    DataError
        Naming the block, if the file is damaged.
    """
    file = AvroFile(path)
    record = _record_of(path, file)
    schema = _schema_of(path, record, columns)
    try:
        program = ReadProgram(record, schema.names)
    except ValueError as error:
        raise DataError(f"{path}: its Avro schema can't be used: {error}") from None
    rows = Rows(program)
    before = np.empty_like(program.widths)
    first = 1

    def take(block: int) -> pa.RecordBatch:
        try:
            arrays = dict(zip(program.columns, rows.take(), strict=True))
        except ValueError as error:
            where = f"block {block}" if block == first else f"blocks {first} to {block}"
            raise DataError(f"{path}: {where}: {error}") from None
        return pa.RecordBatch.from_arrays([arrays[n] for n in schema.names], schema=schema)

    number = 1
    for number, left, packed in file.blocks():
        data = np.frombuffer(packed, np.uint8)
        if left > len(data):  # each row takes a byte or more
            file.fail(number, f"it claims to hold {left:,} rows in {len(data):,} bytes")
        p = 0
        while left:
            if not rows.count:
                first = number
            some = min(left, batch_rows - rows.count)
            code, n, p, region = decode_rows(data, p, some, program.code, rows.memory, before)
            rows.count += n
            left -= n
            if rows.count == batch_rows or (rows.count and rows.size > _BATCH_BYTES and code):
                yield take(number)
            elif code == GROW and rows.size < _MOST_BYTES:
                rows.grow(region)
            if code not in (OK, GROW):
                file.fail(number, f"{_DEFECTS[code]}: it is damaged")
            if code == GROW and rows.size >= _MOST_BYTES:
                file.fail(number, f"a row takes more than {_MOST_BYTES:,} bytes")
        if p != len(data):
            file.fail(number, "it has bytes after its last row")
    if rows.count:
        yield take(number)


def _record_of(path: Path, file: AvroFile) -> AvroType:
    record = parse_schema(file.schema, str(path))
    if not record.least:
        raise DataError(f"{path}: its Avro schema can't be used: its rows take no bytes")
    return record


def _schema_of(path: Path, record: AvroType, columns: Sequence[str] | None) -> pa.Schema:
    types = dict(record.fields)
    fields = []
    for name in types if columns is None else columns:
        if name not in types:
            raise DataError(f"{path}: has no column '{name}'{did_you_mean(name, types)}")
        try:
            fields.append(arrow_field(name, types[name]))
        except ValueError as error:
            raise DataError(f"{path}: column {name[:80]!r}: {error}") from None
    return pa.schema(fields)
