"""Every interleaving on the real caches: what is found, what mends it, and that nothing is missed.

One child of each release does it all, since an interpreter takes longer to start than that takes.
"""

from __future__ import annotations

import json
import math
import subprocess
from typing import Any

import pytest
from support import CHILD_ENVIRONMENT, RELEASES, REPORTED, ROOT, dialect, has, run_python

from analysis.interleavings import RULES
from analysis.shortfin.environments import python_of
from analysis.treatments import TREATMENTS

# What is known of each release, by rule: whether it happens in any order.
KNOWN = {
    "allocations": {
        "padding-page-allocated": {True, False}, "reference-count": {True, False},
        "malformed-trie": {True, False}, "page-leak": {True}, "missing-page": {True},
        "page-conflict": {False},
        "overwritten-page": {False}, "unprotected-page": {False}, "not-quiescent": {True, False},
    },
    "requests": {"padding-page-allocated": {False}},
    "records": {
        "padding-page-allocated": {True, False}, "reference-count": {True}, "page-leak": {True},
        "stale-cached-page": {True, False}, "duplicate-page": {True, False},
        "overwritten-page": {True, False},
        "unprotected-page": {True, False}, "page-conflict": {True, False}, "not-quiescent": {True},
    },
}  # fmt: skip
REPAIRED = {
    "malformed-trie", "missing-page", "page-conflict", "overwritten-page", "unprotected-page",
}  # fmt: skip
"""Of allocations, what happens only if publications are blind and tokens are aliased."""
# Left out alone, it brings this back in that scenario.
CAUSES = {
    "allocations": {
        "copy-tokens": ("answers that enter a page", "missing-page"),
        "reuse-existing-node": ("equal prompts, whole pages", "malformed-trie"),
        "true-leaves": ("evicting what has children", "page-conflict"),
        "give-back-reference": ("equal prompts", "reference-count"),
        "free-unpublished-pages": ("equal prompts", "page-leak"),
        "reserve-padding-page": ("equal prompts", "padding-page-allocated"),
    },
    "requests": {"reserve-padding-page": ("equal prompts", "padding-page-allocated")},
    "records": {
        "keep-decode-record": ("answers that enter a page", "stale-cached-page"),
        "delist-freed-pages": ("a long answer in freed pages", "stale-cached-page"),
        "register-once": ("equal prompts, whole pages", "reference-count"),
        "refer-to-published": ("equal prompts", "unprotected-page"),
        "pin-on-lookup": ("lookup, evict, allocate", "duplicate-page"),
        "reserve-padding-page": ("equal prompts", "padding-page-allocated"),
    },
}
STEPS = {"allocations": 3, "requests": 2, "records": 5}
"""Operations of a request without a decode."""


def known_of(release: str) -> dict[str, set[bool]]:
    """Return what is known of a release."""
    known = KNOWN[dialect(release)]
    if has(release, "allocations") and not has(release, "blind-publish"):
        known = {rule: orders for rule, orders in known.items() if rule not in REPAIRED}
    return known


def causes_of(release: str) -> dict[str, tuple[str, str]]:
    """Return the causes of a release."""
    causes = CAUSES[dialect(release)]
    return {name: to for name, to in causes.items() if TREATMENTS[name].fits(release, "trie")}


