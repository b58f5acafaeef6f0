"""From sources to home partitions: rows read, checked, indexed and encoded by tasks."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gdmix.config import (
    ModelConfig,
)
from gdmix.data.correlation import correlations_of
from gdmix.data.dataset import Dataset, encode_rows, report_unknown
from gdmix.data.feature_index import FeatureIndex, FeatureIndexBuilder
from gdmix.data.feature_selection import check_selectable, choose_features
from gdmix.data.feature_summary import FeatureSummary
from gdmix.data.read import RowSource, Source
from gdmix.data.schema import RowSchema
from gdmix.data.validate import REPEATED, Findings, check_classes, counted
from gdmix.engines.spark.cluster import Cluster
from gdmix.engines.spark.exchange import Pieces, of_kind
from gdmix.engines.spark.sources import SparkRows, open_spark_rows
from gdmix.engines.spark.tasks.arrival import Facts, Reading, arrive, encode, scan
from gdmix.engines.spark.tasks.features import (
    add_products,
    narrow,
    summarize_bags,
    summarize_response,
)
from gdmix.engines.spark.tasks.kinds import BAGS, FACTS, HEAD, TRAIN, VALIDATION
from gdmix.errors import DataError
from gdmix.model.any_model import read_any_model
from gdmix.model.base import CoordinateModel
from gdmix.model.mixed_model import TrainedModel
from gdmix.model.warm_start import all_aligned, check_initial_model

log = logging.getLogger("gdmix")

_ROWS_PER_HOME = 250_000


@dataclass(frozen=True)
class Rows:
    """The rows of a run on a cluster.

    Attributes
    ----------
    home
        Their pieces: `HEAD` and `BAGS` of each home partition.
    homes
        Number of these.
    n_rows
        Number of training rows.
    has_validation
        Whether there are validation rows.
    indices
        The feature index of each bag.
    earlier
        Models that the run starts from.
    """

    home: Pieces
    homes: int
    n_rows: int
    has_validation: bool
    indices: Mapping[str, FeatureIndex]
    earlier: Mapping[str, CoordinateModel]


def read_rows(
    cluster: Cluster, config: ModelConfig, train: Source, validation: Source | None
) -> Rows:
    """Read and check rows, bring them to their homes, and index their features.

    Raises
    ------
    DataError
        With every finding.
    """
    sources = {TRAIN: open_spark_rows(cluster.session, train, "training data")}
    types = {field.name: field.type for field in sources[TRAIN].schema}
    initial = None
    if config.earlier_model is not None:
        initial = read_any_model(config.earlier_model, config, types)
        check_initial_model(initial, config)
    if validation is not None:
        sources[VALIDATION] = open_spark_rows(cluster.session, validation, "validation data")
    schema = RowSchema(
        config.columns,
        config.used_features,
        config.entities,
        config.group_columns,
        derived=config.derived_entities,
        optional=config.optional_entities,
    )
    columns = {role: schema.select(s.schema, s.label) for role, s in sources.items()}
    for bag, spec in config.used_features.items():
        check_selectable(bag, spec, types)
    counts = {role: rows.count(cluster.errors) for role, rows in sources.items()}
    for role, count in counts.items():
        if not count:
            raise DataError(f"{sources[role].label}: has no rows")
    homes = max(cluster.slots, -(-sum(counts.values()) // _ROWS_PER_HOME))
    readings = {}
    for role, source in sources.items():
        own = pa.schema([source.schema.field(c) for c in columns[role]])
        readings[role] = Reading(source.label, own, schema, config, homes)
    while True:
        indices = _index(cluster, readings[TRAIN], sources[TRAIN], initial)
        home = _encoded(cluster, readings, sources, indices)
        dropped = _settled(cluster, readings, home, counts)
        if not dropped:
            break
        home.unpersist()
        for role, numbers in dropped.items():
            readings[role] = replace(readings[role], dropped=numbers)
    home, indices = _selected(cluster, readings[TRAIN], home, indices, initial)
    earlier = {} if initial is None else all_aligned(config, initial, indices)
    for bag, index in indices.items():
        log.info("%s: bag '%s' has %s columns", sources[TRAIN].label, bag, f"{len(index):,}")
    return Rows(home, homes, counts[TRAIN], validation is not None, indices, earlier)


def _index(
    cluster: Cluster, reading: Reading, source: SparkRows, initial: TrainedModel | None
) -> dict[str, FeatureIndex]:
    """Build the feature index of every bag from the training rows."""
    config = reading.config
    types = {f.name: f.type for f in reading.schema}
    builders = {bag: FeatureIndexBuilder(spec, types) for bag, spec in reading.rows.bags.items()}
    if any(builder.needs_rows for builder in builders.values()):
        messages = source.map_tables(
            partial(scan, reading), reading.schema.names, cluster.errors, numbered=True
        )
        for found in cluster.collect(cluster.received(messages, 1)):
            for bag, builder in found.items():
                builders[bag].merge(builder)
    indices = {bag: builder.freeze() for bag, builder in builders.items()}
    for bag, index in _kept_of(initial, config).items():
        if config.features[bag].feature_list is None:
            indices[bag] = indices[bag].extended(index)
    return indices


def _kept_of(initial: TrainedModel | None, config: ModelConfig) -> dict[str, FeatureIndex]:
    """Return, by bag, features that stay because of an earlier model."""
    keeping = config.locked if config.prior is None else {**config.linear, **config.locked}
    return {
        bag: initial.indices[bag]
        for name, spec in keeping.items()
        for bag in spec.bags
        if initial is not None and name in initial.coordinates
    }


def _selected(
    cluster: Cluster,
    reading: Reading,
    home: Pieces,
    indices: Mapping[str, FeatureIndex],
    initial: TrainedModel | None,
) -> tuple[Pieces, dict[str, FeatureIndex]]:
    """Leave out the features that their bags say; return rows and indices without them."""
    config, indices = reading.config, dict(indices)
    specs = {bag: spec for bag, spec in config.used_features.items() if spec.is_selected}
    if not specs:
        return home, indices
    found = cluster.added_up(cluster.map(home, partial(summarize_bags, list(specs), True)))
    summaries = {bag: own.summary() for bag, own in found.items()}
    always, columns = _kept_of(initial, config), {}
    for bag, spec in specs.items():
        summary = summaries[bag]

        def measured(bag: str = bag, summary: FeatureSummary = summary) -> NDArray[np.float64]:
            response = cluster.added_up(cluster.map(home, summarize_response))["response"]
            task = partial(add_products, response, {bag: summary.mean})
            products = cluster.added_up(cluster.map(home, task))[bag]
            return correlations_of(summary, response, products)

        name = f"{reading.label}: bag '{bag}'"
        own = choose_features(name, spec, indices[bag], summary, measured, always.get(bag))
        if own is not None:
            columns[bag], indices[bag] = own, indices[bag].take(own)
    if not columns:
        return home, indices
    narrowed = cluster.kept(cluster.map(of_kind(home, HEAD, BAGS), partial(narrow, columns)))
    cluster.errors.run(narrowed.count)
    home.unpersist()
    return narrowed, indices


def _encoded(
    cluster: Cluster,
    readings: Mapping[str, Reading],
    sources: Mapping[str, SparkRows],
    indices: Mapping[str, FeatureIndex],
) -> Pieces:
    """Return the rows as arrays at their homes, and facts of them."""
    messages = [
        sources[role].map_tables(
            partial(encode, reading, role, indices),
            reading.schema.names,
            cluster.errors,
            numbered=True,
        )
        for role, reading in readings.items()
    ]
    together = cluster.context.union(messages) if len(messages) > 1 else messages[0]
    first = readings[TRAIN]
    homes = first.homes
    arrived = cluster.received(together, homes)
    empty = _no_rows(first, indices)
    return cluster.kept(cluster.map(arrived, partial(arrive, readings, empty)))


def _no_rows(reading: Reading, indices: Mapping[str, FeatureIndex]) -> Dataset:
    """Return no rows, of the right types."""
    nothing = reading.schema.empty_table()
    source = RowSource(
        reading.label, reading.schema, lambda columns: iter([nothing.select(columns)])
    )
    return encode_rows(source, reading.rows, indices, reading.config.task, "off")[0]


def _settled(
    cluster: Cluster, readings: Mapping[str, Reading], home: Pieces, counts: dict[str, int]
) -> dict[str, NDArray[np.int64]]:
    """Check what was found in the rows; return the numbers of those to leave out, if there are any.

    Raises
    ------
    DataError
        With every finding.
    """
    facts: list[dict[str, Facts]] = cluster.collect(of_kind(home, FACTS))
    dropped = {}
    for role, reading in readings.items():
        own = [f[role] for f in facts]
        unknown = sum((f.unknown for f in own), Counter[str]())
        report_unknown(reading.label, reading.rows.bags, unknown)
        n = sum(f.n_rows for f in own)
        config, names = reading.config, reading.schema.names
        if config.validate_mode == "off":
            continue
        findings = _merged(reading, own)
        labels = {config.columns.column(r) for r in ("response", "weight")}
        if role == TRAIN and not findings.columns & labels:
            _check_classes(config, own, findings)
        keep = findings.settle(config.validate_mode, counts[role], names)
        if keep is not None:
            bad = np.flatnonzero(~keep)
            for line in findings.lines(names):
                log.warning(line)
            log.warning(
                "%s: dropped %s of %s", reading.label, f"{bad.size:,}", counted(counts[role])
            )
            if bad.size + reading.dropped.size >= counts[role]:
                raise DataError(
                    f"{reading.label}: no row is left after dropping those with findings"
                )
            dropped[role] = np.union1d(reading.dropped, bad)
        else:
            log.info("%s: %s", reading.label, counted(n))
    return dropped


def _merged(reading: Reading, facts: list[Facts]) -> Findings:
    findings = Findings(reading.label)
    for own in facts:
        findings.merge(own.findings)
    numbers, uids = (np.concatenate([f.again[k] for f in facts]) for k in (0, 1))
    column = reading.rows.role_column("uid", reading.schema.names)
    if numbers.size and column is not None:
        order = np.argsort(numbers)
        first = int(numbers[order[0]])
        found = Findings(reading.label, pa.array(uids[order[:1]]), first)
        found.add(column, REPEATED, numbers[order] - first)
        findings.merge(found)
    return findings


def _check_classes(config: ModelConfig, facts: list[Facts], findings: Findings) -> None:
    """Check the labels of all rows by what each home says of its own."""
    classes = [any(f.classes[k] for f in facts) for k in (0, 1)]
    labels = np.array(
        [label for label, is_there in zip((1.0, 0.0), classes, strict=True) if is_there]
    )
    response = labels if labels.size else np.zeros(1)
    weight = np.full(response.size, float(labels.size > 0))
    check_classes(config.columns.column("response"), response, weight, config.task, findings)
