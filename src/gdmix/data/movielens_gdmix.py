"""The MovieLens example in the folders that LinkedIn's GDMix makes of it.

    global|per_user|per_movie/featureList/<folder>              lines name,term
                              metadata/tensor_metadata.json
                              trainingData/, validationData/    TFRecord, or Avro
    detext/vocab.txt, trainingData/, validationData/              TFRecord, with DeText's names
    lr-movieLens.yaml, detext-movieLens.yaml

Each folder has all rows, with the features of one coordinate: of users and movies, of movies, of
users. In Avro they are lists of name, term and value, and ids are entries of `metadataMap`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gdmix.data.avro.write import write_batches
from gdmix.data.movielens import GENRES, MovieLensFiles
from gdmix.data.tfrecord.metadata import TensorMetadata, TensorSpec, write_feature_list
from gdmix.data.tfrecord.write import write_examples
from gdmix.data.write import atomic_file, replaced_folder

OCCUPATIONS = (
    *("administrator", "artist", "doctor", "educator", "engineer", "entertainment", "executive"),
    *("healthcare", "homemaker", "lawyer", "librarian", "marketing", "none", "other"),
    *("programmer", "retired", "salesman", "scientist", "student", "technician", "writer"),
)
USER_FEATURES = ("age", "M", "F", *OCCUPATIONS)
MOVIE_FEATURES = (*GENRES, "release_date")
FOLDERS = {
    "global": (*USER_FEATURES, *MOVIE_FEATURES),
    "per_user": MOVIE_FEATURES,
    "per_movie": USER_FEATURES,
}
_LEAST = 1e-6  # a value not above it is left out
_LAST_PARENTHESIS = re.compile(r"\([^)]*\)$")
_PUNCTUATION = re.compile(r"[!-/:-@\[-`{-~]")
_ROWS = 1 << 14

_AVRO: dict[str, Any] = {
    "type": "record",
    "name": "TrainingExampleAvro",
    "namespace": "com.linkedin.photon.avro.generated",
    "fields": [
        {"name": "uid", "type": ["null", "long"], "default": None},
        {"name": "response", "type": "double"},
        {"name": "metadataMap", "type": ["null", {"type": "map", "values": "string"}]},
    ],
}
_FEATURE = {
    "type": "record",
    "name": "FeatureAvro",
    "fields": [
        {"name": "name", "type": "string"},
        {"name": "term", "type": "string"},
        {"name": "value", "type": "double"},
    ],
}


def write_gdmix_folders(files: MovieLensFiles, kind: Literal["tfrecord", "avro"]) -> Path:
    """Write folders and configuration beside the prepared Parquet files.

    Returns
    -------
    pathlib.Path
        The configuration, with GDMix's keys.

    Raises
    ------
    OutputError
        If the system refuses to write there.
    """
    directory = files.train.parent
    splits = {"trainingData": files.train, "validationData": files.validation}
    tables = {split: pq.read_table(file) for split, file in splits.items()}
    for folder, features in FOLDERS.items():
        with replaced_folder(directory / folder) as place:
            write_feature_list(place / "featureList" / folder, ((name, "") for name in features))
            _metadata(folder, len(features), tables["trainingData"].num_rows).write(
                place / "metadata" / "tensor_metadata.json"
            )
            for split, table in tables.items():
                _write_rows(table, folder, features, place / split, kind)
    names = ["lr-movieLens.yaml"]
    if kind == "tfrecord":
        _write_detext(directory, splits, tables)
        names.append("detext-movieLens.yaml")
    for name in names:
        text = resources.files("gdmix") / "examples" / "gdmix" / name
        with atomic_file(directory / name) as temporary:
            content = text.read_text(encoding="utf-8").replace('"movieLens/', f'"{directory}/')
            temporary.write_text(content, encoding="utf-8")
    return directory / names[0]


def _write_detext(
    directory: Path, splits: Mapping[str, Path], tables: Mapping[str, pa.Table]
) -> None:
    """Write the rows as DeText wants them: titles, features from number 1, a float response."""
    files = {"trainingData": "train_data.tfrecord", "validationData": "test_data.tfrecord"}
    with replaced_folder(directory / "detext") as place:
        words = {word for table in tables.values() for t in _titles(table) for word in t.split()}
        with atomic_file(place / "vocab.txt") as temporary:
            lines = ["[PAD]", "[UNK]", *sorted(words)]
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        for split in splits:
            table = tables[split]
            stops, indices, values = _indexed(table, FOLDERS["global"])
            columns = {
                "wide_ftrs_sp_indices0": pa.ListArray.from_arrays(
                    pa.array(stops), pa.array(indices + 1)
                ),
                "wide_ftrs_sp_values": pa.ListArray.from_arrays(pa.array(stops), pa.array(values)),
                "response": table["response"].cast(pa.float32()),
                "doc_query": pa.array(_titles(table)),
                **{c: table[c] for c in ("user_id", "movie_id", "uid")},
            }
            write_examples(place / split / files[split], pa.table(columns).to_batches(_ROWS))


def _titles(table: pa.Table) -> list[str]:
    """Return titles as GDMix has them: small letters, no year, blanks for punctuation."""
    titles = (_LAST_PARENTHESIS.sub("", title.lower()) for title in table["title"].to_pylist())
    return [" ".join(_PUNCTUATION.sub(" ", title).split()) for title in titles]


def _metadata(bag: str, size: int, rows: int) -> TensorMetadata:
    ids = (TensorSpec(name, "int") for name in ("uid", "movie_id", "user_id"))
    features = (TensorSpec(bag, "float", (size,), is_sparse=True), *ids)
    return TensorMetadata(features, (TensorSpec("response", "int"),), rows)


def _write_rows(
    table: pa.Table,
    bag: str,
    features: Sequence[str],
    folder: Path,
    kind: Literal["tfrecord", "avro"],
) -> None:
    stops, indices, values = _indexed(table, features)
    if kind == "tfrecord":
        name = "train_data" if folder.name == "trainingData" else "validation_data"
        columns = {
            f"{bag}_indices": pa.ListArray.from_arrays(pa.array(stops), pa.array(indices)),
            f"{bag}_values": pa.ListArray.from_arrays(pa.array(stops), pa.array(values)),
            **{c: table[c] for c in ("response", "user_id", "movie_id", "uid")},
        }
        batches = pa.table(columns).to_batches(_ROWS)
        write_examples(folder / f"{name}.tfrecord", batches)
        return
    names = pa.array(features).take(pa.array(indices))
    terms = pa.repeat("", len(names))
    ntv = pa.StructArray.from_arrays([names, terms, pa.array(values)], ["name", "term", "value"])
    rows = pa.table(
        {
            "uid": table["uid"],
            "response": table["response"].cast(pa.float64()),
            "metadataMap": _entries(table, ("user_id", "movie_id")),
            bag: pa.ListArray.from_arrays(pa.array(stops), ntv),
        }
    )
    field = {"name": bag, "type": {"type": "array", "items": _FEATURE}}
    schema = _AVRO | {"fields": [*_AVRO["fields"], field]}
    write_batches(folder / "part-00000.avro", schema, rows.to_batches(_ROWS))


def _entries(table: pa.Table, columns: Sequence[str]) -> pa.MapArray:
    n, width = table.num_rows, len(columns)
    ids = [table[c].cast(pa.string()).to_numpy(zero_copy_only=False) for c in columns]
    values = pa.array(np.stack(ids, axis=1).ravel())
    keys = pa.array(list(columns) * n, pa.string())
    return pa.MapArray.from_arrays(np.arange(n + 1, dtype=np.int32) * width, keys, values)


def _indexed(
    table: pa.Table, features: Sequence[str]
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.float32]]:
    """Return each row's features, ascending: where they end, their numbers, their values."""
    n = table.num_rows
    every = np.arange(n)
    one = np.ones(n, np.float32)
    genres = table["genres"].combine_chunks()
    owners = np.repeat(every, pc.list_value_length(genres).to_numpy())
    known = pa.array(features)
    parts = [
        (every, pa.repeat("age", n), table["age"].to_numpy()),
        (every, table["gender"], one),
        (every, table["occupation"], one),
        (owners, genres.flatten(), np.ones(owners.size, np.float32)),
        (every, pa.repeat("release_date", n), table["release_date"].fill_null(0).to_numpy()),
    ]
    row = np.concatenate([rows for rows, _, _ in parts])
    value = np.concatenate([np.asarray(values, np.float32) for _, _, values in parts])
    names = (_one_array(name) for _, name, _ in parts)
    number = np.concatenate(
        [pc.fill_null(pc.index_in(name, value_set=known), -1).to_numpy() for name in names]
    ).astype(np.int64)
    kept = (number >= 0) & (np.abs(value) > _LEAST)
    row, number, value = row[kept], number[kept], value[kept]
    order = np.lexsort((number, row))
    stops = np.concatenate(([0], np.cumsum(np.bincount(row, minlength=n)))).astype(np.int32)
    return stops, number[order], value[order]


def _one_array(names: pa.Array | pa.ChunkedArray) -> pa.Array:
    return names.combine_chunks() if isinstance(names, pa.ChunkedArray) else names
