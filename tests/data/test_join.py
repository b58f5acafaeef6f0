from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gdmix.data.join import join_rows
from gdmix.data.read import RowSource, open_rows
from gdmix.errors import DataError

N = 1000


def base() -> pa.Table:
    return pa.table({"uid": np.arange(N) * 3, "y": np.arange(N) % 2, "a": np.arange(N)})


def other(order: np.ndarray | None = None) -> pa.Table:
    rows = np.arange(N) if order is None else order
    return pa.table({"y": rows * 0 + 7, "b": rows * 10, "uid": rows * 3})


def in_pieces(table: pa.Table, size: int, label: str) -> RowSource:
    def stream(columns: list[str]):  # type: ignore[no-untyped-def]
        for first in range(0, table.num_rows, size):
            yield table.select(columns).slice(first, size)

    return RowSource(label, table.schema, stream)


@pytest.mark.parametrize("sizes", [(1000, 1000), (70, 300), (300, 70), (1, 1000)])
@pytest.mark.parametrize("order", ["same", "reversed", "late"])
def test_rows_are_put_together(sizes: tuple[int, int], order: str) -> None:
    rows = np.arange(N)
    if order == "reversed":
        rows = rows[::-1]
    if order == "late":  # the same at first
        rows = np.concatenate([rows[:500], rows[500:][::-1]])
    left, right = in_pieces(base(), sizes[0], "left"), in_pieces(other(rows), sizes[1], "right")
    source = join_rows(left, [(right, "")], "uid")
    assert source.schema.names == ["uid", "y", "a", "b"]
    table = source.read(["b", "a", "y"])
    assert table["b"].to_pylist() == [10 * k for k in range(N)]
    assert table["a"].to_pylist() == list(range(N))
    assert table["y"].to_pylist() == [k % 2 for k in range(N)]  # the first source's
    assert source.read(["a"])["a"].to_pylist() == list(range(N))


def test_prefixes_keep_columns_apart() -> None:
    sources = [(open_rows(other(), "r"), p) for p in ("p.", "q.")]
    table = join_rows(open_rows(base()), sources, "uid").read(["q.y", "y", "p.b"])
    assert table["q.y"][0].as_py() == 7
    assert table["p.b"].to_pylist() == [10 * k for k in range(N)]


def refused(right: pa.Table, left: pa.Table | None = None) -> str:
    source = join_rows(
        in_pieces(base() if left is None else left, 300, "left"),
        [(in_pieces(right, 300, "right"), "")],
        "uid",
    )
    with pytest.raises(DataError) as caught:
        source.read(["a", "b"])
    (line,) = caught.value.findings
    return line


def test_other_rows_are_refused() -> None:
    text = "or more (first: uid {}); sources that are joined must have the same rows"
    lacking = "right: lacks rows that left has: 100 rows " + text.format(2700)
    assert refused(other(np.arange(900))) == lacking
    assert refused(other(np.arange(900)[::-1])) == lacking
    extra = "left: lacks rows that right has: "
    assert refused(other(), base().slice(0, 990)).startswith(extra)
    reverse = other(np.arange(N)[::-1])
    assert refused(reverse, base().slice(0, 990)) == extra + "10 rows " + text.format(2997)
    assert refused(other().slice(0, 0)).startswith("right: lacks rows that left has: 300 rows")


def test_uids_that_are_no_key() -> None:
    rows = np.concatenate([np.arange(N), [5]])[::-1]
    line = "right: column 'uid': 1 row with the uid of another row (first: uid 15)"
    assert refused(other(rows)) == line
    nulls = other().set_column(2, "uid", pa.array([None, *range(1, N)]))
    assert refused(nulls) == "right: the uid: 1 row with no value"
    with pytest.raises(DataError, match="right: column 'uid' is missing"):
        join_rows(open_rows(base()), [(open_rows({"id": [1]}, "right"), "")], "uid")


def test_of_files(tmp_path: Path) -> None:
    pq.write_table(other(), tmp_path / "b.parquet")
    source = join_rows(open_rows(base()), [(open_rows(tmp_path), "")], "uid")
    assert source.read(["b"])["b"].to_pylist() == [10 * k for k in range(N)]
