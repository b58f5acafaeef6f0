"""Several designs side by side, as one: the joint problem of all coordinates.

Newton's steps are made by conjugate gradients with a block preconditioner: the Cholesky factor of
each entity's own Hessian, and of a fixed effect's where its features are few.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gdmix import memory
from gdmix.glm.newton import conjugate_gradients

F64 = NDArray[np.float64]

MAX_INNER_ITERATIONS = 500


class PreconditionedMap(Protocol):
    """A design X of n rows and d columns that knows an approximate inverse of its Hessian."""

    size: int

    def scores(self, theta: F64) -> F64:
        """Return ``X theta``, (n,)."""

    def transposed(self, d1: F64) -> F64:
        """Return ``X' d1``, (d,)."""

    def preconditioner(self, d2: F64, penalty: F64) -> Callable[[F64], F64]:
        """Return an approximate inverse of ``X' diag(d2) X + diag(penalty)``."""


class JointMap:
    """Designs of the same n rows side by side; d is the sum of their columns."""

    roughest = 0.1  # factors make each step dear: better few steps

    def __init__(self, parts: Sequence[PreconditionedMap], n_rows: int) -> None:
        self._parts, self._n_rows = parts, n_rows
        self._bounds = np.concatenate(([0], np.cumsum([part.size for part in parts])))
        self.size = int(self._bounds[-1])
        self.passes = 0.0

    def split(self, theta: F64) -> list[F64]:
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

    def newton_step(self, d2: F64, gradient: F64, penalty: F64, target: float) -> tuple[F64, F64]:
        """Solve ``(X' diag(d2) X + diag(penalty)) step = -gradient``; also return ``X step``."""
        inverses = [
            part.preconditioner(d2, own)
            for part, own in zip(self._parts, self.split(penalty), strict=True)
        ]

        def precondition(residual: F64) -> F64:
            parts = zip(inverses, self.split(residual), strict=True)
            return np.concatenate([inverse(own) for inverse, own in parts])

        def product(direction: F64) -> F64:
            z = self.scores(direction)
            z *= d2
            return self.transposed(z) + penalty * direction

        step, _ = conjugate_gradients(product, precondition, gradient, target, MAX_INNER_ITERATIONS)
        return step, self.scores(step)

    def rounding_floor(self, theta: F64, offset: F64, d1: F64, d2: F64, penalty: F64) -> float:
        """Return the norm below which a gradient is rounding error, as `objective` bounds it."""
        size = np.abs(offset)
        for part, own in zip(self._parts, self.split(theta), strict=True):
            size += np.abs(part.scores(own))
        weighed = self.transposed(np.abs(d1) + d2 * (1.0 + size))
        total = float(np.abs(weighed).sum() + np.abs(penalty * theta).sum())
        return 8.0 * float(np.finfo(np.float64).eps) * total
