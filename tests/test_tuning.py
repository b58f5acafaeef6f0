"""Search over regularisation weights: spaces, proposals, trials, and the folder of a search."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from scipy import integrate
from scipy.stats import norm, qmc
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.metrics import roc_auc_score

from gdmix import (
    ConfigError,
    DataError,
    FixedEffect,
    MixedModel,
    RandomEffect,
    RunConfig,
    tune,
)
from gdmix.cli import app, terminal
from gdmix.config import Candidates, ExternalScores, Factorization, ModelConfig, TuneConfig
from gdmix.coordinates.variance_components import VarianceComponent
from gdmix.data.dataset import load_training
from gdmix.data.folds import fold_numbers, rows_where
from gdmix.data.schema import RowSchema
from gdmix.descent import Descent
from gdmix.engines.local import LocalEngine
from gdmix.errors import GdmixError, OutputError
from gdmix.estimator import descend_in
from gdmix.runs import run
from gdmix.tuning import Trial, Tuning, TuningStopped, gaussian_process, tune_run
from gdmix.tuning.proposals import Outcome, Proposals, halton
from gdmix.tuning.search import merit
from gdmix.tuning.space import (
    candidate,
    distance,
    estimated_values,
    estimating,
    nearest,
    own_values,
    position,
    search_space,
    with_values,
)

RANGE = Candidates(low=0.1, high=10.0)
USER_L2 = "coordinates.per-user.l2"
SPACE = {USER_L2: RANGE, "coordinates.per-user.intercept_l2": RANGE}


def model_config(**fields: Any) -> ModelConfig:
    coordinates = [
        FixedEffect("global", features=["row"]),
        RandomEffect("per-user", entity="user", features=["row"], l2=2.0),
        RandomEffect("per-item", entity="item"),
    ]
    given = {"coordinates": coordinates, "features": {"row": ["x", "kind"]}, **fields}
    return ModelConfig.of(**given)


def mistakes(call: Callable[[], object]) -> list[str]:
    with pytest.raises(GdmixError) as caught:
        call()
    return str(caught.value).splitlines()


# what the YAML file may say


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"trials": 0}, "trials: should be greater than or equal to 1 (got 0)"),
        (
            {"method": "gird"},
            "method: should be 'bayesian', 'tpe', 'random' or 'grid' (got 'gird')",
        ),
        ({"fold": 5}, "fold: unknown key (did you mean 'folds'?)"),
        ({"folds": 1}, "folds: should be greater than or equal to 2 (got 1)"),
        ({"timeout": 0}, "timeout: should be greater than 0 (got 0)"),
        ({"space": {"k": 3}}, "space.k: should be [low, high], or {values: [...]} (got 3)"),
        ({"space": {"k": [1]}}, "space.k: should be [low, high], or {values: [...]}"),
        ({"space": {"k": [0, 1]}}, "space.k.low: should be greater than 0 (got 0)"),
        ({"space": {"k": ["low", 1]}}, "space.k.low: should be a valid number (got 'low')"),
        ({"space": {"k": [2, 1]}}, "space.k: low (2) is not below high (1)"),
        ({"space": {"k": {"values": []}}}, "space.k.values: is empty"),
        (
            {"space": {"k": {"values": [-1]}}},
            "space.k.values: values should be finite and not negative",
        ),
        ({"space": {"k": {"valeus": [1]}}}, "space.k.valeus: unknown key (did you mean 'values'?)"),
        (
            {"space": {"k": {"values": [1], "low": 1}}},
            "space.k: should be [low, high], or {values: [...]}",
        ),
    ],
)
def test_mistakes_in_the_settings(settings: dict[str, Any], line: str) -> None:
    tree = {"data": {"train": "t"}, "coordinates": {"g": {"type": "fixed_effect"}}, "output": "o"}
    assert mistakes(lambda: RunConfig.from_tree({**tree, "tune": settings}, Path("run.yaml"))) == [
        f"run.yaml: tune.{line}"
    ]


def test_an_unknown_metric_is_named() -> None:
    (line,) = mistakes(lambda: tune(MixedModel([FixedEffect("g")]), {}, metric="acu"))
    assert line.startswith("tune: metric: unknown metric 'acu' (did you mean 'auc'?)")


def test_settings_survive_being_written(tmp_path: Path) -> None:
    tree = {
        "data": {"train": "t"},
        "coordinates": {"g": {"type": "fixed_effect"}},
        "output": "o",
        "tune": {
            "space": {"coordinates.g.l2": [0.5, 2], "coordinates.g.l1": {"values": [3, 0, 3]}}
        },
    }
    config = RunConfig.from_tree(tree, Path("run.yaml"))
    assert config.tune is not None
    assert config.tune.space["coordinates.g.l1"].values == (0.0, 3.0)
    config.to_yaml(tmp_path / "run.yaml")
    assert RunConfig.from_yaml(tmp_path / "run.yaml") == config


# the space


def test_what_is_searched_by_default() -> None:
    config = ModelConfig.of(
        coordinates=[
            FixedEffect("global", features="row"),
            FixedEffect("bias"),
            RandomEffect("per-user", entity="user", features="row"),
            RandomEffect("free", entity="day", features="row", regularize_intercept=False),
            RandomEffect("per-item", entity="item"),
            RandomEffect("own", entity="shop", features="row", l2="auto"),
            Factorization("pairs", entities=("user", "item"), l2=1.0),
            Factorization("more", entities=("user", "shop"), l2="auto"),
            ExternalScores("deep", train="t"),
        ],
        features={"row": ["x"]},
    )
    assert list(search_space(config, {})) == [
        "coordinates.global.l2",
        "coordinates.per-user.l2",
        "coordinates.per-user.intercept_l2",
        "coordinates.free.l2",
        "coordinates.per-item.intercept_l2",
        "coordinates.pairs.l2",
    ]
    # By name it is searched all the same, with numbers instead.
    named = {"coordinates.own.l2": RANGE, "coordinates.own.intercept_l2": RANGE}
    assert search_space(config, named) == named
    assert own_values(config, named) is None
    nothing = ModelConfig.of(coordinates=[FixedEffect("bias")])
    assert mistakes(lambda: search_space(nothing, {})) == [
        "tune: no L2 weight to search; name the settings in tune.space"
    ]


@pytest.mark.parametrize(
    ("key", "line"),
    [
        (
            "per-user.l2",
            "tune.space: 'per-user.l2' is no weight of a coordinate "
            "(did you mean 'coordinates.per-user.l2'?)",
        ),
        (
            "passes",
            "tune.space: 'passes' is no weight of a coordinate; such as coordinates.global.l2",
        ),
        (
            "coordinates.peruser.l2",
            "tune.space.coordinates.peruser.l2: there is no coordinate 'peruser' "
            "(did you mean 'per-user'?)",
        ),
        (
            "coordinates.global.tolerance",
            "tune.space.coordinates.global.tolerance: can't be searched; "
            "of 'global' can: l2, intercept_l2, l1",
        ),
        (
            "coordinates.global.intercept_12",
            "tune.space.coordinates.global.intercept_12: can't be searched "
            "(did you mean 'intercept_l2'?); "
            "of 'global' can: l2, intercept_l2, l1",
        ),
        (
            "coordinates.deep.l2",
            "tune.space.coordinates.deep.l2: can't be searched; of 'deep' can: nothing",
        ),
        (
            "coordinates.old.l2",
            "tune.space.coordinates.old.l2: the coordinate is locked: it is not fitted",
        ),
        (
            "coordinates.auto.intercept_l2",
            "tune.space: coordinates.auto: intercept_l2: l2 'auto' estimates it too; remove it",
        ),
        (
            "coordinates.free.intercept_l2",
            "tune.space: coordinates.free: intercept_l2 is 0.1, but regularize_intercept is false; "
            "remove one",
        ),
    ],
)
def test_mistakes_in_the_space(key: str, line: str) -> None:
    config = model_config(
        coordinates=[
            FixedEffect("global", features="row"),
            RandomEffect("per-user", entity="user"),
            RandomEffect("free", entity="day", regularize_intercept=False),
            RandomEffect("auto", entity="day", l2="auto"),
            RandomEffect("old", entity="item", locked=True),
            ExternalScores("deep", train="t"),
        ],
        initial_model="m",
    )
    assert mistakes(lambda: search_space(config, {key: RANGE})) == [line]


def test_a_weight_that_contradicts_the_rest_is_refused() -> None:
    config = model_config(solver="joint")
    (line,) = mistakes(lambda: search_space(config, {"coordinates.global.l1": RANGE}))
    assert line == (
        "tune.space: coordinates.global: solver 'joint' has no l1; use more passes instead"
    )


def test_values_take_their_place_and_the_rest_stays() -> None:
    config = model_config(passes=3)
    values = {USER_L2: 5.0, "coordinates.global.intercept_l2": 4.0}
    changed = with_values(config, values)
    assert changed.coordinates["per-user"] == RandomEffect(
        "per-user", entity="user", features=["row"], l2=5.0
    )
    # Of a fixed effect the intercept is free unless it has a weight of its own.
    assert changed.coordinates["global"] == FixedEffect(
        "global", features=["row"], intercept_l2=4.0
    )
    assert changed.coordinates["per-item"] is config.coordinates["per-item"]
    assert changed.passes == 3
    assert own_values(changed, {key: RANGE for key in values}) == values
    assert own_values(config, SPACE) == dict.fromkeys(SPACE, 2.0)
    assert own_values(config, {USER_L2: Candidates(low=3.0, high=4.0)}) is None
    assert own_values(config, {USER_L2: Candidates(values=(1.0, 2.0))}) == {USER_L2: 2.0}


def test_positions_are_even_on_the_log_scale() -> None:
    assert [candidate(RANGE, u) for u in (0.0, 0.25, 0.5, 1.0)] == [0.1, 0.3162, 1.0, 10.0]
    assert position(RANGE, 1.0) == pytest.approx(0.5)
    # Four digits, but within the range.
    assert candidate(Candidates(low=0.123449, high=1.0), 0.0) == 0.123449
    some = Candidates(values=(0.0, 1.0, 5.0))
    assert [candidate(some, u) for u in (0.0, 0.4, 0.99, 1.0)] == [0.0, 1.0, 5.0, 5.0]
    assert [candidate(some, position(some, v)) for v in (0.0, 1.0, 5.0)] == [0.0, 1.0, 5.0]
    space = {"a": RANGE, "b": some}
    assert distance(space, {"a": 0.1, "b": 0.0}, {"a": 1.0, "b": 0.0}) == pytest.approx(0.5)


# proposals


def proposed(settings: dict[str, Any], score: Callable[[Mapping[str, float]], float]) -> list[Any]:
    """Return what a search would try, and how good each is."""
    space = settings.pop("space", SPACE)
    proposals = Proposals(space, TuneConfig(**settings))
    outcomes: list[Outcome] = []
    while len(outcomes) < proposals.trials:
        values = proposals.next(outcomes)
        outcomes.append(Outcome(values, score(values)))
    return outcomes


def peak(values: Mapping[str, float]) -> float:
    """Return a score that is best, 0, where both are 3."""
    return -sum(np.log(v / 3.0) ** 2 for v in values.values())


def test_without_permutations_it_is_the_halton_sequence() -> None:
    expected = qmc.Halton(7, scramble=False).random(200)
    found = [halton(i, 7, None) for i in range(200)]
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_permuted_points_are_even(seed: int) -> None:
    points = np.array([halton(i, 5, seed) for i in range(64)])
    for d, base in enumerate((2, 3, 5, 7)):
        n = base ** int(np.log(64) / np.log(base))
        assert sorted(np.floor(points[:n, d] * n).astype(int)) == list(range(n))
    random = np.random.default_rng(seed).random((64, 5))
    assert qmc.discrepancy(points) < 0.7 * qmc.discrepancy(random)
    assert not np.allclose(points[0], halton(0, 5, seed + 1))


def test_a_grid_fills_the_trials_that_there_are() -> None:
    space = {"a": RANGE, "b": Candidates(values=(1.0, 2.0)), "c": RANGE}
    outcomes = proposed({"method": "grid", "trials": 20, "space": space}, lambda _: 0.0)
    points = [tuple(outcome.values.values()) for outcome in outcomes]
    # Three values of each range: with four there were 32 points.
    assert len(points) == len(set(points)) == 18
    assert sorted({a for a, _, _ in points}) == [0.1, 1.0, 10.0]
    proposals = Proposals({"b": space["b"]}, TuneConfig(method="grid"))
    assert proposals.trials == 2


def test_a_grid_that_is_too_large() -> None:
    space = {"a": RANGE, "b": Candidates(values=(1.0, 2.0)), "c": RANGE}
    settings = TuneConfig(method="grid", trials=7)
    assert mistakes(lambda: Proposals(space, settings)) == [
        "tune: the grid has 8 points, with two values of each range alone (2 of them); "
        "tune.trials is 7: raise it, name fewer settings or values in tune.space, "
        "or use another method"
    ]


@pytest.mark.parametrize("method", ["bayesian", "tpe", "random"])
def test_of_few_combinations_none_is_tried_twice(method: str) -> None:
    space = {"a": Candidates(values=(1.0, 3.0, 9.0)), "b": Candidates(values=(1.0, 3.0, 9.0))}
    outcomes = proposed({"method": method, "space": space}, peak)
    assert len(outcomes) == len({tuple(o.values.values()) for o in outcomes}) == 9


@pytest.mark.parametrize("method", ["bayesian", "tpe"])
def test_it_learns(method: str) -> None:
    space = {name: Candidates(low=0.01, high=1000.0) for name in "abcd"}
    found = [
        max(o.merit for o in proposed({"method": m, "seed": s, "space": space, "trials": 30}, peak))
        for m in (method, "random")
        for s in range(2)
    ]
    assert np.mean(found[:2]) > 2.5 + np.mean(found[2:])


@pytest.mark.parametrize("method", ["bayesian", "tpe", "random"])
def test_a_proposal_depends_on_seed_and_trials_alone(method: str) -> None:
    settings = {"method": method, "trials": 12, "seed": 3}
    outcomes = proposed(dict(settings), peak)
    again = Proposals(SPACE, TuneConfig(**settings))
    assert again.next(outcomes[:9]) == outcomes[9].values
    other = Proposals(SPACE, TuneConfig(**{**settings, "seed": 4}))
    assert other.next(outcomes[:9]) != outcomes[9].values


@pytest.mark.parametrize("method", ["bayesian", "tpe"])
def test_trials_without_a_figure_teach_nothing(method: str) -> None:
    def score(values: Mapping[str, float]) -> float:
        return merit(float("nan") if values[USER_L2] > 1.0 else peak(values), "auc")

    outcomes = proposed({"method": method, "trials": 12}, score)
    assert sum(o.merit == -np.inf for o in outcomes) >= 1
    assert max(o.merit for o in outcomes) > -10


def test_weights_of_the_configuration_come_first() -> None:
    first = dict.fromkeys(SPACE, 2.0)
    assert Proposals(SPACE, TuneConfig()).next([], [first]) == first
    # A grid is what it is.
    assert Proposals(SPACE, TuneConfig(method="grid")).next([], [first]) != first


def test_optuna_is_needed_for_its_method_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    Proposals(SPACE, TuneConfig())
    assert mistakes(lambda: Proposals(SPACE, TuneConfig(method="tpe"))) == [
        "tune: method 'tpe' needs Optuna: pip install 'gdmix[tune]'; or use method 'bayesian'"
    ]


def test_optuna_is_silent(caplog: pytest.LogCaptureFixture, recwarn: Any) -> None:
    proposed({"method": "tpe", "trials": 8}, peak)
    assert not caplog.records
    assert not [w for w in recwarn if "optuna" in str(w.filename)]


class TestGaussianProcess:
    """Against scikit-learn's, with the same kernel."""

    rng = np.random.default_rng(5)
    points = rng.random((12, 3))
    values = np.sin(4 * points[:, 0]) + points[:, 1]
    parameters = np.log([0.4, 0.8, 2.0, 1e-3])

    def theirs(self, variance: float) -> GaussianProcessRegressor:
        lengths, noise = np.exp(self.parameters[:-1]), np.exp(self.parameters[-1])
        kernel = ConstantKernel(variance) * Matern(lengths, nu=2.5)
        kernel += WhiteKernel(variance * (noise + 1e-10))
        process = GaussianProcessRegressor(kernel, alpha=0.0, optimizer=None)
        return process.fit(self.points, self.values)

    def test_mean_and_deviation(self) -> None:
        _, process = gaussian_process.log_posterior(self.parameters, self.points, self.values)
        new = self.rng.random((20, 3))
        mean, deviation = process.predict(new)
        theirs = self.theirs(process.variance)
        expected, total = theirs.predict(new, return_std=True)
        noise = process.variance * (1e-3 + 1e-10)
        np.testing.assert_allclose(mean, expected, atol=1e-9)
        np.testing.assert_allclose(deviation, np.sqrt(total**2 - noise), atol=1e-7)

    def test_likelihood(self) -> None:
        at = (self.parameters, self.parameters + [0.3, -0.2, 0.1, 0.5])
        found, expected = [], []
        for parameters in at:
            height, process = gaussian_process.log_posterior(parameters, self.points, self.values)
            prior = -0.5 * ((parameters[:3] - np.log(0.5)) ** 2).sum()
            prior -= 0.5 * ((parameters[3] - np.log(1e-4)) / 2.0) ** 2
            found.append(height - prior)
            self.parameters = parameters
            expected.append(self.theirs(process.variance).log_marginal_likelihood())
            # The variance is the most likely one.
            assert expected[-1] > self.theirs(1.1 * process.variance).log_marginal_likelihood()
            assert expected[-1] > self.theirs(0.9 * process.variance).log_marginal_likelihood()
        assert found[1] - found[0] == pytest.approx(expected[1] - expected[0], abs=1e-8)

    def test_climbing_gets_near_the_top(self) -> None:
        process = gaussian_process.fit(self.points, self.values, np.random.default_rng(0))
        again = gaussian_process.fit(self.points, self.values, np.random.default_rng(1))
        lengths = process.lengths
        assert lengths[2] > 2 * lengths[0]  # the values don't depend on the last dimension
        np.testing.assert_allclose(np.log(lengths), np.log(again.lengths), atol=0.3)

    def test_expected_improvement(self) -> None:
        mean, deviation, best = np.array([-1.0, 0.2, 2.0]), np.array([0.3, 1.0, 0.1]), 0.5
        expected = [
            integrate.quad(lambda v, m=m, s=s: (v - best) * norm.pdf(v, m, s), best, m + 12 * s)[0]
            for m, s in zip(mean, deviation, strict=True)
        ]
        found = gaussian_process.expected_improvement(mean, deviation, best)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)

    def test_equal_merits_are_no_failure(self) -> None:
        point = gaussian_process.propose(self.points, np.zeros(12), np.random.default_rng(0))
        assert point.shape == (3,) and ((point >= 0) & (point <= 1)).all()


