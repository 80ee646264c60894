"""Explanations of a real engine: the reported release with the trie, swept and sanitized."""

from __future__ import annotations

import sys

import pytest
from support import REPORTED

from analysis import explain
from analysis.cli import main
from analysis.sanitizer.findings import WRONG_DATA
from analysis.sweep.plan import Plan
from analysis.sweep.runner import run_sweep


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A trial that answers wrong, and one whose pool is so small that its worker dies."""
    plan = Plan(releases=(REPORTED,), prefix_sharing=("trie",), pages=(256, 24), concurrency=(8,),
                repeats=1, request_timeout_s=10.0, sanitize=True)  # fmt: skip
    return run_sweep(plan, tmp_path_factory.mktemp("swept") / "run", jobs=2, progress=False)


def of_outcome(run, outcome):
    found = run.requests[run.requests["outcome"] == outcome]
    assert len(found), run.requests["outcome"].value_counts()
    return found.iloc[0]


def test_the_engine_computed_the_wrong_token_and_the_reference_the_right_one(swept):
    row = of_outcome(swept, "wrong")
    explained = explain(swept, row["request_id"], row["trial_id"])
    token = explained.divergence
    assert token.engine.best == token.given == row["tokens"][token.token_index]
    assert token.reference.best == token.right == row["reference_tokens"][token.token_index]
    assert token.engine.given > (token.engine.right or 0)
    assert token.reference.right > token.reference.given
    assert token.missing == ()
    assert explained.finding.severity == WRONG_DATA
    assert explained.finding.seq < token.seq
    assert explained.finding.text in " ".join(explained.diagnosis)
    # As the engine executed: a prefill, then a decode for each further token.
    assert [f.token_index for f in explained.invocations] == list(range(len(explained.invocations)))
    assert explained.invocations[token.token_index].invocation_id == token.invocation_id
    assert explained.invocations[token.token_index].top[0][0] == token.given
    assert explained.peers
    first = explained.invocations[0]
    held = set(first.own_row.table[: -(-first.own_length // explained.trace.page_tokens)])
    assert held <= {history.page for history in explained.pages}


def test_a_request_of_a_dead_engine_names_the_worker_crash(swept):
    row = of_outcome(swept, "engine_died")
    explained = explain(swept, row["request_id"], row["trial_id"])
    output = " ".join(explained.diagnosis)
    assert "died" in output
    assert explained.death.frame.startswith("shortfin_apps/")
    assert explained.death.requests
    assert "needed" in output
    assert explained.death.requests[-1] in output


def test_the_command_prints_the_text_and_writes_figure_and_page(
    swept, tmp_path, monkeypatch, capsys
):
    row = of_outcome(swept, "wrong")

    def cachelab(*arguments):
        monkeypatch.setattr(sys, "argv", ["cachelab", "explain", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capsys.readouterr()

    asked = swept.path, row["request_id"]
    status, out, err = cachelab(
        *asked, "--trial", row["trial_id"], "--out", tmp_path, "--no-reference"
    )
    assert (status, err) == (0, "")
    assert "First wrong token" in out
    assert (tmp_path / "explanation.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "explanation.html").read_text()
    assert "data:image/png;base64," in page
    assert "Requests in the same batches" in page
    for wrong, output in (
        ((*asked,), "Name one of these trials"),
        ((swept.path, "r9999"), "no request 'r9999'"),
        ((*asked, "--trial", "absent"), "no trial 'absent'"),
        ((tmp_path, "r0000"), "is not a run"),
    ):
        status, out, err = cachelab(*wrong)
        assert (status, out) == (1, "")
        assert len(err.splitlines()) == 1
        assert output in err
