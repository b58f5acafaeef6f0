"""Compile every kernel once, to pay for it when an image is built and not in a job."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gdmix import memory
from gdmix.config import Factorization, FixedEffect, RandomEffect, Task
from gdmix.convert import convert_rows
from gdmix.data.feature_summary import summarize
from gdmix.data.tfrecord.write import write_sequence_examples
from gdmix.data.write import temporary_folder, write_table
from gdmix.estimator import MixedModel
from gdmix.glm.distributed import DistributedMap, fit_large_distributed
from gdmix.glm.group import ALONE
from gdmix.glm.laplace import MAX_EXACT_COEFFICIENTS
from gdmix.glm.large import MAX_DIRECT_COEFFICIENTS, MAX_FALLBACK_COEFFICIENTS
from gdmix.glm.losses import LOGISTIC
from gdmix.glm.matrix import CsrMatrix
from gdmix.glm.penalty import EntityPenalty, QuadraticPenalty

_WIDE = MAX_DIRECT_COEFFICIENTS + 1
_MANY = MAX_EXACT_COEFFICIENTS + 1
_NO_MEMORY = 1000  # bytes: so few that rows are parted
_TASKS: tuple[Task, ...] = ("logistic_regression", "linear_regression", "poisson_regression")


def compile_kernels() -> float:
    """Train and score tiny models of every kind; return the CPU seconds it took."""
    started = time.process_time()
    logger = logging.getLogger("gdmix")
    level = logger.level
    logger.setLevel(logging.ERROR)  # what is said of such rows means nothing
    try:
        _train_all()
    finally:
        logger.setLevel(level)
    return time.process_time() - started


def _train_all() -> None:
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
    with temporary_folder(None) as folder:
        _train_on(rows, folder)
    _penalise(rows)
    _factorize(rows)
    _distribute(response)
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


def _penalise(rows: dict[str, Any]) -> None:
    """Estimate L2 weights, of few and of many coefficients; zero and bound coefficients."""
    many = {"name": [f"n{i}" for i in range(_MANY)], "response": np.arange(_MANY) % 2}
    few: list[FixedEffect | RandomEffect] = [
        FixedEffect("global", features="all", l2="auto"),
        RandomEffect("own", entity="entity", features="all", l2="auto"),
    ]
    for task in _TASKS:
        model = MixedModel(few, features={"all": ["x", "tags"]}, task=task, passes=2)
        model.fit(rows)
        model = MixedModel(
            [FixedEffect("global"), RandomEffect("own", entity="name", l2="auto")],
            task=task,
            passes=2,
        )
        model.fit(many)
    sparse: list[FixedEffect | RandomEffect] = [
        FixedEffect("global", features="all", l1=0.1, bounds={"x": (0.0, 1.0)}),
        RandomEffect("own", entity="entity", features="all", l1=0.1),
    ]
    MixedModel(sparse, features={"all": ["x", "tags"]}, passes=2).fit(rows)
    names = {"names": ["name"]}
    MixedModel([FixedEffect("global", features="names", l1=0.1)], features=names).fit(many)


def _train_on(rows: dict[str, Any], folder: Path) -> None:
    """Train models that know how certain they are, and go on with these as a prior."""
    features = {"all": ["x", "tags"]}
    kinds: tuple[dict[str, Any], ...] = {"variance": "full"}, {"save_hessian": True}
    for known in kinds:
        coordinates: list[FixedEffect | RandomEffect] = [
            FixedEffect("global", features="all", penalty_factors={"x": 2.0}, **known),
            RandomEffect("own", entity="entity", features="all", **known),
        ]
        model = MixedModel(coordinates, features=features).fit(rows)
        model.predict(rows, "std_error")
        model.predict(rows, "sample", seed=1)
        model.save(folder / "earlier")
        model.set_params(prior={"model": folder / "earlier", "forgetting": 0.5}).fit(rows)
    centred = RandomEffect("own", entity="entity", features="all", normalization="standardize")
    MixedModel([centred], features=features).fit(rows)
    # Of an entity with a large share of all rows.
    EntityPenalty(np.ones(2), means=np.ones(2)).of_entity(np.array([0, 2]), 0)


def _factorize(rows: dict[str, Any]) -> None:
    """Fit factors by either method, with and without features; score unseen entities."""
    later = {**rows, "entity": np.arange(len(rows["uid"])) % 5}
    settings: list[dict[str, Any]] = [{"method": "map"}, {"features": {"entity": "all"}}]
    for task in _TASKS:
        for own in settings:
            spec = Factorization("both", entities=["entity", "name"], rank=2, **own)
            model = MixedModel([spec], features={"all": ["x", "tags"]}, task=task, metrics=[])
            model.fit(rows).predict(later)


def _distribute(response: NDArray[np.float64]) -> None:
    """Fit rows that meet few of many columns, as one of several processes does."""
    n, d = response.size, 2 * MAX_FALLBACK_COEFFICIENTS
    columns = np.arange(n, dtype=np.uint32)
    rows = CsrMatrix(np.arange(n + 1), columns, np.ones(n, np.float32), d - 1)
    design = DistributedMap(rows, True, 1, ALONE)
    labels = response, np.ones(n), np.zeros(n)
    for l2 in (1.0, 0.0):
        penalty = QuadraticPenalty(np.full(d, l2))
        fit_large_distributed(design, *labels, loss=LOGISTIC, penalty=penalty, max_iterations=2)


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
