"""Rows to the inputs of a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

torch = pytest.importorskip("torch")

from deep_rows import encoded, everything, make_rows  # noqa: E402

from gdmix import DataError, DeepFixedEffect, memory  # noqa: E402
from gdmix.data.keys import KeysBuilder  # noqa: E402
from gdmix.deep import findings, inputs  # noqa: E402
from gdmix.deep.findings import Moments, ValueCounts  # noqa: E402
from gdmix.deep.inputs import Numbering, Standardizer, TextColumn  # noqa: E402
from gdmix.deep.text import Vocabulary  # noqa: E402
from gdmix.glm.matrix import CsrMatrix  # noqa: E402


def keys_of(values: list[Any], kind: pa.DataType) -> Any:
    builder = KeysBuilder(kind)
    builder.append(pa.array(values, kind))
    return builder.finish()


def test_numbers_of_values() -> None:
    text = pa.large_string()
    keys = keys_of(["b", "a", None, "b", "c"], text)
    known = Numbering.of(ValueCounts.of(keys), 1)
    assert known.size == 4
    assert known.numbers(keys, "k")[keys.codes].tolist() == [2, 1, 0, 2, 3]
    frequent = Numbering.of(ValueCounts.of(keys), 2)
    assert frequent.numbers(keys, "k")[keys.codes].tolist() == [1, 0, 0, 1, 0]
    other = keys_of(["z", "b", None], text)
    assert known.numbers(other, "k")[other.codes].tolist() == [0, 2, 0]
    grown = known.extended(other, "k")
    assert grown.numbers(other, "k")[other.codes].tolist() == [4, 2, 0]
    assert grown.numbers(keys, "k")[keys.codes].tolist() == [2, 1, 0, 2, 3]
    assert known.extended(keys, "k") is known


def test_hashed_values_have_no_vocabulary() -> None:
    keys = keys_of(["b", "a", None, "b", "c"], pa.large_string())
    hashed = Numbering(None, 3)
    numbers = hashed.numbers(keys, "k")[keys.codes]
    assert hashed.size == 4 and numbers[2] == 0
    assert set(numbers[[0, 1, 3, 4]]) <= {1, 2, 3} and numbers[0] == numbers[3]
    # Integers hash as their text does: the type of a column may change.
    integers, texts = keys_of([7, -3], pa.int64()), keys_of(["7", "-3"], pa.large_string())
    own = [hashed.numbers(k, "k")[k.codes].tolist() for k in (integers, texts)]
    assert own[0] == own[1]


def test_ids_of_another_type() -> None:
    known = Numbering(keys_of([1, 2], pa.int64()).values)
    with pytest.raises(DataError, match="column 'k' is large_string .* cast it"):
        known.numbers(keys_of(["1"], pa.large_string()), "k")
    nothing = keys_of([None], pa.large_string())
    assert known.numbers(nothing, "k")[nothing.codes].tolist() == [0]


@pytest.mark.parametrize("rows_at_once", [7, 1000])
@pytest.mark.parametrize("dense", [True, False])
def test_standardized_numbers(dense: bool, rows_at_once: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(findings, "_ROWS_AT_ONCE", rows_at_once)
    rng = np.random.default_rng(0)
    table = rng.normal([5e4, -1, 0], [3, 0.1, 1], (100, 3)).astype(np.float32)
    table[:, 2] = 4.0
    table[rng.random((100, 3)) < 0.2] = np.nan
    weight = rng.choice([0.0, 1.0, 2.5], 100)
    if dense:
        matrix = CsrMatrix.dense(table, np.arange(100))
    else:
        kept = ~np.isnan(table)
        indptr = np.concatenate(([0], np.cumsum(kept.sum(1))))
        columns = np.nonzero(kept)[1].astype(np.uint32)
        matrix = CsrMatrix(indptr, columns, table[kept], 3)
    own = Standardizer.of(Moments.of(matrix, weight, True), keeps_missing=True)
    masked = np.ma.masked_invalid(table.astype(np.float64))
    mean = np.ma.average(masked, 0, weights=weight)
    spread = np.sqrt(np.ma.average((masked - mean) ** 2, 0, weights=weight))
    assert own.mean == pytest.approx(np.asarray(mean))
    assert own.scale[:2] == pytest.approx(1 / np.asarray(spread)[:2], rel=1e-4)
    assert own.scale[2] == 0
    order = rng.permutation(100)
    wanted = ((masked - mean) / spread).filled(0)[order]
    wanted[:, 2] = 0
    assert own.table(matrix, order) == pytest.approx(wanted, abs=0.01)


def test_an_absent_feature_is_zero_where_gaps_are_not_kept() -> None:
    matrix = CsrMatrix(np.array([0, 1, 1]), np.array([0], np.uint32), np.ones(1, np.float32), 1)
    own = Standardizer.of(Moments.of(matrix, np.ones(2), False), keeps_missing=False)
    assert own.mean.tolist() == [0.5]
    assert own.table(matrix, np.arange(2)).ravel().tolist() == [1, -1]


def test_columns_that_have_moved() -> None:
    own = Standardizer(
        np.array([2, -1]), np.array([1, 5], np.float32), np.ones(2, np.float32), True
    )
    table = np.array([[7, 8, 9]], np.float32)
    assert own.table(CsrMatrix.dense(table, np.arange(1)), np.arange(1)).tolist() == [[8, 0]]


def test_texts_are_held_once(monkeypatch: Any) -> None:
    monkeypatch.setattr(inputs, "_TEXTS_AT_ONCE", 2)
    words = Vocabulary(["a", "b", "c"])
    texts = ["a b c", "", "c", "unknown a", "a " * 100_000]
    column = TextColumn.of(pa.array(texts, pa.large_string()), words, 4)
    assert column.size == 6 and column.lengths().tolist() == [3, 0, 1, 2, 4, 0]
    order = np.array([3, 5, 0, 1])
    wanted = words.encode(["unknown a", "", "a b c", ""], 4)
    assert column.take(order).tolist() == wanted.tolist()
    assert column.take(np.array([1, 5])).tolist() == [[0], [0]]
    empty = TextColumn.of(pa.array(["", ""], pa.large_string()), words, 4)
    assert empty.take(np.array([0, 2])).tolist() == [[0], [0]]


def test_batches_are_what_rows_hold() -> None:
    train, test = make_rows(200, 1), make_rows(50, 2, color=["grey", "new", None, "pink", ""] * 10)
    test = test.set_column(1, "title", pa.array(["", None, "red", "blue red x y z", "qq"] * 10))
    spec = everything()
    encoding, (_, rows) = encoded(spec, train, test)
    own = encoding.encode(rows).with_offset(np.arange(50.0))
    chosen = np.random.default_rng(0).permutation(50)[:20]
    batch = own.batch(chosen)
    assert {name.partition("/")[0] for name in batch} == {
        *("text", "text_of", "id", "dense"),
        *("wide_index", "wide_start", "wide_value"),
        *("response", "weight", "offset"),
    }
    lines = test.take(chosen).to_pylist()
    assert encoding.tokenizer is not None
    tokens = batch["text/title"][batch["text_of/title"]].numpy()
    assert len(batch["text/title"]) == len({line["title"] or "" for line in lines}) + any(
        line["title"] is None for line in lines
    )
    wanted = encoding.tokenizer.encode([line["title"] for line in lines], 64)
    assert np.array_equal(tokens[:, : wanted.shape[1]], wanted)
    values = sorted(set(train["color"].to_pylist()))
    numbers = [values.index(c) + 1 if (c := line["color"]) in values else 0 for line in lines]
    assert batch["id/color"].tolist() == numbers
    assert batch["id/x[40,60]"].tolist() == [
        1 + int(np.searchsorted(sorted(["(-inf,40)", "[40,60)", "[60,inf)"]), key))
        for line in lines
        for key in ["(-inf,40)" if line["x"] < 40 else "[40,60)" if line["x"] < 60 else "[60,inf)"]
    ]
    crossed = batch["id/color+user"].numpy()
    pairs = sorted(set(zip(train["color"].to_pylist(), train["user"].to_pylist(), strict=True)))
    assert ((crossed == 0) == [(r["color"], r["user"]) not in pairs for r in lines]).all()
    for i, line in enumerate(lines):
        first = int(batch["wide_start/tags"][i])
        ends = [*batch["wide_start/tags"].tolist(), len(batch["wide_index/tags"])]
        found = batch["wide_index/tags"][first : ends[i + 1]].tolist()
        assert sorted("pqr"[k] for k in found) == sorted(line["tags"])
    for name, column in (("response", "response"), ("weight", "weight")):
        assert batch[name].tolist() == [line[column] for line in lines]
    assert batch["offset"].tolist() == chosen.tolist()


def test_missing_numbers_get_through() -> None:
    train = make_rows(100, 1)
    x = np.where(np.arange(100) % 3 == 0, np.nan, train["x"].to_numpy())
    z = pa.array([None if k % 5 == 0 else float(k) for k in range(100)])
    train = train.set_column(5, "x", pa.array(x)).set_column(6, "z", z)
    spec = DeepFixedEffect("global", dense="numbers")
    encoding, (rows,) = encoded(spec, train)
    own = encoding.dense["numbers"]
    assert own.keeps_missing
    both = np.ma.masked_invalid(np.stack([x, z.to_numpy(zero_copy_only=False)]))
    wanted = np.ma.average(both, 1, weights=np.tile(train["weight"].to_numpy(), (2, 1)))
    assert own.mean == pytest.approx(np.asarray(wanted))
    table = encoding.encode(rows).batch(np.arange(100))["dense/numbers"].numpy()
    assert ((table[:, 0] == 0) == np.isnan(x)).all()
    assert table[:, 0].std() > 0.5 and np.isfinite(table).all()


def test_a_column_without_any_number(caplog: Any) -> None:
    train = make_rows(100, 1, x=np.full(100, np.nan))
    encoding, (rows,) = encoded(DeepFixedEffect("global", dense="numbers"), train)
    assert "bag 'numbers': x: no two numbers differ in training" in caplog.text
    table = encoding.encode(rows).batch(np.arange(100))["dense/numbers"].numpy()
    assert (table[:, 0] == 0).all() and np.isfinite(table).all()


def test_where_missing_numbers_are_findings() -> None:
    train = make_rows(100, 1, x=np.where(np.arange(100) == 7, np.inf, 1.0))
    with pytest.raises(DataError, match="'x': 1 row with infinity or a number too large"):
        encoded(DeepFixedEffect("global", dense="numbers"), train)
    train = make_rows(100, 1, x=np.where(np.arange(100) == 7, np.nan, 1.0))
    with pytest.raises(DataError, match="'x': 1 row with NaN, infinity"):
        encoded(DeepFixedEffect("global", wide="numbers"), train)


def test_texts_that_are_none() -> None:
    with pytest.raises(DataError, match="column 'user' holds integers, where .* expects text"):
        encoded(DeepFixedEffect("global", text="user"), make_rows(50, 1))
    with pytest.raises(DataError, match="column 'nothing' is missing"):
        encoded(DeepFixedEffect("global", text="nothing"), make_rows(50, 1))
    with pytest.raises(DataError, match="column 'x' is double, expected an integer or a string"):
        encoded(DeepFixedEffect("global", text="x"), make_rows(50, 1))
    with pytest.raises(DataError, match="texts hold no word"):
        encoded(DeepFixedEffect("global", text="title"), make_rows(50, 1, title=["", " "] * 25))


def test_rows_beyond_memory_are_drawn_in_blocks(tmp_path: Path) -> None:
    train = make_rows(20_000, 1)
    spec = everything()
    inside, (rows,) = encoded(spec, train)
    wanted = inside.encode(rows)
    assert wanted.block_rows is None
    with memory.limited(2_000_000, tmp_path / "scratch"):
        encoding, (mapped,) = encoded(spec, train)
        own = encoding.encode(mapped)
        assert own.block_rows is not None and 1 <= own.block_rows < 20_000
        chosen = np.arange(300, 340)
        for name, tensor in own.batch(chosen).items():
            assert torch.equal(tensor, wanted.batch(chosen)[name]), name
        del own, mapped, encoding
