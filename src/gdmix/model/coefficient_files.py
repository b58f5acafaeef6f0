"""Coefficients in Parquet, as the model folder and the checkpoint have them.

fixed effect     column, value (, variance) (, hessian: row of the lower triangle, a list)
random effect    entity, columns (list), values (list) (, variances (list)) (, hessian (list))

Parts that pass from one step of a distributed run to the next are Arrow files of the same columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gdmix.data.write import atomic_file, write_tables
from gdmix.errors import ModelError
from gdmix.model.coefficients import FixedCoefficients, RandomCoefficients

_LASTING, _PASSING = ".parquet", ".arrow"
_ENTITIES_PER_PIECE = 50_000
_ROWS_PER_BATCH = 50_000


def part_file(folder: Path, part: int = 0) -> Path | None:
    """Return where a part of a coordinate's coefficients lies; None if it has no such part."""
    files = (_part(folder, part, suffix) for suffix in (_LASTING, _PASSING))
    return next((file for file in files if file.exists()), None)


def _part(folder: Path, part: int, suffix: str) -> Path:
    return folder / f"part-{part:05d}{suffix}"


def part_numbers(folder: Path) -> list[int]:
    """Return the numbers of the parts that a folder has.

    Raises
    ------
    ModelError
        If it has none.
    """
    return [int(file.stem.removeprefix("part-")) for file in _parts_in(folder)]


def write_coefficients(
    coefficients: FixedCoefficients | RandomCoefficients, folder: Path, part: int = 0
) -> None:
    """Write coefficients into a folder, or some of them as one of its parts.

    Raises
    ------
    OutputError
        If the system refuses to write there.
    """
    write_tables(_to_arrow(coefficients), _part(folder, part, _LASTING), repetitive=False)


def write_passing(coefficients: RandomCoefficients, folder: Path, part: int) -> None:
    """Write some coefficients as a part that is soon read and thrown away.

    It takes a tenth of the time of Parquet to write and to read, and more room.

    Raises
    ------
    OutputError
        If the system refuses to write there.
    """
    tables = _to_arrow(coefficients)
    with atomic_file(_part(folder, part, _PASSING)) as temporary:
        first = next(tables)
        with pa.ipc.new_file(temporary, first.schema) as writer:
            for table in chain([first], tables):
                writer.write_table(table)


