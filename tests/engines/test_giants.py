"""Rows of giant entities that stay where they are change nothing of what is fitted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from gdmix import RandomEffect
from gdmix.config import ModelConfig
from gdmix.coordinates.regularization import regularization
from gdmix.data.partition import key_hashes, take_rows
from gdmix.engines.binding import BoundRows
from gdmix.engines.local import LocalEngine
from gdmix.engines.spark.exchange import Placement
from gdmix.engines.spark.giants import Giants, elsewhere
from gdmix.engines.spark.tasks.kinds import TRAIN, VALIDATION
from gdmix.engines.spark.tasks.layout import Layout
from gdmix.model.linear import LinearModel

SEED = 3


def _rows(n: int = 3000) -> pa.Table:
    """Two users have nearly all rows; only rows of the first ones have rare features."""
    rng = np.random.default_rng(4)
    user = rng.integers(0, 30, n)
    user[rng.random(n) < 0.5] = 101
    user[rng.random(n) < 0.3] = 102
    return pa.table(
        {
            "uid": rng.permutation(n),
            "user": user,
            "x": rng.normal(size=n),
            "kind": [f"k{k}" for k in np.minimum(rng.pareto(0.7, n) * 3, 60).astype(int)],
            "response": (rng.random(n) < 0.3).astype(int),
            "weight": rng.choice([0.5, 1.0, 2.0], n),
        }
    )


@pytest.mark.parametrize(
    "limits",
    [
        {"max_active_rows": 40},
        {"max_active_rows": 40, "reweight": False, "min_active_rows": 30},
        {"max_active_rows": 15, "negative_sampling": 0.2},
        {"negative_sampling": 0.1},
        {"max_active_rows": 100, "features_to_samples_ratio": 0.2},
    ],
)
def test_a_fit_without_the_rows_that_stay(limits: dict[str, Any]) -> None:
    """The same models, and the same columns without a coefficient, as from all rows."""
    spec = RandomEffect("per-user", entity="user", features=["f"], **limits)
    config = ModelConfig.of(
        coordinates=[spec],
        features={"f": ["x", "kind"]},
        task="logistic_regression",
        columns={"weight": "weight"},
        seed=SEED,
    )
    (spec,) = config.fitted.values()
    workspace = LocalEngine().prepare(config, _rows(), None)
    rows, indices = workspace._train, workspace._indices
    penalty = regularization(spec, indices, lambda bag: None)
    bound = BoundRows(config, rows, None, indices, 1)
    whole = bound.coordinate("per-user", penalty)

    users = rows.keys["user"]
    counts = dict(zip(key_hashes(users.values).tolist(), np.bincount(users.codes), strict=True))
    giants = Giants.among({h: n for h, n in counts.items() if n > 300}, spec, SEED)
    assert giants is not None and giants.hashes.size == 2
    while (wider := giants.widened(giants.counts(rows))) is not giants:
        giants = wider
    most = limits.get("max_active_rows")
    if most is not None and "negative_sampling" not in limits:
        assert (giants.counts(rows) <= most + 20 + 12 * most**0.5).all()
    layout = Layout("u", 1, "user", Placement.balanced(1, 0, {}), ("f",), ("user",), giants)
    route = layout.route(TRAIN, rows, 0)
    stay = route.staying
    assert stay.size > 1000
    some = take_rows(rows, route.rows(0))
    left = giants.left(rows, stay)
    bound = BoundRows(
        config, some, None, indices, 1, elsewhere=elsewhere([left], some.keys["user"])
    )
    part = bound.coordinate("per-user", penalty)

    offset = np.sin(rows.uid.astype(float))
    model, _ = whole.fit(offset, None)
    found, _ = part.fit(offset[route.rows(0)], None)
    assert found.coefficients.entities.equals(model.coefficients.entities)
    np.testing.assert_array_equal(found.coefficients.columns, model.coefficients.columns)
    np.testing.assert_allclose(found.coefficients.values, model.coefficients.values, atol=1e-9)
    np.testing.assert_array_equal(part.uncovered, whole.uncovered)

    # Scores: of the rows that moved where they are, of the others by the giants' models.
    expected = whole.score(model).train
    np.testing.assert_allclose(part.score(found).train, expected[route.rows(0)], atol=1e-9)
    own = giants.models(found)
    assert isinstance(own, LinearModel)
    scores = own.score(take_rows(rows, stay))
    np.testing.assert_allclose(scores, expected[stay], atol=1e-9)
    # None of the rows to be judged by need move.
    judged = layout.route(VALIDATION, rows, 0)
    assert judged.staying.size == sum(n for n in counts.values() if n > 300)


def test_who_is_no_giant() -> None:
    spec = RandomEffect("u", entity="user", features=["f"])
    heavy = {5: 1000, 3: 40}
    assert Giants.among(heavy, spec, 0) is None
    capped = spec.model_copy(update={"max_active_rows": 1000})
    assert Giants.among(heavy, capped, 0) is None
    few = Giants.among(heavy, spec.model_copy(update={"max_active_rows": 50}), 0)
    assert few is not None and few.hashes.tolist() == [5]
