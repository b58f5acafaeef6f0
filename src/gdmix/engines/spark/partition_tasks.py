"""What is done with a partition: functions of its pieces, which know nothing of Spark.

A *home* partition has the rows whose uid hashes to it; scores, labels and metrics live there. A
coordinate's own partitions have the rows that are fitted together: of a random effect all rows of
its entities. Both are `Dataset`s, and what fits and scores them is what does so on one machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gdmix.config import ModelConfig
from gdmix.coordinates.base import Coordinate, FitReport
from gdmix.coordinates.random_effect import RandomEffectCoordinate
from gdmix.coordinates.regularization import Regularization
from gdmix.coordinates.uncertainty import CurvatureKind
from gdmix.data.dataset import Dataset, encode_rows, scan_features
from gdmix.data.external_scores import match_scores
from gdmix.data.feature_index import FeatureIndex
from gdmix.data.feature_summary import moments
from gdmix.data.keys import Keys, as_int64
from gdmix.data.partition import concatenated, key_hashes, take_rows
from gdmix.data.read import RowSource
from gdmix.data.schema import RowSchema
from gdmix.data.score_files import score_tables, without, write_scores
from gdmix.data.validate import NO_VALUE, Findings, repeated
from gdmix.engines.binding import BoundRows
from gdmix.engines.spark.exchange import (
    Addressed,
    Placement,
    Route,
    addressed,
    in_order,
    messages,
    opened,
)
from gdmix.engines.spark.giants import Giants, elsewhere
from gdmix.glm.columns import column_totals, shift_columns
from gdmix.glm.losses import total_loss
from gdmix.glm.random_bits import mixed
from gdmix.model.base import CoordinateModel
from gdmix.model.coefficient_files import (
    part_file,
    read_random,
    write_coefficients,
    write_passing,
)
from gdmix.model.coefficients import RandomCoefficients
from gdmix.model.linear import LinearModel, united
from gdmix.model.mixed_model import LOSSES
from gdmix.model.stored import StoredModel

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
TRAIN, VALIDATION = "train", "validation"
HEAD, BAGS, FACTS, PREPARED, OFFSET, SCORE, START = [
    "head",
    "bags",
    "facts",
    "prepared",
    "offset",
    "score",
    "start",
]
LEFT, STAYING, GIANTS = "left", "staying", "giants"
ROW = "__gdmix_row__"  # the column with each row's number in its source


@dataclass(frozen=True)
class Reading:
    """How rows become pieces.

    Attributes
    ----------
    label, schema
        Of the source; the schema has the columns that are read.
    rows
        Which of them play which role.
    config
        Of the run.
    homes
        Number of home partitions.
    dropped
        (m,) numbers of the rows of the source that are left out, ascending.
    """

    label: str
    schema: pa.Schema
    rows: RowSchema
    config: ModelConfig
    homes: int
    dropped: I64 = field(default_factory=lambda: np.empty(0, np.int64))

    def kept(self, tables: Iterator[pa.Table]) -> Iterator[tuple[int, pa.Table]]:
        """Yield tables of the rows that are kept, each with its first one's number among these."""
        for table in tables:
            if not table.num_rows:
                continue
            numbers = table[ROW].to_numpy()
            table = table.drop_columns([ROW])
            if self.dropped.size:
                table = table.filter(pa.array(~np.isin(numbers, self.dropped)))
            yield int(numbers[0] - np.searchsorted(self.dropped, numbers[0])), table

    def source(self, table: pa.Table) -> RowSource:
        """Return a table as a source."""
        return RowSource(self.label, self.schema, lambda columns: iter([table.select(columns)]))


@dataclass
class Facts:
    """What a home partition says of the rows of one role.

    Attributes
    ----------
    n_rows
        Number of rows.
    findings
        What is wrong with them.
    unknown
        By bag, number of values of features that the index does not know.
    again
        Numbers and uids of the rows whose uid an earlier row has.
    classes
        Whether some row of positive weight has a response above 0, and one that has none.
    """

    n_rows: int
    findings: Findings
    unknown: Counter[str]
    again: tuple[I64, I64]
    classes: tuple[bool, bool]


def homes_of(uid: I64, homes: int) -> NDArray[np.int32]:
    """Return the home partition of each row."""
    return (mixed(uid.astype(np.uint64)) % np.uint64(homes)).astype(np.int32)


