"""Rows that tasks read are those that one machine reads: values, types, numbers and errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
from pyspark.sql import SparkSession

from gdmix.convert import convert_rows
from gdmix.data.read import open_rows
from gdmix.engines.spark.session import TaskErrors
from gdmix.engines.spark.sources import open_spark_rows, stamps
from gdmix.engines.spark.tasks.kinds import ROW
from gdmix.errors import DataError, EngineError


def rows_of_all_kinds(n: int = 1000, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    tags = [list(rng.choice(["p", "q", "r"], rng.integers(0, 3))) for _ in range(n)]
    ntv = [[{"name": "a", "term": t, "value": 0.5} for t in own] for own in tags]
    vector = pa.array(rng.normal(size=2 * n).astype(np.float32))
    return pa.table(
        {
            "uid": pa.array(rng.permutation(n)),
            "user": pa.array(rng.integers(0, 9, n), pa.int32()),
            "item": [f"i{k}" for k in rng.integers(0, 5, n)],
            "x": rng.normal(size=n),
            "narrow": pa.array(rng.integers(0, 200, n), pa.uint8()),
            "wide": pa.array(rng.integers(0, 2**63, n).astype(np.uint64) * 2, pa.uint64()),
            "kind": pa.array(rng.choice(["a", "b"], n)).dictionary_encode(),
            "tags": pa.array(tags, pa.list_(pa.string())),
            "ntv": ntv,
            "vector": pa.FixedSizeListArray.from_arrays(vector, 2),
            "flag": rng.random(n) < 0.5,
            "nothing": pa.nulls(n),
            "gaps": pa.array([None if k % 7 == 0 else k for k in range(n)]),
            "odd.name`": rng.normal(size=n),
            "response": rng.integers(0, 2, n),
        }
    )


def pack(index: int, tables: Iterator[pa.Table]) -> Iterator[tuple[int, bytes]]:
    for table in tables:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        yield index, sink.getvalue().to_pybytes()


def read(
    session: SparkSession, source: Any, columns: list[str] | None = None, **settings: Any
) -> Any:
    """Return the rows, in the order of their numbers, and from how many partitions they are."""
    errors = TaskErrors(session)
    rows = open_spark_rows(session, source, **settings)
    columns = rows.schema.names if columns is None else columns
    pieces = rows.map_tables(pack, columns, errors, numbered=True)
    found = errors.run(pieces.collect)
    tables = [pa.ipc.open_stream(piece).read_all() for _, piece in found]
    for table in tables:
        assert [f.type for f in table.schema][:-1] == [rows.schema.field(c).type for c in columns]
    table = pa.concat_tables(tables).sort_by(ROW)
    assert table[ROW].to_pylist() == list(range(table.num_rows))
    assert rows.count(errors) == table.num_rows
    # Without numbers it is the same rows.
    plain = errors.run(rows.map_tables(pack, columns, errors).collect)
    assert sorted(p[0] for p in plain) == sorted(p[0] for p in found)
    return table.drop_columns([ROW]), len({index for index, _ in found})


def expect_as_locally(session: SparkSession, source: Any, local: Any) -> None:
    here = open_rows(local)
    assert open_spark_rows(session, source).schema.equals(here.schema)
    table, _ = read(session, source)
    expected = here.read(here.schema.names)
    assert table.combine_chunks().equals(expected.combine_chunks().unify_dictionaries()) or (
        table.to_pylist() == expected.to_pylist()
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same rows in all formats, as one file and as several."""
    folder = tmp_path_factory.mktemp("rows of all kinds")
    rows = rows_of_all_kinds()
    pq.write_table(rows, folder / "one.parquet", row_group_size=300)
    plain = rows.drop_columns(["wide", "nothing", "kind", "ntv"])
    pa.feather.write_feather(plain, folder / "one.arrow", compression="uncompressed")
    flat = plain.drop_columns(["tags", "vector"])
    pyarrow.csv.write_csv(flat, folder / "one.csv")
    records = plain.drop_columns(["vector", "flag", "odd.name`"])
    pq.write_table(records, folder / "_records.parquet")
    for kind in ("tfrecord", "avro"):
        convert_rows([str(folder / "_records.parquet")], folder / f"one.{kind}", [], [], "uid")
    (folder / "parts" / "user=3").mkdir(parents=True)
    # Types differ in what a reader widens; the smallest file comes first, hidden ones don't count.
    pq.write_table(rows.slice(0, 10), folder / "parts" / "a.parquet")
    later = rows.slice(10)
    for name, kind in (("user", pa.int64()), ("narrow", pa.int32()), ("gaps", pa.float64())):
        later = later.set_column(later.schema.get_field_index(name), name, later[name].cast(kind))
    pq.write_table(later, folder / "parts" / "user=3" / "b.parquet")
    (folder / "parts" / "_SUCCESS").touch()
    (folder / "parts" / "_c.parquet").write_bytes(b"")
    return folder


