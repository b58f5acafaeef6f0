"""The fixed effect: one linear model over all rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gdmix.config import FixedEffect
from gdmix.coordinates.base import FitReport, Scores
from gdmix.data.dataset import Dataset
from gdmix.glm.large import SparseMap, fit_large
from gdmix.model.coefficients import FixedCoefficients
from gdmix.model.mixed_model import LinearModel

F64 = NDArray[np.float64]


class FixedEffectCoordinate:
    """A fixed effect bound to its rows.

    Parameters
    ----------
    spec
        What to fit.
    train, validation
        The rows.
    loss
        A loss of `gdmix.glm.losses`.
    threads
        Number of threads.
    """

    def __init__(
        self,
        spec: FixedEffect,
        train: Dataset,
        validation: Dataset | None,
        loss: int,
        threads: int,
    ) -> None:
        self._spec, self._loss, self._threads = spec, loss, threads
        self._train = train
        self._design = train.design(spec.features)
        self._validation = None if validation is None else validation.design(spec.features)
        self._penalty = np.full(self._design.n_columns + 1, spec.l2)
        self._penalty[0] = spec.l2 if spec.regularize_intercept else 0.0

    def fit(self, offset: F64, warm_start: LinearModel | None) -> tuple[LinearModel, FitReport]:
        """Fit to the training rows."""
        spec = self._spec
        fit = fit_large(
            self._design,
            self._train.response,
            self._train.weight,
            offset,
            loss=self._loss,
            penalty=self._penalty,
            intercept=spec.intercept,
            tolerance=spec.tolerance,
            max_iterations=spec.max_iterations,
            start=None if warm_start is None else warm_start.coefficients.values,
            threads=self._threads,
        )
        model = LinearModel(spec.features, spec.intercept, FixedCoefficients(fit.coefficients))
        return model, FitReport(1, {fit.status: 1}, fit.iterations, fit.gradient_norm)

    def start(self, model: LinearModel) -> tuple[LinearModel, LinearModel | None]:
        """Take an earlier model as it is."""
        return model, None

    def score(self, model: LinearModel) -> Scores:
        """Score training and validation rows."""
        coefficients = model.coefficients
        assert isinstance(coefficients, FixedCoefficients)
        validation = None
        if self._validation is not None:
            validation = coefficients.score(self._validation, self._threads)
        return Scores(coefficients.score(self._design, self._threads), validation)

    def linear_map(self) -> SparseMap:
        """Return the design of the training rows."""
        return SparseMap(self._design, self._spec.intercept, self._threads)

    def penalty_vector(self) -> F64:
        """Return the L2 weight of each coefficient, (d,)."""
        return self._penalty

    def penalty(self, model: LinearModel) -> float:
        """Return the penalty term of the objective."""
        values = model.coefficients.values
        return 0.5 * float(values @ (self._penalty * values))
