"""How a fit ended: a value that is counted and reported, never a silent zero."""

from __future__ import annotations

from enum import IntEnum


class FitStatus(IntEnum):
    """How one model's fit ended.

    Attributes
    ----------
    CONVERGED
        The gradient's norm is at most `tolerance` times its norm at zero coefficients, or
        below what double precision resolves for this problem.
    MAX_ITERATIONS
        The iterations ran out first; the best point so far is returned.
    STALLED
        No step along the Newton direction lowers the objective; the last point is returned.
    SEPARATED
        The intercept is not penalised and all labels are of one class: the exact optimum is
        at infinity. The returned intercept is the finite one at which the gradient met the
        tolerance (about 18 for a logistic model at the default tolerance).
    NOT_FINITE
        Overflow: the coefficients are returned as zero and the model should not be trusted.
    """

    CONVERGED = 0
    MAX_ITERATIONS = 1
    STALLED = 2
    SEPARATED = 3
    NOT_FINITE = 4


# Kernels see plain integers: numba reads an IntEnum's members only through a slow path.
CONVERGED = int(FitStatus.CONVERGED)
MAX_ITERATIONS = int(FitStatus.MAX_ITERATIONS)
STALLED = int(FitStatus.STALLED)
SEPARATED = int(FitStatus.SEPARATED)
NOT_FINITE = int(FitStatus.NOT_FINITE)
UNSOLVED = -1  # never leaves the solvers
