"""Every notebook's answer is computed from all that it measured: what came early, too."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace
from typing import Any

import nbformat
import pandas as pd
import pytest
from support import NEWEST, REPORTED, ROOT
from synthetic import make_run
from test_experiments import rows as rounds

from analysis.runs.store import to_frame
from analysis.sanitizer.recorded import Checked
from analysis.snapshots.snapshot import CacheState, Snapshot
from analysis.studies import snapshots
from analysis.studies.evictions.words import duplicates_in_words, evictions_in_words
from analysis.studies.first_error.words import answer_in_a_sentence as findings_in_a_sentence
from analysis.studies.isolation.words import answer_in_a_sentence as isolation_in_a_sentence
from analysis.studies.reproduce.words import alone_in_words
from analysis.studies.snapshots.plan import Step
from analysis.studies.snapshots.words import put_back_in_words
from analysis.studies.validation.soak import Soak
from analysis.studies.validation.words import answer_in_a_sentence as validation_in_a_sentence

MEASURED = {
    "01_reproduce": ("run", "answers", "asked_again"),
    "02_cache_snapshots": ("steps", "used"),
    "03_evictions": ("requests", "fate"),
    "04_first_wrong_step": ("run", "checked", "bytes_in_words", "small_in_words"),
    "05_root_causes": ("judged", "wholes", "put"),
    "06_isolation": ("untreated", "treated", "left_out"),
    "07_fix_validation": ("whole", "alone", "soaked"),
    "08_cost": ("measures", "cache", "locks"),
    "09_releases": ("matrix", "removed", "outside"),
}
"""What each notebook has measured when it comes to its answer."""


@pytest.mark.parametrize("name", MEASURED)
def test_the_answer_cell_uses_all_that_was_measured(name: str) -> None:
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    (cell,) = [cell for cell in notebook.cells if "write_answer(" in cell.source]
    written = cell.source[: cell.source.index("\nMarkdown(")]
    for variable in MEASURED[name]:
        assert re.search(rf"\b{variable}\b", written), variable


def snapshot(leaked: int, live: int = 0) -> Snapshot:
    held = {"r": list(range(leaked, leaked + live))} if live else {}
    return Snapshot(CacheState(64, list(range(leaked + live, 64)), held))


def test_pages_that_leaked_early_are_not_forgotten_where_the_last_experiment_leaked_none(
    tmp_path: Any,
) -> None:
    clean = rounds((4, 4, 0, 0), (8, 8, 0, 0))
    steps = [
        Step("one request", ["ok"], snapshot(0), snapshot(0)),
        Step("eight requests at once", ["ok"] * 6 + ["rejected"] * 2, snapshot(2), snapshot(16)),
    ]
    notebook = nbformat.read(ROOT / "notebooks" / "02_cache_snapshots.ipynb", as_version=4)
    (cell,) = [cell for cell in notebook.cells if "write_answer(" in cell.source]
    from analysis import report

    exec(compile(cell.source, "cell", "exec"), {
        "steps": steps, "used": {"none": clean, "trie": clean}, "prefix_sharing": "trie",
        "home": tmp_path, "report": report, "snapshots": snapshots,
        "Markdown": str,
    })  # fmt: skip
    text = json.loads((tmp_path / "answer.json").read_text())["answer"]
    assert text == (
        "Pages did not come back in 1 of 4 experiments: 14 pages leaked after eight requests at"
        " once (prefix sharing trie)."
    )
    table = put_back_in_words("trie", steps, {"none": clean})
    assert "| eight requests at once | trie           | 6 ok and 2 rejected | 14 of 64" in table
    assert "| many small requests    | none           | 8 of 8 ok           | 0 of 64" in table
    fine = put_back_in_words("trie", steps[:1], {"none": clean})
    assert fine.startswith("Every page came back in all 2 experiments.")
    late = put_back_in_words("trie", steps[:1], {"none": clean, "trie": rounds((4, 4, 4, 0))})
    assert "in 1 of 3 experiments: 4 pages leaked after many small requests (prefix shar" in late
    kept = put_back_in_words("trie", steps[:1], {"none": rounds((4, 0, 0, 6))})
    assert "in 1 of 2 experiments: 0 pages leaked and 6 pages were still held after many" in kept
    held = put_back_in_words("trie", [Step("two", ["ok"] * 2, snapshot(0), snapshot(0, 3))], {})
    assert "3 pages were still held after two (prefix sharing trie)" in held


def test_a_leak_in_an_early_round_counts_though_none_is_seen_in_the_last() -> None:
    text = put_back_in_words("trie", [], {"none": rounds((4, 4, 5, 0), (8, 8, 0, 0))})
    assert "Pages did not come back in 1 of 1 experiment: 5 pages leaked" in text
    assert "5 after 4 requests, 0 of 64 at the end" in text


def test_requests_that_failed_on_an_engine_that_lived_are_told() -> None:
    events = [{"seq": n, "trial_id": "c", "t_s": n / 1e9, "kind": "done", "outcome": how}
              for n, how in enumerate(["empty", "ok", "ok", "rejected"])]  # fmt: skip
    text = duplicates_in_words(60, None, to_frame("events", events))
    assert "4 requests ended (2 ok, 1 empty, 1 rejected)" in text
    assert text.endswith("the engine did not die.")
    assert "died in round 3: Gone." in duplicates_in_words(3, "Gone.", to_frame("events", events))


def test_rare_and_early_failures_stand_beside_what_was_right_in_the_end() -> None:
    assert alone_in_words([None]) == ""
    text = alone_in_words([False, True, None])
    assert text == (
        "Of 2 prompts that had been answered wrong, 1 was answered right when asked again alone."
    )
    run = make_run({(REPORTED, "none", 4): {"ok": 8, "wrong": 4}})
    untreated = Checked(REPORTED, "none", (), trials=4)
    nothing = Checked(REPORTED, "none", ("correct-seq-lens",), trials=4)
    output = findings_in_a_sentence(run, [untreated, nothing], ["A pool of 64 pages: 9 empty."])
    assert "of 12 requests read wrong data, 4 wrong answers" in output
    assert "with correct-seq-lens: 0 of 0 requests" in output
    assert output.endswith("A pool of 64 pages: 9 empty.")


def test_what_failed_in_a_soak_test_and_with_a_fix_left_out_is_in_the_sentence() -> None:
    frame = pd.DataFrame({
        "level": [2, 2, 32], "requests": [8, 8, 64], "failed": [3, 0, 0], "rejected": [0, 0, 8],
        "leaked": [5, 2, 0],
    })  # fmt: skip
    worn = Soak(NEWEST, "trie", ("a",), 60.0, frame, {2: None, 32: "It died."})
    assert validation_in_a_sentence([], [], [worn]) == (
        "In a soak test with prefix sharing trie 3 of 72 accepted requests failed, 8 rejected,"
        " up to 5 pages leaked, 1 of 2 engines ended early."
    )
    result: Any = SimpleNamespace(release=NEWEST, prefix_sharing="none", ok=True, complete=True,
                                  interleavings=7, failures=(), shortest=lambda: ())  # fmt: skip
    broken: Any = SimpleNamespace(ok=False, failures=("one",))
    output = isolation_in_a_sentence([result], [result], {"x": broken, "y": result})
    assert "left out alone, 1 of 2 fixes bring a failure back" in output


def test_rejections_are_named_where_evictions_are_judged() -> None:
    run = make_run({(NEWEST, "none", 4): {"ok": 4, "rejected": 4}})
    text = evictions_in_words(run.requests.assign(evictions_during=0), run.trials)
    assert "4 of 8 requests (offered 4: ran 1)" in text
