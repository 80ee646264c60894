"""Slots of a real cache are classified correctly: healthy and overwritten ones."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from support import NEWEST, REPORTED, ChildRunner, has

from analysis.core.errors import ModelError
from analysis.model.artifacts import load_model
from analysis.sanitizer import kv_compare, kv_reference

_SERVE = """
import time
import numpy as np
import pandas as pd
from analysis.recording import observe
from analysis.sanitizer import kv_compare, kv_reference
PROMPTS = {"a": "1 2 3 4 5 ", "b": "z y x w v u t s r q p o n ",
           "c": "3 6 9 12 15 18 21 24 27 30 33 36 39 ", "d": "abc def ghi >abc d"}

def serve(engine, prompts=PROMPTS, tokens=11):
    # All at once; returns what was written.
    with observe(engine, snapshots=False, memory_every_s=0) as recording:
        sent = [engine.submit(p, tokens, request_id=n) for n, p in prompts.items()]
        ended = [future.result() for future in sent]
        deadline = time.monotonic() + 10
        while recording.recorder.under_way and time.monotonic() < deadline:
            time.sleep(0.01)
    assert [c.outcome for c in ended] == ["ok"] * len(prompts), ended
    rows = kv_compare.written(recording)
    for c in ended:  # the last token is never fed back
        assert rows[c.request_id][1] == (*c.prompt_tokens, *c.tokens[:-1]), c
        assert rows[c.request_id][0] == len(c.prompt_tokens)
    return rows

def put(engine, page, slots, values):
    # [layers, 2, slots, heads, dim]
    (table,) = engine.service.native.page_cache.page_pool.page_tables
    now = kv_compare.read_pages(engine, [page])[0]
    now[:, :, slots] = values
    with table.view(page).map(write=True) as mapped:
        array = np.asarray(memoryview(mapped)).view(np.float16).reshape(-1)
        array[:] = now.reshape(-1)
    assert np.array_equal(kv_compare.read_pages(engine, [page])[0].view(np.uint16),
                          now.view(np.uint16))

def counts(frame):
    sizes = frame.groupby(["decoded", "verdict"]).size().items()
    return {f"{'decoded' if k[0] else 'prompt'} {k[1]}": int(v) for k, v in sizes}
"""


@pytest.mark.parametrize(
    ("release", "batch_sizes", "at_once"),
    [
        (REPORTED, (4,), True),
        (NEWEST, (4,), True),
        (NEWEST, (1,), False),
        # Compiles the model anew, only to say the same of another release.
        pytest.param(REPORTED, (1,), False, marks=pytest.mark.slow),
    ],
)
def test_healthy_requests_hold_what_is_right_to_the_bit(
    child: ChildRunner, release: str, batch_sizes: tuple[int, ...], at_once: bool
) -> None:
    done = child(
        release,
        _SERVE
        + f"""
with Engine(EngineConfig(page_count=64, batch_sizes={batch_sizes})) as engine:
    # One after the other, the next takes the pages of the last: each is looked at right away.
    groups = [PROMPTS] if {at_once} else [{{n: p}} for n, p in PROMPTS.items()]
    frames, rows = [], {{}}
    for group in groups:
        rows |= (now := serve(engine, group))
        frames.append(kv_compare.compare(engine, now))
    frame = pd.concat(frames)
say([counts(frame), sum(prompt for prompt, _, _ in rows.values()),
     frame.ulps[~frame.decoded].max(), frame.ulps[frame.decoded].min(),
     frame.first_layer.dropna().unique().tolist()])
""",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found, prompts, of_prompts, least, layers = done.reply
    assert of_prompts <= kv_compare.NUMERICS
    held = sum(n for k, n in found.items() if k in {"prompt equal", "prompt numerics"})
    assert held == prompts
    if not has(release, "history-lengths"):
        assert set(found) <= {
            f"{p} {v}" for p in ("prompt", "decoded") for v in ("equal", "numerics")
        }
    else:
        # Lengths that are too long have unwritten slots read, from the first decode on:
        # the token is right (layer 0 is), what was attended to is not.
        assert found["decoded other context"] == 4 * 10
        assert least > kv_compare.NUMERICS
        assert min(layers) >= 1


def test_overwritten_slots_are_reported_and_named(child: ChildRunner, release: str) -> None:
    done = child(
        release,
        _SERVE
        + """
