"""Rows, features and models from one format into another.

Rows: any format that can be read into Parquet, TFRecord or Avro. Features: the bags of a
configuration's coordinates into GDMix's index and value lists, with feature lists and metadata.
Models: ours into Photon ML's or GDMix's, and back.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pat

from gdmix.config import AvroLayout, FixedEffect, ModelConfig, RandomEffect, RunConfig
from gdmix.data.avro.write import write_batches
from gdmix.data.design import encode_bag
from gdmix.data.feature_index import FeatureIndex, FeatureIndexBuilder
from gdmix.data.join import join_rows, open_data
from gdmix.data.read import RowSource, open_rows
from gdmix.data.schema import RowSchema, is_list
from gdmix.data.tfrecord.metadata import TensorMetadata, TensorSpec, write_feature_list
from gdmix.data.tfrecord.write import write_examples
from gdmix.data.validate import counted
from gdmix.data.write import atomic_file, check_replaceable, replaced_folder
from gdmix.errors import ConfigError, DataError, OutputError
from gdmix.glm.matrix import CsrMatrix
from gdmix.model.any_model import read_any_model
from gdmix.model.mixed_model import TrainedModel
from gdmix.model.photon_folder import PHOTON_METADATA, with_split_crossed, write_photon_folder
from gdmix.model.store import is_model_folder, write_model

RowFormat = Literal["parquet", "tfrecord", "avro"]
ModelFormat = Literal["parquet", "avro", "photon"]

log = logging.getLogger("gdmix")

_SUFFIXES: Mapping[str, RowFormat] = {
    ".parquet": "parquet",
    ".tfrecord": "tfrecord",
    ".tfrecord.gz": "tfrecord",
    ".tfrecord.deflate": "tfrecord",
    ".avro": "avro",
}
_SPLITS: tuple[Literal["train", "validation"], ...] = ("train", "validation")
_FOLDERS = {"train": "trainingData", "validation": "validationData"}  # as GDMix names them


# Rows


@dataclass(frozen=True)
class Written:
    """Where rows went, and how many they are."""

    path: Path
    rows: int


def convert_rows(
    source: Sequence[str],
    output: Path,
    columns: Sequence[str] = (),
    joined: Sequence[str] = (),
    uid: str = "uid",
) -> Written:
    """Write rows in the format that the output's name ends with.

    Parameters
    ----------
    columns
        Those to write; none: all.
    joined, uid
        Further sources of the same rows, whose columns are found by this one.

    Raises
    ------
    GdmixError
        If the rows can't be read, or have a type that the format can't hold; no file then.
    """
    kind = next((k for suffix, k in _SUFFIXES.items() if output.name.endswith(suffix)), None)
    if kind is None:
        raise OutputError(f"{output}: unknown kind of file; use {', '.join(_SUFFIXES)}")
    rows = open_rows(list(source))
    if joined:
        rows = join_rows(rows, [(open_rows(path), "") for path in joined], uid)
    names = list(columns) or rows.schema.names
    missing = [c for c in names if c not in rows.schema.names]
    if missing:
        raise DataError([f"{rows.label}: column '{c}' is missing" for c in missing])
    schema = pa.schema([rows.schema.field(c) for c in names])
    return Written(output, _write(output, kind, schema, _batches(rows, names)))


def _batches(rows: RowSource, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    for table in rows.stream(names):
        yield from table.to_batches()


def _write(
    path: Path, kind: RowFormat, schema: pa.Schema, batches: Iterator[pa.RecordBatch]
) -> int:
    n = 0

    def count() -> Iterator[pa.RecordBatch]:
        nonlocal n
        for batch in batches:
            n += batch.num_rows
            yield batch

    if kind == "parquet":
        with (
            atomic_file(path) as temporary,
            pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
        ):
            for batch in count():
                writer.write_batch(batch)
    elif kind == "tfrecord":
        for field in schema:
            _check_for_tfrecord(path, field)
        write_examples(path, count())
    else:
        write_batches(path, avro_schema(schema), count())
    return n


def _check_for_tfrecord(path: Path, field: pa.Field) -> None:
    item = field.type
    while is_list(item) or pat.is_fixed_size_list(item):
        item = item.value_type
    if pat.is_struct(item) or pat.is_map(item):
        raise DataError(
            f"{path}: column '{field.name}' is {field.type}, which a TFRecord can't hold; "
            "gdmix convert features makes indices and values of features"
        )


def avro_schema(schema: pa.Schema, name: str = "Row") -> dict[str, Any]:
    """Return an Avro schema whose records hold rows of an Arrow schema; all may be null.

    Raises
    ------
    DataError
        If a column's name or type is none that Avro has.
    """
    fields = []
    for field in schema:
        if not field.name.isidentifier() or not field.name.isascii():
            raise DataError(f"column '{field.name}': is no name that Avro allows; rename it")
        kind = _avro_type(field.type, field.name)
        fields.append({"name": field.name, "type": ["null", kind], "default": None})
    return {"type": "record", "name": name, "fields": fields}


def _avro_type(kind: pa.DataType, name: str) -> Any:
    if pat.is_dictionary(kind):
        return _avro_type(kind.value_type, name)
    if pat.is_integer(kind):
        return "int" if kind in (pa.int8(), pa.int16(), pa.int32(), pa.uint8()) else "long"
    simple = (
        (pat.is_boolean, "boolean"),
        (pat.is_float32, "float"),
        (pat.is_floating, "double"),
        (lambda k: pat.is_string(k) or pat.is_large_string(k) or pat.is_null(k), "string"),
        (lambda k: pat.is_binary(k) or pat.is_large_binary(k), "bytes"),
    )
    for fits, avro in simple:
        if fits(kind):
            return avro
    if is_list(kind) or pat.is_fixed_size_list(kind):
        return {"type": "array", "items": _avro_item(kind.value_type, name)}
    if pat.is_map(kind):
        return {"type": "map", "values": _avro_item(kind.item_type, name)}
    if pat.is_struct(kind):
        fields = [{"name": f.name, "type": _avro_item(f.type, f"{name}_{f.name}")} for f in kind]
        return {"type": "record", "name": f"{name}_item", "fields": fields}
    raise DataError(f"column '{name}': is {kind}, which Avro does not have; cast it")


def _avro_item(kind: pa.DataType, name: str) -> Any:
    return ["null", _avro_type(kind, name)]


# Features


def convert_features(
    config: RunConfig, output: Path, kind: Literal["parquet", "tfrecord"], shared: bool = False
) -> list[Written]:
    """Write each coordinate's rows as GDMix has them, in GDMix's folders.

    Parameters
    ----------
    config
        Rows, roles, bags and coordinates. A coordinate's bags become one, of its name.
    shared
        One feature list for all coordinates, instead of one for each.

    Raises
    ------
    GdmixError
        With every finding in the first rows that have one; no folder then.
    """
    check_replaceable(output, False, lambda _: False)
    for bag, of_bag in config.used_features.items():
        if of_bag.is_selected:
            raise ConfigError(
                f"features.{bag}: min_count and max_features are for training; remove them: "
                "all features are written"
            )
    uid = config.columns.column("uid")
    opened = {split: open_data(config.data, split, uid) for split in _SPLITS}
    sources = {split: rows for split, rows in opened.items() if rows is not None}
    coordinates = config.linear
    bags = {name: list(spec.features) for name, spec in coordinates.items()}
    if shared:
        every = list(config.used_features)
        bags = {name: every if own else [] for name, own in bags.items()}
    indices = _read_indices(config, sources["train"])
    written = []
    with replaced_folder(output) as staging:
        for name, spec in coordinates.items():
            folder, bag = staging / name, name.replace("-", "_")
            index = [indices[b] for b in bags[name]]
            if index:
                features = chain.from_iterable(
                    zip(i.names.to_pylist(), i.terms.to_pylist(), strict=True) for i in index
                )
                write_feature_list(folder / "featureList" / bag, features)
            for split, source in sources.items():
                rows = _IndexedRows(config, source, spec, bag, bags[name], indices)
                path = folder / _FOLDERS[split] / f"part-00000.{kind}"
                n = _write(path, kind, rows.schema, rows.batches())
                written.append(Written(output / path.relative_to(staging), n))
                if split == "train":
                    rows.metadata(n).write(folder / "metadata" / "tensor_metadata.json")
    return written


def _read_indices(config: ModelConfig, source: RowSource) -> dict[str, FeatureIndex]:
    bags = config.used_features
    columns = list(dict.fromkeys(c for bag in bags.values() for c in bag.columns))
    schema = RowSchema(config.columns, bags, config.entities, derived=config.derived_entities)
    schema.select(source.schema, source.label)
    types = {f.name: f.type for f in source.schema}
    builders = {name: FeatureIndexBuilder(bag, types) for name, bag in bags.items()}
    if any(builder.needs_rows for builder in builders.values()):
        for batch in _batches(source, columns):
            for builder in builders.values():
                builder.update(batch)
    return {name: builder.freeze() for name, builder in builders.items()}


class _IndexedRows:
    """The rows of a source with one coordinate's features as indices and values."""

    def __init__(
        self,
        config: ModelConfig,
        source: RowSource,
        spec: FixedEffect | RandomEffect,
        bag: str,
        bags: Sequence[str],
        indices: Mapping[str, FeatureIndex],
    ) -> None:
        self._config, self._source, self._bag, self._bags = config, source, bag, bags
        self._indices = indices
        entities = (spec.key,) if isinstance(spec, RandomEffect) else config.entities
        own = {b: config.features[b] for b in bags}
        schema = RowSchema(config.columns, own, entities, derived=config.derived_entities)
        self._columns = schema.select(source.schema, source.label)
        names = source.schema.names
        roles = ("uid", "response", "weight", "offset")
        found = {role: schema.role_column(role, names) for role in roles}
        self._uid = found["uid"]
        others = [found["response"], found["weight"], found["offset"], *schema.key_columns]
        self._kept = list(dict.fromkeys(c for c in others if c is not None))
        fields = [pa.field("uid", pa.int64())] if self._uid is None else []
        kept = [self._uid, *self._kept] if self._uid else self._kept
        fields += [source.schema.field(c) for c in kept]
        if bags:
            fields.append(pa.field(f"{bag}_indices", pa.list_(pa.int64())))
            fields.append(pa.field(f"{bag}_values", pa.list_(pa.float32())))
        self.schema = pa.schema(fields)
        self._label = found["response"]

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows.

        Raises
        ------
        DataError
            With every finding in the first batch that has one.
        """
        first = unknown = 0
        for batch in _batches(self._source, self._columns):
            arrays = [] if self._uid else [pa.array(np.arange(first, first + batch.num_rows))]
            arrays += [batch.column(c) for c in ([self._uid] if self._uid else []) + self._kept]
            if self._bags:
                matrix, dropped = self._encode(batch, first)
                unknown += dropped
                arrays += _lists(matrix)
            yield pa.RecordBatch.from_arrays(arrays, schema=self.schema)
            first += batch.num_rows
        if unknown:
            text = "left out %s values of features that are not in the feature list"
            log.warning(f"%s: %s: {text}", self._source.label, self._bag, f"{unknown:,}")

    def _encode(self, batch: pa.RecordBatch, first: int) -> tuple[CsrMatrix, int]:
        found = [encode_bag(batch, self._config.features[b], self._indices[b]) for b in self._bags]
        findings = [
            f"{self._source.label}: column '{p.column}': {counted(p.rows.size)} with {p.what} "
            f"(first: row {first + int(p.rows[0])})"
            for encoded in found
            for p in encoded.problems
            if p.rows.size
        ]
        if findings:
            raise DataError(findings)
        return CsrMatrix.hstack([e.matrix for e in found]), sum(e.unknown for e in found)

    def metadata(self, rows: int) -> TensorMetadata:
        """Return what GDMix is to know of the columns."""
        size = sum(len(self._indices[b]) for b in self._bags)
        sparse = [TensorSpec(self._bag, "float", (size,), is_sparse=True)] if self._bags else []
        pair = {f"{self._bag}_indices", f"{self._bag}_values"}
        plain = [TensorSpec(f.name, _dtype(f.type)) for f in self.schema if f.name not in pair]
        labels = tuple(s for s in plain if s.name == self._label)
        features = tuple(s for s in plain if s.name != self._label)
        return TensorMetadata((*sparse, *features), labels, rows)


def _dtype(kind: pa.DataType) -> str:
    kind = kind.value_type if pat.is_dictionary(kind) else kind
    if pat.is_integer(kind) or pat.is_boolean(kind):
        return "long"
    return "float" if pat.is_floating(kind) else "string"


def _lists(matrix: CsrMatrix) -> list[pa.Array]:
    """Return index and value lists, the indices of a row ascending."""
    matrix = matrix.sparse()
    rows = np.repeat(np.arange(matrix.indptr.size - 1), np.diff(matrix.indptr))
    order = np.lexsort((matrix.indices, rows))
    stops = pa.array(matrix.indptr.astype(np.int32))
    return [
        pa.ListArray.from_arrays(stops, pa.array(matrix.indices[order].astype(np.int64))),
        pa.ListArray.from_arrays(stops, pa.array(matrix.values[order])),
    ]


# Models


def convert_model(
    folder: Path,
    output: Path,
    kind: ModelFormat,
    description: ModelConfig | None = None,
    *,
    cut: float = 0.0,
    split_crossed: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> TrainedModel:
    """Write a model in another format.

    Parameters
    ----------
    kind
        ``parquet``: ours; ``avro``: ours, with GDMix's Avro files; ``photon``: Photon ML's.
    description
        What the models apply to, if they are Photon ML's or GDMix's.
    cut
        Leave out coefficients whose magnitude is not above it (``photon``).
    split_crossed
        Fixed effects on crossed features to the entity columns of the random effects that they
        become.

    Raises
    ------
    GdmixError
        If the model or the output can't be used.
    """
    if cut and kind != "photon":
        raise ConfigError("--cut is for --to photon: a model of ours keeps all coefficients")
    check_replaceable(output, overwrite, _is_ours)
    model = read_any_model(folder, description)
    for coordinate, entity in (split_crossed or {}).items():
        model = with_split_crossed(model, coordinate, entity)
    with replaced_folder(output) as staging:
        if kind == "photon":
            write_photon_folder(model, staging, cut)
        else:
            write_model(model, staging, AvroLayout() if kind == "avro" else None)
    return model


def _is_ours(folder: Path) -> bool:
    return is_model_folder(folder) or (folder / PHOTON_METADATA).is_file()
