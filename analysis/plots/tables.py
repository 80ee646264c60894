"""Tables for readers: plain frames that know how to show themselves as HTML."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.stats.rates import failure_rates, with_trials

_PROMPT_END = 60
_WRONG_COLUMNS = [
    "request_id", "release", "prefix_sharing", "page_count", "concurrency", "family",
    "prompt", "right", "answered", "differs_at", "expected_text", "reference_tokens",
]  # fmt: skip


class HtmlTable:
    """A frame for readers: `frame` holds the data, `markup` its HTML."""

    def __init__(self, frame: pd.DataFrame, markup: str) -> None:
        """Keep the data and its markup together."""
        self.frame = frame
        self.markup = markup

    def __repr__(self) -> str:
        """Return the frame as text, for a terminal."""
        return self.frame.to_string(index=False)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.frame)


def wrong_answers(requests: pd.DataFrame, trials: pd.DataFrame, count: int = 3) -> HtmlTable:
    """Show wrong answers beside the right ones, the first difference marked.

    Those at the lowest concurrency come first, each prompt and, as long as there are others, each
    family once. `frame` has prompt, right and answered (text, or token ids as text where the
    workload knows no text), and differs_at: the first character (or token) that differs, from 0.
    """
    joined = with_trials(
        requests, trials, ["release", "prefix_sharing", "page_count", "concurrency"]
    )
    wrong = joined[joined["outcome"] == "wrong"].sort_values(
        ["concurrency", "release", "prefix_sharing", "trial_id", "request_id"], kind="stable"
    )
    wrong = wrong.drop_duplicates("prompt")
    # The first of each family, then the second of each, and so on.
    turn = wrong.groupby("family", dropna=False).cumcount()
    wrong = wrong.assign(turn=turn).sort_values("turn", kind="stable").head(count)
    rows = [_side_by_side(row) for row in wrong.to_dict("records")]
    frame = pd.DataFrame(rows, columns=_WRONG_COLUMNS)
    if frame.empty:
        return HtmlTable(frame, "<p>No answer was wrong.</p>")
    header = "".join(
        f"<th>{name}</th>"
        for name in ("asked", "right answer", "what the engine answered", "where")
    )
    body = "".join(_answer_row(row) for row in frame.to_dict("records"))
    return HtmlTable(
        frame,
        f'<table class="answers"><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>',
    )


def _side_by_side(row: dict[Any, Any]) -> dict[str, Any]:
    right, answered = row["expected_text"], row["text"]
    reference, tokens = row["reference_tokens"], row["tokens"]
    if isinstance(right, str) and isinstance(answered, str):
        right = right[: max(len(answered), len(tokens or ()))]
        at = _first_difference(right, answered)
        if at is None and isinstance(reference, tuple) and isinstance(tokens, tuple):
            # The expected beginning was met and the reference disagrees later: only tokens show it.
            right, answered, at = (
                _ids(reference),
                _ids(tokens),
                _first_difference(reference, tokens),
            )
    else:
        reference, tokens = reference or (), tokens or ()
        at = _first_difference(reference, tokens)
        right, answered = _ids(reference), _ids(tokens)
    same = {name: row[name] for name in _WRONG_COLUMNS if name in row}
    return {**same, "right": right, "answered": answered, "differs_at": at}


def _first_difference(right: Sequence[Any], answered: Sequence[Any]) -> int | None:
    for index, (a, b) in enumerate(zip(right, answered, strict=False)):
        if a != b:
            return index
    return None if len(right) == len(answered) else min(len(right), len(answered))


def _ids(tokens: Sequence[int]) -> str:
    return " ".join(str(token) for token in tokens)


def _answer_row(row: dict[Any, Any]) -> str:
    prompt = str(row["prompt"])
    at = _first_difference(row["right"], row["answered"])
    where = [f"concurrency {row['concurrency']}", f"prefix sharing {row['prefix_sharing']}"]
    if isinstance(row["family"], str) and row["family"]:
        where.append(f"family {row['family']}")
    return (
        f'<tr><td title="{html.escape(prompt, quote=True)}">'
        f"<code>{html.escape(_short(prompt))}</code></td>"
        f"<td><code>{_marked(row['right'], at)}</code></td>"
        f"<td><code>{_marked(row['answered'], at)}</code></td>"
        f"<td>{html.escape(', '.join(where))}</td></tr>"
    )


def _short(prompt: str) -> str:
    """Return a prompt, or the end of it, on which its answer depends most."""
    return prompt if len(prompt) <= _PROMPT_END else "…" + prompt[-_PROMPT_END:]


def _marked(text: str, at: int | None) -> str:
    """Return the text as HTML with everything from the first difference on marked."""
    if at is None:
        return html.escape(text)
    rest = text[at:] or "∅"
    return f"{html.escape(text[:at])}<mark>{html.escape(rest)}</mark>"


Again = tuple[str, str, str, Sequence[int]]
"""A prompt, the prefix sharing it was asked again with, and the answer's text and token ids."""
_ALONE = {True: "right", False: "wrong, also alone", None: "the right answer is not known"}


