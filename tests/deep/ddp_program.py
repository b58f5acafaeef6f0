"""What each process of test_ddp.py runs: several trainings, whose outcome it writes down."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from training_rows import (
    Rows,
    TwoLayers,
    logistic_loss,
    logistic_rows,
    softmax_loss,
    weights_of,
)

from gdmix.config.training import Training
from gdmix.deep import distributed
from gdmix.deep.distributed import team, together
from gdmix.deep.trainer import fit_network

COMMON: dict[str, Any] = {"epochs": 2, "log_every": 1, "epsilon": 1e-3, "learning_rate": 0.02}
GROUP = np.random.default_rng(0).permutation(np.repeat(np.arange(75), 4))
CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "plain": ({"batch_size": 32, "clip": 0.1}, logistic_loss),
    "accumulated": ({"batch_size": 20, "accumulate": 3, "inner_split": 0.2}, logistic_loss),
    "single rows": ({"batch_size": 1, "epochs": None, "steps": 12}, logistic_loss),
    "groups": ({"batch_size": 30, "inner_split": 0.1}, softmax_loss),
}


def outcome(name: str) -> dict[str, Any]:
    settings, loss = CASES[name]
    group = GROUP if loss is softmax_loss else None
    # All begin from the first one's weights, whatever their own were.
    network = TwoLayers(seed=team().rank)
    report = fit_network(
        network, logistic_rows(300, group=group), loss, Training(**{**COMMON, **settings})
    )
    return {
        "curve": report.curve,
        "judgements": report.judgements,
        "kept": report.kept,
        "weights": weights_of(network).tolist(),
    }


def validated() -> dict[str, Any]:
    """Judge by what only the first process can know."""
    training = Training(steps=6, judge_on_validation=True, judge_every=1, patience=2)
    values = iter([0.3, 0.2, 0.25, 0.4])
    judge = (lambda _: next(values)) if team().is_first else None
    report = fit_network(TwoLayers(), logistic_rows(), logistic_loss, training, validation=judge)
    return {"judgements": report.judgements, "kept": report.kept, "steps": report.steps}


class Interrupted(Rows):
    def batch(self, rows: Any) -> Any:
        if len(self.asked) == 6:
            signal.raise_signal(signal.SIGINT)
        return super().batch(rows)


def interrupted(checkpoint: Path) -> None:
    rows = logistic_rows(300)
    rows.__class__ = Interrupted
    training = Training(batch_size=32, **COMMON)
    try:
        fit_network(TwoLayers(), rows, logistic_loss, training, checkpoint=checkpoint)
    except KeyboardInterrupt:
        return
    raise AssertionError


def gloo_threads() -> list[str]:
    """Return the names of the threads that talk with other processes (on Linux)."""
    names = [task.joinpath("comm").read_text() for task in Path("/proc/self/task").glob("*")]
    return [name for name in names if "gloo" in name]


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    rank = int(os.environ["RANK"])
    given = together("global", ["offsets", rank])
    told = {
        "size": team().size,
        "given": given,
        "validated": validated(),
        **{name: outcome(name) for name in CASES},
    }
    interrupted(folder / f"{rank}.pt")
    told["threads"] = [len(gloo_threads())]
    distributed._part()
    told["threads"].append(len(gloo_threads()))
    (folder / f"{rank}.json").write_text(json.dumps(told))
