"""Summaries of features: numpy and pandas on the dense matrix are the reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from gdmix import ConfigError, OutputError, memory
from gdmix.cli import app, terminal
from gdmix.config import RunConfig
from gdmix.data.feature_summary import FeatureSummary, summarize
from gdmix.data.feature_table import feature_table, write_feature_table
from gdmix.glm.matrix import CsrMatrix

F32 = NDArray[np.float32]
FIELDS = ("nnz", "mean", "variance", "mean_magnitude", "minimum", "maximum")


def csr(x: F32) -> CsrMatrix:
    rows, columns = np.nonzero(x)
    indptr = np.concatenate(([0], np.cumsum(np.bincount(rows, minlength=len(x)))))
    return CsrMatrix(indptr, columns.astype(np.uint32), x[rows, columns], x.shape[1])


def dense(x: F32) -> CsrMatrix:
    """Return the rows of a table that holds each twice, backwards."""
    n = len(x)
    return CsrMatrix.dense(np.concatenate([x[::-1], x]), np.arange(n)[::-1])


@pytest.fixture(scope="module")
def x() -> F32:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3000, 9)) * np.array([1, 1e-3, 1e3, 1, 1, 1, 1, 1, 1])
    x[:, 3] += 1e5  # a mean that dwarfs the deviations
    x[:, 4][rng.random(3000) < 0.97] = 0.0
    x[:, 5] = 0.0
    x[:, 6] = 7.25
    x[:, 7] = -np.abs(x[:, 7])  # its maximum is an absent value, if there is one
    x[:, 8] = np.where(rng.random(3000) < 0.5, 0.0, np.abs(x[:, 8]) + 1)
    return x.astype(np.float32)


@pytest.fixture(scope="module")
def weight() -> NDArray[np.float64]:
    weight = np.random.default_rng(1).exponential(size=3000)
    weight[::7] = 0.0
    return weight


def check(summary: FeatureSummary, x: F32, weight: NDArray[np.float64] | None) -> None:
    frame = pd.DataFrame(x.astype(np.float64))
    np.testing.assert_array_equal(summary.nnz, (frame != 0).sum())
    np.testing.assert_array_equal(summary.minimum, frame.min())
    np.testing.assert_array_equal(summary.maximum, frame.max())
    np.testing.assert_array_equal(summary.max_magnitude, frame.abs().max())
    mean = np.average(frame, axis=0, weights=weight)
    variance = np.diag(np.cov(frame.T, aweights=weight))
    magnitude = np.average(frame.abs(), axis=0, weights=weight)
    np.testing.assert_allclose(summary.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(summary.variance, variance, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(summary.mean_magnitude, magnitude, rtol=1e-12)
    np.testing.assert_allclose(summary.standard_deviation, np.sqrt(variance), rtol=1e-10, atol=1e-6)
    assert summary.n_rows == len(x)


@pytest.mark.parametrize("make", [csr, dense])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
def test_moments_and_extremes(
    x: F32, weight: NDArray[np.float64], make: Any, weighted: bool, threads: int
) -> None:
    check(
        summarize(make(x), weight if weighted else None, threads), x, weight if weighted else None
    )


def test_variance_of_a_sample_has_one_degree_of_freedom_less(x: F32) -> None:
    expected = pd.DataFrame(x.astype(np.float64)).var()
    np.testing.assert_allclose(summarize(csr(x)).variance, expected, rtol=1e-10, atol=1e-12)


def test_a_constant_has_variance_zero_exactly(x: F32, weight: NDArray[np.float64]) -> None:
    for summary in (summarize(csr(x)), summarize(csr(x), weight), summarize(dense(x), weight)):
        assert (summary.mean[6], summary.variance[6]) == (7.25, 0.0)


def test_the_result_does_not_depend_on_threads(x: F32, weight: NDArray[np.float64]) -> None:
    one, four = summarize(csr(x), weight, 1), summarize(csr(x), weight, 4)
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(one, name), getattr(four, name))


def test_equal_weights_and_multiples_of_weights_change_nothing(
    x: F32, weight: NDArray[np.float64]
) -> None:
    plain, threes = summarize(csr(x)), summarize(csr(x), np.full(len(x), 3.0))
    once, more = summarize(csr(x), weight), summarize(csr(x), 1000.0 * weight)
    for a, b in ((plain, threes), (once, more)):
        for name in FIELDS:
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-9)


def test_mapped_files_hold_the_same(x: F32, tmp_path: Path, monkeypatch: Any) -> None:
    whole = summarize(csr(x), threads=2)
    monkeypatch.setattr(memory, "_SMALLEST_MAPPED", 1)
    monkeypatch.setattr(memory, "_HELD_SHARE", 0.0)
    with memory.limited(10**9, tmp_path / "scratch"):
        matrix = csr(x)
        mapped = CsrMatrix(
            memory.copy(matrix.indptr), memory.copy(matrix.indices), memory.copy(matrix.values), 9
        )
        summary = summarize(mapped, threads=2)
        for name in FIELDS:
            np.testing.assert_array_equal(getattr(summary, name), getattr(whole, name))


@pytest.mark.parametrize("n", [0, 1])
def test_hardly_any_rows(n: int) -> None:
    summary = summarize(csr(np.full((n, 2), 3, np.float32)))
    assert summary.mean.tolist() == [3.0 * n] * 2
    assert summary.variance.tolist() == [0.0, 0.0]
    assert summary.maximum.tolist() == [3.0 * n] * 2


def test_without_columns_and_without_weight(x: F32) -> None:
    assert summarize(CsrMatrix.empty(5)).mean.size == 0
    nothing = summarize(csr(x), np.zeros(len(x)))
    assert not nothing.mean.any()
    assert not nothing.variance.any()
    assert nothing.maximum[0] == x[:, 0].max()


# The table of a configuration's features, and the command


@pytest.fixture
def configuration(project: Path) -> RunConfig:
    return RunConfig.from_yaml(Path("run.yaml"))


def test_the_table_is_that_of_pandas(configuration: RunConfig, train_rows: pa.Table) -> None:
    table = feature_table(configuration).to_pandas().set_index(["bag", "name", "term"])
    assert table.index.tolist() == [
        ("row", "x", ""),
        *(("row", "kind", k) for k in "abc"),
        *(("more", "tags", t) for t in "pqrs"),
    ]
    x = train_rows["x"].to_pandas().astype(np.float32)
    wanted = [(x != 0).sum(), x.mean(), x.std(), x.min(), x.max()]
    np.testing.assert_allclose(table.loc[("row", "x", "")], wanted, rtol=1e-5)
    is_a = (train_rows["kind"].to_pandas() == "a").astype(float)
    np.testing.assert_allclose(
        table.loc[("row", "kind", "a")], [is_a.sum(), is_a.mean(), is_a.std(), 0, 1]
    )


def test_moments_of_the_table_are_weighted_where_asked_for(
    project: Path, train_rows: pa.Table
) -> None:
    weight = np.arange(train_rows.num_rows) % 5
    pq.write_table(train_rows.append_column("weight", pa.array(weight)), "train.parquet")
    config = RunConfig.from_yaml(Path("run.yaml"))
    x = train_rows["x"].to_numpy()
    means = [feature_table(config, w)["mean"][0].as_py() for w in (False, True)]
    np.testing.assert_allclose(means, [x.mean(), np.average(x, weights=weight)], atol=1e-7)


@pytest.mark.parametrize("name", ["f.parquet", "f.csv"])
def test_the_file_has_all(configuration: RunConfig, name: str) -> None:
    table = feature_table(configuration)
    write_feature_table(table, Path(name))
    read = pq.read_table(name) if name == "f.parquet" else pyarrow.csv.read_csv(name)
    assert read["name"].to_pylist() == table["name"].to_pylist()
    np.testing.assert_allclose(read["std"], table["std"], rtol=1e-12)


def test_mistakes(configuration: RunConfig) -> None:
    with pytest.raises(OutputError, match=r"f\.txt: unknown kind of file; use \.parquet or \.csv"):
        write_feature_table(feature_table(configuration), Path("f.txt"))
    bare = "coordinates.per-user.features=[]", "coordinates.global.features=[]", "features={}"
    none = RunConfig.from_yaml(Path("run.yaml"), dict(text.split("=") for text in bare))
    with pytest.raises(ConfigError, match="features: the configuration has none"):
        feature_table(none)


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        app(list(arguments), prog_name="gdmix")
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


def test_the_command(project: Path, train_rows: pa.Table, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(terminal.out, "width", 80)
    kinds = pa.array([f"k{i % 50:02d}" for i in range(train_rows.num_rows)])
    rows = train_rows.set_column(train_rows.schema.get_field_index("kind"), "kind", kinds)
    pq.write_table(rows, "train.parquet")
    code, out, err = call(capsys, "features", "run.yaml", "--output", "all.csv")
    assert (code, err) == (0, "")
    assert "run.yaml: bag 'row', 51 features" in out
    assert "and 31 more: --output writes all" in out
    assert "k18" in out
    assert "k19" not in out
    assert out.endswith("all features: all.csv\n")
    assert pyarrow.csv.read_csv("all.csv").num_rows == 55
    code, out, _ = call(capsys, "features", "run.yaml", "--json")
    assert [row["nnz"] for row in json.loads(out)][1:4] == [12, 12, 12]
    code, out, err = call(capsys, "features", "run.yaml", "-o", "all.txt")
    assert (code, out) == (2, "")
    assert "unknown kind of file" in err
