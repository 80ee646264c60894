"""How many calls of the model lay between the first finding and the first wrong token."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.plots import style

_TITLE_CHARACTERS = 75


def lead_times(leads: pd.DataFrame, trials: pd.DataFrame) -> Figure:
    """Draw, for wrong answers, how many calls before its first wrong token wrong data was read.

    `leads` is what `first_error.leads` returns. One row of bars for each release, prefix
    sharing and set of treatments; the last bar stands for answers before which nothing was found.
    """
    if leads.empty:
        return style.nothing_to_draw("No answer was wrong, so there is nothing that came before.")
    columns = ["release", "prefix_sharing", "treatments"]
    joined = leads.merge(trials[["trial_id", *columns]], on="trial_id", validate="many_to_one")
    joined["treatments"] = joined["treatments"].map(lambda names: tuple(names or ()))
    groups = style.all_series(joined, columns)
    most = (
        int(joined["invocations_before"].max()) if joined["invocations_before"].notna().any() else 0
    )
    figure = style.new_figure(7.6, 1.0 + 2.0 * len(groups))
    panels = figure.subplots(len(groups), 1, squeeze=False, sharex=True)[:, 0]
    for number, (axes, key) in enumerate(zip(panels, groups, strict=True)):
        rows = style.rows_of(joined, {k: v for k, v in key.items() if k != "treatments"})
        rows = rows[rows["treatments"].map(lambda names, wanted=key["treatments"]: names == wanted)]
        before = rows["invocations_before"].dropna().astype(int)
        counts = np.bincount(before, minlength=most + 1)
        axes.bar(range(most + 1), counts, color=style.BLUE, width=0.8)
        axes.bar([most + 2], [len(rows) - len(before)], color=style.VERMILLION, width=0.8)
        ticks = list(range(0, most + 1, max(1, most // 8)))
        axes.set_xticks([*ticks, most + 2], [*map(str, ticks), "never"])
        axes.yaxis.get_major_locator().set_params(integer=True)
        last = number == len(groups) - 1
        below = "calls of the model before the first wrong token (0: in the same call)"
        title = f"{style.series_label(key)} (n = {len(rows)} wrong answers)"
        title = "\n".join(textwrap.wrap(title, _TITLE_CHARACTERS, break_on_hyphens=False))
        style.dress(axes, title, below if last else "", "wrong answers")
    figure.suptitle(
        "When wrong data was first read, before an answer went wrong",
        fontsize=style.TITLE + 1,
        x=0.01,
        ha="left",
    )
    return figure
