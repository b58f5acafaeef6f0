"""Models as Photon ML and GDMix keep them: Avro records ``BayesianLinearModelAvro``.

A record is a model: its id (of a random effect the entity), and its coefficients as name, term
and value, the intercept first; so are their variances, if they are known. What a coefficient is
multiplied with, and the column that holds the entity, is not in the file.

Variances are as Photon ML has them, 1 / diag(H) or diag(H^-1): of the linear task, too, they are
not multiplied by the dispersion.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gdmix.config import Task
from gdmix.data import avro
from gdmix.data.avro.write import write_batches
from gdmix.data.feature_index import (
    HASH_NAME,
    INTERCEPT_NAME,
    FeatureIndex,
    join_keys,
    split_keys,
)
from gdmix.data.gdmix_layout import FIXED_MODEL, FIXED_MODEL_ID, model_part, partitions_of
from gdmix.data.keys import KeyTable
from gdmix.errors import DataError, ModelError
from gdmix.model.coefficients import FixedCoefficients, RandomCoefficients
from gdmix.model.linear import LinearModel

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

log = logging.getLogger("gdmix")

_CLASSES: Mapping[Task, str] = {
    "logistic_regression": "classification.LogisticRegressionModel",
    "linear_regression": "regression.LinearRegressionModel",
    "poisson_regression": "regression.PoissonRegressionModel",
}
_PACKAGE = "com.linkedin.photon.ml.supervised."
_COEFFICIENT = {
    "name": "NameTermValueAvro",
    "namespace": "com.linkedin.photon.avro.generated",
    "type": "record",
    "fields": [
        {"name": "name", "type": "string"},
        {"name": "term", "type": "string"},
        {"name": "value", "type": "double"},
    ],
}
_MODEL = {
    "name": "BayesianLinearModelAvro",
    "namespace": "com.linkedin.photon.avro.generated",
    "type": "record",
    "fields": [
        {"name": "modelId", "type": "string"},
        {"name": "modelClass", "type": ["null", "string"], "default": None},
        {"name": "means", "type": {"type": "array", "items": _COEFFICIENT}},
        {
            "name": "variances",
            "type": ["null", {"type": "array", "items": "NameTermValueAvro"}],
            "default": None,
        },
        {"name": "lossFunction", "type": ["null", "string"], "default": None},
    ],
}
_COEFFICIENTS_PER_PIECE = 1 << 20


# Out


def write_models(
    model: LinearModel,
    features: tuple[pa.Array, pa.Array],
    task: Task,
    folder: Path,
    *,
    partitions: int = 1,
    cut: float = 0.0,
    fixed_file: str = FIXED_MODEL,
) -> None:
    """Write a coordinate's models into a folder, as GDMix names the files.

    Parameters
    ----------
    features
        Names and terms of the coordinate's columns, the intercept first.
    partitions
        Number of files of a random effect.
    cut
        Leave out coefficients, but for intercepts, whose magnitude is not above it. GDMix has
        1e-4; 0 keeps all, also those that are zero. Variances stay: that of a coefficient that is
        surely zero is what a prior needs.
    fixed_file
        Name of a fixed effect's file.

    Raises
    ------
    OutputError
        If the system refuses to write there.
    ModelError
        If the names of two hashed bags would be the same.
    """
    check_names(features, folder)
    coefficients = model.coefficients
    if isinstance(coefficients, FixedCoefficients):
        size = coefficients.values.size
        columns = np.arange(size, dtype=np.uint32)
        ids = pa.array([FIXED_MODEL_ID], pa.large_string())
        ragged = RandomCoefficients(
            ids, np.array([0, size]), columns, coefficients.values, coefficients.variances
        )
        parts = {folder / fixed_file: ragged}
    else:
        of_entity = partitions_of(coefficients.entities, partitions)
        parts = {
            folder / model_part(k): coefficients
            if partitions == 1
            else coefficients.take(np.flatnonzero(of_entity == k))
            for k in range(partitions)
        }
    for file, part in parts.items():
        write_file(replace(model, coefficients=part), features, task, file, cut)


def write_file(
    model: LinearModel,
    features: tuple[pa.Array, pa.Array],
    task: Task,
    file: Path,
    cut: float = 0.0,
) -> None:
    """Write the models of entities into a file; arguments as of `write_models`."""
    models = model.coefficients
    assert isinstance(models, RandomCoefficients)
    if models.variances is not None:
        models = replace(models, variances=models.variances / model.dispersion)
    write_batches(file, _MODEL, _records(models, model.intercept, features, task, cut))


def check_names(features: tuple[pa.Array, pa.Array], folder: Path) -> None:
    """Refuse columns that have the same names, those of two hashed bags.

    Raises
    ------
    ModelError
        If there are any.
    """
    if pc.sum(pc.and_(pc.equal(features[0], HASH_NAME), pc.equal(features[1], "0"))).as_py() > 1:
        raise ModelError(
            f"{folder}: two hashed bags of a coordinate have the same names of columns, which "
            "Avro can't tell apart; write Parquet"
        )


def described(entities: pa.DataType) -> dict[str, str]:
    """Return what a manifest says of models in Avro whose entities have a type."""
    kind = "integers" if pa.types.is_integer(entities) else "text"
    return {"format": "avro", "entities": kind}


def _records(
    models: RandomCoefficients,
    intercept: bool,
    features: tuple[pa.Array, pa.Array],
    task: Task,
    cut: float,
) -> Iterator[pa.RecordBatch]:
    for first, last in _pieces(models.indptr):
        stops = models.indptr[first : last + 1]
        own = slice(stops[0], stops[-1])
        columns, values, stops = models.columns[own], models.values[own], stops - stops[0]
        real = np.ones(columns.size, np.bool_) if intercept else columns != 0
        kept = real & ((columns == 0) | (np.abs(values) > cut)) if cut > 0 else real
        n = last - first
        record = {
            "modelId": models.entities.slice(first, n).cast(pa.large_string()),
            "modelClass": pa.repeat(_PACKAGE + _CLASSES[task], n),
            "means": _lists(features, columns, values, stops, kept),
            "lossFunction": pa.repeat("", n),
        }
        if models.variances is not None:
            variances = models.variances[own]
            record["variances"] = _lists(features, columns, variances, stops, real, nullable=True)
        yield pa.RecordBatch.from_pydict(record)


def _lists(
    features: tuple[pa.Array, pa.Array],
    columns: NDArray[np.uint32],
    values: F64,
    stops: I64,
    kept: NDArray[np.bool_],
    nullable: bool = False,
) -> pa.Array:
    """Return lists of name, term and value, of those values that are kept.

    Parameters
    ----------
    nullable
        Whether a list without any value but 0 is null.
    """
    totals = np.concatenate(([0], np.cumsum(kept & (values != 0.0))))[stops]
    if not kept.all():
        columns, values = columns[kept], values[kept]
        stops = np.concatenate(([0], np.cumsum(kept)))[stops]
    numbers = pa.array(columns)
    items = pa.StructArray.from_arrays(
        [*(of.take(numbers) for of in features), pa.array(values)], ["name", "term", "value"]
    )
    lists = pa.LargeListArray.from_arrays(pa.array(stops), items)
    if not nullable:
        return lists
    return pc.if_else(pa.array(np.diff(totals) > 0), lists, pa.scalar(None, lists.type))


def _pieces(indptr: I64) -> Iterator[tuple[int, int]]:
    """Yield ranges of models that have about a million coefficients together."""
    first, n = 0, indptr.size - 1
    while first < n:
        end = np.searchsorted(indptr, indptr[first] + _COEFFICIENTS_PER_PIECE, "right") - 1
        last = max(first + 1, int(end))
        yield first, last
        first = last


# In


@dataclass(frozen=True)
class PhotonModels:
    """The models of some files.

    Attributes
    ----------
    label
        What messages call them.
    ids
        (E,) large_string.
    indptr, features, values
        Model e has coefficients ``indptr[e]:indptr[e + 1]``: numbers of features, and values.
    names, terms
        Of each feature.
    task
        As the model class tells; None if it does not.
    variances
        Of the values, 0 where there is none; None if there is none at all.
    """

    label: str
    ids: pa.Array
    indptr: I64
    features: NDArray[np.int32]
    values: F64
    names: pa.Array
    terms: pa.Array
    task: Task | None
    variances: F64 | None = None

    @property
    def has_intercept(self) -> bool:
        """Whether any model has one."""
        return bool((self._columns_of(()) == 0).any())

    @property
    def is_fixed_effect(self) -> bool:
        """Whether it is one model that GDMix calls the global one."""
        return len(self.ids) == 1 and self.ids[0].as_py() == FIXED_MODEL_ID

    @property
    def places(self) -> I64:
        """A number of each coefficient: ascending by model, then by feature."""
        owners = np.repeat(np.arange(len(self.ids)), np.diff(self.indptr))
        return owners * np.int64(max(len(self.names), 1)) + self.features

    def _columns_of(self, indices: Sequence[FeatureIndex]) -> I64:
        """Return the column of each feature, the intercept's being 0; -1 of none."""
        columns = np.full(len(self.names), -1, np.int64)
        first = 1
        for index in indices:
            found = index.find(self.names, self.terms)
            columns = np.where((columns < 0) & (found >= 0), found + first, columns)
            first += len(index)
        is_intercept = pc.and_(
            pc.equal(self.names, INTERCEPT_NAME), pc.equal(self.terms, "")
        ).to_numpy(zero_copy_only=False)
        return np.where(is_intercept, 0, columns)

    def fixed(self, indices: Sequence[FeatureIndex]) -> FixedCoefficients:
        """Return the coefficients of a fixed effect; features of no index are skipped, counted.

        Raises
        ------
        ModelError
            If these are several models.
        """
        if len(self.ids) != 1:
            raise ModelError(f"{self.label}: holds {len(self.ids)} models; a fixed effect has one")
        columns, values, variances, _ = self._known(indices)
        dense = np.zeros((2, 1 + sum(len(index) for index in indices)))
        dense[0, columns], dense[1, columns] = values, variances
        return FixedCoefficients(dense[0], None if self.variances is None else dense[1])

    def random(self, indices: Sequence[FeatureIndex], kind: pa.DataType) -> RandomCoefficients:
        """Return the coefficients of a random effect; features of no index are skipped, counted.

        Parameters
        ----------
        kind
            int64 or large_string: what the entities are.

        Raises
        ------
        ModelError
            If an entity has two models, or is no integer where they should be.
        """
        try:
            entities = self.ids.cast(kind)
        except pa.ArrowInvalid as error:
            raise ModelError(f"{self.label}: an entity is no {kind}: {error}") from None
        columns, values, variances, owners = self._known(indices)
        n = len(entities)
        order = pc.sort_indices(entities).to_numpy()
        entities = entities.take(pa.array(order))
        same = pc.equal(entities[1:], entities[:-1]).to_numpy(zero_copy_only=False)
        if same.any():
            twice = entities[int(np.argmax(same))].as_py()
            raise ModelError(f"{self.label}: entity {twice!r} has two models")
        rank = np.empty(n, np.int64)
        rank[order] = np.arange(n)
        # Every model has an intercept, in a coordinate without one it is 0.
        without = np.ones(n, np.bool_)
        without[rank[owners[columns == 0]]] = False
        added = np.flatnonzero(without)
        owner = np.concatenate((rank[owners], added))
        column = np.concatenate((columns, np.zeros(added.size, np.int64)))
        value = np.concatenate((values, np.zeros(added.size)))
        variance = np.concatenate((variances, np.zeros(added.size)))
        if not _ascends(owner, column):
            at = np.lexsort((column, owner))
            owner, column, value, variance = owner[at], column[at], value[at], variance[at]
        indptr = np.concatenate(([0], np.cumsum(np.bincount(owner, minlength=n))))
        found = RandomCoefficients(entities, indptr, column.astype(np.uint32), value)
        return found if self.variances is None else replace(found, variances=variance)

    def _known(self, indices: Sequence[FeatureIndex]) -> tuple[I64, F64, F64, I64]:
        """Return columns, values, variances and models of the coefficients that have a column."""
        columns = self._columns_of(indices)[self.features]
        owners = np.repeat(np.arange(len(self.ids)), np.diff(self.indptr))
        known = columns >= 0
        values = self.values
        variances = np.zeros(values.size) if self.variances is None else self.variances
        if not known.all():
            log.warning(
                "%s: skipped %s coefficients of %s features that no bag of the coordinate has, "
                "such as '%s'",
                self.label,
                f"{np.count_nonzero(~known):,}",
                f"{np.unique(self.features[~known]).size:,}",
                self.names[int(self.features[np.argmin(known)])],
            )
            columns, values, owners = columns[known], values[known], owners[known]
            variances = variances[known]
        return columns, values, variances, owners


