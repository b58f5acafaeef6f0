from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gdmix import FixedEffect, MixedModel, RandomEffect
from gdmix.config import ColumnRoles, FeatureBag, ValidateMode
from gdmix.data.dataset import Dataset, load_rows, load_training
from gdmix.data.feature_index import FeatureIndex
from gdmix.data.schema import RowSchema
from gdmix.data.validate import Findings
from gdmix.errors import DataError

N = 8
MEND = "mend these rows, or leave them out with `validate: drop`"
PAIR = ("w_indices", "w_values")


def make_rows() -> pa.Table:
    return pa.table(
        {
            "uid": [100 + i for i in range(N)],
            "response": pa.array([i % 2 for i in range(N)], pa.float64()),
            "weight": [1.0] * N,
            "offset": [0.25 * i for i in range(N)],
            "user": [f"u{i % 3}" for i in range(N)],
            "day": [i % 2 for i in range(N)],
            "x": [float(i) for i in range(N)],
            "s": ["a", "b"] * (N // 2),
            "l": [["p", "q"], ["p"]] * (N // 2),
            "w_indices": [[0, 1]] * N,
            "w_values": [[1.0, 2.0]] * N,
        }
    )


def replace(table: pa.Table, column: str, values: dict[int, Any], kind: Any = None) -> pa.Table:
    """Set single values of a column."""
    every = table[column].to_pylist()
    for row, value in values.items():
        every[row] = value
    position = table.schema.get_field_index(column)
    return table.set_column(position, column, pa.array(every, kind or table[column].type))


def schema_of(table: pa.Table, feature_list: Path | None = None, **more: Any) -> RowSchema:
    plain = tuple(c for c in ("x", "s", "l") if c in table.schema.names)
    bags = {"plain": FeatureBag(columns=plain)} if plain else {}
    if set(PAIR) <= set(table.schema.names):
        bags["pair"] = FeatureBag(columns=PAIR, feature_list=feature_list)
    return RowSchema(ColumnRoles(), bags, ("user",), ("day",), **more)


def train(
    table: pa.Table, mode: ValidateMode, task: Any = "logistic_regression", **schema: Any
) -> tuple[Dataset, dict[str, FeatureIndex]]:
    dataset, indices = load_training(table, schema_of(table, **schema), task, mode, "rows")
    return dataset, dict(indices)


def findings(table: Any, mode: ValidateMode = "strict", **more: Any) -> tuple[str, ...]:
    with pytest.raises(DataError) as caught:
        train(table, mode, **more)
    return caught.value.findings


def assert_same(a: Dataset, b: Dataset) -> None:
    for name in ("uid", "response", "weight", "offset"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert a.keys == b.keys
    assert a.bags.keys() == b.bags.keys()
    for bag in a.bags:
        for part in ("indptr", "indices", "values", "n_columns"):
            np.testing.assert_array_equal(getattr(a.bags[bag], part), getattr(b.bags[bag], part))


@dataclass(frozen=True)
class Case:
    """Rows with a mistake: what is said of it, and which rows have it."""

    spoil: Callable[[pa.Table], pa.Table]
    said: str
    rows: tuple[int, ...]
    task: str = "logistic_regression"


def set_to(column: str, values: dict[int, Any], kind: Any = None) -> Callable[[pa.Table], pa.Table]:
    return lambda table: replace(table, column, values, kind)


FINITE = "NaN, infinity or a number too large for single precision"
CASES = {
    "NaN response": Case(
        set_to("response", {2: math.nan, 5: math.inf}),
        "column 'response': 2 rows with NaN or infinity (first: uid 102)",
        (2, 5),
    ),
    "null response": Case(
        set_to("response", {3: None}),
        "column 'response': 1 row with no value (first: uid 103)",
        (3,),
    ),
    "NaN weight": Case(
        set_to("weight", {4: math.nan}),
        "column 'weight': 1 row with NaN or infinity (first: uid 104)",
        (4,),
    ),
    "negative weight": Case(
        set_to("weight", {1: -0.5, 2: -2.0}),
        "column 'weight': 2 rows with a negative weight (first: uid 101, value -0.5)",
        (1, 2),
    ),
    "null weight": Case(
        set_to("weight", {0: None}), "column 'weight': 1 row with no value (first: uid 100)", (0,)
    ),
    "infinite offset": Case(
        set_to("offset", {6: math.inf}),
        "column 'offset': 1 row with NaN or infinity (first: uid 106)",
        (6,),
    ),
    "label 2": Case(
        set_to("response", {1: 2.0, 3: -1.0, 5: 0.5}),
        "column 'response': 3 rows with a label that is neither 0 nor 1 (first: uid 101, value 2)",
        (1, 3, 5),
    ),
    "negative count": Case(
        set_to("response", {1: 7.0, 2: -3.0}),
        "column 'response': 1 row with a negative label, where a count is expected "
        "(first: uid 102, value -3)",
        (2,),
        "poisson_regression",
    ),
    "repeated uid": Case(
        set_to("uid", {3: 100, 6: 102, 7: 100}),
        "column 'uid': 3 rows with the uid of an earlier row (first: uid 100)",
        (3, 6, 7),
    ),
    "null uid": Case(
        set_to("uid", {3: None, 4: None, 5: 0}),
        "column 'uid': 2 rows with no value (first: row 3)",
        (3, 4),
    ),
    "uid beyond int64": Case(
        set_to("uid", {2: 2**63}, pa.uint64()),
        f"column 'uid': 1 row with an id beyond int64 (first: uid {2**63})",
        (2,),
    ),
    "null entity": Case(
        set_to("user", {7: None}), "column 'user': 1 row with no value (first: uid 107)", (7,)
    ),
    "null in a dictionary": Case(
        lambda t: t.set_column(
            4,
            "user",
            pa.DictionaryArray.from_arrays(pa.array([0, 1] + [0] * 6), pa.array(["u", None])),
        ),
        "column 'user': 1 row with no value (first: uid 101)",
        (1,),
    ),
    "null group": Case(
        set_to("day", {0: None}), "column 'day': 1 row with no value (first: uid 100)", (0,)
    ),
    "entity that is not text": Case(
        lambda t: replace(
            t.set_column(4, "user", t["user"].cast(pa.binary())), "user", {1: b"\xff", 3: b"\xff"}
        ),
        "column 'user': 2 rows with an id that is not UTF-8 text (first: uid 101)",
        (1, 3),
    ),
    "entity beyond int64": Case(
        lambda t: t.set_column(4, "user", pa.array([1, 2**63, *range(6)], pa.uint64())),
        "column 'user': 1 row with an id beyond int64: cast them to text (first: uid 101)",
        (1,),
    ),
    "NaN feature": Case(
        set_to("x", {2: math.nan, 4: -math.inf, 5: 1e300}),
        f"column 'x': 3 rows with {FINITE} (first: uid 102)",
        (2, 4, 5),
    ),
    "feature twice": Case(
        set_to("l", {5: ["only here", "q", "q"]}),
        "column 'l': 1 row with a feature that stands twice "
        "(first: uid 105, feature 'l', term 'q')",
        (5,),
    ),
    "pair of two lengths": Case(
        set_to("w_indices", {2: [9]}),
        "column 'w_indices': 1 row with a length other than that of 'w_values' (first: uid 102)",
        (2,),
    ),
    "negative index": Case(
        set_to("w_indices", {3: [0, -1]}),
        "column 'w_indices': 1 row with a negative index (first: uid 103, index -1)",
        (3,),
    ),
}


@pytest.mark.parametrize("name", CASES)
class TestRows:
    def test_strict(self, name: str) -> None:
        case = CASES[name]
        assert findings(case.spoil(make_rows()), task=case.task) == (f"rows: {case.said}", MEND)

    def test_drop(self, name: str, caplog: pytest.LogCaptureFixture) -> None:
        case = CASES[name]
        table = case.spoil(make_rows())
        dataset, indices = train(table, "drop", case.task)
        assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [
            f"rows: {case.said}",
            f"rows: dropped {len(case.rows)} of {N} rows",
        ]
        kept = [i for i in range(N) if i not in case.rows]
        clean, clean_indices = train(table.take(pa.array(kept)), "strict", case.task)
        assert_same(dataset, clean)
        assert indices == clean_indices

    def test_off(self, name: str, caplog: pytest.LogCaptureFixture) -> None:
        case = CASES[name]
        dataset, _ = train(case.spoil(make_rows()), "off", case.task)
        assert dataset.n_rows == N
        assert all(np.isfinite(m.values).all() for m in dataset.bags.values())
        assert not [r for r in caplog.records if r.levelname == "WARNING"]

    def test_rows_to_be_scored(self, name: str) -> None:
        case, indices = CASES[name], train(make_rows(), "strict")[1]
        schema = schema_of(make_rows(), needs_response=False)
        table = case.spoil(make_rows())
        args = (schema, indices, case.task)
        if "'response'" in case.said:
            assert load_rows(table, *args, "strict", "rows").n_rows == N
            return
        with pytest.raises(DataError) as caught:
            load_rows(table, *args, "strict", "rows")
        assert caught.value.findings == (f"rows: {case.said}", MEND)
        kept = [i for i in range(N) if i not in case.rows]
        clean = load_rows(table.take(pa.array(kept)), *args, "strict", "rows")
        assert_same(load_rows(table, *args, "drop", "rows"), clean)


class TestStrict:
    def test_all_findings_are_gathered(self) -> None:
        table = replace(make_rows(), "uid", {1: 100})
        table = replace(table, "response", {0: 3.0})
        table = replace(table, "weight", {2: -1.0, 3: math.nan})
        table = replace(table, "user", {4: None})
        table = replace(table, "x", {5: math.nan})
        table = replace(table, "l", {6: ["p", "p"]})
        table = replace(table, "w_indices", {7: []})
        assert [line.partition(" (")[0] for line in findings(table)] == [
            "rows: column 'uid': 1 row with the uid of an earlier row",
            "rows: column 'response': 1 row with a label that is neither 0 nor 1",
            "rows: column 'weight': 1 row with NaN or infinity",
            "rows: column 'weight': 1 row with a negative weight",
            "rows: column 'user': 1 row with no value",
            f"rows: column 'x': 1 row with {FINITE}",
            "rows: column 'l': 1 row with a feature that stands twice",
            "rows: column 'w_indices': 1 row with a length other than that of 'w_values'",
            MEND,
        ]

    def test_rows_without_uid_are_counted_from_zero(self) -> None:
        table = replace(make_rows().drop_columns(["uid"]), "x", {3: math.nan})
        assert findings(table)[0].endswith("(first: row 3)")

    def test_counts_are_readable(self) -> None:
        many = pa.concat_tables([make_rows().drop_columns(["uid"])] * 200)
        table = replace(many, "weight", {i: -1.0 for i in range(1234)})
        assert "1,234 rows with a negative weight (first: row 0, value -1)" in findings(table)[0]

    def test_zero_weight_and_zero_response_are_fine(self) -> None:
        assert train(replace(make_rows(), "weight", {0: 0.0}), "strict")[0].n_rows == N

    @pytest.mark.parametrize("kind", [pa.bool_(), pa.int8(), pa.uint64(), pa.decimal128(22, 3)])
    def test_types_of_a_label(self, kind: pa.DataType) -> None:
        table = make_rows()
        column = table["response"].cast(pa.int64()).cast(kind)
        dataset, _ = train(table.set_column(1, "response", column), "strict")
        assert dataset.response.tolist() == [0.0, 1.0] * (N // 2)

    @pytest.mark.parametrize("value", [-3.5, 1e9])
    def test_any_number_is_a_label_of_linear_regression(self, value: float) -> None:
        table = replace(make_rows(), "response", {0: value})
        assert train(table, "strict", "linear_regression")[0].response[0] == value

    def test_offset_may_be_negative(self) -> None:
        assert train(replace(make_rows(), "offset", {0: -2.0}), "strict")[0].offset[0] == -2.0


@pytest.mark.parametrize("mode", ["strict", "drop"])
class TestFatal:
    def test_labels_of_one_class(self, mode: ValidateMode) -> None:
        zeros = replace(make_rows(), "response", dict.fromkeys(range(N), 0.0))
        ones = replace(make_rows(), "response", dict.fromkeys(range(N), 1.0))
        no_positive = ("rows: column 'response': no positive label: all are 0",)
        no_negative = ("rows: column 'response': no negative label: all are 1",)
        assert findings(zeros, mode) == no_positive
        assert findings(ones, mode) == no_negative
        assert findings(zeros, mode, task="poisson_regression") == no_positive
        assert train(ones, mode, "poisson_regression")[0].n_rows == N
        assert train(zeros, mode, "linear_regression")[0].n_rows == N
        assert train(zeros, "off")[0].n_rows == N

    def test_only_rows_of_some_weight_count(self, mode: ValidateMode) -> None:
        table = replace(make_rows(), "weight", dict.fromkeys(range(1, N, 2), 0.0))
        assert findings(table, mode) == ("rows: column 'response': no positive label: all are 0",)
        table = replace(make_rows(), "weight", dict.fromkeys(range(N), 0.0))
        assert findings(table, mode) == ("rows: no row has a positive weight",)

    def test_validation_rows_may_have_one_class(self, mode: ValidateMode) -> None:
        zeros = replace(make_rows(), "response", dict.fromkeys(range(N), 0.0))
        indices = train(make_rows(), "strict")[1]
        rows = load_rows(zeros, schema_of(zeros), indices, "logistic_regression", mode)
        assert rows.n_rows == N

    def test_no_rows(self, mode: ValidateMode) -> None:
        assert findings(make_rows().slice(0, 0), mode) == ("rows: has no rows",)


def test_missing_classes_are_said_with_the_rest() -> None:
    table = replace(make_rows(), "response", dict.fromkeys(range(N), 0.0))
    table = replace(table, "x", {1: math.nan})
    assert findings(table) == (
        f"rows: column 'x': 1 row with {FINITE} (first: uid 101)",
        "rows: column 'response': no positive label: all are 0",
        MEND,
    )


def test_dropping_may_leave_one_class_or_nothing() -> None:
    table = replace(make_rows(), "x", dict.fromkeys(range(1, N, 2), math.nan))
    assert findings(table, "drop") == ("rows: column 'response': no positive label: all are 0",)
    table = replace(make_rows(), "x", dict.fromkeys(range(N), math.nan))
    left = "rows: no row is left after dropping those with findings"
    assert findings(table, "drop") == (left,)
    table = replace(make_rows(), "response", dict.fromkeys(range(N), 2.0))
    assert findings(table, "drop") == (left,)


def test_index_outside_the_feature_list(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("a,\nb,x\n", encoding="utf-8")
    table = replace(make_rows(), "w_indices", {2: [0, 2], 5: [-1, 0]})
    said = (
        "rows: column 'w_indices': 2 rows with an index outside the feature list (0 to 1) "
        "(first: uid 102, index 2)"
    )
    assert findings(table, feature_list=path) == (said, MEND)
    dropped, indices = train(table, "drop", feature_list=path)
    clean = table.take(pa.array([0, 1, 3, 4, 6, 7]))
    assert_same(dropped, train(clean, "strict", feature_list=path)[0])
    assert len(indices["pair"]) == 2
    assert train(table, "off", feature_list=path)[0].n_rows == N


@pytest.mark.parametrize("mode", ["strict", "drop", "off"])
class TestEveryMode:
    def test_missing_columns_and_wrong_types(self, mode: ValidateMode) -> None:
        table = make_rows()
        wrong = table.drop_columns(["user", "x"]).append_column(
            "x", table["l"].cast(pa.list_(pa.binary()))
        )
        schema = schema_of(table)
        with pytest.raises(DataError) as caught:
            load_training(wrong, schema, "logistic_regression", mode, "rows")
        first, second = caught.value.findings
        assert first == "rows: column 'user' is missing: an entity column"
        assert second.startswith(f"rows: column 'x' is {pa.list_(pa.binary())}, expected a feature")

    def test_damaged_file(self, mode: ValidateMode, tmp_path: Path) -> None:
        path = tmp_path / "rows.parquet"
        pq.write_table(make_rows(), path)
        path.write_bytes(path.read_bytes()[:-30])
        (line,) = findings_of_file(path, mode)
        assert line.startswith(f"{path}: damaged or not what its name says: ")
        path.write_bytes(b"")
        assert findings_of_file(path, mode) == (f"{path}: is empty: 0 bytes",)


def findings_of_file(path: Path, mode: ValidateMode) -> tuple[str, ...]:
    with pytest.raises(DataError) as caught:
        load_training(path, schema_of(make_rows()), "logistic_regression", mode)
    return caught.value.findings


class TestFindings:
    def test_no_rows_no_finding(self) -> None:
        found = Findings("rows")
        found.add("x", "a fault", np.empty(0, np.int64))
        assert (found.lines(), found.columns) == ([], set())
        assert found.settle("strict", 3) is None

    def test_a_row_with_two_findings_is_dropped_once(self) -> None:
        found = Findings("rows", pa.array([7, None, 9]))
        found.add("x", "a fault", np.array([0, 1]), "value 1")
        found.add("y", "a fault", np.array([1]))
        keep = found.settle("drop", 3)
        assert keep is not None
        assert keep.tolist() == [False, False, True]
        assert found.lines() == [
            "rows: column 'x': 2 rows with a fault (first: uid 7, value 1)",
            "rows: column 'y': 1 row with a fault (first: row 1)",
        ]

    def test_findings_of_batches_add_up(self) -> None:
        found = Findings("rows")
        for first, bad in ((0, []), (10, [3]), (20, [0, 1])):
            batch = Findings("rows", None, first)
            batch.add("x", "a fault", np.array(bad, np.int64))
            found.merge(batch)
        assert found.rows_with("x", "a fault").tolist() == [13, 20, 21]
        assert found.lines() == ["rows: column 'x': 3 rows with a fault (first: row 13)"]

    def test_lines_come_in_the_order_of_columns(self) -> None:
        found = Findings("rows")
        for column in "cab":
            found.add(column, "a fault", np.array([0]))
        assert [line[14] for line in found.lines("abc")] == ["a", "b", "c"]


def test_dropping_trains_the_model_of_the_clean_rows(train_rows: pa.Table) -> None:
    spoiled = replace(train_rows, "x", {3: math.nan, 9: math.inf})
    spoiled = replace(spoiled, "tags", {11: ["seen only here"] * 2})
    spoiled = replace(spoiled, "response", {20: 5})
    kept = [i for i in range(len(train_rows)) if i not in (3, 9, 11, 20)]

    def fit(rows: pa.Table, mode: ValidateMode) -> MixedModel:
        return MixedModel(
            [FixedEffect("global", features="all"), RandomEffect("own", entity="user")],
            features={"all": ["x", "kind", "tags"]},
            validate=mode,
            threads=1,
        ).fit(rows)

    dropped, clean = fit(spoiled, "drop"), fit(train_rows.take(pa.array(kept)), "strict")
    for name in ("global", "own"):
        assert dropped.coefficients(name).equals(clean.coefficients(name))


# Through the real command line, a handful: no traceback, exit code 2, nothing left behind.
COMMAND_LINE: dict[str, tuple[Callable[[pa.Table], pa.Table] | None, str]] = {
    "NaN": (
        set_to("x", {4: math.nan}),
        f"error: train.parquet: column 'x': 1 row with {FINITE} (first: uid 1004)",
    ),
    "repeated uid": (
        set_to("uid", {4: 1000}),
        "error: train.parquet: column 'uid': 1 row with the uid of an earlier row "
        "(first: uid 1000)",
    ),
    "missing column": (
        lambda t: t.drop_columns(["user"]),
        "error: train.parquet: column 'user' is missing: an entity column",
    ),
    "no rows": (lambda t: t.slice(0, 0), "error: train.parquet: has no rows"),
    "damaged": (None, "error: train.parquet: damaged or not what its name says: "),
}


@pytest.mark.parametrize("name", COMMAND_LINE)
def test_command_line(name: str, project: Path) -> None:
    spoil, said = COMMAND_LINE[name]
    path = project / "train.parquet"
    if spoil is None:
        path.write_bytes(path.read_bytes()[:-100])
    else:
        pq.write_table(spoil(pq.read_table(path)), path)
    before = sorted(p.name for p in project.iterdir())
    command = [sys.executable, "-c", "from gdmix.cli import main; main()", "train", "run.yaml"]
    done = subprocess.run(
        [*command, "--output", "here"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "COLUMNS": "300"},
    )
    assert done.returncode == 2
    assert done.stderr.startswith(said)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert sorted(p.name for p in project.iterdir()) == before
