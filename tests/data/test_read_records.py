"""Avro and TFRecord rows: everything that works from Parquet works from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gdmix import FixedEffect, MixedModel, RandomEffect
from gdmix.data.avro.write import write_batches
from gdmix.data.read import open_rows
from gdmix.data.tfrecord.metadata import TensorMetadata, TensorSpec
from gdmix.data.tfrecord.write import write_examples, write_sequence_examples
from gdmix.errors import DataError

NTV = pa.list_(pa.struct([("name", pa.string()), ("term", pa.string()), ("value", pa.float64())]))
NTV_AVRO = {
    "type": "array",
    "items": {
        "type": "record",
        "name": "FeatureAvro",
        "fields": [
            {"name": "name", "type": "string"},
            {"name": "term", "type": ["string", "null"], "default": None},  # as Photon ML has it
            {"name": "value", "type": "double"},
        ],
    },
}
PHOTON = {
    "type": "record",
    "name": "TrainingExampleAvro",
    "namespace": "com.linkedin.photon.avro.generated",
    "fields": [
        {"name": "uid", "type": ["null", "string", "long", "int"], "default": None},
        {"name": "response", "type": "double"},
        {"name": "features", "type": NTV_AVRO},
        {"name": "weight", "type": ["null", "double"], "default": None},
        {"name": "offset", "type": ["null", "double"], "default": None},
        {
            "name": "metadataMap",
            "type": ["null", {"type": "map", "values": "string"}],
            "default": None,
        },
    ],
}


def indexed_rows(n: int = 400, seed: int = 0) -> pa.Table:
    """Return rows as GDMix has them; every tenth has no feature at all."""
    rng = np.random.default_rng(seed)
    sizes = np.where(np.arange(n) % 10 == 0, 0, rng.integers(1, 4, n))
    indices = [sorted(rng.choice(5, size, replace=False)) for size in sizes]
    values = [np.round(rng.normal(size=size), 3) for size in sizes]
    total = np.array([v.sum() for v in values])
    return pa.table(
        {
            "uid": pa.array(np.arange(n)),
            "user": pa.array(rng.integers(0, 9, n)),
            "item": pa.array([f"i{k}" for k in rng.integers(0, 4, n)]),
            "response": pa.array((rng.random(n) < 1 / (1 + np.exp(-total))).astype(np.int64)),
            "weight": pa.array(rng.integers(1, 3, n), pa.float32()),
            "bag_indices": pa.array(indices, pa.list_(pa.int64())),
            "bag_values": pa.array(values, pa.list_(pa.float32())),
        }
    )


def photon_rows(rows: pa.Table) -> pa.Table:
    """Return the same rows as Photon ML has them."""
    ntv = [
        [{"name": "bag", "term": str(i), "value": float(v)} for i, v in zip(*pair, strict=True)]
        for pair in zip(
            rows["bag_indices"].to_pylist(), rows["bag_values"].to_pylist(), strict=True
        )
    ]
    ids = [
        [("user", str(u)), ("item", i)]
        for u, i in zip(rows["user"].to_pylist(), rows["item"].to_pylist(), strict=True)
    ]
    return pa.table(
        {
            "uid": pa.array([str(u) for u in rows["uid"].to_pylist()]),
            "response": rows["response"].cast(pa.float64()),
            "features": pa.array(ntv, NTV),
            "weight": rows["weight"].cast(pa.float64()),
            "offset": pa.nulls(len(rows), pa.float64()),
            "metadataMap": pa.array(ids, pa.map_(pa.string(), pa.string())),
        }
    )


def write_avro(rows: pa.Table, path: Path, schema: dict[str, Any] = PHOTON) -> Path:
    write_batches(path, schema, rows.to_batches(max_chunksize=150))
    return path


def write_tfrecord(rows: pa.Table, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_examples(path, rows.to_batches(max_chunksize=150))
    return path


def model(features: Any) -> MixedModel:
    return MixedModel(
        [
            FixedEffect("global", features=["bag"]),
            RandomEffect("per-user", entity="user", features=["bag"]),
            RandomEffect("per-item", entity="item"),
        ],
        features={"bag": features},
        passes=2,
    )


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    return indexed_rows()


@pytest.fixture(scope="module")
def expected(rows: pa.Table) -> np.ndarray:
    return model(["bag_indices", "bag_values"]).fit(rows).predict(rows, kind="link")


class TestTFRecord:
    @pytest.mark.parametrize("name", ["a.tfrecord", "a.tfrecord.gz", "a.tfrecord.deflate"])
    def test_model_is_that_of_the_table(
        self, rows: pa.Table, expected: np.ndarray, tmp_path: Path, name: str
    ) -> None:
        path = write_tfrecord(rows, tmp_path / name)
        fitted = model(["bag_indices", "bag_values"]).fit(path)
        np.testing.assert_array_equal(fitted.predict(path, kind="link"), expected)

    def test_folder_of_parts_that_tell_different_things(self, tmp_path: Path) -> None:
        # One value each in the first file, none in the second, several in the third; Spark's
        # empty partition is a file of no bytes.
        parts = [[[1.0], [2.0]], [None, None], [[1.0, 2.0], [3.0]]]
        for k, part in enumerate(parts):
            table = pa.table({"k": [k, k], "x": pa.array(part, pa.list_(pa.float32()))})
            if k == 0:
                table = table.set_column(1, "x", pa.array([1.0, 2.0], pa.float32()))
            write_tfrecord(table, tmp_path / f"part-{k}.tfrecord")
        (tmp_path / "part-3.tfrecord").write_bytes(b"")
        table = open_rows(tmp_path).read(["k", "x"])
        assert table.schema.types == [pa.int64(), pa.list_(pa.float32())]
        assert table["k"].to_pylist() == [0, 0, 1, 1, 2, 2]
        assert table["x"].to_pylist() == [[1], [2], None, None, [1, 2], [3]]

    def test_types_that_differ_are_promoted_or_reported(self, tmp_path: Path) -> None:
        write_tfrecord(pa.table({"x": [1], "y": [1]}), tmp_path / "a.tfrecord")
        write_tfrecord(pa.table({"x": [0.5], "y": ["t"]}), tmp_path / "b.tfrecord")
        source = open_rows(tmp_path)
        assert source.read(["x"])["x"].to_pylist() == [1.0, 0.5]
        with pytest.raises(DataError, match=r"b\.tfrecord: column 'y' is string, in .* int64"):
            source.read(["y"])

    def test_a_single_empty_file_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "a.tfrecord").write_bytes(b"")
        with pytest.raises(DataError, match="a.tfrecord"):
            open_rows(tmp_path)

    @pytest.mark.parametrize("place", ["metadata", ".", "trainingData"])
    def test_metadata_have_the_last_word(self, tmp_path: Path, place: str) -> None:
        data = tmp_path / "trainingData"
        rows = pa.table({"x": pa.array([1.0, 2.0], pa.float32()), "v": pa.array([[1.0, 2.0]] * 2)})
        write_tfrecord(rows, data / "partitionId=0" / "active" / "a.tfrecord")
        specs = (TensorSpec("x", "float", (3,), is_sparse=False), TensorSpec("v", "float", (2,)))
        (tmp_path / place).mkdir(exist_ok=True)
        TensorMetadata((*specs, TensorSpec("late", "int"))).write(
            tmp_path / place / "tensor_metadata.json"
        )
        source = open_rows(data)
        types = {f.name: f.type for f in source.schema}
        assert types == {
            "x": pa.list_(pa.float32(), 3),
            "v": pa.list_(pa.float32(), 2),
            "late": pa.int64(),
        }
        table = source.read(["v", "late"])
        assert table["v"].to_pylist() == [[1, 2], [1, 2]]
        assert table["late"].null_count == 2
        with pytest.raises(DataError, match="'x' has a list of 1 numbers, .* says 3"):
            source.read(["x"])

    def test_grouped_records_are_rows(self, rows: pa.Table, tmp_path: Path) -> None:
        by_user = rows.sort_by([("user", "ascending"), ("uid", "ascending")])
        write_sequence_examples(tmp_path / "a.tfrecord", by_user.to_batches(), "user")
        columns = ["uid", "user", "response", "weight"]
        assert open_rows(tmp_path).read(columns).to_pydict() == by_user.select(columns).to_pydict()

    def test_damage_names_file_and_record(self, rows: pa.Table, tmp_path: Path) -> None:
        path = write_tfrecord(rows, tmp_path / "a.tfrecord")
        content = bytearray(path.read_bytes())
        content[-10] ^= 1
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"^[^\n]*a\.tfrecord: record 400: [^\n]*$"):
            model(["bag_indices", "bag_values"]).fit(path)

    def test_messages_are_those_of_other_formats(self, rows: pa.Table, tmp_path: Path) -> None:
        bad = rows.set_column(3, "response", pa.array([7] * len(rows)))
        with pytest.raises(DataError, match="column 'response': 400 rows with a label that is"):
            model(["bag_indices", "bag_values"]).fit(write_tfrecord(bad, tmp_path / "a.tfrecord"))
        with pytest.raises(DataError, match="'bag_indicse' is missing .did you mean"):
            model(["bag_indicse", "bag_values"]).fit(tmp_path / "a.tfrecord")


class TestAvro:
    def test_model_is_that_of_the_table(
        self, rows: pa.Table, expected: np.ndarray, tmp_path: Path
    ) -> None:
        photon = photon_rows(rows)
        for k in range(2):
            write_avro(photon.slice(200 * k, 200), tmp_path / f"part-0000{k}.avro")
        fitted = model(["features"]).fit(tmp_path)
        np.testing.assert_allclose(fitted.predict(tmp_path, kind="link"), expected, atol=1e-9)

    def test_columns_of_photon_ml(self, rows: pa.Table, tmp_path: Path) -> None:
        source = open_rows(write_avro(photon_rows(rows), tmp_path / "a.avro"))
        types = {f.name: f.type for f in source.schema}
        assert types["uid"] == pa.int64()
        assert types["user"] == types["item"] == pa.string()
        table = source.read(["item", "uid", "weight", "offset", "user"])
        assert table["item"].to_pylist() == rows["item"].to_pylist()
        assert table["uid"].to_pylist() == rows["uid"].to_pylist()
        assert table["user"].to_pylist() == [str(u) for u in rows["user"].to_pylist()]
        assert table["offset"].to_pylist() == [0.0] * len(rows)

    def test_nulls_that_mean_the_default(self, tmp_path: Path) -> None:
        photon = photon_rows(indexed_rows(4))
        weights = pa.array([2.0, None, 0.5, None])
        photon = photon.set_column(3, "weight", weights)
        photon = photon.set_column(0, "uid", pa.nulls(4, pa.string()))
        source = open_rows(write_avro(photon, tmp_path / "a.avro"))
        assert source.read(["weight"])["weight"].to_pylist() == [2.0, 1.0, 0.5, 1.0]
        assert "uid" not in source.schema.names

    def test_field_goes_before_entry(self, tmp_path: Path) -> None:
        fields = [
            {"name": "user", "type": "string"},
            {"name": "metadataMap", "type": {"type": "map", "values": "string"}},
        ]
        table = pa.table(
            {
                "user": ["field"],
                "metadataMap": pa.array(
                    [[("user", "entry"), ("x", "1")]], pa.map_("string", "string")
                ),
            }
        )
        schema = {"type": "record", "name": "r", "fields": fields}
        source = open_rows(write_avro(table, tmp_path / "a.avro", schema))
        assert source.read(["user", "x"]).to_pydict() == {"user": ["field"], "x": ["1"]}

    def test_uid_that_is_no_number(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        photon = photon_rows(indexed_rows(3))
        photon = photon.set_column(0, "uid", pa.array(["a", "b", "c"]))
        path = write_avro(photon, tmp_path / "a.avro")
        assert "uid" not in open_rows(path).schema.names
        assert "rows go by their position" in caplog.text
        late = photon_rows(indexed_rows(20_000))
        late = late.set_column(0, "uid", pa.array([*map(str, range(19_999)), "x"]))
        with pytest.raises(DataError, match="column 'uid': .*; use integers"):
            open_rows(write_avro(late, tmp_path / "b.avro")).read(["uid"])

    def test_damage_names_file_and_block(self, rows: pa.Table, tmp_path: Path) -> None:
        path = write_avro(photon_rows(rows), tmp_path / "a.avro")
        whole = path.read_bytes()
        for kept in (0, 10, len(whole) // 2, len(whole) - 5):
            path.write_bytes(whole[:kept])
            with pytest.raises(DataError, match=r"^[^\n]*a\.avro: [^\n]*$"):
                model(["features"]).fit(path)

    def test_one_entity_column_in_two_formats(self, rows: pa.Table, tmp_path: Path) -> None:
        # Text in one file, integers in the other: said, not guessed.
        write_avro(photon_rows(rows), tmp_path / "a.avro")
        pq.write_table(rows, tmp_path / "b.parquet")
        with pytest.raises(DataError, match="column 'user' is int64, in .*a.avro it is string"):
            open_rows(tmp_path).read(["user"])


def test_metadata_that_are_damaged_are_named(rows: pa.Table, tmp_path: Path) -> None:
    write_tfrecord(rows, tmp_path / "trainingData" / "a.tfrecord")
    bad = tmp_path / "tensor_metadata.json"
    bad.write_text(json.dumps({"features": [{"name": "x", "dtype": "complex"}]}))
    with pytest.raises(DataError, match="tensor_metadata.json: features.0. 'x': dtype"):
        open_rows(tmp_path / "trainingData")
