"""Examples of the documents work: README's program, and the pages on adding a rule, a treatment and
a study, whose code is applied to a copy of the repository.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support import CHILD_ENVIRONMENT, RELEASES, REPORTED, ROOT

from analysis.shortfin.environments import python_of

_EDIT = re.compile(
    r"^\*\*`(?P<path>[\w./]+)`\*\*, (?P<where>[^\n]*):\n\n```\w+\n(?P<text>.*?)```$",
    re.DOTALL | re.MULTILINE,
)
_AFTER = re.compile(r"after the line `(?P<line>.*)`")
_COPIED = ("analysis", "docs", "tests")


def copy_of(tree: Path, page: str) -> Path:
    """Copy the repository to `tree`, with the edits of a page; what is not edited are links."""
    for path in ROOT.iterdir():
        if path.name in _COPIED:
            shutil.copytree(path, tree / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif path.name != ".git":
            (tree / path.name).symlink_to(path)
    edits = list(_EDIT.finditer((ROOT / "docs" / page).read_text()))
    assert edits
    for edit in edits:
        apply(tree / edit["path"], edit["where"], edit["text"])
    return tree


def apply(path: Path, where: str, text: str) -> None:
    if where == "a new file":
        assert not path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    elif where == "at the end":
        path.write_text(f"{path.read_text()}\n\n{text}")
    else:
        after = _AFTER.fullmatch(where)
        assert after, where
        before = path.read_text()
        assert before.count(f"{after['line']}\n") == 1, f"{path} has not one line {after['line']}"
        path.write_text(before.replace(f"{after['line']}\n", f"{after['line']}\n{text}"))


def example(document: str, heading: str) -> tuple[str, list[str]]:
    """Return the first program below a heading, and the lines that it prints."""
    section = (ROOT / document).read_text().split(f"{heading}\n", 1)[1]
    program, printed = re.findall(r"```(?:python)?\n(.*?)```", section, re.DOTALL)[:2]
    return program, printed.splitlines()


def run(tree: Path, release: str, *arguments: str) -> str:
    """Run a Python of a release in a copy, and return what it prints."""
    done = subprocess.run(
        [python_of(release), *arguments], cwd=tree, capture_output=True, text=True, timeout=300,
        env={**CHILD_ENVIRONMENT, "PYTHONPATH": str(tree)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_the_program_of_the_readme_prints_what_stands_below_it() -> None:
    program, (untreated, treated) = example("README.md", "## Debug one failure")
    first, second = run(ROOT, REPORTED, "-c", program).splitlines()
    # Counts and numbers differ from run to run; which rule is broken first, and the fix, do not.
    assert second == treated
    assert all("[seq-len-mismatch] decode of r00" in line for line in (first, untreated))


@pytest.mark.parametrize("page", ["add_rule.md", "add_treatment.md"])
def test_what_a_page_adds_works_on_every_release(tmp_path: Path, page: str) -> None:
    tree = copy_of(tmp_path, page)
    program, printed = example(f"docs/{page}", "Try it")
    for release in RELEASES:
        lines = run(tree, release, "-c", program).splitlines()
        # Numbers of invocations and events, and seconds, differ from run to run.
        assert [re.sub(r" \(.*\)$", "", line) for line in lines] == [
            re.sub(r" \(.*\)$", "", line) for line in printed
        ]


def test_an_added_rule_passes_the_tests_of_rules(tmp_path: Path) -> None:
    tree = copy_of(tmp_path, "add_rule.md")
    files = ("tests/sanitizer/test_rules.py", "tests/sanitizer/test_codes.py")
    own = "padding_row or padding-row or is_broken_here"
    passed = run(tree, REPORTED, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-k", own, *files)
    for name in ("a_padding_row_with_a_length", "a_padding_row_of_one_slot", "padding-row-length"):
        assert name in passed


def test_an_added_study_answers_on_the_reference_run(tmp_path: Path) -> None:
    tree = copy_of(tmp_path, "add_study.md")
    page = (ROOT / "docs" / "add_study.md").read_text()
    program = """
from dataclasses import replace
from analysis.runs.store import load_run
from analysis.studies import prompt_length
run = load_run("data/reference")
own = run.trials.query("release == RELEASE and prefix_sharing == 'none' and concurrency == 8")
run = replace(run, requests=run.requests[run.requests["trial_id"].isin(own["trial_id"])])
lengths = prompt_length.by_length(run, 40)
assert prompt_length.length_figure(lengths).axes
assert prompt_length.length_sweep(RELEASE, 8, 8).trials()
print(prompt_length.length_in_words(lengths))
"""
    said = run(tree, REPORTED, "-c", program.replace("RELEASE", repr(REPORTED)))
    assert said.strip() in " ".join(page.split())
