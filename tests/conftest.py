"""Rows and a project folder that several test files share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest_plugins = ["spark_fixtures"]

CONFIG = """\
task: logistic_regression
data: {train: train.parquet, validation: validation.parquet}
columns: {uid: uid}
features:
  row:  [x, kind]
  more: [tags]
coordinates:
  global:   {type: fixed_effect,  features: [row, more]}
  per-user: {type: random_effect, entity: user, features: [row], l2: 2.0}
  per-item: {type: random_effect, entity: item}
passes: 2
metrics: [auc, logloss]
output: runs/one
"""


def make_rows(n: int = 600, seed: int = 0) -> pa.Table:
    """Return rows of a small crossed problem: users are integers, items are strings."""
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, 25, n), rng.integers(0, 12, n)
    x = rng.normal(size=n).round(3)
    kind = rng.choice(["a", "b", "c"], n)
    tags = [list(rng.choice(["p", "q", "r", "s"], rng.integers(0, 4), replace=False)) for _ in x]
    slope, level = rng.normal(size=25), rng.normal(size=12)
    z = 0.3 + x * (0.5 + slope[user]) + level[item] + 0.7 * (kind == "b")
    return pa.table(
        {
            "uid": pa.array(np.arange(n) + 1000 * seed),
            "user": user,
            "item": [f"item-{i}" for i in item],
            "x": x,
            "kind": kind,
            "tags": pa.array(tags, pa.list_(pa.string())),
            "response": (rng.random(n) < 1 / (1 + np.exp(-z))).astype(np.int64),
            "count": rng.poisson(np.exp(0.3 * z)),
            "level": z.round(3),
        }
    )


@pytest.fixture(scope="session")
def train_rows() -> pa.Table:
    return make_rows(600, 1)


@pytest.fixture(scope="session")
def validation_rows() -> pa.Table:
    return make_rows(300, 2)


@pytest.fixture(scope="session")
def set_up(train_rows: pa.Table, validation_rows: pa.Table) -> Callable[[Path], None]:
    """Write rows and `run.yaml` into a folder."""

    def write(folder: Path) -> None:
        pq.write_table(train_rows, folder / "train.parquet")
        pq.write_table(validation_rows, folder / "validation.parquet")
        (folder / "run.yaml").write_text(CONFIG, encoding="utf-8")

    return write


@pytest.fixture
def project(tmp_path: Path, monkeypatch: Any, set_up: Callable[[Path], None]) -> Path:
    """A folder with rows and `run.yaml`, made the working directory."""
    set_up(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path
