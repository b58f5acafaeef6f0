"""Models and scores in Avro, in GDMix's folders, written by tasks.

GDMix divides the entities of a random effect by a hash of their text (`data.gdmix_layout`), which
is not how they are divided to be fitted: so models and scores are sent to where they are written.
A file of models has all of a partition of GDMix, as GDMix looks for them by its number. Scores of
such a partition may be in several files, of as many rows as a home has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gdmix.config import AvroLayout, ModelConfig, RandomEffect, Task
from gdmix.data.dataset import Dataset
from gdmix.data.gdmix_layout import model_part, partitions_of
from gdmix.data.gdmix_scores import (
    TRAIN_SCORES,
    field_names,
    rows_of,
    score_files,
    totals,
    trained_on,
)
from gdmix.data.partition import concatenated as concatenated_rows
from gdmix.data.partition import take_rows
from gdmix.data.score_files import score_tables, write_gdmix_scores
from gdmix.engines.spark.cluster import Cluster, united
from gdmix.engines.spark.exchange import Addressed, Pieces, Placement, addressed, opened
from gdmix.engines.spark.giants import Giants
from gdmix.engines.spark.scores import SparkScores
from gdmix.engines.spark.tasks.kinds import FACTS, HEAD, SCORE, TRAIN
from gdmix.engines.spark.tasks.layout import Layout
from gdmix.model.base import CoordinateModel
from gdmix.model.coefficient_files import part_file, part_numbers, read_random
from gdmix.model.coefficients import RandomCoefficients, concatenated
from gdmix.model.linear import LinearModel
from gdmix.model.mixed_model import TrainedModel
from gdmix.model.photon_avro import check_names, described, write_file
from gdmix.model.stored import StoredModel

Bools = NDArray[np.bool_]

KEYS, ACTIVE, MODELS = "keys", "active", "models"


# Scores


@dataclass(frozen=True)
class ScoreFolders:
    """What tasks write of scores.

    Attributes
    ----------
    config, avro
        Of the run.
    parts
        Coordinate to the names of the scores that it is the sum of.
    homes
        Number of home partitions.
    limited
        Where it is found out which rows a random effect was trained on, of those that were not
        trained on all.
    """

    config: ModelConfig
    avro: AvroLayout
    parts: Mapping[str, Sequence[str]]
    homes: int
    limited: Mapping[str, Layout]

    def partitions(self, name: str) -> int:
        """Return into how many partitions GDMix divides the rows of a coordinate."""
        is_random = isinstance(self.config.coordinates[name], RandomEffect)
        return self.avro.partitions.get(name, 1) if is_random else 1

    def shares(self, name: str) -> int:
        """Return how many files there are of each: together as many as homes, at least."""
        return -(-self.homes // self.partitions(name))


def write_score_folders(
    cluster: Cluster,
    scores: SparkScores,
    heads: Pieces,
    homes: int,
    config: ModelConfig,
    parts: Mapping[str, Sequence[str]],
    folder: Path,
    avro: AvroLayout,
    giants: Mapping[str, Giants],
) -> None:
    """Write all coordinates' scores of all rows.

    Parameters
    ----------
    scores, heads, homes
        The score table, the rows without bags, the number of home partitions.
    parts
        Coordinate to the names of the scores that it is the sum of.
    folder
        Of the run.
    giants
        Entities of random effects of which most rows are passive.

    Raises
    ------
    OutputError
        If the system refuses to write there.
    """
    random = {n: s for n, s in config.coordinates.items() if isinstance(s, RandomEffect)}
    limited = {n: s for n, s in random.items() if _is_limited(s)}
    layouts = {n: _by_entity(n, s.key, homes, giants.get(n)) for n, s in limited.items()}
    active = []
    for name, layout in layouts.items():
        asked = cluster.send(cluster.map(heads, partial(send_keys, layout)), homes)
        find = partial(find_active, layout, limited[name], config.seed)
        active.append(cluster.send(cluster.map(asked, find), homes))
    task = ScoreFolders(config, avro, parts, homes, layouts)
    divided = cluster.map(united(scores.at_home(), *active), partial(divide_scores, task))
    targets = max(task.partitions(name) * task.shares(name) for name in parts)
    write = partial(write_divided_scores, folder, field_names(config, avro))
    cluster.collect(cluster.map(cluster.send(divided, targets), write))


def _is_limited(spec: RandomEffect) -> bool:
    return spec.min_active_rows > 1 or spec.max_active_rows is not None


def _by_entity(name: str, entity: str, partitions: int, giants: Giants | None) -> Layout:
    if giants is not None:  # which rows are called active does not depend on this
        spec = giants.spec.model_copy(update={"negative_sampling": None})
        giants = replace(giants, spec=spec)
    placement = Placement.balanced(partitions, 0, {})
    return Layout(name, partitions, entity, placement, (), (entity,), giants)


def send_keys(layout: Layout, home: int, pieces: Iterable[Addressed]) -> Iterator[Addressed]:
    """Send the training rows of a home, without features, to where all of an entity are."""
    rows: Dataset = opened(pieces)[HEAD][home][TRAIN]
    route = layout.route(TRAIN, rows, home)
    for target in route.targets:
        part = take_rows(rows, route.rows(int(target)), layout.bags, layout.keys)
        yield from addressed(int(target), KEYS, home, part)


def find_active(
    layout: Layout, spec: RandomEffect, seed: int, partition: int, pieces: Iterable[Addressed]
) -> Iterator[Addressed]:
    """Find out which rows a random effect was trained on; tell it to their homes."""
    parts: dict[int, Dataset] = opened(pieces).get(KEYS, {})
    if not parts:
        return
    active = trained_on(concatenated_rows(list(parts.values())), spec, seed)
    first = 0
    for home, part in parts.items():
        own = active[first : first + part.n_rows]
        first += part.n_rows
        yield from addressed(home, f"{ACTIVE} {layout.name}", partition, own)


def divide_scores(
    task: ScoreFolders, home: int, pieces: Iterable[Addressed]
) -> Iterator[Addressed]:
    """Send the scores of a home's rows to where they are written: a piece is of a file's kind."""
    found = opened(pieces)
    config = task.config
    columns = list(field_names(config, task.avro))
    for role, every in found[HEAD][home].items():
        if not every.n_rows:
            continue
        rows, split = replace(every, keys={}), f"{role}_scores"
        own = {
            name: sum((found[f"{SCORE} {of}"][home][role] for of in parts), np.zeros(rows.n_rows))
            for name, parts in task.parts.items()
        }
        for name, total in totals(rows.offset, own, config):
            active = None
            if split == TRAIN_SCORES:
                active = _active(task, name, every, home, found)
            shares = task.shares(name)
            part = home % shares
            for file in score_files(every, name, split, config, task.avro, active, part):
                tables = score_tables(rows, config.task, total, {"score": own[name]})
                table = pa.concat_tables(rows_of(tables, file.rows)).select(columns)
                target = file.partition * shares + part
                yield from addressed(target, str(file.path), home, table)


def _active(task: ScoreFolders, name: str, rows: Dataset, home: int, found: Any) -> Bools | None:
    """Return which of a home's training rows a random effect was trained on, (n,)."""
    spec = task.config.coordinates[name]
    if not isinstance(spec, RandomEffect):
        return None
    layout = task.limited.get(name)
    if layout is None:  # those of any entity
        return trained_on(rows, spec, task.config.seed)
    flags = layout.route(TRAIN, rows, home).back(
        found.get(f"{ACTIVE} {name}", {}), f"coordinate '{name}', its active rows"
    )
    return flags > 0.0


