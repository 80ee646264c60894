"""Prompts are the same for the same seed, files are read strictly, outputs are checked."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.core.errors import WorkloadError
from analysis.workloads.named import WORKLOADS, arrange, candidates, distinct, make_workload, select
from analysis.workloads.prompts import PAGE_TOKENS
from analysis.workloads.workload import Request, Workload, check_output

texts = st.text(min_size=1, max_size=20)
requests = st.builds(
    Request,
    id=texts,
    prompt=texts,
    max_new_tokens=st.integers(1, 1000),
    expected=st.none() | st.text(max_size=20),
    arrival_s=st.floats(0, 1e6),
    family=st.text(max_size=10),
)
tokens = st.lists(st.integers(0, 9), max_size=20)
ALPHABET = "0123456789"


def decode(ids):
    return "".join(ALPHABET[i] for i in ids)


@given(st.lists(requests, min_size=1, max_size=8, unique_by=lambda r: r.id))
def test_a_workload_is_read_back_as_it_was_written(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("workload") / "w.jsonl"
    Workload("any", tuple(rows)).write(path)
    assert Workload.read(path) == Workload("w.jsonl", tuple(rows))


def test_only_the_prompt_must_be_there(tmp_path: Path):
    path = tmp_path / "w.jsonl"
    path.write_text('\n{"prompt": "1 2 "}\n')
    assert Workload.read(path, max_new_tokens=7).requests == (Request("r2", "1 2 ", 7),)


@pytest.mark.parametrize(
    ("line", "output"),
    [
        ("{", "line 2"),
        ("[]", "not a JSON object"),
        ('{"id": "a"}', "`prompt`"),
        ('{"prompt": ""}', "`prompt`"),
        ('{"prompt": "1", "max_new_tokens": 0}', "`max_new_tokens`"),
        ('{"prompt": "1", "max_new_tokens": true}', "`max_new_tokens`"),
        ('{"prompt": "1", "arrival_s": -1}', "`arrival_s`"),
        ('{"prompt": "1", "arrival_s": NaN}', "`arrival_s`"),
        ('{"prompt": "1", "expected": 6}', "`expected`"),
        ('{"prompt": "1", "max_tokens": 6}', "'max_tokens'"),
        ('{"prompt": "1", "id": "first"}', "line 1"),
        ("[" * 100_000, "line 2"),
    ],
)
def test_a_bad_line_is_named_with_its_file(tmp_path: Path, line, output):
    path = tmp_path / "w.jsonl"
    path.write_text(json.dumps({"id": "first", "prompt": "1 2 "}) + "\n" + line + "\n")
    with pytest.raises(WorkloadError) as error:
        Workload.read(path)
    assert output in str(error.value)
    assert "w.jsonl, line 2" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\n\n", b'{"prompt": "\xff"}\n'])
def test_a_file_without_a_readable_request_is_refused(tmp_path: Path, content):
    path = tmp_path / "w.jsonl"
    path.write_bytes(content)
    with pytest.raises(WorkloadError, match=r"w\.jsonl"):
        Workload.read(path)
    with pytest.raises(WorkloadError, match="cannot be read"):
        Workload.read(tmp_path / "absent.jsonl")


def test_an_unknown_workload_names_those_that_there_are():
    with pytest.raises(
        WorkloadError, match="reported, mixed, shared_prefix, forks, bursts, cancelled"
    ):
        make_workload("nothing", count=1, seed=0)


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_same_seed_gives_the_same_prompts(name):
    made = make_workload(name, count=13, seed=5)
    assert len(made.requests) == 13
    assert made == make_workload(name, count=13, seed=5)
    assert len({request.id for request in made.requests}) == 13
    if name != "reported":
        assert made.requests != make_workload(name, count=13, seed=6).requests


def test_reported_is_the_prompt_of_the_report():
    (request,) = make_workload("reported", count=1, seed=0).requests
    assert (request.prompt, request.expected) == ("1 2 3 4 5 ", "6 7 8")


def test_mixed_has_every_family_and_short_and_long_prompts():
    made = make_workload("mixed", count=200, seed=0).requests
    assert {request.family for request in made} == {"count", "descend", "letters", "recall"}
    lengths = [len(request.prompt) + 1 for request in made]
    assert min(lengths) <= 12
    assert max(lengths) >= 112
    assert max(lengths) <= 120
    assert all(len(request.expected or "") == 15 for request in made)


def test_shared_prefix_shares_two_pages_and_then_parts():
    first, second = make_workload("shared_prefix", count=2, seed=0).requests
    assert first.prompt[:31] == second.prompt[:31]  # and the bos token before them
    assert first.prompt != second.prompt
    assert first.expected != second.expected


def test_multi_turn_asks_the_same_sequences_again_longer_every_time():
    made = [request.prompt for request in make_workload("multi_turn", count=20, seed=0).requests]
    for talk in range(4):
        turns = made[talk::4]
        assert all(b.startswith(a) for a, b in pairwise(turns))
        assert [len(turn) + 1 for turn in turns] == [49, 66, 83, 100, 117]


def test_evict_after_lookup_asks_for_words_on_a_page_that_was_found_cached():
    made = make_workload("evict_after_lookup", count=8, seed=0).requests
    for warm, busy, asked, _ in (made[:4], made[4:]):
        assert warm.prompt[:47] == asked.prompt[:47]  # three pages of 16, with the bos token
        assert len(asked.prompt) + 1 > 7 * 16
        place = asked.prompt.index(asked.prompt[-3:] + asked.expected) + 4
        assert 32 <= place < 48
        assert warm.arrival_s < busy.arrival_s < asked.arrival_s
    assert made[4].arrival_s - made[0].arrival_s == 2.0


def test_evict_after_lookup_leaves_out_rounds_that_lack_a_request():
    offered = candidates("evict_after_lookup", count=4, seed=0)
    sent = arrange("evict_after_lookup", offered[:2] + offered[3:], count=4, seed=0).requests
    assert [r.prompt for r in sent] == [r.prompt for r in offered[4:8]]
    assert sent[0].arrival_s == 0


@pytest.mark.parametrize(("name", "copies"), [("continued", 1), ("identical_then_continued", 4)])
def test_answers_are_continued_after_all_were_asked(name, copies):
    made = make_workload(name, count=32, seed=0).requests
    asked, continued = made[:16], made[16:]
    assert len({request.prompt for request in asked}) == 16 // copies
    assert all(len({r.prompt for r in asked[i : i + copies]}) == 1 for i in range(0, 16, copies))
    for first, second in zip(asked, continued, strict=True):
        assert second.prompt == first.prompt + first.expected
        assert first.max_new_tokens == len(first.expected) == 80  # five pages
        assert second.max_new_tokens == len(second.expected) == 15
        assert 1 + len(second.prompt) + 15 <= 256


def test_a_talk_that_lacks_a_request_is_left_out():
    offered = candidates("continued", count=4, seed=0)
    sent = arrange("continued", offered[1:], count=4, seed=0).requests
    assert [r.prompt for r in sent] == [offered[i].prompt for i in (2, 4, 3, 5)]


@given(st.integers(1, 60))
def test_prefix_reuse_asks_the_first_prompts_again_after_others(clients):
    made = [
        request.prompt
        for request in make_workload("prefix_reuse", count=3 * clients, seed=1).requests
    ]
    a, b, again = made[:clients], made[clients : 2 * clients], made[2 * clients :]
    assert again == a
    assert not set(a) & set(b)


def test_select_takes_only_what_every_reference_answers_right():
    offered = [Request(str(i), f"p{i}", 2, str(i) * 2) for i in range(6)]
    right = {(f"p{i}", 2): [i, i] for i in range(6)}
    worse = {**right, ("p1", 2): [1, 2]}
    kept, dropped = select(offered, 3, [right, worse], decode)
    assert [request.id for request in kept] == ["0", "2", "3"]
    assert dropped == 1
    with pytest.raises(WorkloadError, match="model alone"):
        select(offered, 6, [right, worse], decode)


@pytest.mark.parametrize("name", WORKLOADS)
@given(count=st.integers(1, 40))
def test_candidates_suffice_for_what_is_arranged(name, count):
    need = distinct(name, count)
    offered = candidates(name, count=count, seed=0)
    assert name == "reported" or len(offered) > need
    assert len(arrange(name, offered[:need], count=count, seed=0).requests) == count


@given(tokens, tokens, st.integers(1, 20), st.none() | st.text("0123456789", max_size=20))
def test_the_check_of_a_completed_answer(answer, reference, n, expected):
    answer, reference = answer[:n], reference[:n]
    request = Request("r", "p", n, expected)
    outcome, divergence = check_output(answer, decode(answer), "ok", request, reference)
    assert (divergence is None) == (answer == reference)
    if divergence is not None:
        assert answer[:divergence] == reference[:divergence]
        assert answer[divergence : divergence + 1] != reference[divergence : divergence + 1]
    right = answer == reference if expected is None else decode(answer).startswith(expected[:n])
    assert outcome == ("ok" if right else "wrong")


@given(tokens, st.sampled_from(["empty", "rejected", "error", "timeout", "engine_died"]))
def test_the_check_leaves_other_outcomes_and_missing_tokens_alone(reference, outcome):
    request = Request("r", "p", 15, "6 7 8")
    for answer in ([], reference[: len(reference) // 2]):
        assert check_output(answer, decode(answer), outcome, request, reference) == (outcome, None)


def test_an_answer_cut_short_is_wrong():
    request = Request("r", "p", 15, "678")
    assert check_output([6, 7], "67", "ok", request, None) == ("wrong", None)
    assert check_output([6, 7], "67", "ok", Request("r", "p", 2, "678"), [6, 7]) == ("ok", None)


def test_forks_are_at_every_place_of_a_page():
    sent = make_workload("forks", count=400, seed=0).requests
    forks = set()
    for number in range(0, 400, 4):
        family = [request.prompt for request in sent[number : number + 4]]
        assert len(set(family)) == 4
        assert len({len(prompt) for prompt in family}) == 1
        shared = next(n for n, each in enumerate(zip(*family, strict=True)) if len(set(each)) > 1)
        assert shared >= 5  # and the bos token
        forks.add((shared + 1) % PAGE_TOKENS)
    assert forks == set(range(PAGE_TOKENS))


def test_bursts_arrive_in_order_and_the_same_each_time():
    sent = make_workload("bursts", count=200, seed=0).requests
    arrivals = [request.arrival_s for request in sent]
    assert arrivals == sorted(arrivals)
    assert arrivals == [r.arrival_s for r in make_workload("bursts", count=200, seed=1).requests]
    gaps = [later - earlier for earlier, later in pairwise(arrivals)]
    assert sum(gap > 0.2 for gap in gaps) > 10
    assert sum(gap < 0.1 for gap in gaps) > 100
