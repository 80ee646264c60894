"""What the sanitizer cannot see on a release, rule by rule."""

from __future__ import annotations

_UNDONE = (
    "A change that is undone before the call returns is not seen, nor one that is undone before"
    " the landing and looks like a transfer still under way."
)
_BYTES = (
    "Page 0 is not judged, nor pages in use when the watching began, nor a change that an"
    " invocation"
    " under way writes over."
)
_BETWEEN = "Between two snapshots a pointer is checked only where a lookup passes it."
BLIND: dict[str, dict[str, str]] = {
    "3.1.0": {
        "kv-corruption": _BYTES,
        "parent-mismatch": _BETWEEN,
        "allocation-list-mismatch": (
            "A list that loses its last page is found when the next decode reads what took its"
            " place."
        ),
        "argument-changed": _UNDONE,
        "answer-mismatch": (
            "Answers are texts: special tokens, and tokens that read alike, are not told apart."
        ),
        "read-before-write": (
            "A row's result shows that its invocation has landed; the order on the device itself"
            " is not seen."
        ),
    },
    "3.9.0": {
        "kv-corruption": _BYTES,
        "parent-mismatch": _BETWEEN,
        "allocation-list-mismatch": (
            "Without prefix sharing the cache takes no page off its list: only missing entries are"
            " found, no stale or doubled ones."
        ),
        "argument-changed": _UNDONE,
        "logits-mismatch": (
            "With several beams, or a choice among indices of the device, results are not followed."
        ),
        "sampling-mismatch": (
            "Only greedy selection is checked: not with several beams, a temperature other than 1"
            " or softmax normalisation."
        ),
        "read-before-write": "The order on the device itself is not seen.",
    },
}
"""By release and by rule, in a sentence."""


def blind_spots(release: str | None) -> list[str]:
    """Return what is not seen on a release, as sentences that begin with the rule."""
    spots = BLIND.get(release or "", {})
    return [f"{rule}: {sentence}" for rule, sentence in spots.items()]
