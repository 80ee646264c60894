"""The shipped model, compiled once for this machine by the default environment's compiler."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from analysis.model.artifacts import load_model, shipped_model
from analysis.model.compile import compile_model
from analysis.model.reference import ReferenceDecoder


@pytest.fixture(scope="session")
def model():
    return load_model()


@pytest.fixture(scope="session")
def vmfb(model):
    return compile_model(model, batch_sizes=[4])


@pytest.fixture(scope="session")
def decoder(model, vmfb):
    return ReferenceDecoder(model, vmfb)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the shipped model without checksums, to be damaged."""
    directory = tmp_path / "model"
    shutil.copytree(shipped_model(), directory)
    (directory / "checksums.json").unlink()
    return directory
