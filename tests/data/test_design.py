from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdmix.config import FeatureBag
from gdmix.data.design import EncodedBag, RowProblem, encode_bag
from gdmix.data.feature_index import FeatureIndex, FeatureIndexBuilder
from gdmix.glm.matrix import CsrMatrix, CsrStack

STRUCT = pa.struct({"name": pa.string(), "term": pa.string(), "value": pa.float32()})
DICTIONARY = pa.dictionary(pa.int8(), pa.string())

# Values such that single precision sums are exact; few terms, so that they meet.
terms = st.sampled_from(["", "a", "b", "é", "\U0001f40d"])
numbers = st.integers(-8, 8).map(lambda k: k / 4)
small = st.integers(0, 3)
features = st.fixed_dictionaries(
    {
        "name": st.none() | st.sampled_from(["x", "n", "t"]),
        "term": st.none() | terms,
        "value": st.none() | numbers,
    }
)


def lists(items: st.SearchStrategy[Any], size: int | None = None) -> st.SearchStrategy[Any]:
    return st.lists(st.none() | items, min_size=size or 0, max_size=size or 4)


# Every kind of column: how its values are drawn, and the types that can hold them.
COLUMNS: dict[str, tuple[st.SearchStrategy[Any], list[pa.DataType]]] = {
    "i": (st.integers(-3, 3), [pa.int8(), pa.int64()]),
    "u": (small, [pa.uint8(), pa.uint64()]),
    "f": (numbers, [pa.float16(), pa.float32(), pa.float64()]),
    "b": (st.booleans(), [pa.bool_()]),
    "m": (numbers.map(Decimal), [pa.decimal128(6, 2)]),
    "s": (terms, [pa.string(), pa.large_string(), DICTIONARY]),
    "c": (small, [pa.dictionary(pa.int16(), pa.int64())]),
    "l": (lists(terms), [pa.list_(pa.string()), pa.large_list(pa.string()), pa.list_(DICTIONARY)]),
    "d": (lists(numbers, 2), [pa.list_(pa.float32(), 2), pa.list_(pa.float64(), 2)]),
    "e": (lists(small, 3), [pa.list_(pa.int16(), 3)]),
    "t": (lists(features), [pa.list_(STRUCT), pa.large_list(STRUCT)]),
    "w_indices": (lists(small), [pa.list_(pa.int32()), pa.large_list(pa.uint64())]),
    "w_values": (lists(numbers), [pa.list_(pa.float32()), pa.large_list(pa.float64())]),
}
NTV_COLUMNS, DENSE_COLUMNS = {"t"}, {"d", "e"}
Rows = list[dict[str, Any]]


def drawn_rows(kinds: dict[str, pa.DataType], max_size: int = 6) -> st.SearchStrategy[Rows]:
    row = st.fixed_dictionaries({name: st.none() | COLUMNS[name][0] for name in kinds})
    return st.lists(row, max_size=max_size)


@st.composite
def tables(draw: Any) -> tuple[pa.Table, list[pa.RecordBatch], Rows]:
    """A training table, and batches of another one with its rows."""
    names = draw(st.lists(st.sampled_from(sorted(COLUMNS)), min_size=1, unique=True))
    if {"w_indices", "w_values"} & set(names):
        names = [n for n in names if not n.startswith("w_")] + ["w_indices", "w_values"]
    kinds = {name: draw(st.sampled_from(COLUMNS[name][1])) for name in names}
    training, before, rows = (draw(drawn_rows(kinds)) for _ in range(3))
    # A slice of something longer, in chunks, one of them empty, cut into batches.
    parts = [to_table(before, kinds), to_table(rows, kinds)]
    table = pa.concat_tables(parts).combine_chunks().slice(len(before))
    cut = draw(st.integers(0, len(rows)))
    table = pa.concat_tables([table.slice(0, cut), table.slice(0, 0), table.slice(cut)])
    batches = table.to_batches(max_chunksize=draw(st.integers(1, 6)))
    return to_table(training, kinds), batches or [to_batch(table)], rows


def to_table(rows: Rows, kinds: dict[str, pa.DataType]) -> pa.Table:
    return pa.table({n: to_array([r[n] for r in rows], kind) for n, kind in kinds.items()})


