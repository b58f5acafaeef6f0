"""The random effect: one small linear model per entity."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gdmix import memory
from gdmix.config import RandomEffect
from gdmix.coordinates.base import FitReport, Scores
from gdmix.data.dataset import Dataset
from gdmix.data.entity_blocks import group_rows
from gdmix.glm.block_map import BlockMap
from gdmix.glm.entities import fit_entities
from gdmix.glm.objective import dot
from gdmix.glm.scoring import score_block
from gdmix.model.coefficients import RandomCoefficients, entity_numbers
from gdmix.model.mixed_model import CoordinateModel

F64 = NDArray[np.float64]


class RandomEffectCoordinate:
    """A random effect bound to its rows.

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
        spec: RandomEffect,
        train: Dataset,
        validation: Dataset | None,
        loss: int,
        threads: int,
    ) -> None:
        self._spec, self._loss, self._threads = spec, loss, threads
        keys = train.keys[spec.entity]
        self._entities = keys.values
        self._rows = group_rows(
            train.design(spec.features),
            keys.codes,
            len(keys.values),
            train.response,
            train.weight,
            threads,
        )
        self._validation = None
        if validation is not None:
            numbers = entity_numbers(validation.keys[spec.entity], self._entities, spec.entity)
            self._validation = (validation.design(spec.features), numbers)
        self._intercept_l2 = spec.l2 if spec.regularize_intercept else 0.0

    def fit(
        self, offset: F64, warm_start: CoordinateModel | None
    ) -> tuple[CoordinateModel, FitReport]:
        """Fit every entity's model to its rows."""
        spec, rows = self._spec, self._rows
        fit = fit_entities(
            rows.block,
            rows.rows.gather(offset),
            loss=self._loss,
            l2=spec.l2,
            intercept_l2=self._intercept_l2,
            intercept=spec.intercept,
            tolerance=spec.tolerance,
            max_iterations=spec.max_iterations,
            start=None if warm_start is None else warm_start.coefficients.values,
            threads=self._threads,
        )
        coefficients = RandomCoefficients(
            self._entities, rows.block.coefficient_ptr, rows.columns, fit.coefficients
        )
        model = CoordinateModel(spec.features, spec.intercept, coefficients, spec.entity)
        return model, FitReport.of(fit.status, fit.iterations, fit.gradient_norm)

    def score(self, model: CoordinateModel) -> Scores:
        """Score training rows by their local columns, validation rows by name."""
        coefficients = model.coefficients
        assert isinstance(coefficients, RandomCoefficients)
        rows = self._rows
        train = rows.rows.scatter(score_block(rows.block, coefficients.values, self._threads))
        validation = None
        if self._validation is not None:
            validation = coefficients.score(*self._validation, self._threads)
        return Scores(train, validation)

    def linear_map(self) -> BlockMap:
        """Return the design of the training rows."""
        return BlockMap(self._rows.block, self._rows.rows, self._spec.intercept, self._threads)

    def penalty_vector(self) -> F64:
        """Return the L2 weight of each coefficient, ragged."""
        pointers = self._rows.block.coefficient_ptr
        penalty = memory.full(int(pointers[-1]), self._spec.l2)
        penalty[pointers[:-1]] = self._intercept_l2
        return penalty

    def penalty(self, model: CoordinateModel) -> float:
        """Return the penalty term of the objective."""
        values = model.coefficients.values
        intercepts = values[self._rows.block.coefficient_ptr[:-1]]
        total = dot(values.size, values, values)
        of_intercepts = dot(intercepts.size, intercepts, intercepts)
        return 0.5 * (self._spec.l2 * (total - of_intercepts) + self._intercept_l2 * of_intercepts)
