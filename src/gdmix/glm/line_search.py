"""How far to go along a Newton step."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gdmix.glm.compiled import kernel
from gdmix.glm.losses import evaluate_rows

F64 = NDArray[np.float64]

MAX_TRIALS = 60
# Scores are not moved further than this in one step: beyond it every loss is saturated.
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

    The full step is taken if it lowers the objective enough (Armijo). Otherwise the objective
    along the step is minimised, by Newton's method kept inside a bracket of the minimum: a
    step that merely passes would leave rows that are far out on the wrong side there.

    Parameters
    ----------
    z, move, y, w
        (n,) scores, their change over the full step, responses, weights.
    value
        The weighted loss at `z`.
    slope
        Derivative of the objective along the step, negative.
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
    reach = 0.0
    for i in range(n):
        reach = max(reach, abs(move[i]))
    t = min(1.0, MAX_MOVE / max(reach, 1.0))
    low, high = 0.0, t
    for trial in range(MAX_TRIALS):
        for i in range(n):
            new_z[i] = z[i] + t * move[i]
        new_value = evaluate_rows(loss, n, new_z, y, w, new_d1, new_d2)
        rise = new_value - value + t * cross + 0.5 * t * t * curvature
        lower = rise <= 1e-4 * t * slope + noise
        if lower and trial == 0:
            break
        derivative = cross + t * curvature
        bend = curvature
        for i in range(n):
            derivative += new_d1[i] * move[i]
            bend += new_d2[i] * move[i] * move[i]
        # The objective is convex: where it still falls it is lower, whatever its rounding says.
        if (lower or derivative <= 0.0) and abs(derivative) <= -0.1 * slope:
            break
        if derivative > 0.0:
            high = t
        elif trial == 0:
            break
        else:
            low = t
        width = high - low
        t -= derivative / max(bend, 1e-300)
        t = min(max(t, low + 0.1 * width), low + (0.5 if derivative > 0.0 else 0.9) * width)
    else:
        return 0.0, value
    return t, new_value
