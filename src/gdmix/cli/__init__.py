"""The commands. No logic: each one reads its arguments, calls one function, shows the result."""

from gdmix.cli.program import app, main

__all__ = ["app", "main"]
