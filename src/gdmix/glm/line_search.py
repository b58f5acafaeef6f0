"""How far to go along a Newton step: the rule, once, for small problems and for large ones.

The full step is taken if it lowers the objective enough (Armijo). Otherwise the objective is
minimised along the step, by Newton's method kept inside a bracket: a shorter step that merely
passed Armijo's test would leave rows far out on the saturated side of their loss, and the next
Newton step as wild as this one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gdmix.glm.compiled import kernel
from gdmix.glm.losses import evaluate_rows

F64 = NDArray[np.float64]

ARMIJO = 1e-4
MAX_TRIALS = 60
# A shortened step moves no score further than this: every loss is saturated long before.
MAX_MOVE = 1e4


@kernel
def search(
    loss: int,
    n: int,
    z: F64,
    move: F64,
    y: F64,
    w: F64,
    value: float,
    slope: float,
    cross: float,
    curvature: float,
    noise: float,
    new_z: F64,
    new_d1: F64,
    new_d2: F64,
) -> tuple[float, float]:
    """Choose the length t of a step that moves the scores by ``t * move``.

    Parameters
    ----------
    value
        The weighted loss at `z`.
    slope
        Derivative of the objective along the step at 0, negative.
    cross, curvature
        The penalty changes by ``t * cross + t**2 / 2 * curvature``.
    noise
        Rounding error of the objective.
    new_z, new_d1, new_d2
        (n,) filled with the scores and the derivatives at the point chosen.

    Returns
    -------
    tuple[float, float]
        t, or zero if no point along the step is lower; and the weighted loss there.
    """
    for i in range(n):
        new_z[i] = z[i] + move[i]
    new_value = evaluate_rows(loss, n, new_z, y, w, new_d1, new_d2)
    if new_value - value + cross + 0.5 * curvature <= ARMIJO * slope + noise:
        return 1.0, new_value

    reach = 0.0
    for i in range(n):
        reach = max(reach, abs(move[i]))
    t = longest(reach)
    low, high = 0.0, t
    for _ in range(MAX_TRIALS):
        new_value, first, second = evaluate_along(loss, n, z, move, t, y, w, new_z, new_d1, new_d2)
        rise = new_value - value + t * cross + 0.5 * t * t * curvature
        accepted, t, low, high = judge(
            t, low, high, rise, first + cross + t * curvature, second + curvature, slope, noise
        )
        if accepted:
            return t, new_value
    new_value, _, _ = evaluate_along(loss, n, z, move, low, y, w, new_z, new_d1, new_d2)
    return low, new_value


@kernel
def evaluate_along(
    loss: int,
    n: int,
    z: F64,
    move: F64,
    t: float,
    y: F64,
    w: F64,
    new_z: F64,
    new_d1: F64,
    new_d2: F64,
) -> tuple[float, float, float]:
    """Fill ``new_z = z + t * move`` and the derivatives there.

    Returns
    -------
    tuple[float, float, float]
        The weighted loss there, and its first and second derivative in t.
    """
    for i in range(n):
        new_z[i] = z[i] + t * move[i]
    value = evaluate_rows(loss, n, new_z, y, w, new_d1, new_d2)
    first = 0.0
    second = 0.0
    for i in range(n):
        first += new_d1[i] * move[i]
        second += new_d2[i] * move[i] * move[i]
    return value, first, second


@kernel
def longest(reach: float) -> float:
    """Return the longest step allowed where the full one moves some score by `reach`."""
    return min(1.0, MAX_MOVE / max(reach, 1.0))


@kernel
def judge(
    t: float,
    low: float,
    high: float,
    rise: float,
    derivative: float,
    bend: float,
    slope: float,
    noise: float,
) -> tuple[bool, float, float, float]:
    """Accept the step length t, or propose the next.

    Parameters
    ----------
    low, high
        Bracket of the minimum.
    rise, derivative, bend
        Of the objective at t: its value less that at 0, its first and second derivative.
    slope
        Its derivative at 0, negative.
    noise
        The rounding error of its value.

    Returns
    -------
    tuple[bool, float, float, float]
        Whether t is accepted; t, or the next length; and the new bracket.
    """
    # The objective is convex: where it still falls it is lower, whatever its rounding says.
    falling = derivative <= 0.0
    lower = falling or rise <= ARMIJO * t * slope + noise
    if lower and (abs(derivative) <= -0.1 * slope or (falling and t == high)):
        return True, t, low, high
    if falling:
        low = t
    else:
        high = t
    middle = 0.5 * (low + high)
    t -= derivative / max(bend, 1e-300)
    # Newton's point, unless it leaves the bracket or approaches the minimum from above too slowly.
    if falling:
        t = max(t, low + 0.1 * (high - low)) if t < high else middle
    else:
        t = min(t, middle) if t > low else middle
    return False, t, low, high
