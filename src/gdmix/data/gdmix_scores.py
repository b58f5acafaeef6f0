"""A run's score files in GDMix's folders.

A fixed effect has one file, a random effect one for each partition:

<coordinate>/train_scores/part-00000.avro
<coordinate>/train_scores/partitionId=0/part-00000-active.avro     trained on
<coordinate>/train_scores/partitionId=0/part-00000-passive.avro    only scored, if there are any
<coordinate>/validation_scores/partitionId=0/part-00000.avro
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gdmix import memory
from gdmix.config import AvroLayout, ModelConfig, RandomEffect
from gdmix.data.active_rows import RowLimits, choose_rows
from gdmix.data.dataset import Dataset
from gdmix.data.gdmix_layout import partitions_of, score_part
from gdmix.data.score_files import TOTAL, score_tables, write_gdmix_scores

F64 = NDArray[np.float64]
Bools = NDArray[np.bool_]

TRAIN_SCORES, VALIDATION_SCORES = "train_scores", "validation_scores"


def write_score_folders(
    folder: Path,
    split: str,
    rows: Dataset,
    own: Mapping[str, F64],
    config: ModelConfig,
    layout: AvroLayout,
) -> None:
    """Write all coordinates' scores of some rows.

    Parameters
    ----------
    split
        ``train_scores`` or ``validation_scores``.
    own
        Coordinate to its own score of each row, (n,).

    Raises
    ------
    OutputError
        If the system refuses to write there.
    """
    names = field_names(config, layout)
    for name, total in totals(rows.offset, own, config):
        tables = partial(score_tables, rows, config.task, total, {"score": own[name]})
        spec, active = config.coordinates[name], None
        if split == TRAIN_SCORES and isinstance(spec, RandomEffect):
            active = trained_on(rows, spec, config.seed)
        for file in score_files(rows, name, split, config, layout, active):
            some = rows_of(tables(), file.rows)
            write_gdmix_scores(some, folder / file.path, names, others=False)


def field_names(config: ModelConfig, layout: AvroLayout) -> dict[str, str]:
    """Return the columns that are written, and the name of each one's field."""
    roles = {role: config.columns.column(role) for role in ("uid", "response", "weight")}
    return {**roles, TOTAL: layout.score, "score": layout.own_score}


def totals(offset: F64, own: Mapping[str, F64], config: ModelConfig) -> Iterator[tuple[str, F64]]:
    """Yield each coordinate's total score of each row, (n,), which is whole until the next one.

    As in GDMix, a total holds what was trained until then: the offset, the scores of earlier
    coordinates and the own one. After more passes, or from an initial model, it holds all.
    """
    once = config.passes == 1 and config.solver == "descent"
    gradual = once and config.earlier_model is None
    total = memory.copy(offset)
    for score in () if gradual else own.values():
        total += score
    for name, score in own.items():
        if gradual:
            total += score
        yield name, total


@dataclass(frozen=True)
class ScoreFile:
    """A file of some rows' scores.

    Attributes
    ----------
    path
        Below the run folder.
    partition
        That of GDMix whose rows it has; 0 of a fixed effect.
    rows
        (n,) which of the rows; None: all.
    """

    path: Path
    partition: int
    rows: Bools | None


def score_files(
    rows: Dataset,
    name: str,
    split: str,
    config: ModelConfig,
    layout: AvroLayout,
    active: Bools | None,
    part: int = 0,
) -> Iterator[ScoreFile]:
    """Yield the files that a coordinate's scores of some rows go into; none is empty.

    Parameters
    ----------
    split
        ``train_scores`` or ``validation_scores``.
    active
        Of a random effect's training rows, which ones it was trained on, (n,).
    part
        Number of these files, where other rows are in further ones.
    """
    spec, folder = config.coordinates[name], Path(name, split)
    if not isinstance(spec, RandomEffect):
        yield ScoreFile(score_part(folder, None, part=part), 0, None)
        return
    passive = None
    if active is not None:
        active, passive = (None, None) if active.all() else (active, ~active)
    partition = _partition_of_rows(rows, spec.key, layout.partitions.get(name, 1))
    for k in range(1) if partition is None else np.unique(partition).tolist():
        here = None if partition is None else partition == k
        kinds = {"": here}
        if split == TRAIN_SCORES:
            kinds = {"active": _both(here, active)}
            if passive is not None:
                kinds["passive"] = _both(here, passive)
        for kind, keep in kinds.items():
            if keep is None or keep.any():
                yield ScoreFile(score_part(folder, k, kind, part), k, keep)


def rows_of(tables: Iterator[pa.Table], keep: Bools | None) -> Iterator[pa.Table]:
    """Yield those of the rows of tables that are kept, (n,); None: all."""
    first = 0
    for table in tables:
        last = first + table.num_rows
        yield table if keep is None else table.filter(pa.array(keep[first:last]))
        first = last


def trained_on(rows: Dataset, spec: RandomEffect, seed: int) -> Bools:
    """Return which rows a random effect was trained on, (n,): all rows of an entity are here.

    A row that `negative_sampling` leaves out counts as one that it was trained on.
    """
    keys = rows.keys[spec.key]
    limits = RowLimits(spec.min_active_rows, spec.max_active_rows, spec.reweight, seed)
    chosen = choose_rows(keys.codes, len(keys.values), rows.uid, rows.weight, limits)
    return chosen.active >= 0


def _partition_of_rows(rows: Dataset, entity: str, n: int) -> NDArray[np.int32] | None:
    if n == 1:
        return None
    keys = rows.keys[entity]
    return np.append(partitions_of(keys.values, n), np.int32(0))[keys.codes]


def _both(a: Bools | None, b: Bools | None) -> Bools | None:
    return b if a is None else a if b is None else a & b
