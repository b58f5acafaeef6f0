"""Files and frames in, Arrow tables out: only the columns that are needed.

A source is a path (a file, a folder of files, a glob pattern), a list of paths, or a frame in
memory: pyarrow, pandas, polars, a dict of columns, or anything with ``__arrow_c_stream__``.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pyarrow.types as pat

from gdmix.errors import DataError, did_you_mean

Source = Any

_FORMATS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".csv": "csv",
    ".csv.gz": "csv",
    ".tsv": "csv",
}


@dataclass(frozen=True)
class RowSource:
    """Rows that can be read.

    Attributes
    ----------
    label
        What messages call it: the path, or the kind of frame.
    schema
        Names and types of all columns, normalised.
    read
        Called with column names, returns these columns as a table.
    """

    label: str
    schema: pa.Schema
    read: Callable[[Sequence[str]], pa.Table]


def open_rows(source: Source, label: str = "data") -> RowSource:
    """Open a source of rows.

    Parameters
    ----------
    source
        See the module.
    label
        What messages call a frame in memory, such as ``training data``.

    Raises
    ------
    DataError
        If there is no such file, a file is damaged, or the object is no table.
    """
    if isinstance(source, str | os.PathLike):
        return _open_files([str(source)])
    if (
        isinstance(source, list | tuple)
        and source
        and all(isinstance(s, str | os.PathLike) for s in source)
    ):
        return _open_files([str(s) for s in source])
    table = _normalize(_frame_to_arrow(source, label))
    return RowSource(label, table.schema, table.select)


def _frame_to_arrow(frame: Any, label: str) -> pa.Table:
    if isinstance(frame, pa.Table):
        return frame
    if isinstance(frame, pa.RecordBatch):
        return pa.Table.from_batches([frame])
    module = type(frame).__module__.partition(".")[0]
    if module == "pandas" and hasattr(frame, "columns"):
        return _pandas_to_arrow(frame, label)
    if module == "polars" and type(frame).__name__ == "LazyFrame":
        raise DataError(f"{label}: is a polars LazyFrame; call .collect() on it first")
    try:
        if isinstance(frame, Mapping):
            return pa.table(dict(frame))
        if hasattr(frame, "__arrow_c_stream__"):
            return pa.table(frame)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise DataError(f"{label}: can't be read as a table: {_one_line(error)}") from None
    raise DataError(
        f"{label}: a {type(frame).__name__} is no table of rows; "
        "give a path, or a pyarrow, pandas or polars frame"
    )


def _pandas_to_arrow(frame: Any, label: str) -> pa.Table:
    """Convert column by column, so that NaN stays NaN (to be reported) and is not null."""
    columns = {}
    for name in frame.columns:
        series = frame[name]
        is_float = getattr(series.dtype, "kind", "") == "f" and hasattr(series.dtype, "itemsize")
        try:
            columns[str(name)] = (
                pa.array(series.to_numpy())
                if is_float and type(series.dtype).__module__.startswith("numpy")
                else pa.array(series, from_pandas=True)
            )
        except (pa.ArrowException, ValueError, TypeError) as error:
            raise DataError(f"{label}: column '{name}' mixes types: {_one_line(error)}") from None
    return pa.table(columns)


def expand_paths(paths: Sequence[str]) -> list[Path]:
    """Return the data files that paths, folders and glob patterns stand for, sorted.

    Raises
    ------
    DataError
        If one of them stands for nothing.
    """
    files: list[Path] = []
    for text in paths:
        path = Path(text)
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if _format_of(p) and not _is_hidden(p, path))
        elif path.exists():
            found = [path]
        else:
            found = [Path(p) for p in sorted(glob.glob(text, recursive=True))]
        if not found:
            raise DataError(_nothing_at(path))
        files += found
    return files


def _nothing_at(path: Path) -> str:
    if path.is_dir():
        return f"{path}: the folder holds no .parquet, .arrow or .csv file"
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    return f"{path}: no such file or folder{did_you_mean(path.name, siblings)}"


def _is_hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(("_", ".")) for part in path.relative_to(root).parts)


def _format_of(path: Path) -> str | None:
    name = path.name.lower()
    return next((f for suffix, f in _FORMATS.items() if name.endswith(suffix)), None)


def _open_files(paths: list[str]) -> RowSource:
    files = expand_paths(paths)
    label = paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    tables: dict[Path, pa.Table] = {}  # files that can only be read whole
    schemas = {}
    for file in files:
        kind = _format_of(file)
        if kind is None:
            raise DataError(f"{file}: unknown kind of file; use {', '.join(_FORMATS)}")
        if kind == "parquet":
            schemas[file] = _normal_schema(_guarded(file, pq.read_schema))
        else:
            read_whole = pyarrow.feather.read_table if kind == "arrow" else _read_csv
            tables[file] = _normalize(_guarded(file, read_whole))
            schemas[file] = tables[file].schema

    def read(columns: Sequence[str]) -> pa.Table:
        parts = []
        for file in files:
            if missing := [c for c in columns if c not in schemas[file].names]:
                raise DataError(f"{file}: column '{missing[0]}' is missing, other files have it")
            if file in tables:
                parts.append(tables[file].select(columns))
            else:
                parts.append(_normalize(_guarded(file, partial(_read_parquet, columns))))
        try:
            return pa.concat_tables(parts, promote_options="permissive").select(columns)
        except pa.ArrowException as error:
            raise DataError(f"{label}: files differ in type: {_one_line(error)}") from None

    return RowSource(label, schemas[files[0]], read)


def _read_parquet(columns: Sequence[str], file: Path) -> pa.Table:
    # Not pq.read_table: it would turn folder names such as `a=1` into columns.
    with pq.ParquetFile(file) as parquet:
        return parquet.read(columns=list(columns))


def _read_csv(file: Path) -> pa.Table:
    separator = "\t" if file.name.lower().endswith(".tsv") else ","
    return pyarrow.csv.read_csv(file, parse_options=pyarrow.csv.ParseOptions(delimiter=separator))


def _guarded(file: Path, read: Callable[[Path], Any]) -> Any:
    try:
        return read(file)
    except PermissionError:
        raise DataError(f"{file}: may not be read (permission denied)") from None
    except (pa.ArrowException, OSError, ValueError, EOFError) as error:
        raise DataError(f"{file}: damaged or not what its name says: {_one_line(error)}") from None


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 160 else text[:157] + "..."


def _normal_schema(schema: pa.Schema) -> pa.Schema:
    return pa.schema([f.with_type(_normal_type(f.type)) for f in schema])


def _normal_type(kind: pa.DataType) -> pa.DataType:
    """Replace views, which Arrow's functions don't all take, by their plain types."""
    if pat.is_string_view(kind):
        return pa.large_string()
    if pat.is_binary_view(kind):
        return pa.large_binary()
    if pat.is_list(kind):
        return pa.list_(_normal_type(kind.value_type))
    if pat.is_large_list(kind):
        return pa.large_list(_normal_type(kind.value_type))
    if pat.is_fixed_size_list(kind):
        return pa.list_(_normal_type(kind.value_type), kind.list_size)
    if pat.is_struct(kind):
        fields = [kind.field(i) for i in range(kind.num_fields)]
        return pa.struct([f.with_type(_normal_type(f.type)) for f in fields])
    return kind


def _normalize(table: pa.Table) -> pa.Table:
    schema = _normal_schema(table.schema)
    return table if schema.equals(table.schema) else table.cast(schema)
