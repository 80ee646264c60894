"""Verdicts, words and JSON of staged validations of known truth."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import REPORTED
from synthetic_validations import (
    ALL,
    ALONE,
    BEYOND,
    CLEAN,
    FAILED,
    ISOLATED,
    LEAKS,
    TOO_FEW,
    VOID,
    change,
    level,
    validation,
)

from analysis.stats.bounds import requests_to_see, upper_bound
from analysis.studies.validation.plan import Settings, ValidationError
from analysis.studies.validation.result import (
    FindingGroup,
    Isolated,
    StagedValidation,
)
from analysis.studies.validation.words import (
    answer_in_a_sentence,
    in_words,
    level_row,
    singles_in_words,
)

SHARES = st.floats(0.001, 0.5)
LEVELS = (2, 4, 8, 16, 32)


def rows_of(text: str) -> list[dict[str, str]]:
    """Return the rows of the Markdown table in a text."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    return [dict(zip(head, row, strict=True)) for row in rows]


@pytest.mark.parametrize(
    ("name", "verdict", "status"),
    [
        ("clean", "validated", 0),
        ("failed", "failed", 4),
        ("too few", "undecided", 3),
        ("leaks", "failed", 4),
        ("void", "void", 3),
        ("alone", "failed", 4),
    ],
)
def test_a_validation_comes_to_what_its_level_came_to(name: str, verdict: str, status: int) -> None:
    assert (ALL[name].verdict, ALL[name].exit_status) == (verdict, status)


def test_a_validation_is_validated_only_if_every_level_was_run() -> None:
    assert validation(*CLEAN.results[:-1]).verdict == "undecided"
    assert validation(isolated=None).verdict == "undecided"
    assert replace(CLEAN, isolated=None).verdict == "validated"
    assert replace(CLEAN, isolated=Isolated(None, problem="It died.")).verdict == "undecided"
    partly = replace(CLEAN, isolated=replace(ISOLATED, complete=False))
    assert partly.verdict == "undecided"
    assert "interleavings, not all there are" in in_words(partly)
    assert "The rest takes more time." in in_words(partly)


@pytest.mark.parametrize(
    "change",
    [
        {"failures": {"wrong": 1}},
        {"failures": {"engine_died": 1}},
        {"findings": (BEYOND,)},
        {"leaked": 1},
        {"endings": ("The engine died.",)},
    ],
)
def test_one_thing_wrong_fails_a_level_whether_or_not_the_alarm_was_tried(change: dict) -> None:
    assert level(2).verdict == "clean"
    assert level(2, **change).verdict == "failed"
    assert level(2, detected=0, **change).verdict == "failed"
    assert level(2, accepted=3, controls=0, detected=0, **change).verdict == "failed"


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({"accepted": 298}, "undecided"),
        ({"accepted": 299}, "clean"),
        ({"rejected": 5000, "accepted": 298}, "undecided"),
        ({"retries": 5000}, "clean"),
        ({"detected": 0}, "void"),
        ({"controls": 0, "detected": 0}, "undecided"),
        ({"unchecked": ("The recording was full.",)}, "undecided"),
        ({"tolerated": (replace(BEYOND, reason="it is a trial"),)}, "clean"),
    ],
)
def test_silence_counts_only_with_an_alarm_that_works_and_enough_requests(
    change: dict, verdict: str
) -> None:
    assert level(2, **change).verdict == verdict


@given(rate=SHARES, confidence=st.floats(0.5, 0.999))
def test_as_many_requests_as_are_needed_bring_the_bound_to_the_rate(
    rate: float, confidence: float
) -> None:
    needed = requests_to_see(rate, confidence)
    assert upper_bound(0, needed, confidence) <= rate * (1 + 1e-9)
    if needed > 1:
        assert upper_bound(0, needed - 1, confidence) > rate


@given(st.integers(1, 400), st.data(), st.floats(0.5, 0.999))
def test_the_bound_lies_above_the_rate_and_grows_with_failures(n, data, confidence) -> None:
    k = data.draw(st.integers(0, n))
    bound = upper_bound(k, n, confidence)
    assert k / n <= bound <= 1
    if k:
        assert upper_bound(k - 1, n, confidence) < bound
        # P(at most k of n) at the bound is what the confidence leaves.
        if k < n:
            tail = sum(math.comb(n, i) * bound**i * (1 - bound) ** (n - i) for i in range(k + 1))
            assert tail == pytest.approx(1 - confidence, rel=1e-6)


def test_a_bound_of_nothing_is_no_bound_and_of_the_impossible_an_error() -> None:
    assert upper_bound(0, 0, 0.95) == 1
    with pytest.raises(ValueError, match="k must lie between"):
        upper_bound(3, 2, 0.95)


