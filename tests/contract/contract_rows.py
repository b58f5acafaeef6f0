"""Rows, configurations and outcomes that every engine is held to."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gdmix.config import ModelConfig
from gdmix.data.feature_index import FeatureIndex
from gdmix.descent import Descent, Step
from gdmix.engines.base import Engine
from gdmix.engines.local import LocalEngine
from gdmix.estimator import train as train_with
from gdmix.model.coefficients import FixedCoefficients, RandomCoefficients
from gdmix.model.custom import CustomModel
from gdmix.model.external import ExternalModel
from gdmix.model.factorization import FactorizationModel
from gdmix.model.linear import LinearModel
from gdmix.model.mixed_model import TrainedModel

LOGISTIC, LINEAR, POISSON = "logistic_regression", "linear_regression", "poisson_regression"
RESPONSES = {LOGISTIC: "response", LINEAR: "level", POISSON: "count"}
FEATURES = {"row": ["x", "kind"], "more": ["tags"], "dense": ["embedding"]}
HEAVY = 7  # the user of a third of all rows


def make_rows(n: int = 320, seed: int = 1, new: int = 0) -> pa.Table:
    """Return rows of a small crossed problem: users are integers, items are strings.

    Parameters
    ----------
    new
        Number of further users and items, which only rows of this table have.
    """
    rng = np.random.default_rng(seed)
    user = rng.integers(0, 18 + new, n) * 3 + 1
    user[rng.random(n) < 0.35] = HEAVY
    item = rng.integers(0, 9 + new, n)
    x = rng.normal(size=n).round(3)
    kind = rng.choice(["a", "b", "c"], n)
    tags = [list(rng.choice(["p", "q", "r", "s"], rng.integers(0, 4), replace=False)) for _ in x]
    embedding = rng.normal(size=(n, 3)).astype(np.float32)
    # The same entities in every table of these.
    own = np.random.default_rng(0)
    slope, level = own.normal(size=100), own.normal(size=30)
    z = 0.2 + x * (0.4 + 0.5 * slope[user]) + 0.5 * level[item] + 0.7 * (kind == "b")
    z += embedding @ [0.5, -0.3, 0.0] * (1.0 + 0.3 * slope[user])
    return pa.table(
        {
            "uid": rng.permutation(n) + 10_000 * seed,
            "user": user,
            "item": [f"item-{i}" for i in item],
            "age": rng.uniform(15.0, 70.0, n).round(1),
            # A null is an absent feature.
            "x": pa.array(x, mask=rng.random(n) < 0.05),
            "kind": pa.array(kind, mask=rng.random(n) < 0.05),
            "tags": pa.array(tags, pa.list_(pa.string())),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(embedding.ravel()), 3),
            "response": (rng.random(n) < 1 / (1 + np.exp(-z))).astype(np.int64),
            "count": rng.poisson(np.exp(0.4 * z)),
            "level": z + 0.5 * rng.normal(size=n),
            "importance": rng.choice([0.0, 0.5, 1.0, 2.0], n, p=[0.1, 0.3, 0.4, 0.2]),
            "base": rng.normal(0.0, 0.3, n).round(3),
        }
    )


@dataclass(frozen=True)
class Data:
    """Rows in files: those of training in two, in row groups of a few rows each."""

    train: list[Path]
    validation: Path

    @staticmethod
    def write(folder: Path, train: pa.Table, validation: pa.Table) -> Data:
        folder.mkdir(parents=True, exist_ok=True)
        half = train.num_rows // 2
        files = [folder / "train-0.parquet", folder / "train-1.parquet"]
        for file, rows in zip(files, (train[:half], train[half:]), strict=True):
            pq.write_table(rows, file, row_group_size=61)
        pq.write_table(validation, folder / "validation.parquet", row_group_size=47)
        return Data(files, folder / "validation.parquet")


def config_of(*coordinates: Any, task: str = LOGISTIC, **settings: Any) -> ModelConfig:
    """Return a configuration of these rows."""
    columns = {"response": RESPONSES[task], **settings.pop("columns", {})}
    given = {"features": FEATURES, "threads": 2, **settings}
    return ModelConfig.of(coordinates=list(coordinates), task=task, columns=columns, **given)


@dataclass(frozen=True)
class Outcome:
    """All that training leaves behind.

    Attributes
    ----------
    descent
        Steps, and which models were kept.
    model
        The trained model, in memory.
    scores
        (coordinate, split) to the rows of its score files, by uid.
    """

    descent: Descent
    model: TrainedModel
    scores: Mapping[tuple[str, str], pa.Table]


def outcome_of(
    engine: Engine, config: ModelConfig, train: Any, validation: Any = None, **options: Any
) -> Outcome:
    """Train with an engine and gather what it leaves."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result, workspace = train_with(config, train, validation, engine=engine, **options)
        model = workspace.trained_model(result.models).in_memory()
        workspace.write_scores(result.models, folder)
        scores = {
            (own.parent.name, own.name): read_parts(own)
            for own in sorted(folder.glob("*/*_scores"))
        }
    return Outcome(result, model, scores)