def scan(
    reading: Reading, partition: int, tables: Iterator[pa.Table]
) -> Iterator[tuple[int, bytes]]:
    """Yield what the rows of a source add to the feature index of every bag."""
    total = None
    for _, table in reading.kept(tables):
        found = scan_features(reading.source(table), reading.rows)
        if total is None:
            total = found
            continue
        for bag, builder in found.items():
            total[bag].merge(builder)
    if total is not None:
        yield from messages(addressed(0, "features", partition, total))


def encode(
    reading: Reading,
    role: str,
    indices: Mapping[str, FeatureIndex],
    partition: int,
    tables: Iterator[pa.Table],
) -> Iterator[tuple[int, bytes]]:
    """Yield rows as arrays, addressed to their homes, and what is wrong with them."""
    config = reading.config
    uid = config.columns.column("uid")
    findings, unknown = Findings(reading.label), Counter[str]()
    for number, (first, table) in enumerate(reading.kept(tables)):
        rows, own, left_out = encode_rows(
            reading.source(table), reading.rows, indices, config.task, config.validate_mode, first
        )
        findings.merge(own)
        unknown.update(left_out)
        numbers = np.arange(first, first + rows.n_rows)
        numbers[own.rows_with(uid, NO_VALUE) - first] = -1
        route = Route.to(homes_of(rows.uid, reading.homes), reading.homes)
        place = (partition << 32) + number
        for home in route.targets:
            chosen = route.rows(int(home))
            part = take_rows(rows, chosen), numbers[chosen]
            yield from messages(addressed(int(home), role, place, part))
    yield from messages(addressed(0, f"{role} findings", partition, (findings, unknown)))


def arrive(
    readings: Mapping[str, Reading], empty: Dataset, home: int, pieces: Iterable[Addressed]
) -> Iterator[Addressed]:
    """Put the rows of a home together.

    Yields
    ------
    tuple
        Its rows without bags, the bags, and facts.
    """
    found = opened(pieces)
    heads, bags, facts = {}, {}, {}
    for role, reading in readings.items():
        parts = list(found.get(role, {}).values()) or [(empty, np.empty(0, np.int64))]
        rows = concatenated([own for own, _ in parts])
        numbers = np.concatenate([own for _, own in parts])
        heads[role], bags[role] = replace(rows, bags={}), rows.bags
        findings, unknown = Findings(reading.label), Counter[str]()
        for own, left_out in found.get(f"{role} findings", {}).values():
            findings.merge(own)
            unknown.update(left_out)
        known = np.flatnonzero(numbers >= 0)
        again = known[repeated(rows.uid[known])]
        used = rows.response[rows.weight > 0.0]
        classes = bool((used > 0).any()), bool((used <= 0).any())
        facts[role] = Facts(
            rows.n_rows, findings, unknown, (numbers[again], rows.uid[again]), classes
        )
    yield from addressed(home, HEAD, home, heads)
    yield from addressed(home, BAGS, home, bags)
    yield from addressed(home, FACTS, home, facts)


def count_heavy(
    entities: Sequence[str], least: float, home: int, pieces: Iterable[Addressed]
) -> Iterator[Addressed]:
    """Yield hash and number of rows of the entities that have many here, by entity column."""
    heads = opened(pieces)[HEAD][home]
    result: dict[str, dict[int, int]] = {}
    for name in entities:
        keys: Keys = heads[TRAIN].keys[name]
        counts = np.bincount(keys.codes[keys.codes >= 0], minlength=len(keys.values))
        many = np.flatnonzero(counts >= least)
        hashes = key_hashes(keys.values.take(pa.array(many)))
        result[name] = {int(h): int(n) for h, n in zip(hashes, counts[many], strict=True)}
    yield from addressed(home, "heavy", home, result)


def summarize_bags(
    bags: Sequence[str], home: int, pieces: Iterable[Addressed]
) -> Iterator[Addressed]:
    """Yield the moments of the training rows' features, bag by bag."""
    own = opened(pieces)[BAGS][home][TRAIN]
    yield from addressed(home, "moments", home, {bag: moments(own[bag]) for bag in bags})


