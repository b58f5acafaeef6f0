"""Compile every kernel once, to pay for it when an image is built and not in a job."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gdmix import memory
from gdmix.config import FixedEffect, RandomEffect, Task
from gdmix.convert import convert_rows
from gdmix.data.feature_summary import summarize
from gdmix.data.tfrecord.write import write_sequence_examples
from gdmix.data.write import temporary_folder, write_table
from gdmix.estimator import MixedModel
from gdmix.glm.large import MAX_DIRECT_COEFFICIENTS
from gdmix.glm.matrix import CsrMatrix

_WIDE = MAX_DIRECT_COEFFICIENTS + 1
_NO_MEMORY = 1000  # bytes: so few that rows are parted
_TASKS: tuple[Task, ...] = ("logistic_regression", "linear_regression", "poisson_regression")


def compile_kernels() -> float:
    """Train and score a tiny model of each task; return the CPU seconds it took."""
    started = time.process_time()
    n = 64
    response = (np.arange(n) * 7 % 5 < 2).astype(float)
    rows = {
        "uid": np.arange(n)[::-1],
        "entity": np.arange(n) % 4,
        "name": [f"n{i % 40}" for i in range(n)],
        "x": np.linspace(-1.0, 1.0, n),
        "tags": [["a", "b"] if i % 3 else ["a"] for i in range(n)],
        "vector": pa.array([[i % 3, i % 5] for i in range(n)], pa.list_(pa.float32(), 2)),
        "response": response,
    }
    # Saturated on the wrong side: full Newton steps fail, and the line search is called for.
    hard = {**rows, "offset": np.where(response > 0, -40.0, 40.0)}
    for task in _TASKS:
        metrics = ["auc:entity", "ndcg@2:entity"] if task == "logistic_regression" else []
        model = MixedModel(
            [
                FixedEffect("global", features=["all", "names"]),
                RandomEffect(
                    "own", entity="entity", features="all", min_active_rows=2, max_active_rows=8
                ),
                RandomEffect("named", entity="name", features="vector"),
            ],
            features={"all": ["x", "tags"], "names": ["name"], "vector": ["vector"]},
            task=task,
            metrics=metrics,
            solver="joint",
            passes=2,
        )
        model.fit(rows, validation=rows).predict(rows)
        model.fit(hard)
    _select_and_sample(rows)
    # From an earlier model, with an entity that has too few rows, and one that has none.
    later = {**rows, "entity": np.append(9, np.arange(1, n) % 3)}
    # More features than a direct solver takes.
    wide = {"name": [f"n{i}" for i in range(_WIDE)], "response": np.arange(_WIDE) % 2}
    names = {"names": ["name"]}
    MixedModel([FixedEffect("global", features="names")], features=names).fit(wide)
    with temporary_folder(None) as folder, memory.limited(_NO_MEMORY, folder / "scratch"):
        model.save(folder / "model")
        _read_and_write(folder)
        model.set_params(solver="descent", initial_model=folder / "model").fit(later)
    return time.process_time() - started


def _select_and_sample(rows: dict[str, Any]) -> None:
    """Leave features and rows out in every way, and hash features."""
    model = MixedModel(
        [
            FixedEffect("global", features=["some", "hashed"], negative_sampling=0.5),
            RandomEffect(
                "own",
                entity="entity",
                features="some",
                negative_sampling=0.9,
                features_to_samples_ratio=0.05,
            ),
        ],
        features={
            "some": {"columns": ["x", "tags"], "min_count": 2, "max_features": 2},
            "hashed": {"columns": ["name"], "hash_buckets": 8},
        },
    )
    model.fit(rows)
    table = np.ones((2, 2), np.float32)
    summarize(CsrMatrix.dense(table, np.arange(2)), np.ones(2))


def _read_and_write(folder: Path) -> None:
    """Write and read a row of every kind of value in every format of other programs."""
    rows = pa.table(
        {
            "uid": [1, 2],
            "weight": [0.5, None],
            "flag": [True, False],
            "name": ["a", None],
            "bytes": [b"a", b"b"],
            "f_indices": [[0, 1], [2]],
            "f_values": [[0.5, 1.5], [2.5]],
            "tags": [["x"], []],
            "ntv": [[{"name": "x", "term": "", "value": 1.0}], []],
        }
    )
    plain = rows.drop_columns(["ntv"])
    for name, table in (("rows.avro", rows), ("rows.tfrecord", plain)):
        convert_rows([str(_parquet(table, folder))], folder / name)
        convert_rows([str(folder / name)], folder / f"{name}.parquet")
    write_sequence_examples(folder / "grouped.tfrecord", plain.to_batches(), "uid")
    convert_rows([str(folder / "grouped.tfrecord")], folder / "grouped.parquet")


def _parquet(table: pa.Table, folder: Path) -> Path:
    path = folder / "rows.parquet"
    write_table(table, path)
    return path
