"""The verdict on a wrong answer: cache, results, model or numerics, with its evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.core.wording import one_line
from analysis.diagnosis.divergence import Divergence, text_of, token_name
from analysis.diagnosis.recompute import Recomputed, recompute
from analysis.diagnosis.request_trace import RequestTrace, value_of
from analysis.diagnosis.timeline import RequestInvocation
from analysis.sanitizer.findings import WRONG_DATA, Finding
from analysis.sanitizer.kv_compare import NUMERICS

if TYPE_CHECKING:
    from analysis.runs.store import Run

MEANINGS = {
    "cache": "A row read data that is not its own: a slot held other data, or its tokens, length,"
    " positions or pages were wrong.",
    "results": "The tokens of the answer are not those that the invocations computed.",
    "model": "The pages were right: the model gives the same wrong answer alone.",
    "numerics": "Keys and values differ in the last places at most, and computed in another order"
    " the token is right.",
    "unknown": "What is known of the request does not decide it.",
}
"""Every status of a verdict with its meaning."""
_RESULTS = frozenset(
    ["logits-mismatch", "sampling-mismatch", "answer-mismatch", "token-without-invocation"]
)
"""Rules about what becomes of the logits."""
_LATE = _RESULTS | {"kv-corruption"}
"""Rules that are checked after the wrong token: answers at their end, bytes when they are read."""
_LONGEST = 600
_UNITS = f"units in the last place (numerics: up to {NUMERICS:g})"


@dataclass(frozen=True)
class Verdict:
    """Why an answer is wrong."""

    status: str
    """One of `MEANINGS`."""
    reasons: tuple[str, ...] = ()
    """The evidence, in sentences."""
    missing: tuple[str, ...] = ()
    """What would be needed besides, in sentences."""
    finding: Finding | None = None
    """The first finding with wrong data before the wrong token."""
    same_alone: bool | None = None
    """Whether the reference decoder gives the same wrong token; None: unknown."""
    alone: str | None = None
    """Outcome of the prompt alone on a fresh engine; None if not asked."""
    margin: float | None = None
    """Difference of the engine's two largest logits at the wrong token."""
    reference_margin: float | None = None
    """The same of the reference decoder."""
    reproduced: bool | None = None
    """Whether the recorded arguments, computed again, give the wrong token."""
    ulps: float | None = None
    """Largest difference of these keys and values from the reference decoder's, in units in the
    last place; see `kv_compare.NUMERICS`."""
    order_spread: float | None = None
    """Largest difference of a logit if the same tokens are computed in another order."""

    @property
    def sentences(self) -> tuple[str, ...]:
        """The meaning of the status, and the evidence."""
        missing = tuple(f"Missing: {sentence}" for sentence in self.missing)
        return (f"{self.status}: {MEANINGS[self.status]}", *self.reasons, *missing)


def recorded_statuses(run: Run) -> pd.DataFrame:
    """Return the status of each wrong answer of a run as far as its tables decide it.

    Columns: trial_id, request_id, verdict. `verdict_of` decides more: it computes the step of the
    wrong token again, and disregards later findings.
    """
    wrong = run.findings[run.findings["severity"] == WRONG_DATA].sort_values("seq", kind="stable")
    first = wrong.drop_duplicates(["trial_id", "request_id"])
    rules = dict(zip(zip(first["trial_id"], first["request_id"], strict=True), first["rule"],
                     strict=True))  # fmt: skip
    rows = run.requests[run.requests["outcome"] == "wrong"].to_dict("records")
    keys = ("trial_id", "request_id")
    return pd.DataFrame(
        [
            (*(row[key] for key in keys), _status(row, rules.get(tuple(row[key] for key in keys))))
            for row in rows
        ],
        columns=[*keys, "verdict"],
    )


def _status(request: Mapping[Any, Any], rule: str | None) -> str:
    """Return the status of a wrong answer; `rule` is that of its first finding with wrong data."""
    if _is_tuple(request["reference_tokens"]) and value_of(request["first_divergence"]) is None:
        return "model"
    return "unknown" if rule is None else _status_of(rule)


def _status_of(rule: str) -> str:
    return "results" if rule in _RESULTS else "cache"


