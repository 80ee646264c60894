"""Answers in words, computed from a run: what failed, from where on, and how sure that is.

The question was asked before the data: does it fail more often at 4 or more concurrent requests
than below? So that one contrast is tested, once for each configuration, and nothing is picked
afterwards. Engines are what is independent: each test is on theirs, and Holm's method adjusts the p
values for all tests of the answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import pandas as pd

from analysis.runs.derive import exposure
from analysis.runs.store import Run
from analysis.runs.tables import treated
from analysis.stats.clustered import Rate, engines_needed, permutation, rate, sign_flip
from analysis.stats.exposure import acts_through, changes
from analysis.stats.exposure import in_words as exposed_in_words
from analysis.stats.rates import CONFIGURATION, failure_rates, holm, per_trial, varying

_ALPHA = 0.05
_PAIRED = ["concurrency", "repeat"]
_THROUGH = {"prefix_sharing": ("hits", "evictions", "pages"), "page_count": ("evictions", "pages")}
"""Exposures that a setting is about: that they differ is no objection to a difference."""
_NAMES = {
    "release": "shortfin {}",
    "device": "{}",
    "prefix_sharing": "prefix sharing {}",
    "page_count": "{} pages",
    "workload": "workload {}",
    "treatments": "{}",
}


def name_of(column: str, value: Any) -> str:
    """Return how a value of a trial's setting is called."""
    return _NAMES[column].format(treated(value) if column == "treatments" else value)


def answer_in_words(run: Run, threshold: int = 4) -> str:
    """Return the answer to "does it fail under concurrency, and from where on?" as Markdown.

    One paragraph for each configuration, then one for every two that differ in one respect only.
    `threshold` is the concurrency from which the report saw failures: below it and from it on are
    the two sides of the test.
    """
    series, tests = _tested(run, threshold)
    paragraphs = [f"**{item.name}.** {_paragraph(item, threshold, tests)}" for item in series]
    paragraphs += _contrasts(run, series, threshold, tests)
    return "\n\n".join(paragraphs) or "The run holds no trials, so there is nothing to say."


def answer_in_a_sentence(run: Run, threshold: int = 4) -> str:
    """Return the same answer as one sentence, for the index of a report."""
    series, tests = _tested(run, threshold)
    clauses = [_clause(item, threshold, tests) for item in series]
    if len(clauses) > 1:
        # What all configurations share stands beside the answer anyway: name what tells them apart.
        apart = [name for name in series[0].key if len({item.key[name] for item in series}) > 1]
        names = [", ".join(name_of(k, item.key[k]) for k in apart) for item in series]
        clauses = [f"{name}: {text}" for name, text in zip(names, clauses, strict=True)]
    sentence = "; ".join(clauses) or "the run holds no trials"
    return (
        sentence if sentence.startswith("shortfin") else sentence[0].upper() + sentence[1:]
    ) + "."


@dataclass(frozen=True)
class _Series:
    """One configuration: its failure rates by concurrency, in ascending order, and its trials."""

    key: dict[str, Any]
    name: str
    rates: pd.DataFrame
    trials: pd.DataFrame
    """As of `per_trial`."""

    def side(self, levels: Sequence[int]) -> Rate:
        """Return the failure rate over all engines that were asked at these concurrencies."""
        own = self.trials[self.trials["concurrency"].isin(levels)]
        return rate(own["failures"].tolist(), own["taken"].tolist())

    @property
    def levels(self) -> list[int]:
        """Concurrencies at which at least one request was accepted."""
        return [int(level) for level in self.rates.loc[self.rates["rate"].notna(), "concurrency"]]

    @property
    def ran(self) -> list[int]:
        """Those at which the engine worked on as many requests at once as it was offered."""
        return [n for n in self.levels if _ran(self._row(n)) == n]

    def where(self, levels: Sequence[int], *more: str) -> str:
        """Name the concurrencies that ran, then in brackets what was offered beyond, and more."""
        rows = [self._row(level) for level in levels]
        notes = [note for note in (_offered(rows), *more) if note]
        return f"{_at(sorted({_ran(row) for row in rows}))} ({'; '.join(notes)})"

    def left_out(self) -> str:
        """Say what ran less than it was offered, and is in no test; "" if nothing did."""
        rows = [self._row(level) for level in self.levels if level not in self.ran]
        return _offered(rows)

    def _row(self, level: int) -> dict[Any, Any]:
        [row] = self.rates[self.rates["concurrency"] == level].to_dict("records")
        return row

    def split(self, threshold: int) -> tuple[Rate, Rate]:
        """Return the rates below the threshold and from it on, of what the engine ran."""
        low = [level for level in self.ran if level < threshold]
        return self.side(low), self.side([level for level in self.ran if level >= threshold])

    def p_value(self, threshold: int) -> float:
        """Return the p value that these two are alike; NaN where they cannot be compared."""
        own = self.trials[self.trials["concurrency"].isin(self.ran)]
        later = own["concurrency"] >= threshold
        if own["failures"].sum() in (0, own["taken"].sum()):
            return math.nan
        return permutation(own["failures"].tolist(), own["taken"].tolist(), later.tolist())


