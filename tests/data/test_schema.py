from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from gdmix.config import ColumnRoles, FeatureBag
from gdmix.data.schema import BagSource, RowSchema, bag_sources, feature_kind
from gdmix.errors import DataError

NTV = pa.struct({"name": pa.string(), "term": pa.large_string(), "value": pa.float32()})


def schema_of(*columns: str, **roles: Any) -> RowSchema:
    bags = {"bag": FeatureBag(columns=columns)} if columns else {}
    return RowSchema(ColumnRoles(**roles), bags)


def lines(rows: RowSchema, columns: dict[str, pa.DataType]) -> tuple[str, ...]:
    with pytest.raises(DataError) as caught:
        rows.select(pa.schema(columns), "rows")
    return caught.value.findings


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (pa.int8(), "numeric"),
        (pa.uint64(), "numeric"),
        (pa.float16(), "numeric"),
        (pa.float64(), "numeric"),
        (pa.bool_(), "numeric"),
        (pa.decimal128(9, 2), "numeric"),
        (pa.null(), "numeric"),
        (pa.string(), "categorical"),
        (pa.large_string(), "categorical"),
        (pa.dictionary(pa.int8(), pa.string()), "categorical"),
        (pa.dictionary(pa.int32(), pa.int64()), "categorical"),
        (pa.dictionary(pa.int8(), pa.null()), "categorical"),
        (pa.list_(pa.string()), "multi_hot"),
        (pa.large_list(pa.dictionary(pa.int8(), pa.large_string())), "multi_hot"),
        (pa.list_(pa.null()), "multi_hot"),
        (pa.list_(pa.float32(), 3), "dense"),
        (pa.list_(pa.int64(), 3), "dense"),
        (pa.list_(NTV), "ntv"),
        (pa.large_list(NTV), "ntv"),
        (pa.dictionary(pa.int8(), pa.float64()), None),
        (pa.list_(pa.float32()), None),
        (pa.list_(pa.string(), 2), None),
        (pa.list_(pa.struct({"name": pa.string(), "value": pa.float32()})), None),
        (pa.list_(pa.struct({"name": pa.int8(), "term": pa.string(), "value": pa.int8()})), None),
        (pa.binary(), None),
        (pa.timestamp("s"), None),
        (pa.date32(), None),
        (NTV, None),
        (pa.map_(pa.string(), pa.float64()), None),
    ],
)
def test_feature_kind(kind: pa.DataType, expected: str | None) -> None:
    assert feature_kind(kind) == expected


def test_bag_sources() -> None:
    bag = FeatureBag(columns=("x", "w_values", "y_indices", "w_indices", "z_values"))
    types = {c: pa.float64() for c in bag.columns}
    assert bag_sources(bag, types) == [
        BagSource("x", "numeric"),
        BagSource("y_indices", "numeric"),  # no y_values: a column like any other
        BagSource("w_indices", "indexed", "w_values"),
        BagSource("z_values", "numeric"),
    ]
    assert [s.feature for s in bag_sources(bag, types)] == ["x", "y_indices", "w", "z_values"]


