"""The group of processes over TCP: sums, exchanges, and what happens when a peer is lost."""

from __future__ import annotations

import hmac
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import pytest

from gdmix.engines.spark import collective
from gdmix.engines.spark.collective import PeerLost, SocketGroup, barrier_group
from gdmix.glm.distributed import DistributedMap, fit_large_distributed
from gdmix.glm.large import fit_large
from gdmix.glm.losses import LOGISTIC
from gdmix.glm.matrix import CsrMatrix
from gdmix.glm.penalty import QuadraticPenalty

Result = TypeVar("Result")


def gather(size: int) -> Callable[[int, str], list[str]]:
    """What a barrier stage's allGather does, by rank."""
    board, barrier = [""] * size, threading.Barrier(size, timeout=30.0)

    def all_gather(rank: int, text: str) -> list[str]:
        board[rank] = text
        barrier.wait()
        return list(board)

    return all_gather


def run(
    size: int,
    work: Callable[[SocketGroup], Result],
    tokens: dict[int, bytes] | None = None,
    **options: Any,
) -> list[Result | BaseException]:
    """Call `work` with each rank's group, in threads; a result may be what it raised."""
    all_gather = gather(size)

    def run_rank(rank: int) -> Result | BaseException:
        token = (tokens or {}).get(rank, b"secret")
        try:
            with SocketGroup.connect(
                rank, size, token, lambda text: all_gather(rank, text), **options
            ) as group:
                return work(group)
        except BaseException as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run_rank, range(size)))


def results(size: int, work: Callable[[SocketGroup], Result]) -> list[Result]:
    found = run(size, work)
    for result in found:
        if isinstance(result, BaseException):
            raise result
    return found  # type: ignore[return-value]


SIZES = pytest.mark.parametrize("size", [1, 2, 3, 5, 8])


@SIZES
@pytest.mark.parametrize("shape", [(1,), (4,), (1000,), (3, 700), (50_000,), (130, 130)])
def test_sums_are_in_the_order_of_ranks_on_all_ranks(size: int, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape) * 10.0 ** rng.integers(-8, 8, shape) for _ in range(size)]
    expected = arrays[0].copy()
    for array in arrays[1:]:
        expected += array
    for result in results(size, lambda group: group.sum(arrays[group.rank])):
        assert result.shape == shape
        assert result.tobytes() == expected.tobytes()


@SIZES
def test_maximum(size: int) -> None:
    rng = np.random.default_rng(1)
    arrays = rng.normal(size=(size, 3))
    arrays[-1, 2] = np.nan
    for result in results(size, lambda group: group.maximum(arrays[group.rank])):
        np.testing.assert_array_equal(result, np.maximum.reduce(arrays))


@SIZES
def test_exchange_brings_every_array_to_its_rank(size: int) -> None:
    """Empty and large arrays of several types, all at once: more than sockets hold."""
    rng = np.random.default_rng(2)
    kinds = [np.float64, np.uint32, np.int64, np.uint8]
    lengths = rng.choice([0, 1, 7, 300_000], size=(size, size))

    def array(sender: int, receiver: int) -> Any:
        start = 1000 * sender + receiver
        kind = kinds[(sender + receiver) % 4]
        return np.arange(start, start + lengths[sender, receiver]).astype(kind)

    def work(group: SocketGroup) -> list[Any]:
        sent = [array(group.rank, receiver) for receiver in range(size)]
        for _ in range(3):
            received = group.exchange(sent)
        return received

    for receiver, arrays in enumerate(results(size, work)):
        for sender, found in enumerate(arrays):
            expected = array(sender, receiver)
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)


def test_a_slice_is_sent_as_it_is() -> None:
    table = np.arange(12.0).reshape(3, 4)
    found = results(2, lambda group: group.exchange([table[:, 1], table[:, 2]])[1 - group.rank])
    np.testing.assert_array_equal(found, [table[:, 1], table[:, 2]])


def test_ranks_may_be_late() -> None:
    def work(group: SocketGroup) -> float:
        total = 0.0
        for k in range(12):
            time.sleep(0.01 * ((group.rank + k) % 3))
            total += group.sum(np.array([1.0]))[0] + group.exchange([np.ones(k)] * 3)[0].size
        return total

    assert results(3, work) == [36.0 + 66.0] * 3


def test_who_leaves_is_missed_by_all_at_once() -> None:
    def work(group: SocketGroup) -> None:
        group.sum(np.ones(1))
        if group.rank == 2:
            raise ZeroDivisionError
        for _ in range(3):
            group.sum(np.ones(1))

    started = time.monotonic()
    found = run(5, work)
    assert time.monotonic() - started < 20.0  # and not the time-out of ten minutes
    assert isinstance(found.pop(2), ZeroDivisionError)
    assert all(isinstance(error, PeerLost) for error in found), found
    assert any("rank 2 is gone" in str(error) for error in found)


def test_who_is_silent_is_lost() -> None:
    done = threading.Event()

    def work(group: SocketGroup) -> None:
        if group.rank == 1:
            done.wait(30.0)
            return
        try:
            group.exchange([np.ones(1)] * 2)
        finally:
            done.set()

    error = run(2, work, timeout=0.2)[0]
    assert isinstance(error, PeerLost)
    assert str(error) == "rank 1: no message for 0.2 s"


def test_ranks_out_of_step_are_told_apart() -> None:
    def work(group: SocketGroup) -> None:
        if group.rank == 0:
            group._number += 1
        group.sum(np.ones(1))

    found = run(2, work)
    assert any(isinstance(e, RuntimeError) and "was due" in str(e) for e in found), found


