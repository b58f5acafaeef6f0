"""Whole files or none: everything is written under a temporary name and renamed.

A file or folder that exists under its own name is complete, whatever killed the writer.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gdmix.errors import OutputError


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it on success, remove it on failure.

    Raises
    ------
    OutputError
        If the system refuses to write there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with _output_errors(path):
        _make_parent(path)
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_table(table: pa.Table, path: Path) -> None:
    """Write a Parquet file."""
    write_tables(iter([table]), path)


def write_tables(tables: Iterator[pa.Table], path: Path, repetitive: bool = True) -> None:
    """Write a Parquet file of at least one table.

    Parameters
    ----------
    repetitive
        Whether values of a column repeat: a dictionary of coefficients costs five times the
        time of writing them, and saves nothing.
    """
    with atomic_file(path) as temporary:
        first = next(tables)
        options = {"compression": "zstd", "use_dictionary": repetitive}
        with pq.ParquetWriter(temporary, first.schema, **options) as writer:
            for table in chain([first], tables):
                writer.write_table(table)


def link_files(source: Path, folder: Path) -> bool:
    """Give all files of a folder second names in another; return whether the system could."""
    try:
        shutil.copytree(source, folder, copy_function=os.link, dirs_exist_ok=True)
    except OSError:
        return False
    return True


def write_json(value: Any, path: Path) -> None:
    """Write a JSON file; NaN becomes null."""
    with atomic_file(path) as temporary:
        temporary.write_text(to_json(value) + "\n", encoding="utf-8")


def to_json(value: Any) -> str:
    """Return a JSON document; NaN becomes null, as JSON has no NaN."""
    return json.dumps(_plain(value), indent=2, allow_nan=False)


def check_replaceable(path: Path, overwrite: bool, is_ours: Callable[[Path], bool]) -> None:
    """Refuse an output folder that may not be written.

    Parameters
    ----------
    overwrite
        Whether a folder of ours that holds results may be replaced.
    is_ours
        Tells a folder this program wrote from any other.

    Raises
    ------
    OutputError
        If something else is there, results are there and `overwrite` is false, or the
        system won't let us write.
    """
    with _output_errors(path):
        if path.is_dir() and any(path.iterdir()):
            if not is_ours(path):
                raise OutputError(
                    f"{path}: holds files that gdmix did not write; choose another output"
                )
            if not overwrite:
                raise OutputError(
                    f"{path}: holds earlier results; pass --overwrite to replace them"
                )
        elif path.exists() and not path.is_dir():
            raise OutputError(f"{path}: is a file; the output is a folder")
        if path.is_mount() or path.absolute() == Path.cwd():
            raise OutputError(f"{path}: can't be replaced as a whole; name a folder inside it")
        _make_parent(path)
        if not os.access(path.parent, os.W_OK):
            raise OutputError(f"{path}: can't be written: permission denied in {path.parent}")


@contextmanager
def temporary_folder(parent: Path | None) -> Iterator[Path]:
    """Yield the path of a folder that does not exist yet, and is removed at the end.

    Parameters
    ----------
    parent
        Default: the system's folder for temporary files.
    """
    name = f"gdmix-{os.getpid()}-{secrets.token_hex(4)}"
    folder = (parent or Path(tempfile.gettempdir())) / name
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class FolderInUse(OutputError):
    """Another process writes there now."""


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Keep other processes that ask for the same lock out; it ends with this process.

    Raises
    ------
    FolderInUse
        If one of them holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderInUse(f"{folder}: another run is writing there now") from None
        yield
    finally:
        os.close(descriptor)


@contextmanager
def replaced_folder(path: Path, staging: Path | None = None) -> Iterator[Path]:
    """Yield an empty folder beside `path` that takes its place on success.

    On failure what was at `path` stays as it was, and the new folder is removed.

    Parameters
    ----------
    staging
        The folder to use, which may hold something already; it is then left as it is on
        failure.

    Raises
    ------
    OutputError
        If the system refuses to write there.
    """
    with _output_errors(path):
        target = path.resolve()  # of a link, replace what it points to
        _make_parent(target)
        own = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
        folder = staging or own
        folder.mkdir(exist_ok=staging is not None)
        try:
            yield folder
            _take_place(folder, target)
        finally:
            shutil.rmtree(own, ignore_errors=True)


def _take_place(staging: Path, target: Path) -> None:
    if not target.exists():
        staging.replace(target)
        return
    old = staging.with_suffix(".old")
    target.replace(old)
    try:
        staging.replace(target)
    except BaseException:
        old.replace(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _make_parent(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        file = next((p for p in path.parents if p.is_file()), path.parent)
        raise OutputError(f"{path}: can't be written: {file} is a file, not a folder") from None


@contextmanager
def _output_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"{path}: can't be written: {reason}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return str(value)
    return value
