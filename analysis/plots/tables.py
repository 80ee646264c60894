"""Tables that notebooks show: plain frames with their HTML."""

from __future__ import annotations

import html
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.core.wording import counted, p_value
from analysis.stats.checks import BEGINNING, BEGINS, EXACT, by_check
from analysis.stats.comparison import Comparison
from analysis.stats.configurations import (
    arms_in_full,
    labelled,
    series_columns,
    setting_name,
    varying,
)
from analysis.stats.rates import failure_rates, outcome_counts, with_trials

_PROMPT_END = 60
_SETTING = ["release", "prefix_sharing", "page_count", "concurrency"]
_WRONG_COLUMNS = [
    "request_id", *_SETTING, "family", "prompt", "right", "answered", "differs_at",
    "expected_text", "reference_tokens",
]  # fmt: skip
Again = tuple[str, str, str | None, Sequence[int] | None]
"""A prompt, the prefix sharing it was repeated with, the answer's text and token ids (if any)."""


class HtmlTable:
    """A frame for readers: `frame` holds the data, `markup` its HTML."""

    def __init__(self, frame: pd.DataFrame, markup: str, below: str = "") -> None:
        """Keep the data and its markup together."""
        self.frame = frame
        self.markup = markup
        self.below = below

    def __repr__(self) -> str:
        """Return the frame as text, for a terminal."""
        return "\n".join(filter(None, [self.frame.to_string(index=False), self.below]))

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.frame)


def html_table(
    shown: pd.DataFrame,
    *,
    frame: pd.DataFrame | None = None,
    empty: str = "",
    html_columns: Collection[str] = (),
    classes: str = "dataframe",
    below: str = "",
) -> HtmlTable:
    """Return a frame as a table; the text of all columns but `html_columns` is escaped.

    `frame` is the data behind it, if not what is shown; `empty` stands in place of a table without
    rows, `below` under it.
    """
    data = shown if frame is None else frame
    if empty and shown.empty:
        return HtmlTable(data, f"<p>{empty}</p>")
    texts = shown.rename(columns=lambda name: str(name).replace("_", " "))
    plain = [name for name in texts.columns if name not in html_columns]
    texts = texts.astype(object)
    for name in plain:
        texts[name] = texts[name].map(lambda value: html.escape(str(value)))
    texts.columns = pd.Index([html.escape(name) for name in texts.columns])
    with pd.option_context("display.max_colwidth", None):
        made = texts.to_html(index=False, border=0, classes=classes, escape=False, justify="left")
    return HtmlTable(data, made + (f"<p>{below}</p>" if below else ""), below)


def wrong_answers(requests: pd.DataFrame, trials: pd.DataFrame, count: int = 3) -> HtmlTable:
    """Show wrong answers beside the right ones, the first difference marked.

    Those at the lowest concurrency come first, each prompt and, as long as there are others, each
    family once. `frame` has prompt, right and answered (text, or token ids as text where the
    workload has no text), and differs_at: the first character (or token) that differs, from 0.
    """
    joined = with_trials(requests, trials, _SETTING)
    wrong = joined[joined["outcome"] == "wrong"].sort_values(
        ["concurrency", "release", "prefix_sharing", "trial_id", "request_id"], kind="stable"
    )
    wrong = wrong.drop_duplicates("prompt")
    # The first of each family, then the second of each, and so on.
    turn = wrong.groupby("family", dropna=False).cumcount()
    wrong = wrong.assign(turn=turn).sort_values("turn", kind="stable").head(count)
    rows = [_side_by_side(row) for row in wrong.to_dict("records")]
    frame = pd.DataFrame(rows, columns=_WRONG_COLUMNS)
    records = frame.to_dict("records")
    shown = pd.DataFrame(
        {
            "asked": frame["prompt"].map(_prompt),
            "right answer": [_marked(row["right"], row["answered"]) for row in records],
            "what the engine answered": [_marked(row["answered"], row["right"]) for row in records],
            "where": [_where(row) for row in records],
        }
    )
    code = list(shown.columns[:3])
    return html_table(
        shown, frame=frame, empty="No answer was wrong.", html_columns=code, classes="answers"
    )


def _side_by_side(row: dict[Any, Any]) -> dict[str, Any]:
    right, answered = row["expected_text"], row["text"]
    reference, tokens = row["reference_tokens"], row["tokens"]
    if isinstance(right, str) and isinstance(answered, str):
        right = right[: max(len(answered), len(tokens or ()))]
        at = _first_difference(right, answered)
        if at is None and isinstance(reference, tuple) and isinstance(tokens, tuple):
            # The expected text agrees and the reference differs later: only token ids show it.
            at = _first_difference(reference, tokens)
            right, answered = _ids(reference), _ids(tokens)
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


