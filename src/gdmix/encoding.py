"""What a deep coordinate's network makes of a side of rows: vectors, in memory or beside the rows.

A column of such vectors is a dense feature bag of other models: of a random effect, to fit a model
per user of the network's own view of items.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gdmix import memory
from gdmix.config import ValidateMode
from gdmix.data.dataset import load_rows
from gdmix.data.join import join_rows
from gdmix.data.read import RowSource, Source, open_rows
from gdmix.data.write import temporary_folder, write_tables
from gdmix.errors import ModelError, OutputError
from gdmix.glm.threads import available_threads
from gdmix.model.mixed_model import TrainedModel
from gdmix.model.store import read_model

F32 = NDArray[np.float32]


def encode_rows(
    model: TrainedModel,
    rows: Source,
    coordinate: str,
    side: str,
    validate: ValidateMode = "strict",
    threads: int = 1,
) -> F32:
    """Return the vector of a side of each row, (n, dim); see `MixedModel.encode`.

    Parameters
    ----------
    model
        Of the coordinate alone: `TrainedModel.only`.
    validate
        Not ``drop``: there is a vector per row.
    """
    own = model.coordinates[coordinate]
    if own.type != "deep":
        raise ModelError(f"coordinate '{coordinate}' is of type {own.type}: only deep ones encode")
    from gdmix.deep.model import DeepModel  # the model was read: PyTorch is there

    assert isinstance(own, DeepModel)
    own.check_side(side)
    dataset = load_rows(
        rows, model.row_schema(), model.indices, model.task, validate, threads=threads
    )
    return own.encode(dataset, side, threads)


@dataclass(frozen=True)
class Encoded:
    """Where rows went, how many they are, and the column of vectors that they got."""

    path: Path
    rows: int
    column: str
    dim: int


def encode_to_file(
    model_folder: Path,
    data: Sequence[str],
    output: Path,
    coordinate: str,
    side: str = "document",
    column: str | None = None,
    joined: Sequence[str] = (),
    validate: ValidateMode = "strict",
) -> Encoded:
    """Write rows with a column of the vectors of a side.

    Parameters
    ----------
    output
        A ``.parquet`` file.
    column
        Its name; default: coordinate and side, with an underscore between.
    joined
        Further sources of the same rows, whose columns are found by uid.

    Raises
    ------
    GdmixError
        If the model, the rows or the output can't be used.
    """
    name = column or f"{coordinate}_{side}"
    if output.suffix != ".parquet":
        raise OutputError(f"{output}: name a .parquet file: it keeps a column of vectors as such")
    if validate == "drop":
        raise ModelError("--validate drop: there is a vector for each row; mend them, or use off")
    model = read_model(model_folder).only(coordinate)
    rows = open_rows(list(data))
    if joined:
        others = [(open_rows(path), "") for path in joined]
        rows = join_rows(rows, others, model.columns.column("uid"))
    if name in rows.schema.names:
        raise OutputError(f"{output}: the rows have a column '{name}' already; name another one")
    with temporary_folder(None) as folder, memory.limited(None, folder):
        vectors = encode_rows(model, rows, coordinate, side, validate, available_threads())
        write_tables(_with_column(rows, name, vectors), output)
        return Encoded(output, len(vectors), name, vectors.shape[1])


def _with_column(rows: RowSource, name: str, vectors: F32) -> Iterator[pa.Table]:
    first, dim = 0, vectors.shape[1]
    for table in rows.stream(rows.schema.names):
        part = vectors[first : first + table.num_rows].reshape(-1)
        first += table.num_rows
        lists = pa.FixedSizeListArray.from_arrays(pa.array(part), dim)
        yield table.append_column(name, lists)
    if not first:
        kind = pa.list_(pa.float32(), dim)
        yield rows.schema.append(pa.field(name, kind)).empty_table()