def test_who_does_not_know_the_token_is_not_let_in() -> None:
    found = run(2, lambda group: group.size, {1: b"guess"}, connect_timeout=1.0)
    assert all(isinstance(error, PeerLost) for error in found)
    assert "rank 1 did not connect to rank 0 in time" in str(found[0])
    assert "does not know the token" in str(found[1])


def test_strangers_are_turned_away() -> None:
    """Of who knocks at the port first, neither silence nor noise nor a false proof counts."""
    hello = collective._HELLO
    strangers = []

    def all_gather(group_gather: Any, rank: int, text: str) -> list[str]:
        texts = group_gather(rank, text)
        if rank == 1:  # before rank 1 connects
            place = "127.0.0.1", int(texts[0].split()[1])
            for noise in (
                b"GET / HTTP/1.1\r\n\r\n" * 10,
                b"",
                hello.pack(b"gdmix 1\n", 7, 0, bytes(32)),
                hello.pack(b"gdmix 1\n", 1, 0, bytes(32)) + hmac.digest(b"guess", b"", "sha256"),
            ):
                stranger = socket.create_connection(place, 10.0)
                stranger.sendall(noise)
                if not noise:
                    stranger.close()
                strangers.append(stranger)
        return texts

    shared = gather(2)

    def work(rank: int) -> float:
        with SocketGroup.connect(
            rank, 2, b"secret", lambda text: all_gather(shared, rank, text)
        ) as group:
            return float(group.sum(np.array([1.0]))[0])

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, range(2))) == [2.0, 2.0]
    for stranger in strangers:
        stranger.close()


def test_a_port_that_nobody_listens_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    texts = [f"127.0.0.1 {port}", "127.0.0.1 1"]
    with pytest.raises(PeerLost, match=f"rank 0 at 127.0.0.1:{port} can't be connected to"):
        SocketGroup.connect(1, 2, b"secret", lambda text: texts)


def test_the_group_of_a_barrier_stage() -> None:
    shared = gather(2)

    class Info:
        address = "localhost:4711"

    class Context:
        def __init__(self, rank: int) -> None:
            self._rank = rank

        def partitionId(self) -> int:
            return self._rank

        def getTaskInfos(self) -> list[Info]:
            return [Info(), Info()]

        def allGather(self, text: str = "") -> list[str]:
            return shared(self._rank, text)

    def work(rank: int) -> tuple[int, float]:
        with barrier_group(Context(rank), b"secret") as group:
            return group.rank, float(group.sum(np.array([rank + 1.0]))[0])

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, range(2))) == [(0, 3.0), (1, 3.0)]


@pytest.mark.parametrize("d", [40, 5000])
def test_a_fixed_effect(d: int) -> None:
    """By Cholesky, whose matrix is a large sum, and by conjugate gradients."""
    rng = np.random.default_rng(3)
    n, per_row = 3000, 5
    columns = np.sort(rng.integers(0, d // per_row, (n, per_row)), axis=1) + np.arange(
        0, d, d // per_row
    )
    design = CsrMatrix(
        np.arange(0, n * per_row + 1, per_row),
        columns.reshape(-1).astype(np.uint32),
        rng.normal(size=n * per_row).astype(np.float32),
        d,
    )
    response, weight = rng.integers(0, 2, n).astype(float), rng.gamma(2.0, 0.5, n)
    offset, l2 = rng.normal(size=n), rng.gamma(2.0, 0.5, d + 1)
    options: dict[str, Any] = {"loss": LOGISTIC, "tolerance": 1e-11}
    alone = fit_large(design, response, weight, offset, penalty=QuadraticPenalty(l2), **options)

    def work(group: SocketGroup) -> Any:
        own = np.arange(n)[group.rank :: group.size]
        shard = DistributedMap(design.take(own), True, 1, group)
        labels = response[own], weight[own], offset[own]
        penalty = QuadraticPenalty(l2[shard.held])
        return fit_large_distributed(shard, *labels, penalty=penalty, **options)

    fits = results(3, work)
    assert len({(f.status, f.iterations, f.passes, f.gradient_norm, f.value) for f in fits}) == 1
    found = np.concatenate([fit.coefficients for fit in fits])
    np.testing.assert_allclose(found, alone.coefficients, atol=1e-9)
    assert fits[0].value == pytest.approx(alone.value, rel=1e-12)


_PROGRAM = """
import json, sys
import numpy as np
from gdmix.engines.spark.collective import PeerLost, SocketGroup

def all_gather(text):
    print(text, flush=True)
    return json.loads(sys.stdin.readline())

rank, size = int(sys.argv[1]), int(sys.argv[2])
with SocketGroup.connect(rank, size, b"secret", all_gather) as group:
    print(group.sum(np.arange(3.0) + rank).tolist(), flush=True)
    try:
        while True:
            group.exchange([np.ones(100_000)] * size)
    except PeerLost as error:
        print("PeerLost", error, flush=True)
"""


def test_processes_and_a_killed_one() -> None:
    size = 3
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(rank), str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        texts = json.dumps([p.stdout.readline().strip() for p in ranks if p.stdout])
        for process in ranks:
            assert process.stdin
            process.stdin.write(texts + "\n")
            process.stdin.flush()
        assert [json.loads(p.stdout.readline()) for p in ranks if p.stdout] == [[3.0, 6.0, 9.0]] * 3
        time.sleep(0.2)
        ranks[1].kill()
        for process in ranks[::2]:
            output, _ = process.communicate(timeout=20.0)
            assert output.startswith("PeerLost rank ")
            assert process.returncode == 0
    finally:
        for process in ranks:
            process.kill()
            process.communicate()
