"""Processes that hold some of the rows each train as one does that holds all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

torch = pytest.importorskip("torch")

from ddp_program import CASES, GROUP  # noqa: E402
from shard_program import fitted, outcome, shard_of  # noqa: E402
from training_rows import logistic_rows  # noqa: E402

from gdmix.data.keys import Keys  # noqa: E402
from gdmix.deep.batches import BatchPlan, Copies, TrainingRows, split, units_of  # noqa: E402
from gdmix.deep.distributed import Team, joined, team  # noqa: E402
from gdmix.deep.findings import Moments, ValueCounts  # noqa: E402
from gdmix.glm.matrix import CsrMatrix  # noqa: E402

ALONE = Team()


@pytest.fixture(scope="module")
def told(tmp_path_factory: Any) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("shards")
    started = [
        subprocess.Popen(
            [sys.executable, "shard_program.py", str(rank), "2", str(folder)],
            cwd=Path(__file__).parent,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in (0, 1)
    ]
    try:
        for process in started:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
    finally:
        for process in started:
            process.kill()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", CASES)
def test_the_loss_curve_is_that_of_all_rows(told: list[dict[str, Any]], name: str) -> None:
    first, second = (told[rank][name] for rank in (0, 1))
    assert first == second
    alone = outcome(name, ALONE)
    for key in ("curve", "judgements"):
        assert [s for s, _ in first[key]] == [s for s, _ in alone[key]]
        for (_, value), (_, wanted) in zip(first[key], alone[key], strict=True):
            assert value == pytest.approx(wanted, rel=1e-5)
    assert first["kept"] == alone["kept"]
    assert first["weights"] == pytest.approx(alone["weights"], abs=1e-5)


@pytest.mark.parametrize(
    ("name", "task", "response"),
    [
        ("logistic", "logistic_regression", "response"),
        ("linear", "linear_regression", "level"),
    ],
)
def test_a_coordinate_is_that_of_all_rows(
    told: list[dict[str, Any]], name: str, task: str, response: str
) -> None:
    """Vocabulary, numbers of values, moments, the level, and two fits."""
    alone = json.loads(json.dumps(fitted(task, response, ALONE)))
    for own in told:
        for key in ("words", "ids", "sizes"):
            assert own[name][key] == alone[key], key
        for bag, (mean, scale) in alone["moments"].items():
            assert own[name]["moments"][bag][0] == pytest.approx(mean, rel=1e-6)
            assert own[name]["moments"][bag][1] == pytest.approx(scale, rel=1e-6)
        assert own[name]["units"] == pytest.approx(alone["units"], rel=1e-7)
        assert own[name]["norm"] == pytest.approx(alone["norm"], rel=1e-4)
    assert 2 < len(alone["words"]) < 10 and 2 < len(alone["ids"]["user"]) < 15  # some are rare
    scores = {**told[0][name]["scores"], **told[1][name]["scores"]}
    assert len(scores) == 400
    scale = alone["units"][1]
    for uid, value in alone["scores"].items():
        assert scores[uid] == pytest.approx(value, abs=1e-5 * scale, rel=1e-6)


def test_arrays_that_move_between_processes(told: list[dict[str, Any]]) -> None:
    for rank, own in enumerate(told):
        assert own["size"] == 2
        assert own["primitives"] == {
            "gathered": [10, 11, 12],
            "exchanged": [[rank + 0.5] * rank, [rank + 0.5] * (rank + 2)],
            "nothing": [0, 0],
            "sum": [2.0, 1.0],
            "largest": [1.0, 1.0],
            "together": [0, 1],
        }


def test_a_process_that_leaves_early(told: list[dict[str, Any]]) -> None:
    assert told[1]["mistake"] == "DataError: mine"
    assert told[0]["mistake"].startswith("PeerEnded: another process of this training has ended")
    assert [own["apart"] for own in told] == [1, 1]


def test_one_process_alone() -> None:
    with joined(0, 1, lambda text: [text]) as own:
        assert team() is own and own.has_shards and own.size == 1
        assert own.sum(np.ones(2)).tolist() == own.maximum(np.ones(2)).tolist() == [1, 1]
        assert own.gathered(np.arange(3)).tolist() == own.exchange([np.arange(3)])[0].tolist()
        assert own.put_together(4, max) == 4
        rows = logistic_rows(300)
        rows.uid = np.random.default_rng(0).permutation(300)
        known = TrainingRows.of(rows, own)
        units = units_of(known)
        numbers = known.holding.own(units, np.arange(units.size))
        assert rows.uid[numbers].tolist() == list(range(300))  # in the order of uids
        assert known.weight.tolist() == rows.weight[numbers].tolist()
        rows.uid[:] = 7  # of rows that are not checked: each is there once all the same
        again = TrainingRows.of(rows, own).holding.own(units, np.arange(units.size))
        assert again.tolist() == list(range(300))
    assert team().size == 1 and not team().has_shards


class Ranks(Team):
    """One of two processes, given what `gathered` is to return, call by call."""

    def __init__(self, rank: int, *answers: Any) -> None:
        super().__init__(rank, 2, has_shards=True)
        object.__setattr__(self, "answers", iter(answers))

    def gathered(self, array: Any) -> Any:
        both = next(self.answers)
        assert both[self.rank].tolist() == array.tolist()
        return np.concatenate(both)


def known_to(rank: int, group: Any = None) -> tuple[Any, TrainingRows]:
    rows = logistic_rows(300, group=group)
    shards = [shard_of(rows, r) for r in (0, 1)]
    answers: list[Any] = [[np.array([s.n_rows]) for s in shards], [s.uid for s in shards]]
    if group is not None:
        sizes = [s.group.max() + 1 for s in shards]
        answers.append([np.array([n]) for n in sizes])
        answers.append([shards[0].group, shards[1].group + sizes[0]])
    answers.append([s.weight for s in shards])
    return shards[rank], TrainingRows.of(shards[rank], Ranks(rank, *answers))


@pytest.mark.parametrize("group", [None, GROUP])
def test_shards_hold_each_row_of_a_step_once(group: Any) -> None:
    rows = logistic_rows(300, group=group)
    settings = {"batch_size": 20, "accumulate": 2, "seed": 3}
    training, judging = split(units_of(rows), 0.1, seed=3)
    plan = BatchPlan(training, rows.weight, **settings)
    parts: list[Any] = []
    for rank in (0, 1):
        shard, known = known_to(rank, group)
        assert known.weight.tolist() == rows.weight.tolist()
        own_training, own_judging = split(units_of(known), 0.1, seed=3)
        own = BatchPlan(own_training, known.weight, **settings)
        assert own.steps_per_epoch == plan.steps_per_epoch
        steps = [own.share(step, known.holding) for step in range(2 * own.steps_per_epoch)]
        judged = known.holding.own(own_judging, np.arange(own_judging.size))
        parts.append((shard, steps, judged))
    number = [(shard.uid + 50) // 7 for shard, _, _ in parts]  # as shard_of has it
    for step in range(2 * plan.steps_per_epoch):
        whole = plan.share(step, Copies())
        for own_number, (_, steps, _) in zip(number, parts, strict=True):
            for k, part in enumerate(whole.parts):  # in the order of the whole
                held = own_number[steps[step].parts[k]]
                assert held.tolist() == [r for r in part.tolist() if r in set(own_number.tolist())]
            assert steps[step].weight == whole.weight
            assert steps[step].expected_weight == whole.expected_weight
        rest = [n[s[step].parts[k]] for n, (_, s, _) in zip(number, parts, strict=True)
                for k in (0, 1)]  # fmt: skip
        assert sorted(np.concatenate(rest)) == sorted(np.concatenate(whole.parts))
    judged = [n[own] for n, (_, _, own) in zip(number, parts, strict=True)]
    assert sorted(np.concatenate(judged)) == sorted(judging.rows)


def test_counts_of_parts_are_those_of_the_whole() -> None:
    values = pa.array(["a", "b", "d"], pa.large_string())
    one = ValueCounts.of(Keys(values, np.array([2, 2, 0, -1, 1], np.int32)))
    other = ValueCounts.of(Keys(pa.array(["c", "d"], pa.large_string()), np.array([1, 0, 1])))
    both = one.plus(other)
    assert both.values.to_pylist() == ["a", "b", "c", "d"]
    assert both.counts.tolist() == [1, 1, 1, 4]
    none = ValueCounts.of(Keys(pa.array([], pa.large_string()), np.empty(0, np.int32)))
    assert none.plus(one).values.equals(values) and one.plus(none).counts.tolist() == [1, 1, 2]


def test_moments_of_parts_are_those_of_the_whole() -> None:
    rng = np.random.default_rng(1)
    table = rng.normal([1e6, -3, 0, 7], [1, 0.1, 5, 0], (90, 4)).astype(np.float32)
    table[rng.random((90, 4)) < 0.3] = np.nan
    table[:50, 2] = np.nan  # nothing in the first parts
    weight = rng.choice([0.0, 1.0, 2.5], 90)
    total = None
    for part in (slice(0, 30), slice(30, 50), slice(50, 90), slice(0, 0)):
        own = Moments.of(CsrMatrix.dense(table[part], np.arange(90)[: part.stop - part.start]),
                         weight[part], True)  # fmt: skip
        total = own if total is None else total.plus(own)
    assert total is not None
    masked = np.ma.masked_invalid(table.astype(np.float64))
    mean = np.ma.average(masked, 0, weights=weight)
    variance = np.ma.average((masked - mean) ** 2, 0, weights=weight)
    assert total.mean == pytest.approx(np.asarray(mean), rel=1e-12)
    assert total.variance == pytest.approx(np.asarray(variance), rel=1e-9, abs=1e-9)
