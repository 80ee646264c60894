"""Answers in words, computed from a run: what failed, from where on, and how sure that is.

The question was asked before the data: does it fail more often at 4 or more concurrent requests
than below? So that one contrast is tested, once for each configuration, and nothing is picked
afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import pandas as pd

from analysis.stats import (
    CONFIGURATION,
    compare,
    failure_rates,
    holm,
    requests_needed,
    varying,
    wilson,
)
from analysis.store import Run
from analysis.tables import treated

_ALPHA = 0.05
_NAMES = {
    "release": "shortfin {}",
    "device": "{}",
    "prefix_sharing": "prefix sharing {}",
    "page_count": "{} pages",
    "workload": "workload {}",
    "treatments": "{}",
}


def name_of(column: str, value: Any) -> str:
    """Return how a value of a cell's setting is called."""
    return _NAMES[column].format(treated(value) if column == "treatments" else value)


def answer_in_words(run: Run, threshold: int = 4) -> str:
    """Return the answer to "does it fail under concurrency, and from where on?" as Markdown.

    One paragraph for each configuration, then one for every two that differ in one respect only.
    `threshold` is the concurrency from which the report saw failures: below it and from it on are
    the two sides of the test.
    """
    series = _series(run)
    paragraphs = [f"**{item.name}.** {_paragraph(item, threshold)}" for item in series]
    paragraphs += _contrasts(series, threshold)
    return "\n\n".join(paragraphs) or "The run holds no cells, so there is nothing to say."


def answer_in_a_sentence(run: Run, threshold: int = 4) -> str:
    """Return the same answer as one sentence, for the index of a report."""
    series = _series(run)
    clauses = [_clause(item, threshold) for item in series]
    if len(clauses) > 1:
        # What all configurations share stands beside the answer anyway: name what tells them apart.
        apart = [name for name in series[0].key if len({item.key[name] for item in series}) > 1]
        names = [", ".join(name_of(k, item.key[k]) for k in apart) for item in series]
        clauses = [f"{name}: {text}" for name, text in zip(names, clauses, strict=True)]
    sentence = "; ".join(clauses) or "the run holds no cells"
    return (
        sentence if sentence.startswith("shortfin") else sentence[0].upper() + sentence[1:]
    ) + "."


@dataclass(frozen=True)
class _Side:
    """Failures among accepted requests, and cells with a failure among cells."""

    failures: int
    taken: int
    cells_failed: int
    cells: int

    @property
    def rate(self) -> float:
        return self.failures / self.taken if self.taken else float("nan")


@dataclass(frozen=True)
class _Series:
    """One configuration: its failure rates by concurrency, in ascending order."""

    key: dict[str, Any]
    name: str
    rates: pd.DataFrame

    def side(self, levels: Sequence[int]) -> _Side:
        rows = self.rates[self.rates["concurrency"].isin(levels)]
        taken = int((rows["n"] - rows["rejected"]).sum())
        counts = (int(rows[name].sum()) for name in ("failures", "cells_failed", "cells"))
        failures, cells_failed, cells = counts
        return _Side(failures, taken, cells_failed, cells)

    @property
    def levels(self) -> list[int]:
        """Concurrencies at which at least one request was accepted."""
        return [int(level) for level in self.rates.loc[self.rates["rate"].notna(), "concurrency"]]

    def split(self, threshold: int) -> tuple[_Side, _Side]:
        low = [level for level in self.levels if level < threshold]
        return self.side(low), self.side([level for level in self.levels if level >= threshold])


def _series(run: Run) -> list[_Series]:
    columns = list(dict.fromkeys(["release", "prefix_sharing", *varying(run.cells, CONFIGURATION)]))
    rates = failure_rates(run.requests, run.cells, [*columns, "concurrency"])
    result = []
    for values, rows in rates.groupby(columns, sort=True):
        key = dict(zip(columns, values, strict=True))
        name = ", ".join(name_of(column, value) for column, value in key.items())
        result.append(_Series(key, name, rows.sort_values("concurrency")))
    return result


def _paragraph(item: _Series, threshold: int) -> str:
    if not item.levels:
        total = int(item.rates["n"].sum())
        what = f"All {total} requests were rejected" if total else "No request was recorded"
        return f"{what}, so there is no failure rate. {_ends(item)}".strip()
    rows = [row for row in item.rates.to_dict("records") if row["concurrency"] in item.levels]
    failing = [row for row in rows if row["failures"]]
    sentences = []
    if not failing:
        everything = item.side(item.levels)
        highest = max(row["high"] for row in rows)
        sentences.append(
            f"No request failed at {_at(item.levels)} (0 of {everything.taken}); at each of these "
            f"concurrencies a true failure rate of up to {_percent(highest)} would still fit "
            "(95% Wilson interval)."
        )
    else:
        first = int(failing[0]["concurrency"])
        clean = [level for level in item.levels if level < first]
        if clean:
            side = item.side(clean)
            sentences.append(
                f"No request failed at {_at(clean)} (0 of {side.taken}; "
                f"95% interval up to {_percent(wilson(0, side.taken)[1])})."
            )
        seen = ", ".join(_one_rate(row) for row in rows if row["concurrency"] >= first)
        everywhere = all(row["failures"] == row["n"] - row["rejected"] for row in rows)
        if everywhere:
            sentences.append(f"Every request failed, at every concurrency: {seen}.")
        elif clean:
            sentences.append(f"The first failures are at {first}: {seen}.")
        else:
            sentences.append(
                f"Requests failed already at {first}, the lowest concurrency that was run: {seen}."
            )
        if not everywhere:
            sentences.append(_test(*item.split(threshold), threshold))
    sentences.append(_rejections(item))
    sentences.append(_ends(item))
    return " ".join(sentence for sentence in sentences if sentence)


