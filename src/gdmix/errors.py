"""What can go wrong for a user: one line each that says what, where, and the mend.

Every error a user can cause is a `GdmixError`; the command line prints it without a
traceback and exits with code 2. Anything else that escapes is a defect of ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class GdmixError(Exception):
    """Base of every error that a user can mend."""


class ConfigError(GdmixError):
    """A configuration that cannot be run: unknown key, wrong value, contradiction."""


class ModelError(GdmixError):
    """A model folder that is missing, damaged, or does not fit what is asked of it."""


class OutputError(GdmixError):
    """An output that cannot be written: folder in use, read-only, disk full."""


class EngineError(GdmixError):
    """A cluster that is out of reach, or that could not do its work: executors lost, no memory."""


class DataError(GdmixError):
    """Input rows that cannot be used.

    Attributes
    ----------
    findings
        One readable line per finding; the message joins them with newlines.
    """

    def __init__(self, findings: str | Sequence[str]) -> None:
        self.findings = (findings,) if isinstance(findings, str) else tuple(findings)
        super().__init__("\n".join(self.findings))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the known word nearest to `word`, else nothing."""
    nearest = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{nearest[0]}'?)" if nearest else ""
