"""A search that is killed at any moment goes on to the same trials."""

from __future__ import annotations

import csv
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gdmix import OutputError, RunConfig
from gdmix.tuning import Tuning, tune_run

TRIALS = Path("runs/one.tune/trials.csv")


def config(**overrides: str) -> RunConfig:
    given = {"tune.trials": "25", "passes": "20", **overrides}
    return RunConfig.from_yaml(Path("run.yaml"), given)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


@pytest.mark.slow
def test_kill_and_go_on(project: Path) -> None:
    tune_run(config(), folder=Path("whole"))
    command = [sys.executable, "-m", "gdmix", "tune", "run.yaml", "--quiet", "--trials", "25"]
    command += ["--set", "passes=20"]
    moments = random.Random(0)
    counts = [0]
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if TRIALS.exists() and len(table(TRIALS)) > counts[-1]:
                break
            time.sleep(0.005)
        time.sleep(moments.uniform(0.0, 0.3))
        process.send_signal(signal.SIGKILL)
        _, err = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), err.decode()
        counts.append(len(table(TRIALS)))
    assert 0 < counts[1] < 25  # it was killed with some trials to go
    assert counts == sorted(counts)
    subprocess.run(command, check=True)
    for row, wanted in zip(table(TRIALS), table(Path("whole/trials.csv")), strict=True):
        for metric in ("auc", "logloss"):  # another process may round the last digit otherwise
            assert float(row.pop(metric)) == pytest.approx(float(wanted.pop(metric)), rel=1e-12)
        assert row == wanted
    assert RunConfig.from_yaml(TRIALS.with_name("best.yaml")) == RunConfig.from_yaml(
        Path("whole/best.yaml"), {"output": "runs/one.tune/best"}
    )


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_an_interrupted_command(project: Path, sent: signal.Signals) -> None:
    command = [sys.executable, "-m", "gdmix", "tune", "run.yaml", "--trials", "10000"]
    command += ["--set", "tune.method=random"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and not TRIALS.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(sent)
    out, err = process.communicate()
    assert process.returncode == 130
    n = len(table(TRIALS))
    assert f"{n} of 10000 trials" in out
    assert err == (
        f"interrupted; runs/one.tune keeps {n} of 10000 trials: the same command goes on\n"
    )


def test_two_searches_into_one_folder(project: Path) -> None:
    def second(_: Tuning) -> None:
        with pytest.raises(OutputError, match="another run is writing there now"):
            tune_run(config(), overwrite=True)

    tune_run(config(**{"tune.trials": "2"}), on_trial=second)
    assert len(table(TRIALS)) == 2
