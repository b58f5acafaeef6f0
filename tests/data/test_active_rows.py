from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gdmix import memory
from gdmix.data import entity_blocks
from gdmix.data.active_rows import ActiveRows, RowLimits, choose_rows

SIZES = [1, 2, 3, 10, 40, 500]
ENTITY = np.repeat(np.arange(-1, 6), [7, *SIZES]).astype(np.int32)
UID = np.arange(ENTITY.size) * 3 - 50
WEIGHT = np.linspace(0.5, 2.0, ENTITY.size)


def choose(limits: RowLimits, order: Any = slice(None)) -> ActiveRows:
    return choose_rows(ENTITY[order], len(SIZES), UID[order], WEIGHT[order], limits)


def test_without_limits_every_row_with_an_entity_is_active() -> None:
    chosen = choose_rows(ENTITY, len(SIZES), UID, WEIGHT, RowLimits())
    assert chosen.entities.tolist() == [0, 1, 2, 3, 4, 5]
    assert chosen.active is ENTITY
    assert chosen.passive is None
    assert chosen.weight is WEIGHT


def test_an_entity_with_too_few_rows_has_no_model() -> None:
    chosen = choose(RowLimits(least=3))
    assert chosen.entities.tolist() == [2, 3, 4, 5]
    np.testing.assert_array_equal(chosen.active, np.where(ENTITY >= 2, ENTITY - 2, -1))
    assert chosen.passive is None
    assert choose(RowLimits(least=501)).entities.size == 0


@pytest.mark.parametrize("reweight", [True, False])
@pytest.mark.parametrize("most", [1, 3, 10, 39, 499])
def test_a_sample_of_the_rows_is_active(most: int, reweight: bool) -> None:
    chosen = choose(RowLimits(least=2, most=most, reweight=reweight) if most > 1 else
                    RowLimits(most=most, reweight=reweight))  # fmt: skip
    assert chosen.passive is not None
    for number, e in enumerate(chosen.entities):
        own = e == ENTITY
        active = own & (chosen.active == number)
        assert active.sum() == min(SIZES[e], most)
        np.testing.assert_array_equal(own & ~active, chosen.passive == number)
        share = SIZES[e] / active.sum() if reweight else 1.0
        np.testing.assert_allclose(chosen.weight[active], WEIGHT[active] * share)
    assert (chosen.active[ENTITY < 0] == -1).all()
    assert (chosen.passive[ENTITY < 0] == -1).all()


def active_uids(chosen: ActiveRows, uid: NDArray[Any]) -> set[int]:
    return set(uid[chosen.active >= 0].tolist())


def test_the_sample_depends_on_uids_and_seed_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = RowLimits(most=10)
    expected = active_uids(choose(limits), UID)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(ENTITY.size)
        assert active_uids(choose(limits, order), UID[order]) == expected
    # An entity's sample does not depend on other entities, nor on a smaller limit of them.
    rest = np.flatnonzero(ENTITY == 5)
    assert active_uids(choose(limits, rest), UID[rest]) <= expected
    assert active_uids(choose(RowLimits(most=5)), UID) <= expected
    assert active_uids(choose(RowLimits(most=10, seed=1)), UID) != expected
    monkeypatch.setattr(memory, "_SMALLEST_MAPPED", 1)
    monkeypatch.setattr(memory, "_HELD_SHARE", 0.0)
    monkeypatch.setattr(entity_blocks, "_PART_SHARE", 1e-12)
    with memory.limited(10**9, tmp_path / "scratch"):
        parted = choose(limits)
        assert active_uids(parted, UID) == expected
        np.testing.assert_array_equal(parted.weight, choose(limits).weight)


def test_the_sample_is_spread_evenly() -> None:
    n = 200_000
    uid = np.arange(n) * 64  # regular uids: no pattern of theirs may show
    entity = np.zeros(n, np.int32)
    chosen = choose_rows(entity, 1, uid, np.ones(n), RowLimits(most=n // 4))
    active = chosen.active >= 0
    for part in np.array_split(active, 20):
        assert part.mean() == pytest.approx(0.25, abs=0.02)
    for step in range(2, 9):
        assert active[::step].mean() == pytest.approx(0.25, abs=0.02)
    assert np.mean(active[1:] & active[:-1]) == pytest.approx(0.0625, abs=0.005)


def test_equal_uids_are_sampled_too() -> None:
    chosen = choose_rows(
        np.zeros(9, np.int32), 1, np.zeros(9, np.int64), np.ones(9), RowLimits(most=4)
    )
    assert (chosen.active >= 0).sum() == 4
