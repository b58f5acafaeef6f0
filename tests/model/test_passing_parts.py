"""Parts of a model that pass from step to step: Arrow files of the same columns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from gdmix.errors import ModelError
from gdmix.model.coefficient_files import (
    part_file,
    read_random,
    write_coefficients,
    write_passing,
)
from gdmix.model.coefficients import RandomCoefficients


def _models(names: list[str]) -> RandomCoefficients:
    n = len(names)
    return RandomCoefficients(
        pa.array(names, pa.large_string()),
        np.arange(0, 2 * n + 1, 2),
        np.tile(np.array([0, 5], np.uint32), n),
        np.arange(2.0 * n),
        np.ones(2 * n),
        np.arange(0, 3 * n + 1, 3),
        np.arange(3.0 * n),
    )


def test_they_are_read_as_parquet_is(tmp_path: Path) -> None:
    """All columns, all parts, and some entities."""
    parts = [_models(["a", "c", "e"]), _models(["b", "d"])]
    for number, part in enumerate(parts):
        write_passing(part, tmp_path / "arrow", number)
        write_coefficients(part, tmp_path / "parquet", number)
    for options in ({}, {"part": 1}, {"only": pa.array(["d", "a", "x"], pa.large_string())}):
        found, expected = (read_random(tmp_path / kind, **options) for kind in ("arrow", "parquet"))
        assert found.entities.equals(expected.entities)
        for name in ("indptr", "columns", "values", "variances", "hessian_ptr", "hessians"):
            own = getattr(found, name)
            np.testing.assert_array_equal(own, getattr(expected, name))
            assert own.flags.writeable
    assert part_file(tmp_path / "arrow", 2) is None


def test_no_model_at_all(tmp_path: Path) -> None:
    write_passing(replace(_models([]), variances=None, hessian_ptr=None), tmp_path, 0)
    assert len(read_random(tmp_path)) == 0


def test_what_is_damaged_or_missing(tmp_path: Path) -> None:
    write_passing(_models(["a"]), tmp_path, 0)
    (tmp_path / "part-00000.arrow").write_bytes(b"ARROW1")
    with pytest.raises(ModelError, match=r"part-00000.arrow: damaged or missing"):
        read_random(tmp_path)
    with pytest.raises(ModelError, match=r"part-00001.parquet: damaged or missing"):
        read_random(tmp_path, 1)
