"""What is imported when: a name costs nothing before it is used."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import gdmix

HEAVY = ("numpy", "numba", "pyarrow", "pydantic", "ruamel", "rich", "typer", "pandas", "polars")


def loaded_after(code: str) -> set[str]:
    """Return which of `HEAVY` a new process has imported after running `code`."""
    script = (
        f"{code}\nimport sys, json; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_gdmix_imports_nothing_else() -> None:
    assert loaded_after("import gdmix; gdmix.__version__; dir(gdmix)") == set()


def test_errors_are_light() -> None:
    assert loaded_after("from gdmix import DataError") == set()


def test_configuration_needs_no_arrays() -> None:
    assert loaded_after("from gdmix import FixedEffect, RunConfig") == {"pydantic", "ruamel"}


def test_the_estimator_needs_no_frames_and_no_terminal() -> None:
    loaded = loaded_after("from gdmix import MixedModel")
    assert not loaded & {"pandas", "polars", "rich", "typer"}


@pytest.mark.parametrize("option", ["--help", "--version", "train --help"])
def test_help_is_light(option: str) -> None:
    code = (
        "from gdmix.cli import app\n"
        f"try: app({option.split()})\n"
        "except SystemExit as stop: assert not stop.code"
    )
    # Typer itself may import pydantic.
    assert loaded_after(code) <= {"rich", "typer", "pydantic"}


def test_every_public_name_exists() -> None:
    for name in gdmix.__all__:
        assert getattr(gdmix, name) is not None
    assert dir(gdmix) == gdmix.__all__


def test_other_names_do_not() -> None:
    with pytest.raises(AttributeError, match="module 'gdmix' has no attribute 'Mixedmodel'"):
        gdmix.Mixedmodel  # noqa: B018
