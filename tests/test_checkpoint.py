"""A run that was stopped, however, goes on to the same model."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gdmix import ConfigError, DataError, OutputError, RunConfig
from gdmix.model.store import read_model
from gdmix.runs import read_history, run, unfinished_run

UNFINISHED = Path("runs/.one.unfinished")


def configured(**overrides: str) -> RunConfig:
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return RunConfig.from_yaml(Path("run.yaml"), {"passes": "4", **dotted})


def assert_same_run(one: Path, other: Path) -> None:
    model, expected = read_model(one), read_model(other)
    assert list(model.coordinates) == list(expected.coordinates)
    for name, coordinate in model.coordinates.items():
        np.testing.assert_allclose(
            coordinate.coefficients.values,
            expected.coordinates[name].coefficients.values,
            rtol=0,
            atol=1e-10,
        )
    first, second = read_history(one), read_history(other)
    assert first.selected == second.selected
    assert first.converged == second.converged
    for component, wanted in zip(
        first.variance_components, second.variance_components, strict=True
    ):
        assert component["group"] == wanted["group"]
        assert component["l2"] == pytest.approx(wanted["l2"], rel=1e-6)
        assert component["effective"] == pytest.approx(wanted["effective"], rel=1e-6)
    for step, wanted in zip(first.steps, second.steps, strict=True):
        assert (step["pass"], step["coordinate"]) == (wanted["pass"], wanted["coordinate"])
        assert step["objective"] == pytest.approx(wanted["objective"], rel=1e-12)
        assert step["metrics"] == pytest.approx(wanted["metrics"], rel=1e-9)


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a run save every state, and stop by Ctrl-C after so many steps."""
    monkeypatch.setattr("gdmix.checkpoint._SHARE", 1e9)

    def stopper(steps: int) -> Any:
        def on_step(step: Any) -> None:
            stopper.seen += 1
            if stopper.seen == steps:
                raise KeyboardInterrupt

        stopper.seen = 0
        return on_step

    return stopper


