"""How well `l2: auto` recovers variances that are known: bias and spread over simulated data.

Crossed random effects: 200 entities of 25 rows with an intercept (variance 0.5) and two slopes
(0.2), 60 of the other side with an intercept (0.3), and a fixed effect without a penalty; of the
linear task a residual variance of 2.25. Run as ``python benchmarks/variance_components.py``.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from gdmix import FixedEffect, MixedModel, RandomEffect
from gdmix.config import Task

TASKS: tuple[Task, ...] = ("logistic_regression", "linear_regression", "poisson_regression")
TRUE = {"one (INTERCEPT)": 0.5, "one x": 0.2, "other (INTERCEPT)": 0.3}
RESIDUAL = 2.25


def simulate(task: Task, seed: int, entities: int, rows: int, crossed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    n = entities * rows
    one, other = np.repeat(np.arange(entities), rows), rng.integers(0, crossed, n)
    x = rng.normal(size=(n, 2)).astype(np.float32)
    intercepts, slopes, others = (
        rng.normal(0.0, np.sqrt(variance), size)
        for variance, size in zip(TRUE.values(), (entities, (entities, 2), crossed), strict=True)
    )
    z = -0.3 + 0.5 * x[:, 0] + intercepts[one] + (x * slopes[one]).sum(axis=1) + others[other]
    if task == "logistic_regression":
        y = (rng.uniform(size=n) < 1.0 / (1.0 + np.exp(-z))).astype(np.float64)
    elif task == "poisson_regression":
        y = rng.poisson(np.exp(z)).astype(np.float64)
    else:
        y = z + rng.normal(0.0, np.sqrt(RESIDUAL), n)
    return {"one": one, "other": other, "x0": x[:, 0], "x1": x[:, 1], "response": y}


def estimate(task: Task, rows: dict[str, Any]) -> dict[str, float]:
    model = MixedModel(
        [
            FixedEffect("global", features="x", l2=0.0),
            RandomEffect("one", entity="one", features="x", l2="auto"),
            RandomEffect("other", entity="other", l2="auto"),
        ],
        features={"x": ["x0", "x1"]},
        task=task,
        passes=20,
        threads=1,
    ).fit(rows)
    found = model.estimate_
    result = {f"{c.coordinate} {c.group}": c.variance for c in found.components}
    return result | ({"residual": found.dispersion} if task == "linear_regression" else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=50)
    seeds = parser.parse_args().seeds
    print("| task | rows per entity | variance of | true | mean | bias | spread (sd) | CPU s |")
    print("|---|---|---|---|---|---|---|---|")
    for task in TASKS:
        for per_entity in (10, 25):
            started = time.process_time()
            runs = [estimate(task, simulate(task, s, 200, per_entity, 60)) for s in range(seeds)]
            seconds = (time.process_time() - started) / seeds
            for name in runs[0]:
                own = np.array([run[name] for run in runs])
                true = TRUE.get(name, RESIDUAL)
                print(
                    f"| {task.partition('_')[0]} | {per_entity} | {name} | {true} "
                    f"| {own.mean():.3f} | {own.mean() / true - 1:+.1%} | {own.std():.3f} "
                    f"| {seconds:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
