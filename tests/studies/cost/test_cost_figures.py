"""The figures of costs are asked what they drew."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from synthetic_cost import cost_run

from analysis.runs.store import to_frame
from analysis.studies.cost.compare import costs
from analysis.studies.cost.figures import cost_curves, cost_ratios, cost_table, lock_figure
from analysis.studies.cost.locking import lock_costs
from analysis.studies.cost.measures import ALL, CACHE_METRICS, METRICS, measure, measure_cache

LOCK = "lock-cache"
FACTORS = {"untreated": 1.0, "true-leaves": 1.0, ALL: 1.2, LOCK: 1.0, "copy-tokens": 1.0}


def both(**options: object) -> tuple[pd.DataFrame, pd.DataFrame]:
    hits = {"untreated": 12, LOCK: 12, ALL: 9, "copy-tokens": 12, "true-leaves": 12}
    requests, trials = cost_run(FACTORS, hits=hits, **options)  # type: ignore[arg-type]
    return measure(requests, trials), measure_cache(requests, trials, to_frame("events", []))


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_curves_have_a_panel_for_each_cost_and_a_line_for_each_arm() -> None:
    measures, seen = both()
    figure = cost_curves(measures, seen, "a title")
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [*(metric.title for metric in METRICS), CACHE_METRICS[0].title]
    assert legend(figure) == ["untreated", LOCK, ALL, "each of 2 fixes alone"]
    latency = figure.axes[2]
    assert latency.get_ylabel() == "ms"
    assert [tick.get_text() for tick in latency.get_xticklabels()] == ["4\nn = 6", "8\nn = 6"]
    assert len(latency.containers) == 5
    lines = {c.lines[0].get_color(): c.lines[0] for c in latency.containers}
    plain, fixed = (np.asarray(lines[c].get_ydata()) for c in ("#000000", "#D55E00"))
    assert plain == pytest.approx([160 * 4**0.3, 160 * 8**0.3], rel=0.05)
    assert fixed / plain == pytest.approx([1.2, 1.2], rel=0.05)
    [bars] = latency.containers[2].lines[2]
    assert all(low < high for (_, low), (_, high) in bars.get_segments())


def test_curves_without_a_cache_or_without_a_whole_trial() -> None:
    measures, _ = both()
    assert len(cost_curves(measures).axes) == 6
    assert not cost_curves(measures).axes[5].axison
    lost = cost_curves(measures.assign(comparable=False))
    assert "nothing to compare" in lost.texts[0].get_text()


def test_ratios_have_a_row_for_each_arm_in_order() -> None:
    measures, seen = both()
    found = pd.concat([costs(measures), costs(seen, CACHE_METRICS)])
    figure = cost_ratios(found)
    # Pages are unknown here, so that they have no panel.
    assert len(figure.axes) == len(METRICS) + 1
    rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert rows == [LOCK, "copy-tokens", "true-leaves", ALL]
    assert "12 pairs of engines" in figure.get_suptitle()
    latency = figure.axes[2]
    [point] = [line for line in latency.lines if list(line.get_ydata()) == [3]]
    assert point.get_xdata()[0] == pytest.approx(20, abs=3)
    assert point.get_color() == "#D55E00"
    assert "less is better" in latency.get_xlabel()
    assert "more is better" in figure.axes[3].get_xlabel()
    assert legend(figure) == ["costs more than no treatment", "no difference shown"]


def test_ratios_of_too_few_trials_have_no_interval() -> None:
    measures, _ = both(repeats=1)
    figure = cost_ratios(costs(measures))
    assert legend(figure) == ["too few trials"]
    assert not figure.axes[0].collections
    empty = cost_ratios(costs(measures[measures["arm"] == "untreated"]))
    assert "No two trials" in empty.texts[0].get_text()


def test_the_table_says_what_is_shown() -> None:
    measures, seen = both(outcomes={(LOCK, 0): ("engine_died",)})
    found = pd.concat([costs(measures), costs(seen, CACHE_METRICS)])
    markup = cost_table(found).markup
    assert markup.count("<tr>") == 5
    assert "<th>all fixes</th><td>12</td>" in markup
    assert "<th>lock-cache</th><td>10 (2 left out)</td>" in markup
    assert "costs</mark>" in markup
    assert "-10.0 (-10.0 to -10.0) costs" in markup
    assert "<td>0 (0 to 0)</td>" in markup
    timed, recorded = both(repeats=1)
    for few in (costs(timed), costs(recorded, CACHE_METRICS)):
        assert "(too few trials)" in cost_table(few).markup
    assert len(cost_table(found.head(0))) == 0


def test_a_lock_is_drawn_against_threads() -> None:
    rng = np.random.default_rng(0)
    rows = [
        {"operation": name, "threads": threads, "block": block, "locks": 1,
         "plain": rng.normal(1000, 50), "locked": rng.normal(1500 * threads, 50)}
        for name in ("one", "other") for threads in (1, 4) for block in range(10)
    ]  # fmt: skip
    figure = lock_figure(lock_costs(pd.DataFrame(rows)))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["one", "other"]
    assert len(legend(figure)) == 2
    axes = figure.axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "4"]
    locked = axes.containers[1].lines[0]
    assert np.asarray(locked.get_ydata()) == pytest.approx([1.5, 6.0], rel=0.05)
    assert "us" in axes.get_ylabel()
    assert "No operation" in lock_figure(pd.DataFrame()).texts[0].get_text()
