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
"""Largest difference of correct arithmetic, in units in the last place.

A unit is that of the largest element of a layer's keys (or values) in the slot, because the units
of small elements are far finer than the rounding error (correct ones differ by up to 10,772 of
their own units). Measured with the counting model, on the CPU, 64 to 80 tokens a sequence:

* Healthy engines against the reference of their release: 0, bit-identical (1602 prompt slots and
  456 decoded slots in each of ten settings).
* The same tokens prefilled instead of decoded: 2. Decoded from the second token on: 3.
* The oldest supported release against the newest: 1.
* The same token and position with another context: at least 257. Another token at the same
  position: at least 1419. There, single heads of higher layers differ by as little as 1.1, but
  none of 2160 was bit-identical.
"""
_CHUNK = 512
_NEAREST = 4


def read_pages(engine: Engine, pages: Sequence[int]) -> Floats:
    """Return the content of a live engine's pages, [pages, layers, 2 (K, V), stride, heads, dim].

    An invocation may write to them at the same time. Raises EngineError if the engine is not
    running, a page does not exist, or the device's memory cannot be read.
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
        raise EngineError(f"The page table of this device cannot be read: {error}") from error
    # The heads are split over the devices.
    whole = [np.moveaxis(page, 0, 3).reshape(layers, kinds, stride, heads, size) for page in read]
    return np.array(whole) if whole else np.zeros((0, *shape[1:4], heads, size), np.float16)


def written(recording: Recording) -> dict[str, Row]:
    """Return what the invocations of each request wrote, as the argument of `compare`.

    The tokens are those passed to the device, up to the first position without a write.
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

    Call it while the requests own the pages, or before the pages are allocated again.

    Parameters
    ----------
    engine
        A live engine; its invocations may write at the same time.
    sequences
        For each request: the number of prompt tokens, all tokens with written keys and values (not
        the last one of the answer), and its pages in order. `written` derives it from a recording.
    others
        Other requests that may have written to the slots: prompt length and tokens.
    timeout_s
        Longest wait for the reference decoder, in seconds.

    Returns
    -------
    pandas.DataFrame
        One row a slot: ``request_id``, ``position``, ``decoded`` (False for the prompt), ``page``,
        ``slot``, ``difference`` (largest, absolute), ``ulps`` (largest, see `NUMERICS`),
        ``first_layer`` (the first that differs by more than numerics), ``verdict``, ``damage``
        (wrong parts of a damaged slot), and, if known, ``other_request_id`` and ``other_position``
        of the data.

        Verdicts:

        - *equal*: the same bits.
        - *numerics*: within `NUMERICS`.
        - *empty*: all zeros.
        - *not finite*: NaN or infinity.
        - *other*: the data of another position or request.
        - *other context*: the right token and position (by layer 0, which depends on nothing else),
          computed while attending to wrong data.
        - *damaged*: the right token, with wrong parts in higher layers that no context explains.
        - *unknown data*: anything else.

    Notes
    -----
    If seq_lens are too long, as in release 3.1.0, every decoded slot is *other context*, even of a
    single request (456 of 456, by up to 3462 units).

    Raises
    ------
    EngineError
        If pages cannot be read, or there are too few for the tokens.
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

    difference, parts = distance(held, should)
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

    # Candidates are the reference data of all requests, and the actual data of slots that kept
    # their token: with too long seq_lens these two differ.
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
        # Layer 0 identifies a wrong token; higher layers may be computed from wrong data. With the
        # right token, only all layers together identify a slot.
        layers = apart if kind == "other context" else apart[:, :1]
        chosen = layers.max(axis=(1, 2), initial=0.0) <= NUMERICS
        rows, found = strange[chosen], nearest[chosen]
        verdict[rows] = "other"
        other_request[rows], other_position[rows] = known_of[found], known_at[found]
    # Another context changes all parts of a layer and of the layers above.
    blocks = (held.view(np.uint16) != should.view(np.uint16)).any(axis=4)
    damage = np.full(len(where), None, dtype=object)
    for at in np.flatnonzero(verdict == "other context"):
        first = int(beyond[at].argmax())
        proved = not blocks[at, first:].all()
        excluded = known_at == where[at, 0]
        # With another context, slots of the same token and position may look alike.
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
            f" {name!r}. Give all of its pages."
        )
    return np.stack(
        [positions, np.array(pages, dtype=np.int64)[positions // stride], positions % stride],
        axis=1,
    )


def distance(held: Floats, should: Floats) -> tuple[Floats, Floats]:
    """Return the largest absolute difference [slots], and in units [slots, layers, 2].

    The difference of NaN or infinity is infinite.
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
    """Return the known slot that a wrong layer was taken from; None if there is none."""
    for layer in np.flatnonzero(beyond).tolist():
        alike = (known[:, layer] == held[layer]).all(axis=(1, 2, 3)) & ~excluded
        if alike.any():
            return int(np.flatnonzero(alike)[0])
    return None


def _wrong_parts(unlike: NDArray[np.bool_]) -> str:
    """Return in words which layers, halves and heads differ; `unlike` is [layers, 2, heads]."""
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
    """Return the nearest known slot of each slot, and its distances in units [slots, layers, 2].

    If several are equally near, the first is returned.
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
        # The product is fast but rounds: its few best candidates are compared exactly.
        rough = lengths - 2 * some.reshape(len(some), -1).astype(np.float32) @ flat.T
        few = np.sort(np.argpartition(rough, count, axis=1)[:, : count + 1], axis=1)
        exact = np.stack([distance(some, known[few[:, k]])[1] for k in range(few.shape[1])], axis=1)
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
    text = f"{right} of {len(slots)} slots equal the reference decoder's"
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
        ("damaged", "hold the right token, with foreign parts in higher layers"),
        ("other context", "hold the right token, computed while attending to wrong data"),
        ("empty", "hold zeros"),
        ("not finite", "hold NaN or infinity"),
        ("unknown data", "hold data of no compared request"),
    ):
        if count := int(counts.get(verdict, 0)):
            text += f" {count} {what}."
    return text
