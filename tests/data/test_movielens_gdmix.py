"""The MovieLens example in GDMix's folders, on a few rows of our own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gdmix.compat.gdmix_yaml import load_run
from gdmix.data.feature_index import FeatureIndex
from gdmix.data.movielens import SCHEMA, MovieLensFiles
from gdmix.data.movielens_gdmix import FOLDERS, write_gdmix_folders
from gdmix.data.read import open_rows
from gdmix.data.tfrecord.metadata import TensorMetadata
from gdmix.runs import run

ROWS = {
    "uid": [0, 1, 2],
    "user_id": [7, 8, 7],
    "movie_id": [5, 5, 6],
    "response": [1, 0, 1],
    "weight": [1.0, 1.0, 1.0],
    "timestamp": [1, 2, 3],
    "age": [0.24, 0.53, 0.24],
    "gender": ["M", "F", "M"],
    "occupation": ["writer", "none", "writer"],
    "genres": [["Action", "Sci_Fi"], ["Action", "Sci_Fi"], ["unknown"]],
    "release_date": [0.9975, 0.9975, None],
    "title": ["A (1995)", "A (1995)", "unknown"],
    "title_words": [["a"], ["a"], ["unknown"]],
    "day": [0, 0, 0],
    "hour": [0, 0, 0],
    "minute": [0, 0, 0],
}


@pytest.fixture
def files(tmp_path: Path) -> MovieLensFiles:
    table = pa.table(ROWS, schema=SCHEMA)
    for name in ("train", "validation"):
        pq.write_table(table, tmp_path / f"{name}.parquet")
    return MovieLensFiles(tmp_path / "train.parquet", tmp_path / "validation.parquet", 3, 3)


def test_feature_lists_and_metadata(files: MovieLensFiles, tmp_path: Path) -> None:
    write_gdmix_folders(files, "tfrecord")
    sizes = {"global": 44, "per_user": 20, "per_movie": 24}
    for folder, size in sizes.items():
        index = FeatureIndex.from_feature_list(tmp_path / folder / "featureList" / folder)
        assert index == FeatureIndex(FOLDERS[folder], [""] * size)
        text = (tmp_path / folder / "featureList" / folder).read_text()
        assert text.count(",\n") == size  # each with an empty term
        metadata = TensorMetadata.read(tmp_path / folder / "metadata" / "tensor_metadata.json")
        assert metadata.training_samples == 3
        assert (metadata.features[0].name, metadata.features[0].shape) == (folder, (size,))
        assert [s.name for s in metadata.features[1:]] == ["uid", "movie_id", "user_id"]
        assert [s.name for s in metadata.labels] == ["response"]


def decoded(table: pa.Table, bag: str) -> list[dict[str, float]]:
    if bag in table.schema.names:
        return [{f["name"]: f["value"] for f in row} for row in table[bag].to_pylist()]
    indices, values = table[f"{bag}_indices"].to_pylist(), table[f"{bag}_values"].to_pylist()
    assert all(row == sorted(row) for row in indices)
    pairs = zip(indices, values, strict=True)
    return [{FOLDERS[bag][i]: v for i, v in zip(*pair, strict=True)} for pair in pairs]


@pytest.mark.parametrize("kind", ["tfrecord", "avro"])
def test_rows(files: MovieLensFiles, tmp_path: Path, kind: Any) -> None:
    write_gdmix_folders(files, kind)
    age = np.array(ROWS["age"], np.float32)
    date = float(np.float32(0.9975))
    user = [
        {"age": float(age[0]), "M": 1, "writer": 1},
        {"age": float(age[1]), "F": 1, "none": 1},
        {"age": float(age[2]), "M": 1, "writer": 1},
    ]
    movie = [{"Action": 1, "Sci_Fi": 1, "release_date": date}] * 2 + [{"unknown": 1}]
    both = [u | m for u, m in zip(user, movie, strict=True)]
    for bag, expected in {"global": both, "per_user": movie, "per_movie": user}.items():
        for split in ("trainingData", "validationData"):
            rows = open_rows(tmp_path / bag / split)
            table = rows.read([n for n in rows.schema.names if n != "metadataMap"])
            assert decoded(table, bag) == expected
            assert table["uid"].to_pylist() == [0, 1, 2]
            assert table["response"].to_pylist() == [1, 0, 1]
            ids = [7, 8, 7] if kind == "tfrecord" else ["7", "8", "7"]
            assert table["user_id"].to_pylist() == ids
    # The other format takes its place.
    write_gdmix_folders(files, "avro" if kind == "tfrecord" else "tfrecord")
    assert len(list((tmp_path / "global/trainingData").iterdir())) == 1


@pytest.mark.parametrize("kind", ["tfrecord", "avro"])
def test_its_configuration_runs(files: MovieLensFiles, tmp_path: Path, kind: Any) -> None:
    configuration = write_gdmix_folders(files, kind)
    assert configuration == tmp_path / "lr-movieLens.yaml"
    config = load_run(configuration, {"output": str(tmp_path / "out")}).config
    history = run(config)
    assert [s["coordinate"] for s in history.steps] == ["global", "per-user", "per-movie"]
