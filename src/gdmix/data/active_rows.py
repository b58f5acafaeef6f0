"""Which rows train an entity's model: active ones. Passive rows are only scored with it.

An entity with too few rows has no model. Of one with too many a sample is active: those whose
draw, a hash of seed and uid, is smallest. It is the same sample whatever the order of rows, the
threads and the memory limit. So is the sample of the rows of response 0, before that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gdmix import memory
from gdmix.data.entity_blocks import rows_in_memory
from gdmix.data.keys import hash_texts, renumbered
from gdmix.glm.compiled import kernel
from gdmix.glm.random_bits import mix
from gdmix.glm.row_order import order_rows

F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]


@dataclass(frozen=True)
class RowLimits:
    """How many rows an entity's model is trained on.

    Attributes
    ----------
    least
        An entity with fewer has no model.
    most
        Of an entity with more, that many are active; None: all.
    reweight
        Whether the active rows of such an entity weigh for all of its rows.
    seed
        Another seed is another sample.
    """

    least: int = 1
    most: int | None = None
    reweight: bool = True
    seed: int = 0


@dataclass(frozen=True)
class ActiveRows:
    """Which model each row trains or is scored with.

    Attributes
    ----------
    entities
        (E,) the entities that have a model, ascending.
    active
        (n,) number of the model that the row trains, -1 where it trains none.
    passive
        (n,) number of the model that only scores the row, -1 where none does; None if every row
        with a model is active.
    weight
        (n,) weight of the row in training.
    """

    entities: I64
    active: I32
    passive: I32 | None
    weight: F64


@dataclass(frozen=True)
class RowsElsewhere:
    """Rows of some entities that lie in another place, and are only scored.

    Attributes
    ----------
    counts
        (entities,) how many of each entity's there are; without those that stand for none.
    columns
        The coordinate columns that such rows have, by number of the entity; under -1 those of
        entities that have no other rows.
    """

    counts: I64
    columns: dict[int, I64]


def draws(uid: I64, seed: int | np.uint64) -> F64:
    """Return the number from 0 to 1 that decides whether a row is in its entity's sample, (n,)."""
    result = memory.empty(uid.size)
    _draw(uid, np.uint64(seed), result)
    return result


def sample_negatives(uid: I64, response: F64, share: float, seed: int, name: str) -> F64:
    """Return (n,) for how many rows each row stands, where only some of response 0 are kept.

    A row of another response stands for itself, one of response 0 for 1 / share, or for 0 if it
    is left out: the sum over rows is right on average. It depends on nothing but these arguments.

    Parameters
    ----------
    share
        Of the rows of response 0, on average.
    name
        Of the coordinate: another one has another sample.
    """
    salt = hash_texts(pa.array([f"negatives of {name}"], pa.large_string()))[0]
    stands = draws(uid, np.uint64(seed) ^ salt)
    _thin_negatives(response, share, stands)
    return stands


def choose_rows(
    entity: I32,
    n_entities: int,
    uid: I64,
    weight: F64,
    limits: RowLimits,
    stands: F64 | None = None,
    elsewhere: I64 | None = None,
) -> ActiveRows:
    """Choose the entities that have a model and the rows that train it.

    Parameters
    ----------
    entity
        (n,) number of each row's entity, -1 where it has none.
    stands
        (n,) from `sample_negatives`. Rows that stand for none are passive; the limits are those
        of the others.
    elsewhere
        (entities,) how many further rows each entity has that no sample has.
    """
    if elsewhere is None:
        elsewhere = memory.zeros(n_entities, np.int64)
    if stands is None:
        return _choose(entity, uid, weight, limits, elsewhere)
    sampled: I32 = memory.copy(entity)
    sampled[stands == 0.0] = -1
    new_weight = memory.copy(weight)
    new_weight *= stands
    chosen = _choose(sampled, uid, new_weight, limits, elsewhere)
    has_model = np.zeros(n_entities, np.bool_)
    has_model[chosen.entities] = True
    model = renumbered(entity, _numbers(has_model))
    passive: I32 = memory.copy(model)
    passive[chosen.active >= 0] = -1
    return ActiveRows(chosen.entities, chosen.active, passive, chosen.weight)


