"""Every kind of trained coordinate: one protocol, one way to files and back."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from gdmix import ModelError, RunConfig
from gdmix.config import ColumnRoles, FeatureBag
from gdmix.data.dataset import Dataset, load_rows
from gdmix.data.feature_index import FeatureIndex
from gdmix.data.schema import RowSchema
from gdmix.model import kinds
from gdmix.model.base import CoordinateModel
from gdmix.model.coefficients import FixedCoefficients, RandomCoefficients
from gdmix.model.custom import CustomModel, with_pickles_trusted
from gdmix.model.estimator_input import input_matrix
from gdmix.model.external import ExternalModel
from gdmix.model.linear import LinearModel
from gdmix.model.mixed_model import TrainedModel
from gdmix.model.predictors import Pickled
from gdmix.model.store import read_model, write_model
from gdmix.runs import run

BAGS = {"row": FeatureBag(columns=("x", "kind"))}
INDICES = {"row": FeatureIndex(["x", "kind", "kind"], ["", "a", "b"])}


class TwiceTheFirst:
    """An estimator of the user's own, as it is after its fit."""

    def score(self, X: Any) -> Any:
        return 2.0 * np.asarray(X[:, [0]].todense()).reshape(-1)


def pickled() -> Pickled:
    import pickle

    return Pickled(pickle.dumps(TwiceTheFirst()), "score", is_trusted=True)


MODELS: dict[str, Any] = {
    "fixed_effect": LinearModel(("row",), True, FixedCoefficients(np.array([0.5, 1, 2, 3.0]))),
    "random_effect": LinearModel(
        (),
        True,
        RandomCoefficients(
            pa.array([1, 3]), np.array([0, 1, 2]), np.zeros(2, np.uint32), np.array([1.0, -1.0])
        ),
        "user",
    ),
    "custom": CustomModel(
        ("row",), {"user": pa.array([1, 2])}, False, "a.B", "a 1.0", 0.25, pickled()
    ),
    "external_scores": ExternalModel("uid", None, "zero"),
}


@pytest.fixture
def rows() -> Dataset:
    columns = {"x": [1.0, 0.0, 2.0], "kind": ["a", "b", "z"], "user": [1, 2, 3]}
    schema = RowSchema(ColumnRoles(), BAGS, ("user",), needs_response=False)
    return load_rows(columns, schema, INDICES, "logistic_regression", "strict")


SCORES = {
    "fixed_effect": [3.5, 3.5, 2.5],
    "random_effect": [1.0, 0.0, -1.0],
    "custom": [2.25, 0.25, 4.25],
}


def test_there_is_a_model_of_every_kind() -> None:
    assert set(MODELS) <= set(kinds._READERS)


@pytest.mark.parametrize("kind", MODELS)
def test_files_and_back(kind: str, rows: Dataset, tmp_path: Path) -> None:
    model = MODELS[kind]
    assert isinstance(model, CoordinateModel)
    assert model.type == kind
    summary = model.summary()
    assert list(summary)[:5] == ["type", "entity", "features", "models", "coefficients"]
    assert summary["type"] == kind
    entry = json.loads(json.dumps(model.describe()))
    assert entry["type"] == kind
    model.write(tmp_path / "own")
    again = with_pickles_trusted(kinds.read_coordinate(tmp_path / "own", entry, INDICES))
    assert again.describe() == model.describe()
    assert (again.features, again.keys) == (model.features, model.keys)
    if kind in SCORES:
        for each in (model, again):
            np.testing.assert_allclose(each.score(rows), SCORES[kind])


def test_all_kinds_in_one_model(rows: Dataset, tmp_path: Path) -> None:
    model = TrainedModel("logistic_regression", ColumnRoles(), BAGS, INDICES, MODELS)
    assert model.row_schema().entities == ("user",)
    assert list(model.linear) == ["fixed_effect", "random_effect"]
    write_model(model, tmp_path)
    again = read_model(tmp_path).with_pickles_trusted()
    given = {"external_scores": pa.table({"uid": [0, 2], "score": [1.0, 2.0]})}
    components = again.components(rows, external=given)
    assert list(components) == list(MODELS)
    for kind, expected in {**SCORES, "external_scores": [1.0, 0.0, 2.0]}.items():
        np.testing.assert_allclose(components[kind], expected)
    for kind in ("custom", "external_scores"):
        with pytest.raises(ModelError, match=f"coordinate '{kind}' has .* and no coefficients"):
            again.coefficient_table(kind)
    with pytest.raises(ModelError, match="no coordinate 'custon' .did you mean 'custom'"):
        again.summary("custon")


def test_a_kind_of_a_later_version(tmp_path: Path) -> None:
    model = TrainedModel("logistic_regression", ColumnRoles(), BAGS, INDICES, MODELS)
    write_model(model, tmp_path)
    manifest = tmp_path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"external_scores",', '"telepathy",'))
    with pytest.raises(ModelError, match="unknown type of coordinate 'telepathy'; install a newer"):
        read_model(tmp_path)


def test_a_damaged_estimator(tmp_path: Path) -> None:
    model = TrainedModel("logistic_regression", ColumnRoles(), BAGS, INDICES, MODELS)
    write_model(model, tmp_path)
    folder = tmp_path / "custom" / "models"
    (folder / "categories-0.parquet").write_bytes(b"?")
    with pytest.raises(ModelError, match="categories-0.parquet: damaged or missing"):
        read_model(tmp_path)


def test_files_of_the_checkpoint_become_those_of_the_model(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gdmix.checkpoint._SHARE", 1e9)
    linked = []
    link = os.link
    monkeypatch.setattr(os, "link", lambda a, b: linked.append(Path(b).name) or link(a, b))
    run(RunConfig.from_yaml(Path("run.yaml")))
    assert linked == ["part-00000.parquet"] * 3
    assert list(read_model(Path("runs/one")).coordinates) == ["global", "per-user", "per-item"]


def test_ids_are_numbers_from_one(rows: Dataset) -> None:
    X = input_matrix(rows, ("row",), {"user": pa.array([2, 3, 5])}, dense=False)
    np.testing.assert_array_equal(X.toarray(), [[1, 1, 0, np.nan], [0, 0, 1, 1], [2, 0, 0, 2]])
    assert X.dtype == np.float32
    dense = input_matrix(rows, ("row",), {"user": pa.array([2, 3, 5])}, dense=True)
    np.testing.assert_array_equal(dense, X.toarray())
    ids = input_matrix(rows, (), {"user": pa.array([1, 2])}, dense=False)
    np.testing.assert_array_equal(ids, [[1], [2], [np.nan]])
