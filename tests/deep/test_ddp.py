"""Two processes train as one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from ddp_program import CASES, COMMON, outcome  # noqa: E402
from training_rows import TwoLayers, logistic_loss, logistic_rows, weights_of  # noqa: E402

from gdmix.config.training import Training  # noqa: E402
from gdmix.deep import distributed  # noqa: E402
from gdmix.deep.trainer import fit_network  # noqa: E402
from gdmix.errors import EngineError  # noqa: E402

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def run(*command: str | Path) -> None:
    done = subprocess.run(
        [*TORCHRUN, *command],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("ddp")
    run("ddp_program.py", folder)
    return folder


@pytest.fixture(scope="module")
def told(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", CASES)
def test_the_loss_curve_is_that_of_one_process(told: list[dict[str, Any]], name: str) -> None:
    first, second = (told[rank][name] for rank in (0, 1))
    assert first == second
    alone = outcome(name)
    assert [s for s, _ in first["curve"]] == [s for s, _ in alone["curve"]]
    for key in ("curve", "judgements"):
        for (_, value), (_, wanted) in zip(first[key], alone[key], strict=True):
            assert value == pytest.approx(wanted, rel=1e-5)
    assert first["kept"] == alone["kept"]
    assert first["weights"] == pytest.approx(alone["weights"], abs=1e-5)


def test_what_the_first_process_knows_all_do(told: list[dict[str, Any]]) -> None:
    for own in told:
        assert own["size"] == 2
        assert own["given"] == ["offsets", 0]
        assert own["validated"] == {
            "judgements": [[1, 0.3], [2, 0.2], [3, 0.25], [4, 0.4]],
            "kept": 2,
            "steps": 4,
        }


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_no_thread_outlives_the_group(told: list[dict[str, Any]]) -> None:
    """One that does may abort its process while Python ends."""
    for own in told:
        before, after = own["threads"]
        assert before > 0
        assert after == 0


def test_only_the_first_process_writes_and_one_alone_can_go_on(folder: Path) -> None:
    assert sorted(p.name for p in folder.glob("*.pt")) == ["0.pt"]
    training = Training(batch_size=32, **COMMON)
    rest, rows = TwoLayers(), logistic_rows(300)
    report = fit_network(rest, rows, logistic_loss, training, checkpoint=folder / "0.pt")
    assert len(rows.asked) == 20 - 7
    whole = TwoLayers()
    wanted = fit_network(whole, logistic_rows(300), logistic_loss, training)
    assert weights_of(rest) == pytest.approx(weights_of(whole), abs=1e-5)
    assert report.loss == pytest.approx(wanted.loss, rel=1e-5)


def test_one_process_is_a_team_of_its_own(monkeypatch: Any) -> None:
    monkeypatch.delenv("RANK", raising=False)
    own = distributed.team()
    assert (own.rank, own.size, own.is_first) == (0, 1, True)
    assert own.shared("x") == "x"
    assert distributed.together("global", 3) == 3
    assert not distributed.is_worker()
    with distributed.leading():
        pass
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert distributed.world_size() == 1  # not of torchrun: it sets RANK, too
    monkeypatch.setenv("RANK", "3")
    assert (distributed.world_size(), distributed.is_worker()) == (4, True)


def test_another_process_that_is_gone() -> None:
    with (
        pytest.raises(EngineError, match="another process of this training has ended: closed"),
        distributed._others(),
    ):
        raise RuntimeError("closed\nmore")
