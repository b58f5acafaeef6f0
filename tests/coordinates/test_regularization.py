"""Weights by column: groups, factors, normalisation, bounds, and the names they are given by."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import ElasticNet, LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from gdmix import FixedEffect, MixedModel, RandomEffect
from gdmix.coordinates.regularization import MAX_CENTRED_COLUMNS, Regularization, regularization
from gdmix.data.dataset import Dataset, load_training
from gdmix.data.feature_index import FeatureIndex
from gdmix.data.feature_summary import summarize
from gdmix.data.schema import RowSchema
from gdmix.errors import ConfigError
from gdmix.glm.matrix import CsrMatrix
from gdmix.model.coefficients import FixedCoefficients, RandomCoefficients

RNG = np.random.default_rng(0)
N = 400
ROWS = {
    "x": (RNG.normal(size=N) * 5 + 3).astype(np.float32),
    "y": (RNG.uniform(size=N) * 0.1).astype(np.float32),
    "kind": RNG.choice(["a", "b:c", "d"], N),
    "entity": RNG.integers(0, 7, N),
}
SCORE = 0.3 * ROWS["x"] + 8.0 * ROWS["y"] - 1.5 + (ROWS["kind"] == "a")
LABELS = {
    "logistic_regression": (RNG.uniform(size=N) < 1 / (1 + np.exp(-SCORE))).astype(float),
    "linear_regression": SCORE + RNG.normal(size=N),
}
FEATURES = {"numbers": ["x", "y"], "kinds": ["kind"]}


def rows(task: str = "logistic_regression") -> dict[str, Any]:
    return {**ROWS, "response": LABELS[task]}


def bind(spec: Any) -> Regularization:
    config = MixedModel([spec], features=FEATURES)._config()
    schema = RowSchema(config.columns, config.features, config.entities)
    train, indices = load_training(pa.table(rows()), schema, config.task, "strict")
    return regularization(spec, indices, lambda bag: summarize(train.bags[bag]))


def test_one_weight_for_all_and_another_of_the_intercept() -> None:
    assert bind(FixedEffect("f", features="numbers", l2=3.0)).uniform == (0.0, 3.0)
    assert bind(RandomEffect("r", entity="entity", features="numbers", l2=3.0)).uniform == (
        3.0,
        3.0,
    )
    own = RandomEffect("r", entity="entity", features="numbers", l2=3.0, intercept_l2=0.5)
    assert bind(own).uniform == (0.5, 3.0)
    free = RandomEffect("r", entity="entity", features="numbers", regularize_intercept=False)
    assert bind(free).uniform == (0.0, 1.0)


def test_groups_of_estimated_weights_are_the_intercept_and_the_bags() -> None:
    spec = RandomEffect("r", entity="entity", features=["numbers", "kinds"], l2="auto")
    own = bind(spec)
    assert own.labels == ("(INTERCEPT)", "numbers", "kinds")
    np.testing.assert_array_equal(own.group, [0, 1, 1, 2, 2, 2])
    np.testing.assert_array_equal(own.reweighted(np.array([1.0, 2, 3])).weight, [1, 2, 2, 3, 3, 3])
    each = bind(FixedEffect("f", features=["numbers", "kinds"], l2="auto_per_feature"))
    assert each.labels == ("(INTERCEPT)", "x", "y", "kind:a", "kind:b:c", "kind:d")


def test_each_bag_has_its_weight() -> None:
    bags = ["numbers", "kinds"]
    own = bind(FixedEffect("f", features=bags, l2={"kinds": 3.0, "numbers": 0.5}))
    np.testing.assert_array_equal(own.weight, [0, 0.5, 0.5, 3, 3, 3])
    assert own.uniform is None
    with pytest.raises(ConfigError, match="l2: has weights of kinds; the bags are numbers, kinds"):
        FixedEffect("f", features=bags, l2={"kinds": 3.0})
    with pytest.raises(ConfigError, match="intercept_l2: is required beside an l2 for each bag"):
        RandomEffect("f", entity="e", features="numbers", l2={"numbers": 3.0})


def test_factors_and_bounds_are_given_by_name_or_by_name_and_term() -> None:
    spec = FixedEffect(
        "f",
        features=["numbers", "kinds"],
        l2=2.0,
        penalty_factors={"x": 0.0, "kind": 3.0, "kind:b:c": 0.5},
        bounds={"kind:a": [0, None], "y": [-1, 1]},
    )
    own = bind(spec)
    np.testing.assert_array_equal(own.weight, [0, 0, 2, 6, 1, 6])
    np.testing.assert_array_equal(own.lower, [-np.inf, -np.inf, -1, 0, -np.inf, -np.inf])
    np.testing.assert_array_equal(own.upper, [np.inf, np.inf, 1, np.inf, np.inf, np.inf])
    assert not own.is_linear


def test_unknown_features_are_named() -> None:
    spec = FixedEffect("f", features=["numbers"], penalty_factors={"z": 1.0})
    with pytest.raises(ConfigError, match=r"coordinates\.f\.penalty_factors: no feature 'z'"):
        bind(spec)
    spec = FixedEffect("f", features=["kinds"], bounds={"kind:q": [0, 1]})
    with pytest.raises(ConfigError, match=r"bounds: no feature 'kind:q' .*did you mean 'kind'"):
        bind(spec)


@pytest.mark.parametrize("normalization", ["scale_by_std", "scale_by_max", "standardize"])
@pytest.mark.parametrize("l2", [0.3, 30.0])
def test_normalisation_is_that_of_normalised_features(normalization: str, l2: float) -> None:
    x = np.column_stack([ROWS["x"], ROWS["y"]]).astype(float)
    scale = np.abs(x).max(axis=0) if normalization == "scale_by_max" else x.std(axis=0, ddof=1)
    centre = x.mean(axis=0) * (normalization == "standardize")
    expected = LogisticRegression(C=1 / l2, tol=1e-12, max_iter=10_000)
    expected.fit((x - centre) / scale, LABELS["logistic_regression"])
    spec = FixedEffect("f", features="numbers", l2=l2, normalization=normalization)
    model = MixedModel([spec], features=FEATURES).fit(rows())
    values = model.model_.linear["f"].coefficients.values
    slopes = expected.coef_[0] / scale
    np.testing.assert_allclose(values[1:], slopes, rtol=1e-5)
    np.testing.assert_allclose(values[0], expected.intercept_[0] - slopes @ centre, rtol=1e-4)


@pytest.mark.parametrize("random", [False, True])
def test_a_penalised_intercept_is_penalised_at_the_means(random: bool) -> None:
    x = np.column_stack([ROWS["x"], ROWS["y"]]).astype(float)
    scaler = StandardScaler().fit(x)
    scale = x.std(axis=0, ddof=1)
    options: dict[str, Any] = {
        "features": "numbers",
        "l2": 4.0,
        "normalization": "standardize",
        "intercept_l2": 2.5,
    }
    spec: Any = FixedEffect("f", **options)
    if random:
        spec = RandomEffect("f", entity="entity", **options)
    model = MixedModel([spec], features=FEATURES, task="linear_regression")
    model.fit(rows("linear_regression"))
    for entity in range(7) if random else [None]:
        own = ROWS["entity"] == entity if random else np.ones(N, bool)
        design = np.column_stack([np.ones(own.sum()), (x[own] - scaler.mean_) / scale])
        penalty = np.diag([2.5, 4.0, 4.0])
        beta = np.linalg.solve(
            design.T @ design + penalty, design.T @ LABELS["linear_regression"][own]
        )
        expected = [beta[0] - beta[1:] / scale @ scaler.mean_, *(beta[1:] / scale)]
        found = model.coefficients("f", entity=entity)["value"].to_numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    term = 0.5 * (2.5 * beta[0] ** 2 + 4.0 * beta[1:] @ beta[1:])
    if not random:
        own_penalty = bind(spec).term(model.model_.linear["f"].coefficients)
        assert own_penalty == pytest.approx(term, rel=1e-5)


def test_the_term_is_that_of_weights_and_means() -> None:
    own = Regularization(
        ("(INTERCEPT)", "slopes"),
        np.array([0, 1, 1], np.uint32),
        np.array([2.0, 3.0]),
        np.array([1.0, 1.0, 0.5]),
        np.array([0.0, 0.4, 0.2]),
        np.array([1.0, 10.0, 20.0]),
        np.empty(0),
        np.empty(0),
    )
    values = np.array([0.5, -1.0, 2.0])
    centred = 0.5 - 10.0 + 40.0
    expected = 0.5 * (2 * centred**2 + 3 + 1.5 * 4) + 0.4 + 0.4
    assert own.term(FixedCoefficients(values)) == pytest.approx(expected)
    several = RandomCoefficients(
        pa.array([1, 2]), np.array([0, 3, 5]), np.array([0, 1, 2, 0, 2], np.uint32),
        np.array([*values, 1.0, -1.0]),
    )  # fmt: skip
    second = 0.5 * (2 * (1.0 - 20.0) ** 2 + 1.5) + 0.2
    assert own.term(several) == pytest.approx(expected + second)


def test_ridge_with_factors() -> None:
    x = np.column_stack([ROWS["x"], ROWS["y"]]).astype(float)
    factor = np.array([0.1, 5.0])
    expected = Ridge(alpha=2.0).fit(x / np.sqrt(factor), LABELS["linear_regression"])
    spec = FixedEffect("f", features="numbers", l2=2.0, penalty_factors={"x": 0.1, "y": 5.0})
    model = MixedModel([spec], features=FEATURES, task="linear_regression")
    model.fit(rows("linear_regression"))
    slopes = model.model_.linear["f"].coefficients.values[1:]
    np.testing.assert_allclose(slopes, expected.coef_ / np.sqrt(factor), rtol=1e-5)


def test_too_many_columns_to_couple() -> None:
    wide = MAX_CENTRED_COLUMNS + 1
    index = {"b": FeatureIndex([f"f{i}" for i in range(wide)], [""] * wide)}
    spec = FixedEffect("f", features="b", normalization="standardize", regularize_intercept=True)
    data = Dataset(
        "rows", np.arange(2), np.zeros(2), np.ones(2), np.zeros(2),
        {"b": CsrMatrix.empty(2).widened(wide)}, {},
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"couples all 2,050 coefficients, at most 2,048"):
        regularization(spec, index, lambda bag: summarize(data.bags[bag]))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (lambda: FixedEffect("f", features="x", l1=1.0, variance="full"), "l1 and variance"),
        (lambda: FixedEffect("f", features="x", bounds={"x": [2, 1]}), "x: 2 is above 1"),
        (
            lambda: RandomEffect("r", entity="e", l2="auto", normalization="standardize"),
            "standardize shifts a regularized intercept",
        ),
        (
            lambda: FixedEffect("f", features="x", bounds={"x": [0, 1]}, variance="simple"),
            "bounds and variance: choose one",
        ),
        (
            lambda: FixedEffect("f", features="x", intercept_l2=1.0, regularize_intercept=False),
            "intercept_l2 is 1, but regularize_intercept is false",
        ),
        (
            lambda: FixedEffect("f", features="x", intercept=False, normalization="standardize"),
            "standardize centres features, which takes an intercept",
        ),
        (
            lambda: MixedModel(
                [FixedEffect("f", features="n", l1=0.1)], features={"n": ["x"]}, solver="joint"
            ),
            "solver 'joint' has no l1",
        ),
        (
            lambda: MixedModel(
                [FixedEffect("f", features="n", l2="auto")],
                features={"n": ["x"]},
                prior={"model": "m"},
            ),
            "l2 'auto' and prior: choose one",
        ),
        (
            lambda: MixedModel([FixedEffect("f")], prior={"model": "m"}, initial_model="n"),
            "prior: its model is where training starts; remove initial_model",
        ),
    ],
)
def test_nonsense_is_refused(spec: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        spec()


@pytest.mark.parametrize("random", [False, True])
def test_an_elastic_net_is_that_of_scikit_learn(random: bool) -> None:
    x = np.column_stack([ROWS["x"], ROWS["y"], *(ROWS["kind"] == k for k in ("a", "b:c", "d"))])
    options: dict[str, Any] = {"features": ["numbers", "kinds"], "l2": 0.5, "l1": 12.0}
    spec: Any = FixedEffect("f", **options)
    if random:
        spec = RandomEffect("f", entity="entity", regularize_intercept=False, **options)
    model = MixedModel([spec], features=FEATURES, task="linear_regression")
    model.fit(rows("linear_regression"))
    zeros = 0
    for entity in range(7) if random else [None]:
        own = ROWS["entity"] == entity if random else np.ones(N, bool)
        n = int(own.sum())
        expected = ElasticNet(alpha=12.5 / n, l1_ratio=12.0 / 12.5, tol=1e-12, max_iter=100_000)
        expected.fit(x[own].astype(float), LABELS["linear_regression"][own])
        table = model.coefficients("f", entity=entity)
        found = table["value"].to_numpy()
        np.testing.assert_allclose(
            found, [expected.intercept_, *expected.coef_], atol=1e-5, rtol=1e-5
        )
        np.testing.assert_array_equal(found[1:] == 0, np.abs(expected.coef_) < 1e-12)
        zeros += int((found == 0).sum())
    assert zeros > 0


def test_bounds_hold_and_are_the_optimum() -> None:
    spec = FixedEffect("f", features="numbers", l2=1.0, bounds={"x": [None, 0.1], "y": [9, None]})
    model = MixedModel([spec], features=FEATURES).fit(rows())
    x = np.column_stack([np.ones(N), ROWS["x"], ROWS["y"]]).astype(float)
    y = LABELS["logistic_regression"]

    def objective(beta: np.ndarray) -> float:
        z = x @ beta
        return float(np.logaddexp(0, z).sum() - y @ z + 0.5 * beta[1:] @ beta[1:])

    best = minimize(
        objective, np.zeros(3), method="L-BFGS-B", bounds=[(None, None), (None, 0.1), (9, None)],
        options={"ftol": 1e-15, "gtol": 1e-10},
    )  # fmt: skip
    values = model.model_.linear["f"].coefficients.values
    np.testing.assert_allclose(values, best.x, atol=1e-4)
    assert values[1] == 0.1
    assert values[2] == 9.0
