"""Spark's data frames as rows: how they go to tasks, and with which types."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.types as pat

from gdmix.data.read import one_line, refuse_repeated_columns
from gdmix.engines.spark.rows import SparkRows, TableFunction, Tables, call_with
from gdmix.engines.spark.session import TaskErrors, task_failures
from gdmix.engines.spark.tasks.kinds import ROW
from gdmix.errors import DataError

if TYPE_CHECKING:
    from pyspark import RDD
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import DataType

ID = "__gdmix_id__"  # the partition, then the position within it
_BITS = 33  # that Spark gives to the position
_ROWS_PER_BATCH, _BYTES_PER_BATCH = 1 << 17, 1 << 26
_OUTPUT = pa.schema([("target", pa.int32()), ("piece", pa.binary())])

Numbering = Callable[[pa.Table], pa.Array]


def settings_of(
    partition_bytes: int | None = None,
) -> Callable[[SparkSession], AbstractContextManager[None]]:
    """Return what lends a session the settings that rows are read with.

    Parameters
    ----------
    partition_bytes
        The most bytes of files that a partition has; default: Spark's.
    """
    settings = {
        "spark.sql.caseSensitive": "true",
        "spark.sql.adaptive.enabled": "false",  # partitions are to be the same each time
        "spark.sql.execution.arrow.maxRecordsPerBatch": str(_ROWS_PER_BATCH),
        "spark.sql.execution.arrow.maxBytesPerBatch": str(_BYTES_PER_BATCH),
        "spark.sql.files.ignoreCorruptFiles": "false",
        "spark.sql.files.ignoreMissingFiles": "false",
    }
    if partition_bytes is not None:
        settings["spark.sql.files.maxPartitionBytes"] = str(max(partition_bytes, 1))
    return partial(_lent, settings)


@contextmanager
def _lent(settings: dict[str, str], session: SparkSession) -> Iterator[None]:
    conf = session.conf
    before = {key: conf.get(key, None) for key in settings}
    explicit = {key: value for key, value in before.items() if value is not None}
    for key, value in settings.items():
        conf.set(key, value)
    try:
        yield
    finally:
        for key in settings:
            if key in explicit:
                conf.set(key, explicit[key])
            else:
                conf.unset(key)


def quoted(column: str) -> str:
    """Return a column's name as Spark's SQL has it."""
    return "`" + column.replace("`", "``") + "`"


def alias(position: int) -> str:
    """Return what a column of that position is called on its way: any name is one for Spark."""
    return f"c{position}"


def map_in_arrow(
    frame: DataFrame,
    function: TableFunction,
    label: str,
    columns: list[str],
    schema: pa.Schema,
    number: Numbering | None,
    errors: TaskErrors,
    begin: int = 0,
) -> RDD[tuple[int, bytes]]:
    """Return what a function makes of the rows of each partition; see `SparkRows.map_tables`.

    Parameters
    ----------
    frame
        Has the columns by their `alias`, those of nulls may be missing; and a column `ID`, of
        `monotonically_increasing_id`.
    number
        Tells the numbers of a table's rows.
    begin
        Number of its first partition.
    """
    task = partial(_map_batches, function, label, columns, schema, number, begin)
    return _in_arrow(frame, errors.guard(task), "target int, piece binary").map(_pair)


def _in_arrow(frame: DataFrame, task: Callable[..., Any], output: str) -> RDD[Any]:
    with settings_of()(frame.sparkSession), task_failures():
        return frame.mapInArrow(task, output).rdd


def _pair(row: Any) -> tuple[int, bytes]:
    target, piece = row
    return target, piece if isinstance(piece, bytes) else bytes(piece)


def _map_batches(
    function: TableFunction,
    label: str,
    columns: list[str],
    schema: pa.Schema,
    number: Numbering | None,
    begin: int,
    batches: Iterator[pa.RecordBatch],
) -> Iterator[pa.RecordBatch]:
    found = (pa.Table.from_batches([batch]) for batch in batches if batch.num_rows)
    head = next(found, None)
    if head is None:
        return

    def tables() -> Tables:
        for raw in _chained(head, found):
            table = _typed(label, raw, columns, schema)
            yield table if number is None else table.append_column(ROW, number(raw))

    index = begin + (head[ID][0].as_py() >> _BITS)
    for target, piece in call_with(function, index, tables()):
        yield pa.RecordBatch.from_arrays([[target], [piece]], schema=_OUTPUT)


def _chained(head: pa.Table, rest: Tables) -> Tables:
    yield head
    yield from rest


def _typed(label: str, table: pa.Table, columns: list[str], schema: pa.Schema) -> pa.Table:
    """Return columns with the types that they have to have."""
    arrays = []
    for position, column in enumerate(columns):
        kind, name = schema.field(column).type, alias(position)
        if name not in table.column_names:
            arrays.append(pa.nulls(table.num_rows, kind))
            continue
        try:
            arrays.append(table[name].cast(kind))
        except pa.ArrowException as error:
            raise DataError(
                f"{label}: column '{column}' is not {kind} in all rows: {one_line(error)}"
            ) from None
    return pa.table(arrays, schema=pa.schema([schema.field(column) for column in columns]))


class FrameRows(SparkRows):
    """A data frame of Spark.

    Spark has lists of any length only: one of numbers whose name does not end with ``_indices``
    or ``_values`` is taken to be a dense vector, as long in each row as in the first one.
    """

    def __init__(self, session: SparkSession, frame: DataFrame, label: str) -> None:
        frame = _without_vectors(frame)
        schema = _arrow_schema(frame)
        refuse_repeated_columns(label, schema)
        super().__init__(session, label, _with_dense(frame, schema))
        self._frame = frame
        self._counts_by_columns: dict[tuple[str, ...], list[int]] = {}

    def _map(
        self,
        function: TableFunction,
        columns: list[str],
        errors: TaskErrors,
        first: list[int] | None,
    ) -> RDD[tuple[int, bytes]]:
        number = partial(_row_numbers, first) if first is not None else None
        frame = self._selected(columns)
        return map_in_arrow(frame, function, self.label, columns, self.schema, number, errors)

    def _counted(self, errors: TaskErrors, columns: Sequence[str]) -> list[int]:
        # Spark plans other partitions, perhaps, for other columns.
        key = tuple(columns)
        if key not in self._counts_by_columns:
            self._counts_by_columns[key] = self._count_of(columns, errors)
        return self._counts_by_columns[key]

    def _count(self, errors: TaskErrors) -> list[int]:
        return self._count_of((), errors)

    def _count_of(self, columns: Sequence[str], errors: TaskErrors) -> list[int]:
        frame = self._selected(columns)
        counts = _in_arrow(frame, errors.guard(_count_rows), "part int, n long")
        found = dict.fromkeys(range(counts.getNumPartitions()), 0)
        for part, size in errors.run(counts.collect):
            found[part] += size
        return list(found.values())

    def _selected(self, columns: Sequence[str]) -> DataFrame:
        from pyspark.sql import functions as sql

        with settings_of()(self._frame.sparkSession):
            chosen = [
                self._frame[quoted(column)].alias(alias(position))
                for position, column in enumerate(columns)
            ]
            return self._frame.select(*chosen, sql.monotonically_increasing_id().alias(ID))


def _row_numbers(first: list[int], table: pa.Table) -> pa.Array:
    ids = table[ID].combine_chunks().to_numpy(zero_copy_only=False)
    return pa.array(np.array(first, np.int64)[ids >> _BITS] + (ids & ((1 << _BITS) - 1)))


def _count_rows(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        if batch.num_rows:
            part = batch.column(batch.schema.get_field_index(ID))[0].as_py() >> _BITS
            yield pa.RecordBatch.from_pydict(
                {"part": pa.array([part], pa.int32()), "n": pa.array([batch.num_rows])}
            )


def _without_vectors(frame: DataFrame) -> DataFrame:
    """Return a data frame with the vectors of Spark's ML as lists."""
    vectors = [f.name for f in frame.schema if type(f.dataType).__name__ == "VectorUDT"]
    if not vectors:
        return frame
    from pyspark.ml.functions import vector_to_array

    lists = {column: vector_to_array(frame[quoted(column)]) for column in vectors}
    return frame.withColumns(lists)


