"""Several processes that train one network together: those that ``torchrun`` starts.

The first process (rank 0) runs the program as if it were alone and is the only one that writes.
The others `serve`: they hold the rows, and fit a network whenever the first one does. A script of
a user's own needs no serving: all processes run the same program, and meet at the fit.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from gdmix.coordinates.base import Coordinate
from gdmix.errors import EngineError

if TYPE_CHECKING:
    from torch import Tensor, nn

_T = TypeVar("_T")
# The others wait while the first one fits random effects; should it die, they are told at once.
_PATIENCE = timedelta(days=30)


@dataclass(frozen=True)
class Team:
    """The processes of this training.

    Attributes
    ----------
    rank
        Number of this process.
    size
        How many there are.
    local_rank, local_size
        The same among the processes of its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

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


@contextmanager
def _others() -> Iterator[None]:
    """Say in words that another process is gone; its own message says why."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise EngineError(f"another process of this training has ended: {reason}") from None


def world_size() -> int:
    """Return how many processes there are, without waiting for them; needs no PyTorch."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def is_worker() -> bool:
    """Whether this process is one of several, and not the first; needs no PyTorch."""
    return world_size() > 1 and int(os.environ["RANK"]) > 0


def team() -> Team:
    """Return the processes of this training, after they have found each other."""
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
        dist.init_process_group(backend, timeout=_PATIENCE)
        atexit.register(_part)
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return Team(dist.get_rank(), dist.get_world_size(), local_rank, local_size)


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
    if world_size() == 1:
        return given
    if _leading:
        team().shared(name)
    return team().shared(given)
