from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from gdmix.config import AvroLayout, ColumnRoles, FeatureBag
from gdmix.data import avro
from gdmix.data.avro.container import AvroFile
from gdmix.data.avro.write import write_batches
from gdmix.data.feature_index import FeatureIndex
from gdmix.data.gdmix_layout import java_hash, partitions_of
from gdmix.errors import ModelError
from gdmix.model.coefficients import FixedCoefficients, RandomCoefficients
from gdmix.model.linear import LinearModel
from gdmix.model.mixed_model import TrainedModel
from gdmix.model.photon_avro import natural_type, read_models, write_models
from gdmix.model.store import read_model, write_model

LOGISTIC = "com.linkedin.photon.ml.supervised.classification.LogisticRegressionModel"
AGE = FeatureIndex(["age", "gender", "gender", "ü, x"], ["", "F", "M", "a,b"])
SIZE = FeatureIndex(["size"], [""])


def fixed(intercept: bool = True) -> LinearModel:
    values = np.array([0.1, 1 / 3, 0.0, 1e-300, -2.5, 5e-5])
    values[0] *= intercept
    return LinearModel(("user", "movie"), intercept, FixedCoefficients(values))


def random(entities: pa.Array, intercept: bool = True) -> LinearModel:
    coefficients = RandomCoefficients(
        entities,
        np.array([0, 3, 4, 6]),
        np.array([0, 1, 4, 0, 0, 2], np.uint32),
        np.array([0.5, -1 / 7, 1e-5, 2.0, 0.25, 1e17]),
    )
    if not intercept:
        coefficients.values[[0, 3, 4]] = 0
    return LinearModel(("user",), intercept, coefficients, "user_id")


IDS = pa.array([-5, 3, 20])
TEXTS = pa.array(["", "a b", "ü"], pa.large_string())


def trained(intercept: bool = True) -> TrainedModel:
    return TrainedModel(
        "poisson_regression",
        ColumnRoles(),
        {"user": FeatureBag(columns=("age",)), "movie": FeatureBag(columns=("size",))},
        {"user": AGE, "movie": SIZE},
        {
            "global": fixed(intercept),
            "per-user": random(IDS, intercept),
            "per-item": random(TEXTS, intercept),
            "level": LinearModel((), True, FixedCoefficients(np.array([0.75]))),
        },
    )


def assert_equal(a: LinearModel, b: LinearModel) -> None:
    assert (a.features, a.intercept, a.entity) == (b.features, b.intercept, b.entity)
    for name in ("values", "indptr", "columns"):
        x, y = getattr(a.coefficients, name, None), getattr(b.coefficients, name, None)
        np.testing.assert_array_equal(x, y)
    if isinstance(a.coefficients, RandomCoefficients):
        assert isinstance(b.coefficients, RandomCoefficients)
        assert a.coefficients.entities.equals(b.coefficients.entities)


class TestRoundTrip:
    @pytest.mark.parametrize("intercept", [True, False])
    @pytest.mark.parametrize("partitions", [1, 4])
    def test_model_folder(self, tmp_path: Path, intercept: bool, partitions: int) -> None:
        model = trained(intercept)
        layout = AvroLayout(partitions={"per-user": partitions, "per-item": partitions})
        write_model(model, tmp_path, layout)
        names = sorted(p.name for p in (tmp_path / "per-user/models").iterdir())
        assert names == [f"part-0000{k}.avro" for k in range(partitions)]
        assert (tmp_path / "global/models/global_model.avro").exists()
        back = read_model(tmp_path)
        assert back.task == "poisson_regression"
        for name, coordinate in model.coordinates.items():
            assert_equal(back.coordinates[name], coordinate)

    def test_models_that_lie_in_folders(self, tmp_path: Path) -> None:
        """Those in Parquet become Avro; those in Avro stay, also where they are to be."""
        layout = AvroLayout(partitions={"per-user": 2})
        write_model(trained(), tmp_path / "parquet")
        write_model(read_model(tmp_path / "parquet", stored=True), tmp_path / "avro", layout)
        stored = read_model(tmp_path / "avro", stored=True)
        for folder in (tmp_path / "avro", tmp_path / "copy"):
            write_model(stored, folder, AvroLayout())
            assert not list(folder.glob("*/models/*.parquet"))
            assert len(list(folder.glob("per-user/models/*"))) == 2
            for name, coordinate in read_model(folder).linear.items():
                assert_equal(coordinate, trained().linear[name])

    def test_many_models_in_pieces(self, tmp_path: Path, monkeypatch: Any) -> None:
        monkeypatch.setattr("gdmix.model.photon_avro._COEFFICIENTS_PER_PIECE", 50)
        rng = np.random.default_rng(0)
        counts = rng.integers(0, 12, 400)
        columns = [
            np.concatenate(([0], np.sort(rng.choice(np.arange(1, 40), c, replace=False))))
            for c in counts
        ]
        model = LinearModel(
            ("bag",),
            True,
            RandomCoefficients(
                pa.array(np.arange(400) * 7 - 100),
                np.concatenate(([0], np.cumsum(counts + 1))),
                np.concatenate(columns).astype(np.uint32),
                rng.normal(size=int((counts + 1).sum())),
            ),
            "user",
        )
        index = FeatureIndex([f"n{i}" for i in range(39)], [str(i % 3) for i in range(39)])
        features = (
            pa.concat_arrays([pa.array(["(INTERCEPT)"], pa.large_string()), index.names]),
            pa.concat_arrays([pa.array([""], pa.large_string()), index.terms]),
        )
        write_models(model, features, "logistic_regression", tmp_path)
        read = read_models([tmp_path / "part-00000.avro"])
        back = read.random([index], pa.int64())
        assert_equal(LinearModel(("bag",), True, back, "user"), model)


