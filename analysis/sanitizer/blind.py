"""What the sanitizer cannot see on a release, rule by rule."""

from __future__ import annotations

from analysis.shortfin.releases import row_of

BLIND: tuple[tuple[str, str | None, str], ...] = (
    (
        "kv-corruption",
        None,
        "Page 0 is not judged, nor pages in use when the watching began, nor a change that an"
        " invocation under way writes over.",
    ),
    (
        "parent-mismatch",
        None,
        "Between two snapshots a pointer is checked only where a lookup passes it.",
    ),
    (
        "allocation-list-mismatch",
        "allocations",
        "A list that loses its last page is found when the next decode reads what took its place.",
    ),
    (
        "allocation-list-mismatch",
        "records",
        "Without prefix sharing the cache takes no page off its list: only missing entries are"
        " found, no stale or doubled ones.",
    ),
    (
        "argument-changed",
        None,
        "A change that is undone before the call returns is not seen, nor one that is undone before"
        " the landing and looks like a transfer still under way.",
    ),
    (
        "answer-mismatch",
        "text-answers",
        "Answers are texts: special tokens, and tokens that read alike, are not told apart.",
    ),
    (
        "logits-mismatch",
        "records",
        "With several beams, or a choice among indices of the device, results are not followed.",
    ),
    (
        "sampling-mismatch",
        "records",
        "Only greedy selection is checked: not with several beams, a temperature other than 1 or"
        " softmax normalisation.",
    ),
    (
        "read-before-write",
        "allocations",
        "A row's result shows that its invocation has landed; the order on the device itself is"
        " not seen.",
    ),
    ("read-before-write", "records", "The order on the device itself is not seen."),
)
"""A rule, the capability of a release that matters (None: any), and what the rule cannot see."""


def blind_spots(release: str | None) -> list[str]:
    """Return what is not seen on a release, as sentences that begin with the rule."""
    if release is None:
        return []
    has = row_of(release).capabilities
    return [
        f"{rule}: {sentence}" for rule, needs, sentence in BLIND if needs is None or needs in has
    ]
