"""How numbers, lists and tables read."""

from __future__ import annotations

from analysis.core.wording import markdown_table


def test_a_markdown_table_has_a_head_for_every_key_that_has_a_text_somewhere() -> None:
    rows = [{"setting": "none", "p": "", "note": ""}, {"setting": "a|b\nc", "p": "p = 0.02"}]
    assert markdown_table(rows).splitlines() == [
        "| setting | p |",
        "| ------- | -------- |",
        "| none    |  |",
        "| a\\|b c  | p = 0.02 |",
    ]
    assert markdown_table([]) == markdown_table([{"a": ""}]) == ""
