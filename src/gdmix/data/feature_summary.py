"""What the features of a design matrix are like: counts, moments and extremes of each column.

One pass over the stored values. Moments are updated by deviations from the running mean
(Welford 1962), and the parts that threads went through are merged likewise (Chan, Golub and
LeVeque 1983), so that a mean far from 0 costs no digits of the variance. A value that a row
does not hold is 0, and counts as such.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gdmix import memory
from gdmix.glm.compiled import kernel
from gdmix.glm.matrix import CsrMatrix
from gdmix.glm.threads import map_ordered, split_evenly

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

# What is kept of a column while rows pass by: together one line of the processor's cache.
_WEIGHT, _MEAN, _SQUARES, _MAGNITUDES, _COUNT, _MINIMUM, _MAXIMUM, _FIELDS = range(8)
_LEAST_VALUES_PER_COLUMN = 16  # of a part: merging it must be little work
_MOST_PARTS = 32


@dataclass(frozen=True)
class FeatureSummary:
    """What each column of a design matrix is like, over all rows, absent values being 0.

    Attributes
    ----------
    n_rows
        Number of rows, of whatever weight.
    nnz
        (columns,) int64 number of rows whose value is not 0, of whatever weight.
    mean
        (columns,) float64, weighted by row if weights were given.
    variance
        (columns,) float64 sample variance, that is ``sum (x - mean)^2 / (n - 1)``. With
        weights it is ``sum w (x - mean)^2 / (sum w - sum w^2 / sum w)``, which is the same
        for equal weights and for weights times a number. 0 where there is no more than one row.
    mean_magnitude
        (columns,) float64 mean of the absolute value, weighted as the mean is.
    minimum, maximum
        (columns,) float64, of rows of whatever weight.
    """

    n_rows: int
    nnz: I64
    mean: F64
    variance: F64
    mean_magnitude: F64
    minimum: F64
    maximum: F64

    @property
    def standard_deviation(self) -> F64:
        """(columns,) square root of the variance."""
        return np.sqrt(self.variance)

    @property
    def max_magnitude(self) -> F64:
        """(columns,) maximum of |x|."""
        return np.maximum(self.maximum, -self.minimum)


@dataclass(frozen=True)
class Moments:
    """What some rows add to a summary.

    Attributes
    ----------
    n_rows
        Number of rows.
    weight, squared_weight
        Sum of their weights, and of the weights' squares.
    fields
        Sums and extremes of each column's values that are not 0.
    """

    n_rows: int
    weight: float
    squared_weight: float
    fields: F64

    def plus(self, other: Moments) -> Moments:
        """Return those of both."""
        fields = memory.copy(self.fields)
        _merge(other.fields, fields)
        return Moments(
            self.n_rows + other.n_rows,
            self.weight + other.weight,
            self.squared_weight + other.squared_weight,
            fields,
        )

    def summary(self) -> FeatureSummary:
        """Return what the columns are like."""
        w = self.weight
        return _finished(self.fields, self.n_rows, w, w - self.squared_weight / w if w else 0.0)


def summarize(design: CsrMatrix, weight: F64 | None = None, threads: int = 1) -> FeatureSummary:
    """Return counts, moments and extremes of every column.

    The result does not depend on the number of threads.

    Parameters
    ----------
    design
        (n, columns), sparse or dense.
    weight
        (n,) non-negative row weights of the moments; default: every row counts as 1.
    """
    return moments(design, weight, threads).summary()


def moments(design: CsrMatrix, weight: F64 | None = None, threads: int = 1) -> Moments:
    """Return what the rows of a design add to a summary; parameters as of `summarize`."""
    n, d = design.n_rows, design.n_columns
    weights = np.empty(0) if weight is None else weight
    most_parts = design.nnz // (_LEAST_VALUES_PER_COLUMN * max(d, 1))
    parts = split_evenly(n, min(max(most_parts, 1), _MOST_PARTS))

    def of_part(part: tuple[int, int]) -> F64:
        own = memory.zeros(d * _FIELDS)
        if design.is_dense:
            _add_dense_rows(*part, design.indptr, design.values, d, weights, own)
        else:
            _add_rows(*part, design.indptr, design.indices, design.values, weights, own)
        return own

    total = memory.zeros(d * _FIELDS)
    for own in map_ordered(of_part, parts, threads):
        _merge(own, total)
    if weight is None:
        return Moments(n, float(n), float(n), total)
    return Moments(n, float(weight.sum()), float(weight @ weight), total)


def _finished(total: F64, n: int, whole: float, freedom: float) -> FeatureSummary:
    d = total.size // _FIELDS
    nnz = memory.empty(d, np.int64)
    mean, variance, magnitude, minimum, maximum = (memory.empty(d) for _ in range(5))
    _add_absent(total, n, whole, freedom, nnz, mean, variance, magnitude, minimum, maximum)
    return FeatureSummary(n, nnz, mean, variance, magnitude, minimum, maximum)


@kernel
def _add_value(moments: F64, first: int, x: float, w: float) -> None:
    """Add a value that is not 0 to the fields of its column."""
    if moments[first + _COUNT] == 0.0:
        moments[first + _MINIMUM] = x
        moments[first + _MAXIMUM] = x
    else:
        moments[first + _MINIMUM] = min(moments[first + _MINIMUM], x)
        moments[first + _MAXIMUM] = max(moments[first + _MAXIMUM], x)
    moments[first + _COUNT] += 1.0
    if w > 0.0:
        total = moments[first + _WEIGHT] + w
        if moments[first + _WEIGHT] == 0.0:  # exactly: a constant's variance is then 0
            moments[first + _MEAN] = x
        deviation = x - moments[first + _MEAN]
        step = deviation * w / total
        moments[first + _WEIGHT] = total
        moments[first + _MEAN] += step
        moments[first + _SQUARES] += w * deviation * (deviation - step)
        moments[first + _MAGNITUDES] += w * abs(x)


@kernel
def _add_rows(
    start: int,
    stop: int,
    indptr: I64,
    indices: NDArray[np.uint32],
    values: NDArray[np.float32],
    weight: F64,
    moments: F64,
) -> None:
    for i in range(start, stop):
        w = weight[i] if weight.size > 0 else 1.0
        for q in range(np.uint64(indptr[i]), np.uint64(indptr[i + 1])):
            if values[q] != 0.0:
                _add_value(moments, indices[q] * np.uint64(_FIELDS), np.float64(values[q]), w)


@kernel
def _add_dense_rows(
    start: int,
    stop: int,
    starts: I64,
    values: NDArray[np.float32],
    d: int,
    weight: F64,
    moments: F64,
) -> None:
    for i in range(start, stop):
        w = weight[i] if weight.size > 0 else 1.0
        for j in range(d):
            x = values[starts[i] + j]
            if x != 0.0:
                _add_value(moments, j * _FIELDS, np.float64(x), w)


@kernel
def _merge(part: F64, total: F64) -> None:
    """Add the moments of other rows."""
    for first in range(0, total.size, _FIELDS):
        if part[first + _COUNT] == 0.0:
            continue
        if total[first + _COUNT] == 0.0:
            for k in range(_FIELDS):
                total[first + k] = part[first + k]
            continue
        total[first + _COUNT] += part[first + _COUNT]
        total[first + _MINIMUM] = min(total[first + _MINIMUM], part[first + _MINIMUM])
        total[first + _MAXIMUM] = max(total[first + _MAXIMUM], part[first + _MAXIMUM])
        w, other = total[first + _WEIGHT], part[first + _WEIGHT]
        if other > 0.0:
            difference = part[first + _MEAN] - total[first + _MEAN]
            share = other / (w + other)
            total[first + _WEIGHT] = w + other
            total[first + _MEAN] += difference * share
            total[first + _SQUARES] += part[first + _SQUARES] + difference * difference * w * share
            total[first + _MAGNITUDES] += part[first + _MAGNITUDES]


@kernel
def _add_absent(
    total: F64,
    n: int,
    whole: float,
    freedom: float,
    nnz: I64,
    mean: F64,
    variance: F64,
    magnitude: F64,
    minimum: F64,
    maximum: F64,
) -> None:
    """Count the rows that lack a column as 0, and divide sums by what they are to be."""
    for j in range(nnz.size):
        first = j * _FIELDS
        count = np.int64(total[first + _COUNT])
        nnz[j] = count
        minimum[j], maximum[j] = total[first + _MINIMUM], total[first + _MAXIMUM]
        if count < n:
            minimum[j], maximum[j] = min(minimum[j], 0.0), max(maximum[j], 0.0)
        # The weight of absent values: none where there are none, whatever rounding says.
        share = min(total[first + _WEIGHT] / whole, 1.0) if whole > 0.0 else 0.0
        if count == n:
            share = 1.0
        own = total[first + _MEAN]
        mean[j] = own * share
        magnitude[j] = total[first + _MAGNITUDES] / whole if whole > 0.0 else 0.0
        squares = total[first + _SQUARES] + own * own * share * (1.0 - share) * whole
        variance[j] = squares / freedom if freedom > 0.0 else 0.0
