"""Keys, which say whom a row belongs to, as numbers.

A key is an int64 or a string: the value of an entity or grouping column, or a feature's name
and term. A `KeyTable` numbers distinct keys; `Keys` is a column whose keys are numbered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gdmix import memory
from gdmix.data.schema import KEY_HINT, is_key
from gdmix.errors import DataError
from gdmix.glm.compiled import kernel
from gdmix.glm.random_bits import mix

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
_NONE = np.empty(0, np.int64)
_EMPTY = -1
_LEAST_SLOTS = 64


@dataclass(frozen=True)
class Keys:
    """A column of keys.

    Attributes
    ----------
    values
        The distinct keys, ascending: an Arrow array of int64 or large_string.
    codes
        (n,) int32 position of each row's key among them; -1 where it has none.
    kinds
        Types of the columns whose values were joined to keys; none where a column is the key.
    """

    values: pa.Array
    codes: I32
    kinds: tuple[str, ...] = ()

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Keys)
            and self.values.equals(other.values)
            and np.array_equal(self.codes, other.codes)
        )

    __hash__ = None  # type: ignore[assignment]

    def slice(self, rows: slice) -> pa.Array:
        """Return the keys of some rows."""
        codes = self.codes[rows]
        return self.values.take(pa.array(codes, mask=codes < 0))


class KeysBuilder:
    """Numbers a column of keys, piece by piece.

    Parameters
    ----------
    kind
        int64 or large_string.
    """

    def __init__(self, kind: pa.DataType) -> None:
        self._table, self._codes = KeyTable(kind), memory.Stack(np.int32)

    def append(self, keys: pa.Array) -> None:
        """Add the keys of further rows."""
        self._codes.append(self._table.insert(keys))

    def finish(self) -> Keys:
        """Return the column."""
        values, codes = self._table.keys(), self._codes.finish()
        order = pc.sort_indices(values).to_numpy()
        rank = np.empty(order.size + 1, np.int32)
        rank[order] = np.arange(order.size, dtype=np.int32)
        rank[-1] = -1
        _renumber(rank, codes)
        return Keys(values.take(pa.array(order)), codes)


class KeyTable:
    """Distinct keys, numbered in the order in which they came: a hash table.

    Parameters
    ----------
    kind
        int64 or large_string.
    """

    def __init__(self, kind: pa.DataType) -> None:
        self.kind = kind
        self._text = not pa.types.is_integer(kind)
        self._n = 0
        # Number of the key that has this slot; keys whose hash is taken use a later one.
        self._slots = np.full(_LEAST_SLOTS, _EMPTY, np.int32)
        self._hashes = np.empty(0, np.uint64)
        self._integers = np.empty(0, np.int64)
        self._ends = np.zeros(1, np.int64)
        self._bytes = np.empty(0, np.uint8)

    def __len__(self) -> int:
        return self._n

    def insert(self, keys: pa.Array) -> I32:
        """Return the number of each key, -1 of a null; new keys get new numbers."""
        self._make_room(keys)
        return self._look_up(keys, True)

    def find(self, keys: pa.Array) -> I32:
        """Return the number of each key, -1 of a null and of one that never came."""
        return self._look_up(keys, False)

    def keys(self) -> pa.Array:
        """Return the keys in the order of their numbers."""
        if not self._text:
            return pa.array(self._integers[: self._n])
        ends = self._ends[: self._n + 1].copy()
        buffers = [None, pa.py_buffer(ends), pa.py_buffer(self._bytes[: ends[-1]].copy())]
        return pa.Array.from_buffers(pa.large_string(), self._n, buffers)

    def _look_up(self, keys: pa.Array, insert: bool) -> I32:
        codes = np.empty(len(keys), np.int32)
        valid = keys.is_valid().to_numpy(zero_copy_only=False)
        if self._text:
            ends, text = _text_of(keys)
            own = self._slots, self._hashes, self._ends, self._bytes
            self._n = _look_up_texts(*own, self._n, insert, ends, text, valid, codes)
        else:
            values = _view(keys.buffers()[1], np.int64)[keys.offset : keys.offset + len(keys)]
            table = self._slots, self._integers
            self._n = _look_up_integers(*table, self._n, insert, values, valid, codes)
        return codes

    def _make_room(self, keys: pa.Array) -> None:
        """Make room for as many new keys as there may be."""
        most = self._n + len(keys)
        if self._text:
            ends, _ = _text_of(keys)
            self._ends = _at_least(self._ends, most + 1)
            self._hashes = _at_least(self._hashes, most)
            self._bytes = _at_least(self._bytes, int(self._ends[self._n] + ends[-1] - ends[0]))
        else:
            self._integers = _at_least(self._integers, most)
        if 2 * most > self._slots.size:
            self._slots = np.full(1 << (3 * most).bit_length(), _EMPTY, np.int32)
            if self._text:
                _fill_slots_of_texts(self._slots, self._hashes[: self._n])
            else:
                _fill_slots_of_integers(self._slots, self._integers[: self._n])


def _text_of(keys: pa.Array) -> tuple[I64, NDArray[np.uint8]]:
    """Return where each string ends (and the first begins), and the bytes of all."""
    _, ends, data = keys.buffers()
    if not len(keys):
        return np.zeros(1, np.int64), _view(data, np.uint8)
    return _view(ends, np.int64)[keys.offset : keys.offset + len(keys) + 1], _view(data, np.uint8)


def _view(buffer: pa.Buffer | None, kind: Any) -> Any:
    """Return a buffer as numbers that can't be written: kernels are compiled for those."""
    if buffer is None or buffer.size < np.dtype(kind).itemsize:
        view = np.empty(0, kind)
    else:
        view = np.frombuffer(buffer, kind, buffer.size // np.dtype(kind).itemsize)
    view.flags.writeable = False
    return view


def _at_least(array: NDArray[Any], size: int) -> NDArray[Any]:
    if size <= array.size:
        return array
    grown = np.empty(max(size, array.size * 3 // 2), array.dtype)
    grown[: array.size] = array
    return grown


def hash_texts(keys: pa.Array) -> NDArray[np.uint64]:
    """Return a hash of each string's bytes, of a null that of the empty one.

    It is the same on every machine and in every version: columns of saved models, and samples,
    depend on it.

    Parameters
    ----------
    keys
        (n,) large_string.
    """
    hashes = np.empty(len(keys), np.uint64)
    if hashes.size:
        _hash_texts(*_text_of(keys), hashes)
    return hashes


def renumbered(codes: I32, numbers: I32) -> I32:
    """Return the new number of each code, (n,); of a negative code, -1."""
    result: I32 = memory.empty(codes.size, np.int32)
    return np.take(np.append(numbers, np.int32(-1)), codes, out=result, mode="wrap")


def key_type(kind: pa.DataType) -> pa.DataType:
    """Return int64 or large_string: what the keys of a column of this type become."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.int64() if pa.types.is_integer(kind) else pa.large_string()


def as_int64(column: pa.Array) -> tuple[I64, I64]:
    """Return an integer column, nulls as 0, and the positions of values beyond int64."""
    wrapped = pc.fill_null(column.cast(pa.int64(), safe=False), 0).to_numpy()
    if not pa.types.is_uint64(column.type):
        return wrapped, _NONE
    return wrapped, np.flatnonzero(wrapped < 0)


def as_keys(column: pa.Array) -> tuple[pa.Array, I64]:
    """Return an entity or grouping column as int64 or large_string.

    Returns
    -------
    tuple
        The array, and the positions of values that are neither: there it is null.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    target = key_type(column.type)
    try:
        return column.cast(target), _NONE
    except pa.ArrowException:
        rows = as_int64(column)[1] if target == pa.int64() else _not_utf8(column)
        mask = np.zeros(len(column), np.bool_)
        mask[rows] = True
        known = pc.if_else(pa.array(mask), pa.scalar(None, column.type), column)
        return known.cast(target), rows


def key_column(column: pa.ChunkedArray, name: str, source: str) -> Keys:
    """Return an entity or grouping column with its keys numbered.

    Raises
    ------
    DataError
        If a value is neither an int64 nor a string.
    """
    if not is_key(column.type):
        raise DataError(f"{source}: column '{name}' is {column.type}, expected {KEY_HINT}")
    builder, bad = KeysBuilder(key_type(column.type)), 0
    for chunk in column.chunks:
        keys, rows = as_keys(chunk)
        builder.append(keys)
        bad += rows.size
    keys = builder.finish()
    if bad:
        rows_text = "1 row" if bad == 1 else f"{bad:,} rows"
        raise DataError(f"{source}: column '{name}': {rows_text} with {not_a_key(keys.values)}")
    return keys


def not_a_key(keys: pa.Array) -> str:
    """Return what is wrong with values that could not become keys."""
    integers = pa.types.is_integer(keys.type)
    return "an id beyond int64: cast them to text" if integers else "an id that is not UTF-8 text"


def _not_utf8(column: pa.Array) -> I64:
    encoded = column.dictionary_encode()
    bad = [not _decodes(value) for value in encoded.dictionary.to_pylist()]
    codes = encoded.indices.fill_null(-1).to_numpy()
    return np.flatnonzero(np.append(bad, False)[codes])


def _decodes(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


@kernel
def _renumber(rank: I32, codes: I32) -> None:
    for i in range(codes.size):
        codes[i] = rank[codes[i]]


@kernel
def _hash_text(text: NDArray[np.uint8], first: int, last: int) -> np.uint64:
    """Hash a string (Fowler, Noll and Vo, FNV-1a), and mix what comes of it."""
    h = np.uint64(0xCBF29CE484222325)
    for q in range(np.uint64(first), np.uint64(last)):
        h = (h ^ np.uint64(text[q])) * np.uint64(0x100000001B3)
    return mix(h)


@kernel
def _hash_texts(ends: I64, text: NDArray[np.uint8], hashes: NDArray[np.uint64]) -> None:
    for i in range(hashes.size):
        hashes[i] = _hash_text(text, ends[i], ends[i + 1])


@kernel
def _fill_slots_of_integers(slots: I32, integers: I64) -> None:
    mask = np.uint64(slots.size - 1)
    for code in range(integers.size):
        slot = mix(np.uint64(integers[code])) & mask
        while slots[slot] != _EMPTY:
            slot = (slot + np.uint64(1)) & mask
        slots[slot] = code


@kernel
def _fill_slots_of_texts(slots: I32, hashes: NDArray[np.uint64]) -> None:
    mask = np.uint64(slots.size - 1)
    for code in range(hashes.size):
        slot = hashes[code] & mask
        while slots[slot] != _EMPTY:
            slot = (slot + np.uint64(1)) & mask
        slots[slot] = code


@kernel
def _look_up_integers(
    slots: I32,
    integers: I64,
    n: int,
    insert: bool,
    keys: I64,
    valid: NDArray[np.bool_],
    codes: I32,
) -> int:
    """Fill `codes`; return how many keys the table then has."""
    mask = np.uint64(slots.size - 1)
    for i in range(keys.size):
        codes[i] = -1
        if not valid[i]:
            continue
        slot = mix(np.uint64(keys[i])) & mask
        while slots[slot] != _EMPTY and integers[slots[slot]] != keys[i]:
            slot = (slot + np.uint64(1)) & mask
        if slots[slot] == _EMPTY and insert:
            slots[slot] = n
            integers[n] = keys[i]
            n += 1
        codes[i] = slots[slot]
    return n


@kernel
def _look_up_texts(
    slots: I32,
    hashes: NDArray[np.uint64],
    ends: I64,
    data: NDArray[np.uint8],
    n: int,
    insert: bool,
    key_ends: I64,
    keys: NDArray[np.uint8],
    valid: NDArray[np.bool_],
    codes: I32,
) -> int:
    """Fill `codes`; return how many keys the table then has."""
    mask = np.uint64(slots.size - 1)
    for i in range(codes.size):
        codes[i] = -1
        if not valid[i]:
            continue
        first, last = key_ends[i], key_ends[i + 1]
        size = last - first
        h = _hash_text(keys, first, last)
        slot = h & mask
        while slots[slot] != _EMPTY:
            code = slots[slot]
            start = ends[code]
            if hashes[code] == h and ends[code + 1] - start == size:
                same = True
                for q in range(size):
                    same = same and data[start + q] == keys[first + q]
                if same:
                    break
            slot = (slot + np.uint64(1)) & mask
        if slots[slot] == _EMPTY and insert:
            slots[slot] = n
            hashes[n] = h
            start = ends[n]
            for q in range(size):
                data[start + q] = keys[first + q]
            ends[n + 1] = start + size
            n += 1
        codes[i] = slots[slot]
    return n
