"""What a level takes for evidence, from runs on disk whose truth is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support import REPORTED
from synthetic import request_row, trial_row

from analysis.runs.store import RunWriter, new_manifest
from analysis.stats.bounds import least_rate
from analysis.studies.validation.evidence import level_of, read_evidence
from analysis.studies.validation.plan import Settings
from analysis.studies.validation.result import Level

CONTROL, CONTROL_ALARM = "fault:seq-len-short", ("seq-len-mismatch", "underread")
LOST = ("page-leak", "dropped")


def finding(number: int, rule: str, cause: str, request: str | None = "r0", **more: Any) -> dict:
    return {"finding_id": f"f{number}", "rule": rule, "cause": cause, "severity": "at risk",
            "request_id": request, "message": f"Number {number}.", **more}  # fmt: skip


def snapshot(seq: int, **counts: int) -> dict:
    return {"moment": "asked", "seq": seq, "t_s": float(seq), "page_count": 256, "free": 0,
            "live": 0, "cached": 0, "leaked": 0, "nodes": 0, "leaves": 0, "consistent": True,
            "states": "f" * 256, "holders": [], "trie": [], "duplicates": [],
            "conflicts": [], **counts}  # fmt: skip


class Story:
    """A run that grows by a trial at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writer = RunWriter.create(path, new_manifest("test", 0, plan={}))

    def trial(
        self,
        name: str,
        outcomes: tuple[str, ...] = ("ok",) * 8,
        findings: tuple[dict, ...] = (),
        last: dict | None = None,
        retries: int = 0,
        **columns: Any,
    ) -> None:
        requests = [
            request_row(trial_id=name, request_id=f"r{i}", outcome=outcome, retries=retries,
                        submitted_s=float(i))
            for i, outcome in enumerate(outcomes)
        ]  # fmt: skip
        snapshots = [snapshot(9, **(last or {"free": 256})), snapshot(0, free=256)]
        events = [{"seq": i, "t_s": i / 1e9, "kind": "acquire", "free_pages": free, "pages": [1]}
                  for i, free in enumerate((250, 200, 230))]  # fmt: skip
        tables = {"snapshots": snapshots, "events": events, "findings": findings}
        self.writer.write_trial(
            trial_row(trial_id=name, **columns),
            requests,
            **{n: [{"trial_id": name, **row} for row in rows] for n, rows in tables.items()},
        )

    def level(self, tolerated: dict | None = None, needed: int = 8) -> Level:
        rate = 1.0001 * least_rate(needed)
        settings = Settings(release=REPORTED, rate=rate, tolerate=tolerated or {})
        assert settings.needed == needed
        return level_of(settings, 4, read_evidence(self.path, settings.tolerate), "level-04")


def control(story: Story, alarmed: bool = True) -> None:
    found = (finding(1, *CONTROL_ALARM, severity="wrong data"),) if alarmed else ()
    story.trial("control", ("wrong",) * 4, found, treatments=[CONTROL])


def test_a_clean_run_makes_a_clean_level(tmp_path: Path) -> None:
    story = Story(tmp_path / "run")
    control(story)
    story.trial("a", retries=2, peak_rss_bytes=1000, workload="multi_turn", concurrency=4)
    story.trial("b", ("ok", "ok", "rejected"), peak_rss_bytes=3000, concurrency=4)
    level = story.level(needed=10)
    assert level.verdict == "clean"
    # What the control did counts for nothing but the alarm.
    assert (level.accepted, level.rejected, level.retries, level.trials) == (10, 1, 16, 2)
    assert (level.controls, level.detected, level.failed_trials) == (1, 1, 0)
    assert (level.peak_rss_bytes, level.pages_in_use, level.page_count) == (3000, 56, 256)
    assert level.failing is None
    # Requests of a second each, sent a second apart, and a control that does not count.
    assert (level.workloads, level.at_once) == ({"multi_turn": 1, "mixed": 1}, 1)
    assert story.level(needed=11).verdict == "undecided"