FORMATS = ["one.parquet", "one.arrow", "one.csv", "one.tfrecord", "one.avro", "parts"]


@pytest.mark.parametrize("name", FORMATS)
def test_plain_paths_give_the_rows_of_one_machine(
    spark: SparkSession, files: Path, name: str
) -> None:
    expect_as_locally(spark, files / name, files / name)


@pytest.mark.parametrize("name", FORMATS)
def test_uris_give_the_rows_of_one_machine(spark: SparkSession, files: Path, name: str) -> None:
    expect_as_locally(spark, f"file://{files / name}", files / name)


def test_several_files_are_spread_over_tasks(spark: SparkSession, files: Path) -> None:
    paths = [str(files / f"one.{kind}") for kind in ("tfrecord", "avro")]
    table, tasks = read(spark, paths, ["uid", "x"], partitions=2)
    assert table.num_rows == 2000
    assert tasks == 2
    uris = [f"file://{path}" for path in paths]
    assert read(spark, uris, ["uid", "x"], partitions=2)[0].equals(table)


def test_a_pattern_is_expanded_by_spark(spark: SparkSession, files: Path) -> None:
    table, _ = read(spark, f"file://{files}/one.p*", ["uid"])
    assert table["uid"].to_pylist() == rows_of_all_kinds()["uid"].to_pylist()


@pytest.mark.parametrize("kind", ["arrow", "pandas", "polars", "dict"])
def test_frames_in_memory_keep_their_types(spark: SparkSession, kind: str) -> None:
    rows = rows_of_all_kinds().select(["uid", "user", "item", "kind", "tags", "vector", "gaps"])
    frames: dict[str, Callable[[], Any]] = {
        "arrow": lambda: rows,
        "pandas": lambda: pd.DataFrame({"uid": range(50), "item": ["a", "b"] * 25}),
        "polars": lambda: pl.from_arrow(rows),
        "dict": lambda: {"uid": [1, 2], "x": [0.5, float("nan")]},
    }
    source = frames[kind]()
    here = open_rows(source)
    table, _ = read(spark, source)
    assert table.schema.equals(here.schema)
    assert str(table.to_pylist()) == str(here.read(here.schema.names).to_pylist())


def test_a_spark_data_frame(spark: SparkSession) -> None:
    frame = spark.range(0, 1000, numPartitions=3).selectExpr(
        "id as uid",
        "cast(id % 7 as string) as user",
        "cast(id as float) / 3 as x",
        "array('a', cast(id % 3 as string)) as tags",
        "array(1.5f, cast(id as float)) as vector",
        "array(id) as own_indices",
        "interval 1 month as odd",
    )
    before = spark.conf.get("spark.sql.execution.arrow.maxRecordsPerBatch")
    rows = open_spark_rows(spark, frame)
    assert spark.conf.get("spark.sql.execution.arrow.maxRecordsPerBatch") == before
    assert rows.schema.field("vector").type == pa.list_(pa.float32(), 2)
    assert rows.schema.field("own_indices").type == pa.list_(pa.int64())
    columns = ["uid", "user", "x", "tags", "vector", "own_indices"]
    table, tasks = read(spark, frame, columns)
    assert tasks == 3
    assert table["uid"].to_pylist() == list(range(1000))
    assert table["vector"].to_pylist()[5] == [1.5, 5.0]
    assert spark.conf.get("spark.sql.adaptive.enabled") == "true"


def test_vectors_of_spark_ml_are_dense_features(spark: SparkSession) -> None:
    from pyspark.ml.linalg import Vectors

    frame = spark.createDataFrame([(k, Vectors.dense([k, 2.0])) for k in range(4)], ["uid", "v"])
    table, _ = read(spark, frame)
    assert table["v"].type == pa.list_(pa.float64(), 2)
    assert table["v"].to_pylist() == [[k, 2.0] for k in range(4)]


def test_lists_of_a_data_frame_that_differ_in_length(spark: SparkSession) -> None:
    frame = spark.sql("select 1L as uid, array(1.5D, 2.5D) as v union all select 2L, array(1.5D)")
    with pytest.raises(DataError, match=r"data: column 'v' is not fixed_size_list.*\[2\] in all"):
        read(spark, frame)


def test_partitions_without_rows_are_left_out(spark: SparkSession) -> None:
    frame = spark.range(0, 4, numPartitions=4).where("id != 1").withColumnRenamed("id", "uid")
    table, tasks = read(spark, frame)
    assert (table["uid"].to_pylist(), tasks) == ([0, 2, 3], 3)
    assert read(spark, pa.table({"uid": pa.array([], pa.int64())}))[0].num_rows == 0


