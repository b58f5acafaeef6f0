"""The length of a step: the full one where it helps, else near the minimum along it."""

from __future__ import annotations

import numpy as np
import pytest
from glm_oracle import F64, LOSSES, derivatives
from hypothesis import given, settings
from hypothesis import strategies as st

from gdmix.glm.line_search import ARMIJO, MAX_MOVE, MAX_TRIALS, judge, search
from gdmix.glm.losses import LOGISTIC, POISSON, SQUARED

each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


class Along:
    """The objective along a step, relative to its start."""

    def __init__(
        self, loss: int, z: F64, move: F64, y: F64, cross: float, curvature: float
    ) -> None:
        self.loss, self.z, self.move, self.y = loss, z, move, y
        self.cross, self.curvature = cross, curvature
        self.start = derivatives(loss, z, y)[0]

    def rise(self, t: float) -> float:
        value = derivatives(self.loss, self.z + t * self.move, self.y)[0]
        return float((value - self.start).sum() + t * self.cross + 0.5 * t * t * self.curvature)

    def slope(self, t: float) -> float:
        d1 = derivatives(self.loss, self.z + t * self.move, self.y)[1]
        return float(d1 @ self.move + self.cross + t * self.curvature)

    def search(self) -> float:
        n = self.z.size
        new_z, d1, d2 = np.full(n, np.nan), np.empty(n), np.empty(n)
        noise = 1e-13 * float(np.abs(self.start).sum())
        t, value = search(
            self.loss, n, self.z, self.move, self.y, np.ones(n), float(self.start.sum()),
            self.slope(0.0), self.cross, self.curvature, noise, new_z, d1, d2,
        )  # fmt: skip
        if t > 0.0:
            np.testing.assert_allclose(new_z, self.z + t * self.move, rtol=1e-13, atol=1e-9)
            expected = derivatives(self.loss, new_z, self.y)
            assert value == pytest.approx(float(expected[0].sum()), rel=1e-9)
            np.testing.assert_allclose(d1, expected[1], rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(d2, expected[2], rtol=1e-9, atol=1e-80)
        return t


@each_loss
@settings(derandomize=True, deadline=None, max_examples=300)
@given(seed=st.integers(0, 2**32), reach=st.floats(-2, 5), saturation=st.floats(-1, 2))
def test_the_step_ends_lower_and_near_the_minimum(
    loss: int, seed: int, reach: float, saturation: float
) -> None:
    """Rows whose losses bend at places that differ by up to seven orders of magnitude."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 40))
    z = np.minimum(10.0**saturation * rng.normal(size=n), 100.0 if loss != POISSON else 20.0)
    move = 10.0 ** (reach * rng.random(n)) * rng.choice([-1, 1], n)
    if loss == POISSON:
        move = np.minimum(move, 50.0)
    y = rng.integers(0, 2, n).astype(float)
    curvature = float(10.0 ** rng.uniform(-6, 2))
    along = Along(loss, z, move, y, 0.0, curvature)
    if along.slope(0.0) > 0.0:
        along = Along(loss, z, -np.abs(move), y, 0.0, curvature)
    slope = along.slope(0.0)
    if slope >= -1e-8:
        return
    t = along.search()
    assert 0.0 < t <= 1.0
    assert along.rise(t) < 0.0
    if t == 1.0:
        assert along.rise(t) <= ARMIJO * slope + 1e-9 * abs(slope)
    else:
        at_limit = t * np.abs(move).max() >= 0.999 * MAX_MOVE
        assert abs(along.slope(t)) <= -0.1001 * slope or (at_limit and along.slope(t) <= 0.0)


@pytest.mark.parametrize("distance", [5.0, 20.0, 50.0, 200.0, 1000.0])
@pytest.mark.parametrize("reach", [1e2, 1e3, 1e4, 1e5])
def test_a_wall_on_a_long_slope(distance: float, reach: float) -> None:
    """One row falls all the way; another, soon met, rises far more steeply within a few units."""
    z, y = np.array([-1e6, -distance]), np.array([1.0, 0.0])
    along = Along(LOGISTIC, z, np.array([0.02 * reach, reach]), y, 0.0, 0.0)
    if distance < reach:
        t = along.search()
        assert along.rise(t) < 0.0
        assert abs(along.slope(t)) <= -0.1001 * along.slope(0.0)


@pytest.mark.parametrize("kink", [1e-6, 1e-3, 0.1, 0.5, 0.9999])
@pytest.mark.parametrize("bend", [0.0, 0.3])
def test_the_bracket_halves_even_at_a_kink(kink: float, bend: float) -> None:
    """There Newton's point is of no use."""
    low, high, t = 0.0, 1.0, 1.0
    for _ in range(MAX_TRIALS):
        derivative = -1.0 if t < kink else 1.0
        accepted, t, low, high = judge(
            t, low, high, abs(t - kink) - kink, derivative, bend, -1.0, 0.0
        )
        assert not accepted
        assert low <= kink <= high
    assert high - low < 1e-9


def test_the_full_step_of_a_quadratic_is_taken() -> None:
    z, y = np.array([1.0, -2.0]), np.array([3.0, 5.0])
    assert Along(SQUARED, z, y - z, y, 0.0, 0.0).search() == 1.0


def test_an_uphill_direction_is_refused() -> None:
    z, y = np.array([0.0]), np.array([1.0])
    along = Along(LOGISTIC, z, np.array([-1.0]), y, 0.0, 0.0)
    along.slope = lambda t: -1.0  # type: ignore[method-assign]  # a lie
    assert along.search() == 0.0
