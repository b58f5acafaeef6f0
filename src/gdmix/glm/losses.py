"""The three losses and their first two derivatives in the score z.

=========  =====================  ==============  ===============  ==================
loss       value                  d1              d2               response
=========  =====================  ==============  ===============  ==================
logistic   log(1 + e^z) - y z     sigmoid(z) - y  sigmoid'(z)      y in {0, 1}
squared    (z - y)^2 / 2          z - y           1                any real number
poisson    e^z - y z              e^z - y         e^z              y >= 0
=========  =====================  ==============  ===============  ==================

These are negative log-likelihoods up to a constant: McCullagh & Nelder, Generalized Linear
Models (1989), chapters 3, 4 and 6.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from gdmix.glm.compiled import exp, kernel, log1p

LOGISTIC: Final = 0
SQUARED: Final = 1
POISSON: Final = 2


@kernel
def evaluate_rows(
    loss: int,
    n: int,
    z: NDArray[np.float64],
    y: NDArray[np.float64],
    w: NDArray[np.float64],
    d1: NDArray[np.float64],
    d2: NDArray[np.float64],
) -> float:
    """Fill `d1` and `d2` with weight times the derivatives at `z`; return the weighted loss.

    All arrays have at least `n` entries.
    """
    total = 0.0
    if loss == LOGISTIC:
        for i in range(n):
            t = exp(-abs(z[i]))
            large = 1.0 / (1.0 + t)
            small = t * large
            mean = large if z[i] > 0 else small
            complement = small if z[i] > 0 else large
            # Not `mean - y`, which loses the digits of a row that is already well predicted.
            d1[i] = w[i] * ((1.0 - y[i]) * mean - y[i] * complement)
            d2[i] = w[i] * large * small
            total += w[i] * (max(z[i], 0.0) - z[i] * y[i] + log1p(t))
    elif loss == SQUARED:
        for i in range(n):
            residual = z[i] - y[i]
            d1[i] = w[i] * residual
            d2[i] = w[i]
            total += 0.5 * w[i] * residual * residual
    else:
        for i in range(n):
            rate = exp(z[i])
            d1[i] = w[i] * (rate - y[i])
            d2[i] = w[i] * rate
            total += w[i] * (rate - y[i] * z[i])
    return total


@kernel
def evaluate_each(
    loss: int,
    n: int,
    z: NDArray[np.float64],
    y: NDArray[np.float64],
    w: NDArray[np.float64],
    d1: NDArray[np.float64],
    d2: NDArray[np.float64],
    value: NDArray[np.float64],
) -> None:
    """Fill `d1`, `d2` and `value` with weight times the derivatives and the loss at `z`."""
    # Written out again: loops over a shared function of one row that returns three values are
    # not vectorised, which makes small problems 40 % slower.
    if loss == LOGISTIC:
        for i in range(n):
            t = exp(-abs(z[i]))
            large = 1.0 / (1.0 + t)
            small = t * large
            mean = large if z[i] > 0 else small
            complement = small if z[i] > 0 else large
            d1[i] = w[i] * ((1.0 - y[i]) * mean - y[i] * complement)
            d2[i] = w[i] * large * small
            value[i] = w[i] * (max(z[i], 0.0) - z[i] * y[i] + log1p(t))
    elif loss == SQUARED:
        for i in range(n):
            residual = z[i] - y[i]
            d1[i] = w[i] * residual
            d2[i] = w[i]
            value[i] = 0.5 * w[i] * residual * residual
    else:
        for i in range(n):
            rate = exp(z[i])
            d1[i] = w[i] * (rate - y[i])
            d2[i] = w[i] * rate
            value[i] = w[i] * (rate - y[i] * z[i])


@kernel
def total_loss(
    loss: int,
    z: NDArray[np.float64],
    y: NDArray[np.float64],
    w: NDArray[np.float64],
) -> float:
    """Return the weighted loss of scores `z`, all arrays (n,)."""
    total = 0.0
    if loss == LOGISTIC:
        for i in range(z.size):
            total += w[i] * (max(z[i], 0.0) - z[i] * y[i] + log1p(exp(-abs(z[i]))))
    elif loss == SQUARED:
        for i in range(z.size):
            total += 0.5 * w[i] * (z[i] - y[i]) * (z[i] - y[i])
    else:
        for i in range(z.size):
            total += w[i] * (exp(z[i]) - y[i] * z[i])
    return total


@kernel
def third_derivatives(
    loss: int,
    z: NDArray[np.float64],
    w: NDArray[np.float64],
    d3: NDArray[np.float64],
) -> None:
    """Fill `d3` with weight times the third derivative at `z`, all arrays (n,)."""
    for i in range(z.size):
        if loss == LOGISTIC:
            t = exp(-abs(z[i]))
            large = 1.0 / (1.0 + t)
            slope = w[i] * t * large * large * (1.0 - t) * large
            d3[i] = -slope if z[i] > 0.0 else slope
        elif loss == SQUARED:
            d3[i] = 0.0
        else:
            d3[i] = w[i] * exp(z[i])


@kernel
def labels_of_one_class(loss: int, n: int, y: NDArray[np.float64], w: NDArray[np.float64]) -> bool:
    """Whether an unpenalised intercept has no finite optimum on these `n` rows.

    So it is for logistic labels that are all 0 or all 1, and for counts that are all 0.
    Rows of weight zero do not count.
    """
    any_low, any_high = classes_present(n, y, w)
    return is_one_class(loss, any_low, any_high)


@kernel
def classes_present(n: int, y: NDArray[np.float64], w: NDArray[np.float64]) -> tuple[bool, bool]:
    """Whether any row has a label below 1, and whether any has one above 0."""
    any_low = False
    any_high = False
    for i in range(n):
        if w[i] > 0.0:
            any_high = any_high or y[i] > 0.0
            any_low = any_low or y[i] < 1.0
    return any_low, any_high


@kernel
def is_one_class(loss: int, any_low: bool, any_high: bool) -> bool:
    """Do as `labels_of_one_class`, given which classes there are."""
    if loss == LOGISTIC:
        return any_low != any_high
    return loss != SQUARED and any_low and not any_high


@kernel
def classifies_all(
    loss: int,
    n: int,
    z: NDArray[np.float64],
    offset: NDArray[np.float64],
    y: NDArray[np.float64],
    w: NDArray[np.float64],
) -> bool:
    """Whether ``z - offset`` has the sign of the label in each of these `n` rows.

    Then coefficients without a penalty have no finite optimum: along them no row loses
    (Albert & Anderson, Biometrika 1984). Rows of weight zero do not count.
    """
    any_lost, any_moved = lost_and_moved(loss, n, z, offset, y, w)
    return any_moved and not any_lost


@kernel
def lost_and_moved(
    loss: int,
    n: int,
    z: NDArray[np.float64],
    offset: NDArray[np.float64],
    y: NDArray[np.float64],
    w: NDArray[np.float64],
) -> tuple[bool, bool]:
    """Whether ``z - offset`` lacks the label's sign in any row; if not, whether any is not 0."""
    any_moved = False
    for i in range(n):
        own = z[i] - offset[i]
        if w[i] > 0.0:
            if loss != LOGISTIC or (own < 0.0 if y[i] > 0.5 else own > 0.0):
                return True, any_moved
            any_moved = any_moved or own != 0.0
    return False, any_moved


def inverse_link(loss: int, z: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of the response at scores `z`: sigmoid, identity or exponential."""
    if loss == LOGISTIC:
        t = np.exp(-np.abs(z))
        return np.where(z > 0, 1.0, t) / (1.0 + t)
    return z.copy() if loss == SQUARED else np.exp(np.minimum(z, 200.0))
