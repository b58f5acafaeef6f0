"""Variances of coefficients, standard errors of scores, draws, and how models keep them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import statsmodels.api as sm
from numpy.typing import NDArray

from gdmix import (
    ConfigError,
    Factorization,
    FixedEffect,
    MixedModel,
    ModelError,
    RandomEffect,
    cli,
)
from gdmix.config import AvroLayout, ModelConfig
from gdmix.convert import convert_model
from gdmix.data import avro
from gdmix.model.any_model import read_any_model
from gdmix.model.coefficients import FixedCoefficients, RandomCoefficients
from gdmix.model.linear import LinearModel
from gdmix.model.store import read_model, write_model

F64 = NDArray[np.float64]
Cli = Callable[..., tuple[int, str, str]]

FAMILIES = {
    "linear_regression": sm.families.Gaussian(),
    "logistic_regression": sm.families.Binomial(),
    "poisson_regression": sm.families.Poisson(),
}
each_task = pytest.mark.parametrize("task", FAMILIES)
NAMES = ["a", "b", "c"]
N, ENTITIES = 800, 12


def make_rows(task: str, n: int = N, seed: int = 0, noise: float = 0.7) -> dict[str, Any]:
    """Rows of a fixed effect and a random one, with weights and offsets."""
    rng = np.random.default_rng(seed)
    user = rng.integers(0, ENTITIES, n)
    x = rng.normal(size=(n, 3)).astype(np.float32)
    x[:, 2] += 0.6 * x[:, 1] + 0.5
    x[rng.random(n) < 0.3, 1] = 0.0
    x = x.astype(float)
    offset = 0.2 * rng.normal(size=n)
    level, slope = 0.5 * rng.normal(size=(2, ENTITIES))
    z = 0.3 + x @ [0.5, -0.2, 0.1] + level[user] + slope[user] * x[:, 0] + offset
    if task == "linear_regression":
        y = z + noise * rng.normal(size=n)
    elif task == "logistic_regression":
        y = (rng.random(n) < 1 / (1 + np.exp(-z))).astype(float)
    else:
        y = rng.poisson(np.exp(z)).astype(float)
    return {
        "uid": np.arange(n),
        "user": user,
        **dict(zip(NAMES, x.T, strict=True)),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(x.astype(np.float32).ravel()), 3),
        "offset": offset,
        "weight": rng.uniform(0.5, 2.0, n),
        "response": y,
    }


def design_of(rows: dict[str, Any], names: list[str] = NAMES) -> F64:
    return np.column_stack([np.ones(len(rows["uid"])), *(rows[name] for name in names)])


def make(*coordinates: Any, **parameters: Any) -> MixedModel:
    return MixedModel(
        list(coordinates),
        **{"features": {"f": NAMES, "dense": ["vector"], "one": ["a"]}, **parameters},
    )


def linear(model: MixedModel, name: str) -> LinearModel:
    return model.model_.coordinate(name)


def second_derivative(task: str, z: F64) -> F64:
    if task == "linear_regression":
        return np.ones_like(z)
    mean = np.exp(z) if task == "poisson_regression" else 1 / (1 + np.exp(-z))
    return mean if task == "poisson_regression" else mean * (1 - mean)


GLOBAL = FixedEffect("global", features="f", l2=0.5, save_hessian=True, variance="full")
PER_USER = RandomEffect("per-user", entity="user", features="one", l2=2.0, save_hessian=True)
SIMPLE = RandomEffect("per-user", entity="user", features="one", l2=2.0, variance="simple")


# Variances


class TestVariances:
    @each_task
    def test_of_a_fixed_effect_are_statsmodels(self, task: str) -> None:
        rows = make_rows(task)
        x = design_of(rows)
        spec = FixedEffect("global", features="f", l2=0.0, tolerance=1e-12, save_hessian=True)
        full = spec.model_copy(update={"variance": "full"})
        theirs = sm.GLM(
            rows["response"], x, family=FAMILIES[task], offset=rows["offset"],
            var_weights=rows["weight"],
        ).fit(tol=1e-14)  # fmt: skip
        own = linear(make(full, task=task).fit(rows), "global")
        np.testing.assert_allclose(own.coefficients.values, theirs.params, rtol=1e-7)
        np.testing.assert_allclose(own.coefficients.variances, np.diag(theirs.cov_params()), 1e-6)
        assert own.dispersion == pytest.approx(theirs.scale, rel=1e-9)
        simple = linear(make(spec, task=task).fit(rows), "global")
        hessian = np.linalg.inv(theirs.cov_params() / theirs.scale)
        found = simple.coefficients.hessian
        np.testing.assert_allclose(found, hessian[np.tril_indices(4)], rtol=1e-6)
        expected = theirs.scale / np.diag(hessian)
        assert simple.dispersion == own.dispersion
        np.testing.assert_allclose(simple.coefficients.variances, expected, rtol=1e-6)

    @each_task
    @pytest.mark.parametrize("normalization", ["none", "scale_by_std", "scale_by_max"])
    def test_of_a_penalised_one_are_numpys(self, task: str, normalization: str) -> None:
        rows = make_rows(task)
        x = design_of(rows)
        spec = FixedEffect(
            "global", features="f", l2=30.0, intercept_l2=2.0, penalty_factors={"b": 4.0},
            normalization=normalization, variance="full", save_hessian=True, tolerance=1e-12,
        )  # fmt: skip
        model = make(spec, task=task).fit(rows)
        scales = {"none": np.ones(4), "scale_by_std": x.std(axis=0, ddof=1),
                  "scale_by_max": np.abs(x).max(axis=0)}  # fmt: skip
        penalty = np.append(2.0, 30.0 * np.array([1.0, 4.0, 1.0]) * scales[normalization][1:] ** 2)
        own = linear(model, "global")
        z = model.predict(rows, kind="link")
        weights = rows["weight"] * second_derivative(task, z)
        hessian = (x.T * weights) @ x + np.diag(penalty)
        inverse = np.linalg.inv(hessian)
        if task == "linear_regression":
            squares = rows["weight"] @ (rows["response"] - z) ** 2
            freedom = 4 - np.trace(inverse @ np.diag(penalty))
            assert own.dispersion == pytest.approx(squares / (N - freedom), rel=1e-9)
        found = own.coefficients
        np.testing.assert_allclose(found.hessian, hessian[np.tril_indices(4)], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(found.variances, own.dispersion * np.diag(inverse), rtol=1e-6)

    @each_task
    @pytest.mark.parametrize("bag", ["f", "dense"])
    @pytest.mark.parametrize("variance", ["simple", "full"])
    def test_of_a_random_effect_are_numpys(self, task: str, bag: str, variance: str) -> None:
        rows = make_rows(task)
        spec = RandomEffect(
            "per-user", entity="user", features=bag, l2=3.0, intercept_l2=1.0,
            normalization="standardize", variance=variance, tolerance=1e-12,
        )  # fmt: skip
        model = make(spec, task=task).fit(rows)
        x = design_of(rows)
        own = linear(model, "per-user")
        assert isinstance(own.coefficients, RandomCoefficients)
        z = model.predict(rows, kind="link")
        weights = rows["weight"] * second_derivative(task, z)
        centre = np.append(1.0, x[:, 1:].mean(axis=0))
        penalty = np.outer(centre, centre) + np.diag(
            np.append(0.0, 3.0 * x[:, 1:].var(axis=0, ddof=1))
        )
        freedom = 0.0
        expected = []
        for user in range(ENTITIES):
            mine = rows["user"] == user
            hessian = (x[mine].T * weights[mine]) @ x[mine] + penalty
            inverse = np.linalg.inv(hessian)
            simple = 1 / np.diag(hessian)
            expected.append(np.diag(inverse) if variance == "full" else simple)
            freedom += 4 - (
                np.trace(inverse @ penalty) if variance == "full" else np.diag(penalty) @ simple
            )
        if task == "linear_regression":
            squares = rows["weight"] @ (rows["response"] - z) ** 2
            assert own.dispersion == pytest.approx(squares / (N - freedom), rel=1e-6)
        found = own.coefficients.variances / own.dispersion
        np.testing.assert_allclose(found, np.concatenate(expected), rtol=1e-5)

    def test_dispersion_is_of_all_coordinates(self) -> None:
        rows = make_rows("linear_regression", 4000)
        model = make(GLOBAL, PER_USER, task="linear_regression", passes=20).fit(rows)
        expected = 0.49 * rows["weight"].mean()  # the noise does not know of the weights
        for name in ("global", "per-user"):
            assert linear(model, name).dispersion == pytest.approx(expected, rel=0.05)

    @pytest.mark.parametrize("setting", [{"variance": "full"}, {"save_hessian": True}])
    @pytest.mark.parametrize("kind", [FixedEffect, RandomEffect])
    def test_too_large_a_matrix(self, setting: dict[str, Any], kind: Any) -> None:
        rows = make_rows("logistic_regression", 40)
        of = {"entity": "user"} if kind is RandomEffect else {}
        features: dict[str, Any] = {"f": {"columns": NAMES, "hash_buckets": 100_000}}
        if kind is RandomEffect:  # an entity has the columns that its rows have
            rows["vector"] = pa.array(np.ones((40, 20_001), np.float32).tolist(),
                                      pa.list_(pa.float32(), 20_001))  # fmt: skip
            features = {"f": ["vector"]}
        model = MixedModel([kind("wide", features="f", **of, **setting)], features=features)
        side, size = ("20,002", r"[0-9.]+") if of else ("100,001", r"80\.0")
        key = "variance: full" if "variance" in setting else "save_hessian"
        text = rf"coordinates\.wide: {key} would take {size} GB for matrices of up to {side} x "
        with pytest.raises(ConfigError, match=text + rf"{side}; use variance: simple"):
            model.fit(rows)

    def test_a_wide_coordinate_without_variances_is_in_no_ones_way(self) -> None:
        rows = make_rows("linear_regression", 200)
        wide = {"columns": NAMES, "hash_buckets": 100_000}
        model = MixedModel(
            [
                FixedEffect("wide", features="f"),
                RandomEffect("own", entity="user", variance="full"),
            ],
            features={"f": wide},
            task="linear_regression",
        ).fit(rows)
        assert linear(model, "own").coefficients.variances is not None
        assert linear(model, "wide").coefficients.variances is None

    def test_threads_do_not_matter(self) -> None:
        rows = make_rows("linear_regression")
        one, three = (
            make(GLOBAL, PER_USER, task="linear_regression", threads=k).fit(rows) for k in (1, 3)
        )
        for name in ("global", "per-user"):
            a, b = linear(one, name), linear(three, name)
            np.testing.assert_allclose(a.coefficients.variances, b.coefficients.variances, 1e-12)


# Standard errors


def covariance_of(model: LinearModel, entity: int | None = None) -> F64:
    """The covariance of a model's coefficients by numpy, from what it has saved."""
    c = model.coefficients
    if isinstance(c, FixedCoefficients):
        lower, variances, d = c.hessian, c.variances, c.values.size
    else:
        own = slice(c.indptr[entity], c.indptr[entity + 1])
        variances, d = c.variances[own], own.stop - own.start
        lower = None
        if c.hessians is not None and c.hessian_ptr is not None:
            lower = c.hessians[c.hessian_ptr[entity] : c.hessian_ptr[entity + 1]]
    if lower is None or not lower.size:
        return np.diag(variances)
    matrix = np.zeros((d, d))
    matrix[np.tril_indices(d)] = lower
    matrix = matrix + np.tril(matrix, -1).T
    return model.dispersion * np.linalg.inv(matrix)


