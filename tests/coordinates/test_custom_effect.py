"""Estimators of other libraries and of one's own as a fixed effect, held to the libraries."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import lightgbm
import numpy as np
import pyarrow as pa
import pytest
import xgboost
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import brentq, minimize
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LinearRegression, LogisticRegression, PoissonRegressor, Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import LinearSVC

from gdmix import (
    ConfigError,
    CustomEffect,
    ExternalScores,
    FixedEffect,
    MixedModel,
    ModelError,
    RandomEffect,
    RunConfig,
    cli,
)
from gdmix.checkpoint import Checkpoint
from gdmix.runs import read_history, run

F64 = NDArray[np.float64]
FEATURES = {"row": ["x", "kind"]}
PER_USER = RandomEffect("per-user", entity="user", features=["row"], l2=2.0)
SMALL = {"n_estimators": 20, "learning_rate": 0.2, "min_child_samples": 5}
SMALL_XGBOOST = {"n_estimators": 20, "learning_rate": 0.2, "max_depth": 3}
LOGISTIC, LINEAR, POISSON = "logistic_regression", "linear_regression", "poisson_regression"
RESPONSES = {LOGISTIC: "response", LINEAR: "level", POISSON: "count"}
MEAN = {LOGISTIC: lambda z: 1 / (1 + np.exp(-z)), LINEAR: lambda z: z, POISSON: np.exp}


def trees(**settings: Any) -> CustomEffect:
    given = {"estimator": "lightgbm.LGBMClassifier", "params": SMALL, **settings}
    return CustomEffect("trees", **{"features": "row", "categorical": "item", **given})


def make(*coordinates: Any, task: str = LOGISTIC, **settings: Any) -> MixedModel:
    given = {"features": FEATURES, "columns": {"response": RESPONSES[task]}, **settings}
    return MixedModel(list(coordinates), task=task, threads=1, **given)


def with_roles(rows: pa.Table, seed: int = 3) -> pa.Table:
    """Return the rows with an offset and weights."""
    rng = np.random.default_rng(seed)
    rows = rows.append_column("offset", pa.array(rng.normal(size=rows.num_rows)))
    return rows.append_column("weight", pa.array(rng.integers(1, 4, rows.num_rows) * 1.0))


def matrix_of(rows: pa.Table, items: list[str]) -> F64:
    """Return x, the three kinds one-hot, and the number of the item from 1, NaN if unknown."""
    kinds = np.array(rows["kind"].to_pylist())[:, None] == ["a", "b", "c"]
    numbers = [items.index(i) + 1 if i in items else np.nan for i in rows["item"].to_pylist()]
    return np.column_stack([rows["x"].to_numpy().astype(np.float32), kinds, numbers])


def as_sparse(X: F64) -> sparse.csr_matrix:
    return sparse.csr_matrix(X.astype(np.float32))


def best_level(task: str, y: F64, weight: F64, offset: F64) -> float:
    """Return where the derivative of the loss in an intercept is zero."""
    return brentq(lambda c: float(weight @ (MEAN[task](offset + c) - y)), -20, 20, xtol=1e-13)


def by_lightgbm(task: str, X: F64, y: F64, weight: F64, base: F64, new: F64) -> F64:
    kind = lightgbm.LGBMClassifier if task == LOGISTIC else lightgbm.LGBMRegressor
    objective = {LOGISTIC: "binary", LINEAR: "regression", POISSON: "poisson"}[task]
    model = kind(objective=objective, random_state=0, n_jobs=1, verbosity=-1, **SMALL)
    model.fit(as_sparse(X), y, sample_weight=weight, init_score=base, categorical_feature=[4])
    return model.booster_.predict(as_sparse(new), raw_score=True)


def by_xgboost(task: str, X: F64, y: F64, weight: F64, base: F64, new: F64) -> F64:
    kinds = {"feature_types": ["q"] * 4 + ["c"], "enable_categorical": True, "nthread": 1}
    names = {LOGISTIC: "binary:logistic", LINEAR: "reg:squarederror", POISSON: "count:poisson"}
    booster = xgboost.train(
        {"objective": names[task], "learning_rate": 0.2, "max_depth": 3},
        xgboost.DMatrix(as_sparse(X), y, weight=weight, base_margin=base, **kinds),
        num_boost_round=20,
    )
    # The margin is that of the base it is given plus its trees: any base tells the trees.
    rows = xgboost.DMatrix(as_sparse(new), base_margin=np.full(len(new), 0.25), **kinds)
    return booster.predict(rows, output_margin=True) - 0.25


BOOSTED = {
    "lightgbm": ("lightgbm.LGBM{}", SMALL, by_lightgbm),
    "xgboost": ("xgboost.XGB{}", SMALL_XGBOOST, by_xgboost),
}


@pytest.mark.parametrize("task", [LOGISTIC, LINEAR, POISSON])
@pytest.mark.parametrize("library", BOOSTED)
def test_trees_beside_an_offset_are_the_librarys(
    library: str, task: str, train_rows: pa.Table, validation_rows: pa.Table
) -> None:
    place, params, reference = BOOSTED[library]
    estimator = place.format("Classifier" if task == LOGISTIC else "Regressor")
    rows = with_roles(train_rows)
    # An item that training did not see.
    item = ["new", *validation_rows["item"].to_pylist()[1:]]
    new = with_roles(validation_rows.drop_columns("item").append_column("item", [item]), seed=4)
    model = make(trees(estimator=estimator, params=params), task=task).fit(rows)
    items = sorted(set(train_rows["item"].to_pylist()))
    y, weight, offset = (
        rows[c].to_numpy().astype(np.float64) for c in (RESPONSES[task], "weight", "offset")
    )
    level = best_level(task, y, weight, offset)
    X = matrix_of(rows, items), y, weight, offset + level
    expected = level + reference(task, *X, matrix_of(new, items))
    scores = model.predict(new, kind="components")["trees"]
    np.testing.assert_allclose(scores, expected, rtol=0, atol=3e-6)
    total = offset_of(new) + expected
    np.testing.assert_allclose(model.predict(new, kind="link"), total, rtol=0, atol=3e-6)
    np.testing.assert_allclose(model.predict(new), MEAN[task](total), rtol=1e-5, atol=3e-6)
    (step,) = model.history_
    assert (step.report.models, step.report.iterations) == (1, 20)


def offset_of(rows: pa.Table) -> F64:
    return rows["offset"].to_numpy()


@pytest.mark.parametrize("library", BOOSTED)
def test_alone_it_is_what_the_library_gives(library: str, train_rows: pa.Table) -> None:
    place, params, _ = BOOSTED[library]
    model = make(trees(estimator=place.format("Classifier"), params=params)).fit(train_rows)
    items = sorted(set(train_rows["item"].to_pylist()))
    X, y = as_sparse(matrix_of(train_rows, items)), train_rows["response"].to_numpy()
    if library == "lightgbm":
        plain = lightgbm.LGBMClassifier(verbosity=-1, n_jobs=1, **params)
        plain.fit(X, y, categorical_feature=[4])
    else:
        types = ["q"] * 4 + ["c"]
        plain = xgboost.XGBClassifier(feature_types=types, enable_categorical=True, **params)
        plain.fit(X, y)
    expected = plain.predict_proba(X)[:, 1]
    np.testing.assert_allclose(model.predict(train_rows), expected, rtol=0, atol=1e-5)


# scikit-learn


def one_hot(rows: pa.Table) -> sparse.csr_matrix:
    return as_sparse(matrix_of(rows, ["-"])[:, :4])


def test_a_classifier_without_offset_comes_first(
    train_rows: pa.Table, validation_rows: pa.Table
) -> None:
    weighted = with_roles(train_rows).drop_columns("offset")
    half = weighted.append_column("offset", pa.array(np.full(weighted.num_rows, 0.5)))
    spec = CustomEffect("trees", estimator=LogisticRegression(C=0.5), features="row")
    model = make(spec, PER_USER).fit(half)
    y, weight = (half[c].to_numpy() for c in ("response", "weight"))
    plain = LogisticRegression(C=0.5).fit(one_hot(half), y, sample_weight=weight)
    # The offset of all rows is .5: their total score is what the estimator says.
    expected = plain.decision_function(one_hot(validation_rows)) - 0.5
    scores = model.predict(validation_rows, kind="components")["trees"]
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_a_decision_function_serves_where_there_are_no_probabilities(train_rows: pa.Table) -> None:
    spec = CustomEffect("trees", estimator=LinearSVC(random_state=0), features="row")
    model = make(spec).fit(train_rows)
    y = train_rows["response"].to_numpy()
    plain = LinearSVC(random_state=0).fit(one_hot(train_rows), y)
    expected = plain.decision_function(one_hot(train_rows))
    np.testing.assert_allclose(model.predict(train_rows, kind="link"), expected, atol=1e-6)


def test_a_regressor_is_fitted_to_what_is_left(
    train_rows: pa.Table, validation_rows: pa.Table
) -> None:
    rows = with_roles(train_rows)
    spec = CustomEffect("trees", estimator=Ridge(alpha=3.0), features="row")
    model = make(spec, task=LINEAR).fit(rows)
    y, weight = (rows[c].to_numpy() for c in ("level", "weight"))
    plain = Ridge(alpha=3.0).fit(one_hot(rows), y - offset_of(rows), sample_weight=weight)
    scores = model.predict(validation_rows, kind="components")["trees"]
    np.testing.assert_allclose(scores, plain.predict(one_hot(validation_rows)), atol=1e-5)


def test_a_poisson_regressor_scores_the_logarithm(train_rows: pa.Table) -> None:
    model = make(
        CustomEffect("trees", estimator=PoissonRegressor, features="row"), task=POISSON
    ).fit(train_rows)
    plain = PoissonRegressor().fit(one_hot(train_rows), train_rows["count"].to_numpy())
    expected = plain.predict(one_hot(train_rows))
    np.testing.assert_allclose(model.predict(train_rows), expected, rtol=1e-5)


def test_dense_rows_for_those_that_take_no_sparse_ones(train_rows: pa.Table) -> None:
    spec = CustomEffect(
        "trees",
        estimator=HistGradientBoostingClassifier,
        params={"max_iter": 5},
        features="row",
        dense=True,
    )
    model = make(spec).fit(train_rows)
    X, y = one_hot(train_rows).toarray(), train_rows["response"].to_numpy()
    expected = HistGradientBoostingClassifier(max_iter=5).fit(X, y).predict_proba(X)[:, 1]
    np.testing.assert_allclose(model.predict(train_rows), expected, atol=1e-6)


def test_a_bag_of_dense_columns_is_an_array(train_rows: pa.Table) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(train_rows.num_rows, 3)).astype(np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 3)
    rows = train_rows.append_column("vector", column)
    spec = CustomEffect("trees", estimator=SeesItsRows, features="vector", categorical="user")
    make(spec, features={"vector": ["vector"]}).fit(rows)
    assert isinstance(SeesItsRows.seen["X"], np.ndarray)
    np.testing.assert_array_equal(SeesItsRows.seen["X"][:, :3], vectors)
    users = np.unique(train_rows["user"].to_numpy(), return_inverse=True)[1]
    np.testing.assert_array_equal(SeesItsRows.seen["X"][:, 3], users + 1)


# One's own


class OwnLogistic:
    """What `FixedEffect` fits, by another solver."""

    def __init__(self, l2: float = 1.0) -> None:
        self.l2 = l2

    def fit(self, X: Any, y: F64, *, offset: F64, weight: F64, names: list[str]) -> None:
        def objective(beta: F64) -> tuple[float, F64]:
            z = offset + beta[0] + X @ beta[1:]
            residual = weight * (1 / (1 + np.exp(-z)) - y)
            value = weight @ (np.logaddexp(0, z) - y * z) + self.l2 / 2 * beta[1:] @ beta[1:]
            return value, np.append(residual.sum(), X.T @ residual + self.l2 * beta[1:])

        options = {"gtol": 1e-8, "ftol": 1e-16, "maxiter": 10_000}
        start = np.zeros(X.shape[1] + 1)
        self.beta = minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x

    def score(self, X: Any) -> F64:
        return self.beta[0] + X @ self.beta[1:]


class SeesItsRows:
    seen: dict[str, Any] = {}

    def fit(self, X: Any, y: F64, *, offset: F64, weight: F64, names: list[str]) -> None:
        type(self).seen = {"X": X, "y": y, "offset": offset, "weight": weight, "names": names}

    def score(self, X: Any) -> F64:
        return np.zeros(X.shape[0])


@pytest.mark.parametrize("position", [0, 1])
def test_a_class_of_ones_own_in_any_position_and_pass(
    train_rows: pa.Table, validation_rows: pa.Table, position: int
) -> None:
    rows, more = with_roles(train_rows), with_roles(validation_rows, seed=4)

    # It shares neither a bag nor an intercept: nothing is recentred, as no estimator's score is.
    other = RandomEffect("per-user", entity="user", features=["tags"], intercept=False)

    def fitted(spec: Any) -> MixedModel:
        coordinates = [other]
        coordinates.insert(position, spec)
        features = {**FEATURES, "tags": ["tags"]}
        return make(*coordinates, passes=3, features=features).fit(rows, validation=more)

    own = fitted(CustomEffect("global", estimator=OwnLogistic, params={"l2": 2.0}, features="row"))
    plain = fitted(FixedEffect("global", features=["row"], l2=2.0))
    for step, expected in zip(own.history_, plain.history_, strict=True):
        assert step.metrics == pytest.approx(expected.metrics, abs=1e-6)
    expected = plain.predict(more, kind="link")
    np.testing.assert_allclose(own.predict(more, kind="link"), expected, atol=1e-5)


def test_descent_with_ones_own_reaches_the_joint_optimum(train_rows: pa.Table) -> None:
    rows = with_roles(train_rows)
    own = CustomEffect("global", estimator=OwnLogistic, params={"l2": 2.0}, features="row")
    plain = FixedEffect("global", features=["row"], l2=2.0)
    model = make(own, PER_USER, passes=300, tolerance=1e-10).fit(rows)
    joint = make(plain, PER_USER, solver="joint").fit(rows)
    expected = joint.predict(rows, kind="link")
    np.testing.assert_allclose(model.predict(rows, kind="link"), expected, atol=1e-3)


def test_what_a_class_of_ones_own_is_given(train_rows: pa.Table) -> None:
    rows = with_roles(train_rows)
    spec = trees(estimator=SeesItsRows, params={})
    make(PER_USER, spec).fit(rows)
    seen = SeesItsRows.seen
    items = sorted(set(train_rows["item"].to_pylist()))
    assert seen["names"] == ["x", "kind:a", "kind:b", "kind:c", "item"]
    np.testing.assert_allclose(seen["X"].toarray(), matrix_of(rows, items), rtol=1e-6)
    np.testing.assert_array_equal(seen["y"], rows["response"].to_numpy())
    np.testing.assert_array_equal(seen["weight"], rows["weight"].to_numpy())
    alone = make(PER_USER).fit(rows).predict(rows, kind="link")
    np.testing.assert_allclose(seen["offset"], alone, atol=1e-9)


# Files


def save_and_load(model: MixedModel, folder: Path, **options: Any) -> MixedModel:
    model.save(folder)
    return MixedModel.load(folder, **options)


@pytest.mark.parametrize(
    ("library", "file"), [("lightgbm", "lightgbm.txt"), ("xgboost", "xgboost.ubj")]
)
def test_trees_are_saved_as_their_library_has_them(
    library: str, file: str, train_rows: pa.Table, validation_rows: pa.Table, tmp_path: Path
) -> None:
    place, params, _ = BOOSTED[library]
    spec = trees(estimator=place.format("Classifier"), params=params)
    model = make(spec, PER_USER, passes=2).fit(train_rows)
    loaded = save_and_load(model, tmp_path / "model")
    expected = model.predict(validation_rows)
    np.testing.assert_array_equal(loaded.predict(validation_rows), expected)
    folder = tmp_path / "model" / "trees" / "models"
    assert {p.name for p in folder.iterdir()} == {file, "categories-0.parquet"}
    saved = folder / file
    kind = lightgbm.Booster if library == "lightgbm" else xgboost.Booster
    assert kind(model_file=saved)
    saved.write_bytes(b"nothing")
    with pytest.raises(ModelError, match=f"{file}: can't be read here"):
        MixedModel.load(tmp_path / "model").predict(validation_rows)
    saved.unlink()
    with pytest.raises(ModelError, match=f"{file}: damaged or missing"):
        MixedModel.load(tmp_path / "model")


def test_a_pickle_is_opened_only_when_it_is_trusted(
    train_rows: pa.Table, validation_rows: pa.Table, tmp_path: Path
) -> None:
    spec = CustomEffect("global", estimator=OwnLogistic, features="row")
    model = make(spec, PER_USER).fit(train_rows)
    closed = save_and_load(model, tmp_path / "model")
    assert closed.model_.summary("global")["estimator"] == f"{__name__}.OwnLogistic"
    with pytest.raises(ModelError, match="a pickle runs code of whoever wrote it .* allow_pickle="):
        closed.predict(validation_rows)
    closed.save(tmp_path / "copy")
    trusted = MixedModel.load(tmp_path / "copy", allow_pickle=True)
    expected = model.predict(validation_rows)
    np.testing.assert_array_equal(trusted.predict(validation_rows), expected)


def test_a_pickle_that_does_not_open(train_rows: pa.Table, tmp_path: Path) -> None:
    spec = CustomEffect("global", estimator=OwnLogistic, features="row")
    make(spec).fit(train_rows).save(tmp_path / "model")
    file = tmp_path / "model" / "global" / "models" / "estimator.pickle"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ModelError, match="estimator.pickle: can't be read here: "):
        MixedModel.load(tmp_path / "model", allow_pickle=True).predict(train_rows)


RUN = """\
coordinates:
  trees:
    type: custom
    estimator: {estimator}
    params: {params}
    features: row
    categorical: [item]
  per-user: {{type: random_effect, entity: user, features: [row], l2: 2.0}}
