"""Incremental training: an earlier model as a Gaussian prior."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from scipy import optimize

from gdmix import ConfigError, FixedEffect, MixedModel, ModelError, RandomEffect, RunConfig
from gdmix.config import AvroLayout
from gdmix.convert import convert_model
from gdmix.model.coefficients import FixedCoefficients, RandomCoefficients
from gdmix.model.linear import LinearModel
from gdmix.model.store import read_model, write_model
from gdmix.runs import files_of, run

F64 = NDArray[np.float64]

TASKS = ("linear_regression", "logistic_regression", "poisson_regression")
each_task = pytest.mark.parametrize("task", TASKS)
ENTITIES = 10
FEATURES = {"f": ["a", "b", "kind"]}


def make_rows(task: str, n: int, seed: int, *, kinds: str = "uvw", first: int = 0) -> pa.Table:
    """Rows of users `first` to `first` + 9; all rows are of one truth."""
    truth = np.random.default_rng(99)
    level, slope = 0.5 * truth.normal(size=(2, 100))
    rng = np.random.default_rng(seed)
    user = rng.integers(first, first + ENTITIES, n)
    x = rng.normal(size=(n, 2)).astype(np.float32).astype(float)
    kind = rng.choice(list(kinds), n)
    z = 0.3 + x @ [0.5, -0.2] + level[user] + slope[user] * x[:, 0] + 0.4 * (kind == "v")
    if task == "linear_regression":
        y = z + rng.normal(size=n)
    elif task == "logistic_regression":
        y = (rng.random(n) < 1 / (1 + np.exp(-z))).astype(float)
    else:
        y = rng.poisson(np.exp(z)).astype(float)
    return pa.table({
        "uid": np.arange(n) + 100_000 * seed,
        "user": user,
        "a": x[:, 0],
        "b": x[:, 1],
        "kind": kind,
        "weight": rng.uniform(0.5, 2.0, n),
        "offset": 0.1 * rng.normal(size=n),
        "response": y,
    })  # fmt: skip


def make(*coordinates: Any, **parameters: Any) -> MixedModel:
    return MixedModel(list(coordinates), **{"features": FEATURES, **parameters})


FIXED = FixedEffect("global", features="f", l2=0.5, save_hessian=True, tolerance=1e-12)
RANDOM = RandomEffect(
    "per-user", entity="user", features="f", l2=0.7, save_hessian=True, tolerance=1e-12
)
EACH = pytest.mark.parametrize("spec", [FIXED, RANDOM], ids=["fixed", "random"])


def only(model: MixedModel) -> LinearModel:
    (name,) = model.model_.coordinates
    return model.model_.coordinate(name)


def table(
    model: MixedModel, coordinate: str | None = None, column: str = "value"
) -> dict[tuple[Any, ...], float]:
    """Coefficients, or their variances, by entity, name and term."""
    name = coordinate or next(iter(model.model_.coordinates))
    rows = model.coefficients(name).to_pylist()
    return {(r.get("entity"), r["name"], r["term"]): r[column] for r in rows}


def distance(one: MixedModel, other: MixedModel, coordinate: str | None = None) -> float:
    a, b = table(one, coordinate), table(other, coordinate)
    assert a.keys() == b.keys()
    return max(abs(a[key] - b[key]) for key in a)


def continued(earlier: MixedModel, rows: pa.Table, folder: Path, **prior: Any) -> MixedModel:
    """The same coordinates, fitted to more rows, with the earlier model as a prior."""
    earlier.save(folder)
    parameters = earlier.get_params() | {"prior": {"model": folder, **prior}}
    return MixedModel(**parameters).fit(rows)


# Training in parts


class TestParts:
    @EACH
    def test_linear_is_exact(self, spec: Any, tmp_path: Path) -> None:
        """A, then B, then C equals all of them at once, whatever features and entities each has."""
        task = TASKS[0]
        a = make_rows(task, 150, 1, kinds="uv")
        b = make_rows(task, 150, 2, kinds="vw", first=4)
        c = make_rows(task, 150, 3, kinds="uw", first=2)
        together = make(spec, task=task).fit(pa.concat_tables([a, b, c]))
        first = make(spec, task=task).fit(a)
        second = continued(first, b, tmp_path / "a")
        assert distance(second, make(spec, task=task).fit(pa.concat_tables([a, b]))) < 1e-8
        third = continued(second, c, tmp_path / "b")
        assert distance(third, together) < 1e-8
        rows = pa.concat_tables([a, b, c])
        errors = [
            m.predict(rows, "std_error") / only(m).dispersion ** 0.5 for m in (third, together)
        ]
        np.testing.assert_allclose(*errors, rtol=1e-8)  # so are their Hessians

    @each_task
    @EACH
    def test_others_are_nearly(self, spec: Any, task: str, tmp_path: Path) -> None:
        """Of curved losses the prior is the second-order expansion at the earlier optimum."""
        a, b = make_rows(task, 3000, 1), make_rows(task, 3000, 2)
        first = make(spec, task=task).fit(a)
        after = continued(first, b, tmp_path / "a")
        together = make(spec, task=task).fit(pa.concat_tables([a, b]))
        error = distance(after, together)
        assert error < (1e-8 if task == TASKS[0] else 0.03)
        assert error < 0.2 * distance(make(spec, task=task).fit(b), together)
        assert error < 0.2 * distance(first, together)

    def test_variances_are_enough_where_features_are_orthogonal(self, tmp_path: Path) -> None:
        n = 64
        signs = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]] * (n // 4), float)
        rng = np.random.default_rng(0)

        def rows(scale: float) -> pa.Table:
            y = signs @ [0.5, -0.3] + rng.normal(size=n)
            user = np.repeat([0, 1], n // 2)
            columns = {"user": user, "a": scale * signs[:, 0], "b": signs[:, 1], "response": y}
            return pa.table(columns)

        a, b = rows(1.0), rows(2.0)
        for spec in (
            FixedEffect("own", features="f", l2=0.5, variance="simple", tolerance=1e-12),
            RandomEffect("own", entity="user", features="f", variance="full", tolerance=1e-12),
        ):
            options: dict[str, Any] = {"task": TASKS[0], "features": {"f": ["a", "b"]}}
            first = make(spec, **options).fit(a)
            after = continued(first, b, tmp_path / spec.type)
            together = make(spec, **options).fit(pa.concat_tables([a, b]))
            assert distance(after, together) < 1e-8

    @each_task
    def test_two_coordinates_and_several_passes(self, task: str, tmp_path: Path) -> None:
        a, b = make_rows(task, 1500, 1), make_rows(task, 1500, 2)
        few = FixedEffect("global", features="f", save_hessian=True)
        many = RandomEffect("per-user", entity="user", features="f", l2=2.0, save_hessian=True)
        first = make(few, many, task=task, passes=30).fit(a)
        after = continued(first, b, tmp_path / "a")
        together = make(few, many, task=task, passes=30).fit(pa.concat_tables([a, b]))
        alone = make(few, many, task=task, passes=30).fit(b)
        link = together.predict(b, kind="link")
        error = np.abs(after.predict(b, kind="link") - link).mean()
        assert error < 0.25 * np.abs(alone.predict(b, kind="link") - link).mean()
        # Each coordinate's prior holds the other one fixed, as descent does.
        objectives = [step.objective for step in after.history_]
        assert all(np.diff(objectives) <= 1e-9 * abs(objectives[0]))

    def test_the_dispersion_of_parts(self, tmp_path: Path) -> None:
        """Coefficients that a prior determines are no degrees of freedom of the new rows."""
        task = TASKS[0]
        spec = RandomEffect(
            "per-user", entity="user", features="f", l2=0.01, intercept_l2=0.01, save_hessian=True
        )
        a, b = make_rows(task, 4000, 1), make_rows(task, 60, 2)
        after = continued(make(spec, task=task).fit(a), b, tmp_path / "a")
        assert only(after).dispersion == pytest.approx(1.25, rel=0.3)  # mean weight 1.25


# What is new, and what is gone


class TestEntitiesAndFeatures:
    def test_what_only_the_earlier_rows_had_is_kept(self, tmp_path: Path) -> None:
        task = TASKS[1]
        a = make_rows(task, 400, 1, kinds="uv")
        b = make_rows(task, 400, 2, kinds="vw", first=5)
        first = make(RANDOM, task=task).fit(a)
        after = continued(first, b, tmp_path / "a")
        one, two = table(first), table(after)
        for (user, name, term), value in one.items():
            assert (user, name, term) in two
            if user < 5:
                assert two[user, name, term] == value
        # A feature that the new rows lack moves with those it is correlated with, no further.
        gone = [two[u, "kind", "u"] - one[u, "kind", "u"] for u in range(5, 10)]
        assert 0 < max(map(abs, gone)) < 0.5
        before, now = (table(m, column="variance") for m in (first, after))
        assert all(now[key] == value for key, value in before.items() if key[0] < 5)
        assert all(0 < now[key] < 1.2 * value for key, value in before.items())
        assert min(now.values()) > 0

    def test_what_is_new_has_the_l2_weight_alone(self, tmp_path: Path) -> None:
        task = TASKS[1]
        a, b = make_rows(task, 400, 1, kinds="uv"), make_rows(task, 400, 2, kinds="vw", first=5)
        for spec in (RANDOM, RANDOM.model_copy(update={"save_hessian": False, "variance": "full"})):
            after = continued(make(spec, task=task).fit(a), b, tmp_path / spec.variance)
            alone = make(spec, task=task).fit(b)
            one, two = table(after), table(alone)
            for user in range(10, 15):
                for key in (key for key in two if key[0] == user):
                    assert one[key] == pytest.approx(two[key], abs=1e-8)
            unseen = make(spec, task=task).fit(a)
            assert (0, "kind", "w") not in table(unseen)
            assert abs(one[6, "kind", "w"]) > 0.01

    def test_entities_without_a_hessian_have_their_variances(self, tmp_path: Path) -> None:
        """A model may hold both: entities of an earlier one, which knew variances alone."""
        task = TASKS[0]
        a, b = make_rows(task, 300, 1), make_rows(task, 300, 2)
        diagonal = RANDOM.model_copy(update={"save_hessian": False, "variance": "full"})
        whole = make(RANDOM.model_copy(update={"variance": "full"}), task=task).fit(a)
        own = only(whole).coefficients
        assert isinstance(own, RandomCoefficients)
        assert own.hessian_ptr is not None
        assert own.hessians is not None
        sizes = np.diff(own.hessian_ptr)
        sizes[::2] = 0  # every other entity loses it
        owner = np.repeat(np.arange(ENTITIES), np.diff(own.hessian_ptr))
        hessians = own.hessians[owner % 2 == 1]
        mixed = RandomCoefficients(
            own.entities, own.indptr, own.columns, own.values, own.variances,
            np.concatenate(([0], np.cumsum(sizes))), hessians,
        )  # fmt: skip
        model = MixedModel(**whole.get_params()).fit(a)
        object.__setattr__(only(model), "coefficients", mixed)
        found = continued(model, b, tmp_path / "mixed", forgetting=0.8)
        by_hessian = continued(whole, b, tmp_path / "whole", forgetting=0.8)
        first = make(diagonal, task=task).fit(a)
        by_variance = continued(first, b, tmp_path / "diagonal", forgetting=0.8)
        results = [table(m) for m in (found, by_variance, by_hessian)]
        for key, value in results[0].items():
            assert value == pytest.approx(results[1 + key[0] % 2][key], abs=1e-8)
        errors = found.predict(b, kind="std_error")
        assert (errors > 0).all()


# The formula


def minimum(x: F64, y: F64, w: F64, offset: F64, penalty: Any, task: str) -> F64:
    """Minimise loss plus penalty by BFGS; `penalty` returns value and gradient."""

    def value(theta: F64) -> tuple[float, F64]:
        z = offset + x @ theta
        if task == "logistic_regression":
            loss, d1 = np.logaddexp(0, z) - y * z, 1 / (1 + np.exp(-z)) - y
        elif task == "poisson_regression":
            loss, d1 = np.exp(z) - y * z, np.exp(z) - y
        else:
            loss, d1 = 0.5 * (z - y) ** 2, z - y
        extra, slope = penalty(theta)
        return float(w @ loss + extra), x.T @ (w * d1) + slope

    found = optimize.minimize(value, np.zeros(x.shape[1]), jac=True, method="BFGS",
                              options={"gtol": 1e-9, "maxiter": 1000})  # fmt: skip
    return np.asarray(found.x)


@each_task
@EACH
@pytest.mark.parametrize("how", ["hessian", "full", "simple"])
@pytest.mark.parametrize(("weight", "forgetting"), [(1.0, 1.0), (0.3, 1.0), (2.0, 0.6)])
def test_is_the_minimum_of_the_formula(
    spec: Any, task: str, how: str, weight: float, forgetting: float, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"save_hessian": how == "hessian"}
    options["variance"] = "none" if how == "hessian" else how
    spec = spec.model_copy(update=options)
    a, b = make_rows(task, 200, 1), make_rows(task, 200, 2)
    first = make(spec, task=task).fit(a)
    found = continued(first, b, tmp_path / "a", weight=weight, forgetting=forgetting)
    terms = [b["kind"].to_numpy() == kind for kind in "uvw"]
    x = np.column_stack([np.ones(200), b["a"], b["b"], *terms]).astype(float)
    own, after = only(first).coefficients, only(found).coefficients
    l2 = np.full(6, spec.l2)
    if isinstance(own, FixedCoefficients):
        l2[0] = 0.0
        parts = [(np.ones(200, bool), own.values, own.variances, own.hessian, after.values)]
    else:
        assert isinstance(after, RandomCoefficients)
        parts = []
        for e in (0, 3, 7):
            mine = slice(own.indptr[e], own.indptr[e + 1])
            assert own.columns[mine].tolist() == list(range(6))
            lower = None
            if own.hessians is not None and own.hessian_ptr is not None:
                lower = own.hessians[own.hessian_ptr[e] : own.hessian_ptr[e + 1]]
            assert own.variances is not None
            values = after.values[after.indptr[e] : after.indptr[e + 1]]
            rows = b["user"].to_numpy() == e
            parts.append((rows, own.values[mine], own.variances[mine], lower, values))
    for rows, mean, variances, lower, values in parts:
        precision = np.diag(only(first).dispersion / variances)
        if lower is not None:
            precision = np.zeros((6, 6))
            precision[np.tril_indices(6)] = lower
            precision += np.tril(precision, -1).T

        def penalty(theta: F64, precision: F64 = precision, mean: F64 = mean) -> tuple[float, F64]:
            kept = weight * forgetting * precision @ (theta - mean)
            relaxed = (1 - forgetting) * l2 * theta
            return float(0.5 * (kept @ (theta - mean) + relaxed @ theta)), kept + relaxed

        y, w, offset = (b[c].to_numpy()[rows] for c in ("response", "weight", "offset"))
        expected = minimum(x[rows], y, w, offset, penalty, task)
        np.testing.assert_allclose(values, expected, atol=1e-6)


# Models of other programs


@pytest.mark.parametrize("kind", ["photon", "avro"])
@pytest.mark.parametrize("task", TASKS[:2])
def test_from_an_avro_model(kind: str, task: str, tmp_path: Path) -> None:
    """Variances in Avro are a prior as those of our own files are; those of what was cut, too."""
    specs = [s.model_copy(update={"save_hessian": False, "variance": "full"})
             for s in (FIXED, RANDOM)]  # fmt: skip
    a, b = make_rows(task, 400, 1), make_rows(task, 400, 2)
    first = make(*specs, task=task, passes=3).fit(a)
    ours = continued(first, b, tmp_path / "ours")
    if kind == "photon":
        convert_model(tmp_path / "ours", tmp_path / "theirs", "photon")
    else:
        (tmp_path / "theirs").mkdir()
        write_model(first.model_, tmp_path / "theirs", AvroLayout())
    prior = {"model": tmp_path / "theirs"}
    theirs = MixedModel(**(ours.get_params() | {"prior": prior})).fit(b)
    for name in ("global", "per-user"):
        assert distance(ours, theirs, name) < 1e-10


# Runs


def test_a_run_and_how_it_is_known_again(project: Path) -> None:
    """`gdmix train` with a prior, from YAML; its model is one of the inputs."""
    first = {"coordinates.global.save_hessian": "true", "coordinates.per-user.variance": "simple",
             "coordinates.per-item.variance": "full"}  # fmt: skip
    run(RunConfig.from_yaml(Path("run.yaml"), first))
    prior = {"prior": "{model: runs/one, weight: 0.5, forgetting: 0.9}", "output": "runs/two"}
    config = RunConfig.from_yaml(Path("run.yaml"), first | prior)
    run(config)
    assert RunConfig.from_yaml(Path("runs/two/run.yaml")) == config
    assert any("runs/one" in file for file in files_of(config))
    before, after = (read_model(Path(f"runs/{name}")) for name in ("one", "two"))
    for name, model in after.linear.items():
        assert model.coefficients.variances is not None
        values = before.linear[name].coefficients.values
        assert not np.array_equal(model.coefficients.values, values)
    # Rows that the model knows already make it surer.
    one, two = (m.linear["global"].coefficients.variances for m in (before, after))
    assert one is not None
    assert two is not None
    assert (two < one).all()
    bad = first | prior | {"task": "linear_regression"}
    with pytest.raises(ConfigError, match=r"prior\.model: its task is logistic_regression"):
        run(RunConfig.from_yaml(Path("run.yaml"), bad), overwrite=True)


def test_rare_features_of_the_earlier_model_keep_their_values(tmp_path: Path) -> None:
    """A feature that new rows have too seldom to be found is one that the model knows."""
    a, b = make_rows(TASKS[1], 400, 1), make_rows(TASKS[1], 400, 2, kinds="uv")
    kinds = b["kind"].to_pylist()
    kinds[:3] = ["w"] * 3
    b = b.set_column(b.schema.get_field_index("kind"), "kind", pa.array(kinds))
    features = {"f": {"columns": ["a", "b", "kind"], "min_count": 5}}
    first = make(FIXED, features=features).fit(a)
    after = continued(first, b, tmp_path / "a")
    everything = MixedModel(**(after.get_params() | {"features": FEATURES})).fit(b)
    assert distance(after, everything) < 1e-9


def test_hashed_features(tmp_path: Path) -> None:
    task = TASKS[0]
    a, b = make_rows(task, 150, 1, kinds="uv"), make_rows(task, 150, 2, kinds="vw")
    features = {"f": {"columns": ["a", "b", "kind"], "hash_buckets": 64}}
    for spec in (FIXED, RANDOM):
        after = continued(make(spec, task=task, features=features).fit(a), b, tmp_path / spec.name)
        together = make(spec, task=task, features=features).fit(pa.concat_tables([a, b]))
        assert distance(after, together) < 1e-8


def test_the_example_in_the_documentation(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[1] / "docs" / "how_it_works.md"
    section = page.read_text(encoding="utf-8").split("## Variances, priors")[1]
    code = section.split("```python\n")[1].split("```")[0]
    rng = np.random.default_rng(0)

    def rows(n: int) -> dict[str, Any]:
        return {
            "user_id": np.arange(n) % 50,
            "genres": [[f"g{i}", f"g{i + 4}"] for i in rng.integers(0, 4, n)],
            "price": rng.normal(size=n),
            "response": rng.integers(0, 2, n),
        }

    names: dict[str, Any] = {"monday": rows(500), "tuesday": rows(300), "new": rows(20)}
    names |= {kind.__name__: kind for kind in (MixedModel, FixedEffect, RandomEffect)}
    exec(code, names)
    later = MixedModel.load("tuesday")
    assert later.predict(names["new"], kind="std_error").min() > 0
    assert names["model"].coefficients("per-user", entity=42).column_names == [
        "name",
        "term",
        "value",
        "variance",
    ]


# Mistakes


def test_a_model_without_variances(tmp_path: Path) -> None:
    rows = make_rows(TASKS[1], 200, 1)
    plain = FixedEffect("global", features="f")
    first = make(plain).fit(rows)
    text = r"coordinate 'global' has no variances, which a prior needs; train it with `variance"
    with pytest.raises(ModelError, match=text):
        continued(first, rows, tmp_path / "model")


@pytest.mark.parametrize(
    ("prior", "text"),
    [
        ({"weight": 0.0}, r"prior\.weight: .*greater than 0"),
        ({"forgetting": 0.0}, r"prior\.forgetting: .*greater than 0"),
        ({"forgetting": 1.5}, r"prior\.forgetting: .*less than or equal to 1"),
        ({"forget": 0.5}, r"prior\.forget: unknown key.*forgetting"),
    ],
)
def test_settings_that_are_none(prior: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        make(FIXED, prior={"model": "model", **prior})


def test_what_does_not_go_with_a_prior() -> None:
    prior = {"model": "model"}
    with pytest.raises(ConfigError, match="prior: its model is where training starts; remove ini"):
        make(FIXED, prior=prior, initial_model="other")
    with pytest.raises(ConfigError, match=r"prior: solver 'joint' has none; use more passes"):
        make(FIXED, prior=prior, solver="joint")
    with pytest.raises(ConfigError, match=r"coordinates\.g: l1 and prior: choose one"):
        make(FixedEffect("g", features="f", l1=1.0), prior=prior)
    with pytest.raises(ConfigError, match=r"coordinates\.g: l2 'auto' and prior: choose one"):
        make(FixedEffect("g", features="f", l2="auto"), prior=prior)


def test_a_locked_coordinate_stays(tmp_path: Path) -> None:
    a, b = make_rows(TASKS[1], 300, 1), make_rows(TASKS[1], 300, 2)
    first = make(FIXED, RANDOM).fit(a)
    first.save(tmp_path / "a")
    kept = FIXED.model_copy(update={"locked": True})
    after = make(kept, RANDOM, prior={"model": tmp_path / "a"}).fit(b)
    assert distance(first, after, "global") == 0.0
    assert distance(first, after, "per-user") > 0.01
    assert read_model(tmp_path / "a").coordinate("global").coefficients.hessian is not None
