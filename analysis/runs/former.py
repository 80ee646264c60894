"""Converts tables of schema versions 1 and 2 to version 3.

Everything outside `analysis.runs` uses version 3 only. Older files have other names of tables,
columns and kinds, and JSON or sentences in some text columns, which are parsed here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from analysis.core.errors import RunError, shown
from analysis.runs.former_codes import with_codes
from analysis.runs.schema import EVENT_EXTRAS, TABLES

VERSIONS = (1, 2)
FILES = {"trials": "cells", "invocations": "flights"}
"""Old names of tables."""
LACKING: dict[int, dict[str, tuple[str, ...]]] = {
    1: {
        "trials": ("observed", "struck"),
        "requests": ("refusals", "unchecked"),
        "invocations": (
            "top_tokens", "top_logprobs", "result_tokens", "result_digests", "changed",
        ),
        "events": ("locks",),
        "snapshots": ("allocated", "misplaced"),
    },
    2: {},
}  # fmt: skip
"""Columns that a file may lack, by version and table; they are read as null."""
WITHOUT_TARGET = 3
"""The last version of which files may lack `trials.target`: an engine in process answered."""
_RENAMED = {
    "trial_id": "cell_id",
    "invocation_id": "flight_id",
    "recording": "observed",
    "retries": "refusals",
}
_NEW = {
    "trials": ("page_tokens", "supported_fixes", "git_commit", "injected", "injection", "target"),
    "events": ("t_s", *EVENT_EXTRAS),
}
_GONE = {"trials": ("struck",), "events": ("t_ns", "detail")}
_KINDS = {
    "twice": "duplicate_page",
    "leaf": "leaf_added",
    "no_leaf": "leaf_removed",
    "replace": "node_overwritten",
    "hold": "pages_held",
    "drop": "pages_dropped",
    "waiting": "stall",
    "died": "worker_died",
    "shortage": "alloc_failed",
    "unlanded": "invocation_unfinished",
}
_OUTCOMES = {"lost": "engine_died"}
_PAGE_TOKENS = 16
"""Tokens of a page if a run does not show them: those of the shipped model."""
_NODE_FIELDS = ("node", "parent", "page", "tokens", "ref_count", "leaf")
_CHANGED_FIELDS = ("argument", "row", "column", "filled", "read", "moment")
_CONFLICTS = {
    "free-twice": r"Page (?P<page>\d+) is (?P<times>\d+) times in the free list\.",
    "free-and-held": r"Page (?P<page>\d+) is free and held by (?P<requests>.*)\.",
    "free-and-cached": r"Page (?P<page>\d+) is free and in node (?P<node>\d+)\.",
    "in-several-nodes": r"Page (?P<page>\d+) is in (?P<times>\d+) nodes of the trie\.",
    "no-such-page": r"Page (?P<page>-?\d+) does not exist\.",
    "wrong-key": r"Node (?P<node>\d+) \(page (?P<page>\d+)\) is filed under another key\.",
}
Row = dict[str, Any]


def columns_of(name: str) -> list[str]:
    """Return the old column names of a table in versions 1 and 2."""
    kept = [c for c in TABLES[name].names if c not in _NEW.get(name, ())]
    return [_RENAMED.get(column, column) for column in kept] + [*_GONE.get(name, ())]


def updated(name: str, table: pa.Table, version: int) -> pa.Table:
    """Return a table of an earlier version with the current columns.

    Raises RunError for an unknown, repeated or missing column, and for an invalid value.
    """
    known, names = columns_of(name), table.column_names
    if strange := [c for c in names if c not in known or names.count(c) > 1]:
        raise RunError(f"The table `{name}` has an unknown column {shown(strange[0])}.")
    optional = LACKING[version].get(name, ())
    if missing := [c for c in known if c not in names and c not in optional]:
        raise RunError(f"The table `{name}` has no column {missing[0]}.")
    columns = {column: table[column] for column in names}
    try:
        if name in _CONVERTED:
            columns |= _CONVERTED[name](columns)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise RunError(
            f"The table `{name}` has an invalid value ({error}). Restore the run, or record it"
            " again."
        ) from error
    nothing = {field.name: pa.nulls(table.num_rows, field.type) for field in TABLES[name]}
    found = {c: columns.get(_RENAMED.get(c, c), columns.get(c, nothing[c])) for c in nothing}
    return with_codes(pa.table(found)) if name == "findings" else pa.table(found)


def page_tokens_of(invocations: pa.Table | None, snapshots: pa.Table | None) -> int:
    """Return the tokens of a page: the most tokens found in a cached page or a prefill's page.

    The maximum is needed because a cached page may have been published before it was full, and a
    prefill's block table may be wider than its tokens need.
    """
    seen = [0]
    if snapshots is not None:
        nodes = pc.list_flatten(snapshots["trie"].combine_chunks())
        seen += pc.list_value_length(pc.struct_field(nodes, "tokens")).drop_null().to_pylist()
    if invocations is not None:
        for row in invocations.filter(pc.field("phase") == "prefill").slice(0, 20).to_pylist():
            if row["tokens"] and row["block_tables"] and not any(row["start_positions"] or ()):
                seen.append(len(row["tokens"][0]) // len(row["block_tables"][0]))
    return max(seen) or _PAGE_TOKENS


def with_page_tokens(tables: Mapping[str, pa.Table]) -> pa.Table:
    """Return the table `trials` with the tokens of a page, from each trial's recording."""
    trials = tables["trials"]
    numbers = []
    for trial_id in trials["trial_id"].to_pylist():
        own = [
            tables[name].filter(pc.field("trial_id") == trial_id) if name in tables else None
            for name in ("invocations", "snapshots")
        ]
        numbers.append(page_tokens_of(*own))
    place = trials.column_names.index("page_tokens")
    field = trials.schema.field("page_tokens")
    return trials.set_column(place, field, pa.array(numbers, field.type))


