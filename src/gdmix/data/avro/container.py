"""Avro object container files as blocks of bytes: header, sync markers, codecs."""

from __future__ import annotations

import json
import secrets
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, NoReturn

import numpy as np
import pyarrow as pa

from gdmix.data.varint import put_zigzag
from gdmix.data.write import atomic_file
from gdmix.errors import DataError

AvroCodec = Literal["null", "deflate", "snappy", "zstandard"]
CODECS: tuple[AvroCodec, ...] = ("null", "deflate", "snappy", "zstandard")

_MAGIC = b"Obj\x01"
_SYNC = 16
_MOST_BYTES = 1 << 28  # of a block, compressed or not, and of what the header holds
_PIECE = 1 << 20
_DEFLATE_LEVEL = 3  # on models half the time of the usual 6, and files 4 % larger


class Block(NamedTuple):
    """Rows of a file; the first block has number 1."""

    number: int
    rows: int
    data: bytes


class AvroFile:
    """An open file, its header read.

    Attributes
    ----------
    schema
        As in the file, parsed from JSON.

    Raises
    ------
    DataError
        If the file can't be read, or is no Avro container.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._guarded(), path.open("rb") as file:
            self._size = path.stat().st_size
            self.schema, self._codec, self._sync = self._read_header(file)
            self._first_block = file.tell()

    def blocks(self) -> Iterator[Block]:
        """Yield the blocks, decompressed."""
        with self._guarded(), self.path.open("rb") as file:
            file.seek(self._first_block)
            number = 1
            while file.tell() < self._size:
                where = f"block {number}"
                rows = self._long(file, where)
                packed = self._take(file, self._long(file, where), where)
                if self._take(file, _SYNC, where) != self._sync:
                    self._fail(f"{where}: the sync marker after it is wrong: it is damaged")
                if rows < 0:
                    self._fail(f"{where}: it claims to hold {rows} rows")
                if rows:
                    yield Block(number, rows, self._unpacked(packed, where))
                number += 1

    def fail(self, number: int, what: str) -> NoReturn:
        """Raise an error that names a block."""
        self._fail(f"block {number}: {what}")

    def _fail(self, what: str) -> NoReturn:
        raise DataError(f"{self.path}: {what}")

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise DataError(f"{self.path}: no such file") from None
        except OSError as error:
            self._fail(f"can't be read: {error.strerror or error}")

    def _read_header(self, file: BinaryIO) -> tuple[Any, AvroCodec, bytes]:
        if not self._size:
            self._fail("is empty: 0 bytes")
        if file.read(4) != _MAGIC:
            self._fail("is no Avro file: it does not begin with 'Obj'")
        found: dict[bytes, bytes] = {}
        while count := self._long(file, "header"):
            if count < 0:
                self._long(file, "header")  # the size, of use to who skips it
            for _ in range(abs(count)):
                key = self._take(file, self._long(file, "header"), "header")
                found[key] = self._take(file, self._long(file, "header"), "header")
        codec = found.get(b"avro.codec", b"null").decode(errors="replace") or "null"
        if codec not in CODECS:
            self._fail(f"its codec {codec[:40]!r} is none of {', '.join(CODECS)}")
        try:
            schema = json.loads(found[b"avro.schema"])
        except (KeyError, ValueError, RecursionError):
            self._fail("its header has no schema that is JSON")
        return schema, codec, self._take(file, _SYNC, "header")

    def _long(self, file: BinaryIO, where: str) -> int:
        value = shift = 0
        while shift < 70:
            byte = self._take(file, 1, where)[0]
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value >> 1 ^ -(value & 1)
        self._fail(f"{where}: a number has no end: it is damaged")

    def _take(self, file: BinaryIO, size: int, where: str) -> bytes:
        if size < 0 or size > _MOST_BYTES:
            self._fail(f"{where}: it has a length of {size}: it is damaged")
        if size > self._size - file.tell():
            self._fail(f"{where}: is cut off where the file ends")
        data = file.read(size)
        if len(data) < size:
            self._fail(f"{where}: is cut off where the file ends")
        return data

    def _unpacked(self, packed: bytes, where: str) -> bytes:
        try:
            data = _UNPACK[self._codec](packed)
        except (zlib.error, pa.ArrowException, OSError, ValueError) as error:
            what = " ".join(str(error).split())[:120]
            self._fail(f"{where}: can't be decompressed: {what}")
        return data


@contextmanager
def container_file(
    path: Path, schema: Mapping[str, Any], codec: AvroCodec
) -> Iterator[Callable[[int, memoryview], None]]:
    """Yield a function that writes a block of so many rows; the file appears when it is whole."""
    sync = secrets.token_bytes(_SYNC)
    text = json.dumps(schema).encode()
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        file.write(_MAGIC + _long_bytes(2))
        for value in (b"avro.schema", text, b"avro.codec", codec.encode()):
            file.write(_long_bytes(len(value)) + value)
        file.write(b"\0" + sync)

        def write(rows: int, data: memoryview) -> None:
            packed = _PACK[codec](data)
            file.write(_long_bytes(rows) + _long_bytes(len(packed)))
            file.write(packed)
            file.write(sync)

        yield write


def _long_bytes(value: int) -> bytes:
    out = np.empty(10, np.uint8)
    return out[: put_zigzag(out, 0, value)].tobytes()


def _inflate(packed: bytes) -> bytes:
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    data = engine.decompress(packed, _MOST_BYTES)
    if not engine.eof:
        raise ValueError("it is cut off" if len(data) < _MOST_BYTES else _TOO_LONG)
    return data


def _unsnappy(packed: bytes) -> bytes:
    body, checksum = packed[:-4], packed[-4:]
    size = shift = 0
    for byte in body[:5]:
        size |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            break
    if size > min(_MOST_BYTES, 64 * len(body)):  # snappy never saves more
        raise ValueError(_TOO_LONG)
    data = pa.Codec("snappy").decompress(body, decompressed_size=size, asbytes=True)
    if zlib.crc32(data).to_bytes(4, "big") != checksum:
        raise ValueError("its checksum is wrong")
    return bytes(data)


def _unzstd(packed: bytes) -> bytes:
    pieces, size = [], 0
    with pa.CompressedInputStream(pa.BufferReader(packed), "zstd") as stream:
        while piece := stream.read(_PIECE):
            pieces.append(piece)
            size += len(piece)
            if size > _MOST_BYTES:
                raise ValueError(_TOO_LONG)
    return b"".join(pieces)


def _deflate(data: memoryview) -> bytes:
    engine = zlib.compressobj(_DEFLATE_LEVEL, wbits=-zlib.MAX_WBITS)
    return engine.compress(data) + engine.flush()


def _snappy(data: memoryview) -> bytes:
    packed = pa.Codec("snappy").compress(data, asbytes=True)
    return bytes(packed) + zlib.crc32(data).to_bytes(4, "big")


def _zstd(data: memoryview) -> bytes:
    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


_TOO_LONG = f"it holds more than {_MOST_BYTES:,} bytes"
_UNPACK: dict[str, Callable[[bytes], bytes]] = {
    "null": bytes,
    "deflate": _inflate,
    "snappy": _unsnappy,
    "zstandard": _unzstd,
}
_PACK: dict[str, Callable[[memoryview], bytes]] = {
    "null": bytes,
    "deflate": _deflate,
    "snappy": _snappy,
    "zstandard": _zstd,
}
