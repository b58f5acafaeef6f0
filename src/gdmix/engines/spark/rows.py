"""Rows that tasks can read, and those that they read with our own readers.

`SparkRows` is what the engine sees. Here are its kinds in which a task opens the part that it is
given: a file, some row groups of one, the bytes of one, or a piece of a table.
"""

from __future__ import annotations

import socket
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pat

from gdmix.data.read import (
    RowSource,
    as_schema,
    check_columns,
    format_of,
    open_file,
    open_files,
    open_row_groups,
)
from gdmix.data.read_records import AvroRows, tfrecord_schema
from gdmix.data.tfrecord.metadata import TensorMetadata
from gdmix.engines.spark.session import TaskErrors, slots
from gdmix.engines.spark.tasks.kinds import ROW
from gdmix.errors import DataError

if TYPE_CHECKING:
    from pyspark import RDD
    from pyspark.sql import SparkSession


Tables = Iterator[pa.Table]
Pieces = Iterable[tuple[int, bytes]]
TableFunction = Callable[[int, Tables], Pieces]

_BYTES_PER_PARTITION = 1 << 27
_BYTES_PER_PART = 1 << 25
_ROWS_PER_PART = 1 << 17


class SparkRows(ABC):
    """Rows that tasks can read.

    Attributes
    ----------
    session
        That reads them.
    label
        What messages call them.
    schema
        Names and types of all columns: those that `data.read` finds.
    """

    def __init__(self, session: SparkSession, label: str, schema: pa.Schema) -> None:
        self.session, self.label, self.schema = session, label, schema
        self._counts: list[int] | None = None
        self._schemas: Mapping[Path, pa.Schema] = {}  # of single files
        self._conflicts: Mapping[str, str] = {}  # between them

    def map_tables(
        self,
        function: TableFunction,
        columns: Sequence[str],
        errors: TaskErrors,
        numbered: bool = False,
    ) -> RDD[tuple[int, bytes]]:
        """Return what a function makes of the rows of each partition.

        Parameters
        ----------
        function
            Called in tasks with the number of the partition and its tables, which have these
            columns, of the schema's types; yields pieces and where each is meant to go. It is not
            called for a partition without tables.
        numbered
            Whether a column `ROW` is added: the row's number within the source, as locally.

        Raises
        ------
        DataError
            If a file lacks a column, or has it of a type that does not go with another's.
        """
        check_columns(self.label, self._schemas, self._conflicts, columns)
        first = [0, *accumulate(self._counted(errors, columns))] if numbered else None
        return self._map(function, list(columns), errors, first)

    def count(self, errors: TaskErrors) -> int:
        """Return the number of rows, which may take a job."""
        return sum(self._counted(errors, ()))

    def _counted(self, errors: TaskErrors, columns: Sequence[str]) -> list[int]:
        """Return the number of rows of each part, given the columns that will be read."""
        if self._counts is None:
            self._counts = self._count(errors)
        return self._counts

    @abstractmethod
    def _map(
        self,
        function: TableFunction,
        columns: list[str],
        errors: TaskErrors,
        first: list[int] | None,
    ) -> RDD[tuple[int, bytes]]:
        """Return the pieces.

        Parameters
        ----------
        first
            Number of each part's first row, if rows are to be numbered.
        """

    @abstractmethod
    def _count(self, errors: TaskErrors) -> list[int]:
        """Find the number of rows of each part."""


class Part(ABC):
    """What one task opens."""

    @abstractmethod
    def tables(self, columns: Sequence[str]) -> Tables:
        """Yield these columns."""


class PartRows(SparkRows):
    """Rows in parts that go to tasks as they are."""

    @abstractmethod
    def parts(self, columns: list[str]) -> RDD[tuple[int, Part]]:
        """Return the parts, each with its number in the order of the rows."""

    def _map(
        self,
        function: TableFunction,
        columns: list[str],
        errors: TaskErrors,
        first: list[int] | None,
    ) -> RDD[tuple[int, bytes]]:
        task = partial(_map_parts, function, columns, self.schema, first)
        return self.parts(columns).mapPartitionsWithIndex(errors.guard(task))

    def _count(self, errors: TaskErrors) -> list[int]:
        column = self._cheapest()
        counts = self.parts(column).mapPartitions(errors.guard(partial(_count_rows, column)))
        return [size for _, size in sorted(errors.run(counts.collect))]

    def _cheapest(self) -> list[str]:
        plain = [field.name for field in self.schema if not pat.is_nested(field.type)]
        return (plain or self.schema.names)[:1]


