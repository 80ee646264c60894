"""Suspected causes: each with a workload that shows it, and the treatment that removes it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.runs.store import Run
from analysis.runs.tables import arm_of, is_control
from analysis.sanitizer.recorded import Control
from analysis.shortfin.releases import oldest_first, row_of
from analysis.stats.bounds import holm
from analysis.stats.clustered import engines_to_reach, sign_flip
from analysis.sweep.plan import Plan
from analysis.treatments import TREATMENTS

MOST_REQUESTS = 6
"""Most requests of a demonstration, so that a person can read its whole recording."""
UNANSWERED = ""
"""Rule of a cause that leaves no finding, because the whole process stands still until its end."""
_LEAST_ENGINES, _SPARE = 1, 2
_COLUMNS = (
    "name", "finding", "treatment", "release", "fits", "engines", "found", "pairs", "before",
    "after", "missed",
)  # fmt: skip
_LEAST_TIMEOUT_S, _PATIENCE, _START_S = 5.0, 1.25, 15.0
"""Deadline of a request: this, or this multiple of an answer's usual time if that is longer. A
trial may take its requests' deadlines, and this to start and to stop."""


@dataclass(frozen=True)
class Demonstration:
    """A few requests to a fresh engine."""

    prefix_sharing: str
    page_count: int
    workload: str
    concurrency: int
    rounds: int = 1
    """Requests of each client, one after another."""
    batch_size: int = 4
    prefill_batch_size: int | None = None
    """Batch size of prefills, if they have another one than decodes."""
    max_new_tokens: int = 15

    @property
    def requests(self) -> int:
        """Number of requests."""
        return self.concurrency * self.rounds

    @property
    def sentence(self) -> str:
        """Requests, clients, batch and cache in words."""
        batches = "" if self.batch_size == 4 else f" in batches of {self.batch_size}"
        if self.prefill_batch_size is not None:
            batches += f" and prefills of {self.prefill_batch_size}"
        return (
            f"{self.requests} requests `{self.workload}`, {self.concurrency} at once{batches},"
            f" sharing {self.prefix_sharing}, {self.page_count} pages"
        )

    @property
    def compiled(self) -> list[int]:
        """The batch sizes of both phases."""
        return sorted({self.batch_size, self.prefill_batch_size or self.batch_size})

    @property
    def options(self) -> dict[str, Any]:
        """Options of the engine."""
        if self.prefill_batch_size is None:
            return {}
        return {
            "prefill_batch_sizes": [self.prefill_batch_size],
            "decode_batch_sizes": [self.batch_size],
        }

    def has(self, trials: pd.DataFrame) -> pd.Series[bool]:
        """Return which rows of `trials` are of this demonstration."""
        settings = ["prefix_sharing", "page_count", "workload", "concurrency"]
        alike = (trials[settings] == [getattr(self, name) for name in settings]).all(axis=1)
        return alike & trials["batch_sizes"].map(lambda sizes: list(sizes) == self.compiled)

    def plan(
        self, releases: Sequence[str], arms: Sequence[tuple[str, ...]], repeats: int, seed: int
    ) -> Plan:
        """Return the sweep of the releases with each set of treatments."""
        paces = [row_of(release).pace for release in releases]
        usual_s = max(p.first_token_s + p.further_token_s * self.max_new_tokens for p in paces)
        timeout_s = max(_LEAST_TIMEOUT_S, _PATIENCE * usual_s)
        return Plan(
            releases=tuple(releases), prefix_sharing=(self.prefix_sharing,),
            pages=(self.page_count,), concurrency=(self.concurrency,), workload=self.workload,
            batch_sizes=(self.batch_size,), options=self.options, rounds=self.rounds,
            max_new_tokens=self.max_new_tokens,
            repeats=repeats, seed=seed, treatments=tuple(arms), sanitize=True,
            request_timeout_s=timeout_s, trial_timeout_s=_START_S + self.rounds * timeout_s,
        )  # fmt: skip


