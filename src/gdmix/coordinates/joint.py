"""All linear coordinates at once: the certified optimum of the joint problem.

Block descent has a long tail where coordinates share what they explain. Newton's method on the
crossed design of all coordinates has none, and ends with the norm of the joint gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from gdmix.coordinates.base import Coordinate, FitReport
from gdmix.coordinates.regularization import Regularization
from gdmix.coordinates.uncertainty import UncertainCoordinate
from gdmix.glm.joint import JointMap, PreconditionedMap
from gdmix.glm.newton import Labels, minimize
from gdmix.glm.penalty import QuadraticPenalty
from gdmix.model.linear import LinearModel

F64 = NDArray[np.float64]


@runtime_checkable
class LinearCoordinate(UncertainCoordinate, Protocol):
    """A coordinate whose scores are linear in its d coefficients."""

    def linear_map(self) -> PreconditionedMap:
        """Return the design of the training rows."""

    regularization: Regularization
    is_plain: bool
    """Whether the penalty is an L2 weight per column and nothing else."""

    def reweighted(self, spec: Any, regularization: Regularization) -> Coordinate[LinearModel]:
        """Return the coordinate of the same rows with another penalty."""

    def penalty_vector(self) -> F64:
        """Return the L2 weight of each coefficient, (d,)."""


def fit_jointly(
    coordinates: Mapping[str, LinearCoordinate],
    models: Mapping[str, LinearModel],
    labels: Labels,
    tolerance: float,
    max_iterations: int,
) -> tuple[dict[str, LinearModel], FitReport]:
    """Fit all coordinates at once.

    Parameters
    ----------
    models
        Where to start.
    labels
        The training rows; their offset is all that is not among the coordinates.
    tolerance
        Norm of the joint gradient relative to the one at zero coefficients.

    Returns
    -------
    tuple
        The models, and a report of one fit.
    """
    design = JointMap([c.linear_map() for c in coordinates.values()], labels.response.size)
    minimum = minimize(
        design,
        labels,
        QuadraticPenalty(np.concatenate([c.penalty_vector() for c in coordinates.values()])),
        intercept=False,
        tolerance=tolerance,
        max_iterations=max_iterations,
        start=np.concatenate([models[name].coefficients.values for name in coordinates]),
    )
    fitted = {
        name: replace(
            models[name], coefficients=replace(models[name].coefficients, values=own.copy())
        )
        for name, own in zip(coordinates, design.split(minimum.coefficients), strict=True)
    }
    report = FitReport(1, {minimum.status: 1}, minimum.iterations, minimum.gradient_norm)
    return fitted, report
