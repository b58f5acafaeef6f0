"""What is printed: results to stdout, all else to stderr."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

out = Console(highlight=False, markup=False)
err = Console(stderr=True, highlight=False, markup=False)


class Messages(logging.Handler):
    """Warnings to stderr, and to a person why it takes so long; a progress bar stays whole."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Choose what is shown."""
        waiting = record.name == "gdmix.kernels" and err.is_terminal
        return record.levelno >= logging.WARNING or waiting

    def emit(self, record: logging.LogRecord) -> None:
        """Print a line."""
        label = "note" if record.levelno < logging.WARNING else record.levelname.lower()
        print_labelled(label, "yellow", record.getMessage())


def print_labelled(label: str, style: str, text: str) -> None:
    """Print ``label: text`` to stderr as one line."""
    err.print(Text.assemble((f"{label}: ", style), text), soft_wrap=True)


@contextmanager
def progress(text: str, steps: int | None, silent: bool) -> Iterator[Any]:
    """Show what goes on; yields ``show(text, steps done, of how many)``. Vanishes when done."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        *([BarColumn()] if steps else []),
        TimeElapsedColumn(),
    )
    # Where stderr is a file, the bar would leave an empty line and nothing else.
    disable = silent or not err.is_terminal
    with Progress(*columns, console=err, transient=True, disable=disable) as progress:
        task = progress.add_task(text, total=steps)

        def show(description: str, done: int, total: int | None = None) -> None:
            progress.update(task, advance=done, total=total)
            if description:
                progress.update(task, description=description)

        with _shown_beside(progress, task):
            yield show


@contextmanager
def _shown_beside(progress: Progress, task: TaskID) -> Iterator[None]:
    """Show how far the training of a network is, behind what it is a part of."""
    logger, handler = logging.getLogger("gdmix.training"), logging.Handler()

    def emit(record: logging.LogRecord) -> None:
        before, _, _ = progress.tasks[task].description.partition(": step ")
        progress.update(task, description=f"{before}: {record.getMessage()}")

    handler.emit = emit  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def print_json(value: Any) -> None:
    """Print a value as a JSON document to stdout."""
    from gdmix.data.write import to_json

    print(to_json(value))
