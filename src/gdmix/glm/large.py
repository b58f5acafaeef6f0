"""One large sparse problem: a fixed effect, or an entity with millions of rows.

The rows are cut into one slice per thread; each thread runs the kernels of `objective` on its
slice into buffers of its own, which are then summed. The Newton step is exact (Cholesky of the
d x d Hessian) where the features are few, which makes collinear features harmless, else by
conjugate gradients with a Jacobi preconditioner: features whose frequencies follow a power law
then cost a few dozen passes, where an unscaled quasi-Newton method does not converge.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gdmix import memory
from gdmix.glm import cholesky
from gdmix.glm.group import ALONE, Group, total
from gdmix.glm.matrix import CsrMatrix
from gdmix.glm.newton import Labels, Minimum, conjugate_gradients, minimize
from gdmix.glm.objective import (
    add_hessian,
    add_hessian_diagonal,
    add_hessian_product_paired,
    add_scaled,
    add_transposed,
    curvature_change,
    margins,
    rounding_floor,
)
from gdmix.glm.penalty import QuadraticPenalty
from gdmix.glm.primal_newton import MAX_DRIFT
from gdmix.glm.threads import map_threads, split_evenly

F64 = NDArray[np.float64]

MAX_DIRECT_COEFFICIENTS = 512
MAX_DIRECT_NNZ_PER_ROW = 128
# Where conjugate gradients give up, Cholesky takes over up to this size.
MAX_FALLBACK_COEFFICIENTS = 2048


def fit_large(
    design: CsrMatrix,
    response: F64,
    weight: F64,
    offset: F64,
    *,
    loss: int,
    penalty: QuadraticPenalty,
    intercept: bool = True,
    tolerance: float = 1e-8,
    max_iterations: int = 100,
    start: F64 | None = None,
    threads: int = 1,
) -> Minimum:
    """Minimise the objective of `gdmix.glm.objective`.

    Parameters
    ----------
    design
        (n, d - 1) features.
    response, weight, offset
        (n,).
    loss
        A loss of `gdmix.glm.losses`.
    penalty
        Of d coefficients, the intercept's first.
    tolerance
        Stop at this gradient norm relative to the one at zero coefficients.
    start
        (d,) start coefficients.
    threads
        The result depends on it only through the order of sums.
    """
    theta = np.zeros(design.n_columns + 1) if start is None else start.copy()
    theta[0] *= intercept
    return minimize(
        SparseMap(design, intercept, threads),
        Labels(response, weight, offset, loss, threads),
        penalty,
        intercept=intercept,
        tolerance=tolerance,
        max_iterations=max_iterations,
        start=theta,
    )


class DenseFactor:
    """The Cholesky factor of one matrix, (d, d)."""

    def __init__(self, factor: F64) -> None:
        self._factor = factor

    def solve(self, residual: F64) -> F64:
        """Return the inverse times a vector."""
        solution = residual.copy()
        cholesky.solve(solution.size, self._factor, solution)
        return solution

    def multiply_root(self, vector: F64) -> F64:
        """Return L times a vector, the matrix being L L'."""
        product = vector.copy()
        cholesky.multiply_root(product.size, self._factor, product)
        return product

    def inverse_diagonal(self) -> F64:
        """Return the diagonal of the inverse."""
        d = self._factor.shape[0]
        diagonal = np.empty(d)
        cholesky.inverse_diagonal(d, self._factor, np.empty(d), diagonal)
        return diagonal

    def log_determinant(self) -> float:
        """Return the logarithm of the determinant."""
        return float(cholesky.log_determinant(self._factor.shape[0], self._factor))


class DiagonalFactor:
    """A diagonal matrix, (d, d); where it is 0 its inverse counts as 0."""

    def __init__(self, diagonal: F64) -> None:
        self._diagonal = diagonal
        self._inverse = np.divide(1.0, diagonal, out=np.zeros_like(diagonal), where=diagonal > 0.0)

    def solve(self, residual: F64) -> F64:
        """Return the inverse times a vector."""
        return self._inverse * residual

    def multiply_root(self, vector: F64) -> F64:
        """Return the root times a vector."""
        return np.sqrt(self._diagonal) * vector

    def inverse_diagonal(self) -> F64:
        """Return the diagonal of the inverse."""
        return self._inverse

    def log_determinant(self) -> float:
        """Return the logarithm of the determinant."""
        return float(np.log(self._diagonal[self._diagonal > 0.0]).sum())


