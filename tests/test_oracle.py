"""What the model itself says, asked in the release's own process, and kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from support import REPORTED, ROOT

from analysis.core import paths
from analysis.core.errors import ModelError
from analysis.shortfin.oracle import oracle_of
from analysis.workloads.named import make_workload
from analysis.workloads.workload import Request

ASKED = (*make_workload("mixed", count=4, seed=3).requests, Request("r", "1 2 3 4 5 ", 5))


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A cache of its own for answers; compiled models stay where they are."""
    monkeypatch.setattr(paths, "cache_dir", lambda: tmp_path)
    return tmp_path / "reference"


def test_answers_are_right_and_kept(kept, release):
    from analysis.model.artifacts import load_model
    from analysis.model.tokenizer import ModelTokenizer

    decode = ModelTokenizer(load_model()).decode
    progress = []
    answers = oracle_of(release).generate(ASKED, lambda *known: progress.append(known))
    assert progress == [(n, 5) for n in range(6)]
    assert decode(answers["1 2 3 4 5 ", 5]) == "6 7 8"
    right = [decode(answers[r.prompt, 15]) == r.expected for r in ASKED[:4]]
    assert sum(right) >= 3  # the model may err on one in 200
    (file,) = kept.iterdir()
    before = file.read_bytes()
    progress.clear()
    again = oracle_of(release).generate(ASKED, lambda *known: progress.append(known))
    assert again == answers
    assert progress == [(5, 5)]
    assert file.read_bytes() == before


def test_a_line_cut_short_is_asked_again_and_the_others_are_not(kept):
    oracle_of(REPORTED).generate(ASKED[:2])
    (file,) = kept.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-7])
    progress = []
    oracle_of(REPORTED).generate(ASKED[:2], lambda *known: progress.append(known))
    assert progress == [(1, 2), (2, 2)]
    assert file.read_bytes().startswith(whole[:-7] + b"\n")


_FILL = """
import sys
from pathlib import Path
from analysis.model.oracle import append
for i in range(300):
    append(Path(sys.argv[1]), (f"prompt {sys.argv[2]} {i}", 15), range(15))
"""


def test_two_processes_may_fill_one_file(tmp_path):
    file = tmp_path / "answers.jsonl"
    file.write_bytes(b'{"prompt": "cut sho')
    fillers = [
        subprocess.Popen(
            [sys.executable, "-c", _FILL, str(file), name],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for name in "ab"
    ]
    assert [filler.wait(timeout=60) for filler in fillers] == [0, 0]
    rows = [json.loads(line) for line in file.read_bytes().splitlines()[1:]]
    assert len({row["prompt"] for row in rows}) == len(rows) == 600


def test_a_decoder_that_fails_says_so_in_one_sentence(kept):
    with pytest.raises(ModelError, match="batch size 3"):
        oracle_of(REPORTED, batch_sizes=(3,)).generate(ASKED[:1])
