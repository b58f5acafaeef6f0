"""Damped Newton for one large problem: a fixed effect, or an entity with millions of rows.

The rows are cut into one slice per thread; each thread runs the kernels of `objective` on its
slice into buffers of its own, which are then summed. The Newton step is exact (Cholesky of the
d x d Hessian) where the features are few, which makes collinear features harmless, else by
conjugate gradients with a Jacobi preconditioner: features whose frequencies follow a power law
then cost a few dozen passes, where an unscaled quasi-Newton method does not converge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gdmix.glm import cholesky
from gdmix.glm.losses import LOGISTIC, evaluate_rows, labels_of_one_class
from gdmix.glm.matrix import CsrMatrix
from gdmix.glm.objective import (
    add_hessian,
    add_hessian_diagonal,
    add_hessian_product,
    add_margins,
    add_transposed,
    margins,
    rounding_floor,
)
from gdmix.glm.primal_newton import MAX_INTERCEPT_STEP
from gdmix.glm.status import FitStatus
from gdmix.glm.threads import map_threads, split_evenly

F64 = NDArray[np.float64]

MAX_DIRECT_COEFFICIENTS = 512
MAX_DIRECT_NNZ_PER_ROW = 128


@dataclass(frozen=True)
class LargeFit:
    """What `fit_large` returns.

    Attributes
    ----------
    coefficients
        (d,), intercept first.
    status
        How it ended.
    iterations
        Newton iterations.
    passes
        Passes over the design, a product with X or with X' counted as one half.
    gradient_norm
        Norm of the gradient at the returned coefficients.
    value
        The objective there.
    """

    coefficients: F64
    status: FitStatus
    iterations: int
    passes: float
    gradient_norm: float
    value: float


class _Rows:
    """The data of one problem and the parallel kernels over it.

    Every array named `z`, `d1`, `d2` or `move` is (n,); every product with X' is (d,).
    """

    def __init__(
        self,
        design: CsrMatrix,
        response: F64,
        weight: F64,
        offset: F64,
        loss: int,
        intercept: bool,
        threads: int,
    ) -> None:
        self.design, self.loss, self.threads = design, loss, threads
        self.response, self.weight, self.offset = response, weight, offset
        self.intercept = 1.0 if intercept else 0.0
        self.slices = split_evenly(design.n_rows, threads)
        self.buffers = np.empty((len(self.slices), design.n_columns + 1))
        self.passes = 0.0

    def _map(self, function: Callable[[int, int, int], float | None]) -> list[float | None]:
        tasks = [(k, a, b) for k, (a, b) in enumerate(self.slices)]
        return map_threads(lambda task: function(*task), tasks, self.threads)

    def _csr(self, a: int, b: int) -> tuple[int, NDArray[np.int64], NDArray[np.uint32], F64, float]:
        matrix = self.design
        return b - a, matrix.indptr[a : b + 1], matrix.indices, matrix.values, self.intercept  # type: ignore[return-value]

    def _summed(self, function: Callable[[int, int, int], float | None]) -> F64:
        self.buffers[:] = 0.0
        self._map(function)
        return np.asarray(self.buffers.sum(axis=0))

    def evaluate(self, z: F64, d1: F64, d2: F64) -> float:
        """Fill d1 and d2 at scores z; return the weighted loss."""

        def work(k: int, a: int, b: int) -> float:
            rows = slice(a, b)
            return evaluate_rows(
                self.loss, b - a, z[rows], self.response[rows], self.weight[rows], d1[rows], d2[rows]
            )

        return float(sum(value or 0.0 for value in self._map(work)))

    def scores(self, theta: F64) -> F64:
        """Return ``offset + X theta``."""
        z = np.empty(self.design.n_rows)
        self.passes += 0.5
        self._map(
            lambda k, a, b: add_margins(*self._csr(a, b), theta, self.offset[a:b], z[a:b])
        )
        return z

    def moves(self, step: F64) -> F64:
        """Return ``X step``."""
        z = np.empty(self.design.n_rows)
        self.passes += 0.5
        self._map(lambda k, a, b: margins(*self._csr(a, b), step, z[a:b]))
        return z

    def transposed(self, d1: F64) -> F64:
        """Return ``X' d1``."""
        self.passes += 0.5
        return self._summed(
            lambda k, a, b: add_transposed(*self._csr(a, b), d1[a:b], self.buffers[k])
        )

    def hessian_product(self, d2: F64, direction: F64, z: F64) -> F64:
        """Fill ``z = X direction``; return ``X' (d2 z)``."""
        self.passes += 1.0
        return self._summed(
            lambda k, a, b: add_hessian_product(
                *self._csr(a, b), d2[a:b], direction, z[a:b], self.buffers[k]
            )
        )

    def hessian_diagonal(self, d2: F64) -> F64:
        """Return the diagonal of ``X' diag(d2) X``."""
        self.passes += 0.5
        return self._summed(
            lambda k, a, b: add_hessian_diagonal(*self._csr(a, b), d2[a:b], self.buffers[k])
        )

    def hessian(self, d2: F64) -> F64:
        """Return the lower triangle of ``X' diag(d2) X``."""
        self.passes += 1.0
        d = self.buffers.shape[1]
        parts = np.zeros((len(self.slices), d, d))
        self._map(lambda k, a, b: add_hessian(*self._csr(a, b), d2[a:b], parts[k]))
        return np.asarray(parts.sum(axis=0))

    def rounding_floor(self, theta: F64, d1: F64, d2: F64, penalty: F64) -> float:
        """Return the norm below which a gradient is rounding error."""
        return float(
            rounding_floor(
                *self._csr(0, self.design.n_rows), theta, self.offset, d1, d2, penalty
            )
        )


