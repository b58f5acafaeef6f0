"""What can be evaluated: metrics that there are, of rows that are fit for them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gdmix.config import MetricSpec, Task, parse_metric
from gdmix.errors import ConfigError, DataError

F64 = NDArray[np.float64]


def specs_of(names: Sequence[str], columns: Collection[str]) -> dict[str, MetricSpec]:
    """Take the names of metrics apart.

    Parameters
    ----------
    columns
        The grouping columns that there are.

    Raises
    ------
    ConfigError
        If there is no such metric or no such grouping column.
    """
    specs = {name: parse_metric(name) for name in names}
    for name, spec in specs.items():
        if spec.column is not None and spec.column not in columns:
            known = ", ".join(sorted(columns)) or "none"
            raise ConfigError(
                f"metric '{name}': no grouping column '{spec.column}'; there are: {known}"
            )
    return specs


@dataclass(frozen=True)
class Rows:
    """What a metric is made of, (n,) each: see `evaluate`."""

    score: F64
    response: F64
    weight: F64

    def __getitem__(self, rows: slice | NDArray[Any]) -> Rows:
        return Rows(self.score[rows], self.response[rows], self.weight[rows])

    @property
    def counted(self) -> slice | NDArray[np.bool_]:
        """Which rows have a positive weight; as a slice, so that none is copied, if all have."""
        mask = self.weight > 0
        return slice(None) if mask.all() else mask


@dataclass(frozen=True)
class Checks:
    """What is wrong with rows, counted.

    Attributes
    ----------
    rows
        Number of all rows.
    bad_weights
        Rows whose weight is negative or not finite.
    counted
        Rows of positive weight; the rest is about these.
    nan_scores, nan_responses
        Rows where it is NaN.
    others
        The least and the greatest response that is neither 0 nor 1; nothing without any.
    """

    rows: int
    bad_weights: int
    counted: int
    nan_scores: int
    nan_responses: int
    others: tuple[float, ...]

    @classmethod
    def of(cls, rows: Rows) -> Checks:
        """Check rows, those of weight zero among them."""
        weight, response = rows.weight, rows.response
        counts = weight > 0
        other = counts & (response != 0) & (response != 1)
        return cls(
            rows=weight.size,
            bad_weights=_number(~(np.isfinite(weight) & (weight >= 0))),
            counted=_number(counts),
            nan_scores=_number(counts & np.isnan(rows.score)),
            nan_responses=_number(counts & np.isnan(response)),
            others=_ends(response[other]),
        )

    @classmethod
    def total(cls, parts: Sequence[Checks]) -> Checks:
        """Return the checks of the rows of all parts."""
        return cls(
            rows=sum(p.rows for p in parts),
            bad_weights=sum(p.bad_weights for p in parts),
            counted=sum(p.counted for p in parts),
            nan_scores=sum(p.nan_scores for p in parts),
            nan_responses=sum(p.nan_responses for p in parts),
            others=_ends(np.array([x for p in parts for x in p.others])),
        )

    def require(self, specs: Mapping[str, MetricSpec], task: Task) -> None:
        """Refuse rows that these metrics can't be computed of.

        Raises
        ------
        DataError
            As `evaluate` says.
        """
        _reject(self.bad_weights, self.rows, "a weight that is negative or not finite")
        _reject(self.nan_scores, self.counted, "a score of NaN")
        _reject(self.nan_responses, self.counted, "a response of NaN")
        if not self.others:
            return
        least, greatest = self.others
        regression = "poisson_loss" if task == "poisson_regression" else "rmse"
        for name, spec in specs.items():
            if spec.needs_binary_labels:
                graded = spec.column is not None and least >= 0
                instead = f"ndcg@{spec.k or 10}:{spec.column}" if graded else regression
                need, example = "a response of 0 and 1 only", greatest
            elif spec.kind == "ndcg" and least < 0:
                need, example, instead = "a non-negative response", least, regression
            else:
                continue
            raise DataError(
                f"metric '{name}' needs {need}, but the response has other values, such as "
                f"{example:g}; use '{instead}' instead"
            )


def _number(mask: NDArray[np.bool_]) -> int:
    return int(np.count_nonzero(mask))


def _ends(values: F64) -> tuple[float, ...]:
    return (float(values.min()), float(values.max())) if values.size else ()


def _reject(bad: int, of: int, what: str) -> None:
    if bad:
        raise DataError(f"{bad} of {of} rows to evaluate have {what}; drop or mend these rows")