class TestStandardErrors:
    @each_task
    @pytest.mark.parametrize("per_user", [PER_USER, SIMPLE], ids=["hessian", "simple"])
    def test_are_those_of_the_delta_method(self, task: str, per_user: RandomEffect) -> None:
        rows = make_rows(task)
        model = make(GLOBAL, per_user, task=task, passes=3).fit(rows)
        new = make_rows(task, 60, seed=5)
        new["user"] = new["user"] + 5  # some are unseen
        x = design_of(new)
        expected = np.einsum("ij,jk,ik->i", x, covariance_of(linear(model, "global")), x)
        for i, user in enumerate(new["user"]):
            if user < ENTITIES:
                cov = covariance_of(linear(model, "per-user"), int(user))
                expected[i] += x[i, :2] @ cov @ x[i, :2]
        found = model.predict(new, kind="std_error")
        np.testing.assert_allclose(found, np.sqrt(expected), rtol=1e-9)

    def test_of_dense_bags_are_those_of_plain_ones(self) -> None:
        rows = make_rows("logistic_regression")
        settings: dict[str, Any] = {"save_hessian": True}
        found = []
        for bag in ("f", "dense"):
            coordinates = (
                FixedEffect("global", features=bag, **settings),
                RandomEffect("per-user", entity="user", features=bag, **settings),
            )
            found.append(make(*coordinates).fit(rows).predict(rows, kind="std_error"))
        np.testing.assert_allclose(*found, rtol=1e-6)

    def test_without_an_intercept_there_is_no_error_of_it(self) -> None:
        rows = make_rows("logistic_regression")
        zero = {**rows, "a": np.zeros(N)}
        settings: dict[str, Any] = {"features": "one", "intercept": False, "save_hessian": True}
        model = make(
            FixedEffect("global", **settings, regularize_intercept=True),
            RandomEffect("per-user", entity="user", **settings),
        ).fit(rows)
        np.testing.assert_array_equal(model.predict(zero, kind="std_error"), 0.0)
        assert model.predict(rows, kind="std_error").max() > 0.05
        drawn = model.predict(zero, kind="sample", seed=1)
        np.testing.assert_allclose(drawn, model.predict(zero), rtol=1e-14)

    @pytest.mark.parametrize("task", ["linear_regression", "logistic_regression"])
    def test_cover_the_truth_as_often_as_they_say(self, task: str) -> None:
        """Of entities that are as different as the L2 weight says, 95 in 100 rows are covered."""
        rng = np.random.default_rng(8)
        entities, per_entity = 2000, 15
        user = np.repeat(np.arange(entities), per_entity)
        x = rng.normal(size=user.size).astype(np.float32).astype(float)
        level, slope = rng.normal(size=(2, entities)) / np.sqrt(2.0)  # L2 weight 2
        truth = level[user] + slope[user] * x
        y = truth + rng.normal(size=user.size)
        if task == "logistic_regression":
            y = (rng.random(user.size) < 1 / (1 + np.exp(-truth))).astype(float)
        rows = {"user": user, "a": x, "response": y}
        model = MixedModel(
            [RandomEffect("own", entity="user", features="f", l2=2.0, save_hessian=True)],
            features={"f": ["a"]}, task=task,
        ).fit(rows)  # fmt: skip
        error = model.predict(rows, kind="std_error")
        covered = np.abs(model.predict(rows, kind="link") - truth) < 1.96 * error
        assert covered.mean() == pytest.approx(0.95, abs=0.015)  # sampling: 0.004

    def test_of_a_fixed_effect_are_those_of_repeated_samples(self) -> None:
        """The spread of estimates over new responses is what one of them says of itself."""
        rows = make_rows("linear_regression", 300)
        rows["weight"] = np.ones(300)
        rng = np.random.default_rng(0)
        mean = 0.5 * rows["a"] - rows["b"]
        spec = FixedEffect("global", features="f", l2=0.0, save_hessian=True)
        links, errors = [], []
        for _ in range(60):
            rows["response"] = mean + rng.normal(size=300)
            model = make(spec, task="linear_regression").fit(rows)
            links.append(model.predict(rows, kind="link"))
            errors.append(model.predict(rows, kind="std_error"))
        ratio = np.std(links, axis=0).mean() / np.mean(errors)
        assert ratio == pytest.approx(1.0, abs=0.15)


