"""Avro and TFRecord files as sources of rows: what `data.read` needs to know of each file.

Avro, as Photon ML has it: an entry of the map ``metadataMap`` is a column of its own, unless a
field has its name. Where ``weight`` or ``offset`` may be null, a null is 1 and 0. A ``uid`` may
be text that holds integers; one that holds none in the first rows is no column.

TFRecord: a column that is a list in one file is one in all; ``tensor_metadata.json`` in the
folder of a file, beside it, or in ``metadata/`` in one of the two has the last word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from gdmix.data import avro, tfrecord
from gdmix.data.avro.container import AvroFile
from gdmix.data.schema import is_list, is_text
from gdmix.data.tfrecord.metadata import TensorMetadata
from gdmix.errors import DataError

METADATA_MAP = "metadataMap"
METADATA_FILE = "tensor_metadata.json"
UID = "uid"
_PHOTON_DEFAULTS = {"weight": 1.0, "offset": 0.0}
_SAMPLE = 10_000


class AvroRows:
    """One Avro file.

    Attributes
    ----------
    schema
        Its columns, with those of ``metadataMap`` after all others.
    uid_is_text
        Whether it has a ``uid`` that is left out as it holds no integers.
    """

    def __init__(self, file: Path) -> None:
        self._file, self.uid_is_text = file, False
        schema = avro.read_schema(file)
        for name in _PHOTON_DEFAULTS:
            if name in schema.names and pat.is_null(schema.field(name).type):
                schema = schema.set(schema.get_field_index(name), pa.field(name, pa.float64()))
        self.schema = schema.with_metadata(_attributes(file))
        self._entries: set[str] = set()
        odd = [c for c in (METADATA_MAP, UID) if c in schema.names and _is_odd(schema.field(c))]
        sample = next(avro.read_batches(file, odd, _SAMPLE), None) if odd else None
        if sample is not None and METADATA_MAP in odd:
            self._add_entries(sample.column(METADATA_MAP))
        if sample is not None and UID in odd:
            self._settle_uid(sample.column(UID))

    def at(self, file: Path) -> AvroRows:
        """Return what is known of the rows, for a copy of the file."""
        other = copy(self)
        other._file = file
        return other

    def _add_entries(self, entries: pa.MapArray) -> None:
        keys = pc.unique(entries.keys).to_pylist()
        self._entries = set(keys) - set(self.schema.names)
        for key in sorted(self._entries):
            self.schema = self.schema.append(pa.field(key, entries.type.item_type))

    def _settle_uid(self, uid: pa.Array) -> None:
        at = self.schema.get_field_index(UID)
        try:
            usable = len(uid) > uid.null_count and uid.cast(pa.int64()) is not None
        except pa.ArrowInvalid:
            usable = False
        self.uid_is_text = not usable and len(uid) > uid.null_count
        if usable:
            self.schema = self.schema.set(at, pa.field(UID, pa.int64()))
        else:
            self.schema = self.schema.remove(at)

    def stream(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield these columns, batch by batch."""
        target = pa.schema([self.schema.field(c) for c in columns])
        needed = dict.fromkeys(METADATA_MAP if c in self._entries else c for c in columns)
        for batch in avro.read_batches(self._file, list(needed)):
            arrays = [self._column(batch, c) for c in columns]
            yield pa.RecordBatch.from_arrays(arrays, schema=target)

    def _column(self, batch: pa.RecordBatch, name: str) -> pa.Array:
        if name in self._entries:
            return pc.map_lookup(batch.column(METADATA_MAP), name, "first")
        column = batch.column(name)
        if name == UID and column.type != self.schema.field(UID).type:
            try:
                return column.cast(pa.int64())
            except pa.ArrowInvalid as error:
                raise DataError(f"{self._file}: column 'uid': {error}; use integers") from None
        return _with_default(name, column)


def _is_odd(field: pa.Field) -> bool:
    """Whether a look at the first rows must tell what the column is."""
    if field.name == METADATA_MAP:
        return bool(pat.is_map(field.type))
    return is_text(field.type) or bool(pat.is_null(field.type)) or pat.is_integer(field.type)


def _with_default(name: str, column: pa.Array) -> pa.Array:
    if name not in _PHOTON_DEFAULTS or not column.null_count:
        return column
    if pat.is_null(column.type):
        column = column.cast(pa.float64())
    if pat.is_floating(column.type) or pat.is_integer(column.type):
        return pc.fill_null(column, pa.scalar(_PHOTON_DEFAULTS[name]).cast(column.type))
    return column


def _attributes(file: Path) -> dict[str, str]:
    """Return the properties of ours that a schema has, such as ``gdmix.task``."""
    schema: Any = AvroFile(file).schema
    found = schema.items() if isinstance(schema, Mapping) else ()
    return {k: v for k, v in found if str(k).startswith("gdmix.") and isinstance(v, str)}


