"""`python -m analysis.interleavings`: examine the cache of the installed release.

The exit status is 0 if no rule was broken, 4 if one was, 1 for a user error.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from analysis.core.errors import CachelabError
from analysis.core.wording import counted
from analysis.interleavings import Result, examine, replay
from analysis.shortfin.releases import installed_release
from analysis.treatments import expand

_FOUND = 4


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.interleavings",
        description="Examine a release's cache without a server.",
    )
    parser.add_argument("--prefix-sharing", default="trie", help="none or trie")
    parser.add_argument(
        "--treatments", default="", help="names joined by +; all: every fix; all-but:NAME"
    )
    parser.add_argument("--scenario", action="append", help="only this scenario; can be repeated")
    parser.add_argument("--workers", default="2,3", help="numbers of workers of the scenarios")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--replay", metavar="SCHEDULE", help="run this schedule instead")
    options = parser.parse_args(arguments)
    named = [name for name in options.treatments.split("+") if name]
    try:
        treatments = expand(named, installed_release() or "", options.prefix_sharing)
        if options.replay is not None:
            if len(options.scenario or ()) != 1:
                parser.error("--replay needs the --scenario of the schedule")
            replayed = replay(
                options.scenario[0], options.replay, options.prefix_sharing, treatments
            )
            _print(str(replayed))
            return 0 if replayed.failing is None else _FOUND
        try:
            workers = [int(word) for word in options.workers.split(",")]
        except ValueError:
            parser.error("--workers needs numbers separated by commas, such as 2,3")
        result = examine(
            options.prefix_sharing, treatments, options.scenario, workers, options.budget
        )
    except CachelabError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    _print(json.dumps(result.as_json()) if options.json else _text(result))
    return 0 if result.ok else _FOUND


def _text(result: Result) -> str:
    lines = [result.words]
    for failure in result.shortest():
        others = {f.scenario for f in result.failures if f.rule == failure.rule}
        lines += [
            "",
            f"{failure.rule}: {failure.sentence}",
            f"  {failure.message}",
            f"  {failure.needs}; broken in {counted(len(others), 'scenario')}",
            f'  --scenario "{failure.scenario}" --replay "{failure.schedule}"',
        ]
    return "\n".join(lines)


def _print(text: str) -> None:
    print(text)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