class TestSelect:
    def test_columns_are_read_once_and_in_order(self) -> None:
        bags = {"a": FeatureBag(columns=("x", "user")), "b": FeatureBag(columns=("x", "y"))}
        rows = RowSchema(ColumnRoles(), bags, ("user",), ("user", "day"))
        kinds = {"day": pa.int32(), "other": pa.binary(), "y": pa.string(), "x": pa.int8()}
        kinds |= {"user": pa.string(), "weight": pa.float32(), "response": pa.bool_()}
        columns = rows.select(pa.schema(kinds), "rows")
        assert columns == ["response", "weight", "user", "day", "x", "y"]
        assert rows.keys == ("user", "day")

    def test_role_by_default_name_is_optional(self) -> None:
        rows = schema_of(needs := "x")
        assert rows.select(pa.schema({"x": pa.int8(), "response": pa.int8()}), "rows") == [
            "response",
            needs,
        ]

    def test_scoring_needs_no_response(self) -> None:
        rows = RowSchema(ColumnRoles(response="y"), {}, needs_response=False)
        # Some column has to be read, or the number of rows would be lost.
        assert rows.select(pa.schema({"other": pa.binary()}), "rows") == ["other"]
        assert rows.select(pa.schema({"other": pa.binary(), "y": pa.int8()}), "rows") == ["y"]

    def test_all_that_is_missing_or_wrong_is_said(self) -> None:
        bags = {"user": FeatureBag(columns=("age", "joined", "vector", "gendr"))}
        rows = RowSchema(ColumnRoles(uid="id"), bags, ("user_id", "shop"), ("day",))
        kinds = {"gender": pa.string(), "userid": pa.int64(), "weight": pa.string()}
        kinds |= {"joined": pa.date32(), "vector": pa.list_(pa.float32()), "shop": pa.float64()}
        feature = (
            "expected a feature: a number, a string, a list of strings, a fixed-size list of "
            "floats, a list of {name, term, value}, or a pair <x>_indices and <x>_values"
        )
        assert lines(rows, kinds) == (
            "rows: column 'id' is missing: the uid",
            "rows: column 'response' is missing: the response; "
            "if it has another name: `columns: {response: NAME}`",
            "rows: column 'user_id' is missing (did you mean 'userid'?): an entity column",
            "rows: column 'day' is missing: the grouping column of a metric",
            "rows: column 'age' is missing: in feature bag 'user'",
            "rows: column 'gendr' is missing (did you mean 'gender'?): in feature bag 'user'",
            "rows: column 'weight' is string, expected a number, as it is the weight",
            "rows: column 'shop' is double, expected an integer or a string, "
            "as rows are grouped by it",
            f"rows: column 'joined' is date32[day], {feature}",
            f"rows: column 'vector' is {pa.list_(pa.float32())}, {feature}",
        )

    @pytest.mark.parametrize(
        ("role", "kind", "expected"),
        [
            ("uid", pa.string(), "an integer, as it is the uid"),
            ("uid", pa.float64(), "an integer, as it is the uid"),
            ("response", pa.string(), "a number, as it is the response"),
            ("offset", pa.list_(pa.float64(), 2), "a number, as it is the offset"),
        ],
    )
    def test_wrong_type_of_a_role(self, role: str, kind: pa.DataType, expected: str) -> None:
        kinds = {"response": pa.int8(), role: kind}
        assert lines(schema_of(), kinds) == (
            f"rows: column '{role}' is {kind}, expected {expected}",
        )

    def test_wrong_type_of_a_pair(self) -> None:
        rows = RowSchema(
            ColumnRoles(),
            {"w": FeatureBag(columns=("w_indices", "w_values"))},
            needs_response=False,
        )
        assert lines(rows, {"w_indices": pa.list_(pa.float32()), "w_values": pa.float32()}) == (
            f"rows: column 'w_indices' is {pa.list_(pa.float32())}, expected a list of integers",
            "rows: column 'w_values' is float, expected a list of numbers",
        )

    def test_text_that_is_not_utf8(self) -> None:
        rows = RowSchema(ColumnRoles(), {"b": FeatureBag(columns=("x",))}, needs_response=False)
        (line,) = lines(rows, {"x": pa.large_binary()})
        assert line.endswith("; is it text that is not UTF-8?")

    @pytest.mark.parametrize(
        "kind",
        [
            pa.int32(),
            pa.uint64(),
            pa.string(),
            pa.large_string(),
            pa.binary(),
            pa.large_binary(),
            pa.dictionary(pa.int8(), pa.string()),
            pa.dictionary(pa.int8(), pa.int64()),
            pa.null(),
        ],
    )
    def test_types_of_an_entity(self, kind: pa.DataType) -> None:
        rows = RowSchema(ColumnRoles(), {}, ("e",), needs_response=False)
        assert rows.select(pa.schema({"e": kind}), "rows") == ["e"]

    def test_column_without_values_has_no_wrong_type(self) -> None:
        names = ["uid", "response", "weight", "e", "x", "w_indices", "w_values"]
        rows = RowSchema(
            ColumnRoles(), {"b": FeatureBag(columns=("x", "w_indices", "w_values"))}, ("e",)
        )
        assert rows.select(pa.schema({name: pa.null() for name in names}), "rows") == names

    def test_wrong_column_of_two_bags_is_said_once(self) -> None:
        bags = {b: FeatureBag(columns=("x",)) for b in "ab"}
        rows = RowSchema(ColumnRoles(), bags, needs_response=False)
        assert len(lines(rows, {"x": pa.date32()})) == 1
