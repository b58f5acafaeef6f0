"""Files and frames in, Arrow tables out: only the columns that are needed.

A source is a path (a file, a folder of files, a glob pattern), a list of paths, a `RowSource`, or
a frame in memory: pyarrow, pandas, polars, a dict of columns, or anything with
``__arrow_c_stream__``.
"""

from __future__ import annotations

import glob
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pyarrow.types as pat

from gdmix.data.read_records import AvroRows, stream_tfrecord, tfrecord_schemas
from gdmix.errors import DataError, did_you_mean

Source = Any
Stream = Callable[[Sequence[str]], Iterator[pa.Table]]

_ARROW = (pa.Array, pa.ChunkedArray)

_FORMATS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".csv": "csv",
    ".csv.gz": "csv",
    ".tsv": "csv",
    ".avro": "avro",
    ".tfrecord": "tfrecord",
    ".tfrecord.gz": "tfrecord",
    ".tfrecord.deflate": "tfrecord",
}

log = logging.getLogger("gdmix")

_ROWS_PER_PIECE = 1_000_000
_BYTES_PER_PIECE = 1 << 25


@dataclass(frozen=True)
class RowSource:
    """Rows that can be read.

    Attributes
    ----------
    label
        What messages call it: the path, or the kind of frame.
    schema
        Names and types of all columns, normalised.
    stream
        Called with column names, yields these columns piece by piece, all of the schema's types.
    """

    label: str
    schema: pa.Schema
    stream: Stream

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Return these columns of all rows."""
        nothing = pa.schema([self.schema.field(c) for c in columns]).empty_table()
        return pa.concat_tables([nothing, *self.stream(columns)])


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
    if isinstance(source, RowSource):
        return source
    paths = paths_of(source)
    if paths:
        return _open_files(paths)
    table = _normalize(_frame_to_arrow(source, label))
    refuse_repeated_columns(label, table.schema)
    return RowSource(label, table.schema, lambda columns: iter([table.select(columns)]))


def paths_of(source: Source) -> list[str] | None:
    """Return the paths that a source consists of; None if it is anything else."""
    if isinstance(source, str | os.PathLike):
        return [str(source)]
    if (
        isinstance(source, list | tuple)
        and source
        and all(isinstance(s, str | os.PathLike) for s in source)
    ):
        return [str(s) for s in source]
    return None


def _frame_to_arrow(frame: Any, label: str) -> pa.Table:
    if isinstance(frame, pa.Table):
        return frame
    if isinstance(frame, pa.RecordBatch):
        return pa.Table.from_batches([frame])
    module = type(frame).__module__.partition(".")[0]
    if module == "polars" and type(frame).__name__ == "LazyFrame":
        raise DataError(f"{label}: is a polars LazyFrame; call .collect() on it first")
    if module == "pandas" and hasattr(frame, "columns"):
        # By position: a name may stand twice. The index is not a column.
        series = [frame.iloc[:, i] for i in range(frame.shape[1])]
        return _columns_to_arrow([str(c) for c in frame.columns], series, label)
    if isinstance(frame, Mapping):
        return _columns_to_arrow([str(c) for c in frame], list(frame.values()), label)
    if hasattr(frame, "__arrow_c_stream__"):
        try:
            return pa.table(frame)
        except (pa.ArrowException, ValueError, TypeError) as error:
            raise DataError(f"{label}: can't be read as a table: {one_line(error)}") from None
    raise DataError(
        f"{label}: a {type(frame).__name__} is no table of rows; "
        "give a path, or a pyarrow, pandas or polars frame"
    )


def _columns_to_arrow(names: list[str], columns: list[Any], label: str) -> pa.Table:
    arrays = []
    for name, values in zip(names, columns, strict=True):
        dtype = getattr(values, "dtype", None)
        if isinstance(dtype, np.dtype) and dtype.kind == "f":
            # Not as pandas would be read: NaN stays NaN, to be reported, and is not null.
            values = np.asarray(values)
        try:
            arrays.append(values if isinstance(values, _ARROW) else pa.array(values))
        except (pa.ArrowException, ValueError, TypeError) as error:
            raise DataError(
                f"{label}: column '{name}' can't be read, does it mix types? {one_line(error)}"
            ) from None
    lengths = {len(a) for a in arrays}
    if len(lengths) > 1:
        sizes = ", ".join(f"'{n}' {len(a)}" for n, a in zip(names, arrays, strict=True))
        raise DataError(f"{label}: columns differ in length: {_shortened(sizes)}")
    return pa.Table.from_arrays(arrays, names=names)


def refuse_repeated_columns(label: str, schema: pa.Schema) -> None:
    """Check that no two columns have one name.

    Raises
    ------
    DataError
        One line per name.
    """
    repeated = [n for n, count in Counter(schema.names).items() if count > 1]
    if repeated:
        raise DataError(
            [f"{label}: column '{name}' stands twice; rename or drop one" for name in repeated]
        )


def expand_paths(paths: Sequence[str]) -> list[Path]:
    """Return the data files that paths, folders and glob patterns stand for.

    Of a folder or a pattern these are sorted, without names that begin with ``_`` or ``.``.

    Raises
    ------
    DataError
        If one of them stands for nothing.
    """
    files: list[Path] = []
    for text in paths:
        try:
            found = _files_at(text)
        except OSError as error:
            raise DataError(f"{text}: can't be looked up: {error.strerror}") from None
        if not found:
            raise DataError(_nothing_at(text))
        files += found
    return list(dict.fromkeys(files))


def _files_at(text: str) -> list[Path]:
    path = Path(text)
    if path.is_dir():
        inside = (p for p in path.rglob("*") if not _is_hidden(p.relative_to(path)))
        return sorted(p for p in inside if format_of(p) and p.is_file())
    if path.exists():
        return [path]
    matches = (p for p in sorted(glob.glob(text, recursive=True)) if not _is_hidden(Path(p).name))
    return [file for match in matches for file in _files_at(match)]


def _nothing_at(text: str) -> str:
    path = Path(text)
    if path.is_dir():
        return f"{path}: the folder holds no .parquet, .arrow, .csv, .avro or .tfrecord file"
    if "://" in text:
        return f"{text}: is a URL; copy the rows to a local path"
    if glob.has_magic(text):
        return f"{text}: no file matches the pattern"
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    return f"{path}: no such file or folder{did_you_mean(path.name, siblings)}"


def _is_hidden(path: str | Path) -> bool:
    return any(part.startswith(("_", ".")) for part in Path(path).parts)


def format_of(path: Path) -> str | None:
    """Return the format that a file's name tells, if any."""
    name = path.name.lower()
    return next((f for suffix, f in _FORMATS.items() if name.endswith(suffix)), None)