# trials on rows that are prepared once

EARLIER = "earlier"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"solver": "joint"},
        {"task": "linear_regression", "columns": {"response": "level"}},
        {"global": {"l1": 2.0}, "values": {"coordinates.global.l1": 0.7}},
        {"per-user": {"normalization": "standardize"}},
        {"per-user": {"penalty_factors": {"x": 3.0}, "max_active_rows": 8}},
        {"global": {"negative_sampling": 0.5}},
        {"per-item": {"locked": True}, "initial_model": EARLIER},
        {"per-user": {"min_active_rows": 25}, "initial_model": EARLIER},
        {"prior": EARLIER},
        {"pairs": {"l2": 2.0}, "values": {"coordinates.pairs.l2": 5.0}},
    ],
    ids=str,
)
def test_rows_are_prepared_once(
    settings: dict[str, Any],
    train_rows: pa.Table,
    validation_rows: pa.Table,
    tmp_path: Path,
) -> None:
    settings = dict(settings)
    if EARLIER in settings.values():
        path = tmp_path / EARLIER
        settings |= {"prior": {"model": path}} if "prior" in settings else {"initial_model": path}
        specs = model_config().coordinates.values()
        earlier = [spec.model_copy(update={"variance": "simple"}) for spec in specs]
        model = MixedModel(earlier, features={"row": ["x", "kind"]})
        model.fit(train_rows.slice(0, 400)).save(path)
    values, pairs = settings.pop("values", {}), settings.pop("pairs", {})
    own = {name: settings.pop(name, {}) for name in ("global", "per-user", "per-item")}
    config = model_config(
        coordinates=[
            FixedEffect("global", features=["row"], **own["global"]),
            RandomEffect("per-user", entity="user", features=["row"], **own["per-user"]),
            RandomEffect("per-item", entity="item", **own["per-item"]),
            *(
                [Factorization("pairs", entities=("user", "item"), rank=2, **pairs)]
                if pairs
                else []
            ),
        ],
        passes=2,
        metrics=["rmse"],
        **settings,
    )
    values = {
        "coordinates.global.l2": 3.0,
        USER_L2: 7.0,
        "coordinates.per-user.intercept_l2": 0.4,
        "coordinates.per-item.intercept_l2": 2.0,
        **values,
    }
    changed = with_values(config, values)
    engine = LocalEngine()
    workspace = engine.prepare(config, train_rows, validation_rows)
    descend_in(workspace, config)
    found = descend_in(workspace.rebound(changed), changed)
    expected = descend_in(engine.prepare(changed, train_rows, validation_rows), changed)
    assert objectives(found) == objectives(expected)
    assert found.history[-1].metrics == expected.history[-1].metrics
    # What was bound first is as it was.
    again = descend_in(engine.prepare(config, train_rows, validation_rows), config)
    assert objectives(descend_in(workspace.rebound(config), config)) == objectives(again)