with Engine(EngineConfig(page_count=64, batch_sizes=(4,))) as engine:
    rows = serve(engine)
    page = {name: pages for name, (_, _, pages) in rows.items()}
    read = lambda p: kv_compare.read_pages(engine, [p])[0]
    # Slots 3 to 6 of b's first page get those of c's second one; 9 zeros; 12 one NaN; 14 noise.
    put(engine, page["b"][0], slice(3, 7), read(page["c"][1])[:, :, 3:7])
    put(engine, page["b"][0], [9], 0)
    part = read(page["b"][0])[:, :, [12]]
    part[2, 1, 0, 1, 5] = np.nan
    put(engine, page["b"][0], [12], part)
    put(engine, page["b"][0], [14], np.random.default_rng(0).normal(size=(4, 2, 1, 2, 32)))
    # A slot of a request that is not compared, only named; and its own at another position.
    put(engine, page["b"][1], [1], read(page["d"][0])[:, :, [5]])
    put(engine, page["b"][1], [2], read(page["b"][0])[:, :, [1]])
    # What c decoded, which on the reported release is not what the reference has there.
    put(engine, page["a"][0], [7], read(page["c"][2])[:, :, [8]])
    others = {"d": rows.pop("d")[:2]}
    frame = kv_compare.compare(engine, rows, others=others)
