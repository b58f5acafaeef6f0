"""Kernels that turn the protocol buffers of TFRecord files into columns.

A record is decoded in two steps. `scan` walks the bytes once and notes for each feature where
its list lies and how many values it has, in (column, record) arrays of `Cells`; then one call of
a `read_` kernel per column copies the values. Every length is checked against the bytes that
are there before it is used: a file may hold anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gdmix.data.varint import get_varint
from gdmix.glm.compiled import kernel

Bytes = NDArray[np.uint8]
I64 = NDArray[np.int64]

# What a cell holds: nothing, one of the three kinds of list (numbered as in `tf.train.Feature`),
# a list of features, or a feature that says nothing.
ABSENT, BYTES, FLOATS, INTEGERS, FEATURES, EMPTY = range(6)

OK, MALFORMED, TWICE, UNKNOWN = range(4)  # what `scan` found

_FIRST, _SECOND, _ONE_INTEGER, _ONE_FLOAT = 10, 18, 8, 13  # tags: field << 3 | wire type


class Cells(NamedTuple):
    """Where features lie: (columns, records) or, of one column, (rows,)."""

    kinds: NDArray[np.int8]
    begins: I64
    ends: I64
    counts: I64

    @staticmethod
    def allocate(*shape: int) -> Cells:
        """Return cells that are all absent."""
        begins, ends, counts = np.zeros((3, *shape), np.int64)
        return Cells(np.zeros(shape, np.int8), begins, ends, counts)

    def column(self, column: int) -> Cells:
        """Return the cells of one column."""
        return Cells(*(array[column] for array in self))


# A position of -1 says that the bytes make no sense.


@kernel
def _field(data: Bytes, p: int, end: int) -> tuple[int, int, int]:
    """Read a field: its tag, where its content begins, and where it ends, or -1."""
    tag, p = get_varint(data, p, end)
    if p < 0 or tag < 8:
        return tag, p, -1
    wire = tag & 7
    if wire == 2:
        length, p = get_varint(data, p, end)
        if p < 0 or length < 0 or length > end - p:
            return tag, p, -1
        return tag, p, p + length
    if wire == 0:
        return tag, p, get_varint(data, p, end)[1]
    size = 8 if wire == 1 else 4
    if (wire != 1 and wire != 5) or end - p < size:  # groups: nobody writes them any more
        return tag, p, -1
    return tag, p, p + size


@kernel
def _count_varints(data: Bytes, p: int, end: int) -> int:
    count = 0
    run = 0
    while p < end:
        run += 1
        if data[p] < 128:
            count += 1
            run = 0
        elif run == 10:
            return -1
        p += 1
    return count if run == 0 else -1


@kernel
def _count_values(data: Bytes, kind: int, p: int, end: int) -> int:
    """Count the values of a list, packed or not; -1 if it is malformed."""
    count = 0
    while p < end:
        tag, begin, p = _field(data, p, end)
        if p < 0:
            return -1
        if kind == BYTES:
            count += tag == _FIRST
        elif tag == _FIRST and kind == FLOATS:
            if (p - begin) % 4 != 0:
                return -1
            count += (p - begin) // 4
        elif tag == _FIRST:
            more = _count_varints(data, begin, p)
            if more < 0:
                return -1
            count += more
        else:
            count += tag == (_ONE_FLOAT if kind == FLOATS else _ONE_INTEGER)
    return count


@kernel
def _feature(data: Bytes, p: int, end: int) -> tuple[int, int, int, int]:
    """Read a ``Feature``: its kind (-1: malformed), where its list is, number of values."""
    kind, first, last = EMPTY, p, p
    while p < end:
        tag, begin, p = _field(data, p, end)
        if p < 0:
            return -1, first, last, 0
        if tag in (10, 18, 26):
            if kind != EMPTY:  # a list in pieces is legal, but nobody writes that
                return -1, first, last, 0
            kind, first, last = tag >> 3, begin, p
    count = 0
    if kind != EMPTY:
        count = _count_values(data, kind, first, last)
    return (kind if count >= 0 else -1), first, last, count


@kernel
def _count_features(data: Bytes, p: int, end: int) -> int:
    count = 0
    while p < end:
        tag, _, p = _field(data, p, end)
        if p < 0:
            return -1
        count += tag == _FIRST
    return count


@kernel
def _entry(data: Bytes, p: int, end: int) -> tuple[int, int, int, int]:
    """Read an entry of a map: where its key and its value lie; -1 if it is malformed."""
    key, key_end, value, value_end = p, p, p, p
    while p < end:
        tag, begin, p = _field(data, p, end)
        if p < 0:
            return -1, -1, -1, -1
        if tag == _FIRST:
            key, key_end = begin, p
        elif tag == _SECOND:
            value, value_end = begin, p
    return key, key_end, value, value_end


@kernel
def _find(data: Bytes, begin: int, end: int, names: Bytes, stops: I64, guess: int) -> int:
    """Return the column whose name is ``data[begin:end]``, or -1; records tend to be alike."""
    n = len(stops) - 1
    c = guess
    for _ in range(n):
        c = c if c < n else 0
        if stops[c + 1] - stops[c] == end - begin:
            k = 0
            while k < end - begin and names[stops[c] + k] == data[begin + k]:
                k += 1
            if k == end - begin:
                return c
        c += 1
    return -1


@kernel
def scan(
    data: Bytes,
    starts: I64,
    ends: I64,
    first: int,
    names: Bytes,
    stops: I64,
    skip_unknown: bool,
    cells: Cells,
    lengths: I64,
    grouped: NDArray[np.bool_],
) -> tuple[int, int, int, int]:
    """Fill `cells` with the features of the records from `first` on.

    Parameters
    ----------
    names, stops
        Names of columns, one after the other; where each begins, and where the last ends.
    skip_unknown
        False to return at a name that is none of them.
    lengths
        (records,) receives the length of the longest list of values or features.
    grouped
        (records,) receives whether it has feature lists: is a ``SequenceExample``.

    Returns
    -------
    code, record, begin, end
        And where the name it is about lies.
    """
    column = -1
    for r in range(first, len(starts)):
        cells.kinds[:, r] = ABSENT
        lengths[r] = 0
        grouped[r] = False
        p = starts[r]
        while p < ends[r]:
            section, q, p = _field(data, p, ends[r])
            if p < 0:
                return MALFORMED, r, 0, 0
            grouped[r] |= section == _SECOND
            while q < p and section in (_FIRST, _SECOND):
                tag, begin, q = _field(data, q, p)
                if q < 0:
                    return MALFORMED, r, 0, 0
                if tag != _FIRST:
                    continue
                name, name_end, value, value_end = _entry(data, begin, q)
                if name < 0:
                    return MALFORMED, r, 0, 0
                if section == _FIRST:
                    kind, value, value_end, count = _feature(data, value, value_end)
                else:
                    kind, count = FEATURES, _count_features(data, value, value_end)
                if kind < 0 or count < 0:
                    return MALFORMED, r, name, name_end
                lengths[r] = max(lengths[r], count)
                column = _find(data, name, name_end, names, stops, column + 1)
                if column < 0:
                    if not skip_unknown:
                        return UNKNOWN, r, name, name_end
                    continue
                if cells.kinds[column, r] != ABSENT:
                    return TWICE, r, name, name_end
                cells.kinds[column, r] = kind
                cells.begins[column, r] = value
                cells.ends[column, r] = value_end
                cells.counts[column, r] = count
    return OK, 0, 0, 0


@kernel
def locate(data: Bytes, lists: Cells, found: Cells) -> int:
    """Note where the features of one column's lists lie, one after the other.

    Returns
    -------
    int
        The record that holds a malformed one, or -1.
    """
    n = 0
    for r in range(len(lists.kinds)):
        p, end = lists.begins[r], lists.ends[r]
        while lists.kinds[r] == FEATURES and p < end:
            tag, begin, p = _field(data, p, end)
            if tag == _FIRST:
                kind, begin, stop, count = _feature(data, begin, p)
                if kind < 0:
                    return r
                found.kinds[n] = kind
                found.begins[n] = begin
                found.ends[n] = stop
                found.counts[n] = count
                n += 1
    return -1


# What is read below has been scanned: its lengths are good.


@kernel
def read_integers(data: Bytes, cells: Cells, values: I64) -> None:
    """Copy the values of one column, one after the other."""
    n = 0
    for r in range(len(cells.kinds)):
        p, end = cells.begins[r], cells.ends[r]
        while cells.kinds[r] == INTEGERS and p < end:
            tag, begin, p = _field(data, p, end)
            if tag in (_FIRST, _ONE_INTEGER):
                while begin < p:
                    values[n], begin = get_varint(data, begin, p)
                    n += 1


@kernel
def read_floats(data: Bytes, cells: Cells, values: Bytes) -> None:
    """Copy the values of one column, four bytes each, one after the other."""
    n = 0
    for r in range(len(cells.kinds)):
        p, end = cells.begins[r], cells.ends[r]
        while cells.kinds[r] == FLOATS and p < end:
            tag, begin, p = _field(data, p, end)
            if tag in (_FIRST, _ONE_FLOAT):
                for k in range(p - begin):
                    values[n + k] = data[begin + k]
                n += p - begin


@kernel
def read_bytes(data: Bytes, cells: Cells, stops: NDArray[np.int32], values: Bytes) -> None:
    """Copy the values of one column, one after the other, and where each begins."""
    n = 0
    size = 0
    for r in range(len(cells.kinds)):
        p, end = cells.begins[r], cells.ends[r]
        while cells.kinds[r] == BYTES and p < end:
            tag, begin, p = _field(data, p, end)
            if tag == _FIRST:
                for k in range(p - begin):
                    values[size + k] = data[begin + k]
                stops[n] = size
                size += p - begin
                n += 1
    stops[n] = size


def join_names(names: Sequence[str]) -> tuple[Bytes, I64]:
    """Return names of columns as `scan` takes them."""
    encoded = [name.encode() for name in names]
    text = np.frombuffer(b"".join(encoded), np.uint8)
    return text, np.cumsum([0, *map(len, encoded)], dtype=np.int64)
