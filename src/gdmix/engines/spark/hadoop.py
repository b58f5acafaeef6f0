"""Files of any system that Spark can open, as the driver sees them through the JVM."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from gdmix.data.read import format_of
from gdmix.errors import DataError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*:(?://[^/]*)?)(/.*)")
_MAGIC = re.compile(r"[*?\[{]")


@dataclass(frozen=True)
class HadoopFile:
    """A file that Spark can open.

    Attributes
    ----------
    path
        As Spark prints it: ``hdfs://host/rows/part-0.parquet``.
    uri
        The same, characters escaped: as rows tell where they are from.
    size, changed
        Bytes; milliseconds since 1970.
    """

    path: str
    uri: str
    size: int
    changed: int


def is_uri(path: str) -> bool:
    """Whether a path names its file system."""
    return _URI.fullmatch(path) is not None


def split_uri(uri: str) -> tuple[str, str]:
    """Take ``hdfs://host/a/b`` apart into ``hdfs://host`` and ``/a/b``."""
    match = _URI.fullmatch(uri)
    assert match is not None, uri
    return match[1], match[2]


def has_file_system(session: SparkSession) -> bool:
    """Whether Spark takes a path that names no file system to be on another one than local."""
    context = session.sparkContext
    name = context._jsc.hadoopConfiguration().get("fs.defaultFS", "file:///")
    return not str(name).startswith("file:")


def find_files(session: SparkSession, paths: Sequence[str]) -> list[HadoopFile]:
    """Return the data files that paths, folders and patterns stand for: `data.read.expand_paths`.

    Raises
    ------
    DataError
        If one of them stands for nothing.
    """
    found: dict[str, HadoopFile] = {}
    for text in paths:
        with _lookup(text):
            files = list(_files_at(session, text))
        if not files:
            what = (
                "no file matches the pattern" if _MAGIC.search(text) else "no such file or folder"
            )
            raise DataError(f"{text}: {what}")
        found |= {file.path: file for file in files}
    return list(found.values())


def _files_at(session: SparkSession, text: str) -> Iterator[HadoopFile]:
    path, system = _open(session, text)
    for status in sorted(system.globStatus(path) or (), key=lambda s: str(s.getPath())):
        place = str(status.getPath())
        if not status.isDirectory():
            if not _is_hidden(PurePosixPath(place).name) or place == text:
                yield _file(status)
            continue
        inside = []
        entries = system.listFiles(status.getPath(), True)
        while entries.hasNext():
            file = _file(entries.next())
            relative = file.path.removeprefix(place).strip("/")
            hidden = any(_is_hidden(part) for part in PurePosixPath(relative).parts)
            if not hidden and format_of(Path(relative)):
                inside.append(file)
        if not inside and not _MAGIC.search(text):
            raise DataError(
                f"{text}: the folder holds no .parquet, .arrow, .csv, .avro or .tfrecord file"
            )
        yield from sorted(inside, key=lambda file: PurePosixPath(file.path).parts)


def _file(status: Any) -> HadoopFile:
    path = status.getPath()
    uri = str(path.toUri().toString())
    return HadoopFile(str(path), uri, int(status.getLen()), int(status.getModificationTime()))


def _is_hidden(name: str) -> bool:
    return name.startswith(("_", "."))


def read_if_exists(session: SparkSession, text: str) -> bytes | None:
    """Return what a small file holds; None if there is none."""
    with _lookup(text):
        path, system = _open(session, text)
        if not system.exists(path):
            return None
        with HadoopInput(session, text, int(system.getFileStatus(path).getLen())) as file:
            return file.read()


class HadoopInput(io.RawIOBase):
    """A file opened for reading by the driver: for the little that tells what a file holds."""

    def __init__(self, session: SparkSession, text: str, size: int) -> None:
        path, system = _open(session, text)
        self._stream, self._size, self._position = system.open(path), size, 0

    def readable(self) -> bool:
        """Whether it can be read."""
        return True

    def seekable(self) -> bool:
        """Whether any place of it can be read."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """Return the place."""
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """Return the next bytes; all that are left without a size."""
        left = max(self._size - self._position, 0)
        count = left if size is None or size < 0 else min(size, left)
        if not count:
            return b""
        self._stream.seek(self._position)
        content = bytes(self._stream.readNBytes(count))
        self._position += len(content)
        return content

    def close(self) -> None:
        """Close it."""
        if not self.closed:
            self._stream.close()
        super().close()


def _open(session: SparkSession, text: str) -> tuple[Any, Any]:
    context = session.sparkContext
    jvm: Any = context._jvm
    path = jvm.org.apache.hadoop.fs.Path(text)
    return path, path.getFileSystem(context._jsc.hadoopConfiguration())


@contextmanager
def _lookup(text: str) -> Iterator[None]:
    """Say in one line why a file system does not answer."""
    from py4j.protocol import Py4JJavaError
    from pyspark.errors import PySparkException

    try:
        yield
    except Py4JJavaError as error:
        message = str(error.java_exception.getMessage() or error.java_exception)
        raise DataError(f"{text}: can't be looked up: {message.splitlines()[0][:200]}") from None
    except PySparkException as error:
        raise DataError(f"{text}: can't be looked up: {str(error).splitlines()[0][:200]}") from None
