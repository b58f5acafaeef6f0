"""The features of a configuration's training rows, each with its counts, moments and extremes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from gdmix import memory
from gdmix.config import RunConfig
from gdmix.data.dataset import Dataset, load_training
from gdmix.data.feature_index import FeatureIndex, HashedIndex
from gdmix.data.feature_summary import summarize
from gdmix.data.join import open_data
from gdmix.data.schema import RowSchema
from gdmix.data.write import atomic_file, temporary_folder, write_table
from gdmix.errors import ConfigError, OutputError
from gdmix.glm.threads import available_threads


def feature_table(config: RunConfig, weighted: bool = False) -> pa.Table:
    """Read the training rows and describe the features of every bag.

    Parameters
    ----------
    weighted
        Weigh mean and standard deviation by row weight.

    Returns
    -------
    pyarrow.Table
        Columns ``bag``, ``name``, ``term``, ``nnz``, ``mean``, ``std``, ``min``, ``max``; a row
        per feature, in the order of columns. Of a hashed bag the columns that any row has.

    Raises
    ------
    ConfigError
        If the configuration has no feature bag.
    DataError
        With every finding in the rows.
    """
    if not config.features:
        raise ConfigError("features: the configuration has none")
    bags = {b: own.model_copy(update={"missing": "zero"}) for b, own in config.features.items()}
    schema = RowSchema(config.columns, bags)
    threads = config.threads or available_threads()
    with (
        temporary_folder(config.scratch) as folder,
        memory.limited(config.memory_limit, folder),
    ):
        source = open_data(config.data, "train", config.columns.column("uid"))
        assert source is not None
        # A number that may be missing is none to describe: where checks are off, it is absent.
        gaps = any(bag.missing == "keep" for bag in config.used_features.values())
        mode = "off" if gaps else config.validate_mode
        rows, indices = load_training(source, schema, config.task, mode, threads=threads)
        tables = [_of_bag(b, rows, index, weighted, threads) for b, index in indices.items()]
    return pa.concat_tables(tables)


def _of_bag(bag: str, rows: Dataset, index: FeatureIndex, weighted: bool, threads: int) -> pa.Table:
    summary = summarize(rows.bags[bag], rows.weight if weighted else None, threads)
    seen = np.arange(len(index))
    if isinstance(index, HashedIndex):
        seen = np.flatnonzero(summary.nnz)
    names, terms = index.features(seen)
    return pa.table(
        {
            "bag": pa.repeat(bag, seen.size),
            "name": names,
            "term": terms,
            "nnz": summary.nnz[seen],
            "mean": summary.mean[seen],
            "std": summary.standard_deviation[seen],
            "min": summary.minimum[seen],
            "max": summary.maximum[seen],
        }
    )


def write_feature_table(table: pa.Table, path: Path) -> None:
    """Write the table as Parquet or CSV.

    Raises
    ------
    OutputError
        If the file's name ends in neither, or the system refuses to write there.
    """
    if path.suffix not in (".parquet", ".csv"):
        raise OutputError(f"{path}: unknown kind of file; use .parquet or .csv")
    if path.suffix == ".parquet":
        write_table(table, path)
        return
    with atomic_file(path) as temporary:
        pyarrow.csv.write_csv(table, temporary)