def fit_large(
    design: CsrMatrix,
    response: F64,
    weight: F64,
    offset: F64,
    *,
    loss: int,
    penalty: F64,
    intercept: bool = True,
    tolerance: float = 1e-8,
    max_iterations: int = 100,
    start: F64 | None = None,
    threads: int = 1,
) -> LargeFit:
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
        (d,) L2 weight per coefficient, the intercept's first.
    tolerance
        Stop at this gradient norm relative to the one at zero coefficients.
    start
        (d,) start coefficients.
    threads
        The result depends on it only through the order of sums.
    """
    rows = _Rows(design, response, weight, offset, loss, intercept, threads)
    d = design.n_columns + 1
    direct = (
        d <= MAX_DIRECT_COEFFICIENTS and design.nnz <= MAX_DIRECT_NNZ_PER_ROW * design.n_rows
    )
    theta = np.zeros(d) if start is None else start.copy()
    d1, d2 = np.empty(design.n_rows), np.empty(design.n_rows)
    new_d1, new_d2 = np.empty_like(d1), np.empty_like(d2)

    z = offset.copy()
    value = rows.evaluate(z, d1, d2)
    gradient = rows.transposed(d1)
    reference = float(np.linalg.norm(gradient))
    if theta.any():
        z = rows.scores(theta)
        value = rows.evaluate(z, d1, d2)
        gradient = rows.transposed(d1)

    status = FitStatus.MAX_ITERATIONS
    previous_norm = np.inf
    below_noise = False
    iteration = 0
    while True:
        gradient += penalty * theta
        norm = float(np.linalg.norm(gradient))
        if norm <= tolerance * reference:
            status = FitStatus.CONVERGED
            break
        if below_noise and norm > 0.5 * previous_norm:
            status = FitStatus.STALLED
            break
        if iteration == max_iterations:
            break
        previous_norm = norm
        iteration += 1

        if direct:
            step = _cholesky_step(rows.hessian(d2), gradient, penalty)
        else:
            forcing = min(0.1, (norm / max(reference, norm)) ** 0.5)
            target = max(forcing * norm, 0.3 * tolerance * reference)
            step = _conjugate_gradient_step(rows, d2, gradient, penalty, target)
        if penalty[0] == 0.0 and abs(step[0]) > MAX_INTERCEPT_STEP:
            step *= MAX_INTERCEPT_STEP / abs(step[0])

        move = rows.moves(step)
        slope = float(gradient @ step)
        objective = value + 0.5 * float(theta @ (penalty * theta))
        noise = 1e-13 * abs(objective)
        below_noise = -slope <= noise
        t = 1.0
        while True:
            new_z = z + t * move
            new_theta = theta + t * step
            new_value = rows.evaluate(new_z, new_d1, new_d2)
            new_objective = new_value + 0.5 * float(new_theta @ (penalty * new_theta))
            if new_objective <= objective + 1e-4 * t * slope + noise or t < 1e-12:
                break
            t *= 0.5
        if t < 1e-12:
            status = FitStatus.STALLED
            break
        theta, z, value = new_theta, new_z, new_value
        d1, new_d1 = new_d1, d1
        d2, new_d2 = new_d2, d2
        gradient = rows.transposed(d1)

    if status != FitStatus.CONVERGED and norm <= rows.rounding_floor(theta, d1, d2, penalty):
        status = FitStatus.CONVERGED
    if intercept and _is_separated(rows, z, penalty):
        status = FitStatus.SEPARATED
    if not (np.isfinite(theta).all() and np.isfinite(norm)):
        status, theta = FitStatus.NOT_FINITE, np.zeros(d)
    objective = value + 0.5 * float(theta @ (penalty * theta))
    return LargeFit(theta, status, iteration, rows.passes, norm, objective)


def _is_separated(rows: _Rows, z: F64, penalty: F64) -> bool:
    """Whether no finite optimum exists: along some unpenalised direction no row loses.

    That direction is the intercept for labels of one class, or the coefficients themselves
    if none is penalised and they classify every row (Albert & Anderson, Biometrika 1984).
    """
    if penalty[0] > 0.0:
        return False
    if labels_of_one_class(rows.loss, z.size, rows.response, rows.weight):
        return True
    if rows.loss != LOGISTIC or penalty.any():
        return False
    own = z - rows.offset
    used = rows.weight > 0.0
    return bool(((own > 0.0) == (rows.response > 0.5))[used].all())


def _cholesky_step(hessian: F64, gradient: F64, penalty: F64) -> F64:
    hessian[np.diag_indices_from(hessian)] += penalty
    cholesky.factorize(penalty.size, hessian, penalty)
    step = -gradient
    cholesky.solve(penalty.size, hessian, step)
    return step


def _conjugate_gradient_step(
    rows: _Rows, d2: F64, gradient: F64, penalty: F64, target: float
) -> F64:
    """Solve ``H step = -gradient`` until the residual's norm is at most `target`."""
    diagonal = rows.hessian_diagonal(d2) + penalty
    inverse = np.divide(1.0, diagonal, out=np.zeros_like(diagonal), where=diagonal > 0.0)
    step = np.zeros_like(gradient)
    residual = -gradient
    direction = inverse * residual
    fit = float(residual @ direction)
    margin = np.empty(d2.size)
    for _ in range(min(2 * penalty.size + 10, 1000)):
        product = rows.hessian_product(d2, direction, margin) + penalty * direction
        curvature = float(direction @ product)
        if curvature <= 0.0:
            break
        length = fit / curvature
        step += length * direction
        residual -= length * product
        if float(np.linalg.norm(residual)) <= target:
            break
        scaled = inverse * residual
        next_fit = float(residual @ scaled)
        direction = scaled + next_fit / fit * direction
        fit = next_fit
    return step
