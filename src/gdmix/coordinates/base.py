"""What descent sees of a coordinate, of scores, and of a fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from gdmix import memory
from gdmix.glm.status import FitStatus
from gdmix.model.base import CoordinateModel

F64 = NDArray[np.float64]
Model = TypeVar("Model", bound=CoordinateModel)


@dataclass(frozen=True)
class FitReport:
    """How the fit of a coordinate ended: one model, or one per entity.

    Attributes
    ----------
    models
        Number of models fitted.
    statuses
        Number of models by how their fit ended; statuses without a model are absent.
    iterations
        Newton iterations, mean over models.
    gradient_norm
        Norm of the gradient over all coefficients of the coordinate.
    """

    models: int
    statuses: Mapping[FitStatus, int]
    iterations: float
    gradient_norm: float

    @staticmethod
    def merged(parts: Sequence[FitReport]) -> FitReport:
        """Return the report of all models, given those of some each."""
        models = sum(p.models for p in parts)
        statuses = {s: sum(p.statuses.get(s, 0) for p in parts) for s in FitStatus}
        return FitReport(
            models,
            {s: n for s, n in statuses.items() if n},
            sum(p.iterations * p.models for p in parts) / max(models, 1),
            float(np.linalg.norm([p.gradient_norm for p in parts])),
        )

    @staticmethod
    def of(
        status: NDArray[np.int8], iterations: NDArray[np.int32], gradient_norm: F64
    ) -> FitReport:
        """Sum up one entry per model."""
        counts = np.bincount(status, minlength=len(FitStatus))
        return FitReport(
            status.size,
            {s: int(counts[s]) for s in FitStatus if counts[s]},
            float(iterations.mean()) if iterations.size else 0.0,
            float(np.linalg.norm(gradient_norm)),
        )


@dataclass(frozen=True)
class Scores:
    """One coordinate's scores of the training rows and, if there are any, validation rows."""

    train: F64
    validation: F64 | None

    def plus(self, other: Scores) -> Scores:
        """Return the sum."""
        train, validation = memory.copy(self.train), None
        train += other.train
        if self.validation is not None and other.validation is not None:
            validation = memory.copy(self.validation)
            validation += other.validation
        return Scores(train, validation)


class Coordinate(Protocol[Model]):
    """One additive part of the model, bound to its rows; its models are of one kind.

    Offsets and scores are what the engine's `ScoreTable` gives and takes: arrays of this process,
    or what stands for those of a cluster.
    """

    def fit(self, offset: Any, warm_start: Model | None) -> tuple[Model, FitReport]:
        """Fit to the training rows, given the score that all else adds to each of them."""

    def start(self, model: Model) -> tuple[Model, Model | None]:
        """Divide an earlier model into what is fitted here and, if any, what stays as it is."""

    def score(self, model: Model) -> Any:
        """Score all rows, active and passive, training and validation."""

    def penalty(self, model: Model) -> float:
        """Return the penalty term of the objective."""


@runtime_checkable
class JudgedCoordinate(Protocol):
    """A coordinate whose fit may look at validation rows, to keep the best of several states."""

    def judged_beside(self, validation_offset: Callable[[], F64]) -> Coordinate[Any]:
        """Return the coordinate that knows what all else adds to validation rows, (n,)."""


class ScoreTable(Protocol):
    """The scores of all coordinates, wherever they are kept."""

    def put(self, name: str, scores: Any) -> None:
        """Set a coordinate's scores."""

    def total_without(self, name: str) -> Any:
        """Return base offset plus all other coordinates' training scores, summed anew."""

    def loss(self) -> float:
        """Return the weighted loss of the training rows, and the penalties that are held."""

    def evaluate(self) -> dict[str, float]:
        """Return the metrics of the validation rows, or of the training rows without any."""
