"""Numbers of each release and setting, and up to which concurrency a setting is safe."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd
from scipy import stats

from analysis.core.wording import counted
from analysis.runs.derive import exposure
from analysis.runs.store import Run
from analysis.sanitizer.findings import WRONG_DATA
from analysis.stats.clustered import Rate, rate, sign_flip
from analysis.stats.rates import failure_rates, per_trial

CACHE = ["prefix_sharing", "page_count"]
SETTING = ["release", *CACHE, "concurrency"]


@dataclass(frozen=True)
class Safety:
    """Up to which concurrency one release with one cache served everything right."""

    key: dict[str, Any]
    """Release, prefix sharing and number of pages."""
    up_to: int
    """Largest concurrency without any problem at it or below; 0 for none."""
    served: Rate
    """Failures among the accepted requests up to there, or of the first level if there is none."""
    rejected: int
    """Requests that it rejected up to there; they are no problem, but no service either."""
    beyond: int
    """Smallest concurrency with a problem; 0 if there was none at any."""
    problems: tuple[str, ...]
    """What happened there."""


def by_setting(run: Run) -> pd.DataFrame:
    """Return one row for each release, prefix sharing, number of pages and concurrency.

    The columns are those of `failure_rates` and: `leaked` and `evicted`, pages per accepted
    request, mean of the engines for which they are known; `token_s`, median seconds per token of a
    completed request; `wrong_data`, engines in which a rule found that wrong data was read.
    """
    rates = failure_rates(run.requests, run.trials, SETTING)
    extras = _of_trials(run).groupby(SETTING, as_index=False).agg(
        leaked=("leaked", "mean"), evicted=("evicted", "mean"), token_s=("token_s", "median"),
        wrong_data=("wrong_data", "sum"),
    )  # fmt: skip
    return rates.merge(extras, on=SETTING, validate="one_to_one")


def causes(run: Run) -> pd.DataFrame:
    """Return, for each cause that a rule found and each release, in how many engines it was found.

    Columns: rule, cause, wrong_data (in any engine), release, found and engines.
    """
    engines = run.trials.groupby("release")["trial_id"].nunique().to_dict()
    found = run.findings.merge(run.trials[["trial_id", "release"]], on="trial_id")
    rows = []
    for (rule, cause), own in found.groupby(["rule", "cause"], sort=True):
        wrong = bool((own["severity"] == WRONG_DATA).any())
        numbers = own.groupby("release")["trial_id"].nunique().to_dict()
        rows += [
            (rule, cause, wrong, release, int(numbers.get(release, 0)), int(count))
            for release, count in engines.items()
        ]
    names = ["rule", "cause", "wrong_data", "release", "found", "engines"]
    return pd.DataFrame(rows, columns=names)


def safety(run: Run) -> list[Safety]:
    """Return up to which concurrency each release and cache had no problem, in their order.

    A problem is a request that failed, an engine that died or stopped answering, a page that was
    lost, and a rule that found wrong data read. A rejected request is none.
    """
    trials = _of_trials(run)
    found = []
    for key, own in trials.groupby(["release", *CACHE], sort=True):
        levels = {
            level: own[own["concurrency"] == level] for level in sorted(set(own["concurrency"]))
        }
        problems = {level: _problems(rows) for level, rows in levels.items()}
        beyond = min((level for level, what in problems.items() if what), default=0)
        good = [level for level in levels if not beyond or level < beyond]
        rows = pd.concat([levels[level] for level in good or [min(levels)]])
        found.append(
            Safety(
                dict(zip(["release", *CACHE], key, strict=True)),
                max(good, default=0),
                rate(rows["failures"].tolist(), rows["taken"].tolist()),
                int(rows["rejected"].sum()),
                beyond,
                problems.get(beyond, ()),
            )
        )
    return found


@dataclass(frozen=True)
class Difference:
    """Failure rate over HTTP minus that in process, over pairs of engines with the same prompts."""

    mean: float
    low: float
    high: float
    """Bounds of the 95% interval (t over pairs)."""
    p_value: float
    """Of a sign-flip test over pairs."""
    pairs: int


def outside_difference(run: Run) -> Difference:
    """Compare the engines in process with the servers, pair by pair of equal prompts.

    Pairs of which one side accepted no request are left out. With fewer than two pairs, the
    interval and the p value are NaN.
    """
    trials = per_trial(run.requests, run.trials)
    trials = trials[trials["taken"] > 0]
    shares = trials.assign(share=trials["failures"] / trials["taken"])
    table = shares.pivot(index=[*SETTING, "repeat"], columns="target", values="share").dropna()
    differences = (table["http"] - table["engine"]).to_numpy()
    count = len(differences)
    if count < 2:
        return Difference(math.nan, math.nan, math.nan, math.nan, 0)
    mean = float(differences.mean())
    around = float(stats.t.ppf(0.975, count - 1) * differences.std(ddof=1) / math.sqrt(count))
    return Difference(mean, mean - around, mean + around, sign_flip(differences), count)


def _problems(trials: pd.DataFrame) -> tuple[str, ...]:
    what = []
    if not trials["taken"].sum():
        what.append("no request was accepted")
    if failed := int(trials["failures"].sum()):
        what.append(f"{failed} of {int(trials['taken'].sum())} requests failed")
    for status, words in (("engine_died", "died"), ("hung", "hung"), ("crashed", "crashed")):
        if number := int((trials["status"] == status).sum()):
            what.append(f"{counted(number, 'engine')} {words}")
    if (trials["leaked"] > 0).any():
        what.append(f"pages lost ({trials['leaked'].mean():.2g} per request)")
    if number := int(trials["wrong_data"].sum()):
        what.append(f"wrong data read in {counted(number, 'engine')}")
    return tuple(what)


def _of_trials(run: Run) -> pd.DataFrame:
    """Return `per_trial` with leaked, evicted, token_s and wrong_data of each engine."""
    trials = per_trial(run.requests, run.trials)
    last = run.snapshots.sort_values("seq").drop_duplicates("trial_id", keep="last")
    leaked = trials["trial_id"].map(last.set_index("trial_id")["leaked"]).astype(float)
    met = exposure(run.trials, run.requests, run.invocations, run.events)
    done = run.requests[run.requests["outcome"].isin(("ok", "wrong"))]
    each = done["latency_s"] / done["tokens"].map(len).clip(lower=1)
    wrong = run.findings.loc[run.findings["severity"] == WRONG_DATA, "trial_id"]
    return trials.assign(
        leaked=leaked / trials["taken"].clip(lower=1),
        evicted=trials["trial_id"].map(met.set_index("trial_id")["evictions"]),
        token_s=trials["trial_id"].map(each.groupby(done["trial_id"]).median()),
        wrong_data=trials["trial_id"].isin(wrong),
    )
