"""Workloads under which a release fails, and the sweep that holds every hypothesis against one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from analysis.core.errors import EngineError
from analysis.runs.store import Run
from analysis.sanitizer.recorded import controls_of
from analysis.shortfin.releases import row_of
from analysis.stats.rates import FAILURES
from analysis.studies.causes.hypotheses import Hypothesis, Names, applicable, arms
from analysis.studies.causes.verdicts import Asked, Verdict, asked, judge
from analysis.sweep.plan import Plan
from analysis.sweep.runner import run_sweep
from analysis.treatments import fixes


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What the engine is asked, and with how many pages."""

    name: str
    needs: str
    """The capability of the releases that fail under it."""
    release: str = ""
    prefix_sharing: str
    page_count: int
    workload: str
    concurrency: int
    rounds: int
    """Requests of each client, one after another."""
    among: Names | None = None
    """Treatments whose hypotheses are tried; None for all that apply."""
    refusals_count: bool = False
    """Whether a refused request failed: so where an engine that is well would refuse none."""
    request_timeout_s: float = 30.0

    @property
    def failures(self) -> tuple[str, ...]:
        """The outcomes that count as failures."""
        return (*FAILURES, "rejected") if self.refusals_count else FAILURES

    def hypotheses(self) -> list[Hypothesis]:
        """Return those that are tried, in order."""
        return applicable(self.release, self.prefix_sharing, self.among)

    def plan(self, repeats: int, seed: int = 0) -> Plan:
        """Return the sweep that tries them: every arm with the same prompts, in turn."""
        return self._plan(
            arms(self.hypotheses(), self.release, self.prefix_sharing), repeats, seed, self.rounds
        )

    def whole_plan(self, concurrency: int, rounds: int, repeats: int, seed: int = 0) -> Plan:
        """Return a sweep with all fixes at once, for a bound on how many fail then.

        Clients send refused requests again, so that as many are answered as are asked.
        """
        every = fixes(self.release, self.prefix_sharing)
        return self._plan((every,), repeats, seed, rounds, concurrency, resubmit_s=0.05)

    def _plan(
        self,
        treatments: tuple[Names, ...],
        repeats: int,
        seed: int,
        rounds: int,
        concurrency: int | None = None,
        resubmit_s: float | None = None,
    ) -> Plan:
        return Plan(
            releases=(self.release,),
            prefix_sharing=(self.prefix_sharing,),
            pages=(self.page_count,),
            concurrency=(concurrency or self.concurrency,),
            workload=self.workload,
            rounds=rounds,
            repeats=repeats,
            seed=seed,
            treatments=treatments,
            sanitize=True,
            request_timeout_s=self.request_timeout_s,
            resubmit_s=resubmit_s,
        )

    def try_all(self, out: Path, repeats: int, seed: int = 0, jobs: int = 2) -> Run:
        """Run its sweep in child processes, `jobs` at a time, and return the run.

        It lies beside `out`, in a place of its plan's own.
        """
        plan = self.plan(repeats, seed)
        return run_sweep(plan, plan.place(out), jobs=jobs)

    def asked(self, run: Run) -> list[Asked]:
        """Return what its sweep measured of its hypotheses, to be judged with those of others."""
        return asked(
            run.requests,
            run.trials,
            run.findings,
            self.hypotheses(),
            self.failures,
            invocations=run.invocations,
            events=run.events,
            controls=controls_of(run.path),
        )


def judge_all(runs: Iterable[tuple[Scenario, Run]], others: int = 0) -> dict[str, list[Verdict]]:
    """Return the verdicts of several scenarios, by their names, each adjusted for all of them.

    `others` is how many tests more are made beside them.
    """
    measured = {scenario.name: scenario.asked(run) for scenario, run in runs}
    judged = iter(judge([one for ones in measured.values() for one in ones], others))
    return {name: [next(judged) for _ in ones] for name, ones in measured.items()}


