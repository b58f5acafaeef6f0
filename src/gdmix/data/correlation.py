"""How much each column of a design goes with the response.

Sums of parts of the rows can be added, so that rows may lie in many places.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gdmix import memory
from gdmix.data.feature_summary import FeatureSummary, summarize
from gdmix.glm.compiled import kernel
from gdmix.glm.matrix import CsrMatrix
from gdmix.glm.threads import map_ordered, split_evenly

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

_PARTS = 32
ROUNDING = 1e-12  # of a sum of squares: what may be left of it where all is constant


@dataclass(frozen=True)
class ResponseMoments:
    """Weighted moments of the response of some rows.

    Attributes
    ----------
    first, shift
        The response of a row, and what the mean is above it.
    weight, squared_weight
        Sum of the rows' weights, and of the weights' squares.
    squares
        Weighted sum of squared deviations from the mean.
    """

    first: float
    shift: float
    weight: float
    squared_weight: float
    squares: float

    @staticmethod
    def of(response: F64, weight: F64) -> ResponseMoments:
        """Take the moments of rows."""
        whole = float(weight.sum())
        if whole <= 0.0:
            return ResponseMoments(0.0, 0.0, 0.0, 0.0, 0.0)
        shifted = response - response[0]
        shift = float(shifted @ weight) / whole
        centred = shifted - shift
        squares = float(weight @ (centred * centred))
        return ResponseMoments(float(response[0]), shift, whole, float(weight @ weight), squares)

    def plus(self, other: ResponseMoments) -> ResponseMoments:
        """Return those of both parts' rows (Chan, Golub and LeVeque 1983)."""
        if self.weight == 0.0 or other.weight == 0.0:
            return other if self.weight == 0.0 else self
        apart = other.first - self.first + other.shift - self.shift
        whole = self.weight + other.weight
        share = other.weight / whole
        return ResponseMoments(
            self.first,
            self.shift + apart * share,
            whole,
            self.squared_weight + other.squared_weight,
            self.squares + other.squares + apart * apart * self.weight * share,
        )

    @property
    def is_constant(self) -> bool:
        """Whether all that weighs is the same, but for rounding."""
        return self.squares <= ROUNDING * (self.squares + self.weight * self.shift**2)

    def centred(self, response: F64) -> F64:
        """Return responses less the mean."""
        return response - self.first - self.shift


def correlations(
    design: CsrMatrix,
    response: F64,
    weight: F64,
    summary: FeatureSummary | None = None,
    threads: int = 1,
) -> F64:
    """Return Pearson's correlation of every column with the response, (columns,).

    A column, or a response, that is constant has correlation 0. The result does not depend on
    the number of threads.

    Parameters
    ----------
    design
        (n, columns), sparse.
    weight
        (n,) row weights of all moments.
    summary
        Of the same design and weights, if it is known already.
    """
    summary = summary or summarize(design, weight, threads)
    own = ResponseMoments.of(response, weight)
    if own.is_constant:
        return np.zeros(design.n_columns)
    products = products_with(design, own.centred(response), weight, summary.mean, threads)
    return correlations_of(summary, own, products)


def products_with(design: CsrMatrix, centred: F64, weight: F64, mean: F64, threads: int = 1) -> F64:
    """Return what rows add to the covariance of columns and response: (2 columns,), sums.

    Parameters
    ----------
    centred
        (n,) responses less their mean over all rows.
    mean
        (columns,) of each column over all rows.
    """
    d = design.n_columns

    def of_part(part: tuple[int, int]) -> F64:
        sums = memory.zeros(2 * d)
        _add_products(
            *part,
            design.indptr,
            design.indices,
            design.values,
            centred,
            weight,
            mean,
            sums,
        )
        return sums

    parts = split_evenly(design.n_rows, min(_PARTS, design.nnz // (16 * max(d, 1)) + 1))
    total = memory.zeros(2 * d)
    for sums in map_ordered(of_part, parts, threads):
        total += sums
    return total


def correlations_of(summary: FeatureSummary, response: ResponseMoments, products: F64) -> F64:
    """Return every column's correlation with the response, (columns,), from sums over all rows.

    Parameters
    ----------
    summary
        Of the columns, weighted.
    products
        The sum of what `products_with` returns.
    """
    result = np.zeros(summary.nnz.size)
    if response.is_constant:
        return result
    whole = response.weight
    of_columns = summary.variance * (whole - response.squared_weight / whole)
    # Deviations of absent values from the mean: the centred responses of all rows sum to 0.
    absent = np.where(summary.nnz == summary.n_rows, 0.0, products[1::2])
    covariance = products[::2] + summary.mean * absent
    spread = np.sqrt(of_columns * response.squares)
    return np.divide(covariance, spread, out=result, where=spread > 0.0)


@kernel
def _add_products(
    start: int,
    stop: int,
    indptr: I64,
    indices: NDArray[np.uint32],
    values: NDArray[np.float32],
    centred: F64,
    weight: F64,
    mean: F64,
    sums: F64,
) -> None:
    """Add per column, side by side, w (x - mean) y and w y, y being centred."""
    for i in range(start, stop):
        y = weight[i] * centred[i]
        for q in range(np.uint64(indptr[i]), np.uint64(indptr[i + 1])):
            j = indices[q]
            if values[q] != 0.0:
                place = np.uint64(2) * np.uint64(j)
                sums[place] += (np.float64(values[q]) - mean[j]) * y
                sums[place + np.uint64(1)] += y