def objectives(result: Descent) -> list[float]:
    return [step.objective for step in result.history]


def test_folds_are_even_and_do_not_depend_on_the_order() -> None:
    uid = np.arange(-50_000, 50_000)
    numbers = fold_numbers(uid, 5, seed=0)
    counts = np.bincount(numbers, minlength=5)
    assert np.abs(counts / 20_000 - 1).max() < 0.03
    order = np.random.default_rng(0).permutation(uid.size)
    assert (fold_numbers(uid[order], 5, seed=0) == numbers[order]).all()
    # Another seed or number of folds is another division.
    assert 0.15 < (fold_numbers(uid, 5, seed=1) == numbers).mean() < 0.25
    halves = fold_numbers(uid, 2, seed=0)
    assert 0.45 < halves[numbers == 0].mean() < 0.55


def test_rows_of_a_fold_are_those_that_were_read(train_rows: pa.Table) -> None:
    vector = pa.array([[i % 3, 1, i % 5] for i in range(600)], pa.list_(pa.float32(), 3))
    table = train_rows.append_column("vector", vector).append_column("w", pa.array(range(600)))
    bags = model_config(features={"row": ["x", "kind", "tags"], "dense": ["vector"]}).features
    columns = model_config(columns={"weight": "w"}).columns
    schema = RowSchema(columns, bags, ("user", "item"))
    rows, _ = load_training(table, schema, "logistic_regression", "strict")
    kept = np.random.default_rng(0).random(600) < 0.3
    found = rows_where(rows, kept, "some")
    chosen = np.flatnonzero(kept)
    assert (found.label, found.n_rows) == ("some", chosen.size)
    for name in ("uid", "response", "weight", "offset"):
        np.testing.assert_array_equal(getattr(found, name), getattr(rows, name)[chosen])
    for key, own in found.keys.items():
        np.testing.assert_array_equal(own.codes, rows.keys[key].codes[chosen])
        assert own.values.equals(rows.keys[key].values)
    for bag, design in found.bags.items():
        expected = rows.bags[bag].take(chosen).sparse()
        assert design.is_dense == rows.bags[bag].is_dense
        np.testing.assert_array_equal(design.sparse().values, expected.values)
        np.testing.assert_array_equal(design.sparse().indptr, expected.indptr)


