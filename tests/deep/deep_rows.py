"""Rows with texts, ids and numbers: what tests of deep coordinates are trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from gdmix import DeepFixedEffect
from gdmix.config import ModelConfig
from gdmix.data.dataset import Dataset, load_rows, load_training
from gdmix.data.schema import RowSchema
from gdmix.deep.distributed import Team
from gdmix.deep.findings import InputFindings
from gdmix.deep.inputs import InputEncoding, warn_of_constants

WORDS = ["red", "green", "blue", "old", "new", "big", "small", "fast", "slow", "round"]
COLORS = ["cyan", "pink", "grey", "gold"]
FEATURES = {"numbers": ["x", "z"], "tags": ["tags"], "row": ["color"]}
TRAINING = {"steps": 150, "batch_size": 32, "learning_rate": 0.01}


def make_rows(n: int = 500, seed: int = 0, **columns: Any) -> pa.Table:
    """Return rows whose response depends on title, color, numbers and user."""
    world, rng = np.random.default_rng(99), np.random.default_rng(seed)
    titles = [" ".join(world.choice(WORDS, world.integers(1, 5))) for _ in range(40)]
    effect, of_user = world.normal(size=len(WORDS)), world.normal(size=15)
    title = rng.integers(0, 40, n)
    color, user = rng.integers(0, 4, n), rng.integers(0, 15, n)
    x, z = rng.normal(50, 10, n), rng.normal(size=n)
    value = np.array([effect[[WORDS.index(w) for w in t.split()]].mean() for t in titles])
    score = 1.5 * value[title] + 0.08 * (x - 50) + np.array([-1, 0, 0.5, 1])[color]
    score += of_user[user]
    tags = [list(rng.choice(["p", "q", "r"], rng.integers(0, 3), replace=False)) for _ in x]
    table = {
        "uid": np.arange(n) + 10_000 * seed,
        "title": [titles[k] for k in title],
        "query": [WORDS[k % len(WORDS)] for k in user],
        "color": [COLORS[k] for k in color],
        "user": user,
        "x": x,
        "z": z,
        "tags": pa.array(tags, pa.list_(pa.string())),
        "response": (rng.random(n) < 1 / (1 + np.exp(-score))).astype(np.int64),
        "level": 1e4 + 300 * score,
        "count": rng.poisson(np.exp(4 + 0.3 * score)),
        "weight": rng.choice([0.5, 1.0, 2.0], n),
    }
    return pa.table(table | columns)


def everything(name: str = "global", **changed: Any) -> DeepFixedEffect:
    """Return a spec that has every kind of input."""
    fields: dict[str, Any] = {
        "sides": {
            "document": {"text": "title", "wide": "tags", "hidden": [8]},
            "user": {"text": "query", "categorical": {"user": {"dim": 3}}},
        },
        "categorical": {"color": {"dim": 2}, "x": {"bins": [40, 60], "dim": 2}},
        "crosses": [["color", "user"], {"columns": ["query", "color"], "buckets": 7, "dim": 3}],
        "dense": "numbers",
        "wide": "row",
        "encoder": {"type": "cnn", "windows": [1, 2], "filters": 4, "word_dim": 6},
        "dim": 5,
        "interaction": ["cosine", "hadamard", "concat"],
        "hidden": [8],
        "wide_dim": 3,
        "shallow": [4, 3],
        "training": TRAINING,
    }
    return DeepFixedEffect(name, **(fields | changed))


def schema_of(spec: DeepFixedEffect) -> tuple[ModelConfig, RowSchema]:
    config = ModelConfig.of(coordinates=[spec], features=FEATURES)
    return config, RowSchema(
        config.columns,
        config.used_features,
        config.entities,
        derived=config.derived_entities,
        optional=config.optional_entities,
    )


def encoded(
    spec: DeepFixedEffect, train: pa.Table, *others: pa.Table
) -> tuple[InputEncoding, list[Dataset]]:
    config, schema = schema_of(spec)
    rows, indices = load_training(train, schema, config.task, "strict")
    more = [load_rows(t, schema, indices, config.task, "strict") for t in others]
    found = InputFindings.of(spec, rows, config.used_features, Team())
    encoding = InputEncoding.of(spec, found, config.used_features)
    warn_of_constants(rows.label, encoding, indices)
    return encoding, [rows, *more]
