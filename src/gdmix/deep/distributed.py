"""Several processes that train one network together.

Those that ``torchrun`` starts hold all rows each. The first process (rank 0) runs the program as if
it were alone and is the only one that writes. The others `serve`: they hold the rows, and fit a
network whenever the first one does. A script of a user's own needs no serving: all processes run
the same program, and meet at the fit.

Those that an engine starts hold rows of their own each. They find each other by `joined`, fit, and
part.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gdmix.coordinates.base import Coordinate
from gdmix.errors import EngineError
from gdmix.glm.group import ALONE, Group

if TYPE_CHECKING:
    from torch import Tensor, nn

F64 = NDArray[np.float64]

_T = TypeVar("_T")
# The others wait while the first one fits random effects; should it die, they are told at once.
_PATIENCE = timedelta(days=30)
# Of processes with shards: a connection that ends without a word is found out.
_SILENCE = timedelta(hours=1)


class PeerEnded(EngineError):
    """Another process of the training has ended: this one can't go on either."""


@dataclass(frozen=True)
class Team:
    """The processes of this training; those among which rows are divided are a `glm.group.Group`.

    Attributes
    ----------
    rank
        Number of this process.
    size
        How many there are.
    local_rank, local_size
        The same among the processes of its machine.
    has_shards
        Whether each process holds rows of its own, rather than all of them.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    has_shards: bool = False

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    @property
    def holders(self) -> Group:
        """Those among whom the rows are divided; this process alone, if it holds all of them."""
        return self if self.has_shards else ALONE

    def add_up(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over processes."""
        if self.size > 1:
            import torch.distributed as dist

            with _others():
                dist.all_reduce(tensor)

    def shared(self, value: _T) -> _T:
        """Return the first process's value; it may be anything that can be pickled."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        box = [value]
        with _others():
            dist.broadcast_object_list(box)
        return box[0]

    def copy_from_first(self, network: nn.Module) -> None:
        """Give all processes the parameters and buffers of the first one."""
        if self.size > 1:
            import torch.distributed as dist

            with _others():
                for tensor in network.state_dict().values():
                    dist.broadcast(tensor, 0)

    def sum(self, array: F64) -> F64:
        """Return the sum of every process's array."""
        return self._reduced(array, "SUM")

    def maximum(self, array: F64) -> F64:
        """Return the largest of every process's arrays, entry by entry."""
        return self._reduced(array, "MAX")

    def _reduced(self, array: F64, operation: str) -> F64:
        if self.size == 1:
            return array
        import torch
        import torch.distributed as dist

        tensor = torch.from_numpy(array.copy())
        with _others():
            dist.all_reduce(tensor, getattr(dist.ReduceOp, operation))
        return tensor.numpy()

    def exchange(self, arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Send one array to each process, in order, and return the one that each sent here."""
        if self.size == 1:
            return list(arrays)
        import torch
        import torch.distributed as dist

        outgoing = [np.ascontiguousarray(array).view(np.uint8) for array in arrays]
        heads: Any = [None] * self.size
        with _others():
            dist.all_gather_object(heads, [(array.dtype.str, array.nbytes) for array in arrays])
            incoming = [head[self.rank] for head in heads]
            sizes = [n for _, n in incoming]
            received = torch.empty(sum(sizes), dtype=torch.uint8)
            sent = torch.from_numpy(np.concatenate(outgoing))
            dist.all_to_all_single(received, sent, sizes, [part.size for part in outgoing])
        parts = np.split(received.numpy(), np.cumsum(sizes)[:-1])
        # A copy begins where numbers of its type may.
        return [part.copy().view(kind) for part, (kind, _) in zip(parts, incoming, strict=True)]

    def gathered(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return every process's array, (n,) numbers of one type, one after another."""
        if self.size == 1:
            return array
        import torch
        import torch.distributed as dist

        sizes = np.zeros(self.size)
        sizes[self.rank] = array.size
        ends = np.cumsum(self.sum(sizes)).astype(np.int64)
        result = np.empty(ends[-1], array.dtype)
        for rank, part in enumerate(np.split(result, ends[:-1])):
            if rank == self.rank:
                part[:] = array
            with _others():
                dist.broadcast(torch.from_numpy(part), rank)
        return result

    def put_together(self, own: _T, plus: Callable[[_T, _T], _T]) -> _T:
        """Return every process's value put together, in their order; they can be pickled."""
        if self.size == 1:
            return own
        import torch.distributed as dist

        with _others():
            if not self.is_first:
                dist.send_object_list([own], 0)
            for rank in range(1, self.size) if self.is_first else ():
                box: list[Any] = [None]
                dist.recv_object_list(box, rank)
                own = plus(own, box[0])
        return self.shared(own)


@contextmanager
def _others() -> Iterator[None]:
    """Say in words that another process is gone; its own message says why."""
    try:
        yield
    except RuntimeError as error:
        reason = _first_line(error)
        raise PeerEnded(f"another process of this training has ended: {reason}") from None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].partition(". ")[0]


