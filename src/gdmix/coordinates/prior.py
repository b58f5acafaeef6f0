"""An earlier model as a Gaussian prior: incremental training.

The earlier posterior is about N(mean, H^-1). As a prior it adds to the objective

    weight forgetting / 2 (theta - mean)' H (theta - mean) + (1 - forgetting) / 2 theta' l2 theta

(Lambda Learner, arXiv:2010.05154, section 3), which is one quadratic form around a mean in
between. H is the Hessian that was saved with the model, or the diagonal that its variances say. A
coefficient that the earlier model lacks, or knows no variance of, has its L2 weight. The mean is
folded into the offset, so that solvers know nothing of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gdmix import memory
from gdmix.config import Prior
from gdmix.errors import ModelError
from gdmix.glm.penalty import EntityPenalty, QuadraticPenalty
from gdmix.glm.variance import unpacked
from gdmix.model.coefficients import FixedCoefficients, RandomCoefficients
from gdmix.model.linear import LinearModel

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@dataclass(frozen=True)
class EarlierModel:
    """An earlier model under this run's column numbers, and how much it counts."""

    model: LinearModel
    settings: Prior

    def of_fixed(self, l2: F64) -> tuple[F64, QuadraticPenalty]:
        """Return means, (d,), and the penalty around them.

        Parameters
        ----------
        l2
            (d,) L2 weight of each coefficient.
        """
        coefficients = self.model.coefficients
        assert isinstance(coefficients, FixedCoefficients)
        if coefficients.hessian is not None:
            matrix = self._share * unpacked(coefficients.hessian)
            weights = self._relaxed(l2, np.diag(matrix) > 0.0)
            penalty = QuadraticPenalty(weights, matrix)
            ends = np.array([0, weights.size])
            own = EntityPenalty(
                weights,
                hessian_ptr=np.array([0, coefficients.hessian.size]),
                hessians=self._share * coefficients.hessian,
            )
            return own.means_between(ends, coefficients.values), penalty
        assert coefficients.variances is not None
        kept, relaxed = self._diagonal(coefficients.variances, l2)
        return _between(kept, relaxed, coefficients.values), QuadraticPenalty(kept + relaxed)

    def of_entities(
        self, numbers: I64, indptr: I64, columns: NDArray[np.uint32], l2: F64
    ) -> tuple[F64, EntityPenalty]:
        """Return means, ragged, and the penalties around them.

        Parameters
        ----------
        numbers
            (E,) number, in the earlier model, of each entity; -1 of a new one.
        indptr, columns
            The layout of the coefficients.
        l2
            L2 weight of each coefficient, ragged.
        """
        theirs = self.model.coefficients
        assert isinstance(theirs, RandomCoefficients)
        means = theirs.values_of(numbers, indptr, columns)
        triangles = theirs.hessians_of(numbers, indptr, columns)
        variances = memory.zeros(l2.size)
        if theirs.variances is not None:
            variances = theirs.values_of(numbers, indptr, columns, theirs.variances)
        if triangles is None:
            kept, relaxed = self._diagonal(variances, l2)
            return _between(kept, relaxed, means), EntityPenalty(kept + relaxed)
        hessian_ptr, hessians = triangles
        hessians *= self._share
        ones = memory.full(theirs.values.size, 1.0)
        known = theirs.values_of(numbers, indptr, columns, ones) > 0.0
        whole = np.repeat(np.diff(hessian_ptr) > 0, np.diff(indptr))
        kept, relaxed = self._diagonal(np.where(whole, 0.0, variances), l2)
        weights = np.where(whole, self._relaxed(l2, known), kept + relaxed)
        penalty = EntityPenalty(weights, hessian_ptr=hessian_ptr, hessians=hessians)
        around = penalty.means_between(indptr, means)
        return np.where(whole, around, _between(kept, relaxed, means)), penalty

    @property
    def _share(self) -> float:
        return self.settings.weight * self.settings.forgetting

    def _relaxed(self, l2: F64, known: NDArray[np.bool_]) -> F64:
        return np.where(known, (1.0 - self.settings.forgetting) * l2, l2)

    def _diagonal(self, variances: F64, l2: F64) -> tuple[F64, F64]:
        """Return the precisions around the earlier mean, and those around zero."""
        known = variances > 0.0
        kept = np.divide(
            self._share * self.model.dispersion, variances, out=np.zeros(l2.size), where=known
        )
        return kept, self._relaxed(l2, known)


def _between(kept: F64, relaxed: F64, means: F64) -> F64:
    """Return the mean of two independent priors, around `means` and around zero."""
    total = kept + relaxed
    return np.divide(kept * means, total, out=np.zeros(means.size), where=total > 0.0)


def check_prior(name: str, model: LinearModel, settings: Prior) -> EarlierModel:
    """Return a coordinate's earlier model as a prior.

    Raises
    ------
    ModelError
        If it does not say how certain it is.
    """
    coefficients = model.coefficients
    has_hessian = (
        coefficients.hessian
        if isinstance(coefficients, FixedCoefficients)
        else coefficients.hessians
    )
    if has_hessian is None and coefficients.variances is None:
        raise ModelError(
            f"{settings.model}: coordinate '{name}' has no variances, which a prior needs; "
            "train it with `variance: simple` or `save_hessian: true`"
        )
    return EarlierModel(model, settings)
