"""A treatment does what its name says, to a live engine, and leaves it as it was."""

from __future__ import annotations

import pytest
from support import NEWEST, ChildRunner, has

from analysis.core.errors import EngineError
from analysis.core.wording import listed
from analysis.shortfin.releases import supported
from analysis.treatments import FAULTS, TREATMENTS, check_names, fixes

_PRELUDE = """
import sys
import numpy as np
import shortfin.array as sfnp
from analysis.core.errors import EngineError
from analysis.recording import observe
from analysis.sanitizer import kv_compare
from analysis.treatments import FAULTS, TREATMENTS, treat
from analysis.shortfin.cache import part_of
from analysis.workloads.named import make_workload

def fingerprint(engine):
    # Every attribute of what treatments touch, by identity.
    service = engine.service.native
    pool = service.page_cache.page_pool
    owners = {"adapter": engine.service, "service": service, "cache": service.page_cache,
              "pool": pool, "invocation": engine.service.invocation_class(), "kind":
              type(engine.service)}
    owners |= {n: getattr(service, n) for n in vars(service)
               if n.endswith(("batcher", "fiber_pool"))}
    dialect = part_of(engine.release, "treatments")
    owners |= {kind.__name__: kind for kind in dialect.allocation_classes(engine)}
    for module, names in (("generate", ["GenerateItemProcess"]), ("service", ["BatcherProcess"]),
                          ("batcher", ["PrefillExecutorProcess", "DecodeExecutorProcess"]),
                          ("token_selection_strategy.sampler", ["Sampler"]),
                          ("token_selection_strategy.beams", ["BaseBeam"]),
                          ("token_selection_strategy.independent_token_selection_strategy",
                           ["IndependentBeam"]),
                          ("decoder.decoder", ["LlmDecoder", "PageManager", "TokenSelector"])):
        try:
            owners |= {n: getattr(engine.service.component(module), n) for n in names}
        except (ImportError, AttributeError):
            pass  # not of this release
    if has(engine.release, "allocations"):
        module = sys.modules[type(engine.service).__module__]
        owners["client"] = getattr(module, "Client", module.SERVICE)
        owners["arrays"] = sfnp
    else:
        owners["facade"] = service.unified_batcher._impl
        lanes = service.unified_batcher._impl.batching_engine
        for phase in ("prefill", "decode"):
            lane = getattr(lanes, f"{phase}_lane")
            # Either a lane has a responder, or each invocation has its own one.
            kind = getattr(sys.modules[type(lane).__module__], phase.capitalize() + "TaskResponder")
            owners[f"{phase} responder"] = getattr(lane, "_llm_task_responder", kind)
    if (root := getattr(service.page_cache, "root", None)) is not None:
        owners |= {"node": type(root), "count": type(root.ref_count)}
    seen = {f"{name}.{key}": id(value) for name, owner in owners.items()
            for key, value in vars(owner).items()
            # These change while a batcher is idle.
            if key not in ("strobes", "strobe_enabled", "pending")}
    for phase in ("prefill", "decode"):
        for size, function in getattr(service, f"{phase}_functions").items():
            seen[f"{phase}.{size}"] = id(function)
    return seen

def executed(engine, *names, count=12, concurrency=4):
    with observe(engine, snapshots=False, memory_every_s=0) as recording:
        with treat(engine, *names):
            engine.run(make_workload("mixed", count=count, seed=3), concurrency, timeout_s=20)
    return recording.invocations[recording.invocations["error"].isna()]

def decodes(invocations):
    # request id (None is padding), seq_len and start of every row of every decode
    for f in invocations[invocations["phase"] == "decode"].to_dict("records"):
        ids = [*f["request_ids"], *[None] * (f["batch_size"] - f["rows"])]
        for row, name in enumerate(ids):
            yield name, f["seq_lens"][row], f["start_positions"][row]
"""