def _ascends(owner: I64, column: I64) -> bool:
    same = owner[1:] == owner[:-1]
    return bool(((owner[1:] > owner[:-1]) | (same & (column[1:] > column[:-1]))).all())


def model_files(folder: Path) -> list[Path]:
    """Return the Avro files of a folder.

    Raises
    ------
    ModelError
        If there is none.
    """
    files = sorted(p for p in folder.glob("*.avro") if not p.name.startswith(("_", ".")))
    if not files:
        raise ModelError(f"{folder}: holds no .avro file")
    return files


def read_models(files: Sequence[Path], label: str = "") -> PhotonModels:
    """Read the models of one coordinate.

    Raises
    ------
    ModelError
        If a file is damaged, is of other records, or a model has a feature twice.
    """
    label = label or str(files[0] if len(files) == 1 else files[0].parent)
    table = KeyTable(pa.large_string())
    ids: list[pa.Array] = []
    means, variances = _Lists(table), _Lists(table)
    classes: dict[str | None, None] = {}
    for file in files:
        try:
            for batch in avro.read_batches(file, _columns_to_read(file)):
                ids.append(batch.column("modelId").cast(pa.large_string()))
                means.append(batch.column("means"))
                known = "variances" in batch.schema.names
                variances.append(batch.column("variances") if known else pa.nulls(len(ids[-1])))
                if "modelClass" in batch.schema.names:
                    classes |= dict.fromkeys(pc.unique(batch.column("modelClass")).to_pylist())
        except (DataError, pa.ArrowException) as error:
            text = " ".join(str(error).split())
            raise ModelError(text if str(file) in text else f"{file}: {text}") from None
    if not ids:
        raise ModelError(f"{label}: holds no model")
    distinct = table.keys()
    names, terms = (part.cast(pa.large_string()) for part in split_keys(distinct))
    task = _task_of(classes, label)
    models = PhotonModels(label, pa.concat_arrays(ids), *means.joined(), names, terms, task)
    _refuse(models, "coefficient")
    known_variances = variances.joined()
    if not known_variances[2].size:
        return models
    indptr, features, values = known_variances
    values = np.where(np.isposinf(values), 0.0, values)  # nothing is known of it
    certain = replace(models, indptr=indptr, features=features, values=values)
    _refuse(certain, "variance")
    if (values < 0.0).any():
        raise ModelError(f"{label}: a variance is negative")
    return _with_variances(models, certain)


