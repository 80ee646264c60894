"""The answer of notebook 05 in sentences: verdicts, ranked causes, and the report's suspects."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

from analysis.core.templates import paragraph
from analysis.core.wording import listed
from analysis.runs.store import Run
from analysis.runs.tables import count_requests
from analysis.stats.bounds import upper_bound
from analysis.stats.clustered import Share
from analysis.stats.paired import Paired
from analysis.studies.causes.estimates import MOST, Arm
from analysis.studies.causes.hypotheses import SUSPECTS
from analysis.studies.causes.scenarios import Scenario
from analysis.studies.causes.verdicts import ALPHA, Verdict
from analysis.studies.wording import exposure_in_words, interval_basis

_fill = partial(paragraph, "analysis.studies.causes", "words.j2")
_RACES = {"lock-cache": "A lock around the cache", "one-worker": "A single worker"}


def verdict_in_words(verdict: Verdict) -> str:
    """Return the evidence for a verdict, in a few sentences."""
    exposed = "Exposure not recorded."
    if verdict.exposures is not None:
        distinct = list(dict.fromkeys(verdict.exposures))
        exposed = exposure_in_words(distinct, verdict.hypothesis.through)
        exposed = "" if verdict.objection else exposed
    return _fill("verdict", verdict, MOST, _findings_come_back(verdict), exposed)


def ranked(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Return the causes: what is supported, then what contributes, largest share first.

    Conditions come last: treatments that make failures rarer but are no fix of the release.
    """
    causes = [v for v in verdicts if v.status in ("supported", "contributes")]
    return sorted(causes, key=lambda v: (v.ablation is None, v.status != "supported", -v.share))


def causes_in_words(scenario: str, verdicts: Sequence[Verdict]) -> str:
    """Return the ranked causes of a scenario as Markdown, with evidence, fix and source."""
    if not verdicts:
        return f"**{scenario}.** No hypothesis was tested."
    causes = ranked(verdicts)
    arms = verdicts[0].without, verdicts[0].all_fixes
    head = f"**{scenario}.** {_fill('scenario', *arms, causes)}"
    lines = [
        f"{number}. " + _fill("cause", v, verdict_in_words(v), *_shares(v), MOST)
        for number, v in enumerate(causes, 1)
    ]
    return "\n".join([head, "", *lines] if lines else [head])


def against_the_report(scenarios: Mapping[str, Sequence[Verdict]]) -> str:
    """Return the evidence for and against each suspect of the report, as Markdown."""
    lines = []
    for suspect, title in SUSPECTS.items():
        found = []
        for name, verdicts in scenarios.items():
            own = [v for v in verdicts if v.hypothesis.suspect == suspect]
            if causes := [f"`{v.hypothesis.treatment}`" for v in ranked(own)]:
                found.append(f"{name}: {listed(causes)}")
        lines.append(f"- **{title}**: {'; '.join(found) or 'no cause was shown here'}.")
    for treatment, what in _RACES.items():
        where: dict[str, list[str]] = {"refuted": [], "undecided": []}
        for name, verdicts in scenarios.items():
            for v in verdicts:
                if v.hypothesis.treatment == treatment and v.status in where:
                    where[v.status].append(name)
        if where["refuted"]:
            lines.append(
                f"- {what} is refuted as the main cause ({'; '.join(where['refuted'])}): it"
                f" accounts for less than {MOST:.0%} of the failures."
            )
        if where["undecided"]:
            lines.append(f"- {what} is undecided in: {'; '.join(where['undecided'])}.")
    return "\n".join(lines)


def answer_in_a_sentence(scenarios: Mapping[str, Sequence[Verdict]]) -> str:
    """Return the main cause of each scenario as a sentence, for the index of a report."""
    clauses = []
    for name, verdicts in scenarios.items():
        causes = ranked(verdicts)
        # A fix is known to be needed only if failures come back without it.
        needed = [c.hypothesis.treatment for c in causes if c.returns]
        clauses.append(f"{name}: {_fill('clause', causes, needed, MOST)}")
    return f"Causes, by their fixes: {'; '.join(clauses) or 'no scenario was tested'}."


def whole_in_words(arm: Arm) -> str:
    """Return the failure rate with all fixes at once, and its upper bounds."""
    rate = arm.rate
    bound = upper_bound(arm.engines_failed, rate.engines, 0.95)
    return _fill("whole", arm, rate, interval_basis(rate), bound)


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
