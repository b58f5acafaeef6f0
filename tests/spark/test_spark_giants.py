"""Of a giant entity few rows move."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from gdmix import RandomEffect
from gdmix.config import ModelConfig
from gdmix.engines.spark.engine import SparkEngine
from gdmix.engines.spark.exchange import of_kind
from gdmix.engines.spark.tasks.kinds import PREPARED, TRAIN, VALIDATION

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def test_most_rows_of_a_giant_stay(spark: SparkSession, tmp_path: Path) -> None:
    n, most = 20_000, 100
    user = np.where(np.arange(n) % 10 < 8, 7, np.arange(n) % 911)
    rows = pa.table({"uid": np.arange(n), "user": user, "x": np.cos(np.arange(n))})
    rows = rows.append_column("response", pa.array(np.arange(n) % 3 % 2))
    config = ModelConfig.of(
        coordinates=[RandomEffect("per-user", entity="user", features=["f"], max_active_rows=most)],
        features={"f": ["x"]},
        task="logistic_regression",
    )
    workspace = SparkEngine(spark, partitions=3, scratch=tmp_path).prepare(config, rows, rows)
    coordinate = workspace.coordinates["per-user"]
    giants = coordinate.layout.giants
    assert giants is not None and giants.hashes.size == 1
    prepared = coordinate.cluster.collect(of_kind(coordinate.prepared, PREPARED))
    moved = {
        role: sum(size for own in prepared for _, size in own.sizes[role])
        for role in (TRAIN, VALIDATION)
    }
    others = int((user != 7).sum())
    assert moved[VALIDATION] == others
    assert most <= moved[TRAIN] - others <= most + 20 + 12 * most**0.5
