"""Directories: the checkout, what ships with the package, the cache, the runs, the reports."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import platformdirs


def repo_root() -> Path | None:
    """Return the checkout that this package runs from; None if installed from a wheel."""
    root = Path(__file__).resolve().parents[2]
    is_checkout = (root / "pyproject.toml").is_file() and (root / "environments").is_dir()
    return root if is_checkout else None


def shipped(name: str) -> Path:
    """Return a folder that ships with the package: in the checkout, or inside the wheel.

    `name` is its path in the checkout; in the wheel all of them lie side by side.
    """
    root = repo_root()
    inside = Path(__file__).resolve().parents[1] / "_data" / Path(name).name
    return root / name if root else inside


def cache_dir() -> Path:
    """Return the directory for compiled models and reference answers.

    It is `CACHELAB_CACHE_DIR`, else `data/cache` of the checkout, else the user's cache directory.
    """
    if chosen := os.environ.get("CACHELAB_CACHE_DIR"):
        return Path(chosen).expanduser().resolve()
    if root := repo_root():
        return root / "data" / "cache"
    return Path(platformdirs.user_cache_dir("cachelab"))


def place_of(path: Path, identity: Mapping[str, Any]) -> Path:
    """Return `path` with a digest of an identity: `NAME-<digest>`.

    The same settings are resumed in the same place; other settings get another place.
    """
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode())
    return path.with_name(f"{path.name}-{digest.hexdigest()[:8]}")


def environments_dir() -> Path:
    """Return the directory of the releases' environments, one folder a release.

    It is `.venvs` of the checkout. An installed package has one of its own in the user's data
    directory: two installations can have different versions of this package and of Python.
    """
    if root := repo_root():
        return root / ".venvs"
    place = Path(platformdirs.user_data_dir("cachelab")) / "environments"
    return place_of(place, {"package": str(Path(__file__).resolve().parents[1])})


def runs_dir() -> Path:
    """Return the default directory of runs: `data/runs`, or `./runs` outside a checkout."""
    root = repo_root()
    return root / "data" / "runs" if root else Path.cwd() / "runs"


def reports_dir() -> Path:
    """Return where reports go by default: `data/reports`, or `./reports` outside a checkout."""
    root = repo_root()
    return root / "data" / "reports" if root else Path.cwd() / "reports"