class Owners(Protocol):
    """Who holds the coefficients that a design's rows meet, and how to get at them.

    Attributes
    ----------
    size, total
        Number of coefficients that this rank holds, and that all ranks hold.
    """

    group: Group
    size: int
    total: int

    def gather(self, own: F64) -> F64:
        """Return the entries of a vector that the rows meet, given those that are held here."""

    def add_up(self, met: F64) -> F64:
        """Return the entries held here of the sum of what every rank's rows make of theirs."""

    def add_up_matrix(self, met: F64) -> F64:
        """Return, on every rank, the sum of what every rank's rows make of a (d, d) matrix."""

    def deal(self, make: Callable[[], F64]) -> F64:
        """Return the entries held here of the vector that `make` returns on rank 0."""


class NoOwners:
    """All coefficients are held where the rows are.

    Parameters
    ----------
    size
        Their number.
    """

    group: Group = ALONE

    def __init__(self, size: int) -> None:
        self.size = self.total = size

    def gather(self, own: F64) -> F64:
        """Return the vector."""
        return own

    def add_up(self, met: F64) -> F64:
        """Return the vector."""
        return met

    def add_up_matrix(self, met: F64) -> F64:
        """Return the matrix."""
        return met

    def deal(self, make: Callable[[], F64]) -> F64:
        """Return what `make` returns."""
        return make()


