"""Directories: the checkout, the cache, the runs."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import platformdirs


def repo_root() -> Path | None:
    """Return the checkout that this package runs from, None when installed from a wheel."""
    root = Path(__file__).resolve().parents[2]
    is_checkout = (root / "pyproject.toml").is_file() and (root / "environments").is_dir()
    return root if is_checkout else None


def cache_dir() -> Path:
    """Return the directory for compiled models and reference answers, which can be made again.

    `CACHELAB_CACHE_DIR` wins, then `data/cache` of the checkout, then the user's cache directory.
    """
    if chosen := os.environ.get("CACHELAB_CACHE_DIR"):
        return Path(chosen).expanduser().resolve()
    if root := repo_root():
        return root / "data" / "cache"
    return Path(platformdirs.user_cache_dir("cachelab"))


def place_of(path: Path, identity: Mapping[str, Any]) -> Path:
    """Return `path` with a digest of an identity: `NAME-<digest>`.

    Other settings so get another place, and the same settings go on where they were.
    """
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode())
    return path.with_name(f"{path.name}-{digest.hexdigest()[:8]}")


def runs_dir() -> Path:
    """Return where runs go by default: `data/runs`, or `./runs` outside a checkout."""
    root = repo_root()
    return root / "data" / "runs" if root else Path.cwd() / "runs"
