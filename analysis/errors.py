"""What the user can mend: a message is one sentence on what is wrong and how to mend it."""

from __future__ import annotations


class CachelabError(Exception):
    """Base of every error that the command line prints as one sentence, without a traceback."""


class EngineError(CachelabError):
    """The engine could not be started or asked as configured."""


class ModelError(CachelabError):
    """A model directory, or something in it, cannot be used."""


class ReleaseError(CachelabError):
    """A shortfin release is unknown, or has no environment here."""


class RunError(CachelabError):
    """A run on disk is missing, corrupt or of another plan."""


class WorkloadError(CachelabError):
    """A workload cannot be read or made."""
