"""What a notebook shows of the data: the formatters, and who imports IPython."""

from __future__ import annotations

import re
from importlib import import_module

from IPython.core.interactiveshell import InteractiveShell
from support import REPORTED, ROOT, ChildRunner
from synthetic import make_run
from test_snapshot import snapshot

from analysis.engine.completion import Completion
from analysis.jupyter import FORMATTERS, html_of
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
