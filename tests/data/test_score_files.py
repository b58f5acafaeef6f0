from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from gdmix.config import Task
from gdmix.data.avro.container import AvroFile
from gdmix.data.avro.write import write_batches
from gdmix.data.dataset import Dataset
from gdmix.data.keys import Keys
from gdmix.data.read import open_rows
from gdmix.data.score_files import ScoredRows, read_scores, score_tables, write_gdmix_scores
from gdmix.data.score_files import write_scores as write_pieces
from gdmix.errors import DataError, OutputError

N = 4
TOTAL = np.array([0.5, -1.0, 2.0, 1e-9])


def codes(*numbers: int) -> NDArray[np.int32]:
    return np.array(numbers, np.int32)


def write_scores(table: pa.Table, path: Path) -> Path:
    return write_pieces(iter([table.slice(0, 1), table.slice(1)]), path)


def make_table(
    task: Task = "logistic_regression", response: tuple[float, ...] = (0, 1, 1, 0)
) -> pa.Table:
    rows = Dataset(
        "rows",
        np.array([7, 5, 3, 1]),
        np.array(response, float),
        np.array([1.0, 2.0, 0.5, 1.0]),
        np.array([0.0, 0.1, 0.2, 0.3]),
        {},
        {
            "user": Keys(pa.array(["u0", "u1"], pa.large_string()), codes(1, -1, 0, 1)),
            "day": Keys(pa.array([3, 4], pa.int64()), codes(0, 0, 1, -1)),
        },
    )
    return pa.concat_tables(score_tables(rows, task, TOTAL, {"score": TOTAL / 2}))


def read(path: Path, groups: tuple[str, ...] = (), column: str = "total_score") -> ScoredRows:
    return read_scores([str(path)], groups, column)


def findings(
    path: Path, groups: tuple[str, ...] = (), column: str = "total_score"
) -> tuple[str, ...]:
    with pytest.raises(DataError) as caught:
        read(path, groups, column)
    return caught.value.findings


def test_columns() -> None:
    names = ["uid", "user", "day", "response", "weight", "offset", "score", "total_score"]
    assert make_table().schema.names == names
    assert make_table(response=(0, math.nan, 1, 0))["response"].to_pylist() == [0, None, 1, 0]


@pytest.mark.parametrize("name", ["s.parquet", "s.csv", "scores", "deep/er/s.parquet"])
@pytest.mark.parametrize("task", ["logistic_regression", "poisson_regression"])
def test_round_trip(tmp_path: Path, name: str, task: Task) -> None:
    path = write_scores(make_table(task), tmp_path / name)
    assert path == tmp_path / (name if "." in name else "scores/part-00000.parquet")
    rows = read(tmp_path / name, ("user", "day"))
    assert rows.task == (None if name.endswith("csv") else task)
    np.testing.assert_array_equal(rows.score, TOTAL)
    assert rows.response.tolist() == [0, 1, 1, 0]
    assert rows.weight.tolist() == [1.0, 2.0, 0.5, 1.0]
    assert rows.groups["day"].tolist() == [0, 0, 1, -1]
    assert rows.groups["user"][0] == rows.groups["user"][3] != rows.groups["user"][2]
    assert read(path, column="score").score.tolist() == (TOTAL / 2).tolist()


def test_several_files(tmp_path: Path) -> None:
    a = write_scores(make_table().slice(0, 1), tmp_path / "a.parquet")
    b = write_scores(make_table().slice(1), tmp_path / "b.parquet")
    rows = read_scores([str(b), str(a)], [], "total_score")
    assert rows.score.tolist() == [*TOTAL[1:], TOTAL[0]]
    assert rows.task == "logistic_regression"


