"""Notebooks executed once per release, and published as pages that open offline.

    OUT/index.html                         what there is, with the answers
    OUT/01_reproduce-RELEASE.html          one page a notebook and release; the parameter `model`
                                           is a part of the name if it is given
    OUT/notebooks/01_reproduce-RELEASE.ipynb
                                           the same as executed
    OUT/runs/01_reproduce-RELEASE-.../     what the notebook recorded, and its `answer.json`

A notebook declares in its metadata, under "cachelab", its `quick` and `full` parameters, the
minutes that these take, and its question. With `once`, it runs only in the kernel of the first
release, and its parameter `releases` has all of them. The parameters `release` and `run_dir` are
filled in.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from analysis.core.errors import RunError, check_writable
from analysis.core.files import contents, write_atomically
from analysis.core.paths import runs_dir
from analysis.report import pages
from analysis.report.execution import Execution, execute
from analysis.report.notebooks import Job, ReportError, copy_notebooks, find_notebooks, plan
from analysis.report.parameters import read_parameters
from analysis.report.stored import measured
from analysis.runs.store import join_runs, load_run
from analysis.shortfin import environments
from analysis.shortfin.releases import installed_release, supported
from analysis.stats.configurations import series_columns

__all__ = [
    "PublishResult",
    "PublishedPage",
    "ReportError",
    "copy_notebooks",
    "find_notebooks",
    "measured",
    "publish",
    "read_parameters",
    "run_directory",
    "write_answer",
]

_CATALOGUE = "report.json"
_PARTS = "parts.json"
"""In the run directory: when each part of the report began, and its duration (s)."""
_PARAMETERS = "parameters.json"
"""In the run directory: the notebook's parameters, except the injected ones."""
_MOST_LINES = 8
"""Lines of the chart of the index, beyond which its legend leaves no room for them."""
_INJECTED = ("release", "run_dir")
# Deadline of a cell: this multiple of the notebook's minutes, at least the floor.
_PATIENCE, _FLOOR_S, _UNKNOWN_MINUTES = 5, 900, 60.0


@dataclass(frozen=True)
class PublishedPage:
    """One page: its file, whether its notebook ran to its end, and its answer."""

    notebook: str
    release: str
    html: Path
    ok: bool
    answer: str


@dataclass(frozen=True)
class PublishResult:
    """The result of `publish`."""

    index: Path
    pages: list[PublishedPage]

    @property
    def ok(self) -> bool:
        """True if every notebook ran to its end."""
        return all(page.ok for page in self.pages)


def publish(
    notebooks: Sequence[Path] | None,
    *,
    releases: Sequence[str] | None = None,
    out: Path,
    full: bool = False,
    parameters: Mapping[str, object] | None = None,
    recorded: Path | None = None,
    kernel_of: Callable[[str], str] | None = None,
    screen: TextIO | None = None,
) -> PublishResult:
    """Run each notebook once per release in that release's kernel, and publish a page of each run.

    `notebooks` None means all of them, `releases` None every one that has an environment here.
    `full` chooses a notebook's `full` parameters instead of its `quick` ones; `parameters` override
    both. `recorded` is a directory with run directories of such notebooks, each named
    NOTEBOOK-RELEASE; then these are shown, with their parameters, from what is there, without an
    engine.
    A cell that raises, a kernel that dies twice or a cell past its deadline still gives a page
    with the failure, and `ok` False. Progress goes to `screen` (standard error).

    Raises CachelabError, before anything runs, if a notebook, a kernel or a parameter does not
    exist, or `out` cannot be written.
    """
    screen = screen or sys.stderr
    out = Path(os.path.realpath(out))
    chosen = (
        [Path(path) for path in notebooks] if notebooks is not None else find_notebooks(["all"])
    )
    run_on = releases or environments.present() or supported()
    jobs = plan(chosen, run_on, full, dict(parameters or {}), kernel_of or environments.kernel_of)
    check_writable(out)
    if recorded is not None:
        if full or parameters:
            raise ReportError("What is recorded has its own parameters. Give none.")
        jobs = [_as_recorded(job, recorded) for job in _present(jobs, recorded, screen)]
    if absent := " ".join(
        release for release in supported() if not releases and release not in run_on
    ):
        _say(screen, f"Left out without an environment here: `cachelab releases install {absent}`")
    done = []
    for number, job in enumerate(jobs, 1):
        _say(screen, f"[{number}/{len(jobs)}] {job.stem} on shortfin {job.release}{job.duration}")
        page, entry = _publish_one(job, out, screen, recorded)
        _catalogue(out, entry)
        done.append(page)
        _say(screen, f"  {entry['status']}: {page.answer or 'no answer was written'}")
    index = out / "index.html"
    _say(screen, f"The report is at {index}")
    return PublishResult(index, done)