@dataclass(frozen=True)
class Layout:
    """Where the rows of a coordinate are fitted.

    Attributes
    ----------
    name
        Of the coordinate.
    partitions
        Number of its partitions.
    entity
        Name of the key that places rows; None: whole homes, one after the other.
    placement
        Of its entities.
    bags, keys
        What the coordinate needs of rows.
    giants
        Entities of which most rows stay at home.
    """

    name: str
    partitions: int
    entity: str | None
    placement: Placement | None
    bags: tuple[str, ...]
    keys: tuple[str, ...]
    giants: Giants | None = None

    def route(self, role: str, rows: Dataset, home: int) -> Route:
        """Return where the rows of a home go."""
        if self.entity is None or self.placement is None:
            targets = np.full(rows.n_rows, home % self.partitions, np.int32)
        else:
            targets = self.placement.of_rows(rows.keys[self.entity], home)
        if self.giants is not None:
            targets[self.giants.staying(rows, role == TRAIN)] = self.partitions
        return Route.to(targets, self.partitions)


def depart(layout: Layout, home: int, pieces: Iterable[Addressed]) -> Iterator[Addressed]:
    """Send the rows of a home to the partitions where a coordinate is fitted."""
    found = opened(pieces)
    heads, bags = found[HEAD][home], found[BAGS][home]
    for role, head in heads.items():
        rows = replace(head, bags=bags[role])
        route = layout.route(role, rows, home)
        for target in route.targets:
            part = take_rows(rows, route.rows(int(target)), layout.bags, layout.keys)
            yield from addressed(int(target), role, home, part)
        if layout.giants is not None and layout.placement is not None and role == TRAIN:
            for entity, left in layout.giants.left(rows, route.staying).items():
                target = layout.placement.of_hashes(np.array([entity], np.uint64))[0]
                yield from addressed(int(target), LEFT, home, {entity: left})
    for target in range(home, layout.partitions, 1) if home == 0 else ():
        # Every partition gets something, from which it learns the types of keys.
        none = np.empty(0, np.int64)
        parts = {
            r: take_rows(replace(h, bags=bags[r]), none, layout.bags, layout.keys)
            for r, h in heads.items()
        }
        yield from addressed(target, "empty", home, parts)


def stay(layout: Layout, home: int, pieces: Iterable[Addressed]) -> Iterator[Addressed]:
    """Take the rows of giant entities that do not leave a home."""
    found = opened(pieces)
    heads, bags = found[HEAD][home], found[BAGS][home]
    parts = {}
    for role, head in heads.items():
        rows = replace(head, bags=bags[role])
        own = layout.route(role, rows, home).staying
        parts[role] = take_rows(rows, own, layout.bags, layout.keys)
    yield from addressed(home, STAYING, home, parts)


def count_giants(
    giants: Mapping[str, Giants], home: int, pieces: Iterable[Addressed]
) -> Iterator[Addressed]:
    """Yield how many rows of each giant entity may train, by coordinate."""
    rows = opened(pieces)[HEAD][home][TRAIN]
    yield from addressed(home, "counts", home, {n: own.counts(rows) for n, own in giants.items()})


@dataclass(frozen=True)
class Prepared:
    """A coordinate bound to the rows of a partition.

    Attributes
    ----------
    coordinate
        As on one machine.
    sizes
        By role, where the rows came from: home partition and number, in order.
    """

    coordinate: Any
    sizes: Mapping[str, list[tuple[int, int]]]


