from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdmix.data.avro import container as avro_container
from gdmix.data.avro import read_batches, read_schema
from gdmix.data.avro.container import CODECS
from gdmix.data.avro.write import write_batches
from gdmix.errors import DataError

FUZZ = settings(derandomize=True, deadline=None, max_examples=150)
LONG_LISTS = {"type": "array", "items": {"type": "array", "items": "long"}}
MAPS = {"type": "map", "values": {"type": "map", "values": "bytes"}}
NTV = {
    "type": "record",
    "name": "NameTermValueAvro",
    "namespace": "com.linkedin.photon.avro.generated",
    "fields": [
        {"name": "name", "type": "string"},
        # As Photon ML declares it: the default fits no branch but the second.
        {"name": "term", "type": ["string", "null"], "default": None},
        {"name": "value", "type": "double"},
    ],
}
SCHEMA = {
    "type": "record",
    "name": "Everything",
    "namespace": "com.linkedin.photon.avro.generated",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "means", "type": {"type": "array", "items": NTV}},
        {
            "name": "variances",
            "type": ["null", {"type": "array", "items": "NameTermValueAvro"}],
            "default": None,
        },
        {"name": "meta", "type": [{"type": "map", "values": "string"}, "null"]},
        {"name": "tallies", "type": {"type": "map", "values": ["null", "int"]}},
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["A", "B"]}},
        {"name": "kinds", "type": {"type": "array", "items": ["null", "Kind"]}},
        {"name": "code", "type": ["null", {"type": "fixed", "name": "Code", "size": 3}]},
        {"name": "raw", "type": "bytes"},
        {"name": "flag", "type": ["boolean", "null"]},
        {"name": "small", "type": "int"},
        {"name": "single", "type": ["null", "float"]},
        {"name": "double", "type": "double"},
        {"name": "nothing", "type": "null"},
        {
            "name": "inner",
            "type": [
                "null",
                {
                    "type": "record",
                    "name": "Inner",
                    "fields": [
                        {"name": "x", "type": ["null", "int"]},
                        {"name": "lists", "type": LONG_LISTS},
                        {"name": "map", "type": MAPS},
                        {"name": "flag", "type": "boolean"},
                        {"name": "kind", "type": "Kind"},
                    ],
                },
            ],
        },
    ],
}


def make_row(i: int) -> dict[str, Any]:
    ntv = [{"name": f"n{k}", "term": None if k % 2 else "é", "value": k / 2} for k in range(i % 7)]
    return {
        "id": (-1) ** i * 3**i,
        "means": ntv,
        "variances": None if i % 2 else ntv[:1],
        "meta": {"user": f"u{i}", "": "x"} if i % 3 else None,
        "tallies": {"a": None, "b": i},
        "kind": "AB"[i % 2],
        "kinds": ["A", None, "B"][: i % 4],
        "code": b"\x00\xff" + bytes([i]) if i % 3 else None,
        "raw": bytes(range(i)),
        "flag": [True, None, False][i % 3],
        "small": -(2**31) + i,
        "single": None if i % 5 == 0 else i / 4,
        "double": i * 1e-300,
        "nothing": None,
        "inner": None
        if i % 4 == 1
        else {
            "x": i or None,
            "lists": [list(range(k)) for k in range(i % 4)],
            "map": {"k": {"z": b"\xff"}, "l": {}} if i % 2 else {},
            "flag": i % 2 == 0,
            "kind": "B",
        },
    }


ROWS = [make_row(i) for i in range(30)]


def read(path: Path, **options: Any) -> pa.Table:
    return pa.Table.from_batches(read_batches(path, **options), options.get("schema"))