def _where(row: dict[Any, Any]) -> str:
    where = [f"concurrency {row['concurrency']}", f"prefix sharing {row['prefix_sharing']}"]
    if isinstance(row["family"], str) and row["family"]:
        where.append(f"family {row['family']}")
    return ", ".join(where)


def _code(text: str) -> str:
    return f"<code>{html.escape(text)}</code>"


def _prompt(prompt: str) -> str:
    """Return the end of a prompt, which its answer depends on most; the whole as a tooltip."""
    short = prompt if len(prompt) <= _PROMPT_END else "…" + prompt[-_PROMPT_END:]
    return f'<span title="{html.escape(prompt, quote=True)}">{_code(short)}</span>'


def _marked(text: str, other: str) -> str:
    """Return the text as HTML with everything from the first difference on marked."""
    at = _first_difference(text, other)
    if at is None:
        return _code(text)
    rest = html.escape(text[at:] or "∅")
    return f"<code>{html.escape(text[:at])}<mark>{rest}</mark></code>"


def asked_again(
    wrong: pd.DataFrame, answers: Sequence[Again], max_new_tokens: int | None = None
) -> HtmlTable:
    """Show the answers to prompts of wrong answers that were sent again, alone.

    `wrong` is the frame of `wrong_answers`, `max_new_tokens` the length that was asked for. Column
    `right_alone` holds whether an answer equals the reference's tokens or, where there are none,
    begins with the expected text as far as that length reaches; None where neither is known.
    """
    cases = {row["prompt"]: row for row in wrong.to_dict("records")}
    rows = []
    for prompt, sharing, text, tokens in answers:
        expected, reference = cases[prompt]["expected_text"], cases[prompt]["reference_tokens"]
        right: bool | None = None
        if tokens is not None and isinstance(reference, tuple):
            right = tuple(tokens) == reference
        elif text is not None and isinstance(expected, str):
            right = text.startswith(expected[:max_new_tokens])
        rows.append((prompt, sharing, text or "", right))
    frame = pd.DataFrame(rows, columns=["prompt", "prefix_sharing", "alone", "right_alone"])
    results = {True: "right", False: "wrong, also alone", None: "the right answer is not known"}
    shown = pd.DataFrame(
        {
            "asked again, alone": frame["prompt"].map(_prompt),
            "prefix sharing": frame["prefix_sharing"],
            "answer": frame["alone"].map(_code),
            "result": [results[right] for *_, right in rows],
        }
    )
    empty = "No answer was wrong, so there was nothing to ask again."
    return html_table(
        shown, frame=frame, empty=empty, html_columns=["asked again, alone", "answer"]
    )


def facts(values: Mapping[str, object]) -> HtmlTable:
    """Show a few named values, one a row."""
    frame = pd.DataFrame({"what": list(values), "value": [str(value) for value in values.values()]})
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{_code(value)}</td></tr>"
        for name, value in frame.itertuples(index=False)
    )
    return HtmlTable(frame, f"<table>{rows}</table>")


def failed_trials(trials: pd.DataFrame) -> HtmlTable:
    """Show the trials that did not end well, each with the recorded reason."""
    names = ["trial_id", *_SETTING, "repeat", "status", "status_detail"]
    frame = trials.loc[trials["status"] != "ok", names].reset_index(drop=True)
    shown = frame.drop(columns="trial_id")
    shown["status"] = shown["status"].str.replace("_", " ")
    shown["status_detail"] = shown["status_detail"].fillna("nothing more is known")
    shown = shown.rename(columns={"page_count": "pages", "status_detail": "what happened"})
    return html_table(shown, frame=frame, empty=f"All {len(trials)} trials ended well.")


def rates_table(requests: pd.DataFrame, trials: pd.DataFrame) -> HtmlTable:
    """Show failure rates with intervals over engines; `frame` is `failure_rates`."""
    columns = ["release", "prefix_sharing", *varying(trials, ["options", "target"]), "concurrency"]
    frame = failure_rates(requests, trials, columns)
    rows = frame.to_dict("records")
    shown = frame[columns].copy()
    shown["requests"], shown["rejected"] = frame["n"], frame["rejected"]
    shown["failed"] = frame["failures"]
    shown["failure rate (95% interval)"] = [_rate(row) for row in rows]
    shown["interval"] = [
        "over engines" if r["by_engine"] else "by request only, too narrow" for r in rows
    ]
    shown["intraclass correlation"] = [_number(r["icc"], 2) for r in rows]
    shown["engines with a failure"] = [f"{r['trials_failed']} of {r['trials']}" for r in rows]
    shown["ran at once"] = [_number(r["at_once"], 0) for r in rows]
    return html_table(shown, frame=frame)


