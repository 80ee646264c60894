"""What a notebook shows of the data: the formatters, and who imports IPython."""

from __future__ import annotations

import io
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import nbformat
import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from support import NEWEST, REPORTED, ROOT, ChildRunner, run_python
from synthetic import make_run
from test_snapshot import snapshot

from analysis.engine.completion import Completion
from analysis.jupyter import FORMATTERS, html_of
from analysis.report.execution import execute
from analysis.runs.derive import failed_requests
from analysis.runs.store import load_run
from analysis.workloads.workload import Request, Workload


def test_every_type_that_has_a_formatter_exists() -> None:
    for path in FORMATTERS:
        module, _, name = path.rpartition(".")
        assert isinstance(getattr(import_module(module), name), type), path


def test_a_shell_shows_data_after_the_extension_is_loaded() -> None:
    shell = InteractiveShell()
    value = snapshot(4)
    assert "text/html" not in shell.display_formatter.format(value)[0]
    shell.run_line_magic("load_ext", "analysis.jupyter")
    assert shell.display_formatter.format(value)[0]["text/html"] == html_of(value)


def test_a_sweep_in_a_notebook_has_a_bar_and_in_a_report_lines(tmp_path) -> None:
    cells = [
        new_code_cell("%load_ext analysis.jupyter"),
        new_code_cell(f"""
from analysis.sweep.plan import Plan
from analysis.sweep.runner import run_sweep
plan = Plan(releases=({REPORTED!r},), concurrency=(4,), repeats=2)
run = run_sweep(plan, {str(tmp_path / "run")!r})
"""),
    ]
    notebook = new_notebook(cells=cells)
    NotebookClient(notebook, timeout=120, kernel_name=f"shortfin-{REPORTED}").execute()
    [bar] = [o for o in notebook.cells[1].outputs if o.output_type == "display_data"]
    assert '<progress max="2" value="2"' in bar.data["text/html"]
    assert not [o for o in notebook.cells[1].outputs if o.output_type == "stream"]
    source = tmp_path / "swept.ipynb"
    nbformat.write(new_notebook(cells=cells), source)
    screen = io.StringIO()
    done = execute(
        source, tmp_path / "done.ipynb", kernel=f"shortfin-{REPORTED}", parameters={},
        run_dir=tmp_path / "run", cell_timeout_s=120, screen=screen,
    )  # fmt: skip
    assert done.ok
    assert "2 of 2 trials are already on disk" in screen.getvalue()


def test_data_does_not_draw_itself_and_only_this_package_imports_ipython() -> None:
    for file in (ROOT / "analysis").rglob("*.py"):
        text = file.read_text()
        assert not re.search(r"def _(repr_\w+|ipython_display)_\(", text), file
        if file.parent.name != "jupyter":
            assert not re.search(r"^\s*(from|import) IPython", text, re.MULTILINE), file


def test_what_users_wrote_is_shown_as_text() -> None:
    prompt = "<script>1</script>"
    answer = Completion(
        request_id="r<0>", prompt=prompt, prompt_tokens=(1,), tokens=(2,), text="<b>", outcome="ok",
        error=None, submitted_s=0.0, latency_s=0.25, ttft_s=0.125, token_s=(0.125,),
    )  # fmt: skip
    workload = Workload("<w>", tuple(Request(f"r{n}", prompt) for n in range(20)))
    for value in (answer, workload):
        html = html_of(value)
        assert not re.search(r"<(script|b|w|0)>", html.replace("<p><b>", "").replace("</b>", ""))
    assert "0.250 s" in html_of(answer)
    assert "And 8 more." in html_of(workload)


def test_a_run_is_shown_by_its_outcomes() -> None:
    run = make_run({(REPORTED, "none", 4): {"ok": 5, "wrong": 2}})
    assert "wrong" in html_of(run)
    assert "timeout" not in html_of(run)


def test_an_engine_is_shown_with_its_settings(child: ChildRunner) -> None:
    shown = child(
        REPORTED,
        """
        from analysis.jupyter import html_of
        with Engine(EngineConfig(prefix_sharing="trie", page_count=32)) as engine:
            say([repr(engine), html_of(engine)])
        """,
    ).reply
    assert "prefix sharing trie, 32 pages, running" in shown[0]
    assert "<code>running</code>" in shown[1]


