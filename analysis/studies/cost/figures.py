"""Figures and the table of costs: against concurrency, against no treatment, and of a lock."""

from __future__ import annotations

import math
import textwrap
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from jinja2 import Environment
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator
from scipy import stats as scipy_stats

from analysis.plots import style
from analysis.plots.tables import HtmlTable
from analysis.studies.cost.measures import (
    ALL,
    CACHE_METRICS,
    LOCK,
    METRICS,
    UNTREATED,
    Metric,
    rank,
)

_MIB = 2**20
_METRICS = (*METRICS, *CACHE_METRICS)
_NAMED = {
    UNTREATED: (style.BLACK, "o"),
    LOCK: (style.BLUE, "s"),
    ALL: (style.VERMILLION, "^"),
}
_OTHERS = "#B5B5B5"
_SHOWN = {"s": (1e3, "ms"), "bytes": (1 / _MIB, "MiB"), "share": (100.0, "%")}
_VERDICTS = {
    "costs": (style.VERMILLION, "s", "costs more than no treatment"),
    "saves": (style.GREEN, "D", "costs less"),
    "no difference shown": (style.BLUE, "o", "no difference shown"),
    "too few trials": (style.GREY, "x", "too few trials"),
}
_WAYS = (
    ("plain", "as the engine does it", style.BLACK, "o"),
    ("locked", "with one lock around it", style.BLUE, "s"),
)


def cost_curves(
    measures: pd.DataFrame, cache: pd.DataFrame | None = None, title: str = ""
) -> Figure:
    """Draw every kind of cost against concurrency, a line for each arm of one setting.

    The frames come from `measure` and `measure_cache`. Points are geometric means over comparable
    trials (means, for shares), with 95% t intervals for at least 3. Single fixes are thin and grey.
    """
    panels = [(metric, measures) for metric in METRICS]
    if cache is not None and cache["hit_rate"].notna().any():
        panels.append((CACHE_METRICS[0], cache))
    whole = measures[measures["comparable"]]
    if whole.empty:
        return style.nothing_to_draw("In no trial was every request answered: nothing to compare.")
    figure = style.new_figure(10.0, 6.4)
    grid = figure.subplots(2, 3).ravel()
    for axes, (metric, frame) in zip(grid, panels, strict=False):
        _curves(axes, metric, frame[frame["comparable"] & frame[metric.name].notna()])
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    arms = sorted(set(measures["arm"]), key=rank)
    handles = [
        Line2D([], [], color=colour, marker=marker, label=name)
        for name, (colour, marker) in _NAMED.items()
        if name in arms
    ]
    if others := [name for name in arms if name not in _NAMED]:
        handles.append(Line2D([], [], color=_OTHERS, label=f"each of {len(others)} fixes alone"))
    style.legend_below(figure, handles, most=4)
    figure.suptitle(title or "Costs against concurrency", fontsize=style.TITLE + 1)
    return figure


def _curves(axes: Axes, metric: Metric, frame: pd.DataFrame) -> None:
    factor, unit = _SHOWN.get(metric.unit, (1.0, metric.unit))
    arms = sorted(dict.fromkeys(frame["arm"]), key=lambda arm: arm in _NAMED)
    named = [arm for arm in _NAMED if arm in arms]
    levels, numbers = [], []
    for arm in arms:
        colour, marker = _NAMED.get(arm, (_OTHERS, ""))
        rows = []
        for level, group in frame[frame["arm"] == arm].groupby("concurrency"):
            values = group[metric.name].to_numpy(dtype=float)
            rows.append((float(str(level)), *_mean(values, metric)))
            levels.append(int(str(level)))
            numbers.append(len(group))
        x, middle, low, high = (np.array(column) for column in zip(*rows, strict=True))
        aside = style.dodge(named.index(arm), len(named)) if arm in named else 1.0
        axes.errorbar(
            x * aside, middle * factor,
            yerr=[(middle - low) * factor, (high - middle) * factor] if arm in named else None,
            color=colour, marker=marker, markersize=5, linewidth=1.4 if arm in named else 0.9,
            elinewidth=1.2, capsize=2.5,
        )  # fmt: skip
    style.dress(axes, metric.title, "concurrent requests", unit)
    if levels:
        style.concurrency_axis(axes, pd.Series(levels), pd.Series(numbers))
        axes.set_xlabel("concurrent requests (n: trials)", fontsize=style.TEXT)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.08)


