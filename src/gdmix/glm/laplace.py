"""The Laplace approximation around a joint optimum: what the data leave uncertain.

Around the optimum the posterior of the coefficients is about normal with the covariance
``H^-1``, H = X' diag(d2) X + penalty (Tierney & Kadane 1986). H is far too large to invert where
millions of entities are crossed. Its block diagonal B = L L', one block per entity, is not, and
what B lacks is estimated with random signs v: for x = H^-1 L v, y = B^-1 L v,

    diag(H^-1) = diag(B^-1) + E[(x - y) y]        leverages  diag(X H^-1 X') = E[(X x)(X y)]
    log|H|     = log|B| + E[v' log(L^-1 H L'^-1) v]

(Hutchinson 1990; the logarithm by the Lanczos coefficients of the same solves, Gardner et al.,
GPyTorch, 2018). A problem that is small enough is inverted as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gdmix import memory
from gdmix.glm.joint import Factor, JointMap
from gdmix.glm.losses import SQUARED, third_derivatives
from gdmix.glm.newton import Labels, conjugate_gradients
from gdmix.glm.penalty import QuadraticPenalty

F64 = NDArray[np.float64]

MAX_EXACT_COEFFICIENTS = 600
# Of one solve. What is left then are a few directions that many coefficients share: of a trace
# over groups they are little, and where features are collinear they would cost hundreds.
MAX_ITERATIONS = 25
_MAX_EXACT_ENTRIES = 2_000_000  # of X, written out


@dataclass(frozen=True)
class Laplace:
    """The approximation at a point.

    Attributes
    ----------
    loss
        The weighted loss there.
    variance
        (d,) diagonal of H^-1, an estimate whose noise cancels in sums; 0 of a coefficient that is
        not `present`.
    present
        (d,) whether the rows or the penalty know the coefficient at all.
    pull
        (d,) ``H^-1 X' (d3 leverage)``: what -1/2 of it adds to the optimum is the first-order
        shift of the mode, and half of it times theta the change of log|H| with the penalty.
    log_determinant
        log|H|, without coefficients that no row has.
    """

    loss: float
    variance: F64
    present: NDArray[np.bool_]
    pull: F64
    log_determinant: float


def laplace(
    design: JointMap,
    labels: Labels,
    penalty: QuadraticPenalty,
    theta: F64,
    probes: int,
    accuracy: float = 0.01,
    seed: int = 0,
) -> Laplace:
    """Approximate the posterior around `theta`, the optimum of `labels` and `penalty`.

    Parameters
    ----------
    probes
        Random vectors; 0: only the block diagonal, without leverages.
    accuracy
        Relative residual of the solves; quadratic forms are good to about its square.
    """
    n = labels.response.size
    z = memory.copy(labels.offset)
    z += design.scores(theta)
    d1, d2 = memory.empty(n), memory.empty(n)
    loss = labels.evaluate(z, d1, d2)
    d3 = d1  # of the same length, and no longer needed
    third_derivatives(labels.loss, z, labels.weight, d3)
    exact = design.size <= MAX_EXACT_COEFFICIENTS and design.size * n <= _MAX_EXACT_ENTRIES
    if exact:
        return _exact(design, penalty, d2, d3, loss)
    factor = design.preconditioner(d2, penalty)
    variance, log_determinant = factor.inverse_diagonal().copy(), factor.log_determinant()
    present = variance > 0.0
    leverage = memory.zeros(n)
    rng = np.random.default_rng(seed)
    for _ in range(probes):
        signs = rng.integers(0, 2, design.size).astype(np.float64)
        signs *= 2.0
        signs -= 1.0
        root = factor.multiply_root(signs)
        x, logarithm = _solve(design, d2, penalty, factor, root, accuracy)
        y = factor.solve(root)
        variance += (x - y) * y / probes
        log_determinant += logarithm / probes
        if labels.loss != SQUARED:
            leverage += design.scores(x) * design.scores(y) / probes
    pull = np.zeros(design.size)
    if labels.loss != SQUARED and probes:
        leverage *= d3
        pull, _ = _solve(design, d2, penalty, factor, design.transposed(leverage), accuracy)
    return Laplace(loss, variance, present, pull, log_determinant)


def _solve(
    design: JointMap,
    d2: F64,
    penalty: QuadraticPenalty,
    factor: Factor,
    target: F64,
    accuracy: float,
) -> tuple[F64, float]:
    """Solve ``H x = target``; also return ``v' log(L^-1 H L'^-1) v`` for ``L v = target``."""
    lengths: list[float] = []
    fits: list[float] = []

    def record(length: float, fit: float) -> None:
        lengths.append(length)
        fits.append(fit)

    size = float(np.sqrt(target @ target))
    x, _ = conjugate_gradients(
        lambda direction: design.hessian_product(d2, penalty, direction),
        factor.solve,
        -target,
        accuracy * size,
        MAX_ITERATIONS,
        record,
    )
    return x, _quadratic_logarithm(np.array(lengths), np.array(fits))


def _quadratic_logarithm(lengths: F64, fits: F64) -> float:
    """Return ``v' log(A) v`` from the conjugate gradients of A (Golub & Meurant 2010, ch. 3)."""
    if not lengths.size:
        return 0.0
    ratios = fits[1:] / fits[:-1]
    diagonal = 1.0 / lengths
    diagonal[1:] += ratios / lengths[:-1]
    beside = np.sqrt(ratios) / lengths[:-1]
    nodes, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))
    positive = nodes > 0.0
    return float(fits[0] * (vectors[0, positive] ** 2 @ np.log(nodes[positive])))


def _exact(design: JointMap, penalty: QuadraticPenalty, d2: F64, d3: F64, loss: float) -> Laplace:
    x = np.stack([design.scores(unit) for unit in np.eye(design.size)], axis=1)
    hessian = x.T @ (d2[:, None] * x) + np.diag(penalty.weights)
    there = np.diag(hessian) > 0.0
    inverse = np.zeros_like(hessian)
    # An aliased column, without a penalty, has no variance of its own: the smallest solution.
    values, vectors = np.linalg.eigh(hessian[np.ix_(there, there)])
    kept = values > 1e-12 * values.max(initial=0.0)
    vectors = vectors[:, kept]
    inverse[np.ix_(there, there)] = (vectors / values[kept]) @ vectors.T
    leverage = np.einsum("ij,ij->i", x @ inverse, x)
    pull = inverse @ (x.T @ (d3 * leverage))
    logarithm = float(np.log(values[kept]).sum())
    return Laplace(loss, np.diag(inverse).copy(), there, pull, logarithm)