def test_files_of_others(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("p,response,g\n0.5,1,x\n,0,y\n".replace(",0,y", "2,0,y"))
    rows = read(tmp_path / "s.csv", ("g",), "p")
    assert rows.task is None
    assert rows.weight.tolist() == [1, 1]
    assert rows.groups["g"].tolist() == [0, 1]
    # The response may itself be the score to be judged.
    assert read(tmp_path / "s.csv", column="response").score.tolist() == [1, 0]
    pq.write_table(
        make_table().replace_schema_metadata({"gdmix.task": "?"}), tmp_path / "s.parquet"
    )
    assert read(tmp_path / "s.parquet").task is None


def test_what_is_missing(tmp_path: Path) -> None:
    path = write_scores(make_table().drop_columns(["response", "weight"]), tmp_path / "s.parquet")
    assert findings(path, ("usr", "usr"), "totalscore") == (
        f"{path}: column 'totalscore' is missing (did you mean 'total_score'?)",
        f"{path}: column 'response' is missing",
        f"{path}: column 'usr' is missing (did you mean 'user'?)",
    )
    assert findings(tmp_path / "nowhere") == (f"{tmp_path / 'nowhere'}: no such file or folder",)


def test_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    table = make_table().set_column(3, "response", pa.array(["0", "1", "1", "0"]))
    write_scores(table.set_column(7, "total_score", pa.array([[0.5]] * N)), path)
    assert findings(path) == (
        f"{path}: column 'response' is string, expected a number",
        f"{path}: column 'total_score' is {pa.list_(pa.float64())}, expected a number",
    )
    write_scores(make_table().slice(0, 0), path)
    assert findings(path) == (f"{path}: has no rows",)
    empty = make_table(response=(0, math.nan, math.nan, 1))
    write_scores(empty.set_column(7, "total_score", pa.array([1.0, None, 1.0, 1.0])), path)
    assert findings(path) == (
        f"{path}: column 'response': 2 rows with no value; metrics need one",
        f"{path}: column 'total_score': 1 row with no value; metrics need one",
    )
    write_scores(make_table(), path)
    assert findings(path, ("offset",)) == (
        f"{path}: column 'offset' is double, expected an integer or a string",
    )


def test_where_scores_can_not_go(tmp_path: Path) -> None:
    said = "unknown kind of file; use .parquet, .csv, .avro or a folder"
    for name in ("s.xlsx", "s.CSV", "v1.2"):
        with pytest.raises(OutputError) as caught:
            write_scores(make_table(), tmp_path / name)
        assert str(caught.value) == f"{tmp_path / name}: {said}"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match=r"file: is a file; name a folder, or a file ending in "):
        write_scores(make_table(), tmp_path / "file")
    with pytest.raises(OutputError, match="can't be written: .*/file is a file, not a folder$"):
        write_scores(make_table(), tmp_path / "file" / "s.csv")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_csv_is_text(tmp_path: Path) -> None:
    path = write_scores(make_table(response=(0, math.nan, 1, 0)), tmp_path / "s.csv")
    header, first, second = path.read_text().splitlines()[:3]
    assert header == '"uid","user","day","response","weight","offset","score","total_score"'
    assert first == '7,"u1",3,0,1,0,0.25,0.5'
    assert second == "5,,3,,2,0.1,-0.5,-1"


# Avro


def test_avro_round_trip(tmp_path: Path) -> None:
    table = make_table()
    path = write_scores(table, tmp_path / "a.avro")
    rows = read(path)
    np.testing.assert_array_equal(rows.score, TOTAL.astype(np.float32))
    np.testing.assert_array_equal(rows.response, [0, 1, 1, 0])
    np.testing.assert_array_equal(rows.weight, [1, 2, 0.5, 1])  # not cut to integers
    assert rows.task == "logistic_regression"


def test_avro_has_gdmix_fields_first(tmp_path: Path) -> None:
    path = write_scores(make_table(response=(0, 1, math.nan, 0)), tmp_path / "a.avro")
    schema = AvroFile(path).schema
    assert schema["name"] == "validation_result"
    assert [(f["name"], f["type"]) for f in schema["fields"][:5]] == [
        ("uid", "long"),
        ("predictionScore", "float"),
        ("response", ["null", "float"]),
        ("weight", "float"),
        ("predictionScorePerCoordinate", "float"),
    ]
    assert [f["name"] for f in schema["fields"][5:]] == ["user", "day", "offset"]
    table = open_rows(path).read(["uid", "user", "day", "offset", "response"])
    assert table["user"].to_pylist() == ["u1", None, "u0", "u1"]
    assert table["day"].to_pylist() == [3, 3, 4, None]
    assert table["offset"].to_pylist() == [0.0, 0.1, 0.2, 0.3]
    assert table["response"].to_pylist() == [0, 1, None, 0]


def test_avro_names_are_legal(tmp_path: Path) -> None:
    table = make_table().append_column("score:per-user", pa.array(TOTAL))
    path = write_scores(table, tmp_path / "a.avro")
    assert open_rows(path).read(["score_per_user"])["score_per_user"].to_pylist() == list(TOTAL)


def test_avro_with_names_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "a.avro"
    own = {"response": "did-click", "total_score": "score", "weight": "w"}
    write_gdmix_scores(iter([make_table()]), path, own, others=False)
    names = ["uid", "score", "did_click", "w", "predictionScorePerCoordinate"]
    assert open_rows(path).schema.names == names
    rows = read(path)  # the file tells which is which
    np.testing.assert_array_equal(rows.response, [0, 1, 1, 0])
    np.testing.assert_array_equal(rows.weight, [1, 2, 0.5, 1])
    np.testing.assert_array_equal(rows.score, TOTAL.astype(np.float32))


def test_scores_that_gdmix_wrote(tmp_path: Path) -> None:
    # As it names the label where it is told nothing else; without weights.
    fields = [
        {"name": "uid", "type": "long"},
        {"name": "predictionScore", "type": "float"},
        {"name": "label", "type": ["null", "int"], "default": None},
    ]
    schema = {"type": "record", "name": "validation_result", "fields": fields}
    batch = pa.RecordBatch.from_pydict(
        {"uid": [1, 2], "predictionScore": [0.5, -1.0], "label": [1, 0]}
    )
    write_batches(tmp_path / "a.avro", schema, [batch])
    rows = read(tmp_path / "a.avro")
    np.testing.assert_array_equal(rows.response, [1, 0])
    np.testing.assert_array_equal(rows.score, [0.5, -1])
    assert rows.task is None


def test_part_of_a_folder_is_avro_where_asked(tmp_path: Path) -> None:
    path = write_pieces(iter([make_table()]), tmp_path / "out", "avro")
    assert path == tmp_path / "out" / "part-00000.avro"
    assert read(tmp_path / "out").score.size == N
