"""The answer of an examination, in words that follow from its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from analysis.core.wording import counted, listed
from analysis.interleavings.result import Result


def answer_in_a_sentence(
    untreated: Sequence[Result],
    treated: Sequence[Result],
    left_out: Mapping[str, Result] | None = None,
) -> str:
    """Return what the cache of one release does by itself, and whether its fixes help.

    `left_out` has the results with all fixes but one, by the name of that one.
    """
    many = counted(sum(result.interleavings for result in treated), "interleaving")
    broken = sorted({failure.rule for result in treated for failure in result.failures})
    if broken:
        fixed = f"with all fixes applied, these rules stay broken: {', '.join(broken)}"
    elif all(result.complete for result in treated):
        fixed = f"with all fixes applied, every rule holds in all {many}"
    else:
        fixed = f"with all fixes applied, no rule was broken, but only {many} were covered"
    if left_out:
        matter = sum(not result.ok for result in left_out.values())
        fixed += f"; left out alone, {matter} of {len(left_out)} fixes bring a failure back"
    found = "; ".join(_found(result) for result in untreated)
    return f"The cache of shortfin {untreated[0].release} by itself: {found}; {fixed}."


def answer_in_words(
    untreated: Sequence[Result], treated: Sequence[Result], left_out: Mapping[str, Result]
) -> str:
    """Return the answer, what it takes to fail, and which fixes made a difference."""
    failures = [failure for result in untreated for failure in result.failures]
    serial = sorted({failure.rule for failure in failures if failure.sequential})
    only = sorted({failure.rule for failure in failures}.difference(serial))
    text = f"This release carries out requests on {untreated[0].threads}."
    if serial:
        text += (
            f" These rules break without concurrency, when each request waits for the one before:"
            f" {_names(serial)}."
        )
    if only:
        reachable = ", which this release can come to" if all(f.reachable for f in failures) else ""
        text += (
            f" These rules break only in an interleaving of whole operations{reachable}:"
            f" {_names(only)}."
        )
    lines = [f"**{answer_in_a_sentence(untreated, treated)}**", text]
    if left_out:
        matter = [name for name, result in left_out.items() if not result.ok]
        without = [name for name, result in left_out.items() if result.ok]
        text = f"Left out alone, each of these fixes brings a failure back: {_names(matter)}."
        if without:
            text += f" These fixes make no difference here: {_names(without)}."
        lines.append(text)
    if not all(result.complete for result in (*untreated, *treated)):
        lines.append("Time ended before every interleaving was covered.")
    return "\n\n".join(lines)


def _found(result: Result) -> str:
    how = "without prefix sharing" if result.prefix_sharing == "none" else "with the trie"
    many = counted(result.interleavings, "interleaving")
    rules = {failure.rule for failure in result.failures}
    if not rules:
        return f"{how} no rule is broken in {many}"
    failing = sum(covered.failing for covered in result.scenarios if covered.complete)
    verb = "is" if len(rules) == 1 else "are"
    return f"{how} {counted(len(rules), 'rule')} {verb} broken, in {failing:,} of {many}"


def _names(names: Sequence[str]) -> str:
    return listed(f"*{name}*" for name in names)