strange = frame[~frame.verdict.isin(["equal", "numerics", "other context"])]
strange = strange.sort_values(["request_id", "position"])
plain = lambda v: v if isinstance(v, str) else None if pd.isna(v) else int(v)
say([[[r.request_id, int(r.position), bool(r.page == page[r.request_id][r.position // 16]),
       int(r.slot), r.verdict, plain(r.other_request_id), plain(r.other_position)]
      for r in strange.itertuples()], [rows["c"][0], len(rows["c"][1])]])
""",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found, (prompt, length) = done.reply
    assert prompt <= 40 < length  # slot 8 of c's third page was decoded
    assert found == [
        ["a", 7, True, 7, "other", "c", 40],
        *(["b", slot, True, slot, "other", "c", 16 + slot] for slot in range(3, 7)),
        ["b", 9, True, 9, "empty", None, None],
        ["b", 12, True, 12, "not finite", None, None],
        ["b", 14, True, 14, "unknown data", None, None],
        ["b", 17, True, 1, "other", "d", 5],
        ["b", 18, True, 2, "other", "b", 1],
    ]


def test_damage_above_the_first_layer_is_no_other_context(child: ChildRunner, release: str) -> None:
    done = child(
        release,
        _SERVE
        + """
with Engine(EngineConfig(page_count=64, batch_sizes=(4,))) as engine:
    rows = serve(engine)
    page = {name: pages for name, (_, _, pages) in rows.items()}
    read = lambda p: kv_compare.read_pages(engine, [p])[0]
    b, c = read(page["b"][0]), read(page["c"][0])
    b[2, :, 3:7] = c[2, :, 3:7]  # a whole layer of another request
    b[3, :, 8] = c[3, :, 8]  # the last layer: no later one shows it
    b[1, 1, 9] = 0  # half of a layer
    b[2, 0, 10, 1] = 0  # one head
    put(engine, page["b"][0], slice(0, 16), b)
    # And in a slot that was decoded, which on the reported release differs in any case.
    prompt, _, pages = rows["a"]
    at = prompt + 2
    d = read(pages[at // 16])
    d[2, :, at % 16] = c[2, :, 5]
    put(engine, pages[at // 16], slice(0, 16), d)
    frame = kv_compare.compare(engine, rows)
plain = lambda v: v if isinstance(v, str) else None if pd.isna(v) else int(v)
say([[[r.request_id, int(r.position), r.damage, plain(r.other_request_id),
       plain(r.other_position)]
      for r in frame[frame.verdict == "damaged"].sort_values(["request_id", "position"])
      .itertuples()], counts(frame), at, kv_compare.describe(frame)])
""",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found, counted, decoded, words = done.reply
    assert found[0][:2] == ["a", decoded]
    assert found[0][3:] == ["c", 5]
    assert found[1:] == [
        *(["b", slot, "layer 2", "c", slot] for slot in range(3, 7)),
        ["b", 8, "layer 3", "c", 8],
        ["b", 9, "V of layer 1", None, None],
        ["b", 10, "K of layer 2, head 1", None, None],
    ]
    # What the reported release computes behind lengths that are too long stays what it is.
    assert counted.get("decoded other context", 0) == (
        4 * 10 - 1 if has(release, "history-lengths") else 0
    )
    assert " 8 hold the right token, with foreign parts in higher layers" in words


def test_unreadable_pages_have_a_reason(child: ChildRunner, release: str) -> None:
    done = child(
        release,
        _SERVE
        + """
from analysis.core.errors import EngineError
with Engine(EngineConfig(page_count=64)) as engine:
    try:
        kv_compare.read_pages(engine, [64])
    except EngineError as error:
        strange = str(error)
try:
    kv_compare.read_pages(engine, [1])
except EngineError as error:
    say([strange, str(error)])
""",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    strange, closed = done.reply
    assert strange == "Page 64 does not exist: the pool has pages 0 to 63."
    assert closed == "The engine is not running, so its pages cannot be read."


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is kept of earlier tests."""
    monkeypatch.setattr(kv_reference, "_kept", type(kv_reference._kept)())


@pytest.mark.usefixtures("forgotten")
def test_the_reference_is_asked_once_for_sequences_that_begin_alike(monkeypatch) -> None:
    model, tokens = load_model(), tuple(range(1, 23))
    long = kv_compare.reference_slots(model, {"x": (10, tokens)}, release=REPORTED)["x"]
    assert long.shape == (22, 4, 2, 2, 32)
    assert long.dtype == np.float16
    # However it is computed, the same comes out but for numerics.
    whole = kv_compare.reference_slots(model, {"x": (22, tokens)}, release=REPORTED)["x"]
    assert 0 < kv_compare.distance(whole, long)[1].max() <= kv_compare.NUMERICS
    monkeypatch.setattr(kv_reference, "oracle_of", None)
    again = kv_compare.reference_slots(model, {"y": (10, tokens[:15])}, release=REPORTED)["y"]
    assert np.array_equal(again, long[:15])


@pytest.mark.usefixtures("forgotten")
def test_a_reference_that_fails_or_hangs_is_one_sentence() -> None:
    model = load_model()
    with pytest.raises(ModelError, match="batch size 3"):
        kv_compare.reference_slots(model, {"x": (1, [1])}, release=REPORTED, batch_sizes=(3,))
    with pytest.raises(ModelError, match="its prompt cannot have 3"):
        kv_compare.reference_slots(model, {"x": (3, [1])}, release=REPORTED)
    with pytest.raises(ModelError, match="gave no answer"):
        kv_compare.reference_slots(model, {"x": (1, [1])}, release=REPORTED, timeout_s=0.01)


def test_contents_of_slots_are_described() -> None:
    rows = [
        ("equal", None, None),
        ("numerics", None, None),
        ("other", "b", 7),
        ("empty", None, None),
    ]
    slots = pd.DataFrame(
        [
            {"request_id": "a", "position": i, "page": 3, "slot": i, "verdict": verdict,
             "other_request_id": other, "other_position": position}
            for i, (verdict, other, position) in enumerate(rows)
        ]
    )  # fmt: skip
    slots["other_position"] = slots["other_position"].astype("Int64")
    assert kv_compare.describe(slots) == (
        "2 of 4 slots equal the reference decoder's (1 to the bit). 1 hold the bytes of another"
        " token: slot 2 of page 3, for position 2 of a, has position 7 of b. 1 hold zeros."
    )
    assert kv_compare.describe(slots.iloc[:0]) == "No slot was compared."
