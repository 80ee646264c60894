"""The releases of shortfin: one row each.

A release has a generation of the service (`service/`), a dialect of the cache (`cache/`), and its
own facts. Generations and dialects have capabilities, and treatments and faults declare which
capabilities they need. So a new release of a known generation and dialect needs only a row here and
a lock file in `environments/`. Nothing here imports shortfin, so that plans for a release can be
checked where another one is installed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib import metadata

from analysis.core.errors import ReleaseError


@dataclass(frozen=True)
class Pace:
    """Typical durations of a release in seconds, for estimates: two cores, the counting model."""

    first_token_s: float
    """Seconds a token in a batch that is not full: up to 3.2 it waits for two strobes of 0.25 s."""
    further_token_s: float
    full_first_token_s: float
    """Seconds a token in a full batch."""
    full_further_token_s: float

    @property
    def waits(self) -> bool:
        """Whether a batch that is not full mostly waits to be filled, and computes little."""
        return self.further_token_s > 10 * self.full_further_token_s


@dataclass(frozen=True)
class Release:
    """One public release. Without `service` and `cache` it is not supported yet."""

    version: str
    service: str | None = None
    """Module of `analysis.shortfin.service`: a generation of the server."""
    cache: str | None = None
    """Package of `analysis.shortfin.cache`: a dialect of the prefix cache."""
    pace: Pace = Pace(0.1, 0.02, 0.02, 0.005)
    fixes: tuple[str, ...] = ()
    """Treatments that fix defects of this release, in the order of application."""
    own: tuple[str, ...] = ()
    """Capabilities that not every release of its generation has."""

    @property
    def capabilities(self) -> frozenset[str]:
        """Capabilities for treatments and faults; their names are in `CAPABILITIES`."""
        generation = SERVICES.get(self.service or "", frozenset())
        return generation | CACHES.get(self.cache or "", frozenset()) | frozenset(self.own)


CAPABILITIES = {
    "allocations": "a request holds its pages with an allocation object (3.1 to 3.6)",
    "requests": "a request allocates and frees its pages itself (3.7)",
    "records": "a request holds its pages with records of a decoder (3.8 and later)",
    "prefix-sharing": "with the trie, requests share the pages of equal prefixes (all but 3.7)",
    "decoder": "a request's decoder selects its tokens (3.7 and later)",
    "strobes": "one batcher waits for batches to fill",
    "text-answers": "an answer is a text, not a list of tokens",
    "worker-pool": "each request, with all that it does to the cache, runs on a worker of a pool",
    "phase-workers": "prefills, decodes and each request change the cache on workers of their own",
    "aliased-tokens": "an allocation keeps the list of tokens that its request extends",
    "blind-publish": "a publication replaces existing nodes, and keeps inner nodes as leaves",
    "request-list": "the process of an invocation keeps its requests in a list",
    "task-queue": "the batcher keeps pending requests in a queue, not in a set",
    "history-lengths": "the length of a decode's row includes its history (before #873)",
    "exact-lengths": "the length of a decode's row ends at its own position (#873)",
    "overlaps": "a worker may begin an invocation before another one has finished",
    "overlap-freezes": "two invocations at once on a worker freeze the process (3.3 and later)",
    "shared-worker": "prefills and decodes run on one worker, so they overlap (3.3 and 3.4)",
    "own-workers": "prefills and decodes have a worker each (3.5 and later)",
    "shared-fiber-list": "batchers take fibers from the list in which requests look for theirs",
    "drops-unscheduled": "a prefill that finds no pages is ended, not kept pending",
    "late-reservation": "a request reserves its place with its first decode, and gives it back also"
    " without one (3.6)",
    "padding-at-one": "padding rows of a decode start at position 1 (before #826)",
    "beams": "a request may have several beams (3.4 and later)",
    "prefill-positions": "a prefill may start at a position, behind shared pages (3.7 and later)",
    "streaming": "an answer may be streamed (up to 3.5)",
    "chunked-prefill": "a prompt may be prefilled in chunks (3.8 and later)",
}
"""Description of every capability; the sets below assign them to generations and dialects."""
SERVICES = {
    "v3_1": frozenset({"strobes", "request-list", "overlaps", "drops-unscheduled"}),
    "v3_3": frozenset({"request-list", "exact-lengths", "overlap-freezes", "shared-worker"}),
    "v3_5": frozenset({
        "phase-workers", "request-list", "overlaps", "exact-lengths", "drops-unscheduled", "beams",
        "overlap-freezes", "own-workers",
    }),
    "v3_7": frozenset({
        "worker-pool", "request-list", "decoder", "exact-lengths", "drops-unscheduled", "beams",
        "prefill-positions", "overlap-freezes", "own-workers",
    }),
    "v3_9": frozenset({
        "worker-pool", "task-queue", "decoder", "exact-lengths", "drops-unscheduled", "beams",
        "prefill-positions", "chunked-prefill", "overlap-freezes", "own-workers",
    }),
}  # fmt: skip
MODES = {
    "num_beams": "beams", "has_prefill_position": "prefill-positions",
    "chunk_block_size": "chunked-prefill", "stream": "streaming",
}  # fmt: skip
"""Options of an engine that not every release has, with the capability that they need."""
CACHES = {
    "allocations": frozenset({"allocations", "prefix-sharing"}),
    "requests": frozenset({"requests"}),
    "records": frozenset({"records", "prefix-sharing"}),
}

PROBED = "CACHELAB_PROBE"
"""Environment variable RELEASE=ROW: a release that `cachelab releases probe` tries like another."""


def _with_probed(rows: tuple[Release, ...], probed: str) -> tuple[Release, ...]:
    version, _, like = probed.partition("=")
    rest = [row for row in rows if row.version != version]
    tried = [replace(row, version=version) for row in rows if row.version == like]
    return tuple(sorted([*rest, *tried], key=number_of)) if tried else rows


def number_of(row: Release) -> tuple[int, ...]:
    """Return the version of a release as numbers, to compare it. Raises ReleaseError."""
    try:
        return tuple(map(int, row.version.split(".")))
    except ValueError:
        raise ReleaseError(f"{row.version!r} is not a version such as 3.9.0.") from None


RELEASES: tuple[Release, ...] = (
    Release(
        "3.1.0",
        service="v3_1",
        cache="allocations",
        pace=Pace(0.7, 0.5, 0.01, 0.005),
        fixes=(
            "correct-seq-lens", "zero-start-positions", "zero-page-tables", "copy-tokens",
            "reuse-existing-node", "true-leaves", "give-back-reference", "free-unpublished-pages",
            "reserve-padding-page", "requeue-unscheduled", "survive-allocation-failure",
        ),
        own=(
            "aliased-tokens", "blind-publish", "text-answers", "history-lengths", "padding-at-one",
            "streaming",
        ),
    ),
    Release(
        "3.2.0",
        service="v3_1",
        cache="allocations",
        pace=Pace(0.7, 0.5, 0.01, 0.005),
        fixes=(
            "copy-tokens", "reuse-existing-node", "true-leaves", "give-back-reference",
            "free-unpublished-pages", "reserve-padding-page", "requeue-unscheduled",
            "survive-allocation-failure",
        ),
        own=("aliased-tokens", "blind-publish", "exact-lengths", "streaming"),
    ),
    Release(
        "3.3.0",
        service="v3_3",
        cache="allocations",
        pace=Pace(0.04, 0.021, 0.04, 0.003),
        fixes=(
            "copy-tokens", "reuse-existing-node", "true-leaves", "give-back-reference",
            "free-unpublished-pages", "reserve-padding-page", "serialise-invocations",
            "survive-allocation-failure",
        ),
        own=("aliased-tokens", "blind-publish", "streaming"),
    ),
    Release(
        "3.4.0",
        service="v3_3",
        cache="allocations",
        pace=Pace(0.04, 0.004, 0.015, 0.005),
        fixes=(
            "copy-tokens", "reuse-existing-node", "true-leaves", "give-back-reference",
            "free-unpublished-pages", "reserve-padding-page", "serialise-invocations",
            "separate-fibers", "survive-allocation-failure",
        ),
        own=("aliased-tokens", "blind-publish", "shared-fiber-list", "beams", "streaming"),
    ),
    Release(
        "3.5.0",
        service="v3_5",
        cache="allocations",
        pace=Pace(0.14, 0.005, 0.03, 0.006),
        fixes=(
            "copy-tokens", "reuse-existing-node", "true-leaves", "give-back-reference",
            "free-unpublished-pages", "reserve-padding-page", "lock-cache", "requeue-unscheduled",
            "survive-allocation-failure",
        ),
        own=("aliased-tokens", "blind-publish", "streaming"),
    ),
    Release(
        "3.6.0",
        service="v3_5",
        cache="allocations",
        pace=Pace(0.14, 0.005, 0.03, 0.006),
        fixes=(
            "give-back-reference", "free-unpublished-pages", "reserve-padding-page", "lock-cache",
            "requeue-unscheduled", "ignore-unreserved", "survive-allocation-failure",
        ),
        own=("late-reservation",),
    ),
    Release(
        "3.7.0",
        service="v3_7",
        cache="requests",
        pace=Pace(0.14, 0.005, 0.03, 0.006),
        fixes=("reserve-padding-page", "requeue-unscheduled", "survive-allocation-failure"),
    ),
    Release(
        "3.8.0",
        service="v3_9",
        cache="records",
        pace=Pace(0.14, 0.005, 0.03, 0.006),
        fixes=(
            "keep-decode-record", "delist-freed-pages", "register-once", "refer-to-published",
            "reserve-padding-page", "lock-cache", "pin-on-lookup", "requeue-unscheduled",
            "survive-allocation-failure",
        ),
    ),
    Release(
        "3.9.0",
        service="v3_9",
        cache="records",
        pace=Pace(0.14, 0.005, 0.03, 0.006),
        fixes=(
            "keep-decode-record", "delist-freed-pages", "register-once", "refer-to-published",
            "reserve-padding-page", "lock-cache", "pin-on-lookup", "requeue-unscheduled",
            "survive-allocation-failure",
        ),
    ),
)  # fmt: skip
"""Every public release with a prefix cache, oldest first."""
_REPORTED = RELEASES[0].version
RELEASES = _with_probed(RELEASES, os.environ.get(PROBED, ""))
KNOWN = tuple(row.version for row in RELEASES)


def supported(*capabilities: str) -> tuple[str, ...]:
    """Return the supported releases with these capabilities, oldest first."""
    return tuple(
        row.version
        for row in RELEASES
        if row.service and row.cache and row.capabilities.issuperset(capabilities)
    )


def oldest_first(releases: Iterable[str]) -> list[str]:
    """Return each of these known releases once, oldest first."""
    return sorted(set(releases), key=KNOWN.index)


def reported() -> str:
    """Return the release of the bug report, which is that of the default environment."""
    return _REPORTED


def row_of(release: str) -> Release:
    """Return the row of a release. Raises ReleaseError if it is unknown."""
    for row in RELEASES:
        if row.version == release:
            return row
    raise ReleaseError(
        f"shortfin {release!r} is not a known release. Choose from {', '.join(KNOWN)}."
    )


def installed_release() -> str | None:
    """Return the shortfin release installed for this interpreter; None without one."""
    try:
        return metadata.version("shortfin")
    except metadata.PackageNotFoundError:
        return None
