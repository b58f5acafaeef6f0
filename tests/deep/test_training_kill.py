"""A training that is killed at any moment goes on to the same network."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from training_rows import Rows, TwoLayers, logistic_loss, logistic_rows, weights_of  # noqa: E402

from gdmix.config.training import Training  # noqa: E402
from gdmix.deep.trainer import TrainingReport, fit_network  # noqa: E402

STEPS = 2500
TRAINING = Training(steps=STEPS, batch_size=16, inner_split=0.2, judge_every=100)


class Slow(Rows):
    """Takes so long that there is time to kill its reader."""

    def batch(self, rows: Any) -> Any:
        time.sleep(0.002)
        return super().batch(rows)


def train(checkpoint: Path | None, slowly: bool = False) -> tuple[TwoLayers, TrainingReport]:
    network = TwoLayers(width=32, dropout=0.2)
    rows = logistic_rows(2000)
    rows.__class__ = Slow if slowly else Rows
    report = fit_network(
        network, rows, logistic_loss, TRAINING, checkpoint=checkpoint, threads=1, seed=3
    )
    return network, report


def begin(checkpoint: Path) -> subprocess.Popen[bytes]:
    """Train in another process; return once it has written a checkpoint of its own."""
    before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
    code = "import sys, pathlib, test_training_kill as t; t.train(pathlib.Path(sys.argv[1]), True)"
    process = subprocess.Popen(
        [sys.executable, "-c", code, checkpoint],
        cwd=Path(__file__).parent,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if checkpoint.exists() and checkpoint.stat().st_mtime_ns > before:
            break
        time.sleep(0.005)
    return process


def test_kill_and_go_on(tmp_path: Path) -> None:
    checkpoint = tmp_path / "global.pt"
    moments = random.Random(0)
    steps = [0]
    for _ in range(2):
        process = begin(checkpoint)
        time.sleep(moments.uniform(0.0, 0.2))
        process.send_signal(signal.SIGKILL)
        _, err = process.communicate()
        assert process.returncode == -signal.SIGKILL, err.decode()
        steps.append(torch.load(checkpoint, weights_only=True)["state"]["steps"])
    assert 0 < steps[1] < steps[2] < STEPS  # it was killed with some steps to go
    network, report = train(checkpoint)
    whole, wanted = train(None)
    assert report.curve == wanted.curve
    assert report.judgements == wanted.judgements
    assert (weights_of(network) == weights_of(whole)).all()
    left = [p.name for p in tmp_path.iterdir() if not p.name.endswith(".partial")]
    assert left == ["global.pt"]


@pytest.mark.parametrize("sent", [signal.SIGINT], ids=["Ctrl-C"])
def test_an_interrupted_process(tmp_path: Path, sent: signal.Signals) -> None:
    checkpoint = tmp_path / "global.pt"
    process = begin(checkpoint)
    process.send_signal(sent)
    _, err = process.communicate()
    assert err.decode().rstrip().endswith("KeyboardInterrupt")
    assert [p.name for p in tmp_path.iterdir()] == ["global.pt"]
    state = torch.load(checkpoint, weights_only=True)["state"]
    assert 0 < state["steps"] < STEPS
