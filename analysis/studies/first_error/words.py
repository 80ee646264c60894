"""What the sanitizer found, in words computed from a run's findings, requests and invocations."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analysis.runs.store import Run
from analysis.runs.tables import count_requests
from analysis.sanitizer.findings import AT_RISK, WRONG_DATA
from analysis.sanitizer.recorded import Checked
from analysis.stats.clustered import rate
from analysis.studies.first_error.leads import leads
from analysis.studies.reproduce.words import _list, _percent, name_of

_SETTING = ("release", "prefix_sharing", "treatments")


def findings_in_words(run: Run, checked: Sequence[Checked]) -> str:
    """Return what was found and how early, a paragraph of Markdown for each setting.

    `run` is a sanitized run, `checked` what `check_run` makes of it (its controls are looked at).
    """
    ahead = leads(run)
    paragraphs = []
    for setting in checked:
        name = ", ".join(name_of(column, getattr(setting, column)) for column in _SETTING)
        trials = run.trials[_of(run.trials, setting)]
        requests = run.requests[run.requests["trial_id"].isin(trials["trial_id"])]
        own = ahead[ahead["trial_id"].isin(trials["trial_id"])]
        found = run.findings[run.findings["trial_id"].isin(trials["trial_id"])]
        paragraphs.append(f"**{name}.** {_paragraph(setting, requests, found, own)}")
    return "\n\n".join(paragraphs) or "No trial was checked, so there is nothing to say."


def answer_in_a_sentence(run: Run, checked: Sequence[Checked], also: Sequence[str] = ()) -> str:
    """Return the answer as a sentence, for the index of a report.

    `also` are sentences on what else was asked, to stand behind it.
    """
    if any(setting.void for setting in checked):
        return " ".join(["Void: a planted fault did not set off the alarm.", *also])
    ahead = leads(run)
    clauses = []
    for setting in checked:
        trials = run.trials.loc[_of(run.trials, setting), "trial_id"]
        requests = run.requests[run.requests["trial_id"].isin(trials)]
        accepted = requests[requests["outcome"] != "rejected"]
        found = run.findings[run.findings["trial_id"].isin(trials)]
        read = found.loc[found["severity"] == WRONG_DATA, ["trial_id", "request_id"]]
        met, wrong = (
            len(read.dropna().drop_duplicates()),
            int((accepted["outcome"] == "wrong").sum()),
        )
        own = ahead[ahead["trial_id"].isin(trials) & ahead["invocation_id"].notna()]
        text = f"prefix sharing {setting.prefix_sharing}"
        text += f" with {' + '.join(setting.treatments)}" if setting.treatments else ""
        text += f": {met} of {len(accepted)} requests read"
        text += f" wrong data and {wrong} answered wrong, {len(requests) - len(accepted)} rejected"
        if wrong:
            text += f" ({len(own)} of them after it)"
        risky = len(setting.groups) - len(setting.wrong_data)
        clauses.append(text + (f", {risky} more rules broken" if risky else ""))
    sentence = "; ".join(clauses) or "no trial was checked"
    return " ".join([sentence[0].upper() + sentence[1:] + ".", *also])


def _of(trials: pd.DataFrame, setting: Checked) -> pd.Series:
    names = trials["treatments"].map(lambda value: tuple(value or ()))
    return (
        (trials["release"] == setting.release)
        & (trials["prefix_sharing"] == setting.prefix_sharing)
        & names.map(lambda value: value == setting.treatments)
    )


def _paragraph(
    setting: Checked, requests: pd.DataFrame, found: pd.DataFrame, ahead: pd.DataFrame
) -> str:
    if setting.void:
        return (
            f"Void: of {setting.controls} planted faults {setting.alarms} set off the alarm, so"
            " silence elsewhere means nothing."
        )
    accepted = requests[requests["outcome"] != "rejected"]
    n, wrong = len(accepted), int((accepted["outcome"] == "wrong").sum())
    counts = count_requests(requests["outcome"])
    sentences = [
        f"{wrong} of {n} accepted requests were answered wrong and {counts.failed - wrong} failed"
        f" otherwise, {counts.rejected} rejected."
    ]
    read = found.loc[found["severity"] == WRONG_DATA, ["trial_id", "request_id"]]
    met = len(read.dropna().drop_duplicates())
    share = f"{met} of {n} requests read wrong data"
    if n:
        hit = read.dropna().drop_duplicates().groupby("trial_id").size()
        sizes = accepted.groupby("trial_id").size()
        readers = [min(int(hit.get(trial, 0)), int(size)) for trial, size in sizes.items()]
        shown = rate(readers, sizes.tolist())
        how = "over engines" if shown.by_engine else "by request only, too narrow"
        share += f" ({_percent(shown.low)} to {_percent(shown.high)}, 95% {how})"
    sentences.append(f"{share}.")
    if met:
        first = found[found["severity"] == WRONG_DATA].sort_values(["t_s", "seq"]).iloc[0]
        sentences.append(f"First, of the rule *{first['rule']}*: {first['message']}")
    if wrong:
        sentences.append(_early(ahead, wrong))
    risks = sorted(
        {(r, c) for r, c, s in zip(found["rule"], found["cause"], found["severity"], strict=True)
         if s == AT_RISK}
    )  # fmt: skip
    if risks:
        named = [f"{rule} ({cause}, {_requests(found, rule, cause)})" for rule, cause in risks]
        sentences.append(f"Broken without wrong data being read by it: {_list(named)}.")
    elif not met:
        sentences.append(f"No rule was broken{'' if setting.complete else ' in what was checked'}.")
    sentences += setting.not_checked
    if setting.idle and not setting.controls:
        sentences.append("The planted fault was never injected, so it is not known whether the"
                         " alarm works.")  # fmt: skip
    elif not setting.controls:
        sentences.append("No fault was planted, so it is not known whether the alarm works.")
    return " ".join(sentences)


def _requests(found: pd.DataFrame, rule: str, cause: str) -> str:
    own = found[(found["rule"] == rule) & (found["cause"] == cause)]
    requests = own[["trial_id", "request_id"]].dropna().drop_duplicates()
    if requests.empty:
        count = own["trial_id"].nunique()
        return f"in {count} trial{'s' if count > 1 else ''}"
    return f"{len(requests)} request{'s' if len(requests) > 1 else ''}"


def _early(ahead: pd.DataFrame, wrong: int) -> str:
    known = ahead[ahead["invocation_id"].notna()]
    text = f"{len(known)} of the {wrong} wrong answers came after wrong data was read for them"
    if known.empty:
        return text + "."
    invocations = known["invocations_before"].astype(float)
    earlier = int((invocations > 0).sum())
    return (
        f"{text}, {earlier} of them at least one call before the first wrong token (median"
        f" {invocations.median():g}, at most {invocations.max():g} calls;"
        f" {1e3 * known['seconds_before'].median():.0f} ms)."
    )