@pytest.mark.parametrize(
    "changes",
    [{"confidence": 1.0}, {"rate": 0.0}, {"levels": ()}, {"levels": (4, 2)}, {"levels": (0, 2)}],
)
def test_a_validation_that_makes_no_sense_is_refused(changes: dict) -> None:
    with pytest.raises(ValidationError):
        change(CLEAN, **changes)


def test_the_words_say_what_was_shown_and_how_sure_it_is() -> None:
    text = in_words(CLEAN)
    assert "validated up to 32 at once" in text
    assert "a failure rate above 1% would have shown with 95% confidence" in text
    assert "33,776 interleavings, all there are" in text
    rows = rows_of(text)
    assert [row["level"] for row in rows] == ["cache alone", *(f"{n} at once" for n in LEVELS)]
    for row in rows[1:]:
        assert row["verdict"] == "clean"
        assert row["requests failed"] == "0 of 320, at most 0.93%"
        assert row["engines failed"] == "0 of 10, at most 26%"
        assert (row["rules broken"], row["pages leaked"]) == ("0", "0")
        assert row["injected faults detected"] == "1 of 1"
    assert "The bound on requests holds only if requests are independent" in text
    assert "requests that share batches are not" in text
    assert "not begun" not in text


MIX = {"mixed": 4, "multi_turn": 3, "reported": 3}


def test_a_bound_of_several_workloads_is_said_to_be_that_of_their_mix() -> None:
    mixed = validation(
        *[level(n, workloads=MIX) for n in (2, 4, 8, 16, 32)], workload="+".join(MIX)
    )
    none = "No single workload is bounded, with too few engines each."
    text = in_words(mixed)
    assert [row["engines failed"] for row in rows_of(text)[1:]] == ["0 of 10, at most 26%"] * 5
    asked = "Engines for each workload: 4 mixed, 3 multi_turn, 3 reported."
    assert text.count(f"{asked} {none}") == 1
    other = validation(*mixed.results[:4], level(32, workloads={"mixed": 5, "reported": 5}))
    assert f"- 2 at once, 4 at once, 8 at once and 16 at once: {asked} {none}" in in_words(other)
    assert "- 32 at once: Engines for each workload: 5 mixed, 5 reported." in in_words(other)
    assert "for the mix of workloads at that level and for no workload alone" in text
    bound = "the share of engines at 26%, in the mix of 3 workloads and in no single one"
    assert bound in text
    assert bound in answer_in_a_sentence([mixed])
    # One workload of which nothing is known but one engine is no ground for a bound of its own.
    one = validation(level(2, workloads={"mixed": 9, "reported": 1}))
    assert "9 mixed, 1 reported. reported alone is not bounded, with too few" in in_words(one)
    enough = in_words(validation(level(2, workloads={"mixed": 5, "reported": 5})))
    assert "5 mixed, 5 reported." in enough
    assert "not bounded" not in enough
    assert "the mix" not in in_words(CLEAN)


@given(st.lists(st.floats(0, 0.9), min_size=1, max_size=12))
def test_a_bound_over_a_mix_holds_for_the_mean_of_its_rates(rates: list[float]) -> None:
    # Nothing fails in any engine as likely as this, if each fails at the rate of its workload.
    silence = math.prod(1 - rate for rate in rates)
    if sum(rates) / len(rates) > upper_bound(0, len(rates), 0.95) + 1e-9:
        assert silence < 0.05


def test_a_level_is_named_by_what_ran() -> None:
    less = [level(n, retries=300, at_once=4) for n in (2, 4, 8, 16, 32)]
    assert [one.name for one in less[1:4]] == [
        "4 at once", "4 at once (offered 8)", "4 at once (offered 16)"
    ]  # fmt: skip
    # Requests that followed each other too fast to overlap were not refused.
    assert level(32, at_once=3).name == "32 at once"
    text = in_words(validation(*less))
    assert "validated up to 4 at once (offered 32)" in text
    row = next(row for row in rows_of(text) if row["level"] == "4 at once (offered 16)")
    assert row["requests failed"].startswith("0 of 320")
    assert "validated up to 4 at once (offered 32) (" in answer_in_a_sentence([validation(*less)])


def test_the_words_explain_the_first_level_that_failed() -> None:
    text = in_words(FAILED)
    assert "failed at 8 at once" in text
    rows = {row["level"]: row for row in rows_of(text)}
    assert rows["8 at once"]["requests failed"] == "8 of 32"
    (note,) = [line for line in text.splitlines() if line.startswith("- 8 at once: ")]
    assert "Failed: 7 wrong and 1 timeout." in note
    assert "seq-len-mismatch (overread): wrong data in 12 requests." in note
    assert {rows[f"{n} at once"]["verdict"] for n in (16, 32)} == {"not begun"}
    assert text.endswith("r0003 read what r0002 had written.")
    assert "zero-page-tables**: failed at 8 at once." in text


