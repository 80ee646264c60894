"""Parameters of a notebook that come as text, from papermill's command line."""

from __future__ import annotations

from typing import Any

import pytest

from analysis.report import parameters
from analysis.report.parameters import ParameterError, conform, declared


@pytest.mark.parametrize(
    ("given", "kind", "value"),
    [
        ("[4]", list[int], [4]),
        ("[4, 8]", list[int], [4, 8]),
        ("4,8", list[int], [4, 8]),
        (4, list[int], [4]),
        ([4, 8], list[int], [4, 8]),
        ((4, 8), list[int], [4, 8]),
        ("[]", list[str], []),
        ("", list[str], []),
        ("none", list[str], ["none"]),
        ("none, trie", list[str], ["none", "trie"]),
        ('["none"]', list[str], ["none"]),
        ("12", list[str], ["12"]),
        ("[[8, 8, 6]]", list[list[int]], [[8, 8, 6]]),
        ("4", int, 4),
        ("0.5", float, 0.5),
        (1, float, 1),
        ("true", bool, True),
        ("[4]", str, "[4]"),
        ("[4]", Any, "[4]"),
    ],
)
def test_a_value_is_read_as_its_type(given: Any, kind: Any, value: Any) -> None:
    read = conform("name", given, kind)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        ("many", list[int], "a list of whole numbers, not 'many'"),
        ('{"a": 1}', list[int], "a list of whole numbers, not '{\"a\": 1}'"),
        ([4, "8x"], list[int], "a list of whole numbers, not [4, '8x']"),
        ([True], list[int], "a list of whole numbers, not [True]"),
        ([8, 8], list[list[int]], "a list of lists of whole numbers, not [8, 8]"),
        ("8,8", list[list[int]], "a list of lists of whole numbers, not '8,8'"),
        (None, list[str], "a list of texts, not None"),
        (1.5, int, "a whole number, not 1.5"),
        (True, int, "a whole number, not True"),
        ("few", float, "a number, not 'few'"),
        (1, bool, "true or false, not 1"),
        (5, str, "text, not 5"),
        ("[" * 100_000, list[int], "a list of whole numbers, not"),
    ],
)
def test_a_value_of_another_type_is_one_sentence(given: Any, kind: Any, words: str) -> None:
    with pytest.raises(ParameterError) as refused:
        conform("name", given, kind)
    assert str(refused.value).startswith(f"The notebook's parameter `name` must be {words}")
    assert str(refused.value).count("\n") == 0


def test_types_are_those_that_the_cell_annotates() -> None:
    kinds = {"a": list[int], "b": list[list[str]], "c": float, "d": Any, "e": Any}
    cell = "a: list[int] = [1]\nb: list[list[str]] = []\nc: float = 1\nd = e = 2\n"
    assert declared(cell) == kinds
    assert declared("x: dict[str, int] = {}") == {"x": Any}


def test_globals_are_read_in_place() -> None:
    names: dict[str, Any] = {}
    cells = "clients: list[int] = [1]\nshare: str = 'none'\nother = '[1]'\nclients = '[4]'"
    exec(compile(cells, "cells", "exec", dont_inherit=True), names)
    parameters.read_parameters(names)
    assert (names["clients"], names["share"], names["other"]) == ([4], "none", "[1]")
    names["clients"] = "x"
    with pytest.raises(ParameterError, match="`clients`"):
        parameters.read_parameters(names)
