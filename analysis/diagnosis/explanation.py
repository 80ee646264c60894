"""The explanation of a failed request, as data and as sections of text and tables."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.core.templates import render
from analysis.core.wording import counted, listed
from analysis.diagnosis.cache import Caches, Pool, pool_until
from analysis.diagnosis.divergence import Divergence, token_name
from analysis.diagnosis.evidence import EngineDeath, count_of
from analysis.diagnosis.pages import PageHistory
from analysis.diagnosis.request_trace import RequestTrace
from analysis.diagnosis.timeline import BatchPeer, BatchRow, Moment, RequestInvocation
from analysis.diagnosis.verdict import Verdict
from analysis.runs.schema import FAILURES
from analysis.sanitizer.findings import Finding

_INVOCATIONS, _ENTRIES, _PAGES, _PEERS, _MOMENTS, _STACK = 40, 14, 12, 12, 40, 5
"""Most rows that are shown of each kind, and most lines of a stack."""


@dataclass(frozen=True)
class Table:
    """Rows with column names."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def lines(self) -> list[str]:
        """Return the table as aligned lines of text."""
        rows = [self.columns, *self.rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return [
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]


@dataclass(frozen=True)
class Section:
    """A part of the text: sentences, then a table."""

    title: str
    sentences: Sequence[str] = ()
    table: Table | None = None


@dataclass(frozen=True)
class Explanation:
    """Explains why one request of a run failed; `str` returns the text."""

    request_id: str
    trial_id: str
    outcome: str
    summary: str
    """How the request ended, in a sentence."""
    diagnosis: tuple[str, ...]
    """Why it failed according to the recording, in sentences."""
    verdict: Verdict | None
    """Why its answer is wrong; None if it is not wrong."""
    request: Mapping[str, Any]
    """Its row of the table `requests`; missing values are None."""
    trial: Mapping[str, Any]
    """Its trial's row of the table `trials`."""
    timeline: tuple[Moment, ...]
    invocations: tuple[RequestInvocation, ...]
    peers: tuple[BatchPeer, ...]
    finding: Finding | None
    """The first finding with wrong data about it, else the first one at risk."""
    findings: tuple[Finding, ...]
    """The first finding of each kind about it, in order."""
    death: EngineDeath | None
    """How the engine died; None if it did not."""
    pages: tuple[PageHistory, ...]
    """The page of the finding, then the request's pages in the order of its block table."""
    caches: Caches
    divergence: Divergence | None
    missing: tuple[str, ...]
    """What is unknown because it was not recorded, in sentences."""
    begin: int
    """`seq` of its first event."""
    end: int
    """`seq` of its last event."""
    trace: RequestTrace
    """The tables it was made from."""

    @property
    def title(self) -> str:
        """The request, its trial and its outcome."""
        return f"{self.request_id} of {self.trial_id}: {self.outcome}"

    @property
    def pool(self) -> tuple[Pool, ...]:
        """Number of pages in each state, from the first snapshot to the request's end."""
        return pool_until(self.trace, self.end)

    @property
    def sections(self) -> list[Section]:
        """The parts of the text in reading order, without empty ones."""
        parts = [
            Section("Why", (self.summary, *self.diagnosis)),
            _verdict(self),
            _timeline(self),
            _finding(self),
            _further(self),
            _token(self),
            _invocations(self),
            _batch(self),
            _peers(self),
            _pages(self),
            _caches(self),
            Section("Not known", self.missing),
            _reproduce(self),
        ]
        return [part for part in parts if part.sentences or (part.table and part.table.rows)]

    def __str__(self) -> str:
        return render("analysis.diagnosis", "explanation.j2", explanation=self).strip("\n")

    def __repr__(self) -> str:
        return f"<Explanation: {self.summary}>"


def _verdict(explained: Explanation) -> Section:
    verdict = explained.verdict
    return Section("Verdict", verdict.sentences if verdict is not None else ())


def _timeline(explained: Explanation) -> Section:
    rows = [(_whole(m.seq), _seconds(m.t_s), m.words) for m in explained.timeline[:_MOMENTS]]
    if (finding := explained.finding) is not None:
        words = f"first finding: {finding.rule} ({finding.cause})"
        rows.append((_whole(finding.seq), _seconds(finding.t_s), words))
    if (wrong := explained.divergence) is not None and wrong.t_s is not None:
        words = f"token {wrong.token_index}, the first wrong one: {wrong.given_text}"
        rows.append((_whole(wrong.seq), _seconds(wrong.t_s), words))
    rows.sort(key=lambda row: (int(row[0]) if row[0] else -1, row[1]))
    notes = _left_out(len(explained.timeline) - _MOMENTS, "later entry", "later entries")
    return Section("Timeline", notes, Table(("event", "s", "what happened"), tuple(rows)))


def _finding(explained: Explanation) -> Section:
    finding = explained.finding
    if finding is None:
        none = ("No rule was broken on this request.",) if explained.trace.recorded else ()
        return Section("First finding", none)
    where = [finding.at]
    if finding.other_request_id:
        where.append(f"other request {finding.other_request_id}")
    if finding.page is not None:
        slot = "" if finding.slot is None else f", slot {finding.slot}"
        where.append(f"page {finding.page}{slot}")
    often = counted(count_of(explained.trace, finding), "time")
    lines = [
        f"{finding.severity}: {finding.rule} ({finding.cause})",
        finding.text,
        f"At {'; '.join(where)}; {often} in this request.",
        *(finding.stack or "").splitlines()[-_STACK:],
    ]
    return Section("First finding", lines)


def _further(explained: Explanation) -> Section:
    """Return the other findings about the request, in order."""
    rows = tuple(
        (_whole(f.seq), _whole(f.invocation_id), f.severity, f"{f.rule} ({f.cause})", f.text)
        for f in explained.findings
        if explained.finding is None
        or (f.rule, f.cause) != (explained.finding.rule, explained.finding.cause)
    )
    columns = ("event", "invocation", "severity", "rule", "finding")
    return Section("Further findings about the request", (), Table(columns, rows))


def _token(explained: Explanation) -> Section:
    wrong = explained.divergence
    if wrong is None:
        return Section("First wrong token")
    where = "" if wrong.invocation_id is None else f" in invocation {wrong.invocation_id}"
    rows = tuple(
        (source, one.words(one.given), one.words(one.right))
        for source, one in (
            (f"the engine{where}", wrong.engine),
            ("the reference decoder", wrong.reference),
        )
        if one is not None
    )
    sentence = (
        f"Token {wrong.token_index} is {wrong.given_text} instead of {wrong.right_text}."
        " Probabilities after the right tokens before it:"
    )
    columns = ("computed by", f"{wrong.given_text} (given)", f"{wrong.right_text} (right)")
    return Section("First wrong token", (sentence,), Table(columns, rows))


def _invocations(explained: Explanation) -> Section:
    answer = explained.request["tokens"] or ()
    wanted = explained.request["reference_tokens"] or ()
    rows = []
    for one in explained.invocations[:_INVOCATIONS]:
        index = -1 if one.token_index is None else one.token_index
        given = answer[index] if 0 <= index < len(answer) else None
        right = wanted[index] if 0 <= index < len(wanted) else None
        rows.append(
            (
                str(one.invocation_id),
                _seconds(one.t_s),
                one.phase,
                f"{one.own} of {len(one.rows)}",
                listed(one.others, most=6),
                _whole(one.own_row.start),
                _length(one.own_row.seq_len, one.own_length),
                _pages_of(one.own_row),
                "" if given is None else token_name(explained.trace, given),
                "" if right in (None, given) else token_name(explained.trace, right),
            )
        )
    if not rows:
        return Section("Invocations")
    notes = ["Length: the row's seq_len, with the request's own length in brackets if it differs."]
    notes += _left_out(len(explained.invocations) - _INVOCATIONS, "later invocation")
    columns = ("invocation", "s", "phase", "row", "with", "start", "length", "block table", "token",
               "right token")  # fmt: skip
    return Section("Invocations", notes, Table(columns, tuple(rows)))


def _batch(explained: Explanation) -> Section:
    """Return all rows of the finding's invocation, else of the wrong token's."""
    if not explained.invocations:
        return Section("")
    ids = [
        one.invocation_id for one in (explained.finding, explained.divergence) if one is not None
    ]
    by_id = {one.invocation_id: one for one in explained.invocations}
    invocation = next((by_id[i] for i in ids if i in by_id), explained.invocations[-1])
    rows = tuple(
        (
            str(row.row),
            row.request_id or "padding",
            str(row.tokens),
            _whole(row.start),
            _length(row.seq_len, invocation.own_length if row is invocation.own_row else None),
            _pages_of(row),
        )
        for row in invocation.rows
    )
    columns = ("row", "request", "tokens", "start", "length", "block table")
    title = f"Invocation {invocation.invocation_id}, a {invocation.phase}, as passed to the device"
    return Section(title, (), Table(columns, rows))


def _peers(explained: Explanation) -> Section:
    rows = tuple(
        (p.request_id, p.outcome or "unknown", str(p.invocations), listed(p.pages, most=12))
        for p in explained.peers[:_PEERS]
    )
    notes = _left_out(len(explained.peers) - _PEERS, "request")
    columns = ("request", "outcome", "shared invocations", "pages in both block tables")
    return Section("Requests in the same batches", notes, Table(columns, rows))


def _pages(explained: Explanation) -> Section:
    rows: list[tuple[str, ...]] = []
    left_out = 0
    for history in explained.pages[:_PAGES]:
        entries = history.around(explained.begin, explained.end)
        left_out += max(len(entries) - _ENTRIES, 0)
        for number, entry in enumerate(entries[:_ENTRIES]):
            page = "" if number else str(history.page)
            rows.append((page, _whole(entry.seq), _seconds(entry.t_s), entry.words))
    notes = [
        *_left_out(left_out, "entry", "entries"),
        *_left_out(len(explained.pages) - _PAGES, "page"),
    ]
    columns = ("page", "event", "s", "what happened")
    return Section("Pages of the request", notes, Table(columns, tuple(rows)))


def _caches(explained: Explanation) -> Section:
    before, after = explained.caches.before, explained.caches.after
    lines = [explained.caches.how] if before is not None or after is not None else []
    lines += [] if before is None else [f"Before: {before}"]
    lines += [] if after is None else [f"After: {after}"]
    if before is not None and after is not None:
        lines.append(f"Change: {after - before}")
    return Section("The cache before and after the request", lines)


def _reproduce(explained: Explanation) -> Section:
    run, planned = explained.trace.run, explained.trace.run.manifest.get("plan")
    if explained.outcome not in FAILURES or not planned:
        return Section("")
    words = ["cachelab", "reproduce", str(run.path), explained.request_id]
    command = shlex.join([*words, "--trial", explained.trial_id, "--format", "issue"])
    return Section("The smallest workload that fails like this, as a script", (command,))


def _left_out(number: int, noun: str, plural: str | None = None) -> tuple[str, ...]:
    return (f"{counted(number, noun, plural)} not shown.",) if number > 0 else ()


def _length(seq_len: int | None, own: int | None) -> str:
    if seq_len is None or own in (None, seq_len):
        return _whole(seq_len)
    return f"{seq_len} ({own})"


def _pages_of(row: BatchRow) -> str:
    return " ".join(map(str, row.table))


def _whole(value: int | None) -> str:
    return "" if value is None else str(value)


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
