"""Arrow rows as TFRecord files of ``tf.train.Example`` and ``SequenceExample``.

Integers and booleans become int64 lists, floating-point numbers float lists (a TFRecord holds
single precision only), strings and bytes bytes lists; a null is an absent feature.

Each column is encoded by itself, as one `Feature` after the other; then `_weave` puts them
together record by record.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat
from numpy.typing import NDArray

from gdmix.data.schema import KEY_HINT, is_bytes, is_key, is_list, is_text
from gdmix.data.tfrecord.framing import (
    FRAME,
    Bytes,
    Compression,
    masked_checksum,
    record_file,
)
from gdmix.data.tfrecord.wire import BYTES, FLOATS, I64, INTEGERS, join_names
from gdmix.data.varint import put_varint
from gdmix.errors import DataError, did_you_mean
from gdmix.glm.compiled import kernel

Bools = NDArray[np.bool_]

_ROWS = 1 << 14  # encoded at a time
_HEADERS = 48  # bytes that lengths and tags around a value, or a list of them, take at most


def write_examples(
    path: Path, batches: Iterable[pa.RecordBatch], compression: Compression | None = None
) -> None:
    """Write one ``Example`` for each row.

    Parameters
    ----------
    compression
        None to tell it from the name: ``.gz`` is gzip, ``.deflate`` zlib, any other none.

    Raises
    ------
    DataError
        If a column is of a type that an ``Example`` can't hold, or has a null within a list.
    OutputError
        If the file can't be written.
    """
    with record_file(path, compression) as write:
        for batch in batches:
            for first in range(0, batch.num_rows, _ROWS):
                rows = batch.slice(first, _ROWS)
                names = rows.schema.names
                pieces = [_encode(path, n, _flat(path, n, rows.column(n))) for n in names]
                write(_weave_all(names, pieces, len(names), False).data)


def write_sequence_examples(
    path: Path,
    batches: Iterable[pa.RecordBatch],
    entity_column: str,
    compression: Compression | None = None,
) -> None:
    """Write one ``SequenceExample`` for each entity, whose rows must follow one another.

    Its context has the entity's id, and of each column of scalars a list with the value of
    each row; each column of lists is a feature list with one feature for each row.

    Raises
    ------
    DataError
        As `write_examples`; also if an entity is null, or a column of scalars is null in some
        of an entity's rows but not in all.
    OutputError
        If the file can't be written.
    """
    with record_file(path, compression) as write:
        for rows, stops in _whole_entities(path, batches, entity_column):
            write(_encode_entities(path, rows, stops, entity_column).data)


class _Flat(NamedTuple):
    """A column: item i is ``values[stops[i]:stops[i + 1]]``, or is absent."""

    values: pa.Array
    stops: I64
    present: Bools


class _Pieces(NamedTuple):
    """An encoded column: item i is ``data[stops[i]:stops[i + 1]]``; nothing if it is absent."""

    data: Bytes
    stops: I64


def _flat(path: Path, name: str, column: pa.Array) -> _Flat:
    if pat.is_dictionary(column.type):
        column = column.dictionary_decode()
    present = np.asarray(pc.is_valid(column))
    if is_list(column.type) or pat.is_fixed_size_list(column.type):
        lengths = np.asarray(pc.fill_null(pc.list_value_length(column), 0))
        values = column.flatten()
        if pat.is_dictionary(values.type):
            values = values.dictionary_decode()
        if values.null_count:
            raise DataError(f"{path}: column '{name}' has a null within a list")
    else:
        lengths, values = present, column.drop_null()
    return _Flat(values, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), present)


def _encode(path: Path, name: str, flat: _Flat, in_list: bool = False) -> _Pieces:
    kind, values, n = flat.values.type, flat.values, len(flat.present)
    stops = np.zeros(n + 1, np.int64)
    room = 10 * len(values) + _HEADERS * n
    if pat.is_integer(kind) or pat.is_boolean(kind):
        try:
            integers = values.cast(pa.int64()).to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid:
            raise DataError(f"{path}: column '{name}' has an integer beyond 64 bits") from None
        out = np.empty(room, np.uint8)
        _encode_integers(integers, flat.stops, flat.present, in_list, out, stops)
    elif pat.is_floating(kind) or pat.is_null(kind):
        floats = values.cast(pa.float32()).to_numpy(zero_copy_only=False).view(np.uint8)
        out = np.empty(room, np.uint8)
        _encode_floats(floats, flat.stops, flat.present, in_list, out, stops)
    elif is_text(kind) or is_bytes(kind):
        values = values.cast(pa.large_binary())
        _, ends, text = values.buffers()
        ends = np.frombuffer(ends, np.int64)[values.offset :][: len(values) + 1]
        text = np.frombuffer(text or b"", np.uint8)
        out = np.empty(room + int(ends[-1] - ends[0]), np.uint8)
        _encode_bytes(text, ends, flat.stops, flat.present, in_list, out, stops)
    else:
        raise DataError(f"{path}: column '{name}' is {kind}, which no tf.train.Feature can hold")
    return _Pieces(out[: stops[-1]], stops)


def _weave_all(
    names: Sequence[str], columns: Sequence[_Pieces], in_context: int, grouped: bool
) -> Bytes:
    """Return framed records; of each column, there is a piece for each."""
    joined = np.concatenate([np.zeros(0, np.uint8), *(c.data for c in columns)])
    begins = np.cumsum([0, *(len(c.data) for c in columns)])
    stops = np.stack([c.stops + begin for c, begin in zip(columns, begins, strict=False)])
    text, name_stops = join_names(names)
    room = FRAME + _HEADERS + len(text) + _HEADERS * len(names)
    out = np.empty(len(joined) + room * (stops.shape[1] - 1), np.uint8)
    return out[: _weave(joined, stops, text, name_stops, in_context, grouped, out)]


def _whole_entities(
    path: Path, batches: Iterable[pa.RecordBatch], entity: str
) -> Iterator[tuple[pa.RecordBatch, I64]]:
    """Yield rows of whole entities, and where each of these begins, and the last ends."""
    waiting: list[pa.RecordBatch] = []
    for whole in batches:
        names = whole.schema.names
        if entity not in names:
            hint = did_you_mean(entity, names)
            raise DataError(f"{path}: entity column '{entity}' is missing{hint}")
        for first in range(0, whole.num_rows, _ROWS):
            batch = whole.slice(first, _ROWS)
            starts = _starts(path, batch.column(entity), entity)
            if waiting and waiting[-1].column(entity)[-1] == batch.column(entity)[0]:
                starts = starts[1:]
            cut = int(starts[-1]) if len(starts) else batch.num_rows
            waiting.append(batch.slice(0, cut))
            if len(starts):
                yield from _joined(path, waiting, entity)
                waiting = [batch.slice(cut)]
    yield from _joined(path, waiting, entity)


def _joined(
    path: Path, waiting: list[pa.RecordBatch], entity: str
) -> Iterator[tuple[pa.RecordBatch, I64]]:
    rows = pa.Table.from_batches(waiting).combine_chunks() if waiting else pa.table({})
    for batch in rows.to_batches():
        starts = _starts(path, batch.column(entity), entity)
        yield batch, np.append(starts, batch.num_rows)


def _starts(path: Path, entities: pa.Array, name: str) -> I64:
    """Return the rows at which the entity changes, with the first."""
    if not is_key(entities.type):
        raise DataError(f"{path}: entity column '{name}' is {entities.type}, expected {KEY_HINT}")
    if entities.null_count:
        raise DataError(f"{path}: entity column '{name}' has a null")
    if pat.is_dictionary(entities.type):
        entities = entities.dictionary_decode()
    changes = np.asarray(pc.not_equal(entities[1:], entities[:-1]))
    return np.concatenate([[0], np.flatnonzero(changes) + 1])


def _encode_entities(path: Path, rows: pa.RecordBatch, stops: I64, entity: str) -> Bytes:
    context, lists = {}, {}
    for name in rows.schema.names:
        column = rows.column(name)
        flat = _flat(path, name, column.take(stops[:-1]) if name == entity else column)
        if name == entity:
            context[name] = _encode(path, name, flat)
        elif is_list(column.type) or pat.is_fixed_size_list(column.type):
            pieces = _encode(path, name, flat, in_list=True)
            lists[name] = _Pieces(pieces.data, pieces.stops[stops])
        else:
            present = np.add.reduceat(flat.present, stops[:-1], dtype=np.int64)
            partly = np.flatnonzero((present > 0) & (present < np.diff(stops)))
            if partly.size:
                which = f"{entity} {rows.column(entity)[int(stops[partly[0]])].as_py()!r}"
                raise DataError(f"{path}: column '{name}' is null in some rows of {which}")
            context[name] = _encode(path, name, _Flat(flat.values, flat.stops[stops], present > 0))
    return _weave_all([*context, *lists], [*context.values(), *lists.values()], len(context), True)


# Kernels. `out` has room for the largest encoding of what is put into it.


@kernel
def _size(value: int) -> int:
    """Return how many bytes a varint of this length or count takes."""
    size = 1
    while value > 127:
        value >>= 7
        size += 1
    return size


@kernel
def _put_header(out: Bytes, p: int, tag: int, length: int) -> int:
    out[p] = tag
    return put_varint(out, p + 1, length)


@kernel
def _put_bytes(out: Bytes, p: int, data: Bytes, begin: int, end: int) -> int:
    for k in range(end - begin):
        out[p + k] = data[begin + k]
    return p + end - begin


@kernel
def _open_feature(out: Bytes, p: int, kind: int, length: int, in_list: bool) -> int:
    """Begin a ``Feature`` with a list of this length; in a ``FeatureList`` if so asked."""
    if in_list:
        p = _put_header(out, p, 10, 1 + _size(length) + length)
    return _put_header(out, p, 8 * kind + 2, length)


@kernel
def _open_packed(out: Bytes, p: int, kind: int, length: int, in_list: bool) -> int:
    if length == 0:
        return _open_feature(out, p, kind, 0, in_list)
    p = _open_feature(out, p, kind, 1 + _size(length) + length, in_list)
    return _put_header(out, p, 10, length)


@kernel
def _encode_integers(
    values: I64, stops: I64, present: Bools, in_list: bool, out: Bytes, out_stops: I64
) -> None:
    p = 0
    for i in range(len(present)):
        if present[i]:
            length = 0
            for k in range(stops[i], stops[i + 1]):
                length += 10 if values[k] < 0 else _size(values[k])
            p = _open_packed(out, p, INTEGERS, length, in_list)
            for k in range(stops[i], stops[i + 1]):
                p = put_varint(out, p, values[k])
        elif in_list:
            p = _put_header(out, p, 10, 0)
        out_stops[i + 1] = p


@kernel
def _encode_floats(
    values: Bytes, stops: I64, present: Bools, in_list: bool, out: Bytes, out_stops: I64
) -> None:
    p = 0
    for i in range(len(present)):
        if present[i]:
            begin, end = 4 * stops[i], 4 * stops[i + 1]
            p = _open_packed(out, p, FLOATS, end - begin, in_list)
            p = _put_bytes(out, p, values, begin, end)
        elif in_list:
            p = _put_header(out, p, 10, 0)
        out_stops[i + 1] = p


@kernel
def _encode_bytes(
    values: Bytes,
    ends: I64,
    stops: I64,
    present: Bools,
    in_list: bool,
    out: Bytes,
    out_stops: I64,
) -> None:
    p = 0
    for i in range(len(present)):
        if present[i]:
            length = 0
            for k in range(stops[i], stops[i + 1]):
                size = ends[k + 1] - ends[k]
                length += 1 + _size(size) + size
            p = _open_feature(out, p, BYTES, length, in_list)
            for k in range(stops[i], stops[i + 1]):
                p = _put_header(out, p, 10, ends[k + 1] - ends[k])
                p = _put_bytes(out, p, values, ends[k], ends[k + 1])
        elif in_list:
            p = _put_header(out, p, 10, 0)
        out_stops[i + 1] = p


@kernel
def _put_section(
    out: Bytes,
    p: int,
    tag: int,
    record: int,
    first: int,
    last: int,
    data: Bytes,
    stops: I64,
    names: Bytes,
    name_stops: I64,
) -> int:
    """Write a map from the names of columns `first` to `last` to their pieces."""
    total = 0
    for c in range(first, last):
        name, piece = name_stops[c + 1] - name_stops[c], stops[c, record + 1] - stops[c, record]
        entry = 2 + _size(name) + name + _size(piece) + piece
        if piece > 0:
            total += 1 + _size(entry) + entry
    p = _put_header(out, p, tag, total)
    for c in range(first, last):
        name, piece = name_stops[c + 1] - name_stops[c], stops[c, record + 1] - stops[c, record]
        if piece > 0:
            p = _put_header(out, p, 10, 2 + _size(name) + name + _size(piece) + piece)
            p = _put_header(out, p, 10, name)
            p = _put_bytes(out, p, names, name_stops[c], name_stops[c + 1])
            p = _put_header(out, p, 18, piece)
            p = _put_bytes(out, p, data, stops[c, record], stops[c, record + 1])
    return p


@kernel
def _put_fixed(out: Bytes, p: int, value: int, size: int) -> None:
    for k in range(size):
        out[p + k] = (value >> (8 * k)) & 255


@kernel
def _weave(
    data: Bytes,
    stops: I64,
    names: Bytes,
    name_stops: I64,
    in_context: int,
    grouped: bool,
    out: Bytes,
) -> int:
    """Write framed records, each of the pieces of all columns; return the size."""
    p = 0
    columns = len(name_stops) - 1
    for r in range(stops.shape[1] - 1):
        begin = p + 12
        end = _put_section(out, begin, 10, r, 0, in_context, data, stops, names, name_stops)
        if grouped:  # even without any, to tell it from an Example
            end = _put_section(out, end, 18, r, in_context, columns, data, stops, names, name_stops)
        _put_fixed(out, p, end - begin, 8)
        _put_fixed(out, p + 8, masked_checksum(out, p, p + 8), 4)
        _put_fixed(out, end, masked_checksum(out, begin, end), 4)
        p = end + 4
    return p
