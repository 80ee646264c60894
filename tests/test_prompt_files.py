"""The prompts that ship are what a seed still gives, on every machine and version of NumPy."""

from __future__ import annotations

import dataclasses

import pytest
from support import ROOT

from analysis.workloads.named import make_workload
from analysis.workloads.workload import Workload


@pytest.mark.parametrize(
    ("name", "count"), [("reported", 4), ("mixed", 32), ("shared_prefix", 16), ("prefix_reuse", 12)]
)
def test_the_shipped_prompts_are_those_of_seed_0(name, count):
    shipped = Workload.read(ROOT / "data" / "prompts" / f"{name}.jsonl")
    made = make_workload(name, count=count, seed=0)
    assert shipped == dataclasses.replace(made, name=f"{name}.jsonl", seed=None)