def _test(low: _Side, high: _Side, threshold: int) -> str:
    """Say what Fisher's exact test allows, by request and by cell."""
    if not low.taken or not high.taken:
        side = "below" if not low.taken else "from"
        return f"No request was accepted {side} {threshold}, so the two sides cannot be compared."
    result = compare(high.failures, high.taken, low.failures, low.taken, _ALPHA)
    shares = f"{_percent(high.rate)} against {_percent(low.rate)}"
    shares += f", Fisher's exact test {_p(result.p_value)}"
    if result.verdict == "not enough requests to tell":
        text = f"Whether more fail at {threshold} or more than below: {result.verdict} ({shares})."
        if low.rate != high.rate:
            needed = requests_needed(low.rate, high.rate)
            text += f" About {needed} requests on each side would settle a difference of this size."
        return text
    word = "more" if result.verdict == "higher" else "less"
    text = f"Requests failed {word} often at {threshold} or more than below ({shares})."
    cells = compare(high.cells_failed, high.cells, low.cells_failed, low.cells, _ALPHA)
    text += (
        " Requests of a cell share batches and are not independent; cells are: something failed in "
        f"{high.cells_failed} of {high.cells} cells against {low.cells_failed} of {low.cells} "
        f"({_p(cells.p_value)}"
    )
    enough = cells.verdict != "not enough requests to tell"
    return text + (")." if enough else "; on their own too few cells to tell).")


def _contrasts(series: Sequence[_Series], threshold: int) -> list[str]:
    """Compare every two configurations that differ in one respect, where both accepted requests."""
    pairs = []
    for one, other in combinations(series, 2):
        differing = [name for name in one.key if one.key[name] != other.key[name]]
        levels = [n for n in one.levels if n in other.levels and n >= threshold]
        if len(differing) == 1 and levels:
            pairs.append((one, other, differing[0], levels, one.side(levels), other.side(levels)))
    raw = [compare(b.failures, b.taken, a.failures, a.taken) for *_, a, b in pairs]
    adjusted = holm([result.p_value for result in raw])
    words = []
    for (one, other, name, levels, a, b), p_value in zip(pairs, adjusted, strict=True):
        first, second = (name_of(name, item.key[name]) for item in (one, other))
        same = ", ".join(name_of(k, v) for k, v in one.key.items() if k != name)
        where = f"At {_at(levels)} ({same})"
        shares = (
            f"{_percent(b.rate)}, {b.failures} of {b.taken}, against {_percent(a.rate)}, "
            f"{a.failures} of {a.taken}; Fisher's exact test {_p(p_value)}"
            + (f", adjusted for {len(pairs)} comparisons (Holm)" if len(pairs) > 1 else "")
        )
        if p_value >= _ALPHA:
            words.append(
                f"{where}, whether {second} and {first} differ: "
                f"not enough requests to tell ({shares})."
            )
        else:
            word = "more" if b.rate > a.rate else "less"
            words.append(f"{where}, {second} failed {word} often than {first} ({shares}).")
    return words


def _clause(item: _Series, threshold: int) -> str:
    if not item.levels:
        return (
            "no request was accepted" if int(item.rates["n"].sum()) else "no request was recorded"
        )
    everything = item.side(item.levels)
    rejected = int(item.rates["rejected"].sum())
    aside = f", {rejected} rejected" if rejected else ""
    if not everything.failures:
        return f"no request failed at {_at(item.levels)} (0 of {everything.taken}{aside})"
    if everything.failures == everything.taken:
        counts = f"{everything.failures} of {everything.taken}{aside}"
        return f"every request failed at {_at(item.levels)} ({counts})"
    low, high = item.split(threshold)
    if low.taken and high.taken:
        result = compare(high.failures, high.taken, low.failures, low.taken, _ALPHA)
        counts = (
            f"{_percent(low.rate)} of requests failed below {threshold} concurrent ones "
            f"({low.failures} of {low.taken}) and {_percent(high.rate)} from {threshold} on "
            f"({high.failures} of {high.taken}{aside}; {_p(result.p_value)}"
        )
        if result.verdict == "not enough requests to tell":
            return f"{counts}: {result.verdict})"
        return f"{counts})"
    return (
        f"{_percent(everything.rate)} of requests failed at {_at(item.levels)} "
        f"({everything.failures} of {everything.taken}{aside})"
    )


def _rejections(item: _Series) -> str:
    rows = [row for row in item.rates.to_dict("records") if row["rejected"] and item.levels]
    if not rows:
        return ""
    parts = [f"{row['rejected']} of {row['n']} at {row['concurrency']}" for row in rows]
    return f"Rejected, and not counted: {_list(parts)}."


def _ends(item: _Series) -> str:
    bad, total = int(item.rates["cells_ended_badly"].sum()), int(item.rates["cells"].sum())
    return f"{bad} of {total} cells did not end well." if bad else ""


def _one_rate(row: dict[Any, Any]) -> str:
    return (
        f"{_percent(row['rate'])} at {row['concurrency']} ({row['failures']} of "
        f"{row['n'] - row['rejected']}, {_percent(row['low'])} to {_percent(row['high'])})"
    )


def _at(levels: Sequence[int]) -> str:
    noun = "concurrent request" if list(levels) == [1] else "concurrent requests"
    return f"{_list([str(level) for level in levels])} {noun}"


def _list(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _percent(share: float) -> str:
    """Return a share as percent; never 0% or 100% for what is not exactly that."""
    if share in (0, 1):
        return f"{share:.0%}"
    return f"{share:.1%}" if share < 0.01 or share > 0.99 else f"{share:.0%}"


def _p(value: float) -> str:
    return "p < 0.0001" if value < 0.0001 else f"p = {value:.2g}"
