"""Values, derivatives and special functions of the losses."""

from __future__ import annotations

import math

import numpy as np
import pytest
from glm_oracle import LOSSES, derivatives
from hypothesis import given, settings
from hypothesis import strategies as st

from gdmix.glm.compiled import exp, log1p
from gdmix.glm.losses import (
    LOGISTIC,
    POISSON,
    SQUARED,
    classifies_all,
    evaluate_rows,
    inverse_link,
    labels_of_one_class,
    total_loss,
)

each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
scores = st.floats(-30, 30)
labels = st.sampled_from([0.0, 1.0])


def evaluate(
    loss: int, z: object, y: object, w: object = 1.0
) -> tuple[float, np.ndarray, np.ndarray]:
    z = np.atleast_1d(np.asarray(z, float))
    y, w = np.broadcast_to(y, z.shape).astype(float), np.broadcast_to(w, z.shape).astype(float)
    d1, d2 = np.empty(z.size), np.empty(z.size)
    return evaluate_rows(loss, z.size, z, y, w, d1, d2), d1, d2


@each_loss
@settings(derandomize=True, deadline=None, max_examples=200)
@given(z=st.floats(-15, 15), y=labels, w=st.floats(0.1, 10))
def test_derivatives_are_finite_differences(loss: int, z: float, y: float, w: float) -> None:
    h = 1e-5
    value, d1, d2 = evaluate(loss, z, y, w)
    low, d1_low, _ = evaluate(loss, z - h, y, w)
    high, d1_high, _ = evaluate(loss, z + h, y, w)
    scale = abs(value) + w * (1 + math.exp(z))
    assert d1[0] == pytest.approx((high - low) / (2 * h), abs=1e-9 * scale)
    assert d2[0] == pytest.approx((d1_high[0] - d1_low[0]) / (2 * h), abs=1e-9 * scale)


@each_loss
@settings(derandomize=True, deadline=None)
@given(z=st.lists(scores, min_size=1, max_size=40), y=labels)
def test_rows_match_plain_numpy(loss: int, z: list[float], y: float) -> None:
    w = np.linspace(0.0, 2.0, len(z))
    value, d1, d2 = evaluate(loss, z, y, w)
    expected, e1, e2 = derivatives(loss, np.array(z), np.full(len(z), y))
    assert value == pytest.approx(w @ expected, rel=1e-13, abs=1e-13 * float(w @ np.abs(expected)))
    np.testing.assert_allclose(d1, w * e1, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(d2, w * e2, rtol=1e-13)
    assert total_loss(loss, np.array(z), np.full(len(z), y), w) == pytest.approx(value, rel=1e-13)


def test_derivatives_of_well_predicted_rows_keep_their_digits() -> None:
    for z, y in [(-45.0, 0.0), (45.0, 1.0)]:
        d1 = evaluate(LOGISTIC, z, y)[1]
        assert abs(d1[0]) == pytest.approx(math.exp(-45), rel=1e-14, abs=0.0)


@each_loss
@pytest.mark.parametrize("z", [-1e3, -300.0, 300.0, 1e3, 1e9, -1e9])
@pytest.mark.parametrize("y", [0.0, 1.0])
def test_extreme_scores_are_finite(loss: int, z: float, y: float) -> None:
    value, d1, d2 = evaluate(loss, z, y)
    assert np.isfinite([value, *d1, *d2]).all()
    assert d2[0] > 0.0
    if loss == LOGISTIC:
        assert value == pytest.approx(max(z, 0.0) - z * y, abs=1e-80)


def test_exp_to_an_ulp_or_two() -> None:
    x = np.concatenate([np.linspace(-200, 200, 40_001), np.geomspace(1e-20, 1, 2_000)])
    ours = np.array([exp(v) for v in x])
    np.testing.assert_allclose(ours, [math.exp(v) for v in x], rtol=5e-16)
    assert exp(-1e6) == exp(-200.0)
    assert exp(1e6) == exp(200.0)
    assert exp(0.0) == 1.0


def test_log1p_to_an_ulp_or_two() -> None:
    t = np.concatenate([np.linspace(0, 1, 20_001), np.geomspace(1e-300, 1, 2_000)])
    ours = np.array([log1p(v) for v in t])
    np.testing.assert_allclose(ours, [math.log1p(v) for v in t], rtol=5e-16)


@pytest.mark.parametrize(
    ("loss", "y", "w", "expected"),
    [
        (LOGISTIC, [1, 1], [1, 1], True),
        (LOGISTIC, [0, 0], [1, 1], True),
        (LOGISTIC, [0, 1], [1, 1], False),
        (LOGISTIC, [0, 1], [1, 0], True),
        (LOGISTIC, [0, 0], [0, 0], False),
        (LOGISTIC, [], [], False),
        (POISSON, [0, 0], [1, 1], True),
        (POISSON, [0, 3], [1, 1], False),
        (POISSON, [3, 3], [1, 1], False),
        (POISSON, [0, 3], [1, 0], True),
        (POISSON, [0, 0], [0, 0], False),
        (SQUARED, [1, 1], [1, 1], False),
        (SQUARED, [0, 0], [1, 1], False),
    ],
)
def test_labels_of_one_class(loss: int, y: list[float], w: list[float], expected: bool) -> None:
    assert labels_of_one_class(loss, len(y), np.array(y, float), np.array(w, float)) == expected


@pytest.mark.parametrize(
    ("loss", "own", "w", "expected"),
    [
        (LOGISTIC, [-1, 2], [1, 1], True),
        (LOGISTIC, [1, 2], [1, 1], False),
        (LOGISTIC, [1, 2], [0, 1], True),
        (LOGISTIC, [0, 2], [1, 1], True),
        (LOGISTIC, [0, 0], [1, 1], False),
        (POISSON, [-1, 2], [1, 1], False),
        (SQUARED, [-1, 2], [1, 1], False),
    ],
)
def test_classifies_all(loss: int, own: list[float], w: list[float], expected: bool) -> None:
    offset = np.array([5.0, -7.0])
    y = np.array([0.0, 1.0])
    assert classifies_all(loss, 2, offset + own, offset, y, np.array(w, float)) == expected


def test_inverse_link() -> None:
    z = np.array([-1e3, -40.0, -1.0, 0.0, 1.0, 40.0, 1e3])
    mean = inverse_link(LOGISTIC, z)
    np.testing.assert_allclose(mean[1:6], 1 / (1 + np.exp(-z[1:6])), rtol=1e-15)
    assert mean[0] == 0.0
    assert mean[-1] == 1.0
    np.testing.assert_array_equal(inverse_link(SQUARED, z), z)
    assert inverse_link(SQUARED, z) is not z
    rate = inverse_link(POISSON, z)
    np.testing.assert_allclose(rate[:6], np.exp(z[:6]), rtol=1e-15)
    assert np.isfinite(rate).all()