def test_a_fold_is_judged_by_a_model_of_the_others(train_rows: pa.Table) -> None:
    weight = pa.array(np.linspace(0.5, 1.5, train_rows.num_rows))
    rows = train_rows.append_column("weight", weight)
    spec = [
        FixedEffect("global", features=["row"]),
        RandomEffect("per-user", entity="user", features=["row"], l2=2.0),
    ]
    model = MixedModel(spec, features={"row": ["x", "kind"]}, passes=2)
    space = {USER_L2: {"values": [0.5, 5.0]}}
    result = tune(model, rows, folds=3, method="grid", space=space, metric="auc")
    assert [t.values[USER_L2] for t in result.trials] == [0.5, 5.0]
    fold = fold_numbers(rows["uid"].to_numpy(), 3, seed=0)
    for trial in result.trials:
        spec[1] = spec[1].model_copy(update={"l2": trial.values[USER_L2]})
        model.set_params(coordinates=spec)
        total = share = 0.0
        for k in range(3):
            held_out = rows.filter(pa.array(fold == k))
            link = model.fit(rows.filter(pa.array(fold != k))).predict(held_out, kind="link")
            own = held_out["weight"].to_numpy()
            auc = roc_auc_score(held_out["response"], link, sample_weight=own)
            total, share = total + own.sum() * auc, share + own.sum()
        assert trial.metrics["auc"] == pytest.approx(total / share, abs=1e-12)