_joined: Team | None = None


@contextmanager
def joined(
    rank: int,
    size: int,
    all_gather: Callable[[str], Sequence[str]],
    host: str = "127.0.0.1",
    gpu: int | None = None,
) -> Iterator[Team]:
    """Let processes that hold rows of their own be a team until the end of the block.

    Parameters
    ----------
    rank, size
        Number of this process, and how many there are.
    all_gather
        Returns the texts that all processes give it, by rank.
    host
        Name or address at which the others reach this process.
    gpu
        Number of the GPU that is its own. If all have one, gradients are added up by nccl, else by
        gloo.

    Raises
    ------
    ConnectionError
        If the processes can't be connected.
    PeerEnded
        If another process leaves the block early.
    """
    global _joined
    import torch

    if gpu is not None and torch.cuda.is_available():
        torch.cuda.set_device(gpu)
    else:
        gpu = None
    try:
        local = _meet(rank, size, all_gather, host, gpu) if size > 1 else 0
        _joined = Team(rank, size, local if gpu is None else gpu, has_shards=True)
        yield _joined
    finally:
        _joined = None
        _part()


def _meet(
    rank: int,
    size: int,
    all_gather: Callable[[str], Sequence[str]],
    host: str,
    gpu: int | None,
) -> int:
    """Form the process group; return this process's number among those of its machine."""
    import torch.distributed as dist

    store: Any = None
    connect = partial(dist.TCPStore, wait_for_workers=False)  # type: ignore[attr-defined]
    if rank == 0:  # its store keeps the addresses of all
        store = connect(host, 0, is_master=True)
    port = 0 if store is None else store.port
    told = [text.rsplit(" ", 2) for text in all_gather(f"{host} {port} {int(gpu is not None)}")]
    backend = "cpu:gloo,cuda:nccl" if all(own[2] == "1" for own in told) else "gloo"
    try:
        if store is None:
            store = connect(told[0][0], int(told[0][1]), is_master=False)
        _form_group(backend, store=store, rank=rank, world_size=size, timeout=_SILENCE)
    except RuntimeError as error:
        raise ConnectionError(
            f"processes of a training can't connect: {_first_line(error)}; does "
            "GLOO_SOCKET_IFNAME name the network device by which they reach each other?"
        ) from error
    with _others():
        dist.barrier()  # from here on, one that leaves early does so before the eyes of all
    return [own[0] for own in told[:rank]].count(host)


def world_size() -> int:
    """Return how many processes there are, without waiting for them; needs no PyTorch."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def is_worker() -> bool:
    """Whether this process is one of several, and not the first; needs no PyTorch."""
    return world_size() > 1 and int(os.environ["RANK"]) > 0


def team() -> Team:
    """Return the processes of this training, after they have found each other."""
    if _joined is not None:
        return _joined
    if world_size() == 1:
        return Team()
    import torch
    import torch.distributed as dist

    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if not dist.is_initialized():
        backend = "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(local_rank % torch.cuda.device_count())
            backend = "cpu:gloo,cuda:nccl"
        _form_group(backend, timeout=_PATIENCE)
        atexit.register(_part)
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return Team(dist.get_rank(), dist.get_world_size(), local_rank, local_size)


def _form_group(backend: str, **settings: Any) -> None:
    """Form the process group, so that `_part` closes its connections and ends its threads."""
    # Imported while a group exists (the first step of an optimizer does it), it keeps the group
    # alive; a thread of gloo then outlives Python and may abort the process at its end.
    import torch._dynamo  # noqa: F401
    import torch.distributed as dist

    dist.init_process_group(backend, **settings)


def _part() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


_leading = False


@contextmanager
def leading() -> Iterator[None]:
    """Let the others `serve` this process, the first, until the end of the block."""
    global _leading
    if world_size() == 1:
        yield
        return
    _leading = True
    try:
        team()
        yield
        team().shared(None)
    finally:
        _leading = False


def serve(coordinates: Mapping[str, Coordinate[Any]]) -> None:
    """Fit a coordinate whenever the first process does, until it has no more to fit.

    Parameters
    ----------
    coordinates
        Their fits begin with `together`, which tells what else they are given.
    """
    while name := team().shared(""):
        coordinates[name].fit(np.empty(0), None)


def together(name: str, given: _T) -> _T:
    """Begin a fit in all processes.

    Parameters
    ----------
    name
        Of the coordinate.
    given
        What the fit is given; can be pickled.

    Returns
    -------
    object
        What the first process was given.
    """
    if _joined is not None or world_size() == 1:
        return given
    if _leading:
        team().shared(name)
    return team().shared(given)
