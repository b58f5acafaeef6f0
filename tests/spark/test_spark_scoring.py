"""Scores of models that change between two calls of one session."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gdmix import FixedEffect, MixedModel
from gdmix.engines.spark.scoring import score_to_files

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def test_a_model_that_was_trained_anew(spark: SparkSession, tmp_path: Path) -> None:
    """Worker processes outlive a call, and what they have read must not."""
    x = np.linspace(-1.0, 1.0, 50)
    path = tmp_path / "rows.parquet"
    for slope in (1.0, -2.0):
        rows = pa.table({"uid": np.arange(50), "x": x, "response": slope * x})
        pq.write_table(rows, path)
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
        model = MixedModel(
            [FixedEffect("global", features=["f"], l2=0.0)],
            features={"f": ["x"]},
            task="linear_regression",
        )
        model.fit(rows).save(tmp_path / "model")
        folder, n = score_to_files(spark, tmp_path / "model", path, tmp_path / "scores")
        scores = pq.read_table(folder).sort_by("uid")
        assert n == scores.num_rows == 50
        np.testing.assert_allclose(scores["total_score"].to_numpy(), slope * x, atol=1e-5)
