"""Compares the slots of a live cache with the reference decoder: corruption or numerics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from analysis.core.errors import EngineError
from analysis.model import elements
from analysis.sanitizer.kv_reference import REFERENCE_TIMEOUT_S, Floats, reference_slots

if TYPE_CHECKING:
    import pandas as pd

    from analysis.engine.engine import Engine
    from analysis.recording.recording import Recording

Row = tuple[int, Sequence[int], Sequence[int]]
"""A request: tokens of its prompt, all tokens whose slots were written, its pages in order."""

NUMERICS = 16.0
"""Most units in the last place by which correct arithmetic differs.

A unit is that of the largest element of a layer's keys, or values, of the slot: of small elements,
sums that cancelled, the units are far finer than the error (legitimate ones differ by up to 10,772
of their own). Measured with the counting model, on the CPU, 64 to 80 tokens a sequence:

* Healthy engines against the reference of their release: 0, every bit the same (1602 slots of
  prompts and 456 decoded ones in each of ten settings).
* The same tokens prefilled in one piece instead of decoded: 2. Decoded from the second on: 3.
* The first supported release against the newest: 1.
* A slot of the same token at the same position behind another context: never less than 257; of
  another token at the same position: never less than 1419. One head of one layer above the first
  may come as near as 1.1 there, but not one in 2160 was the same to the bit.
