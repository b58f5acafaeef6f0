"""A model of whatever format, by its path."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from gdmix.config import ModelConfig
from gdmix.model.mixed_model import TrainedModel
from gdmix.model.photon_folder import model_folders, read_folder, with_entity_types
from gdmix.model.store import MANIFEST, read_model


def read_any_model(
    path: Path,
    description: ModelConfig | None = None,
    types: Mapping[str, pa.DataType] | None = None,
    stored: bool = False,
) -> TrainedModel:
    """Read a model.

    Parameters
    ----------
    path
        A model folder or a run folder; also one of Photon ML or GDMix.
    description
        What a model of these two applies to: see `photon_folder.read_folder`.
    types
        Columns of the rows that such a model is for: its ids become text where theirs are.
    stored
        Leave the coordinates of a model of ours on disk until someone looks at them.

    Raises
    ------
    ModelError
        If it is no model of a known format, or damaged.
    """
    if not (path / MANIFEST).exists() and model_folders(path):
        return with_entity_types(read_folder(path, description), types or {})
    return read_model(path, stored)