_BACKGROUND = """
import sys
from pathlib import Path
from analysis.jupyter import html_of, start_sweep
from analysis.sweep.plan import Plan

plan = Plan(releases=(sys.argv[1],), concurrency=(1,), repeats=4, seed=1, max_new_tokens=2)
sweep = start_sweep(plan, Path(sys.argv[2], "run"))
while sweep.finished < 1:
    assert sweep.running, sweep.state
sweep.cancel()
assert not sweep.running
done = len(sweep.run.trials)
assert 1 <= done < 4
assert sweep.state == f"cancelled, {4 - done} of 4 trials missing"
more = start_sweep(plan, Path(sys.argv[2], "run"))
run = more.wait(120)
assert len(run.trials) == 4
assert more.state == "finished"
assert "finished" in html_of(more) and "data:image/png" in html_of(more)
assert run.manifest["run_id"] == sweep.run.manifest["run_id"]
wrong = start_sweep(plan, Path(sys.argv[2], "file"))
try:
    wrong.wait(60)
except Exception as error:
    print(type(error).__name__, wrong.state)
"""


def test_a_sweep_runs_in_the_background_is_cancelled_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = run_python(NEWEST, _BACKGROUND, NEWEST, str(tmp_path), timeout_s=180)
    assert done.returncode == 0, done.stderr
    assert "RunError ended: " in done.stdout


_OVER_CELLS = """
from analysis import Engine, observe, sanitize, treat
engine = Engine()
engine.start()
watching, checking, treating = observe(engine), sanitize(engine), treat(engine, "lock-cache")
recording = watching.start()
findings = checking.start()
treated = treating.start()
assert engine.generate("1 2 3 ", 3).outcome == "ok"
assert [t.name for t in treated.treatments] == ["lock-cache"]
try:
    watching.stop()
except Exception as error:
    print(type(error).__name__)
for span in (treating, checking, watching):
    span.stop()
assert (recording.events["kind"] == "done").sum() == 1
seen = len(recording.events)
engine.generate("1 2 3 ", 3)
assert len(recording.events) == seen
engine.close()
"""


def test_recording_checking_and_treating_may_last_over_cells() -> None:
    done = run_python(NEWEST, _OVER_CELLS, timeout_s=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["EngineError"]  # ended out of order


def shell_with(**names: Any) -> InteractiveShell:
    shell = InteractiveShell()
    shell.run_line_magic("load_ext", "analysis.jupyter")
    shell.user_ns.update(names)
    return shell


def completed(shell: InteractiveShell, line: str) -> set[str]:
    with provisionalcompleter():
        return {found.text for found in shell.Completer.completions(line, len(line))}


def test_explain_takes_the_first_failed_request_and_completes_ids() -> None:
    (small,) = (ROOT / "data" / "recorded" / "04_first_wrong_step-3.1.0").glob("small-*")
    run = load_run(small)
    first = failed_requests(run.requests, run.trials).iloc[0]
    shell = shell_with(mine=run)
    for line in ("mine", f"mine {first['request_id']}", f"{small} {first['request_id']}"):
        explanation = shell.run_line_magic("explain", line)
        assert explanation.request_id == first["request_id"]
    assert "mine" in completed(shell, "%explain mi")
    found = completed(shell, "%explain mine r00")
    assert found == set(failed_requests(run.requests, run.trials)["request_id"])
    assert completed(shell, f"%explain mine {first['request_id']} 3") == {first["trial_id"]}
    for wrong in ("", "nothing", "mine r9999"):
        with pytest.raises(UsageError):
            shell.run_line_magic("explain", wrong)


_SANITIZED_CELL = """
from IPython.core.interactiveshell import InteractiveShell
from analysis.engine import Engine

shell = InteractiveShell()
shell.run_line_magic("load_ext", "analysis.jupyter")
with Engine() as engine:
    shell.user_ns["engine"] = engine
    shell.run_cell_magic("sanitize", "engine", "answer = engine.generate('1 2 3 ', 3)")
    assert shell.user_ns["answer"].outcome == "ok"
    assert "Findings" in type(shell.user_ns["findings"]).__name__
    try:
        shell.run_cell_magic("sanitize", "engine", "1 / 0")
    except ZeroDivisionError:
        print("raised")
    assert engine.generate("1 2 3 ", 3).outcome == "ok"
try:
    shell.run_cell_magic("sanitize", "nothing", "1")
except Exception as error:
    print(error)
"""


def test_a_cell_is_sanitized() -> None:
    done = run_python(NEWEST, _SANITIZED_CELL, timeout_s=120)
    assert done.returncode == 0, done.stderr
    assert "raised\n" in done.stdout
    assert done.stdout.endswith("Give the name of a running engine: `%%sanitize engine`.\n")
