"""Rows, features and models between formats, as a user converts them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gdmix import FixedEffect, MixedModel, RandomEffect, RunConfig
from gdmix.cli import app, terminal
from gdmix.compat.gdmix_yaml import load_description
from gdmix.config import AvroLayout, ColumnRoles, FeatureBag, ModelConfig
from gdmix.convert import avro_schema, convert_features, convert_model, convert_rows
from gdmix.data import avro
from gdmix.data.avro.write import write_batches
from gdmix.data.feature_index import FeatureIndex
from gdmix.data.read import open_rows
from gdmix.data.tfrecord.metadata import TensorMetadata
from gdmix.errors import ConfigError, DataError, ModelError, OutputError
from gdmix.model.any_model import read_any_model
from gdmix.model.coefficients import FixedCoefficients, RandomCoefficients
from gdmix.model.linear import LinearModel
from gdmix.model.mixed_model import TrainedModel
from gdmix.model.store import read_model, write_model
from gdmix.runs import run

NTV = pa.list_(pa.struct([("name", pa.string()), ("term", pa.string()), ("value", pa.float64())]))


@pytest.fixture
def gdmix(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> Callable[..., tuple[int, str]]:
    """Run the program in this process; return its exit code and what it said."""
    monkeypatch.setattr(terminal.out, "width", 80)

    def call(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stop:
            app(list(arguments), prog_name="gdmix")
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out + captured.err

    return call


def assert_same_model(a: TrainedModel, b: TrainedModel) -> None:
    """Check that two models are the same to the last bit, feature by feature."""
    assert a.task == b.task
    assert a.coordinates.keys() == b.coordinates.keys()
    for name in a.linear:
        first, second = a.coefficient_table(name), b.coefficient_table(name)
        keys = [(c, "ascending") for c in first.schema.names if c != "value"]
        assert first.sort_by(keys).to_pydict() == second.sort_by(keys).to_pydict()


# Rows


def all_types() -> pa.Table:
    return pa.table(
        {
            "i": pa.array([1, None, -(2**60)]),
            "f": pa.array([0.1, None, -2.0], pa.float32()),
            "s": pa.array(["a", "ü, \n", None]),
            "b": pa.array([b"\xff", b"", None]),
            "l": pa.array([[1, 2], [], None], pa.list_(pa.int64())),
            "v": pa.array([[0.5], None, [1.5, 2.5]], pa.list_(pa.float32())),
            "t": pa.array([["x"], ["y", "z"], []], pa.list_(pa.string())),
        }
    )


class TestRows:
    @pytest.mark.parametrize("first", ["parquet", "avro"])
    @pytest.mark.parametrize("second", ["parquet", "avro", "tfrecord", "tfrecord.gz"])
    def test_any_into_any(self, tmp_path: Path, first: str, second: str) -> None:
        pq.write_table(all_types(), tmp_path / "0.parquet")
        a, b, c = (tmp_path / f"{k}.{s}" for k, s in enumerate((first, second, "parquet"), 1))
        assert convert_rows([str(tmp_path / "0.parquet")], a).rows == 3
        convert_rows([str(a)], b)
        convert_rows([str(b)], c)
        expected = all_types().to_pydict()
        found = pq.read_table(c)
        assert found.schema.field("f").type == pa.float32()
        assert found.to_pydict() == expected

    def test_features_and_maps(self, tmp_path: Path) -> None:
        table = pa.table(
            {
                "features": pa.array([[{"name": "n", "term": "t", "value": 0.1}], []], NTV),
                "metadataMap": pa.array([[("user", "1")], []], pa.map_("string", "string")),
                "c": pa.array(["p", "q"]).dictionary_encode(),
                "d": pa.array([[1.0, 2.0], None], pa.list_(pa.float64(), 2)),
            }
        )
        pq.write_table(table, tmp_path / "a.parquet")
        convert_rows([str(tmp_path)], tmp_path / "b.avro")
        rows = open_rows(tmp_path / "b.avro")
        assert rows.schema.field("features").type == NTV
        assert rows.read(["user"])["user"].to_pylist() == ["1", None]
        columns = ["features", "metadataMap", "c", "d"]
        assert rows.read(columns).to_pydict() == table.to_pydict()
        with pytest.raises(DataError, match="column 'features' is .* a TFRecord can't hold"):
            convert_rows([str(tmp_path / "a.parquet")], tmp_path / "c.tfrecord")
        assert not (tmp_path / "c.tfrecord").exists()

    def test_some_columns(self, tmp_path: Path) -> None:
        pq.write_table(all_types(), tmp_path / "a.parquet")
        convert_rows([str(tmp_path / "a.parquet")], tmp_path / "b.avro", ["s", "i"])
        assert avro.read_schema(tmp_path / "b.avro").names == ["s", "i"]
        with pytest.raises(DataError, match="column 'x' is missing"):
            convert_rows([str(tmp_path / "a.parquet")], tmp_path / "b.avro", ["x"])

    def test_what_can_not_be_written(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="column 'a-b': is no name that Avro allows"):
            avro_schema(pa.schema([("a-b", pa.int64())]))
        with pytest.raises(DataError, match="column 'd': is decimal.* Avro does not have"):
            avro_schema(pa.schema([("d", pa.decimal128(5))]))
        with pytest.raises(OutputError, match="unknown kind of file; use .parquet, .tfrecord"):
            convert_rows(["x.parquet"], tmp_path / "a.csv")

    def test_damage_leaves_nothing(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"x": np.random.default_rng(0).random(400_000)}), tmp_path / "a.pq")
        convert_rows([str(tmp_path / "a.pq")], tmp_path / "a.tfrecord")
        content = bytearray((tmp_path / "a.tfrecord").read_bytes())
        content[-3] ^= 1
        (tmp_path / "a.tfrecord").write_bytes(content)
        for name in ("b.parquet", "b.avro", "b.tfrecord"):
            with pytest.raises(DataError, match=r"a\.tfrecord: record 400,?000: "):
                convert_rows([str(tmp_path / "a.tfrecord")], tmp_path / name)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pq", "a.tfrecord"]

    def test_command(self, tmp_path: Path, gdmix: Any) -> None:
        pq.write_table(all_types(), tmp_path / "a.parquet")
        out = tmp_path / "b.tfrecord"
        code, said = gdmix("convert", "rows", str(tmp_path / "a.parquet"), "-o", str(out))
        assert (code, said) == (0, f"{out}: 3 rows\n")
        code, said = gdmix("convert", "rows", str(tmp_path / "gone"), "-o", str(out))
        assert code == 2
        assert said.startswith("error: ")


# Features


def listed(path: Path) -> list[tuple[str, str]]:
    index = FeatureIndex.from_feature_list(path)
    return list(zip(index.names.to_pylist(), index.terms.to_pylist(), strict=True))


CONFIG = """\
data: {train: train.parquet, validation: validation.parquet}
columns: {uid: uid}
features:
  row:  [x, kind]
  more: [tags]