"""
_CHUNK = 512
_NEAREST = 4


def read_pages(engine: Engine, pages: Sequence[int]) -> Floats:
    """Return the content of pages of a live engine, [pages, layers, 2 (K, V), stride, heads, dim].

    An invocation under way may write to them meanwhile. Raises EngineError if the engine is
    not running, a page does not exist, or the device's memory cannot be read from here.
    """
    probe = engine.probe or (engine.service.probe() if engine.service is not None else None)
    if probe is None:
        raise EngineError("The engine is not running, so its pages cannot be read.")
    layers, kinds, stride, heads, size = engine.model.config.page_shape
    count = len(probe.pool.attn_page_entries)
    if strange := [page for page in pages if not 0 <= page < count]:
        raise EngineError(f"Page {strange[0]} does not exist: the pool has pages 0 to {count - 1}.")
    shards = len(probe.pool.page_tables)
    shape = (shards, layers, kinds, stride, heads // shards, size)
    elements.check(probe.dtype)
    try:
        read = [probe.elements(page).reshape(shape) for page in pages]
    except Exception as error:
        raise EngineError(
            f"The page table of this device cannot be read from here: {error}"
        ) from error
    # Devices share out the heads.
    whole = [np.moveaxis(page, 0, 3).reshape(layers, kinds, stride, heads, size) for page in read]
    return np.array(whole) if whole else np.zeros((0, *shape[1:4], heads, size), np.float16)


def written(recording: Recording) -> dict[str, Row]:
    """Return, by request, what its invocations wrote, as the argument of `compare`.

    Tokens are those that the device got, up to the first position that no invocation wrote.
    """
    prompts: dict[str, int] = {}
    tokens: dict[str, dict[int, int]] = {}
    pages: dict[str, Sequence[int]] = {}
    invocations = recording.invocations
    invocations = invocations[invocations["error"].isna()]
    for invocation in invocations.to_dict("records"):
        if invocation["block_tables"] is None or invocation["request_ids"] is None:
            continue
        starts = invocation["start_positions"]
        for row, request in enumerate(invocation["request_ids"]):
            start = 0 if starts is None else starts[row]
            given = invocation["tokens"][row]
            if invocation["phase"] == "prefill":
                given = given[: invocation["seq_lens"][row] - start]
                prompts[request] = start + len(given)
            tokens.setdefault(request, {}).update(enumerate(given, start))
            pages[request] = invocation["block_tables"][row]
    rows: dict[str, Row] = {}
    for request, at in tokens.items():
        length = next((p for p in range(len(at)) if p not in at), len(at))
        prompt = min(prompts.get(request, length), length)
        if length:
            rows[request] = (prompt, tuple(at[p] for p in range(length)), tuple(pages[request]))
    return rows


def compare(
    engine: Engine,
    sequences: Mapping[str, Row],
    *,
    others: Mapping[str, tuple[int, Sequence[int]]] | None = None,
    timeout_s: float = REFERENCE_TIMEOUT_S,
) -> pd.DataFrame:
    """Compare every slot of some requests with the reference decoder.

    Call it while the pages are theirs, or before they are allocated again.

    Parameters
    ----------
    engine
        A live engine; invocations under way may write meanwhile.
    sequences
        By request: the tokens of its prompt, all tokens whose keys and values were written (not the
        last one of the answer), and its pages in order. `written` derives it from a recording.
    others
        More requests whose data may be in the slots: prompt length and tokens.
    timeout_s
        Longest wait for the reference decoder, in seconds.

    Returns
    -------
    pandas.DataFrame
        One row a slot: ``request_id``, ``position``, ``decoded`` (not of the prompt), ``page``,
        ``slot``, ``difference`` (largest, absolute), ``ulps`` (largest, see `NUMERICS`),
        ``first_layer`` (the first that differs by more than numerics), ``verdict``, ``damage``
        (wrong parts of a damaged slot), and ``other_request_id`` and ``other_position`` of the data
        where they are known.

        Verdicts: *equal*, bit by bit; *numerics*, within `NUMERICS`; *empty*, all zeros; *not
        finite*, NaN or infinity; *other*, the data of another place; *other context*, the right
        token at the right position (by the first layer, which sees nothing else), computed while
        something wrong was attended to; *damaged*, the right token with wrong parts in layers
        above, which no context explains; *unknown data*.

    Notes
    -----
    Where seq_lens are too long, as in the reported release, every decoded slot is of *other
    context*, even of a single request (456 of 456, by up to 3462 units).

    Raises
    ------
    EngineError
        If pages cannot be read, or are too few for the tokens.
    ModelError
        If the reference decoder fails.

    """
    asked = {name: (prompt, tokens) for name, (prompt, tokens, _) in sequences.items()}
    right = reference_slots(
        engine.model,
        {**(others or {}), **asked},
        release=engine.release,
        batch_sizes=engine.config.batch_sizes,
        timeout_s=timeout_s,
    )
    stride = engine.model.config.block_seq_stride
    places = [_places(name, row, stride) for name, row in sequences.items()]
    where = np.concatenate([np.zeros((0, 3), np.int64), *places])
    owners = np.repeat(np.array(list(sequences), dtype=object), [len(rows) for rows in places])
    pages, which = np.unique(where[:, 1], return_inverse=True)
    held = np.moveaxis(read_pages(engine, pages.tolist()), 3, 1)[which, where[:, 2]]
    should = np.concatenate([held[:0], *(right[name] for name in sequences)])

    difference, parts = _distance(held, should)
    ulps = parts.max(axis=(1, 2), initial=0.0)
    beyond = parts.max(axis=2, initial=0.0) > NUMERICS  # [slots, layers]
    finite = np.isfinite(held).all(axis=(1, 2, 3, 4))
    zero = (held == 0).all(axis=(1, 2, 3, 4))
    own_token = finite & ~beyond[:, 0]
    verdict = np.select(
        [~finite, ulps == 0, ulps <= NUMERICS, zero, own_token],
        ["not finite", "equal", "numerics", "empty", "other context"],
        "unknown data",
    ).astype(object)

    # Compare with what any request must hold anywhere, and with what slots that kept their own
    # token really hold: with too long seq_lens these two differ.
    names = list(right)
    lengths = [len(right[name]) for name in names]
    known = np.concatenate([held[:0], *(right[name] for name in names), held[own_token]])
    known_of = np.concatenate([np.repeat(np.array(names, object), lengths), owners[own_token]])
    known_at = np.concatenate([*(np.arange(n) for n in lengths), where[own_token, 0]])
    other_request = np.full(len(where), None, dtype=object)
    other_position = np.full(len(where), -1, dtype=np.int64)
    for kind, count in (("other context", sum(lengths)), ("unknown data", len(known))):
        strange = np.flatnonzero(verdict == kind)
        nearest, apart = _nearest(held[strange], known[:count])
        # With the right token, only all layers together identify a slot. Layer 0 identifies a wrong
        # token: the layers above may have been computed from wrong data.
        layers = apart if kind == "other context" else apart[:, :1]
        chosen = layers.max(axis=(1, 2), initial=0.0) <= NUMERICS
        rows, found = strange[chosen], nearest[chosen]
        verdict[rows] = "other"
        other_request[rows], other_position[rows] = known_of[found], known_at[found]
    # A context that differs changes all parts of its layer and of those above, if by little.
    blocks = (held.view(np.uint16) != should.view(np.uint16)).any(axis=4)
    damage = np.full(len(where), None, dtype=object)
    for at in np.flatnonzero(verdict == "other context"):
        first = int(beyond[at].argmax())
        proved = not blocks[at, first:].all()
        excluded = known_at == where[at, 0]
        # Behind another context, others of the same token at the same position may be alike.
        excluded &= (
            known_of == owners[at] if proved else (known[:, 0] == held[at, 0]).all(axis=(1, 2, 3))
        )
        source = _foreign_layer(held[at], beyond[at], known, excluded)
        if source is None and not proved:
            continue
        verdict[at], damage[at] = "damaged", _wrong_parts(blocks[at])
        if source is not None:
            other_request[at], other_position[at] = known_of[source], known_at[source]
    import pandas as pd  # slow to import

    return pd.DataFrame(
        {
            "request_id": owners,
            "position": where[:, 0],
            "decoded": where[:, 0] >= np.array([asked[name][0] for name in owners], np.int64),
            "page": where[:, 1],
            "slot": where[:, 2],
            "difference": difference,
            "ulps": ulps,
            "first_layer": pd.Series(
                np.where(beyond.any(axis=1), beyond.argmax(axis=1), np.nan)
            ).astype("Int64"),
            "verdict": verdict,
            "damage": damage,
            "other_request_id": other_request,
            "other_position": pd.Series(
                np.where(other_position >= 0, other_position, np.nan)
            ).astype("Int64"),
        }
    )


def _places(name: str, row: Row, stride: int) -> NDArray[np.int64]:
    """Return position, page and slot of each token of a request, [tokens, 3]."""
    _, tokens, pages = row
    positions = np.arange(len(tokens))
    if len(tokens) > len(pages) * stride:
        raise EngineError(
            f"{len(pages)} pages of {stride} slots cannot hold the {len(tokens)} tokens of"
            f" {name!r}: name all of its pages."
        )
    return np.stack(
        [positions, np.array(pages, dtype=np.int64)[positions // stride], positions % stride],
        axis=1,
    )


def _distance(held: Floats, should: Floats) -> tuple[Floats, Floats]:
    """Return the largest absolute difference [slots], and that in units [slots, layers, 2].

    Not finite ones are infinitely far away.
    """
    largest = np.abs(should).max(axis=(3, 4), initial=0)
    with np.errstate(invalid="ignore"):
        gaps = np.abs(held.astype(np.float64) - should.astype(np.float64))
        apart = gaps.max(axis=(3, 4), initial=0)
        apart[~np.isfinite(apart)] = np.inf
        units = apart / np.spacing(largest).astype(np.float64)
    return apart.max(axis=(1, 2), initial=0.0), units


def _foreign_layer(
    held: Floats, beyond: NDArray[np.bool_], known: Floats, excluded: NDArray[np.bool_]
) -> int | None:
    """Return which known slot a wrong layer of a slot comes from, None if from none."""
    for layer in np.flatnonzero(beyond).tolist():
        alike = (known[:, layer] == held[layer]).all(axis=(1, 2, 3)) & ~excluded
        if alike.any():
            return int(np.flatnonzero(alike)[0])
    return None


def _wrong_parts(unlike: NDArray[np.bool_]) -> str:
    """Return which layers, halves and heads of a slot differ, [layers, 2, heads]."""
    words = []
    for layer in np.flatnonzero(unlike.any(axis=(1, 2))).tolist():
        for kind, name in enumerate(("K", "V")):
            heads = np.flatnonzero(unlike[layer, kind])
            if unlike[layer].all():
                continue
            if len(heads) == unlike.shape[2]:
                words.append(f"{name} of layer {layer}")
            elif len(heads):
                words.append(f"{name} of layer {layer}, head {', '.join(map(str, heads))}")
        if unlike[layer].all():
            words.append(f"layer {layer}")
    return "; ".join(words)


def _nearest(held: Floats, known: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Return, for each slot, the nearest known one and its distances in units [slots, layers, 2].

    Of equally near ones the first is taken.
    """
    shape = held.shape[:3]
    if not len(held) or not len(known):
        return np.zeros(shape[0], np.int64), np.full(shape, np.inf)
    flat = known.reshape(len(known), -1).astype(np.float32)
    lengths = np.einsum("ij,ij->i", flat, flat)
    nearest, distances = [], []
    count = min(_NEAREST, len(known)) - 1
    for start in range(0, len(held), _CHUNK):
        some = held[start : start + _CHUNK]
        # The product is fast, and rounds: the few that it finds are compared exactly.
        rough = lengths - 2 * some.reshape(len(some), -1).astype(np.float32) @ flat.T
        few = np.sort(np.argpartition(rough, count, axis=1)[:, : count + 1], axis=1)
        exact = np.stack(
            [_distance(some, known[few[:, k]])[1] for k in range(few.shape[1])], axis=1
        )
        best = exact.max(axis=(2, 3)).argmin(axis=1)
        rows = np.arange(len(some))
        nearest.append(few[rows, best])
        distances.append(exact[rows, best])
    return np.concatenate(nearest), np.concatenate(distances)


def describe(slots: pd.DataFrame) -> str:
    """Return the result of `compare` in sentences."""
    if slots.empty:
        return "No slot was compared."
    counts = slots["verdict"].value_counts()
    right = int(counts.get("equal", 0) + counts.get("numerics", 0))
    exact = int(counts.get("equal", 0))
    text = f"{right} of {len(slots)} slots hold what the reference decoder has in their place"
    text += f" ({'all of them' if exact == right else exact} to the bit)."
    strange = slots[slots["verdict"] == "other"]
    if len(strange):
        first = strange.iloc[0]
        text += (
            f" {len(strange)} hold the bytes of another token: slot {first['slot']} of page"
            f" {first['page']}, for position {first['position']} of {first['request_id']}, has"
            f" position {first['other_position']} of {first['other_request_id']}."
        )
    for verdict, what in (
        ("damaged", "hold the right token with parts that are not its own, in layers above"),
        ("other context", "hold the right token, computed while something wrong was attended to"),
        ("empty", "hold zeros"),
        ("not finite", "hold NaN or infinity"),
        ("unknown data", "hold what no compared request has anywhere"),
    ):
        if count := int(counts.get(verdict, 0)):
            text += f" {count} {what}."
    return text
