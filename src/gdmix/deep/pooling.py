"""What all text encoders have: tokens filled up with padding, and one vector of each text's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gdmix.deep.text import PAD


class TextEncoder(nn.Module):
    """A network that gives each text a vector.

    Attributes
    ----------
    dim
        Length of the vectors.
    """

    dim: int

    def pretrained_parameters(self) -> list[nn.Parameter]:
        """Return those that training elsewhere has brought near their place: the smaller rate's."""
        return []

    def forward(self, tokens: Tensor) -> Tensor:
        """Return vectors (n, dim) of tokens (n, L), which are filled up with 0."""
        raise NotImplementedError


def words_of(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return tokens with at least one column, and which of them are no padding, (n, L) both."""
    if tokens.shape[1] == 0:
        tokens = tokens.new_full((tokens.shape[0], 1), PAD)
    return tokens, tokens != PAD


def pool(states: Tensor, is_word: Tensor, how: str) -> Tensor:
    """Return one vector per text of its words' states; zeros of a text without words.

    Parameters
    ----------
    states
        (n, L, d).
    is_word
        (n, L).
    how
        `mean` or `max` of the words, or `cls`: the first one's.

    Returns
    -------
    Tensor
        (n, d).
    """
    seen = is_word.unsqueeze(-1)
    if how == "max":
        largest = states.masked_fill(~seen, -torch.inf).amax(1)
        return largest.masked_fill(~seen.any(1), 0.0)
    if how == "cls":
        return states[:, 0].masked_fill(~seen[:, 0], 0.0)
    total = states.masked_fill(~seen, 0.0).sum(1)
    return total / seen.sum(1).clamp(min=1)