class SparseMap:
    """A sparse design with its intercept, and the parallel kernels over its rows.

    Every array named `z`, `d1` or `d2` is (n,); every product with X' is (d,), d = columns + 1.
    A preconditioner is kept while the curvatures d2 stay about the same.

    Parameters
    ----------
    owners
        In a group: who holds the coefficients. Vectors (d,) are then the part held here, and
        columns of the design are those that its rows meet.
    """

    roughest = 0.2

    def __init__(
        self, design: CsrMatrix, intercept: bool, threads: int, owners: Owners | None = None
    ) -> None:
        self._design, self._threads = design, threads
        self._intercept = 1.0 if intercept else 0.0
        self._slices = split_evenly(design.n_rows, threads)
        self._met = design.n_columns + 1
        self._owners = owners or NoOwners(self._met)
        self._group = self._owners.group
        self.size, self.total = self._owners.size, self._owners.total
        self.is_dense = design.is_dense
        self.passes = 0.0
        self._buffers = np.empty((len(self._slices), self._met))
        self._pairs = np.empty((len(self._slices), self._met, 2))
        self._known_d2: F64 | None = None
        nnz, n_rows = self._group.sum(np.array([design.nnz, design.n_rows], np.float64))
        self._direct = bool(
            self.total <= MAX_DIRECT_COEFFICIENTS and nnz <= MAX_DIRECT_NNZ_PER_ROW * n_rows
        )

    def scores(self, theta: F64) -> F64:
        """Return ``X theta``."""
        z = memory.empty(self._design.n_rows)
        met = self._owners.gather(theta)
        self.passes += 0.5
        self._map(lambda k, a, b: self._apply(margins, a, b, met, z[a:b]))
        return z

    def transposed(self, d1: F64) -> F64:
        """Return ``X' d1``."""
        self.passes += 0.5
        return self._summed(
            lambda k, a, b: self._apply(add_transposed, a, b, d1[a:b], self._buffers[k])
        )

    def newton_step(
        self, d2: F64, gradient: F64, penalty: QuadraticPenalty, target: float
    ) -> tuple[F64, F64]:
        """Solve ``(X' diag(d2) X + penalty) step = -gradient``; also return ``X step``."""
        if not self._direct:
            step, move, solved = self._conjugate_gradient_step(d2, gradient, penalty, target)
            if solved or self.total > MAX_FALLBACK_COEFFICIENTS:
                return step, move
            self._direct = True
        hessian, matrix = self.hessian(d2), penalty.whole_matrix()

        def solve(right: F64, weights: F64) -> F64:
            return _factorised(hessian, QuadraticPenalty(weights, matrix)).solve(right)

        step = self.on_first(solve, -gradient, penalty.weights)
        return step, self.scores(step)

    def on_first(self, make: Callable[..., F64], *vectors: F64) -> F64:
        """Return what the first rank makes of vectors, (d,), of few columns.

        Parameters
        ----------
        make
            Takes and returns whole vectors.
        """
        whole = [self._owners.gather(vector) for vector in vectors]
        return self._owners.deal(lambda: make(*whole))

    @property
    def is_direct(self) -> bool:
        """Whether its Hessian is best had as a matrix."""
        return self._direct

    def preconditioner(self, d2: F64, penalty: QuadraticPenalty) -> DenseFactor | DiagonalFactor:
        """Factorise ``X' diag(d2) X + penalty``, or its diagonal."""
        if self._direct:
            return _factorised(self.hessian(d2), penalty)
        return self._jacobi(d2, penalty)

    def _jacobi(self, d2: F64, penalty: QuadraticPenalty) -> DiagonalFactor:
        if self._drifted(d2):
            self._diagonal, self._known_d2 = self.hessian_diagonal(d2), memory.copy(d2)
        return DiagonalFactor(self._diagonal + penalty.diagonal)

    def _drifted(self, d2: F64) -> bool:
        """Whether the known diagonal of the Hessian is of too different curvatures."""
        known = self._known_d2
        if known is None:
            return True
        sums = np.zeros((len(self._slices), 2))

        def work(k: int, a: int, b: int) -> None:
            sums[k] = curvature_change(b - a, d2[a:b], known[a:b])

        self._map(work)
        change, whole = self._group.sum(sums.sum(axis=0))
        return bool(change >= MAX_DRIFT * whole)

    def _conjugate_gradient_step(
        self, d2: F64, gradient: F64, penalty: QuadraticPenalty, target: float
    ) -> tuple[F64, F64, bool]:
        z, move = memory.empty(d2.size), memory.zeros(d2.size)
        length = 0.0  # of the last direction, whose z is not yet in `move`

        def gather(k: int, a: int, b: int) -> None:
            if length != 0.0:
                add_scaled(b - a, length, z[a:b], move[a:b])

        def product(direction: F64) -> F64:
            met = self._owners.gather(direction)

            def work(k: int, a: int, b: int) -> None:
                gather(k, a, b)
                pairs = self._pairs[k]
                pairs[:, 0], pairs[:, 1] = met, 0.0
                self._apply(add_hessian_product_paired, a, b, d2[a:b], z[a:b], pairs)

            self.passes += 1.0
            self._map(work)
            image = self._owners.add_up(np.asarray(self._pairs[:, :, 1].sum(axis=0)))
            return image + penalty.product(direction)

        def advance(by: float, fit: float) -> None:
            nonlocal length
            length = by

        inverse = self._jacobi(d2, penalty).solve
        limit = min(2 * self.total + 10, 1000)
        step, solved = conjugate_gradients(
            product, inverse, gradient, target, limit, advance, self._group
        )
        self._map(gather)
        return step, move, solved

    def hessian_diagonal(self, d2: F64) -> F64:
        """Return the diagonal of ``X' diag(d2) X``."""
        self.passes += 0.5
        return self._summed(
            lambda k, a, b: self._apply(add_hessian_diagonal, a, b, d2[a:b], self._buffers[k])
        )

    def hessian(self, d2: F64) -> F64:
        """Return the lower triangle of ``X' diag(d2) X``; in a group, all of it on every rank."""
        self.passes += 1.0
        parts = np.zeros((len(self._slices), self._met, self._met))
        self._map(lambda k, a, b: self._apply(add_hessian, a, b, d2[a:b], self._met - 1, parts[k]))
        return self._owners.add_up_matrix(np.asarray(parts.sum(axis=0)))

    def rounding_floor(self, theta: F64, offset: F64, d1: F64, d2: F64, penalty: F64) -> float:
        """Return the norm below which a gradient is rounding error."""
        n, met = self._design.n_rows, self._owners.gather(theta)
        rows = self._apply(rounding_floor, 0, n, met, offset, d1, d2, np.zeros(met.size))
        own = self._apply(rounding_floor, 0, 0, theta, offset, d1, d2, penalty)
        return total(self._group, rows + own)

    def _map(self, function: Callable[[int, int, int], Any]) -> None:
        tasks = [(k, a, b) for k, (a, b) in enumerate(self._slices)]
        map_threads(lambda task: function(*task), tasks, self._threads)

    def _apply(self, operation: Callable[..., Any], a: int, b: int, *arguments: Any) -> Any:
        x = self._design
        rows = x.indptr[a : b + 1]
        return operation(b - a, rows, x.indices, x.values, self._intercept, *arguments)

    def _summed(self, function: Callable[[int, int, int], Any]) -> F64:
        self._buffers[:] = 0.0
        self._map(function)
        return self._owners.add_up(np.asarray(self._buffers.sum(axis=0)))


def _factorised(hessian: F64, penalty: QuadraticPenalty) -> DenseFactor:
    """Factorise, in place, a Hessian to which the penalty is to be added."""
    hessian[np.diag_indices_from(hessian)] += penalty.weights
    if penalty.matrix is not None:
        hessian += penalty.matrix
    cholesky.factorize(hessian.shape[0], hessian, penalty.weights)
    return DenseFactor(hessian)