def test_a_fault_that_found_nothing_to_strike_says_nothing(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.trial("c", ("ok",) * 4)
    story.trial("control", ("ok",) * 4, treatments=[CONTROL], injected=False)
    level = story.level()
    assert (level.controls, level.detected, level.verdict) == (0, 0, "undecided")
    assert level.faults == (CONTROL,)


def test_a_control_that_stays_silent_makes_it_void(tmp_path: Path) -> None:
    story = Story(tmp_path / "run")
    control(story, alarmed=False)
    story.trial("a")
    assert story.level().verdict == "void"


def test_failures_are_counted_by_outcome_and_the_first_is_named(tmp_path: Path) -> None:
    story = Story(tmp_path / "run")
    story.trial("a")
    story.trial("b", ("ok", "ok", "wrong", "timeout", "wrong", "rejected"),
               (finding(1, "seq-len-mismatch", "overread", "r0",
                        severity="wrong data"),))  # fmt: skip
    level = story.level()
    assert level.verdict == "failed"
    assert level.failures == {"wrong": 2, "timeout": 1}
    assert (level.failed, level.accepted, level.failed_trials) == (3, 13, 1)
    assert level.failing == ("b", "r2")


def test_findings_fail_a_level_and_the_worst_is_explained(tmp_path: Path) -> None:
    story = Story(tmp_path / "run")
    control(story)
    story.trial("a", findings=(finding(1, *LOST, "r1"), finding(2, *LOST, "r2")))
    beyond = finding(1, "seq-len-mismatch", "overread", "r5", severity="wrong data")
    story.trial("b", findings=(finding(2, *LOST, "r1"), beyond))
    level = story.level()
    assert level.verdict == "failed"
    assert [(f.name, f.severity, f.requests, f.trials) for f in level.findings] == [
        ("seq-len-mismatch (overread)", "wrong data", 1, 1),
        ("page-leak (dropped)", "at risk", 3, 2),
    ]
    assert level.failing == ("b", "r5")


def test_what_is_tolerated_fails_nothing_and_is_told_with_its_reason(tmp_path: Path) -> None:
    story = Story(tmp_path / "run")
    control(story)
    story.trial("a", findings=(finding(1, *LOST),))
    level = story.level({LOST: "it is a trial"})
    assert level.verdict == "clean"
    [found] = level.tolerated
    assert (found.rule, found.reason, found.requests) == ("page-leak", "it is a trial", 1)
    assert story.level({("page-leak", "another"): "it is a trial"}).verdict == "failed"


def test_pages_that_are_out_at_rest_fail_it_even_where_no_rule_says_so(tmp_path: Path) -> None:
    story = Story(tmp_path / "run")
    control(story)
    story.trial("a", last={"free": 200, "cached": 53, "leaked": 2, "live": 1})
    level = story.level()
    assert (level.verdict, level.leaked, level.failed_trials) == ("failed", 3, 1)
    assert level.failing == ("a", "")


def test_engines_that_ended_badly_or_were_not_watched_are_no_evidence(tmp_path: Path) -> None:
    story = Story(tmp_path / "run")
    control(story)
    story.trial("a", status_detail="The recording was full.")
    level = story.level()
    assert (level.verdict, level.unchecked) == ("undecided", ("The recording was full.",))
    story.trial("b", ("ok", "engine_died"), status="crashed", status_detail="Ended by SIGSEGV.")
    level = story.level()
    assert (level.verdict, level.endings) == ("failed", ("Ended by SIGSEGV.",))


def test_a_run_is_read_on_as_it_grows_and_nothing_is_read_where_none_is(tmp_path: Path) -> None:
    assert read_evidence(tmp_path / "nowhere", {}) == []
    story = Story(tmp_path / "run")
    story.trial("a")
    story.trial("b", ("wrong",))
    assert [item.trial_id for item in read_evidence(story.path, {}, {"a"})] == ["b"]
