"""The random effect: one small linear model per entity."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gdmix import memory
from gdmix.config import RandomEffect
from gdmix.coordinates.base import FitReport, Scores
from gdmix.data.active_rows import ActiveRows, RowLimits, choose_rows
from gdmix.data.dataset import Dataset
from gdmix.data.entity_blocks import GroupedRows, columns_of_rows, group_passive, group_rows
from gdmix.data.validate import counted
from gdmix.glm.block_map import BlockMap
from gdmix.glm.entities import fit_entities
from gdmix.glm.objective import dot
from gdmix.glm.scoring import score_block
from gdmix.model.coefficients import RandomCoefficients, entity_numbers, positions
from gdmix.model.mixed_model import LinearModel

F64 = NDArray[np.float64]

log = logging.getLogger("gdmix")


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
    seed
        Of the sample of active rows.

    Attributes
    ----------
    uncovered
        (columns,) whether some training row has the column but no coefficient of it.
    """

    def __init__(
        self,
        spec: RandomEffect,
        train: Dataset,
        validation: Dataset | None,
        loss: int,
        threads: int,
        seed: int = 0,
    ) -> None:
        self._spec, self._loss, self._threads = spec, loss, threads
        keys = train.keys[spec.key]
        limits = RowLimits(spec.min_active_rows, spec.max_active_rows, spec.reweight, seed)
        chosen = choose_rows(keys.codes, len(keys.values), train.uid, train.weight, limits)
        _report(spec.name, chosen, len(keys.values))
        self._keys, self._chosen = keys, chosen.entities
        self._entities = keys.values.take(pa.array(chosen.entities))
        design = train.design(spec.features)
        self._rows = group_rows(
            design,
            chosen.active,
            len(self._entities),
            train.response,
            chosen.weight,
            threads,
        )
        self.uncovered = np.zeros(design.n_columns + 1, np.bool_)
        self._passive: GroupedRows | None = None
        model = chosen.active  # of each row
        if chosen.passive is not None:
            self._passive, self.uncovered = group_passive(
                design, chosen.passive, self._rows, threads
            )
            model = memory.empty(train.n_rows, np.int32)
            np.maximum(chosen.active, chosen.passive, out=model)
            self._all = design, model
        without = model < 0
        if without.any():
            self.uncovered |= columns_of_rows(design, without)
        self._validation = None
        if validation is not None:
            numbers = entity_numbers(validation.keys[spec.key], self._entities, spec.key)
            self._validation = (validation.design(spec.features), numbers)
        self._intercept_l2 = spec.l2 if spec.regularize_intercept else 0.0

    def fit(self, offset: F64, warm_start: LinearModel | None) -> tuple[LinearModel, FitReport]:
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
        model = LinearModel(spec.features, spec.intercept, coefficients, spec.key)
        return model, FitReport.of(fit.status, fit.iterations, fit.gradient_norm)

    def score(self, model: LinearModel) -> Scores:
        """Score training rows by their local columns, validation rows by name."""
        coefficients = model.coefficients
        assert isinstance(coefficients, RandomCoefficients)
        train = self._score_group(self._rows, coefficients.values)
        if self._passive is not None:
            train += self._score_group(self._passive, coefficients.values)
        validation = None
        if self._validation is not None:
            validation = coefficients.score(*self._validation, self._threads)
        return Scores(train, validation)

    def start(self, model: LinearModel) -> tuple[LinearModel, LinearModel | None]:
        """Divide an earlier model: the start of the entities that are fitted here, and the rest.

        Raises
        ------
        DataError
            If one side's entities are integers and the other's strings.
        """
        theirs, block = model.coefficients, self._rows.block
        assert isinstance(theirs, RandomCoefficients)
        numbers = positions(self._keys, theirs.entities, self._spec.key)[self._chosen]
        values = theirs.values_of(numbers, block.coefficient_ptr, self._rows.columns)
        own = RandomCoefficients(self._entities, block.coefficient_ptr, self._rows.columns, values)
        is_rest = np.ones(len(theirs), np.bool_)
        is_rest[numbers[numbers >= 0]] = False
        rest = np.flatnonzero(is_rest)
        others = replace(model, coefficients=theirs.take(rest)) if rest.size else None
        return replace(model, coefficients=own), others

    def _score_group(self, group: GroupedRows, values: F64) -> F64:
        return group.rows.scatter(score_block(group.block, values, self._threads))

    def linear_map(self) -> BlockMap:
        """Return the design of the training rows, passive ones too: they are scored as well."""
        group = self._rows
        if self._passive is not None:
            group, _ = group_passive(*self._all, group, self._threads)
        return BlockMap(group.block, group.rows, self._spec.intercept, self._threads)

    def penalty_vector(self) -> F64:
        """Return the L2 weight of each coefficient, ragged."""
        pointers = self._rows.block.coefficient_ptr
        penalty = memory.full(int(pointers[-1]), self._spec.l2)
        penalty[pointers[:-1]] = self._intercept_l2
        return penalty

    def penalty(self, model: LinearModel) -> float:
        """Return the penalty term of the objective."""
        values = model.coefficients.values
        intercepts = values[self._rows.block.coefficient_ptr[:-1]]
        total = dot(values.size, values, values)
        of_intercepts = dot(intercepts.size, intercepts, intercepts)
        return 0.5 * (self._spec.l2 * (total - of_intercepts) + self._intercept_l2 * of_intercepts)


def _report(name: str, chosen: ActiveRows, n_entities: int) -> None:
    """Say what has no model, and which rows are passive."""
    n = chosen.entities.size
    if n < n_entities:
        text = "%s: %s of %s entities have too few rows for a model"
        level = logging.INFO if n else logging.WARNING
        log.log(level, text, name, f"{n_entities - n:,}", f"{n_entities:,}")
    if chosen.passive is not None:
        passive = counted(int(np.count_nonzero(chosen.passive >= 0)))
        log.info("%s: %s of entities with many are passive", name, passive)