def reference_of(config: ModelConfig, train: Any, validation: Any = None) -> Outcome:
    """Return what one thread of one machine makes of the rows."""
    one_thread = config.model_copy(update={"threads": 1})
    return outcome_of(LocalEngine(), one_thread, train, validation)


def read_parts(folder: Path) -> pa.Table:
    """Return the rows of all parts of a score file, by uid."""
    return pa.concat_tables(map(pq.read_table, sorted(folder.glob("*.parquet")))).sort_by("uid")


@dataclass(frozen=True)
class Difference:
    """The largest differences between two outcomes."""

    coefficients: float = 0.0
    scores: float = 0.0
    objective: float = 0.0
    metrics: float = 0.0
    weights: float = 0.0

    def plus(self, other: Difference) -> Difference:
        return Difference(*map(max, vars(self).values(), vars(other).values()))


def difference(found: Outcome, wanted: Outcome) -> Difference:
    """Check that two outcomes have the same parts; return how far apart their numbers are."""
    result = Difference()
    assert list(found.model.coordinates) == list(wanted.model.coordinates)
    for bag, index in wanted.model.indices.items():
        assert same_features(found.model.indices[bag], index)
    assert found.descent.selected == wanted.descent.selected
    assert found.descent.converged == wanted.descent.converged
    assert len(found.descent.history) == len(wanted.descent.history)
    assert found.descent.weights.keys() == wanted.descent.weights.keys()
    for name, estimated in wanted.descent.weights.items():
        own_weights = np.array(found.descent.weights[name].weight)
        result = result.plus(Difference(weights=far(own_weights, np.array(estimated.weight))))
    for own, theirs in zip(found.descent.history, wanted.descent.history, strict=True):
        result = result.plus(_of_steps(own, theirs))
    for name in wanted.model.coordinates:
        apart = _of_models(found.model, wanted.model, name)
        result = result.plus(Difference(coefficients=apart))
    assert found.scores.keys() == wanted.scores.keys()
    for key, table in wanted.scores.items():
        result = result.plus(Difference(scores=_of_scores(found.scores[key], table)))
    return result


def same_features(one: FeatureIndex, other: FeatureIndex) -> bool:
    return bool(one.names == other.names and one.terms == other.terms)


def _of_steps(own: Step, theirs: Step) -> Difference:
    assert (own.pass_number, own.coordinate) == (theirs.pass_number, theirs.coordinate)
    assert own.report.models == theirs.report.models
    assert own.report.statuses == theirs.report.statuses
    assert own.metrics.keys() == theirs.metrics.keys()
    metrics = max(relative(own.metrics[name], theirs.metrics[name]) for name in own.metrics)
    return Difference(objective=relative(own.objective, theirs.objective), metrics=metrics)