def test_the_words_of_what_proves_nothing_say_why() -> None:
    text = in_words(TOO_FEW)
    assert "undecided at 4 at once, out of time" in text
    assert "109 requests never accepted and not counted" in text
    assert "3000 retries after a refusal" in text or "3,000 retries after a refusal" in text
    assert "needs 299 accepted requests" in text
    assert rows_of(in_words(VOID))[1]["injected faults detected"] == "0 of 1"
    assert "not detected, so the absence of findings proves nothing" in in_words(VOID)
    assert "32 pages are neither free nor cached" in in_words(LEAKS)
    assert rows_of(in_words(LEAKS))[1]["pages leaked"] == "32"
    assert "equal prompts: B gets no pages." in in_words(ALONE)
    assert "failed in the cache alone" in in_words(ALONE)
    nothing = validation(isolated=Isolated(None, problem="It died."))
    assert "undecided" in in_words(nothing)
    assert "It died." in in_words(nothing)
    bare = in_words(validation(level(2, 0, trials=0, controls=0, detected=0)))
    assert "No request was accepted." in bare
    assert "absence of findings proves nothing yet" in bare
    mild = level(
        2, tolerated=(FindingGroup("lockset-violation", "x", "at risk", 3, 1, "m", "a trial"),)
    )
    assert "Tolerated: lockset-violation (x), because a trial." in in_words(validation(mild))


@pytest.mark.parametrize("name", list(ALL))
def test_a_validation_is_plain_values_for_programs(name: str) -> None:
    plain = json.loads(json.dumps(ALL[name].as_dict()))
    assert plain["verdict"] == ALL[name].verdict
    assert [row["verdict"] for row in plain["results"]] == [r.verdict for r in ALL[name].results]
    assert [row["failed"] for row in plain["results"]] == [r.failed for r in ALL[name].results]
    assert [row["upper"] for row in plain["results"]] == [
        pytest.approx(upper_bound(r.failed, r.accepted, 0.95)) for r in ALL[name].results
    ]
    assert (plain["needed"], plain["levels"]) == (299, [2, 4, 8, 16, 32])
    assert plain["isolated"]["verdict"] == ALL[name].isolated.verdict


def test_defaults_are_those_of_the_report() -> None:
    plain = StagedValidation(Settings(release=REPORTED))
    assert plain.settings.levels == (2, 4, 8, 16, 32)
    assert plain.settings.needed == 299
    assert "no treatment" in plain.name
    assert ISOLATED.verdict == "clean"


def test_the_answer_names_what_held_and_what_did_not() -> None:
    whole = [CLEAN, change(FAILED, prefix_sharing="trie")]
    alone = change(CLEAN, treatments=("correct-seq-lens",))
    answer = answer_in_a_sentence(whole, [alone, LEAKS, LEAKS, TOO_FEW])
    assert answer.startswith("With all 3 fixes at once, prefix sharing none is validated up to 32 ")
    assert "a failure rate above 1% would have shown with 95% confidence" in answer
    assert "prefix sharing trie failed at 8 at once." in answer
    assert (
        "Of 4 single fixes 2 failed and 1 held (correct-seq-lens with prefix sharing none, up to 32"
        in answer
    )
    # Never the bound by requests without that by engines in the same sentence.
    bound = "0 of 10 independent engines failed, which bounds the share of engines at 26%)"
    assert answer.count(bound) == answer.count("if requests were independent") == 1
    assert "none is undecided at 4 at once, out of time." in answer_in_a_sentence([TOO_FEW])
    assert "is void at 2 at once." in answer_in_a_sentence([VOID])
    assert "failed in the cache alone" in answer_in_a_sentence([ALONE])
    assert answer_in_a_sentence([]) == "No validation was run."


def test_single_fixes_are_listed_by_the_level_at_which_they_ended() -> None:
    single = change(FAILED, treatments=("correct-seq-lens",))
    text = singles_in_words([single, change(CLEAN, treatments=("copy-tokens",))])
    first, second = rows_of(text)
    assert (first["fix"], first["prefix sharing"]) == ("correct-seq-lens", "none")
    assert (first["ended at"], first["verdict"]) == ("8 at once", "failed")
    assert "- correct-seq-lens, none: r0003 read what r0002 had written." in text.splitlines()
    assert (second["ended at"], second["verdict"]) == ("32 at once", "clean")
    assert "MiB resident" in text.partition("- copy-tokens, none: ")[2]
    assert level_row(CLEAN.results[0])["requests failed"] == "0 of 320, at most 0.93%"
    assert singles_in_words([]) == "No single fix was validated."
