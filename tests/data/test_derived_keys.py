from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdmix.config import BinnedColumn, ColumnRoles
from gdmix.data.dataset import load_rows
from gdmix.data.derived_keys import bin_labels, derive_keys, key_of, part_kinds
from gdmix.data.schema import RowSchema
from gdmix.errors import DataError

AGE = BinnedColumn(column="age", bins=[18, 25.5, 1e20])


def keys(parts: Any, **columns: Any) -> list[str | None]:
    found, problems = derive_keys(pa.RecordBatch.from_pydict(columns), parts)
    assert found.type == pa.large_string()
    assert not any(rows.size for _, _, rows in problems)
    return found.to_pylist()


def test_bins() -> None:
    assert bin_labels(AGE) == ["(-inf,18)", "[18,25.5)", "[25.5,1e+20)", "[1e+20,inf)"]
    ages = [-np.inf, 17.9, 18, 25.4999, 25.5, 1e20, np.inf, None, np.nan]
    low, middle, high, top = bin_labels(AGE)
    assert keys((AGE,), age=ages) == [low, low, middle, middle, high, top, top, None, None]
    assert keys((AGE,), age=pa.array([17, 18, None], pa.int8())) == [low, middle, None]
    one = BinnedColumn(column="x", bins=[0])
    assert keys((one,), x=[-0.5, 0.0, -0.0, True]) == ["(-inf,0)", "[0,inf)", "[0,inf)", "[0,inf)"]


def test_several_columns() -> None:
    found = keys(("land", "size"), land=["de", "fr", None, "de"], size=[3, -1, 2, None])
    assert found == ['["de",3]', '["fr",-1]', None, None]
    land = pa.array(["de", "fr"]).dictionary_encode()
    assert keys(("size", AGE, "land"), size=[1, 2], age=[20, 30], land=land) == [
        '[1,"[18,25.5)","de"]',
        '[2,"[25.5,1e+20)","fr"]',
    ]


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.text(), st.integers(-(2**63), 2**63 - 1), st.text()), min_size=1))
def test_keys_can_be_taken_apart(values: list[tuple[str, int, str]]) -> None:
    first, second, third = (list(column) for column in zip(*values, strict=True))
    found = keys(("a", "b", "c"), a=first, b=second, c=third)
    assert [tuple(json.loads(key or "")) for key in found] == values
    assert [key_of(("a", "b", "c"), value) for value in values] == found
    assert [key_of(("a", "b", "c"), key) for key in found] == found
    assert len(set(found)) == len(set(values))


@pytest.mark.parametrize(
    ("parts", "entity", "key"),
    [
        ((AGE,), 20, "[18,25.5)"),
        ((AGE,), np.float32(25.5), "[25.5,1e+20)"),
        ((AGE,), "20", "[18,25.5)"),
        ((AGE,), "[18,25.5)", "[18,25.5)"),
        (("land", AGE), ["de", 20], '["de","[18,25.5)"]'),
        (("land", AGE), ("de", "[18,25.5)"), '["de","[18,25.5)"]'),
        (("land", AGE), '["de", 20]', '["de","[18,25.5)"]'),
        (("land", "size"), ("dé", np.int64(3)), '["dé",3]'),
        (("land", "size"), ("de",), '["de"]'),
        (("land", "size"), "de", "de"),
        (("land", "size"), 3, 3),
        (("land", "size"), ("de", None), '["de",null]'),
    ],
)
def test_how_a_user_names_an_entity(parts: Any, entity: object, key: object) -> None:
    assert key_of(parts, entity) == key


def test_types_of_the_parts() -> None:
    assert part_kinds(pa.array(['["a",3]', '["b",4]'])) == ("text", "an integer")
    assert part_kinds(pa.array([], pa.large_string())) == ()


SCHEMA = RowSchema(
    ColumnRoles(),
    {},
    ("land+age[18,25.5,1e+20]", "land"),
    needs_response=False,
    derived={"land+age[18,25.5,1e+20]": ("land", AGE)},
)


def load(columns: Any, mode: Any = "strict") -> Any:
    return load_rows(columns, SCHEMA, {}, "logistic_regression", mode)


def test_rows_without_a_part() -> None:
    rows = {"land": ["de", None, "fr", "de"], "age": [20.0, 30.0, np.nan, None]}
    with pytest.raises(DataError) as caught:
        load(rows)
    assert caught.value.findings[:3] == (
        "data: column 'land': 1 row with no value (first: row 1)",
        "data: column 'age': 1 row with no value (first: row 3)",
        "data: column 'age': 1 row with NaN (first: row 2)",
    )
    dropped = load(rows, "drop")
    key = dropped.keys["land+age[18,25.5,1e+20]"]
    assert key.slice(slice(None)).to_pylist() == ['["de","[18,25.5)"]']
    assert key.kinds == ("text", "text")
    whole = load(rows, "off").keys
    assert whole["land+age[18,25.5,1e+20]"].codes.tolist() == [0, -1, -1, -1]
    assert whole["land"].slice(slice(None)).to_pylist() == rows["land"]


def test_columns_that_do_not_fit() -> None:
    with pytest.raises(DataError) as caught:
        load({"land": [0.5], "age": ["old"]})
    assert caught.value.findings == (
        "data: column 'land' is double, expected an integer or a string, as rows are grouped by it",
        "data: column 'age' is string, expected a number, as it is put into bins",
    )
    with pytest.raises(DataError, match="data: column 'age' is missing: an entity column"):
        load({"land": ["de"]})
    with pytest.raises(DataError, match="data: column 'land': 1 row with an id that is not UTF-8"):
        load({"land": [b"\xff", b"de"], "age": [1, 2]})
