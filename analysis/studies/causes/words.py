"""Verdicts in words: each hypothesis of the report, the causes in order, what contradicts it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from analysis.runs.store import Run
from analysis.runs.tables import count_requests
from analysis.stats.exact import upper_bound
from analysis.stats.exposure import in_words as exposed_in_words
from analysis.stats.paired import Paired
from analysis.studies.causes.hypotheses import SUSPECTS
from analysis.studies.causes.scenarios import Scenario
from analysis.studies.causes.verdicts import ALPHA, MOST, Arm, Verdict
from analysis.studies.reproduce.words import _list, _p, _percent

_LOCK, _WORKER = "lock-cache", "one-worker"


def verdict_in_words(verdict: Verdict) -> str:
    """Return why a verdict is what it is, in a few sentences."""
    without, alone, all_but = verdict.without, verdict.alone, verdict.all_but
    if not without.n and not all_but.n:
        return "No request was accepted, so nothing can be said."
    sentences = [f"Failed: {_counted(without)} without it, {_counted(alone)} with it alone."]
    left = f"{_counted(all_but)} with every fix but it"
    if verdict.back is not None:
        sentences.append(f"{left}, {_counted(verdict.everything)} with it too.")
        if come := _findings_come_back(verdict):
            sentences.append(come)
    else:
        sentences.append(f"It is none of the fixes: {_counted(verdict.everything)} with these.")
    engines = len(verdict.nets)
    sentences.append(
        f"Sign-flip test over {engines} pairs of engines: {_p(verdict.p_adjusted)}, adjusted for"
        f" {verdict.tests} hypotheses (Holm)."
    )
    if verdict.word == "refuted":
        sentences.append(
            f"It accounts for less than {MOST:.0%} of the failures, alone and among all fixes"
            " (sign-flip tests over engines, for all hypotheses at once)."
        )
    if verdict.p_adjusted < ALPHA and sum(verdict.nets) < 0:
        sentences.append("More failed with it than without.")
    if verdict.word == "undecided":
        sentences.append(_undecided(verdict))
    sentences.append(_exposed(verdict))
    text = " ".join(sentence for sentence in sentences if sentence)
    return text[0].upper() + text[1:]


def _undecided(verdict: Verdict) -> str:
    if verdict.because:
        return f"Undecided: {verdict.because}."
    if verdict.needed is None:
        return "Undecided: nothing failed without it, so no number of engines would decide."
    return (
        f"Undecided: about {verdict.needed} engines for each set of treatments would decide it"
        f" (80% power); there were {len(verdict.nets)}."
    )


def _exposed(verdict: Verdict) -> str:
    """Say how the exposure of its arms compares, where the verdict did not say it already."""
    if verdict.exposures is None:
        return "Exposure not recorded."
    if verdict.because:
        return ""
    return exposed_in_words(list(dict.fromkeys(verdict.exposures)), verdict.hypothesis.through)


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
    head += _refused(verdicts[0].without, verdicts[0].everything)
    if not causes:
        return f"{head} No cause was shown."
    lines = [head, ""]
    for number, verdict in enumerate(causes, 1):
        known = verdict.hypothesis
        source = f"upstream {known.upstream}" if known.upstream else "no upstream change is known"
        fix = f"The fix: {_lower(known.change)[:-1]} ({source})."
        if verdict.back is not None and not verdict.returns:
            fix = f"{_needless(verdict)} {fix}"
        if verdict.back is None:
            fix = (
                "It is no fix: whether it ends a condition under which causes act, or mends one"
                " in another way, is not shown."
            )
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
        found = "; ".join(words) or "no cause was shown here"
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
            sentences.append(
                f"- {what} is refuted as the main cause ({'; '.join(nothing)}): less than"
                f" {MOST:.0%} of the failures are its matter."
            )
        if unsure := [name for name, v in tried.items() if v.word == "undecided"]:
            sentences.append(f"- {what} is undecided in: {'; '.join(unsure)}.")
    return "\n".join(sentences)


def answer_in_a_sentence(scenarios: Mapping[str, Sequence[Verdict]]) -> str:
    """Return the main cause of each scenario as a sentence, for the index of a report."""
    clauses = []
    for name, verdicts in scenarios.items():
        causes = ranked(verdicts)
        if not causes:
            clauses.append(f"{name}: no cause shown")
            continue
        # Of a fix whose absence brings nothing back it is not known that it is needed.
        mended = [c.hypothesis.treatment for c in causes if c.returns]
        if not mended:
            helps = f"{name}: none is certain, {causes[0].hypothesis.treatment} helps"
            if causes[0].spared:
                helps += (
                    f" (without it alone less than {MOST:.0%} of the failures come back: for the"
                    " rest the other fixes do as well)"
                )
            clauses.append(helps)
            continue
        clauses.append(f"{name}: {_list(mended)}")
    return f"Causes, by what mends them: {'; '.join(clauses) or 'no scenario was tried'}."


def whole_in_words(arm: Arm) -> str:
    """Say how sure it is that nothing fails with all fixes at once."""
    if not arm.n:
        return "With all fixes no request was accepted."
    found = arm.measured
    failed = sum(failures > 0 for failures, _ in arm.engines)
    how = "over engines" if found.by_engine else "by request only, too narrow for few engines"
    bound = upper_bound(failed, found.engines, 0.95)
    return (
        f"With all fixes at once {_counted(arm)} failed; a true rate of up to {found.high:.1%}"
        f" would still fit (95% interval, {how}), and {failed} of {found.engines} engines with a"
        f" failure bounds such engines at {bound:.0%} (one-sided, 95%)."
    )


def put_in_words(effect: Paired, treatment: str, others: int = 0) -> str:
    """Say whether a cause that was put in made a release fail; first is with it, second without.

    `others` is how many tests are made beside this one: its p value is multiplied by them all.
    """
    p_value = min(1.0, effect.p_value * (1 + others))
    both = f"{effect.first_failed} of {effect.pairs} requests failed with {treatment}, and"
    both += f" {effect.second_failed} of the same without (sign-flip test over"
    both += f" {len(effect.nets)} pairs of engines: {_p(p_value)}"
    both += f", adjusted for {1 + others} tests)" if others else ")"
    if effect.net > 0 and p_value < ALPHA:
        return f"It brings failures back: {both}."
    return f"Undecided whether it brings failures back: {both}."


def _needless(verdict: Verdict) -> str:
    """Say how far a fix is needed beside the others, of one whose absence brings nothing back."""
    text = "That failures come back without it alone is not shown"
    if not verdict.spared:
        return f"{text}, nor that the other fixes do as well."
    return (
        f"{text}: less than {MOST:.0%} of them do (sign-flip test over engines, for all hypotheses"
        " at once), so that for the rest the other fixes do as well."
    )


def _refused(without: Arm, everything: Arm) -> str:
    if not without.rejected and not everything.rejected:
        return ""
    return (
        f" Refused were {without.rejected} requests without any treatment, and"
        f" {everything.rejected} with all fixes."
    )


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
    gone, back = verdict.gone(), verdict.comes_back()
    if not math.isnan(gone.low):
        sentences.append(
            f"Mended alone, it takes {_part(gone.value)} of the failures away"
            f" ({_part(gone.low)} to {_part(gone.high)}, over engines)."
        )
    if verdict.back is not None and not math.isnan(back.low):
        sentences.append(
            f"Left alone, it makes {_part(back.value)} as many as there were, beyond those that"
            f" fail with all fixes ({_part(back.low)} to {_part(back.high)})."
        )
    return " ".join(sentences)


def _part(share: float) -> str:
    return _percent(min(1.0, max(0.0, share)))


def _counted(arm: Arm) -> str:
    return f"{arm.failures} of {arm.n}"


def _lower(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]


def counted_in_words(scenario: Scenario, run: Run) -> str:
    """Say how many requests failed untreated, as everywhere, and what the verdicts count."""
    bare = run.trials.loc[run.trials["treatments"].map(lambda names: not names), "trial_id"]
    counts = count_requests(run.requests.loc[run.requests["trial_id"].isin(bare), "outcome"])
    text = f"**{scenario.name}.** Untreated, {counts}."
    if scenario.refusals_count:
        text += (
            f" The verdicts count all {counts.failed + counts.rejected} of {counts.asked} that got"
            " no right answer: here an engine that is well rejects none."
        )
    return text
