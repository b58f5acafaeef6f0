"""The factorization beside plain numpy and scipy: objective, gradient, posterior; its files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from glm_factor_oracle import Oracle, posterior_step, unpacked
from numpy.typing import NDArray
from scipy.optimize import minimize

from gdmix import (
    ConfigError,
    DataError,
    Factorization,
    FixedEffect,
    MixedModel,
    ModelError,
    RandomEffect,
    RunConfig,
    memory,
)
from gdmix.config import ColumnRoles, FeatureBag, Task
from gdmix.coordinates.factorization import FactorizationCoordinate
from gdmix.data import entity_blocks
from gdmix.data.dataset import Dataset, load_rows, load_training
from gdmix.data.schema import RowSchema
from gdmix.glm.status import FitStatus
from gdmix.model.factorization import FactorizationModel
from gdmix.model.mixed_model import LOSSES
from gdmix.runs import read_history, run

F64 = NDArray[np.float64]

BAGS = {"person": FeatureBag(columns=("age", "city")), "thing": FeatureBag(columns=("kind",))}
SCHEMA = RowSchema(ColumnRoles(), BAGS, ("user", "item"))
FEATURES = {"user": ["person"], "item": ["thing"]}
TASKS: list[Task] = ["logistic_regression", "linear_regression", "poisson_regression"]


def make_rows(task: Task = "logistic_regression", n: int = 900, seed: int = 0) -> pa.Table:
    """Return rows of 30 users and 20 items with two planted factors, weights and offsets."""
    planted = np.random.default_rng(99)
    u, v = planted.normal(size=(30, 2)), planted.normal(size=(20, 2))
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, 30, n), rng.integers(0, 20, n)
    z = (u[user] * v[item]).sum(axis=1) * (0.5 if task == "poisson_regression" else 1.0)
    offset = rng.normal(scale=0.3, size=n)
    draws = {
        "logistic_regression": lambda: rng.random(n) < 1 / (1 + np.exp(-z - offset)),
        "linear_regression": lambda: z + offset + rng.normal(scale=0.5, size=n),
        "poisson_regression": lambda: rng.poisson(np.exp(z + offset)),
    }
    return pa.table(
        {
            "uid": np.arange(n) + 10_000 * seed,
            "user": user,
            "item": [f"i{i:02}" for i in item],
            "age": (user % 7) / 7.0,
            "city": [f"c{e % 3}" for e in user],
            "kind": [f"k{f % 4}" for f in item],
            "response": draws[task]().astype(float),
            "offset": offset,
            "weight": rng.integers(0, 3, n).astype(float),
            "truth": z,
        }
    )


def load(rows: pa.Table, task: Task = "logistic_regression", mode: Any = "strict") -> Any:
    return load_training(rows, SCHEMA, task, mode)


def bind(
    train: Dataset, task: Task = "logistic_regression", threads: int = 1, **fields: Any
) -> FactorizationCoordinate:
    settings = {"entities": ["user", "item"], "rank": 3, "l2": 1.5, "method": "map"} | fields
    spec = Factorization("taste", **settings)
    return FactorizationCoordinate(spec, train, None, LOSSES[task], threads, seed=3)


def oracle(train: Dataset, task: Task, l2: float, features: bool) -> Oracle:
    """Return the objective in plain numpy."""
    e, f = train.keys["user"].codes, train.keys["item"].codes
    designs = None
    if features:
        first = [np.unique(codes, return_index=True)[1] for codes in (e, f)]
        designs = tuple(
            np.column_stack([np.ones(rows.size), dense(train, bag)[rows]])
            for bag, rows in zip(("person", "thing"), first, strict=True)
        )
    return Oracle(task, e, f, train.response, train.weight, train.offset, l2, 3, designs)


def dense(rows: Dataset, bag: str) -> F64:
    matrix = rows.bags[bag]
    result = np.zeros((matrix.n_rows, matrix.n_columns))
    row = np.repeat(np.arange(matrix.n_rows), np.diff(matrix.indptr))
    result[row, matrix.indices] = matrix.values
    return result


def flat(model: FactorizationModel) -> F64:
    return np.concatenate(
        [np.ravel(a).astype(float) for s in model.sides for a in (s.factors, s.regression)]
    )


def objective(coordinate: FactorizationCoordinate, train: Dataset, model: Any, task: Task) -> float:
    z = train.offset + coordinate.score(model).train
    losses = {
        "logistic_regression": np.logaddexp(0.0, z) - train.response * z,
        "linear_regression": 0.5 * (z - train.response) ** 2,
        "poisson_regression": np.exp(z) - train.response * z,
    }
    return float(train.weight @ losses[task]) + coordinate.penalty(model)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("features", [{}, FEATURES], ids=["plain", "features"])
def test_every_fit_lowers_the_objective_to_an_optimum(task: Task, features: Any) -> None:
    train, _ = load(make_rows(task), task)
    coordinate = bind(train, task, features=features)
    plain = oracle(train, task, 1.5, bool(features))
    model, before = None, np.inf
    for _ in range(4):
        model, report = coordinate.fit(train.offset, model)
        now = objective(coordinate, train, model, task)
        assert now == pytest.approx(plain.value(flat(model)), rel=1e-9)
        assert now <= before + 1e-9 * abs(now)
        before = now
        assert set(report.statuses) == {FitStatus.CONVERGED}
        assert report.models == 50
    assert model is not None
    gradient = plain.gradient(flat(model))
    of_factors = np.concatenate([part.ravel() for part in plain.parts(gradient)[::2]])
    assert report.gradient_norm == pytest.approx(np.linalg.norm(of_factors), rel=1e-5)

    many = bind(train, task, features=features, alternations=600)
    model, report = many.fit(train.offset, model)
    gradient, start = plain.gradient(flat(model)), plain.gradient(np.zeros(flat(model).size) + 0.1)
    assert np.linalg.norm(gradient) < 2e-4 * np.linalg.norm(start)  # factors are rounded to float32
    found = minimize(
        plain.value, flat(model), jac=plain.gradient, method="L-BFGS-B",
        options={"maxiter": 5000, "maxfun": 10_000, "ftol": 1e-15, "gtol": 1e-9},
    )  # fmt: skip
    assert plain.value(flat(model)) == pytest.approx(found.fun, rel=1e-7)


def test_the_oracle_has_the_right_gradient() -> None:
    for task in TASKS:
        train, _ = load(make_rows(task), task)
        plain = oracle(train, task, 1.5, True)
        rng = np.random.default_rng(0)
        x = rng.normal(scale=0.3, size=plain.size)
        step = rng.normal(size=plain.size)
        slope = (plain.value(x + 1e-5 * step) - plain.value(x - 1e-5 * step)) / 2e-5
        assert slope == pytest.approx(plain.gradient(x) @ step, rel=1e-6)


def test_squared_loss_is_alternating_least_squares() -> None:
    task: Task = "linear_regression"
    train, _ = load(make_rows(task), task)
    model, _ = bind(train, task, alternations=1).fit(train.offset, None)
    u, v = (side.factors.astype(float) for side in model.sides)
    e, f = train.keys["user"].codes, train.keys["item"].codes
    for number in range(30):  # the last side that is fitted is the first
        own = e == number
        x, w = v[f[own]], train.weight[own]
        y = train.response[own] - train.offset[own]
        expected = np.linalg.solve((x.T * w) @ x + 1.5 * np.eye(3), x.T @ (w * y))
        np.testing.assert_allclose(u[number], expected, atol=1e-6)


# method: variational


def test_variational_squared_loss_is_variational_matrix_factorization() -> None:
    """Lim and Teh's updates, written out for one entity at a time."""
    task: Task = "linear_regression"
    train, _ = load(make_rows(task), task)
    coordinate = bind(train, task, method="variational", alternations=1, features=FEATURES)
    before, _ = coordinate.fit(train.offset, None)
    after, _ = coordinate.fit(train.offset, before)
    expected = posterior_step(train, before)
    for side, (mean, covariance) in zip(after.sides, expected, strict=True):
        np.testing.assert_allclose(side.factors, mean, atol=2e-5)
        np.testing.assert_allclose(unpacked(side.covariances, 3), covariance, atol=2e-5)


