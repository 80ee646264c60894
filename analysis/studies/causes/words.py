"""The answer of notebook 05 in words: verdicts, ranked causes, and the report's suspects."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial

from analysis.core.templates import paragraph
from analysis.core.wording import markdown_table, short_percent
from analysis.runs.store import Run
from analysis.runs.tables import count_requests
from analysis.stats.bounds import upper_bound
from analysis.stats.clustered import Share
from analysis.stats.paired import Paired
from analysis.studies.causes.estimates import MOST, Arm
from analysis.studies.causes.hypotheses import SUSPECTS
from analysis.studies.causes.scenarios import Scenario
from analysis.studies.causes.verdicts import ALPHA, Verdict
from analysis.studies.wording import exposure_cell, rate_cell

_fill = partial(paragraph, "analysis.studies.causes", "words.j2")
_CAUSES = ("supported", "contributes")
Scenarios = Mapping[str, Sequence[Verdict]]
"""Verdicts by name of the scenario."""


def remark(verdict: Verdict) -> str:
    """Return why a verdict is undecided or what else its arms show; "" if there is nothing."""
    return _fill("remark", verdict, MOST, _findings_come_back(verdict))


def exposure_of(verdict: Verdict) -> str:
    """Return how the arms of a hypothesis compare in exposure, for a table."""
    if verdict.exposures is None:
        return "not recorded"
    distinct = list(dict.fromkeys(verdict.exposures))
    return exposure_cell(distinct, verdict.hypothesis.through)


def ranked(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Return the causes: what is supported, then what contributes, largest share first.

    Conditions come last: treatments that make failures rarer but are no fix of the release.
    """
    causes = [v for v in verdicts if v.status in _CAUSES]
    return sorted(causes, key=lambda v: (v.ablation is None, v.status != "supported", -v.share))


def causes_in_words(scenarios: Scenarios) -> str:
    """Return the scenarios and their causes as two Markdown tables, the largest cause first."""
    causes = [
        {"scenario": name, **_cause(verdict)}
        for name, verdicts in scenarios.items()
        for verdict in ranked(verdicts)
    ]
    tables = [markdown_table([_scenario(*item) for item in scenarios.items()])]
    tables.append(markdown_table(causes) or "No cause was shown.")
    return "\n\n".join(filter(None, tables))


def against_the_report(scenarios: Scenarios) -> str:
    """Return, for each suspect of the report, its hypotheses by verdict, as a Markdown table."""
    every = [verdict for verdicts in scenarios.values() for verdict in verdicts]
    kinds = (("causes", _CAUSES), ("refuted", ("refuted",)), ("undecided", ("undecided",)))
    rows = []
    for suspect, title in SUSPECTS.items():
        own = [v for v in every if v.hypothesis.suspect == suspect]
        asked = Counter(v.hypothesis.treatment for v in own)
        row = {"suspect": title}
        for kind, statuses in kinds:
            met = Counter(v.hypothesis.treatment for v in own if v.status in statuses)
            found = [f"`{name}` in {n} of {asked[name]} scenarios" for name, n in met.items()]
            row[kind] = ", ".join(found) or "none"
        rows.append(row)
    return markdown_table(rows)


def answer_in_a_sentence(
    scenarios: Scenarios, wholes: Mapping[tuple[str, int], Arm] | None = None
) -> str:
    """Return the causes of each scenario, and what fails with all fixes, for an index.

    `wholes` has the arms with all fixes at once, by scenario and number of clients.
    """
    clauses, known = [], set()
    for name, verdicts in scenarios.items():
        causes = ranked(verdicts)
        # A fix is known to be needed only if failures come back without it.
        names = [c.hypothesis.treatment for c in causes if c.returns]
        names = names or [c.hypothesis.treatment for c in causes[:1]]
        if names and names[0] not in known:
            known.add(names[0])
            [meaning] = {
                c.hypothesis.statement for c in causes if c.hypothesis.treatment == names[0]
            }
            names[0] += f" ({meaning[:1].lower()}{meaning[1:].rstrip('.')})"
        clauses.append(f"{name}: {_fill('clause', causes, names, MOST)}")
    return _fill("answer", clauses, list((wholes or {}).values()))


