"""An explanation in words: as plain text, and as the HTML that Jupyter shows."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from analysis.diagnosis.divergence import Belief, token_name
from analysis.diagnosis.journey import Flown, Row, listed
from analysis.diagnosis.layout import Section, Table, html_table, percent, plain_table

if TYPE_CHECKING:
    from analysis.diagnosis.explanation import Explanation

_INVOCATIONS, _ENTRIES, _PAGES, _FELLOWS, _MOMENTS = 40, 14, 12, 12, 40
"""Most rows of a kind that are shown."""
_STACK = 5


def sections_of(told: Explanation) -> list[Section]:
    """Return the parts of an explanation in the order in which they are read."""
    parts = [
        Section("Why", (told.what, *told.because)),
        _moments(told),
        _finding(told),
        _further(told),
        _token(told),
        _invocations(told),
        _meeting(told),
        _fellows(told),
        _pages(told),
        _cache(told),
        Section("Not known", told.lacking),
    ]
    return [part for part in parts if part.sentences or part.table is not None]


def as_text(told: Explanation) -> str:
    """Return it as plain text."""
    lines = [_title(told), "=" * len(_title(told))]
    for section in sections_of(told):
        lines += ["", section.title, *(f"  {sentence}" for sentence in section.sentences)]
        if section.table is not None:
            lines += plain_table(section.table)
    return "\n".join(lines)


def as_html(told: Explanation, picture: str = "") -> str:
    """Return it as HTML without scripts; `picture` goes below the reasons."""
    parts = [f"<h3>{escape(_title(told))}</h3>"]
    for number, section in enumerate(sections_of(told)):
        body = "".join(f"<p style='margin:.2em 0'>{escape(s)}</p>" for s in section.sentences)
        body += "" if section.table is None else html_table(section.table)
        if number == 0:
            parts += [body, picture]
        else:
            opened = " open" if number < 4 else ""
            title = f"<summary><b>{escape(section.title)}</b></summary>"
            parts.append(f"<details{opened}>{title}{body}</details>")
    return f'<div style="max-width:980px;line-height:1.45">{"".join(parts)}</div>'


def _title(told: Explanation) -> str:
    return f"{told.request_id} of {told.trial_id}: {told.outcome}"


def _moments(told: Explanation) -> Section:
    rows = [(_whole(m.seq), _seconds(m.t_s), m.words) for m in told.moments[:_MOMENTS]]
    if (finding := told.finding) is not None:
        words = f"first finding: {finding.rule} ({finding.cause})"
        rows.append((_whole(finding.seq), _seconds(finding.t_s), words))
    if (wrong := told.divergence) is not None and wrong.t_s is not None:
        words = f"token {wrong.place}, the first wrong one: {wrong.given_text}"
        rows.append((_whole(wrong.seq), _seconds(wrong.t_s), words))
    rows.sort(key=lambda row: (int(row[0]) if row[0] else -1, row[1]))
    left_out = len(told.moments) - _MOMENTS
    note = (f"{left_out} later moments are left out.",) if left_out > 0 else ()
    table = Table(("event", "s", "what happened"), tuple(rows)) if rows else None
    return Section("Timeline", note, table)


def _finding(told: Explanation) -> Section:
    finding = told.finding
    if finding is None:
        none = "No rule was seen broken on this request." if told.case.recorded else ""
        return Section("First finding", (none,) if none else ())
    where = [finding.at]
    if finding.other_request_id:
        where.append(f"the other request {finding.other_request_id}")
    if finding.page is not None:
        slot = "" if finding.slot is None else f", slot {finding.slot}"
        where.append(f"page {finding.page}{slot}")
    lines = [
        f"{finding.severity}: {finding.rule} ({finding.cause})",
        finding.message,
        f"At {'; '.join(where)}; {_often(finding.count)} on this request.",
    ]
    stack = (finding.stack or "").splitlines()[-_STACK:]
    return Section("First finding", (*lines, *stack))


def _often(count: int | None) -> str:
    return "once" if count in (None, 1) else f"{count} times"


def _further(told: Explanation) -> Section:
    """Return what else was found on the request, in order."""
    first = told.finding
    rows = tuple(
        (_whole(f.seq), _whole(f.invocation_id), f.severity, f"{f.rule} ({f.cause})", f.message)
        for f in told.findings
        if first is None or (f.rule, f.cause) != (first.rule, first.cause)
    )
    columns = ("event", "invocation", "severity", "rule", "what was found")
    return Section("Found on it, too", (), Table(columns, rows) if rows else None)


def _token(told: Explanation) -> Section:
    wrong = told.divergence
    if wrong is None:
        return Section("First wrong token")
    invocation = "" if wrong.invocation_id is None else f" in invocation {wrong.invocation_id}"
    rows = [
        (who, _chance(belief, "given"), _chance(belief, "right"))
        for who, belief in (
            (f"the engine{invocation}", wrong.engine),
            ("the reference decoder", wrong.reference),
        )
        if belief is not None
    ]
    sentence = (
        f"Token {wrong.place} is {wrong.given_text}; right is {wrong.right_text}. Probabilities,"
        " after the same tokens, all right so far:"
    )
    columns = ("", f"{wrong.given_text} (given)", f"{wrong.right_text} (right)")
    return Section("First wrong token", (sentence,), Table(columns, tuple(rows)) if rows else None)


def _chance(belief: Belief, which: str) -> str:
    value = belief.given if which == "given" else belief.right
    if value is None:
        return f"below {percent(belief.at_most)}" if belief.at_most else "-"
    return percent(value)


def _invocations(told: Explanation) -> Section:
    answer = told.request["tokens"] or ()
    wanted = told.request["reference_tokens"] or ()
    rows = []
    for invocation in told.invocations[:_INVOCATIONS]:
        mine, place = invocation.mine, invocation.place
        given = right = None
        if place is not None:
            given = answer[place] if place < len(answer) else None
            right = wanted[place] if place < len(wanted) else None
        rows.append(
            (
                str(invocation.invocation_id),
                _seconds(invocation.t_s),
                invocation.phase,
                f"{invocation.own} of {len(invocation.rows)}",
                listed(invocation.others) or "nobody",
                _whole(mine.start),
                _marked(mine.seq_len, invocation.length),
                " ".join(map(str, mine.table)),
                "" if given is None else token_name(told.case, given),
                "" if right is None or right == given else token_name(told.case, right),
            )
        )
    if not rows:
        return Section("Invocations")
    left_out = len(told.invocations) - _INVOCATIONS
    sentences = ["A length in brackets is the request's own, where it was told another one."]
    sentences += [f"{left_out} later invocations are left out."] if left_out > 0 else []
    columns = ("invocation", "s", "phase", "row", "with", "start", "length", "block table", "gave",
               "right")  # fmt: skip
    return Section("Invocations", tuple(sentences), Table(columns, tuple(rows)))


def _marked(seq_len: int | None, own: int | None) -> str:
    if seq_len is None:
        return ""
    return str(seq_len) if own in (None, seq_len) else f"{seq_len} ({own})"


def _meeting(told: Explanation) -> Section:
    """Return all rows of the invocation of the finding, or of the wrong token."""
    invocation = _invocation_of_interest(told)
    if invocation is None:
        return Section("")
    rows = tuple(_row(row, invocation) for row in invocation.rows)
    columns = ("row", "request", "tokens", "start", "length", "block table")
    title = f"Invocation {invocation.invocation_id}, a {invocation.phase}, as the device got it"
    return Section(title, (), Table(columns, rows))


def _invocation_of_interest(told: Explanation) -> Flown | None:
    wanted = [told.finding.invocation_id] if told.finding is not None else []
    wanted += [told.divergence.invocation_id] if told.divergence is not None else []
    for number in wanted:
        for invocation in told.invocations:
            if invocation.invocation_id == number:
                return invocation
    return told.invocations[-1] if told.invocations else None


def _row(row: Row, invocation: Flown) -> tuple[str, ...]:
    length = invocation.length if row is invocation.mine else None
    return (
        str(row.row),
        row.request_id or "padding",
        str(row.tokens),
        _whole(row.start),
        _marked(row.seq_len, length),
        " ".join(map(str, row.table)),
    )


def _fellows(told: Explanation) -> Section:
    rows = tuple(
        (f.request_id, f.outcome or "unknown", str(f.invocations), listed(f.pages, 12) or "none")
        for f in told.fellows[:_FELLOWS]
    )
    if not rows:
        return Section("")
    left_out = len(told.fellows) - _FELLOWS
    note = (f"{left_out} more shared fewer invocations.",) if left_out > 0 else ()
    columns = ("request", "outcome", "invocations together", "pages in both block tables")
    return Section("Fellow travellers", note, Table(columns, rows))


def _pages(told: Explanation) -> Section:
    rows: list[tuple[str, ...]] = []
    left_out = 0
    for history in told.pages[:_PAGES]:
        entries = history.around(told.begin, told.end)
        left_out += max(len(entries) - _ENTRIES, 0)
        for number, entry in enumerate(entries[:_ENTRIES]):
            page = "" if number else str(history.page)
            rows.append((page, _whole(entry.seq), _seconds(entry.t_s), entry.words))
    notes = [f"{left_out} more entries are left out."] if left_out else []
    if (more := len(told.pages) - _PAGES) > 0:
        notes.append(f"{more} more pages have histories: see `.pages`.")
    table = Table(("page", "event", "s", "what happened"), tuple(rows)) if rows else None
    return Section("Its pages", tuple(notes), table)


def _cache(told: Explanation) -> Section:
    before, after = told.caches.before, told.caches.after
    if before is None and after is None:
        return Section("")
    lines = [told.caches.how]
    lines += [] if before is None else [f"Before: {before}"]
    lines += [] if after is None else [f"After: {after}"]
    if before is not None and after is not None:
        lines.append(f"Change: {after - before}")
    return Section("The cache before and after it", tuple(lines))


def _whole(value: int | None) -> str:
    return "" if value is None else str(value)


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