def asked_again(
    wrong: pd.DataFrame, answers: Sequence[Again], max_new_tokens: int | None = None
) -> HtmlTable:
    """Show what the engine said when the prompts of wrong answers were asked again, alone.

    `wrong` is the frame of `wrong_answers`, `max_new_tokens` the length that was asked for. Column
    `right_alone` holds whether an answer equals the reference's tokens or, where there are none,
    begins with the expected text as far as that length reaches; None where neither is known.
    """
    cases = {row["prompt"]: row for row in wrong.to_dict("records")}
    rows = []
    for prompt, sharing, text, tokens in answers:
        expected, reference = cases[prompt]["expected_text"], cases[prompt]["reference_tokens"]
        right: bool | None = None
        if isinstance(reference, tuple):
            right = tuple(tokens) == reference
        elif isinstance(expected, str):
            right = text.startswith(expected[:max_new_tokens])
        rows.append((prompt, sharing, text, right))
    frame = pd.DataFrame(rows, columns=["prompt", "prefix_sharing", "alone", "right_alone"])
    if frame.empty:
        return HtmlTable(frame, "<p>No answer was wrong, so there was nothing to ask again.</p>")
    body = "".join(
        f"<tr><td><code>{html.escape(_short(prompt))}</code></td><td>{html.escape(sharing)}</td>"
        f"<td><code>{html.escape(text)}</code></td>"
        f"<td>{_ALONE[right]}</td></tr>"
        for prompt, sharing, text, right in rows
    )
    head = "<th>asked again, alone</th><th>prefix sharing</th><th>answer</th><th>verdict</th>"
    return HtmlTable(frame, f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")


def facts(values: Mapping[str, object]) -> HtmlTable:
    """Show a few named values, one a row."""
    frame = pd.DataFrame({"what": list(values), "value": [str(value) for value in values.values()]})
    body = "".join(
        f"<tr><th>{html.escape(str(name))}</th><td><code>{html.escape(str(value))}</code></td></tr>"
        for name, value in values.items()
    )
    return HtmlTable(frame, f"<table>{body}</table>")


def failed_trials(trials: pd.DataFrame) -> HtmlTable:
    """Show the trials that did not end well, each with its one sentence."""
    names = ["trial_id", "release", "prefix_sharing", "page_count", "concurrency", "repeat"]
    names += ["status", "status_detail"]
    frame = trials.loc[trials["status"] != "ok", names].reset_index(drop=True)
    if frame.empty:
        return HtmlTable(frame, f"<p>All {len(trials)} trials ended well.</p>")
    shown = frame.drop(columns="trial_id")
    shown["status"] = shown["status"].str.replace("_", " ")
    shown["status_detail"] = shown["status_detail"].fillna("nothing more is known")
    shown = shown.rename(columns={"page_count": "pages", "status_detail": "what happened"})
    return HtmlTable(frame, _plain_html(shown))


def rates_table(
    requests: pd.DataFrame,
    trials: pd.DataFrame,
    by: Sequence[str] = ("release", "prefix_sharing", "concurrency"),
) -> HtmlTable:
    """Show failure rates with intervals over engines; `frame` is `failure_rates`."""
    frame = failure_rates(requests, trials, by)
    shown = frame[list(by)].copy()
    shown["requests"] = frame["n"]
    shown["rejected"] = frame["rejected"]
    shown["failed"] = frame["failures"]
    shown["failure rate (95% interval)"] = [
        _interval(*values)
        for values in zip(frame["rate"], frame["low"], frame["high"], strict=True)
    ]
    shown["interval"] = [
        "over engines" if by_engine else "by request only, too narrow"
        for by_engine in frame["by_engine"]
    ]
    shown["intraclass correlation"] = ["-" if pd.isna(v) else f"{v:.2f}" for v in frame["icc"]]
    shown["engines with a failure"] = [
        f"{failed} of {trials}"
        for failed, trials in zip(frame["trials_failed"], frame["trials"], strict=True)
    ]
    shown["ran at once"] = ["-" if pd.isna(v) else f"{v:.0f}" for v in frame["at_once"]]
    return HtmlTable(frame, _plain_html(shown))


def _interval(rate: float, low: float, high: float) -> str:
    return "-" if pd.isna(rate) else f"{rate:.0%} ({low:.0%} to {high:.0%})"


def _plain_html(frame: pd.DataFrame) -> str:
    names = {name: str(name).replace("_", " ") for name in frame.columns}
    return str(frame.rename(columns=names).to_html(index=False, border=0, classes="dataframe"))
