"""Networks: the tasks of a cluster train the one that one process trains, but for rounding.

Weights are single precision; rows have ascending uids, whose order is that of the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("torch")

from contract_rows import (  # noqa: E402
    LINEAR,
    Data,
    Outcome,
    config_of,
    difference,
    make_rows,
    outcome_of,
    reference_of,
)

from gdmix import DeepFixedEffect, RandomEffect  # noqa: E402
from gdmix.config import ModelConfig  # noqa: E402
from gdmix.engines.base import Engine  # noqa: E402
from gdmix.errors import ConfigError, DataError  # noqa: E402
from gdmix.model.store import write_model  # noqa: E402

ROLES = {"weight": "importance", "offset": "base"}
TRAINING = {"steps": 30, "batch_size": 32, "learning_rate": 0.01, "epsilon": 1e-3, "log_every": 5}
PER_USER = RandomEffect("per-user", entity="user", features=["row"], l2=3.0)


def rows_of(n: int, seed: int, **more: Any) -> pa.Table:
    """Return rows with a text; those of one user in six have none."""
    rows = make_rows(n, seed, **more).sort_by("uid")
    words = zip(rows["item"].to_pylist(), rows["tags"].to_pylist(), strict=True)
    title = [f"The {item} of {' and '.join(tags)}" if tags else None for item, tags in words]
    return rows.append_column("title", pa.array(title, pa.string()))


def network(**changed: Any) -> DeepFixedEffect:
    fields: dict[str, Any] = {
        "text": "title",
        "categorical": {"item": {"dim": 3, "min_count": 20}, "age": {"bins": [25, 40], "dim": 2}},
        "dense": "dense",
        "wide": "more",
        "encoder": {"type": "cnn", "windows": [1, 2], "filters": 4, "word_dim": 6, "min_count": 2},
        "dim": 5,
        "hidden": [8],
        "wide_dim": 3,
        "training": TRAINING,
    }
    return DeepFixedEffect("global", **(fields | changed))


@pytest.fixture(scope="module")
def train() -> pa.Table:
    return rows_of(320, 1)


@pytest.fixture(scope="module")
def validation() -> pa.Table:
    return rows_of(140, 2, new=4)


def compared(found: Outcome, wanted: Outcome) -> Outcome:
    apart = difference(found, wanted)
    assert apart.coefficients < 1e-4
    assert apart.scores < 1e-4
    assert apart.objective < 1e-5
    assert apart.metrics < 1e-2  # ranks of rows whose scores are nearly the same may change
    return found


@pytest.fixture
def both(engine: Engine, train: pa.Table, validation: pa.Table, tmp_path: Path) -> Any:
    """Train from files with the engine, from frames in memory with the reference."""
    data = Data.write(tmp_path / "rows", train, validation)

    def compare(config: ModelConfig) -> Outcome:
        found = outcome_of(engine, config, data.train, data.validation)
        return compared(found, reference_of(config, train, validation))

    return compare


def test_a_network_on_rows_without_uid(engine: Engine, train: pa.Table, tmp_path: Path) -> None:
    """They are numbered in the order of the file, in which they are shuffled."""
    mixed = train.take(np.random.default_rng(0).permutation(320)).drop_columns(["uid"])
    data = Data.write(tmp_path / "rows", mixed, mixed)
    config = config_of(network(), columns=ROLES, passes=2)
    compared(outcome_of(engine, config, data.train), reference_of(config, mixed))


def test_a_network_beside_a_random_effect(both: Any) -> None:
    found = both(config_of(network(), PER_USER, columns=ROLES, passes=2, metrics=["logloss"]))
    steps = [s.report.iterations for s in found.descent.history if s.coordinate == "global"]
    assert steps == [30, 30]  # once, however many tasks there are


def test_a_network_in_units_of_the_response_judged_by_an_inner_split(both: Any) -> None:
    training = {**TRAINING, "inner_split": 0.2, "judge_every": 6, "accumulate": 2}
    part = network(training=training, refit={"steps": 7})
    both(config_of(part, PER_USER, columns=ROLES, passes=2, task=LINEAR, metrics=["rmse"]))


@pytest.mark.parametrize("loss", ["softmax", "lambdarank"])
def test_rows_that_a_loss_compares_are_in_one_shard(both: Any, loss: str) -> None:
    both(
        config_of(
            network(loss=loss, group="user", text="title"),
            columns=ROLES,
            passes=2,
            metrics=["ndcg@3:user"],
        )
    )


def test_a_network_that_goes_on_from_an_earlier_one(
    both: Any, tmp_path: Path, train: pa.Table
) -> None:
    """Ids that only the new rows have are those of all shards."""
    old = train.filter(pa.compute.less(pa.compute.field("age"), 50.0))
    kept = pa.compute.is_in(old["item"], pa.array([f"item-{k}" for k in (1, 4, 5)]))
    part = network(categorical={"item": {"dim": 3}, "user": {"dim": 2}})
    first = reference_of(config_of(part, columns=ROLES), old.filter(kept))
    write_model(first.model, tmp_path / "earlier")
    found = both(
        config_of(part, PER_USER, columns=ROLES, initial_model=tmp_path / "earlier", passes=2)
    )
    model: Any = found.model.coordinates["global"]
    assert model.fits == 3
    assert len(model.encoding.ids["item"].values) == 9
    locked = part.model_copy(update={"locked": True})
    both(config_of(locked, PER_USER, columns=ROLES, initial_model=tmp_path / "earlier"))


def test_more_shards_than_rows(engine: Engine, train: pa.Table) -> None:
    rows = train[:2].set_column(train.column_names.index("response"), "response", pa.array([0, 1]))
    config = config_of(network(training={**TRAINING, "steps": 3}, encoder={"type": "cnn"}))
    compared(outcome_of(engine, config, rows), reference_of(config, rows))


def test_mistakes_are_told_once(engine: Engine, train: pa.Table, validation: pa.Table) -> None:
    training = {**TRAINING, "learning_rate": 1e30, "clip": None, "schedule": "constant"}
    with pytest.raises(ConfigError) as told:
        outcome_of(engine, config_of(network(training=training)), train, validation)
    assert str(told.value).startswith("training: the loss is not finite any more by step")
    assert len(str(told.value).splitlines()) == 1
    with pytest.raises(DataError, match="column 'user' holds integers, where the deep coordinate"):
        outcome_of(engine, config_of(network(text="user")), train)
    shown = train.set_column(
        train.column_names.index("response"), "response", pa.array([*[0.0] * 319, -2.0])
    )
    ranking = network(loss="softmax", group="user")
    with pytest.raises(DataError, match="loss 'softmax' takes relevance of 0 or more"):
        outcome_of(engine, config_of(ranking, task=LINEAR, columns={"response": "response"}), shown)
