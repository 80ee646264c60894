"""Throwaway notebooks in a plain kernel: what a reader gets, whatever happens in them."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from support import NEWEST, REPORTED, ROOT

from analysis import report
from analysis.core.errors import CachelabError

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::PendingDeprecationWarning", "ignore::ResourceWarning"
)

ANSWER = """
import json, pathlib
pathlib.Path(run_dir, "answer.json").write_text(json.dumps({"answer": f"It is {number}."}))
"""
PICTURE = """
from IPython.display import Image
import base64
pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
pixel += "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
Image(data=base64.b64decode(pixel), alt="one <dot>")
"""


def write_notebook(path: Path, *sources: str, parameters: str = "number = 1\nrun_dir = ''") -> Path:
    cells: list[Any] = [new_markdown_cell("# A small question\n\nIs it *one*?")]
    cells.append(new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    cells += [new_code_cell(source) for source in sources]
    about = {
        "quick": {"number": 2},
        "full": {"number": 3},
        "minutes_quick": 0.1,
        "question": "Is it <one>?",
    }
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    notebook = new_notebook(cells=cells, metadata={"cachelab": about, "kernelspec": kernel})
    nbformat.write(notebook, path)
    return path


def publish(notebook: Path, **changes: Any) -> report.PublishResult:
    arguments: dict[str, Any] = {
        "out": notebook.parent / "out",
        "kernel_of": lambda release: "python3",
        "screen": io.StringIO(),
        "releases": [REPORTED],
    }
    return report.publish([notebook], **{**arguments, **changes})


def test_a_page_opens_offline_and_the_index_gives_its_answer(tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path / "small.ipynb", "print('seen', number)", PICTURE, ANSWER)
    screen = io.StringIO()
    result = publish(notebook, releases=[REPORTED, NEWEST], screen=screen)
    assert result.ok
    assert [(page.release, page.answer) for page in result.pages] == [
        (REPORTED, "It is 2."),
        (NEWEST, "It is 2."),
    ]
    page, index = result.pages[0].html.read_text(), result.index.read_text()
    for text in (page, index):
        assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", text)
        assert not re.search(r"@import|url\(\s*['\"]?http", text)
        assert "<script" not in text
    assert "seen 2" in page
    assert page.count("A small question") == 2  # the tab's title and the page's
    assert "<p>It is 2.</p>" in page
    assert "data:image/png;base64,iVBOR" in page
    assert 'alt="one &lt;dot&gt;"' in page
    assert "<em>one</em>" in page
    assert page.count('<details class="code">') == 5
    assert "run_dir" in page
    assert f"shortfin {REPORTED}" in page
    assert "Is it &lt;one&gt;?" in index
    assert index.count("It is 2.") == 2
    assert f'href="small-{NEWEST}.html"' in index
    assert "ran to its end" in index
    assert "cell 2 of 4, A small question" in screen.getvalue()
    assert "seen 2" in screen.getvalue()
    assert str(result.index) in screen.getvalue()


def test_full_parameters_and_overrides(tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path / "small.ipynb", ANSWER)
    assert publish(notebook, full=True).pages[0].answer == "It is 3."
    result = publish(notebook, full=True, parameters={"number": 7})
    assert result.pages[0].answer == "It is 7."
    assert result.index.read_text().count(f"small-{REPORTED}.html") == 1


def test_a_cell_that_raises_gives_a_page_that_shows_it(tmp_path: Path) -> None:
    notebook = write_notebook(
        tmp_path / "bad.ipynb",
        "print('before')",
        "raise ValueError('no <such> page')",
        "print('after')",
    )
    result = publish(notebook)
    assert not result.ok
    page = result.pages[0].html.read_text()
    assert "before" in page
    assert "This cell stopped with ValueError:</strong> no &lt;such&gt; page" in page
    assert "Traceback" in page
    assert "papermill" not in page.lower()
    assert "A cell stopped with ValueError: no &lt;such&gt; page" in result.index.read_text()
    executed = nbformat.read(tmp_path / f"out/notebooks/bad-{REPORTED}.ipynb", as_version=4)
    assert executed.cells[-1].outputs == []


FRAGILE = """
import os, pathlib
home = pathlib.Path(run_dir)
first = not (home / "tried").exists()
(home / "tried").touch()
if first or number == 13:
    (home / "work").mkdir(exist_ok=True)
    dump = home / "work" / f"watchdog-{len(list(home.rglob('*.txt')))}.txt"
    dump.write_text("stacks of all threads")
    os._exit(1)
