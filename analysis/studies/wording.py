"""Sentences that several studies share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from analysis.core.templates import paragraph
from analysis.core.wording import short_percent
from analysis.runs.derive import EXPOSURES
from analysis.stats.clustered import Rate
from analysis.stats.exposure import MARGIN, Change

_fill = partial(paragraph, "analysis.studies", "wording.j2")


def exposure_in_words(found: Sequence[Change], through: Sequence[str] = ()) -> str:
    """Return how two arms compare in what they were exposed to.

    `through` names the exposures by which the difference between the arms is known to act. They are
    reported separately.
    """
    rest = [change for change in found if change.name not in through]
    unsure = [EXPOSURES[change.name] for change in rest if not change.alike]
    acting = acts_through(found, through)
    return _fill("exposure", found, rest, _moved(rest), unsure, acting, MARGIN)


def acts_through(found: Sequence[Change], through: Sequence[str]) -> str:
    """Return how the exposures of `through` changed; "" if none was compared."""
    acting = [change for change in found if change.name in through]
    return _fill("acts_through", acting, _moved(acting))


def exposure_cell(found: Sequence[Change], through: Sequence[str] = ()) -> str:
    """Return what `exposure_in_words` says, as short as a table needs it."""
    rest = [change for change in found if change.name not in through]
    unsure = [change.name.replace("_", " ") for change in rest if not change.alike]
    acting = _moved([change for change in found if change.name in through])
    return _fill("exposure_cell", found, _moved(rest), unsure, acting, MARGIN)


def rate_cell(rate: Rate) -> str:
    """Return a rate for a table, with its 95% interval: "12 of 48: 25% (14% to 39%)"."""
    if not rate.n:
        return "none"
    low, high = short_percent(rate.low), short_percent(rate.high)
    narrow = "" if rate.by_engine else ", by request only"
    return f"{rate.failures} of {rate.n}: {short_percent(rate.value)} ({low} to {high}{narrow})"


def _moved(found: Sequence[Change]) -> list[str]:
    return [change.label for change in found if change.fell or change.rose]