@pytest.mark.parametrize("task", TASKS)
def test_variational_factors_are_where_the_expected_gradient_vanishes(task: Task) -> None:
    train, _ = load(make_rows(task), task)
    coordinate = bind(train, task, method="variational", alternations=100)
    model = None
    for _ in range(3):
        model, report = coordinate.fit(train.offset, model)
    assert model is not None
    # What uncertainty adds is taken at the scores before: at the end these do not move.
    e, f = train.keys["user"].codes, train.keys["item"].codes
    u, v = (side.factors.astype(float) for side in model.sides)
    c = [unpacked(side.covariances, 3) for side in model.sides]
    d1, d2 = oracle(train, task, 1.5, False).derivatives((u[e] * v[f]).sum(axis=1))
    squared = 0.0
    for own, other, x, met, spread in ((e, f, u, v, c[1]), (f, e, v, u, c[0])):
        gradient = 1.5 * x
        np.add.at(gradient, own, d1[:, None] * met[other])
        np.add.at(gradient, own, d2[:, None] * np.einsum("ijk,ik->ij", spread[other], x[own]))
        squared += float((gradient**2).sum())
    assert report.gradient_norm == pytest.approx(np.sqrt(squared), rel=1e-3, abs=1e-6)
    assert np.sqrt(squared) < 1e-3 * np.linalg.norm(d1)
    u_hessian = 1.5 * np.eye(3) + np.zeros((30, 3, 3))
    np.add.at(u_hessian, e, d2[:, None, None] * (v[f][:, :, None] * v[f][:, None] + c[1][f]))
    scale = 1.0
    if task == "linear_regression":
        scale = np.linalg.inv(u_hessian)[0, 0, 0] ** -1 * c[0][0, 0, 0]  # the dispersion
        assert 0.3 < scale < 0.5  # planted: 0.25, times 1.5, the mean of weights that are not 0
    np.testing.assert_allclose(c[0], scale * np.linalg.inv(u_hessian), rtol=1e-3, atol=1e-5)