def test_stamps_tell_files_apart(spark: SparkSession, files: Path) -> None:
    found = stamps(spark, [f"file://{files}/parts"])
    sizes = [(files / p).stat().st_size for p in ("parts/a.parquet", "parts/user=3/b.parquet")]
    assert [size for size, _ in found.values()] == sizes


# Bad input: the same line as on one machine, once.


def local_error(source: Any, columns: list[str]) -> list[str]:
    with pytest.raises(DataError) as caught:
        open_rows(source).read(columns)
    return list(caught.value.findings)


def spark_error(session: SparkSession, source: Any, columns: list[str]) -> list[str]:
    with pytest.raises(DataError) as caught:
        read(session, source, columns)
    return [line.replace("file:/", "/").replace("///", "/") for line in caught.value.findings]


def damaged(folder: Path, kind: str) -> Path:
    """Write a file that is damaged in its middle, which only reading it through tells."""
    rows = rows_of_all_kinds(60_000).select(["uid", "x"])
    path = folder / f"damaged.{kind}"
    if kind == "parquet":
        pq.write_table(
            rows, path, compression="none", use_dictionary=False, write_page_checksum=True
        )
    else:
        pq.write_table(rows, folder / "_good.parquet")
        convert_rows([str(folder / "_good.parquet")], path, [], [], "uid")
    content = bytearray(path.read_bytes())
    middle = len(content) * 3 // 4
    content[middle : middle + 40] = b"\xff" * 40
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("kind", ["tfrecord", "avro"])
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_damaged_file(spark: SparkSession, tmp_path: Path, kind: str, scheme: str) -> None:
    path = damaged(tmp_path, kind)
    assert spark_error(spark, f"{scheme}{path}", ["x"]) == local_error(path, ["x"])


@pytest.mark.parametrize("kind", ["parquet", "tfrecord", "avro", "csv", "arrow"])
@pytest.mark.parametrize("content", [b"", b"no rows at all"])
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_file_that_is_none(
    spark: SparkSession, tmp_path: Path, kind: str, content: bytes, scheme: str
) -> None:
    path = tmp_path / f"none.{kind}"
    path.write_bytes(content)
    if kind == "csv" and content:
        return  # that is a header
    assert spark_error(spark, f"{scheme}{path}", ["x"]) == local_error(path, ["x"])


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_files_that_do_not_go_together(spark: SparkSession, tmp_path: Path, scheme: str) -> None:
    pq.write_table(pa.table({"uid": [1], "x": [1.0], "y": ["a"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"uid": [1], "x": ["one"]}), tmp_path / "b.parquet")
    found = spark_error(spark, f"{scheme}{tmp_path}", ["uid", "x", "y"])
    assert len(found) == 2
    assert found == local_error(tmp_path, ["uid", "x", "y"])
    # Nobody asks for the other columns: they do not matter.
    assert read(spark, f"{scheme}{tmp_path}", ["uid"])[0].num_rows == 2


def test_paths_that_lead_nowhere(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "rows.txt").touch()
    for path in (tmp_path / "nowhere.parquet", tmp_path / "empty", tmp_path / "rows.txt"):
        assert spark_error(spark, path, ["x"]) == local_error(path, ["x"])
    lines = {
        f"file://{tmp_path}/nowhere.parquet": "no such file or folder",
        f"file://{tmp_path}/*.parquet": "no file matches the pattern",
        f"file://{tmp_path}/empty": "the folder holds no .parquet",
        f"file://{tmp_path}/rows.txt": "unknown kind of file",
        "nosuch://host/rows.parquet": "can't be looked up: No FileSystem for scheme",
    }
    for uri, line in lines.items():
        with pytest.raises(DataError, match=line) as caught:
            open_spark_rows(spark, uri)
        assert str(caught.value).count("\n") == 0


def test_a_column_that_stands_twice(spark: SparkSession) -> None:
    frame = spark.range(3).selectExpr("id as uid", "id as x", "id as x")
    with pytest.raises(DataError, match="data: column 'x' stands twice"):
        open_spark_rows(spark, frame)


def test_a_file_that_workers_do_not_see(spark: SparkSession, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"x": [1.0]}), path)
    rows, errors = open_spark_rows(spark, path), TaskErrors(spark)
    path.unlink()
    with pytest.raises(DataError, match="does not see it; put it where all machines do"):
        errors.run(rows.map_tables(pack, ["x"], errors).collect)


def test_a_data_frame_that_fails(spark: SparkSession) -> None:
    frame = spark.range(3).selectExpr("id as uid", "assert_true(id < 2, 'too large') as x")
    errors = TaskErrors(spark)
    with pytest.raises(EngineError, match="Spark: .*too large") as caught:
        errors.run(open_spark_rows(spark, frame).map_tables(pack, ["uid", "x"], errors).collect)
    assert "\n" not in str(caught.value)
