"""What each process of test_shards.py runs: trainings on rows that are divided among them.

python shard_program.py RANK SIZE FOLDER
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from ddp_program import CASES, COMMON, GROUP
from deep_rows import FEATURES, everything, make_rows
from training_rows import Rows, TwoLayers, logistic_rows, softmax_loss, weights_of

from gdmix.config import ModelConfig
from gdmix.config.training import Training
from gdmix.data.dataset import load_training
from gdmix.data.partition import take_rows
from gdmix.data.schema import RowSchema
from gdmix.deep.coordinate import DeepCoordinate
from gdmix.deep.distributed import PeerEnded, Team, joined, team
from gdmix.deep.trainer import fit_network
from gdmix.errors import DataError

HOLDER = np.random.default_rng(5).integers(0, 2, 300)  # of each row, or by group of its rows
ORDER = np.random.default_rng(6).permutation(300)  # shards are in no order


def shard_of(rows: Rows, rank: int) -> Rows:
    """Return the rows of a rank: those of a group together."""
    holder = HOLDER if rows.group is None else HOLDER[rows.group]
    held = ORDER[holder[ORDER] == rank]
    group = None if rows.group is None else np.unique(rows.group[held], return_inverse=True)[1]
    shard = Rows(rows.x[held], rows.response[held], rows.weight[held], rows.offset[held], group)
    shard.uid = held * 7 - 50
    return shard


def outcome(name: str, own: Team) -> dict[str, Any]:
    settings, loss = CASES[name]
    rows = logistic_rows(300, group=GROUP if loss is softmax_loss else None)
    if own.has_shards:
        rows = shard_of(rows, own.rank)
    network = TwoLayers(seed=own.rank)
    report = fit_network(network, rows, loss, Training(**{**COMMON, **settings}))
    return {
        "curve": report.curve,
        "judgements": report.judgements,
        "kept": report.kept,
        "weights": weights_of(network).tolist(),
    }


def coordinate_of(task: str, response: str, own: Team) -> tuple[DeepCoordinate, Any]:
    """Return a coordinate of every kind of input on the rows of a process."""
    x = np.where(np.arange(400) % 7 == 0, np.nan, np.random.default_rng(4).normal(5e4, 3, 400))
    title = [None if k % 11 == 0 else t for k, t in enumerate(make_rows(400)["title"].to_pylist())]
    table = make_rows(400, x=pa.array(x, from_pandas=True), title=title)
    spec = everything(
        categorical={"color": {"dim": 2}, "user": {"dim": 3, "min_count": 27}},
        training={"steps": 12, "batch_size": 32, "epsilon": 1e-3},
        sides={
            "document": {"text": "title", "wide": "tags", "hidden": [8]},
            "user": {"text": "query"},
        },
        encoder={"type": "cnn", "windows": [1], "filters": 4, "word_dim": 6, "min_count": 12},
        crosses=[],
    )
    features = {**FEATURES, "numbers": {"columns": ["x", "z"], "missing": "keep"}}
    config = ModelConfig.of(
        coordinates=[spec],
        features=features,
        task=task,
        columns={"response": response, "weight": "weight"},
    )
    schema = RowSchema(
        config.columns,
        config.used_features,
        config.entities,
        derived=config.derived_entities,
        optional=config.optional_entities,
    )
    rows, indices = load_training(table, schema, config.task, "strict")
    if own.has_shards:  # the texts of some titles are in one of them only
        rows = take_rows(rows, np.flatnonzero(np.arange(400) % 3 % 2 == own.rank)[::-1].copy())
    args = rows, None, indices, config.used_features, config.task, 3, 1, "logloss"
    return DeepCoordinate("global", spec, *args), rows


def fitted(task: str, response: str, own: Team) -> dict[str, Any]:
    coordinate, rows = coordinate_of(task, response, own)
    offset = 0.1 * np.sin(rows.uid)
    model, report = coordinate.fit(offset, None)
    again, _ = coordinate.fit(offset, model)
    encoding = model.encoding
    return {
        "words": encoding.tokenizer.words.to_pylist(),
        "ids": {k: n.values.to_pylist() for k, n in encoding.ids.items() if n.values is not None},
        "moments": {k: [s.mean.tolist(), s.scale.tolist()] for k, s in encoding.dense.items()},
        "sizes": repr(encoding.sizes),
        "units": [model.level, model.scale],
        "norm": report.gradient_norm,
        "scores": dict(zip(rows.uid.tolist(), coordinate.score(again).train, strict=True)),
    }


def primitives(own: Team) -> dict[str, Any]:
    """Move arrays of other sizes and types from each process to each."""
    mine = np.arange(3 * own.rank, dtype=np.int64) + 10
    sent = [np.full(rank + 2 * own.rank, rank + 0.5, np.float32) for rank in range(own.size)]
    return {
        "gathered": own.gathered(mine).tolist(),
        "exchanged": [part.tolist() for part in own.exchange(sent)],
        "nothing": [part.size for part in own.exchange([np.empty(0)] * own.size)],
        "sum": own.sum(np.array([1.0, own.rank])).tolist(),
        "largest": own.maximum(np.array([1.0, own.rank])).tolist(),
        "together": own.put_together([own.rank], lambda one, other: one + other),
    }


def mistaken(own: Team, join: Callable[[], Any]) -> str:
    """Let the second process leave amid a fit; say what the first one is told."""
    try:
        with join() as other:
            if other.rank == 1:
                raise DataError("mine")
            other.sum(np.zeros(3))
    except (DataError, PeerEnded) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def main(rank: int, size: int, folder: Path) -> None:
    calls = iter(range(100))

    def all_gather(text: str) -> list[str]:
        """Exchange texts as the tasks of a barrier stage do."""
        call = next(calls)
        temporary = folder / f"{call}.{rank}.new"
        temporary.write_text(text)
        temporary.rename(folder / f"{call}.{rank}")
        files = [folder / f"{call}.{r}" for r in range(size)]
        while not all(file.exists() for file in files):
            time.sleep(0.01)
        return [file.read_text() for file in files]

    def join() -> Any:
        return joined(rank, size, all_gather)

    told: dict[str, Any] = {}
    with join() as own:
        told |= {"size": own.size, "primitives": primitives(own)}
        told |= {name: outcome(name, own) for name in CASES}
        told["logistic"] = fitted("logistic_regression", "response", own)
    told["mistake"] = mistaken(own, join)
    told["apart"] = team().size
    with join() as own:  # again, after a failure
        told["linear"] = fitted("linear_regression", "level", own)
    (folder / f"{rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
