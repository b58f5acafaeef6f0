"""Runs with a network in them: stopped in the middle of its training, and in two processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

STATE = Path("runs/.one.unfinished/.fits/global.pt")
GLOBAL = """\
  global:
    type: deep
    categorical: [kind, item]
    dense: [row]
    hidden: [8]
    training: {steps: 800, batch_size: 20, inner_split: 0.2, judge_every: 200}
"""
GDMIX = [sys.executable, "-m", "gdmix", "train", "run.yaml"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def deep_project(project: Path) -> Path:
    text = Path("run.yaml").read_text(encoding="utf-8")
    linear = "  global:   {type: fixed_effect,  features: [row, more]}\n"
    assert linear in text
    text = text.replace(linear, GLOBAL).replace("passes: 2", "passes: 2\nthreads: 1")
    Path("run.yaml").write_text(text, encoding="utf-8")
    return project


def history(folder: str) -> list[dict[str, Any]]:
    steps = json.loads(Path(folder, "history.json").read_text())["steps"]
    return [{k: v for k, v in step.items() if k != "seconds"} for step in steps]


def losses(folder: str) -> list[float]:
    """Return the losses that a run's log tells of its trainings."""
    log = Path(folder, "run.log").read_text(encoding="utf-8")
    return [float(loss) for loss in re.findall(r"INFO step .*, loss ([0-9.]+),", log)]


def train(*more: str, program: list[str] = GDMIX) -> None:
    subprocess.run([*program, "--quiet", *more], check=True, env=ENVIRONMENT)


def stop(sent: signal.Signals) -> tuple[int, str]:
    """Begin the run and stop it while the network is trained."""
    command = [*GDMIX, "--quiet", "--set", "output=runs/one"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    deadline = time.monotonic() + 120
    while process.poll() is None and not STATE.exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(sent)
    _, err = process.communicate()
    return process.returncode, err


@pytest.mark.slow
def test_killed_while_the_network_is_trained(deep_project: Path) -> None:
    train("--output", "runs/whole")
    code, err = stop(signal.SIGKILL)
    assert code == -signal.SIGKILL, err
    assert STATE.exists() and not Path("runs/.one.unfinished/checkpoint").exists()
    refused = subprocess.run([*GDMIX, "--quiet"], capture_output=True, text=True, env=ENVIRONMENT)
    assert refused.returncode == 2
    assert "holds an unfinished run; go on with --resume" in refused.stderr
    train("--resume")
    assert "goes on from step" in Path("runs/one/run.log").read_text(encoding="utf-8")
    assert history("runs/one") == history("runs/whole")
    assert not Path("runs/.one.unfinished").exists()
    assert not Path("runs/one/.fits").exists()


def test_interrupted_while_the_network_is_trained(deep_project: Path) -> None:
    code, err = stop(signal.SIGINT)
    assert code == 130
    assert err.endswith(".one.unfinished keeps the state: --resume goes on\n")
    assert STATE.exists()
    # Under other settings it does not go on.
    command = [*GDMIX, "--quiet", "--resume", "--set", "coordinates.global.training.batch_size=9"]
    refused = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert "the unfinished run had another 'coordinates'" in refused.stderr


@pytest.mark.slow
def test_two_processes(deep_project: Path) -> None:
    train("--output", "runs/whole")
    train("--output", "runs/one", program=[*TORCHRUN, *GDMIX[1:]])
    for step, wanted in zip(history("runs/one"), history("runs/whole"), strict=True):
        for key in ("objective", "gradient_norm"):
            assert step.pop(key) == pytest.approx(wanted.pop(key), rel=1e-3)
        assert step.pop("metrics") == pytest.approx(wanted.pop("metrics"), abs=1e-4)
        assert step == wanted
    assert len(losses("runs/whole")) == 2 * 16
    assert losses("runs/one") == pytest.approx(losses("runs/whole"), rel=1e-3)
    files = [sorted(p.name for p in Path("runs", run).rglob("*")) for run in ("one", "whole")]
    assert files[0] == files[1]
