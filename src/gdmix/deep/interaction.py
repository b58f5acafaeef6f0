"""How vectors of two sides, such as a document and a query, meet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_SHORTEST = 1e-6  # vectors below it are no longer scaled to length 1: 0 stays 0


def _inner(document: Tensor, other: Tensor) -> Tensor:
    return (document * other).sum(-1, keepdim=True)


def _cosine(document: Tensor, other: Tensor) -> Tensor:
    return _inner(
        F.normalize(document, dim=-1, eps=_SHORTEST), F.normalize(other, dim=-1, eps=_SHORTEST)
    )


INTERACTIONS: Final[dict[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "cosine": _cosine,
    "inner": _inner,
    "hadamard": torch.mul,
    "difference": torch.sub,
    "concat": lambda document, other: torch.cat([document, other], -1),
}
_WIDTHS = {"cosine": (1, 0), "inner": (1, 0), "concat": (0, 2)}  # a + b d; else d


def interact(document: Tensor, other: Tensor, kinds: Sequence[str]) -> Tensor:
    """Return what two vectors of each row have in common, the kinds side by side.

    ==========  ===========================  =====
    kind        value                        width
    ==========  ===========================  =====
    cosine      u.v / (|u| |v|); 0 if one 0  1
    inner       u.v                          1
    hadamard    u_i v_i                      d
    difference  u_i - v_i                    d
    concat      u, v                         2 d
    ==========  ===========================  =====

    Parameters
    ----------
    document, other
        u and v, (n, d) each.
    kinds
        Of the table above.

    Returns
    -------
    Tensor
        (n, width(d, kinds)).
    """
    return torch.cat([INTERACTIONS[kind](document, other) for kind in kinds], -1)


def width(dim: int, kinds: Sequence[str]) -> int:
    """Return the number of columns of `interact` of vectors of length `dim`."""
    each = [_WIDTHS.get(kind, (0, 1)) for kind in kinds]
    return sum(fixed + times * dim for fixed, times in each)


class Interaction(nn.Module):
    """Each vector of the document side with each of the other sides.

    Parameters
    ----------
    dim
        Length of all vectors.
    kinds
        Of `interact`.
    documents, others
        Number of vectors of either side. Without others the documents' own are what comes out.

    Attributes
    ----------
    width
        Number of columns that come out.
    """

    def __init__(self, dim: int, kinds: Sequence[str], documents: int, others: int) -> None:
        super().__init__()
        self.kinds = tuple(kinds)
        self.width = documents * (others * width(dim, self.kinds) if others else dim)

    def forward(self, documents: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
        """Return (n, width) of two lists of vectors, (n, dim) each."""
        if not others:
            return torch.cat(list(documents), -1)
        pairs = [interact(u, v, self.kinds) for u in documents for v in others]
        return torch.cat(pairs, -1)
