"""Score rows with a saved model, every task its own part of them."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gdmix.config import ModelConfig, ValidateMode
from gdmix.data.dataset import Dataset, load_rows
from gdmix.data.join import join_rows
from gdmix.data.read import RowSource, Source, open_rows
from gdmix.data.score_files import write_scores
from gdmix.data.write import check_replaceable, replaced_folder
from gdmix.engines.spark.cluster import Cluster
from gdmix.engines.spark.exchange import addressed, messages
from gdmix.engines.spark.session import check_session
from gdmix.engines.spark.sources import open_spark_rows
from gdmix.engines.spark.tasks.kinds import ROW
from gdmix.errors import DataError, OutputError
from gdmix.model.any_model import read_any_model
from gdmix.model.base import CoordinateModel
from gdmix.model.mixed_model import TrainedModel
from gdmix.model.score_rows import ScoreColumns, score_rows
from gdmix.model.stored import StoredModel

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

F64 = NDArray[np.float64]

# What a worker process has read for the call of `score_to_files` that it works for.
_READ: dict[tuple[str, Path], CoordinateModel] = {}


@dataclass(frozen=True)
class ScoreTask:
    """What each task does with its rows; see `gdmix.scoring.score_to_file`.

    Attributes
    ----------
    call
        Tells this scoring from others: a model may have changed since.
    """

    call: str
    model: TrainedModel
    label: str
    schema: pa.Schema
    folder: Path
    columns: ScoreColumns
    validate: ValidateMode
    external: Mapping[str, str]
    allow_pickle: bool


def score_to_files(
    session: SparkSession,
    model_folder: Path,
    data: Source,
    output: Path,
    components: bool = False,
    validate: ValidateMode = "strict",
    external: Mapping[str, str] | None = None,
    description: ModelConfig | None = None,
    joined: Sequence[str] = (),
    allow_pickle: bool = False,
    std_error: bool = False,
    sample: int | None = None,
) -> tuple[Path, int]:
    """Score rows into a folder of Parquet files; arguments as of `gdmix.scoring.score_to_file`.

    Of a random effect each task reads the models of its own rows' entities alone.

    Parameters
    ----------
    session
        A classic session, all of whose machines reach model and output by the same paths.

    Returns
    -------
    tuple
        The folder, and how many rows were scored.

    Raises
    ------
    GdmixError
        If the model, the rows or the output can't be used.
    """
    cluster = Cluster(check_session(session))
    if output.suffix:
        raise OutputError(f"{output}: tasks write a file each: name a folder, without a suffix")
    rows = open_spark_rows(session, data, "data")
    others = [open_rows(path) for path in joined]
    schemas = [*(own.schema for own in others), rows.schema]
    types = {field.name: field.type for schema in schemas for field in schema}
    model = read_any_model(model_folder.absolute(), description, types, stored=True)
    if others:  # on the driver
        uid = model.columns.column("uid")
        table = join_rows(open_rows(data), [(own, "") for own in others], uid)
        rows = open_spark_rows(session, table, "data")
    columns = model.row_schema().select(rows.schema, rows.label)
    if not rows.count(cluster.errors):
        raise DataError(f"{rows.label}: has no rows")
    check_replaceable(output, overwrite=True, is_ours=_holds_scores)
    with replaced_folder(output) as folder:
        task = ScoreTask(
            secrets.token_hex(8),
            model,
            rows.label,
            pa.schema([rows.schema.field(c) for c in columns]),
            folder.absolute(),
            ScoreColumns(components, std_error, sample),
            validate,
            external or {},
            allow_pickle,
        )
        messages = rows.map_tables(partial(_score, task), columns, cluster.errors, numbered=True)
        counts = cluster.collect(cluster.received(messages, 1))
    return output, sum(counts)


def _holds_scores(folder: Path) -> bool:
    return all(f.match("part-*.parquet") for f in folder.iterdir() if not f.name.startswith("."))


def _score(
    task: ScoreTask, partition: int, tables: Iterator[pa.Table]
) -> Iterator[tuple[int, bytes]]:
    """Score the rows of a partition into one file."""
    n = 0

    def scored() -> Iterator[pa.Table]:
        nonlocal n
        for table in tables:
            if not table.num_rows:
                continue
            number = int(table[ROW][0].as_py())
            rows = _rows(task, table.drop_columns([ROW]), number)
            n += rows.n_rows
            yield from _tables(task, rows)

    done = scored()
    first = next(done, None)
    if first is not None:
        write_scores(chain([first], done), task.folder / f"part-{partition:05d}.parquet")
    yield from messages(addressed(0, "count", partition, n))


def _rows(task: ScoreTask, table: pa.Table, first: int) -> Dataset:
    model = task.model
    source = RowSource(task.label, task.schema, lambda columns: iter([table.select(columns)]))
    return load_rows(
        source, model.row_schema(), model.indices, model.task, task.validate, first_row=first
    )


def _tables(task: ScoreTask, rows: Dataset) -> Iterator[pa.Table]:
    """Score rows as `gdmix.scoring.score_to_file` does."""
    models = {n: _of_rows(task, m, rows) for n, m in task.model.coordinates.items()}
    model = replace(task.model, coordinates=models)
    model = model.with_pickles_trusted() if task.allow_pickle else model
    yield from score_rows(model, rows, task.columns, 1, task.external)


def _of_rows(task: ScoreTask, model: CoordinateModel, rows: Dataset) -> CoordinateModel:
    if not isinstance(model, StoredModel):
        return model
    return model.for_rows(rows) if model.type == "random_effect" else _loaded(task.call, model)


def _loaded(call: str, model: StoredModel) -> CoordinateModel:
    """Return a model, which a worker process reads once in a call."""
    place = call, model.folder
    if place not in _READ:
        for other in [key for key in _READ if key[0] != call]:
            del _READ[other]
        _READ[place] = model.loaded
    return _READ[place]
