"""L1 and bounds: the optimality conditions, other programs' optima, and exact zeros and bounds."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
from glm_oracle import (
    F64,
    KINDS,
    LOSSES,
    Problem,
    csr,
    derivatives,
    draw_response,
    gradient,
    objective,
    penalties,
    problem,
    stress_problem,
    with_intercept,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from thread_group import ThreadGroup, run_in_group

from gdmix.glm import distributed, large, quadratic_model
from gdmix.glm.distributed import (
    DistributedMap,
    DividedPenalty,
    fit_large_distributed,
    held_slice,
)
from gdmix.glm.large import fit_large
from gdmix.glm.losses import LOGISTIC, POISSON, SQUARED
from gdmix.glm.matrix import CsrMatrix
from gdmix.glm.newton import Minimum
from gdmix.glm.penalty import QuadraticPenalty
from gdmix.glm.proximal import fit_large_proximal
from gdmix.glm.proximal_newton import (
    COEFFICIENT_BUFFERS,
    ROW_BUFFERS,
    UNBOUNDED,
    solve_proximal,
)
from gdmix.glm.quadratic_model import best_length
from gdmix.glm.status import FitStatus

each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
INFINITY = np.inf
OPTIMA = (FitStatus.CONVERGED, FitStatus.SEPARATED)


@dataclass
class Terms:
    """Penalties and bounds, all arrays (d,)."""

    penalty: F64
    l1: F64
    lower: F64
    upper: F64
    matrix: F64 | None = None

    @staticmethod
    def of(
        d: int, l1: float, l2: float = 0.0, low: float = -INFINITY, high: float = INFINITY
    ) -> Terms:
        """The same for all slopes; the intercept is left alone."""
        l1_weights, lower, upper = np.full(d, l1), np.full(d, low), np.full(d, high)
        l1_weights[0], lower[0], upper[0] = 0.0, -INFINITY, INFINITY
        return Terms(penalties(d, l2, 0.0), l1_weights, lower, upper)

    @staticmethod
    def random(rng: np.random.Generator, d: int) -> Terms:
        """Some free, some at bounds that may be zero or equal, some without any penalty."""
        lower = np.where(rng.random(d) < 0.2, -rng.random(d) * rng.integers(0, 2, d), -INFINITY)
        upper = np.where(rng.random(d) < 0.2, rng.random(d) * rng.integers(0, 2, d), INFINITY)
        l1 = rng.choice([0.0, 0.1, 1.0, 5.0]) * (rng.random(d) < 0.9)
        l2 = rng.choice([0.0, 0.0, 0.1, 1.0]) * (rng.random(d) < 0.9)
        return Terms(l2, l1, lower, upper)


def solve_small(
    p: Problem, loss: int, terms: Terms, *, intercept: bool = True, start: F64 | None = None,
    tolerance: float = 1e-8, max_iterations: int = 200, design: CsrMatrix | None = None,
) -> Minimum:  # fmt: skip
    x = csr(p.features) if design is None else design
    n, d = p.features.shape[0], p.features.shape[1] + 1
    theta = np.zeros(d) if start is None else start.copy()
    report = np.zeros(2)
    matrix = np.empty((0, 0)) if terms.matrix is None else terms.matrix
    lower, upper = np.maximum(terms.lower, -UNBOUNDED), np.minimum(terms.upper, UNBOUNDED)
    status = solve_proximal(
        loss, n, x.indptr, x.indices, x.values, p.response, p.weight, p.offset, float(intercept),
        terms.penalty, matrix, terms.l1, lower, upper, tolerance, max_iterations, theta,
        np.full((ROW_BUFFERS, n), 1e30), np.full((COEFFICIENT_BUFFERS, d), 1e30),
        np.full(d, -1), np.full((d, d), 1e30), np.full((d, d), 1e30), report,
    )  # fmt: skip
    return Minimum(theta, FitStatus(status), int(report[0]), 0.0, float(report[1]), 0.0)


def solve_large(
    p: Problem, loss: int, terms: Terms, *, design: CsrMatrix | None = None, **options: Any
) -> Minimum:
    return fit_large_proximal(
        csr(p.features) if design is None else design,
        p.response,
        p.weight,
        p.offset,
        loss=loss,
        penalty=QuadraticPenalty(terms.penalty, terms.matrix),
        l1=terms.l1,
        lower=terms.lower,
        upper=terms.upper,
        **{"max_iterations": 200, **options},
    )


def solve_by_columns(*arguments: Any, **options: Any) -> Minimum:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large, "MAX_DIRECT_COEFFICIENTS", 0)
        patch.setattr(quadratic_model, "MAX_DENSE_COEFFICIENTS", 0)
        return solve_large(*arguments, **options)


def solve_in_group(
    p: Problem, loss: int, terms: Terms, *, intercept: bool = True, start: F64 | None = None,
    design: CsrMatrix | None = None, threads: int = 1, size: int = 3, **options: Any,
) -> Minimum:  # fmt: skip
    """Rows and coefficients are divided among ranks, to which all else must be alike."""
    x = csr(p.features) if design is None else design
    n = x.n_rows

    def work(group: ThreadGroup) -> Minimum:
        own = np.arange(n * group.rank**2 // size**2, n * (group.rank + 1) ** 2 // size**2)
        shard = DistributedMap(x.take(own), intercept, threads, group)
        held = shard.held
        return fit_large_distributed(
            shard,
            p.response[own],
            p.weight[own],
            p.offset[own],
            loss=loss,
            penalty=DividedPenalty(
                terms.penalty[held],
                None if terms.matrix is None else terms.matrix[held],
                held=held,
                group=group,
            ),
            l1=terms.l1[held],
            lower=terms.lower[held],
            upper=terms.upper[held],
            start=None if start is None else start[held],
            **{"max_iterations": 200, **options},
        )

    fits = run_in_group(size, work)
    facts = {(f.status, f.iterations, f.passes, f.gradient_norm, f.value) for f in fits}
    assert len(facts) == 1 or np.isnan(fits[0].value), facts
    return replace(fits[0], coefficients=np.concatenate([f.coefficients for f in fits]))


def solve_by_gradients(*arguments: Any, **options: Any) -> Minimum:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large, "MAX_DIRECT_COEFFICIENTS", 0)
        patch.setattr(quadratic_model, "MAX_DENSE_COEFFICIENTS", 0)
        patch.setattr(distributed, "MAX_FALLBACK_COEFFICIENTS", 0)
        return solve_in_group(*arguments, **options)


SOLVERS = {
    "small": solve_small,
    "large": solve_large,
    "by columns": solve_by_columns,
    "in a group": solve_in_group,
    "by gradients": solve_by_gradients,
}
each_solver = pytest.mark.parametrize("solve", SOLVERS.values(), ids=SOLVERS.keys())


def smooth_gradient(p: Problem, loss: int, terms: Terms, theta: F64, intercept: bool) -> F64:
    slope = gradient(p, theta, loss, terms.penalty, intercept)
    return slope if terms.matrix is None else slope + terms.matrix @ theta


def residual(p: Problem, loss: int, terms: Terms, theta: F64, intercept: bool = True) -> float:
    """Distance from zero to the subdifferential of the objective plus the box's indicator.

    Per coefficient both are intervals: ``slope + l1 sign(theta)``, and what may be added at a
    bound is everything that pushes against it.
    """
    slope = smooth_gradient(p, loss, terms, theta, intercept)
    low = slope + np.where(theta > 0, terms.l1, -terms.l1)
    high = slope + np.where(theta < 0, -terms.l1, terms.l1)
    low[theta <= terms.lower] = -INFINITY
    high[theta >= terms.upper] = INFINITY
    distance = np.maximum(np.maximum(low, -high), 0.0)
    return float(np.linalg.norm(distance[0 if intercept else 1 :]))


def nearest_zero(terms: Terms) -> F64:
    return np.clip(np.zeros_like(terms.lower), terms.lower, terms.upper)


def total(p: Problem, loss: int, terms: Terms, theta: F64, intercept: bool = True) -> float:
    value = objective(p, theta, loss, terms.penalty, intercept) + terms.l1 @ np.abs(theta)
    return float(value if terms.matrix is None else value + 0.5 * theta @ terms.matrix @ theta)


# --- the optimality conditions -------------------------------------------------------------


@each_solver
@settings(max_examples=60, derandomize=True, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_least_subgradient_vanishes(solve: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    loss = int(rng.integers(3))
    kind = str(rng.choice([*KINDS, "stress"]))
    p = stress_problem(rng, loss) if kind == "stress" else KINDS[kind](rng, loss)
    if rng.random() < 0.2:  # an empty column
        p.features[:, :1] = 0.0
    d = p.features.shape[1] + 1
    terms = Terms.random(rng, d)
    intercept = bool(rng.random() < 0.8)
    start = rng.normal(size=d) if rng.random() < 0.3 else None
    if not intercept:
        terms.lower[0], terms.upper[0] = -INFINITY, INFINITY
    result = solve(p, loss, terms, intercept=intercept, start=start)
    theta = result.coefficients
    assert result.status in OPTIMA
    assert (terms.lower <= theta).all() and (theta <= terms.upper).all()
    assert intercept or theta[0] == 0.0
    reference = residual(p, loss, terms, nearest_zero(terms), intercept)
    # Where scores are large the gradient is not known better than this.
    x = np.abs(with_intercept(p.features, intercept))
    z = p.offset + with_intercept(p.features, intercept) @ theta
    _, d1, d2 = derivatives(loss, z, p.response)
    size = np.abs(p.offset) + x @ np.abs(theta)
    noise = p.weight * (np.abs(d1) + d2 * (1 + size)) @ x.sum(axis=1) + terms.l1.sum()
    noise += terms.penalty @ np.abs(theta)
    norm = residual(p, loss, terms, theta, intercept)
    if result.status == FitStatus.CONVERGED:
        assert norm <= 2e-8 * reference + 1e-13 * noise
    assert result.gradient_norm == pytest.approx(norm, abs=1e-9 * reference + 1e-13 * noise)


@each_loss
def test_all_solvers_find_the_same(loss: int) -> None:
    rng = np.random.default_rng(1)
    for intercept in (True, False):
        p = problem(rng, loss, 150, 20)
        terms = Terms.random(rng, 21)
        terms.penalty[:] = 0.3
        terms.lower[0], terms.upper[0] = -INFINITY, INFINITY
        first, *others = (
            solve(p, loss, terms, intercept=intercept, tolerance=1e-11)
            for solve in SOLVERS.values()
        )
        for other in others:
            np.testing.assert_allclose(other.coefficients, first.coefficients, atol=1e-9)
            np.testing.assert_array_equal(other.coefficients == 0, first.coefficients == 0)
            assert other.value == pytest.approx(
                total(p, loss, terms, first.coefficients, intercept)
            )


@each_loss
@each_solver
def test_without_l1_and_bounds_it_is_newtons_optimum(loss: int, solve: Any) -> None:
    p = problem(np.random.default_rng(2), loss, 200, 15)
    terms = Terms.of(16, 0.0, 0.5)
    expected = fit_large(
        csr(p.features), p.response, p.weight, p.offset,
        loss=loss, penalty=QuadraticPenalty(terms.penalty), tolerance=1e-11,
    )  # fmt: skip
    result = solve(p, loss, terms, tolerance=1e-11)
    np.testing.assert_allclose(result.coefficients, expected.coefficients, atol=1e-9)


# --- exactness ------------------------------------------------------------------------------


@each_loss
@each_solver
def test_zeros_and_bounds_are_exact(loss: int, solve: Any) -> None:
    p = problem(np.random.default_rng(3), loss, 300, 20)
    terms = Terms.of(21, 4.0, 0.0, -0.15, 0.1)
    theta = solve(p, loss, terms).coefficients
    slope = smooth_gradient(p, loss, terms, theta, True)
    kinds = [theta == 0.0, theta == 0.1, theta == -0.15]
    assert all(kind.sum() >= 2 for kind in kinds)
    at_zero, at_upper, at_lower = kinds
    assert (np.abs(slope[at_zero]) <= 4.0).all()
    assert (slope[at_upper] <= -4.0).all() and (slope[at_lower] >= 4.0).all()
    inside = ~(at_zero | at_upper | at_lower)
    inside[0] = False
    expected = -4.0 * np.sign(theta[inside])
    np.testing.assert_allclose(slope[inside], expected, atol=1e-5)


@each_loss
@each_solver
def test_the_largest_l1_of_a_path_leaves_the_intercept_alone(loss: int, solve: Any) -> None:
    p = problem(np.random.default_rng(4), loss, 100, 12)
    alone = solve(p, loss, Terms.of(13, 0.0, 0.0, 0.0, 0.0), tolerance=1e-12).coefficients
    largest = float(np.abs(smooth_gradient(p, loss, Terms.of(13, 0.0), alone, True)[1:]).max())
    over = solve(p, loss, Terms.of(13, 1.001 * largest)).coefficients
    under = solve(p, loss, Terms.of(13, 0.99 * largest)).coefficients
    assert np.count_nonzero(over) == 1
    assert np.count_nonzero(under) == 2
    assert over[0] == pytest.approx(alone[0], abs=1e-6)


@each_loss
@each_solver
def test_fixed_coefficients_act_as_an_offset(loss: int, solve: Any) -> None:
    rng = np.random.default_rng(5)
    p = problem(rng, loss, 120, 8)
    terms = Terms.of(9, 0.5, 0.1)
    terms.lower[3] = terms.upper[3] = 0.4
    result = solve(p, loss, terms, tolerance=1e-11)
    kept = np.arange(8) != 2
    rest = Problem(p.features[:, kept], p.response, p.weight, p.offset + 0.4 * p.features[:, 2])
    expected = solve(rest, loss, Terms.of(8, 0.5, 0.1), tolerance=1e-11).coefficients
    assert result.coefficients[3] == 0.4
    np.testing.assert_allclose(np.delete(result.coefficients, 3), expected, atol=1e-8)


# --- other programs -------------------------------------------------------------------------


@each_loss
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("bounded", [True, False])
@each_solver
def test_scipys_optimum_of_the_split_problem(
    loss: int, intercept: bool, bounded: bool, solve: Any
) -> None:
    """theta = up - down with both parts at least 0: smooth, so that L-BFGS-B applies."""
    rng = np.random.default_rng(6)
    p = problem(rng, loss, 80, 10)
    d = 11
    terms = Terms.of(d, 2.0, 0.2, *((-0.1, 0.3) if bounded else ()))
    terms.matrix = 0.1 * np.ones((d, d))
    terms.l1[0] = terms.penalty[0] = 0.5
    if not intercept:
        terms.matrix[0, :] = terms.matrix[:, 0] = 0.0

    def split(parts: F64) -> tuple[float, F64]:
        theta = parts[:d] - parts[d:]
        slope = smooth_gradient(p, loss, terms, theta, intercept)
        value = total(p, loss, terms, theta, intercept) - terms.l1 @ np.abs(theta)
        return value + terms.l1 @ (parts[:d] + parts[d:]), np.append(
            slope + terms.l1, terms.l1 - slope
        )

    bounds = [(0.0, high) for high in terms.upper] + [(0.0, -low) for low in terms.lower]
    if not intercept:
        bounds[0] = bounds[d] = (0.0, 0.0)
    options = {"maxiter": 20_000, "maxfun": 40_000, "ftol": 1e-16, "gtol": 1e-10}
    expected = scipy.optimize.minimize(
        split, np.zeros(2 * d), jac=True, bounds=bounds, method="L-BFGS-B", options=options
    )
    result = solve(p, loss, terms, intercept=intercept, tolerance=1e-11)
    assert result.status == FitStatus.CONVERGED
    found = total(p, loss, terms, result.coefficients, intercept)
    assert found <= expected.fun + 1e-10
    assert found == pytest.approx(expected.fun, rel=1e-8)
    theta = expected.x[:d] - expected.x[d:]
    np.testing.assert_allclose(result.coefficients, theta, atol=2e-5)


@each_solver
@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("intercept", [True, False])
def test_scikit_learns_elastic_net(solve: Any, positive: bool, intercept: bool) -> None:
    """Squared loss; their objective is ours over the sum of weights."""
    from sklearn.linear_model import ElasticNet

    p = problem(np.random.default_rng(7), SQUARED, 200, 15, offset_sd=0.0)
    mass = p.weight.sum()
    l1, l2 = 6.0, 3.0
    net = ElasticNet(
        alpha=(l1 + l2) / mass, l1_ratio=l1 / (l1 + l2), fit_intercept=intercept,
        positive=positive, tol=1e-14, max_iter=100_000,
    ).fit(p.features, p.response, sample_weight=p.weight)  # fmt: skip
    terms = Terms.of(16, l1, l2, 0.0 if positive else -INFINITY)
    theta = solve(p, SQUARED, terms, intercept=intercept, tolerance=1e-11).coefficients
    np.testing.assert_allclose(theta, np.append(net.intercept_, net.coef_), atol=1e-6)
    np.testing.assert_array_equal(theta[1:] == 0.0, net.coef_ == 0.0)


@each_solver
def test_scikit_learns_lasso_with_more_columns_than_rows(solve: Any) -> None:
    from sklearn.linear_model import Lasso

    rng = np.random.default_rng(8)
    p = problem(rng, SQUARED, 30, 80, density=1.0, offset_sd=0.0)
    p.weight[:] = 1.0
    lasso = Lasso(alpha=4.0 / 30, tol=1e-14, max_iter=100_000).fit(p.features, p.response)
    theta = solve(p, SQUARED, Terms.of(81, 4.0), tolerance=1e-11).coefficients
    np.testing.assert_allclose(theta, np.append(lasso.intercept_, lasso.coef_), atol=1e-6)


@each_solver
@pytest.mark.parametrize("l1_share", [0.5, 1.0])
def test_scikit_learns_logistic_regression(solve: Any, l1_share: float) -> None:
    from sklearn.linear_model import LogisticRegression

    p = problem(np.random.default_rng(9), LOGISTIC, 150, 12, offset_sd=0.0)
    strength = 4.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # `penalty`, needed by older versions
        model = LogisticRegression(
            penalty="elasticnet", C=1 / strength, l1_ratio=l1_share, solver="saga", tol=1e-10,
            max_iter=20_000, random_state=0,
        ).fit(p.features, p.response, sample_weight=p.weight)  # fmt: skip
    terms = Terms.of(13, l1_share * strength, (1 - l1_share) * strength)
    theta = solve(p, LOGISTIC, terms, tolerance=1e-11).coefficients
    np.testing.assert_allclose(theta, np.append(model.intercept_, model.coef_[0]), atol=1e-5)


@each_loss
@each_solver
def test_statsmodels_elastic_net(loss: int, solve: Any) -> None:
    """Its objective is ours over the number of rows; its Poisson fit minds no offset."""
    import statsmodels.api as sm

    p = problem(np.random.default_rng(10), loss, 150, 8)
    p.weight[:] = 1.0
    if loss == POISSON:
        p = problem(np.random.default_rng(10), loss, 150, 8, offset_sd=0.0)
        p.weight[:] = 1.0
    family = {LOGISTIC: sm.families.Binomial(), SQUARED: sm.families.Gaussian()}.get(
        loss, sm.families.Poisson()
    )
    l1, l2 = 4.0, 2.0
    strength = np.full(9, (l1 + l2) / 150)
    strength[0] = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = sm.GLM(p.response, with_intercept(p.features, True), family, offset=p.offset)
        fit = model.fit_regularized(
            alpha=strength, L1_wt=l1 / (l1 + l2), maxiter=2000, cnvrg_tol=1e-12, zero_tol=1e-10
        )
    theta = solve(p, loss, Terms.of(9, l1, l2), tolerance=1e-11).coefficients
    np.testing.assert_allclose(theta, fit.params, atol=2e-4)
    ours, theirs = (total(p, loss, Terms.of(9, l1, l2), t) for t in (theta, fit.params))
    assert ours <= theirs + 1e-9
    assert ours == pytest.approx(theirs, rel=1e-6)


# --- hard cases -----------------------------------------------------------------------------


@each_loss
@each_solver
def test_columns_that_depend_on_each_other(loss: int, solve: Any) -> None:
    """Of two columns on the same scale any share is optimal; of unlike ones the longer wins."""
    rng = np.random.default_rng(11)
    p = problem(rng, loss, 300, 3, density=1.0)
    p.features = np.hstack([p.features, p.features, 2 * p.features, 1 - p.features[:, :1]])
    result = solve(p, loss, Terms.of(11, 1.0))
    assert result.status == FitStatus.CONVERGED
    assert result.iterations < 15
    assert not result.coefficients[1:7].any()
    assert result.coefficients[7:10].all()


@each_loss
@each_solver
def test_a_nearly_constant_column_costs_few_iterations(loss: int, solve: Any) -> None:
    rng = np.random.default_rng(12)
    p = problem(rng, loss, 1000, 10, density=0.3)
    year = 0.998 + 0.007 * rng.normal(size=(1000, 1))
    p.features = np.hstack([p.features, year]).astype(np.float32).astype(float)
    for l1, l2 in ((1e-3, 0.0), (0.1, 0.0), (1.0, 1.0)):
        result = solve(p, loss, Terms.of(12, l1, l2))
        assert result.status == FitStatus.CONVERGED
        assert result.iterations < 20


@each_loss
@each_solver
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_labels_of_one_class(loss: int, solve: Any, label: float) -> None:
    p = problem(np.random.default_rng(13), loss, 60, 4)
    p.response[:] = label
    endless = loss == LOGISTIC or (loss == POISSON and label == 0.0)
    free = solve(p, loss, Terms.of(5, 1.0))
    assert free.status == (FitStatus.SEPARATED if endless else FitStatus.CONVERGED)
    assert np.abs(free.coefficients[0]) < 60.0
    penalised, bounded = Terms.of(5, 1.0), Terms.of(5, 1.0)
    penalised.l1[0] = 0.5
    bounded.lower[0], bounded.upper[0] = -3.0, 2.0
    for terms in (penalised, bounded):
        result = solve(p, loss, terms)
        assert result.status == FitStatus.CONVERGED
        assert residual(p, loss, terms, result.coefficients) <= 1e-6
    if endless:
        assert result.coefficients[0] == (2.0 if label else -3.0)


@each_solver
def test_separable_labels_are_reported_unless_l1_or_a_bound_holds(solve: Any) -> None:
    p = problem(np.random.default_rng(14), LOGISTIC, 80, 3, density=1.0)
    p.response = (p.features[:, 0] > 0).astype(float)
    p.offset[:] = 0.0
    assert solve(p, LOGISTIC, Terms.of(4, 0.0)).status == FitStatus.SEPARATED
    assert solve(p, LOGISTIC, Terms.of(4, 0.01)).status == FitStatus.CONVERGED
    assert solve(p, LOGISTIC, Terms.of(4, 0.0, high=5.0, low=-5.0)).status == FitStatus.CONVERGED


@each_solver
def test_iterations_run_out(solve: Any) -> None:
    p = problem(np.random.default_rng(15), LOGISTIC, 80, 6)
    result = solve(p, LOGISTIC, Terms.of(7, 0.5), max_iterations=1)
    assert result.status == FitStatus.MAX_ITERATIONS
    assert result.iterations == 1


@each_loss
@each_solver
def test_what_no_row_has_falls_to_zero(loss: int, solve: Any) -> None:
    """An earlier model has columns that these rows lack: L1 alone says something of them."""
    p = problem(np.random.default_rng(19), loss, 120, 9)
    p.features[:, [2, 7]] = 0.0
    terms = Terms.of(10, 0.5)
    expected = solve(p, loss, terms, tolerance=1e-11).coefficients
    start = expected.copy()
    start[[3, 8]] = 0.01, -0.02
    result = solve(p, loss, terms, start=start, tolerance=1e-11)
    assert result.status == FitStatus.CONVERGED
    assert (result.coefficients[[3, 8]] == 0.0).all()
    np.testing.assert_allclose(result.coefficients, expected, atol=1e-7)


@each_loss
@each_solver
def test_a_start_at_the_optimum_stays(loss: int, solve: Any) -> None:
    p = problem(np.random.default_rng(16), loss, 150, 20)
    terms = Terms.of(21, 2.0, 0.1, -0.3, 0.3)
    first = solve(p, loss, terms)
    again = solve(p, loss, terms, start=first.coefficients)
    assert again.iterations == 0
    np.testing.assert_array_equal(again.coefficients, first.coefficients)
    nearby = solve(p, loss, Terms.of(21, 1.8, 0.1, -0.3, 0.3), start=first.coefficients)
    assert nearby.iterations <= solve(p, loss, Terms.of(21, 1.8, 0.1, -0.3, 0.3)).iterations
    outside = solve(p, loss, terms, start=np.full(21, 9.0))
    np.testing.assert_allclose(outside.coefficients, first.coefficients, atol=1e-6)


@settings(max_examples=100, derandomize=True, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_best_length_is_the_minimum_along_a_step(seed: int) -> None:
    rng = np.random.default_rng(seed)
    d = int(rng.integers(1, 8))
    x, step, l1 = rng.normal(size=d), rng.normal(size=d), rng.random(d) * rng.integers(0, 2, d)
    x[rng.random(d) < 0.3] = 0.0
    lower, upper = np.full(d, -1e100), np.where(rng.random(d) < 0.3, np.abs(x) + 1.0, 1e100)
    slope, bend = rng.normal(size=d), float(rng.choice([0.0, 1e-3, 1.0]))
    bounded = bend > 0.0 or l1 @ np.abs(step) > abs(slope @ step)
    if not bounded:
        bend = 1.0

    def model(t: float) -> float:
        return float(t * (slope @ step) + 0.5 * bend * t * t + l1 @ np.abs(x + t * step))

    terms = quadratic_model.Terms(QuadraticPenalty(np.zeros(d)), l1, lower, upper)
    t, place = best_length(x, step, slope, bend, terms)
    assert t >= 0.0 and (x + t * step <= upper + 1e-9).all()
    room = np.min((np.where(step > 0, upper, lower) - x) / step)
    for other in (0.0, 0.9 * t, 0.999 * t, min(1.001 * t + 1e-6, room), min(1.1 * t + 0.1, room)):
        assert model(t) <= model(other) + 1e-9 * (1 + abs(model(other)))
    if place >= 0:
        assert x[place] + t * step[place] == pytest.approx(0.0, abs=1e-12)

    def of_rank(group: ThreadGroup) -> tuple[float, int]:
        own = held_slice(d, group.rank, group.size)
        penalty = QuadraticPenalty(np.zeros(own.stop - own.start))
        terms = quadratic_model.Terms(penalty, l1[own], lower[own], upper[own], group)
        t, place = best_length(x[own], step[own], slope[own], bend, terms)
        return t, place if place < 0 else place + own.start

    found = run_in_group(3, of_rank)
    assert [length for length, _ in found] == pytest.approx([t] * 3, rel=1e-12)
    assert max(chosen for _, chosen in found) == place


@each_loss
def test_empty_arrays_are_no_l1_and_no_bounds(loss: int) -> None:
    p = problem(np.random.default_rng(22), loss, 60, 5)
    none = np.empty(0)
    result = solve_large(p, loss, Terms(penalties(6, 0.5, 0.0), none, none, none))
    expected = solve_large(p, loss, Terms.of(6, 0.0, 0.5))
    np.testing.assert_array_equal(result.coefficients, expected.coefficients)


# --- large ----------------------------------------------------------------------------------


def _wide(loss: int, rng: np.random.Generator) -> tuple[CsrMatrix, F64, F64]:
    """5,000 rows of 10 out of 3,000 features, a few of which are in most rows."""
    n, d = 5000, 3000
    columns = [np.unique((d * rng.random(10) ** 4).astype(int)) for _ in range(n)]
    indptr = np.concatenate([[0], np.cumsum([c.size for c in columns])])
    indices = np.concatenate(columns).astype(np.uint32)
    values = rng.normal(size=indices.size).astype(np.float32)
    x = CsrMatrix(indptr, indices, values, d)
    slopes = rng.normal(size=d) * (rng.random(d) < 0.1)
    rows = np.repeat(np.arange(n), np.diff(indptr))
    offset = 0.3 * rng.normal(size=n)
    z = np.clip(offset - 0.5 + np.bincount(rows, values * slopes[indices], n), -4, 4)
    return x, draw_response(rng, loss, z), offset


@each_loss
def test_thousands_of_sparse_columns(loss: int) -> None:
    x, y, offset = _wide(loss, np.random.default_rng(17))
    weight = np.random.default_rng(0).gamma(4.0, 0.25, size=y.size)
    matrix = scipy.sparse.csr_array((x.values.astype(float), x.indices.astype(int), x.indptr))
    for l1, l2 in ((2.0, 0.0), (0.5, 0.5)):
        terms = Terms.of(3001, l1, l2, -1.0)
        results = [
            fit_large_proximal(
                x, y, weight, offset, loss=loss, penalty=QuadraticPenalty(terms.penalty),
                l1=terms.l1, lower=terms.lower, upper=terms.upper, threads=threads,
            )
            for threads in (1, 2)
        ]  # fmt: skip
        one, two = results
        theta = one.coefficients
        _, d1, _ = derivatives(loss, offset + theta[0] + matrix @ theta[1:], y)
        slope = np.append(weight @ d1, matrix.T @ (weight * d1)) + terms.penalty * theta
        low = slope + np.where(theta > 0, terms.l1, -terms.l1)
        high = slope + np.where(theta < 0, -terms.l1, terms.l1)
        low[theta <= terms.lower] = -INFINITY
        norm = np.linalg.norm(np.maximum(np.maximum(low, -high), 0.0))
        assert one.status == FitStatus.CONVERGED
        assert one.iterations < 15
        assert norm <= 1e-4
        assert norm == pytest.approx(one.gradient_norm, abs=1e-8)
        assert 100 < np.count_nonzero(theta) < 2900
        np.testing.assert_allclose(two.coefficients, theta, atol=1e-6)
        assert two.value == pytest.approx(one.value, rel=1e-12)


@each_loss
@each_solver
def test_dense_rows_in_any_order_equal_sparse_ones(loss: int, solve: Any) -> None:
    rng = np.random.default_rng(18)
    p = problem(rng, loss, 90, 7, density=1.0)
    order = rng.permutation(90)
    table = np.empty((90, 7), np.float32)
    table[order] = p.features
    dense = CsrMatrix.dense(table, order)
    terms = Terms.of(8, 1.0, 0.1, -0.2)
    expected = solve(p, loss, terms, tolerance=1e-11)
    result = solve(p, loss, terms, design=dense, tolerance=1e-11)
    np.testing.assert_allclose(result.coefficients, expected.coefficients, atol=1e-9)


@each_solver
@pytest.mark.parametrize("n, d", [(0, 3), (1, 3), (3, 0)])
def test_no_rows_or_no_columns(solve: Any, n: int, d: int) -> None:
    p = problem(np.random.default_rng(19), SQUARED, n, d)
    terms = Terms.of(d + 1, 0.1, low=-1.0)
    result = solve(p, SQUARED, terms)
    assert result.status == FitStatus.CONVERGED
    assert residual(p, SQUARED, terms, result.coefficients) <= 1e-8


@each_loss
def test_threads_change_only_the_order_of_sums(loss: int) -> None:
    p = problem(np.random.default_rng(20), loss, 2000, 25)
    terms = Terms.of(26, 3.0, 0.1, -0.3)
    for solve in (solve_large, solve_by_columns):
        one, two, five = (solve(p, loss, terms, threads=t, tolerance=1e-11) for t in (1, 2, 5))
        for other in (two, five):
            np.testing.assert_allclose(other.coefficients, one.coefficients, rtol=1e-8, atol=1e-10)
            np.testing.assert_array_equal(other.coefficients == 0.0, one.coefficients == 0.0)
            assert other.status == one.status == FitStatus.CONVERGED


@each_solver
def test_overflow_is_no_model(solve: Any) -> None:
    """A problem too wild to solve ends in a status, with finite coefficients."""
    p = problem(np.random.default_rng(21), POISSON, 30, 3)
    p.offset[:] = 150.0
    result = solve(p, POISSON, Terms.of(4, 1.0))
    assert np.isfinite(result.coefficients).all()
    assert isinstance(result.status, FitStatus)