def test_scores_from_files_are_those_of_the_training_rows_in_every_fold(
    train_rows: pa.Table, tmp_path: Path
) -> None:
    score = pc.multiply(pc.cast(train_rows["x"], pa.float64()), 0.5)
    pq.write_table(
        pa.table({"uid": train_rows["uid"], "score": score}), tmp_path / "scores.parquet"
    )
    spec = RandomEffect("per-item", entity="item")
    deep = ExternalScores("deep", train=tmp_path / "scores.parquet")
    with_scores = tune(MixedModel([deep, spec]), train_rows, folds=2, trials=2)
    shifted = train_rows.append_column("offset", score)
    as_offset = tune(MixedModel([spec]), shifted, folds=2, trials=2)
    for one, other in zip(with_scores.trials, as_offset.trials, strict=True):
        assert one.metrics == pytest.approx(other.metrics, rel=1e-12)


def test_a_fold_without_rows(train_rows: pa.Table) -> None:
    model = MixedModel([RandomEffect("per-item", entity="item")])
    (line,) = mistakes(lambda: tune(model, train_rows.slice(0, 30), folds=100))
    assert line.startswith("training data: fold ") and line.endswith(" of 100 has no rows")


def test_trials_start_from_the_nearest_one_if_they_end_by_convergence(
    train_rows: pa.Table, validation_rows: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[bool] = []

    def spy(workspace: Any, config: Any, *, state: Descent | None) -> Descent:
        started.append(state is not None)
        return descend_in(workspace, config, state=state)

    monkeypatch.setattr("gdmix.tuning.search.descend_in", spy)
    coordinates = list(model_config().coordinates.values())
    model = MixedModel(coordinates, features={"row": ["x", "kind"]}, passes=60, tolerance=1e-9)
    warm = tune(model, train_rows, validation=validation_rows, trials=6, method="random")
    assert started == [False] + [True] * 5
    assert all(trial.converged for trial in warm.trials)
    for trial in warm.trials[1:]:
        cold = model.set_params(
            coordinates=list(with_values(model._config(), trial.values).coordinates.values())
        ).fit(train_rows, validation=validation_rows)
        assert trial.metrics == pytest.approx(cold.history_[-1].metrics, abs=1e-5)
    started.clear()
    model.set_params(tolerance=None, passes=2, coordinates=coordinates)
    tune(model, train_rows, validation=validation_rows, trials=3, method="random")
    assert started == [False] * 3


def test_of_a_model_in_python(train_rows: pa.Table, validation_rows: pa.Table) -> None:
    model = MixedModel(
        list(model_config().coordinates.values()),
        features={"row": ["x", "kind"]},
        metrics=["logloss", "auc"],
        passes=2,
    )
    result = tune(model, train_rows, validation=validation_rows, trials=8, metric="auc")
    assert len(result.trials) == 8 and result.metric == "auc"
    assert result.trials[0] is result.first
    assert result.trials[0].values["coordinates.per-user.intercept_l2"] == 2.0
    assert result.best.metrics["auc"] == max(t.metrics["auc"] for t in result.trials)
    again = result.model.fit(train_rows, validation=validation_rows)
    assert again.history_[-1].metrics == result.best.metrics
    assert model.get_params()["coordinates"][1].l2 == 2.0
    with pytest.raises(ConfigError, match="name validation rows, or set tune.folds, such as 5"):
        tune(model, train_rows)
    smaller = tune(model, train_rows, validation=validation_rows, trials=3, metric="rmse")
    assert smaller.best.metrics["rmse"] == min(t.metrics["rmse"] for t in smaller.trials)


# the folder


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def test_the_best_configuration_runs_as_it_is(project: Path) -> None:
    (project / "run.yaml").write_text(
        (project / "run.yaml").read_text() + "tune: {trials: 5, metric: logloss}\n"
    )
    tuning = tune_run(RunConfig.from_yaml(Path("run.yaml")))
    folder = project / "runs/one.tune"
    assert sorted(p.name for p in folder.iterdir()) == [
        "best.yaml", "inputs.json", "run.yaml", "trials.csv", "tune.log",
    ]  # fmt: skip
    rows = table(folder / "trials.csv")
    assert list(rows[0]) == ["trial", *tuning.space, "logloss", "auc", "passes", "converged"]
    best = min(rows, key=lambda row: float(row["logloss"]))
    config = RunConfig.from_yaml(folder / "best.yaml")
    assert (config.output, config.tune) == (Path("runs/one.tune/best"), None)
    assert config.coordinates["per-user"].l2 == float(best[USER_L2])
    history = run(config)
    assert history.steps[-1]["metrics"] == tuning.best.metrics
    assert float(best["logloss"]) == tuning.best.metrics["logloss"]
    # That run stays when the search starts anew; and `train` doesn't mind the key `tune`.
    tune_run(RunConfig.from_yaml(Path("run.yaml"), {"tune.trials": "2"}), overwrite=True)
    assert len(table(folder / "trials.csv")) == 2
    assert (folder / "best/manifest.json").exists()
    run(RunConfig.from_yaml(Path("run.yaml")))


class Stop:
    """Ends a search after some trials, as Ctrl-C would."""

    def __init__(self, after: int) -> None:
        self.after = after

    def __call__(self, tuning: Tuning) -> None:
        if len(tuning.trials) == self.after:
            raise KeyboardInterrupt


@pytest.mark.parametrize("method", ["bayesian", "random"])
def test_what_was_stopped_goes_on(project: Path, method: str) -> None:
    def config(**overrides: str) -> RunConfig:
        given = {"tune.method": method, "tune.trials": "9", **overrides}
        return RunConfig.from_yaml(Path("run.yaml"), given)

    whole = tune_run(config(), folder=Path("whole"))
    with pytest.raises(TuningStopped, match="part keeps 4 of 9 trials: the same command") as stop:
        tune_run(config(), folder=Path("part"), on_trial=Stop(4))
    assert stop.value.tuning.trials[0].metrics == whole.trials[0].metrics
    assert RunConfig.from_yaml(Path("part/best.yaml")).output == Path("part/best")
    seen: list[int] = []
    tune_run(
        config(**{"tune.trials": "6", "threads": "1"}),
        folder=Path("part"),
        on_start=lambda t: seen.append(len(t.trials)),
    )
    rest = tune_run(config(), folder=Path("part"), on_start=lambda t: seen.append(len(t.trials)))
    assert seen == [4, 6]
    assert table(Path("part/trials.csv")) == table(Path("whole/trials.csv"))
    assert [t.values for t in rest.trials] == [t.values for t in whole.trials]
    # All is done: nothing is read or trained.
    Path("train.parquet").touch()
    once = tune_run(config(), folder=Path("whole2"))
    assert tune_run(config(), folder=Path("whole2"), on_trial=Stop(9)) == once


def test_before_the_first_trial_nothing_is_left(project: Path) -> None:
    config = RunConfig.from_yaml(Path("run.yaml"))

    def stop(_: Tuning) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        tune_run(config, on_start=stop)
    assert not isinstance(caught.value, TuningStopped)
    pq.write_table(pq.read_table("train.parquet").slice(0, 0), "train.parquet")
    with pytest.raises(DataError, match="has no rows"):
        tune_run(config)
    assert not (project / "runs/one.tune").exists()


def test_another_search_or_other_data_are_refused(project: Path) -> None:
    def search(overwrite: bool = False, **overrides: str) -> Tuning:
        keys = {key.replace("__", "."): value for key, value in overrides.items()}
        given = {"tune.trials": "2", "tune.method": "random", **keys}
        return tune_run(RunConfig.from_yaml(Path("run.yaml"), given), overwrite=overwrite)

    search()
    start = "runs/one.tune: the search there had another "
    end = "; use its settings, or start anew with --overwrite"
    assert mistakes(lambda: search(passes="1")) == [f"{start}'passes'{end}"]
    assert mistakes(lambda: search(tune__seed="1")) == [f"{start}'tune'{end}"]
    assert mistakes(lambda: search(tune__metric="logloss")) == [f"{start}'metrics'{end}"]
    assert len(search(tune__trials="3").trials) == 3
    assert len(search(overwrite=True, passes="1").trials) == 2
    Path("validation.parquet").touch()
    assert mistakes(lambda: search(passes="1")) == [
        "runs/one.tune: the data have changed since that search; start anew with --overwrite"
    ]
    Path("runs/one.tune/trials.csv").write_text("trial\n1\n")
    search(overwrite=True)
    Path("runs/one.tune/trials.csv").write_text("trial\nx\n")
    (line,) = mistakes(search)
    assert line.startswith("runs/one.tune/trials.csv: can't be read: ")
    Path("runs/one.tune/thesis.txt").touch()
    with pytest.raises(OutputError, match="holds files that gdmix did not write"):
        search(overwrite=True)


def test_time_that_is_up(project: Path) -> None:
    config = RunConfig.from_yaml(Path("run.yaml"), {"tune.timeout": "1e-9"})
    assert [len(tune_run(config).trials) for _ in range(3)] == [1, 2, 3]


def test_without_rows_to_judge_by(project: Path) -> None:
    config = RunConfig.from_yaml(Path("run.yaml"), {"data": "{train: train.parquet}"})
    line = "tune: needs rows to judge by: name validation rows, or set tune.folds, such as 5"
    assert mistakes(lambda: tune_run(config)) == [line]
    assert not (project / "runs").exists() or not any((project / "runs").iterdir())


# the command


@pytest.fixture
def gdmix(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> Callable[..., Any]:
    monkeypatch.setattr(terminal.out, "width", 100)

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            app(list(arguments), prog_name="gdmix")
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


def test_command(project: Path, gdmix: Any) -> None:
    code, out, err = gdmix("tune", "run.yaml", "--trials", "18", "--set", "tune.method=random")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "run.yaml"
    assert "per-user" in lines[2] and "intercept" in out
    numbers = [line for line in lines if line.startswith("│") and line[1:8].strip(" *")]
    assert len(numbers) in (15, 16)
    assert lines[-2] == (
        "metrics of the validation rows; 18 trials, the best by auc first; "
        "* the weights it began with"
    )
    assert lines[-1] == "next: gdmix train runs/one.tune/best.yaml"
    assert gdmix(*lines[-1].split()[2:], "--quiet") == (0, "", "")
    # Once more: it is all there.
    code, out, _ = gdmix(
        "tune", "run.yaml", "--trials", "18", "--set", "tune.method=random", "--json"
    )
    document = json.loads(out)
    assert (document["output"], len(document["trials"])) == ("runs/one.tune", 18)
    best = max(document["trials"], key=lambda t: t["metrics"]["auc"])
    assert document["best"] == best["values"]
    assert gdmix("tune", "run.yaml", "--trials", "1", "-o", "elsewhere", "-q") == (0, "", "")
    assert (project / "elsewhere/best.yaml").exists()


def test_command_says_what_is_wrong(project: Path, gdmix: Any) -> None:
    assert gdmix("tune", "run.yaml", "--trials", "0") == (
        2,
        "",
        "error: run.yaml: tune.trials: should be greater than or equal to 1 (got 0)\n",
    )
    code, _, err = gdmix(
        "tune", "run.yaml", "--set", "tune.space={coordinates.pre-user.l2: [1, 2]}"
    )
    assert (code, err.count("\n")) == (2, 1)
    assert "there is no coordinate 'pre-user' (did you mean 'per-user'?)" in err


def test_command_that_is_stopped(project: Path, gdmix: Any, monkeypatch: Any) -> None:
    def stop_after_two(config: RunConfig, **options: Any) -> Tuning:
        return tune_run(config, **{**options, "on_trial": Stop(2)})

    monkeypatch.setattr("gdmix.tuning.tune_run", stop_after_two)
    code, out, err = gdmix("tune", "run.yaml")
    assert code == 130
    assert "2 of 30 trials" in out
    assert err == ("interrupted; runs/one.tune keeps 2 of 30 trials: the same command goes on\n")


def test_what_every_trial_warns_of_goes_to_the_log(project: Path, gdmix: Any) -> None:
    code, _, err = gdmix("tune", "run.yaml", "--trials", "3", "--set", "tolerance=1e-15")
    assert (code, err) == (
        0,
        "warning: 3 of 3 trials did not converge to the tolerance; allow more passes\n",
    )
    log = (project / "runs/one.tune/tune.log").read_text()
    assert log.count("not converged to 1e-15 after 2 passes") == 3
    assert "trial 3: coordinates.global.l2 " in log


def test_trials_are_plain_data() -> None:
    trial = Trial(1, {"a": 2.0}, {"auc": 0.5}, 3, None, 0.1)
    other = Trial(2, {"a": 3.0}, {"auc": float("nan")}, 3, None, 0.1)
    tuning = Tuning((other, trial), ("a",), "auc", None, 5, None)
    assert tuning.best is trial and tuning.ranked[-1] is other
    assert tuning.summary == "trial 3/5, best auc 0.5000"


def test_estimated_weights_are_tried_second(
    train_rows: pa.Table, validation_rows: pa.Table
) -> None:
    specs = list(model_config().coordinates.values())
    features = {"row": ["x", "kind"]}
    result = tune(MixedModel(specs, features=features), train_rows, validation=validation_rows,
                  trials=3)  # fmt: skip
    auto = [spec.model_copy(update={"l2": "auto"}) for spec in specs]
    model = MixedModel(auto, features=features, passes=10).fit(train_rows)
    assert model.estimate_ is not None
    found = {(c.coordinate, c.group): c.l2 for c in model.estimate_.components}
    second = result.trials[1].values
    for name, group in (("global", "row"), ("per-user", "row"), ("per-item", "(INTERCEPT)")):
        key = f"coordinates.{name}.{'l2' if group == 'row' else 'intercept_l2'}"
        expected = min(max(found[name, group], 0.01), 1000.0)
        assert second[key] == pytest.approx(expected, rel=1e-3)
    # Where a weight can't be estimated, there is no such trial; nor on the way through a grid.
    config = model_config(initial_model="m")
    assert estimating(config, {"coordinates.global.l1": RANGE}) is not None
    assert estimated_values({"coordinates.global.l1": RANGE}, model.estimate_.components) is None
    prior = model_config(prior={"model": "m"})
    assert estimating(prior, {USER_L2: RANGE}) is None


def test_the_nearest_candidate() -> None:
    assert [nearest(RANGE, v) for v in (1e-9, 0.25, 1e9)] == [0.1, 0.25, 10.0]
    some = Candidates(values=(0.0, 1.0, 4.0))
    assert [nearest(some, v) for v in (1e-9, 1.9, 2.1, 99.0)] == [1.0, 1.0, 4.0, 4.0]


def test_the_weight_of_several_bags_is_their_mean() -> None:
    components = [
        VarianceComponent("g", "(INTERCEPT)", 9.0, 1 / 9, 1, 1.0),
        VarianceComponent("g", "a", 1.0, 1.0, 10, 3.0),
        VarianceComponent("g", "b", 16.0, 1 / 16, 10, 1.0),
    ]
    space = {"coordinates.g.l2": RANGE, "coordinates.g.intercept_l2": RANGE}
    assert estimated_values(space, components) == {
        "coordinates.g.l2": 2.0,
        "coordinates.g.intercept_l2": 9.0,
    }
    assert estimated_values({"coordinates.h.l2": RANGE}, components) is None
