"""Sums over the models of many entities, column by column."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gdmix.glm.compiled import kernel

F64 = NDArray[np.float64]


@kernel
def column_totals(
    columns: NDArray[np.uint32], values: F64, totals: F64, counts: NDArray[np.int64]
) -> None:
    """Add each coefficient to its column's total, and count it."""
    for k in range(columns.size):
        totals[columns[k]] += values[k]
        counts[columns[k]] += 1


@kernel
def shift_columns(columns: NDArray[np.uint32], shift: F64, values: F64) -> None:
    """Subtract its column's shift from each coefficient."""
    for k in range(columns.size):
        values[k] -= shift[columns[k]]


@kernel
def weighted_squares(columns: NDArray[np.uint32], values: F64, weight: F64) -> float:
    """Return the sum of the squared coefficients, each times its column's weight."""
    total = 0.0
    for k in range(columns.size):
        total += weight[columns[k]] * values[k] * values[k]
    return total
