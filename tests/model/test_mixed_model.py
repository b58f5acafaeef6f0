from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from gdmix.config import ColumnRoles, FeatureBag
from gdmix.data.dataset import Dataset, load_rows
from gdmix.data.feature_index import FeatureIndex
from gdmix.errors import DataError, ModelError
from gdmix.glm import losses
from gdmix.model.coefficients import FixedCoefficients, RandomCoefficients
from gdmix.model.linear import LinearModel
from gdmix.model.mixed_model import TrainedModel


def random(intercept: bool = True) -> LinearModel:
    coefficients = RandomCoefficients(
        pa.array([7, 9]),
        np.array([0, 2, 5]),
        np.array([0, 2, 0, 1, 3], np.uint32),
        np.array([1.0 * intercept, -3.0, 0.5 * intercept, 0.25, 8.0]),
    )
    return LinearModel(("row",), intercept, coefficients, "user")


@pytest.fixture
def model() -> TrainedModel:
    return TrainedModel(
        "logistic_regression",
        ColumnRoles(),
        {"row": FeatureBag(columns=("x", "kind")), "more": FeatureBag(columns=("y",))},
        {
            "row": FeatureIndex(["x", "kind", "kind"], ["", "a", "b"]),
            "more": FeatureIndex(["y"], [""]),
        },
        {
            "global": LinearModel(
                ("more", "row"), True, FixedCoefficients(np.array([0.5, -2.0, 1.0, 4.0, -8.0]))
            ),
            "per-user": random(),
            "bare": random(intercept=False),
        },
    )


def load(model: TrainedModel, columns: dict[str, Any]) -> Dataset:
    return load_rows(columns, model.row_schema(), model.indices, model.task, "strict")


ROWS = {
    "x": [1.0, 2.0, 3.0],
    "kind": ["a", "b", "never seen"],
    "y": [10.0, 0.0, -1.0],
    "user": [9, 7, 8],
    "offset": [0.0, 100.0, 0.0],
}


def test_components_add_features_in_the_order_of_the_bags(model: TrainedModel) -> None:
    components = model.components(load(model, ROWS))
    assert list(components) == ["global", "per-user", "bare"]
    np.testing.assert_allclose(components["global"], [0.5 - 20 + 1 + 4, 0.5 + 2 - 8, 0.5 + 2 + 3])
    np.testing.assert_allclose(components["per-user"], [0.5 + 0.25, 1.0, 0.0])
    np.testing.assert_allclose(components["bare"], [0.25, 0.0, 0.0])


def test_threads_change_nothing(model: TrainedModel) -> None:
    rows = load(model, ROWS)
    one, two = model.components(rows), model.components(rows, threads=2)
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])


def test_an_entity_column_of_another_type_is_named(model: TrainedModel) -> None:
    with pytest.raises(DataError, match="^entity column 'user' is large_string in these rows"):
        model.components(load(model, {**ROWS, "user": ["7", "8", "9"]}))


def test_row_schema_needs_no_response(model: TrainedModel) -> None:
    schema = model.row_schema(["genre"])
    assert not schema.needs_response
    assert schema.entities == ("user",)
    assert schema.keys == ("user", "genre")


@pytest.mark.parametrize(
    ("task", "loss"),
    [
        ("logistic_regression", losses.LOGISTIC),
        ("linear_regression", losses.SQUARED),
        ("poisson_regression", losses.POISSON),
    ],
)
def test_loss_of_each_task(task: Any, loss: int) -> None:
    assert TrainedModel(task, ColumnRoles(), {}, {}).loss == loss


def test_coefficients_of_a_fixed_effect(model: TrainedModel) -> None:
    assert model.coefficient_table("global").to_pylist() == [
        {"name": "(INTERCEPT)", "term": "", "value": 0.5},
        {"name": "y", "term": "", "value": -2.0},
        {"name": "x", "term": "", "value": 1.0},
        {"name": "kind", "term": "a", "value": 4.0},
        {"name": "kind", "term": "b", "value": -8.0},
    ]


def test_coefficients_of_a_random_effect(model: TrainedModel) -> None:
    table = model.coefficient_table("per-user")
    assert table.column_names == ["entity", "name", "term", "value"]
    assert table["entity"].to_pylist() == [7, 7, 9, 9, 9]
    assert table["name"].to_pylist() == ["(INTERCEPT)", "kind", "(INTERCEPT)", "x", "kind"]
    assert table["term"].to_pylist() == ["", "a", "", "", "b"]
    assert table["value"].to_pylist() == [1.0, -3.0, 0.5, 0.25, 8.0]


def test_coefficients_of_one_entity(model: TrainedModel) -> None:
    assert model.coefficient_table("per-user", 7).to_pylist() == [
        {"name": "(INTERCEPT)", "term": "", "value": 1.0},
        {"name": "kind", "term": "a", "value": -3.0},
    ]
    assert model.coefficient_table("per-user", "9").num_rows == 3


def test_without_an_intercept_there_is_none(model: TrainedModel) -> None:
    assert model.coefficient_table("bare")["name"].to_pylist() == ["kind", "x", "kind"]
    assert model.coefficient_table("bare", 7)["name"].to_pylist() == ["kind"]
    assert model.summary("bare")["coefficients"] == 3


def test_largest_coefficients(model: TrainedModel) -> None:
    table = model.largest_coefficients("per-user", None, 3)
    assert table["value"].to_pylist() == [8.0, -3.0, 1.0]
    assert table["entity"].to_pylist() == [9, 7, 7]
    assert model.largest_coefficients("per-user", 9, 1)["value"].to_pylist() == [8.0]
    assert model.largest_coefficients("global", None, 99).num_rows == 5


def test_summary(model: TrainedModel) -> None:
    assert model.summary("global") == {
        "type": "fixed_effect",
        "entity": None,
        "features": ["more", "row"],
        "models": 1,
        "coefficients": 5,
    }
    assert model.summary("per-user") == {
        "type": "random_effect",
        "entity": "user",
        "features": ["row"],
        "models": 2,
        "coefficients": 5,
    }


@pytest.mark.parametrize(
    ("coordinate", "entity", "message"),
    [
        (
            "per-usr",
            None,
            "no coordinate 'per-usr' (did you mean 'per-user'?); "
            "the model has: global, per-user, bare",
        ),
        ("per-user", 8, "coordinate 'per-user' has no model of entity 8"),
        ("per-user", "x", "coordinate 'per-user' has no model of entity 'x'"),
        ("global", 7, "coordinate 'global' is a fixed effect: it has no entities"),
    ],
)
def test_what_there_is_not(
    model: TrainedModel, coordinate: str, entity: object, message: str
) -> None:
    with pytest.raises(ModelError) as caught:
        model.coefficient_table(coordinate, entity)
    assert str(caught.value) == message
