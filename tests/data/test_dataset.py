from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gdmix.config import ColumnRoles, FeatureBag
from gdmix.data import dataset as module
from gdmix.data.dataset import Dataset, load_rows, load_training
from gdmix.data.schema import RowSchema

N = 50
BAGS = {"a": FeatureBag(columns=("x", "s")), "b": FeatureBag(columns=("l",))}
SCHEMA = RowSchema(ColumnRoles(uid="id", response="y"), BAGS, ("user",), ("day",))


def make_rows(seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "id": rng.permutation(N) + 100,
            "y": pa.array(np.arange(N) % 2, pa.int8()),
            "weight": pa.array(rng.random(N), pa.float32()),
            "offset": rng.normal(size=N),
            "user": [f"u{k}" for k in rng.integers(0, 9, N)],
            "day": pa.array(rng.integers(0, 3, N), pa.int32()),
            "x": pa.array(rng.normal(size=N), mask=rng.random(N) < 0.2),
            "s": rng.choice(["a", "b", "c"], N),
            "l": [sorted(set(rng.choice(["p", "q", "r"], 2))) for _ in range(N)],
        }
    )


def train(source: Any, schema: RowSchema = SCHEMA) -> tuple[Dataset, dict[str, Any]]:
    dataset, indices = load_training(source, schema, "logistic_regression", "strict")
    return dataset, dict(indices)


def load(source: Any, indices: Any, schema: RowSchema = SCHEMA) -> Dataset:
    return load_rows(source, schema, indices, "logistic_regression", "strict")


def dense(dataset: Dataset, bags: tuple[str, ...] = ("a", "b")) -> np.ndarray:
    m = dataset.design(bags)
    full = np.zeros((m.n_rows, m.n_columns))
    full[np.repeat(np.arange(m.n_rows), np.diff(m.indptr)), m.indices] = m.values
    return full


def test_roles_and_keys() -> None:
    rows = make_rows()
    dataset, _ = train(rows)
    assert dataset.n_rows == N
    assert dataset.uid.dtype == np.int64
    np.testing.assert_array_equal(dataset.uid, rows["id"].to_numpy())
    np.testing.assert_array_equal(dataset.response, rows["y"].to_numpy())
    np.testing.assert_array_equal(dataset.weight, rows["weight"].to_numpy().astype(float))
    np.testing.assert_array_equal(dataset.offset, rows["offset"].to_numpy())
    assert {name: keys.values.type for name, keys in dataset.keys.items()} == {
        "user": pa.large_string(),
        "day": pa.int64(),
    }
    assert dataset.keys["user"].slice(slice(None)).to_pylist() == rows["user"].to_pylist()


def test_defaults() -> None:
    rows = make_rows().select(["x"])
    schema = RowSchema(ColumnRoles(), {"a": FeatureBag(columns=("x",))}, needs_response=False)
    _, indices = train(make_rows())
    dataset = load(rows, indices, schema)
    np.testing.assert_array_equal(dataset.uid, np.arange(N))
    assert np.isnan(dataset.response).all()
    assert (dataset.weight == 1).all()
    assert (dataset.offset == 0).all()


def test_frames_and_files_are_the_same_rows(tmp_path: Path) -> None:
    rows = make_rows()
    expected, indices = train(rows)
    pq.write_table(rows.slice(0, 20), tmp_path / "0.parquet")
    pq.write_table(rows.slice(20), tmp_path / "1.parquet")
    frame = rows.to_pandas()
    frame["x"] = pd.array(rows["x"].to_pylist(), dtype="Float64")
    sources = [tmp_path, frame, pl.from_arrow(rows), rows.to_pydict(), rows.to_batches()[0]]
    for source in sources:
        dataset, same = train(source)
        assert same == indices
        assert dataset.keys == expected.keys
        np.testing.assert_array_equal(dataset.uid, expected.uid)
        np.testing.assert_array_equal(dense(dataset), dense(expected))


def test_batches_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_rows()
    expected, indices = train(rows)
    chunks = pa.concat_tables([rows.slice(0, 0), *(rows.slice(k, 1) for k in range(N))])
    for size in (1, 7, 1000):
        monkeypatch.setattr(module, "_ROWS_PER_BATCH", size)
        for source in (rows, chunks):
            dataset, same = train(source)
            assert same == indices
            np.testing.assert_array_equal(dense(dataset), dense(expected))


def test_categories_that_differ_between_chunks() -> None:
    def chunk(values: list[str]) -> pa.Table:
        return pa.table({"s": pa.array(values).dictionary_encode(), "response": [0, 1]})

    rows = pa.concat_tables([chunk(["a", "b"]), chunk(["b", "c"])])
    schema = RowSchema(ColumnRoles(), {"s": FeatureBag(columns=("s",))}, ("s",))
    dataset, indices = train(rows, schema)
    assert indices["s"].terms.to_pylist() == ["a", "b", "c"]
    assert dataset.design(["s"]).indices.tolist() == [0, 1, 1, 2]
    assert dataset.keys["s"].slice(slice(None)).to_pylist() == ["a", "b", "b", "c"]


def test_frozen_index_and_unknown_features(caplog: pytest.LogCaptureFixture) -> None:
    rows = make_rows()
    _, indices = train(rows)
    other = rows.set_column(7, "s", pa.array(["a", "new"] * (N // 2)))
    dataset = load(other, indices)
    assert dataset.design(["a"]).n_columns == 4
    text = "data: bag 'a': ignored 25 values of features that are not in the feature index"
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == [text]


def test_design_puts_bags_side_by_side() -> None:
    dataset, _ = train(make_rows())
    a, b = dense(dataset, ("a",)), dense(dataset, ("b",))
    np.testing.assert_array_equal(dense(dataset, ("b", "a")), np.hstack([b, a]))
    assert (dataset.design([]).n_rows, dataset.design([]).n_columns) == (N, 0)


def test_no_rows_to_score() -> None:
    _, indices = train(make_rows())
    schema = RowSchema(ColumnRoles(), BAGS, ("user",), needs_response=False)
    dataset = load(make_rows().slice(0, 0), indices, schema)
    assert dataset.n_rows == 0
    assert dense(dataset).shape == (0, 7)
    assert dataset.keys["user"].codes.tolist() == []


def test_rows_without_any_column_that_is_needed(tmp_path: Path) -> None:
    for part in range(2):
        pq.write_table(pa.table({"other": [1, 2, 3]}), tmp_path / f"{part}.parquet")
    schema = RowSchema(ColumnRoles(), {}, needs_response=False)
    assert load(tmp_path, {}, schema).n_rows == 6
