"""Notebooks before they run: names, parameters, and the kernel for each release."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.core.errors import CachelabError, PlaceError, seconds, shown, writing
from analysis.core.files import write_atomically
from analysis.core.paths import shipped
from analysis.report import parameters as types
from analysis.shortfin.config import LONGEST_TIMEOUT_S

_ABOUT = {"quick": dict, "full": dict, "question": str, "once": bool}
"""Keys of a notebook's metadata, with their types."""


class ReportError(CachelabError):
    """A report cannot be made with these options."""


def find_notebooks(names: Sequence[str]) -> list[Path]:
    """Return the notebooks meant by names: "all", a number ("01"), a stem, or a path to a file."""
    home = shipped("notebooks")
    present = sorted(path for path in home.glob("*.ipynb") if path.name[0] != ".")
    found: list[Path] = []
    for name in names:
        if name == "all":
            matches = present
        elif name.endswith(".ipynb") and os.path.isfile(name):
            matches = [Path(name)]
        else:
            stem = Path(name).stem
            matches = [p for p in present if p.stem == stem or p.stem.split("_")[0] == stem]
        if not matches:
            known = ", ".join(path.stem for path in present) or "none"
            raise ReportError(f"There is no notebook {shown(name)}: those in {home} are {known}.")
        found += [path for path in matches if path not in found]
    return found


def copy_notebooks(directory: Path) -> list[Path]:
    """Copy the notebooks into a new or empty directory, to be edited; return the copies.

    Raises PlaceError if the directory is not empty, or cannot be written.
    """
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise PlaceError(
                f"{directory} is not empty, and no file is overwritten: name a new directory."
            )
        copies: list[Path] = []
        try:
            for notebook in find_notebooks(["all"]):
                copies.append(directory / notebook.name)
                write_atomically(copies[-1], notebook.read_bytes())
        except BaseException:
            for copy in copies:
                copy.unlink(missing_ok=True)
            raise
    return copies


@dataclass(frozen=True)
class Job:
    """One notebook on one release, with the parameters that it will get."""

    path: Path
    release: str
    kernel: str
    mode: str
    declared: frozenset[str]
    parameters: dict[str, Any]
    title: str
    question: str
    minutes: float | None

    @property
    def stem(self) -> str:
        """The notebook's name without its ending."""
        return self.path.stem

    @property
    def duration(self) -> str:
        """The minutes of the notebook's metadata as text, to follow its name."""
        return f", about {self.minutes:g} min" if self.minutes else ""


def plan(
    notebooks: Sequence[Path],
    releases: Sequence[str],
    full: bool,
    parameters: dict[str, Any],
    kernel_of: Callable[[str], str],
) -> list[Job]:
    """Return the jobs, with everything checked that can be checked before the first one runs."""
    mode = "full" if full else "quick"
    jobs: list[Job] = []
    declared_anywhere: set[str] = set()
    for path in notebooks:
        notebook = _read_notebook(path)
        about = notebook.metadata.get("cachelab", {})
        declared = _declared_parameters(notebook)
        declared_anywhere |= declared.keys()
        own = {**about.get(mode, {}), **{k: v for k, v in parameters.items() if k in declared}}
        own = {k: types.conform(k, v, declared.get(k, Any)) for k, v in own.items()}
        once = about.get("once", False)
        for release in releases[:1] if once else releases:
            jobs.append(
                Job(
                    path=path,
                    release=release,
                    kernel=kernel_of(release),
                    mode=mode,
                    declared=frozenset(declared),
                    parameters={"releases": list(releases), **own} if once else own,
                    title=title_of(notebook) or path.stem,
                    question=str(about.get("question", "")),
                    minutes=about.get(f"minutes_{mode}"),
                )
            )
    if unknown := sorted(set(parameters) - declared_anywhere):
        raise ReportError(
            f"These notebooks have no parameter {', '.join(unknown)}: "
            f"there are {', '.join(sorted(declared_anywhere)) or 'none'}."
        )
    _check_kernels(jobs)
    return jobs


def _read_notebook(path: Path) -> Any:
    import nbformat

    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if not (isinstance(raw, dict) and "nbformat" in raw):  # nbformat takes it for an old one
            raise ValueError("it is no JSON object with an `nbformat`")
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        _declared_parameters(notebook)
        _check_about(notebook.metadata.get("cachelab", {}))
    except FileNotFoundError as error:
        raise ReportError(f"There is no notebook at {path}: name one that exists.") from error
    except Exception as error:  # nbformat raises anything for what it did not expect
        lines = str(error).strip().splitlines()
        reason = lines[0].rstrip(".") if lines else type(error).__name__
        raise ReportError(f"{path} is no notebook that can be read: {reason}.") from error
    return notebook


def _check_about(about: Any) -> None:
    """Check the metadata `cachelab` of a notebook. Raises ValueError."""
    if not isinstance(about, dict):
        raise ValueError("its metadata 'cachelab' is no table")
    wrong = [name for name, kind in _ABOUT.items() if not isinstance(about.get(name, kind()), kind)]
    for name in ("minutes_quick", "minutes_full"):
        seconds(60 * about.get(name, 1.0), f"`{name}`", LONGEST_TIMEOUT_S, ReportError)
    if wrong:
        raise ValueError(f"its metadata {wrong[0]!r} is not of type {_ABOUT[wrong[0]].__name__}")


def _declared_parameters(notebook: Any) -> dict[str, Any]:
    """Return the names assigned in the cell that is tagged `parameters`, with their types."""
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            return types.declared(cell.source)
    return {}


def title_of(notebook: Any) -> str:
    """Return the first heading of a notebook, empty without one."""
    lines = (
        line
        for cell in notebook.cells
        if cell.cell_type == "markdown"
        for line in cell.source.splitlines()
    )
    return next((line[2:].strip() for line in lines if line.startswith("# ")), "")


def _check_kernels(jobs: Sequence[Job]) -> None:
    from jupyter_client.kernelspec import KernelSpecManager

    present = set(KernelSpecManager().find_kernel_specs())
    for job in jobs:
        if job.kernel not in present:
            raise ReportError(
                f"shortfin {job.release} has no Jupyter kernel here: "
                f"make one with `cachelab releases install {job.release}`."
            )
