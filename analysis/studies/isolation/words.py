"""The answer of an examination, in words that follow from its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from analysis.interleavings.result import REAL, Result


def answer_in_a_sentence(
    untreated: Sequence[Result],
    treated: Sequence[Result],
    left_out: Mapping[str, Result] | None = None,
) -> str:
    """Return what the cache of one release does by itself, and whether its fixes mend it.

    `left_out` has the results with all fixes but one, by the name of that one.
    """
    release = untreated[0].release
    said = [_found(result) for result in untreated]
    many = sum(result.interleavings for result in treated)
    if all(result.ok and result.complete for result in treated):
        mended = f"with all fixes applied, every rule holds in all {many:,} interleavings"
    elif all(result.ok for result in treated):
        mended = f"with all fixes applied, no rule was broken, but not all was covered ({many:,})"
    else:
        left = {failure.rule for result in treated for failure in result.failures}
        mended = f"the fixes leave broken: {', '.join(sorted(left))}"
    if left_out:
        matter = [name for name, result in left_out.items() if result.failures]
        mended += f"; left out alone, {len(matter)} of {len(left_out)} fixes bring a failure back"
    return f"The cache of shortfin {release} by itself: {'; '.join(said)}; {mended}."


def answer_in_words(
    untreated: Sequence[Result], treated: Sequence[Result], left_out: Mapping[str, Result]
) -> str:
    """Return the answer, what it takes to fail, and which fixes were seen to matter."""
    lines = [f"**{answer_in_a_sentence(untreated, treated)}**"]
    failures = [failure for result in untreated for failure in result.failures]
    alone = {failure.rule for failure in failures if failure.sequential}
    only = {failure.rule for failure in failures} - alone
    threads = untreated[0].threads
    said = [f"Requests of this release are carried out on {threads}."]
    if alone:
        said.append(
            f"Of the broken rules, {_listed(alone)} need no concurrency: they fail when each"
            " request waits for the one before."
        )
    if only:
        said.append(
            f"Only when requests are under way at once {_listed(only)} fail, in an order of whole"
            f" operations{', which this release can come to' if _all_real(untreated) else ''}."
        )
    lines.append(" ".join(said))
    matter = [name for name, result in left_out.items() if result.failures]
    silent = [name for name, result in left_out.items() if not result.failures]
    if left_out:
        lines.append(
            f"Left out alone, each of {_listed(matter)} brings a failure back."
            + (f" Nothing is seen here without {_listed(silent)}." if silent else "")
        )
    if not all(result.complete for result in (*untreated, *treated)):
        lines.append("Time ended before every interleaving was covered.")
    return "\n\n".join(lines)


def _found(result: Result) -> str:
    how = "without prefix sharing" if result.prefix_sharing == "none" else "with the trie"
    rules = list(dict.fromkeys(failure.rule for failure in result.shortest()))
    if not rules:
        return f"{how} no rule is broken in {result.interleavings:,} interleavings"
    failing = sum(covered.failing for covered in result.scenarios if covered.complete)
    return (
        f"{how} {len(rules)} rule{'s are' if len(rules) > 1 else ' is'} broken, in"
        f" {failing:,} of {result.interleavings:,} interleavings"
    )


def _all_real(results: Sequence[Result]) -> bool:
    return all(failure.happens == REAL for result in results for failure in result.failures)


def _listed(names: object) -> str:
    listed = [f"*{name}*" for name in names]  # type: ignore[attr-defined]
    listed = sorted(listed) if isinstance(names, set) else listed
    if not listed:
        return "none"
    return listed[0] if len(listed) == 1 else f"{', '.join(listed[:-1])} and {listed[-1]}"
