"""What is done at the homes of rows: scores come back, are added up, sent on and written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gdmix.config import ModelConfig
from gdmix.data.dataset import Dataset
from gdmix.data.external_scores import match_scores
from gdmix.data.keys import as_int64
from gdmix.data.score_files import score_tables, without, write_scores
from gdmix.engines.spark.exchange import (
    Addressed,
    Route,
    addressed,
    messages,
    opened,
)
from gdmix.engines.spark.tasks.arrival import homes_of
from gdmix.engines.spark.tasks.kinds import (
    BAGS,
    FACTS,
    GIANTS,
    HEAD,
    OFFSET,
    ROW,
    SCORE,
    STAYING,
    TRAIN,
)
from gdmix.engines.spark.tasks.layout import Layout
from gdmix.glm.losses import total_loss
from gdmix.model.base import CoordinateModel
from gdmix.model.mixed_model import LOSSES

F64 = NDArray[np.float64]


def facts_of(name: str) -> str:
    """Return the kind of the facts that lie beside a coordinate's scores."""
    return f"{FACTS} {name}"


def come_home(
    layout: Layout, partial_only: bool, home: int, pieces: Iterable[Addressed]
) -> Iterator[Addressed]:
    """Put the scores of a home's rows in their order.

    Parameters
    ----------
    partial_only
        Whether some partitions send none: their rows' scores are then 0.

    Yields
    ------
    tuple
        The scores; the facts that came with them, under `facts_of` the coordinate.
    """
    found = opened(pieces)
    heads, came = found[HEAD][home], found.get(SCORE, {})
    staying, giants = found.get(STAYING, {}).get(home), found.get(GIANTS, {})
    for partition, facts in found.get(FACTS, {}).items():
        yield from addressed(home, facts_of(layout.name), partition, facts)
    result = {}
    for role, rows in heads.items():
        route = layout.route(role, rows, home)
        parts = {target: own[role] for target, own in came.items() if role in own}
        if partial_only:
            parts = {
                int(t): parts.get(int(t), np.zeros(route.rows(int(t)).size)) for t in route.targets
            }
        result[role] = route.back(parts, f"coordinate '{layout.name}'")
        if staying is not None:
            own_scores = sum(model.score(staying[role]) for model in giants.values())
            result[role][route.staying] = own_scores
    yield from addressed(home, f"{SCORE} {layout.name}", home, result)


def score_at_home(
    name: str, model: CoordinateModel, home: int, pieces: Iterable[Addressed]
) -> Iterator[Addressed]:
    """Score the rows of a home with a whole model."""
    found = opened(pieces)
    heads, bags = found[HEAD][home], found[BAGS][home]
    scores = {r: model.score(replace(rows, bags=bags[r])) for r, rows in heads.items()}
    yield from addressed(home, f"{SCORE} {name}", home, scores)


def send_scores(
    role: str, columns: Sequence[str], homes: int, partition: int, tables: Iterator[pa.Table]
) -> Iterator[tuple[int, bytes]]:
    """Send scores from files, each with its number, to the homes of the rows of their uids."""
    for number, table in enumerate(t for t in tables if t.num_rows):
        numbers = table[ROW].to_numpy()
        (batch,) = table.select(columns).combine_chunks().to_batches()
        route = Route.to(homes_of(as_int64(batch.columns[0])[0], homes), homes)
        for home in route.targets:
            chosen, place = route.rows(int(home)), (partition << 32) + number
            part = numbers[chosen], batch.take(pa.array(chosen))
            yield from messages(addressed(int(home), role, place, part))


def match_at_home(name: str, home: int, pieces: Iterable[Addressed]) -> Iterator[Addressed]:
    """Find the scores of a home's rows among those that were sent there.

    Yields
    ------
    tuple
        Scores; by role, what the rows are called and what is wrong with their scores.
    """
    found = opened(pieces)
    scores, findings = {}, {}
    for role, rows in found[HEAD][home].items():
        scores[role], own = match_scores(found.get(role, {}).values(), rows)
        findings[role] = rows.label, own
    yield from addressed(home, f"{SCORE} {name}", home, scores)
    yield from addressed(home, FACTS, home, findings)


@dataclass(frozen=True)
class AtHome:
    """The rows of a home and all their scores."""

    heads: Mapping[str, Dataset]
    scores: Mapping[str, Mapping[str, F64]]

    @staticmethod
    def of(home: int, pieces: Iterable[Addressed]) -> AtHome:
        """Open the pieces of a home."""
        found = opened(pieces)
        heads = found.pop(HEAD)[home]
        names = (kind for kind in found if kind.startswith(f"{SCORE} "))
        return AtHome(heads, {k[len(SCORE) + 1 :]: found[k][home] for k in names})

    def total(self, role: str, without: Sequence[str] = ()) -> F64:
        """Return offset plus scores, summed anew, in the order of their names."""
        total = self.heads[role].offset.copy()
        for name in sorted(self.scores):
            if name not in without:
                total += self.scores[name][role]
        return total


def send_offsets(
    layout: Layout, without: Sequence[str], home: int, pieces: Iterable[Addressed]
) -> Iterator[Addressed]:
    """Send each training row's score of all else to where a coordinate is fitted."""
    rows = AtHome.of(home, pieces)
    route, total = layout.route(TRAIN, rows.heads[TRAIN], home), rows.total(TRAIN, without)
    for target in route.targets:
        yield from addressed(int(target), OFFSET, home, total[route.rows(int(target))])


def loss_of(config: ModelConfig, own: AtHome) -> tuple[float, int]:
    """Return the weighted loss of a home's training rows, and how many weigh anything."""
    rows = own.heads[TRAIN]
    loss = total_loss(LOSSES[config.task], own.total(TRAIN), rows.response, rows.weight)
    return float(loss), int(np.count_nonzero(rows.weight))


def write_home_scores(
    config: ModelConfig,
    names: Mapping[str, Sequence[str]],
    folder: Path,
    home: int,
    pieces: Iterable[Addressed],
) -> Iterator[Addressed]:
    """Write the score files of a home's rows, a part of each.

    Parameters
    ----------
    names
        Coordinate to the names of the scores that it is the sum of.
    """
    own = AtHome.of(home, pieces)
    for role, every in own.heads.items():
        rows = replace(every, keys=without(every.keys, config.text_keys))
        total = own.total(role)
        for name, parts in names.items():
            values = sum((own.scores[part][role] for part in parts), np.zeros(rows.n_rows))
            tables = score_tables(rows, config.task, total, {"score": values})
            write_scores(tables, folder / name / f"{role}_scores" / f"part-{home:05d}.parquet")
    yield from addressed(home, FACTS, home, None)