def relative(one: float, other: float) -> float:
    if one == other or (np.isnan(one) and np.isnan(other)):
        return 0.0
    return abs(one - other) / max(abs(other), 1e-300)


def _of_models(found: TrainedModel, wanted: TrainedModel, name: str) -> float:
    own, theirs = found.coordinates[name], wanted.coordinates[name]
    assert type(own) is type(theirs)
    assert own.features == theirs.features
    if isinstance(theirs, LinearModel):
        return _of_linear(own, theirs)
    if isinstance(theirs, FactorizationModel):
        one, other = found.coefficient_table(name), wanted.coefficient_table(name)
        return tables_differ(one, other)
    if theirs.type == "deep":
        return _of_networks(own, theirs)
    assert isinstance(theirs, ExternalModel | CustomModel)  # its scores tell
    return 0.0


def _of_networks(own: Any, theirs: Any) -> float:
    one, other = own.network.state_dict(), theirs.network.state_dict()
    assert one.keys() == other.keys()
    assert (own.fits, own.encoding.sizes) == (theirs.fits, theirs.encoding.sizes)
    for key, numbering in theirs.encoding.ids.items():
        assert own.encoding.ids[key].values == numbering.values
    units = [np.array([m.level, m.scale]) for m in (own, theirs)]
    return max(far(*units), *(far(one[k].numpy(), w.numpy()) for k, w in other.items()))


def _of_linear(own: Any, theirs: LinearModel) -> float:
    assert (own.intercept, own.entity) == (theirs.intercept, theirs.entity)
    one, other = own.coefficients, theirs.coefficients
    assert type(one) is type(other)
    if isinstance(other, RandomCoefficients):
        assert one.entities == other.entities
        assert (one.indptr == other.indptr).all()
        assert (one.columns == other.columns).all()
        pairs = [
            (one.values, other.values),
            (one.variances, other.variances),
            (one.hessian_ptr, other.hessian_ptr),
            (one.hessians, other.hessians),
        ]
    else:
        assert isinstance(other, FixedCoefficients)
        pairs = [
            (one.values, other.values),
            (one.variances, other.variances),
            (one.hessian, other.hessian),
        ]
    return max([abs(own.dispersion - theirs.dispersion), *(far(a, b) for a, b in pairs)])


def far(one: NDArray[Any] | None, other: NDArray[Any] | None) -> float:
    """Return the largest difference of two arrays, relative to the largest number above 1."""
    assert (one is None) == (other is None)
    if one is None or other is None:
        return 0.0
    assert one.shape == other.shape
    scale = max(1.0, float(np.abs(other).max(initial=0.0)))
    return float(np.abs(one - other).max(initial=0.0)) / scale


def tables_differ(one: pa.Table, other: pa.Table) -> float:
    """Check that two tables are the same but for floats; return how far these are apart."""
    assert one.column_names == other.column_names
    assert one.num_rows == other.num_rows
    largest = 0.0
    for name in other.column_names:
        own, theirs = one[name], other[name]
        assert own.type == theirs.type, name
        if pa.types.is_floating(theirs.type):
            assert own.is_null() == theirs.is_null()
            largest = max(largest, far(_filled(own), _filled(theirs)))
        else:
            assert own.combine_chunks() == theirs.combine_chunks(), name
    return largest


_of_scores = tables_differ


def _filled(column: pa.ChunkedArray) -> NDArray[np.float64]:
    return np.asarray(pc.fill_null(column, 0.0).to_numpy())


def assert_same(found: Outcome, wanted: Outcome, tolerance: float = 1e-9) -> Difference:
    """Check that two outcomes are the same but for rounding; metrics then agree to 1e-12."""
    largest = difference(found, wanted)
    assert largest.coefficients < tolerance
    assert largest.scores < tolerance
    assert largest.objective < min(tolerance, 1e-10)
    assert largest.weights < tolerance
    assert largest.metrics < max(1e-12, tolerance * 1e-2)
    return largest
