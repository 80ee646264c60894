"""The answers of notebook 09 as tables and sentences."""

from __future__ import annotations

from functools import partial

import pandas as pd

from analysis.core.templates import paragraph
from analysis.core.wording import (
    capitalised,
    counted,
    listed,
    markdown_table,
    p_value,
    short_percent,
)
from analysis.runs.store import Run
from analysis.shortfin.releases import oldest_first
from analysis.stats.configurations import setting_name
from analysis.stats.rates import failure_rates
from analysis.studies.releases.catalogue import CAUSES, MOST_REQUESTS, Cause
from analysis.studies.releases.estimates import Safety, outside_difference, safety
from analysis.studies.wording import rate_cell
from analysis.treatments import TREATMENTS

_fill = partial(paragraph, "analysis.studies.releases", "words.j2")


def safety_in_words(run: Run) -> str:
    """Return which release is safe for what, as a Markdown table computed from the run."""
    return markdown_table([_row(one) for one in safety(run)])


def answer_in_a_sentence(run: Run, shown: pd.DataFrame, outside: Run) -> str:
    """Return which releases had no problem, for the index of a report.

    And how many causes the frame `shown` of `demonstrated` has, and how much the failure rates of
    the run `outside` differ over HTTP and in process.
    """
    found = safety(run)
    releases = list(dict.fromkeys(one.key["release"] for one in found))
    own = {name: [one for one in found if one.key["release"] == name] for name in releases}
    safe = []
    for name in releases:
        if not any(one.beyond for one in own[name]):
            rejected = sum(one.rejected for one in own[name])
            safe.append(f"{name} (it rejected {rejected} requests)" if rejected else name)
    partly = [
        f"{name} up to {least}"
        for name in releases
        if any(one.beyond for one in own[name]) and (least := min(one.up_to for one in own[name]))
    ]
    causes = shown.drop_duplicates("name")["removed"]
    counts = int(causes.sum()), len(causes)
    return _fill("answer", safe, partly, len(releases), counts, outside_difference(outside))


def causes_in_words(found: pd.DataFrame) -> str:
    """Return the causes with the first and the last release that had them; `causes` made it."""
    releases = list(dict.fromkeys(found["release"]))
    rows = []
    for (rule, cause), own in found.groupby(["rule", "cause"], sort=True):
        seen = own[own["found"] > 0]
        places = [releases.index(release) for release in seen["release"]]
        gaps = [releases[n] for n in range(min(places), max(places)) if n not in places]
        rows.append(
            {
                "rule (cause)": f"{rule} ({cause})",
                "severity": "wrong data read" if own["wrong_data"].any() else "at risk",
                "first": releases[min(places)],
                "last": releases[max(places)],
                "not found in between": ", ".join(gaps),
                "in engines of these releases": f"{seen['found'].sum()} of {seen['engines'].sum()}",
            }
        )
    return markdown_table(rows)


def demonstrated_in_words(found: pd.DataFrame) -> str:
    """Return each cause with its releases, workload and treatment; `demonstrated` made the frame.

    First those whose finding the treatment removes, then those that are open.
    """
    rows: dict[bool, list[dict[str, object]]] = {True: [], False: []}
    for cause in CAUSES:
        own = found[found["name"] == cause.name]
        if own.empty:
            continue
        seen = oldest_first(own.loc[own["fits"] & (own["found"] > 0), "release"])
        rows[bool(own["removed"].all())].append(
            {
                "finding": cause.finding,
                "hypothesis": TREATMENTS[cause.treatment].hypothesis,
                "releases": " to ".join(dict.fromkeys([seen[0], seen[-1]])) if seen else "none",
                "later releases": _later(cause, seen, own) if seen else "",
                "shown by": cause.shown_by.sentence,
                "treatment": f"`{cause.treatment}`",
                "engines with it, untreated and treated": (
                    f"{own['before'].sum()} and {own['after'].sum()} of {own['pairs'].sum()}"
                ),
                "p": p_value(float(own["p_value"].iloc[0])),
                "faults missed": own["missed"].sum() or "",
            }
        )
    parts = [
        _fill("demonstrated", len(rows[True]), MOST_REQUESTS) if rows[True] else "",
        markdown_table(rows[True]),
        _fill("open_causes", len(rows[False])) if rows[False] else "",
        markdown_table(rows[False]),
    ]
    return "\n\n".join(filter(None, parts))


def _later(cause: Cause, seen: list[str], own: pd.DataFrame) -> str:
    """Return whether releases after the last one with a cause have it, and the upstream change."""
    releases = oldest_first(own["release"])
    later = releases[releases.index(seen[-1]) + 1 :]
    if not later:
        return f"not fixed in {seen[-1]}"
    rows = own[own["release"].isin(later)]
    engines = counted(int(rows["engines"].sum()), "engine")
    change = TREATMENTS[cause.treatment].upstream
    fixed = f"fixed by {change}: " if change else ""
    if rows["found"].any():
        return f"{fixed}in {rows['found'].sum()} of {engines}, of another cause"
    return f"{fixed}in none of {engines}"


def outside_in_words(run: Run) -> str:
    """Return the failure rates in process and over HTTP as a table, and their difference."""
    by = ["release", "prefix_sharing", "target"]
    rates = failure_rates(run.requests, run.trials, by).set_index(by)
    rows = [
        {
            "setting": setting_name(dict(zip(by[:2], key, strict=True))),
            "in process": _rate(rates.loc[(*key, "engine")]),
            "over HTTP": _rate(rates.loc[(*key, "http")]),
        }
        for key in dict.fromkeys(index[:2] for index in rates.index)
    ]
    said = capitalised(_fill("difference", outside_difference(run)))
    return f"{markdown_table(rows)}\n\n{said}."


def _rate(row: pd.Series) -> str:
    accepted = int(row["n"] - row["rejected"])
    if not accepted:
        return f"none accepted, {int(row['rejected'])} rejected"
    bounds = f"{short_percent(row['low'])} to {short_percent(row['high'])}"
    rejected = f", {int(row['rejected'])} rejected" if row["rejected"] else ""
    return f"{int(row['failures'])} of {accepted} ({bounds}){rejected}"


def _row(one: Safety) -> dict[str, object]:
    return {
        "release": one.key["release"],
        "prefix sharing": one.key["prefix_sharing"],
        "pages": one.key["page_count"],
        "no problem up to": one.up_to or "-",
        "failed there": rate_cell(one.served) if one.up_to else "",
        "engines": one.served.engines if one.up_to else "",
        "rejected": one.rejected if one.up_to and one.rejected else "",
        "first problem at": one.beyond or "",
        "which": listed(one.problems) if one.problems else "",
    }