class _Tests:
    """All tests of an answer, adjusted for each other."""

    def __init__(self, p_values: dict[Any, float]) -> None:
        known = {key: p for key, p in p_values.items() if p == p}
        self.count = len(known)
        self.adjusted = dict(zip(known, holm(list(known.values())), strict=True))

    def words(self, key: Any) -> str:
        """Say the p value of one."""
        if key not in self.adjusted:
            return "no two of which differ"
        more = f", adjusted for {self.count} tests (Holm)" if self.count > 1 else ""
        return f"{_p(self.adjusted[key])}{more}"


def _tested(run: Run, threshold: int) -> tuple[list[_Series], _Tests]:
    series = _series(run)
    p_values: dict[Any, float] = {item.name: item.p_value(threshold) for item in series}
    for one, other, _, levels in _comparable(series, threshold):
        nets = _differences(one, other, levels)["net"]
        # Where every pair of engines agrees, no arrangement of them could have told anything, so
        # that no claim is risked (R. E. Tarone 1990, Biometrics 46:515).
        p_values[one.name, other.name] = sign_flip(nets.tolist()) if nets.any() else math.nan
    return series, _Tests(p_values)


def _series(run: Run) -> list[_Series]:
    columns = list(
        dict.fromkeys(["release", "prefix_sharing", *varying(run.trials, CONFIGURATION)])
    )
    rates = failure_rates(run.requests, run.trials, [*columns, "concurrency"])
    trials = dict(list(per_trial(run.requests, run.trials).groupby(columns, sort=True)))
    result = []
    for values, rows in rates.groupby(columns, sort=True):
        key = dict(zip(columns, values, strict=True))
        name = ", ".join(name_of(column, value) for column, value in key.items())
        result.append(_Series(key, name, rows.sort_values("concurrency"), trials[values]))
    return result


def _paragraph(item: _Series, threshold: int, tests: _Tests) -> str:
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
            f"No request failed at {item.where(item.levels, f'0 of {everything.n}')}; at each of "
            f"these concurrencies a true failure rate of up to {_percent(highest)} would still fit "
            f"({_interval(rows)})."
        )
    else:
        first = int(failing[0]["concurrency"])
        clean = [level for level in item.levels if level < first]
        if clean:
            side = item.side(clean)
            counts = f"0 of {side.n}", f"95% interval up to {_percent(side.high)}"
            sentences.append(f"No request failed at {item.where(clean, *counts)}.")
        seen = ", ".join(_one_rate(row) for row in rows if row["concurrency"] >= first)
        everywhere = all(row["failures"] == row["n"] - row["rejected"] for row in rows)
        if everywhere:
            sentences.append(f"Every request failed, at every concurrency: {seen}.")
        elif clean:
            sentences.append(f"The first failures are at {_level(failing[0])}: {seen}.")
        else:
            sentences.append(
                f"Requests failed already at {_level(failing[0])}, the lowest concurrency that was"
                f" run: {seen}."
            )
        sentences.append(f"Intervals are {_interval(rows)}{_correlation(item)}.")
        if not everywhere:
            sentences.append(_test(item, threshold, tests))
    sentences.append(_rejections(item))
    sentences.append(_ends(item))
    return " ".join(sentence for sentence in sentences if sentence)


def _interval(rows: Sequence[Mapping[Any, Any]]) -> str:
    few = [_level(row) for row in rows if not row["by_engine"]]
    if not few:
        return "95%, over engines"
    if len(few) == len(rows):
        return "95%, by request only and too narrow, for there are fewer than five engines"
    return f"95%, over engines; by request only and too narrow at {_list(few)}"


def _correlation(item: _Series) -> str:
    """Say how much requests of an engine share: the ICC over all concurrencies, each for itself."""
    known = item.rates["icc"].dropna()
    if known.empty:
        return ""
    if len(known) == 1 or known.min() == known.max():
        return f" (intraclass correlation {known.iloc[0]:.2f})"
    return f" (intraclass correlation {known.min():.2f} to {known.max():.2f})"


