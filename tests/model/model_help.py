"""Damaging a copied model directory."""

from __future__ import annotations

import json
from pathlib import Path


def change_json(path: Path, **changes: object) -> None:
    value = json.loads(path.read_text())
    for key, change in changes.items():
        if change is None:
            del value[key]
        else:
            value[key] = change
    path.write_text(json.dumps(value))