def test_variational_beats_the_most_probable_factors_on_sparse_rows() -> None:
    train, test = make_rows(n=350, seed=1), make_rows(n=3000, seed=2)
    losses = {}
    for method in ("map", "variational"):
        spec = Factorization("t", entities=["user", "item"], rank=4, l2=1.0, method=method)
        model = MixedModel([spec], passes=15, metrics=["logloss"])
        losses[method] = model.fit(train, validation=test).history_[-1].metrics["logloss"]
    assert losses["variational"] < losses["map"] - 0.02


@pytest.mark.parametrize("task", TASKS)
def test_planted_factors_are_found_and_surplus_ones_fade(task: Task) -> None:
    rows = make_rows(task, n=6000)
    spec = Factorization("t", entities=["user", "item"], rank=5, l2="auto")
    model = MixedModel([spec], task=task, passes=40).fit(rows)
    z = model.predict(rows, kind="components")["t"]
    assert np.corrcoef(z, rows["truth"].to_numpy())[0, 1] > 0.9
    fitted = model.model_.coordinates["t"]
    assert isinstance(fitted, FactorizationModel)
    one, other = fitted.sides
    sizes = np.sort((one.factors**2).mean(axis=0) * (other.factors**2).mean(axis=0))
    assert sizes[2] < 0.06 * sizes[3]  # two of five say what there is to say
    strength = np.sort(one.l2 * other.l2)
    assert strength[2] > 4 * strength[1]


# Rows that lack something


def test_unseen_entities_score_zero_or_what_their_features_say() -> None:
    train, indices = load(make_rows())
    later = make_rows(seed=1).slice(0, 6)
    odd = pa.array([0, 1, 500, 501, 2, 502])
    later = later.set_column(2, "item", pa.array(["i00", "new", "i01", "new", "i02", "i03"]))
    rows = load_rows(
        later.set_column(1, "user", odd), SCHEMA, indices, "logistic_regression", "strict"
    )
    model, _ = bind(train).fit(train.offset, None)
    z = model.score(rows)
    assert (z[[1, 2, 3, 5]] == 0).all()
    assert (z[[0, 4]] != 0).all()

    model, _ = bind(train, features=FEATURES).fit(train.offset, None)
    factors = []
    for side, bag, key in zip(model.sides, ("person", "thing"), ("user", "item"), strict=True):
        own = np.column_stack([np.ones(6), dense(rows, bag)]) @ side.regression
        places = {value: k for k, value in enumerate(side.entities.to_pylist())}
        for i, value in enumerate(rows.keys[key].slice(slice(None)).to_pylist()):
            if value in places:
                own[i] = side.factors[places[value]]
        factors.append(own)
    np.testing.assert_allclose(model.score(rows), (factors[0] * factors[1]).sum(axis=1), atol=1e-5)


