"""Calibration of the verdict on wrong answers: real engines and made-up traces of known truth."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from support import NEWEST
from trace_builder import Row, TraceBuilder
from traces import run_of, wrong_page

from analysis import explain
from analysis.diagnosis.verdict import MEANINGS, recorded_statuses
from analysis.runs.store import load_run
from analysis.sanitizer.kv_compare import NUMERICS
from analysis.sweep.plan import Plan
from analysis.sweep.runner import run_sweep
from analysis.workloads.named import make_workload

_DECODER = """
import numpy as np
from analysis.model.artifacts import load_model
from analysis.model.compile import compile_model
from analysis.model.reference import ReferenceDecoder
from analysis.model.tokenizer import ModelTokenizer
model = load_model(None)
decoder = ReferenceDecoder(model, compile_model(model, batch_sizes=(4,)))
tokenizer, rng = ModelTokenizer(model), np.random.default_rng(0)
def random_tokens(count):
    return [tokenizer.encode("1")[0], *rng.integers(3, 41, size=count).tolist()]
"""
_ROUNDED = (
    _DECODER
    + """
# A prompt whose next token changes if its keys and values are read as rounded to float16 (decoded)
# and not as float32 (prefilled): what a test expects that was made in the other precision.
def found():
    for _ in range(2000):
        tokens = random_tokens(60)
        prefilled = decoder.start(tokens).prompt_logits.argmax(axis=1)
        sequence = decoder.start(tokens[:1], capacity=80)
        for place, token in enumerate(tokens[1:], 1):
            sequence.step(token)
            after, other = int(prefilled[place]), sequence.next_token
            if after != other and min(after, other) > 2:
                return tokenizer.decode(tokens[1 : place + 1]), tokenizer.decode([other])
say(found())
"""
)
WRONG_FOR_THE_MODEL = ("2 4 8 16 32 ", "64 128 ")
"""It counts by equal steps."""


FAULTS = {
    "cache": ("values-zeroed", "pages-swapped", "seq-len-long", "wrong-page", "write-lost",
              "table-changed-after-filling"),
    "results": ("rows-exchanged", "second-best-token", "foreign-answer"),
}  # fmt: skip
"""What each fault makes of an answer, if it changes it."""


def swept(release, directory, child, *treatments, sanitize=False):
    """Sweep healthy prompts, one that the model answers wrong, and one that rounding decides."""
    done = child(release, _ROUNDED)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [asdict(one) for one in make_workload("mixed", count=6, seed=3).requests]
    for name, (prompt, expected) in (("model", WRONG_FOR_THE_MODEL), ("rounded", done.reply)):
        lines.append({"id": name, "prompt": prompt, "expected": expected})
    file = directory / "prompts.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    plan = Plan(releases=(release,), workload=str(file), concurrency=(4,), repeats=1,
                treatments=treatments, sanitize=sanitize, observe="snapshots",
                keep_wrong=True, serialise_invocations=True)  # fmt: skip
    run_sweep(plan, directory / "run", progress=False)
    return load_run(directory / "run", controls=True)


def verdicts(run, **options):
    """Return the verdict on each wrong answer, by the last treatment and the request."""
    # A control of an injected fault has two.
    trials = run.trials[run.trials["treatments"].map(lambda names: str(names).count("fault:") < 2)]
    wrong = run.requests[run.requests["outcome"] == "wrong"].merge(
        trials[["trial_id", "treatments"]], on="trial_id"
    )
    return {
        (row.treatments[-1], row.request_id): explain(
            run, row.request_id, row.trial_id, **options
        ).verdict
        for row in wrong.itertuples()
    }


def test_with_all_fixes_only_model_and_numerics_are_left(release, tmp_path, child):
    faults = {"fault:values-zeroed": "cache", "fault:second-best-token": "results"}
    run = swept(release, tmp_path, child, ("all",), *(("all", name) for name in faults))
    every = verdicts(run)
    found = {request: verdict for (last, request), verdict in every.items() if last not in faults}
    assert {name: one.status for name, one in found.items()} == {
        "model": "model", "rounded": "numerics",
    }  # fmt: skip
    # A fault may hit one of those, or change no token.
    injected = {key: one.status for key, one in every.items() if key[0] in faults}
    injected = {key: status for key, status in injected.items() if key[1] not in found}
    assert injected
    assert injected == {key: faults[key[0]] for key in injected}
    model, rounded = found["model"], found["rounded"]
    assert model.same_alone
    assert rounded.same_alone
    assert rounded.reproduced  # the recorded arguments give the engine's token
    assert rounded.ulps == 0.0  # and the reference decoder's keys and values, to the bit
    assert 0 < rounded.margin < 2 * rounded.order_spread
    assert rounded.margin == pytest.approx(rounded.reference_margin, abs=1e-5)
    assert model.margin > 2 * model.order_spread
    assert (model.finding, rounded.finding) == (None, None)
    # Without the reference decoder rounding is not examined.
    known = recorded_statuses(run).set_index("request_id")["verdict"]
    assert set(known["model"]) == set(known["rounded"]) == {"model"}


# Nine engines, and with the sanitizer nine controls beside.
@pytest.mark.slow
@pytest.mark.parametrize("sanitize", [False, True])
def test_an_injected_fault_is_named(release, sanitize, tmp_path, child):
    truth = {f"fault:{name}": status for status, names in FAULTS.items() for name in names}
    run = swept(release, tmp_path, child, *(("all", name) for name in truth), sanitize=sanitize)
    found = {key: one for key, one in verdicts(run).items() if key[0] in truth}
    faulty = {key: one for key, one in found.items() if key[1] not in ("model", "rounded")}
    assert {key: one.status for key, one in faulty.items()} == {
        key: truth[key[0]] for key in faulty
    }
    assert {one.status for one in faulty.values()} == set(FAULTS)
    assert len({fault for fault, _ in faulty}) >= 4
    for (fault, request), one in found.items():
        own = {"model": "model", "rounded": "numerics"}.get(request)
        assert one.status in (own, truth[fault])
    if sanitize:
        assert all(one.finding is not None for one in faulty.values())
        for key, one in verdicts(run, reference=False).items():
            assert one.status == (found[key].status if key in faulty else "model")
        known = recorded_statuses(run).merge(run.trials[["trial_id", "treatments"]], on="trial_id")
        for row in known.itertuples():
            if (key := (row.treatments[-1], row.request_id)) in faulty:
                assert row.verdict in (faulty[key].status, "cache")  # a control of it, also


# -- made-up traces ----------------------------------------------------------------------------

_SHARED = (
    _DECODER
    + """
