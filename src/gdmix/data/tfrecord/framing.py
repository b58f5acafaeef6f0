"""TFRecord files as records of bytes: framing, checksums, compression.

A record is its length (8 bytes), the length's checksum (4), the data, and the data's checksum
(4), all little-endian; checksums are masked CRC-32C. A file may be compressed as a whole.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gdmix.data.write import atomic_file
from gdmix.errors import DataError
from gdmix.glm.compiled import kernel

Bytes = NDArray[np.uint8]
I64 = NDArray[np.int64]
Compression = Literal["gzip", "zlib"]

FRAME = 16  # bytes that a record takes besides its data
_MAX_RECORD = 1 << 30
_CHUNK = 1 << 22
_SUFFIXES: dict[str, Compression] = {".gz": "gzip", ".deflate": "zlib"}
_WINDOW = {"gzip": 16 + zlib.MAX_WBITS, "zlib": zlib.MAX_WBITS}
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS

_OK, _BAD_LENGTH, _BAD_DATA, _TOO_LONG = range(4)
_DEFECTS = {
    _BAD_LENGTH: "the checksum of its length is wrong: it is damaged, or no TFRecord",
    _BAD_DATA: "the checksum of its data is wrong: it is damaged",
    _TOO_LONG: f"it is longer than {_MAX_RECORD:,} bytes",
}


class Records(NamedTuple):
    """Records ``data[starts[i]:ends[i]]`` of a file; before them it has `first` others."""

    data: Bytes
    starts: I64
    ends: I64
    first: int

    def head(self, records: int | None) -> Records:
        """Leave those out that are not among the first `records` of the file."""
        n = len(self.starts) if records is None else max(0, records - self.first)
        return self._replace(starts=self.starts[:n], ends=self.ends[:n])


def read_records(path: Path, limit: int) -> Iterator[Records]:
    """Yield the records of a file, at most `limit` at a time, each part valid until the next.

    Whether the file is compressed is told from its bytes, not from its name.

    Raises
    ------
    DataError
        If the file can't be read, holds nothing, is damaged, or is no TFRecord file.
    """
    try:
        with path.open("rb", buffering=0) as file:
            yield from _read_records(path, _plain(file), limit)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (EOFError, zlib.error) as error:
        raise DataError(f"{path}: its compression is damaged: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror or error}") from None


def _read_records(path: Path, file: Any, limit: int) -> Iterator[Records]:
    data = np.empty(_CHUNK, np.uint8)
    starts, ends = np.empty((2, limit), np.int64)
    begin = end = number = 0
    wanted = 0
    while True:
        data[: end - begin] = data[begin:end].copy() if begin else data[begin:end]
        begin, end = 0, end - begin
        if end == len(data):  # grown as bytes arrive, not to what a length promises
            data = np.concatenate([data, np.empty(min(end, wanted - end), np.uint8)])
        got = file.readinto(data[end:].data)
        if not got:
            break
        end += got
        n = limit
        while n == limit:
            n, begin, wanted, code = _frame(data, begin, end, starts, ends)
            if code != _OK:
                raise DataError(f"{path}: record {number + n + 1}: {_DEFECTS[code]}")
            if n:
                yield Records(data, starts[:n], ends[:n], number)
            number += n
    if end:
        raise DataError(f"{path}: record {number + 1}: is cut off where the file ends")
    if not number:
        raise DataError(f"{path}: is empty: it holds no record")


def _plain(file: BinaryIO) -> BinaryIO | _Inflated:
    head = file.read(12)
    file.seek(0)
    data = np.frombuffer(head.ljust(12, b"\0"), np.uint8)
    if _fixed(data, 8, 4) == masked_checksum(data, 0, 8):
        return file
    is_zlib = head[:1] != b"" and head[0] & 15 == 8 and int.from_bytes(head[:2], "big") % 31 == 0
    return _Inflated(file) if is_zlib or head[:2] == b"\x1f\x8b" else file


class _Inflated:
    """The plain bytes of a gzip or zlib stream, which may have several members."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._member = zlib.decompressobj(_GZIP_OR_ZLIB)
        self._pending = b""

    def readinto(self, view: memoryview) -> int:
        """Fill the view, or less of it where the stream ends."""
        filled = 0
        while filled < len(view):
            self._pending = self._pending or self._file.read(_CHUNK // 16)
            if self._member.eof:
                if not self._pending:
                    break
                self._member = zlib.decompressobj(_GZIP_OR_ZLIB)
            at_end = not self._pending
            out = self._member.decompress(self._pending, len(view) - filled)
            self._pending = self._member.unconsumed_tail or self._member.unused_data
            if at_end and not out and not self._member.eof:
                raise EOFError("cut off where the file ends")
            view[filled : filled + len(out)] = out
            filled += len(out)
        return filled


@contextmanager
def record_file(
    path: Path, compression: Compression | None
) -> Iterator[Callable[[bytes | memoryview], Any]]:
    """Yield a function that writes framed records to a file, which appears when it is whole.

    Parameters
    ----------
    compression
        None: by the name, ``.gz`` or ``.deflate``.
    """
    compression = compression or _SUFFIXES.get(path.suffix.lower())
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        if compression is None:
            yield file.write
            return
        deflate = zlib.compressobj(wbits=_WINDOW[compression])
        yield lambda data: file.write(deflate.compress(data))
        file.write(deflate.flush())


def _checksum_tables() -> I64:
    """Return the tables of CRC-32C, eight bytes at a time ("slicing by eight")."""
    tables = np.zeros((8, 256), np.uint64)
    tables[0] = np.arange(256)
    for _ in range(8):
        odd = tables[0] & np.uint64(1)
        tables[0] = (tables[0] >> np.uint64(1)) ^ (np.uint64(0x82F63B78) * odd)
    for k in range(1, 8):
        low = (tables[k - 1] & np.uint64(255)).astype(np.int64)
        tables[k] = (tables[k - 1] >> np.uint64(8)) ^ tables[0][low]
    return tables.astype(np.int64)


_TABLES = _checksum_tables()


@kernel
def _fixed(data: Bytes, p: int, size: int) -> int:
    value = 0
    for k in range(size):
        value |= int(data[p + k] & 255) << (8 * k)
    return value


@kernel
def masked_checksum(data: Bytes, begin: int, end: int) -> int:
    """Return the masked CRC-32C of ``data[begin:end]``."""
    crc = 0xFFFFFFFF
    p = begin
    while end - p >= 8:
        word = crc ^ _fixed(data, p, 4)
        crc = int(
            _TABLES[7, word & 255]
            ^ _TABLES[6, (word >> 8) & 255]
            ^ _TABLES[5, (word >> 16) & 255]
            ^ _TABLES[4, word >> 24]
            ^ _TABLES[3, data[p + 4]]
            ^ _TABLES[2, data[p + 5]]
            ^ _TABLES[1, data[p + 6]]
            ^ _TABLES[0, data[p + 7]]
        )
        p += 8
    while p < end:
        crc = (crc >> 8) ^ int(_TABLES[0, (crc ^ int(data[p])) & 255])
        p += 1
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


@kernel
def _frame(data: Bytes, begin: int, end: int, starts: I64, ends: I64) -> tuple[int, int, int, int]:
    """Find whole records in ``data[begin:end]``, at most as many as `starts` has room for.

    Returns
    -------
    records, position, wanted, code
        How many; where the next one begins; how many bytes it takes, as far as is known.
    """
    n = 0
    p = begin
    wanted = 12
    while n < len(starts) and end - p >= 12:
        if _fixed(data, p + 8, 4) != masked_checksum(data, p, p + 8):
            return n, p, wanted, _BAD_LENGTH
        length = _fixed(data, p, 8)
        if length < 0 or length > _MAX_RECORD:
            return n, p, wanted, _TOO_LONG
        if end - p < FRAME + length:
            return n, p, FRAME + length, _OK
        stop = p + 12 + length
        if _fixed(data, stop, 4) != masked_checksum(data, p + 12, stop):
            return n, p, wanted, _BAD_DATA
        starts[n] = p + 12
        ends[n] = stop
        n += 1
        p = stop + 4
    return n, p, wanted, _OK