def write_divided_scores(
    folder: Path, names: Mapping[str, str], target: int, pieces: Iterable[Addressed]
) -> Iterator[Addressed]:
    """Write score files, whose paths are the kinds of the pieces."""
    for path, tables in opened(pieces).items():
        write_gdmix_scores(iter(tables.values()), folder / path, names, others=False)
    yield from addressed(target, FACTS, target, None)


# Models


def write_random_effects(
    cluster: Cluster, model: TrainedModel, folder: Path, avro: AvroLayout
) -> TrainedModel:
    """Write the models of random effects into a model folder.

    Returns
    -------
    TrainedModel
        Those of its coordinates are now what was written.

    Raises
    ------
    OutputError
        If the system refuses to write there.
    ModelError
        If the names of two hashed bags would be the same.
    """
    coordinates: dict[str, CoordinateModel] = {}
    for name, own in model.coordinates.items():
        coordinates[name] = own
        if not isinstance(own, StoredModel) or own.type != "random_effect":
            continue
        target, features = folder / name / "models", model.feature_names(name)
        check_names(features, target)
        parts, partitions = part_numbers(own.folder), avro.partitions.get(name, 1)
        divide = partial(divide_models, own.folder, parts, partitions)
        divided = cluster.send(cluster.on_each(len(parts), divide), partitions)
        write = partial(write_divided_models, own, features, model.task, target)
        cluster.collect(cluster.map(divided, write))
        kind = pq.read_schema(part_file(own.folder, parts[0])).field("entity").type
        entry = {key: value for key, value in own.entry.items() if key != "layout"}
        coordinates[name] = StoredModel(target, entry | described(kind), model.indices)
    return replace(model, coordinates=coordinates)


def divide_models(
    folder: Path, parts: Sequence[int], partitions: int, number: int
) -> Iterator[Addressed]:
    """Send the models of a part of a random effect to where they are written."""
    models = replace(read_random(folder, parts[number]), hessians=None, hessian_ptr=None)
    of_entity = partitions_of(models.entities, partitions)
    for target in np.unique(of_entity).tolist():
        own = models.take(np.flatnonzero(of_entity == target))
        yield from addressed(target, MODELS, number, own)


def write_divided_models(
    model: StoredModel,
    features: tuple[pa.Array, pa.Array],
    task: Task,
    folder: Path,
    partition: int,
    pieces: Iterable[Addressed],
) -> Iterator[Addressed]:
    """Write the models of a partition, by entity; a file without any if there is none."""
    parts = list(opened(pieces).get(MODELS, {}).values())
    models = concatenated(parts) if parts else _no_models()
    entry = model.entry
    own = LinearModel(
        tuple(entry["features"]),
        bool(entry["intercept"]),
        models,
        entry["entity"],
        float(entry.get("dispersion", 1.0)),
    )
    write_file(own, features, task, folder / model_part(partition))
    yield from addressed(partition, FACTS, partition, None)


def _no_models() -> RandomCoefficients:
    ids, ends = pa.array([], pa.large_string()), np.zeros(1, np.int64)
    return RandomCoefficients(ids, ends, np.empty(0, np.uint32), np.empty(0))
