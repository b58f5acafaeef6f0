"""Sums and exchanges between the tasks of one barrier stage, over TCP.

Every task has a connection to every other. A message is a header and the bytes of one array. All
sums are added up in the order of the ranks, however they travel, so that they are bit for bit the
same on all ranks and do not depend on what came first:

- a small sum: every rank gets all arrays, in log2(ranks) rounds, and adds them up (the rounds are
  those of Bruck et al., Efficient algorithms for all-to-all communications, 1997);
- a large one: every rank adds up its share of the array and sends that to all, so that each moves
  about twice the array, however many ranks there are.

Who connects proves that it knows the token, and so does who is connected to; what is then sent
is not encrypted. A peer that dies, and one that is silent for too long, is a `PeerLost`.
"""

from __future__ import annotations

import hmac
import secrets
import selectors
import socket
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gdmix import memory

F64 = NDArray[np.float64]

TIMEOUT_SECONDS = 600.0  # of silence of a living peer: it may have a far larger shard
CONNECT_SECONDS = 60.0
_SMALL = 8192  # bytes: below it, latency counts and not bandwidth
# A host that vanishes without a word is found out after about half a minute.
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 30_000}

_HEADER = struct.Struct("<I4sQ")  # number of the message, type of the array, its bytes
_HELLO = struct.Struct("<8sII32s")  # magic, rank that connects, rank meant, nonce
_MAGIC = b"gdmix 1\n"
_PROOF_BYTES = 32

# Where there is no poll, there is select.
_Selector: type[selectors.BaseSelector] = getattr(
    selectors, "PollSelector", selectors.SelectSelector
)


class PeerLost(ConnectionError):
    """Another task of the group ended, or cannot be reached: this task can't go on either."""


