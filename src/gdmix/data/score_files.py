"""Score files: who, what was observed, the score, as Parquet (or CSV where asked).

A file's metadata name the task, so that metrics can be computed from the file alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from gdmix.config import Task
from gdmix.data.dataset import Dataset
from gdmix.data.keys import key_column
from gdmix.data.read import open_rows
from gdmix.data.schema import is_scalar_number
from gdmix.data.validate import as_floats, counted
from gdmix.data.write import atomic_file, write_tables
from gdmix.errors import DataError, OutputError, did_you_mean

F64 = NDArray[np.float64]
_TASK = b"gdmix.task"
TOTAL = "total_score"
_ROWS_PER_PIECE = 500_000


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


def write_scores(tables: Iterator[pa.Table], path: Path) -> Path:
    """Write a score file: ``.csv``, ``.parquet``, or a folder that gets one part.

    Parameters
    ----------
    tables
        Its rows in pieces, at least one.

    Raises
    ------
    OutputError
        If the suffix is another one, or the system refuses to write there.
    """
    if path.suffix == ".csv":
        with atomic_file(path) as temporary:
            first = next(tables)
            with pyarrow.csv.CSVWriter(temporary, first.schema) as writer:
                for table in chain([first], tables):
                    writer.write_table(table)
        return path
    if path.suffix not in ("", ".parquet"):
        raise OutputError(f"{path}: unknown kind of file; use .parquet, .csv or a folder")
    if path.suffix == "" and path.exists() and not path.is_dir():
        raise OutputError(f"{path}: is a file; name a folder, or a file ending in .parquet or .csv")
    target = path if path.suffix else path / "part-00000.parquet"
    write_tables(tables, target)
    return target


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
    """Read score files.

    Raises
    ------
    DataError
        If a column is missing or holds anything but numbers, or the response has nulls.
    """
    rows = open_rows(list(source))
    names = rows.schema.names
    wanted = [score_column, "response", *groups]
    weight = ["weight"] if "weight" in names else []
    findings = [
        f"{rows.label}: column '{c}' is missing{did_you_mean(c, names)}"
        for c in dict.fromkeys(wanted)
        if c not in names
    ]
    for column in dict.fromkeys(["response", score_column, *weight]):
        kind = rows.schema.field(column).type if column in names else pa.null()
        if not is_scalar_number(kind):
            findings.append(f"{rows.label}: column '{column}' is {kind}, expected a number")
    if findings:
        raise DataError(findings)
    table = rows.read(list(dict.fromkeys(wanted + weight)))
    if not table.num_rows:
        raise DataError(f"{rows.label}: has no rows")
    nulls = {c: table[c].null_count for c in ("response", score_column)}
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
        as_floats(table["response"], 0.0),
        as_floats(table["weight"], 1.0) if weight else np.ones(n),
        codes,
    )


def _task_of(schema: pa.Schema) -> Task | None:
    name = (schema.metadata or {}).get(_TASK, b"").decode()
    tasks: tuple[Task, ...] = ("logistic_regression", "linear_regression", "poisson_regression")
    return next((t for t in tasks if t == name), None)