class _Lists:
    """Lists of name, term and value, one list per model, read piece by piece."""

    def __init__(self, table: KeyTable) -> None:
        self._table = table
        self._lengths: list[NDArray[Any]] = []
        self._features: list[NDArray[np.int32]] = []
        self._values: list[F64] = []

    def append(self, lists: pa.Array) -> None:
        """Add the lists of further models; null is empty."""
        if pa.types.is_null(lists.type):
            self._lengths.append(np.zeros(len(lists), np.int64))
            return
        items = lists.flatten()
        keys = join_keys(pc.struct_field(items, "name"), pc.struct_field(items, "term"))
        self._lengths.append(np.asarray(pc.fill_null(pc.list_value_length(lists), 0)))
        self._features.append(self._table.insert(keys))
        self._values.append(pc.struct_field(items, "value").cast(pa.float64()).to_numpy())

    def joined(self) -> tuple[I64, NDArray[np.int32], F64]:
        """Return pointers, numbers of features, and values."""
        return (
            np.concatenate([np.zeros(1, np.int64), *self._lengths]).cumsum(),
            np.concatenate([np.zeros(0, np.int32), *self._features]),
            np.concatenate([np.zeros(0), *self._values]),
        )


def _with_variances(models: PhotonModels, certain: PhotonModels) -> PhotonModels:
    """Return models with variances: a coefficient that has nothing but a variance is 0."""
    if np.array_equal(models.indptr, certain.indptr) and np.array_equal(
        models.features, certain.features
    ):
        return replace(models, variances=certain.values)
    own, theirs = models.places, certain.places
    places = np.union1d(own, theirs)
    values, variances = np.zeros(places.size), np.zeros(places.size)
    values[np.searchsorted(places, own)] = models.values
    variances[np.searchsorted(places, theirs)] = certain.values
    owners, features = np.divmod(places, max(len(models.names), 1))
    counts = np.bincount(owners, minlength=len(models.ids))
    return replace(
        models,
        indptr=np.concatenate(([0], np.cumsum(counts))),
        features=features.astype(np.int32),
        values=values,
        variances=variances,
    )


