"""Searches for the smallest candidate that fails in the same way, within a given time.

Every candidate that fails replaces the best so far, so that a search can end at any moment. The
parts of a workload are made smaller one after another, until none can be.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from analysis.core.minimise import fewest, smallest
from analysis.reproduction.candidate import Candidate
from analysis.reproduction.engines import Engines, OutOfTimeError, alone
from analysis.reproduction.symptom import Symptom

Encoded = Callable[[str], list[int]]
Decoded = Callable[[Sequence[int]], str]
OnProgress = Callable[[str], None]
"""Called with a line of text."""

PARTS = (
    "arrival times", "answer length", "pages", "requests", "concurrency", "prompt lengths",
    "each answer's length", "each prompt's length",
)  # fmt: skip
"""The parts of a candidate in the order of trying: what shortens an engine's time comes first."""

AGAIN = "another round of all parts"


@dataclass(frozen=True)
class Step:
    """A part that was made smaller."""

    part: str
    before: Candidate
    after: Candidate


class Search:
    """Makes a failing candidate smaller; `best` is the smallest so far."""

    def __init__(
        self,
        engines: Engines,
        symptom: Symptom,
        start: Candidate,
        request_id: str,
        *,
        encode: Encoded,
        decode: Decoded,
        budget_s: float,
        tries: int,
        on_progress: OnProgress = lambda line: None,
    ) -> None:
        self.best, self.symptom = start, symptom
        self.failed = request_id
        """The request of the best candidate that failed."""
        self.history = [(start, request_id)]
        """Every best candidate so far with its failed request, the smallest last."""
        self.steps: list[Step] = []
        self.not_tried: list[str] = []
        """Parts that were not, or not wholly, tried for want of time."""
        self.candidates = 0
        """Number of candidates tested."""
        self._engines, self._tries, self._report = engines, tries, on_progress
        self._encode, self._decode = encode, decode
        self._page_count = start.page_count
        self._until = time.monotonic() + budget_s
        self._known: dict[Candidate, str | None] = {}
        """The failed request of each tested candidate; None if none failed."""
        self._peers: Collection[str] = ()

    def run(self, peers: Collection[str]) -> Candidate:
        """Search until nothing can be made smaller or the time is up; return the best candidate.

        Of the requests, the failed one alone is tried first, then it with its `peers`. After
        Ctrl-C, `best` has the result so far.
        """
        self._peers = peers
        parts = dict(zip(PARTS, self._parts(), strict=True))
        self.not_tried = left = [*PARTS]
        try:
            while left:
                before = self.best
                for part in PARTS:
                    self._shorten(part, parts[part])
                    self.not_tried = left = left[1:]
                left = [] if self.best == before else [*PARTS]
                self.not_tried = [AGAIN] if left else []
        except OutOfTimeError:
            pass
        return self.best

    def _parts(self) -> tuple[Callable[[], object], ...]:
        return (
            self._arrivals, self._answers, self._pages, self._requests, self._concurrency,
            self._prompts, self._each_answer, self._each_prompt,
        )  # fmt: skip

    def _shorten(self, part: str, attempt: Callable[[], object]) -> None:
        before = self.best
        try:
            attempt()
            if self.best != before and len(self.best.requests) > 1:
                self._fails(self.best.among({self.failed}))  # may suffice now
        finally:
            if self.best != before:
                self.steps.append(Step(part, before, self.best))
                self._report(f"{part}: {self.best}")

    def _fails(self, candidate: Candidate) -> bool:
        """Return whether one of a few fresh engines fails in the same way."""
        if candidate not in self._known:
            self.candidates += 1
            self._known[candidate] = self._tested(candidate)
        if (failed := self._known[candidate]) is None:
            return False
        self.best, self.failed = candidate, failed
        self.history.append((candidate, failed))
        return True

    def _tested(self, candidate: Candidate) -> str | None:
        """Return the request that failed on one of a few engines; None if none did."""
        if time.monotonic() > self._until:
            raise OutOfTimeError
        for one in self._engines.attempts(candidate, self.symptom, self._tries, self._until):
            if one.failed and not self._lacks_pages(candidate, one.failed):
                return one.failed
        return None

    def _lacks_pages(self, candidate: Candidate, request_id: str) -> bool:
        """Return whether a request fails only because fewer pages than recorded are too few for it.

        Then it fails alone with these pages, and not with the recorded number.
        """
        refused = self.symptom.outcome == "rejected"
        if candidate.page_count == self._page_count and not refused:
            return False
        own = alone(candidate, request_id)
        if len(candidate.requests) > 1:
            (one,) = self._engines.attempts(own, self.symptom, 1, self._until)
            if set(one.outcomes) == {"ok"}:
                return False
        if refused:
            return True
        roomy = replace(own, page_count=self._page_count)
        tried = self._engines.attempts(roomy, self.symptom, self._tries, self._until)
        return not any(one.failed for one in tried)

    def _arrivals(self) -> None:
        late = [request.id for request in self.best.requests if request.arrival_s]
        if not late or self._fails(self.best.at_once(late)):
            return
        start = self.best
        fewest(late, lambda kept: self._fails(start.at_once(set(late) - set(kept))))

    def _requests(self) -> None:
        for ids in ({self.failed}, self._peers):
            few = self.best.among(ids)
            if 0 < len(few.requests) < len(self.best.requests) and self._fails(few):
                break
        start = self.best
        fewest([r.id for r in start.requests], lambda kept: self._fails(start.among(kept)))

    def _concurrency(self) -> None:
        start = self.best
        smallest(
            1, start.concurrency, lambda number: self._fails(replace(start, concurrency=number))
        )

    def _answers(self) -> None:
        start = self.best
        longest = max(request.max_new_tokens for request in start.requests)
        smallest(1, longest, lambda most: self._fails(start.answers(most)))

    def _each_answer(self) -> None:
        for request in self.best.requests:
            self._answer(request.id)

    def _answer(self, name: str) -> None:
        start = self.best
        longest = max((r.max_new_tokens for r in start.requests if r.id == name), default=0)
        smallest(1, longest, lambda most: self._fails(start.answers(most, name)))

    def _prompts(self) -> None:
        self._cut([request.id for request in self.best.requests])

    def _each_prompt(self) -> None:
        for request in self.best.requests:
            self._cut([request.id])

    def _cut(self, ids: Collection[str]) -> None:
        start = self.best
        lengths = [len(self._encode(r.prompt)) for r in start.requests if r.id in ids]
        smallest(1, max(lengths, default=0), lambda most: self._fails_cut(start, most, ids))

    def _pages(self) -> None:
        start = self.best
        smallest(1, start.page_count, lambda n: self._fails(replace(start, page_count=n)))

    def _fails_cut(self, candidate: Candidate, most: int, ids: Collection[str]) -> bool:
        """Return whether it fails with only the last tokens of these prompts, at most `most`.

        The model alone must answer the same as before: of a prompt that it cannot continue, any
        answer would be as good.
        """
        texts = {
            request.id: self._decode(self._encode(request.prompt)[-most:])
            for request in candidate.requests
            if request.id in ids and len(self._encode(request.prompt)) > most
        }
        cut = candidate.prompts(texts)
        if not all(texts.values()) or self._right(cut) != self._right(candidate):
            return False
        return self._fails(cut)

    def _right(self, candidate: Candidate) -> list[tuple[int, ...]]:
        answers = self._engines.references.of(candidate.requests)
        return [answers[r.prompt, r.max_new_tokens] for r in candidate.requests]
