from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gdmix.config import ColumnRoles
from gdmix.data.dataset import Dataset, load_rows
from gdmix.data.external_scores import read_external_scores
from gdmix.data.schema import RowSchema
from gdmix.errors import DataError

UID = [7, 3, 12, -5]


def rows_of(uid: list[int], mode: Any = "strict") -> Dataset:
    schema = RowSchema(ColumnRoles(), {}, needs_response=False)
    return load_rows({"uid": uid}, schema, {}, "logistic_regression", mode, "training data")


ROWS = rows_of(UID)


def read(source: Any, rows: Dataset = ROWS, **options: Any) -> list[float]:
    settings = {"uid": "uid", "score": None, "missing": "error", **options}
    return read_external_scores(source, rows, **settings).tolist()


def message(source: Any, **options: Any) -> list[str]:
    with pytest.raises(DataError) as caught:
        read(source, **options)
    return list(caught.value.findings)


def test_scores_are_found_by_uid() -> None:
    scores = {"uid": [-5, 3, 99, 7, 12], "score": [0.5, 1.0, 9.0, 2.0, 3.0]}
    assert read(scores) == [2.0, 1.0, 3.0, 0.5]
    order = rows_of(sorted(UID))
    assert read(scores, order) == [0.5, 1.0, 2.0, 3.0]
    assert read({"uid": [1], "score": [0.0]}, rows_of([])) == []


def test_columns() -> None:
    both = {"uid": UID, "score": [1.0] * 4, "predictionScore": [2.0] * 4, "id": UID[::-1]}
    assert read(both) == [2.0] * 4
    assert read(both, score="score") == [1.0] * 4
    assert read({**both, "s": [1, 2, 3, 4]}, uid="id", score="s") == [4.0, 3.0, 2.0, 1.0]
    assert message({"uid": UID, "z": UID}) == [
        "scores: has neither a column 'predictionScore' nor 'score'; name it: `score: COLUMN`"
    ]
    assert message({"uids": UID, "score": ["a"] * 4}) == [
        "scores: column 'uid' is missing (did you mean 'uids'?): the uid",
        "scores: column 'score' is string, expected a number",
    ]
    assert message({"uid": [0.5], "score": [1.0]}) == [
        "scores: column 'uid' is double, expected an integer"
    ]


def test_files_in_many_pieces(tmp_path: Path) -> None:
    n = 1000
    rng = np.random.default_rng(0)
    uid = rng.permutation(n)
    for k, part in enumerate(np.array_split(rng.permutation(n), 3)):
        table = pa.table({"uid": part, "score": part / 7})
        pq.write_table(table, tmp_path / f"part-{k}.parquet", row_group_size=40)
    rows = rows_of(uid.tolist())
    np.testing.assert_array_equal(read(str(tmp_path), rows), uid / 7)


def test_rows_without_a_score() -> None:
    some = {"uid": [3, 50], "score": [1.5, 2.0]}
    assert message(some) == [
        "training data: 3 rows with no score in scores (first: uid -5, 7, 12); "
        "`missing: zero` scores them 0"
    ]
    assert read(some, missing="zero") == [0.0, 1.5, 0.0, 0.0]


def test_scores_that_stand_twice_or_are_none() -> None:
    twice = {"uid": [7, 3, 7, 12, -5, 3, 3, 1, 1], "score": [1.0] * 9}
    batches = pa.Table.from_batches(pa.table(twice).to_batches(max_chunksize=2))
    for source in (twice, batches):
        assert message(source, missing="zero") == [
            "scores: 3 scores with the uid of an earlier score (first: uid 7, 3, 3)"
        ]
    odd = {
        "uid": [7, 3, None, 12, -5, 99],
        "score": [None, np.inf, 1.0, 2.0, 3.0, None],
    }
    assert message(odd) == [
        "scores: 1 score with no uid",
        "scores: 2 scores with no finite score (first: uid 7, 3)",
    ]


def test_ids_beyond_int64_are_of_no_row() -> None:
    big = pa.array([2**64 - 5, 7, 3, 12], pa.uint64())  # would be -5
    assert read({"uid": big, "score": [1.0] * 4}, missing="zero") == [1.0, 1.0, 1.0, 0.0]


def test_rows_whose_uids_are_not_unique() -> None:
    rows = rows_of([1, 2, 1], "off")
    with pytest.raises(DataError, match="training data: scores can't be matched"):
        read({"uid": [1, 2], "score": [1.0, 2.0]}, rows)
