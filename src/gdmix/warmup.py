"""Compile every kernel once, to pay for it when an image is built and not in a job."""

from __future__ import annotations

import time

import numpy as np

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
        "response": response,
    }
    # Saturated on the wrong side: full Newton steps fail, and the line search is called for.
    hard = {**rows, "offset": np.where(response > 0, -40.0, 40.0)}
    for task in _TASKS:
        metrics = ["auc:entity", "ndcg@2:entity"] if task == "logistic_regression" else []
        model = MixedModel(
            [
                FixedEffect("global", features=["all", "names"]),
                RandomEffect("own", entity="entity", features="all"),
                RandomEffect("named", entity="name"),
            ],
            features={"all": ["x", "tags"], "names": ["name"]},
            task=task,
            metrics=metrics,
            solver="joint",
            passes=2,
        )
        model.fit(rows, validation=rows).predict(rows)
        model.fit(hard)
    with temporary_folder(None) as folder, memory.limited(_NO_MEMORY, folder):
        model.set_params(solver="descent").fit(rows)
    return time.process_time() - started
