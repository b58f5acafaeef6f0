"""Pieces between partitions: what goes in comes out, whatever the size of a piece."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from gdmix.engines.spark import exchange
from gdmix.engines.spark.exchange import Addressed, Piece, addressed, opened
from gdmix.errors import EngineError


@dataclass
class _Content:
    numbers: NDArray[np.int64]
    rows: NDArray[np.float64]
    empty: NDArray[np.float32]
    texts: pa.Array
    small: NDArray[np.uint8]


def _content() -> _Content:
    drawn = np.random.default_rng(1)
    return _Content(
        np.arange(1000),
        np.asfortranarray(drawn.random((50, 7)))[:, ::2],
        np.empty(0, np.float32),
        pa.array(["a", "bc", None]),
        np.arange(3, dtype=np.uint8),
    )


def _as_spark_does(own: Addressed) -> Addressed:
    return own[0], pickle.loads(pickle.dumps(own[1], protocol=5))


def _as_bytes(own: Addressed) -> Addressed:
    return own[0], Piece.from_bytes(own[1].to_bytes())


@pytest.mark.parametrize("travel", [_as_spark_does, _as_bytes])
@pytest.mark.parametrize("size", [1 << 23, 1000, 7])
def test_pieces_are_put_together_in_any_order(
    monkeypatch: pytest.MonkeyPatch, size: int, travel: Any
) -> None:
    monkeypatch.setattr(exchange, "_BYTES_PER_PIECE", size)
    content = _content()
    pieces = [travel(own) for own in addressed(3, "rows", 8, content)]
    assert (len(pieces) == 1) == (size > 10_000)
    assert {target for target, _ in pieces} == {3}
    order = np.random.default_rng(2).permutation(len(pieces))
    found = opened([pieces[k] for k in order])["rows"][8]
    for name in ("numbers", "rows", "empty", "small"):
        own = getattr(found, name)
        np.testing.assert_array_equal(own, getattr(content, name))
        # Kernels are compiled for arrays such as these.
        assert own.flags.writeable and own.flags.aligned
        assert own.dtype == getattr(content, name).dtype
    assert found.texts.equals(content.texts)


def test_some_kinds_are_opened() -> None:
    pieces = [
        *addressed(0, "a", 1, "one"),
        *addressed(0, "b", 1, "two"),
        *addressed(1, "b", 1, "x"),
    ]
    assert opened(pieces, "a") == {"a": {1: "one"}}


def test_what_has_no_arrays() -> None:
    pieces = [*addressed(0, "fact", 2, None), *addressed(0, "fact", 1, {"n": 3})]
    found = opened(_as_spark_does(own) for own in pieces)
    assert list(found["fact"].items()) == [(1, {"n": 3}), (2, None)]


def test_pieces_that_are_doubled_or_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "_BYTES_PER_PIECE", 1000)
    pieces = list(addressed(0, "rows", 4, np.arange(1000)))
    for wrong in (pieces + pieces, pieces[1:], [*pieces, *addressed(0, "rows", 4, None)]):
        with pytest.raises(EngineError, match="'rows': pieces were lost or doubled"):
            opened(wrong)


def test_what_changes_later_is_not_sent() -> None:
    """A sum that goes on is sent as it is: pieces are written in batches."""
    total = np.arange(5.0)
    pieces = list(addressed(0, "total", 0, total))
    total += 1.0
    np.testing.assert_array_equal(opened(pieces)["total"][0], np.arange(5.0))