@dataclass(frozen=True)
class Cause:
    """A defect of some releases, named by the finding that it leaves first or most often."""

    rule: str
    """A rule of the sanitizer, or UNANSWERED."""
    cause: str
    treatment: str
    """Removes the finding, if this is the cause."""
    shown_by: Demonstration
    needs: str = ""
    """A capability of the releases with this defect, if other defects leave the same finding."""
    beside: tuple[str, ...] = ()
    """Treatments of both arms, without which another defect hides this one; those that fit."""

    @property
    def finding(self) -> str:
        """Rule and cause, in words."""
        return f"{self.rule} ({self.cause})" if self.rule else f"{self.cause} (no finding)"

    @property
    def name(self) -> str:
        """A unique name: finding, treatment and capability."""
        where = f", {self.needs}" if self.needs else ""
        return f"{self.finding}, {self.treatment}{where}"

    def arms(self, release: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the treatments of the two arms on a release: without and with its own."""
        sharing = self.shown_by.prefix_sharing
        bare = tuple(name for name in self.beside if TREATMENTS[name].fits(release, sharing))
        return bare, (*bare, self.treatment)

    def fits(self, release: str, prefix_sharing: str = "") -> bool:
        """Return whether a release can have this defect and its treatment.

        `prefix_sharing` is that of the demonstration if it is not given.
        """
        kind = TREATMENTS[self.treatment]
        return kind.fits(release, prefix_sharing or self.shown_by.prefix_sharing) and (
            not self.needs or self.needs in row_of(release).capabilities
        )


_MIXED = Demonstration("none", 256, "mixed", 4)
_MIXED_TRIE = Demonstration("trie", 256, "mixed", 4)
_ONE_TOKEN = Demonstration("none", 256, "mixed", 2, max_new_tokens=1)
_SMALL_BATCHES = Demonstration("none", 256, "mixed", 6, batch_size=2)
_SINGLE_PREFILLS = Demonstration("none", 256, "mixed", 4, prefill_batch_size=1)
_SHARED = Demonstration("trie", 256, "shared_prefix", 4)
_FEW_PAGES = Demonstration("none", 6, "mixed", 4)
_TIGHT = Demonstration("none", 8, "mixed", 4)
_FEW_PAGES_TRIE = Demonstration("trie", 6, "mixed", 4)
_ONE_BY_ONE = Demonstration("trie", 16, "mixed", 1, 4, max_new_tokens=4)
_LONG_ANSWERS = Demonstration("trie", 24, "continued", 2, 3)
_CONTINUED = Demonstration("trie", 256, "identical_then_continued", 3, 2)
_EVICTED = Demonstration("trie", 17, "evict_after_lookup", 2, 3)

CAUSES: tuple[Cause, ...] = (
    Cause("seq-len-mismatch", "overread", "correct-seq-lens", _MIXED),
    Cause("page-leak", "dropped", "keep-decode-record", _MIXED, "records"),
    Cause("block-table-mismatch", "padding-page", "copy-tokens", _MIXED_TRIE),
    Cause("leaf-set-mismatch", "inner-node", "true-leaves", _MIXED_TRIE),
    Cause("lockset-violation", "ref-counts", "lock-cache", _MIXED_TRIE, "phase-workers"),
    Cause("lockset-violation", "ref-counts", "lock-cache", _MIXED_TRIE, "records"),
    Cause(
        UNANSWERED, "killed because it hung", "serialise-invocations", _SMALL_BATCHES,
        "shared-worker",
    ),
    Cause(
        UNANSWERED, "killed because it hung", "serialise-invocations", _SINGLE_PREFILLS,
        "own-workers",
    ),
    Cause("orphaned-node", "overwritten", "reuse-existing-node", _SHARED),
    Cause(
        "page-leak", "dropped", "free-unpublished-pages", _SHARED, "allocations",
        beside=("reuse-existing-node",),
    ),
    Cause("allocation-list-mismatch", "listed-and-free", "delist-freed-pages", _SHARED),
    Cause("ref-count-mismatch", "not-released", "register-once", _SHARED),
    Cause("empty-answer", "no-tokens", "survive-allocation-failure", _FEW_PAGES, "decoder"),
    Cause(
        "stuck-request", "worker-died", "survive-allocation-failure", _FEW_PAGES, "allocations",
        beside=("requeue-unscheduled",),
    ),
    Cause(
        "stuck-request", "worker-died", "requeue-unscheduled", _TIGHT, "strobes",
        beside=("survive-allocation-failure",),
    ),
    Cause(
        "stuck-request", "batcher-stalled", "requeue-unscheduled", _TIGHT, "phase-workers",
        beside=("survive-allocation-failure",),
    ),
    Cause("stuck-request", "worker-died", "ignore-unreserved", _ONE_TOKEN),
    Cause(
        "ref-count-mismatch", "not-released", "give-back-reference", _FEW_PAGES_TRIE,
        "shared-worker", beside=("true-leaves",),
    ),
    Cause(
        "padding-page-allocated", "allocated", "reserve-padding-page", _ONE_BY_ONE,
        beside=("requeue-unscheduled",),
    ),
    Cause(
        "stuck-request", "batcher-stalled", "survive-allocation-failure", _LONG_ANSWERS, "records"
    ),
    Cause("unprotected-page", "no-reference", "refer-to-published", _CONTINUED),
    Cause("cached-prefix-mismatch", "other-prefix", "keep-decode-record", _CONTINUED),
    Cause("double-allocation", "same-request", "pin-on-lookup", _EVICTED),
)  # fmt: skip
"""Each entry is measured; one that its treatment does not remove is reported as open."""


def treatments_for(rule: str, cause: str, release: str, prefix_sharing: str) -> tuple[str, ...]:
    """Return the treatments that may remove a finding on a release, as `CAUSES` has them."""
    names = [
        one.treatment
        for one in CAUSES
        if (one.rule, one.cause) == (rule, cause) and one.fits(release, prefix_sharing)
    ]
    return tuple(dict.fromkeys(names))


def demonstrations(releases: Sequence[str], seed: int = 0) -> list[Plan]:
    """Return the sweeps of each demonstration, one for all releases with the same causes.

    The releases of a cause together have enough pairs for p <= 0.05 with Holm's adjustment for all
    of `CAUSES`, if all but `_SPARE` pairs differ.
    """
    plans = []
    pairs = engines_to_reach(len(CAUSES)) + _SPARE
    each = {one: math.ceil(pairs / max(1, sum(map(one.fits, releases)))) for one in CAUSES}
    for shown_by in dict.fromkeys(one.shown_by for one in CAUSES):
        own = [one for one in CAUSES if one.shown_by == shown_by]
        alike: dict[tuple[tuple[Cause, ...], tuple[tuple[str, ...], ...]], list[str]] = {}
        for release in releases:
            causes = tuple(one for one in own if one.fits(release))
            arms = dict.fromkeys([(), *(arm for one in causes for arm in one.arms(release))])
            alike.setdefault((causes, tuple(arms)), []).append(release)
        for (causes, sets), those in alike.items():
            repeats = max([_LEAST_ENGINES, *(each[one] for one in causes)])
            plans.append(shown_by.plan(those, sets, repeats, seed))
    return plans


def demonstrated(run: Run) -> pd.DataFrame:
    """Return one row for each cause of `CAUSES` and release in the run of `demonstrations`.

    `run` has the controls, too (`load_run(..., controls=True)`).

    Columns: name, finding, treatment, release, fits (the release can have the defect), engines and
    found (without treatment), pairs (of engines with the same prompts, without and with treatment),
    before and after (pairs in which it was found without and with treatment), p_value (of the cause
    over the pairs of all releases, sign-flip test, adjusted by Holm), missed (controls of these
    arms whose fault was not detected; not for UNANSWERED, which no rule finds) and removed (p at
    most 0.05, in no pair found with the treatment, and no fault missed).

    The recording of an engine that was killed or crashed may end before the finding. Without a
    finding it counts against the treatment: as not found without it, and as found with it.
    """
    rows: list[dict[str, Any]] = []
    differences: dict[str, list[int]] = {one.name: [] for one in CAUSES}
    for one in CAUSES:
        trials = run.trials[one.shown_by.has(run.trials)]
        for release in oldest_first(trials["release"]):
            own, fits = trials[trials["release"] == release], one.fits(release)
            bare, treated = one.arms(release) if fits else ((), (one.treatment,))
            without, with_it = (_engines(run, own, one, arm) for arm in (bare, treated))
            both = without.index.intersection(with_it.index if fits else [])
            differences[one.name] += [int(without[n]) - int(with_it[n]) for n in both]
            rows.append(
                {
                    "name": one.name, "finding": one.finding, "treatment": one.treatment,
                    "release": release, "fits": fits, "engines": len(without),
                    "found": int(without.sum()), "pairs": len(both),
                    "before": int(without[both].sum()), "after": int(with_it[both].sum()),
                    "missed": sum(_missed(run, own, arm) for arm in dict.fromkeys((bare, treated)))
                    if fits and one.rule != UNANSWERED else 0,
                }
            )  # fmt: skip
    frame = pd.DataFrame(rows, columns=_COLUMNS)
    p_values = adjusted(differences)
    totals = frame.groupby("name")[["after", "missed"]].sum().sum(axis=1)
    return frame.assign(
        p_value=frame["name"].map(p_values).astype(float),
        removed=[p_values[name] <= 0.05 and not totals[name] for name in frame["name"]],
    )


def adjusted(differences: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Return the p value of each cause, adjusted for all, from the differences of its pairs.

    A difference is 1 if it was found only without the treatment, -1 if only with it, else 0.
    """
    p_values = holm([sign_flip(each) if each else 1.0 for each in differences.values()])
    return dict(zip(differences, p_values, strict=True))


def _engines(run: Run, trials: pd.DataFrame, cause: Cause, arm: tuple[str, ...]) -> pd.Series[bool]:
    """Return by repeat whether the cause was found in each engine with these treatments."""
    own = trials[[tuple(names) == arm for names in trials["treatments"]]]
    killed = own["exit_signal"].notna()
    if cause.rule == UNANSWERED:
        found = killed & (own["status"] == "hung")
    else:
        rows = run.findings
        rows = rows[(rows["rule"] == cause.rule) & (rows["cause"] == cause.cause)]
        found = own["trial_id"].isin(rows["trial_id"])
    if cause.treatment in arm:
        found |= killed | (own["status"] == "crashed")
    return pd.Series(found.to_numpy(dtype=bool), own["repeat"]).sort_index()


def _missed(run: Run, trials: pd.DataFrame, arm: tuple[str, ...]) -> int:
    """Return the number of controls of an arm whose injected fault was not detected."""
    missed = 0
    for trial in trials.to_dict("records"):
        if is_control(trial["treatments"]) and arm_of(trial["treatments"]) == arm:
            found = run.findings[run.findings["trial_id"] == trial["trial_id"]]
            facts, rows = ({str(k): v for k, v in trial.items()}, found.to_dict("records"))
            missed += Control.of(facts, rows).silent
    return missed