print("resumed")
"""


def test_a_kernel_that_dies_once_is_started_again(tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path / "fragile.ipynb", FRAGILE, ANSWER)
    result = publish(notebook)
    assert result.ok
    page = result.pages[0].html.read_text()
    assert "resumed" in page
    assert "The kernel died while it ran cell 2 of 3" in page
    dump = re.search(r'href="(runs/[^"]*kernel-death-1.txt)"', page)
    assert dump
    assert (tmp_path / "out" / dump[1]).read_text() == "stacks of all threads"


def test_a_kernel_that_dies_twice_is_a_page_that_says_so(tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path / "fragile.ipynb", "print('before')", FRAGILE)
    result = publish(notebook, parameters={"number": 13})
    assert not result.ok
    page = result.pages[0].html.read_text()
    assert "before" in page
    assert page.count("The kernel died while") == 2
    assert "the kernel died twice" in result.index.read_text()


def test_a_cell_past_its_deadline_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "_FLOOR_S", 2)
    monkeypatch.setattr(report, "_PATIENCE", 0)
    notebook = write_notebook(tmp_path / "slow.ipynb", "import time; time.sleep(600)")
    result = publish(notebook)
    assert not result.ok
    assert "A cell did not end within 2 s" in result.pages[0].html.read_text()


def test_what_cannot_be_run_is_said_before_anything_runs(tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path / "small.ipynb", ANSWER)
    with pytest.raises(CachelabError, match=r"no parameter foo: there are number, run_dir\."):
        publish(notebook, parameters={"foo": 1})
    with pytest.raises(CachelabError, match=f"shortfin {NEWEST} has no Jupyter kernel here"):
        publish(notebook, releases=[NEWEST], kernel_of=lambda release: f"no-such-{release}")
    with pytest.raises(CachelabError, match="There is no notebook at"):
        publish(tmp_path / "gone.ipynb")
    (tmp_path / "broken.ipynb").write_text("{")
    with pytest.raises(CachelabError, match="is no notebook that can be read"):
        publish(tmp_path / "broken.ipynb")
    assert not (tmp_path / "out").exists()


def test_notebooks_are_found_by_number_stem_and_path(tmp_path: Path) -> None:
    [first] = report.find_notebooks(["01"])
    assert first.name == "01_reproduce.ipynb"
    assert report.find_notebooks(["01_reproduce", "01", str(first)]) == [first]
    assert first in report.find_notebooks(["all"])
    with pytest.raises(CachelabError, match="There is no notebook '77'"):
        report.find_notebooks(["77"])


def test_what_notebooks_import_needs_neither_an_engine_nor_the_publishing_tools() -> None:
    absent = "shortfin iree papermill nbconvert nbclient nbformat jupyter_client tokenizers"
    code = f"""
import sys
sys.modules.update(dict.fromkeys({absent!r}.split()))
import analysis.studies.reproduce.words, analysis.plots, analysis.report
import analysis.stats.rates, analysis.runs.store
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


def test_an_answer_is_written_whole(tmp_path: Path) -> None:
    path = report.write_answer(tmp_path, "Yes.", trials=3)
    assert json.loads(path.read_text()) == {"answer": "Yes.", "trials": 3}
    assert list(tmp_path.iterdir()) == [path]


PRINTS = """
import sys
for n in range(30):
    print(f"trial {n} of 30", file=sys.stderr)
print("no end of line", end="", file=sys.stderr)
"""


