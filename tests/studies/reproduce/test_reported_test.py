"""The reported test on real engines, and what is made of its answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from support import NEWEST, REPORTED, ChildRunner

from analysis.stats.checks import BEGINS, EXACT
from analysis.studies.reproduce import (
    first_step_in_words,
    reported_test_figure,
    reported_test_in_words,
    reported_test_table,
)
from analysis.studies.reproduce.reported_test import FRESH, KEY, USED, counts, treatment_set

RIGHT, LATE, EARLY = "6 7 8 9 10", "6 7 8 10 1", "6 9"


def answers(*given: tuple[str, str, int, str], treatments: str = "none") -> pd.DataFrame:
    """Return answers of prefix sharing, engine, clients and text; "" is a rejected request."""
    rows = [
        {
            **dict(zip(KEY, (sharing, treatments, engine, clients), strict=True)),
            "text": text, "tokens": tuple(text.split()), "expected_text": "6 7 8",
            "reference_tokens": tuple(RIGHT.split()), "reference_text": RIGHT,
            "outcome": "rejected" if not text else "wrong" if text == EARLY else "ok",
            "first_divergence": {LATE: 3, EARLY: 1}.get(text),
        }
        for sharing, engine, clients, text in given
    ]  # fmt: skip
    return pd.DataFrame(rows)


PASSES = answers(
    ("none", FRESH, 2, RIGHT), ("none", FRESH, 2, RIGHT), ("none", USED, 2, RIGHT),
    ("none", USED, 2, LATE),
)  # fmt: skip
FAILS = answers(
    ("none", FRESH, 2, RIGHT), ("none", FRESH, 4, EARLY), ("none", USED, 2, LATE),
    ("none", USED, 4, ""),
)  # fmt: skip


def test_answers_are_counted_by_both_checks() -> None:
    rows = counts(FAILS).set_index(["engine", "clients"])
    assert list(rows.loc[(FRESH, 4), ["accepted", "rejected", BEGINS, EXACT]]) == [1, 0, 1, 1]
    assert list(rows.loc[(USED, 2), ["accepted", "rejected", BEGINS, EXACT]]) == [1, 0, 0, 1]
    assert list(rows.loc[(USED, 4), ["accepted", "rejected", BEGINS, EXACT]]) == [0, 1, 0, 0]


def test_the_words_say_what_each_check_saw() -> None:
    text = reported_test_in_words(PASSES)
    assert text.startswith(
        'The reported test passes at 2 clients: all 4 answers start with "6 7 8".'
    )
    assert "Exact equality with the reference decoder finds 1 of 4 wrong." in text
    assert "They are 1 of 2 (prefix sharing none, after other prompts)." in text
    assert f"For example, `{LATE}` where the reference decoder answers `{RIGHT}`." in text
    short = reported_test_in_words(PASSES, briefly=True)
    assert short.endswith("finds 1 of 4 wrong.")
    failed = reported_test_in_words(FAILS)
    assert (
        'fails: 1 of 3 answers do not start with "6 7 8" (1 more requests were rejected).' in failed
    )
    right = answers(("none", FRESH, 2, RIGHT), ("none", USED, 2, RIGHT))
    assert reported_test_in_words(right).endswith(
        "All of them equal the reference decoder's answer."
    )
    nothing = reported_test_in_words(answers(("none", FRESH, 8, "")))
    assert nothing == "The reported test got no answer: all 1 requests were rejected."


def test_what_an_engine_answered_cannot_become_markup() -> None:
    hostile = answers(("none", FRESH, 2, LATE)).assign(text="6 7 8` <script> `")
    assert "`6 7 8' <script> '`" in reported_test_in_words(hostile)


def test_the_table_has_both_checks_of_both_engines() -> None:
    table = reported_test_table(FAILS)
    assert "treatments" not in table.markup
    for title in ("fresh engine: starts with &quot;6 7 8&quot;", "after other prompts: exact"):
        assert title in table.markup
    assert table.markup.count("<td>passes</td>") == 3
    assert table.markup.count("<td>1 of 1 fail</td>") == 3
    assert table.markup.count("<td>1 rejected</td>") == 2
    treated = reported_test_table(
        answers(("trie", FRESH, 2, RIGHT), ("trie", USED, 2, RIGHT), treatments="all")
    )
    assert "<td>all</td>" in treated.markup


def test_the_figure_draws_the_share_that_fails_each_check() -> None:
    begins, exact = reported_test_figure(PASSES).axes
    assert [line.get_ydata().tolist() for line in begins.lines] == [[0.0], [0.0]]
    assert [line.get_ydata().tolist() for line in exact.lines] == [[0.0], [0.5]]
    fresh, used = exact.lines
    assert (fresh.get_markerfacecolor(), used.get_markerfacecolor()) == ("#0072B2", "white")
    assert "n: accepted answers" in exact.get_xlabel()
    assert "accepted" in reported_test_figure(answers(("none", FRESH, 8, ""))).texts[0].get_text()


class _Findings(SimpleNamespace):
    summary = "7 findings."


def test_the_first_step_is_named_by_its_place_among_the_decodes() -> None:
    invocations = pd.DataFrame({"invocation_id": [0, 1, 2], "phase": ["prefill", *["decode"] * 2]})
    first = SimpleNamespace(rule="seq-len-mismatch", severity="at risk", invocation_id=1,
                            text="A decode reads too much.")  # fmt: skip
    found: Any = _Findings(first=first)
    text = first_step_in_words(found, invocations, PASSES)
    assert "`seq-len-mismatch`, at risk, in decode number 1 of the test: A decode" in text
    assert "The test does not see it: no answer changed within its first 5 characters." in text
    assert "does not see it" not in first_step_in_words(found, invocations, FAILS)
    first.invocation_id = None
    assert "decode number" not in first_step_in_words(found, invocations, PASSES)
    assert first_step_in_words(_Findings(first=None), invocations, PASSES) == "7 findings."  # type: ignore[arg-type]


def test_sets_of_treatments_are_read_as_on_the_command_line() -> None:
    assert treatment_set("none") == ()
    assert treatment_set("correct-seq-lens+zero-page-tables") == (
        "correct-seq-lens", "zero-page-tables",
    )  # fmt: skip


RUN = """
from concurrent.futures import ThreadPoolExecutor
from analysis.recording import observe
from analysis.sanitizer import sanitize
from analysis.studies import reproduce
from analysis.studies.reproduce.reported_test import counts

