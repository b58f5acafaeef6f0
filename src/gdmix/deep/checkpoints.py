"""The state of an unfinished training on disk, so that a killed one can go on.

One file, replaced in a single step, so that one that exists is whole. It holds tensors and plain
values alone: reading it runs nobody's code.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gdmix.data.write import atomic_file
from gdmix.errors import ModelError

F64 = NDArray[np.float64]

_SHARE = 0.05  # of the time, at most, goes into checkpoints
_CHUNK = 1 << 20
_ROUNDING = 1e-6


def signature(*arrays: NDArray[Any]) -> list[float]:
    """Return numbers that tell vectors from others, but not from the same ones rounded."""
    numbers = []
    for array in arrays:
        square = plain = mixed = 0.0
        for first in range(0, array.size, _CHUNK):
            part = np.asarray(array[first : first + _CHUNK], np.float64)
            square += float(part @ part)
            plain += float(part.sum())
            mixed += float(part @ np.cos(np.arange(first, first + part.size)))
        root = max(array.size, 1) ** 0.5
        numbers += [square**0.5, plain / root, mixed / root]
    return numbers


def same_signature(one: list[float], other: list[float]) -> bool:
    """Whether two signatures are of the same vectors, up to rounding."""
    if len(one) != len(other):
        return False
    a, b = np.reshape(one, (-1, 3)), np.reshape(other, (-1, 3))
    return bool((np.abs(a - b) <= _ROUNDING * np.maximum(a[:, :1], b[:, :1])).all())


class TrainingCheckpoint:
    """The file that holds the state.

    Parameters
    ----------
    path
        None: nothing is kept.
    identity
        Of all trainings that have this file in turn; another one has no business with it.
    occasion
        `signature` of what this one begins from. A state of another one is not gone on with.
    settings
        Of this one; to go on under others is a mistake.
    """

    def __init__(
        self,
        path: Path | None,
        identity: Mapping[str, Any],
        occasion: list[float],
        settings: Mapping[str, Any],
    ) -> None:
        self._path, self._occasion = path, occasion
        self._identity, self._settings = json.loads(json.dumps([identity, settings]))
        self._resting_until = 0.0

    def load(self) -> dict[str, Any] | None:
        """Read the state, if there is one of this occasion.

        Raises
        ------
        ModelError
            If it is damaged, or of another training.
        """
        if self._path is None or not self._path.is_file():
            return None
        try:
            tree = torch.load(self._path, map_location="cpu", weights_only=True)
            identity, occasion, settings = (tree[k] for k in ("identity", "occasion", "settings"))
            state = dict(tree["state"])
        except Exception as error:  # what torch raises depends on where the damage is
            reason = str(error).partition("\n")[0]
            raise ModelError(f"{self._path}: can't be read: {reason}") from None
        changed = _first_difference(identity, self._identity)
        if changed is None:
            if not same_signature(occasion, self._occasion):
                return None
            changed = _first_difference(settings, self._settings)
        if changed is not None:
            raise ModelError(
                f"{self._path}: is of a training with another {changed}; "
                "use its settings, or start anew with --overwrite"
            )
        return state

    def is_due(self) -> bool:
        """Whether it is time to save again."""
        return self._path is not None and time.monotonic() >= self._resting_until

    def save(self, state: Mapping[str, Any]) -> None:
        """Save a state.

        Raises
        ------
        OutputError
            If the system refuses to write; the state before is still whole.
        """
        if self._path is None:
            return
        started = time.monotonic()
        tree = {
            "identity": self._identity,
            "occasion": self._occasion,
            "settings": self._settings,
            "state": dict(state),
        }
        with atomic_file(self._path) as temporary:
            torch.save(tree, temporary)
        now = time.monotonic()
        self._resting_until = now + (now - started) / _SHARE


def _first_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """Return the first key in which trees differ, and the values where these are short."""
    for key in [*other, *(k for k in one if k not in other)]:
        a, b = one.get(key), other.get(key)
        if a == b:
            continue
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            return _first_difference(a, b)
        text = f"{key}: {a!r}, not {b!r}"
        return text if len(text) < 80 else str(key)
    return None


class Interruption:
    """Whether the user, or the system, asked this process to stop."""

    def __init__(self) -> None:
        self.signals: set[int] = set()

    @property
    def requested(self) -> bool:
        """Whether it did."""
        return bool(self.signals)


@contextmanager
def interruption() -> Iterator[Interruption]:
    """Within the block let a request to stop wait, so that a step is done as a whole.

    The same request for the second time does not wait. Requests that the program meets in its
    own way are left to it, and so are all of them outside the main thread.
    """
    told = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield told
        return
    known = {
        number: signal.default_int_handler
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) is signal.default_int_handler
    }

    def note(number: int, frame: FrameType | None) -> None:
        if number in told.signals:
            signal.default_int_handler(number, frame)
        told.signals.add(number)

    for number in known:
        signal.signal(number, note)
    try:
        yield told
    finally:
        for number, handler in known.items():
            signal.signal(number, handler)
