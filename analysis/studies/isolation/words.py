"""The answer of notebook 06 in words: which rules the cache breaks by itself, and what it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from analysis.core.wording import counted, listed, markdown_table
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
    """Return the answer as Markdown: a sentence, a row for each broken rule, and what fixes it."""
    lines = [answer_in_a_sentence(untreated, treated, left_out)]
    lines.append(markdown_table([row for result in untreated for row in _rows(result)]))
    lines.append(f"Threads of this release: {untreated[0].threads}.")
    if left_out:
        kinds = (
            ("Left out alone, these fixes bring a failure back", False),
            ("These make no difference here", True),
        )
        said = [
            f"{what}: {listed(f'`{name}`' for name in names)}."
            for what, ok in kinds
            if (names := [name for name, result in left_out.items() if result.ok == ok])
        ]
        lines.append(" ".join(said))
    if not all(result.complete for result in (*untreated, *treated)):
        lines.append("Time ended before every interleaving was covered.")
    return "\n\n".join(line for line in lines if line)


def _rows(result: Result) -> list[dict[str, object]]:
    """Return a row for each rule that is broken: what it takes, and whether it can happen."""
    rows: list[dict[str, object]] = []
    for rule in sorted({failure.rule for failure in result.failures}):
        own = [failure for failure in result.failures if failure.rule == rule]
        serial = any(failure.sequential for failure in own)
        rows.append(
            {
                "prefix sharing": result.prefix_sharing,
                "broken rule": rule,
                "one request after another": "broken" if serial else "holds",
                "operations of requests interleaved": "broken",
                "its threads can do that": "yes" if any(f.reachable for f in own) else "no",
            }
        )
    return rows


def _found(result: Result) -> str:
    how = "without prefix sharing" if result.prefix_sharing == "none" else "with the trie"
    many = counted(result.interleavings, "interleaving")
    rules = {failure.rule for failure in result.failures}
    if not rules:
        return f"{how} no rule is broken in {many}"
    failing = sum(covered.failing for covered in result.scenarios if covered.complete)
    verb = "is" if len(rules) == 1 else "are"
    return f"{how} {counted(len(rules), 'rule')} {verb} broken, in {failing:,} of {many}"