coordinates:
  global:   {type: fixed_effect,  features: [row, more]}
  per-user: {type: random_effect, entity: user, features: [row], l2: 2.0}
  per-item: {type: random_effect, entity: item}
"""


class TestFeatures:
    @pytest.mark.parametrize("kind", ["tfrecord", "parquet"])
    def test_gdmix_trains_the_same_model_on_them(
        self, project: Path, gdmix: Any, kind: str
    ) -> None:
        (project / "small.yaml").write_text(CONFIG)
        code, said = gdmix("convert", "features", "small.yaml", "-o", "out", "--format", kind)
        assert code == 0
        assert f"out/per-user/trainingData/part-00000.{kind}: 600 rows" in said
        lists = {
            "global": listed(Path("out/global/featureList/global")),
            "per-user": listed(Path("out/per-user/featureList/per_user")),
        }
        row = [("x", ""), ("kind", "a"), ("kind", "b"), ("kind", "c")]
        assert lists == {"global": [*row, *(("tags", t) for t in "pqrs")], "per-user": row}
        assert not Path("out/per-item/featureList").exists()
        metadata = TensorMetadata.read(Path("out/per-user/metadata/tensor_metadata.json"))
        assert metadata.training_samples == 600
        assert [(s.name, s.dtype, s.shape, s.is_sparse) for s in metadata.features] == [
            ("per_user", "float", (4,), True),
            ("uid", "long", (), False),
            ("user", "long", (), False),
        ]
        assert [s.name for s in metadata.labels] == ["response"]
        yaml = {
            "output_dir": "old",
            "fixed_effect_config": {"global": keys("global", None, regularize_bias=False)},
            "random_effect_config": {
                "per-user": keys("per-user", "user", l2_reg_weight=2.0),
                "per-item": keys("per-item", "item"),
            },
        }
        Path("gdmix.yaml").write_text(json.dumps(yaml))
        assert gdmix("train", "gdmix.yaml", "-q")[0] == 0
        config = RunConfig.from_yaml(Path("run.yaml"), {"passes": "1", "output": "new"})
        run(config)
        assert_close(read_model(Path("old")), read_model(Path("new")))

    def test_shared(self, project: Path) -> None:
        (project / "small.yaml").write_text(CONFIG + "output: out\n")
        convert_features(RunConfig.from_yaml(Path("small.yaml")), Path("out"), "parquet", True)
        names = [Path("out") / c / "featureList" / b for c, b in
                 (("global", "global"), ("per-user", "per_user"))]  # fmt: skip
        assert listed(names[0]) == listed(names[1])
        assert len(listed(names[0])) == 8

    def test_embeddings(self, tmp_path: Path) -> None:
        vectors = pa.array([[1.0, 2.0], None, [0.0, 3.0]], pa.list_(pa.float32(), 2))
        rows = pa.table({"e": vectors, "u": ["a", "b", "a"], "response": [0, 1, 1]})
        pq.write_table(rows, tmp_path / "rows.parquet")
        fields = {
            "data": {"train": str(tmp_path / "rows.parquet")},
            "features": {"vector": ["e"]},
            "coordinates": {
                "per-u": {"type": "random_effect", "entity": "u", "features": ["vector"]}
            },
            "output": str(tmp_path / "out"),
        }
        config = RunConfig.from_tree(fields, Path("x"))
        convert_features(config, tmp_path / "out", "tfrecord")
        table = open_rows(tmp_path / "out/per-u/trainingData").read(["uid", "per_u_values", "u"])
        assert table["per_u_values"].to_pylist()[::2] == [[1, 2], [0, 3]]
        assert table["uid"].to_pylist() == [0, 1, 2]  # their position
        assert listed(tmp_path / "out/per-u/featureList/per_u") == [("e", "0"), ("e", "1")]

    def test_findings_leave_nothing(self, project: Path, gdmix: Any) -> None:
        table = pq.read_table("train.parquet")
        tags = [["p", "p"], *table["tags"].to_pylist()[1:]]
        at = table.schema.get_field_index("tags")
        pq.write_table(table.set_column(at, "tags", pa.array(tags)), "train.parquet")
        (project / "small.yaml").write_text(CONFIG)
        code, said = gdmix("convert", "features", "small.yaml", "-o", "out")
        assert code == 2
        assert said == (
            "error: train.parquet: column 'tags': 1 row with a feature that stands twice "
            "(first: row 0)\n"
        )
        assert not Path("out").exists()
        (project / "out").mkdir()
        (project / "out/x").write_text("")
        assert "holds files that gdmix did not write" in gdmix(
            "convert", "features", "small.yaml", "-o", "out"
        )[1]  # fmt: skip
        code, said = gdmix("convert", "features", "small.yaml", "-o", "o", "--format", "avro")
        assert (code, said[:22]) == (2, "error: --format avro: ")


def keys(name: str, entity: str | None, **more: Any) -> dict[str, Any]:
    bag = name.replace("-", "_")
    found = {
        "training_data_dir": f"out/{name}/trainingData",
        "validation_data_dir": f"out/{name}/validationData",
        **more,
    }
    if name != "per-item":
        found |= {"feature_bag": bag, "feature_file": f"out/{name}/featureList/{bag}"}
    return found | ({"partition_entity": entity} if entity else {})


def assert_close(a: TrainedModel, b: TrainedModel) -> None:
    for name in a.linear:
        first, second = (m.coefficient_table(name).to_pydict() for m in (a, b))
        columns = first.keys() - {"value"}
        assert {c: first[c] for c in columns} == {c: second[c] for c in columns}
        np.testing.assert_allclose(first["value"], second["value"], atol=1e-6)


# Models


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    rng = np.random.default_rng(1)
    n = 400
    ntv = [
        [{"name": f"f{k}", "term": str(k % 2), "value": float(v)} for k, v in enumerate(x)]
        for x in rng.normal(size=(n, 4)).astype(np.float32)
    ]
    return pa.table(
        {
            "uid": np.arange(n),
            "user": rng.integers(0, 15, n),
            "item": [f"i{k}" for k in rng.integers(0, 5, n)],
            "features": pa.array(ntv, NTV),
            "response": rng.integers(0, 2, n),
        }
    )


@pytest.fixture(scope="module")
def fitted(rows: pa.Table) -> MixedModel:
    return MixedModel(
        [
            FixedEffect("global", features=["all"]),
            RandomEffect("per-user", entity="user", features=["all"]),
            RandomEffect("per-item", entity="item"),
        ],
        features={"all": ["features"]},
    ).fit(rows)


DESCRIPTION = """\
features: {all: [features]}
coordinates:
  global:   {type: fixed_effect, features: [all]}
  per-user: {type: random_effect, entity: user, features: [all]}
  per-item: {type: random_effect, entity: item}