def write_answer(run_dir: str | Path, answer: str, **more: Any) -> Path:
    """Write the one-sentence answer of a notebook for its page and the index."""
    path = Path(run_dir) / "answer.json"
    write_atomically(path, json.dumps({"answer": answer, **more}, indent=2, default=str) + "\n")
    return path


def run_directory(notebook: str, run_dir: str = "") -> Path:
    """Return where a notebook records: `run_dir` if given, else a directory of the notebook.

    A notebook run by hand uses the same directory again, so its sweeps resume; each plan has its
    own place in it (`Plan.place`).
    """
    path = Path(run_dir) if run_dir else runs_dir() / f"{notebook}-{installed_release() or 'none'}"
    path.mkdir(parents=True, exist_ok=True)
    return path.resolve()


def _present(jobs: Sequence[Job], recorded: Path, screen: TextIO) -> list[Job]:
    """Return the jobs that are recorded, and print the others. Raises ReportError if none is."""
    found = [job for job in jobs if (recorded / _name(job)).is_dir()]
    if not found:
        raise ReportError(
            f"{recorded} has nothing of these notebooks and releases. `cachelab export` makes a"
            " directory NOTEBOOK-RELEASE of a run directory."
        )
    if absent := [_name(job) for job in jobs if job not in found]:
        _say(screen, f"Not recorded in {recorded}: {', '.join(absent)}")
    return found


def _as_recorded(job: Job, recorded: Path) -> Job:
    """Return a job with the parameters of its recording."""
    file = recorded / _name(job) / _PARAMETERS
    try:
        return replace(job, parameters=json.loads(contents(file)))
    except FileNotFoundError:
        raise ReportError(f"{file} is missing. Restore it, or record the notebook again.") from None
    except ValueError as error:
        raise ReportError(f"{file} is damaged ({error}). Restore it.") from error


def _name(job: Job) -> str:
    model = re.sub(r"[^\w.]+", "-", _model(job))
    return "-".join(filter(None, [job.stem, job.release, model]))


def _model(job: Job) -> str:
    return Path(str(job.parameters.get("model") or "")).name


def _publish_one(
    job: Job, out: Path, screen: TextIO, recorded: Path | None = None
) -> tuple[PublishedPage, dict[str, Any]]:
    from analysis.report.exporter import render  # needs nbconvert

    name = _name(job)
    started = datetime.now(UTC)
    run_dir = _fresh_directory(out / "runs", f"{name}-{started:%Y%m%d-%H%M%S}")
    given = {"release": job.release, "run_dir": str(run_dir)}
    injected = {key: given[key] for key in _INJECTED if key in job.declared}
    parameters = {**injected, **job.parameters}
    if "run_dir" in job.parameters:
        run_dir = Path(str(job.parameters["run_dir"]))
    if recorded is not None:
        shutil.copytree(recorded / name, run_dir, dirs_exist_ok=True)
    minutes = job.minutes or _UNKNOWN_MINUTES
    parts = _begin_part(run_dir, started)
    write_atomically(run_dir / _PARAMETERS, json.dumps(job.parameters, indent=2) + "\n")
    executed = execute(
        job.path,
        out / "notebooks" / f"{name}.ipynb",
        kernel=job.kernel,
        parameters=parameters,
        run_dir=run_dir,
        cell_timeout_s=max(_FLOOR_S, int(minutes * 60 * _PATIENCE)),
        screen=screen,
    )
    answer = _read_answer(run_dir)
    html = out / f"{name}.html"
    took = _end_part(run_dir, parts, (datetime.now(UTC) - started).total_seconds())
    page = pages.Page(
        title=job.title,
        notebook=job.path.name,
        release=job.release,
        date=f"{started:%Y-%m-%d %H:%M} UTC",
        took=took,
        mode=job.mode,
        answer=answer,
        parameters={key: repr(value) for key, value in parameters.items()},
        notices=_notices(executed, out),
        failed=not executed.ok,
    )
    write_atomically(html, render(executed.notebook, page))
    status = "ran to its end" if executed.ok else executed.problem
    entry = {
        **{
            key: asdict(page)[key]
            for key in ("title", "notebook", "release", "date", "took", "mode")
        },
        "question": job.question,
        "model": _model(job),
        "html": html.name,
        "run": os.path.relpath(run_dir, out),
        "answer": answer,
        "ok": executed.ok,
        "status": status,
    }
    return PublishedPage(job.path.name, job.release, html, executed.ok, answer), entry


