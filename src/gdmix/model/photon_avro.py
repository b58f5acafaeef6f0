"""Models as Photon ML and GDMix keep them: Avro records ``BayesianLinearModelAvro``.

A record is a model: its id (of a random effect the entity), and its coefficients as name, term
and value, the intercept first. What a coefficient is multiplied with, and the column that holds
the entity, is not in the file.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gdmix.config import Task
from gdmix.data import avro
from gdmix.data.avro.write import write_batches
from gdmix.data.feature_index import INTERCEPT_NAME, FeatureIndex, join_keys, split_keys
from gdmix.data.gdmix_layout import FIXED_MODEL, FIXED_MODEL_ID, model_part, partitions_of
from gdmix.data.keys import KeyTable
from gdmix.errors import DataError, ModelError
from gdmix.model.coefficients import FixedCoefficients, RandomCoefficients
from gdmix.model.mixed_model import LinearModel

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
        1e-4; 0 keeps all, also those that are zero.
    fixed_file
        Name of a fixed effect's file.

    Raises
    ------
    OutputError
        If the system refuses to write there.
    """
    coefficients = model.coefficients
    if isinstance(coefficients, FixedCoefficients):
        size = coefficients.values.size
        columns = np.arange(size, dtype=np.uint32)
        ids = pa.array([FIXED_MODEL_ID], pa.large_string())
        ragged = RandomCoefficients(ids, np.array([0, size]), columns, coefficients.values)
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
        write_batches(file, _MODEL, _records(part, model.intercept, features, task, cut))


def _records(
    models: RandomCoefficients,
    intercept: bool,
    features: tuple[pa.Array, pa.Array],
    task: Task,
    cut: float,
) -> Iterator[pa.RecordBatch]:
    names, terms = features
    for first, last in _pieces(models.indptr):
        stops = models.indptr[first : last + 1]
        own = slice(stops[0], stops[-1])
        columns, values, stops = models.columns[own], models.values[own], stops - stops[0]
        kept = (columns == 0) if cut > 0 else np.ones(columns.size, np.bool_)
        if cut > 0:
            kept |= np.abs(values) > cut
        if not intercept:
            kept &= columns != 0
        if not kept.all():
            columns, values = columns[kept], values[kept]
            stops = np.concatenate(([0], np.cumsum(kept)))[stops]
        numbers = pa.array(columns)
        means = pa.StructArray.from_arrays(
            [names.take(numbers), terms.take(numbers), pa.array(values)], ["name", "term", "value"]
        )
        n = last - first
        yield pa.RecordBatch.from_pydict(
            {
                "modelId": models.entities.slice(first, n).cast(pa.large_string()),
                "modelClass": pa.repeat(_PACKAGE + _CLASSES[task], n),
                "means": pa.LargeListArray.from_arrays(pa.array(stops), means),
                "lossFunction": pa.repeat("", n),
            }
        )


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
    """

    label: str
    ids: pa.Array
    indptr: I64
    features: NDArray[np.int32]
    values: F64
    names: pa.Array
    terms: pa.Array
    task: Task | None

    @property
    def has_intercept(self) -> bool:
        """Whether any model has one."""
        return bool((self._columns_of(()) == 0).any())

    @property
    def is_fixed_effect(self) -> bool:
        """Whether it is one model that GDMix calls the global one."""
        return len(self.ids) == 1 and self.ids[0].as_py() == FIXED_MODEL_ID

    def _columns_of(self, indices: Sequence[FeatureIndex]) -> I64:
        """Return the column of each feature, the intercept's being 0; -1 of none."""
        columns = np.full(len(self.names), -1, np.int64)
        first = 1
        for index in indices:
            found = index.lookup_pairs(self.names, self.terms)
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
        columns, values, _ = self._known(indices)
        dense = np.zeros(1 + sum(len(index) for index in indices))
        dense[columns] = values
        return FixedCoefficients(dense)

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
        columns, values, owners = self._known(indices)
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
        if not _ascends(owner, column):
            at = np.lexsort((column, owner))
            owner, column, value = owner[at], column[at], value[at]
        indptr = np.concatenate(([0], np.cumsum(np.bincount(owner, minlength=n))))
        return RandomCoefficients(entities, indptr, column.astype(np.uint32), value)

    def _known(self, indices: Sequence[FeatureIndex]) -> tuple[I64, F64, I64]:
        """Return columns, values and models of the coefficients that have a column."""
        columns = self._columns_of(indices)[self.features]
        owners = np.repeat(np.arange(len(self.ids)), np.diff(self.indptr))
        known = columns >= 0
        values = self.values
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
        return columns, values, owners


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
    lengths: list[NDArray[Any]] = []
    features: list[NDArray[np.int32]] = []
    values: list[F64] = []
    classes: dict[str | None, None] = {}
    for file in files:
        try:
            for batch in avro.read_batches(file, _columns_to_read(file)):
                means = batch.column("means")
                items = means.flatten()
                keys = join_keys(pc.struct_field(items, "name"), pc.struct_field(items, "term"))
                ids.append(batch.column("modelId").cast(pa.large_string()))
                lengths.append(np.asarray(pc.fill_null(pc.list_value_length(means), 0)))
                features.append(table.insert(keys))
                values.append(pc.struct_field(items, "value").cast(pa.float64()).to_numpy())
                if "modelClass" in batch.schema.names:
                    classes |= dict.fromkeys(pc.unique(batch.column("modelClass")).to_pylist())
        except (DataError, pa.ArrowException) as error:
            text = " ".join(str(error).split())
            raise ModelError(text if str(file) in text else f"{file}: {text}") from None
    if not ids:
        raise ModelError(f"{label}: holds no model")
    distinct = table.keys()
    names, terms = split_keys(distinct)
    models = PhotonModels(
        label,
        pa.concat_arrays(ids),
        np.concatenate([np.zeros(1, np.int64), *lengths]).cumsum(),
        np.concatenate(features),
        np.concatenate(values),
        names.cast(pa.large_string()),
        terms.cast(pa.large_string()),
        _task_of(classes, label),
    )
    _refuse(models)
    return models


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
    return [*wanted, *(c for c in ["modelClass"] if c in schema.names)]


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


def _refuse(models: PhotonModels) -> None:
    """Raise an error where a model can't be what it should be."""
    if (models.features < 0).any():
        raise ModelError(f"{models.label}: a coefficient has no name")
    bad = ~np.isfinite(models.values)
    owners = np.repeat(np.arange(len(models.ids)), np.diff(models.indptr))
    if bad.any():
        model = models.ids[int(owners[np.argmax(bad)])].as_py()
        raise ModelError(f"{models.label}: model '{model}' has a coefficient that is not finite")
    pairs = owners * np.int64(max(len(models.names), 1)) + models.features
    if not (pairs[1:] > pairs[:-1]).all():
        pairs.sort()
        again = pairs[1:] == pairs[:-1]
        if again.any():
            owner, feature = divmod(int(pairs[1:][again][0]), max(len(models.names), 1))
            raise ModelError(
                f"{models.label}: model '{models.ids[owner]}' has two coefficients of feature "
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
