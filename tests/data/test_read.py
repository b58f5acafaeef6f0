from __future__ import annotations

import gzip
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from gdmix.data.read import expand_paths, open_rows
from gdmix.errors import DataError

PLAIN = pa.table({"uid": [1, 2, 3], "x": [0.5, None, -2.0], "s": ["a", "ü, \n", None]})
NESTED = PLAIN.append_column("l", pa.array([["a", "b"], [], None], pa.list_(pa.string())))


def write(table: pa.Table, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.name
    if name.endswith((".parquet", ".pq")):
        pq.write_table(table, path)
    elif name.endswith((".arrow", ".feather", ".ipc")):
        pyarrow.feather.write_feather(table, str(path))
    else:
        options = pyarrow.csv.WriteOptions(delimiter="\t" if ".tsv" in name else ",")
        with (
            pa.CompressedOutputStream(str(path), "gzip")
            if name.endswith(".gz")
            else open(path, "wb") as file
        ):
            pyarrow.csv.write_csv(table, file, options)
    return path


def read(source: Any, columns: list[str] | None = None) -> pa.Table:
    rows = open_rows(source)
    return rows.read(rows.schema.names if columns is None else columns)


def findings(source: Any, columns: list[str] | None = None) -> tuple[str, ...]:
    with pytest.raises(DataError) as caught:
        read(source, columns)
    return caught.value.findings


class TestFiles:
    @pytest.mark.parametrize("name", ["a.parquet", "a.PQ", "a.arrow", "a.feather", "a.ipc"])
    def test_every_binary_format(self, tmp_path: Path, name: str) -> None:
        path = write(NESTED, tmp_path / name.lower())
        path = path.rename(tmp_path / name)
        assert read(path).equals(NESTED)
        assert read(str(path), ["l", "uid"]).equals(NESTED.select(["l", "uid"]))

    @pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz"])
    def test_text(self, tmp_path: Path, name: str) -> None:
        table = read(write(PLAIN, tmp_path / name))
        assert table["uid"].to_pylist() == [1, 2, 3]
        assert table["x"].to_pylist() == [0.5, None, -2.0]
        assert table["s"].to_pylist()[:2] == ["a", "ü, \n"]

    def test_csv_whose_type_widens_late(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        path.write_text("x\n" + "1\n" * 1_000_000 + "1.5\n", encoding="utf-8")
        assert pa.types.is_floating(open_rows(path).schema.field("x").type)

    def test_folder_pattern_and_list(self, tmp_path: Path) -> None:
        a, b, c = (PLAIN.slice(i, 1) for i in range(3))
        write(a, tmp_path / "rows" / "part-0.parquet")
        write(b, tmp_path / "rows" / "deep" / "part-1.arrow")
        write(c, tmp_path / "rows" / "part-2.csv")
        every = read(tmp_path / "rows")
        assert sorted(every["uid"].to_pylist()) == [1, 2, 3]
        assert read(str(tmp_path / "rows" / "part-*"))["uid"].to_pylist() == [1, 3]
        assert read(str(tmp_path / "ro*"))["uid"].to_pylist() == every["uid"].to_pylist()
        assert sorted(read(str(tmp_path / "**"))["uid"].to_pylist()) == [1, 2, 3]
        paths = [tmp_path / "rows" / "part-2.csv", tmp_path / "rows" / "part-0.parquet"]
        assert read(paths)["uid"].to_pylist() == [3, 1]

    def test_what_spark_leaves_is_skipped(self, tmp_path: Path) -> None:
        folder = tmp_path / "rows.parquet"  # Spark's file is a folder
        part = write(PLAIN, folder / "part-0.parquet")
        for hidden in ("_SUCCESS", ".part-0.parquet.crc", "_temporary/0/part-0.parquet"):
            (folder / hidden).parent.mkdir(parents=True, exist_ok=True)
            (folder / hidden).write_bytes(b"")
        (folder / "notes.txt").write_text("no rows")
        (folder / "odd.parquet").mkdir()
        assert expand_paths([str(folder)]) == [part]
        (folder / "notes.txt").unlink()
        assert expand_paths([str(folder / "*")]) == [part]

    def test_folder_names_make_no_columns(self, tmp_path: Path) -> None:
        write(PLAIN, tmp_path / "day=1" / "part-0.parquet")
        assert open_rows(tmp_path).schema.names == PLAIN.schema.names

    def test_only_the_columns_asked_for_are_read(self, tmp_path: Path) -> None:
        # Two columns so large that reading the wrong one shows in what is held.
        table = pa.table({"a": np.zeros(10), "a.b": np.ones(10), "big": [b"x" * 100_000] * 10})
        for name in ("a.parquet", "a.arrow"):
            rows = open_rows(write(table, tmp_path / name))
            assert rows.schema.names == ["a", "a.b", "big"]
            got = rows.read(["a"])
            assert got.schema.names == ["a"]
            assert got.nbytes < 1000
            assert rows.read(["a.b", "a"]).equals(table.select(["a.b", "a"]))

    def test_types_are_promoted_between_files(self, tmp_path: Path) -> None:
        parts = [
            {"i": pa.array([1], pa.int32()), "f": pa.array([1], pa.int64()), "n": pa.nulls(1)},
            {"i": pa.array([2**40], pa.int64()), "f": pa.array([0.5]), "n": pa.array(["x"])},
        ]
        for order in (parts, parts[::-1]):
            for number, part in enumerate(order):
                write(pa.table(part), tmp_path / f"{number}.parquet")
            rows = open_rows(tmp_path)
            types = {"i": pa.int64(), "f": pa.float64(), "n": pa.string()}
            assert {f.name: f.type for f in rows.schema} == types
            table = rows.read(["i", "f", "n"])
            assert table.schema.types == list(types.values())
            assert sorted(table["i"].to_pylist()) == [1, 2**40]

    def test_files_differ(self, tmp_path: Path) -> None:
        a = write(pa.table({"x": [1], "y": [1], "z": [1]}), tmp_path / "a.parquet")
        b = write(pa.table({"y": ["no"], "z": [2]}), tmp_path / "b.parquet")
        assert findings(tmp_path) == (
            f"{b}: column 'x' is missing, other files of {tmp_path} have it",
            f"{b}: column 'y' is string, in {a} it is int64; give it one type",
        )
        # They may, in columns that nobody asks for.
        assert read(tmp_path, ["z"])["z"].to_pylist() == [1, 2]
        assert findings([str(b), str(a)], ["x"]) == (
            f"{b}: column 'x' is missing, other files of {b} and 1 more have it",
        )

    def test_metadata_are_kept(self, tmp_path: Path) -> None:
        write(PLAIN.replace_schema_metadata({"k": "v"}), tmp_path / "a.parquet")
        assert open_rows(tmp_path / "a.parquet").schema.metadata[b"k"] == b"v"


BROKEN = {
    "empty.parquet": b"",
    "empty.arrow": b"",
    "empty.feather": b"",
    "empty.csv": b"",
    "empty.tsv": b"",
    "empty.csv.gz": b"",
    "text.parquet": b"uid,x\n1,2\n",
    "text.arrow": b"uid,x\n1,2\n",
    "text.csv.gz": b"uid,x\n1,2\n",
    "blank.csv": b"\n\n",
    "ragged.csv": b"uid,x\n1,2\n1,2,3\n",
}


class TestBadFiles:
    @pytest.mark.parametrize("name", BROKEN)
    def test_broken_file_is_named(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / name
        path.write_bytes(BROKEN[name])
        (line,) = findings(path)
        what = "is empty: 0 bytes" if not BROKEN[name] else "damaged or not what its name says: "
        assert line.startswith(f"{path}: {what}")
        assert "\n" not in line

    @pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.feather", "a.csv.gz"])
    def test_truncated_part_is_named(self, tmp_path: Path, name: str) -> None:
        rng = np.random.default_rng(0)
        table = pa.table({"uid": rng.integers(0, 2**40, 5000)})
        write(table, tmp_path / "rows" / "0.parquet")
        path = write(table, tmp_path / "rows" / name)
        whole = path.read_bytes()
        for kept in (10, len(whole) // 2, len(whole) - 10):
            path.write_bytes(whole[:kept])
            (line,) = findings(tmp_path / "rows")
            assert line.startswith(f"{path}: damaged or not what its name says: ")

    def test_corrupt_inside(self, tmp_path: Path) -> None:
        # The footer is whole: it shows when the columns are read.
        path = write(pa.table({"uid": np.random.default_rng(0).random(50_000)}), tmp_path / "a.pq")
        content = bytearray(path.read_bytes())
        content[4:3000] = bytes(2996)
        path.write_bytes(content)
        rows = open_rows(path)
        with pytest.raises(DataError, match=r"a\.pq: damaged or not what its name says: "):
            rows.read(["uid"])

    def test_empty_archive(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv.gz"
        path.write_bytes(gzip.compress(b""))
        assert findings(path)[0].startswith(f"{path}: damaged or not what its name says: ")

    def test_permission(self, tmp_path: Path, monkeypatch: Any) -> None:
        path = write(PLAIN, tmp_path / "a.parquet")

        def refuse(*_: Any) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("gdmix.data.read.pq.read_schema", refuse)
        assert findings(path) == (f"{path}: may not be read: permission denied",)

    def test_nothing_there(self, tmp_path: Path) -> None:
        write(PLAIN, tmp_path / "train.parquet")
        (tmp_path / "bare").mkdir()
        (tmp_path / "notes.txt").write_text("?")
        said = {
            "trian.parquet": "no such file or folder (did you mean 'train.parquet'?)",
            "none/at/all": "no such file or folder",
            "bare": "the folder holds no .parquet, .arrow, .csv, .avro or .tfrecord file",
            "*.arrow": "no file matches the pattern",
            "x" * 300: "can't be looked up: File name too long",
            "notes.txt": "unknown kind of file; use .parquet, .pq, .arrow, .feather, .ipc, "
            ".csv, .csv.gz, .tsv, .avro, .tfrecord, .tfrecord.gz, .tfrecord.deflate",
        }
        for name, text in said.items():
            assert findings(tmp_path / name) == (f"{tmp_path / name}: {text}",)
        assert findings("s3://bucket/rows") == (
            "s3://bucket/rows: is a URL; copy the rows to a local path",
        )
        assert findings([str(tmp_path / "train.parquet"), "nowhere.csv"]) == (
            "nowhere.csv: no such file or folder",
        )

    def test_column_twice(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        path.write_text("x,y,x\n1,2,3\n", encoding="utf-8")
        assert findings(path) == (f"{path}: column 'x' stands twice; rename or drop one",)


def record_batch_reader() -> pa.RecordBatchReader:
    return pa.RecordBatchReader.from_batches(NESTED.schema, NESTED.to_batches(max_chunksize=2))


class Stream:
    """What duckdb and others give: nothing but the Arrow protocol."""

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return record_batch_reader().__arrow_c_stream__(requested_schema)


class TestFrames:
    @pytest.mark.parametrize(
        "make",
        [
            lambda: NESTED,
            lambda: NESTED.to_batches()[0],
            record_batch_reader,
            Stream,
            lambda: NESTED.to_pydict(),
            lambda: {name: NESTED[name] for name in NESTED.schema.names},
            lambda: pl.from_arrow(NESTED),
        ],
        ids=["table", "batch", "reader", "protocol", "lists", "arrow columns", "polars"],
    )
    def test_every_kind(self, make: Callable[[], Any]) -> None:
        assert read(make()).to_pydict() == NESTED.to_pydict()

    def test_slices_and_empty_chunks(self) -> None:
        empty = NESTED.slice(0, 0)
        table = pa.concat_tables([empty, NESTED.slice(1, 1), empty, NESTED, empty]).slice(1, 2)
        assert read(table).to_pydict() == NESTED.slice(0, 2).to_pydict()
        assert read(pl.from_arrow(NESTED)[1:]).to_pydict() == NESTED.slice(1).to_pydict()

    def test_polars_types_become_plain(self) -> None:
        frame = pl.DataFrame(
            {
                "s": ["a", None],
                "c": pl.Series(["x", None], dtype=pl.Categorical),
                "e": pl.Series(["x", "y"], dtype=pl.Enum(["y", "x"])),
                "l": [["a", None], None],
                "lc": pl.Series([["a"], []], dtype=pl.List(pl.Categorical)),
                "array": pl.Series([[1.0, 2.0], None], dtype=pl.Array(pl.Float32, 2)),
                "b": [b"x", None],
                "t": [[{"name": "n", "term": "t", "value": 1.0}], []],
            }
        )
        table = read(frame)
        large = pa.large_string()
        assert table.schema.field("s").type == large
        assert table.schema.field("c").type.value_type == large
        assert table.schema.field("e").type.value_type == large
        assert table.schema.field("l").type == pa.large_list(large)
        assert table.schema.field("lc").type.value_type.value_type == large
        assert table.schema.field("array").type == pa.list_(pa.float32(), 2)
        assert table.schema.field("b").type == pa.large_binary()
        assert table.schema.field("t").type.value_type.field("name").type == large
        assert table.to_pydict() == {name: frame[name].to_list() for name in frame.columns}

    def test_lazy_frame(self) -> None:
        assert findings(pl.LazyFrame({"x": [1]})) == (
            "data: is a polars LazyFrame; call .collect() on it first",
        )

    @pytest.mark.parametrize("thing", [None, 3, np.zeros((2, 2)), [], [{"x": 1}], object()])
    def test_no_table(self, thing: Any) -> None:
        (line,) = findings(thing)
        assert line == (
            f"data: a {type(thing).__name__} is no table of rows; "
            "give a path, or a pyarrow, pandas or polars frame"
        )

    def test_other_streams_are_no_table_either(self) -> None:
        assert findings(pl.Series([1, 2]))[0].startswith("data: can't be read as a table: ")

    def test_lengths_differ(self) -> None:
        line = "data: columns differ in length: 'x' 2, 'y' 3"
        assert findings({"x": [1, 2], "y": np.zeros(3)}) == (line,)

    def test_label_is_said(self) -> None:
        with pytest.raises(DataError, match="^validation data: a int is no table"):
            open_rows(3, "validation data")


class TestPandas:
    def test_nan_stays_nan(self) -> None:
        frame = pd.DataFrame(
            {
                "double": [1.0, math.nan],
                "single": np.array([1, math.nan], np.float32),
                "half": np.array([1, math.nan], np.float16),
                "nullable": pd.array([1.5, None], dtype="Float64"),
                "arrow": pd.array([1.5, None], dtype=pd.ArrowDtype(pa.float64())),
            }
        )
        table = read(frame)
        assert table.schema.types[:3] == [pa.float64(), pa.float32(), pa.float16()]
        assert [table[c].null_count for c in table.schema.names] == [0, 0, 0, 1, 1]
        assert all(math.isnan(table[c][1].as_py()) for c in ("double", "single", "half"))
        # The same within a dict of columns.
        assert read({"x": frame["double"], "y": [1.0, math.nan]})["x"].null_count == 0

    def test_types(self) -> None:
        frame = pd.DataFrame(
            {
                "i": pd.array([1, None], dtype="Int64"),
                "b": pd.array([True, None], dtype="boolean"),
                "s": pd.Series(["a", None], dtype="string"),
                "object": pd.Series(["a", None], dtype=object),
                "missing": pd.Series(["a", math.nan], dtype=object),
                "c": pd.Categorical(["x", None]),
                "ci": pd.Categorical([7, 7]),
                "l": [["a"], None],
                "vector": [np.array(["p", "q"], dtype=object), np.array([], dtype=object)],
            }
        )
        frame.index = pd.Index([5, 5], name="index")
        table = read(frame)
        assert table.schema.names == list(frame.columns)  # the index is no column
        assert table.to_pydict() == {
            "i": [1, None],
            "b": [True, None],
            "s": ["a", None],
            "object": ["a", None],
            "missing": ["a", None],
            "c": ["x", None],
            "ci": [7, 7],
            "l": [["a"], None],
            "vector": [["p", "q"], []],
        }
        assert pa.types.is_dictionary(table.schema.field("c").type)

    def test_column_names_need_not_be_text(self) -> None:
        assert read(pd.DataFrame({0: [1], 1: [2]})).to_pydict() == {"0": [1], "1": [2]}
        assert read({0: [1]}).to_pydict() == {"0": [1]}

    def test_mixed_types(self) -> None:
        frame = pd.DataFrame({"ok": [1, 2], "odd": pd.Series(["a", 1], dtype=object)})
        (line,) = findings(frame)
        assert line.startswith("data: column 'odd' can't be read, does it mix types? ")

    def test_column_twice(self) -> None:
        frame = pd.DataFrame([[1, 2]], columns=["x", "x"])
        assert findings(frame) == ("data: column 'x' stands twice; rename or drop one",)

    def test_without_columns_or_rows(self) -> None:
        assert open_rows(pd.DataFrame()).schema.names == []
        assert read(pd.DataFrame({"x": []})).num_rows == 0