def _arrow_schema(frame: DataFrame) -> pa.Schema:
    from pyspark.errors import PySparkException
    from pyspark.sql.pandas.types import to_arrow_type

    fields = []
    for field in frame.schema:
        try:
            kind = _of_nullable(to_arrow_type(field.dataType))
        except (PySparkException, TypeError):
            kind = pa.month_day_nano_interval()  # of no use, as whatever it is
        fields.append(pa.field(field.name, kind))
    return pa.schema(fields)


def _of_nullable(kind: pa.DataType) -> pa.DataType:
    """Return a type without what Spark knows of nulls."""
    if pat.is_list(kind):
        return pa.list_(_of_nullable(kind.value_type))
    if pat.is_struct(kind):
        fields = [kind.field(i) for i in range(kind.num_fields)]
        return pa.struct([(field.name, _of_nullable(field.type)) for field in fields])
    return kind


def _with_dense(frame: DataFrame, schema: pa.Schema) -> pa.Schema:
    dense = [field.name for field in schema if _may_be_dense(field)]
    if not dense:
        return schema
    from pyspark.sql import functions as sql

    with task_failures():
        sizes = frame.select([sql.size(frame[quoted(column)]) for column in dense]).first()
    for column, size in zip(dense, sizes or (), strict=False):
        if size is not None and size > 0:
            at = schema.get_field_index(column)
            kind = pa.list_(schema.field(at).type.value_type, size)
            schema = schema.set(at, pa.field(column, kind))
    return schema