def verdict_of(
    trace: RequestTrace,
    invocations: Sequence[RequestInvocation],
    findings: Sequence[Finding],
    divergence: Divergence | None,
    *,
    reference: bool = True,
    alone: str | None = None,
) -> Verdict | None:
    """Return why an answer is wrong; None if it is not wrong.

    If `reference` is set, the reference decoder computes the step of the wrong token again, in a
    child process. `alone` is the outcome of the prompt alone on a fresh engine.
    """
    if trace.outcome != "wrong":
        return None
    own = _own_wrong_token(trace, divergence)
    place = own if own is not None else None if divergence is None else divergence.token_index
    again: Recomputed | str | None = None
    if reference and place is not None:
        again = recompute(trace, invocations, tuple(trace.request["tokens"][:place]))
    first = _first_wrong_data(findings, divergence)
    facts = _facts(trace, invocations, place, again, first, alone)
    if own is not None or (divergence is None and _is_tuple(trace.request["reference_tokens"])):
        return _of_the_model(trace, own, again, facts)
    if divergence is None:
        missing = ("the reference decoder's answer was not recorded.",)
        return _verdict("unknown", facts, missing=missing)
    if first is not None:
        return _verdict(_status_of(first.rule), facts)
    return _without_finding(trace, divergence, again, facts)


def _verdict(
    status: str, facts: dict[str, Any], *reasons: str, missing: tuple[str, ...] = ()
) -> Verdict:
    facts = {**facts}
    return Verdict(status, reasons=(*reasons, *facts.pop("reasons")), missing=missing, **facts)


def _of_the_model(
    trace: RequestTrace, place: int | None, again: Recomputed | str | None, facts: dict[str, Any]
) -> Verdict:
    """Return the verdict on a wrong answer that the reference decoder gives, too."""
    facts = {**facts, "same_alone": True}
    expected = trace.request["expected_text"]
    if place is None:
        return _verdict("model", facts, "The tokens equal the reference decoder's.")
    before, given = tuple(trace.request["tokens"][:place]), trace.request["tokens"][place]
    same = (
        f"The reference decoder, alone with a cache of its own, gives the same wrong token {place},"
        f" {token_name(trace, given)}; expected is “{one_line(expected, 80)}”."
    )
    if not isinstance(again, Recomputed):
        return _verdict("model", facts, same, missing=(again,) if again else ())
    for order, way in again.orders.items():
        token = int(np.argmax(way.logits))
        if _agrees(text_of(trace, (*before, token)), expected):
            cured = (
                f"With {order}, it is {token_name(trace, token)}, as expected; keys and values then"
                f" differ by at most {again.order_ulps:.3g} {_UNITS}."
            )
            if again.order_ulps > NUMERICS:
                missing = "the two orders differ by more than the last places."
                return _verdict("unknown", facts, same, cured, missing=(missing,))
            return _verdict("numerics", facts, same, cured)
    return _verdict("model", facts, same, f"With {' and '.join(again.orders)}, it is wrong, too.")


def _without_finding(
    trace: RequestTrace,
    wrong: Divergence,
    again: Recomputed | str | None,
    facts: dict[str, Any],
) -> Verdict:
    """Return the verdict on an answer that no finding explains."""
    if not isinstance(again, Recomputed):
        missing = again or "explain the request with the reference decoder to compute it again."
        return _verdict("unknown", facts, missing=(missing,))
    if again.recorded is None:
        return _verdict("unknown", facts, missing=(again.not_recorded or "",))
    if (position := again.first_unwritten) is not None:
        missing = f"no recorded invocation wrote its position {position}."
        return _verdict("unknown", facts, missing=(missing,))
    token = int(np.argmax(again.recorded.logits))
    if token == wrong.given and again.first_foreign is not None:
        return _verdict("cache", facts)
    if token == wrong.given:
        cured = f"Alone, the reference decoder gives {token_name(trace, wrong.right)}."
        return _verdict("numerics", facts, cured)
    if wrong.engine is not None and wrong.engine.best == token:
        return _verdict("results", facts, "The engine computed the right token, but gave another.")
    if trace.trial["device"] != "local-task":
        missing = "the recorded arguments were computed again on the CPU, not on the device."
        return _verdict("unknown", facts, missing=(missing,))
    return _verdict(
        "cache",
        facts,
        "The pages did not hold what the recorded invocations wrote, or were read before it.",
    )


