from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdmix.data.feature_index import FeatureIndex
from gdmix.data.tfrecord import read_batches, read_schema
from gdmix.data.tfrecord.framing import masked_checksum
from gdmix.data.tfrecord.metadata import TensorMetadata, TensorSpec, write_feature_list
from gdmix.data.tfrecord.write import write_examples, write_sequence_examples
from gdmix.errors import DataError

FIXTURES = Path(__file__).parent / "fixtures"  # written by TensorFlow 2.21
FUZZ = settings(derandomize=True, deadline=None, max_examples=300)
INTS, FLOATS, TEXTS = (pa.list_(t) for t in (pa.int64(), pa.float32(), pa.string()))


def read(path: Path, **options: Any) -> pa.Table:
    batches = list(read_batches(path, **options))
    return pa.Table.from_batches(batches) if batches else pa.table({})


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(DataError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    return text


# Protocol buffers by hand: what no library writes can be read too.


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def sub(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def ints(*values: int) -> bytes:
    return sub(3, sub(1, b"".join(varint(v) for v in values)))


def floats(*values: float) -> bytes:
    return sub(2, sub(1, np.array(values, "<f4").tobytes()))


def texts(*values: bytes) -> bytes:
    return sub(1, b"".join(sub(1, v) for v in values))


def message(**entries: bytes) -> bytes:
    return b"".join(sub(1, sub(1, k.encode()) + sub(2, v)) for k, v in entries.items())


def example(**features: bytes) -> bytes:
    return sub(1, message(**features))


def sequence(context: dict[str, bytes], **lists: list[bytes]) -> bytes:
    rows = {name: b"".join(sub(1, f) for f in features) for name, features in lists.items()}
    return sub(1, message(**context)) + sub(2, message(**rows))


def framed(*records: bytes) -> bytes:
    def checksum(data: bytes) -> bytes:
        return masked_checksum(np.frombuffer(data, np.uint8), 0, len(data)).to_bytes(4, "little")

    heads = [len(r).to_bytes(8, "little") for r in records]
    return b"".join(
        head + checksum(head) + r + checksum(r) for head, r in zip(heads, records, strict=True)
    )


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., Path]:
    """Write a file of these records."""

    def write(*records: bytes) -> Path:
        path = tmp_path / "rows.tfrecord"
        path.write_bytes(framed(*records))
        return path

    return write


class TestFilesOfTensorFlow:
    @pytest.mark.parametrize("suffix", ["", ".gz", ".deflate"])
    def test_examples(self, suffix: str) -> None:
        rows = read(FIXTURES / f"example.tfrecord{suffix}")
        assert rows.to_pydict() == {
            "nothing": [None] * 5,
            "per_user_indices": [[3], [], None, list(range(100, 300, 7)), None],
            "per_user_values": [[0.5], [], None, [k / 4 for k in range(29)], None],
            "raw": [b"\xff\x00", None, b"ok", None, None],
            "response": [1, 0, 1, 1, None],
            "tags": [["a"], [], None, ["x", "", "yz"], None],
            "title": ["Amélie", "", None, "日本", None],
            "uid": [0, 1, 2, 3, None],
            "user_id": [-7, 2**62, -(2**63), 300, None],
            "weight": [1.0, 2.5, None, float(np.float32(-1e-30)), None],
        }
        assert rows.schema.field("tags").type == TEXTS
        assert rows.schema.field("raw").type == pa.binary()
        assert rows.schema.field("weight").type == pa.float32()

    def test_sequence_examples_become_rows(self) -> None:
        rows = read(FIXTURES / "sequence_example.tfrecord")
        assert rows.to_pydict() == {
            "item": ["a", "b", "a", "c", "d", "e"],
            "response": [0, 1, 1, 1, 0, 0],
            "uid": [5, 6, 7, 8, 9, 10],
            "user_id": [42, 42, 42, 43, 44, 44],
            "weight": [1.0, 1.0, 2.0, None, 3.0, 4.0],
            "bag_indices": [[1, 2], [], [9], [0], None, None],
            "bag_values": [[0.5, 0.25], [], [-1.0], [2.0], None, None],
            "word": ["p", None, "q", None, None, None],
        }

    def test_we_write_the_same_bytes(self, tmp_path: Path) -> None:
        theirs = FIXTURES / "example.tfrecord"
        schema = read_schema(theirs).remove(0)
        items = {f.name: getattr(f.type, "value_type", f.type) for f in schema}
        rows = read(theirs, schema=pa.schema({n: pa.list_(t) for n, t in items.items()}))
        write_examples(tmp_path / "a", rows.to_batches())
        ours = (tmp_path / "a").read_bytes()
        # But for their first record, which has a feature that says nothing.
        assert len(ours) > 500 and theirs.read_bytes().endswith(ours[-500:])


class TestSchema:
    def test_a_feature_with_at_most_one_value_is_a_scalar(self, put: Any) -> None:
        path = put(example(a=ints(1), b=ints(1, 2), c=floats()), example(a=ints(), c=floats(1.0)))
        types = {f.name: f.type for f in read_schema(path)}
        assert types == {"a": pa.int64(), "b": INTS, "c": pa.float32()}

    @pytest.mark.parametrize("name", ["x_indices", "x_indices0", "x_values"])
    def test_indices_and_values_are_lists(self, put: Any, name: str) -> None:
        feature = floats(1.0) if name == "x_values" else ints(1)
        assert read(put(example(**{name: feature}))).to_pydict() == {name: [[1]]}

    def test_without_any_value(self, put: Any) -> None:
        schema = read_schema(put(example(x_indices=b"", x_values=b"", y=b"")))
        assert schema.types == [INTS, FLOATS, pa.null()]

    def test_text_is_bytes_if_it_is_not_utf8(self, put: Any) -> None:
        path = put(example(a=texts(b"x"), b=texts(b"x")), example(a=texts(b"\xff"), b=texts(b"y")))
        assert read_schema(path).types == [pa.binary(), pa.string()]

    def test_metadata_have_the_last_word(self, put: Any) -> None:
        path = put(example(uid=ints(1), x=ints(1), bag_indices=ints(), y=texts(b"a")))
        specs = (
            TensorSpec("x", "long", (2,)),
            TensorSpec("bag", "float", (9,), is_sparse=True),
            TensorSpec("y", "bytes"),
        )
        schema = read_schema(path, TensorMetadata(specs, (TensorSpec("label", "int"),)))
        types = {f.name: f.type for f in schema}
        assert types == {
            "uid": pa.int64(),
            "x": INTS,
            "bag_indices": INTS,
            "y": pa.binary(),
            "bag_values": FLOATS,
            "label": pa.int64(),
        }
        row = read(path, schema=schema).to_pylist()[0]
        assert row == {
            "uid": 1, "x": [1], "bag_indices": [], "y": b"a", "bag_values": None, "label": None,
        }  # fmt: skip

    def test_only_the_first_records_are_looked_at(self, put: Any) -> None:
        path = put(example(a=ints(1)), example(a=ints(1, 2), b=ints(1)))
        assert read_schema(path, records=1).types == [pa.int64()]
        assert read_schema(path, records=None).types == [INTS, pa.int64()]
        assert "record 2: feature 'a' has 2 values" in refusal(
            lambda: read(path, schema=read_schema(path, records=1))
        )

    def test_a_late_feature_is_not_lost_silently(self, put: Any) -> None:
        path = put(*[example(a=ints(1))] * 10_000, example(a=ints(1), b=ints(1)))
        text = refusal(lambda: read(path))
        assert "record 10001: feature 'b' is in no earlier one" in text
        assert read(path, columns=["a"]).num_rows == 10_001

    def test_a_sequence_without_feature_lists_has_to_be_told(self, put: Any) -> None:
        path = put(sub(1, message(user=ints(7), uid=ints(1, 2))))
        assert read(path).to_pylist() == [{"user": 7, "uid": [1, 2]}]
        rows = read(path, schema=read_schema(path, grouped=True))
        assert rows.to_pydict() == {"user": [7, 7], "uid": [1, 2]}

    def test_more_features_than_room(self, put: Any) -> None:
        names = [f"f{i}" for i in range(300)]
        path = put(*[example(**{n: ints(1) for n in names[:k]}) for k in (1, 100, 300)])
        rows = read(path)
        assert rows.column_names == names
        assert [rows["f99"].null_count, rows["f299"].null_count] == [1, 2]


class TestEncodings:
    def test_unpacked_values(self, put: Any) -> None:
        whole = b"".join(b"\x08" + varint(v) for v in (5, -1)) + sub(1, varint(300))
        parts = b"".join(b"\x0d" + np.float32(v).tobytes() for v in (0.5, 2.0))
        rows = read(put(example(i=sub(3, whole), f=sub(2, parts))))
        assert rows.to_pydict() == {"i": [[5, -1, 300]], "f": [[0.5, 2.0]]}

    def test_unknown_fields_are_skipped(self, put: Any) -> None:
        extra = b"\x78\x01" + b"\x79" + bytes(8) + b"\x7d" + bytes(4) + sub(15, b"?")
        feature = extra + sub(3, extra + sub(1, varint(4)) + extra)
        entry = extra + sub(1, b"a") + extra + sub(2, feature)
        assert read(put(extra + sub(1, extra + sub(1, entry)) + extra))["a"].to_pylist() == [4]

    def test_the_order_of_features_may_change(self, put: Any) -> None:
        first = {"a": ints(1), "b": ints(2), "c": ints(3)}
        path = put(example(**first), example(**dict(reversed(first.items()))), example(b=ints(2)))
        assert read(path).to_pylist()[1:] == [
            {"a": 1, "b": 2, "c": 3},
            {"a": None, "b": 2, "c": None},
        ]

    def test_a_record_larger_than_what_is_read_at_once(self, put: Any) -> None:
        text = bytes(9_000_000)
        rows = read(put(example(a=texts(b"x")), example(a=texts(text)), example(a=texts(b"y"))))
        assert [len(v) for v in rows["a"].to_pylist()] == [1, 9_000_000, 1]

    def test_several_members_of_a_compressed_file(self, tmp_path: Path) -> None:
        data = framed(example(a=ints(1))), framed(example(a=ints(2)))
        for squeeze in (gzip.compress, zlib.compress):
            path = tmp_path / "any.name"
            path.write_bytes(squeeze(data[0]) + squeeze(data[1]))
            assert read(path)["a"].to_pylist() == [1, 2]

    def test_batches_are_small_and_columns_chosen(self, put: Any) -> None:
        path = put(*[example(a=ints(i), b=ints(1)) for i in range(10)])
        batches = list(read_batches(path, ["a"], batch_rows=3))
        assert [b.num_rows for b in batches] == [3, 3, 3, 1]
        assert pa.Table.from_batches(batches).to_pydict() == {"a": list(range(10))}


class TestGroups:
    def test_a_batch_may_split_an_entity(self, put: Any) -> None:
        record = sequence({"e": texts(b"x"), "u": ints(*range(7))}, w=[floats(1.0)] * 7)
        batches = list(read_batches(put(record, record), batch_rows=3))
        assert max(b.num_rows for b in batches) == 3
        rows = pa.Table.from_batches(batches)
        assert rows["u"].to_pylist() == [*range(7)] * 2
        assert set(rows["e"].to_pylist()) == {"x"}

    def test_rows_are_counted_by_what_is_not_read(self, put: Any) -> None:
        path = put(sequence({"e": ints(1)}, w=[floats(1.0)] * 3), sequence({"e": ints(2)}))
        assert read(path, columns=["e"])["e"].to_pylist() == [1, 1, 1, 2]

    def test_lengths_that_contradict(self, put: Any) -> None:
        good = sequence({"e": ints(1), "u": ints(1, 2)}, w=[b"", b""])
        bad = sequence({"e": ints(1), "u": ints(1)}, w=[b"", b""])
        text = refusal(lambda: read(put(good, bad)))
        assert text.endswith("record 2: feature 'u' has 1 values or lists for 2 rows")
        bad = sequence({"e": ints(1), "u": ints(1, 2)}, w=[b""])
        assert "feature 'w' has 1 values or lists for 2 rows" in refusal(lambda: read(put(bad)))

    def test_both_kinds_of_record(self, put: Any) -> None:
        path = put(example(a=ints(1)), sequence({"a": ints(1)}))
        schema = read_schema(path, records=1)
        assert "record 2: is a SequenceExample" in refusal(lambda: read(path, schema=schema))


class TestErrors:
    def test_no_file(self, tmp_path: Path) -> None:
        assert "no such file" in refusal(lambda: read(tmp_path / "x"))
        assert "can't be read" in refusal(lambda: read(tmp_path))

    @pytest.mark.parametrize("data", [b"", gzip.compress(b""), zlib.compress(b"")])
    def test_empty(self, tmp_path: Path, data: bytes) -> None:
        path = tmp_path / "rows.tfrecord"
        path.write_bytes(data)
        assert "is empty: it holds no record" in refusal(lambda: read(path))

    @pytest.mark.parametrize("data", [b"uid,response\n1,0\n", b"PAR1" + bytes(30), b"\x1f\x8bnot"])
    def test_no_tfrecord(self, tmp_path: Path, data: bytes) -> None:
        path = tmp_path / "rows.tfrecord"
        path.write_bytes(data)
        assert "no TFRecord" in refusal(lambda: read(path)) or data[:1] == b"\x1f"

    @pytest.mark.parametrize("squeeze", [bytes, gzip.compress, zlib.compress])
    def test_cut_off(self, tmp_path: Path, squeeze: Callable[[bytes], bytes]) -> None:
        path = tmp_path / "rows.tfrecord"
        data = squeeze(framed(*[example(a=ints(i)) for i in range(3)]))
        for size in (5, 11, len(data) // 2, len(data) - 1):
            path.write_bytes(data[:size])
            assert "cut off" in refusal(lambda: read(path))

    def test_every_flipped_bit_is_found(self, put: Any) -> None:
        path = put(example(a=ints(1)), example(a=ints(2)))
        data = path.read_bytes()
        for bit in range(0, 8 * len(data), 3):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            number = 1 if bit < 4 * len(data) else 2
            assert f"{path}: record {number}: the checksum" in refusal(lambda: read(path))

    def test_a_length_that_is_a_lie(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.tfrecord"
        for length in (1 << 29, 1 << 40, 1 << 63):
            head = length.to_bytes(8, "little")
            checksum = masked_checksum(np.frombuffer(head, np.uint8), 0, 8)
            path.write_bytes(head + checksum.to_bytes(4, "little") + bytes(100))
            assert "record 1: " in refusal(lambda: read(path))

    @pytest.mark.parametrize(
        "record",
        [
            b"hello",
            sub(1, b"hello"),
            example(a=b"\x1a\x05\x0a\x09\x01"),
            example(a=sub(3, sub(1, b"\xff"))),
            example(a=sub(3, sub(1, b"\xff" * 10 + b"\x01"))),
            example(a=sub(2, sub(1, b"123"))),
            example(a=ints(1) + ints(2)),
            b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            sequence({}, a=[b"\x08"]),
        ],
    )
    def test_malformed(self, put: Any, record: bytes) -> None:
        text = refusal(lambda: read(put(example(b=ints(1)), record)))
        assert "record 2: " in text and "malformed" in text

    def test_a_feature_that_changes(self, put: Any) -> None:
        path = put(example(a=ints(1)), example(a=floats(1.0)))
        assert "record 2: feature 'a' holds floats, not integers" in refusal(lambda: read(path))
        path = put(example(a=ints(1)), sequence({}, a=[b""]))
        assert "record 1: feature 'a' holds integers, not" in refusal(lambda: read(path))
        text = refusal(lambda: read(put(example(a=ints(1)) + example(a=ints(1)))))
        assert "record 1: feature 'a' stands twice" in text

    def test_text_that_is_needed(self, put: Any) -> None:
        path = put(example(a=texts(b"ok")), example(a=texts(b"\xc3")))
        schema = pa.schema({"a": pa.string()})
        text = refusal(lambda: read(path, schema=schema))
        assert text.endswith("record 2: feature 'a' is text that is not UTF-8")
        bad_name = sub(1, sub(1, sub(1, b"\xff") + sub(2, ints(1))))
        assert "name of a feature is not UTF-8" in refusal(lambda: read(put(bad_name)))

    def test_unknown_column(self, put: Any) -> None:
        text = refusal(lambda: read(put(example(response=ints(1))), columns=["respons"]))
        assert "has no feature 'respons' (did you mean 'response'?)" in text

    def test_too_many_features(self, put: Any, monkeypatch: Any) -> None:
        monkeypatch.setattr("gdmix.data.tfrecord.columns._MOST_FEATURES", 100)
        path = put(example(**{f"f{i}": ints(1) for i in range(101)}))
        assert "more than 100 features" in refusal(lambda: read(path))


ROWS = {
    "uid": pa.array([0, -1, 2**63 - 1, None]),
    "flag": pa.array([True, False, None, True]),
    "weight": pa.array([1.5, None, -2.0, 0.25]),
    "name": pa.array(["é", "", None, "zz"], pa.large_string()),
    "raw": pa.array([b"\xff", b"", None, b"x"]),
    "code": pa.array(["p", "q", None, "p"]).dictionary_encode(),
    "ints": pa.array([[1, -2, 300], [], None, [5]], pa.large_list(pa.int16())),
    "floats": pa.array([[0.5], [], None, [1.0, 2.0]], pa.list_(pa.float64())),
    "texts": pa.array([["a", ""], [], None, ["b"]], TEXTS),
    "pair": pa.array([[1, 2], None, [3, 4], [5, 6]], pa.list_(pa.int64(), 2)),
    "none": pa.nulls(4),
}
READ_AS = {
    "uid": pa.int64(),
    "flag": pa.int64(),
    "weight": pa.float32(),
    "name": pa.string(),
    "raw": pa.binary(),
    "code": pa.string(),
    "ints": INTS,
    "floats": FLOATS,
    "texts": TEXTS,
    "pair": INTS,
    "none": pa.null(),
}


class TestWriting:
    @pytest.mark.parametrize("suffix", ["", ".gz", ".deflate"])
    @pytest.mark.parametrize("offset", [0, 1])
    def test_examples(self, tmp_path: Path, suffix: str, offset: int) -> None:
        rows = pa.table(ROWS).slice(offset)
        path = tmp_path / f"rows.tfrecord{suffix}"
        write_examples(path, rows.to_batches(max_chunksize=2))
        starts = {"": b"", ".gz": b"\x1f\x8b", ".deflate": b"x\x9c"}
        assert path.read_bytes().startswith(starts[suffix])
        back = read(path, schema=pa.schema(READ_AS))
        assert back.to_pylist() == rows.to_pylist()

    def test_groups(self, tmp_path: Path) -> None:
        rows = pa.table(
            {
                "uid": pa.array([1, 2, 3, 4, 5, 6]),
                "user": ["u1", "u1", "u1", "u2", "u3", "u3"],
                "weight": pa.array([1, 2, 3, None, 5, 6], pa.float32()),
                "b_indices": pa.array([[1], [], None, [2, 3], [4], [5]], INTS),
                "b_values": pa.array([[1], [], None, [2, 3], [4], [5]], FLOATS),
            }
        )
        path = tmp_path / "rows.tfrecord"
        for size in (1, 2, 6):
            write_sequence_examples(path, rows.to_batches(max_chunksize=size), "user")
            assert read(path).select(rows.column_names).equals(rows)
        only_scalars = rows.select(["user", "uid"])
        write_sequence_examples(path, only_scalars.to_batches(), "user")
        assert read(path).equals(only_scalars)

    def test_an_entity_of_many_batches(self, tmp_path: Path) -> None:
        n = 40_000
        rows = pa.table({"user": np.repeat([1, 2, 3], [5, n, 7]), "uid": np.arange(n + 12)})
        write_sequence_examples(tmp_path / "a", rows.to_batches(), "user")
        assert read(tmp_path / "a").equals(rows)

    @pytest.mark.parametrize(
        ("column", "text"),
        [
            (pa.array([[1, None]]), "column 'x' has a null within a list"),
            (pa.array([2**63], pa.uint64()), "column 'x' has an integer beyond 64 bits"),
            (pa.array([{"a": 1}]), "column 'x' is struct<a: int64>, which no tf.train.Feature"),
        ],
    )
    def test_what_cannot_be_written(self, tmp_path: Path, column: pa.Array, text: str) -> None:
        path = tmp_path / "rows.tfrecord"
        batches = pa.table({"x": column}).to_batches()
        assert text in refusal(lambda: write_examples(path, batches))
        assert not list(tmp_path.iterdir())

    def test_groups_that_cannot_be_written(self, tmp_path: Path) -> None:
        def write(**columns: Any) -> None:
            batches = pa.table(columns).to_batches()
            write_sequence_examples(tmp_path / "a", batches, "user")

        text = refusal(lambda: write(user=[1, 1, 2, 2], uid=[1, 2, 3, None]))
        assert "column 'uid' is null in some rows of user 2" in text
        assert "'users' is missing (did you mean 'user'?)" in refusal(
            lambda: write_sequence_examples(
                tmp_path / "a", pa.table({"user": [1]}).to_batches(), "users"
            )
        )
        assert "'user' has a null" in refusal(lambda: write(user=[1, None]))
        assert "'user' is double, expected" in refusal(lambda: write(user=[1.0]))

    def test_no_rows_and_no_columns(self, tmp_path: Path) -> None:
        write_examples(tmp_path / "a", [])
        write_sequence_examples(tmp_path / "b", [], "user")
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == b""


def column_of(item: st.SearchStrategy[Any], kind: pa.DataType) -> st.SearchStrategy[pa.Array]:
    scalars = st.lists(st.none() | item, min_size=3, max_size=3)
    lists = st.lists(st.none() | st.lists(item, max_size=4), min_size=3, max_size=3)
    return scalars.map(lambda v: pa.array(v, kind)) | lists.map(
        lambda v: pa.array(v, pa.list_(kind))
    )


COLUMNS = (
    column_of(st.integers(-(2**63), 2**63 - 1), pa.int64())
    | column_of(st.floats(width=32, allow_nan=False), pa.float32())
    | column_of(st.text(max_size=5), pa.string())
    | column_of(st.binary(max_size=200), pa.binary())
)
RECORDS = [
    example(a=ints(1, 300), b=floats(0.5, 1.0), c=texts(b"text", b"")),
    sequence({"e": texts(b"id"), "u": ints(1, 2)}, w=[floats(0.5), b""], x=[ints(1), ints(2, 3)]),
]
EDITS = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "rows.tfrecord"


def edited(data: bytes, edits: list[tuple[int, int]], keep: float) -> bytes:
    changed = bytearray(data[: max(1, int(len(data) * keep))])
    for where, value in edits:
        changed[where % len(changed)] = value
    return bytes(changed)


def read_whatever(path: Path) -> None:
    """Read what may be anything: rows, or an error of one line."""
    for grouped in (None, True):
        try:
            read(path, schema=read_schema(path, grouped=grouped))
        except DataError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)


class TestAnyBytes:
    @settings(FUZZ, max_examples=100)
    @given(columns=st.lists(COLUMNS, min_size=1, max_size=4))
    def test_what_is_written_is_read(self, scratch: Path, columns: list[pa.Array]) -> None:
        rows = pa.table(columns, [f"c{i}" for i in range(len(columns))])
        write_examples(scratch, rows.to_batches())
        assert read(scratch, schema=rows.schema).equals(rows)

    @settings(FUZZ)
    @given(
        record=st.sampled_from(RECORDS),
        edits=EDITS,
        keep=st.sampled_from([1.0, 1.0, 0.7]),
        more=st.binary(max_size=20),
    )
    def test_mutated_records(
        self, scratch: Path, record: bytes, edits: Any, keep: float, more: bytes
    ) -> None:
        scratch.write_bytes(framed(RECORDS[1], edited(record, edits, keep) + more, more))
        read_whatever(scratch)

    @settings(FUZZ, max_examples=100)
    @given(edits=EDITS, keep=st.floats(0, 1), squeeze=st.sampled_from([bytes, gzip.compress]))
    def test_mutated_files(self, scratch: Path, edits: Any, keep: float, squeeze: Any) -> None:
        scratch.write_bytes(edited(squeeze(framed(*RECORDS[:1] * 3)), edits, keep))
        read_whatever(scratch)

    @settings(FUZZ, max_examples=100)
    @given(data=st.binary(max_size=100))
    def test_random_bytes(self, scratch: Path, data: bytes) -> None:
        for content in (data, framed(data), framed(sub(1, sub(1, data)))):
            scratch.write_bytes(content)
            read_whatever(scratch)


class TestTensorMetadata:
    def test_round_trip(self, tmp_path: Path) -> None:
        path = tmp_path / "tensor_metadata.json"
        features = (TensorSpec("bag", "float", (20,), True), TensorSpec("uid", "long"))
        for metadata in (
            TensorMetadata(features, (TensorSpec("response", "int"),), 80),
            TensorMetadata(features),
        ):
            metadata.write(path)
            assert TensorMetadata.read(path) == metadata

    def test_as_gdmix_writes_it(self, tmp_path: Path) -> None:
        path = tmp_path / "tensor_metadata.json"
        features = [
            {"name": "weight", "dtype": "float", "shape": [], "isSparse": False},
            {"name": "global", "dtype": "double", "shape": [44], "isSparse": True},
        ]
        labels = [{"name": "response", "dtype": "int", "shape": [], "isSparse": False}]
        path.write_text(json.dumps({"features": features, "labels": labels}))
        assert {f.name: f.type for f in TensorMetadata.read(path).fields()} == {
            "weight": pa.float32(),
            "global_indices": INTS,
            "global_values": FLOATS,
            "response": pa.int64(),
        }

    @pytest.mark.parametrize(
        ("text", "what"),
        [
            ("{", "can't be read as tensor metadata: Expecting property name"),
            ("[]", "expected an object with 'features' and 'labels'"),
            ('{"features": {}}', "features: expected a list"),
            ('{"features": [{}]}', "features[0]: expected an object with a 'name'"),
            ('{"labels": [{"name": "y", "dtype": "int64"}]}', "labels[0] 'y': dtype 'int64' is"),
            ('{"features": [{"name": "y", "dtype": "int", "shape": "[]"}]}', "'y': shape '[]' is"),
            (
                '{"features": [{"name": "y", "dtype": "int", "isSparse": 1}]}',
                "'y': isSparse 1 is neither",
            ),
            ('{"numberOfTrainingSamples": "9"}', "numberOfTrainingSamples: expected"),
            ('{"features": ' + "[" * 100_000, "can't be read as tensor metadata"),
        ],
    )
    def test_what_is_wrong(self, tmp_path: Path, text: str, what: str) -> None:
        path = tmp_path / "tensor_metadata.json"
        path.write_text(text)
        message = refusal(lambda: TensorMetadata.read(path))
        assert message.startswith(f"{path}: ") and what in message

    def test_no_file(self, tmp_path: Path) -> None:
        assert "No such file" in refusal(lambda: TensorMetadata.read(tmp_path / "x.json"))


class TestFeatureList:
    def test_round_trip(self, tmp_path: Path) -> None:
        features = [
            *(("age", ""), ("title", "Crime, the"), ("a b", '"quoted"'), ("é", "日")),
            *(("a,b", ""), ("c\n", "d\r")),
        ]
        write_feature_list(tmp_path / "list", features)
        index = FeatureIndex.from_feature_list(tmp_path / "list")
        assert list(zip(index.names.to_pylist(), index.terms.to_pylist(), strict=True)) == features
        first = (tmp_path / "list").read_text(encoding="utf-8").splitlines()[:2]
        assert first == ["age,", 'title,"Crime, the"']