def _columns_to_read(file: Path) -> list[str]:
    schema = avro.read_schema(file)
    wanted = ["modelId", "means"]
    missing = [name for name in wanted if name not in schema.names]
    if missing:
        raise ModelError(f"{file}: its records are no models: have no '{missing[0]}'")
    means = schema.field("means").type
    item = means.value_type if pa.types.is_list(means) else pa.null()
    have = (
        {item.field(i).name for i in range(item.num_fields)} if pa.types.is_struct(item) else set()
    )
    if not {"name", "term", "value"} <= have:
        raise ModelError(f"{file}: its records are no models: 'means' has no name, term and value")
    return [*wanted, *(c for c in ["modelClass", "variances"] if c in schema.names)]


def _task_of(classes: Mapping[str | None, None], label: str) -> Task | None:
    tasks: set[Task] = set()
    for name in classes:
        found = [task for task, text in _CLASSES.items() if name and name.endswith(text)]
        if name and not found:
            raise ModelError(f"{label}: a model is of class {name}, which gdmix does not have")
        tasks |= set(found)
    if len(tasks) > 1:
        raise ModelError(f"{label}: holds models of several tasks: {', '.join(sorted(tasks))}")
    return tasks.pop() if tasks else None


def _refuse(models: PhotonModels, what: str) -> None:
    """Raise an error where a model can't be what it should be."""
    if (models.features < 0).any():
        raise ModelError(f"{models.label}: a {what} has no name")
    bad = ~np.isfinite(models.values)
    if bad.any():
        owners = np.repeat(np.arange(len(models.ids)), np.diff(models.indptr))
        model = models.ids[int(owners[np.argmax(bad)])].as_py()
        raise ModelError(f"{models.label}: model '{model}' has a {what} that is not finite")
    pairs = models.places
    if not (pairs[1:] > pairs[:-1]).all():
        pairs.sort()
        again = pairs[1:] == pairs[:-1]
        if again.any():
            owner, feature = divmod(int(pairs[1:][again][0]), max(len(models.names), 1))
            raise ModelError(
                f"{models.label}: model '{models.ids[owner]}' has two {what}s of feature "
                f"'{models.names[feature]}', term '{models.terms[feature]}'"
            )


def natural_type(ids: pa.Array) -> pa.DataType:
    """Return int64 if all ids are integers as these are written, else large_string."""
    try:
        integers = ids.cast(pa.int64())
    except pa.ArrowInvalid:
        return pa.large_string()
    same = pc.all(pc.equal(integers.cast(pa.large_string()), ids)).as_py()
    return pa.int64() if same else pa.large_string()