def _choose(entity: I32, uid: I64, weight: F64, limits: RowLimits, elsewhere: I64) -> ActiveRows:
    n_entities = elsewhere.size
    counts: I64 = memory.copy(elsewhere)
    _count_rows(entity, counts)
    has_model = counts >= limits.least
    entities = np.flatnonzero(has_model)
    model = entity
    if entities.size < n_entities:
        model = renumbered(entity, _numbers(has_model))
    is_capped = has_model & (counts > (limits.most or np.inf))
    if not is_capped.any():
        return ActiveRows(entities, model, None, weight)
    capped = renumbered(entity, _numbers(is_capped))
    share = _sample(capped, uid, limits, elsewhere[is_capped])
    active, passive = memory.empty(entity.size, np.int32), memory.empty(entity.size, np.int32)
    new_weight = memory.copy(weight)
    _divide(model, capped, share, active, passive, new_weight)
    return ActiveRows(entities, active, passive, new_weight if limits.reweight else weight)


def _numbers(chosen: NDArray[np.bool_]) -> I32:
    """Return new numbers of those chosen, -1 of all others."""
    return np.where(chosen, np.cumsum(chosen) - 1, -1).astype(np.int32)


def _sample(entity: I32, uid: I64, limits: RowLimits, elsewhere: I64) -> F64:
    """Return (n,) for how many rows each row stands: 0 if it is not in the sample."""
    assert limits.most is not None
    row_ptr, rows = order_rows(entity, elsewhere.size, rows_in_memory(uid.size, 16))
    own = rows.gather(draws(uid, limits.seed))
    _keep_smallest(row_ptr, elsewhere, limits.most, own)
    return rows.scatter(own)


@kernel
def _count_rows(entity: I32, counts: I64) -> None:
    for e in entity:
        if e >= 0:
            counts[e] += 1


@kernel
def _draw(uid: I64, seed: np.uint64, draws: F64) -> None:
    """Fill in numbers from 0 to 1, as many as single bits of a float's mantissa tell apart."""
    salt = mix(seed + np.uint64(0x9E3779B97F4A7C15))
    for i in range(uid.size):
        draws[i] = (mix(np.uint64(uid[i]) ^ salt) >> np.uint64(11)) * 2.0**-53


@kernel
def _thin_negatives(response: F64, share: float, draws: F64) -> None:
    """Replace draws by the rows each row stands for."""
    for i in range(draws.size):
        if response[i] != 0.0:
            draws[i] = 1.0
        else:
            draws[i] = 1.0 / share if draws[i] < share else 0.0


@kernel
def _keep_smallest(row_ptr: I64, elsewhere: I64, most: int, draws: F64) -> None:
    """Replace each entity's draws: the smallest by the rows each stands for, others by 0."""
    for e in range(row_ptr.size - 1):
        stands = (row_ptr[e + 1] - row_ptr[e] + elsewhere[e]) / most
        own = draws[row_ptr[e] : row_ptr[e + 1]]
        last = kth_smallest(own.copy(), most - 1)
        kept = 0
        for k in range(own.size):
            # Distinct uids have distinct draws, but for a coincidence in 53 bits.
            if own[k] <= last and kept < most:
                own[k] = stands
                kept += 1
            else:
                own[k] = 0.0


@kernel
def kth_smallest(a: F64, k: int) -> float:
    """Return the number that k others are below, k < n (Hoare 1961, FIND); reorders `a`."""
    low, high = 0, a.size - 1
    while low < high:
        pivot = a[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while a[i] < pivot:
                i += 1
            while a[j] > pivot:
                j -= 1
            if i <= j:
                a[i], a[j] = a[j], a[i]
                i += 1
                j -= 1
        if k <= j:
            high = j
        elif k >= i:
            low = i
        else:
            break
    return float(a[k])


@kernel
def _divide(model: I32, capped: I32, share: F64, active: I32, passive: I32, weight: F64) -> None:
    for i in range(model.size):
        active[i], passive[i] = model[i], -1
        if capped[i] >= 0:
            if share[i] > 0.0:
                weight[i] *= share[i]
            else:
                active[i], passive[i] = -1, model[i]
