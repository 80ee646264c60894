"""No false finding of wrong reads at the edges: whole pages, the context's end, ended requests."""

from __future__ import annotations

import pytest
from support import NEWEST, REPORTED, ChildRunner

CORRECTED = ("correct-seq-lens", "zero-start-positions", "zero-page-tables")
CONTEXT = 256

_EDGES = """
import random
from analysis.sanitizer import sanitize
from analysis.treatments import treat

dice, CONTEXT = random.Random({seed}), {context}
vocabulary = None

def prompt(length):
    return [dice.randrange(5, vocabulary) for _ in range(length)]

def ask(engine, wanted, timeout_s=60.0):
    # At most four at once: some releases refuse more.
    done = []
    for first in range(0, len(wanted), 4):
        futures = [engine.submit(ids, count, timeout_s) for ids, count in wanted[first:first + 4]]
        done += [future.result(timeout=timeout_s + 30) for future in futures]
    return done

def whole_pages(engine):
    return ask(engine, [(prompt(n), m) for n in (16, 32, 48, 15, 17, 31, 33, 1) for m in (1, 17)])

def contexts_end(engine):
    return ask(engine, [(prompt(CONTEXT - m), m) for m in (1, 2, 15, 16, 17, 32, 40, 8)])

def one_token(engine):
    return ask(engine, [(prompt(n), 1) for n in (1, 2, 15, 16, 17, 40, 64, 100)])

def identical(engine):
    one, other = prompt(40), prompt(32)
    return ask(engine, [(one, 10)] * 4 + [(other, 10)] * 4 + [(one, 3)] * 4)

def growing(engine):
    talks, done = [prompt(20) for _ in range(4)], []
    for _ in range(4):
        answers = ask(engine, [(talk, 9) for talk in talks])
        done += answers
        talks = [[*t, *a.tokens, *prompt(5)] for t, a in zip(talks, answers)]
    return done

def timed_out(engine):
    done = []
    for timeout_s in (0.001, 0.02, 0.1):
        done += ask(engine, [(prompt(n), 30) for n in (8, 16, 40, 70)], timeout_s)
    return done

def cancelled(engine):
    done = []
    for pause_s in (0.0, 0.15, 0.2):
        names = [f"c{{pause_s}}-{{n}}" for n in range(4)]
        futures = [engine.submit(prompt(30 + n), 60, 60.0, r) for n, r in enumerate(names)]
        time.sleep(pause_s)
        engine.give_up(names)
        done += [future.result(timeout=90) for future in futures]
    return done

import time
found, outcomes = [], {{}}
with Engine(EngineConfig(prefix_sharing={sharing!r}, page_count=1024)) as engine:
    vocabulary = engine.tokenizer.vocabulary_size
    assert engine.model.config.max_seq_len == CONTEXT
    for edge in (whole_pages, contexts_end, one_token, identical, growing, timed_out, cancelled):
        # Corrected for as long as the engine works on requests that were given up.
        with treat(engine, *{names!r}), sanitize(engine) as findings:
            for _ in range({rounds}):
                for done in edge(engine):
                    count = outcomes.setdefault(edge.__name__, {{}})
                    count[done.outcome] = count.get(done.outcome, 0) + 1
        wrong = [[g.severity, g.rule, g.cause, g.count, g.first.text] for g in findings.groups]
        found.append([edge.__name__, wrong, findings.not_checked, findings.invocations])
say([found, outcomes])
"""


@pytest.mark.parametrize(
    ("rounds", "seed"), [(1, 1), pytest.param(8, 2, marks=pytest.mark.slow, id="many")]
)
@pytest.mark.parametrize(
    ("release", "sharing", "names"),
    [(REPORTED, "none", CORRECTED), (NEWEST, "none", ()), (NEWEST, "trie", ())],
)
def test_no_wrong_data_is_reported_at_the_edges(
    child: ChildRunner,
    release: str,
    sharing: str,
    names: tuple[str, ...],
    rounds: int,
    seed: int,
) -> None:
    source = _EDGES.format(
        release=release, sharing=sharing, names=names, rounds=rounds, seed=seed, context=CONTEXT
    )
    done = child(release, source, timeout_s=200 + 300 * (rounds - 1))
    assert done.returncode == 0, done.stderr[-3000:]
    found, outcomes = done.reply
    for edge, groups, not_checked, invocations in found:
        ended = outcomes[edge]
        assert ended.get("ok") or edge in ("timed_out", "cancelled"), (edge, ended)
        assert invocations or edge == "timed_out"
        assert not [group for group in groups if group[0] != "at risk"], (edge, groups)
        assert not [group for group in groups if group[1] == "stuck-request"], (edge, groups)
        assert not not_checked, (edge, not_checked)
    assert outcomes["timed_out"].get("timeout")