def _begin_part(run_dir: Path, started: datetime) -> list[dict[str, Any]]:
    """Record that a part of a report begins; return all parts with the seconds of earlier ones.

    An interrupted part lasted until its last file was written. Files without a record are a part
    of unknown length.
    """
    there = [path.stat().st_mtime for path in run_dir.rglob("*") if path.is_file()]
    try:
        parts = json.loads((run_dir / _PARTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        parts = [{"started": None, "seconds": None}] if there else []
    for part in parts:
        if part["seconds"] is None and part["started"] is not None:
            part["seconds"] = max(0.0, max(there) - part["started"])
    parts.append({"started": started.timestamp(), "seconds": None})
    write_atomically(run_dir / _PARTS, json.dumps(parts) + "\n")
    return list(parts)


def _end_part(run_dir: Path, parts: list[dict[str, Any]], seconds: float) -> str:
    """Record how long the last part took; return the total as text."""
    parts[-1]["seconds"] = seconds
    write_atomically(run_dir / _PARTS, json.dumps(parts) + "\n")
    known = [part["seconds"] for part in parts if part["seconds"] is not None]
    text = pages.duration(sum(known))
    text += f" in {len(known)} parts" if len(known) > 1 else ""
    return text + (", beside an earlier part of unknown length" if len(known) < len(parts) else "")


def _notices(executed: Execution, out: Path) -> list[pages.Notice]:
    """Return what the head of a page shows: that the kernel died, or why the run ended."""
    notices = []
    for death in executed.deaths:
        link = death.dump
        if link is not None and link.is_relative_to(out):
            link = link.relative_to(out)
        notices.append(
            pages.Notice(
                "bad", death.sentence, str(link or ""), "Every thread's stack at that moment"
            )
        )
    if not executed.ok and not executed.kernel_died:
        notices.append(pages.Notice("bad", executed.problem, "#failure", "See where"))
    return notices


def _catalogue(out: Path, entry: Mapping[str, Any]) -> None:
    """Add a page to the catalogue, replacing one of the same name, and write the index."""
    path = out / _CATALOGUE
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        entries = [e for e in entries if e["html"] != entry["html"] and (out / e["html"]).is_file()]
    except (OSError, ValueError, TypeError, LookupError, RecursionError):  # not a catalogue
        entries = []
    entries = sorted([*entries, dict(entry)], key=lambda e: (e["notebook"], e["release"]))
    write_atomically(path, json.dumps(entries, indent=2) + "\n")
    write_atomically(out / "index.html", pages.render_index(entries, _chart(out, entries)))


def _chart(out: Path, entries: Sequence[Mapping[str, Any]]) -> bytes | None:
    """Draw the failure rates of the first notebook that has runs of two releases.

    Runs of different notebooks have different workloads, and other models other answers, so their
    rates do not compare.
    """
    kinds = {id(entry): (str(entry["notebook"]), str(entry.get("model", ""))) for entry in entries}
    for kind in sorted(set(kinds.values())):
        chart = _chart_of(out, [entry for entry in entries if kinds[id(entry)] == kind])
        if chart is not None:
            return chart
    return None


def _chart_of(out: Path, entries: Sequence[Mapping[str, Any]]) -> bytes | None:
    from analysis.plots import failure_rate
    from analysis.plots.style import png_of

    runs = []
    for entry in entries:
        for path in sorted((out / str(entry.get("run", ""))).glob("*/manifest.json")):
            try:
                runs.append(load_run(path.parent))
            except RunError:  # its page has the failure
                continue
    runs = [run for run in runs if len(run.trials)]
    if len({release for run in runs for release in run.trials["release"]}) < 2:
        return None
    requests, trials = join_runs(runs)
    lines = trials[series_columns(trials)].astype(str).drop_duplicates()
    return png_of(failure_rate(requests, trials)) if len(lines) <= _MOST_LINES else None


def _fresh_directory(parent: Path, name: str) -> Path:
    path, number = parent / name, 1
    while True:
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            number += 1
            path = parent / f"{name}-{number}"


def _read_answer(run_dir: Path) -> str:
    try:
        return str(json.loads((run_dir / "answer.json").read_text(encoding="utf-8"))["answer"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _say(screen: TextIO, line: str) -> None:
    screen.write(line + "\n")
    screen.flush()