def tfrecord_schemas(files: Sequence[Path]) -> dict[Path, pa.Schema]:
    """Return the columns of TFRecord files that are read together.

    Raises
    ------
    DataError
        If one of them, or its metadata, is damaged.
    """
    if len(files) > 1:  # Spark leaves a file of no bytes where a partition has no rows
        files = [file for file in files if file.stat().st_size] or files
    known: dict[Path, TensorMetadata] = {}
    schemas = {}
    for file in files:
        path = next((place for place in metadata_places(file) if place.is_file()), None)
        if path is not None and path not in known:
            known[path] = TensorMetadata.read(path)
        schemas[file] = tfrecord_schema(file, known[path] if path else None, len(files))
    return agreed_schemas(schemas)


def tfrecord_schema(file: Path, metadata: TensorMetadata | None, files: int = 1) -> pa.Schema:
    """Return the columns of a TFRecord file as far as it alone tells, one of so many files."""
    schema = tfrecord.read_schema(file, metadata, max(1000, _SAMPLE // max(files, 1)))
    return _with_dense(schema, metadata)


def stream_tfrecord(
    file: Path, schema: pa.Schema, columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """Yield these columns of a file, batch by batch."""
    target = pa.schema([schema.field(c) for c in columns])
    raw = pa.schema([f.with_type(_plain_list(f.type)) for f in schema], schema.metadata)
    for batch in tfrecord.read_batches(file, columns, raw):
        batch = batch.replace_schema_metadata(None)
        if batch.schema != target:
            batch = _to_fixed_size(file, batch, target)
        yield batch


def metadata_places(file: Path) -> Iterator[Path]:
    """Yield where the metadata of a TFRecord file may lie."""
    # GDMix's partitions are folders within trainingData: partitionId=0/active.
    folder = file.parent
    while folder.name in ("active", "passive") or "=" in folder.name:
        folder = folder.parent
    for place in (folder, folder.parent):
        yield place / METADATA_FILE
        yield place / "metadata" / METADATA_FILE


def _with_dense(schema: pa.Schema, metadata: TensorMetadata | None) -> pa.Schema:
    """Give dense vectors of numbers, whose size only the metadata tell, that size."""
    for spec in metadata.features if metadata else ():
        if spec.is_sparse or len(spec.shape) != 1 or spec.shape[0] < 1:
            continue
        at = schema.get_field_index(spec.name)
        item = schema.field(at).type.value_type
        if pat.is_floating(item) or pat.is_integer(item):
            kind = pa.list_(item, spec.shape[0])
            schema = schema.set(at, schema.field(at).with_type(kind))
    return schema


def _plain_list(kind: pa.DataType) -> pa.DataType:
    return pa.list_(kind.value_type) if pat.is_fixed_size_list(kind) else kind


def _to_fixed_size(file: Path, batch: pa.RecordBatch, target: pa.Schema) -> pa.RecordBatch:
    arrays = []
    for column, field in zip(batch.columns, target, strict=True):
        if pat.is_fixed_size_list(field.type):
            sizes = pc.list_value_length(column)
            if not pc.all(pc.equal(sizes, field.type.list_size)).as_py():
                found = pc.unique(sizes.drop_null()).to_pylist()
                wrong = next(size for size in found if size != field.type.list_size)
                raise DataError(
                    f"{file}: feature '{field.name}' has a list of {wrong} numbers, "
                    f"{METADATA_FILE} says {field.type.list_size}"
                )
            column = column.cast(field.type)
        arrays.append(column)
    return pa.RecordBatch.from_arrays(arrays, schema=target)


def agreed_schemas(schemas: Mapping[Path, pa.Schema]) -> dict[Path, pa.Schema]:
    """Let TFRecord files agree on what is a list, what has a type, and which columns there are."""
    types: dict[str, pa.DataType] = {}
    for schema in schemas.values():
        for field in schema:
            old = types.setdefault(field.name, field.type)
            if _tells_more(field.type, old):
                types[field.name] = field.type
    agreed = {}
    for file, schema in schemas.items():
        fields = []
        for name, kind in types.items():
            own = schema.field(name).type if name in schema.names else pa.null()
            fields.append(pa.field(name, kind if _same_item(own, kind) else own))
        agreed[file] = pa.schema(fields, schema.metadata)
    return agreed


def _tells_more(kind: pa.DataType, other: pa.DataType) -> bool:
    if pat.is_null(other) or (is_list(kind) and not is_list(other)):
        return _same_item(other, kind)
    if pat.is_binary(kind) and is_text(other):
        return True
    return is_list(kind) and is_list(other) and _tells_more(kind.value_type, other.value_type)


def _same_item(own: pa.DataType, kind: pa.DataType) -> bool:
    own = own.value_type if is_list(own) else own
    item = kind.value_type if is_list(kind) else kind
    return bool(
        pat.is_null(own) or own == item or (is_text(own) and pat.is_binary(item))  # text is bytes
    )
