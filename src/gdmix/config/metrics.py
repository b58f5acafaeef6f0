"""Metrics by name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from gdmix.errors import ConfigError, did_you_mean

Task = Literal["logistic_regression", "linear_regression", "poisson_regression"]


@dataclass(frozen=True)
class MetricSpec:
    """A metric's name taken apart: ``precision@5:user_id`` is ("precision", 5, "user_id").

    Attributes
    ----------
    kind
        One of `PLAIN_METRICS` or `GROUPED_METRICS`.
    k
        Length of the ranked list, for ``precision@k`` and ``ndcg@k``.
    column
        The grouping column of a grouped metric.
    """

    kind: str
    k: int | None = None
    column: str | None = None

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger value is a better model."""
        return self.kind in {"auc", "aupr", "precision", "ndcg", "mrr"}

    @property
    def needs_binary_labels(self) -> bool:
        """Whether the response must be 0 or 1."""
        return self.kind in {"auc", "aupr", "logloss", "precision", "mrr"}


PLAIN_METRICS = ("auc", "aupr", "logloss", "rmse", "mae", "poisson_loss")
GROUPED_METRICS = ("auc:<column>", "precision@<k>:<column>", "ndcg@<k>:<column>", "mrr:<column>")
_GROUPED = re.compile(r"(?:(auc|mrr)|(precision|ndcg)@([1-9][0-9]*)):(.+)")


def parse_metric(name: str) -> MetricSpec:
    """Take a metric's name apart.

    Raises
    ------
    ConfigError
        If there is no such metric.
    """
    if name in PLAIN_METRICS:
        return MetricSpec(name)
    if match := _GROUPED.fullmatch(name):
        plain, ranked, k, column = match.groups()
        return MetricSpec(plain or ranked, int(k) if k else None, column)
    hint = did_you_mean(name, PLAIN_METRICS)
    known = ", ".join(PLAIN_METRICS + GROUPED_METRICS)
    raise ConfigError(f"unknown metric '{name}'{hint}; known: {known}")


DEFAULT_METRICS: dict[Task, tuple[str, ...]] = {
    "logistic_regression": ("auc", "logloss"),
    "linear_regression": ("rmse", "mae"),
    "poisson_regression": ("poisson_loss", "rmse"),
}
