"""Of giant entities few rows move, and their models are those of one machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest

from gdmix import RandomEffect
from gdmix.config import ModelConfig
from gdmix.engines.local import LocalEngine
from gdmix.engines.spark.engine import SparkEngine
from gdmix.engines.spark.exchange import of_kind
from gdmix.engines.spark.tasks.kinds import PREPARED, TRAIN, VALIDATION
from gdmix.estimator import train

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

MOST = 100
GIANTS = 4  # more than partitions, so that one of these has several


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    n = 20_000
    rng = np.random.default_rng(5)
    user = np.where(np.arange(n) % 10 < 8, np.arange(n) % GIANTS, 1000 + np.arange(n) % 911)
    x = rng.normal(size=n)
    return pa.table(
        {
            "uid": rng.permutation(n),
            "user": user,
            "x": x,
            # Most are features of rows that are but scored.
            "kind": [f"k{k}" for k in np.minimum(rng.pareto(0.6, n) * 5, 400).astype(int)],
            "response": (rng.random(n) < 1.0 / (1.0 + np.exp(-x))).astype(int),
        }
    )


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    return ModelConfig.of(
        coordinates=[RandomEffect("per-user", entity="user", features=["f"], max_active_rows=MOST)],
        features={"f": ["x", "kind"]},
        task="logistic_regression",
        metrics=["auc", "logloss"],
    )


def test_most_rows_of_giants_stay(
    spark: SparkSession, rows: pa.Table, config: ModelConfig, tmp_path: Path
) -> None:
    workspace = SparkEngine(spark, partitions=3, scratch=tmp_path).prepare(config, rows, rows)
    coordinate = workspace.coordinates["per-user"]
    giants = coordinate.layout.giants
    assert giants is not None and giants.hashes.size == GIANTS
    prepared = coordinate.cluster.collect(of_kind(coordinate.prepared, PREPARED))
    moved = {
        role: sum(size for own in prepared for _, size in own.sizes[role])
        for role in (TRAIN, VALIDATION)
    }
    others = int((rows["user"].to_numpy() >= GIANTS).sum())
    assert moved[VALIDATION] == others
    assert GIANTS * MOST <= moved[TRAIN] - others <= GIANTS * (MOST + 20 + 12 * MOST**0.5)


def test_models_and_scores_of_giants(
    spark: SparkSession, rows: pa.Table, config: ModelConfig, tmp_path: Path
) -> None:
    engines = LocalEngine(), SparkEngine(spark, partitions=3, scratch=tmp_path)
    models, steps, uncovered = [], [], []
    for engine in engines:
        result, workspace = train(config, rows, rows, engine=engine)
        model = workspace.trained_model(result.models).in_memory()
        models.append(model.linear["per-user"].coefficients)
        steps.append(result.history[-1])
        uncovered.append(workspace.coordinates["per-user"].uncovered)
    here, there = models
    assert there.entities.equals(here.entities)
    np.testing.assert_array_equal(there.columns, here.columns)
    np.testing.assert_allclose(there.values, here.values, atol=1e-9)
    np.testing.assert_array_equal(*uncovered)
    assert steps[1].objective == pytest.approx(steps[0].objective, rel=1e-12)
    assert dict(steps[1].metrics) == pytest.approx(dict(steps[0].metrics), rel=1e-12)
