"""Writes runs as schema versions 1 and 2 had them: the inverse of `analysis.runs.former`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from analysis.runs import former
from analysis.runs.manifest import digest_of
from analysis.runs.parts import write_tables

_KINDS = {new: old for old, new in former._KINDS.items()}
_TYPES = {"t_ns": pa.int64(), "conflicts": pa.list_(pa.string())}
Row = dict[str, Any]


def make_old(path: Path, version: int = 1) -> Path:
    """Make a run, of today or of version 2, what a schema version wrote; 1 has no checksums."""
    manifest = json.loads((path / "manifest.json").read_text())
    kept = {name: manifest[name] for name in manifest if name not in ("checksum", "packed")}
    if manifest["schema_version"] not in former.VERSIONS:
        for trial in [*path.glob("trials/*"), path]:
            _rewrite(trial)
        if (path / "trials").is_dir():
            (path / "trials").rename(path / former.FILES["trials"])
    manifest = {**kept, "schema_version": version}
    if version == 1:
        for file in path.rglob("checksums.json"):
            file.unlink()
    else:
        manifest |= {"packed": True} if "packed" in manifest else {}
        manifest["checksum"] = digest_of(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def _rewrite(directory: Path) -> None:
    tables = {}
    for file in directory.glob("*.parquet"):
        name = file.stem
        tables[former.FILES.get(name, name)] = _older(name, pq.read_table(file))
        file.unlink()
    if tables:
        write_tables(directory, tables)


def _older(name: str, table: pa.Table) -> pa.Table:
    rows = [_DOWN.get(name, lambda row: row)(row) for row in table.to_pylist()]
    arrays = {}
    for column in former.columns_of(name):
        today = {old: new for new, old in former._RENAMED.items()}.get(column, column)
        field = table.schema.field(today) if today in table.column_names else None
        kind = _TYPES.get(column, pa.string() if field is None else field.type)
        if field is not None and pa.types.is_nested(kind) and column in _AS_TEXT:
            kind = pa.string()
        arrays[column] = pa.array([row.get(today) for row in rows], kind)
    return pa.table(arrays)


_AS_TEXT = ("changed", "holders", "trie")


def _text(value: Any) -> str | None:
    return None if value is None else json.dumps(value)


def _trial(row: Row) -> Row:
    done = row["injected"]
    return row | {"struck": None if done is None else json.dumps(row["injection"])}


def _request(row: Row) -> Row:
    return row | {"outcome": "lost" if row["outcome"] == "engine_died" else row["outcome"]}


def _invocation(row: Row) -> Row:
    changed = row["changed"]
    return row | {"changed": _text(changed and [list(entry.values()) for entry in changed])}


def _snapshot(row: Row) -> Row:
    from analysis.snapshots.snapshot import Conflict

    return row | {
        "holders": _text({h["request_id"]: h["pages"] for h in row["holders"]}),
        "trie": _text([list(node.values()) for node in row["trie"]]),
        "conflicts": [
            str(Conflict(**{**c, "request_ids": c["request_ids"] or ()})) for c in row["conflicts"]
        ],
    }


def _event(row: Row) -> Row:
    kind = row["kind"]
    down = _DETAILS.get(kind)
    old: Row = {"t_ns": round(row["t_s"] * 1e9), "kind": _KINDS.get(kind, kind)}
    old["detail"] = None if down is None else down(row)
    if kind == "quarantined":
        old |= {"kind": "duplicate", "detail": "quarantine"}
    if kind == "unfinished":
        old |= {"operation": None, "detail": row["operation"]}
    if kind == "cut":
        old["value"] = None if row["late_s"] is None else round(row["late_s"] * 1e9)
    return row | old


def _words(row: Row) -> str | None:
    return None if row["tokens"] is None else " ".join(map(str, row["tokens"]))


def _outcome(row: Row) -> str | None:
    return "lost" if row["outcome"] == "engine_died" else row["outcome"]


def _wanted(row: Row) -> str | None:
    return None if row["wanted"] is None else f"{row['wanted']} pages were wanted"


def _stall(row: Row) -> str:
    stall = dict(row["stall"])
    state = "flying" if stall["state"] == "executing" else stall["state"]
    threads = {t["thread"]: t["frames"] for t in stall.pop("threads") or ()}
    former = {"where": " ".join(filter(None, (state, stall.pop("phase")))), **stall}
    return json.dumps({**former, "threads": threads})


def _checksums(row: Row) -> str:
    if row["coverage"] is None:
        return json.dumps({"ended": row["message"]})
    former = dict(row["coverage"])
    followed = former.pop("followed"), former.pop("page_count")
    return json.dumps(former if None in followed else {**former, "followed": followed})


def _changed(row: Row) -> str:
    former = dict(row["changed_bytes"])
    page, slot, zeros = (former.pop(name) for name in ("from_page", "from_slot", "zeros"))
    former["holds"] = "zeros" if zeros else None if page is None else [page, slot]
    former["moment"] = _KINDS.get(former["moment"], former["moment"])
    return json.dumps({**former, "parts": _parts(former.pop("blocks"))})


def _kept(row: Row) -> str:
    slots = {
        former["slot"]: {"all": former["whole"], "parts": _parts(former["blocks"]),
                       "zeros": former["zeros"], "other_token": former["other_token"]}
        for former in row["kept_bytes"]
    }  # fmt: skip
    return json.dumps({"slots": slots})


def _parts(blocks: list[Row] | None) -> list[list[Any]] | None:
    return blocks and [list(block.values()) for block in blocks]


_DETAILS: Mapping[str, Callable[[Row], str | None]] = {
    "submitted": _words,
    "answered": _words,
    "create": _words,
    "chosen": lambda row: None if row["digest"] is None else f"{row['digest']:08x}",
    "done": _outcome,
    "late": _outcome,
    "alloc_failed": _wanted,
    "evict": _wanted,
    "failed": lambda row: row["message"],
    "worker_died": lambda row: row["message"],
    "observer_error": lambda row: row["message"],
    "memory": lambda row: str(row["page_table_bytes"]),
    "invocation_unfinished": lambda row: json.dumps(
        {"phase": row["phase"], "requests": row["request_ids"]}
    ),
    "cut": lambda row: json.dumps(row["request_ids"] or []),
    "stall": _stall,
    "checksums": _checksums,
    "bytes_changed": _changed,
    "bytes_kept": _kept,
    "snapshot": lambda row: row["moment"],
}
_DOWN: Mapping[str, Callable[[Row], Row]] = {
    "trials": _trial,
    "requests": _request,
    "invocations": _invocation,
    "events": _event,
    "snapshots": _snapshot,
}
