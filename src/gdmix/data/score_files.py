"""Score files: who, what was observed, the score, as Parquet (or CSV, or Avro, where asked).

A file's metadata name the task, so that metrics can be computed from the file alone. In Avro they
are GDMix's records `validation_result`, whose first fields have GDMix's names and types.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from gdmix.config import Task
from gdmix.data.avro.write import write_batches
from gdmix.data.dataset import Dataset
from gdmix.data.keys import Keys, key_column
from gdmix.data.read import open_rows
from gdmix.data.schema import is_scalar_number
from gdmix.data.validate import as_floats, counted
from gdmix.data.write import atomic_file, write_tables
from gdmix.errors import DataError, OutputError, did_you_mean

F64 = NDArray[np.float64]
_TASK = b"gdmix.task"
TOTAL = "total_score"
GDMIX_TOTAL, GDMIX_OWN = "predictionScore", "predictionScorePerCoordinate"
_GDMIX_FIELDS: Mapping[str, tuple[str, Any]] = {
    "uid": ("uid", "long"),
    TOTAL: (GDMIX_TOTAL, "float"),
    "response": ("response", ["null", "float"]),
    "weight": ("weight", "float"),
    "score": (GDMIX_OWN, "float"),
}
_ROWS_PER_PIECE = 500_000


def without(keys: Mapping[str, Keys], texts: Collection[str]) -> dict[str, Keys]:
    """Return the keys that a score file has columns of: entities, not texts."""
    return {name: own for name, own in keys.items() if name not in texts}


def score_tables(
    rows: Dataset, task: Task, total: F64, columns: Mapping[str, F64]
) -> Iterator[pa.Table]:
    """Lay out a score file, piece by piece.

    Parameters
    ----------
    total
        (n,) linear predictor: offset plus all coordinates' scores.
    columns
        More columns to put before it.

    Yields
    ------
    pyarrow.Table
        ``uid``, entity and grouping columns, ``response`` (null where unknown), ``weight``,
        ``offset``, `columns`, ``total_score``.
    """
    for first in range(0, max(rows.n_rows, 1), _ROWS_PER_PIECE):
        part = slice(first, first + _ROWS_PER_PIECE)
        table = pa.table(
            {
                "uid": rows.uid[part],
                **{name: keys.slice(part) for name, keys in rows.keys.items()},
                "response": pa.array(rows.response[part], from_pandas=True),
                "weight": rows.weight[part],
                "offset": rows.offset[part],
                **{name: values[part] for name, values in columns.items()},
                TOTAL: total[part],
            }
        )
        yield table.replace_schema_metadata({_TASK: task.encode()})


def write_scores(
    tables: Iterator[pa.Table], path: Path, kind: Literal["parquet", "avro"] = "parquet"
) -> Path:
    """Write a score file: ``.csv``, ``.parquet``, ``.avro``, or a folder that gets one part.

    Parameters
    ----------
    tables
        Its rows in pieces, at least one.
    kind
        Of the part, where `path` is a folder.

    Raises
    ------
    OutputError
        If the suffix is another one, or the system refuses to write there.
    """
    if path.suffix not in ("", ".parquet", ".csv", ".avro"):
        raise OutputError(f"{path}: unknown kind of file; use .parquet, .csv, .avro or a folder")
    if path.suffix == "" and path.exists() and not path.is_dir():
        raise OutputError(f"{path}: is a file; name a folder, or a file ending in .parquet or .csv")
    target = path if path.suffix else path / f"part-00000.{kind}"
    if target.suffix == ".csv":
        _write_csv(tables, target)
    elif target.suffix == ".avro":
        write_gdmix_scores(tables, target)
    else:
        write_tables(tables, target)
    return target


def _write_csv(tables: Iterator[pa.Table], path: Path) -> None:
    with atomic_file(path) as temporary:
        first = next(tables)
        with pyarrow.csv.CSVWriter(temporary, first.schema) as writer:
            for table in chain([first], tables):
                writer.write_table(table)


def write_gdmix_scores(
    tables: Iterator[pa.Table],
    path: Path,
    names: Mapping[str, str] | None = None,
    others: bool = True,
) -> None:
    """Write Avro records ``validation_result``; scores are in single precision, as GDMix has them.

    Parameters
    ----------
    names
        Column to the name its field gets, instead of GDMix's default.
    others
        Whether columns that GDMix does not have are written too.
    """
    first = next(tables)
    renamed = {c: (n, _GDMIX_FIELDS[c][1]) for c, n in (names or {}).items()}
    known = {**_GDMIX_FIELDS, **renamed}
    kinds = {c: (name, kind) for c, (name, kind) in known.items() if c in first.schema.names}
    if others:
        rest = (f for f in first.schema if f.name not in known)
        kinds |= {f.name: (f.name, ["null", _avro_type(f.type)]) for f in rest}
    columns = list(kinds)
    fields = [{"name": _avro_name(name), "type": kind} for name, kind in kinds.values()]
    schema: dict[str, Any] = {"type": "record", "name": "validation_result", "fields": fields}
    # What `read_scores` is to know: other programs skip properties that they don't know.
    task = (first.schema.metadata or {}).get(_TASK)
    schema |= {} if task is None else {_TASK.decode(): task.decode()}
    schema |= {f"gdmix.{c}": _avro_name(known[c][0]) for c in ("response", "weight", TOTAL)}
    names_out = [f["name"] for f in fields]
    batches = (
        batch
        for table in chain([first], tables)
        for batch in table.select(columns).rename_columns(names_out).to_batches()
    )
    write_batches(path, schema, batches)


def _avro_name(name: str) -> str:
    return re.sub(r"\W|^(?=\d)", "_", name, flags=re.ASCII)


def _avro_type(kind: pa.DataType) -> str:
    if pa.types.is_integer(kind):
        return "long"
    return "double" if pa.types.is_floating(kind) else "string"


@dataclass(frozen=True)
class ScoredRows:
    """A score file read back, all arrays (n,).

    Attributes
    ----------
    task
        As the file tells; None if it doesn't.
    score, response, weight
        float64.
    groups
        Dense codes of each grouping column.
    """

    task: Task | None
    score: F64
    response: F64
    weight: F64
    groups: Mapping[str, NDArray[np.int32]]


def read_scores(source: Sequence[str], groups: Sequence[str], score_column: str) -> ScoredRows:
    """Read score files, also those of GDMix (there the response may be called ``label``).

    Raises
    ------
    DataError
        If a column is missing or holds anything but numbers, or the response has nulls.
    """
    rows = open_rows(list(source))
    names = rows.schema.names
    if score_column == TOTAL:
        score_column = _column(rows.schema, TOTAL, GDMIX_TOTAL)
    response = _column(rows.schema, "response", "label")
    weight = [c] if (c := _column(rows.schema, "weight")) in names else []
    wanted = [score_column, response, *groups]
    findings = [
        f"{rows.label}: column '{c}' is missing{did_you_mean(c, names)}"
        for c in dict.fromkeys(wanted)
        if c not in names
    ]
    for column in dict.fromkeys([response, score_column, *weight]):
        kind = rows.schema.field(column).type if column in names else pa.null()
        if not is_scalar_number(kind):
            findings.append(f"{rows.label}: column '{column}' is {kind}, expected a number")
    if findings:
        raise DataError(findings)
    table = rows.read(list(dict.fromkeys(wanted + weight)))
    if not table.num_rows:
        raise DataError(f"{rows.label}: has no rows")
    nulls = {c: table[c].null_count for c in (response, score_column)}
    if any(nulls.values()):
        raise DataError(
            [
                f"{rows.label}: column '{c}': {counted(n)} with no value; metrics need one"
                for c, n in nulls.items()
                if n
            ]
        )
    n = table.num_rows
    codes = {c: key_column(table[c], c, rows.label).codes for c in groups}
    return ScoredRows(
        _task_of(rows.schema),
        as_floats(table[score_column], 0.0),
        as_floats(table[response], 0.0),
        as_floats(table[weight[0]], 1.0) if weight else np.ones(n),
        codes,
    )


def _column(schema: pa.Schema, role: str, otherwise: str = "") -> str:
    """Return the column of a role: the one that the file names, its own name, or GDMix's."""
    named = (schema.metadata or {}).get(f"gdmix.{role}".encode(), b"").decode()
    found = [c for c in (named, role, otherwise) if c in schema.names]
    return found[0] if found else role


def _task_of(schema: pa.Schema) -> Task | None:
    name = (schema.metadata or {}).get(_TASK, b"").decode()
    tasks: tuple[Task, ...] = ("logistic_regression", "linear_regression", "poisson_regression")
    return next((t for t in tasks if t == name), None)
