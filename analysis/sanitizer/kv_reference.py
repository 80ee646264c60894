"""Keys and values of the reference decoder, cached for sequences with a common prefix."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from analysis.core.errors import ModelError
from analysis.shortfin.oracle import oracle_of
from analysis.shortfin.releases import installed_release, reported

if TYPE_CHECKING:
    from analysis.model.artifacts import ModelArtifacts

Floats = NDArray[Any]
REFERENCE_TIMEOUT_S = 300.0
_KEPT_BYTES = 256 << 20

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
    """Return the reference decoder's keys and values, [tokens, layers, 2, heads, dim].

    The first `prompt` tokens of each sequence are prefilled, the others decoded one by one, as in
    an engine. The decoder runs in a child process in the release's environment (default: the
    installed release), on the model compiled for the CPU. Results are kept in memory and reused for
    sequences with a common prefix. Raises ModelError if it fails or takes more than `timeout_s`
    seconds for one sequence, ReleaseError if the release has no environment.
    """
    release = release or installed_release() or reported()
    wanted: dict[str, tuple[_Key, tuple[int, ...]]] = {}
    for name, (prompt, given) in sequences.items():
        tokens = tuple(int(token) for token in given)
        if not 0 < prompt <= len(tokens):
            raise ModelError(
                f"{name!r} has {len(tokens)} tokens, so its prompt cannot have {prompt}: give 1 to"
                f" {len(tokens)}."
            )
        wanted[name] = (model.checksum, release, tuple(batch_sizes), tokens[:prompt]), tokens
    found = {name: _recall(*asked) for name, asked in wanted.items()}
    if missing := [name for name, slots in found.items() if slots is None]:
        oracle = oracle_of(release, model=model.directory, batch_sizes=batch_sizes)
        asked = [(len(wanted[name][0][-1]), wanted[name][1]) for name in missing]
        for name, slots in zip(missing, oracle.keys_values(asked, timeout_s), strict=True):
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
