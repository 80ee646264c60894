"""The pages of a failed request beside those of the same request alone, page by page.

A child process in the release's environment runs both, each on a fresh engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from analysis.core import jobs
from analysis.core.errors import EngineError
from analysis.core.wording import markdown_table
from analysis.reproduction.candidate import Candidate
from analysis.reproduction.engines import alone
from analysis.reproduction.reproduce import Reproduction
from analysis.shortfin.environments import python_of
from analysis.workloads.workload import Request, Workload

_START_S = 60.0
Row = Mapping[str, Any]


def fingerprint_table(found: Reproduction) -> str:
    """Return a Markdown table of the pages of a row of the failed request; "" without one.

    There is none if the request fails alone, or if its engine dies or stands still.
    """
    if len(found.best.requests) == 1:
        return ""
    together, own = found.best, alone(found.best, found.failed)
    try:
        runs = [_taken(found, one) for one in (together, own)]
    except EngineError:
        return ""
    return table_of(*runs)


def table_of(together: Sequence[Row], alone: Sequence[Row]) -> str:
    """Return the table of the last row that has the same length in both; "" without one."""
    lengths = {(row["phase"], row["length"]): row for row in alone}
    pairs = [
        (row, lengths[row["phase"], row["length"]])
        for row in together
        if (row["phase"], row["length"]) in lengths
    ]
    if not pairs:
        return ""
    unlike = [row for row, other in pairs if row["checksums"] != other["checksums"]]
    row, other = pairs[-1]
    rows = [
        {
            "block": block,
            "page": page,
            "checksum": f"`{checksum:08x}`",
            "page alone": page_alone,
            "checksum alone": f"`{checksum_alone:08x}`",
            "": "equal" if checksum == checksum_alone else "**differs**",
        }
        for block, (page, checksum, page_alone, checksum_alone) in enumerate(
            zip(row["pages"], row["checksums"], other["pages"], other["checksums"], strict=False)
        )
    ]
    words = (
        f"Its last row: {row['phase']} of {row['length']} tokens. CRC-32 of their keys and values."
    )
    if unlike:
        first = unlike[0]
        words += f" A page differs from the {first['phase']} of {first['length']} tokens on."
    return f"{words}\n\n{markdown_table(rows)}"


def _taken(found: Reproduction, candidate: Candidate) -> list[Row]:
    """Return the rows of the failed request on a fresh engine, in order."""
    release = found.release
    job = {
        "config": {**found.config, "page_count": candidate.page_count},
        "requests": [vars(request) for request in candidate.requests],
        "concurrency": candidate.concurrency,
        "answer_s": candidate.answer_s(release),
    }
    limit_s = _START_S + candidate.deadline_s(release)
    name = f"The engine of shortfin {release} with fingerprints"
    (rows,) = jobs.ask(python_of(release), __name__, job, name, error=EngineError, first_s=limit_s)
    return [row for row in rows if row["request_id"] == found.failed]


def _work(job: dict[str, Any], emit: jobs.Emit) -> None:
    """Run a workload and emit the fingerprints of its rows (in the child)."""
    from analysis.engine import Engine, EngineConfig
    from analysis.engine.clients import send_workload
    from analysis.recording import observe
    from analysis.recording.fingerprints import take

    workload = Workload("reproduce", tuple(Request(**row) for row in job["requests"]))
    with (
        Engine(EngineConfig.from_json(job["config"])) as engine,
        observe(engine, snapshots=False, memory_every_s=0) as recording,
    ):
        found = take(recording.recorder)
        try:
            send_workload(engine, workload, job["concurrency"], timeout_s=job["answer_s"])
        finally:
            recording.recorder.checksums = None
            found.close()
    emit([asdict(row) for row in found.rows])


if __name__ == "__main__":
    jobs.serve(_work)