# -- values --------------------------------------------------------------------------------


def _parsed(column: pa.ChunkedArray, convert: Callable[[Any], Any], kind: pa.DataType) -> pa.Array:
    """Return the value of each JSON text; null stays null."""
    texts = column.to_pylist()
    return pa.array([None if t is None else convert(json.loads(t)) for t in texts], kind)


def _type(name: str, column: str) -> pa.DataType:
    return TABLES[name].field(column).type


def _trials(columns: Mapping[str, pa.ChunkedArray]) -> Row:
    if "struck" not in columns:
        return {}
    texts = columns["struck"].to_pylist()
    injections = [None if text is None else json.loads(text) for text in texts]
    done = [None if text is None else found is not None
            for text, found in zip(texts, injections, strict=True)]  # fmt: skip
    return {
        "injected": pa.array(done, pa.bool_()),
        "injection": pa.array(injections, _type("trials", "injection")),
    }


def _requests(columns: Mapping[str, pa.ChunkedArray]) -> Row:
    outcomes = columns["outcome"].to_pylist()
    return {"outcome": pa.array([_OUTCOMES.get(v, v) for v in outcomes], pa.string())}


def _invocations(columns: Mapping[str, pa.ChunkedArray]) -> Row:
    if "changed" not in columns:
        return {}

    def entries(former: Sequence[Sequence[Any]]) -> list[Row]:
        return [dict(zip(_CHANGED_FIELDS, entry, strict=True)) for entry in former]

    return {"changed": _parsed(columns["changed"], entries, _type("invocations", "changed"))}


def _snapshots(columns: Mapping[str, pa.ChunkedArray]) -> Row:
    def holders(former: Mapping[str, Any]) -> list[Row]:
        return [{"request_id": name, "pages": pages} for name, pages in former.items()]

    def nodes(former: Sequence[Sequence[Any]]) -> list[Row]:
        return [dict(zip(_NODE_FIELDS, node, strict=True)) for node in former]

    conflicts = [
        None if sentences is None else [_conflict(sentence) for sentence in sentences]
        for sentences in columns["conflicts"].to_pylist()
    ]
    return {
        "holders": _parsed(columns["holders"], holders, _type("snapshots", "holders")),
        "trie": _parsed(columns["trie"], nodes, _type("snapshots", "trie")),
        "conflicts": pa.array(conflicts, _type("snapshots", "conflicts")),
    }


def _conflict(sentence: str) -> Row:
    for code, pattern in _CONFLICTS.items():
        if match := re.fullmatch(pattern, sentence):
            found = match.groupdict()
            requests = found.pop("requests", None)
            row: Row = {name: int(value) for name, value in found.items()}
            return row | {"code": code, "request_ids": requests and requests.split(" and ")}
    raise ValueError(f"no conflict of pages: {sentence!r}")