# Draws


class TestSamples:
    @pytest.fixture
    def model(self) -> MixedModel:
        rows = make_rows("linear_regression", 300)
        return make(GLOBAL, PER_USER, task="linear_regression", passes=3).fit(rows)

    def test_mean_and_variance_are_those_of_the_model(self, model: MixedModel) -> None:
        rows = make_rows("linear_regression", 40, seed=3)
        rows["user"] = rows["user"] + 4
        n = 400
        draws = np.array([model.predict(rows, kind="sample", seed=seed) for seed in range(n)])
        error = model.predict(rows, kind="std_error")
        moved = (draws.mean(axis=0) - model.predict(rows)) / error
        assert np.abs(moved).max() < 4 / np.sqrt(n)
        np.testing.assert_allclose(draws.std(axis=0) / error, 1.0, atol=4 / np.sqrt(2 * n))

    def test_is_the_same_draw_for_any_rows(self, model: MixedModel, tmp_path: Path) -> None:
        rows = pa.table(make_rows("linear_regression", 100, seed=3))
        whole = model.predict(rows, kind="sample", seed=7)
        order = np.random.default_rng(0).permutation(100)
        shuffled = model.predict(rows.take(pa.array(order)), kind="sample", seed=7)
        np.testing.assert_array_equal(shuffled, whole[order])
        parts = [model.predict(rows.slice(k, 10), kind="sample", seed=7) for k in range(0, 100, 10)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
        model.save(tmp_path / "model")
        again = MixedModel.load(tmp_path / "model")
        np.testing.assert_array_equal(again.predict(rows, kind="sample", seed=7), whole)
        assert not np.isclose(model.predict(rows, kind="sample", seed=8), whole, rtol=1e-6).any()

    def test_is_a_mean_response(self) -> None:
        rows = make_rows("logistic_regression")
        model = make(GLOBAL, SIMPLE).fit(rows)
        probability = model.predict(rows, kind="sample", seed=1)
        assert 0 < probability.min() < probability.max() < 1
        assert np.corrcoef(probability, model.predict(rows))[0, 1] > 0.8

    def test_of_entities_that_are_all_unseen(self, model: MixedModel) -> None:
        rows = make_rows("linear_regression", 10)
        rows["user"] = rows["user"] + 1000
        assert np.isfinite(model.predict(rows, kind="sample", seed=1)).all()

    def test_refusals(self, model: MixedModel) -> None:
        rows = make_rows("linear_regression", 10)
        with pytest.raises(ConfigError, match=r"kind 'sample' needs a seed: predict\(X, kind="):
            model.predict(rows, kind="sample")
        for kind in ("response", "link", "components", "std_error"):
            with pytest.raises(ConfigError, match="a seed is for kind 'sample' alone; remove it"):
                model.predict(rows, kind=kind, seed=1)
        for seed in (1.5, "1", True):
            with pytest.raises(ConfigError, match=r"seed .* is no whole number"):
                model.predict(rows, kind="sample", seed=seed)  # type: ignore[call-overload]
        with pytest.raises(ConfigError, match="none of response, link, components, std_error, sam"):
            model.predict(rows, kind="error")  # type: ignore[call-overload]
        np.testing.assert_array_equal(
            model.predict(rows, kind="sample", seed=np.int64(3)),
            model.predict(rows, kind="sample", seed=3),
        )


@pytest.mark.parametrize("options", [{"kind": "std_error"}, {"kind": "sample", "seed": 1}])
class TestWithoutVariances:
    def test_one_coordinate_lacks_them(self, options: Any) -> None:
        rows = make_rows("logistic_regression")
        plain = RandomEffect("per-user", entity="user")
        text = r"^coordinate 'per-user': no variances; train with `variance: full` or `save_hess"
        with pytest.raises(ModelError, match=text):
            make(GLOBAL, plain).fit(rows).predict(rows, **options)
        with pytest.raises(ModelError, match="^coordinates 'global', 'per-user': no variances; "):
            make(FixedEffect("global"), plain).fit(rows).predict(rows, **options)

    def test_other_kinds_count_as_exact(self, options: Any, caplog: Any) -> None:
        rows = make_rows("logistic_regression")
        rows["item"] = rows["uid"] % 7
        latent = Factorization("latent", entities=["user", "item"], rank=1, l2=1.0)
        model = make(GLOBAL, latent).fit(rows)
        found = model.predict(rows, **options)
        text = "uncertainty is of coefficients; taken as known exactly: 'latent'"
        assert [r.message for r in caplog.records if r.levelname == "WARNING"] == [text]
        assert found.std() > 0
        alone = make(latent).fit(rows)
        with pytest.raises(ModelError, match=r"no coordinate has coefficients with var.*: latent"):
            alone.predict(rows, **options)


# The command line


@pytest.fixture
def gdmix(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run the program in this process; return its exit code, stdout and stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.app(list(arguments), prog_name="gdmix")
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


def test_score_and_inspect(tmp_path: Path, gdmix: Cli, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    rows = make_rows("poisson_regression", 120)
    pq.write_table(pa.table(rows), "rows.parquet")
    model = make(GLOBAL, PER_USER, task="poisson_regression").fit(rows)
    model.save("model")
    code, _, err = gdmix(
        "score", "model", "rows.parquet", "-o", "s.parquet", "--std-error", "--sample", "5",
        "--components",
    )  # fmt: skip
    assert (code, err) == (0, "")
    scores = pq.read_table("s.parquet")
    error, drawn = model.predict(rows, kind="std_error"), model.predict(rows, "sample", seed=5)
    np.testing.assert_array_equal(scores["std_error"], error)
    np.testing.assert_allclose(scores["sample"], drawn, rtol=1e-14)
    link = model.predict(rows, kind="link")
    np.testing.assert_allclose(scores["total_score"], link, rtol=1e-12)

    code, out, _ = gdmix("inspect", "model", "--coordinate", "global")
    assert code == 0
    assert "variance" in out
    code, out, _ = gdmix("inspect", "model", "-c", "per-user", "-e", "3", "--json")
    table = json.loads(out)
    assert {row["name"] for row in table} == {"(INTERCEPT)", "a"}
    assert all(row["variance"] > 0 for row in table)
    whole = model.coefficients("per-user")
    assert whole.column_names == ["entity", "name", "term", "value", "variance"]
    one = model.coefficients("per-user", entity=3)
    coefficients = linear(model, "per-user").coefficients
    np.testing.assert_array_equal(whole["variance"], coefficients.variances)
    np.testing.assert_array_equal(one["variance"], coefficients.variances[6:8])

    make(FixedEffect("global", features="f"), task="poisson_regression").fit(rows).save("plain")
    code, _, err = gdmix("score", "plain", "rows.parquet", "-o", "p.parquet", "--std-error")
    assert code == 2
    assert "coordinate 'global': no variances" in err
    assert not Path("p.parquet").exists()
    assert "variance" not in gdmix("inspect", "plain", "-c", "global")[1]


# Models in files


def assert_same(a: LinearModel, b: LinearModel, *, hessians: bool = True) -> None:
    assert a.dispersion == b.dispersion
    for name in ("values", "variances", *(("hessian", "hessian_ptr", "hessians") * hessians)):
        x, y = getattr(a.coefficients, name, None), getattr(b.coefficients, name, None)
        np.testing.assert_allclose(x, y, rtol=1e-15) if x is not None else None
        assert (x is None) == (y is None)


class TestFiles:
    @pytest.fixture
    def model(self) -> MixedModel:
        rows = make_rows("linear_regression")
        return make(GLOBAL, PER_USER, task="linear_regression").fit(rows)

    def test_parquet(self, model: MixedModel, tmp_path: Path) -> None:
        model.save(tmp_path / "model")
        back = read_model(tmp_path / "model")
        for name in back.coordinates:
            assert_same(back.coordinate(name), linear(model, name))
            assert back.coordinate(name).dispersion != 1.0
        rows = make_rows("linear_regression", 50, seed=9)
        again = MixedModel.load(tmp_path / "model").predict(rows, kind="std_error")
        np.testing.assert_array_equal(again, model.predict(rows, kind="std_error"))

    @pytest.mark.parametrize("partitions", [1, 3])
    def test_avro_of_a_run_has_variances(
        self, model: MixedModel, tmp_path: Path, partitions: int
    ) -> None:
        write_model(model.model_, tmp_path, AvroLayout(partitions={"per-user": partitions}))
        back = read_model(tmp_path)
        for name in back.coordinates:
            assert_same(back.coordinate(name), linear(model, name), hessians=False)
            assert getattr(back.coordinate(name).coefficients, "hessian", None) is None

    def test_photon_keeps_the_variance_of_what_is_cut(
        self, model: MixedModel, tmp_path: Path
    ) -> None:
        """A coefficient that is surely zero is left out of the means, and no prior is lost."""
        own = linear(model, "per-user").coefficients
        assert isinstance(own, RandomCoefficients)
        cut = float(np.median(np.abs(own.values[own.columns > 0])))
        model.save(tmp_path / "model")
        convert_model(tmp_path / "model", tmp_path / "photon", "photon", cut=cut)
        files = sorted((tmp_path / "photon/random-effect/per-user/coefficients").glob("*.avro"))
        records = [r for f in files for b in avro.read_batches(f) for r in b.to_pylist()]
        assert sum(len(r["means"]) for r in records) == own.values.size - ENTITIES // 2
        assert sum(len(r["variances"]) for r in records) == own.values.size
        description = ModelConfig.of(
            coordinates=[GLOBAL, PER_USER], features={"f": NAMES, "one": ["a"]}
        )
        back = read_any_model(tmp_path / "photon", description).coordinate("per-user").coefficients
        assert isinstance(back, RandomCoefficients)
        kept = (np.abs(own.values) > cut) | (own.columns == 0)
        np.testing.assert_array_equal(back.values, own.values * kept)
        # As Photon ML has them: without the dispersion.
        scaled = back.variances * linear(model, "per-user").dispersion
        np.testing.assert_allclose(scaled, own.variances, rtol=1e-15)

    def test_a_model_without_variances_has_null(self, tmp_path: Path) -> None:
        rows = make_rows("logistic_regression")
        plain = make(FixedEffect("global", features="f")).fit(rows)
        write_model(plain.model_, tmp_path, AvroLayout())
        (batch,) = avro.read_batches(tmp_path / "global/models/global_model.avro")
        assert batch.column("variances").to_pylist() == [None]
        assert read_model(tmp_path).coordinate("global").coefficients.variances is None

    def test_some_entities_without_variances(self, model: MixedModel, tmp_path: Path) -> None:
        own = linear(model, "per-user")
        own.coefficients.variances[4:8] = 0.0  # entities 2 and 3, as those of an earlier model
        write_model(model.model_, tmp_path, AvroLayout())
        (batch,) = avro.read_batches(tmp_path / "per-user/models/part-00000.avro")
        nulls = [v is None for v in batch.column("variances").to_pylist()]
        assert np.flatnonzero(nulls).tolist() == [2, 3]
        assert_same(read_model(tmp_path).coordinate("per-user"), own, hessians=False)

    @pytest.mark.parametrize(
        ("variances", "text"),
        [
            ([("a", -1.0)], "a variance is negative"),
            ([("a", float("nan"))], "model 'global model' has a variance that is not finite"),
            ([("a", 1.0), ("a", 2.0)], "has two variances of feature 'a'"),
        ],
    )
    def test_what_is_no_variance(self, variances: Any, text: str, tmp_path: Path) -> None:
        from gdmix.data.avro.write import write_batches
        from gdmix.model.photon_avro import _MODEL, read_models

        values = [[{"name": n, "term": "", "value": v} for n, v in variances]]
        batch = pa.RecordBatch.from_pydict({
            "modelId": ["global model"],
            "means": [[{"name": "a", "term": "", "value": 1.0}]],
            "variances": values,
        })  # fmt: skip
        write_batches(tmp_path / "m.avro", _MODEL, [batch])
        with pytest.raises(ModelError, match=text):
            read_models([tmp_path / "m.avro"])
