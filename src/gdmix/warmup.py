"""Compile every kernel once, to pay for it when an image is built and not in a job."""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa

from gdmix import memory
from gdmix.config import FixedEffect, RandomEffect, Task
from gdmix.data.write import temporary_folder
from gdmix.estimator import MixedModel

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
    # From an earlier model, with an entity that has too few rows, and one that has none.
    later = {**rows, "entity": np.append(9, np.arange(1, n) % 3)}
    with temporary_folder(None) as folder, memory.limited(_NO_MEMORY, folder / "scratch"):
        model.save(folder / "model")
        model.set_params(solver="descent", initial_model=folder / "model").fit(later)
    return time.process_time() - started
