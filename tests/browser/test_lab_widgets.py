"""The views of a notebook respond in JupyterLab: a replay, a table of requests, a sweep."""

from __future__ import annotations

import re
from pathlib import Path

from lab_page import LabPage, write_notebook
from support import NEWEST, ROOT

from analysis.runs.derive import failed_requests
from analysis.runs.store import load_run

(SMALL,) = (ROOT / "data" / "recorded" / "04_first_wrong_step-3.1.0").glob("small-*")
READ = f"""
%load_ext analysis.jupyter
from analysis.jupyter import browse, replay, start_sweep
from analysis.runs.store import load_run
from analysis.sweep.plan import Plan
run = load_run({str(SMALL)!r})
"""


def opened(lab: LabPage, work: Path, *sources: str) -> None:
    """Open a notebook with these cells, and run the first one."""
    lab.open(write_notebook(work / "views.ipynb", NEWEST, READ, *sources))
    lab.wait_for_kernel(f"shortfin {NEWEST}")
    lab.run_cell()


def test_a_replay_follows_its_slider_and_its_buttons(lab: LabPage, work: Path) -> None:
    opened(lab, work, "replay(run)")
    lab.run_cell()
    view = lab.frame("Replay of")
    where = view.locator("#where")

    def event() -> int:
        (number,) = re.findall(r"event (\d+) of", where.inner_text())
        return int(number)

    view.get_by_text(re.compile(r"event \d+ of \d+, seq")).wait_for()
    run = load_run(SMALL)
    assert f"of {len(run.events)}, seq" in where.inner_text()
    first = event()
    view.get_by_role("button", name="next event").click()
    assert event() == first + 1
    view.get_by_role("button", name="previous event").click()
    view.get_by_role("button", name="previous event").click()
    assert event() == first - 1
    slider = view.locator("#at")
    slider.focus()
    slider.press("End")
    view.get_by_text(f"event {len(run.events)} of").wait_for()
    used = view.locator("#map .live, #map .cached, #map .leaked")
    at_the_end = used.count()
    slider.press("Home")
    view.get_by_text("event 1 of").wait_for()
    assert used.count() < at_the_end
    view.get_by_role("button", name="next finding").click()
    assert event() == first
    assert run.findings.sort_values("seq")["message"].iloc[0] in view.locator("#found").inner_text()
    assert view.locator("#calls table").count() >= 1
    view.get_by_role("button", name="next eviction").click()
    evicted = run.events[run.events["kind"] == "evict"].sort_values("seq").iloc[0]
    assert f"seq {evicted['seq']}," in where.inner_text()
    assert view.locator("#map .event").count() == len(evicted["pages"])


def test_requests_are_filtered_sorted_and_shown_with_their_findings(
    lab: LabPage, work: Path
) -> None:
    opened(lab, work, "browse(run)")
    lab.run_cell()
    run, view = load_run(SMALL), lab.frame("Requests of")
    shown = view.locator("#shown")
    failed = failed_requests(run.requests, run.trials)
    view.get_by_text(f"{len(failed)} of {len(run.requests)} requests").wait_for()
    view.get_by_label("failed only").uncheck()
    assert shown.inner_text() == f"{len(run.requests)} of {len(run.requests)} requests"
    chosen = failed["request_id"].iloc[0]
    view.get_by_label("Filter").fill(chosen)
    assert shown.inner_text().startswith("1 of")
    view.get_by_label("Filter").fill("")
    for direction in (False, True):
        view.get_by_role("button", name="seconds").click()
        heads = view.locator("#list th").all_inner_texts()
        (place,) = [n for n, head in enumerate(heads, 1) if head.startswith("seconds")]
        cells = view.locator(f"#list tbody td:nth-child({place})").all_inner_texts()
        numbers = [float(text) for text in cells if text]
        assert len(numbers) > 1
        assert numbers == sorted(numbers, reverse=direction)
    view.get_by_role("button", name=chosen, exact=True).click()
    detail = view.locator("#detail").inner_text()
    (row,) = run.requests[run.requests["request_id"] == chosen].to_dict("records")
    assert row["text"].strip() in detail
    about = run.findings[run.findings["request_id"] == chosen].sort_values("seq")
    assert about["message"].iloc[0] in detail
    assert f'explain(run, "{chosen}"' in detail


def test_a_sweep_is_followed_while_cells_run_and_is_cancelled(lab: LabPage, work: Path) -> None:
    plan = f"Plan(releases=({NEWEST!r},), concurrency=(1, 2), repeats=100, max_new_tokens=2)"
    opened(
        lab, work,
        f"sweep = start_sweep({plan}, {str(work / 'run')!r})",
        "print('meanwhile', 6 * 7)",
        "sweep.cancel(); print('has ended:', sweep.state)",
    )  # fmt: skip
    lab.run_cell()
    lab.run_cell()
    lab.output("meanwhile 42").wait_for()
    lab.output(re.compile(r"running, 1\d\d of 200 trials to come")).wait_for()
    lab.output("to come").locator("table").wait_for()
    lab.run_cell()
    lab.output(re.compile(r"has ended: cancelled, \d+ of 200 trials missing")).wait_for()
    lab.output(re.compile(r"Sweep in .*: cancelled, \d+ of 200 trials missing")).wait_for()
    lab.output("trials missing").first.scroll_into_view_if_needed()
