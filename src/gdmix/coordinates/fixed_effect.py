"""The fixed effect: one linear model over all rows."""

from __future__ import annotations

from collections.abc import Callable, Collection
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gdmix import memory
from gdmix.config import FixedEffect
from gdmix.coordinates.base import FitReport, Scores
from gdmix.coordinates.prior import EarlierModel
from gdmix.coordinates.regularization import Regularization
from gdmix.coordinates.uncertainty import (
    CurvatureKind,
    check_room_for_matrices,
    kinds_of,
    needs_matrices,
)
from gdmix.data.active_rows import sample_negatives
from gdmix.data.dataset import Dataset
from gdmix.glm import cholesky
from gdmix.glm.distributed import DistributedMap, fit_large_distributed
from gdmix.glm.group import ALONE, Group, total
from gdmix.glm.large import DenseFactor, SparseMap, fit_large
from gdmix.glm.matrix import CsrMatrix
from gdmix.glm.newton import Labels, Minimum
from gdmix.glm.penalty import QuadraticPenalty
from gdmix.glm.proximal import fit_large_proximal
from gdmix.glm.scoring import score_fixed
from gdmix.glm.variance import packed_lower
from gdmix.model.coefficients import FixedCoefficients
from gdmix.model.linear import LinearModel

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class FittedRows:
    """What a fixed effect is fitted to: a design, what is (n,), and a loss."""

    design: CsrMatrix
    response: F64
    weight: F64
    offset: F64
    loss: int


class FixedEffectRows:
    """Rows of a fixed effect, all or a shard of them: what does not need to know its penalty.

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
        Of the sample of rows of response 0.
    """

    def __init__(
        self,
        spec: FixedEffect,
        train: Dataset,
        validation: Dataset | None,
        loss: int,
        threads: int,
        seed: int = 0,
    ) -> None:
        self._spec, self._loss, self._threads = spec, loss, threads
        self._design = train.design(spec.features)
        self._sample: NDArray[np.int64] | None = None  # rows it is trained on, if not all
        self._rows = self._design, train.response, train.weight
        if spec.negative_sampling is not None:
            stands = sample_negatives(
                train.uid, train.response, spec.negative_sampling, seed, spec.name
            )
            self._sample = np.flatnonzero(stands)
            self._rows = (
                self._design.take(self._sample),
                train.response[self._sample],
                train.weight[self._sample] * stands[self._sample],
            )
        self._validation = None if validation is None else validation.design(spec.features)

    @property
    def designs(self) -> tuple[CsrMatrix, CsrMatrix | None]:
        """The designs of all training rows and of the validation rows."""
        return self._design, self._validation

    def rows_of(self, offset: F64) -> FittedRows:
        """Return what it is fitted to, given the score that all else adds to the training rows."""
        return FittedRows(*self._rows, self._own_offset(offset), self._loss)

    def _own_offset(self, offset: F64) -> F64:
        """Return the offset of the rows it is trained on."""
        return offset if self._sample is None else offset[self._sample]

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

    def hessian_sums(self, model: LinearModel, offset: F64, whole: bool) -> F64:
        """Return the lower triangle of ``X' diag(d2) X``, (d, d), or its diagonal, (d,)."""
        design, response, weight = self._rows
        own = SparseMap(design, self._spec.intercept, self._threads)
        z = self._own_offset(offset)
        z = z + score_fixed(design, model.coefficients.values, self._threads)
        d1, d2 = memory.empty(z.size), memory.empty(z.size)
        Labels(response, weight, z, self._loss, self._threads).evaluate(z, d1, d2)
        return own.hessian(d2) if whole else own.hessian_diagonal(d2)