def _test(item: _Series, threshold: int, tests: _Tests) -> str:
    """Say what the permutation test over engines allows."""
    low, high = item.split(threshold)
    if not low.n or not high.n:
        side = f"below {threshold}" if not low.n else f"from {threshold} on"
        what = f"no request was accepted {side}"
        if any((level < threshold) == (not low.n) for level in item.levels):
            what = f"{side} no engine ran as many requests at once as it was offered"
        return f"{what[0].upper()}{what[1:]}, so the two sides cannot be compared."
    shares = f"{_percent(high.value)} against {_percent(low.value)}"
    engines = f"{high.engines} against {low.engines} engines"
    if refused := item.left_out():
        engines += f", without what refused requests ({refused})"
    if item.name not in tests.adjusted:
        return (
            f"Whether more fail at {threshold} or more than below is undecided ({shares};"
            f" {engines}, two on each side are the least)."
        )
    shares += f"; permutation test over {engines}, {tests.words(item.name)}"
    if tests.adjusted[item.name] >= _ALPHA:
        text = f"Whether more fail at {threshold} or more than below is undecided ({shares})."
        if low.value != high.value:
            needed = _needed(low, high, tests.count)
            text += f" About {needed} engines on each side would decide it (80% power)."
        return text
    word = "more" if high.value > low.value else "less"
    return f"Requests failed {word} often at {threshold} or more than below ({shares})."


def _needed(low: Rate, high: Rate, tests: int) -> int:
    """Return about how many engines on each side show a difference as large as that seen."""
    spread = 0.0
    for side in (low, high):
        size = side.n / side.engines
        used = 0.0 if side.icc != side.icc else side.icc
        spread += max(side.value * (1 - side.value), 1 / side.n) * (1 + (size - 1) * used) / size
    needed = engines_needed(high.value - low.value, spread**0.5, tests)
    return max(needed, min(low.engines, high.engines) + 1)


Comparable = tuple[_Series, _Series, str, list[int]]


def _comparable(series: Sequence[_Series], threshold: int) -> list[Comparable]:
    """Return every two configurations that differ in one respect, and where both can be compared.

    That is where both engines ran what they were offered: one that refuses requests was asked
    less, and fails less for that alone.
    """
    found = []
    for one, other in combinations(series, 2):
        differing = [name for name in one.key if one.key[name] != other.key[name]]
        levels = [n for n in one.ran if n in other.ran and n >= threshold]
        if len(differing) == 1 and levels:
            found.append((one, other, differing[0], levels))
    return found


def _differences(one: _Series, other: _Series, levels: Sequence[int]) -> pd.DataFrame:
    """Return a row for each two engines that were asked the same, with their net difference."""
    columns = [*_PAIRED, "failures", "taken", "trial_id"]
    sides = [
        item.trials.loc[item.trials["concurrency"].isin(levels), columns] for item in (one, other)
    ]
    both = sides[0].merge(sides[1], on=_PAIRED, suffixes=("", "_other"))
    return both.assign(net=both["failures_other"] - both["failures"])


def _contrasts(run: Run, series: Sequence[_Series], threshold: int, tests: _Tests) -> list[str]:
    """Compare every two configurations that differ in one respect, engine by engine."""
    words = []
    for one, other, name, levels in _comparable(series, threshold):
        first, second = (name_of(name, item.key[name]) for item in (one, other))
        same = ", ".join(name_of(k, v) for k, v in one.key.items() if k != name)
        where = f"At {_at(levels)} ({same})"
        both = _differences(one, other, levels)
        pairs, nets = len(both), both["net"]
        counts = (both[c].sum() for c in ("failures_other", "taken_other", "failures", "taken"))
        b, b_n, a, a_n = (int(count) for count in counts)
        shares = (
            f"{_percent(b / b_n)}, {b} of {b_n}, against {_percent(a / a_n)}, {a} of {a_n};"
            f" sign-flip test over {pairs} pairs of engines, {tests.words((one.name, other.name))}"
        ) if a_n and b_n else "nothing in common was accepted"  # fmt: skip
        objection, moved = _moved(run, both, name)
        left = [n for n in one.levels if n in other.levels and n >= threshold and n not in levels]
        aside = ""
        if left:
            offers = _list([str(n) for n in left])
            aside = f" Left out is where {offers} were offered and one of them ran fewer."
        if objection:
            text = f"{where}, whether {second} and {first} differ is undecided: {objection}"
            text += f" ({shares}). {moved}"
        elif tests.adjusted.get((one.name, other.name), 1.0) >= _ALPHA:
            text = f"{where}, whether {second} and {first} differ is undecided ({shares})."
            if nets.sum():
                spread = max(float(nets.std(ddof=1)) if pairs > 1 else 0.0, 1.0)
                needed = engines_needed(float(nets.mean()), spread, tests.count)
                text += f" About {max(needed, pairs + 1)} pairs of engines would decide it."
            text += f" {moved}"
        else:
            word = "more" if nets.sum() > 0 else "less"
            text = f"{where}, {second} failed {word} often than {first} ({shares}). {moved}"
        words.append(text.rstrip() + aside)
    return words


