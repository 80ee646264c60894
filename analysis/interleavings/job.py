"""Examine the cache of a release as the job of a child process (see `core/jobs.py`)."""

from __future__ import annotations

from typing import Any

from analysis.core import jobs
from analysis.interleavings.examine import examine
from analysis.shortfin.releases import installed_release
from analysis.treatments import expand


def _work(job: dict[str, Any], emit: jobs.Emit) -> None:
    sharing = job["prefix_sharing"]
    treatments = expand(job["treatments"], installed_release() or "", sharing)
    emit(examine(sharing, treatments, budget_s=job["budget_s"]).as_json())


if __name__ == "__main__":
    jobs.serve(_work)