def _facts(
    trace: RequestTrace,
    invocations: Sequence[RequestInvocation],
    place: int | None,
    again: Recomputed | str | None,
    first: Finding | None,
    alone: str | None,
) -> dict[str, Any]:
    """Return the numbers of a verdict, and `reasons` with the same in sentences."""
    top = next(
        (i.top for i in reversed(invocations) if place is not None and i.token_index == place), ()
    )
    facts: dict[str, Any] = {"finding": first, "alone": alone}
    reasons = []
    if first is not None:
        reasons.append(f"First wrong data, at {first.at}: {one_line(first.text, _LONGEST)}")
    if len(top) > 1:
        facts["margin"] = top[0][1] - top[1][1]
    if isinstance(again, Recomputed):
        highest = np.sort(again.reference.logits)
        facts |= {
            "reference_margin": float(highest[-1] - highest[-2]),
            "order_spread": again.order_spread,
            "same_alone": int(np.argmax(again.reference.logits)) == trace.request["tokens"][place]
            if place is not None and place < len(trace.request["tokens"])
            else None,
        }
        reasons.append(_margins(facts))
        reasons += _recorded(trace, place, again, facts)
    if alone is not None:
        reasons.append(f"Alone on a fresh engine without treatments, its outcome is {alone}.")
    return {**facts, "reasons": tuple(reasons)}


def _margins(facts: Mapping[str, Any]) -> str:
    engine = f"{facts['margin']:.3g} in the engine, " if "margin" in facts else ""
    return (
        f"The two largest logits differ by {engine}{facts['reference_margin']:.3g} in the reference"
        f" decoder; another order of computation changes a logit by up to"
        f" {facts['order_spread']:.2g}."
    )


def _recorded(
    trace: RequestTrace, place: int | None, again: Recomputed, facts: dict[str, Any]
) -> list[str]:
    """Add the numbers of the recorded arguments to `facts`, and return them in sentences."""
    if again.recorded is None or place is None or again.first_unwritten is not None:
        return []
    token = int(np.argmax(again.recorded.logits))
    answer = trace.request["tokens"]
    given = answer[place] if place < len(answer) else None
    facts |= {"reproduced": token == given, "ulps": again.ulps}
    what = "gives" if token == given else "does not give the wrong token, but"
    text = f"Computing the recorded invocations again {what} {token_name(trace, token)}."
    if again.ulps == 0:
        return [text, "Its keys and values are then the reference decoder's to the bit."]
    foreign = again.first_foreign
    since = "" if foreign is None else f" from position {foreign} on"
    return [
        text,
        f"Its keys and values then differ from the reference decoder's{since}, by at most"
        f" {again.ulps:.3g} {_UNITS}.",
    ]


def _first_wrong_data(findings: Sequence[Finding], divergence: Divergence | None) -> Finding | None:
    """Return the first finding with wrong data up to the wrong token."""
    end = None if divergence is None else divergence.seq
    wrong = [
        finding
        for finding in findings
        if finding.severity == WRONG_DATA
        and (finding.rule in _LATE or end is None or finding.seq is None or finding.seq <= end)
    ]
    return wrong[0] if wrong else None


def _own_wrong_token(trace: RequestTrace, divergence: Divergence | None) -> int | None:
    """Return the first token that is not as expected, if the reference decoder gives it, too."""
    expected, reference = trace.request["expected_text"], trace.request["reference_tokens"]
    if expected is None or not reference:
        return None
    answer = trace.request["tokens"] or ()
    end = len(answer) if divergence is None else divergence.token_index
    for place in range(end):
        if not _agrees(text_of(trace, answer[: place + 1]), expected):
            return place
    return None


def _agrees(text: str | None, expected: str) -> bool:
    """Return whether a text is, as far as it goes, the expected one; also if it is unknown."""
    return text is None or text.startswith(expected) or expected.startswith(text)


def _is_tuple(tokens: Any) -> bool:
    return isinstance(tokens, tuple)