def to_array(values: list[Any], kind: pa.DataType) -> pa.Array:
    if kind == pa.float16():  # Arrow before version 21 takes none but numpy's
        values = [None if v is None else np.float16(v) for v in values]
    return pa.array(values, kind)


def to_batch(table: pa.Table) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(table.to_pylist(), schema=table.schema)


def build(table: pa.Table, bag: FeatureBag) -> FeatureIndex:
    builder = FeatureIndexBuilder(bag, {f.name: f.type for f in table.schema})
    for batch in table.to_batches():
        builder.update(batch)
    return builder.freeze()


def values_of(row: dict[str, Any]) -> Iterator[tuple[str, str, float]]:
    """The rules, one value at a time."""
    for name, value in row.items():
        if value is None or name == "w_values":
            continue
        if name == "w_indices":
            weights = row["w_values"] or []
            if len(weights) == len(value):
                yield from (
                    ("w", str(i), w or 0.0)
                    for i, w in zip(value, weights, strict=True)
                    if i is not None
                )
        elif name in NTV_COLUMNS:
            yield from (
                (f["name"], f["term"] or "", f["value"] or 0.0)
                for f in value
                if f is not None and f["name"] is not None
            )
        elif name in DENSE_COLUMNS:
            yield from ((name, str(k), v or 0.0) for k, v in enumerate(value))
        elif isinstance(value, list):
            yield from ((name, term, 1.0) for term in value if term is not None)
        elif name in ("s", "c"):
            yield name, str(value), 1.0
        else:
            yield name, "", float(value)


def lengths_differ(row: dict[str, Any]) -> bool:
    return "w_indices" in row and len(row["w_indices"] or []) != len(row["w_values"] or [])


def without_zeros(dense: CsrMatrix) -> CsrMatrix:
    matrix = dense.sparse()
    stored = matrix.values != 0
    ends = np.concatenate(([0], np.cumsum(stored)))[matrix.indptr]
    return CsrMatrix(ends, matrix.indices[stored], matrix.values[stored], matrix.n_columns)


def rows_of(encoded: EncodedBag) -> list[dict[int, float]]:
    m = encoded.matrix
    spans = zip(m.indptr[:-1], m.indptr[1:], strict=True)
    return [
        dict(zip(m.indices[a:b].tolist(), m.values[a:b].tolist(), strict=True)) for a, b in spans
    ]


def encode(columns: dict[str, Any], index: FeatureIndex | None = None, **bag: Any) -> EncodedBag:
    table = pa.table(columns)
    spec = FeatureBag(columns=tuple(columns), **bag)
    index = build(table, spec) if index is None else index
    return encode_all(table.to_batches() or [to_batch(table)], spec, index)


def encode_all(batches: list[pa.RecordBatch], bag: FeatureBag, index: FeatureIndex) -> EncodedBag:
    """Encode batches one by one, and put together what comes of them."""
    parts = [encode_bag(batch, bag, index) for batch in batches]
    stack, problems, first = CsrStack(len(index)), {}, 0
    for part in parts:
        stack.append(without_zeros(part.matrix) if part.matrix.is_dense else part.matrix)
        for p in part.problems:
            rows, example = problems.get((p.column, p.what), (p.rows[:0], p.example))
            problems[p.column, p.what] = (np.concatenate([rows, p.rows + first]), example)
        first += part.matrix.n_rows
    found = [RowProblem(*key, *value) for key, value in problems.items()]
    return EncodedBag(stack.finish(), found, sum(p.unknown for p in parts))


