"""Rows for Spark: where they are, of what types, and how tasks come by them.

Rows have the types, the numbers and the errors that they have on one machine, as the same readers
open them. Three ways lead to a task:

- files at plain paths, which all machines see: a task opens its own (`rows`);
- files at URIs, such as ``hdfs://``, ``s3a://`` or ``file://``: Spark opens them (`hadoop_rows`);
- data frames of Spark (`frames`), and tables that this program holds (`rows`).
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gdmix.data.read import Source, open_rows, paths_of
from gdmix.engines.spark.frames import FrameRows
from gdmix.engines.spark.hadoop import find_files, has_file_system, is_uri
from gdmix.engines.spark.hadoop_rows import open_hadoop
from gdmix.engines.spark.rows import FileRows, SparkRows, TableRows
from gdmix.errors import DataError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["SparkRows", "open_spark_rows", "opened_by_spark", "stamps"]


def open_spark_rows(
    session: SparkSession, source: Source, label: str = "data", partitions: int | None = None
) -> SparkRows:
    """Open a source of rows for tasks.

    Parameters
    ----------
    source
        Paths or URIs of files, folders or patterns; a Spark DataFrame; or what `data.read` takes.
    label
        What messages call a frame.
    partitions
        Into how many parts rows are read; default: by their size, at least one per slot.

    Raises
    ------
    DataError
        As `data.read.open_rows`.
    """
    from pyspark.sql import DataFrame

    if isinstance(source, SparkRows):
        return source
    if isinstance(source, DataFrame):
        if type(source).__module__.startswith("pyspark.sql.connect"):
            raise DataError(f"{label}: is a DataFrame of Spark Connect; give one of this session")
        return FrameRows(session, source, label)
    paths = paths_of(source)
    if not paths:
        return TableRows(session, open_rows(source, label), partitions)
    if opened_by_spark(session, paths):
        return open_hadoop(session, [_as_uri(path) for path in paths], partitions)
    return FileRows(session, paths, partitions)


def stamps(session: SparkSession, paths: Sequence[str]) -> dict[str, list[int]]:
    """Return size and time of change of each file of Spark that paths and URIs stand for.

    Raises
    ------
    DataError
        If one stands for nothing.
    """
    files = find_files(session, [_as_uri(path) for path in paths])
    return {file.path: [file.size, file.changed] for file in files}


def opened_by_spark(session: SparkSession, paths: Sequence[str]) -> bool:
    """Whether Spark is to open these: some are URIs, or nothing is there on this machine."""
    if any(is_uri(path) for path in paths):
        return True
    return has_file_system(session) and not any(_is_here(path) for path in paths)


def _is_here(path: str) -> bool:
    return Path(path).exists() or bool(glob.glob(path, recursive=True))


def _as_uri(path: str) -> str:
    return path if is_uri(path) or not _is_here(path) else f"file://{Path(path).absolute()}"
