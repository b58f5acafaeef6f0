"""Features left out by count and by correlation; numpy and scikit-learn are the reference."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from sklearn.feature_selection import SelectKBest, r_regression

from gdmix import ConfigError, FixedEffect, MixedModel, RandomEffect, memory
from gdmix.config import FeatureBag, ModelConfig
from gdmix.data import entity_blocks
from gdmix.data.correlation import correlations
from gdmix.data.entity_blocks import GroupedRows, group_rows
from gdmix.data.feature_index import FeatureIndex
from gdmix.data.feature_selection import (
    Selection,
    limit_features,
    select_features,
    with_columns,
)
from gdmix.engines.local import LocalEngine, LocalWorkspace
from gdmix.glm.matrix import CsrMatrix
from gdmix.model.store import read_model

F64 = NDArray[np.float64]
F32 = NDArray[np.float32]
NTV = pa.list_(pa.struct({"name": pa.string(), "term": pa.string(), "value": pa.float32()}))
N, D = 2000, 24


def csr(x: F32) -> CsrMatrix:
    rows, columns = np.nonzero(x)
    indptr = np.concatenate(([0], np.cumsum(np.bincount(rows, minlength=len(x)))))
    return CsrMatrix(indptr, columns.astype(np.uint32), x[rows, columns], x.shape[1])


def full(matrix: CsrMatrix) -> F32:
    x = np.zeros((matrix.n_rows, matrix.n_columns), np.float32)
    x[np.repeat(np.arange(matrix.n_rows), np.diff(matrix.indptr)), matrix.indices] = matrix.values
    return x


def weighted_pearson(x: F64, y: F64, w: F64) -> F64:
    """Return the textbook formula, in two passes; 0 of what is constant."""
    dx, dy = x - np.average(x, axis=0, weights=w), y - np.average(y, weights=w)
    spread = np.sqrt((w @ dx**2) * (w @ dy**2))
    constant = (np.ptp(x[w > 0], axis=0) == 0) | (np.ptp(y[w > 0]) == 0)
    result: F64 = np.where(constant, 0.0, (w @ (dx * dy[:, None])) / np.where(constant, 1, spread))
    return result


@pytest.fixture(scope="module")
def x() -> F32:
    rng = np.random.default_rng(0)
    x = np.where(rng.random((N, D)) < 0.3, rng.normal(size=(N, D)), 0.0)
    x[:, 3] = 7.0
    x[:, 5] = 1e5 + rng.normal(size=N)
    x[:, 8] = x[:, 6]
    return x.astype(np.float32)


@pytest.fixture(scope="module")
def response(x: F32) -> F64:
    z = x[:, 0] - x[:, 6] + 0.5 * (x[:, 5] - 1e5)
    return (np.random.default_rng(1).random(N) < 1 / (1 + np.exp(-z))).astype(np.float64)


@pytest.fixture(scope="module")
def weight() -> F64:
    weight = np.random.default_rng(2).exponential(size=N)
    weight[::9] = 0.0
    return weight


class TestCorrelations:
    def test_weighted(self, x: F32, response: F64, weight: F64) -> None:
        expected = weighted_pearson(x.astype(np.float64), response, weight)
        np.testing.assert_allclose(correlations(csr(x), response, weight), expected, atol=1e-11)

    def test_unweighted_is_that_of_scikit_learn(self, x: F32, response: F64) -> None:
        found = correlations(csr(x), response, np.ones(N), threads=2)
        # Not of f5: scikit-learn's own formula loses digits where the mean is large.
        varying = ~np.isin(np.arange(D), [3, 5])
        expected = r_regression(x[:, varying].astype(np.float64), response)
        np.testing.assert_allclose(found[varying], expected, atol=1e-11)
        assert found[3] == 0.0

    def test_threads_and_a_large_constant_in_the_response_change_nothing(
        self, x: F32, response: F64, weight: F64
    ) -> None:
        once = correlations(csr(x), response, weight)
        np.testing.assert_array_equal(correlations(csr(x), response, weight, threads=3), once)
        np.testing.assert_allclose(correlations(csr(x), response + 1e6, weight), once, atol=1e-9)

    def test_of_a_constant_response_and_of_no_weight_it_is_zero(self, x: F32, weight: F64) -> None:
        assert not correlations(csr(x), np.full(N, 0.1), weight).any()
        assert not correlations(csr(x), np.arange(N) * 1.0, np.zeros(N)).any()


class TestSelect:
    INDEX = FeatureIndex([f"f{j}" for j in range(D)], [""] * D)

    def select(self, x: F32, y: F64, w: F64, **settings: Any) -> Selection:
        bag = FeatureBag(columns=("f",), **settings)
        return select_features("rows: bag 'f'", bag, self.INDEX, csr(x), y, w)

    def test_by_count(self, x: F32, response: F64, weight: F64) -> None:
        counts = (x != 0).sum(axis=0)
        least = int(np.median(counts))
        chosen = self.select(x, response, weight, min_count=least)
        wanted = np.flatnonzero(counts >= least)
        assert 0 < wanted.size < D
        assert chosen.index.names.to_pylist() == [f"f{j}" for j in wanted]
        np.testing.assert_array_equal(full(chosen.design), x[:, wanted])

    @pytest.mark.parametrize("k", [1, 2, 3, 10, D - 1])
    def test_by_correlation(self, x: F32, response: F64, k: int) -> None:
        chosen = self.select(x, response, np.ones(N), max_features=k)
        score = np.abs(weighted_pearson(x.astype(np.float64), response, np.ones(N)))
        score[8] = score[6]
        wanted = np.sort(np.argsort(-score, kind="stable")[:k])
        assert chosen.index.names.to_pylist() == [f"f{j}" for j in wanted]
        np.testing.assert_array_equal(full(chosen.design), x[:, wanted])
        if k <= 2:  # f8, which is f6 again, is not among them
            best = SelectKBest(lambda a, b: np.abs(r_regression(a, b)), k=k)
            best.fit(np.delete(x, [3, 8], axis=1).astype(np.float64), response)
            kept = np.delete(np.arange(D), [3, 8])[best.get_support()]
            assert kept.tolist() == [j for j in wanted if j != 8]

    def test_of_a_tie_the_first_columns_are_kept(self, response: F64) -> None:
        once = np.random.default_rng(0).normal(size=N).astype(np.float32)
        # The same, its negative, and half of it: the same correlation but for rounding.
        copies = np.column_stack([once, -once, once / 3, *([once * 1.7] * 5)]).astype(np.float32)
        index = FeatureIndex([str(j) for j in range(8)], [""] * 8)
        bag = FeatureBag(columns=("f",), max_features=3)
        chosen = select_features("", bag, index, csr(copies), response, np.ones(N))
        assert chosen.index.names.to_pylist() == ["0", "1", "2"]

    def test_count_comes_first(self, x: F32, response: F64, weight: F64) -> None:
        counts = (x != 0).sum(axis=0)
        least = int(np.median(counts))
        chosen = self.select(x, response, weight, min_count=least, max_features=2)
        score = np.abs(weighted_pearson(x.astype(np.float64), response, weight))
        score[counts < least] = -1
        assert chosen.index.names.to_pylist() == [f"f{j}" for j in np.sort(np.argsort(-score)[:2])]

    def test_some_features_stay_whatever_they_are(self, x: F32, response: F64) -> None:
        always = FeatureIndex(["f3", "f23", "unknown"], ["", "", ""])
        bag = FeatureBag(columns=("f",), max_features=1, min_count=2)
        chosen = select_features("", bag, self.INDEX, csr(x), response, np.ones(N), always)
        assert chosen.index.names.to_pylist() == ["f0", "f3", "f23"]

    def test_what_is_logged(self, x: F32, response: F64, caplog: Any) -> None:
        with caplog.at_level(logging.INFO, "gdmix"):
            self.select(x, response, np.ones(N), min_count=N, max_features=1)
            self.select(x, response, np.ones(N), min_count=N + 1)
        lines = [r.getMessage() for r in caplog.records]
        assert lines[0] == (
            "rows: bag 'f': left out 22 of 24 features that fewer than 2,000 training rows have"
        )
        assert lines[1].endswith(
            "kept the 1 of 2 features of largest correlation with the response"
        )
        assert lines[-1] == "rows: bag 'f': no feature is left"

    def test_nothing_to_leave_out(self, x: F32, response: F64) -> None:
        matrix = csr(x)
        bag = FeatureBag(columns=("f",), max_features=D)
        chosen = select_features("", bag, self.INDEX, matrix, response, np.ones(N))
        assert chosen.index is self.INDEX
        assert chosen.design is matrix

    def test_with_columns_none(self, x: F32) -> None:
        assert with_columns(csr(x), np.empty(0, np.int64)).indptr.tolist() == [0] * (N + 1)


class TestBags:
    """`min_count` and `max_features` from the rows of every form to the model."""

    ROWS = pa.table(
        {
            "z": [1.0, 2.0, 0.0, None, 0.0, 0.0],
            "s": ["a", "b", "a", "a", "b", "c"],
            "l": pa.array([["p", "q"], ["q"], [], ["q"], None, ["r"]]),
            "t": pa.array(
                [[{"name": "n", "term": str(i % 4), "value": float(i)}] for i in range(6)],
                NTV,
            ),
            "w_indices": [[7, 1], [7], [7], [1], [3], [1]],
            "w_values": [[1.0, 0.0], [1.0], [1.0], [1.0], [1.0], [1.0]],
            "response": [0, 1, 0, 1, 1, 0],
        }
    )  # fmt: skip

    def features(self, rows: pa.Table = ROWS, **settings: Any) -> list[tuple[str, str]]:
        bag = {"columns": ["z", "s", "l", "t", "w_indices", "w_values"], **settings}
        model = MixedModel([FixedEffect("g", features="b")], features={"b": bag}).fit(rows)
        index = model.model_.indices["b"]
        assert model.predict(rows).shape == (rows.num_rows,)
        return list(zip(index.names.to_pylist(), index.terms.to_pylist(), strict=True))

    def test_counts_are_of_rows_whose_value_is_not_zero(self) -> None:
        # n, 0 is in two rows, once with the value 0; w, 1 in three, once with the value 0.
        twice = [("z", ""), ("s", "a"), ("s", "b"), ("l", "q"), ("n", "1"), ("w", "1"), ("w", "7")]
        assert self.features(min_count=2) == twice
        assert self.features(min_count=3) == [("s", "a"), ("l", "q"), ("w", "7")]
        assert len(self.features()) == 14

    def test_rows_in_any_order(self) -> None:
        moved = self.ROWS.take(pa.array([4, 2, 0, 5, 1, 3]))
        assert self.features(moved, min_count=2) == self.features(min_count=2)
        assert self.features(moved, max_features=4) == self.features(max_features=4)

    def test_weighted_by_row_weight(self) -> None:
        rows = self.ROWS.append_column("weight", pa.array([0.0, 1.0, 1.0, 0.0, 1.0, 1.0]))
        assert self.features(rows, max_features=1) == [("s", "b")]

    def test_of_the_rows_that_are_left_after_dropping(self) -> None:
        rows = self.ROWS.append_column("weight", pa.array([1.0, 1.0, 1.0, -1.0, 1.0, 1.0]))
        bag = {"columns": ["s"], "min_count": 3}
        model = MixedModel(
            [FixedEffect("g", features="b")], features={"b": bag}, validate="drop"
        ).fit(rows)
        assert len(model.model_.indices["b"]) == 0

    def test_a_new_process_scores_the_same(self, tmp_path: Path) -> None:
        bag = {"columns": ["s", "l"], "min_count": 2, "max_features": 2}
        model = MixedModel([FixedEffect("g", features="b")], features={"b": bag}).fit(self.ROWS)
        model.save(tmp_path / "m")
        loaded = MixedModel.load(tmp_path / "m")
        np.testing.assert_array_equal(loaded.predict(self.ROWS), model.predict(self.ROWS))

    def test_a_locked_coordinate_keeps_its_features(self, tmp_path: Path) -> None:
        first = MixedModel([FixedEffect("g", features="b")], features={"b": ["s"]}).fit(self.ROWS)
        first.save(tmp_path / "m")
        later = MixedModel(
            [FixedEffect("g", features="b", locked=True), FixedEffect("h")],
            features={"b": {"columns": ["s"], "min_count": 2}},
            initial_model=tmp_path / "m",
        ).fit(self.ROWS)
        for model in (first, later):
            scores = model.predict(self.ROWS, kind="components")["g"]
            np.testing.assert_array_equal(scores, first.predict(self.ROWS, kind="components")["g"])

    @pytest.mark.parametrize("setting", [{"min_count": 2}, {"max_features": 1}])
    def test_lists_of_fixed_size_are_kept_whole(self, setting: dict[str, Any]) -> None:
        rows = self.ROWS.append_column("v", pa.array([[1, 2]] * 6, pa.list_(pa.float32(), 2)))
        bag = {"columns": ["v", "s"], **setting}
        text = f"features.b.{next(iter(setting))}: column 'v' holds lists of fixed size"
        with pytest.raises(ConfigError, match=text):
            MixedModel([FixedEffect("g", features="b")], features={"b": bag}).fit(rows)

    @pytest.mark.parametrize(
        ("settings", "text"),
        [
            ({"feature_list": "f.csv", "min_count": 2},
             "feature_list says what the columns are: remove it, or min_count"),
            ({"feature_list": "f.csv", "max_features": 2}, "remove it, or max_features"),
            ({"feature_list": "f.csv", "hash_buckets": 2}, "remove it, or hash_buckets"),
            ({"hash_buckets": 8, "min_count": 2}, "hash_buckets says what the columns are"),
            ({"min_count": 0}, "should be greater than or equal to 1"),
            ({"max_features": 0}, "should be greater than or equal to 1"),
        ],
    )  # fmt: skip
    def test_mistakes(self, settings: dict[str, Any], text: str) -> None:
        with pytest.raises(ConfigError, match=text):
            self.features(**settings)


# Per entity


def grouped(x: F32, entity: NDArray[np.int32], y: F64, w: F64) -> GroupedRows:
    return group_rows(csr(x), entity, int(entity.max()) + 1, y, w)


def oracle(x: F32, y: F64, w: F64, ratio: float) -> NDArray[np.int64]:
    """Return the features that the rows of one entity keep."""
    present = np.flatnonzero((x != 0).any(axis=0))
    most = int(np.ceil(ratio * len(x)))
    if present.size <= most:
        return present
    score = np.round(np.abs(weighted_pearson(x.astype(np.float64), y, w))[present], 12)
    return np.sort(present[np.argsort(-score, kind="stable")[:most]])


@pytest.fixture(scope="module")
def entity() -> NDArray[np.int32]:
    return np.random.default_rng(5).integers(-1, 150, N).astype(np.int32)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("ratio", [0.01, 0.3, 1.0, 10.0])
def test_features_of_each_entity(
    x: F32, response: F64, entity: NDArray[np.int32], ratio: float, threads: int
) -> None:
    w = np.random.default_rng(3).exponential(size=N)
    before = grouped(x, entity, response, w)
    after, dropped = limit_features(before, ratio, D + 1, threads)
    lost = np.zeros(D + 1, np.bool_)
    block = after.block
    for e in range(block.n_entities):
        own = np.flatnonzero(entity == e)
        wanted = oracle(x[own], response[own], w[own], ratio)
        columns = after.columns[block.coefficient_ptr[e] : block.coefficient_ptr[e + 1]]
        assert columns.tolist() == [0, *(wanted + 1)]
        start, stop = block.row_ptr[e], block.row_ptr[e + 1]
        first, last = block.indptr[start], block.indptr[stop]
        rows = CsrMatrix(
            block.indptr[start : stop + 1] - first,
            block.indices[first:last],
            block.values[first:last],
            wanted.size,
        )
        np.testing.assert_array_equal(full(rows), x[own][:, wanted])
        gone = np.setdiff1d(np.flatnonzero((x[own] != 0).any(axis=0)), wanted)
        lost[gone + 1] = True
    np.testing.assert_array_equal(dropped, lost)
    if ratio == 10.0:
        assert after is before


def test_an_entity_of_one_class_keeps_the_first_columns(x: F32) -> None:
    entity = np.zeros(5, np.int32)
    rows, dropped = limit_features(grouped(x[:5], entity, np.ones(5), np.ones(5)), 0.2, D + 1)
    present = np.flatnonzero((x[:5] != 0).any(axis=0))
    assert rows.columns.tolist() == [0, present[0] + 1]
    assert np.flatnonzero(dropped).tolist() == (present[1:] + 1).tolist()


FEATURES = {"row": ["x", "kind"], "tags": ["tags"], "vector": ["vector"]}
LIMITED = RandomEffect(
    "per-user", entity="user", features=["row", "tags"], features_to_samples_ratio=0.1
)


def with_vectors(rows: pa.Table) -> pa.Table:
    vectors = np.random.default_rng(7).normal(size=(rows.num_rows, 5)).astype(np.float32)
    column = pa.FixedSizeListArray.from_arrays(vectors.reshape(-1), 5)
    return rows.append_column("vector", column)


def prepare(rows: pa.Table, *coordinates: Any, **parameters: Any) -> LocalWorkspace:
    config = ModelConfig.of(coordinates=list(coordinates), features=FEATURES, **parameters)
    return LocalEngine().prepare(config, rows, None)


@pytest.mark.parametrize("bags", [["row", "tags"], ["vector"], ["row", "vector"]])
@pytest.mark.parametrize("limits", [{}, {"max_active_rows": 12}, {"negative_sampling": 0.5}])
def test_the_model_has_that_many_and_scores_are_its_own(
    train_rows: pa.Table, bags: list[str], limits: dict[str, Any]
) -> None:
    rows = with_vectors(train_rows)
    spec = LIMITED.model_copy(update={"features": tuple(bags), **limits})
    model = MixedModel([FixedEffect("g", features="row"), spec], features=FEATURES, passes=2)
    model.fit(rows)
    workspace = prepare(rows, FixedEffect("g", features="row"), spec, passes=2)
    counts = np.diff(workspace.coordinates["per-user"]._rows.block.row_ptr)
    own = model.model_.coordinates["per-user"].coefficients
    assert (np.diff(own.indptr) - 1 <= np.ceil(0.1 * counts)).all()
    assert (np.diff(own.indptr) > 1).any()
    scores = workspace.coordinates["per-user"].score(model.model_.coordinates["per-user"])
    components = model.predict(rows, kind="components")
    np.testing.assert_allclose(scores.train, components["per-user"], atol=1e-12)


def test_what_an_entity_lost_is_not_recentred(train_rows: pa.Table) -> None:
    fixed = FixedEffect("global", features=["row", "tags"])
    workspace = prepare(train_rows, fixed, LIMITED, passes=3)
    uncovered = workspace.coordinates["per-user"].uncovered
    assert uncovered[1:].any()
    models = {}
    for name, coordinate in workspace.coordinates.items():
        models[name], _ = coordinate.fit(workspace.scores.total_without(name), None)
        workspace.scores.put(name, coordinate.score(models[name]))

    def total(of: Any) -> F64:
        return np.sum([c.score(of[n]).train for n, c in workspace.coordinates.items()], axis=0)

    moved = workspace.recentre(models)
    assert moved["per-user"] is not models["per-user"]
    np.testing.assert_allclose(total(moved), total(models), atol=1e-12)


def test_joint_and_beyond_memory(train_rows: pa.Table, tmp_path: Path, monkeypatch: Any) -> None:
    coordinates = [FixedEffect("g", features="row"), LIMITED]
    bags = {**FEATURES, "row": {"columns": ["x", "kind"], "min_count": 3, "max_features": 3}}
    settings: dict[str, Any] = {"features": bags, "solver": "joint"}
    whole = MixedModel(coordinates, **settings).fit(with_vectors(train_rows))
    monkeypatch.setattr(memory, "_SMALLEST_MAPPED", 1)
    monkeypatch.setattr(memory, "_HELD_SHARE", 0.0)
    monkeypatch.setattr(entity_blocks, "_PART_SHARE", 1e-12)
    parted = MixedModel(coordinates, **settings, scratch=tmp_path).fit(with_vectors(train_rows))
    rows = with_vectors(train_rows)
    np.testing.assert_allclose(parted.predict(rows), whole.predict(rows), atol=1e-9)


def test_a_run_as_yaml(project: Path, train_rows: pa.Table) -> None:
    from gdmix.config import RunConfig
    from gdmix.runs import run

    text = Path("run.yaml").read_text(encoding="utf-8")
    text = text.replace("[x, kind]", "{columns: [x, kind], min_count: 190}")
    text = text.replace("l2: 2.0", "l2: 2.0, features_to_samples_ratio: 0.1")
    Path("run.yaml").write_text(text, encoding="utf-8")
    run(RunConfig.from_yaml(Path("run.yaml")))
    counts = pd.Series(train_rows["kind"].to_pylist()).value_counts()
    wanted = ["x", *(["kind"] * int((counts >= 190).sum()))]
    assert 1 < len(wanted) < 4
    assert read_model(Path("runs/one")).indices["row"].names.to_pylist() == wanted
    assert pq.read_metadata("runs/one/feature_index/row.parquet").num_rows == len(wanted)


def test_rows_are_converted_with_all_features(project: Path) -> None:
    from gdmix.config import RunConfig
    from gdmix.convert import convert_features

    overrides = {"features.row": "{columns: [x, kind], min_count: 2}"}
    config = RunConfig.from_yaml(Path("run.yaml"), overrides)
    with pytest.raises(ConfigError, match=r"features\.row: min_count and max_features are for"):
        convert_features(config, Path("out"), "parquet")


def test_the_configuration_in_the_documentation(project: Path) -> None:
    from gdmix.config import RunConfig
    from gdmix.runs import run

    page = Path(__file__).parents[2] / "docs" / "how_it_works.md"
    section = page.read_text(encoding="utf-8").split("## Which features a model gets")[1]
    block = section.split("```yaml\n")[1].split("```")[0]
    rng = np.random.default_rng(0)
    n = 500
    rows = {
        "user_id": [f"u{i}" for i in rng.integers(0, 20, n)],
        "item_id": [f"i{i}" for i in rng.integers(0, 30, n)],
        "age": rng.integers(18, 70, n) / 100,
        "country": rng.choice(["de", "fr", "li"], n, p=[0.5, 0.498, 0.002]),
        "genres": [[f"g{i}", f"g{i + 4}"] for i in rng.integers(0, 4, n)],
        "response": rng.integers(0, 2, n),
    }
    pq.write_table(pa.table(rows), "rows.parquet")
    text = f"data: {{train: rows.parquet, validation: rows.parquet}}\noutput: runs/doc\n{block}"
    Path("doc.yaml").write_text(text, encoding="utf-8")
    run(RunConfig.from_yaml(Path("doc.yaml")))
    indices = read_model(Path("runs/doc")).indices
    assert indices["user"].terms.to_pylist() == ["", "de", "fr"]
    assert len(indices["item"]) == 3
    assert len(indices["ids"]) == 4096