@settings(derandomize=True, deadline=None, max_examples=120)
@given(tables())
def test_encoding_is_that_of_the_oracle(drawn: tuple[pa.Table, list[pa.RecordBatch], Rows]) -> None:
    training, batches, rows = drawn
    bag = FeatureBag(columns=tuple(training.schema.names))
    index = build(training, bag)
    pairs = zip(index.names.to_pylist(), index.terms.to_pylist(), strict=True)
    column_of = {pair: j for j, pair in enumerate(pairs)}
    assert len(column_of) == len(index)

    expected, twice, unknown = [], [], 0
    for i, row in enumerate(rows):
        stored: Counter[int] = Counter()
        sums: dict[int, float] = {}
        for name, term, value in values_of(row):
            if value == 0:
                continue
            j = column_of.get((name, term), -1)
            if j < 0:
                unknown += 1
                continue
            stored[j] += 1
            sums[j] = sums.get(j, 0.0) + value
        expected.append(sums)
        if max(stored.values(), default=0) > 1:
            twice.append(i)

    encoded = encode_all(batches, bag, index)
    assert rows_of(encoded) == expected
    assert encoded.matrix.nnz == sum(map(len, expected))
    assert encoded.matrix.n_columns == len(index)
    assert encoded.unknown == unknown
    problems = {p.what: p.rows.tolist() for p in encoded.problems}
    unequal = [i for i, row in enumerate(rows) if lengths_differ(row)]
    assert problems.pop("a length other than that of 'w_values'", []) == unequal
    assert problems.pop("a feature that stands twice", []) == twice
    assert not problems


def test_types_of_the_matrix() -> None:
    m = encode({"x": [1.5, 0.0], "s": ["a", "b"]}).matrix
    assert [a.dtype for a in (m.indptr, m.indices, m.values)] == [np.int64, np.uint32, np.float32]
    assert m.indices.tolist() == [0, 1, 2]
    assert m.n_columns == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e39])
def test_not_finite_is_noted_and_left_out(value: float) -> None:
    bad = {
        "x": pa.array([1.0, value, value]),
        "d": pa.array([[1.0, 2.0], [value, 3.0], None], pa.list_(pa.float64(), 2)),
        "w_indices": pa.array([[1], [1, 2], []], pa.list_(pa.int64())),
        "w_values": pa.array([[1.0], [2.0, value], []], pa.list_(pa.float64())),
    }
    encoded = encode(bad)
    what = "NaN, infinity or a number too large for single precision"
    assert [(p.column, p.what, p.rows.tolist()) for p in encoded.problems] == [
        ("x", what, [1, 2]),
        ("d", what, [1]),
        ("w_values", what, [1]),
    ]
    assert rows_of(encoded) == [{0: 1.0, 1: 1.0, 2: 2.0, 3: 1.0}, {2: 3.0, 3: 2.0}, {}]
    assert encoded.unknown == 0


def test_not_finite_in_name_term_value() -> None:
    struct = pa.struct({"name": pa.string(), "term": pa.string(), "value": pa.float64()})
    row = [{"name": "n", "term": "", "value": 1e300}, {"name": "m", "term": "", "value": 2.0}]
    encoded = encode({"t": pa.array([row], pa.list_(struct))})
    assert [p.column for p in encoded.problems] == ["t"]
    assert rows_of(encoded) == [{0: 2.0}]


def test_twice_names_the_column_and_the_feature() -> None:
    encoded = encode({"x": [1.0, 1.0], "l": [["a"], ["b", "a", "b"]], "k": [["b"], ["b"]]})
    (problem,) = encoded.problems
    assert (problem.column, problem.rows.tolist()) == ("l, k", [1])
    assert problem.example == "feature 'l', term 'b'"
    assert rows_of(encoded)[1] == {0: 1.0, 2: 2.0, 1: 1.0, 3: 1.0}


def test_pairs_have_columns_of_their_own() -> None:
    encoded = encode(
        {
            "x": [7.0],
            "u_indices": [[0, 5]],
            "u_values": [[1.0, 2.0]],
            "v_indices": [[0, 5]],
            "v_values": [[3.0, 4.0]],
        }
    )
    assert rows_of(encoded) == [{0: 7.0, 1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0}]
    assert not encoded.problems


