"""Verdicts in words: each hypothesis of the report, the causes in order, what contradicts it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from analysis.answers import _list, _p, _percent
from analysis.causes.hypotheses import SUSPECTS
from analysis.causes.scenarios import Scenario
from analysis.causes.verdicts import ALPHA, Arm, Verdict
from analysis.stats_paired import Paired
from analysis.store import Run
from analysis.tables import count_requests

_LOCK, _WORKER = "lock-cache", "one-worker"


def verdict_in_words(verdict: Verdict) -> str:
    """Return why a verdict is what it is, in one or two sentences."""
    without, alone, all_but = verdict.without, verdict.alone, verdict.all_but
    if not without.n and not all_but.n:
        return "No request was accepted, so nothing can be said."
    before, after = _counted(without), _counted(alone)
    sentences = [f"Failed: {before} without it, {after} with it alone ({_p(verdict.p_alone)})."]
    left = f"{_counted(all_but)} with every fix but it"
    if verdict.back is not None and verdict.p_back is not None:
        together = _counted(verdict.everything)
        sentences.append(f"{left}, {together} with it too ({_p(verdict.p_back)}).")
        if come := _findings_come_back(verdict):
            sentences.append(come)
    else:
        sentences.append(f"It is none of the fixes: {_counted(verdict.everything)} with these.")
    if verdict.word == "refuted":
        most = max(verdict.effect.high, verdict.comes_back[2])
        sentences.append(f"It accounts for at most {_percent(min(most, 1.0))} of the failures.")
        if verdict.p_alone < ALPHA and verdict.effect.net < 0:
            sentences.append("More failed with it than without.")
    elif verdict.word == "undecided":
        if verdict.p_alone < ALPHA and verdict.effect.net > 0 and not verdict.removes:
            sentences.append("The engines do not agree on it.")
        sentences.append(
            f"Too little to tell; about {verdict.needed} requests of each kind would decide."
        )
    text = " ".join(sentences)
    return text[0].upper() + text[1:]


def ranked(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Return the causes, those of most failures first: what is supported, then what contributes.

    Last come conditions: what makes failures rarer, but mends nothing, so that it is no fix.
    """
    causes = [v for v in verdicts if v.word in ("supported", "contributes")]
    return sorted(causes, key=lambda v: (v.back is None, v.word != "supported", -v.share))


def causes_in_words(scenario: str, verdicts: Sequence[Verdict]) -> str:
    """Return the ranked list of causes of a scenario as Markdown, with evidence, fix and source."""
    causes = ranked(verdicts)
    if not verdicts:
        return f"**{scenario}.** No hypothesis was tried."
    without = verdicts[0].without
    head = f"**{scenario}.** Without any treatment {_counted(without)} failed; with all fixes"
    head += f" {_counted(verdicts[0].everything)}."
    if not causes:
        return f"{head} No cause was found."
    lines = [head, ""]
    for number, verdict in enumerate(causes, 1):
        known = verdict.hypothesis
        source = f"upstream {known.upstream}" if known.upstream else "no upstream change is known"
        fix = f"The fix: {_lower(known.change)[:-1]} ({source})."
        if verdict.back is not None and not verdict.returns:
            fix = f"Without it alone nothing is seen to come back: other fixes do as well. {fix}"
        if verdict.back is None:
            fix = "It is a condition under which causes strike, or another way to mend one."
        lines.append(
            f"{number}. `{known.treatment}` ({verdict.word}): {known.statement}"
            f" {verdict_in_words(verdict)} {_share(verdict)} {fix}"
        )
    return "\n".join(lines)


def against_the_report(scenarios: Mapping[str, Sequence[Verdict]]) -> str:
    """Return where the evidence speaks for or against what the report suspected, as Markdown."""
    sentences = []
    for suspect, title in SUSPECTS.items():
        words = []
        for name, verdicts in scenarios.items():
            mine = [v for v in verdicts if v.hypothesis.suspect == suspect]
            causes = [f"`{v.hypothesis.treatment}`" for v in ranked(mine)]
            if causes:
                words.append(f"{name}: {_list(causes)}")
        found = "; ".join(words) or "no cause was found here"
        sentences.append(f"- **{title}**: {found}.")
    for treatment, what in ((_LOCK, "A lock around the cache"), (_WORKER, "A single worker")):
        tried = {
            name: v
            for name, verdicts in scenarios.items()
            for v in verdicts
            if v.hypothesis.treatment == treatment
        }
        nothing = [name for name, v in tried.items() if v.word == "refuted"]
        if nothing:
            most = max(tried[name].effect.high for name in nothing)
            sentences.append(
                f"- {what} changes nothing ({'; '.join(nothing)}): at most"
                f" {_percent(min(1.0, max(most, 0.0)))} of the failures can be its matter."
            )
    return "\n".join(sentences)


