"""The random effect: one small linear model per entity."""

from __future__ import annotations

import logging
from collections.abc import Collection
from copy import copy
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gdmix import memory
from gdmix.config import RandomEffect
from gdmix.coordinates.base import FitReport, Scores
from gdmix.coordinates.prior import EarlierModel
from gdmix.coordinates.regularization import Regularization
from gdmix.coordinates.uncertainty import (
    CurvatureKind,
    check_room_for_matrices,
    kinds_of,
    needs_matrices,
)
from gdmix.data.active_rows import (
    ActiveRows,
    RowLimits,
    RowsElsewhere,
    choose_rows,
    sample_negatives,
)
from gdmix.data.dataset import Dataset
from gdmix.data.entity_blocks import (
    GroupedRows,
    columns_of_rows,
    group_passive,
    group_rows,
    with_columns,
)
from gdmix.data.feature_selection import limit_features
from gdmix.data.validate import counted
from gdmix.glm.block_map import BlockMap
from gdmix.glm.entities import fit_entities
from gdmix.glm.objective import dot
from gdmix.glm.scoring import score_block
from gdmix.glm.variance import entity_curvature, hessian_pointers
from gdmix.model.coefficients import RandomCoefficients, entity_numbers, positions
from gdmix.model.linear import LinearModel

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
    regularization
        Its penalty.
    seed
        Of the sample of active rows.
    prior
        An earlier model to start from and to stay near.
    elsewhere
        Passive rows of these entities that are scored by someone else.

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
        regularization: Regularization,
        seed: int = 0,
        prior: EarlierModel | None = None,
        elsewhere: RowsElsewhere | None = None,
    ) -> None:
        self._spec, self._loss, self._threads = spec, loss, threads
        keys = train.keys[spec.key]
        limits = RowLimits(spec.min_active_rows, spec.max_active_rows, spec.reweight, seed)
        stands = None
        if spec.negative_sampling is not None:
            stands = sample_negatives(
                train.uid, train.response, spec.negative_sampling, seed, spec.name
            )
        further = None if elsewhere is None else elsewhere.counts
        chosen = choose_rows(
            keys.codes, len(keys.values), train.uid, train.weight, limits, stands, further
        )
        _report(spec.name, chosen, len(keys.values))
        self._keys, self._chosen = keys, chosen.entities
        self._entities = keys.values.take(pa.array(chosen.entities))
        design = train.design(spec.features)
        if spec.features_to_samples_ratio is not None:
            design = design.sparse()
        self._rows = group_rows(
            design,
            chosen.active,
            len(self._entities),
            train.response,
            chosen.weight,
            threads,
        )
        self.uncovered = np.zeros(design.n_columns + 1, np.bool_)
        if spec.features_to_samples_ratio is not None:
            self._rows, self.uncovered = limit_features(
                self._rows, spec.features_to_samples_ratio, design.n_columns + 1, threads
            )
        self._prior = prior
        if prior is not None:
            self._rows = self._with_columns_of(prior.model)
        self._check_room(kinds_of(spec))
        self._passive: GroupedRows | None = None
        model = chosen.active  # of each row
        if chosen.passive is not None:
            self._passive, missing = group_passive(design, chosen.passive, self._rows, threads)
            self.uncovered |= missing
            model = memory.empty(train.n_rows, np.int32)
            np.maximum(chosen.active, chosen.passive, out=model)
            self._all = design, model
        without = model < 0
        if without.any():
            self.uncovered |= columns_of_rows(design, without)
        if elsewhere is not None:
            self._uncover(elsewhere)
        self._validation = None
        if validation is not None:
            numbers = entity_numbers(validation.keys[spec.key], self._entities, spec.key)
            self._validation = (validation.design(spec.features), numbers)
        self.regularization = regularization

    @property
    def regularization(self) -> Regularization:
        """Its penalty, by column."""
        return self._regularization

    @regularization.setter
    def regularization(self, new: Regularization) -> None:
        self._regularization = new
        columns = self._rows.columns
        # Where the weights differ by coefficient they are written out.
        self._penalty = None if new.uniform else new.of_entities(columns)
        self._mean: F64 | None = None
        if self._prior is not None:
            self._mean, self._penalty = self._prior.of_entities(
                self._numbers_in(self._prior.model),
                self._rows.block.coefficient_ptr,
                columns,
                np.take(new.weight, columns),
            )

    @property
    def is_plain(self) -> bool:
        """Whether the penalty is an L2 weight per column and nothing else."""
        return self.regularization.is_linear and self._prior is None

    def reweighted(
        self, spec: RandomEffect, regularization: Regularization
    ) -> RandomEffectCoordinate:
        """Return the coordinate of the same rows, as they are prepared, with another penalty."""
        other = copy(self)
        other._spec, other.regularization = spec, regularization
        return other

    def fit(self, offset: F64, warm_start: LinearModel | None) -> tuple[LinearModel, FitReport]:
        """Fit every entity's model to its rows."""
        spec, rows = self._spec, self._rows
        intercept_l2, l2 = self.regularization.uniform or (0.0, 0.0)
        start = None if warm_start is None else warm_start.coefficients.values
        if self._mean is not None and start is not None:
            start = start - self._mean
        fit = fit_entities(
            rows.block,
            self._own_offset(offset),
            loss=self._loss,
            l2=l2,
            intercept_l2=intercept_l2,
            penalty=self._penalty,
            intercept=spec.intercept,
            tolerance=spec.tolerance,
            max_iterations=spec.max_iterations,
            start=start,
            threads=self._threads,
        )
        values = fit.coefficients
        if self._mean is not None:
            values += self._mean
        coefficients = RandomCoefficients(
            self._entities, rows.block.coefficient_ptr, rows.columns, values
        )
        model = LinearModel(spec.features, spec.intercept, coefficients, spec.key)
        return model, FitReport.of(fit.status, fit.iterations, fit.gradient_norm)

    def _own_offset(self, offset: F64) -> F64:
        """Return the offset in the order of the block, a prior's mean scored."""
        own = self._rows.rows.gather(offset)
        if self._mean is not None:
            own += score_block(self._rows.block, self._mean, self._threads)
        return own

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
        numbers = self._numbers_in(model)
        values = theirs.values_of(numbers, block.coefficient_ptr, self._rows.columns)
        own = RandomCoefficients(self._entities, block.coefficient_ptr, self._rows.columns, values)
        is_rest = np.ones(len(theirs), np.bool_)
        is_rest[numbers[numbers >= 0]] = False
        rest = np.flatnonzero(is_rest)
        others = replace(model, coefficients=theirs.take(rest)) if rest.size else None
        return replace(model, coefficients=own), others

    def _numbers_in(self, model: LinearModel) -> NDArray[np.int64]:
        """Return the number of each entity in an earlier model, (E,); -1 of a new one."""
        theirs = model.coefficients
        assert isinstance(theirs, RandomCoefficients)
        return positions(self._keys, theirs.entities, self._spec.key)[self._chosen]

    def _with_columns_of(self, model: LinearModel) -> GroupedRows:
        """Give each entity the columns, too, that its earlier model has coefficients of."""
        theirs = model.coefficients
        assert isinstance(theirs, RandomCoefficients)
        return with_columns(self._rows, theirs.indptr, theirs.columns, self._numbers_in(model))

    def _uncover(self, elsewhere: RowsElsewhere) -> None:
        """Mark the columns of rows elsewhere that their entity has no coefficient of."""
        ends = self._rows.block.coefficient_ptr
        for entity, columns in elsewhere.columns.items():
            place = int(np.searchsorted(self._chosen, entity))
            known = self._rows.columns[:0]
            if place < self._chosen.size and self._chosen[place] == entity:
                known = self._rows.columns[ends[place] : ends[place + 1]]
            self.uncovered[np.setdiff1d(columns, known)] = True

    def _check_room(self, kinds: Collection[CurvatureKind]) -> None:
        if needs_matrices(kinds):
            sizes = np.diff(self._rows.block.coefficient_ptr)
            entries = int((sizes * (sizes + 1) // 2).sum()) if "hessian" in kinds else 0
            check_room_for_matrices(self._spec.name, int(sizes.max(initial=1)), entries, kinds)

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
        return np.take(self.regularization.weight, self._rows.columns)

    def penalty(self, model: LinearModel) -> float:
        """Return the penalty term of the objective."""
        if self._mean is None:
            return self.regularization.term(model.coefficients)
        assert self._penalty is not None
        moved = model.coefficients.values - self._mean
        pull = self._penalty.products(self._rows.block.coefficient_ptr, moved)
        return 0.5 * dot(moved.size, moved, pull)

    def curvature(
        self, model: LinearModel, offset: F64, kinds: Collection[CurvatureKind]
    ) -> tuple[LinearModel, float]:
        """Return the model with what is asked for, not scaled; and its degrees of freedom.

        Raises
        ------
        ConfigError
            If it would take matrices that are too large.
        """
        spec, block = self._spec, self._rows.block
        self._check_room(kinds)
        penalty = self._penalty or self.regularization.of_entities(self._rows.columns)
        values = model.coefficients.values
        found = entity_curvature(
            block,
            self._own_offset(offset),
            values if self._mean is None else values - self._mean,
            loss=self._loss,
            penalty=penalty,
            intercept=spec.intercept,
            full="full" in kinds,
            hessians="hessian" in kinds,
            threads=self._threads,
        )
        variances = found.full if "full" in kinds else found.simple
        coefficients = replace(model.coefficients, variances=variances)
        if "hessian" in kinds:
            assert isinstance(coefficients, RandomCoefficients)
            coefficients = replace(
                coefficients,
                hessian_ptr=hessian_pointers(block.coefficient_ptr),
                hessians=found.hessians,
            )
        return replace(model, coefficients=coefficients), found.freedom


def _report(name: str, chosen: ActiveRows, n_entities: int) -> None:
    """Say what has no model, and which rows are passive."""
    n = chosen.entities.size
    if n < n_entities:
        text = "%s: %s of %s entities have too few rows for a model"
        level = logging.INFO if n else logging.WARNING
        log.log(level, text, name, f"{n_entities - n:,}", f"{n_entities:,}")
    if chosen.passive is not None:
        passive = counted(int(np.count_nonzero(chosen.passive >= 0)))
        log.info("%s: %s are passive", name, passive)