_SOURCE = """
import contextlib, io, json, sys
from analysis.interleavings import SCENARIOS
from analysis.interleavings import examine
from analysis.interleavings import replay
from analysis.interleavings.__main__ import main
from analysis.interleavings.examine import HarnessFactory
from analysis.interleavings.explore import Explorer
from analysis.interleavings.minimise import Minimiser
from analysis.treatments import fixes

RELEASE, CAUSES = sys.argv[1], json.loads(sys.argv[2])
TWO = [name for name, s in SCENARIOS.items() if len(s.workers) == 2]
reply = {}

result = examine("trie", scenarios=TWO)
replays, spare = [], []
with HarnessFactory("trie") as factory:
    for f in result.shortest():
        replayed = replay(f.scenario, str(f.schedule))
        rules = [[b.rule for b in m.violations] for m in replayed.moments]
        replays.append([f.rule, f.rule in rules[-1], any(f.rule in r for r in rules[:-1])])
        if not f.sequential:
            minimiser = Minimiser(SCENARIOS[f.scenario], f.rule, factory.open)
            for name in {s.request for s in f.schedule.steps}:  # one step fewer of anybody
                of = [n for n, s in enumerate(f.schedule.steps) if s.request == name]
                fewer = [s for n, s in enumerate(f.schedule.steps) if n != of[-1]]
                if fewer and minimiser.breaks(fewer):
                    spare.append([f.rule, str(f.schedule), name])
reply["found"] = [result.as_json(), replays, spare]

reply["merged"] = []
for treatments in ((), fixes(RELEASE, "trie")):
    with HarnessFactory("trie", treatments) as factory:
        for name in ("equal prompts", "evicting what has children"):
            both = [Explorer(lambda: factory.open(SCENARIOS[name]), merge=memory).explore()
                    for memory in (True, False)]
            reply["merged"].append([[e.interleavings, dict(e.failing), sorted(e.first)]
                                   for e in both] + [both[0].states < both[1].states])

treatments = fixes(RELEASE, "trie")
reply["fixed"] = [examine("trie", treatments, TWO).as_json(),
                  examine("trie", treatments, ["short of pages"]).as_json(),
                  examine("none", fixes(RELEASE, "none"), ["equal prompts"]).as_json()]
reply["treatments"], reply["back"] = treatments, {}
for name, (scenario, rule) in CAUSES.items():
    rest = [t for t in treatments if t != name]
    reply["back"][name] = [f.rule for f in examine("trie", rest, [scenario]).failures]

reply["none"] = examine("none", scenarios=["equal prompts", "answers that enter a page"]).as_json()
reply["out of time"] = examine("trie", scenarios=["churn"], budget_s=0.01).as_json()

reply["asked"] = []
for line in (["--scenario", "equal prompts", "--replay", reply["found"][1][0] and
              next(str(f.schedule) for f in result.failures
                   if (f.rule, f.scenario) == ("padding-page-allocated", "equal prompts"))],
             ["--scenario", "equal prompts", "--prefix-sharing", "none", "--json",
              "--treatments", "reserve-padding-page+big-pool"],
             ["--scenario", "nonsense"], ["--treatments", "nonsense"],
             ["--prefix-sharing", "some"], ["--scenario", "churn", "--replay", "A.dance"],
             ["--scenario", "churn", "--replay", "Z.acquire"]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(line)
    reply["asked"].append([status, out.getvalue(), err.getvalue()])

from analysis.treatments import TREATMENTS
reply["inactive_treatments"] = []
for name, kind in TREATMENTS.items():
    if kind.fits(RELEASE, "trie"):
        with HarnessFactory("trie", [name]) as factory:
            reply["inactive_treatments"] += factory.inactive
TREATMENTS["reserve-padding-page"].apply = lambda self, engine, undo: engine.service.sevice
try:
    examine("trie", ["reserve-padding-page"], ["equal prompts"])
except AttributeError as error:
    reply["misspelt"] = str(error)
print(json.dumps(reply))
"""


