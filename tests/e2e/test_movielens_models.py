"""MovieLens-100k: the original program's figures, the example's, and the joint optimum.

The rows are not part of the repository and no test fetches them: `gdmix example movielens
movielens` does, once. Without them these tests are skipped.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, cg
from sklearn.metrics import log_loss, roc_auc_score

import gdmix
from gdmix import FixedEffect, MixedModel, RunConfig
from gdmix.runs import run
from gdmix.tuning import tune_run

F64 = NDArray[np.float64]

ROOT = Path(__file__).parents[2]
EXAMPLES = Path(gdmix.__file__).parent / "examples"


@pytest.fixture(scope="module")
def movielens() -> Path:
    """The folder of the prepared rows."""
    folder = Path(os.environ.get("GDMIX_MOVIELENS") or ROOT / "movielens")
    if not all((folder / f"{split}.parquet").exists() for split in ("train", "validation")):
        pytest.skip(
            f"{folder} holds no prepared MovieLens rows: run `gdmix example movielens {folder}`, "
            "or let GDMIX_MOVIELENS name their folder"
        )
    return folder


def example(name: str, movielens: Path, output: Path) -> RunConfig:
    rows = {f"data.{s}": str(movielens / f"{s}.parquet") for s in ("train", "validation")}
    return RunConfig.from_yaml(EXAMPLES / name, {**rows, "output": str(output)})


def test_one_pass_with_gdmix_settings_gives_gdmix_figures(movielens: Path, tmp_path: Path) -> None:
    history = run(example("movielens_gdmix.yaml", movielens, tmp_path / "run"))
    auc = {step["coordinate"]: step["metrics"]["auc"] for step in history.steps}
    assert list(auc) == ["global", "per-user", "per-movie"]
    # What LinkedIn's GDMix itself gives on this split.
    assert auc["global"] == pytest.approx(0.629651, abs=0.002)
    assert auc["per-user"] == pytest.approx(0.703682, abs=0.002)
    assert auc["per-movie"] == pytest.approx(0.754469, abs=0.002)
    separated = {s["coordinate"]: s["statuses"].get("separated", 0) for s in history.steps}
    assert separated == {"global": 0, "per-user": 7, "per-movie": 290}


def test_the_example_is_better(movielens: Path, tmp_path: Path) -> None:
    run(example("movielens.yaml", movielens, tmp_path / "run"))
    scores = pq.read_table(tmp_path / "run/global/validation_scores")
    response, link = scores["response"].to_numpy(), scores["total_score"].to_numpy()
    assert len(response) == 20_041
    assert roc_auc_score(response, link) >= 0.766
    assert log_loss(response, 1 / (1 + np.exp(-link))) < 0.59
    # The saved model, without the rows it was trained on, says the same.
    validation = pq.read_table(movielens / "validation.parquet").drop_columns(["response"])
    predicted = MixedModel.load(tmp_path / "run").predict(validation, kind="link")
    np.testing.assert_allclose(predicted, link, atol=1e-12)


@pytest.mark.slow
def test_trees_and_random_effects_are_better_than_either(movielens: Path, tmp_path: Path) -> None:
    """The figures of the example: weights and parameters are of a split of the training rows."""
    config = example("movielens_lightgbm.yaml", movielens, tmp_path / "run")
    config = config.model_copy(update={"threads": 1})  # its threads wait badly on busy cores
    last = run(config).steps[-1]["metrics"]
    assert last == pytest.approx({"auc": 0.7873, "logloss": 0.5503}, abs=1e-3)
    user, movie, trees = config.coordinates.values()
    alone = config.model_copy(update={"coordinates": {"global": trees}, "passes": 1})
    only = run(alone.model_copy(update={"output": tmp_path / "trees"})).steps[-1]["metrics"]
    assert only == pytest.approx({"auc": 0.7837, "logloss": 0.5537}, abs=1e-3)
    linear = {"global": FixedEffect("global", features=["user", "movie"])}
    linear |= {"per-user": user, "per-movie": movie}
    plain = config.model_copy(update={"coordinates": linear, "passes": 10})
    other = run(plain.model_copy(update={"output": tmp_path / "linear"})).steps[-1]["metrics"]
    assert other == pytest.approx({"auc": 0.7816, "logloss": 0.5555}, abs=1e-3)


def test_estimated_weights_are_as_good_as_searched_ones(movielens: Path, tmp_path: Path) -> None:
    last = run(example("movielens_auto.yaml", movielens, tmp_path / "run")).steps[-1]["metrics"]
    assert last["auc"] >= 0.782
    assert last["logloss"] <= 0.555


@pytest.mark.slow
def test_a_factorization_is_best(movielens: Path, tmp_path: Path) -> None:
    """The figures of the example: its settings are of a split of the training rows."""
    if "title_words" not in pq.read_schema(movielens / "train.parquet").names:
        pytest.skip(f"{movielens} is of an earlier gdmix: run `gdmix example movielens` again")
    config = example("movielens_best.yaml", movielens, tmp_path / "run")
    last = run(config).steps[-1]["metrics"]
    assert last == pytest.approx({"auc": 0.7986, "logloss": 0.5367}, abs=1e-3)
    taste = {"taste": config.coordinates["taste"]}
    alone = config.model_copy(update={"coordinates": taste, "output": tmp_path / "taste"})
    last = run(alone).steps[-1]["metrics"]
    assert last == pytest.approx({"auc": 0.7994, "logloss": 0.5360}, abs=1e-3)


# The joint optimum, found without any code of gdmix

LEAST = 36_015.858845


def bags(rows: pa.Table) -> dict[str, sp.csr_matrix]:
    """Return the features of users and of movies, the values in single precision as gdmix's."""
    n = rows.num_rows

    def one_hot(column: str) -> sp.csr_matrix:
        values, codes = np.unique(rows[column].to_pylist(), return_inverse=True)
        return sp.csr_matrix((np.ones(n), (np.arange(n), codes)), (n, len(values)))

    def number(column: str) -> sp.csr_matrix:
        values = rows[column].fill_null(0.0).to_numpy()  # a film of unknown date
        return sp.csr_matrix(values.astype(np.float32).astype(float)[:, None])

    genres = rows["genres"].to_pylist()
    names, codes = np.unique(np.concatenate(genres), return_inverse=True)
    owner = np.repeat(np.arange(n), [len(g) for g in genres])
    multi_hot = sp.csr_matrix((np.ones(len(owner)), (owner, codes)), (n, len(names)))
    return {
        "user": sp.hstack([number("age"), one_hot("gender"), one_hot("occupation")]),
        "movie": sp.hstack([multi_hot, number("release_date")]),
    }


