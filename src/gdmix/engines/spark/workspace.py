"""A configuration bound to rows of a cluster."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gdmix.config import (
    AvroLayout,
    CoordinateSpec,
    DeepFixedEffect,
    ExternalScores,
    FixedEffect,
    ModelConfig,
    RandomEffect,
)
from gdmix.coordinates.base import FitReport
from gdmix.coordinates.fixed_effect import check_room
from gdmix.coordinates.recentring import ManyModels, recentre_many
from gdmix.coordinates.regularization import Regularization, regularization
from gdmix.coordinates.uncertainty import kinds_of, with_uncertainty
from gdmix.data.external_scores import score_columns
from gdmix.data.feature_summary import FeatureSummary
from gdmix.engines.binding import prior_of
from gdmix.engines.spark.avro_files import write_random_effects, write_score_folders
from gdmix.engines.spark.cluster import Cluster, united
from gdmix.engines.spark.coordinates import SparkCoordinate, Work
from gdmix.engines.spark.deep_effect import SparkDeepEffect, deep_layout
from gdmix.engines.spark.exchange import Pieces, Placement, addressed, of_kind
from gdmix.engines.spark.fixed_effect import SparkFixedEffect
from gdmix.engines.spark.giants import Giants
from gdmix.engines.spark.reading import Rows
from gdmix.engines.spark.scores import SparkScores
from gdmix.engines.spark.sources import open_spark_rows
from gdmix.engines.spark.tasks.features import summarize_bags
from gdmix.engines.spark.tasks.fitting import prepare
from gdmix.engines.spark.tasks.home import (
    come_home,
    match_at_home,
    score_at_home,
    send_scores,
    write_home_scores,
)
from gdmix.engines.spark.tasks.kinds import FACTS, GIANTS, HEAD, SCORE, START, TRAIN, VALIDATION
from gdmix.engines.spark.tasks.layout import Layout, count_giants, count_heavy, depart, stay
from gdmix.engines.spark.weights import GatheredWeights
from gdmix.errors import ConfigError
from gdmix.model.base import CoordinateModel
from gdmix.model.coefficients import RandomCoefficients
from gdmix.model.external import ExternalModel
from gdmix.model.linear import LinearModel
from gdmix.model.mixed_model import LOSSES, TrainedModel
from gdmix.model.store import FolderOf, nowhere, write_model
from gdmix.model.stored import StoredModel

log = logging.getLogger("gdmix")

_ROWS_PER_PARTITION = 200_000
_PARTITIONS_PER_SLOT = 2
_HEAVY_SHARE = 0.25  # of a partition's rows: an entity of more is placed by hand


class SparkWorkspace:
    """A configuration bound to rows of a cluster."""

    def __init__(
        self,
        cluster: Cluster,
        config: ModelConfig,
        rows: Rows,
        folder: Path,
        partitions: int | None,
    ) -> None:
        self._cluster, self._config, self._rows = cluster, config, rows
        self._folder, self._work = folder, Work(folder)
        self._heads = cluster.kept(of_kind(rows.home, HEAD))
        judged = VALIDATION if rows.has_validation else TRAIN
        self.scores = SparkScores(cluster, self._heads, rows.homes, config, judged)
        # Before any work: a metric that can't be computed of these labels says so now.
        self.scores.evaluate()
        self._penalties = self._regularizations()
        self._placements, self._giants = self._placed(partitions)
        self.coordinates: dict[str, SparkCoordinate] = {}
        self.start: dict[str, CoordinateModel] = {}
        self._held: dict[str, StoredModel] = {}
        self._external: dict[str, CoordinateModel] = {}
        for name, spec in config.coordinates.items():
            if isinstance(spec, ExternalScores):
                self._read_scores(name, spec)
            elif name in config.fitted:
                self._bind(name, spec, rows.earlier.get(name))
            else:
                self._lock(name, rows.earlier[name])
        self.weights: GatheredWeights | None = None
        if config.auto:
            log.info("l2: auto: weights are estimated by one task, which holds all training rows")
            args = cluster, config, rows.home, self.coordinates, self.scores
            self.weights = GatheredWeights(*args)
        rows.home.unpersist()

    def _regularizations(self) -> dict[str, Regularization]:
        config, indices, cluster = self._config, self._rows.indices, self._cluster
        specs = config.linear
        bags = sorted({b for s in specs.values() if s.normalization != "none" for b in s.bags})
        summaries: dict[str, FeatureSummary] = {}
        if bags:
            task = partial(summarize_bags, bags, False)
            found = cluster.added_up(cluster.map(self._rows.home, task))
            summaries = {bag: own.summary() for bag, own in found.items()}
        return {n: regularization(s, indices, summaries.__getitem__) for n, s in specs.items()}

    def _placed(self, partitions: int | None) -> tuple[dict[str, Placement], dict[str, Giants]]:
        """Decide where the entities of each random effect are fitted, and which rows stay."""
        config, rows, cluster = self._config, self._rows, self._cluster
        specs = {n: s for n, s in config.fitted.items() if isinstance(s, RandomEffect)}
        if not specs:
            return {}, {}
        number = partitions or max(
            _PARTITIONS_PER_SLOT * cluster.slots, -(-rows.n_rows // _ROWS_PER_PARTITION)
        )
        heavy = _HEAVY_SHARE * rows.n_rows / number
        # The rows of an entity are spread over homes evenly, but for chance.
        least = max(1.0, 0.5 * heavy / rows.homes)
        keys = sorted({spec.key for spec in specs.values()})
        task = partial(count_heavy, keys, least)
        counts: dict[str, dict[int, int]] = {key: {} for key in keys}
        for found in cluster.collect(cluster.map(self._heads, task)):
            for key, own in found.items():
                for entity, n in own.items():
                    counts[key][entity] = counts[key].get(entity, 0) + n
        loads, found_giants = {}, {}
        for name, spec in specs.items():
            loads[name] = {e: n for e, n in counts[spec.key].items() if n >= heavy}
            giants = Giants.among(loads[name], spec, config.seed)
            if giants is not None:
                found_giants[name] = giants
        light = {name: rows.n_rows - sum(load.values()) for name, load in loads.items()}
        found_giants, moving = self._measured(found_giants)
        for name, giants in found_giants.items():
            loads[name] |= {int(h): n for h, n in zip(giants.hashes, moving[name], strict=True)}
        return {
            name: Placement.balanced(number, light[name], load) for name, load in loads.items()
        }, found_giants

    def _measured(
        self, giants: dict[str, Giants]
    ) -> tuple[dict[str, Giants], dict[str, list[int]]]:
        """See to it that enough rows of giant entities move; return also how many."""
        while giants:
            task = partial(count_giants, giants)
            found = self._cluster.collect(self._cluster.map(self._heads, task))
            counts = {name: np.sum([own[name] for own in found], axis=0) for name in giants}
            enough = {name: own.widened(counts[name]) for name, own in giants.items()}
            if all(enough[name] is own for name, own in giants.items()):
                return giants, {name: own.tolist() for name, own in counts.items()}
            giants = enough
        return {}, {}

    def _layout(self, name: str, spec: CoordinateSpec) -> Layout:
        bags, keys = spec.bags, spec.key_columns
        if isinstance(spec, RandomEffect):
            placement, giants = self._placements[name], self._giants.get(name)
            return Layout(name, placement.partitions, spec.key, placement, bags, keys, giants)
        if isinstance(spec, FixedEffect):
            return Layout(name, self._cluster.slots, None, None, bags, keys)
        if isinstance(spec, DeepFixedEffect):
            return deep_layout(spec, self._cluster.slots, self._rows.n_rows)
        log.info("%s: is fitted by one task, which holds all rows", name)
        return Layout(name, 1, None, None, bags, keys)

    def _bind(self, name: str, spec: CoordinateSpec, earlier: CoordinateModel | None) -> None:
        cluster, rows = self._cluster, self._rows
        layout = self._layout(name, spec)
        penalty = self._penalties.get(name)
        make: Any = SparkCoordinate
        if isinstance(spec, FixedEffect):
            assert penalty is not None
            check_room(spec, penalty.group.size, kinds_of(spec))
            make = partial(SparkFixedEffect, spec=spec, prior=prior_of(self._config, name, earlier))
        elif isinstance(spec, DeepFixedEffect):
            make = SparkDeepEffect
        parts = [cluster.send(cluster.map(rows.home, partial(depart, layout)), layout.partitions)]
        if earlier is not None and not isinstance(spec, DeepFixedEffect):
            parts.append(self._divided(layout, earlier))
        indices = {} if isinstance(spec, RandomEffect | FixedEffect) else rows.indices
        # The tasks of a fixed effect read their slice of it.
        told = None if isinstance(spec, FixedEffect) else penalty
        folder = self._folder / "start"
        task = partial(prepare, layout, self._config, indices, told, folder, rows.homes)
        done = cluster.kept(cluster.map(united(*parts), task))
        staying = None
        if layout.giants is not None:
            staying = cluster.kept(cluster.map(rows.home, partial(stay, layout)))
            cluster.errors.run(staying.count)
        facts = cluster.collect(of_kind(done, FACTS))
        uncovered = [f["uncovered"] for f in facts if "uncovered" in f]
        coordinate: SparkCoordinate = make(
            layout,
            cluster,
            self._heads,
            rows.homes,
            done,
            self._work,
            penalty,
            np.any(uncovered, axis=0) if uncovered else None,
            staying,
        )
        self.coordinates[name] = coordinate
        if earlier is None:
            return
        if isinstance(coordinate, SparkDeepEffect):
            self.start[name] = coordinate.extended(earlier)
            return
        own = coordinate.in_parts(folder / f"{name}.start", facts[0]["start"])
        self.start[name] = own
        held = folder / f"{name}.held"
        if held.exists():
            self._held[name] = StoredModel(held, earlier.describe())
            arrived = cluster.send(of_kind(done, SCORE, GIANTS), rows.homes)
            home = partial(come_home, replace(layout, name=f"{name} held"), True)
            at_home = [self._heads] if staying is None else [self._heads, staying]
            scores = cluster.settled(cluster.map(united(*at_home, arrived), home))
            self.scores.hold(f"{name} held", scores, sum(f["held"] for f in facts))

    def _divided(self, layout: Layout, earlier: CoordinateModel) -> Pieces:
        """Return an earlier model where its entities are fitted."""
        pieces = [
            own
            for target, part in _parts_of(layout, earlier)
            for own in addressed(target, START, 0, part)
        ]
        return self._cluster.scattered(pieces, layout.partitions)

    def _lock(self, name: str, model: CoordinateModel) -> None:
        """Hold a whole model, and its scores."""
        folder = self._folder / "locked" / name
        folder.mkdir(parents=True)
        model.write(folder)
        stored = StoredModel(folder, model.describe())
        self._held[name] = stored
        penalty = 0.0
        if isinstance(model, LinearModel):
            penalty = self._penalties[name].term(model.coefficients)
        self._hold_at_home(name, stored, penalty)

    def _read_scores(self, name: str, spec: ExternalScores) -> None:
        """Bring scores from files to the homes of their rows."""
        cluster, homes = self._cluster, self._rows.homes
        self._external[name] = ExternalModel(spec.uid, spec.score, spec.missing)
        paths = {TRAIN: spec.train}
        if self._rows.has_validation and spec.validation is not None:
            paths[VALIDATION] = spec.validation
        sources, messages = {}, []
        for role, own in paths.items():
            sources[role] = open_spark_rows(cluster.session, own, "scores")
            columns = score_columns(sources[role], spec.uid, spec.score)
            send = partial(send_scores, role, columns, homes)
            messages.append(sources[role].map_tables(send, columns, cluster.errors, numbered=True))
        arrived = cluster.received(cluster.context.union(messages), homes)
        matched = cluster.map(united(self._heads, arrived), partial(match_at_home, name))
        matched = cluster.kept(matched)
        facts = cluster.collect(of_kind(matched, FACTS))
        for role, source in sources.items():
            label, findings = facts[0][role]
            for own_facts in facts[1:]:
                findings.merge(own_facts[role][1])
            findings.settle(source.label, label, spec.missing)
        self.scores.hold(name, cluster.settled(of_kind(matched, f"{SCORE} {name}")), 0.0)

    def _hold_at_home(self, name: str, model: Any, penalty: float) -> None:
        task = partial(score_at_home, name, model)
        self.scores.hold(
            name, self._cluster.settled(self._cluster.map(self._rows.home, task)), penalty
        )

    def recentre(self, models: Mapping[str, CoordinateModel]) -> dict[str, CoordinateModel]:
        """Move what random effects share into the fixed effects."""
        sizes = {bag: len(index) for bag, index in self._rows.indices.items()}
        fixed, many, weights, uncovered = {}, {}, {}, {}
        for name, model in models.items():
            coordinate, spec = self.coordinates[name], self._config.coordinates[name]
            penalty = coordinate.regularization
            if penalty is None or not penalty.is_linear or self._config.prior is not None:
                continue
            weights[name] = penalty.weight
            if isinstance(spec, FixedEffect):
                loaded = model.loaded if isinstance(model, StoredModel) else model
                assert isinstance(loaded, LinearModel)
                fixed[name] = loaded
            elif isinstance(spec, RandomEffect):
                many[name] = _InParts(coordinate, coordinate.own(model))
                if coordinate.uncovered is not None:
                    uncovered[name] = coordinate.uncovered
        new_fixed, new_many = recentre_many(fixed, many, weights, sizes, uncovered)
        moved: dict[str, CoordinateModel] = {
            name: m.model for name, m in new_many.items() if isinstance(m, _InParts)
        }
        stored = {name: self.coordinates[name].own(m) for name, m in new_fixed.items()}
        return {**models, **stored, **moved}

    def fit_jointly(
        self, models: Mapping[str, CoordinateModel]
    ) -> tuple[dict[str, CoordinateModel], FitReport]:
        """Refuse: it needs all rows in one place."""
        raise ConfigError("solver 'joint' needs all rows in one place; use `engine: local`")

    def trained_model(self, models: Mapping[str, CoordinateModel]) -> TrainedModel:
        """Put coordinates together with what scoring needs."""
        config = self._config
        models = self._with_uncertainty(models)
        whole: dict[str, CoordinateModel] = {}
        for name in config.coordinates:
            if name in self._external:
                whole[name] = self._external[name]
            elif name not in models:
                whole[name] = self._held[name]
            else:
                held = self._held.get(name)
                whole[name] = self.coordinates[name].finished(models[name], held)
        return TrainedModel(
            config.task,
            config.columns,
            config.used_features,
            self._rows.indices,
            whole,
            config.derived_entities,
        )

    def _with_uncertainty(
        self, models: Mapping[str, CoordinateModel]
    ) -> dict[str, CoordinateModel]:
        """Add the variances and Hessians that were asked for."""
        config = self._config
        specs = {n: s for n, s in config.fitted_linear.items() if n in self.coordinates}
        if not any(kinds_of(spec) for spec in specs.values()):
            return dict(models)
        for name, model in models.items():
            self.scores.put(name, self.coordinates[name].score(model))
        known = with_uncertainty(
            {name: self.coordinates[name] for name in specs},
            specs,
            {name: models[name] for name in specs},
            {name: self.scores.total_without(name) for name in specs},
            LOSSES[config.task],
            self.scores.residual(),
            lambda name, model, factor: self.coordinates[name].with_dispersion(model, factor),
        )
        return {**models, **known}

    def write_model(
        self,
        models: Mapping[str, CoordinateModel],
        folder: Path,
        avro: AvroLayout | None = None,
        folder_of: FolderOf = nowhere,
    ) -> None:
        """Write the model that is trained; in Avro, random effects by tasks."""
        model = self.trained_model(models)
        if avro is not None:
            model = write_random_effects(self._cluster, model, folder.absolute(), avro)
        write_model(model, folder, avro, folder_of)

    def write_scores(
        self, models: Mapping[str, CoordinateModel], folder: Path, avro: AvroLayout | None = None
    ) -> None:
        """Write every coordinate's scores of the final models, the rows of a home by one task."""
        names: dict[str, list[str]] = {}
        for name in self._config.coordinates:
            names[name] = []
            if name in models:
                self.scores.put(name, self.coordinates[name].score(models[name]))
                names[name].append(name)
            if name in self._external or name in self._held:
                names[name].append(f"{name} held" if name in models else name)
        cluster, config, folder = self._cluster, self._config, folder.absolute()
        if avro is not None:
            rows = self.scores, self._heads, self._rows.homes
            write_score_folders(cluster, *rows, config, names, folder, avro, self._giants)
            return
        task = partial(write_home_scores, config, names, folder)
        cluster.collect(cluster.map(self.scores.at_home(), task))


@dataclass(frozen=True)
class _InParts:
    """The models of a random effect, in the parts of its layout."""

    coordinate: SparkCoordinate
    model: StoredModel

    @property
    def features(self) -> tuple[str, ...]:
        return tuple(self.model.entry["features"])

    @property
    def intercept(self) -> bool:
        return bool(self.model.entry["intercept"])

    def column_totals(self, width: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        return self.coordinate.column_totals(self.model, width)

    def shifted(self, by_column: NDArray[np.float64]) -> ManyModels:
        return _InParts(self.coordinate, self.coordinate.shifted(self.model, by_column))


def _parts_of(layout: Layout, model: CoordinateModel) -> Iterator[tuple[int, CoordinateModel]]:
    """Yield what each partition gets of an earlier model."""
    if layout.placement is None or not isinstance(model, LinearModel):
        yield 0, model
        return
    coefficients = model.coefficients
    assert isinstance(coefficients, RandomCoefficients)
    targets = layout.placement.of_values(coefficients.entities)
    for target in range(layout.partitions):
        chosen = np.flatnonzero(targets == target)
        yield target, replace(model, coefficients=coefficients.take(chosen))