def answer_in_a_sentence(scenarios: Mapping[str, Sequence[Verdict]]) -> str:
    """Return the main cause of each scenario as a sentence, for the index of a report."""
    clauses = []
    for name, verdicts in scenarios.items():
        causes = ranked(verdicts)
        if not causes:
            clauses.append(f"{name}: no cause found")
            continue
        # A fix whose absence brings nothing back mends no cause that the others leave.
        mended = [c.hypothesis.treatment for c in causes if c.returns]
        if not mended:
            clauses.append(f"{name}: none is certain, {causes[0].hypothesis.treatment} helps")
            continue
        clauses.append(f"{name}: {_list(mended)}")
    return f"Causes, by what mends them: {'; '.join(clauses) or 'no scenario was tried'}."


def whole_in_words(arm: Arm) -> str:
    """Say how sure it is that nothing fails with all fixes at once."""
    high = arm.interval[1]
    if not arm.n:
        return "With all fixes no request was accepted."
    bound = f"a true rate of up to {high:.1%} would still fit (95% Wilson interval)"
    return f"With all fixes at once {_counted(arm)} failed; {bound}."


def put_in_words(effect: Paired, treatment: str) -> str:
    """Say whether a cause that was put in made a release fail; first is with it, second without."""
    both = f"{effect.first_failed} of {effect.pairs} requests failed with {treatment}, and"
    both += f" {effect.second_failed} of the same without ({_p(effect.p_value)})"
    if effect.tells(effect.p_value, ALPHA):
        return f"It brings failures back: {both}."
    return f"It was not seen to bring failures back: {both}."


def _findings_come_back(verdict: Verdict) -> str:
    """Say which findings there are with every fix but this one, and not with it too."""
    parts = []
    for name, there, not_here in (
        ("read wrong data", verdict.all_but.wrong_data, verdict.everything.wrong_data),
        ("broke a rule", verdict.all_but.at_risk, verdict.everything.at_risk),
    ):
        if there > not_here:
            noun = "request" if there == 1 else "requests"
            parts.append(f"{there} {noun} {name} (with it {not_here})")
    return f"With every fix but it {_list(parts)}." if parts else ""


def _share(verdict: Verdict) -> str:
    """Say which share of the failures goes with its treatment, and how many it makes alone."""
    sentences = []
    effect = verdict.effect
    if verdict.removes:
        sentences.append(
            f"Mended alone, it takes {_percent(effect.share)} of the failures away"
            f" ({_percent(max(0.0, effect.low))} to {_percent(min(1.0, effect.high))})."
        )
    value, low, high = verdict.comes_back
    if verdict.returns and value == value:
        sentences.append(
            f"Left alone, it makes {_percent(min(1.0, value))} as many as there were"
            f" ({_percent(min(1.0, low))} to {_percent(min(1.0, high))})."
        )
    return " ".join(sentences)


def _counted(arm: Arm) -> str:
    return f"{arm.failures} of {arm.n}"


def _lower(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]


def counted_in_words(scenario: Scenario, run: Run) -> str:
    """Say how many requests failed untreated, as everywhere, and what the verdicts count."""
    bare = run.cells.loc[run.cells["treatments"].map(lambda names: not names), "cell_id"]
    counts = count_requests(run.requests.loc[run.requests["cell_id"].isin(bare), "outcome"])
    text = f"**{scenario.name}.** Untreated, {counts}."
    if scenario.refusals_count:
        text += (
            f" The verdicts count all {counts.failed + counts.rejected} of {counts.asked} that got"
            " no right answer: here an engine that is well rejects none."
        )
    return text