def per_entity(entity: F64, features: sp.csr_matrix) -> sp.csr_matrix:
    """Return one copy of an intercept and `features` for each entity, zero in others' rows."""
    own = sp.coo_matrix(sp.hstack([np.ones((len(entity), 1)), features]))
    values, codes = np.unique(entity, return_inverse=True)
    columns = codes[own.row].astype(np.int64) * own.shape[1] + own.col
    shape = (len(entity), len(values) * own.shape[1])
    return sp.csr_matrix((own.data, (own.row, columns)), shape)


def crossed_design(rows: pa.Table) -> sp.csr_matrix:
    """Return all coefficients' columns side by side, the global intercept first."""
    features = bags(rows)
    return sp.csr_matrix(
        sp.hstack(
            [
                np.ones((rows.num_rows, 1)),
                features["user"],
                features["movie"],
                per_entity(rows["user_id"].to_numpy(), features["movie"]),
                per_entity(rows["movie_id"].to_numpy(), features["user"]),
            ]
        )
    )


def least_objective(x: sp.csr_matrix, y: F64, l2: F64) -> tuple[float, F64]:
    """Minimise the logistic objective by Newton steps, each solved by conjugate gradients."""
    beta = np.zeros(x.shape[1])
    squares = x.multiply(x).T.tocsr()
    transposed = x.T.tocsr()

    def evaluate(beta: F64) -> tuple[float, F64]:
        z = x @ beta
        return float(np.logaddexp(0.0, z).sum() - y @ z + 0.5 * l2 @ beta**2), z

    value, z = evaluate(beta)
    for _ in range(50):
        p = 1 / (1 + np.exp(-z))
        gradient = transposed @ (p - y) + l2 * beta
        norm = float(np.linalg.norm(gradient))
        if norm < 1e-3:  # the strong convexity bounds what is left by its square
            return value, beta
        d = p * (1 - p)
        diagonal = squares @ d + l2
        diagonal[diagonal == 0] = 1.0
        hessian = LinearOperator(
            (beta.size, beta.size), lambda v, d=d: transposed @ (d * (x @ v)) + l2 * v
        )
        scale = LinearOperator(hessian.shape, lambda v, diagonal=diagonal: v / diagonal)
        step, _ = cg(hessian, gradient, rtol=1e-2, M=scale)
        t = 1.0
        while evaluate(beta - t * step)[0] > value + 1e-12 * value:
            t /= 2
        beta = beta - t * step
        value, z = evaluate(beta)
    raise AssertionError("the oracle did not converge")


@pytest.fixture(scope="module")
def optimum(movielens: Path) -> tuple[float, F64]:
    """The least objective, and the link of each training row there."""
    rows = pq.read_table(movielens / "train.parquet")
    x = crossed_design(rows)
    l2 = np.ones(x.shape[1])
    l2[0] = 0.0
    least, beta = least_objective(x, rows["response"].to_numpy().astype(float), l2)
    assert least == pytest.approx(LEAST, rel=1e-9)
    return least, x @ beta


@pytest.mark.slow
def test_the_search_finds_better_weights(movielens: Path, tmp_path: Path) -> None:
    tuning = tune_run(example("movielens_tune.yaml", movielens, tmp_path / "run"))
    assert tuning.first is not None
    assert tuning.first.metrics["auc"] == pytest.approx(0.7666, abs=2e-4)  # all weights 1
    # Intercepts at 1 and slopes at 10 give 0.7816 and 0.5555, `l2: auto` 0.7825 and 0.5544.
    assert tuning.best.metrics["auc"] > 0.7822
    assert tuning.best.metrics["logloss"] < 0.5548
    history = run(RunConfig.from_yaml(tmp_path / "run.tune/best.yaml"))
    assert history.steps[-1]["metrics"] == tuning.best.metrics


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [{"passes": 300, "tolerance": 2e-8}, {"solver": "joint"}], ids=["passes", "joint"]
)
def test_the_joint_optimum_is_reached(
    movielens: Path, optimum: tuple[float, F64], how: dict[str, Any]
) -> None:
    least, link = optimum
    config = example("movielens.yaml", movielens, Path("unused"))
    model = MixedModel(
        list(config.coordinates.values()), features=config.features, metrics=["logloss"], **how
    ).fit(movielens / "train.parquet")
    assert model.converged_
    objectives = [step.objective for step in model.history_[2:]]
    assert objectives[-1] == pytest.approx(least, rel=1e-6)
    assert min(objectives) >= least * (1 - 1e-10)
    assert np.diff(objectives).max() <= 1e-9 * least
    difference = model.predict(movielens / "train.parquet", kind="link") - link
    assert np.abs(difference).max() < 0.05
    assert np.abs(difference).mean() < 0.002
