"""Calls of other libraries that more than one benchmark makes, as an expert would make them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

F64 = NDArray[np.float64]


def fit_scikit(solver: str, x: Any, y: F64, l2: float, tolerance: float | None) -> tuple[F64, bool]:
    """Fit without an intercept of scikit-learn's own; `x` has a constant column.

    Returns
    -------
    tuple
        The coefficients, and whether the library says that it converged.
    """
    model = LogisticRegression(
        C=1.0 / l2, fit_intercept=False, solver=solver, tol=tolerance, max_iter=1000
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(x, y)
    complaints = any(issubclass(w.category, ConvergenceWarning) for w in caught)
    return model.coef_[0], not complaints


def fit_snapml(x: Any, y: F64, l2: float, tolerance: float | None, *, dual: bool) -> F64:
    """Fit without an intercept of Snap ML's own; `x` is single precision, with a constant column.

    The library does not say whether it converged.
    """
    import snapml

    model = snapml.LogisticRegression(
        regularizer=l2, dual=dual, fit_intercept=False, tol=tolerance, max_iter=10_000, n_jobs=1
    )
    model.fit(x, y)
    return np.ravel(model.coef_).astype(np.float64)