LIMITS = {
    "coordinates__per-user__max_active_rows": "20",
    "coordinates__per-user__min_active_rows": "15",
    "coordinates__per-item__max_active_rows": "30",
}
AUTO = {f"coordinates__{name}__l2": "auto" for name in ("global", "per-user", "per-item")}
SETTINGS: list[dict[str, str]] = [
    {},
    {"select": "best", "metrics": "[logloss]"},
    {"tolerance": "1e-3", "passes": "30"},
    {"solver": "joint"},
    LIMITS,
    {"task": "poisson_regression", "columns__response": "count", "metrics": "[poisson_loss]"},
    AUTO,
    {**AUTO, "solver": "joint", "passes": "2"},
    {"early_stopping": "1", "passes": "30"},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_resume_after_any_step_ends_with_the_same_run(
    project: Path, stop_after: Any, settings: dict[str, str]
) -> None:
    whole = run(configured(output="runs/whole", **settings))
    for steps in range(1, min(len(whole.steps), 12) + 1):
        with pytest.raises(KeyboardInterrupt, match="--resume"):
            run(configured(**settings), overwrite=True, on_step=stop_after(steps))
        assert (UNFINISHED / "checkpoint" / "state.json").exists()
        run(configured(**settings), overwrite=True, resume=True)
        assert not UNFINISHED.exists()
        assert_same_run(Path("runs/one"), Path("runs/whole"))
        assert not (Path("runs/one") / "checkpoint").exists()


def test_resume_twice(project: Path, stop_after: Any) -> None:
    run(configured(output="runs/whole"))
    for steps in (2, 3, 1):
        with pytest.raises(KeyboardInterrupt):
            run(configured(), resume=True, on_step=stop_after(steps))
    run(configured(), resume=True)
    assert_same_run(Path("runs/one"), Path("runs/whole"))


def test_failure_while_writing_results_can_be_resumed(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("gdmix.engines.local.write_scores", full_disk)
        with pytest.raises(OutputError, match="No space left on device") as caught:
            run(configured())
    assert "\n" not in str(caught.value)
    assert not Path("runs/one").exists()
    run(configured(), resume=True)
    run(configured(output="runs/whole"))
    assert_same_run(Path("runs/one"), Path("runs/whole"))


def test_an_unfinished_run_is_not_lost_by_mistake(project: Path, stop_after: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(configured(), on_step=stop_after(2))
    with pytest.raises(OutputError, match="go on with --resume, or start anew"):
        run(configured())
    with pytest.raises(ConfigError, match="had another 'passes'"):
        run(configured(passes="5"), resume=True)
    run(configured(threads="1"), resume=True)  # does not change the result
    assert Path("runs/one/manifest.json").exists()


def test_overwrite_starts_anew(project: Path, stop_after: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(configured(), on_step=stop_after(2))
    seen: list[int] = []
    run(configured(), overwrite=True, on_step=lambda step: seen.append(step.pass_number))
    assert len(seen) == 12


def test_changed_data_are_noticed(project: Path, stop_after: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(configured(), on_step=stop_after(2))
    os.utime("train.parquet", (1, 1))
    with pytest.raises(ConfigError, match="the data have changed"):
        run(configured(), resume=True)


def test_resume_without_anything_to_resume_starts(project: Path) -> None:
    run(configured(), resume=True)
    assert Path("runs/one/manifest.json").exists()


def test_bad_input_leaves_no_unfinished_run(project: Path) -> None:
    with pytest.raises(DataError):
        run(configured(data__train="validation.csv"))
    with pytest.raises(DataError):
        run(configured(columns__response="kind"))
    assert not UNFINISHED.exists()


def test_two_runs_into_one_folder(project: Path, stop_after: Any) -> None:
    def second(_: Any) -> None:
        with pytest.raises(OutputError, match="another run is writing there now"):
            run(configured(), overwrite=True)

    run(configured(), on_step=second)
    assert len(read_history(Path("runs/one")).steps) == 12


# As if no array would fit into memory.
NO_MEMORY = """
from gdmix import memory
from gdmix.data import entity_blocks
from gdmix.cli import main
memory._SMALLEST_MAPPED, memory._HELD_SHARE, entity_blocks._PART_SHARE = 1, 0.0, 1e-12
main()
"""


def kill_and_resume(tries: int, seed: int, program: tuple[str, str] = ("-m", "gdmix")) -> None:
    """Kill -9 a run at random moments, resume it each time; it ends as the undisturbed one."""
    settings = {"passes": "60"}
    run(configured(output="runs/whole", **settings))
    command = [sys.executable, *program, "train", "run.yaml", "--quiet", "--resume"]
    command += ["--set", "passes=60"]
    moments = random.Random(seed)
    killed = 0
    for _ in range(tries):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        log = UNFINISHED / "run.log"
        size = log.stat().st_size if log.exists() else 0
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if log.exists() and log.stat().st_size > size:
                break
            time.sleep(0.005)
        time.sleep(moments.uniform(0.0, 0.4))
        process.send_signal(signal.SIGKILL)
        _, err = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), err.decode()
        killed += process.returncode != 0
        if Path("runs/one").exists():  # then it is whole, as is seen below
            break
    assert killed
    if not Path("runs/one").exists():
        subprocess.run(command, check=True)
    assert_same_run(Path("runs/one"), Path("runs/whole"))
    assert not unfinished_run(Path("runs/one")).exists()


def test_kill_and_resume(project: Path) -> None:
    kill_and_resume(tries=3, seed=0)


def test_kill_and_resume_beyond_memory(project: Path) -> None:
    kill_and_resume(tries=3, seed=5, program=("-c", NO_MEMORY))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [6, 7, 8, 9])
def test_kill_and_resume_beyond_memory_many_times(project: Path, seed: int) -> None:
    kill_and_resume(tries=5, seed=seed, program=("-c", NO_MEMORY))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_kill_and_resume_many_times(project: Path, seed: int) -> None:
    kill_and_resume(tries=5, seed=seed)
