"""A run's score files in GDMix's folders.

A fixed effect has one file, a random effect one for each partition:

<coordinate>/train_scores/part-00000.avro
<coordinate>/train_scores/partitionId=0/part-00000-active.avro     trained on
<coordinate>/train_scores/partitionId=0/part-00000-passive.avro    only scored, if there are any
<coordinate>/validation_scores/partitionId=0/part-00000.avro
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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


def write_score_folders(
    folder: Path,
    split: str,
    rows: Dataset,
    own: Mapping[str, F64],
    config: ModelConfig,
    layout: AvroLayout,
) -> None:
    """Write all coordinates' scores of some rows.

    As in GDMix, a total holds what was trained until then: the offset, the scores of earlier
    coordinates and the own one. After more passes, or from an initial model, it holds all.

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
    once = config.passes == 1 and config.solver == "descent"
    gradual = once and config.earlier_model is None
    total = memory.copy(rows.offset)
    for score in () if gradual else own.values():
        total += score
    roles = {role: config.columns.column(role) for role in ("uid", "response", "weight")}
    names = {**roles, TOTAL: layout.score, "score": layout.own_score}
    for name, score in own.items():
        if gradual:
            total += score
        spec, target = config.coordinates[name], folder / name / split

        tables = partial(score_tables, rows, config.task, total, {"score": score})
        if not isinstance(spec, RandomEffect):
            write_gdmix_scores(tables(), target / "part-00000.avro", names, others=False)
            continue
        active = _active(rows, spec, config.seed) if split == "train_scores" else None
        n = layout.partitions.get(name, 1)
        partition = _partition_of_rows(rows, spec.key, n)
        for k in range(n):
            here = None if partition is None else partition == k
            kinds: dict[str, Bools | None] = {"": here}
            if split == "train_scores":
                kinds = {"active": _both(here, active)}
                if active is not None:
                    kinds["passive"] = _both(here, ~active)
            for kind, keep in kinds.items():
                if keep is None or keep.any():
                    file = score_part(target, k, kind)
                    write_gdmix_scores(_only(tables(), keep), file, names, others=False)


def _only(tables: Iterator[pa.Table], keep: Bools | None) -> Iterator[pa.Table]:
    first = 0
    for table in tables:
        last = first + table.num_rows
        yield table if keep is None else table.filter(pa.array(keep[first:last]))
        first = last


def _partition_of_rows(rows: Dataset, entity: str, n: int) -> NDArray[np.int32] | None:
    if n == 1:
        return None
    keys = rows.keys[entity]
    return np.append(partitions_of(keys.values, n), np.int32(0))[keys.codes]


def _active(rows: Dataset, spec: RandomEffect, seed: int) -> Bools | None:
    """Return which rows the coordinate was trained on, (n,); None if on all of them."""
    keys = rows.keys[spec.key]
    limits = RowLimits(spec.min_active_rows, spec.max_active_rows, spec.reweight, seed)
    chosen = choose_rows(keys.codes, len(keys.values), rows.uid, rows.weight, limits)
    active = chosen.active >= 0
    return None if active.all() else active


def _both(a: Bools | None, b: Bools | None) -> Bools | None:
    return b if a is None else a if b is None else a & b
