"""Wrong answers asked again: the run is made up, the engine that is asked is real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from synthetic import cell_row, request_row

from analysis.store import RunWriter, load_run
from analysis.sweep import Plan
from analysis.sweep.alone import ask_alone, wrong_prompts


def _run(path: Path, prompts: list[tuple[str, str]]) -> Any:
    plan = Plan(releases=("3.9.0",), prefix_sharing=("trie",), max_new_tokens=5)
    cell = plan.cells()[0]
    writer = RunWriter.create(path, {"plan": plan.as_dict(), "seed": 0})
    row = cell_row(cell_id=cell.cell_id, release="3.9.0", prefix_sharing="trie", concurrency=2)
    requests = [
        request_row(request_id=f"r{n}", cell_id=cell.cell_id, prompt=prompt, outcome="wrong",
                    expected_text=expected, reference_tokens=None)
        for n, (prompt, expected) in enumerate(prompts)
    ]  # fmt: skip
    writer.write_cell(row, requests)
    return load_run(path)


def test_each_wrong_prompt_is_asked_once_alone_on_a_fresh_engine(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", [("1 2 3 4 5 ", "6 7 8"), ("1 2 3 4 5 ", "6 7 8"),
                                  ("10 20 30 ", "99 98")])  # fmt: skip
    assert list(wrong_prompts(run)["prompt"]) == ["1 2 3 4 5 ", "10 20 30 "]
    seen: list[Any] = []
    asked = ask_alone(run, prefix_sharing="none", jobs=2, on_answer=seen.append)
    asked = asked.set_index("prompt")
    assert asked.loc["1 2 3 4 5 ", "text"] == "6 7 8"
    assert asked.loc["1 2 3 4 5 ", "outcome"] == "ok"
    assert asked.loc["10 20 30 ", "outcome"] == "wrong"  # nobody answers 99 98 to that
    assert set(asked["prefix_sharing"]) == {"none"}
    assert len(seen) == 2