def plain(value: Any) -> Any:
    """Turn Arrow's form of a map, a list of pairs, into a dict."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list):
        if value and all(isinstance(v, tuple) for v in value):
            return {k: plain(v) for k, v in value}
        return [plain(v) for v in value]
    return value


def emptied(value: Any) -> Any:
    """Turn empty maps into empty lists: in Python, Arrow's look the same."""
    if isinstance(value, dict):
        return {k: emptied(v) for k, v in value.items()} or []
    return [emptied(v) for v in value] if isinstance(value, list) else value


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(DataError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    return text


def record(*types: Any) -> dict[str, Any]:
    fields = [{"name": f"c{i}", "type": t} for i, t in enumerate(types)]
    return {"type": "record", "name": "R", "fields": fields}


def zigzag(value: int) -> bytes:
    value = value << 1 if value >= 0 else (-value << 1) - 1
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def text(value: bytes) -> bytes:
    return zigzag(len(value)) + value


SYNC = bytes(range(16))


def container(schema: Any, *blocks: tuple[int, bytes], codec: str = "null") -> bytes:
    """Return a file by hand: what no library writes can be read too."""
    header = [b"avro.schema", json.dumps(schema).encode(), b"avro.codec", codec.encode()]
    head = b"Obj\x01" + zigzag(2) + b"".join(map(text, header)) + b"\0" + SYNC
    return head + b"".join(zigzag(n) + text(data) + SYNC for n, data in blocks)


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., Path]:
    def write(schema: Any, *blocks: tuple[int, bytes], codec: str = "null") -> Path:
        path = tmp_path / "rows.avro"
        path.write_bytes(container(schema, *blocks, codec=codec))
        return path

    return write


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of fastavro with several blocks."""
    path = tmp_path_factory.mktemp("avro") / "theirs.avro"
    with path.open("wb") as file:
        fastavro.writer(file, SCHEMA, ROWS, sync_interval=500)
    return path


class TestReading:
    @pytest.mark.parametrize("codec", CODECS)
    def test_what_fastavro_writes(self, tmp_path: Path, codec: str) -> None:
        path = tmp_path / "rows.avro"
        with path.open("wb") as file:
            fastavro.writer(file, SCHEMA, ROWS, codec=codec, sync_interval=500)
        rows = read(path)
        rows.validate(full=True)
        assert rows.schema == read_schema(path)
        assert [emptied(plain(r)) for r in rows.to_pylist()] == [emptied(r) for r in ROWS]

    def test_types(self, theirs: Path) -> None:
        types = {f.name: f.type for f in read_schema(theirs)}
        ntv = pa.struct({"name": pa.string(), "term": pa.string(), "value": pa.float64()})
        assert types["means"] == types["variances"] == pa.list_(ntv)
        assert types["meta"] == pa.map_(pa.string(), pa.string())
        assert types["kind"] == pa.string() and types["code"] == pa.binary()
        assert types["small"] == pa.int32() and types["single"] == pa.float32()
        assert types["nothing"] == pa.null() and types["flag"] == pa.bool_()

    def test_each_column_alone(self, theirs: Path) -> None:
        rows = read(theirs)
        for name in rows.column_names:
            assert read(theirs, columns=[name]).equals(rows.select([name]))
        some = ["double", "id"]
        assert read(theirs, columns=some).equals(rows.select(some))

    @pytest.mark.parametrize("batch_rows", [1, 4, 1000])
    def test_batches(self, theirs: Path, batch_rows: int) -> None:
        batches = list(read_batches(theirs, batch_rows=batch_rows))
        sizes = [b.num_rows for b in batches]
        assert max(sizes) <= batch_rows and sum(sizes) == 30
        assert set(sizes[:-1]) <= {batch_rows}
        assert pa.Table.from_batches(batches).equals(read(theirs))

    def test_regions_grow(self, tmp_path: Path) -> None:
        rows = [{"c0": ["x" * 50] * (i * 7 % 3000), "c1": i} for i in range(40)]
        path = tmp_path / "rows.avro"
        schema = record({"type": "array", "items": ["null", "string"]}, "int")
        with path.open("wb") as file:
            fastavro.writer(file, schema, rows)
        assert read(path).to_pylist() == rows

    def test_a_batch_of_many_bytes_ends_early(self, tmp_path: Path, monkeypatch: Any) -> None:
        monkeypatch.setattr("gdmix.data.avro._BATCH_BYTES", 1 << 14)
        rows = [{"c0": "x" * 900} for _ in range(200)]
        path = tmp_path / "rows.avro"
        with path.open("wb") as file:
            fastavro.writer(file, record("string"), rows)
        batches = list(read_batches(path))
        assert len(batches) > 3
        assert pa.Table.from_batches(batches).to_pylist() == rows

    def test_lists_in_several_parts(self, put: Any) -> None:
        # Two items, then one with its size told, as writers do that don't know how many follow.
        items = zigzag(2) + zigzag(5) + zigzag(6) + zigzag(-1) + zigzag(1) + zigzag(7) + b"\0"
        entries = zigzag(-1) + zigzag(4) + text(b"k") + text(b"v") + b"\0"
        kinds = {"type": "array", "items": "long"}, {"type": "map", "values": "string"}
        path = put(record(*kinds, "int"), (2, (items + entries + zigzag(3)) * 2))
        row = {"c0": [5, 6, 7], "c1": [("k", "v")], "c2": 3}
        assert read(path).to_pylist() == [row, row]
        assert read(path, columns=["c2"]).to_pylist() == [{"c2": 3}] * 2

    def test_unions_of_several_types(self, put: Any) -> None:
        values = zigzag(0) + zigzag(-5), zigzag(1) + zigzag(2**40)
        path = put(record(["int", "long"]), (2, b"".join(values)))
        assert read(path)["c0"].to_pylist() == [-5, 2**40]
        values = zigzag(0) + zigzag(3), zigzag(1) + struct.pack("<f", 0.5), zigzag(2)
        path = put(record(["long", "float", "null"]), (3, b"".join(values)))
        assert read(path)["c0"].to_pylist() == [3.0, 0.5, None]
        numbers = [0, 7, -10, 99, 100, 2**63 - 1, -(2**63)]
        values = [*(zigzag(2) + zigzag(n) for n in numbers), zigzag(1) + text(b"id"), zigzag(0)]
        path = put(record(["null", "string", "long"]), (len(values), b"".join(values)))
        assert read(path)["c0"].to_pylist() == [*map(str, numbers), "id", None]

    def test_a_union_without_a_common_type(self, put: Any) -> None:
        path = put(record(["boolean", "string"], "int"), (1, zigzag(1) + text(b"a") + zigzag(4)))
        message = refusal(lambda: read(path))
        assert message.endswith(
            "column 'c0': a union of boolean, string has no one type to be read as"
        )
        assert read(path, columns=["c1"])["c1"].to_pylist() == [4]

    def test_no_rows(self, put: Any) -> None:
        path = put(record("int"))
        assert list(read_batches(path)) == []
        assert read_schema(path) == pa.schema({"c0": pa.int32()})
        assert list(read_batches(put(record("int"), (0, b"")))) == []


class TestSchemas:
    def test_names_and_namespaces(self, put: Any) -> None:
        fixed = {"type": "fixed", "name": "a.b.F", "size": 1}
        inner = {
            "type": "record",
            "name": "I",
            "namespace": "a.b",
            "fields": [{"name": "f", "type": "F"}],
        }
        path = put(record(fixed, inner, "a.b.F"), (1, b"xyz"))
        assert read(path).to_pylist() == [{"c0": b"x", "c1": {"f": b"y"}, "c2": b"z"}]

    def test_types_in_types_and_logical_types(self, put: Any) -> None:
        kinds = (
            {"type": {"type": "string"}},
            {"type": ["null", "int"]},
            {
                "type": "long",
                "logicalType": "timestamp-millis",
            },
        )
        path = put(record(*kinds), (1, text(b"a") + zigzag(0) + zigzag(9)))
        assert read(path).to_pylist() == [{"c0": "a", "c1": None, "c2": 9}]

    @pytest.mark.parametrize(
        ("schema", "what"),
        [
            ("int", "holds int values, not records"),
            (record("none"), "unknown type 'none'"),
            (record(3), "'3' is no type"),
            (record({"type": "array"}), "'None' is no type"),
            (record([]), "a union is empty"),
            (record(["null", ["int"]]), "or holds another one"),
            (record("R"), "'R' holds itself"),
            (record(["null", {"type": "array", "items": "R"}]), "'R' holds itself"),
            (record({"type": "array", "items": "null"}), "items that take no bytes"),
            (record("null"), "rows take no bytes"),
            (record({"type": "enum", "name": "E"}), "enum 'E' has no list of symbols"),
            (record({"type": "fixed", "name": "F", "size": -1}), "fixed 'F' has no usable size"),
            (record({"type": "fixed", "size": 1}), "a fixed has no name"),
            ({"type": "record", "name": "R"}, "record 'R' has no list of fields"),
            ({"type": "record", "name": "R", "fields": [{}]}, "a field without a name"),
            (
                {"type": "record", "name": "R", "fields": record("int")["fields"] * 2},
                "two fields 'c0'",
            ),
        ],
    )
    def test_what_cannot_be_used(self, put: Any, schema: Any, what: str) -> None:
        path = put(schema, (1, b"\0" * 20))
        for call in (read_schema, read):
            message = refusal(lambda call=call: call(path))
            assert message.startswith(f"{path}: ") and what in message

    def test_a_schema_that_explodes(self, put: Any) -> None:
        kind: Any = "int"
        for i in range(40):
            name = f"L{i}"
            fields = [
                {"name": "a", "type": kind},
                {"name": "b", "type": f"L{i - 1}" if i else "int"},
            ]
            kind = {"type": "record", "name": name, "fields": fields}
        assert "more than 10,000 types" in refusal(lambda: read_schema(put(record(kind))))

    def test_a_schema_that_is_deep(self, put: Any) -> None:
        kind: Any = "int"
        for _ in range(70):
            kind = {"type": "array", "items": kind}
        assert "lists are too deep" in refusal(lambda: read(put(record(kind))))
        for _ in range(250):
            kind = {"type": kind}
        deep = b'{"type":' * 20_000
        path = put(record("int"))
        path.write_bytes(path.read_bytes().replace(b'{"type"', deep, 1))
        refusal(lambda: read_schema(path))


class TestErrors:
    def test_no_file(self, tmp_path: Path) -> None:
        assert "no such file" in refusal(lambda: read(tmp_path / "x.avro"))
        assert "can't be read" in refusal(lambda: read(tmp_path))

    @pytest.mark.parametrize(
        ("data", "what"),
        [
            (b"", "is empty: 0 bytes"),
            (b"uid,response\n", "is no Avro file"),
            (b"Obj\x01", "header: is cut off"),
            (b"Obj\x01" + b"\xff" * 11, "header: a number has no end"),
            (b"Obj\x01" + zigzag(1) + zigzag(-4), "header: it has a length of -4"),
            (b"Obj\x01" + zigzag(1) + zigzag(10**6), "header: is cut off"),
            (b"Obj\x01\0" + SYNC, "its header has no schema that is JSON"),
            (container("{"), "not records"),
        ],
    )
    def test_headers(self, tmp_path: Path, data: bytes, what: str) -> None:
        path = tmp_path / "rows.avro"
        path.write_bytes(data)
        if what == "not records":
            what = "unknown type '{'"
        message = refusal(lambda: read(path))
        assert message.startswith(f"{path}: ") and what in message

    def test_unknown_codec(self, put: Any) -> None:
        path = put(record("int"), codec="lzo")
        assert "its codec 'lzo' is none of null, deflate, snappy" in refusal(lambda: read(path))

    def test_cut_off(self, theirs: Path, tmp_path: Path) -> None:
        data = theirs.read_bytes()
        path = tmp_path / "rows.avro"
        path.write_bytes(data[:-1])
        message = refusal(lambda: read(path))
        assert "block " in message and message.endswith("is cut off where the file ends")

    @pytest.mark.parametrize(
        ("kind", "block", "what"),
        [
            ("int", (1, b"\x80"), "a value goes beyond its end"),
            ("int", (1, b"\xff" * 12), "a value goes beyond its end"),
            ("int", (1, zigzag(2**31)), "an int is beyond 32 bits"),
            ("double", (1, b"1234567"), "a value goes beyond its end"),
            ("string", (1, zigzag(5) + b"abc"), "has a length that can't be"),
            ("string", (1, zigzag(-1)), "has a length that can't be"),
            ("string", (1, text(b"\xff")), "column 'c0' has a string that is not UTF-8"),
            (["null", "int"], (1, zigzag(2)), "a union has a branch"),
            (["null", "int"], (1, zigzag(-1)), "a union has a branch"),
            ({"type": "array", "items": "int"}, (1, zigzag(9) + b"\0"), "a number of items"),
            ({"type": "array", "items": "int"}, (1, zigzag(-(2**63)) + b"\0"), "a number of items"),
            ({"type": "array", "items": "int"}, (1, zigzag(-1) + zigzag(9)), "has a length"),
            (
                {"type": "enum", "name": "E", "symbols": ["A"]},
                (1, zigzag(1)),
                "an enum has a symbol",
            ),
            ("int", (1, zigzag(1) * 2), "it has bytes after its last row"),
            ("int", (2, zigzag(1)), "it claims to hold 2 rows in 1 bytes"),
            ("int", (10**17, zigzag(1)), "it claims to hold 100,000,000,000,000,000 rows"),
            ("int", (-1, zigzag(1)), "it claims to hold -1 rows"),
        ],
    )
    def test_blocks(self, put: Any, kind: Any, block: tuple[int, bytes], what: str) -> None:
        good = {"int": zigzag(1), "string": text(b"a"), "double": bytes(8)}
        before = good.get(kind if isinstance(kind, str) else "", b"\0")
        path = put(record(kind), (1, before), block)
        message = refusal(lambda: list(read_batches(path, batch_rows=1)))
        assert message.startswith(f"{path}: block 2: ") and what in message
        assert "\n" not in refusal(lambda: read(path))

    def test_sync_marker(self, put: Any) -> None:
        path = put(record("int"), (1, b"\0"), (1, b"\0"))
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        assert "block 2: the sync marker after it is wrong" in refusal(lambda: read(path))

    @pytest.mark.parametrize("codec", ["deflate", "snappy", "zstandard"])
    def test_blocks_that_are_not_compressed_so(self, put: Any, codec: str) -> None:
        for data in (b"", b"nonsense", bytes(20), b"\xff" * 20):
            message = refusal(lambda data=data: read(put(record("int"), (1, data), codec=codec)))
            assert "block 1: " in message

    @pytest.mark.parametrize("codec", ["deflate", "snappy", "zstandard"])
    def test_blocks_that_unfold_without_end(
        self, tmp_path: Path, monkeypatch: Any, codec: str
    ) -> None:
        path = tmp_path / "rows.avro"
        rows = pa.table({"c0": ["\0" * 1_000_000]}).to_batches()
        write_batches(path, record("string"), rows, codec)
        assert read(path).num_rows == 1
        monkeypatch.setattr(avro_container, "_MOST_BYTES", 100_000)
        assert "block 1: can't be decompressed: it holds more" in refusal(lambda: read(path))

    def test_a_snappy_checksum(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.avro"
        write_batches(path, record("int"), pa.table({"c0": [1, 2]}).to_batches(), "snappy")
        data = bytearray(path.read_bytes())
        data[-17] ^= 1
        path.write_bytes(data)
        assert "block 1: can't be decompressed: its checksum" in refusal(lambda: read(path))

    def test_unknown_column(self, theirs: Path) -> None:
        message = refusal(lambda: read(theirs, columns=["mean"]))
        assert message.endswith("has no column 'mean' (did you mean 'means'?)")


class TestWriting:
    @pytest.mark.parametrize("codec", CODECS)
    def test_what_fastavro_reads(self, theirs: Path, tmp_path: Path, codec: Any) -> None:
        rows = read(theirs)
        path = tmp_path / "rows.avro"
        write_batches(path, SCHEMA, rows.to_batches(max_chunksize=7), codec, block_bytes=300)
        with path.open("rb") as file:
            assert list(fastavro.reader(file)) == ROWS
        assert read(path).equals(rows)

    def test_slices(self, theirs: Path, tmp_path: Path) -> None:
        rows = read(theirs)
        path = tmp_path / "rows.avro"
        for first in (1, 5, 29, 30):
            write_batches(path, SCHEMA, rows.slice(first).to_batches())
            with path.open("rb") as file:
                assert list(fastavro.reader(file)) == ROWS[first:]

    def test_other_arrow_types(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.avro"
        kinds = [
            "long",
            "float",
            "string",
            ["null", "string"],
            {"type": "array", "items": "double"},
        ]
        columns = {
            "c0": pa.array([1, 2], pa.uint8()),
            "c1": pa.array([0.5, 2.0]),
            "c2": pa.array(["a", "b"]).dictionary_encode(),
            "c3": pa.array([b"x", None], pa.large_binary()),
            "c4": pa.array([[1, 2], [3, 4]], pa.list_(pa.float32(), 2)),
            "left_out": [1, 2],
        }
        write_batches(path, record(*kinds), pa.table(columns).to_batches())
        with path.open("rb") as file:
            assert list(fastavro.reader(file)) == [
                {"c0": 1, "c1": 0.5, "c2": "a", "c3": "x", "c4": [1, 2]},
                {"c0": 2, "c1": 2.0, "c2": "b", "c3": None, "c4": [3, 4]},
            ]

    def test_branches_of_unions(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.avro"
        union = ["null", "string", "int", "long", "double"]
        for column in (
            pa.array([1, None]),
            pa.array(["a", None]),
            pa.array([None, 0.5]),
            pa.nulls(2),
        ):
            write_batches(path, record(union), pa.table({"c0": column}).to_batches())
            with path.open("rb") as file:
                assert [r["c0"] for r in fastavro.reader(file)] == column.to_pylist()

    def test_rows_larger_than_the_room(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.avro"
        table = pa.table({"c0": ["x" * n for n in (10, 5000, 100_000, 1)]})
        write_batches(path, record("string"), table.to_batches(), block_bytes=100)
        assert read(path).equals(table)

    def test_missing_fields_are_null_if_they_may(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.avro"
        write_batches(path, record("int", ["null", "long"]), pa.table({"c0": [1]}).to_batches())
        assert read(path).to_pylist() == [{"c0": 1, "c1": None}]
        message = refusal(
            lambda: write_batches(path, record("int"), pa.table({"c": [1]}).to_batches())
        )
        assert message.endswith("column 'c0' is missing (did you mean 'c'?)")

    @pytest.mark.parametrize(
        ("kind", "column", "what"),
        [
            ("long", pa.array([1, None]), "column 'c0' has a null"),
            ("long", pa.array(["1"]), "column 'c0' is string, which is no Avro long"),
            (
                ["null", "long"],
                pa.array([b"1"]),
                "column 'c0' is binary, which is none of null, long",
            ),
            ("int", pa.array([2**31]), "column 'c0' does not fit its Avro type"),
            ("string", pa.array([b"\xff"]), "column 'c0' does not fit its Avro type"),
            (
                {"type": "enum", "name": "E", "symbols": ["A"]},
                pa.array(["B"]),
                "its Avro enum does not",
            ),
            ({"type": "fixed", "name": "F", "size": 2}, pa.array([b"x"]), "is not 2 bytes long"),
            (
                {"type": "array", "items": "int"},
                pa.array([[1, None]]),
                "column 'c0.item' has a null",
            ),
            (
                {"type": "record", "name": "I", "fields": [{"name": "x", "type": "int"}]},
                pa.array([{"y": 1}]),
                "column 'c0.x' is missing",
            ),
        ],
    )
    def test_what_cannot_be_written(
        self, tmp_path: Path, kind: Any, column: pa.Array, what: str
    ) -> None:
        path = tmp_path / "rows.avro"
        batches = pa.table({"c0": column}).to_batches()
        message = refusal(lambda: write_batches(path, record(kind), batches))
        assert message.startswith(f"{path}: ") and what in message
        assert not list(tmp_path.iterdir())

    def test_unknown_codec(self, tmp_path: Path) -> None:
        codec: Any = "lzo"
        assert "codec 'lzo'" in refusal(
            lambda: write_batches(tmp_path / "a", record("int"), [], codec)
        )


# Schemas and rows of any shape, against fastavro.

PRIMITIVES = {
    "boolean": st.booleans(),
    "int": st.integers(-(2**31), 2**31 - 1),
    "long": st.integers(-(2**63), 2**63 - 1),
    "float": st.floats(width=32, allow_nan=False),
    "double": st.floats(allow_nan=False),
    "bytes": st.binary(max_size=5),
    "string": st.text(max_size=5),
}


@st.composite
def schemas(draw: Any, depth: int = 0, in_union: bool = False) -> tuple[Any, Any]:
    """Draw a schema and the strategy of its values."""
    kinds = [*PRIMITIVES]
    if depth < 3:
        kinds += ["array", "map", "record", "fixed", "enum"] + ["union"] * (not in_union)
    kind = draw(st.sampled_from(kinds))
    name = f"N{draw(st.uuids()).hex}"
    if kind == "union":
        part, values = draw(schemas(depth, True))
        return draw(st.sampled_from([["null", part], [part, "null"]])), st.none() | values
    if kind == "array":
        part, values = draw(schemas(depth + 1))
        return {"type": "array", "items": part}, st.lists(values, max_size=3)
    if kind == "map":
        part, values = draw(schemas(depth + 1))
        keys = st.text(max_size=3)
        return {"type": "map", "values": part}, st.dictionaries(keys, values, max_size=3)
    if kind == "fixed":
        return {"type": "fixed", "name": name, "size": 2}, st.binary(min_size=2, max_size=2)
    if kind == "enum":
        return {"type": "enum", "name": name, "symbols": ["A", "B"]}, st.sampled_from(["A", "B"])
    if kind == "record":
        parts = draw(st.lists(schemas(depth + 1), min_size=1, max_size=3))
        fields = [{"name": f"f{i}", "type": part} for i, (part, _) in enumerate(parts)]
        values = st.fixed_dictionaries({f"f{i}": v for i, (_, v) in enumerate(parts)})
        return {"type": "record", "name": name, "fields": fields}, values
    return kind, PRIMITIVES[kind]


@st.composite
def files(draw: Any) -> tuple[Any, list[Any]]:
    parts = draw(st.lists(schemas(), min_size=1, max_size=3))
    row = st.fixed_dictionaries({f"c{i}": v for i, (_, v) in enumerate(parts)})
    return record(*(part for part, _ in parts)), draw(st.lists(row, max_size=4))


EDITS = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "rows.avro"


def read_whatever(path: Path) -> None:
    """Read what may be anything: rows, or an error of one line."""
    try:
        for batch in read_batches(path):
            batch.validate(full=True)
    except DataError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)


class TestAnyBytes:
    @FUZZ
    @given(case=files())
    def test_any_schema(self, scratch: Path, case: tuple[Any, list[Any]]) -> None:
        schema, rows = case
        with scratch.open("wb") as file:
            fastavro.writer(file, schema, rows)
        batches = list(read_batches(scratch))
        for batch in batches:
            batch.validate(full=True)
        write_batches(scratch, schema, batches)
        with scratch.open("rb") as file:
            back = list(fastavro.reader(file))
        assert back == rows
        assert list(read_batches(scratch)) == batches

    @settings(FUZZ, max_examples=300)
    @given(edits=EDITS, more=st.binary(max_size=10), keep=st.sampled_from([1.0, 1.0, 0.8]))
    def test_mutated_blocks(self, scratch: Path, edits: Any, more: bytes, keep: float) -> None:
        buffer = io.BytesIO()
        for row in ROWS[2:6]:
            fastavro.schemaless_writer(buffer, SCHEMA, row)
        data = bytearray(buffer.getvalue()[: int(keep * buffer.tell())])
        for where, value in edits:
            data[where % len(data)] = value
        scratch.write_bytes(container(SCHEMA, (4, bytes(data) + more)))
        read_whatever(scratch)

    @FUZZ
    @given(edits=EDITS, keep=st.floats(0, 1))
    def test_mutated_files(self, scratch: Path, edits: Any, keep: float) -> None:
        block = zlib.compress(zigzag(5) + text(b"abc"))[2:-4]
        schema = record("int", ["null", "string"])
        whole = container(schema, (1, block), codec="deflate")
        data = bytearray(whole[: max(1, int(keep * len(whole)))])
        for where, value in edits:
            data[where % len(data)] = value
        scratch.write_bytes(data)
        read_whatever(scratch)

    @FUZZ
    @given(data=st.binary(max_size=60))
    def test_random_bytes(self, scratch: Path, data: bytes) -> None:
        codec = CODECS[len(data) % 4]
        for content in (data, b"Obj\x01" + data, container(SCHEMA, (1, data), codec=codec)):
            scratch.write_bytes(content)
            read_whatever(scratch)


def test_decimals_of_all_lengths(put: Any) -> None:
    rng = np.random.default_rng(0)
    numbers = [int(n) >> int(s) for n, s in zip(
        rng.integers(-(2**63), 2**63 - 1, 200), rng.integers(0, 63, 200), strict=True
    )]  # fmt: skip
    data = b"".join(zigzag(1) + zigzag(n) for n in numbers)
    path = put(record(["string", "long"]), (200, data))
    assert read(path)["c0"].to_pylist() == [str(n) for n in numbers]