passes: 2
threads: 1
"""


def set_run(estimator: str, params: dict[str, Any]) -> None:
    before, _, after = Path("run.yaml").read_text().partition("coordinates:")
    after = after[after.index("passes: 2\n") + len("passes: 2\n") :]
    text = RUN.format(estimator=estimator, params=json.dumps(params))
    Path("run.yaml").write_text(before + text + after)


def gdmix(*arguments: str) -> tuple[int, str]:
    """Run a command in this process; return its exit code and what it says of errors."""
    from typer.testing import CliRunner

    done = CliRunner().invoke(cli.app, list(arguments))
    return done.exit_code, done.output


def test_commands(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_run("lightgbm.LGBMClassifier", SMALL)
    monkeypatch.setattr("gdmix.checkpoint._SHARE", 1e9)
    config = RunConfig.from_yaml(Path("run.yaml"))
    run(config)
    auc = read_history(config.output).steps[-1]["metrics"]["auc"]
    run_folder = str(config.output)
    code, text = gdmix("inspect", run_folder, "--json")
    assert code == 0
    assert json.loads(text)["trees"] == {
        "type": "custom",
        "entity": None,
        "features": ["row"],
        "models": 1,
        "coefficients": 0,
        "categorical": ["item"],
        "estimator": "lightgbm.LGBMClassifier",
        "package": f"lightgbm {lightgbm.__version__}",
    }
    assert "row, item" in gdmix("inspect", run_folder)[1]
    code, text = gdmix("inspect", run_folder, "--coordinate", "trees")
    assert (code, text) == (
        2,
        "error: coordinate 'trees' has type custom and no coefficients\n",
    )
    assert gdmix("score", run_folder, "validation.parquet", "-o", "s.parquet")[0] == 0
    code, text = gdmix("evaluate", "s.parquet", "--metric", "auc", "--json")
    assert json.loads(text)["auc"] == pytest.approx(auc, abs=1e-6)
    assert gdmix("convert", "model", run_folder, "-o", "avro", "--to", "avro")[0] == 0
    assert gdmix("score", "avro", "validation.parquet", "-o", "s2.parquet")[0] == 0


def test_commands_with_a_pickle(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_run(f"{__name__}.SeesItsRows", {})
    config = RunConfig.from_yaml(Path("run.yaml"))
    run(config)
    arguments = ("score", str(config.output), "validation.parquet", "-o", "scores.parquet")
    code, text = gdmix(*arguments)
    assert code == 2
    assert text.startswith("error: estimator.pickle: a pickle runs code")
    assert gdmix(*arguments, "--allow-pickle")[0] == 0


@pytest.mark.parametrize(
    ("estimator", "params"),
    [("lightgbm.LGBMClassifier", SMALL), (f"{__name__}.OwnStateful", {"step": 0.5})],
)
def test_a_stopped_run_goes_on(
    project: Path, monkeypatch: pytest.MonkeyPatch, estimator: str, params: dict[str, Any]
) -> None:
    set_run(estimator, params)
    monkeypatch.setattr("gdmix.checkpoint._SHARE", 1e9)
    whole = RunConfig.from_yaml(Path("run.yaml"), {"output": "runs/whole"})
    run(whole)
    config, seen = RunConfig.from_yaml(Path("run.yaml")), []

    def stop(step: Any) -> None:
        seen.append(step)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, on_step=stop)
    opened = []
    load = Checkpoint.load
    monkeypatch.setattr(Checkpoint, "load", lambda self: opened.append(1) or load(self))
    run(config, resume=True)
    assert opened == [1]
    first, second = (read_history(c.output).steps for c in (whole, config))
    for step, expected in zip(second, first, strict=True):
        assert step["coordinate"] == expected["coordinate"]
        assert step["metrics"] == pytest.approx(expected["metrics"], rel=1e-9)


class OwnStateful:
    """A mean, learned step by step: fast."""

    def __init__(self, step: float) -> None:
        self.step = step

    def fit(self, X: Any, y: F64, *, offset: F64, weight: F64, names: list[str]) -> None:
        mean = np.average(y - 1 / (1 + np.exp(-offset)), weights=weight)
        self.level = self.step * float(mean)

    def score(self, X: Any) -> F64:
        return np.full(X.shape[0], self.level)


def test_a_later_run_fits_it_anew(
    train_rows: pa.Table, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(trees(), PER_USER).fit(train_rows).save(tmp_path / "model")
    again = make(trees(), PER_USER, initial_model=tmp_path / "model").fit(train_rows)
    assert "initial model: coordinate 'trees' is fitted anew" in caplog.text
    assert set(again.predict(train_rows, kind="components")) == {"trees", "per-user"}
    with pytest.raises(ConfigError, match="coordinates.trees: type is fixed_effect, in initial_"):
        make(FixedEffect("trees"), initial_model=tmp_path / "model").fit(train_rows)


# Mistakes


class NoScore:
    def fit(self, X: Any, y: F64, *, offset: F64, weight: F64, names: list[str]) -> None: ...


class TooShort(SeesItsRows):
    def score(self, X: Any) -> F64:
        return np.zeros(X.shape[0] - 1)


class Infinite(SeesItsRows):
    def score(self, X: Any) -> F64:
        return np.append(np.zeros(X.shape[0] - 2), [np.inf, np.nan])


class Unpicklable(SeesItsRows):
    def fit(self, X: Any, y: F64, *, offset: F64, weight: F64, names: list[str]) -> None:
        self.function = lambda: None


class Raising(SeesItsRows):
    def fit(self, X: Any, y: F64, *, offset: F64, weight: F64, names: list[str]) -> None:
        raise ZeroDivisionError("mine")


HERE = __name__
FOREST = CustomEffect("trees", estimator=RandomForestClassifier, features="row")


@pytest.mark.parametrize(
    ("spec", "task", "message"),
    [
        ({"estimator": "lightgbm.LGBMClasifier"}, LOGISTIC,
         "coordinates.trees.estimator: module 'lightgbm' has no class 'LGBMClasifier' "
         "(did you mean 'LGBMClassifier'?)"),
        ({"estimator": "LGBMClassifier"}, LOGISTIC,
         "coordinates.trees.estimator: 'LGBMClassifier' should be module.Class"),
        ({"estimator": "no_such_module.Model"}, LOGISTIC,
         "coordinates.trees.estimator: no_such_module.Model: no module 'no_such_module'; "
         "is it installed, or its folder in PYTHONPATH?"),
        ({"estimator": f"{HERE}.make"}, LOGISTIC,
         f"coordinates.trees.estimator: module '{HERE}' has no class 'make' "
         "(did you mean 'make'?)"),
        ({"estimator": f"{HERE}.NoScore"}, LOGISTIC,
         f"coordinates.trees.estimator: {HERE}.NoScore has neither "
         "fit(X, y, *, offset, weight, names) and score(X), nor fit and predict as "
         "scikit-learn's have"),
        ({"estimator": f"{HERE}.OwnLogistic", "params": {"l1": 1}}, LOGISTIC,
         f"coordinates.trees: {HERE}.OwnLogistic: params: TypeError: "
         "OwnLogistic.__init__() got an unexpected keyword argument 'l1'"),
        ({"estimator": "lightgbm.LGBMClassifier"}, LINEAR,
         "coordinates.trees: lightgbm.LGBMClassifier is no regressor, as task linear_regression "
         "needs"),
        ({"estimator": "lightgbm.LGBMRanker"}, LOGISTIC,
         "coordinates.trees: lightgbm.LGBMRanker is no classifier, as task logistic_regression "
         "needs"),
        ({"estimator": "xgboost.XGBRegressor", "params": {"objective": "reg:squarederror"}},
         POISSON,
         "coordinates.trees: xgboost.XGBRegressor: objective 'reg:squarederror' doesn't suit "
         "task poisson_regression; such as 'count:poisson' does"),
        ({"params": {"num_leaves": -3}}, LOGISTIC,
         "coordinates.trees: lightgbm.LGBMClassifier: fit: LightGBMError: Check failed: "
         "(num_leaves) > (1)"),
        ({"estimator": "sklearn.linear_model.LogisticRegression", "params": {}}, LOGISTIC,
         "coordinates.trees: sklearn.linear_model.LogisticRegression takes the numbers of "
         "categories for quantities; put these columns into a feature bag, which makes them "
         "one-hot"),
        ({"estimator": f"{HERE}.Unpicklable", "params": {}}, LOGISTIC,
         f"coordinates.trees: {HERE}.Unpicklable: can't be saved, as it can't be pickled: "),
        ({"estimator": f"{HERE}.TooShort", "params": {}}, LOGISTIC,
         f"{HERE}.TooShort: should score each row with one number; 600 rows gave an array of "
         "shape (599,)"),
        ({"estimator": f"{HERE}.Infinite", "params": {}}, LOGISTIC,
         f"{HERE}.Infinite: 2 of the scores of 600 rows are infinite or NaN"),
        ({"features": (), "categorical": ()}, LOGISTIC,
         "CustomEffect('trees'): has neither features nor categorical columns"),
        ({"estimator": OwnLogistic(2.0)}, LOGISTIC,
         "CustomEffect('trees'): estimator: an instance of OwnLogistic can't be taken apart, it "
         "has no get_params; give the class and `params`"),
        ({"estimator": lightgbm.LGBMClassifier()}, LOGISTIC,
         "CustomEffect('trees'): params: the estimator has its own; give its class to use these"),
    ],
)  # fmt: skip
def test_mistakes(train_rows: pa.Table, spec: dict[str, Any], task: str, message: str) -> None:
    with pytest.raises((ConfigError, ModelError)) as caught:
        make(trees(**spec), task=task).fit(train_rows)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(message)


NO_OFFSET = (
    "takes no offset, the score that other coordinates and the rows add: it must be the first "
    "coordinate, with `passes: 1`, no initial model and no scores from files; LightGBM's and "
    "XGBoost's take one"
)


@pytest.mark.parametrize(
    ("coordinates", "settings"),
    [
        ((FOREST,), {"passes": 2}),
        ((PER_USER, FOREST), {}),
        ((FOREST, ExternalScores("deep", train="nowhere")), {}),
        ((FOREST,), {"task": POISSON, "passes": 2}),
    ],
)
def test_an_estimator_without_offset_where_there_is_one(
    train_rows: pa.Table, coordinates: Any, settings: dict[str, Any]
) -> None:
    if settings.get("task") == POISSON:
        coordinates = (CustomEffect("trees", estimator=RandomForestRegressor, features="row"),)
    with pytest.raises(ConfigError) as caught:
        make(*coordinates, **settings).fit(train_rows)
    assert str(caught.value).endswith(NO_OFFSET)


def test_what_only_the_rows_tell(train_rows: pa.Table) -> None:
    rows = with_roles(train_rows)
    with pytest.raises(ConfigError, match="and the offset of these rows varies"):
        make(FOREST).fit(rows)
    near = CustomEffect("trees", estimator=KNeighborsClassifier, features="row")
    with pytest.raises(ConfigError, match=r"takes no weights \(`sample_weight`\), and the rows"):
        make(near).fit(rows.drop_columns("offset"))
    with pytest.raises(ModelError, match="are infinite or NaN; is it sure of some rows, with a"):
        make(FOREST).fit(train_rows)


def test_a_regressor_needs_no_offset_of_its_own(train_rows: pa.Table) -> None:
    linear = CustomEffect("trees", estimator=LinearRegression, features="row")
    make(PER_USER, linear, passes=2, task=LINEAR).fit(with_roles(train_rows))


def test_ones_own_exceptions_keep_their_traceback(train_rows: pa.Table) -> None:
    with pytest.raises(ZeroDivisionError, match="mine"):
        make(trees(estimator=Raising, params={})).fit(train_rows)


@pytest.mark.parametrize("package", ["lightgbm", "xgboost"])
def test_a_missing_package(
    package: str, train_rows: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, params, _ = BOOSTED[package]
    spec = trees(estimator=place.format("Classifier"), params=params)
    make(spec).fit(train_rows).save(tmp_path / "model")
    monkeypatch.setitem(sys.modules, package, None)  # type: ignore[arg-type]
    line = f"needs {package}, which is not installed: pip install 'gdmix[{package}]'"
    with pytest.raises(ConfigError) as caught:
        make(spec).fit(train_rows)
    where = f"coordinates.trees.estimator: {spec.estimator}"
    assert str(caught.value) == f"{where} {line}"
    loaded = MixedModel.load(tmp_path / "model")
    with pytest.raises(ModelError) as refused:
        loaded.predict(train_rows)
    assert str(refused.value).endswith(line)


def test_a_module_that_breaks(train_rows: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    class Breaking:
        def find_spec(self, name: str, *_: Any) -> None:
            if name == "breaking_module":
                raise RuntimeError("at\nimport")

    monkeypatch.setattr(sys, "meta_path", [Breaking(), *sys.meta_path])
    with pytest.raises(ConfigError) as caught:
        make(trees(estimator="breaking_module.Model")).fit(train_rows)
    assert str(caught.value) == (
        "coordinates.trees.estimator: breaking_module can't be imported: RuntimeError: at import"
    )


def test_classes_and_estimators_become_places_and_parameters() -> None:
    given = CustomEffect("g", estimator=LogisticRegression(C=3.0), features="row")
    assert given.estimator == "sklearn.linear_model._logistic.LogisticRegression"
    assert given.params["C"] == 3.0
    assert CustomEffect("g", estimator=lightgbm.LGBMRegressor, features="row").estimator == (
        "lightgbm.LGBMRegressor"
    )

    class Local(OwnLogistic):
        pass

    with pytest.raises(ConfigError, match="define it at the top of a module"):
        CustomEffect("g", estimator=Local, features="row")
    assert isinstance(sys.modules[__name__], ModuleType)
