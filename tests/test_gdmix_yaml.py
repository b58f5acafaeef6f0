"""A configuration of LinkedIn's GDMix as it is: what it becomes, and the run it makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from gdmix import RunConfig
from gdmix.compat.gdmix_yaml import load_run
from gdmix.config import FixedEffect, RandomEffect
from gdmix.data.avro.write import write_batches
from gdmix.data.read import open_rows
from gdmix.data.tfrecord.metadata import TensorMetadata, TensorSpec, write_feature_list
from gdmix.data.tfrecord.write import write_examples
from gdmix.errors import ConfigError, DataError
from gdmix.model.store import read_model
from gdmix.runs import run

WIDTHS = {"global": 6, "per_user": 3, "per_item": 2}
N = {"trainingData": 500, "validationData": 200}

YAML = """\
# JSON with comments, anchors, merges and a comma too many, as GDMix's own files are
{
  "output_dir": "out",
  "fixed_effect_config": {
    "global": {
      "training_data_dir": "data/global/trainingData",
      "validation_data_dir": "data/global/validationData",
      "feature_file": "data/global/featureList/global",
      "feature_bag": "global",
      "metadata_file": "data/global/metadata/tensor_metadata.json",
      "l2_reg_weight": 2.0,
      "regularize_bias": false,
      "lbfgs_tolerance": 1.0e-12,
      "copy_to_local": false,
      gdmix_config: &g {
        "model_type": "logistic_regression",
        "label_column_name": "response",
        "uid_column_name": "uid",
        "prediction_score_column_name": "predictionScore",
        "weight_column_name": "weight"
      },
    }
  },
  "random_effect_config": {
    "per-user": {
      "partition_entity": "user_id",
      "training_data_dir": "data/per_user/trainingData",
      "validation_data_dir": "data/per_user/validationData",
      "feature_file": "data/per_user/featureList/per_user",
      "feature_bag": "per_user",
      "num_partitions": 3,
      "num_of_consumers": 1,
      gdmix_config: &r { <<: *g, "model_type": "logistic_regression" },
    },
    "per-item": {
      "partition_entity": "item_id",
      "training_data_dir": "data/per_item/trainingData",
      "validation_data_dir": "data/per_item/validationData",
      "feature_bag": "per_item",
      "l2_reg_weight": 3,
      gdmix_config: *r,
    }
  },
  "spark_config": {"executorInstances": 2},
  "tfjob_config": {"workerType": "cpu"}
}
"""


def make_rows(split: str) -> dict[str, Any]:
    rng = np.random.default_rng(len(split))
    n = N[split]
    x = rng.normal(size=(n, 6)).astype(np.float32)
    user, item = rng.integers(0, 20, n), rng.integers(0, 7, n)
    z = x[:, 0] - x[:, 3] + rng.normal(size=20)[user] * x[:, 1]
    return {
        "uid": np.arange(n) * 2 + 1,
        "user_id": user,
        "item_id": item,
        "weight": rng.integers(1, 4, n).astype(np.float32),
        "response": (rng.random(n) < 1 / (1 + np.exp(-z))).astype(np.int64),
        "x": x,
    }


def write_folder(
    folder: Path, bag: str, split: str, order: np.ndarray, kind: str, drop: tuple[str, ...] = ()
) -> None:
    rows, width, n = make_rows(split), WIDTHS[bag], N[split]
    x = rows.pop("x")[order, :width]
    stops = np.arange(n + 1, dtype=np.int32) * width
    columns = {name: pa.array(values[order]) for name, values in rows.items() if name not in drop}
    numbers = np.tile(np.arange(width), n)
    if kind == "tfrecord":
        columns[f"{bag}_indices"] = pa.ListArray.from_arrays(stops, pa.array(numbers))
        columns[f"{bag}_values"] = pa.ListArray.from_arrays(stops, pa.array(x.ravel()))
        batches = pa.table(columns).to_batches()
        cut = n // 2
        for part in range(2):  # any number of part files
            some = [b.slice(part * cut, n if part else cut) for b in batches]
            write_examples(folder / split / f"part-{part}.tfrecord", some)
        return
    names = pa.array([f"{bag}{k}" for k in range(width)]).take(pa.array(numbers))
    ntv = pa.StructArray.from_arrays(
        [names, pa.repeat("", len(names)), pa.array(x.ravel().astype(float))],
        ["name", "term", "value"],
    )
    columns[bag] = pa.ListArray.from_arrays(stops, ntv)
    feature = {
        "type": "record",
        "name": "FeatureAvro",
        "fields": [
            {"name": "name", "type": "string"},
            {"name": "term", "type": "string"},
            {"name": "value", "type": "double"},
        ],
    }
    types = {"weight": "float", bag: {"type": "array", "items": feature}}
    fields = [{"name": c, "type": types.get(c, "long")} for c in columns]
    schema = {"type": "record", "name": "TrainingExample", "fields": fields}
    write_batches(folder / split / "part-00000.avro", schema, pa.table(columns).to_batches())


def write_data(root: Path, kind: str = "tfrecord", shuffle: bool = False) -> None:
    rng = np.random.default_rng(5)
    for bag, width in WIDTHS.items():
        folder = root / "data" / bag
        write_feature_list(folder / "featureList" / bag, [(f"{bag}{k}", "") for k in range(width)])
        specs = [TensorSpec(c, "int") for c in ("uid", "user_id", "item_id")]
        bag_spec = TensorSpec(bag, "float", (width,), is_sparse=True)
        TensorMetadata((bag_spec, *specs), (TensorSpec("response", "int"),), 500).write(
            folder / "metadata" / "tensor_metadata.json"
        )
        for split, n in N.items():
            order = rng.permutation(n) if shuffle and bag != "global" else np.arange(n)
            write_folder(folder, bag, split, order, kind)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: Any) -> Path:
    """A folder as a GDMix shop has it, made the working directory."""
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path)
    (tmp_path / "lr.yaml").write_text(YAML, encoding="utf-8")
    return tmp_path


def edited(old: str, new: str) -> Path:
    assert YAML.count(old) >= 1
    path = Path("edited.yaml")
    path.write_text(YAML.replace(old, new, 1), encoding="utf-8")
    return path


def mistakes(old: str, new: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_run(edited(old, new))
    return [line.removeprefix("edited.yaml: ") for line in str(caught.value).splitlines()]


class TestMeaning:
    def test_what_it_becomes(self, shop: Path) -> None:
        loaded = load_run(Path("lr.yaml"))
        config = loaded.config
        assert config.output == Path("out")
        assert config.format == "avro"
        assert config.passes == 1
        assert config.task == "logistic_regression"
        assert config.columns.weight == "weight"
        assert config.coordinates == {
            "global": FixedEffect("global", l2=2.0, features="global", regularize_intercept=False),
            "per-user": RandomEffect("per-user", entity="user_id", l2=1.0, features="per_user"),
            "per-item": RandomEffect("per-item", entity="item_id", l2=3.0, features="per_item"),
        }
        assert config.features["per_user"].columns == ("per_user_indices", "per_user_values")
        assert config.features["per_user"].feature_list == Path(
            "data/per_user/featureList/per_user"
        )
        assert config.features["per_item"].feature_list is None
        assert config.data.train == ("data/global/trainingData",)
        assert [j.train[0] for j in config.data.joined] == [
            "data/per_user/trainingData",
            "data/per_item/trainingData",
        ]
        assert config.avro.partitions == {"per-user": 3, "per-item": 1}
        assert loaded.notes == (
            "spark_config: ignored: `engine` and `spark` say where a run works",
            "tfjob_config: ignored: `engine` and `spark` say where a run works",
            "ignored, as nothing here depends on them: lbfgs_tolerance, copy_to_local, "
            "num_of_consumers",
        )

    def test_variances(self, shop: Path) -> None:
        mode = '"fixed_effect_variance_mode": "SIMPLE", "random_effect_variance_mode": "FULL"'
        loaded = load_run(edited('"l2_reg_weight": 2.0,', f'"l2_reg_weight": 2.0, {mode},'))
        assert [spec.variance for spec in loaded.config.linear.values()] == [
            "simple",
            "none",
            "none",
        ]
        assert "random_effect_variance_mode" in loaded.notes[-1]  # of another kind of coordinate
        assert "fixed_effect_variance_mode" not in loaded.notes[-1]
        mode = '"random_effect_variance_mode": "FULL"'
        loaded = load_run(edited('"l2_reg_weight": 3,', f'"l2_reg_weight": 3, {mode},'))
        assert loaded.config.linear["per-item"].variance == "full"
        bad = '"l2_reg_weight": 3, "random_effect_variance_mode": "HALF",'
        assert mistakes('"l2_reg_weight": 3,', bad) == [
            "random_effect_config.per-item.random_effect_variance_mode: 'HALF' is none of "
            "NONE, SIMPLE, FULL"
        ]

    def test_it_can_be_written_and_read_again(self, shop: Path) -> None:
        config = load_run(Path("lr.yaml")).config
        config.to_yaml(Path("ours.yaml"))
        assert RunConfig.from_yaml(Path("ours.yaml")) == config
        assert load_run(Path("ours.yaml")).config == config

    def test_linear_fixed_effect_has_no_half(self, shop: Path) -> None:
        path = edited('"logistic_regression"', '"linear_regression"')
        path.write_text(path.read_text().replace('"logistic_regression"', '"linear_regression"'))
        config = load_run(path).config
        assert config.task == "linear_regression"
        assert [spec.l2 for spec in config.linear.values()] == [1.0, 1.0, 3.0]

    def test_linear_fixed_effect_has_the_optimum_of_gdmix(self, shop: Path) -> None:
        path = Path("linear.yaml")
        source = "{training_data_dir: data/global/trainingData, feature_bag: global, "
        shared = "gdmix_config: {model_type: linear_regression, weight_column_name: weight}"
        path.write_text(
            "output_dir: out\n"
            f"fixed_effect_config: {{global: {source}l2_reg_weight: 60.0, {shared}}}}}\n"
        )
        run(load_run(path).config)
        found = read_model(Path("out")).linear["global"].coefficients.values
        # GDMix's objective: sum of w (z - y)^2, plus half the weight times all squares.
        rows = make_rows("trainingData")
        x = np.column_stack([np.ones(500), rows["x"]]).astype(float)
        w, y = rows["weight"].astype(float), rows["response"].astype(float)
        hessian = 2 * (x.T * w) @ x + 60.0 * np.eye(7)
        expected = np.linalg.solve(hessian, 2 * x.T @ (w * y))
        np.testing.assert_allclose(found, expected, atol=1e-9)

    def test_overrides_have_our_keys(self, shop: Path) -> None:
        config = load_run(Path("lr.yaml"), {"coordinates.per-user.l2": "9", "output": "x"}).config
        assert config.linear["per-user"].l2 == 9
        assert config.output == Path("x")

    def test_defaults_are_those_of_gdmix(self, shop: Path) -> None:
        path = Path("short.yaml")
        keys = "{training_data_dir: data/global/trainingData, feature_bag: global}"
        path.write_text(f"output_dir: o\nfixed_effect_config: {{global: {keys}}}\n")
        (spec,) = load_run(path).config.linear.values()
        assert (spec.l2, spec.intercept, spec.regularize_intercept) == (1.0, True, True)

    def test_bags_of_one_name_are_kept_apart(self, shop: Path) -> None:
        folder = shop / "data" / "other"
        for split, n in N.items():
            write_folder(folder, "global", split, np.arange(n), "tfrecord")
        path = edited("data/per_item/trainingData", "data/other/trainingData")
        text = path.read_text().replace("data/per_item/validationData", "data/other/validationData")
        path.write_text(text.replace('"feature_bag": "per_item"', '"feature_bag": "global"'))
        config = load_run(path).config
        assert config.linear["per-item"].features == ("per-item.global",)
        assert config.features["per-item.global"].columns == (
            "per-item.global_indices",
            "per-item.global_values",
        )
        run(config)

    def test_one_folder_for_all(self, shop: Path) -> None:
        path = edited("data/per_item", "data/per_user")
        text = path.read_text().replace("data/per_item/", "data/per_user/")
        path.write_text(text.replace('"feature_bag": "per_item"', '"feature_bag": "per_user"'))
        config = load_run(path).config
        assert len(config.data.joined) == 1
        assert config.linear["per-item"].features == config.linear["per-user"].features


class TestMistakes:
    def test_keys(self, shop: Path) -> None:
        assert mistakes('"l2_reg_weight": 3', '"l2_reg_wieght": 3') == [
            "random_effect_config.per-item.l2_reg_wieght: unknown key "
            "(did you mean 'l2_reg_weight'?)"
        ]
        assert mistakes('"output_dir"', '"outptu_dir"') == [
            "outptu_dir: unknown key (did you mean 'output_dir'?)",
            "output_dir: is required",
        ]
        assert mistakes('"uid_column_name"', '"uid_colum_name"')[0] == (
            "fixed_effect_config.global.gdmix_config.uid_colum_name: unknown key "
            "(did you mean 'uid_column_name'?)"
        )
        assert mistakes('"partition_entity": "user_id",', "") == [
            "random_effect_config.per-user.partition_entity: is required"
        ]

    def test_values(self, shop: Path) -> None:
        assert mistakes('"l2_reg_weight": 2.0', '"l2_reg_weight": "much"') == [
            "fixed_effect_config.global.l2_reg_weight: should be a number (got 'much')"
        ]
        assert mistakes('"num_partitions": 3', '"num_partitions": true') == [
            "random_effect_config.per-user.num_partitions: should be a whole number (got True)"
        ]
        assert mistakes('"regularize_bias": false', '"regularize_bias": "no"') == [
            "fixed_effect_config.global.regularize_bias: should be true or false (got 'no')"
        ]
        (line,) = mistakes('"l2_reg_weight": 2.0', '"l2_reg_weight": -1')
        assert line.startswith("coordinates.global.l2: ")
        (line,) = mistakes("gdmix_config: *r,\n    }", "gdmix_config: 3\n    }")
        assert line.endswith("gdmix_config: should be keys and values (got 3)")

    def test_what_must_agree(self, shop: Path) -> None:
        assert mistakes("gdmix_config: *r,", 'gdmix_config: {"uid_column_name": "id"},') == [
            "random_effect_config.per-item.gdmix_config.uid_column_name: 'id', but 'uid' in "
            "fixed_effect_config.global; it has to be one for all"
        ]
        assert mistakes('"validation_data_dir": "data/per_item/validationData",', "") == [
            "random_effect_config.per-item.validation_data_dir: name one for every coordinate, "
            "or for none"
        ]
        lines = mistakes('"model_type": "logistic_regression" }', '"model_type": "linear" }')
        assert lines == [
            "random_effect_config.per-user.gdmix_config.model_type: 'linear', but "
            "'logistic_regression' in fixed_effect_config.global; it has to be one for all",
            "random_effect_config.per-item.gdmix_config.model_type: 'linear', but "
            "'logistic_regression' in fixed_effect_config.global; it has to be one for all",
        ]

    def test_a_model_of_text(self, shop: Path) -> None:
        path = edited('"model_type": "logistic_regression",', '"model_type": "detext",')
        with pytest.raises(ConfigError) as caught:
            load_run(path)
        lines = str(caught.value).splitlines()
        where = "edited.yaml: fixed_effect_config.global."
        assert any(line.startswith(f"{where}feature_bag: unknown key") for line in lines)
        assert lines[-1].endswith("fixed_effect_config.global.train_file: is required")

    def test_bags(self, shop: Path) -> None:
        assert mistakes('"feature_bag": "per_item"', '"feature_bag": "per_itme"') == [
            "random_effect_config.per-item.feature_bag: the rows have neither "
            "'per_itme_indices' nor 'per_itme' (did you mean 'per_item'?)"
        ]

    def test_rows_that_are_not_there(self, shop: Path) -> None:
        with pytest.raises(DataError, match="data/gone: no such file or folder"):
            load_run(edited("data/global/trainingData", "data/gone"))


class TestRun:
    def test_layout(self, shop: Path) -> None:
        run(load_run(Path("lr.yaml")).config)
        files = {str(p.relative_to("out")) for p in Path("out").rglob("*.*") if p.is_file()}
        expected = {
            "global/metric/evalSummary.json",
            "global/models/global_model.avro",
            "global/train_scores/part-00000.avro",
            "global/validation_scores/part-00000.avro",
            "per-user/metric/evalSummary.json",
            *(f"per-user/models/part-0000{k}.avro" for k in range(3)),
            *(f"per-user/train_scores/partitionId={k}/part-00000-active.avro" for k in range(3)),
            *(f"per-user/validation_scores/partitionId={k}/part-00000.avro" for k in range(3)),
            "per-item/metric/evalSummary.json",
            "per-item/models/part-00000.avro",
            "per-item/train_scores/partitionId=0/part-00000-active.avro",
            "per-item/validation_scores/partitionId=0/part-00000.avro",
        }
        assert expected <= files
        assert {f for f in files if f.endswith(".avro")} <= expected

    @pytest.mark.parametrize("how", ["shuffled", "avro"])
    def test_neither_order_nor_format_matters(self, shop: Path, how: str) -> None:
        run(load_run(Path("lr.yaml")).config)
        first = read_model(Path("out"))
        import shutil

        shutil.rmtree(shop / "data")
        write_data(shop, "avro" if how == "avro" else "tfrecord", shuffle=True)
        run(load_run(Path("lr.yaml"), {"output": "again"}).config)
        second = read_model(Path("again"))
        for name, model in first.linear.items():
            other = second.linear[name].coefficients
            assert model.coefficients.values.size == other.values.size
            np.testing.assert_allclose(other.values, model.coefficients.values, atol=1e-7)

    def test_scores_are_sums_of_what_was_trained_until_then(self, shop: Path) -> None:
        run(load_run(Path("lr.yaml")).config)
        total = np.zeros(500)
        for name in ("global", "per-user", "per-item"):
            rows = open_rows(f"out/{name}/train_scores")
            assert rows.schema.names[:5] == [
                "uid",
                "predictionScore",
                "response",
                "weight",
                "predictionScorePerCoordinate",
            ]
            table = rows.read(rows.schema.names).sort_by("uid")
            np.testing.assert_array_equal(table["uid"], np.arange(500) * 2 + 1)
            np.testing.assert_array_equal(table["weight"], make_rows("trainingData")["weight"])
            total += table["predictionScorePerCoordinate"].to_numpy()
            np.testing.assert_allclose(table["predictionScore"].to_numpy(), total, atol=1e-5)
        summary = json.loads(Path("out/per-item/metric/evalSummary.json").read_text())
        assert 0.5 < summary["auc"] < 1

    def test_passive_rows_have_files_of_their_own(self, shop: Path) -> None:
        run(load_run(Path("lr.yaml"), {"coordinates.per-item.max_active_rows": "10"}).config)
        folder = "out/per-item/train_scores/partitionId=0"
        counts = {
            kind: open_rows(f"{folder}/part-00000-{kind}.avro").read(["uid"]).num_rows
            for kind in ("active", "passive")
        }
        assert counts == {"active": 70, "passive": 430}

    def test_names_of_ones_own(self, shop: Path) -> None:
        path = edited('"prediction_score_column_name": "predictionScore"',
                      '"prediction_score_column_name": "score"')  # fmt: skip
        run(load_run(path).config)
        assert "score" in open_rows("out/global/train_scores").schema.names

    def test_rows_that_are_not_the_same(self, shop: Path) -> None:
        write_folder(shop / "data/per_item", "per_item", "trainingData", np.arange(500) // 2 * 2,
                     "tfrecord")  # fmt: skip
        with pytest.raises(DataError, match="data/per_item/trainingData: column 'uid': 250 rows"):
            run(load_run(Path("lr.yaml")).config)
        assert not Path("out").exists()

    def test_weights_may_be_absent(self, shop: Path) -> None:
        for split, n in N.items():
            folder = shop / "data" / "global"
            write_folder(folder, "global", split, np.arange(n), "tfrecord", drop=("weight",))
        assert load_run(Path("lr.yaml")).config.columns.weight is None