def test_each_treatment_is_reverted(child: ChildRunner, release: str) -> None:
    done = child(
        release,
        _PRELUDE
        + """
changed, left = {}, {}
with Engine(EngineConfig(prefix_sharing="trie", page_count=64)) as engine:
    kinds = {**TREATMENTS, **FAULTS}
    names = [n for n, t in kinds.items() if engine.release in t.releases()]
    names = [n for n in names if "trie" in kinds[n].sharings()]
    names[names.index("big-pool")] = "big-pool:64"
    engine.service.probe()  # which numbers the nodes, from its first use on
    before = fingerprint(engine)
    for name in [*names, "zero-on-acquire+quarantine+poison-freed-pages:zero"]:
        with treat(engine, *name.split("+")):
            within = fingerprint(engine)
        after = fingerprint(engine)
        changed[name] = sorted(k for k in within if within[k] != before.get(k))
        left[name] = sorted(k for k in {*after, *before} if after.get(k) != before.get(k))
        try:
            with treat(engine, *name.split("+")):
                raise KeyError
        except KeyError:
            left[name] += [k for k in before if fingerprint(engine).get(k) != before[k]]
    right = engine.generate("1 2 3 4 5 ", 6, 20).outcome
say([changed, left, right])
""",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    changed, left, outcome = done.reply
    assert outcome == "ok"
    assert len(changed) > 20
    assert {name: keys for name, keys in left.items() if keys} == {}
    nothing = [name for name, keys in changed.items() if not keys]
    # The one changes what pages hold, once, and the other how the engine is started.
    assert nothing == ["zero-page-tables", "big-pool:64"]


def test_lengths_positions_and_their_reverse(child: ChildRunner, release: str) -> None:
    done = child(
        release,
        _PRELUDE
        + """
def lengths(*names):
    with Engine(EngineConfig(page_count=256)) as engine:
        rows = list(decodes(executed(engine, *names)))
    own = [(length - start) for name, length, start in rows if name is not None]
    return [min(own), max(own), max((s for n, _, s in rows if n is None), default=0)]

zeroed = lengths("zero-start-positions") if NAME == "correct-seq-lens" else None
say([lengths(), lengths(NAME), zeroed])
""".replace("NAME", repr("undo-" * has(release, "exact-lengths") + "correct-seq-lens")),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    plain, treated, zeroed = done.reply
    wrong, right = (plain, treated) if has(release, "history-lengths") else (treated, plain)
    # A row attends to its own token and what precedes it: one more than its start position.
    assert right[:2] == [1, 1]
    assert wrong[1] > 1
    if has(release, "padding-at-one"):
        assert (plain[2], zeroed[2]) == (1, 0)
    else:
        assert plain[2] == 0


def test_what_pages_hold(child: ChildRunner, release: str) -> None:
    done = child(
        release,
        _PRELUDE
        + """
def held(engine, pages):
    read = kv_compare.read_pages(engine, pages)
    return ["nan" if np.isnan(page).all() else sorted(set(page.ravel().tolist()))[:2]
            for page in read]

reports = {}
with Engine(EngineConfig(page_count=64)) as engine:
    pool = engine.service.native.page_cache.page_pool
    for name in ("zero-page-tables", "poison-freed-pages", "poison-freed-pages:zero",
                 "poison-freed-pages:7"):
        with treat(engine, name):
            free = [page.index for page in pool.available_pages]
            fresh = held(engine, free)
            taken = pool.acquire_free_pages(2)
            pool.free_pages(taken)
            freed = held(engine, [page.index for page in taken])
        reports[name] = [[v for i, v in enumerate(fresh) if v not in fresh[:i]], freed]
    with treat(engine, "poison-freed-pages:7", "zero-on-acquire"):
        taken = pool.acquire_free_pages(2)
        reports["zero-on-acquire"] = held(engine, [page.index for page in taken])
        pool.free_pages(taken)
    with treat(engine, "quarantine:3"):
        pages = []
        for _ in range(5):
            (page,) = pool.acquire_free_pages(1)
            pool.free_pages([page])
            pages.append(page.index)
        out = len(pool.available_pages)
        everything = pool.acquire_free_pages(64)  # what is held back is no shortage
        reports["quarantine"] = [len(set(pages[:3])), out, len(everything)]
        pool.free_pages(everything)
    reports["after"] = len(pool.available_pages)
say(reports)
""",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    reply = done.reply
    assert reply["zero-page-tables"] == [[[0.0]], [[0.0], [0.0]]]
    assert reply["poison-freed-pages"] == [["nan"], ["nan", "nan"]]
    assert reply["poison-freed-pages:zero"] == [[[0.0]], [[0.0], [0.0]]]
    assert reply["poison-freed-pages:7"] == [[[7.0]], [[7.0], [7.0]]]
    assert reply["zero-on-acquire"] == [[0.0], [0.0]]
    assert reply["quarantine"] == [3, 61, 64]
    assert reply["after"] == 64


def test_a_treatment_that_cannot_be_applied_changes_nothing(
    child: ChildRunner, release: str
) -> None:
    done = child(
        release,
        _PRELUDE
        + """
refusals = []
engine = Engine(EngineConfig(page_count=64))
def refused(*names):
    try:
        with treat(engine, *names):
            refusals.append("applied")
    except EngineError as error:
        refusals.append(str(error))
refused("zero-on-acquire")
with engine:
    before = fingerprint(engine)
    refused("zero-on-acquire", "fault:orphaned-leaf")
    refused("zero-on-acquire", "undo-correct-seq-lens" if has(engine.release, "history-lengths")
            else "correct-seq-lens")
    refused("zero-on-acquire", "poison-freed-pages:much")
    unchanged = fingerprint(engine) == before
say([refusals, unchanged])
""",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (stopped, sharing, other, parameter), unchanged = done.reply
    assert "not running" in stopped
    shares = has(release, "prefix-sharing")
    need = "prefix sharing trie" if shares else "the capability prefix-sharing"
    assert f"needs {need}" in sharing
    assert "needs the capability" in other
    assert "not with 'much'" in parameter
    assert unchanged


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nonsense", "Unknown treatment 'nonsense'"),
        ("fault:nonsense", "Unknown treatment 'fault:nonsense'"),
        ("zero-on-acquire:3", "takes no parameter"),
        ("quarantine:0", "whole number of pages, at least 1"),
        ("quarantine:-1", "whole number of pages, at least 1"),
        ("quarantine:many", "whole number of pages, at least 1"),
        ("poison-freed-pages:much", "not with 'much'"),
        ("big-pool:none", "whole number of pages from 1"),
    ],
)
def test_a_wrong_name_is_refused_in_one_sentence(name: str, sentence: str) -> None:
    with pytest.raises(EngineError, match=sentence):
        check_names([name])


def test_each_describes_itself() -> None:
    for name, kind in {**TREATMENTS, **FAULTS}.items():
        assert name == kind.name
        assert kind.hypothesis.endswith(".")
        assert kind.change.endswith(".")
        assert kind.__doc__


def test_the_command_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    from analysis.cli import app

    app(["treatments", "--release", NEWEST], standalone_mode=False)
    reply = capsys.readouterr().out
    for name in fixes(NEWEST, "trie"):
        assert f"{name} *  (" in reply
    exact = listed(supported("exact-lengths"))
    assert f"undo-correct-seq-lens  ({exact}, upstream the reverse of #873)" in reply
    assert "copy-tokens" not in reply
    assert "fault:" not in reply
    with pytest.raises(EngineError, match="none or trie, not 'some'"):
        app(["treatments", "--prefix-sharing", "some"], standalone_mode=False)