def _moved(run: Run, both: pd.DataFrame, name: str) -> tuple[str, str]:
    """Say what speaks against a difference, "" if nothing does; then the rest of the exposures.

    What failed less often may have been exposed to less; of recorded runs. What the setting itself
    is about, `name`, is no objection.
    """
    if run.invocations.empty or run.events.empty:
        return "", "Exposure not recorded."
    met = exposure(run.trials, run.requests, run.invocations, run.events)
    sides = []
    for column in ("trial_id", "trial_id_other"):
        own = both[[*_PAIRED, column]].rename(columns={column: "trial_id"})
        sides.append(own.merge(met, on="trial_id"))
    if both["net"].sum() > 0:
        sides.reverse()  # from the one that failed more often to the other
    found, through = changes(sides[0], sides[1], _PAIRED), _THROUGH.get(name, ())
    fell = [change.words for change in found if change.fell and change.name not in through]
    if fell:
        return f"exposure changed ({'; '.join(fell)})", acts_through(found, through)
    return "", exposed_in_words(found, through)


def _clause(item: _Series, threshold: int, tests: _Tests) -> str:
    if not item.levels:
        return (
            "no request was accepted" if int(item.rates["n"].sum()) else "no request was recorded"
        )
    everything = item.side(item.levels)
    rejected = int(item.rates["rejected"].sum())
    aside = f", {rejected} rejected" if rejected else ""
    if not everything.failures:
        return f"no request failed at {item.where(item.levels, f'0 of {everything.n}{aside}')}"
    if everything.failures == everything.n:
        counts = f"{everything.failures} of {everything.n}{aside}"
        return f"every request failed at {item.where(item.levels, counts)}"
    low, high = item.split(threshold)
    if low.n and high.n:
        counts = (
            f"{_percent(low.value)} of requests failed below {threshold} concurrent ones "
            f"({low.failures} of {low.n}) and {_percent(high.value)} from {threshold} on "
            f"({high.failures} of {high.n}{aside}"
        )
        if refused := item.left_out():
            counts += f"; without what refused requests: {refused}"
        if item.name not in tests.adjusted:
            return f"{counts}: undecided, too few engines)"
        counts += f"; {tests.words(item.name)}"
        return f"{counts}: undecided)" if tests.adjusted[item.name] >= _ALPHA else f"{counts})"
    counts = f"{everything.failures} of {everything.n}{aside}"
    return f"{_percent(everything.value)} of requests failed at {item.where(item.levels, counts)}"


def _rejections(item: _Series) -> str:
    rows = [row for row in item.rates.to_dict("records") if row["rejected"] and item.levels]
    if not rows:
        return ""
    parts = [f"{row['rejected']} of {row['n']} when offered {row['concurrency']}" for row in rows]
    return f"Rejected, and not counted: {_list(parts)}."


def _ends(item: _Series) -> str:
    bad, total = int(item.rates["trials_ended_badly"].sum()), int(item.rates["trials"].sum())
    return f"{bad} of {total} trials did not end well." if bad else ""


def _one_rate(row: dict[Any, Any]) -> str:
    offered = f"offered {row['concurrency']}; " if _ran(row) < row["concurrency"] else ""
    return (
        f"{_percent(row['rate'])} at {_ran(row)} ({offered}{row['failures']} of "
        f"{row['n'] - row['rejected']}, {_percent(row['low'])} to {_percent(row['high'])})"
    )


def ran_in_words(requests: pd.DataFrame, trials: pd.DataFrame) -> str:
    """Say where engines ran fewer requests at once than they were offered; "" if nowhere."""
    levels = per_trial(requests, trials).groupby("concurrency", as_index=False)
    return _offered(levels.agg({"refused": "sum", "at_once": "max"}).to_dict("records"))


def _ran(row: Mapping[Any, Any]) -> int:
    """Return how many requests ran at once at most, of a row of `failure_rates`.

    Where nothing was refused, so many as were offered, even if they followed each other so fast
    that none overlapped.
    """
    less = row["refused"] and 0 < row["at_once"] < row["concurrency"]
    return int(row["at_once"] if less else row["concurrency"])


def _offered(rows: Sequence[Mapping[Any, Any]]) -> str:
    """Say what was offered and ran less, such as "offered 8 and 16: ran 4"; "" if nothing."""
    offers: dict[int, list[str]] = {}
    for row in rows:
        if _ran(row) < row["concurrency"]:
            offers.setdefault(_ran(row), []).append(str(row["concurrency"]))
    return ", ".join(f"offered {_list(offered)}: ran {ran}" for ran, offered in offers.items())


def _level(row: Mapping[Any, Any]) -> str:
    """Name the concurrency of a row by what ran."""
    ran = _ran(row)
    return str(ran) if ran == row["concurrency"] else f"{ran} (offered {row['concurrency']})"


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