def test_the_screen_gets_a_line_now_and_then_and_the_page_all(tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path / "small.ipynb", PRINTS, "print('next')", ANSWER)
    screen = io.StringIO()
    page = publish(notebook, screen=screen).pages[0].html.read_text()
    lines = [line.strip() for line in screen.getvalue().splitlines()]
    assert lines[1:] == [
        "cell 1 of 4, A small question",
        "cell 2 of 4, A small question",
        "trial 0 of 30",
        "no end of line",
        "cell 3 of 4, A small question",
        "next",
        "cell 4 of 4, A small question",
        "ran to its end: It is 2.",
        f"The report is at {tmp_path}/out/index.html",
    ]
    assert all(f"trial {n} of 30" in page for n in range(30))


def test_nothing_but_the_progress_is_printed(tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path / "small.ipynb", ANSWER)
    code = f"""
from pathlib import Path
from analysis import report
report.publish([Path({str(notebook)!r})], releases=[{REPORTED!r}],
               out=Path({str(tmp_path)!r}, "out"), kernel_of=lambda release: "python3")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout == ""
    first, *cells, status, last = done.stderr.splitlines()
    assert first.startswith(f"[1/1] small on shortfin {REPORTED}")
    assert [cell.split(",")[0] for cell in cells] == ["  cell 1 of 2", "  cell 2 of 2"]
    assert status == "  ran to its end: It is 2."
    assert last.startswith("The report is at")


def test_the_page_of_another_model_stands_beside_that_of_the_default(tmp_path: Path) -> None:
    given = "number = 1\nrun_dir = ''\nmodel = ''"
    notebook = write_notebook(tmp_path / "small.ipynb", ANSWER, parameters=given)
    publish(notebook, releases=[REPORTED])
    result = publish(notebook, releases=[REPORTED], parameters={"model": "some where/tiny model"})
    assert result.pages[0].html.name == f"small-{REPORTED}-tiny-model.html"
    index = result.index.read_text()
    for name in (f"small-{REPORTED}.html", f"small-{REPORTED}-tiny-model.html"):
        assert f'href="{name}"' in index


def test_the_chart_of_the_index_shows_one_model(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "data" / "reference", tmp_path / "one" / "run")
    entry = {"notebook": "01", "run": "one", "model": ""}
    alone = report._chart(tmp_path, [entry])
    assert alone is not None
    assert report._chart(tmp_path, [{**entry, "model": "tiny"}, entry]) == alone


def test_the_index_charts_one_notebook_alone(tmp_path: Path) -> None:
    for name in ("first", "second"):
        shutil.copytree(ROOT / "data" / "reference", tmp_path / name / "run")
    first, second = ({"notebook": n, "run": r} for n, r in (("01", "first"), ("03", "second")))
    alone = report._chart(tmp_path, [first])
    assert alone is not None
    assert report._chart(tmp_path, [second, first]) == alone
    assert report._chart(tmp_path, [{"notebook": "02", "run": "none"}]) is None


def test_a_report_that_was_resumed_took_the_time_of_all_its_parts(tmp_path: Path) -> None:
    notebook, place = write_notebook(tmp_path / "small.ipynb", ANSWER), tmp_path / "run"
    given = {"run_dir": str(place)}
    assert "parts" not in publish(notebook, parameters=given).pages[0].html.read_text()
    parts = json.loads((place / "parts.json").read_text())
    assert len(parts) == 1
    # It had taken two hours, and a second part was killed 1800 s after it began.
    parts[0]["seconds"] = 7200.0
    killed = {"started": (place / "answer.json").stat().st_mtime - 1800, "seconds": None}
    (place / "parts.json").write_text(json.dumps([*parts, killed]))
    os.utime(place / "parts.json", (0, 0))
    page = publish(notebook, parameters=given).pages[0].html.read_text()
    assert re.search(r"<dd>2 h 3[01] min in 3 parts</dd>", page)
    (place / "parts.json").unlink()
    page = publish(notebook, parameters=given).pages[0].html.read_text()
    assert re.search(r"<dd>[^<]* s, beside an earlier part of unknown length</dd>", page)
