"""Workloads under which releases fail, and the sweeps that test every hypothesis against one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from analysis.core.errors import EngineError
from analysis.runs.derive import failed_requests
from analysis.runs.schema import FAILURES
from analysis.runs.store import Run
from analysis.sanitizer.recorded import controls_of
from analysis.shortfin.releases import row_of
from analysis.studies.causes.estimates import Measurement, measure
from analysis.studies.causes.hypotheses import Hypothesis, Names, applicable, arms
from analysis.studies.causes.verdicts import Verdict, decide
from analysis.sweep.plan import Plan
from analysis.sweep.prepare import check_lengths
from analysis.sweep.runner import run_sweep
from analysis.treatments import applies, check_names, fixes
from analysis.workloads.named import in_turn


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A workload and settings of the engine under which requests may fail."""

    name: str
    needs: str
    """A capability of a release (`analysis.shortfin.releases.CAPABILITIES`); "" for one's own."""
    prefix_sharing: str
    page_count: int
    workload: str
    concurrency: int
    rounds: int | None
    """Requests of each client, one after another; None for a file, which is sent whole."""
    among: Names | None = None
    """Treatments of the hypotheses to test; None for all that apply."""
    refusals_count: bool = False
    """Whether a refused request failed, because a healthy engine would refuse none here."""
    request_timeout_s: float = 30.0
    release: str = ""
    batch_sizes: tuple[int, ...] = (4,)
    model: str | None = None

    @property
    def failures(self) -> tuple[str, ...]:
        """The outcomes that count as failures."""
        return (*FAILURES, "rejected") if self.refusals_count else FAILURES

    def hypotheses(self) -> list[Hypothesis]:
        """Return the hypotheses to test, in order."""
        return applicable(self.release, self.prefix_sharing, self.among)

    def plan(self, repeats: int, seed: int = 0) -> Plan:
        """Return the sweep that tests them: every arm with the same prompts, in turn."""
        sets = arms(self.hypotheses(), self.release, self.prefix_sharing)
        return self._plan(sets, repeats, seed, self.concurrency, self.rounds)

    def whole_plan(self, concurrency: int, rounds: int, repeats: int, seed: int = 0) -> Plan:
        """Return a sweep with all fixes at once, for a bound on their failure rate.

        Clients send refused requests again, so that every request is answered. `rounds` does not
        apply to a workload file.
        """
        every, each = fixes(self.release, self.prefix_sharing), self.rounds and rounds
        return self._plan((every,), repeats, seed, concurrency, each, resubmit_s=0.05)

    def undone_plan(self, repeats: int, seed: int = 0) -> Plan:
        """Return a sweep without and with UNDO."""
        return self._plan(((), (UNDO,)), repeats, seed, self.concurrency, self.rounds)

    def _plan(
        self, treatments: tuple[Names, ...], repeats: int, seed: int, concurrency: int,
        rounds: int | None, **more: Any,
    ) -> Plan:  # fmt: skip
        return Plan(
            releases=(self.release,), prefix_sharing=(self.prefix_sharing,),
            pages=(self.page_count,), concurrency=(concurrency,), workload=self.workload,
            rounds=rounds, repeats=repeats, seed=seed, treatments=treatments, sanitize=True,
            request_timeout_s=self.request_timeout_s, batch_sizes=self.batch_sizes,
            model=self.model, **more,
        )  # fmt: skip

    def try_all(self, out: Path, repeats: int, seed: int = 0, jobs: int = 2) -> Run:
        """Run its sweep in child processes, `jobs` at a time, and return the run.

        The run is stored beside `out`, in a folder of its own plan.
        """
        plan = self.plan(repeats, seed)
        return run_sweep(plan, plan.place(out), jobs=jobs)

    def measure(self, run: Run) -> list[Measurement]:
        """Return the measurements of its hypotheses in a run of its plan."""
        return measure(
            run.requests, run.trials, run.findings, self.hypotheses(), self.failures,
            invocations=run.invocations, events=run.events, controls=controls_of(run.path),
        )  # fmt: skip


def decide_all(runs: Iterable[tuple[Scenario, Run]], others: int = 0) -> dict[str, list[Verdict]]:
    """Return verdicts by name of the scenario, adjusted for all of them and `others` more tests."""
    measured = {scenario.name: scenario.measure(run) for scenario, run in runs}
    verdicts = iter(decide([one for ones in measured.values() for one in ones], others))
    return {name: [next(verdicts) for _ in ones] for name, ones in measured.items()}


UNDO = "undo-correct-seq-lens"
"""The treatment that reintroduces a cause that later releases have fixed."""
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
_OWN_PAGES: Names = (
    "lock-cache", "one-worker", "requeue-unscheduled", "survive-allocation-failure",
    "reserve-padding-page", "one-at-a-time", "big-pool",
)  # fmt: skip
_TWO_STEPS: Names = (
    "lock-cache", "one-worker", "pin-on-lookup", "register-once", "keep-decode-record",
    "one-at-a-time", "reserve-padding-page",
)  # fmt: skip
_CONTINUED: Names = (
    "lock-cache", "one-worker", "keep-decode-record", "delist-freed-pages", "one-at-a-time",
)  # fmt: skip