def _mean(values: npt.NDArray[np.float64], metric: Metric) -> tuple[float, float, float]:
    """Return the mean of trials with its 95% t interval; no width for fewer than 3 trials."""
    geometric = metric.scale == "ratio"
    values = np.log(values) if geometric else values
    mean, reach = float(values.mean()), 0.0
    if len(values) > 2:
        error = float(values.std(ddof=1)) / math.sqrt(len(values))
        reach = error * float(scipy_stats.t.ppf(0.975, len(values) - 1))
    if geometric:
        return math.exp(mean), math.exp(mean - reach), math.exp(mean + reach)
    return mean, max(0.0, mean - reach), min(1.0, mean + reach)  # a share


def cost_ratios(costs: pd.DataFrame, title: str = "") -> Figure:
    """Draw each arm of one setting compared with the untreated engine.

    `costs` comes from `compare.costs`, over all concurrencies. A panel for each metric, a row for
    each arm; bars are 95% intervals, not adjusted; colour and marker are the verdict, which is.
    """
    known = costs[costs["estimate"].notna()]
    metrics = [metric for metric in _METRICS if (known["metric"] == metric.name).any()]
    arms = list(dict.fromkeys(known["arm"]))
    if not metrics:
        return style.nothing_to_draw("No two trials could be compared.")
    figure = style.new_figure(1.9 + 1.55 * len(metrics), 2.0 + 0.3 * len(arms))
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        _forest(axes, known[known["metric"] == metric.name], metric, arms)
    panels[0].set_yticks(range(len(arms)), arms)
    panels[0].set_ylim(len(arms) - 0.5, -0.5)
    shown = [name for name in _VERDICTS if name in set(known["verdict"])]
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="", label=label)
        for colour, marker, label in (_VERDICTS[name] for name in shown)
    ]
    style.legend_below(figure, handles, most=4)
    pairs = sorted({*known["pairs"].astype(int)})
    count = f"{pairs[0]} to {pairs[-1]}" if len(pairs) > 1 else f"{pairs[0]}"
    figure.suptitle(
        f"{title or 'Compared with no treatment'} ({count} pairs of engines)",
        fontsize=style.TITLE + 1,
    )
    return figure


def _forest(axes: Axes, rows: pd.DataFrame, metric: Metric, arms: list[str]) -> None:
    ratio = metric.scale == "ratio"
    base = 1.0 if ratio else 0.0
    axes.axvline(0, color=style.GREY, linewidth=1)
    reach = 0.0
    for row in rows.to_dict("records"):
        colour, marker, _ = _VERDICTS[str(row["verdict"])]
        middle, low, high = (100 * (row[name] - base) for name in ("estimate", "low", "high"))
        place = arms.index(row["arm"])
        if not math.isnan(low):
            axes.hlines(place, low, high, color=colour, linewidth=2)
        axes.plot([middle], [place], color=colour, marker=marker, markersize=6)
        reach = max(reach, *(abs(v) for v in (middle, low, high) if not math.isnan(v)))
    reach = max(1.12 * reach, 1.0)
    axes.set_xlim(-reach, reach)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=2, symmetric=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
    unit = "change (%)" if ratio else "change (% points)"
    style.dress(axes, "", "", "")
    axes.set_title(textwrap.fill(metric.title, 14), fontsize=style.TEXT)
    style.grid_along_x(axes)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(
        f"{unit}\n({'less' if metric.more == 'worse' else 'more'} is better)", fontsize=style.SMALL
    )


