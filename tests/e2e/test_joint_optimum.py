"""Passes until convergence, and `solver: joint`, reach the one optimum of the crossed design.

The optimum is found by plain Newton steps on the dense crossed design, which is built here from
the columns of the rows: nothing of gdmix but its objective's definition is used for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from gdmix import FixedEffect, MixedModel, RandomEffect

F64 = NDArray[np.float64]
Key = tuple[str, Any, str, str]  # coordinate, entity, name, term

USERS, ITEMS, N = 12, 7, 700
LOSSES: dict[str, Callable[[F64, F64], tuple[F64, F64, F64]]] = {
    "logistic_regression": lambda z, y: (
        np.logaddexp(0.0, z) - y * z,
        1 / (1 + np.exp(-z)) - y,
        1 / (2 + np.exp(z) + np.exp(-z)),
    ),
    "linear_regression": lambda z, y: (0.5 * (z - y) ** 2, z - y, np.ones_like(z)),
    "poisson_regression": lambda z, y: (np.exp(z) - y * z, np.exp(z) - y, np.exp(z)),
}


def make_rows(task: str) -> pa.Table:
    rng = np.random.default_rng(3)
    user, item = rng.integers(0, USERS, N), rng.integers(0, ITEMS, N)
    x, v = (np.round(rng.normal(size=N) * 64) / 64 for _ in range(2))  # exact in float32
    kind = rng.choice(["a", "b"], N)
    offset = rng.normal(size=N) / 3
    slope, level = rng.normal(size=USERS) / 2, rng.normal(size=ITEMS) / 2
    z = offset + 0.2 + x * (0.4 + slope[user]) - 0.3 * v + level[item] * (1 + (kind == "a"))
    draw = {
        "logistic_regression": lambda: (rng.random(N) < 1 / (1 + np.exp(-z))).astype(float),
        "linear_regression": lambda: z + rng.normal(size=N),
        "poisson_regression": lambda: rng.poisson(np.exp(z)).astype(float),
    }
    return pa.table(
        {
            "response": draw[task](),
            "weight": rng.integers(0, 4, N) / 2.0,
            "offset": offset,
            "user": user,
            "item": [f"i{i}" for i in item],
            "x": x,
            "v": v,
            "kind": kind,
        }
    )


def design_of(rows: pa.Table, coordinates: list[Any]) -> tuple[list[Key], F64, F64]:
    """Return a key, a dense column and an L2 weight per coefficient of the crossed design."""
    kind = np.array(rows["kind"].to_pylist())
    features = {
        ("(INTERCEPT)", ""): np.ones(N),
        ("x", ""): rows["x"].to_numpy(),
        ("v", ""): rows["v"].to_numpy(),
        ("kind", "a"): (kind == "a") * 1.0,
        ("kind", "b"): (kind == "b") * 1.0,
    }
    of_bag = {"num": [("x", ""), ("v", "")], "cat": [("kind", "a"), ("kind", "b")]}
    keys: list[Key] = []
    columns, weights = [], []
    for spec in coordinates:
        own = [("(INTERCEPT)", "")] * spec.intercept + [f for b in spec.features for f in of_bag[b]]
        entity = np.array(rows[spec.entity].to_pylist()) if isinstance(spec, RandomEffect) else None
        for value in [None] if entity is None else np.unique(entity).tolist():
            member = np.ones(N) if entity is None else (entity == value) * 1.0
            for name, term in own:
                keys.append((spec.name, value, name, term))
                columns.append(features[name, term] * member)
                penalised = name != "(INTERCEPT)" or spec.regularize_intercept
                weights.append(spec.l2 * penalised)
    return keys, np.column_stack(columns), np.array(weights)


def optimum(rows: pa.Table, task: str, design: F64, l2: F64) -> tuple[float, F64]:
    """Return the joint objective's minimum and where it is."""
    y, w, offset = (rows[c].to_numpy() for c in ("response", "weight", "offset"))

    def evaluate(beta: F64) -> tuple[float, F64, F64]:
        value, first, second = LOSSES[task](offset + design @ beta, y)
        gradient = design.T @ (w * first) + l2 * beta
        hessian = design.T @ ((w * second)[:, None] * design) + np.diag(l2)
        return float(w @ value + 0.5 * l2 @ beta**2), gradient, hessian

    beta = np.zeros(design.shape[1])
    value, gradient, hessian = evaluate(beta)
    for _ in range(100):
        step, t = np.linalg.solve(hessian, gradient), 1.0
        while evaluate(beta - t * step)[0] > value + 1e-12 * abs(value):
            t /= 2
        beta -= t * step
        value, gradient, hessian = evaluate(beta)
        if np.linalg.norm(gradient) < 1e-9:
            return value, beta
    raise AssertionError(f"the oracle did not converge: {np.linalg.norm(gradient)}")


def fitted_coefficients(model: MixedModel) -> dict[Key, float]:
    return {
        (name, row.get("entity"), row["name"], row["term"]): row["value"]
        for name in model.model_.coordinates
        for row in model.coefficients(name).to_pylist()
    }


MODELS = {
    "penalised intercepts of random effects": [
        FixedEffect("global", features=["num", "cat"], l2=0.5),
        RandomEffect("per-user", entity="user", features="num", l2=2.0),
        RandomEffect("per-item", entity="item", features="cat", l2=1.0),
    ],
    "intercepts here and there": [
        RandomEffect("per-item", entity="item", features=["cat", "num"], l2=3.0, intercept=False),
        FixedEffect("global", features="num", regularize_intercept=True),
        RandomEffect("per-user", entity="user"),
    ],
    "the fixed effect has no features, an entity column is used twice": [
        FixedEffect("level"),
        RandomEffect("user-level", entity="user", l2=0.7),
        RandomEffect("user-slopes", entity="user", features="num", intercept=False, l2=5.0),
        RandomEffect("per-item", entity="item", features="cat"),
    ],
    "one random effect has intercepts that are free, nothing else has one": [
        FixedEffect("global", features="num", intercept=False),
        RandomEffect("per-item", entity="item", features="num", regularize_intercept=False),
        RandomEffect("per-user", entity="user", features="num", intercept=False),
    ],
}


LONG = {"passes": 1000, "tolerance": 1e-13}


@pytest.mark.parametrize("how", [LONG, {"solver": "joint"}], ids=["passes", "joint"])
@pytest.mark.parametrize("task", LOSSES)
@pytest.mark.parametrize("coordinates", MODELS.values(), ids=MODELS)
def test_the_joint_optimum_is_reached(
    task: Any, coordinates: list[Any], how: dict[str, Any]
) -> None:
    rows = make_rows(task)
    keys, design, l2 = design_of(rows, coordinates)
    least, beta = optimum(rows, task, design, l2)
    bags = {"num": ["x", "v"], "cat": ["kind"]}
    model = MixedModel(coordinates, features=bags, task=task, **how).fit(rows)
    assert model.converged_

    objectives = [step.objective for step in model.history_]
    assert objectives[-1] == pytest.approx(least, rel=1e-6)
    # Nothing is below the minimum; past the first pass no step goes up.
    complete = np.array(objectives[len(coordinates) - 1 :])
    noise = 1e-9 * abs(least)
    assert complete.min() >= least - noise
    assert np.diff(complete).max() <= noise

    fitted = fitted_coefficients(model)
    assert set(fitted) == set(keys)
    np.testing.assert_allclose([fitted[k] for k in keys], beta, atol=1e-4)
    link = rows["offset"].to_numpy() + design @ beta
    np.testing.assert_allclose(model.predict(rows, kind="link"), link, atol=1e-4)