def whole_in_words(
    wholes: Mapping[tuple[str, int], Arm], ran: Mapping[tuple[str, int], str]
) -> str:
    """Return the failure rates with all fixes at once, and their bounds, as a Markdown table.

    Both are by scenario and number of clients; `ran` says where fewer requests ran at once.
    """
    rows = []
    for (name, clients), arm in wholes.items():
        rate = arm.rate
        bound = upper_bound(arm.engines_failed, rate.engines, 0.95)
        rows.append(
            {
                "scenario": name,
                "clients": clients,
                "ran at once": ran.get((name, clients), ""),
                "failed (95% interval)": rate_cell(rate),
                "engines with a failure": f"{arm.engines_failed} of {rate.engines}",
                "their share, at most (95%)": short_percent(bound) if rate.n else "",
            }
        )
    return markdown_table(rows)


def put_in_words(effect: Paired, treatment: str, others: int = 0) -> str:
    """Return whether a cause that was reintroduced made a release fail; first is with it.

    The p value is multiplied by the number of tests, this one and `others`.
    """
    p_value = min(1.0, effect.p_value * (1 + others))
    shown = effect.net > 0 and p_value < ALPHA
    return _fill("put", effect, treatment, p_value, 1 + others, shown)


def counted_in_words(scenario: Scenario, run: Run) -> str:
    """Return how many untreated requests failed, and which of them the verdicts count."""
    bare = run.trials.loc[run.trials["treatments"].map(lambda names: not names), "trial_id"]
    counts = count_requests(run.requests.loc[run.requests["trial_id"].isin(bare), "outcome"])
    text = f"**{scenario.name}.** Untreated, {counts}."
    if scenario.refusals_count:
        text += (
            f" The verdicts count all {counts.failed + counts.rejected} of {counts.asked} that got"
            " no right answer, because a healthy engine rejects none here."
        )
    return text


def _scenario(name: str, verdicts: Sequence[Verdict]) -> dict[str, object]:
    if not verdicts:
        return {"scenario": name, "failed untreated": "no hypothesis was tested"}
    bare, every = verdicts[0].without, verdicts[0].all_fixes
    refused = f"{bare.rejected} and {every.rejected}" if bare.rejected or every.rejected else ""
    causes = ranked(verdicts)
    return {
        "scenario": name,
        "failed untreated": rate_cell(bare.rate),
        "failed with all fixes": rate_cell(every.rate),
        "refused, untreated and with all fixes": refused,
        "causes": ", ".join(f"`{v.hypothesis.treatment}`" for v in causes) or "none shown",
    }


def _cause(verdict: Verdict) -> dict[str, object]:
    hypothesis = verdict.hypothesis
    gone, back = _shares(verdict)
    returns = [_fill("share", back) if back else "", _fill("returns", verdict, MOST)]
    upstream = f"upstream {hypothesis.upstream}" if hypothesis.upstream else ""
    return {
        "cause": f"`{hypothesis.treatment}`",
        "verdict": verdict.status,
        "what goes wrong": hypothesis.statement,
        "failures it removes alone": _fill("share", gone) if gone else "",
        "failures that come back without it": "; ".join(filter(None, returns)),
        "the fix": hypothesis.change if verdict.ablation else "",
        "in a later release": upstream,
    }


def _findings_come_back(verdict: Verdict) -> list[str]:
    """Return findings that occur with every fix but this one, and less often with all fixes."""
    one, other = verdict.leave_one_out, verdict.all_fixes
    parts = []
    for name, there, not_here in (
        ("read wrong data", one.wrong_data, other.wrong_data),
        ("broke a rule", one.at_risk, other.at_risk),
    ):
        if there > not_here:
            noun = "request" if there == 1 else "requests"
            parts.append(f"{there} {noun} {name} (with it {not_here})")
    return parts


def _shares(verdict: Verdict) -> list[Share | None]:
    """Return the share that it removes alone and the share that comes back; None if unknown."""
    shares = [verdict.gone(), Share() if verdict.ablation is None else verdict.comes_back()]
    return [None if math.isnan(one.low) else _clipped(one) for one in shares]


def _clipped(share: Share) -> Share:
    return Share(*(min(1.0, max(0.0, value)) for value in (share.value, share.low, share.high)))
