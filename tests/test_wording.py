"""How numbers, lists and tables read."""

from __future__ import annotations

from analysis.core.wording import markdown_table, short_files


def test_a_markdown_table_has_a_head_for_every_key_that_has_a_text_somewhere() -> None:
    rows = [{"setting": "none", "p": "", "note": ""}, {"setting": "a|b\nc", "p": "p = 0.02"}]
    assert markdown_table(rows).splitlines() == [
        "| setting | p |",
        "| ------- | -------- |",
        "| none    |  |",
        "| a\\|b c  | p = 0.02 |",
    ]
    assert markdown_table([]) == markdown_table([{"a": ""}]) == ""


def test_files_of_a_traceback_are_named_relative_to_where_they_are_installed() -> None:
    text = (
        '  File "/root/.pyenv/versions/3.11.7/lib/python3.11/asyncio/events.py", line 80, in _run\n'
        '  File "/a b/.venv/lib/python3.11/site-packages/shortfin_apps/llm/x.py", line 3, in run\n'
        '  File "/home/me/cachelab/analysis/shortfin/hooks.py", line 186, in observed\n'
        '    raise KeyError("/a/b"): /opt/lib/python3.11/site-packages/iree/x.so\n'
    )
    assert short_files(text) == (
        '  File "asyncio/events.py", line 80, in _run\n'
        '  File "shortfin_apps/llm/x.py", line 3, in run\n'
        '  File "analysis/shortfin/hooks.py", line 186, in observed\n'
        '    raise KeyError("/a/b"): /opt/lib/python3.11/site-packages/iree/x.so\n'
    )