def test_a_row_without_an_entity_trains_nothing() -> None:
    rows = make_rows()
    user = np.array(rows["user"].to_numpy())
    lacking = np.arange(len(user)) % 5 == 0
    without = rows.set_column(1, "user", pa.array(user, mask=lacking))
    whole, _ = load(rows.filter(pa.array(~lacking)))
    train, _ = load(without, mode="off")
    model, report = bind(train).fit(train.offset, None)
    expected, _ = bind(whole).fit(whole.offset, None)
    for side, other in zip(model.sides, expected.sides, strict=True):
        np.testing.assert_allclose(side.factors, other.factors, atol=1e-6)
    z = bind(train).score(model).train
    assert (z[lacking] == 0).all()
    assert report.models == 50


def test_estimated_weights_take_ten_passes_by_default(folder: Path) -> None:
    tree = CONFIG.replace("passes: 3\n", "")
    Path("run.yaml").write_text(tree, encoding="utf-8")
    assert configured().passes == 10
    assert configured(coordinates__taste__l2="2").passes == 1


def test_entities_of_several_columns_and_bins() -> None:
    rows = make_rows()
    spec = Factorization(
        "t", entities=[["city", "kind"], {"column": "age", "bins": [0.3, 0.6]}], rank=2
    )
    model = MixedModel([spec], passes=2).fit(rows)
    assert spec.key_columns == ("city+kind", "age[0.3,0.6]")
    fitted = model.model_.coordinates["t"]
    assert isinstance(fitted, FactorizationModel)
    assert [len(side) for side in fitted.sides] == [12, 3]
    assert np.ptp(model.predict(rows)) > 0


# The same result, however it is computed


@pytest.mark.parametrize("method", ["map", "variational"])
def test_threads_change_nothing(method: str) -> None:
    train, _ = load(make_rows())
    results = []
    for threads in (1, 3):
        coordinate = bind(train, threads=threads, method=method, features=FEATURES)
        model, _ = coordinate.fit(train.offset, None)
        results.append(coordinate.fit(train.offset, model)[0])
    np.testing.assert_array_equal(flat(results[0]), flat(results[1]))
    assert results[0].spread == pytest.approx(results[1].spread, rel=1e-12)


def test_rows_beyond_memory_change_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    train, _ = load(make_rows())
    expected, _ = bind(train, method="variational").fit(train.offset, None)
    monkeypatch.setattr(memory, "_SMALLEST_MAPPED", 1)
    monkeypatch.setattr(entity_blocks, "_PART_SHARE", 1e-12)
    with memory.limited(10**9, tmp_path / "scratch"):
        train, _ = load(make_rows())
        model, _ = bind(train, method="variational").fit(train.offset, None)
        np.testing.assert_allclose(flat(model), flat(expected), atol=1e-6)
        del train


def test_another_seed_starts_elsewhere() -> None:
    rows = make_rows()
    spec = Factorization("t", entities=["user", "item"], rank=2, l2=2.0)
    link = [MixedModel([spec], seed=s, passes=40).fit(rows).predict(rows) for s in (0, 0, 1)]
    np.testing.assert_array_equal(link[0], link[1])
    assert 0 < np.abs(link[0] - link[2]).max() < 0.2


def test_tuned_weights_are_used() -> None:
    train, _ = load(make_rows())
    coordinate = bind(train)
    other = Factorization("taste", entities=["user", "item"], rank=3, l2=9.0, method="map")
    expected, _ = bind(train, l2=9.0).fit(train.offset, None)
    model, _ = coordinate.reweighted(other).fit(train.offset, None)
    np.testing.assert_array_equal(flat(model), flat(expected))


# Files and runs

