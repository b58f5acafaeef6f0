"""Recentring leaves training scores alone and takes the penalty to its minimum."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from scipy.optimize import minimize_scalar

from gdmix.coordinates.recentring import recentre
from gdmix.glm.matrix import CsrMatrix
from gdmix.model.coefficients import FixedCoefficients, RandomCoefficients
from gdmix.model.linear import LinearModel

SIZES = {"user": 2, "movie": 3}
DENSE = CsrMatrix(
    np.array([0, 3, 6, 9]),
    np.array([0, 1, 2] * 3, np.uint32),
    np.linspace(-1, 1, 9).astype(np.float32),
    3,
)
NUMBERS = np.array([0, 1, 0])


def _weights(l2: float, intercept_l2: float) -> np.ndarray:
    return np.array([intercept_l2] + [l2] * 5)


def _fixed(features: tuple[str, ...], values: list[float]) -> LinearModel:
    return LinearModel(features, True, FixedCoefficients(np.array(values)))


def _random(intercept: bool = True) -> LinearModel:
    coefficients = RandomCoefficients(
        pa.array([10, 20]),
        np.array([0, 4, 8]),
        np.array([0, 1, 2, 3] * 2, np.uint32),
        np.array([0.5 * intercept, 1.0, -2.0, 3.0, 1.5 * intercept, 4.0, 0.5, 0.25]),
    )
    return LinearModel(("movie",), intercept, coefficients, "movie_id")


def _penalty(model: LinearModel, weights: np.ndarray) -> float:
    coefficients = model.coefficients
    columns = (
        np.arange(coefficients.values.size)
        if isinstance(coefficients, FixedCoefficients)
        else coefficients.columns
    )
    return 0.5 * float(weights[columns] @ coefficients.values**2)


def test_total_scores_stay_and_penalty_is_least() -> None:
    models = {"global": _fixed(("movie",), [0.3, 1.0, 2.0, 3.0]), "per": _random()}
    penalties = {"global": _weights(2.0, 0.0), "per": _weights(5.0, 0.7)}
    moved = recentre(models, penalties, SIZES)

    def total(ms: dict[str, LinearModel]) -> np.ndarray:
        return ms["global"].coefficients.score(DENSE) + ms["per"].coefficients.score(DENSE, NUMBERS)

    np.testing.assert_allclose(total(moved), total(models), atol=1e-12)

    for column in range(4):

        def penalty_at(shift: float, column: int = column) -> float:
            fixed = moved["global"].coefficients.values.copy()
            fixed[column] += shift
            random = moved["per"].coefficients
            values = random.values - shift * (random.columns == column)
            changed = RandomCoefficients(random.entities, random.indptr, random.columns, values)
            return _penalty(_fixed(("movie",), list(fixed)), penalties["global"]) + _penalty(
                LinearModel(("movie",), True, changed, "movie_id"), penalties["per"]
            )

        assert minimize_scalar(penalty_at, tol=1e-12).x == pytest.approx(0.0, abs=1e-6)


def test_columns_are_matched_by_bag_not_by_position() -> None:
    models = {"global": _fixed(("user", "movie"), [0.0, 7.0, 8.0, 0.0, 0.0, 0.0]), "per": _random()}
    penalty = _weights(1.0, 1.0)
    moved = recentre(models, {"global": penalty, "per": penalty}, SIZES)
    values = moved["global"].coefficients.values
    np.testing.assert_array_equal(values[1:3], [7.0, 8.0])
    assert (values[3:] != 0).all()


def test_nothing_in_common_or_nothing_to_gain_changes_nothing() -> None:
    other_bag = {"global": _fixed(("user",), [0.0, 1.0, 1.0]), "per": _random(intercept=False)}
    penalty = _weights(1.0, 1.0)
    assert recentre(other_bag, {"global": penalty, "per": penalty}, SIZES) == other_bag
    locked = {"global": _fixed(("movie",), [0.0, 1.0, 1.0, 1.0]), "per": _random()}
    assert recentre(locked, {"global": penalty}, SIZES) == locked
    free = recentre(locked, {"global": penalty, "per": _weights(0.0, 0.0)}, SIZES)
    np.testing.assert_array_equal(
        free["per"].coefficients.values, locked["per"].coefficients.values
    )


def test_a_column_that_some_row_has_and_its_model_lacks_stays() -> None:
    models = {"global": _fixed(("movie",), [0.3, 1.0, 2.0, 3.0]), "per": _random()}
    penalties = dict.fromkeys(models, _weights(1.0, 1.0))
    uncovered = np.array([True, False, True, False])
    moved = recentre(models, penalties, SIZES, {"per": uncovered})
    stays = moved["global"].coefficients.values == models["global"].coefficients.values
    np.testing.assert_array_equal(stays, uncovered)


def test_the_first_fixed_effect_with_the_bag_takes_the_shift() -> None:
    models = {
        "per": _random(),
        "first": _fixed(("movie",), [0.0] * 4),
        "second": _fixed(("movie",), [0.0] * 4),
    }
    penalty = _weights(1.0, 1.0)
    moved = recentre(models, dict.fromkeys(models, penalty), SIZES)
    assert moved["first"].coefficients.values.any()
    assert not moved["second"].coefficients.values.any()