def _may_be_dense(field: pa.Field) -> bool:
    kind = field.type
    of_numbers = pat.is_list(kind) and (
        pat.is_floating(kind.value_type) or pat.is_integer(kind.value_type)
    )
    return of_numbers and not field.name.endswith(("_indices", "_values"))


def spark_type(kind: pa.DataType) -> DataType | None:
    """Return the type that Spark reads an Arrow type in a Parquet file as; None if it can't."""
    from pyspark.sql import types as sql

    plain: dict[pa.DataType, DataType] = {
        pa.bool_(): sql.BooleanType(),
        pa.int8(): sql.ByteType(),
        pa.int16(): sql.ShortType(),
        pa.int32(): sql.IntegerType(),
        pa.int64(): sql.LongType(),
        pa.uint8(): sql.ShortType(),
        pa.uint16(): sql.IntegerType(),
        pa.uint32(): sql.LongType(),
        pa.uint64(): sql.DecimalType(20, 0),
        pa.float32(): sql.FloatType(),
        pa.float64(): sql.DoubleType(),
        pa.string(): sql.StringType(),
        pa.large_string(): sql.StringType(),
        pa.binary(): sql.BinaryType(),
        pa.large_binary(): sql.BinaryType(),
    }
    if kind in plain:
        return plain[kind]
    if pat.is_dictionary(kind):
        return spark_type(kind.value_type)
    if pat.is_decimal(kind) and kind.precision <= 38:
        return sql.DecimalType(kind.precision, kind.scale)
    if pat.is_list(kind) or pat.is_large_list(kind) or pat.is_fixed_size_list(kind):
        item = spark_type(kind.value_type)
        return None if item is None else sql.ArrayType(item)
    if pat.is_struct(kind):
        parts = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
        own = {name: spark_type(part) for name, part in parts.items()}
        fields = [sql.StructField(name, part) for name, part in own.items() if part is not None]
        return sql.StructType(fields) if len(fields) == len(own) else None
    return None