class TestRecords:
    def test_what_photon_ml_reads(self, tmp_path: Path) -> None:
        model = trained()
        features = model.feature_names("per-user")
        write_models(random(IDS), features, "logistic_regression", tmp_path, cut=1e-4)
        path = tmp_path / "part-00000.avro"
        schema = AvroFile(path).schema
        assert schema["name"] == "BayesianLinearModelAvro"
        assert schema["namespace"] == "com.linkedin.photon.avro.generated"
        names = [f["name"] for f in schema["fields"]]
        assert names == ["modelId", "modelClass", "means", "variances", "lossFunction"]
        (batch,) = avro.read_batches(path)
        first, second, _ = batch.to_pylist()
        assert first == {
            "modelId": "-5",
            "modelClass": LOGISTIC,
            "means": [  # 1e-5 is cut
                {"name": "(INTERCEPT)", "term": "", "value": 0.5},
                {"name": "age", "term": "", "value": -1 / 7},
            ],
            "variances": None,
            "lossFunction": "",
        }
        assert second["means"] == [{"name": "(INTERCEPT)", "term": "", "value": 2.0}]
        write_models(fixed(), model.feature_names("global"), "linear_regression", tmp_path)
        (batch,) = avro.read_batches(tmp_path / "global_model.avro")
        (only,) = batch.to_pylist()
        assert only["modelId"] == "global model"
        assert only["modelClass"].endswith("supervised.regression.LinearRegressionModel")
        assert [m["name"] for m in only["means"]][0] == "(INTERCEPT)"
        assert len(only["means"]) == 6

    def test_the_cut_spares_the_intercept(self, tmp_path: Path) -> None:
        model = LinearModel(("user",), True, FixedCoefficients(np.array([1e-9, 1, 0, 0, 0.0])))
        features = TrainedModel(
            "linear_regression", ColumnRoles(), {}, {"user": AGE}, {"g": model}
        ).feature_names("g")
        write_models(model, features, "linear_regression", tmp_path, cut=1e-4)
        read = read_models([tmp_path / "global_model.avro"])
        assert read.is_fixed_effect and read.has_intercept
        np.testing.assert_array_equal(read.fixed([AGE]).values, [1e-9, 1, 0, 0, 0])


REAL = {  # as old files have it: null defaults that their union does not begin with
    "type": "record",
    "name": "BayesianLinearModelAvro",
    "namespace": "com.linkedin.photon.avro.generated",
    "fields": [
        {"name": "modelId", "type": "string"},
        {"name": "modelClass", "type": ["string", "null"], "default": None},
        {
            "name": "means",
            "type": {
                "type": "array",
                "items": {
                    "type": "record",
                    "name": "NameTermValueAvro",
                    "fields": [
                        {"name": "name", "type": "string"},
                        {"name": "term", "type": ["string", "null"], "default": None},
                        {"name": "value", "type": "double"},
                    ],
                },
            },
        },
        {
            "name": "variances",
            "type": [{"type": "array", "items": "NameTermValueAvro"}, "null"],
            "default": None,
        },
        {"name": "lossFunction", "type": ["string", "null"], "default": None},
    ],
}
NTV = pa.list_(pa.struct([("name", pa.string()), ("term", pa.string()), ("value", pa.float64())]))


def old_file(path: Path, models: dict[str, dict[Any, float]], kind: str | None = LOGISTIC) -> Path:
    means = [
        [{"name": n, "term": t, "value": v} for (n, t), v in model.items()]
        for model in models.values()
    ]
    batch = pa.RecordBatch.from_pydict(
        {
            "modelId": list(models),
            "modelClass": pa.array([kind] * len(models), pa.string()),
            "means": pa.array(means, NTV),
        }
    )
    write_batches(path, REAL, [batch])
    return path


ONE = ("(INTERCEPT)", "")