_DEADLINE_S = 10.0
"""Enough for a healthy engine on a slow or busy machine; with 5 s some failed there."""
_SCENARIOS = (
    Scenario(
        name="no sharing", needs="allocations", prefix_sharing="none", page_count=256,
        workload="mixed", concurrency=8, rounds=4,
    ),
    Scenario(
        name="trie", needs="allocations", prefix_sharing="trie", page_count=256,
        workload="mixed", concurrency=8, rounds=4,
    ),
    Scenario(
        name="trie, 64 pages", needs="allocations", prefix_sharing="trie", page_count=64,
        workload="shared_prefix", concurrency=8, rounds=4, among=_EVICTIONS,
    ),
    Scenario(
        name="trie, 16 pages", needs="allocations", prefix_sharing="trie", page_count=16,
        workload="shared_prefix", concurrency=4, rounds=8, among=_SHORTAGE,
        request_timeout_s=_DEADLINE_S,
    ),
    Scenario(
        name="no sharing, 24 pages", needs="allocations", prefix_sharing="none", page_count=24,
        workload="mixed", concurrency=8, rounds=2, among=_FEW_PAGES, request_timeout_s=_DEADLINE_S,
    ),
    Scenario(
        name="no sharing, 24 pages", needs="requests", prefix_sharing="none", page_count=24,
        workload="mixed", concurrency=4, rounds=4, among=_OWN_PAGES, request_timeout_s=_DEADLINE_S,
    ),
    Scenario(
        name="no sharing, 64 pages", needs="records", prefix_sharing="none", page_count=64,
        workload="mixed", concurrency=4, rounds=12, refusals_count=True,
        request_timeout_s=_DEADLINE_S,
    ),
    Scenario(
        name="trie, 64 pages", needs="records", prefix_sharing="trie", page_count=64,
        workload="shared_prefix", concurrency=4, rounds=12, refusals_count=True,
        request_timeout_s=_DEADLINE_S,
    ),
    Scenario(
        name="trie, found and evicted", needs="records", prefix_sharing="trie", page_count=17,
        workload="evict_after_lookup", concurrency=2, rounds=12, among=_TWO_STEPS,
        refusals_count=True, request_timeout_s=_DEADLINE_S,
    ),
    Scenario(
        name="trie, answers continued", needs="records", prefix_sharing="trie", page_count=256,
        workload="identical_then_continued", concurrency=4, rounds=12, among=_CONTINUED,
    ),
)  # fmt: skip


def scenarios(release: str, only: list[str] | None = None, most: int = 0) -> list[Scenario]:
    """Return the scenarios of a release: those named in `only`, else the first `most` (0: all).

    Raises EngineError for another name, or if the release has no scenario.
    """
    offered = row_of(release).capabilities
    known = {s.name: replace(s, release=release) for s in _SCENARIOS if s.needs in offered}
    if not known:
        raise EngineError(
            f"No scenario is known in which shortfin {release} fails: add one to {__name__}."
        )
    if strange := [name for name in only or () if name not in known]:
        raise EngineError(
            f"shortfin {release} has no scenario {strange[0]!r}: there are {', '.join(known)}."
        )
    if only:
        return [scenario for name, scenario in known.items() if name in only]
    return list(known.values())[: most or None]


def own_scenario(
    release: str,
    workload: str,
    *,
    prefix_sharing: str = "none",
    pages: int = 256,
    concurrency: int = 8,
    rounds: int = 4,
    treatments: Sequence[str] = (),
    batch_sizes: Sequence[int] = (4,),
    model: str = "",
    rejected_fail: bool = False,
    request_timeout_s: float = 30.0,
) -> Scenario:
    """Return a scenario of one's own, with everything checked before an engine starts.

    `workload` names one or several (`mixed+forks`), or a JSON Lines file, which is sent whole.
    `treatments` are those of the hypotheses to test, by default all that apply. Raises the
    CachelabError of the first value that is wrong.
    """
    for name in treatments:
        [treatment] = check_names([name])
        treatment.check(release, prefix_sharing)
    is_whole = os.path.isfile(workload)
    scenario = Scenario(
        name=f"own, {Path(workload).name if is_whole else workload}",
        needs="",
        release=release,
        prefix_sharing=prefix_sharing,
        page_count=pages,
        workload=str(Path(workload).resolve()) if is_whole else workload,
        concurrency=concurrency,
        rounds=None if is_whole else rounds,
        among=tuple(treatments) or None,
        batch_sizes=tuple(batch_sizes),
        model=model or None,
        refusals_count=rejected_fail,
        request_timeout_s=request_timeout_s,
    )
    check_lengths(scenario.plan(len(in_turn(workload))))
    return scenario


def reintroduced(
    release: str, repeats: int, seed: int = 0, own: Scenario | None = None
) -> Plan | None:
    """Return a sweep without and with UNDO; None on releases that have that cause themselves.

    It is of the scenario `own` if given, else of mixed prompts.
    """
    if not applies([UNDO], release):
        return None
    if own is not None:
        return own.undone_plan(repeats, seed)
    return Plan(
        releases=(release,), pages=(256,), concurrency=(4,), rounds=8, repeats=repeats, seed=seed,
        treatments=((), (UNDO,)), sanitize=True,
    )  # fmt: skip


def first_failure(run: Run) -> tuple[str, str] | None:
    """Return request and trial of the first untreated request that failed, None if none did.

    A wrong answer takes precedence over other failures, which leave less to examine.
    """
    failed = failed_requests(run.requests, run.trials)
    failed = failed[~failed["treatments"].map(bool)]
    return None if failed.empty else (failed["request_id"].iloc[0], failed["trial_id"].iloc[0])
