"""Using up the pages and crowding the trie, on the real engines; and the words for it."""

from __future__ import annotations

import pandas as pd
import pytest
from support import ChildRunner, has

from analysis.model.artifacts import load_model
from analysis.model.tokenizer import ModelTokenizer
from analysis.snapshots.snapshot import STATES
from analysis.studies.snapshots.plan import crossing_prompt
from analysis.studies.snapshots.words import leak_in_words


def rows(*values: tuple[int, int, int, int]) -> pd.DataFrame:
    """(asked, answered, leaked, live) a round, of 64 pages."""
    return pd.DataFrame(
        [
            {"round": n, "asked": asked, "answered": answered, "rejected": 0, "outcomes": "",
             "free": 64 - leaked - live, "live": live, "cached": 0, "leaked": leaked}
            for n, (asked, answered, leaked, live) in enumerate(values)
        ],
        columns=["round", "asked", "answered", "rejected", "outcomes", *STATES],
    )  # fmt: skip


def test_words_for_a_cache_that_is_put_back() -> None:
    text = leak_in_words("none", rows((4, 4, 0, 0), (8, 8, 0, 0)))
    assert text == (
        "With prefix sharing none, 8 of 8 requests were answered, and none of the 64 pages leaked."
    )


def test_words_for_a_leak_until_nothing_is_answered() -> None:
    text = leak_in_words("trie", rows((4, 4, 4, 0), (8, 8, 8, 0), (12, 8, 9, 27), (16, 8, 9, 27)))
    assert "8 of 16 requests were answered" in text
    assert "9 of 64 pages had leaked (1.00 leaked for each answered request)" in text
    assert "27 were held by requests that had not ended" in text
    assert "After 8 requests nothing was answered any more." in text


def test_words_where_nothing_was_ever_answered() -> None:
    assert "After 0 requests nothing" in leak_in_words("none", rows((4, 0, 2, 0), (8, 0, 2, 0)))
    assert "nothing was asked" in leak_in_words("none", rows())


@pytest.mark.parametrize("number", [0, 799])
def test_the_prompt_leaves_room_for_three_tokens_on_its_page(number: int) -> None:
    assert len(ModelTokenizer(load_model(None)).encode(crossing_prompt(number))) == 13


def test_using_up_the_pages(child: ChildRunner, release: str) -> None:
    done = child(
        release,
        """
        from analysis.studies.snapshots.plan import exhaust_pool
        from analysis.studies.snapshots.words import leak_in_words
        found = {}
        for sharing in ("none", "trie"):
            with Engine(EngineConfig(prefix_sharing=sharing, page_count=64)) as engine:
                used = exhaust_pool(engine, rounds=14, timeout_s=3)
                found[sharing] = used.to_dict("list"), leak_in_words(sharing, used)
        say(found)
        """,
    )
    assert done.returncode == 0, done.stderr
    for sharing, (used, text) in done.reply.items():
        for counts in zip(*(used[state] for state in STATES), strict=True):
            assert sum(counts) == 64
        if has(release, "records"):
            # A page for each answered request, until not even a block of eight is left.
            assert used["leaked"][:6] == used["answered"][:6] == [4, 8, 12, 16, 20, 24]
            assert len(used["round"]) < 14
            assert used["answered"][-1] == used["answered"][-3]
            assert "nothing was answered any more" in text
        elif sharing == "trie" and not has(release, "aliased-tokens"):
            if has(release, "allocations"):  # from 3.6 on an answer gets its page, which is lost
                assert used["leaked"][:6] == used["answered"][:6] == [4, 8, 12, 16, 20, 24]
        else:
            assert used["answered"][-1] == 56
            assert used["leaked"] == [0] * 14


def test_duplicate_nodes_kill_releases_with_blind_publications_and_no_others(
    child: ChildRunner, release: str
) -> None:
    done = child(
        release,
        """
        from analysis.studies.evictions.plan import force_duplicate_nodes
        with Engine(EngineConfig(prefix_sharing="trie", page_count=24)) as engine:
            rounds = force_duplicate_nodes(engine, rounds=20)
            say([rounds, engine.died.message if engine.died else None])
        """,
        short_strobes=False,  # those of a round must be in one batch
    )
    assert done.returncode == 0, done.stderr
    rounds, death = done.reply
    if has(release, "blind-publish"):
        assert rounds < 20
        assert "KeyError" in death
    else:
        assert (rounds, death) == (20, None)
