"""`l2: auto` finds the weights that make the data most likely."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from numpy.typing import NDArray
from scipy import linalg, optimize

import gdmix.glm.laplace as laplace_module
from gdmix import FixedEffect, MixedModel, RandomEffect
from gdmix.coordinates.joint import LinearCoordinate
from gdmix.coordinates.variance_components import Estimate, estimate
from gdmix.descent import Descent
from gdmix.engines.local import LocalEngine, LocalWorkspace
from gdmix.errors import ConfigError
from gdmix.estimator import descend_in
from gdmix.model.linear import linear_models

TASKS = ("logistic_regression", "linear_regression", "poisson_regression")


def simulate(
    task: str, seed: int, entities: int = 60, rows: int = 15, crossed: int = 20
) -> dict[str, NDArray[Any]]:
    """Rows of a model with variances .5 (intercepts), .2 (slopes), and .3 (the other side)."""
    rng = np.random.default_rng(seed)
    n = entities * rows
    one, other = np.repeat(np.arange(entities), rows), rng.integers(0, crossed, n)
    x = rng.normal(size=(n, 2)).astype(np.float32)
    slopes = rng.normal(0.0, np.sqrt(0.2), (entities, 2))
    z = -0.3 + 0.5 * x[:, 0] + rng.normal(0.0, np.sqrt(0.5), entities)[one]
    z += (x * slopes[one]).sum(axis=1) + rng.normal(0.0, np.sqrt(0.3), crossed)[other]
    if task == "logistic_regression":
        y = (rng.uniform(size=n) < 1.0 / (1.0 + np.exp(-z))).astype(np.float64)
    elif task == "poisson_regression":
        y = rng.poisson(np.exp(z)).astype(np.float64)
    else:
        y = z + rng.normal(0.0, 1.5, n)
    return {"one": one, "other": other, "x0": x[:, 0], "x1": x[:, 1], "response": y}


def model(task: str, **options: Any) -> MixedModel:
    return MixedModel(
        [
            FixedEffect("global", features="x", l2=0.0),
            RandomEffect("one", entity="one", features="x", l2=options.pop("one", "auto")),
            RandomEffect("other", entity="other", l2=options.pop("other", "auto")),
        ],
        features={"x": ["x0", "x1"]},
        task=task,  # type: ignore[arg-type]
        **{"solver": "joint", "passes": 2, "threads": 1, **options},
    )


def fit(model: MixedModel, rows: Any) -> tuple[Descent, LocalWorkspace]:
    config = model._config()
    workspace = LocalEngine().prepare(config, rows, None)
    return descend_in(workspace, config), workspace


def found(rows: Any, model: MixedModel) -> Estimate:
    result = fit(model, rows)[0].estimate
    assert result is not None
    return result


def test_restricted_likelihood_of_crossed_effects_is_that_of_statsmodels() -> None:
    rows = sm.datasets.grunfeld.load_pandas().data
    rows = rows.assign(
        year=rows["year"].astype(int).astype(str),
        response=rows["invest"] / 100.0,
        value=(rows["value"] / 1000.0).astype(np.float32).astype(float),
        capital=(rows["capital"] / 1000.0).astype(np.float32).astype(float),
        all=1,
    )
    expected = sm.MixedLM.from_formula(
        "response ~ value + capital",
        groups="all",
        vc_formula={"firm": "0 + C(firm)", "year": "0 + C(year)"},
        data=rows,
    ).fit(reml=True, method=["lbfgs", "powell", "bfgs"])
    fitted = MixedModel(
        [
            FixedEffect("global", features="x", l2=0.0),
            RandomEffect("firm", entity="firm", l2="auto"),
            RandomEffect("year", entity="year", l2="auto"),
        ],
        features={"x": ["value", "capital"]},
        task="linear_regression",
        solver="joint",
        passes=2,
    ).fit(rows)
    result = fitted.estimate_
    variances = [c.variance for c in result.components]
    np.testing.assert_allclose(variances, expected.vcomp, rtol=1e-3)
    assert result.dispersion == pytest.approx(expected.scale, rel=1e-4)
    assert result.log_marginal_likelihood == pytest.approx(expected.llf, abs=1e-4)
    values = fitted.model_.linear["global"].coefficients.values
    np.testing.assert_allclose(values, expected.fe_params, rtol=1e-3)


def restricted_likelihood(
    y: NDArray[np.float64], x: NDArray[np.float64], parts: list[NDArray[np.float64]]
) -> tuple[NDArray[np.float64], float]:
    """Maximise the restricted likelihood of y ~ N(x b, sum_k s_k Z_k Z_k' + s_0 I) directly."""
    products = [part @ part.T for part in parts]

    def deviance(logarithms: NDArray[np.float64]) -> float:
        variances = np.exp(logarithms)
        covariance = variances[0] * np.eye(y.size)
        for variance, product in zip(variances[1:], products, strict=True):
            covariance += variance * product
        factor = linalg.cho_factor(covariance, lower=True)
        solved = linalg.cho_solve(factor, np.column_stack([x, y]))
        information = x.T @ solved[:, :-1]
        beta = linalg.solve(information, x.T @ solved[:, -1])
        fit = y @ solved[:, -1] - beta @ information @ beta
        determinant = 2.0 * np.log(np.diag(factor[0])).sum() + np.linalg.slogdet(information)[1]
        return float(determinant + fit + (y.size - x.shape[1]) * np.log(2.0 * np.pi))

    best = optimize.minimize(
        deviance, np.zeros(1 + len(parts)), method="Nelder-Mead",
        options={"xatol": 1e-6, "fatol": 1e-9, "maxiter": 4000, "maxfev": 4000},
    )  # fmt: skip
    return np.exp(best.x), -0.5 * best.fun


def test_variances_of_intercepts_and_slopes_maximise_the_restricted_likelihood() -> None:
    rows = simulate("linear_regression", 6, entities=20, rows=10, crossed=8)
    one, other = np.eye(20)[rows["one"]], np.eye(8)[rows["other"]]
    x = np.column_stack([rows["x0"], rows["x1"]]).astype(float)
    slopes = np.concatenate([one * x[:, [0]], one * x[:, [1]]], axis=1)
    design = np.column_stack([np.ones(x.shape[0]), x])
    variances, likelihood = restricted_likelihood(rows["response"], design, [one, slopes, other])
    result = found(rows, model("linear_regression"))
    own = [c.variance for c in result.components]
    np.testing.assert_allclose(own, variances[1:], rtol=1e-3, atol=1e-5)
    assert result.dispersion == pytest.approx(variances[0], rel=1e-4)
    assert result.log_marginal_likelihood == pytest.approx(likelihood, abs=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_the_weights_are_a_maximum_of_the_marginal_likelihood(task: str) -> None:
    rows = simulate(task, 1, entities=25, rows=12, crossed=8)
    best = found(rows, model(task))
    names = [f"{c.coordinate} {c.group}" for c in best.components]
    assert names == ["one (INTERCEPT)", "one x", "other (INTERCEPT)"]

    def likelihood(logarithms: NDArray[np.float64]) -> float:
        """At fixed weights: the estimator as a mere meter."""
        weights = np.exp(logarithms)
        fixed = MixedModel(
            [
                FixedEffect("global", features="x", l2=0.0),
                RandomEffect(
                    "one", entity="one", features="x", l2=weights[1], intercept_l2=weights[0]
                ),
                RandomEffect("other", entity="other", l2=weights[2]),
            ],
            features={"x": ["x0", "x1"]},
            task=task,  # type: ignore[arg-type]
            solver="joint",
            passes=2,
            threads=1,
        )
        result, workspace = fit(fixed, rows)
        linear = {n: c for n, c in workspace.coordinates.items() if isinstance(c, LinearCoordinate)}
        models = linear_models(result.current)
        measured = estimate(linear, models, workspace._labels(), frozenset(["one"]), {})
        return measured.log_marginal_likelihood

    centre = np.log([c.l2 for c in best.components])
    top = likelihood(centre)
    assert top == pytest.approx(best.log_marginal_likelihood, abs=1e-6)
    for k in range(3):
        step = 0.05 * (np.arange(3) == k)
        up, down = likelihood(centre + step), likelihood(centre - step)
        assert abs(up - down) / 0.1 < 1e-3 * max(1.0, abs(up + down - 2 * top) / 0.05**2)
        assert max(up, down) < top


@pytest.mark.parametrize("task", TASKS)
def test_random_probes_find_what_the_whole_inverse_does(
    task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = simulate(task, 2)
    exact = found(rows, model(task))
    monkeypatch.setattr(laplace_module, "MAX_EXACT_COEFFICIENTS", 0)
    probed = found(rows, model(task))
    for a, b in zip(exact.components, probed.components, strict=True):
        assert b.l2 == pytest.approx(a.l2, rel=0.1)
        assert b.coefficients == a.coefficients
    assert probed.log_marginal_likelihood == pytest.approx(exact.log_marginal_likelihood, abs=2.0)


@pytest.mark.parametrize("task", TASKS)
def test_known_variances_are_recovered(task: str) -> None:
    results = [found(simulate(task, seed, 80, 20, 40), model(task)) for seed in range(4)]
    variances = np.mean([[c.variance for c in r.components] for r in results], axis=0)
    np.testing.assert_allclose(variances, [0.5, 0.2, 0.3], rtol=0.35)
    if task == "linear_regression":
        dispersion = np.mean([r.dispersion for r in results])
        assert dispersion == pytest.approx(2.25, rel=0.05)


def test_passes_settle_where_joint_fits_do() -> None:
    rows = simulate("logistic_regression", 5)
    jointly = found(rows, model("logistic_regression"))
    by_passes = found(rows, model("logistic_regression", solver="descent", passes=40))
    for a, b in zip(jointly.components, by_passes.components, strict=True):
        assert b.l2 == pytest.approx(a.l2, rel=0.05)


def test_an_effect_that_is_not_there_gets_a_large_weight() -> None:
    rows = simulate("linear_regression", 4)
    rows["other"] = np.random.default_rng(9).permutation(rows["other"])
    rows["response"] = rows["response"] + 0.0
    result = found(rows, model("linear_regression"))
    assert result.components[2].variance < 0.05


def test_per_feature_weights_tell_features_apart() -> None:
    rng = np.random.default_rng(0)
    n, entities = 3000, 100
    entity = rng.integers(0, entities, n)
    x = rng.normal(size=(n, 2))
    z = x[:, 0] * rng.normal(0.0, 1.0, entities)[entity]
    rows = {"e": entity, "a": x[:, 0], "b": x[:, 1], "response": z + rng.normal(size=n)}
    per_feature = MixedModel(
        [RandomEffect("r", entity="e", features="x", l2="auto_per_feature")],
        features={"x": ["a", "b"]},
        task="linear_regression",
    ).fit(rows)
    variance = {c.group: c.variance for c in per_feature.estimate_.components}
    assert variance["a"] == pytest.approx(1.0, rel=0.3)
    assert variance["b"] < 0.02
    assert variance["(INTERCEPT)"] < 0.02


def test_auto_has_passes_enough_by_default() -> None:
    auto = MixedModel([RandomEffect("r", entity="e", l2="auto")])
    assert auto._config().passes == 10
    assert MixedModel([RandomEffect("r", entity="e")])._config().passes == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"l2": "automatic"}, r"l2: should be 0 or more, or auto or auto_per_feature"),
        ({"l2": -1.0}, r"l2: should be 0 or more"),
        ({"l2": "auto", "l1": 0.1}, r"l1 and l2: auto: choose one"),
        ({"l2": "auto", "intercept_l2": 2.0}, r"intercept_l2: l2 'auto' estimates it too"),
    ],
)
def test_what_does_not_go_with_auto(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RandomEffect("r", entity="e", **options)