def prepare(
    layout: Layout,
    config: ModelConfig,
    indices: Mapping[str, FeatureIndex],
    penalty: Regularization | None,
    folder: Path,
    homes: int,
    partition: int,
    pieces: Iterable[Addressed],
) -> Iterator[Addressed]:
    """Bind a coordinate to the rows of a partition, once.

    Yields
    ------
    tuple
        The coordinate; which columns some row has that no coefficient covers; scores of the
        entities of an earlier model that are not fitted here.
    """
    found = opened(pieces)
    empty = found["empty"][0]
    datasets, sizes = {}, {}
    for role in empty:
        parts = found.get(role, {})
        sizes[role] = [(home, part.n_rows) for home, part in parts.items()]
        datasets[role] = concatenated([empty[role], *parts.values()])
    rows = BoundRows(config, datasets[TRAIN], datasets.get(VALIDATION), indices, 1)
    if layout.giants is not None and layout.entity is not None:
        left = list(found.get(LEFT, {}).values())
        rows = replace(rows, elsewhere=elsewhere(left, datasets[TRAIN].keys[layout.entity]))
    earlier = found[START][0] if START in found else None
    coordinate = rows.coordinate(layout.name, penalty, earlier)
    facts: dict[str, Any] = {"held": 0.0}
    if earlier is not None:
        own, rest = coordinate.start(earlier)
        write_part(own, folder / f"{layout.name}.start", partition)
        if rest is not None:
            write_part(rest, folder / f"{layout.name}.held", partition)
            if isinstance(rest, LinearModel) and penalty is not None:
                facts["held"] = penalty.term(rest.coefficients)
            scores = {role: rest.score(own_rows) for role, own_rows in datasets.items()}
            yield from homewards(sizes, scores, partition)
            yield from giants_homewards(layout.giants, rest, homes, partition)
        facts["start"] = own.describe()
    if isinstance(coordinate, RandomEffectCoordinate):
        facts["uncovered"] = coordinate.uncovered
    yield from addressed(partition, PREPARED, partition, Prepared(coordinate, sizes))
    yield from addressed(partition, FACTS, partition, facts)


def write_part(model: CoordinateModel, folder: Path, partition: int) -> None:
    """Write what a partition has of a model."""
    if isinstance(model, LinearModel) and isinstance(model.coefficients, RandomCoefficients):
        write_passing(model.coefficients, folder, partition)
    else:
        model.write(folder)


def read_part(stored: StoredModel, layout: str, partition: int, coordinate: Any) -> Any:
    """Read what a partition needs of a model, as its coordinate numbers coefficients."""
    entry = stored.entry
    if entry["type"] != "random_effect":
        return stored.loaded
    if entry.get("layout") == layout:
        return _of_part(stored, partition)
    return coordinate.start(stored.loaded)[0]


def _of_part(stored: StoredModel, partition: int) -> LinearModel:
    """Return what one of its parts has of the model of a random effect."""
    entry = stored.entry
    return LinearModel(
        tuple(entry["features"]),
        bool(entry["intercept"]),
        read_random(stored.folder, partition),
        entry["entity"],
        float(entry.get("dispersion", 1.0)),
    )


@dataclass(frozen=True)
class FitTask:
    """What a partition is to do with its coordinate.

    Attributes
    ----------
    name, layout
        Of the coordinate; what tells its layout from others.
    model
        Where to start, or what to score; None: at zero.
    folder
        Where the new model goes.
    group_weight
        L2 weights of the groups of columns, where they are estimated.
    homes
        Number of home partitions.
    giants
        Entities whose models some homes need.
    """

    name: str
    layout: str
    model: StoredModel | None
    folder: Path
    group_weight: F64 | None
    homes: int
    giants: Giants | None = None

    def open(self, pieces: Iterable[Addressed], partition: int) -> tuple[Prepared, F64, Any]:
        """Return the coordinate, its offsets if any came, and the model."""
        found = opened(pieces)
        prepared: Prepared = found[PREPARED][partition]
        coordinate: Coordinate[Any] = prepared.coordinate
        if self.group_weight is not None:
            linear: Any = coordinate
            linear.regularization = linear.regularization.reweighted(self.group_weight)
        offset = np.empty(0)
        if OFFSET in found:
            offset = in_order(prepared.sizes[TRAIN], found[OFFSET], f"coordinate '{self.name}'")
        model = None
        if self.model is not None:
            model = read_part(self.model, self.layout, partition, coordinate)
        return prepared, offset, model


def fit(task: FitTask, partition: int, pieces: Iterable[Addressed]) -> Iterator[Addressed]:
    """Fit a coordinate to the rows of a partition, and score them.

    Yields
    ------
    tuple
        Scores, addressed to the rows' homes; facts.
    """
    prepared, offset, start = task.open(pieces, partition)
    model, report = prepared.coordinate.fit(offset, start)
    write_part(model, task.folder, partition)
    yield from _scored(task, prepared, model, partition, report)