def _open_files(paths: list[str]) -> RowSource:
    files = open_files(paths)
    return RowSource(files.label, files.schema, files.stream)


@dataclass(frozen=True)
class FileSet:
    """Files whose rows are read one after the other.

    Attributes
    ----------
    label
        What messages call them.
    parts
        The rows of each file.
    records
        What is known of those that hold Avro or TFRecord, to open them again.
    schema
        All files' columns, of types that hold all of them.
    conflicts
        What is wrong with a column that has no such type.
    """

    label: str
    parts: Mapping[Path, RowSource]
    records: Mapping[Path, pa.Schema | AvroRows]
    schema: pa.Schema
    conflicts: Mapping[str, str]

    def stream(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield these columns of all rows, piece by piece.

        Raises
        ------
        DataError
            If a file lacks one of them, or has it of a type that does not go with another's.
        """
        schemas = {file: part.schema for file, part in self.parts.items()}
        check_columns(self.label, schemas, self.conflicts, columns)
        for part in self.parts.values():
            for table in part.stream(columns):
                yield as_schema(table, self.schema)


def open_files(paths: Sequence[str]) -> FileSet:
    """Look at the files that paths, folders and glob patterns stand for.

    Raises
    ------
    DataError
        If there is no such file, or one is damaged.
    """
    files = expand_paths(paths)
    records: dict[Path, pa.Schema | AvroRows]
    records = {**tfrecord_schemas([file for file in files if format_of(file) == "tfrecord"])}
    avros = {file: AvroRows(file) for file in files if format_of(file) == "avro"}
    warn_of_text_uids(avros)
    records |= avros
    parts = {
        file: open_file(file, records.get(file))
        for file in files
        if file in records or format_of(file) != "tfrecord"  # else it is empty, others are not
    }
    schema, conflicts = common_schema({file: part.schema for file, part in parts.items()})
    return FileSet(label_of(paths), parts, records, schema, conflicts)


def label_of(paths: Sequence[str]) -> str:
    """Return what messages call these paths."""
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"


def warn_of_text_uids(avros: Mapping[Path, AvroRows]) -> None:
    """Say which Avro files have a `uid` that is left out."""
    odd = [file for file, avro in avros.items() if avro.uid_is_text]
    if odd:
        of = f"{odd[0]} and {len(odd) - 1} more" if odd[1:] else odd[0]
        log.warning("%s: 'uid' holds no integers: rows go by their position", of)


def check_columns(
    label: str,
    schemas: Mapping[Path, pa.Schema],
    conflicts: Mapping[str, str],
    columns: Sequence[str],
) -> None:
    """Check that each file has these columns, and that their types go together.

    Raises
    ------
    DataError
        One line per column and file.
    """
    findings = [
        f"{file}: column '{column}' is missing, other files of {label} have it"
        for file, schema in schemas.items()
        for column in columns
        if column not in schema.names
    ]
    findings += [conflicts[column] for column in columns if column in conflicts]
    if findings:
        raise DataError(findings)


def as_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a file's rows with the types that all files' columns have."""
    nothing = pa.schema([schema.field(c) for c in table.column_names]).empty_table()
    return pa.concat_tables([nothing, table], promote_options="permissive")


def open_file(file: Path, known: pa.Schema | AvroRows | None = None) -> RowSource:
    """Open one file.

    Parameters
    ----------
    known
        What is known of the columns of one that holds TFRecord or Avro.

    Raises
    ------
    DataError
        If it is damaged, or of a kind that is not known.
    """
    kind = format_of(file)
    if kind is None:
        raise DataError(f"{file}: unknown kind of file; use {', '.join(_FORMATS)}")
    if kind == "csv":
        schema, stream = _open_csv(file)
    elif isinstance(known, AvroRows):
        schema, stream = known.schema, _as_tables(known.stream)
    elif known is not None:
        schema, stream = known, _as_tables(partial(stream_tfrecord, file, known))
    elif kind == "parquet":
        schema, stream = _open_columnar(file, pq.read_schema, _read_parquet)
    else:
        schema, stream = _open_columnar(file, _read_arrow_schema, _read_arrow)
    refuse_repeated_columns(str(file), schema)
    return RowSource(str(file), schema, stream)


def open_row_groups(file: Path, groups: range) -> RowSource:
    """Open some row groups of a Parquet file; see `open_file`."""
    schema, stream = _open_columnar(file, pq.read_schema, partial(_read_parquet, only=groups))
    return RowSource(str(file), schema, stream)


def _open_csv(file: Path) -> tuple[pa.Schema, Stream]:
    table = _normalize(_guarded(file, _read_csv))  # it can only be read whole
    return table.schema, lambda columns: iter([table.select(columns)])


def _open_columnar(
    file: Path,
    read_schema: Callable[[Path], pa.Schema],
    read_pieces: Callable[[Sequence[str], Path], Iterator[pa.RecordBatch]],
) -> tuple[pa.Schema, Stream]:
    def stream(columns: Sequence[str]) -> Iterator[pa.Table]:
        pieces = read_pieces(columns, file)
        while (piece := _guarded(file, lambda _: next(pieces, None))) is not None:
            yield _normalize(pa.table(piece).select(columns))

    return plain_schema(_guarded(file, read_schema)), stream


def _as_tables(read: Callable[[Sequence[str]], Iterator[pa.RecordBatch]]) -> Stream:
    return lambda columns: (pa.Table.from_batches([batch]) for batch in read(columns))


def common_schema(schemas: Mapping[Path, pa.Schema]) -> tuple[pa.Schema, dict[str, str]]:
    """Return all files' columns with the types that hold all of them, and where there is none.

    Column by column: that files differ in a column nobody asks for does not matter.
    """
    fields: dict[str, pa.Field] = {}
    first_file: dict[str, Path] = {}
    conflicts: dict[str, str] = {}
    for file, schema in schemas.items():
        for new in schema:
            old = fields.setdefault(new.name, new)
            other = first_file.setdefault(new.name, file)
            try:
                both = [pa.schema([old]), pa.schema([new])]
                fields[new.name] = pa.unify_schemas(both, promote_options="permissive").field(0)
            except pa.ArrowException:
                text = f"{file}: column '{new.name}' is {new.type}, in {other} it is {old.type}"
                conflicts.setdefault(new.name, f"{text}; give it one type")
    metadata = next(iter(schemas.values())).metadata
    return pa.schema(list(fields.values()), metadata), conflicts


def _read_parquet(
    columns: Sequence[str], file: Path, only: range | None = None
) -> Iterator[pa.RecordBatch]:
    # Not pq.read_table: it would turn folder names such as `a=1` into columns.
    with pq.ParquetFile(file) as parquet:
        chosen = range(parquet.metadata.num_row_groups) if only is None else only
        groups = {k: parquet.metadata.row_group(k) for k in chosen}
        size = sum(g.total_byte_size for g in groups.values())
        n = sum(g.num_rows for g in groups.values())
        rows = min(max(_BYTES_PER_PIECE * n // max(size, 1), 1), _ROWS_PER_PIECE)
        # One call for all row groups would hold on to the bytes of those it has gone through.
        waiting: list[int] = []
        for k, group in groups.items():
            waiting.append(k)
            if sum(groups[j].num_rows for j in waiting) + group.num_rows > rows:
                yield from parquet.iter_batches(rows, row_groups=waiting, columns=list(columns))
                waiting = []
        if waiting:
            yield from parquet.iter_batches(rows, row_groups=waiting, columns=list(columns))


def _read_arrow_schema(file: Path) -> pa.Schema:
    with pa.OSFile(str(file)) as data:
        return pa.ipc.open_file(data).schema


def _read_arrow(columns: Sequence[str], file: Path) -> Iterator[pa.RecordBatch]:
    with pa.OSFile(str(file)) as data:
        reader = pa.ipc.open_file(data)
        for k in range(reader.num_record_batches):
            yield reader.get_batch(k)


def _read_csv(file: Path) -> pa.Table:
    separator = "\t" if file.name.lower().endswith(".tsv") else ","
    return pyarrow.csv.read_csv(file, parse_options=pyarrow.csv.ParseOptions(delimiter=separator))


def _guarded(file: Path, read: Callable[[Path], Any]) -> Any:
    try:
        if file.stat().st_size == 0:
            raise DataError(f"{file}: is empty: 0 bytes")
        return read(file)
    except PermissionError:
        raise DataError(f"{file}: may not be read: permission denied") from None
    except (pa.ArrowException, OSError, ValueError, EOFError) as error:
        raise damaged(file, error) from None


def damaged(file: Path | str, error: BaseException) -> DataError:
    """Return what to raise where a file can't be read."""
    return DataError(f"{file}: damaged or not what its name says: {one_line(error)}")


def one_line(error: BaseException) -> str:
    """Return what an error says, in one line of some length."""
    return _shortened(" ".join(str(error).split()).rstrip(" .:"))


def _shortened(text: str) -> str:
    return text if len(text) <= 160 else text[:157] + "..."


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """Return a schema without views, which Arrow's functions don't all take."""
    return pa.schema([f.with_type(_normal_type(f.type)) for f in schema], schema.metadata)


def _normal_type(kind: pa.DataType) -> pa.DataType:
    """Replace views, which Arrow's functions don't all take, by their plain types."""
    if pat.is_string_view(kind):
        return pa.large_string()
    if pat.is_binary_view(kind):
        return pa.large_binary()
    if pat.is_dictionary(kind):
        return pa.dictionary(kind.index_type, _normal_type(kind.value_type))
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
    schema = plain_schema(table.schema)
    return table if schema.equals(table.schema) else table.cast(schema)