def _map_parts(
    function: TableFunction,
    columns: list[str],
    schema: pa.Schema,
    first: list[int] | None,
    index: int,
    parts: Iterable[tuple[int, Part]],
) -> Pieces:
    def tables() -> Tables:
        for number, part in parts:
            row = first[number] if first is not None else 0
            for table in part.tables(columns):
                table = as_schema(table, schema)
                yield table if first is None else with_row_numbers(table, row)
                row += table.num_rows

    return call_with(function, index, tables())


def call_with(function: TableFunction, index: int, tables: Tables) -> Pieces:
    """Call a function with the tables of a partition, if there are any."""
    head = next(tables, None)
    if head is None:
        return ()

    def all_tables() -> Tables:
        yield head
        yield from tables

    return function(index, all_tables())


def with_row_numbers(table: pa.Table, first: int) -> pa.Table:
    """Return a table with its rows' numbers, given the first one's."""
    return table.append_column(ROW, pa.array(np.arange(first, first + table.num_rows)))


def _count_rows(columns: list[str], parts: Iterable[tuple[int, Part]]) -> Iterator[tuple[int, int]]:
    for number, part in parts:
        yield number, sum(table.num_rows for table in part.tables(columns))


def distribute(
    session: SparkSession, items: Sequence[Any], sizes: Sequence[int], partitions: int | None
) -> RDD[Any]:
    """Return items, numbered, in partitions of about the same size that hold neighbours.

    Parameters
    ----------
    sizes
        Bytes of each item.
    partitions
        How many; default: by the sizes, at least one per slot.
    """
    total = max(sum(sizes), 1)
    wanted = partitions or max(slots(session), -(-total // _BYTES_PER_PARTITION))
    n = max(1, min(wanted, len(items)))
    groups: list[list[Any]] = [[] for _ in range(n)]
    middle = 0.0
    for number, (item, size) in enumerate(zip(items, sizes, strict=True)):
        groups[min(int((middle + size / 2) * n / total), n - 1)].append((number, item))
        middle += size
    return session.sparkContext.parallelize(groups, n).flatMap(_members)


def _members(group: list[Any]) -> list[Any]:
    return group


@dataclass(frozen=True)
class FilePart(Part):
    """A file that all machines see, or some of its row groups.

    Attributes
    ----------
    name
        What messages call it.
    path
        The same, absolute: a task has another working directory.
    """

    name: Path
    path: Path
    size: int
    rows: int | None = None
    known: pa.Schema | AvroRows | None = None
    groups: range | None = None

    def tables(self, columns: Sequence[str]) -> Tables:
        """Yield these columns."""
        if not self.path.exists():
            raise DataError(
                f"{self.path}: {socket.gethostname()} does not see it; put it where all machines "
                "do, or give a URI such as hdfs://HOST/PATH"
            )
        with renamed(self.path, self.name):
            yield from self._open().stream(columns)

    def _open(self) -> RowSource:
        if self.groups is not None:
            return open_row_groups(self.path, self.groups)
        return open_file(self.path, moved(self.known, self.path))


class FileRows(PartRows):
    """Files at plain paths, which all machines see."""

    def __init__(self, session: SparkSession, paths: Sequence[str], partitions: int | None) -> None:
        files = open_files(paths)
        super().__init__(session, files.label, files.schema)
        self._partitions = partitions
        self._schemas = {path: part.schema for path, part in files.parts.items()}
        self._conflicts = files.conflicts
        self._files: list[FilePart] = []
        for path in files.parts:
            if format_of(path) == "parquet":
                self._files += _row_groups(path)
            else:
                size = path.stat().st_size
                known = files.records.get(path)
                self._files.append(FilePart(path, path.absolute(), size, known=known))
        rows = [part.rows for part in self._files if part.rows is not None]
        self._counts = rows if len(rows) == len(self._files) else None

    def parts(self, columns: list[str]) -> RDD[tuple[int, Part]]:
        """Return the files, large Parquet files in several parts."""
        sizes = [part.size for part in self._files]
        return distribute(self.session, self._files, sizes, self._partitions)


def _row_groups(path: Path) -> list[FilePart]:
    metadata = pq.read_metadata(path)
    parts: list[FilePart] = []
    begin = size = rows = 0
    for k in range(metadata.num_row_groups):
        group = metadata.row_group(k)
        size, rows = size + group.total_byte_size, rows + group.num_rows
        if size >= _BYTES_PER_PART or k + 1 == metadata.num_row_groups:
            groups = range(begin, k + 1)
            parts.append(FilePart(path, path.absolute(), size, rows, groups=groups))
            begin, size, rows = k + 1, 0, 0
    return parts or [FilePart(path, path.absolute(), 0, 0)]


@dataclass(frozen=True)
class BytesPart(Part):
    """The bytes of a whole file."""

    name: str
    content: bytes
    known: pa.Schema | AvroRows | None = None

    def tables(self, columns: Sequence[str]) -> Tables:
        """Yield these columns."""
        with self._file() as path:
            yield from open_file(path, moved(self.known, path)).stream(columns)

    def describe(self, metadata: TensorMetadata | None, files: int) -> pa.Schema | AvroRows:
        """Return what it holds, being one of so many files."""
        with self._file() as path:
            match format_of(path):
                case "avro":
                    return AvroRows(path)
                case "tfrecord":
                    return tfrecord_schema(path, metadata, files)
            return open_file(path).schema

    @contextmanager
    def _file(self) -> Iterator[Path]:
        """Give the bytes as a file; messages name the one that they are from."""
        with tempfile.TemporaryDirectory(prefix="gdmix-") as folder:
            path = Path(folder) / PurePosixPath(self.name).name
            path.write_bytes(self.content)
            with renamed(path, self.name):
                yield path


def moved(known: pa.Schema | AvroRows | None, path: Path) -> pa.Schema | AvroRows | None:
    """Return what is known of a file for where it is now."""
    return known.at(path) if isinstance(known, AvroRows) else known


@contextmanager
def renamed(path: Path, name: str | Path) -> Iterator[None]:
    """Let errors call a file by another name."""
    try:
        yield
    except DataError as error:
        lines = [line.replace(str(path), str(name)) for line in error.findings]
        raise DataError(lines) from None


@dataclass(frozen=True)
class TablePart(Part):
    """A table as bytes."""

    content: bytes

    @staticmethod
    def of(table: pa.Table) -> TablePart:
        """Pack a table."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return TablePart(sink.getvalue().to_pybytes())

    def tables(self, columns: Sequence[str]) -> Tables:
        """Yield these columns."""
        yield pa.ipc.open_stream(self.content).read_all().select(columns)


class TableRows(PartRows):
    """Rows that this program holds, or reads: for what is small."""

    def __init__(self, session: SparkSession, rows: RowSource, partitions: int | None) -> None:
        super().__init__(session, rows.label, rows.schema)
        self._rows, self._partitions = rows, partitions

    def _count(self, errors: TaskErrors) -> list[int]:
        n = self._rows.read(self._cheapest()).num_rows
        size = max(1, min(-(-n // (self._partitions or slots(self.session))), _ROWS_PER_PART))
        return [min(size, n - first) for first in range(0, n, size)] or [0]

    def _map(
        self,
        function: TableFunction,
        columns: list[str],
        errors: TaskErrors,
        first: list[int] | None,
    ) -> RDD[tuple[int, bytes]]:
        self._counted(errors, columns)  # it is where tables are cut
        return super()._map(function, columns, errors, first)

    def parts(self, columns: list[str]) -> RDD[tuple[int, Part]]:
        """Return slices of these columns."""
        table, counts = self._rows.read(columns), self._counts or [0]
        places = zip(accumulate(counts, initial=0), counts, strict=False)
        parts = [TablePart.of(table.slice(first, size)) for first, size in places]
        return distribute(self.session, parts, [len(p.content) for p in parts], self._partitions)