def _events(columns: Mapping[str, pa.ChunkedArray]) -> Row:
    details, values = columns["detail"].to_pylist(), columns["value"].to_pylist()
    operations = columns["operation"].to_pylist()
    kinds = columns["kind"].to_pylist()
    extras: dict[str, list[Any]] = {name: [None] * len(kinds) for name in EVENT_EXTRAS}
    for row, (kind, detail) in enumerate(zip(kinds, details, strict=True)):
        kinds[row] = _KINDS.get(kind, kind)
        if kind == "cut":
            late_ns, values[row] = values[row], None
            extras["late_s"][row] = None if late_ns is None else late_ns / 1e9
        if detail is None:
            continue
        if kind == "unfinished":
            operations[row] = detail
        elif kind == "duplicate" and detail == "quarantine":
            kinds[row] = "quarantined"
        else:
            for column, value in _DETAILS[kind](detail).items():
                extras[column][row] = value
    return {
        "t_s": pc.divide(pc.cast(columns["t_ns"], pa.float64()), 1e9),
        "kind": pa.array(kinds, pa.string()),
        "value": pa.array(values, pa.int64()),
        "operation": pa.array(operations, pa.string()),
        **{name: pa.array(extra, _type("events", name)) for name, extra in extras.items()},
    }


def _tokens(detail: str) -> Row:
    words = detail.split()
    return {"tokens": [int(word) for word in words]} if all(w.isdigit() for w in words) else {}


def _wanted(detail: str) -> Row:
    number = detail.partition(" ")[0]
    return {"wanted": int(number)} if number.isdigit() else {}


def _outcome(detail: str) -> Row:
    return {"outcome": _OUTCOMES.get(detail, detail)}


def _message(detail: str) -> Row:
    return {"message": detail}


def _unlanded(detail: str) -> Row:
    former = json.loads(detail)
    return {"phase": former.get("phase"), "request_ids": former.get("requests")}


def _stall(detail: str) -> Row:
    former = json.loads(detail)
    state, _, phase = str(former.get("where", "unknown")).partition(" ")
    threads = former.get("threads")
    return {
        "stall": {
            "state": "executing" if state == "flying" else state,
            "phase": phase or None,
            "invocations": former.get("invocations"),
            "locks": former.get("locks"),
            "threads": threads
            and [{"thread": name, "frames": frames} for name, frames in threads.items()],
        }
    }


def _checksums(detail: str) -> Row:
    former = json.loads(detail)
    if "ended" in former:
        return {"message": former["ended"]}
    followed, count = former.pop("followed", None) or (None, None)
    return {"coverage": {**former, "followed": followed, "page_count": count}}


def _changed_bytes(detail: str) -> Row:
    former = json.loads(detail)
    holds = former.pop("holds")
    page, slot = holds if isinstance(holds, list) else (None, None)
    former["moment"] = _KINDS.get(former["moment"], former["moment"])
    more = {"zeros": holds == "zeros", "from_page": page, "from_slot": slot}
    return {"changed_bytes": {**former, **more, "blocks": _blocks(former.pop("parts"))}}


def _kept_bytes(detail: str) -> Row:
    slots = json.loads(detail)["slots"]
    return {
        "kept_bytes": [
            {**former, "slot": int(slot), "whole": former.pop("all"),
             "blocks": _blocks(former.pop("parts"))}
            for slot, former in slots.items()
        ]
    }  # fmt: skip


def _blocks(parts: Sequence[Sequence[Any]] | None) -> list[Row] | None:
    if parts is None:
        return None
    return [{"layer": layer, "kind": kind, "head": head} for layer, kind, head in parts]


_DETAILS: Mapping[str, Callable[[str], Row]] = {
    "submitted": _tokens,
    "answered": _tokens,
    "create": _tokens,
    "chosen": lambda detail: {"digest": int(detail, 16)},
    "done": _outcome,
    "late": _outcome,
    "shortage": _wanted,
    "evict": _wanted,
    "failed": _message,
    "died": _message,
    "observer_error": _message,
    "memory": lambda detail: {"page_table_bytes": int(detail)},
    "unlanded": _unlanded,
    "cut": lambda detail: {"request_ids": json.loads(detail)},
    "waiting": _stall,
    "checksums": _checksums,
    "bytes_changed": _changed_bytes,
    "bytes_kept": _kept_bytes,
    "snapshot": lambda detail: {"moment": detail},
}
"""Conversions of an event's text to columns, by kind."""
_CONVERTED: Mapping[str, Callable[[Mapping[str, pa.ChunkedArray]], Row]] = {
    "trials": _trials,
    "requests": _requests,
    "invocations": _invocations,
    "events": _events,
    "snapshots": _snapshots,
}
