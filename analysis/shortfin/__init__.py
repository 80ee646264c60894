"""One module per API generation of shortfin: how it is built, called, watched and stopped."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from analysis.core.errors import EngineError
from analysis.core.interrupts import uninterrupted
from analysis.shortfin.environments import installed_release
from analysis.shortfin.port import Adapter, Answer, Call, Setup

__all__ = [
    "MODULES",
    "PACE_S",
    "Adapter",
    "Answer",
    "Call",
    "Setup",
    "adapter_of",
    "installed_adapter",
]

MODULES = {"3.1.0": "v3_1", "3.9.0": "v3_9"}
"""Release to the module that speaks its generation."""
PACE_S = {"3.1.0": (0.7, 0.5, 0.01, 0.005), "3.9.0": (0.14, 0.005, 0.03, 0.006)}
"""Seconds to the first token and to each further one, in a batch with room and in a full one.

Up to 3.2 a batch that is not full waits for two strobes of 0.25 s before every invocation; measured
on two cores with the counting model, for estimates only.
"""


def adapter_of(release: str) -> type[Adapter]:
    """Return the adapter class of `release`, which must be the installed one to be started.

    Raises EngineError, naming the releases that are known, for any other.
    """
    module = MODULES.get(release)
    if module is None:
        raise EngineError(
            f"No adapter speaks to shortfin {release}: known are {', '.join(MODULES)}."
        )
    with _home_elsewhere(), uninterrupted():
        adapter: type[Adapter] = import_module(f"analysis.shortfin.service.{module}").ADAPTER
    return adapter


def installed_adapter() -> tuple[str, type[Adapter]]:
    """Return the installed release and its adapter."""
    release = installed_release()
    if release is None:
        raise EngineError(
            "shortfin is not installed in this environment: use one made by `make setup` or"
            " `cachelab releases install`."
        )
    return release, adapter_of(release)


@contextmanager
def _home_elsewhere() -> Iterator[None]:
    """Give an import a home of its own: up to 3.8 each import leaves a directory in the user's."""
    home = os.environ.get("HOME")
    with tempfile.TemporaryDirectory() as elsewhere:
        os.environ["HOME"] = elsewhere
        try:
            yield
        finally:
            if home is None:
                del os.environ["HOME"]
            else:
                os.environ["HOME"] = home
