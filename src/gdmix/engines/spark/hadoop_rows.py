"""Rows in files that Spark opens: on any file system that it can reach.

Parquet is read by Spark itself. Of other formats whole files come to the tasks as bytes, which
our own readers take; that limits a file to 2 GB, as Spark's arrays of bytes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gdmix.data.read import (
    common_schema,
    damaged,
    format_of,
    label_of,
    plain_schema,
    refuse_repeated_columns,
    warn_of_text_uids,
)
from gdmix.data.read_records import AvroRows, agreed_schemas, metadata_places
from gdmix.data.tfrecord.metadata import TensorMetadata
from gdmix.engines.spark.frames import ID, alias, map_in_arrow, quoted, settings_of, spark_type
from gdmix.engines.spark.hadoop import (
    HadoopFile,
    HadoopInput,
    find_files,
    read_if_exists,
    split_uri,
)
from gdmix.engines.spark.rows import (
    BytesPart,
    Part,
    PartRows,
    SparkRows,
    TableFunction,
    renamed,
)
from gdmix.engines.spark.session import TaskErrors, slots
from gdmix.errors import DataError

if TYPE_CHECKING:
    from pyspark import RDD
    from pyspark.sql import DataFrame, SparkSession

_MOST_BYTES = (1 << 31) - 1024
_FOOTERS_AT_ONCE = 16
_FILE, _POSITION = "__gdmix_file__", "__gdmix_position__"


def open_hadoop(session: SparkSession, paths: Sequence[str], partitions: int | None) -> SparkRows:
    """Open files that Spark can reach.

    Raises
    ------
    DataError
        As `data.read.open_rows`.
    """
    files = find_files(session, paths)
    kinds: dict[str, HadoopFile] = {}
    for file in files:
        kind = format_of(Path(file.path))
        if kind is None:
            raise DataError(
                f"{file.path}: unknown kind of file; use .parquet, .arrow, .csv, .avro, .tfrecord"
            )
        kinds["parquet" if kind == "parquet" else "other"] = file
    label = label_of(paths)
    if len(kinds) == 2:
        names = " and ".join(file.path for file in kinds.values())
        raise DataError(f"{label}: Parquet and other files ({names}); give one kind")
    if "parquet" in kinds:
        return _ParquetRows(session, label, files, partitions)
    return _open_bytes(session, label, files, partitions)


class _ParquetRows(SparkRows):
    """Parquet files that Spark reads."""

    def __init__(
        self,
        session: SparkSession,
        label: str,
        files: Sequence[HadoopFile],
        partitions: int | None,
    ) -> None:
        with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
            footers = list(pool.map(partial(_footer, session), files))
        schemas = {Path(f.path): schema for f, (schema, _) in zip(files, footers, strict=True)}
        schema, conflicts = common_schema(schemas)
        super().__init__(session, label, schema)
        self._files, self._schemas, self._conflicts = files, schemas, conflicts
        self._counts = [rows for _, rows in footers]
        total = sum(file.size for file in files)
        self._settings = settings_of(None if partitions is None else -(-total // partitions))

    def _count(self, errors: TaskErrors) -> list[int]:
        raise AssertionError("footers tell")

    def _map(
        self,
        function: TableFunction,
        columns: list[str],
        errors: TaskErrors,
        first: list[int] | None,
    ) -> RDD[tuple[int, bytes]]:
        firsts = (
            {}
            if first is None
            else dict(zip((_key(f.uri) for f in self._files), first, strict=False))
        )
        number = partial(_row_numbers, firsts) if first is not None else None
        begin, made = 0, []
        # Files whose columns have the same types are read together: Spark would refuse others.
        for kinds, paths in self._alike(columns).items():
            with self._settings(self.session):
                frame = self._frame(
                    dict(zip(columns, kinds, strict=True)), paths, first is not None
                )
            pieces = map_in_arrow(
                frame, function, self.label, columns, self.schema, number, errors, begin
            )
            begin += pieces.getNumPartitions()
            made.append(pieces)
        return made[0] if len(made) == 1 else self.session.sparkContext.union(made)

    def _alike(self, columns: list[str]) -> dict[tuple[pa.DataType, ...], list[str]]:
        groups: dict[tuple[pa.DataType, ...], list[str]] = {}
        for file in self._files:
            schema = self._schemas[Path(file.path)]
            kinds = tuple(schema.field(column).type for column in columns)
            groups.setdefault(kinds, []).append(file.path)
        return groups

    def _frame(
        self, kinds: Mapping[str, pa.DataType], paths: list[str], numbered: bool
    ) -> DataFrame:
        from pyspark.sql import functions as sql
        from pyspark.sql.types import StructField, StructType

        fields, chosen = [], []
        for position, (column, kind) in enumerate(kinds.items()):
            if not pa.types.is_null(kind):  # such a column is made up again
                own = spark_type(kind)
                if own is None:
                    raise DataError(
                        f"{self.label}: column '{column}' is {kind}, which Spark can't read"
                    )
                fields.append(StructField(column, own))
                chosen.append(sql.col(quoted(column)).alias(alias(position)))
        frame = self.session.read.schema(StructType(fields)).parquet(*paths)
        if numbered:
            chosen.append(sql.col("_metadata.file_path").alias(_FILE))
            chosen.append(sql.col("_metadata.row_index").alias(_POSITION))
        return frame.select(*chosen, sql.monotonically_increasing_id().alias(ID))


def _footer(session: SparkSession, file: HadoopFile) -> tuple[pa.Schema, int]:
    """Return a Parquet file's schema and number of rows."""
    if not file.size:
        raise DataError(f"{file.path}: is empty: 0 bytes")
    try:
        with HadoopInput(session, file.path, file.size) as content:
            parquet = pq.ParquetFile(content)
            schema, rows = plain_schema(parquet.schema_arrow), parquet.metadata.num_rows
    except (pa.ArrowException, OSError, ValueError, EOFError) as error:
        raise damaged(file.path, error) from None
    refuse_repeated_columns(file.path, schema)
    return schema, rows


