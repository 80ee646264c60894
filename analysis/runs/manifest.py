"""The manifest of a run: versions, git commit, machine, command, seed and plan, with a checksum."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from analysis.core.errors import RunError, is_deeper, shown
from analysis.core.files import contents, write_atomically
from analysis.core.wording import listed
from analysis.runs import former
from analysis.runs.schema import SCHEMA_VERSION

MANIFEST = "manifest.json"
_READ = (*former.VERSIONS, SCHEMA_VERSION)
"""Schema versions that can be read."""
_DEEPEST = 50
"""Most nesting levels of a manifest's values."""
_PACKAGES = (
    "cachelab", "shortfin", "iree-base-compiler", "iree-base-runtime", "numpy", "pandas", "pyarrow",
    "tokenizers",
)  # fmt: skip


def new_manifest(command: str | Sequence[str], seed: int | None, **extra: Any) -> dict[str, Any]:
    """Return the manifest of a new run.

    `command` is the user's command line. `extra` is also stored, such as `plan`, which is compared
    when a run is resumed. The version of a package that is not installed is None.
    """
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command if isinstance(command, str) else " ".join(command),
        "seed": seed,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "git": git_state(Path(__file__).resolve().parents[2]),
        "machine": machine(),
        **extra,
    }


def machine() -> dict[str, Any]:
    """Return the processor's name, usable cores, memory in bytes and operating system."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    try:
        memory: int | None = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        memory = None
    return {
        "cpu": _cpu_model(),
        "cores": cores,
        "memory_bytes": memory,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def git_state(directory: Path) -> dict[str, Any] | None:
    """Return the commit of the checkout and whether files were changed; None without git."""
    try:
        commit = _git(directory, "rev-parse", "HEAD")
        changed = bool(_git(directory, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "changed": changed}


def _git(directory: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(directory), *words],  # noqa: S607
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    )
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def read_manifest(path: str | Path) -> dict[str, Any]:
    """Return the manifest of a run; raise RunError if it is missing or unreadable."""
    file = Path(path) / MANIFEST
    advice = "Restore it, or run the sweep again"
    try:
        text = contents(file)
    except FileNotFoundError as error:
        raise RunError(
            f"{path} is not a run: it has no {MANIFEST}. Give the directory of a run."
        ) from error
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{file} cannot be read ({error}). {advice}.") from error
    if not isinstance(manifest, dict) or "schema_version" not in manifest:
        raise RunError(f"{file} is not the manifest of a run. {advice}.")
    if is_deeper(manifest, _DEEPEST):
        raise RunError(f"{file} has values more than {_DEEPEST} levels deep. {advice}.")
    version = manifest["schema_version"]
    if type(version) is not int or version not in _READ:
        raise RunError(
            f"{file} has schema version {shown(version)}, but this package reads {listed(_READ)}."
            " Read it with the version of the package that wrote it."
        )
    stored = manifest.pop("checksum", None)
    if stored != digest_of(manifest) and not (stored is None and version == 1):
        raise RunError(f"{file} is damaged: its checksum differs. {advice}.")
    plan = manifest.get("plan")
    if not isinstance(plan, dict | None):
        raise RunError(f"{file} has an invalid plan, {shown(plan)}. {advice}.")
    if not isinstance(model := (plan or {}).get("model"), str | None):
        raise RunError(f"{file} has an invalid model directory, {shown(model)}. {advice}.")
    return manifest


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest of the run at `path`, with its checksum."""
    whole = {**manifest, "checksum": digest_of(manifest)}
    write_atomically(path / MANIFEST, json.dumps(whole, indent=2) + "\n")


def digest_of(manifest: Mapping[str, Any]) -> str:
    """Return the checksum of a manifest, without its own checksum field."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Return the differences of two plans in words; "" if they are equal."""
    names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    return "; ".join(f"{n} there {_given(there, n)}, here {_given(here, n)}" for n in names)


def _given(plan: Mapping[str, Any], name: str) -> str:
    return shown(plan[name]) if plan.get(name) is not None else "not given"


def planned(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that identify a plan; versions and machines may differ."""
    plan = manifest.get("plan")
    return {**(plan if isinstance(plan, dict) else {"plan": plan}), "seed": manifest.get("seed")}


def as_json(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest as read back from JSON, so that tuples compare equal to lists."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(manifest), default=str))
    except (TypeError, ValueError) as error:
        raise RunError(f"The manifest cannot be written as JSON: {error}.") from error
    return plain


def is_whole(manifest: Mapping[str, Any], trial_id: str | None) -> bool:
    """Return whether a run has all that was recorded of a trial; None stands for all trials."""
    return not manifest.get("light") or trial_id in manifest.get("whole_trials", ())


def refuse_light(
    path: str | Path, manifest: Mapping[str, Any], trial_id: str | None = None
) -> None:
    """Raise RunError for a light run, which lacks what checking and explaining need.

    A light run has it for the trials that are whole.
    """
    if not is_whole(manifest, trial_id):
        whole = manifest.get("whole_trials")
        but = f", except for {listed(whole, most=4)}" if whole else ""
        raise RunError(
            f"{path} is a light copy without arguments of invocations and most events{but}. Give"
            " the run itself, or export it without `--light`."
        )