class TestOldFiles:
    def test_order_of_entities_and_features_does_not_matter(self, tmp_path: Path) -> None:
        path = old_file(
            tmp_path / "a.avro",
            {
                "10": {ONE: 1.0, ("gender", "M"): 3.0, ("age", None): 2.0},
                "9": {("gender", "F"): 5.0},
            },
        )
        models = read_models([path])
        assert models.task == "logistic_regression"
        assert natural_type(models.ids) == pa.int64()
        found = models.random([AGE], pa.int64())
        assert found.entities.to_pylist() == [9, 10]
        np.testing.assert_array_equal(found.indptr, [0, 2, 5])
        np.testing.assert_array_equal(found.columns, [0, 2, 0, 1, 3])
        np.testing.assert_array_equal(found.values, [0, 5, 1, 2, 3])  # no intercept: 0

    def test_stale_features_are_skipped_and_said(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        models = {"1": {ONE: 1.0, ("gone", ""): 3.0}, "2": {("gone", ""): 1.0, ("old", "x"): 1.0}}
        found = read_models([old_file(tmp_path / "a.avro", models)]).random([AGE], pa.int64())
        np.testing.assert_array_equal(found.values, [1.0, 0.0])
        assert "skipped 3 coefficients of 2 features" in caplog.text

    def test_intercept_only(self, tmp_path: Path) -> None:
        path = old_file(tmp_path / "a.avro", {"global model": {ONE: 0.25}})
        np.testing.assert_array_equal(read_models([path]).fixed([]).values, [0.25])

    def test_ids_that_only_look_like_integers(self) -> None:
        assert natural_type(pa.array(["1", "2"], pa.large_string())) == pa.int64()
        for ids in (["1", "02"], ["1", "x"], ["+1"], ["99999999999999999999"]):
            assert natural_type(pa.array(ids, pa.large_string())) == pa.large_string()

    def test_findings(self, tmp_path: Path) -> None:
        cases: list[tuple[dict[str, dict[Any, float]], str | None, str]] = [
            ({"1": {ONE: np.nan}}, LOGISTIC, "model '1' has a coefficient that is not finite"),
            ({"1": {ONE: 1.0}}, "x.SmoothedHingeLossLinearSVMModel", "is of class x.Smoothed"),
        ]
        for models, kind, text in cases:
            with pytest.raises(ModelError, match=text):
                read_models([old_file(tmp_path / "a.avro", models, kind)])
        twice = {"1": {("age", None): 1.0, ("age", ""): 2.0}}
        with pytest.raises(ModelError, match="model '1' has two coefficients of feature 'age'"):
            read_models([old_file(tmp_path / "a.avro", twice)])
        one = old_file(tmp_path / "a.avro", {"1": {ONE: 1.0}})
        other = old_file(
            tmp_path / "b.avro", {"1": {ONE: 2.0}}, "x.regression.LinearRegressionModel"
        )
        with pytest.raises(ModelError, match="holds models of several tasks"):
            read_models([one, other])
        with pytest.raises(ModelError, match="entity 1 has two models"):
            read_models([one, old_file(other, {"1": {ONE: 2.0}})]).random([AGE], pa.int64())
        with pytest.raises(ModelError, match="holds 2 models; a fixed effect has one"):
            read_models([old_file(one, {"1": {ONE: 1.0}, "2": {ONE: 1.0}})]).fixed([])

    def test_damage_is_one_line_that_names_the_file(self, tmp_path: Path) -> None:
        write_model(trained(), tmp_path / "m", AvroLayout())
        path = tmp_path / "m/per-user/models/part-00000.avro"
        whole = path.read_bytes()
        for content in (b"", whole[:20], whole[:-7], b"PAR1" + whole):
            path.write_bytes(content)
            with pytest.raises(ModelError, match=r"^[^\n]*part-00000\.avro: [^\n]*$"):
                read_model(tmp_path / "m")
        path.unlink()
        with pytest.raises(ModelError, match="holds no .avro file"):
            read_model(tmp_path / "m")
        schema = {"type": "record", "name": "r", "fields": [{"name": "x", "type": "long"}]}
        write_batches(path, schema, [pa.RecordBatch.from_pydict({"x": [1]})])
        with pytest.raises(ModelError, match="its records are no models: have no 'modelId'"):
            read_model(tmp_path / "m")

    def test_manifest_tells_the_format(self, tmp_path: Path) -> None:
        write_model(trained(), tmp_path, AvroLayout())
        entries = json.loads((tmp_path / "manifest.json").read_text())["coordinates"]
        assert entries["per-user"]["format"] == "avro"
        assert entries["per-user"]["entities"] == "integers"
        assert entries["per-item"]["entities"] == "text"


def test_java_hash() -> None:
    # Values that Java gives.
    known = {"": 0, "a": 97, "hello": 99162322, "polygenelubricants": -(2**31), "ü": 252}
    assert {text: java_hash(text) for text in known} == known
    assert java_hash("😀") == 55357 * 31 + 56832
    entities = pa.array(["hello", "polygenelubricants", "a"], pa.large_string())
    assert list(partitions_of(entities, 10)) == [2, 8, 7]
    assert list(partitions_of(pa.array([1, 2]), 3)) == [49 % 3, 50 % 3]
