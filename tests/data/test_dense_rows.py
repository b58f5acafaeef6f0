"""Fixed-size lists: stored once where rows repeat, and the models of their sparse twins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from gdmix import DataError, FixedEffect, MixedModel, RandomEffect, memory
from gdmix.data import dense_rows
from gdmix.data.dense_rows import DenseStack
from gdmix.glm import entities
from gdmix.glm.matrix import CsrMatrix


def dense_of(matrix: CsrMatrix) -> np.ndarray:
    n, d = matrix.n_rows, matrix.n_columns
    return np.array([matrix.values[s : s + d] for s in matrix.indptr[:-1]]).reshape(n, d)


def stack_up(parts: list[np.ndarray]) -> CsrMatrix:
    stack = DenseStack(parts[0].shape[1])
    for part in parts:
        stack.append(CsrMatrix.dense(part, np.arange(len(part))))
    return stack.finish()


def repeated(n: int, distinct: int, d: int = 3, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(distinct, d)).astype(np.float32)[rng.integers(0, distinct, n)]


def test_rows_that_repeat_are_stored_once() -> None:
    rows = repeated(1000, 7)
    matrix = stack_up([rows[:10], rows[10:10], rows[10:]])
    np.testing.assert_array_equal(dense_of(matrix), rows)
    assert matrix.values.size == 7 * 3
    assert (matrix.is_dense, matrix.nnz) == (True, 3000)


def test_rows_that_do_not_repeat_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense_rows, "_ROWS_TO_JUDGE_BY", 100)
    rows = np.arange(600, dtype=np.float32).reshape(200, 3)
    matrix = stack_up([rows[:150], rows[150:], rows[:20]])
    np.testing.assert_array_equal(dense_of(matrix), np.concatenate([rows, rows[:20]]))
    assert matrix.values.size == 220 * 3  # the last are no longer looked for


def test_distinct_rows_beyond_the_limit(tmp_path: Path) -> None:
    rows = repeated(900, 300)
    with memory.limited(10 * 3 * 4 * 100, tmp_path / "scratch"):  # 100 rows may be compared with
        matrix = stack_up([rows[:90], rows[90:500], rows[500:]])
        np.testing.assert_array_equal(dense_of(matrix), rows)
        assert 300 * 3 < matrix.values.size < 900 * 3


def test_matrix_operations() -> None:
    rows = repeated(50, 6, d=4)
    matrix = stack_up([rows])
    chosen = np.array([3, 3, 49, 0])
    np.testing.assert_array_equal(dense_of(matrix.take(chosen)), rows[chosen])
    sparse = matrix.sparse()
    assert not sparse.is_dense
    np.testing.assert_array_equal(sparse.values.reshape(50, 4), rows)
    np.testing.assert_array_equal(sparse.indices.reshape(50, 4), np.tile(np.arange(4), (50, 1)))
    both = CsrMatrix.hstack([matrix, sparse])
    assert (both.n_columns, both.nnz, both.is_dense) == (8, 400, False)
    assert CsrMatrix.hstack([matrix]) is matrix


N, D = 3000, 12


def make_rows() -> pa.Table:
    """Entities of 1 to some 400 rows: every solver has some."""
    rng = np.random.default_rng(0)
    item = repeated(N, 60, D) * 0.6
    user = np.minimum(rng.geometric(0.03, N) - 1, 90)
    slope = rng.normal(size=(91, D))
    z = (item * slope[user]).sum(axis=1) + 0.5 * rng.normal(size=91)[user]
    lists: list[Any] = pa.FixedSizeListArray.from_arrays(pa.array(item.ravel()), D).to_pylist()
    lists[7] = lists[11] = None
    item[[7, 11]] = 0.0
    return pa.table(
        {
            "user": user,
            "item": pa.array(lists, pa.list_(pa.float32(), D)),
            **{f"item{j:02d}": item[:, j] for j in range(D)},
            "age": rng.normal(size=N),
            "weight": rng.uniform(0.5, 2.0, N),
            "response": (rng.random(N) < 1 / (1 + np.exp(-z))).astype(np.int8),
        }
    )


TWINS = {"dense": ["item"], "sparse": [f"item{j:02d}" for j in range(D)]}


def fit(columns: list[str], rows: pa.Table, **settings: Any) -> MixedModel:
    model = MixedModel(
        [
            FixedEffect("global", features=["item", "row"]),
            FixedEffect("items", features="item", l2=3.0),
            RandomEffect("own", entity="user", features="item", **settings.pop("own", {})),
        ],
        features={"item": columns, "row": ["age"]},
        **settings,
    )
    return model.fit(rows.slice(0, N - 500), validation=rows.slice(N - 500))


@pytest.mark.parametrize(
    "settings",
    [
        {"passes": 2},
        {"passes": 2, "threads": 1, "task": "linear_regression"},
        {"task": "poisson_regression", "own": {"l2": 0.05}},
        {"solver": "joint", "tolerance": 1e-9},
        {"own": {"intercept": False}},
    ],
)
def test_a_dense_bag_gives_the_model_of_its_sparse_twin(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    rows = make_rows()
    dense, sparse = (fit(columns, rows, **dict(settings)) for columns in TWINS.values())
    for name in ("global", "items", "own"):
        mine = dense.model_.coordinates[name].coefficients.values
        theirs = sparse.model_.coordinates[name].coefficients.values
        if mine.size == theirs.size:  # an entity whose rows are all 0 in a column keeps it here
            np.testing.assert_allclose(mine, theirs, atol=1e-6)
    link = dense.predict(rows, kind="link")
    np.testing.assert_allclose(link, sparse.predict(rows, kind="link"), atol=1e-6)
    assert dense.history_[-1].objective == pytest.approx(sparse.history_[-1].objective, rel=1e-9)
    assert dense.history_[-1].metrics == pytest.approx(sparse.history_[-1].metrics, rel=1e-6)
    dense.save(tmp_path / "model")
    loaded = MixedModel.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict(rows, kind="link"), link)
    names = loaded.coefficients("own", entity=3)
    assert names["name"].to_pylist() == ["(INTERCEPT)"] * dense_intercept(settings) + ["item"] * D


def dense_intercept(settings: dict[str, Any]) -> int:
    return 0 if settings.get("own", {}).get("intercept") is False else 1


def test_a_giant_entity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entities, "LARGE_ROWS", 50)
    rows = make_rows()
    dense, sparse = (fit(columns, rows) for columns in TWINS.values())
    np.testing.assert_allclose(dense.predict(rows), sparse.predict(rows), atol=1e-6)


def test_beyond_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_rows()
    expected = fit(TWINS["dense"], rows).predict(rows)
    monkeypatch.setattr(memory, "_SMALLEST_MAPPED", 1)
    monkeypatch.setattr(memory, "_HELD_SHARE", 0.0)
    monkeypatch.setattr("gdmix.data.entity_blocks._PART_SHARE", 1e-9)
    np.testing.assert_allclose(fit(TWINS["dense"], rows).predict(rows), expected, atol=1e-9)


def test_bad_lists() -> None:
    rows = make_rows()
    lists = rows["item"].to_pylist()
    lists[4] = [float("nan")] * D
    bad = rows.set_column(1, "item", pa.array(lists, pa.list_(pa.float32(), D)))
    with pytest.raises(DataError, match="column 'item': 1 row with NaN, infinity or"):
        fit(TWINS["dense"], bad)
    model = fit(TWINS["dense"], rows)
    shorter = pa.array([[1.0] * (D - 1)] * N, pa.list_(pa.float32(), D - 1))
    with pytest.raises(DataError, match=f"a list of {D - 1} numbers, where training had {D}"):
        model.predict(rows.set_column(1, "item", shorter))