class SocketGroup:
    """A `gdmix.glm.group.Group` of connected processes; to be made by `connect`.

    A context manager, at the end of which its connections are closed. A rank that leaves it early,
    for whatever reason, ends the others' next call in a `PeerLost`.

    Parameters
    ----------
    peers
        The connection to each other rank.
    timeout
        Seconds after which a rank that sends nothing counts as lost.
    """

    def __init__(self, rank: int, peers: Mapping[int, socket.socket], timeout: float) -> None:
        self.rank, self.size = rank, len(peers) + 1
        self._peers, self._timeout = dict(peers), timeout
        self._number = 0
        for peer in peers.values():
            _tune(peer)

    @classmethod
    def connect(
        cls,
        rank: int,
        size: int,
        token: bytes,
        all_gather: Callable[[str], Sequence[str]],
        host: str = "127.0.0.1",
        timeout: float = TIMEOUT_SECONDS,
        connect_timeout: float = CONNECT_SECONDS,
    ) -> Self:
        """Connect every rank with every other; called by all of them.

        Parameters
        ----------
        token
            A secret that all ranks share.
        all_gather
            Returns the texts that all ranks give it, by rank.
        host
            Name or address at which the other ranks reach this one.
        timeout
            Seconds after which a rank that sends nothing counts as lost.
        connect_timeout
            Seconds in which all connections must stand.

        Raises
        ------
        PeerLost
            If a rank cannot be reached, or does not know the token.
        """
        with _listen(host, size) as listener:
            port = listener.getsockname()[1]
            addresses = [text.rsplit(" ", 1) for text in all_gather(f"{host} {port}")]
            deadline = time.monotonic() + connect_timeout
            peers: dict[int, socket.socket] = {}
            try:
                for other in range(rank):
                    place = addresses[other][0], int(addresses[other][1])
                    peers[other] = _connect(rank, other, place, token, deadline)
                while len(peers) < size - 1:
                    missing = [r for r in range(rank + 1, size) if r not in peers]
                    other, peer = _accept(rank, missing, listener, token, deadline)
                    peers[other] = peer
            except BaseException:
                for peer in peers.values():
                    peer.close()
                raise
        return cls(rank, peers, timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        for peer in self._peers.values():
            peer.close()

    def sum(self, array: F64) -> F64:
        """Return the sum of every rank's array: bit for bit the same on all ranks."""
        if self.size == 1:
            return array
        if array.nbytes <= _SMALL:
            return _added(self._all(array))
        flat = np.ascontiguousarray(array).reshape(-1)
        bounds = [flat.size * rank // self.size for rank in range(1, self.size)]
        share = _added(self.exchange(np.split(flat, bounds)))
        result = memory.empty(flat.size)
        np.concatenate(self.exchange([share] * self.size), out=result)
        return result.reshape(array.shape)

    def maximum(self, array: F64) -> F64:
        """Return the largest of every rank's arrays, entry by entry."""
        return np.asarray(np.maximum.reduce(self._all(array)))

    def exchange(self, arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Send one array to each rank, in order, and return the one that each sent here."""
        sent = {rank: array for rank, array in enumerate(arrays) if rank != self.rank}
        received = self._transfer(sent, self._peers)
        return [received.get(rank, arrays[rank]) for rank in range(self.size)]

    def _all(self, array: F64) -> list[F64]:
        """Return every rank's array."""
        table = np.empty((self.size, array.size))
        table[0] = array.reshape(-1)
        known = 1  # the arrays of this rank and those after it, in order
        while known < self.size:
            count = min(known, self.size - known)
            after, before = (self.rank + known) % self.size, (self.rank - known) % self.size
            received = self._transfer({before: table[:count].reshape(-1)}, [after])
            table[known : known + count] = received[after].reshape(count, -1)
            known += count
        return [table[(rank - self.rank) % self.size].reshape(array.shape)
                for rank in range(self.size)]  # fmt: skip

    def _transfer(
        self, sent: Mapping[int, NDArray[Any]], senders: Iterable[int]
    ) -> dict[int, NDArray[Any]]:
        """Send arrays to ranks while arrays from ranks come in; return these."""
        self._number = (self._number + 1) % 2**32
        outgoing = {rank: _Outgoing(self._number, array) for rank, array in sent.items()}
        incoming = {rank: _Incoming(self._number) for rank in senders}
        try:
            self._work_off(outgoing, incoming)
        except BaseException:
            self.close()  # the others need not wait
            raise
        return {rank: message.array for rank, message in incoming.items()}

    def _work_off(self, outgoing: dict[int, _Outgoing], incoming: dict[int, _Incoming]) -> None:
        sending, receiving = dict(outgoing), dict(incoming)
        ready = [*sending, *receiving]
        while True:
            for rank in ready:
                try:
                    if rank in sending and sending[rank].is_done(self._peers[rank]):
                        del sending[rank]
                    if rank in receiving and receiving[rank].is_done(self._peers[rank]):
                        del receiving[rank]
                except OSError as error:
                    raise PeerLost(f"rank {rank} is gone: {error}") from error
            if not (sending or receiving):
                return
            ready = self._wait(sending, receiving)

    def _wait(self, sending: Mapping[int, Any], receiving: Mapping[int, Any]) -> list[int]:
        """Return the ranks of which one can take or give something."""
        with _Selector() as selector:
            for rank in sending.keys() | receiving.keys():
                events = selectors.EVENT_WRITE if rank in sending else 0
                events |= selectors.EVENT_READ if rank in receiving else 0
                selector.register(self._peers[rank], events, rank)
            ready = [key.data for key, _ in selector.select(self._timeout)]
        if not ready:
            silent = ", ".join(str(rank) for rank in sorted(receiving or sending))
            raise PeerLost(f"rank {silent}: no message for {self._timeout:g} s")
        return ready


class _Outgoing:
    """A message on its way to a peer."""

    def __init__(self, number: int, array: NDArray[Any]) -> None:
        data = np.ascontiguousarray(array).view(np.uint8)
        header = _HEADER.pack(number, array.dtype.str.encode(), data.size)
        self._views = [memoryview(header), data.data]

    def is_done(self, peer: socket.socket) -> bool:
        """Send what the peer takes; return whether that was all."""
        while self._views:
            try:
                sent = peer.sendmsg(self._views)
            except BlockingIOError:
                return False
            while self._views and sent >= len(self._views[0]):
                sent -= len(self._views.pop(0))
            if sent:
                self._views[0] = self._views[0][sent:]
        return True


class _Incoming:
    """A message on its way from a peer; `array` once it is there."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._header = bytearray(_HEADER.size)
        self._view = memoryview(self._header)
        self.array: NDArray[Any] = np.empty(0)
        self._has_header = False

    def is_done(self, peer: socket.socket) -> bool:
        """Take what the peer has sent; return whether that was all."""
        while self._view or not self._has_header:
            if not self._view:
                self._begin()
                continue
            try:
                received = peer.recv_into(self._view)
            except BlockingIOError:
                return False
            if not received:
                raise ConnectionResetError("it closed the connection")
            self._view = self._view[received:]
        return True

    def _begin(self) -> None:
        number, kind, n_bytes = _HEADER.unpack(self._header)
        if number != self._number:
            raise RuntimeError(f"message {number} came when {self._number} was due")
        dtype = np.dtype(kind.rstrip(b"\0").decode())
        self.array = memory.empty(n_bytes // dtype.itemsize, dtype)
        self._view = self.array.view(np.uint8).data
        self._has_header = True


def barrier_group(context: Any, token: bytes, timeout: float = TIMEOUT_SECONDS) -> SocketGroup:
    """Connect the tasks of a barrier stage.

    Parameters
    ----------
    context
        The task's ``pyspark.BarrierTaskContext``.
    token
        A secret that the driver drew for this stage, as by ``secrets.token_bytes``.
    """
    rank, tasks = context.partitionId(), context.getTaskInfos()
    host = tasks[rank].address.rsplit(":", 1)[0]
    return SocketGroup.connect(rank, len(tasks), token, context.allGather, host, timeout)


def _added(arrays: Sequence[F64]) -> F64:
    """Return the sum, added up in order."""
    result = arrays[0] + arrays[1]
    for array in arrays[2:]:
        result += array
    return result


def _tune(peer: socket.socket) -> None:
    peer.setblocking(False)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _listen(host: str, size: int) -> socket.socket:
    """Open a port at an address of this machine."""
    found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    family, _, _, _, place = found[0]
    try:
        return socket.create_server((place[0], 0), family=family, backlog=size)
    except OSError:  # the name is that of a gateway before this machine
        return socket.create_server(("", 0), family=family, backlog=size)


def _connect(
    rank: int, other: int, place: tuple[str, int], token: bytes, deadline: float
) -> socket.socket:
    peer = None
    try:
        peer = socket.create_connection(place, _left(deadline))
        nonce = secrets.token_bytes(32)
        peer.sendall(_HELLO.pack(_MAGIC, rank, other, nonce))
        answer = _receive(peer, 32 + _PROOF_BYTES, deadline)
        theirs, proof = answer[:32], answer[32:]
        said = nonce + theirs + struct.pack("<II", rank, other)
        if not hmac.compare_digest(proof, _proof(token, b"listens", said)):
            raise PeerLost("it does not know the token")
        peer.sendall(_proof(token, b"connects", said))
        _receive(peer, 1, deadline)
        return peer
    except OSError as error:
        if peer is not None:
            peer.close()
        where = f"rank {other} at {place[0]}:{place[1]}"
        raise PeerLost(f"{where} can't be connected to: {error}") from error


def _accept(
    rank: int, missing: Sequence[int], listener: socket.socket, token: bytes, deadline: float
) -> tuple[int, socket.socket]:
    """Accept the connection of a missing rank; who is none is turned away."""
    while True:
        try:
            listener.settimeout(_left(deadline))
            peer, _ = listener.accept()
        except TimeoutError:
            ranks = ", ".join(map(str, missing))
            raise PeerLost(f"rank {ranks} did not connect to rank {rank} in time") from None
        try:
            # One who is silent must not keep the others waiting.
            patience = min(deadline, time.monotonic() + 5.0)
            magic, other, meant, nonce = _HELLO.unpack(_receive(peer, _HELLO.size, patience))
            own = secrets.token_bytes(32)
            said = nonce + own + struct.pack("<II", other, meant)
            if magic != _MAGIC or meant != rank or other not in missing:
                raise ConnectionRefusedError
            peer.sendall(own + _proof(token, b"listens", said))
            proof = _receive(peer, _PROOF_BYTES, patience)
            if not hmac.compare_digest(proof, _proof(token, b"connects", said)):
                raise ConnectionRefusedError
            peer.sendall(b"!")
            return other, peer
        except OSError:
            peer.close()


def _proof(token: bytes, role: bytes, said: bytes) -> bytes:
    return hmac.digest(token, role + said, "sha256")


def _receive(peer: socket.socket, n: int, deadline: float) -> bytes:
    received = b""
    while len(received) < n:
        peer.settimeout(_left(deadline))
        part = peer.recv(n - len(received))
        if not part:
            raise ConnectionResetError("the connection was closed")
        received += part
    return received


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.001)
