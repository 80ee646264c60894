"""Findings as text, as HTML and as figures."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from synthetic import request_row, trial_row
from trace_builder import Row, TraceBuilder, strayed

from analysis.cli.check import _words as check_words
from analysis.diagnosis.finding_figure import MINE, OTHER, finding_figure
from analysis.jupyter import html_of
from analysis.runs.store import RunWriter, load_run
from analysis.runs.tables import to_frame
from analysis.sanitizer import RULES, check_run
from analysis.sanitizer.findings import AT_RISK, WRONG_DATA, Finding, Findings, worst
from analysis.sanitizer.recorded import Checked
from analysis.sanitizer.rules import consequence_of
from analysis.studies.first_error.detection_lead import detection_lead
from analysis.studies.first_error.figures import (
    checked_table,
    findings_chart,
    findings_table,
    lead_times,
    leads_table,
)
from analysis.studies.first_error.words import answer_in_a_sentence, findings_in_words
from analysis.studies.validation.evidence import _grouped as grouped
from analysis.treatments import FAULTS

A = (11, 12, 13, 14, 15, 16)
HOSTILE = "<script>alert('r')</script>"


def words(figure: Figure) -> str:
    texts = [t.get_text() for t in figure.texts]
    texts += [t.get_text() for legend in figure.legends for t in legend.get_texts()]
    for axes in figure.axes:
        texts += [t.get_text() for t in axes.texts]
        texts += [axes.get_title(loc="left"), axes.get_xlabel()]
        texts += [t.get_text() for t in axes.get_yticklabels()]
    return " | ".join(texts)


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.text, self.tags = "", []

    def handle_data(self, data: str) -> None:
        self.text += data + " "

    def handle_starttag(self, tag: str, attrs) -> None:
        self.tags.append(tag)


def read(html: str) -> _Text:
    parser = _Text()
    parser.feed(html)
    return parser


# -- words and HTML ----------------------------------------------------------------------------


def test_findings_have_event_request_and_place() -> None:
    findings = strayed().check()
    lead = findings.first_wrong_data
    assert (lead.request_id, lead.other_request_id, lead.page, lead.slot) == ("a", "b", 3, 0)
    for text in (str(findings), read(html_of(findings)).text):
        assert findings.summary in text
        assert "decode of a: reads its position 0 from slot 0 of page 3" in text
        assert "invocation 2" in text
        assert "wrong-kv-read (cross-request)" in text
    html = read(html_of(findings))
    assert lead.sentence in html.text
    assert "script" not in html.tags
    assert "svg" in html.tags


def test_the_absence_of_findings_is_reported() -> None:
    findings = TraceBuilder().check()
    assert str(findings) == "No rule was broken (0 invocations and 0 events checked)."
    assert "No rule was broken" in read(html_of(findings)).text


def test_one_of_a_kind_is_in_the_singular() -> None:
    findings = Findings()
    findings.invocations = findings.events = 1
    finding = Finding("cause", "message", "r", severity=WRONG_DATA)
    finding.rule = "rule"
    findings.add(finding)
    output = "1 finding of 1 cause, 1 of them with wrong data (1 invocation and 1 event checked)."
    assert findings.summary == output


def test_hostile_names_are_escaped() -> None:
    html = html_of(strayed(HOSTILE).check())
    assert "script" not in read(html).tags
    assert HOSTILE in read(html).text


def test_html_stays_small_with_many_findings() -> None:
    findings = Findings()
    for number in range(40):
        finding = Finding(f"cause {number}", "x" * 50_000, "r" * 5000, stack="y" * 50_000)
        finding.rule, finding.sentence, finding.seq = "rule", "It holds.", number
        findings.add(finding)
    findings.note("z" * 100_000)
    html = html_of(findings)
    assert len(html) < 300_000
    assert "And 28 more causes" in html
    assert "cause 39" in html


def test_notes_are_shown() -> None:
    findings = TraceBuilder().check()
    findings.note("The end was cut off.")
    assert "Not checked: The end was cut off." in str(findings)
    assert "The end was cut off." in read(html_of(findings)).text


# -- the picture of a finding ------------------------------------------------------------------


def fills(figure: Figure) -> list[tuple[float, ...]]:
    from matplotlib.colors import to_hex

    shown = [p for p in figure.axes[0].patches if isinstance(p, Rectangle) and p.get_fill()]
    return [to_hex(p.get_facecolor()).upper() for p in shown]


def test_a_figure_shows_the_writers_of_the_pages() -> None:
    finding = strayed().check().first_wrong_data
    figure = finding_figure(finding)
    output = words(figure)
    for part in (
        "page 3",
        "page 2",
        "held by b",
        "before",
        "after",
        "read for a",
        "written by a",
        "written by b",
        "the slot of the finding",
        "pages of a, 7 tokens: 3, 2",
    ):
        assert part in output, part
    assert finding.text.split()[0] in output
    pages = finding.context.pages
    strips = [s for p in pages for s in ([p.before, p.after] if p.before != p.after else [p.after])]
    slots = [slot for strip in strips for slot in strip]
    drawn = fills(figure)
    assert len(drawn) == len(slots)
    assert drawn.count(MINE.upper()) == sum(
        slot.request_id == "a" and slot.kind == "token" for slot in slots
    )
    assert drawn.count(OTHER.upper()) == sum(
        slot.request_id == "b" and slot.kind == "token" for slot in slots
    )
    meant = [p for p in figure.axes[0].patches if not p.get_fill()]
    assert [p.get_x() for p in meant] == [finding.slot]


@pytest.mark.parametrize("text", ["Short.", "Long words " * 200 + "."])
def test_a_finding_without_a_scene_is_shown_in_words(text: str) -> None:
    finding = Finding("cause", text)
    finding.rule, finding.sentence = "rule", "It holds."
    assert text.split()[0] in words(finding_figure(finding))


# -- runs --------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    """A trial in which `a` answers wrong after reading wrong data, a clean one, and controls."""
    writer = RunWriter.create(tmp_path / "run", {"plan": {}, "seed": 0, "command": "test"})
    short = TraceBuilder()
    short.submit("a", A)
    short.allocate("a", 1, 2)
    short.prefill("a")
    short.token("a", 100)
    short.decode(Row("a", seq_len=6))
    clean = TraceBuilder()
    clean.submit("a", A)
    ill = strayed()
    ill.decode("a", "b")
    ill.token("a", 102)
    ill.token("b", 102)
    trials = (
        ("ill", ill.close(), {}, {"a": ("wrong", 2), "b": ("ok", None)}),
        ("well", clean.close(), {"treatments": ["correct-seq-lens"]}, {"a": ("ok", None)}),
        ("control", short.close(), {"treatments": ["fault:seq-len-short"]}, {"a": ("ok", None)}),
        (
            "treated-control",
            short,
            {"treatments": ["correct-seq-lens", "fault:seq-len-short"]},
            {"a": ("ok", None)},
        ),
    )
    for trial, story, changes, outcomes in trials:
        requests = [
            request_row(trial_id=trial, request_id=r, outcome=o, first_divergence=d)
            for r, (o, d) in outcomes.items()
        ]
        tables = story.tables(trial)
        findings = story.check(close=False).rows(trial)
        writer.write_trial(
            trial_row(trial_id=trial, **changes), requests, **tables, findings=findings
        )
    return load_run(tmp_path / "run")


def test_leads_count_the_calls_before_the_wrong_token(run) -> None:
    # Token 0 is the prefill's, 1 that of the decode that read wrong data, 2 the next one's.
    (row,) = detection_lead(run).to_dict("records")
    assert (row["request_id"], row["rule"], row["invocation_id"]) == ("a", "wrong-kv-read", 2)
    assert (row["wrong_invocation"], row["invocations_before"]) == (3, 1)
    assert row["seconds_before"] > 0
    assert (
        detection_lead(type(run)(**{**vars(run), "findings": run.findings.iloc[:0]}))[
            "invocations_before"
        ]
        .isna()
        .all()
    )


def test_lead_times_has_a_bar_for_each_wrong_answer() -> None:
    trials = to_frame("trials", [trial_row(trial_id="c")])
    ahead = pd.DataFrame(
        {"trial_id": "c", "invocations_before": pd.array([0, 0, 3, None], "Int64")}
    )
    figure = lead_times(ahead, trials)
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights == [2, 0, 0, 1, 1]
    assert "n = 4 wrong answers" in words(figure)
    assert "nothing that came before" in words(lead_times(ahead.iloc[:0], trials))


def test_the_chart_counts_requests_by_rule_and_leaves_controls_out(run) -> None:
    figure = findings_chart(run.findings, run.requests, run.trials)
    output = words(figure)
    assert "wrong-kv-read: cross-request" in output
    assert "1 of 2" in output
    assert "no rule was broken" in output
    assert "underread" not in output
    assert len(figure.axes) == 2
    nothing = findings_chart(run.findings, run.requests, run.trials.iloc[:0])
    assert "No trial was checked." in words(nothing)


def test_the_chart_counts_trials_where_no_request_is_concerned() -> None:
    trials = to_frame("trials", [trial_row(trial_id="c"), trial_row(trial_id="d", repeat=1)])
    requests = to_frame("requests", [request_row(trial_id=c) for c in "cd"])
    row = {"finding_id": "0", "trial_id": "c", "rule": "not-quiescent", "cause": "pages out",
           "severity": AT_RISK, "count": 1, "message": "Gone."}  # fmt: skip
    figure = findings_chart(to_frame("findings", [row]), requests, trials)
    assert "1 of 2 trials" in words(figure)


def test_the_text_has_the_first_finding_and_its_count(run) -> None:
    text = findings_in_words(run, check_run(run.path))
    ill, well, _, *table = text.splitlines()
    assert "1 of 2 requests read wrong data." in ill
    assert "decode of a: reads its position 0 from slot 0 of page 3" in ill
    assert "correct-seq-lens" in well
    assert "no rule was broken." in well
    assert "not known whether the sanitizer" not in text
    assert not re.search(r"\bnan\b", text)
    head, _, first, second = ([cell.strip() for cell in row.split("|")[1:-1]] for row in table)
    row = dict(zip(head, first, strict=True))
    assert (row["wrong answers"], row["other failures"], row["rejected"]) == ("1 of 2", "0", "0")
    assert row["requests that read wrong data"].startswith("1 of 2: 50% (")
    assert row["wrong answers after wrong data"] == "1 of 1"
    assert row["calls before the wrong token"].startswith("median ")
    assert dict(zip(head, second, strict=True))["treatments"] == "correct-seq-lens"


def test_severity_of_a_group_is_the_worst_in_it() -> None:
    findings = Findings()
    for severity, request in ((AT_RISK, "a"), (WRONG_DATA, "b")):
        finding = Finding("cause", "It broke.", request, severity=severity)
        finding.rule = "rule"
        findings.add(finding)
    (group,) = findings.groups
    assert group.severity == WRONG_DATA
    assert findings.first_wrong_data.request_id == "b"


def test_the_worst_severity_is_chosen_by_its_rank_and_not_by_its_spelling(monkeypatch) -> None:
    assert worst([AT_RISK, WRONG_DATA, AT_RISK]) == WRONG_DATA
    assert worst([AT_RISK]) == AT_RISK
    with pytest.raises(ValueError, match="not in tuple"):
        worst(["odd"])
    # The worse one has the shorter word, which also comes first in the alphabet.
    for module in ("analysis.sanitizer.findings", "analysis.studies.first_error.figures"):
        monkeypatch.setattr(sys.modules[module], "SEVERITIES", ("bad", "merely at risk"))
    checked = Checked("3.1.0", "none", (), trials=3)
    for trial, cause, severity in (
        ("a", "both", "merely at risk"), ("b", "both", "bad"), ("c", "mild", "merely at risk"),
    ):  # fmt: skip
        findings = Findings()
        finding = Finding(cause, "It broke.", "r", severity=severity)
        finding.rule = "rule"
        findings.add(finding)
        checked.add(trial, findings)
    assert "bad: rule (both), 2 times" in check_words(checked)
    table = findings_table([checked]).frame
    assert list(table["severity"]) == ["bad", "merely at risk"]
    rows = [{"trial_id": "a", "rule": "rule", "cause": "c", "severity": severity, "request_id": "r",
             "message": "It broke."} for severity in ("merely at risk", "bad")]  # fmt: skip
    own = SimpleNamespace(trial_id="a", findings=rows)
    (found,) = grouped([own], "findings", {})
    assert found.severity == "bad"


def test_tables_have_coverage_and_consequences(run) -> None:
    checked = check_run(run.path)
    settings = checked_table(checked)
    assert list(settings.frame["worth"]) == ["valid", "valid"]
    assert list(settings.frame["planted faults found"]) == ["1 of 1", "1 of 1"]
    found = findings_table(checked)
    assert "release" not in found.frame  # the same everywhere
    (row,) = found.frame[found.frame["rule"] == "wrong-kv-read"].to_dict("records")
    assert (row["severity"], row["requests"], row["trials"]) == ("wrong data", 1, 1)
    assert row["what it leads to"] == consequence_of("wrong-kv-read", "cross-request")
    assert "No rule was broken" in findings_table([]).markup


def test_first_findings_are_listed_and_others_counted() -> None:
    ahead = pd.DataFrame(
        {"trial_id": "c", "request_id": list("abc"), "first_divergence": 3,
         "rule": ["seq-len-mismatch", None, None], "cause": ["overread", None, None],
         "invocations_before": pd.array([2, None, None], "Int64"),
         "seconds_before": [0.25, float("nan"), float("nan")]}
    )  # fmt: skip
    html = leads_table(ahead, count=2).markup
    assert "0.250" in html
    assert "none was found" in html
    assert "And 1 more." in html
    assert "nan" not in html.lower()
    assert "No answer was wrong" in leads_table(ahead.iloc[:0]).markup


def test_the_lead_is_the_first_wrong_data_of_the_first_trial(run) -> None:
    ill, well = check_run(run.path)
    trial, finding = ill.lead()
    assert (trial, finding.rule, finding.cause) == ("ill", "wrong-kv-read", "cross-request")
    assert finding.context.pages
    assert ill.lead(["other"]) is None
    assert well.lead() is None


def test_the_answer_is_a_sentence(run) -> None:
    text = answer_in_a_sentence(run, check_run(run.path))
    assert text.startswith("Prefix sharing none: 1 of 2 requests read wrong data, 1 wrong answer,")
    assert text.endswith(".")
    checked = check_run(run.path)
    checked[0].alarms = 0
    assert answer_in_a_sentence(run, checked).startswith("Invalid")


def test_every_rule_has_consequences() -> None:
    for rule in RULES:
        injected = {fault.cause for fault in FAULTS.values() if fault.rule == rule.name}
        assert injected <= set(rule.causes)
        for cause in rule.causes:
            assert consequence_of(rule.name, cause).endswith("."), (rule.name, cause)
