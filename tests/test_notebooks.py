"""What every notebook promises; what needs no engine in them runs on a run whose truth is known."""

from __future__ import annotations

import ast
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pandas as pd
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from support import RELEASES
from synthetic import reported_pattern
from synthetic_validations import CLEAN, FAILED, change

from analysis import jupyter, report
from analysis import plots as figures
from analysis.report.parameters import conform, declared
from analysis.runs.schema import EVENT_KINDS
from analysis.stats.clustered import engines_to_reach
from analysis.studies import reproduce
from analysis.studies.causes import scenarios
from analysis.studies.reproduce.reported_test import FRESH, KEY
from analysis.studies.validation.figures import validations_figure
from analysis.studies.validation.words import singles_in_words

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
LONGEST = 14
REPRODUCE = NOTEBOOKS[0].parent / "01_reproduce.ipynb"
SHIPPED = sorted((Path(__file__).parent.parent / "data" / "recorded").iterdir())


def code_cells(notebook: Any, tag: str | None = None) -> list[Any]:
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [cell for cell in cells if tag is None or tag in cell.metadata.get("tags", [])]


def python_of(cell: Any) -> str:
    """Return the Python code of a cell, with its magics as calls."""
    return TransformerManager().transform_cell(cell.source)


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request: pytest.FixtureRequest) -> Any:
    return nbformat.read(request.param, as_version=4)


def test_outputs_are_stripped(notebook: Any) -> None:
    nbformat.validate(notebook)
    for cell in code_cells(notebook):
        assert cell.outputs == []
        assert cell.execution_count is None


def test_it_says_what_it_asks_how_long_it_takes_and_with_which_parameters(notebook: Any) -> None:
    about = notebook.metadata["cachelab"]
    assert about["question"].endswith("?")
    assert "releases" not in about
    assert notebook.metadata["kernelspec"]["name"] == "python3"
    assert 0 < about["minutes_quick"] <= about["minutes_full"]
    [cell] = code_cells(notebook, "parameters")
    kinds = declared(cell.source)
    assert kinds["run_dir"] is str
    assert Any not in kinds.values()  # papermill passes a list as text: its type reads it
    for mode in ("quick", "full"):
        assert all(conform(k, value, kinds[k]) == value for k, value in about[mode].items())
    assert notebook.cells[0].source.startswith("# ")
    assert "minute" in notebook.cells[0].source


@pytest.mark.parametrize("release", RELEASES)
def test_the_quick_plan_of_05_has_engines_enough_for_every_verdict(release: str) -> None:
    notebook = nbformat.read(NOTEBOOKS[0].parent / "05_root_causes.ipynb", as_version=4)
    [cell] = code_cells(notebook, "parameters")
    [repeats] = [
        ast.literal_eval(statement.value)
        for statement in ast.parse(cell.source).body
        if isinstance(statement, ast.AnnAssign) and ast.unparse(statement.target) == "repeats"
    ]
    tests = 1 + sum(len(scenario.hypotheses()) for scenario in scenarios(release))
    # "Supported" is tested three times as strictly as an effect.
    assert repeats >= engines_to_reach(3 * tests)


def test_the_formatters_are_registered_before_anything_is_shown(notebook: Any) -> None:
    parameters, first, *_ = code_cells(notebook)
    assert parameters.metadata["tags"] == ["parameters"]
    assert first.source.splitlines()[0] == "%load_ext analysis.jupyter"
    assert "report.read_parameters(globals())" in first.source.splitlines()


def test_code_is_short(notebook: Any) -> None:
    for cell in code_cells(notebook):
        ast.parse(python_of(cell))
        # A line of the parameters is one parameter.
        assert len(cell.source.splitlines()) <= LONGEST or cell in code_cells(
            notebook, "parameters"
        )


def test_kinds_of_events_exist(notebook: Any) -> None:
    source = "\n".join(cell.source for cell in code_cells(notebook))
    kinds = re.findall(r"""\bkind"?\]? == ["'](\w+)""", source)
    for several in re.findall(r"""\bkind"\]\.isin\(\[([^\]]*)\]""", source):
        kinds += re.findall(r"\w+", several)
    assert set(kinds) <= set(EVENT_KINDS)


