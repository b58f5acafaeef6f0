"""Several designs side by side, as one: the joint problem of all coordinates.

Newton's steps are made by conjugate gradients with a block preconditioner: the Cholesky factor of
each entity's own Hessian, and of a fixed effect's where its features are few.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gdmix import memory
from gdmix.glm.newton import conjugate_gradients
from gdmix.glm.penalty import QuadraticPenalty

F64 = NDArray[np.float64]

MAX_INNER_ITERATIONS = 500


class Factor(Protocol):
    """A positive semidefinite matrix, as L L'."""

    def solve(self, residual: F64) -> F64:
        """Return the inverse times a vector; 0 where a pivot is 0."""

    def multiply_root(self, vector: F64) -> F64:
        """Return L times a vector."""

    def inverse_diagonal(self) -> F64:
        """Return the diagonal of the inverse."""

    def log_determinant(self) -> float:
        """Return the logarithm of the determinant, without pivots that are 0."""


class PreconditionedMap(Protocol):
    """A design X of n rows and d columns that knows an approximate inverse of its Hessian."""

    size: int

    def scores(self, theta: F64) -> F64:
        """Return ``X theta``, (n,)."""

    def transposed(self, d1: F64) -> F64:
        """Return ``X' d1``, (d,)."""

    def preconditioner(self, d2: F64, penalty: QuadraticPenalty) -> Factor:
        """Factorise ``X' diag(d2) X + penalty``, or what is near it."""


class PartFactors:
    """The factors of a matrix of one block per part."""

    def __init__(self, factors: Sequence[Factor], split: Callable[[F64], list[F64]]) -> None:
        self._factors, self._split = factors, split

    def solve(self, residual: F64) -> F64:
        """Return the inverse times a vector."""
        return self._joined(residual, lambda factor, own: factor.solve(own))

    def multiply_root(self, vector: F64) -> F64:
        """Return L times a vector, the matrix being L L'."""
        return self._joined(vector, lambda factor, own: factor.multiply_root(own))

    def inverse_diagonal(self) -> F64:
        """Return the diagonal of the inverse."""
        return np.concatenate([factor.inverse_diagonal() for factor in self._factors])

    def log_determinant(self) -> float:
        """Return the logarithm of the determinant."""
        return sum(factor.log_determinant() for factor in self._factors)

    def _joined(self, vector: F64, operation: Callable[[Factor, F64], F64]) -> F64:
        parts = zip(self._factors, self._split(vector), strict=True)
        return np.concatenate([operation(factor, own) for factor, own in parts])


class JointMap:
    """Designs of the same n rows side by side; d is the sum of their columns."""

    roughest = 0.1  # factors make each step dear: better few steps

    def __init__(self, parts: Sequence[PreconditionedMap], n_rows: int) -> None:
        self._parts, self._n_rows = parts, n_rows
        self._bounds = np.concatenate(([0], np.cumsum([part.size for part in parts])))
        self.size = int(self._bounds[-1])
        self.passes = 0.0

    def split(self, theta: NDArray[Any]) -> list[NDArray[Any]]:
        """Return each part's coefficients."""
        return np.split(theta, self._bounds[1:-1])

    def scores(self, theta: F64) -> F64:
        """Return ``X theta``."""
        self.passes += 0.5
        total = memory.zeros(self._n_rows)
        for part, own in zip(self._parts, self.split(theta), strict=True):
            total += part.scores(own)
        return total

    def transposed(self, d1: F64) -> F64:
        """Return ``X' d1``."""
        self.passes += 0.5
        return np.concatenate([part.transposed(d1) for part in self._parts])

    def newton_step(
        self, d2: F64, gradient: F64, penalty: QuadraticPenalty, target: float
    ) -> tuple[F64, F64]:
        """Solve ``(X' diag(d2) X + penalty) step = -gradient``; also return ``X step``.

        The penalty has weights alone: no matrix.
        """
        factor = self.preconditioner(d2, penalty)
        step, _ = conjugate_gradients(
            lambda direction: self.hessian_product(d2, penalty, direction),
            factor.solve,
            gradient,
            target,
            MAX_INNER_ITERATIONS,
        )
        return step, self.scores(step)

    def hessian_product(self, d2: F64, penalty: QuadraticPenalty, direction: F64) -> F64:
        """Return ``(X' diag(d2) X + penalty) direction``."""
        z = self.scores(direction)
        z *= d2
        return self.transposed(z) + penalty.product(direction)

    def preconditioner(self, d2: F64, penalty: QuadraticPenalty) -> PartFactors:
        """Factorise every part's own Hessian, or what is near it."""
        parts = zip(self._parts, self.split(penalty.weights), strict=True)
        return PartFactors(
            [part.preconditioner(d2, QuadraticPenalty(own)) for part, own in parts], self.split
        )

    def rounding_floor(self, theta: F64, offset: F64, d1: F64, d2: F64, penalty: F64) -> float:
        """Return the norm below which a gradient is rounding error, as `objective` bounds it."""
        size = np.abs(offset)
        for part, own in zip(self._parts, self.split(theta), strict=True):
            size += np.abs(part.scores(own))
        weighed = self.transposed(np.abs(d1) + d2 * (1.0 + size))
        total = float(np.abs(weighed).sum() + np.abs(penalty * theta).sum())
        return 8.0 * float(np.finfo(np.float64).eps) * total
