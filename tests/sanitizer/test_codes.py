"""Codes of rules and causes: unique, listed in the glossary, and read from former runs."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pytest

from analysis.runs.former_codes import CODES, code_of, with_codes
from analysis.sanitizer.rules import RULES

NAMES = [rule.name for rule in RULES]


def test_every_rule_has_a_code_of_its_own() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", name) for name in NAMES)


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_every_rule_is_in_the_glossary(rule: type) -> None:
    glossary = (Path(__file__).parents[2] / "docs" / "glossary.md").read_text()
    causes = ", ".join(f"`{cause}`" for cause in rule.causes)
    assert f"| `{rule.name}` | {rule.sentence} | {causes} |" in glossary


def test_former_codes_lead_to_rules_and_causes_of_today() -> None:
    assert {code for now in CODES.values() for code in now} <= set(NAMES)
    known = {rule.name: set(rule.causes) for rule in RULES}
    for now in CODES.values():
        for code, causes in now.items():
            assert set(causes.values()) <= known[code]


def test_findings_of_a_former_run_have_the_codes_of_today() -> None:
    assert code_of("one state", "freed twice") == ("double-free", "already-free")
    assert code_of("arguments as filled", "tokens") == ("argument-changed", "tokens")
    assert code_of("own prefix", "nothing") == ("wrong-kv-read", "uninitialized")
    assert code_of("unheard of", None) == ("unheard of", None)
    table = pa.table({"rule": ["no leak"], "cause": ["still held"], "page": [3]})
    assert with_codes(table).to_pylist() == [
        {"rule": "page-leak", "cause": "still-held", "page": 3}
    ]
