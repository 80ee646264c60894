"""The table of a row's pages beside those of the request alone."""

from __future__ import annotations

from analysis.reproduction.fingerprints import table_of


def row(phase, length, pages, checksums):
    return {"phase": phase, "length": length, "pages": pages, "checksums": checksums}


def test_the_last_common_row_is_shown_with_the_pages_that_differ():
    together = [
        row("prefill", 16, [9], [1]),
        row("decode", 17, [9, 0], [7, 2]),
        row("decode", 18, [9, 0], [7, 3]),
        row("decode", 19, [9, 0], [7, 4]),
    ]
    alone = [
        row("prefill", 16, [5], [1]),
        row("decode", 17, [5, 4], [7, 2]),
        row("decode", 18, [5, 4], [7, 8]),
    ]
    sentence, _, table = table_of(together, alone).partition("\n\n")
    assert sentence == (
        "Its last row: decode of 18 tokens. CRC-32 of their keys and values. A page differs from"
        " the decode of 18 tokens on."
    )
    first, second = table.splitlines()[2:]
    assert first.replace(" ", "") == "|0|9|`00000007`|5|`00000007`|equal|"
    assert second.replace(" ", "") == "|1|0|`00000003`|4|`00000008`|**differs**|"


def test_without_a_common_row_there_is_no_table():
    assert table_of([row("decode", 17, [1], [1])], [row("prefill", 16, [1], [1])]) == ""