def outcomes_table(requests: pd.DataFrame, trials: pd.DataFrame) -> HtmlTable:
    """Show how requests ended, one row a configuration and concurrency, and the failure rate.

    Outcomes that no request had are left out; `frame` is what is shown.
    """
    full, trials = arms_in_full(trials), labelled(trials)
    columns = [*series_columns(trials), "concurrency"]
    rates = failure_rates(requests, trials, columns)
    counts = outcome_counts(requests, trials, columns).set_index(columns)
    shown = rates[columns].rename(columns={"page_count": "pages"})
    shown["engines"] = rates["trials"]
    if rates["trials_ended_badly"].any():
        shown["ended badly"] = rates["trials_ended_badly"]
    counts = counts.loc[:, counts.any()].reindex(pd.MultiIndex.from_frame(rates[columns]))
    shown[counts.columns] = counts.fillna(0).astype(int).to_numpy()
    shown["failed (95% interval)"] = [_rate(row) for row in rates.to_dict("records")]
    narrow = "With fewer than five engines the interval is by request, and too narrow."
    below = " ".join(filter(None, ["" if rates["by_engine"].all() else narrow, full]))
    return html_table(shown, below=below)


def comparison_table(found: Comparison) -> HtmlTable:
    """Show two runs side by side, one row a setting and concurrency (see `stats.comparison`)."""
    rows = found.rows
    shown = rows.drop(columns=["first", "second", "first_rejected", "second_rejected"])
    shown = shown.rename(columns={"page_count": "pages"})
    place = shown.columns.get_loc("p_value")
    for name in ("second", "first"):
        refused = rows[f"{name}_rejected"]
        texts = [
            f"{one.failures} of {one.n} in {counted(one.engines, 'engine')}"
            + (f", {no} rejected" if no else "")
            for one, no in zip(rows[name], refused, strict=True)
        ]
        shown.insert(place, f"{name} run failed", texts)  # type: ignore[arg-type]
    shown["p_value"] = [p_value(p) if pd.notna(p) else "no test" for p in rows["p_value"]]
    words = [setting_name({name: each[0]}) + " against " + setting_name({name: each[1]})
             for name, each in found.differing.items()]  # fmt: skip
    left = (
        f"{counted(found.left_out, 'setting')} in only one of the runs." if found.left_out else ""
    )
    below = " ".join(filter(None, ["; ".join(words) + "." if words else "", left]))
    return html_table(shown, below=below)


def checks_table(requests: pd.DataFrame, trials: pd.DataFrame) -> HtmlTable:
    """Show failures by both checks of `stats.checks`, one row a configuration and concurrency.

    `frame` is `failure_rates` by exact equality, with the failures by the report's check as
    `failures_begins`.
    """
    trials = labelled(trials)
    columns = [*series_columns(trials), "concurrency"]
    begins, exact = (
        failure_rates(by_check(requests, check), trials, columns) for check in (BEGINS, EXACT)
    )
    shown = exact[columns].copy()
    shown["ran at once"] = [_number(value, 0) for value in exact["at_once"]]
    shown["engines"] = exact["trials"]
    shown["accepted"], shown["rejected"] = exact["n"] - exact["rejected"], exact["rejected"]
    for name, rates in (
        (f"wrong within {BEGINNING} characters (the report's check)", begins),
        ("not equal to the reference decoder's answer", exact),
    ):
        rows = rates.to_dict("records")
        shown[name] = [f"{row['failures']}: {_rate(row)}" for row in rows]
    shown["intraclass correlation"] = [_number(value, 2) for value in exact["icc"]]
    over = "over engines" if exact["by_engine"].all() else "by request where under five engines"
    return html_table(
        shown,
        frame=exact.assign(failures_begins=begins["failures"]),
        below=f"Failed requests, as a share of the accepted ones with its 95% interval ({over})."
        " Requests without any answer fail both checks.",
    )


def _rate(row: Mapping[Any, Any]) -> str:
    if pd.isna(row["rate"]):
        return "-"
    return f"{row['rate']:.0%} ({row['low']:.0%} to {row['high']:.0%})"


def _number(value: float, digits: int) -> str:
    return "-" if pd.isna(value) else f"{value:.{digits}f}"