def reported_test(engine, number):
    with ThreadPoolExecutor(max_workers=number) as pool:
        asked = [pool.submit(engine.generate, "1 2 3 4 5 ", 8) for _ in range(number)]
        return [each.result() for each in asked]

answers = reproduce.run_reported_test(
    reported_test, [4], prefix_sharing=["none"], treatments=TREATMENTS, max_new_tokens=8
)
with Engine(EngineConfig()) as engine, observe(engine) as recording, sanitize(engine) as findings:
    reported_test(engine, 4)
say({
    "counts": counts(answers).to_dict("records"),
    "reference": sorted(set(answers["reference_text"])),
    "step": reproduce.first_step_in_words(findings, recording.invocations, answers),
    "brief": reproduce.reported_test_in_words(answers, briefly=True),
})
"""


@pytest.mark.parametrize("release", [REPORTED, NEWEST])
def test_it_passes_its_own_check_and_the_sanitizer_sees_what_it_does_not(
    release: str, child: ChildRunner
) -> None:
    treatments = ["none", "all"]
    done = child(release, f"TREATMENTS = {treatments!r}\n" + RUN)
    assert done.returncode == 0, done.stderr
    rows = done.reply["counts"]
    assert [(r["treatments"], r["engine"], r["clients"], r["accepted"]) for r in rows] == [
        (names, engine, 4, 4) for names in treatments for engine in (FRESH, USED)
    ]
    assert done.reply["reference"] == ["6 7 8 9 "]
    assert all(row[BEGINS] == 0 for row in rows)
    assert all(row[EXACT] == 0 for row in rows if row["treatments"] == "all")
    assert "passes at 4 clients: all 16 answers" in done.reply["brief"]
    if release == REPORTED:
        assert "in decode number 1 of the test" in done.reply["step"]
        assert "The test does not see it" in done.reply["step"]
    else:
        assert " 0 of them with wrong data (" in done.reply["step"]
