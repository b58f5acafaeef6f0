"""A deep fixed effect's configuration; nothing here needs PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gdmix import ConfigError, DeepFixedEffect, FixedEffect, RandomEffect, RunConfig
from gdmix.config import ModelConfig
from gdmix.config.training import Training

FEATURES = {"user": ["gender"], "movie": ["genres"], "numbers": ["age", "year"]}
CONFIG = """\
data: {train: train.parquet, validation: validation.parquet}
features: {user: [gender], movie: [genres], numbers: [age, year]}
coordinates:
  global:
    type: deep
    sides:
      document: {text: [title], wide: movie, hidden: 32}
      user:
        categorical: {occupation: {dim: 8, min_count: 2}, age: {bins: [18, 25]}}
        crosses: [[gender, occupation], {columns: [gender, {column: age, bins: [30]}], buckets: 50}]
    dense: numbers
    wide: user
    encoder: {type: cnn, windows: [3]}
    training: {batch_size: 64, steps: 1000}
    refit: {steps: 100}
  per-user: {type: random_effect, entity: user_id, features: movie}
output: runs/deep
"""


def spec(**fields: Any) -> DeepFixedEffect:
    return DeepFixedEffect("global", **fields)


def test_a_run_with_a_deep_coordinate(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(CONFIG.replace("hidden: 32", "hidden: [32]"))
    config = RunConfig.from_yaml(tmp_path / "run.yaml")
    own = config.coordinates["global"]
    assert isinstance(own, DeepFixedEffect)
    assert own.texts == ("title",)
    assert own.bags == ("numbers", "user", "movie")
    keys = ["occupation", "age[18,25]", "gender+occupation", "gender+age[30]"]
    assert list(own.keyed_inputs) == keys
    assert own.key_columns == ("title", *keys)
    assert set(own.derived_entities) == set(keys[1:])
    assert own.document == "document"
    assert spec(sides={"a": {"text": "x"}, "b": {"text": "y"}}).document == "a"
    # What a row may lack: all but what others insist on.
    assert config.optional_entities == {"title", *keys}
    assert config.text_keys == {"title"}
    assert config.used_features["numbers"].missing == "keep"
    assert config.used_features["user"].missing == "zero"
    config.to_yaml(tmp_path / "again.yaml")
    assert RunConfig.from_yaml(tmp_path / "again.yaml") == config


def test_one_key_of_two_coordinates_is_needed() -> None:
    users = RandomEffect("per-user", entity="occupation", features="numbers")
    deep = spec(categorical=["occupation", "gender"], dense="numbers")
    config = ModelConfig.of(coordinates=[deep, users], features=FEATURES)
    assert config.optional_entities == {"gender"}
    # A random effect has no place for a missing number.
    assert config.used_features["numbers"].missing == "zero"


def test_what_a_later_fit_does_otherwise() -> None:
    training = Training(epochs=3, learning_rate=0.1)
    own = spec(text="title", training=training)
    assert own.refit.applied_to(own.training) == training
    less = spec(text="title", refit={"steps": 7}).refit.applied_to(training)
    assert (less.steps, less.epochs, less.learning_rate) == (7, None, 0.1)
    slower = spec(text="title", refit={"learning_rate": 0.01}).refit.applied_to(training)
    assert (slower.steps, slower.epochs, slower.learning_rate) == (None, 3, 0.01)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "has no inputs: text, categorical, dense, wide, sides"),
        ({"sides": {"user": {}}}, "sides.user: has no inputs: text, categorical, dense, wide"),
        ({"text": ["a", "a"]}, "text column 'a' is listed twice"),
        ({"text": "a", "sides": {"b": {"text": "a"}}}, "text column 'a' is listed twice"),
        ({"categorical": ["a", "a"]}, "categorical: 'a' is listed twice"),
        ({"categorical": "a", "sides": {"b": {"categorical": "a"}}}, "column of ids 'a' is listed"),
        ({"dense": "a", "wide": "a"}, "bag 'a' is listed twice"),
        (
            {"categorical": {"a": {"bukets": 3}}},
            r"categorical.a.bukets: unknown key \(did you mean",
        ),
        ({"categorical": {"a": {"buckets": 3, "min_count": 2}}}, "buckets and min_count: choose"),
        ({"crosses": [["a"]]}, "crosses.0.columns: needs two columns"),
        ({"crosses": [["a", "a"]]}, "crosses.0.columns: column 'a' is listed twice"),
        ({"text": "a", "encoder": "cn"}, r"encoder: unknown type 'cn' \(did you mean 'cnn'\?\)"),
        ({"text": "a", "encoder": {"filters": 2}}, "encoder: needs `type`: one of cnn, lstm"),
        ({"text": "a", "encoder": {"type": "cnn", "layers": 2}}, "encoder.layers: unknown key"),
        ({"text": "a", "interaction": "cosin"}, "interaction.0: should be 'cosine', 'inner'"),
        ({"text": "a", "interaction": []}, "interaction: is empty"),
        ({"text": "a", "loss": "softmax"}, "loss: softmax needs `group`: the column"),
        ({"text": "a", "group": "query"}, "group: only a ranking loss compares rows: softmax"),
        ({"text": "a", "params": {"x": 1}}, "params: are of a `model` of your own"),
        ({"text": "a", "model": "nets.Mine"}, "model: should be module:Class"),
        ({"text": "a", "shallow": [3]}, "shallow: there are no wide bags for the tower"),
        ({"wide": "a", "wide_dim": 0}, "wide_dim: 0 leaves a linear model"),
        ({"text": "a", "training": {"stepz": 3}}, r"training.stepz: unknown key \(did you mean"),
        ({"text": "a", "refit": {"steps": 1, "epochs": 1}}, "refit: steps and epochs: choose one"),
        ({"text": "a", "dropout": 1}, "dropout: should be less than 1"),
    ],
)
def test_mistakes(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        spec(**fields)
    assert str(caught.value).startswith("DeepFixedEffect('global'): ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"wide": "movies"}, r"coordinates.global.wide: no feature bag 'movies' \(did you mean"),
        ({"sides": {"a": {"dense": "number"}}}, "coordinates.global.sides.a.dense: no feature bag"),
    ],
)
def test_bags_that_are_missing(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig.of(coordinates=[spec(**fields)], features=FEATURES)


def test_rankers_are_alone() -> None:
    ranker = spec(text="title", loss="lambdarank", group="query")
    ModelConfig.of(coordinates=[ranker], features=FEATURES)
    for other in (RandomEffect("per-user", entity="user"), FixedEffect("more")):
        with pytest.raises(ConfigError, match=f"lambdarank fits the order .* '{other.name}'"):
            ModelConfig.of(coordinates=[ranker, other], features=FEATURES)


def test_the_joint_solver_is_for_linear_coordinates() -> None:
    with pytest.raises(ConfigError, match="coordinates.global: solver 'joint' fits fixed and"):
        ModelConfig.of(coordinates=[spec(text="title")], solver="joint")


def test_missing_numbers_need_a_reader() -> None:
    features = {"numbers": {"columns": ["age"], "missing": "keep"}}
    ModelConfig.of(coordinates=[spec(dense="numbers")], features=features)
    for fields in ({"wide": "numbers"}, {"text": "title"}):
        others = [spec(**fields), FixedEffect("linear", features="numbers")]
        with pytest.raises(ConfigError, match="features.numbers.missing: keep is for a bag that"):
            ModelConfig.of(coordinates=others, features=features)
    hashed = {"numbers": {"columns": ["age"], "missing": "keep", "hash_buckets": 8}}
    with pytest.raises(ConfigError, match="features.numbers.missing"):
        ModelConfig.of(coordinates=[spec(dense="numbers")], features=hashed)


def test_validation_rows_that_judge() -> None:
    tree = {
        "data": {"train": "train.parquet"},
        "coordinates": {
            "global": {"type": "deep", "text": "a", "training": {"judge_on_validation": True}}
        },
        "output": "out",
    }
    with pytest.raises(ConfigError, match="coordinates.global.training.judge_on_validation: needs"):
        RunConfig.from_tree(tree, Path("run.yaml"))


def test_a_coordinate_may_be_called_deep() -> None:
    tree = {
        "data": {"train": "train.parquet"},
        "coordinates": {"deep": {"type": "fixed_effect", "l3": 1}},
        "output": "out",
    }
    with pytest.raises(ConfigError, match=r"^run.yaml: coordinates.deep.l3: unknown key"):
        RunConfig.from_tree(tree, Path("run.yaml"))