# A prompt whose second token changes if a decode reads its first two pages as another request
# decoded them, token by token, and not as its own prefill wrote them: the same tokens, rounded.
first = random_tokens(31)
other = decoder.start(first[:1], capacity=32)
for token in first[1:]:
    other.step(token)
decoded = other.read_pages()
def found():
    for _ in range(20_000):
        prompt = [*first, *rng.integers(3, 41, size=int(rng.integers(1, 16))).tolist()]
        sequence = decoder.start(prompt, capacity=64)
        one = sequence.next_token
        pages = sequence.read_pages()
        right = sequence.step(one).argmax()
        if np.diff(np.sort(sequence.logits)[-2:])[0] > 0.01:
            continue
        again = decoder.start(prompt, capacity=64)
        again.write_pages(np.concatenate([decoded, pages[2:]]))
        given = again.step(one).argmax()
        if given != right:
            return prompt, [one, int(right)], [one, int(given)]
say(found())
"""
)


def test_a_page_that_differs_in_the_last_places_only_is_numerics(child):
    done = child(NEWEST, _SHARED)
    assert done.returncode == 0, done.stderr[-3000:]
    prompt, right, given = done.reply
    story = TraceBuilder(stride=16)
    pad = (None,) * 3
    story.submit("b", prompt[:1])
    story.allocate("b", 4, 5)
    story.prefill("b", *pad)
    for token in prompt[1:32]:
        story.token("b", token)
        story.decode("b", *pad)
    story.submit("a", prompt)
    story.allocate("a", 1, 2, 3)
    story.prefill("a", *pad)
    story.token("a", given[0])
    story.decode(Row("a", table=(4, 5, 3)), *pad)
    story.token("a", given[1])
    story.close()
    run = run_of(
        story,
        {"request_id": "a", "prompt_tokens": prompt, "outcome": "wrong", "first_divergence": 1,
         "reference_tokens": right, "tokens": given, "expected_text": None},
        {"request_id": "b", "prompt_tokens": prompt[:1]},
        release=NEWEST, page_tokens=16, page_count=8,
    )  # fmt: skip
    verdict = explain(run, "a").verdict
    assert verdict.status == "numerics"
    assert verdict.reproduced
    assert verdict.same_alone is False
    assert 0 < verdict.ulps <= NUMERICS
    assert verdict.reference_margin < verdict.order_spread
    # With a page of other tokens the token is wrong, too, but the slots are beyond numerics.
    run.invocations.at[len(run.invocations) - 1, "block_tables"] = ((5, 4, 3),) * 4
    verdict = explain(run, "a").verdict
    assert verdict.status == "cache"
    assert verdict.ulps is None or verdict.ulps > NUMERICS


def test_what_is_missing_is_stated():
    story = TraceBuilder()
    story.submit("a", range(3))
    story.allocate("a", 1)
    story.prefill("a")
    story.token("a", 17)
    story.close()
    wrong = {"request_id": "a", "outcome": "wrong", "tokens": [17], "expected_text": "x"}
    known = {"reference_tokens": [18], "first_divergence": 0}
    for row, reference, words in (
        ({"reference_tokens": None}, True, "reference decoder's answer was not recorded"),
        (known, False, "explain the request with the reference decoder"),
        (known, True, "tokens of its prompt were not recorded"),
    ):
        run = run_of(story, {**wrong, **row})
        verdict = explain(run, "a", reference=reference).verdict
        assert verdict.status == "unknown"
        assert words in " ".join(verdict.missing)
        assert f"unknown: {MEANINGS['unknown']}" in str(explain(run, "a", reference=reference))


def test_a_read_of_another_request_is_cache():
    run = wrong_page()
    run = type(run)(**{**vars(run), "requests": run.requests.assign(expected_text=None)})
    verdict = explain(run, "a", reference=False).verdict
    assert verdict.status == "cache"
    assert (verdict.finding.page, verdict.finding.other_request_id) == (3, "b")
    assert verdict.margin == pytest.approx(1.0)
    assert explain(run, "b", reference=False).verdict is None


def test_the_tables_alone_give_a_status_where_they_decide():
    run = wrong_page()
    assert recorded_statuses(run)[["request_id", "verdict"]].values.tolist() == [["a", "unknown"]]
    same = run_of(
        TraceBuilder(), {"outcome": "wrong", "expected_text": "x", "first_divergence": None}
    )
    assert list(recorded_statuses(same)["verdict"]) == ["model"]