def _key(uri: str) -> str:
    """Return what two ways to write a URI have in common: ``file:/a`` is ``file:///a``."""
    return uri.partition(":")[2].lstrip("/")


def _row_numbers(first: Mapping[str, int], table: pa.Table) -> pa.Array:
    """Return the numbers of rows that tell which file they are from, and their place there."""
    files = pc.dictionary_encode(table[_FILE].combine_chunks())
    starts = np.array([first[_key(uri)] for uri in files.dictionary.to_pylist()], np.int64)
    position = table[_POSITION].combine_chunks().to_numpy(zero_copy_only=False)
    return pa.array(starts[files.indices.to_numpy(zero_copy_only=False)] + position)


def _open_bytes(
    session: SparkSession, label: str, files: Sequence[HadoopFile], partitions: int | None
) -> SparkRows:
    records = [file for file in files if format_of(Path(file.path)) == "tfrecord"]
    if len(records) > 1:  # Spark leaves a file of no bytes where a partition has no rows
        files = [file for file in files if file.size or file not in records] or files[:1]
    for file in files:
        if file.size > _MOST_BYTES:
            raise DataError(
                f"{file.path}: has {file.size / 1e9:.1f} GB; give smaller files, up to 2 GB, "
                "or a plain path that all machines see"
            )
    metadata = _tensor_metadata(session, records)
    errors = TaskErrors(session)
    unknown = _BytesRows(session, label, files, {}, partitions)
    describe = errors.guard(partial(_describe, metadata, len(records)))
    found = dict(errors.run(unknown.parts([]).mapPartitions(describe).collect))
    known = {Path(file.path): found[number] for number, file in enumerate(files)}
    own = {
        p: s for p, s in known.items() if isinstance(s, pa.Schema) and format_of(p) == "tfrecord"
    }
    known |= agreed_schemas(own)
    warn_of_text_uids({path: rows for path, rows in known.items() if isinstance(rows, AvroRows)})
    return _BytesRows(session, label, files, known, partitions)


class _BytesRows(PartRows):
    """Files whose bytes Spark hands to tasks."""

    def __init__(
        self,
        session: SparkSession,
        label: str,
        files: Sequence[HadoopFile],
        known: Mapping[Path, pa.Schema | AvroRows],
        partitions: int | None,
    ) -> None:
        schemas = {
            path: rows.schema if isinstance(rows, AvroRows) else rows
            for path, rows in known.items()
        }
        schema, conflicts = common_schema(schemas) if known else (pa.schema([]), {})
        super().__init__(session, label, schema)
        self._files, self._known, self._partitions = files, known, partitions
        self._schemas, self._conflicts = schemas, conflicts

    def parts(self, columns: list[str]) -> RDD[tuple[int, Part]]:
        """Return the files."""
        context = self.session.sparkContext
        known = {
            file.path: (number, self._known.get(Path(file.path)))
            for number, file in enumerate(self._files)
        }
        paths = ",".join(file.path for file in self._files)
        n = self._partitions or min(slots(self.session), len(self._files))
        return context.binaryFiles(paths, n).map(partial(_bytes_part, context.broadcast(known)))


def _bytes_part(known: Any, file: tuple[str, bytes]) -> tuple[int, Part]:
    name, content = file
    number, rows = known.value[name]
    is_record = format_of(Path(name)) in ("avro", "tfrecord")  # others tell it themselves
    return number, BytesPart(name, content, rows if is_record else None)


def _describe(
    metadata: Mapping[str, TensorMetadata], files: int, parts: Iterable[tuple[int, Part]]
) -> Iterator[tuple[int, pa.Schema | AvroRows]]:
    for number, part in parts:
        assert isinstance(part, BytesPart)
        yield number, part.describe(metadata.get(part.name), files)


def _tensor_metadata(
    session: SparkSession, files: Sequence[HadoopFile]
) -> dict[str, TensorMetadata]:
    """Return what files with metadata tell of TFRecord files, by the path of these."""
    known: dict[str, TensorMetadata | None] = {}
    of_file: dict[str, TensorMetadata] = {}
    for file in files:
        system, folders = split_uri(file.path)
        for place in metadata_places(Path(folders)):
            path = f"{system}{place}"
            if path not in known:
                known[path] = _read_metadata(session, path)
            found = known[path]
            if found is not None:
                of_file[file.path] = found
                break
    return of_file


def _read_metadata(session: SparkSession, path: str) -> TensorMetadata | None:
    content = read_if_exists(session, path)
    if content is None:
        return None
    with tempfile.TemporaryDirectory(prefix="gdmix-") as folder:
        copy = Path(folder) / PurePosixPath(path).name
        copy.write_bytes(content)
        with renamed(copy, path):
            return TensorMetadata.read(copy)
