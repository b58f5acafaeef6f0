"""What works on a cluster may be killed at any moment: the model is the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from contract_rows import make_rows

from gdmix.model.store import read_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

HERE = Path(__file__).parent
PATIENCE = 400.0


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start Python programs in processes that end with the test."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: Any) -> subprocess.Popen[str]:
        paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
        program = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )
        started.append(program)
        return program

    yield run
    for program in started:
        program.kill()
        program.wait()


def wait_for(condition: Callable[[], Any], program: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        if program.poll() is not None:
            pytest.fail(f"it has ended:\n{program.communicate()[0]}")
        assert time.monotonic() < end, "it does not come to that"
        time.sleep(0.01)


def finished(program: subprocess.Popen[str]) -> str:
    output, _ = program.communicate(timeout=PATIENCE)
    assert program.returncode == 0, output
    return output


def test_a_cluster_of_processes(cluster: Any, start: Any, tmp_path: Path) -> None:
    output = finished(start(HERE / "cluster_program.py", cluster.url, tmp_path))
    assert "Difference(" in output


@pytest.mark.parametrize("coordinate", ["global", "per-user", "network"])
def test_a_killed_executor(cluster: Any, start: Any, tmp_path: Path, coordinate: str) -> None:
    """In the middle of a barrier stage, of one of a random effect, and of a network's steps."""
    if coordinate == "network":
        pytest.importorskip("torch")
    program = start(HERE / "cluster_program.py", cluster.url, tmp_path, coordinate)
    wait_for((tmp_path / "paused").exists, program)
    victim = int((tmp_path / "paused").read_text())
    assert victim in cluster.executors()
    os.kill(victim, signal.SIGKILL)
    assert "Difference(" in finished(program)
    assert victim not in cluster.executors()


CONFIG = """\
task: logistic_regression
data: {train: train.parquet, validation: validation.parquet}
columns: {weight: importance, offset: base}
features:
  row: [x, kind]
  dense: [embedding]
coordinates:
  global:   {type: fixed_effect,  features: [row, dense]}
  per-user: {type: random_effect, entity: user, features: [row], variance: simple}
  per-item: {type: random_effect, entity: item}
passes: 3
metrics: [auc, logloss]
engine: spark
"""


def train(*arguments: Any) -> list[Any]:
    return ["-m", "gdmix", "train", "run.yaml", "--quiet", *arguments]


def test_a_killed_driver(cluster: Any, start: Any, tmp_path: Path) -> None:
    pq.write_table(make_rows(320, 1), tmp_path / "train.parquet", row_group_size=61)
    pq.write_table(make_rows(140, 2, new=4), tmp_path / "validation.parquet", row_group_size=47)
    spark = {"master": cluster.url, "partitions": 3, "conf": {"spark.executor.memory": "1g"}}
    (tmp_path / "run.yaml").write_text(f"{CONFIG}spark: {json.dumps(spark)}\n", encoding="utf-8")
    finished(start(*train("--set", "output=whole")))
    state = tmp_path / ".killed.unfinished" / "checkpoint" / "state.json"

    def steps() -> int:
        return len(json.loads(state.read_text())["steps"]) if state.exists() else 0

    done = 0
    for least in (2, 4):
        program = start(*train("--set", "output=killed", *(["--resume"] if done else [])))
        wait_for(lambda: steps() >= least, program)  # noqa: B023
        program.send_signal(signal.SIGKILL)
        program.communicate()
        assert least <= steps() < 9
        done = steps()
    # Other partitions: the parts of models that the state names are not those of this run.
    other = "--set", "spark.partitions=2"
    finished(start(*train("--set", "output=killed", "--resume", *other)))
    found, wanted = (read_model(tmp_path / name).in_memory() for name in ("killed", "whole"))
    for name, model in wanted.linear.items():
        own = found.linear[name].coefficients
        np.testing.assert_allclose(own.values, model.coefficients.values, rtol=0, atol=1e-9)
        if model.coefficients.variances is not None:
            theirs = model.coefficients.variances
            np.testing.assert_allclose(own.variances, theirs, rtol=1e-9)
    for split in ("train_scores", "validation_scores"):
        own, theirs = (
            pq.read_table(tmp_path / name / "per-user" / split).sort_by("uid")
            for name in ("killed", "whole")
        )
        assert own.drop_columns(["score", "total_score"]) == theirs.drop_columns(
            ["score", "total_score"]
        )
        far = np.abs(own["total_score"].to_numpy() - theirs["total_score"].to_numpy())
        assert far.max() < 1e-9
    history = [
        json.loads((tmp_path / name / "history.json").read_text())["steps"]
        for name in ("killed", "whole")
    ]
    assert [s["coordinate"] for s in history[0]] == [s["coordinate"] for s in history[1]]
    for own, theirs in zip(*history, strict=True):
        assert own["objective"] == pytest.approx(theirs["objective"], rel=1e-11)
