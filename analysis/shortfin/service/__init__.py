"""One module for each generation of the server: build, call, observe and stop it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from analysis.core.errors import EngineError
from analysis.core.interrupts import uninterrupted
from analysis.shortfin.releases import installed_release, row_of, supported
from analysis.shortfin.service.common import Service


def service_of(release: str) -> type[Service]:
    """Return the service class of `release`; only the installed release can be started.

    Raises EngineError for an unsupported release.
    """
    if release not in supported():
        raise EngineError(
            f"shortfin {release} is not supported. Choose one of {', '.join(supported())}."
        )
    with _temporary_home(), uninterrupted():
        module = import_module(f"{__name__}.{row_of(release).service}")
    service: type[Service] = module.SERVICE
    return service


def installed_service() -> tuple[str, type[Service]]:
    """Return the installed release and its service class."""
    release = installed_release()
    if release is None:
        raise EngineError(
            "shortfin is not installed in this environment: use one made by `make setup` or"
            " `cachelab releases install`."
        )
    return release, service_of(release)


@contextmanager
def _temporary_home() -> Iterator[None]:
    """Use a temporary home for an import: up to 3.8 each import creates a directory there."""
    home = os.environ.get("HOME")
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["HOME"] = temporary
        try:
            yield
        finally:
            if home is None:
                del os.environ["HOME"]
            else:
                os.environ["HOME"] = home