"""


class TestModels:
    @pytest.mark.parametrize("kind", ["avro", "photon"])
    def test_there_and_back(
        self, fitted: MixedModel, rows: pa.Table, tmp_path: Path, kind: Any
    ) -> None:
        fitted.save(tmp_path / "native")
        (tmp_path / "small.yaml").write_text(DESCRIPTION)
        description = load_description(tmp_path / "small.yaml")
        convert_model(tmp_path / "native", tmp_path / "other", kind)
        convert_model(tmp_path / "other", tmp_path / "back", "parquet", description)
        assert_same_model(read_model(tmp_path / "back"), fitted.model_)
        again = MixedModel.load(tmp_path / "back").predict(rows, kind="link")
        np.testing.assert_array_equal(again, fitted.predict(rows, kind="link"))

    def test_gdmix_folder_without_our_manifest(
        self, fitted: MixedModel, rows: pa.Table, tmp_path: Path, gdmix: Any
    ) -> None:
        fitted.save(tmp_path / "native")
        folder = tmp_path / "gdmix"
        convert_model(tmp_path / "native", folder, "avro")
        (folder / "manifest.json").unlink()
        shutil.rmtree(folder / "feature_index")
        (tmp_path / "small.yaml").write_text(DESCRIPTION)
        # Ids are text in these rows: as Photon ML has them.
        texts = rows.set_column(1, "user", rows["user"].cast(pa.string()))
        pq.write_table(texts, tmp_path / "rows.parquet")
        arguments = (str(folder), str(tmp_path / "rows.parquet"), "-o", str(tmp_path / "s.avro"))
        code, said = gdmix("score", *arguments)
        assert (code, said.splitlines()) == (
            2,
            [
                f"error: {folder}: does not say what its models apply to; name a configuration "
                "that does: its coordinates with features and entity columns"
            ],
        )
        code, _ = gdmix("score", *arguments, "--config", str(tmp_path / "small.yaml"))
        assert code == 0
        score = open_rows(tmp_path / "s.avro").read(["predictionScore"])["predictionScore"]
        expected = fitted.predict(rows, kind="link").astype(np.float32)
        np.testing.assert_allclose(score.to_numpy(), expected, rtol=1e-6)
        code, said = gdmix("evaluate", str(tmp_path / "s.avro"), "--json")
        assert code == 0
        assert json.loads(said).keys() == {"auc", "logloss"}

    def test_photon_layout(self, fitted: MixedModel, tmp_path: Path, gdmix: Any) -> None:
        fitted.save(tmp_path / "native")
        out = tmp_path / "photon"
        code, _ = gdmix("convert", "model", str(tmp_path / "native"), "-o", str(out),
                        "--to", "photon", "--cut", "1e-2")  # fmt: skip
        assert code == 0
        files = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
        assert files == [
            "fixed-effect/global/coefficients/part-00000.avro",
            "fixed-effect/global/id-info",
            "model-metadata.json",
            "random-effect/per-item/coefficients/part-00000.avro",
            "random-effect/per-item/id-info",
            "random-effect/per-user/coefficients/part-00000.avro",
            "random-effect/per-user/id-info",
        ]
        assert (out / "random-effect/per-user/id-info").read_text() == "user\nall\n"
        assert json.loads((out / "model-metadata.json").read_text()) == {
            "modelType": "LOGISTIC_REGRESSION"
        }
        (batch,) = avro.read_batches(out / "random-effect/per-user/coefficients/part-00000.avro")
        kept = [m for means in batch.column("means").to_pylist() for m in means]
        assert all(abs(m["value"]) > 1e-2 for m in kept if m["name"] != "(INTERCEPT)")

    def test_overwrite_and_cut(self, fitted: MixedModel, tmp_path: Path, gdmix: Any) -> None:
        fitted.save(tmp_path / "native")
        command = ("convert", "model", str(tmp_path / "native"), "-o", str(tmp_path / "out"))
        assert gdmix(*command, "--to", "avro", "--cut", "0.1")[0] == 2
        assert gdmix(*command, "-q") == (0, "")
        assert gdmix(*command)[0] == 2
        assert gdmix(*command, "--overwrite", "-q") == (0, "")
        assert gdmix(*command, "--to", "wrong")[0] == 2

    def test_bags_of_plain_columns(self, project: Path, tmp_path: Path) -> None:
        run(RunConfig.from_yaml(Path("run.yaml")))
        native = read_model(Path("runs/one"))
        convert_model(Path("runs/one"), tmp_path / "photon", "photon")
        back = read_any_model(tmp_path / "photon", load_description(Path("run.yaml")))
        assert_same_model(back, native)
        before, after = MixedModel.load("runs/one"), MixedModel.load("runs/one")
        after.model_ = back
        one = before.predict("validation.parquet", kind="link")
        np.testing.assert_array_equal(one, after.predict("validation.parquet", kind="link"))

    def test_warm_start_from_photon_ml(
        self, fitted: MixedModel, rows: pa.Table, tmp_path: Path
    ) -> None:
        fitted.save(tmp_path / "native")
        convert_model(tmp_path / "native", tmp_path / "photon", "photon")
        texts = rows.set_column(1, "user", rows["user"].cast(pa.string()))
        pq.write_table(texts, tmp_path / "rows.parquet")
        fields = {
            **dict(features={"all": ["features"]}, initial_model=tmp_path / "photon"),
            "coordinates": {
                "global": {"type": "fixed_effect", "features": ["all"], "locked": True},
                "per-user": {"type": "random_effect", "entity": "user", "features": ["all"]},
                "per-item": {"type": "random_effect", "entity": "item"},
            },
            **dict(data={"train": tmp_path / "rows.parquet"}, output=tmp_path / "run"),
        }
        run(RunConfig.from_tree(fields, Path("x")))
        a, b = fitted.model_.linear["global"], read_model(tmp_path / "run").linear["global"]
        np.testing.assert_array_equal(a.coefficients.values, b.coefficients.values)

    def test_findings(self, fitted: MixedModel, tmp_path: Path) -> None:
        fitted.save(tmp_path / "native")
        convert_model(tmp_path / "native", tmp_path / "photon", "photon")
        path = tmp_path / "small.yaml"
        path.write_text(DESCRIPTION.replace("per-item", "per-itme"))
        with pytest.raises(ModelError, match="no models of coordinate 'per-itme' .did you mean"):
            read_any_model(tmp_path / "photon", load_description(path))
        path.write_text(DESCRIPTION.replace("entity: item", "entitee: item"))
        with pytest.raises(ConfigError, match=r"small.yaml: coordinates.per-item.entitee: unknown"):
            load_description(path)
        with pytest.raises(ModelError, match="is not a model: has no manifest.json"):
            read_any_model(tmp_path)
        other = tmp_path / "photon/fixed-effect/global/coefficients/part-00000.avro"
        write_model(
            TrainedModel("poisson_regression", ColumnRoles(), {}, {}, {"global": level(1.0)}),
            tmp_path / "poisson",
            AvroLayout(),
        )
        shutil.copy(tmp_path / "poisson/global/models/global_model.avro", other)
        path.write_text(DESCRIPTION)
        with pytest.raises(ModelError, match="holds models of several tasks: logistic"):
            read_any_model(tmp_path / "photon", load_description(path))

    def test_a_model_that_is_left_out_is_said(
        self, fitted: MixedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        fitted.save(tmp_path / "native")
        convert_model(tmp_path / "native", tmp_path / "photon", "photon")
        description = ModelConfig.of(coordinates=[RandomEffect("per-item", entity="item")])
        model = read_any_model(tmp_path / "photon", description)
        assert list(model.coordinates) == ["per-item"]
        assert "left out the models of 'per-user'" in caplog.text


def level(value: float) -> LinearModel:
    return LinearModel((), True, FixedCoefficients(np.array([value])))


# Crossed features


def crossed() -> TrainedModel:
    index = FeatureIndex(
        [
            "u1_gdmixcross_age",
            "u2_gdmixcross_age",
            "u1_gdmixcross_g",
            "u2_gdmixcross_",
            "u3_gdmixcross_g",
        ],
        ["", "", "F", "", "M"],
    )
    values = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    return TrainedModel(
        "logistic_regression",
        ColumnRoles(),
        {"cohorts": FeatureBag(columns=("features",)), "x": FeatureBag(columns=("x",))},
        {"cohorts": index, "x": FeatureIndex(["x"], [""])},
        {
            "level": level(0.5),
            "cohort": LinearModel(("cohorts",), True, FixedCoefficients(values)),
        },
    )


class TestCrossed:
    def test_split(self, tmp_path: Path, gdmix: Any) -> None:
        write_model(crossed(), tmp_path / "crossed")
        code, _ = gdmix("convert", "model", str(tmp_path / "crossed"), "-o", str(tmp_path / "out"),
                        "--split-crossed", "cohort=cohort_id")  # fmt: skip
        assert code == 0
        model = read_model(tmp_path / "out")
        assert list(model.coordinates) == ["level", "cohort"]
        table = model.coefficient_table("cohort")
        found = [tuple(row.values()) for row in table.to_pylist()]
        assert found == [
            ("u1", "(INTERCEPT)", "", 0.0),
            ("u1", "age", "", 1.0),
            ("u1", "g", "F", 3.0),
            ("u2", "(INTERCEPT)", "", 4.0),
            ("u2", "age", "", 2.0),
            ("u3", "(INTERCEPT)", "", 0.0),
            ("u3", "g", "M", 5.0),
        ]
        assert model.linear["cohort"].entity == "cohort_id"
        assert isinstance(model.linear["cohort"].coefficients, RandomCoefficients)
        rows = pa.table(
            {
                "cohort_id": ["u1", "u2", "u9"],
                "features": pa.array([[{"name": "age", "term": "", "value": 2.0}]] * 3, NTV),
                "x": [0.0, 0.0, 0.0],
            }
        )
        score = MixedModel.load(tmp_path / "out").predict(rows, kind="link")
        np.testing.assert_array_equal(score, [2.5, 8.5, 0.5])

    def test_findings(self, tmp_path: Path, gdmix: Any) -> None:
        write_model(crossed(), tmp_path / "crossed")
        base = ("convert", "model", str(tmp_path / "crossed"), "-o", str(tmp_path / "out"))
        for option, text in {
            "cohotr=id": "no coordinate 'cohotr' (did you mean 'cohort'?)",
            "cohort": "--split-crossed cohort: expected COORDINATE=ENTITY",
        }.items():
            code, said = gdmix(*base, "--split-crossed", option)
            assert code == 2
            assert text in said
        plain = crossed()
        plain = TrainedModel(
            plain.task, plain.columns, plain.bags,
            {**plain.indices, "cohorts": FeatureIndex(["age"], [""])},
            {"cohort": LinearModel(("cohorts",), True, FixedCoefficients(np.ones(2)))},
        )  # fmt: skip
        write_model(plain, tmp_path / "plain")
        code, said = gdmix("convert", "model", str(tmp_path / "plain"), "-o", str(tmp_path / "out"),
                           "--split-crossed", "cohort=id")  # fmt: skip
        assert code == 2
        assert "feature 'age' is not crossed: has no '_gdmixcross_'" in said


def test_stale_features_are_skipped(
    rows: pa.Table, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "list.csv").write_text("f0,0\nf1,1\n")
    fields = [
        {"name": "modelId", "type": "string"},
        {"name": "means", "type": {"type": "array", "items": {
            "type": "record", "name": "N", "fields": [
                {"name": "name", "type": "string"}, {"name": "term", "type": "string"},
                {"name": "value", "type": "double"}]}}},
    ]  # fmt: skip
    means = [[{"name": n, "term": t, "value": v} for n, t, v in
              (("(INTERCEPT)", "", 1.0), ("f1", "1", 2.0), ("gone", "", 9.0))]]  # fmt: skip
    batch = pa.RecordBatch.from_pydict({"modelId": ["global model"], "means": pa.array(means, NTV)})
    schema = {"type": "record", "name": "M", "fields": fields}
    write_batches(tmp_path / "m/global/models/global_model.avro", schema, [batch])
    description = ModelConfig.of(
        coordinates=[FixedEffect("global", features=["all"])],
        features={"all": {"columns": ["features"], "feature_list": tmp_path / "list.csv"}},
    )
    model = read_any_model(tmp_path / "m", description)
    assert model.coefficient_table("global")["value"].to_pylist() == [1.0, 0.0, 2.0]
    assert "skipped 1 coefficients of 1 features" in caplog.text