def lock_figure(costs: pd.DataFrame, title: str | None = None) -> Figure:
    """Draw the time of a call with and without a lock against threads, a panel an operation.

    `costs` comes from `locking.lock_costs`: medians over blocks, with exact 95% intervals.
    """
    if costs.empty:
        return style.nothing_to_draw("No operation was timed.")
    names = list(dict.fromkeys(costs["operation"]))
    figure = style.new_figure(1.2 + 4.2 * len(names), 3.9)
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        rows = costs[costs["operation"] == name].sort_values("threads")
        for index, (way, label, colour, marker) in enumerate(_WAYS):
            middle, low, high = (f"{way}_{end}" for end in ("ns", "low", "high"))
            axes.errorbar(
                rows["threads"] * style.dodge(index, len(_WAYS)), rows[middle] / 1e3,
                yerr=[reach / 1e3 for reach in style.distances(rows, middle, low, high)],
                color=colour, marker=marker, markersize=6, linewidth=1.4, capsize=3,
                label=label if axes is panels[0] else None,
            )  # fmt: skip
        style.level_axis(axes, {level: str(level) for level in sorted(set(rows["threads"]))})
        axes.set_ylim(bottom=0)
        style.dress(axes, name, "threads that call at once", "time a call takes (us)")
    style.legend_below(figure, most=2)
    figure.suptitle(title or "What a lock adds to a call", fontsize=style.TITLE + 1)
    return figure


def cost_table(costs: pd.DataFrame) -> HtmlTable:
    """Show each arm of one setting compared with the untreated engine, with intervals.

    Ratios are treated / untreated, differences in percentage points; verdicts are adjusted.
    """
    if costs.empty:
        return HtmlTable(costs, "<p>No two trials could be compared.</p>")
    metrics = [metric for metric in _METRICS if (costs["metric"] == metric.name).any()]
    rows = []
    for arm, group in costs.groupby("arm", sort=False):
        by_metric = {row["metric"]: row for row in group.to_dict("records")}
        pairs, left = int(group["pairs"].iloc[0]), int(group["left_out"].iloc[0])
        cells = [_cell(by_metric.get(metric.name), metric) for metric in metrics]
        rows.append((arm, f"{pairs} ({left} left out)" if left else pairs, cells))
    return HtmlTable(costs, _TABLE.render(titles=[m.title for m in metrics], rows=rows))


def _cell(row: dict[Any, Any] | None, metric: Metric) -> tuple[str, bool]:
    """Return the text of a cell, and whether it is highlighted."""
    if row is None or math.isnan(row["estimate"]):
        return "-", False
    values = [row[name] for name in ("estimate", "low", "high")]
    if metric.scale == "ratio":
        digits = 3 if values[2] - values[1] < _NARROW else 2
        texts = [f"{value:.{digits}f}" for value in values]
    else:
        texts = ["0" if abs(1000 * value) <= 0.5 else f"{100 * value:+.1f}" for value in values]
    if math.isnan(values[1]):
        return f"{texts[0]} (too few trials)", False
    text, marked = f"{texts[0]} ({texts[1]} to {texts[2]})", row["verdict"] in ("costs", "saves")
    return f"{text} {row['verdict']}" if marked else text, marked


_NARROW = 0.01
"""Width of an interval below which a third digit is shown."""
_TABLE = Environment(autoescape=True).from_string(
    """<table><thead><tr><th>compared with untreated</th><th>pairs</th>
{%- for title in titles %}<th>{{ title }}</th>{% endfor %}</tr></thead><tbody>
{%- for arm, pairs, cells in rows %}<tr><th>{{ arm }}</th><td>{{ pairs }}</td>
{%- for text, marked in cells %}<td>
{%- if marked %}<mark>{{ text }}</mark>{% else %}{{ text }}{% endif %}</td>{% endfor %}</tr>
{%- endfor %}</tbody></table>"""
)