@pytest.fixture(scope="module", params=RELEASES)
def reply(request: pytest.FixtureRequest) -> Any:
    """What a child of each release found, with the release's name."""
    release = request.param
    done = run_python(release, _SOURCE, release, json.dumps(causes_of(release)), timeout_s=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return {"release": release, **json.loads(done.stdout)}


def test_what_is_found_is_real_short_and_complete(reply: Any) -> None:
    result, replays, spare = reply["found"]
    assert result["complete"]
    assert not result["ok"]
    found: dict[str, set[bool]] = {}
    for failure in result["failures"]:
        found.setdefault(failure["rule"], set()).add(failure["sequential"])
        assert failure["reachable"] is True
        assert failure["interleavings"] > 0
    assert found == known_of(reply["release"])
    assert set(found) <= set(RULES)
    # Each is broken by its schedule's last step, not earlier; without any of its steps it is not.
    assert [r for r in replays if r[1:] != [True, False]] == []
    assert spare == []
    steps = STEPS[dialect(reply["release"])]
    by_name = {s["scenario"]: s for s in result["scenarios"]}
    assert by_name["equal prompts"]["interleavings"] == math.comb(2 * steps, steps)
    assert by_name["lookup, evict, allocate"]["interleavings"] == math.comb(2 * steps, steps)
    # Without a shared prefix, most scenarios are harmless.
    least = int(has(reply["release"], "prefix-sharing"))
    assert all(least <= s["failing"] <= s["interleavings"] for s in result["scenarios"])


def test_merging_equal_states_changes_nothing(reply: Any) -> None:
    assert len(reply["merged"]) == 4
    for merged, plain, fewer in reply["merged"]:
        assert merged == plain
        assert fewer


def test_all_fixes_remove_it(reply: Any) -> None:
    for result in reply["fixed"]:
        assert result["failures"] == []
        assert result["ok"]
        assert result["complete"]
    steps = STEPS[dialect(reply["release"])]
    three = math.factorial(3 * steps) // math.factorial(steps) ** 3
    assert reply["fixed"][1]["interleavings"] == three


def test_each_cause_comes_back_alone(reply: Any) -> None:
    for name, (_, rule) in causes_of(reply["release"]).items():
        assert name in reply["treatments"]
        assert rule in reply["back"][name], name


def test_without_sharing_only_records_and_the_padding_page_fail(reply: Any) -> None:
    rules = {failure["rule"] for failure in reply["none"]["failures"]}
    lost = {"page-leak", "not-quiescent"} if has(reply["release"], "records") else set()
    assert rules - {"padding-page-allocated"} == lost


def test_the_end_of_the_budget_is_reported(reply: Any) -> None:
    result = reply["out of time"]
    assert not result["complete"]
    assert result["interleavings"] == 0  # none of it counts as covered
    assert "covered in time" in result["words"] or "covered in the given time" in result["words"]


def test_the_exit_status_of_the_command(reply: Any) -> None:
    replayed, clean, *refused = reply["asked"]
    assert replayed[0] == 4
    assert "padding-page-allocated: Page 0 is allocated to a request." in replayed[1]
    assert clean[0] == 0
    assert json.loads(clean[1])["inactive_treatments"] == ["big-pool"]
    sentences = [
        "Unknown scenario 'nonsense'", "Unknown treatment 'nonsense'",
        "Choose none or trie", "is not the next step of A", "has no request Z",
    ]  # fmt: skip
    for (status, out, err), sentence in zip(refused, sentences, strict=True):
        assert (status, out) == (1, "")
        assert sentence in err
        assert err.count("\n") == 1


def test_the_module_can_be_run() -> None:
    done = subprocess.run(
        [str(python_of(REPORTED)), "-m", "analysis.interleavings", "--scenario", "equal prompts"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env=CHILD_ENVIRONMENT,
    )
    assert done.returncode == 4, done.stderr
    assert "breaks" in done.stdout


def test_inactive_treatments_lack_their_object(reply: Any) -> None:
    release = reply["release"]
    kinds = {name: kind for name, kind in TREATMENTS.items() if kind.fits(release, "trie")}
    of_a_server = {name for name, kind in kinds.items() if kind.acts_on != "cache"}
    assert {"big-pool", "survive-allocation-failure", "one-at-a-time"} <= of_a_server
    assert set(reply["inactive_treatments"]) == of_a_server
    assert "sevice" in reply["misspelt"]