def _to_arrow(coefficients: FixedCoefficients | RandomCoefficients) -> Iterator[pa.Table]:
    if isinstance(coefficients, FixedCoefficients):
        columns = np.arange(coefficients.values.size, dtype=np.uint32)
        table = pa.table({"column": columns, "value": coefficients.values})
        if coefficients.variances is not None:
            table = table.append_column("variance", pa.array(coefficients.variances))
        if coefficients.hessian is not None:
            d = columns.size
            rows = pa.array(np.arange(d + 1) * np.arange(1, d + 2) // 2)
            lists = pa.LargeListArray.from_arrays(rows, coefficients.hessian)
            table = table.append_column("hessian", lists)
        yield table
        return
    for first in range(0, max(len(coefficients), 1), _ENTITIES_PER_PIECE):
        entities = coefficients.entities.slice(first, _ENTITIES_PER_PIECE)
        ends = coefficients.indptr[first : first + len(entities) + 1]
        own = slice(ends[0], ends[-1])
        offsets = pa.array(ends - ends[0])
        lists = {"columns": coefficients.columns[own], "values": coefficients.values[own]}
        if coefficients.variances is not None:
            lists["variances"] = coefficients.variances[own]
        table = pa.table(
            {"entity": entities}
            | {name: pa.LargeListArray.from_arrays(offsets, a) for name, a in lists.items()}
        )
        if coefficients.hessians is not None and coefficients.hessian_ptr is not None:
            ends = coefficients.hessian_ptr[first : first + len(entities) + 1]
            triangles = coefficients.hessians[ends[0] : ends[-1]]
            own_lists = pa.LargeListArray.from_arrays(pa.array(ends - ends[0]), triangles)
            table = table.append_column("hessian", own_lists)
        yield table


def read_fixed(folder: Path) -> FixedCoefficients:
    """Read the coefficients of a fixed effect.

    Raises
    ------
    ModelError
        If a file is missing or damaged.
    """
    table = _read_files(_parts_in(folder), ["column", "value"], ["variance", "hessian"])
    coefficients = FixedCoefficients(_to_numpy(table["value"], np.float64))
    if "variance" in table.column_names:
        variances = _to_numpy(table["variance"], np.float64)
        coefficients = replace(coefficients, variances=variances)
    if "hessian" in table.column_names:
        hessian = _to_numpy(_one_array(table["hessian"]).flatten(), np.float64)
        coefficients = replace(coefficients, hessian=hessian)
    return coefficients


def write_slice(values: NDArray[np.float64], held: slice, folder: Path, part: int) -> None:
    """Write some of the coefficients of a fixed effect, as one of its parts.

    Parameters
    ----------
    held
        Which they are.

    Raises
    ------
    OutputError
        If the system refuses to write there.
    """
    columns = np.arange(held.start, held.stop, dtype=np.uint32)
    table = pa.table({"column": columns, "value": values})
    write_tables(iter([table]), _part(folder, part, _LASTING), repetitive=False)


def read_slice(folder: Path, held: slice) -> NDArray[np.float64]:
    """Read some of the coefficients of a fixed effect, and no parts that have none of them.

    Raises
    ------
    ModelError
        If a file is missing or damaged.
    """
    values, first = np.zeros(held.stop - held.start), 0
    for file in _parts_in(folder):
        n = pq.read_metadata(file).num_rows
        low, high = max(first, held.start), min(first + n, held.stop)
        if low < high:
            own = _to_numpy(read_parquet(file, ["value"])["value"], np.float64)
            values[low - held.start : high - held.start] = own[low - first : high - first]
        first += n
    return values


def read_random(
    folder: Path, part: int | None = None, only: pa.Array | None = None
) -> RandomCoefficients:
    """Read the coefficients of a random effect, or some of them.

    Parameters
    ----------
    part
        Only this part.
    only
        Only these entities; the others are not held in memory.

    Raises
    ------
    ModelError
        If a file is missing or damaged.
    """
    files = _parts_in(folder) if part is None else [_known_part(folder, part)]
    table = _read_files(files, ["entity", "columns", "values"], ["variances", "hessian"], only)
    if len(files) > 1:  # each ascends, which together they need not
        order = pc.sort_indices(table["entity"])
        in_order = bool((np.diff(order.to_numpy()) == 1).all())
        table = table if in_order else table.take(order)
    indptr, columns = _ragged(table["columns"], np.uint32)
    coefficients = RandomCoefficients(
        _entities(table["entity"]), indptr, columns, _ragged(table["values"], np.float64)[1]
    )
    if "variances" in table.column_names:
        variances = _ragged(table["variances"], np.float64)[1]
        coefficients = replace(coefficients, variances=variances)
    if "hessian" in table.column_names:
        hessian_ptr, hessians = _ragged(table["hessian"], np.float64)
        coefficients = replace(coefficients, hessian_ptr=hessian_ptr, hessians=hessians)
    return coefficients


def _ragged(column: pa.ChunkedArray, kind: Any) -> tuple[NDArray[np.int64], Any]:
    """Return pointers and values of a column of lists."""
    lists = _one_array(column)
    sizes = lists.value_lengths().to_numpy()
    ends = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
    return ends, _to_numpy(lists.flatten(), kind)


def read_parquet(
    file: Path,
    columns: Sequence[str],
    optional: Sequence[str] = (),
    only: pa.Array | None = None,
) -> pa.Table:
    """Read columns of a file, the optional ones if it has them.

    Parameters
    ----------
    only
        Only rows whose first column is one of these.

    Raises
    ------
    ModelError
        If it is missing or damaged.
    """
    try:
        with pq.ParquetFile(file) as parquet:
            known = set(parquet.schema_arrow.names)
            wanted = [*columns, *(c for c in optional if c in known)]
            if only is None:
                return parquet.read().select(wanted)
            schema = pa.schema([parquet.schema_arrow.field(name) for name in wanted])
            batches = (batch.select(wanted) for batch in parquet.iter_batches(_ROWS_PER_BATCH))
            return pa.Table.from_batches((_among(batch, only) for batch in batches), schema)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise ModelError(f"{file}: damaged or missing: {' '.join(str(error).split())}") from None


def _parts_in(folder: Path) -> list[Path]:
    files = sorted(f for suffix in (_LASTING, _PASSING) for f in folder.glob(f"part-*{suffix}"))
    if not files:
        raise ModelError(f"{folder}: holds no part-*{_LASTING} file")
    return files


def _known_part(folder: Path, part: int) -> Path:
    file = part_file(folder, part)
    if file is None:
        raise ModelError(f"{_part(folder, part, _LASTING)}: damaged or missing")
    return file


def _read_files(
    files: Sequence[Path], columns: list[str], optional: list[str], only: pa.Array | None = None
) -> pa.Table:
    parts = [
        read_parquet(file, columns, optional, only)
        if file.suffix == _LASTING
        else _read_passing(file, columns, optional, only)
        for file in files
    ]
    return pa.concat_tables(parts, promote_options="permissive")


def _read_passing(
    file: Path, columns: Sequence[str], optional: Sequence[str], only: pa.Array | None
) -> pa.Table:
    """Read columns of an Arrow file, as `read_parquet` does of its own."""
    try:
        with pa.memory_map(str(file)) as mapped:
            table = pa.ipc.open_file(mapped).read_all()
    except (OSError, pa.ArrowException) as error:
        raise ModelError(f"{file}: damaged or missing: {' '.join(str(error).split())}") from None
    table = table.select([*columns, *(c for c in optional if c in table.column_names)])
    if only is None:
        return table
    return pa.Table.from_batches((_among(b, only) for b in table.to_batches()), table.schema)


def _among(batch: pa.RecordBatch, keys: pa.Array) -> pa.RecordBatch:
    own = batch.column(0)
    if pa.types.is_integer(own.type) != pa.types.is_integer(keys.type):
        return batch  # whoever looks them up says so
    return batch.filter(pc.is_in(own.cast(keys.type), value_set=keys))


def read_entities(file: Path, column: str) -> pa.Array:
    """Read a column of entities, or of other keys, as int64 or large_string.

    Raises
    ------
    ModelError
        If the file is missing or damaged.
    """
    return _entities(read_parquet(file, [column])[column])


def _entities(column: pa.ChunkedArray) -> pa.Array:
    """Return entities as int64 or large_string, whatever their writer had."""
    integers = pa.types.is_integer(column.type)
    return _one_array(column.cast(pa.int64() if integers else pa.large_string()))


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def _to_numpy(column: Any, kind: Any) -> Any:
    # A copy: what Arrow lends is read-only, and kernels would be compiled again for that.
    return np.array(column.to_numpy(), kind)