_EVICTIONS: Names = (
    "correct-seq-lens", "lock-cache", "reuse-existing-node", "copy-tokens", "true-leaves",
    "free-unpublished-pages", "one-at-a-time", "big-pool", "reserve-padding-page", "quarantine",
)  # fmt: skip
_SHORTAGE: Names = (
    "lock-cache", "reuse-existing-node", "give-back-reference", "true-leaves",
    "requeue-unscheduled", "survive-allocation-failure",
)  # fmt: skip
_FEW_PAGES: Names = (
    "correct-seq-lens", "lock-cache", "requeue-unscheduled", "survive-allocation-failure",
    "one-at-a-time", "big-pool",
)  # fmt: skip
_TWO_STEPS: Names = (
    "lock-cache", "one-worker", "pin-on-lookup", "register-once", "keep-decode-record",
    "one-at-a-time", "reserve-padding-page",
)  # fmt: skip

_CONTINUED: Names = (
    "lock-cache", "one-worker", "keep-decode-record", "delist-freed-pages", "one-at-a-time",
)  # fmt: skip

_SCENARIOS = (
    Scenario(
        name="no sharing",
        needs="allocations",
        prefix_sharing="none",
        page_count=256,
        workload="mixed",
        concurrency=8,
        rounds=4,
    ),
    Scenario(
        name="trie",
        needs="allocations",
        prefix_sharing="trie",
        page_count=256,
        workload="mixed",
        concurrency=8,
        rounds=4,
    ),
    Scenario(
        name="trie, 64 pages",
        needs="allocations",
        prefix_sharing="trie",
        page_count=64,
        workload="shared_prefix",
        concurrency=8,
        rounds=4,
        among=_EVICTIONS,
    ),
    Scenario(
        name="trie, 16 pages",
        needs="allocations",
        prefix_sharing="trie",
        page_count=16,
        workload="shared_prefix",
        concurrency=4,
        rounds=8,
        among=_SHORTAGE,
        request_timeout_s=10.0,
    ),
    Scenario(
        name="no sharing, 24 pages",
        needs="allocations",
        prefix_sharing="none",
        page_count=24,
        workload="mixed",
        concurrency=8,
        rounds=2,
        among=_FEW_PAGES,
        request_timeout_s=10.0,
    ),
    Scenario(
        name="no sharing, 64 pages",
        needs="records",
        prefix_sharing="none",
        page_count=64,
        workload="mixed",
        concurrency=4,
        rounds=12,
        refusals_count=True,
        request_timeout_s=5.0,
    ),
    Scenario(
        name="trie, 64 pages",
        needs="records",
        prefix_sharing="trie",
        page_count=64,
        workload="shared_prefix",
        concurrency=4,
        rounds=12,
        refusals_count=True,
        request_timeout_s=5.0,
    ),
    Scenario(
        name="trie, found and evicted",
        needs="records",
        prefix_sharing="trie",
        page_count=17,
        workload="evict_after_lookup",
        concurrency=2,
        rounds=12,
        among=_TWO_STEPS,
        refusals_count=True,
        request_timeout_s=5.0,
    ),
    Scenario(
        name="trie, answers continued",
        needs="records",
        prefix_sharing="trie",
        page_count=256,
        workload="identical_then_continued",
        concurrency=4,
        rounds=12,
        among=_CONTINUED,
    ),
)


def scenarios(release: str, only: list[str] | None = None) -> list[Scenario]:
    """Return the scenarios of a release, all or those named; EngineError for another name."""
    has = row_of(release).capabilities
    known = {s.name: replace(s, release=release) for s in _SCENARIOS if s.needs in has}
    if not known:
        raise EngineError(f"No scenario is known in which shortfin {release} fails: write one.")
    if strange := [name for name in only or () if name not in known]:
        raise EngineError(
            f"shortfin {release} has no scenario {strange[0]!r}: there are {', '.join(known)}."
        )
    return [scenario for name, scenario in known.items() if not only or name in only]


def first_failure(run: Run) -> tuple[str, str] | None:
    """Return request and trial of the first untreated request that failed, None if none did.

    A wrong answer goes before one that was lost or never came, of which less is to be seen.
    """
    bare = run.trials.loc[run.trials["treatments"].map(lambda names: not names), "trial_id"]
    asked = run.requests[run.requests["trial_id"].isin(bare)]
    for outcome in FAILURES:
        failed = asked[asked["outcome"] == outcome]
        if len(failed):
            first = failed.iloc[0]
            return str(first["request_id"]), str(first["trial_id"])
    return None