CONFIG = """\
data: {train: train.parquet, validation: validation.parquet}
columns: {uid: uid}
features:
  person: [age, city]
  thing:  [kind]
coordinates:
  taste:
    type: factorization
    entities: [user, item]
    rank: 2
    l2: auto
    features: {user: person, item: [thing]}
  global:   {type: fixed_effect, features: person}
  per-item: {type: random_effect, entity: item}
passes: 3
output: runs/one
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pq.write_table(make_rows(seed=1), tmp_path / "train.parquet")
    pq.write_table(make_rows(seed=2, n=300), tmp_path / "validation.parquet")
    (tmp_path / "run.yaml").write_text(CONFIG, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def configured(**overrides: str) -> RunConfig:
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return RunConfig.from_yaml(Path("run.yaml"), dotted)


def factors_of(path: str) -> FactorizationModel:
    model = MixedModel.load(path).model_.coordinates["taste"]
    assert isinstance(model, FactorizationModel)
    return model


def test_a_saved_model_scores_in_another_process(folder: Path) -> None:
    run(configured())
    model = MixedModel.load("runs/one")
    link = model.predict("validation.parquet", kind="link")
    there = "from gdmix import MixedModel; m = MixedModel.load('runs/one'); "
    there += "print(m.predict('validation.parquet', kind='link').sum().hex())"
    done = subprocess.run([sys.executable, "-c", there], capture_output=True, text=True, check=True)
    assert float.fromhex(done.stdout) == link.sum()
    scores = pq.read_table("runs/one/taste/validation_scores")
    np.testing.assert_allclose(scores["total_score"].to_numpy(), link, atol=1e-12)
    own = model.predict("validation.parquet", kind="components")["taste"]
    np.testing.assert_allclose(scores["score"].to_numpy(), own, atol=1e-12)
    summary = model.model_.summary("taste")
    assert summary["entities"] == {"user": 30, "item": 20}
    assert (summary["rank"], summary["models"]) == (2, 50)


def test_a_stopped_run_goes_on_to_the_same_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gdmix.checkpoint._SHARE", 1e9)
    run(configured(output="runs/whole"))
    seen = 0

    def stop(step: Any) -> None:
        nonlocal seen
        seen += 1
        if seen in (1, 4, 8):
            raise KeyboardInterrupt

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            run(configured(), resume=True, on_step=stop)
    run(configured(), resume=True)
    one, whole = factors_of("runs/one"), factors_of("runs/whole")
    np.testing.assert_allclose(flat(one), flat(whole), atol=1e-7)
    for side, other in zip(one.sides, whole.sides, strict=True):
        np.testing.assert_allclose(side.covariances, other.covariances, atol=1e-7)
        np.testing.assert_allclose(side.l2, other.l2, rtol=1e-6)
    steps = zip(read_history(Path("runs/one")).steps, read_history(Path("runs/whole")).steps,
                strict=True)  # fmt: skip
    for step, wanted in steps:
        assert step["objective"] == pytest.approx(wanted["objective"], rel=1e-9)


def test_a_run_starts_from_an_earlier_model(folder: Path) -> None:
    run(configured(passes="8"))
    before = factors_of("runs/one")
    later = make_rows(seed=4)
    kept = (later["user"].to_numpy() < 20) & (later["item"].to_numpy(zero_copy_only=False) != "i03")
    kind = pa.array(
        [f"k{int(i[1:]) % 4}" if i != "i05" else "other" for i in later["item"].to_pylist()]
    )
    later = later.set_column(later.column_names.index("kind"), "kind", kind)
    pq.write_table(later.filter(pa.array(kept)), "train.parquet")
    first = run(configured(output="runs/two", initial_model="runs/one"))
    cold = run(configured(output="runs/cold"))
    assert first.steps[0]["metrics"]["auc"] > cold.steps[0]["metrics"]["auc"] + 0.02
    after = factors_of("runs/two")
    for side, old in zip(after.sides, before.sides, strict=True):
        assert side.entities.to_pylist() == old.entities.to_pylist()
        changed = (side.factors != old.factors).any(axis=1)
        own = np.array(
            [e < 20 if side.key == "user" else e != "i03" for e in side.entities.to_pylist()]
        )
        np.testing.assert_array_equal(changed, own)  # without rows they stay as they are
        np.testing.assert_array_equal(side.covariances[~own], old.covariances[~own])


def test_a_locked_factorization_stays_as_it_is(folder: Path) -> None:
    run(configured())
    pq.write_table(make_rows(seed=4, n=200), "train.parquet")
    history = run(
        configured(output="runs/two", initial_model="runs/one", coordinates__taste__locked="true")
    )
    assert {s["coordinate"] for s in history.steps} == {"global", "per-item"}
    before, after = factors_of("runs/one"), factors_of("runs/two")
    np.testing.assert_array_equal(flat(before), flat(after))
    scores = pq.read_table("runs/two/taste/validation_scores")["score"].to_numpy()
    own = MixedModel.load("runs/one").predict("validation.parquet", kind="components")["taste"]
    np.testing.assert_allclose(scores, own, atol=1e-12)


def test_factors_can_be_looked_at(folder: Path) -> None:
    run(configured())
    model = MixedModel.load("runs/one")
    fitted = factors_of("runs/one")
    table = model.coefficients("taste", entity=7)
    assert table["name"].to_pylist() == ["user", "user"]
    assert table["term"].to_pylist() == ["0", "1"]
    np.testing.assert_array_equal(table["value"].to_numpy(), fitted.sides[0].factors[7])
    assert model.coefficients("taste", entity="i03")["name"].to_pylist() == ["item", "item"]
    assert len(model.coefficients("taste")) == 100
    largest = model.model_.largest_coefficients("taste", None, 3)["value"].to_numpy()
    sizes = np.concatenate([np.abs(side.factors).ravel() for side in fitted.sides])
    np.testing.assert_array_equal(np.abs(largest), np.sort(sizes)[:-4:-1])
    with pytest.raises(ModelError, match="neither user nor item has factors of 'nobody'"):
        model.coefficients("taste", entity="nobody")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "factors-0.parquet").unlink(), "factors-0.parquet: damaged or missing"),
        (lambda p: (p / "factors-1.parquet").write_bytes(b"no"), "factors-1.parquet: damaged"),
        (
            lambda p: pq.write_table(
                pa.table({"coefficients": pa.array([[1.0, 2.0]], pa.list_(pa.float64(), 2))}),
                p / "features-0.parquet",
            ),
            "'coefficients' is not of the size that the manifest says",
        ),
    ],
)
def test_a_damaged_model(folder: Path, damage: Any, message: str) -> None:
    run(configured())
    damage(folder / "runs/one/taste/models")
    with pytest.raises(ModelError, match=message):
        MixedModel.load("runs/one")


# What a user can get wrong


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"entities": ["u"]}, "entities: should be a list of two entities"),
        ({"entities": "u"}, "entities: should be a list of two entities"),
        ({"entities": ["u", "u"]}, "entities: 'u' is listed twice"),
        ({"entities": ["u", ["a"]]}, "entities: needs two columns, or one without brackets"),
        ({"rank": 0}, "rank: should be greater than or equal to 1"),
        ({"l2": 0}, "l2: should be a positive number, or auto"),
        ({"l2": "best"}, "l2: should be a positive number, or auto"),
        ({"l2": "auto", "method": "map"}, "l2: auto takes method: variational"),
        ({"features": {"w": "x"}}, "features: 'w' is not one of the entities u and v"),
        ({"features": {"u": ["x", "x"]}}, "features.u: bag 'x' is listed twice"),
        ({"intercept": True}, "intercept: unknown key"),
    ],
)
def test_mistakes_of_a_spec(fields: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Factorization("t", **({"entities": ["u", "v"]} | fields))
    assert str(caught.value).startswith(f"Factorization('t'): {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"solver": "joint"}, "coordinates.t: solver 'joint' fits fixed and random effects only"),
        ({"features": {}}, "coordinates.t.features: no feature bag 'x'"),
    ],
)
def test_mistakes_of_a_model(parameters: Any, message: str) -> None:
    spec = Factorization("t", entities=["user", "item"], features={"user": "x"})
    settings = {"features": {"x": ["age"]}} | parameters
    with pytest.raises(ConfigError, match=message):
        MixedModel([spec, FixedEffect("g")], **settings).fit(make_rows())


def test_a_locked_one_needs_a_model() -> None:
    spec = Factorization("t", entities=["user", "item"], locked=True)
    with pytest.raises(ConfigError, match="coordinates.t: locked needs initial_model"):
        MixedModel([spec, RandomEffect("r", entity="user")]).fit(make_rows())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 3}, "coordinates.t: rank is 3, in initial_model it is 2"),
        ({"entities": ["item", "user"]}, r"entities is \[item, user\], in initial_model it is"),
        ({"features": {"user": "p"}}, r"features.user is \[p\], in initial_model it is \[\]"),
    ],
)
def test_an_earlier_model_that_does_not_fit(fields: Any, message: str, tmp_path: Path) -> None:
    settings = {"entities": ["user", "item"], "rank": 2}
    bags = {"p": ["age"]}
    spec = Factorization("t", **settings)
    MixedModel([spec, FixedEffect("g")]).fit(make_rows()).save(tmp_path / "m")
    other = Factorization("t", **(settings | fields))
    with pytest.raises(ConfigError, match=message):
        MixedModel([other, FixedEffect("g")], features=bags, initial_model=tmp_path / "m").fit(
            make_rows()
        )


def test_entities_of_another_type(tmp_path: Path) -> None:
    spec = Factorization("t", entities=["user", "item"], rank=2)
    model = MixedModel([spec]).fit(make_rows())
    rows = make_rows()
    texts = rows.set_column(1, "user", rows["user"].cast(pa.string()))
    with pytest.raises(DataError, match="entity column 'user' is large_string in these rows"):
        model.predict(texts)
