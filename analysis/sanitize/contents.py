"""Corruption or mere numerics? What the slots of a live cache hold against what they should hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis import children, releases
from analysis.errors import CachelabError, EngineError, ModelError

if TYPE_CHECKING:
    import pandas as pd

    from analysis.engine.engine import Engine
    from analysis.model import ModelArtifacts
    from analysis.observe.recording import Recording

Floats = NDArray[Any]
Row = tuple[int, Sequence[int], Sequence[int]]
"""A request: tokens of its prompt, all tokens whose slots were written, its pages in order."""

NUMERICS = 64.0
REFERENCE_TIMEOUT_S = 300.0
_KEPT_BYTES = 256 << 20
_CHUNK = 512
_NEAREST = 4


def read_pages(engine: Engine, pages: Sequence[int]) -> Floats:
    """Return what pages of a live engine hold, [pages, layers, 2 (K, V), 16, kv heads, head dim].

    A flight that is under way may write to them meanwhile. Raises EngineError if the engine is not
    running, a page does not exist, or the device's memory cannot be read from here.
    """
    probe = engine.probe or (engine.adapter.probe() if engine.adapter is not None else None)
    if probe is None:
        raise EngineError("The engine is not running, so its pages cannot be read.")
    layers, kinds, stride, heads, size = engine.model.config.page_shape
    count = len(probe.pool.attn_page_entries)
    if strange := [page for page in pages if not 0 <= page < count]:
        raise EngineError(f"Page {strange[0]} does not exist: the pool has pages 0 to {count - 1}.")
    shards = len(probe.pool.page_tables)
    shape = (shards, layers, kinds, stride, heads // shards, size)
    try:
        read = [probe._elements(page).reshape(shape) for page in pages]
    except Exception as error:
        raise EngineError(
            f"The page table of this device cannot be read from here: {error}"
        ) from error
    # Devices share out the heads.
    whole = [np.moveaxis(page, 0, 3).reshape(layers, kinds, stride, heads, size) for page in read]
    return np.array(whole) if whole else np.zeros((0, *shape[1:4], heads, size), np.float16)


def written(recording: Recording) -> dict[str, Row]:
    """Return, by request, what its flights wrote, as `compare` wants it.

    Tokens are what the device got, up to the first position that no flight wrote.
    """
    prompts: dict[str, int] = {}
    tokens: dict[str, dict[int, int]] = {}
    pages: dict[str, Sequence[int]] = {}
    flights = recording.flights
    flights = flights[flights["error"].isna()]
    for flight in flights.to_dict("records"):
        if flight["block_tables"] is None or flight["request_ids"] is None:
            continue
        starts = flight["start_positions"]
        for row, request in enumerate(flight["request_ids"]):
            start = 0 if starts is None else starts[row]
            given = flight["tokens"][row]
            if flight["phase"] == "prefill":
                given = given[: flight["seq_lens"][row] - start]
                prompts[request] = start + len(given)
            tokens.setdefault(request, {}).update(enumerate(given, start))
            pages[request] = flight["block_tables"][row]
    rows = {}
    for request, at in tokens.items():
        length = next((p for p in range(len(at)) if p not in at), len(at))
        prompt = min(prompts.get(request, length), length)
        if length:
            rows[request] = (prompt, tuple(at[p] for p in range(length)), tuple(pages[request]))
    return rows


# -- what they should hold -----------------------------------------------------------------

_Key = tuple[str, str, tuple[int, ...], tuple[int, ...]]
_kept: OrderedDict[_Key, tuple[tuple[int, ...], Floats]] = OrderedDict()
_kept_lock = threading.Lock()


def reference_slots(
    model: ModelArtifacts,
    sequences: Mapping[str, tuple[int, Sequence[int]]],
    *,
    release: str | None = None,
    batch_sizes: Sequence[int] = (4,),
    timeout_s: float = REFERENCE_TIMEOUT_S,
) -> dict[str, Floats]:
    """Return keys and values as the reference decoder has them, [tokens, layers, 2, heads, dim].

    Of each sequence the first `prompt` tokens are prefilled and the others decoded one by one, as
    an engine does. The decoder runs in a child process of the release's environment (by default of
    the installed one), on the model compiled for the CPU. What it said is kept in memory, and used
    again for sequences that begin alike. Raises ModelError if it fails or takes more than
    `timeout_s` seconds, ReleaseError if the release has no environment here.
    """
    release = release or releases.installed_release() or releases.DEFAULT
    wanted: dict[str, tuple[_Key, tuple[int, ...]]] = {}
    for name, (prompt, given) in sequences.items():
        tokens = tuple(int(token) for token in given)
        if not 0 < prompt <= len(tokens):
            raise ModelError(
                f"A prompt of {prompt} tokens is no part of the {len(tokens)} of {name!r}: name 1"
                " or more of them."
            )
        wanted[name] = (model.checksum, release, tuple(batch_sizes), tokens[:prompt]), tokens
    found = {name: _recall(*asked) for name, asked in wanted.items()}
    if missing := [name for name, slots in found.items() if slots is None]:
        job = {
            "parent": os.getpid(),
            "model": os.fspath(model.directory),
            "batch_sizes": list(batch_sizes),
            "sequences": [[len(wanted[name][0][-1]), wanted[name][1]] for name in missing],
        }
        answers = _ask(releases.python_of(release), release, job, timeout_s)
        for name, slots in zip(missing, answers, strict=True):
            found[name] = slots
            _keep(*wanted[name], slots)
    return {name: slots for name, slots in found.items() if slots is not None}


def _recall(key: _Key, tokens: tuple[int, ...]) -> Floats | None:
    with _kept_lock:
        known = _kept.get(key)
        if known is None or known[0][: len(tokens)] != tokens:
            return None
        _kept.move_to_end(key)
        return known[1][: len(tokens)]


def _keep(key: _Key, tokens: tuple[int, ...], slots: Floats) -> None:
    with _kept_lock:
        _kept[key] = tokens, slots
        _kept.move_to_end(key)
        while sum(kept.nbytes for _, kept in _kept.values()) > _KEPT_BYTES and len(_kept) > 1:
            _kept.popitem(last=False)


def _ask(python: Path, release: str, job: dict[str, Any], timeout_s: float) -> list[Floats]:
    """Return what a child process answers to a job, one array a sequence."""
    with tempfile.TemporaryDirectory(prefix="cachelab-contents-") as directory:
        spec, log, said = (Path(directory, name) for name in ("job.json", "log", "said.npz"))
        spec.write_text(json.dumps(job))
        with log.open("wb") as output:
            child = subprocess.Popen(
                [str(python), "-c", _CHILD, str(spec), str(said)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=children.environment(),
                start_new_session=True,
            )
        try:
            failed = child.wait(timeout_s) != 0
        except subprocess.TimeoutExpired:
            raise ModelError(
                f"The reference decoder of shortfin {release} was not done after {timeout_s:g} s"
                " and was ended: give it more time, or fewer sequences."
            ) from None
        finally:
            children.kill_group(child)
        if failed:
            lines = children.tail(log, 4000).strip().splitlines() or ["it said nothing."]
            raise ModelError(f"The reference decoder of shortfin {release} failed: {lines[-1]}")
        with np.load(said) as arrays:
            return [arrays[f"{number}"] for number in range(len(job["sequences"]))]


_CHILD = "import sys; from analysis.sanitize.contents import _child; sys.exit(_child(*sys.argv[1:]))"


def _child(spec: str, said: str) -> int:
    """Compute the sequences of a job file (runs in the child)."""
    job = json.loads(Path(spec).read_text())
    children.die_with_parent(job["parent"])
    from analysis.model import ReferenceDecoder, compile_model, load_model

    try:
        model = load_model(Path(job["model"]))
        vmfb = compile_model(model, batch_sizes=tuple(job["batch_sizes"]), target="llvm-cpu")
        decoder, arrays = ReferenceDecoder(model, vmfb), {}
        for number, (prompt, tokens) in enumerate(job["sequences"]):
            sequence = decoder.start(tokens[:prompt], capacity=len(tokens))
            for token in tokens[prompt:]:
                sequence.step(token)
            arrays[f"{number}"] = sequence.keys_values()
        np.savez(said, **arrays)
    except CachelabError as error:
        print(error, file=sys.stderr)  # noqa: T201  # the parent reads the last line
        return 1
    return 0
