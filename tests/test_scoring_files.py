"""`gdmix.scoring`: rows to score files, score files to metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from gdmix import (
    ConfigError,
    DataError,
    FixedEffect,
    MixedModel,
    ModelError,
    OutputError,
    RandomEffect,
)
from gdmix.scoring import evaluate_files, score_to_file


@pytest.fixture(scope="module")
def model(train_rows: pa.Table) -> MixedModel:
    coordinates = [FixedEffect("global", features="row"), RandomEffect("per-user", entity="user")]
    return MixedModel(coordinates, features={"row": ["x", "kind"]}).fit(train_rows)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: Any, model: MixedModel, validation_rows: pa.Table) -> Path:
    monkeypatch.chdir(tmp_path)
    model.save("model")
    pq.write_table(validation_rows, "rows.parquet")
    return tmp_path


@pytest.mark.parametrize(
    ("output", "written"),
    [
        ("s.parquet", "s.parquet"),
        ("new/s.parquet", "new/s.parquet"),
        ("scores", "scores/part-00000.parquet"),
        ("s.csv", "s.csv"),
    ],
)
def test_scores_are_the_predictions(
    folder: Path, model: MixedModel, validation_rows: pa.Table, output: str, written: str
) -> None:
    done = score_to_file(Path("model"), ["rows.parquet"], Path(output), components=True)
    assert done.path == Path(written)
    assert done.rows == validation_rows.num_rows
    read = pyarrow.csv.read_csv if written.endswith("csv") else pq.read_table
    table = read(written)
    assert table.column_names == [
        "uid", "user", "response", "weight", "offset",
        "score:global", "score:per-user", "prediction", "total_score",
    ]  # fmt: skip
    link = model.predict(validation_rows, kind="link")
    np.testing.assert_allclose(table["total_score"], link, atol=1e-12)
    np.testing.assert_allclose(table["prediction"], model.predict(validation_rows), atol=1e-12)
    parts = table["score:global"].to_numpy() + table["score:per-user"].to_numpy()
    np.testing.assert_allclose(parts, link, atol=1e-12)
    assert table["uid"].equals(validation_rows["uid"])


def test_components_only_if_asked_for(folder: Path) -> None:
    score_to_file(Path("model"), ["rows.parquet"], Path("s.parquet"))
    names = pq.read_schema("s.parquet").names
    assert names[-2:] == ["prediction", "total_score"]
    assert not any(name.startswith("score") for name in names)


def test_several_files_and_patterns(folder: Path, validation_rows: pa.Table) -> None:
    for i in range(3):
        pq.write_table(validation_rows.slice(100 * i, 100), f"part-{i}.parquet")
    done = score_to_file(Path("model"), ["part-[01].parquet", "part-2.parquet"], Path("s.parquet"))
    assert done.rows == 300
    assert pq.read_table("s.parquet")["uid"].to_pylist() == validation_rows["uid"].to_pylist()


def test_rows_without_a_response(folder: Path, validation_rows: pa.Table) -> None:
    pq.write_table(validation_rows.drop_columns(["response"]), "new.parquet")
    score_to_file(Path("model"), ["new.parquet"], Path("s.parquet"))
    assert pq.read_table("s.parquet")["response"].null_count == 300
    with pytest.raises(DataError, match="column 'response': 300 rows"):
        evaluate_files(["s.parquet"], [], "total_score", None)


def test_bad_rows_can_be_dropped(folder: Path, validation_rows: pa.Table) -> None:
    x = validation_rows["x"].to_numpy().copy()
    x[[3, 5]] = np.nan
    bad = validation_rows.drop_columns(["x"]).append_column("x", pa.array(x))
    pq.write_table(bad, "bad.parquet")
    with pytest.raises(DataError, match="column 'x': 2 rows"):
        score_to_file(Path("model"), ["bad.parquet"], Path("s.parquet"))
    assert sorted(p.name for p in folder.iterdir()) == ["bad.parquet", "model", "rows.parquet"]
    assert (
        score_to_file(Path("model"), ["bad.parquet"], Path("s.parquet"), validate="drop").rows
        == 298
    )
    uid = pq.read_table("s.parquet")["uid"].to_pylist()
    assert uid == np.delete(validation_rows["uid"].to_numpy(), [3, 5]).tolist()


@pytest.mark.parametrize(
    ("model_folder", "data", "output", "error", "message"),
    [
        ("modle", "rows.parquet", "s.parquet", ModelError, "modle: is not a model"),
        ("model", "row.parquet", "s.parquet", DataError, "row.parquet: no such file or folder"),
        ("model", "model", "s.parquet", DataError, "column 'x' "),
        ("model", "rows.parquet", "s.txt", OutputError, "s.txt: unknown kind of file"),
        ("model", "rows.parquet", "rows.parquet/s.csv", OutputError, "can't be written"),
    ],
)
def test_what_cannot_be_scored(
    folder: Path, model_folder: str, data: str, output: str, error: type, message: str
) -> None:
    before = sorted(folder.rglob("*"))
    with pytest.raises(error, match=message):
        score_to_file(Path(model_folder), [data], Path(output))
    assert sorted(folder.rglob("*")) == before


# Metrics of score files


@pytest.fixture
def scored(folder: Path) -> Path:
    score_to_file(Path("model"), ["rows.parquet"], Path("s.parquet"), components=True)
    score_to_file(Path("model"), ["rows.parquet"], Path("s.csv"), components=True)
    return folder


def test_the_file_tells_its_task(scored: Path) -> None:
    table = pq.read_table("s.parquet")
    assert evaluate_files(["s.parquet"], [], "total_score", None) == {
        "auc": pytest.approx(roc_auc_score(table["response"], table["total_score"])),
        "logloss": pytest.approx(log_loss(table["response"], table["prediction"])),
    }


def test_a_csv_file_has_to_be_told(scored: Path) -> None:
    with pytest.raises(ConfigError, match=r"^s.csv: does not name its task; pass --task$"):
        evaluate_files(["s.csv"], [], "total_score", None)
    told = evaluate_files(["s.csv"], [], "total_score", "logistic_regression")
    assert told == pytest.approx(evaluate_files(["s.parquet"], [], "total_score", None))


def test_metrics_and_columns_of_choice(scored: Path) -> None:
    values = evaluate_files(
        ["s.parquet"], ["rmse", "auc:user", "ndcg@3:user"], "score:global", None
    )
    assert list(values) == ["rmse", "auc:user", "ndcg@3:user"]
    table = pq.read_table("s.parquet")
    probability = 1 / (1 + np.exp(-table["score:global"].to_numpy()))
    error = np.sqrt(np.mean((probability - table["response"].to_numpy()) ** 2))
    assert values["rmse"] == pytest.approx(error)


def test_parts_of_a_file_are_one(scored: Path) -> None:
    table = pq.read_table("s.parquet")
    pq.write_table(table.slice(0, 150), "a.parquet")
    pq.write_table(table.slice(150), "b.parquet")
    whole = evaluate_files(["s.parquet"], ["auc"], "total_score", None)
    assert evaluate_files(["a.parquet", "b.parquet"], ["auc"], "total_score", None) == whole


@pytest.mark.parametrize(
    ("metrics", "score", "task", "error", "message"),
    [
        (["auk"], "total_score", None, ConfigError, r"unknown metric 'auk' \(did you mean 'auc'"),
        (["auc:age"], "total_score", None, DataError, "s.parquet: column 'age' is missing"),
        (["auc"], "totl_score", None, DataError, "did you mean 'total_score'"),
        (["auc"], "total_score", "logistic", ConfigError, "--task logistic: unknown"),
    ],
)
def test_what_cannot_be_evaluated(
    scored: Path, metrics: list[str], score: str, task: Any, error: type, message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        evaluate_files(["s.parquet"], metrics, score, task)
    assert "\n" not in str(caught.value)
