"""Deep fixed effects, in PyTorch: the one place that imports it.

coordinate                 fits the network beside all other coordinates' scores
model                      the trained network and what turns rows into its inputs; its files
inputs                     rows to numbers: vocabularies, hashes, standardized numbers; batches
findings                   what training rows, in one place or divided, say of these
network                    what a spec describes: sides, interaction, hidden layers, the score
text, pretrained, frozen   texts to numbers, of words or of a Hugging Face model
encoders, pooling          tokens of a text to its vector
interaction                vectors of two sides to what a score is made of
losses                     what training minimises, of rows or of groups of rows
trainer                    the loop, and which network is kept
batches, optimizer         which rows train in which step; AdamW, schedules, gradients
checkpoints                a killed training goes on
distributed                processes that train together: of one torchrun, or an engine's tasks
"""

from __future__ import annotations

import importlib

from gdmix.errors import ConfigError

_PACKAGES = ("torch", "safetensors")


def check_installed() -> None:
    """Refuse to go on without PyTorch.

    Raises
    ------
    ConfigError
        If a package is missing.
    """
    for package in _PACKAGES:
        try:
            importlib.import_module(package)
        except ModuleNotFoundError:
            raise ConfigError(
                f"a coordinate of type deep needs {package}, which is not installed: "
                "pip install 'gdmix[deep]'"
            ) from None
