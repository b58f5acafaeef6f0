from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdmix.data.keys import KeysBuilder, KeyTable, as_keys, key_column, key_type
from gdmix.errors import DataError


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([3, None, 1], pa.int16(), pa.int64()),
        ([3, None, 1], pa.uint64(), pa.int64()),
        (["b", None, "é"], pa.string(), pa.large_string()),
        ([b"b", None, "é".encode()], pa.binary(), pa.large_string()),
        ([b"b", None, "é".encode()], pa.large_binary(), pa.large_string()),
        ([3, None, 1], pa.dictionary(pa.int8(), pa.int32()), pa.int64()),
        (["b", None, "é"], pa.dictionary(pa.int8(), pa.string()), pa.large_string()),
        ([None, None, None], pa.null(), pa.large_string()),
    ],
)
def test_types(values: list[Any], kind: pa.DataType, expected: pa.DataType) -> None:
    whole = pa.array(values, kind)
    for column in (whole, pa.array([*values, *values], kind).slice(3), whole.slice(0, 0)):
        keys, bad = as_keys(column)
        assert keys.type == expected == key_type(kind)
        text = [v.decode() if isinstance(v, bytes) else v for v in values]
        assert keys.to_pylist() == text[: len(column)]
        assert bad.tolist() == []


def test_bad_values_are_null() -> None:
    keys, bad = as_keys(pa.array([b"a", b"\xff", None, b"\xff", b"b"]))
    assert keys.to_pylist() == ["a", None, None, None, "b"]
    assert bad.tolist() == [1, 3]
    keys, bad = as_keys(pa.array([2**63, None, 1], pa.uint64()))
    assert keys.to_pylist() == [None, None, 1]
    assert bad.tolist() == [0]


def test_a_key_column_refuses_them() -> None:
    with pytest.raises(DataError) as caught:
        key_column(pa.chunked_array([[b"\xff"], [b"\xfe", b"a"]]), "user", "rows")
    said = "rows: column 'user': 2 rows with an id that is not UTF-8 text"
    assert caught.value.findings == (said,)
    with pytest.raises(DataError, match="column 'user' is double, expected an integer or"):
        key_column(pa.chunked_array([[0.5]]), "user", "rows")
    keys = key_column(pa.chunked_array([["b", None], ["a", "b"]]), "user", "rows")
    assert (keys.values.to_pylist(), keys.codes.tolist()) == (["a", "b"], [1, -1, 0, 1])
    assert keys.codes.dtype == np.int32
    assert keys.slice(slice(1, 3)).to_pylist() == [None, "a"]


INTEGERS = st.one_of(st.integers(-3, 3), st.integers(-(2**63), 2**63 - 1))
TEXTS = st.text(st.sampled_from("aäb\0"), max_size=4)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    st.one_of(
        st.tuples(st.just(pa.int64()), st.lists(st.lists(st.none() | INTEGERS), max_size=5)),
        st.tuples(st.just(pa.large_string()), st.lists(st.lists(st.none() | TEXTS), max_size=5)),
    )
)
def test_a_table_is_a_dictionary(drawn: tuple[pa.DataType, list[list[Any]]]) -> None:
    kind, pieces = drawn
    table, known = KeyTable(kind), dict[Any, int]()
    builder = KeysBuilder(kind)
    for piece in pieces:
        keys = pa.array([None, *piece], kind).slice(1)
        before = table.find(keys).tolist()
        assert before == [known.get(key, -1) if key is not None else -1 for key in piece]
        for key in piece:
            if key is not None:
                known.setdefault(key, len(known))
        assert table.insert(keys).tolist() == [-1 if k is None else known[k] for k in piece]
        assert table.keys().to_pylist() == list(known)
        assert len(table) == len(known)
        builder.append(keys)
    column = builder.finish()
    flat = [key for piece in pieces for key in piece]
    by_bytes = sorted(known, key=lambda key: key.encode() if isinstance(key, str) else key)
    assert column.values.to_pylist() == by_bytes
    assert column.slice(slice(None)).to_pylist() == flat


@pytest.mark.parametrize("kind", [pa.int64(), pa.large_string()])
def test_a_table_grows(kind: pa.DataType) -> None:
    rng = np.random.default_rng(0)
    table = KeyTable(kind)
    seen: dict[Any, int] = {}
    for _ in range(30):
        keys = pa.array(rng.integers(0, 20_000, 2000) * 2**40).cast(kind)
        for key in keys.to_pylist():
            seen.setdefault(key, len(seen))
        assert table.insert(keys).tolist() == [seen[key] for key in keys.to_pylist()]
    assert table.keys().to_pylist() == list(seen)