def score(task: FitTask, partition: int, pieces: Iterable[Addressed]) -> Iterator[Addressed]:
    """Score the rows of a partition with a model that there is; yields as `fit` does."""
    prepared, _, model = task.open(pieces, partition)
    yield from _scored(task, prepared, model, partition, None)


def _scored(
    task: FitTask, prepared: Prepared, model: Any, partition: int, report: FitReport | None
) -> Iterator[Addressed]:
    """Yield the scores of a partition's rows, and facts."""
    scores = prepared.coordinate.score(model)
    by_role = {TRAIN: scores.train}
    if scores.validation is not None:
        by_role[VALIDATION] = scores.validation
    yield from homewards(prepared.sizes, by_role, partition)
    yield from giants_homewards(task.giants, model, task.homes, partition)
    facts = {
        "report": report,
        "penalty": prepared.coordinate.penalty(model),
        "entry": model.describe(),
    }
    yield from addressed(partition % task.homes, FACTS, partition, facts)


def homewards(
    sizes: Mapping[str, list[tuple[int, int]]], scores: Mapping[str, F64], partition: int
) -> Iterator[Addressed]:
    """Yield a partition's scores, addressed to the homes of its rows."""
    parts: dict[int, dict[str, F64]] = {}
    for role, own in scores.items():
        first = 0
        for home, n in sizes[role]:
            if n:
                parts.setdefault(home, {})[role] = own[first : first + n]
            first += n
    for home, own_parts in parts.items():
        yield from addressed(home, SCORE, partition, own_parts)


def giants_homewards(
    giants: Giants | None, model: Any, homes: int, partition: int
) -> Iterator[Addressed]:
    """Yield the models of giant entities, addressed to all homes."""
    own = None if giants is None else giants.models(model)
    if own is not None:
        for home in range(homes):
            yield from addressed(home, GIANTS, partition, own)


def curvature(
    task: FitTask, kinds: set[CurvatureKind], partition: int, pieces: Iterable[Addressed]
) -> Iterator[Addressed]:
    """Write a model with variances; yields the degrees of freedom."""
    prepared, offset, model = task.open(pieces, partition)
    certain, freedom = prepared.coordinate.curvature(model, offset, kinds)
    write_part(certain, task.folder, partition)
    yield from addressed(
        partition, FACTS, partition, {"freedom": freedom, "entry": certain.describe()}
    )


def lay_out(task: FitTask, partition: int, pieces: Iterable[Addressed]) -> Iterator[Addressed]:
    """Write a partition's part of a model that lies in other parts."""
    _, _, model = task.open(pieces, partition)
    write_part(model, task.folder, partition)
    yield from addressed(partition, FACTS, partition, {"entry": model.describe()})


def finish(
    fitted: StoredModel, held: StoredModel | None, folder: Path, partition: int
) -> Iterator[Addressed]:
    """Write a part of a model to stay, with the earlier models of entities that have no rows."""
    model = _of_part(fitted, partition)
    if held is not None and part_file(held.folder, partition) is not None:
        model = united(model, _of_part(held, partition))
    write_coefficients(model.coefficients, folder, partition)
    yield from addressed(partition, FACTS, partition, None)


def rescale_variances(
    source: StoredModel, folder: Path, factor: float, partition: int
) -> Iterator[Addressed]:
    """Write a part of a model with its variances times a factor."""
    coefficients = read_random(source.folder, partition)
    assert coefficients.variances is not None
    scaled = replace(coefficients, variances=coefficients.variances * factor)
    write_passing(scaled, folder, partition)
    yield from addressed(partition, FACTS, partition, None)


def total_columns(source: StoredModel, width: int, partition: int) -> Iterator[Addressed]:
    """Yield each column's sum and number of coefficients, of a part of a model."""
    coefficients = read_random(source.folder, partition)
    totals, counts = np.zeros(width), np.zeros(width, np.int64)
    column_totals(coefficients.columns, coefficients.values, totals, counts)
    yield from addressed(partition, FACTS, partition, (totals, counts))


def shift(source: StoredModel, folder: Path, by_column: F64, partition: int) -> Iterator[Addressed]:
    """Write a part of a model less a shift of each column."""
    coefficients = read_random(source.folder, partition)
    shift_columns(coefficients.columns, by_column, coefficients.values)
    write_passing(coefficients, folder, partition)
    yield from addressed(partition, FACTS, partition, None)


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