class FixedEffectCoordinate(FixedEffectRows):
    """A fixed effect bound to its rows.

    Parameters
    ----------
    spec, train, validation, loss, threads, seed
        As of `FixedEffectRows`.
    regularization
        Its penalty.
    prior
        An earlier model to start from and to stay near.
    """

    def __init__(
        self,
        spec: FixedEffect,
        train: Dataset,
        validation: Dataset | None,
        loss: int,
        threads: int,
        regularization: Regularization,
        seed: int = 0,
        prior: EarlierModel | None = None,
    ) -> None:
        super().__init__(spec, train, validation, loss, threads, seed)
        self._prior = prior
        check_room(spec, 1 + self._design.n_columns, kinds_of(spec))
        self.regularization = regularization

    @property
    def regularization(self) -> Regularization:
        """Its penalty, by column."""
        return self._regularization

    @regularization.setter
    def regularization(self, new: Regularization) -> None:
        self._regularization = new
        self._mean: F64 | None = None
        self._penalty = new.quadratic()
        if self._prior is not None:
            self._mean, self._penalty = self._prior.of_fixed(new.weight)

    @property
    def is_plain(self) -> bool:
        """Whether the penalty is an L2 weight per column and nothing else."""
        return self.regularization.is_linear and self._prior is None

    def reweighted(
        self, spec: FixedEffect, regularization: Regularization
    ) -> FixedEffectCoordinate:
        """Return the coordinate of the same rows, as they are prepared, with another penalty."""
        other = copy(self)
        other._spec, other.regularization = spec, regularization
        return other

    def fit(self, offset: F64, warm_start: LinearModel | None) -> tuple[LinearModel, FitReport]:
        """Fit to the training rows."""
        spec = self._spec
        start = None if warm_start is None else warm_start.coefficients.values
        own = self._own_offset(offset)
        if self._mean is not None:
            start = None if start is None else start - self._mean
            own = own + score_fixed(self._rows[0], self._mean, self._threads)
        options: dict[str, Any] = {
            "loss": self._loss,
            "penalty": self._penalty,
            "intercept": spec.intercept,
            "tolerance": spec.tolerance,
            "max_iterations": spec.max_iterations,
            "start": start,
            "threads": self._threads,
        }
        proximal = self.regularization.proximal
        solve: Callable[..., Minimum] = fit_large if proximal is None else fit_large_proximal
        fit = solve(*self._rows, own, **options, **(proximal or {}))
        values = fit.coefficients if self._mean is None else fit.coefficients + self._mean
        model = LinearModel(spec.features, spec.intercept, FixedCoefficients(values))
        return model, FitReport(1, {fit.status: 1}, fit.iterations, fit.gradient_norm)

    def penalty_vector(self) -> F64:
        """Return the L2 weight of each coefficient, (d,)."""
        return self.regularization.weight

    def penalty(self, model: LinearModel) -> float:
        """Return the penalty term of the objective."""
        values = model.coefficients.values
        if self._mean is None:
            return self.regularization.term(model.coefficients)
        return 0.5 * self._penalty.between(values - self._mean, values - self._mean)

    def curvature(
        self, model: LinearModel, offset: F64, kinds: Collection[CurvatureKind]
    ) -> tuple[LinearModel, float]:
        """Return the model with what is asked for, not scaled; and its degrees of freedom.

        Raises
        ------
        ConfigError
            If it would take a matrix that is too large.
        """
        check_room(self._spec, 1 + self._design.n_columns, kinds)
        sums = self.hessian_sums(model, offset, needs_matrices(kinds))
        return certain(model, sums, self._penalty, kinds)


def check_room(spec: FixedEffect, d: int, kinds: Collection[CurvatureKind]) -> None:
    """Refuse matrices of d coefficients that are too large.

    Raises
    ------
    ConfigError
        It says how much memory they would take.
    """
    if needs_matrices(kinds):
        check_room_for_matrices(spec.name, d, d * d, kinds)


def certain(
    model: LinearModel, sums: F64, penalty: QuadraticPenalty, kinds: Collection[CurvatureKind]
) -> tuple[LinearModel, float]:
    """Return a model with what is asked for, not scaled; and its degrees of freedom.

    Parameters
    ----------
    sums
        Of all training rows, as `FixedEffectCoordinate.hessian_sums` returns them; overwritten.
    """
    coefficients, d = model.coefficients, penalty.weights.size
    assert isinstance(coefficients, FixedCoefficients)
    if sums.ndim == 1:
        diagonal = sums + penalty.diagonal
        variances = np.divide(1.0, diagonal, out=np.zeros(d), where=diagonal > 0.0)
        freedom = float(np.count_nonzero(variances) - penalty.diagonal @ variances)
        return replace(model, coefficients=replace(coefficients, variances=variances)), freedom
    hessian = sums
    hessian[np.diag_indices_from(hessian)] += penalty.weights
    if penalty.matrix is not None:
        hessian += np.tril(penalty.matrix)
    lower = packed_lower(hessian) if "hessian" in kinds else None
    simple = np.diag(hessian).copy()
    np.divide(1.0, simple, out=simple, where=simple > 0.0)
    cholesky.factorize(d, hessian, penalty.weights)
    factor = DenseFactor(hessian)
    full = factor.inverse_diagonal()
    freedom = float(np.count_nonzero(full) - penalty.weights @ full)
    if penalty.matrix is not None:
        freedom -= sum(factor.solve(row)[j] for j, row in enumerate(penalty.matrix))
    coefficients = replace(
        coefficients, variances=full if "full" in kinds else simple, hessian=lower
    )
    return replace(model, coefficients=coefficients), freedom


def best_level(
    rows: Dataset, offset: F64, loss: int, threads: int, holders: Group = ALONE
) -> float:
    """Return the intercept that alone, beside an offset, fits the responses best.

    Parameters
    ----------
    holders
        Those among whom the rows are divided, each of whom calls this with its own.
    """
    design = DistributedMap(CsrMatrix.empty(rows.n_rows), True, threads, holders)
    minimum = fit_large_distributed(
        design,
        rows.response,
        rows.weight,
        offset,
        loss=loss,
        penalty=QuadraticPenalty(np.zeros(design.size)),
    )
    return total(holders, float(minimum.coefficients.sum()))
