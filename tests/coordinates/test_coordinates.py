"""A coordinate's fit, its scores and its penalty agree with each other and with the model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from gdmix.config import ColumnRoles, FeatureBag, FixedEffect, RandomEffect
from gdmix.coordinates.base import Coordinate, FitReport
from gdmix.coordinates.fixed_effect import FixedEffectCoordinate
from gdmix.coordinates.random_effect import RandomEffectCoordinate
from gdmix.coordinates.regularization import regularization
from gdmix.data.dataset import Dataset, load_rows, load_training
from gdmix.data.feature_index import FeatureIndex
from gdmix.data.feature_summary import summarize
from gdmix.data.schema import RowSchema
from gdmix.errors import DataError
from gdmix.glm.losses import LOGISTIC
from gdmix.glm.status import FitStatus
from gdmix.model.linear import LinearModel

SCHEMA = RowSchema(
    ColumnRoles(),
    {"row": FeatureBag(columns=("x", "kind")), "more": FeatureBag(columns=("tags",))},
    ("user", "item"),
)
SPECS = [
    FixedEffect("f", features=["more", "row"], l2=3.0),
    FixedEffect("f", features="row", l2=3.0, regularize_intercept=True),
    FixedEffect("f", features="row", intercept=False),
    FixedEffect("f"),
    RandomEffect("r", entity="user", features=["more", "row"], l2=3.0),
    RandomEffect("r", entity="item", features="row", l2=0.5, regularize_intercept=False),
    RandomEffect("r", entity="item", features="row", intercept=False),
    RandomEffect("r", entity="item"),
]


@pytest.fixture(scope="module")
def data(train_rows: pa.Table, validation_rows: pa.Table) -> tuple[Dataset, Dataset]:
    weight = pa.array(np.linspace(0.0, 2.0, train_rows.num_rows))
    train, indices = load_training(
        train_rows.append_column("weight", weight), SCHEMA, "logistic_regression", "strict"
    )
    strange = pa.array(np.arange(validation_rows.num_rows) % 50)  # half of them unseen
    rows = validation_rows.drop_columns(["user"]).append_column("user", strange)
    return train, load_rows(rows, SCHEMA, indices, "logistic_regression", "strict")


def bind(spec: FixedEffect | RandomEffect, train: Dataset, validation: Dataset | None) -> Any:
    kind = FixedEffectCoordinate if isinstance(spec, FixedEffect) else RandomEffectCoordinate
    indices = {
        bag: FeatureIndex([f"{bag}{j}" for j in range(x.n_columns)], [""] * x.n_columns)
        for bag, x in train.bags.items()
    }
    return kind(
        spec,
        train,
        validation,
        LOGISTIC,
        2,
        regularization(spec, indices, lambda bag: summarize(train.bags[bag])),
    )


def fit(
    spec: FixedEffect | RandomEffect, data: tuple[Dataset, Dataset]
) -> tuple[Coordinate, LinearModel, FitReport]:
    coordinate = bind(spec, *data)
    model, report = coordinate.fit(np.linspace(-1.0, 1.0, data[0].n_rows), None)
    return coordinate, model, report


@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_scores_are_those_of_the_model(spec: Any, data: tuple[Dataset, Dataset]) -> None:
    # Training rows are scored by their local columns, others by name: it must not matter.
    coordinate, model, report = fit(spec, data)
    scores = coordinate.score(model)
    assert scores.validation is not None
    np.testing.assert_allclose(scores.train, model.score(data[0]), atol=1e-12)
    np.testing.assert_allclose(scores.validation, model.score(data[1]), atol=1e-12)
    assert report.models == len(model.coefficients)
    assert set(report.statuses) <= {FitStatus.CONVERGED, FitStatus.SEPARATED}


def penalised(spec: Any, model: LinearModel) -> NDArray[np.bool_]:
    coefficients = model.coefficients
    columns = getattr(coefficients, "columns", np.arange(coefficients.values.size))
    return (columns > 0) | np.bool_(spec.regularize_intercept)


@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_the_fit_is_the_minimum_of_loss_and_penalty(
    spec: Any, data: tuple[Dataset, Dataset]
) -> None:
    coordinate, model, _ = fit(spec, data)
    values = model.coefficients.values
    own = penalised(spec, model)
    assert coordinate.penalty(model) == pytest.approx(0.5 * spec.l2 * values[own] @ values[own])
    train, offset = data[0], np.linspace(-1.0, 1.0, data[0].n_rows)

    def objective(changed: NDArray[np.float64]) -> float:
        other = replace(model, coefficients=replace(model.coefficients, values=changed))
        z = offset + coordinate.score(other).train
        loss = train.weight @ (np.logaddexp(0.0, z) - train.response * z)
        return float(loss) + coordinate.penalty(other)

    rng = np.random.default_rng(0)
    least = objective(values)
    for _ in range(5):
        step = rng.normal(size=values.size) * (values != 0)  # an intercept that is not there: 0
        slope = (objective(values + 1e-4 * step) - objective(values - 1e-4 * step)) / 2e-4
        assert abs(slope) < 1e-4
        assert objective(values + 0.1 * step) > least


@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_a_warm_start_at_the_optimum_takes_no_time(
    spec: Any, data: tuple[Dataset, Dataset]
) -> None:
    coordinate, model, cold = fit(spec, data)
    again, warm = coordinate.fit(np.linspace(-1.0, 1.0, data[0].n_rows), model)
    assert warm.iterations < cold.iterations
    np.testing.assert_allclose(again.coefficients.values, model.coefficients.values, atol=1e-5)


def test_without_validation_rows_there_are_no_such_scores(data: tuple[Dataset, Dataset]) -> None:
    for spec in (SPECS[0], SPECS[4]):
        coordinate = bind(spec, data[0], None)
        model, _ = coordinate.fit(np.zeros(data[0].n_rows), None)
        assert coordinate.score(model).validation is None


def keys_of(rows: Dataset, column: str) -> list[object]:
    return list(rows.keys[column].slice(slice(None)).to_pylist())


def test_entities_are_distinct_and_ascending(data: tuple[Dataset, Dataset]) -> None:
    for spec in (SPECS[4], SPECS[7]):
        _, model, _ = fit(spec, data)
        entities = model.coefficients.entities.to_pylist()
        assert entities == sorted(set(keys_of(data[0], spec.entity)))


def test_a_row_without_an_entity_is_left_out(data: tuple[Dataset, Dataset]) -> None:
    train = data[0]
    users = train.keys["user"]
    codes = users.codes.copy()
    codes[0] = -1
    gap = replace(train, keys={**train.keys, "user": replace(users, codes=codes)})
    rest = np.arange(1, train.n_rows)
    shorter = replace(
        train,
        uid=train.uid[1:],
        response=train.response[1:],
        weight=train.weight[1:],
        offset=train.offset[1:],
        bags={name: matrix.take(rest) for name, matrix in train.bags.items()},
        keys={"user": replace(users, codes=users.codes[1:])},
    )
    spec, zeros = SPECS[4], np.zeros(train.n_rows)
    with_gap, _ = bind(spec, gap, gap).fit(zeros, None)
    without, _ = bind(spec, shorter, None).fit(zeros[1:], None)
    np.testing.assert_allclose(with_gap.coefficients.values, without.coefficients.values)
    scores = bind(spec, gap, gap).score(with_gap)
    assert scores.train[0] == scores.validation[0] == 0.0


def test_entities_of_another_type_are_found_before_any_fit(data: tuple[Dataset, Dataset]) -> None:
    train, validation = data
    users = validation.keys["user"]
    text = {**validation.keys, "user": replace(users, values=users.values.cast(pa.large_string()))}
    with pytest.raises(DataError, match="entity column 'user' is large_string in these rows"):
        bind(SPECS[4], train, replace(validation, keys=text))


def test_report_counts_how_models_ended() -> None:
    report = FitReport.of(
        np.array([0, 3, 0], np.int8), np.array([1, 2, 6], np.int32), np.array([3.0, 0.0, 4.0])
    )
    assert report.models == 3
    assert report.statuses == {FitStatus.CONVERGED: 2, FitStatus.SEPARATED: 1}
    assert report.iterations == 3.0
    assert report.gradient_norm == 5.0
    none = FitReport.of(np.empty(0, np.int8), np.empty(0, np.int32), np.empty(0))
    assert none == FitReport(0, {}, 0.0, 0.0)
