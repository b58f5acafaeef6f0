"""Coefficients of the solvers against statsmodels and scikit-learn.

Features are numbers that single precision holds exactly, so that all programs see the same data.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, PoissonRegressor, Ridge

from gdmix.glm.entities import EntityBlock, fit_entities
from gdmix.glm.large import fit_large
from gdmix.glm.losses import LOGISTIC, POISSON, SQUARED
from gdmix.glm.matrix import CsrMatrix
from gdmix.glm.penalty import QuadraticPenalty
from gdmix.glm.status import FitStatus

F64 = NDArray[np.float64]
FAMILIES = {
    LOGISTIC: sm.families.Binomial(),
    SQUARED: sm.families.Gaussian(),
    POISSON: sm.families.Poisson(),
}
each_loss = pytest.mark.parametrize(
    "loss", FAMILIES, ids=lambda loss: ["logistic", "squared", "poisson"][loss]
)


@pytest.fixture(params=["large", "entities"])
def program(request: Any) -> str:
    return str(request.param)


def data(loss: int, n: int = 500, d: int = 6) -> tuple[F64, F64, F64, F64]:
    """Return features, response, weights (whole numbers, some zero) and offsets."""
    rng = np.random.default_rng(20)
    x = rng.normal(size=(n, d)).astype(np.float32).astype(float)
    x[:, 1] = rng.integers(0, 2, n)
    offset = 0.5 * rng.normal(size=n)
    z = 0.3 + offset + x @ (0.4 * rng.normal(size=d))
    if loss == LOGISTIC:
        y = (rng.random(n) < 1 / (1 + np.exp(-z))).astype(float)
    else:
        y = z + rng.normal(size=n) if loss == SQUARED else rng.poisson(np.exp(z)).astype(float)
    return x, y, rng.integers(0, 4, n).astype(float), offset


def ours(
    program: str, loss: int, x: F64, y: F64, w: F64, offset: F64, l2: float, **options: Any
) -> F64:
    """Fit with an unpenalised intercept."""
    n, d = x.shape
    indptr = np.arange(n + 1, dtype=np.int64) * d
    indices = np.tile(np.arange(d, dtype=np.uint32), n)
    values = x.astype(np.float32).ravel()
    options = {"loss": loss, "tolerance": 1e-12} | options
    if program == "large":
        penalty = np.concatenate(([0.0], np.full(d, l2)))
        design = CsrMatrix(indptr, indices, values, d)
        large = fit_large(design, y, w, offset, penalty=QuadraticPenalty(penalty), **options)
        assert large.status == FitStatus.CONVERGED
        return large.coefficients
    row_ptr, coefficient_ptr = np.array([0, n]), np.array([0, d + 1])
    block = EntityBlock(row_ptr, coefficient_ptr, indptr, indices, values, y, w)
    small = fit_entities(block, offset, l2=l2, intercept_l2=0.0, **options)
    assert small.status[0] == FitStatus.CONVERGED
    return small.coefficients


@each_loss
@pytest.mark.parametrize("weights", ["freq_weights", "var_weights"])
@pytest.mark.parametrize("intercept", [True, False])
def test_statsmodels_glm(program: str, loss: int, weights: str, intercept: bool) -> None:
    x, y, w, offset = data(loss)
    if weights == "var_weights":
        w = w + 0.25
    used = w > 0.0  # statsmodels divides by the weights
    design = sm.add_constant(x) if intercept else x
    model = sm.GLM(y[used], design[used], FAMILIES[loss], offset=offset[used], **{weights: w[used]})
    expected = model.fit(tol=1e-12, maxiter=200).params
    theta = ours(program, loss, x, y, w, offset, 0.0, intercept=intercept)
    np.testing.assert_allclose(theta if intercept else theta[1:], expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("l2", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("n", [20, 500])
def test_scikit_learn_logistic_regression(program: str, l2: float, n: int) -> None:
    x, y, w, _ = data(LOGISTIC, n)
    model = LogisticRegression(C=1 / l2, solver="newton-cholesky", tol=1e-12, max_iter=500)
    model.fit(x, y, sample_weight=w)
    expected = np.concatenate((model.intercept_, model.coef_[0]))
    theta = ours(program, LOGISTIC, x, y, w, np.zeros(n), l2)
    np.testing.assert_allclose(theta, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("l2", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("n", [20, 500])
def test_scikit_learn_ridge(program: str, l2: float, n: int) -> None:
    x, y, w, offset = data(SQUARED, n)
    model = Ridge(alpha=l2, solver="cholesky").fit(x, y - offset, sample_weight=w)
    theta = ours(program, SQUARED, x, y, w, offset, l2)
    np.testing.assert_allclose(theta, [model.intercept_, *model.coef_], rtol=0, atol=1e-9)


@pytest.mark.parametrize("l2", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("n", [20, 500])
def test_scikit_learn_poisson_regressor(program: str, l2: float, n: int) -> None:
    x, y, w, _ = data(POISSON, n)
    # It minimises the weighted mean of half the deviance plus alpha / 2 times the squares.
    model = PoissonRegressor(alpha=l2 / w.sum(), solver="newton-cholesky", tol=1e-12, max_iter=500)
    model.fit(x, y, sample_weight=w)
    theta = ours(program, POISSON, x, y, w, np.zeros(n), l2)
    np.testing.assert_allclose(theta, [model.intercept_, *model.coef_], rtol=0, atol=1e-7)