def test_a_feature_list_gives_the_columns(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("c,\na,x\nb,\n", encoding="utf-8")
    index = FeatureIndex.from_feature_list(path)
    pair = {
        "w_indices": pa.array([[0, 2], [3, 0], [-1], [1, None]]),
        "w_values": pa.array([[1.0, 2.0], [4.0, 5.0], [0.0], [0.5, 0.5]]),
    }
    encoded = encode(pair, index, feature_list=path)
    assert rows_of(encoded) == [{0: 1.0, 2: 2.0}, {0: 5.0}, {}, {1: 0.5}]
    (problem,) = encoded.problems
    assert problem.what == "an index outside the feature list (0 to 2)"
    assert (problem.column, problem.rows.tolist(), problem.example) == (
        "w_indices",
        [1, 2],
        "index 3",
    )
    # It names the features of other columns too.
    ntv = pa.array([[{"name": "a", "term": "x", "value": 2.0}]], pa.list_(STRUCT))
    assert rows_of(encode({"t": ntv}, index, feature_list=path)) == [{1: 2.0}]


def test_index_that_training_did_not_see_is_no_mistake() -> None:
    index = build(
        pa.table({"w_indices": [[1, 2]], "w_values": [[1.0, 1.0]]}),
        FeatureBag(columns=("w_indices", "w_values")),
    )
    encoded = encode({"w_indices": [[2, 3], [-4, 1]], "w_values": [[1.0, 1.0], [1.0, 1.0]]}, index)
    assert rows_of(encoded) == [{1: 1.0}, {0: 1.0}]
    assert encoded.unknown == 2
    (problem,) = encoded.problems
    assert (problem.what, problem.rows.tolist()) == ("a negative index", [1])


def test_dense_of_another_size() -> None:
    two = {"d": pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2))}
    index = build(pa.table(two), FeatureBag(columns=("d",)))
    three = {"d": pa.array([None, [1.0, 2.0, 3.0]], pa.list_(pa.float32(), 3))}
    encoded = encode(three, index)
    assert rows_of(encoded) == [{}, {0: 1.0, 1: 2.0}]
    (problem,) = encoded.problems
    assert problem.what == "a list of 3 numbers, where training had 2"
    assert problem.rows.tolist() == [1]


def test_columns_without_any_value() -> None:
    index = FeatureIndex(["s", "w"], ["a", "1"])
    nothing = {"s": pa.nulls(2), "w_indices": pa.nulls(2), "w_values": pa.nulls(2)}
    encoded = encode(nothing, index)
    assert rows_of(encoded) == [{}, {}]
    assert encoded.unknown == 0
    assert rows_of(encode({"l": pa.array([[], None], pa.list_(pa.null()))}, index)) == [{}, {}]


def test_dictionary_that_holds_a_null() -> None:
    codes, values = pa.array([0, 1, None]), pa.array(["a", None])
    column = pa.DictionaryArray.from_arrays(codes, values)
    encoded = encode({"s": column})
    assert rows_of(encoded) == [{0: 1.0}, {}, {}]
    assert encoded.unknown == 0


def test_another_type_than_in_training_finds_nothing_but_says_so() -> None:
    index = build(pa.table({"age": [1.0]}), FeatureBag(columns=("age",)))
    assert encode({"age": ["23", None]}, index).unknown == 1


def test_no_rows() -> None:
    index = build(pa.table({"x": [1.0], "l": [["a"]]}), FeatureBag(columns=("x", "l")))
    empty = pa.table({"x": pa.array([], pa.float64()), "l": pa.array([], pa.list_(pa.string()))})
    encoded = encode({name: empty[name] for name in empty.schema.names}, index)
    assert (encoded.matrix.n_rows, encoded.matrix.nnz, encoded.matrix.n_columns) == (0, 0, 2)


def test_many_batches_are_one(monkeypatch: Any) -> None:
    rng = np.random.default_rng(0)
    table = pa.table(
        {
            "x": rng.normal(size=500),
            "l": [rng.choice(["a", "b", "c"], rng.integers(0, 4)).tolist() for _ in range(500)],
        }
    )
    bag = FeatureBag(columns=("x", "l"))
    index = build(table, bag)
    one = encode_all(table.to_batches(), bag, index)
    many = encode_all(table.to_batches(max_chunksize=7), bag, index)
    for name in ("indptr", "indices", "values"):
        np.testing.assert_array_equal(getattr(one.matrix, name), getattr(many.matrix, name))
    assert [p.what for p in one.problems] == [p.what for p in many.problems]
    np.testing.assert_array_equal(one.problems[0].rows, many.problems[0].rows)
    assert one.problems[0].example == many.problems[0].example