def reported_answers(*texts: str) -> pd.DataFrame:
    """Return answers of the reported test, of which "6 7 8 9" is right."""
    setting = dict(zip(KEY, ("none", "none", FRESH, 2), strict=True))
    right = tuple("6 7 8 9")
    rows = [
        {**setting, "text": text, "tokens": tuple(text), "expected_text": "6 7 8",
         "reference_tokens": right, "reference_text": "6 7 8 9",
         "outcome": "ok" if text.startswith("6 7 8") else "wrong",
         "first_divergence": None if tuple(text) == right else 4}
        for text in texts
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_the_answer_of_01_follows_from_its_run(tmp_path: Path) -> None:
    notebook = nbformat.read(REPRODUCE, as_version=4)
    run = reported_pattern()
    output: list[str] = []
    names: dict[str, Any] = {
        "run": run,
        "home": tmp_path,
        "figures": figures,
        "report": report,
        "reproduce": reproduce,
        "Markdown": output.append,
        "answers": reported_answers("6 7 8 9", "6 7 9 1"),
        "findings": SimpleNamespace(first="the first finding"),
        "show": jupyter.show,
        "asked_again": SimpleNamespace(frame=pd.DataFrame({"right_alone": [True, False, None]})),
    }
    engine = code_cells(notebook, "engine") + code_cells(notebook, "parameters")
    for cell in code_cells(notebook):
        if cell not in engine:
            exec(compile(cell.source, "cell", "exec"), names)
    reported = (
        'The reported test fails: 1 of 2 answers do not start with "6 7 8". Exact equality with the'
        " reference decoder finds 1 of 2 wrong."
    )
    by_itself = (
        "Of 2 prompts that had been answered wrong, 1 was answered right when asked again alone."
    )
    assert output == [f"{reproduce.answer_in_words(run)}\n\n{reported}\n\n{by_itself}"]
    answer = json.loads((tmp_path / "answer.json").read_text())["answer"]
    assert answer == f"{reproduce.answer_in_a_sentence(run)} {reported} {by_itself}"


def test_07_shows_the_levels_of_its_validations(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOKS[0].parent / "07_fix_validation.ipynb", as_version=4)
    single = change(FAILED, treatments=("correct-seq-lens",))
    shown: list[Any] = []
    singles: list[str] = []
    explained = SimpleNamespace(summary="why")
    names: dict[str, Any] = {
        "whole": {"none": CLEAN},
        "alone": [single],
        "places": {("correct-seq-lens", "none"): tmp_path},
        "singles_in_words": singles_in_words,
        "validations_figure": validations_figure,
        "Markdown": lambda text: singles.append(text) if text.startswith("| fix") else text,
        "display": lambda *values: shown.extend(values),
        "show": lambda figure, alt: alt,
        "load_run": lambda path: path,
        "explain": lambda run, request, trial: shown.append((run, request, trial)) or explained,
        "explanation_figure": lambda explanation: None,
    }
    cells = [
        cell.source
        for cell in code_cells(notebook)
        if "engine" not in cell.metadata.get("tags", [])
    ]
    for source in cells:
        if "alone" in source and "write_answer" not in source:
            exec(compile(source, "cell", "exec"), names)
    assert singles == [singles_in_words([single])]
    assert shown == [
        (tmp_path / "level-08", "r0003", "c"),
        f"**{single.name}, 8 at once**",
        explained,
        "why",
    ]


def test_every_notebook_but_01_ships_with_what_it_recorded() -> None:
    stems = [path.stem for path in NOTEBOOKS if path != REPRODUCE]
    assert [path.name.rsplit("-", 1)[0] for path in SHIPPED] == stems


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda path: path.name)
def test_it_renders_from_what_ships_without_an_engine(shipped: Path, tmp_path: Path) -> None:
    stem, release = shipped.name.rsplit("-", 1)
    result = report.publish(
        [NOTEBOOKS[0].parent / f"{stem}.ipynb"], releases=[release], out=tmp_path,
        recorded=shipped.parent, screen=io.StringIO(),
    )  # fmt: skip
    [page] = result.pages
    assert page.ok
    assert page.answer == json.loads((shipped / "answer.json").read_text())["answer"]
    [run_dir] = (tmp_path / "runs").iterdir()
    # An engine would leave its log, and a sweep its trials.
    assert {p.relative_to(run_dir) for p in run_dir.rglob("*") if p.is_file()} == {
        p.relative_to(shipped) for p in shipped.rglob("*") if p.is_file()
    }
    assert "<img" in page.html.read_text()


def test_what_is_recorded_has_its_own_parameters(tmp_path: Path) -> None:
    [notebook] = [path for path in NOTEBOOKS if path.stem == "02_cache_snapshots"]
    asked: dict[str, Any]
    for asked in ({"full": True}, {"parameters": {"rounds": 2}}):
        with pytest.raises(report.ReportError, match="own parameters"):
            report.publish([notebook], out=tmp_path, recorded=SHIPPED[0].parent, **asked)
    with pytest.raises(report.ReportError, match="has nothing of these notebooks"):
        report.publish([notebook], out=tmp_path, recorded=tmp_path)
