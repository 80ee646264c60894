"""Whether a replay of 100,000 events scrubs without a wait: the time of a step in Chromium.

The shipped trial of notebook 04 is repeated until it has that many events. A step shows another
event: what a pixel of the slider or a click anywhere on it does. Its time is that of the script and
the layout, and stands beside the 16.7 ms that a screen with 60 pictures a second leaves.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from analysis.jupyter import replay
from analysis.runs.store import load_run

EVENTS, STEPS, BUDGET_MS = 100_000, 1_000, 1000 / 60
RECORDED = Path(__file__).parent.parent / "data" / "recorded" / "04_first_wrong_step-3.1.0"
PAYLOAD = re.compile(r'(?<=<script id="data" type="text/plain">).*?(?=</script>)', re.DOTALL)
STEP = """places => places.map((place) => {
  const began = performance.now();
  window.replay.show(place);
  document.body.getBoundingClientRect();
  return performance.now() - began;
})"""


def repeated(data: dict[str, Any], times: int) -> dict[str, Any]:
    """Return the data of a replay, one after another; what lasts to the end of one ends there."""
    count = len(data["kind"])
    after, lasts = data["seq"][-1] + 1, data["t"][-1]
    nodes = 1 + max((node[2] for node in data["nodes"]), default=0)
    turns = range(times)

    def at(place: int, turn: int) -> int:
        return place + turn * count

    def node(number: int, turn: int) -> int:
        return number + turn * nodes if number else 0

    return {
        **data,
        "seq": [seq + turn * after for turn in turns for seq in data["seq"]],
        "t": [t + turn * lasts for turn in turns for t in data["t"]],
        **{name: data[name] * times for name in ("kind", "request", "stack")},
        "more": {
            str(at(int(place), turn)): facts
            for turn in turns for place, facts in data["more"].items()
        },
        "spans": [[*s[:3], at(s[3], n), at(s[4], n)] for n in turns for s in data["spans"]],
        "nodes": [
            [at(begin, n), at(end, n), node(number, n), node(parent, n), *rest]
            for n in turns for begin, end, number, parent, *rest in data["nodes"]
        ],
        "references": {
            str(node(int(number), n)): [[at(place, n), held] for place, held in known]
            for n in turns for number, known in data["references"].items()
        },
        "calls": [[at(c[0], n), at(c[1], n), *c[2:]] for n in turns for c in data["calls"]],
        "findings": [[at(f[0], n), *f[1:]] for n in turns for f in data["findings"]],
        "jumps": {
            kind: [at(place, n) for n in turns for place in marks]
            for kind, marks in data["jumps"].items()
        },
    }  # fmt: skip


def page_of(events: int) -> tuple[str, int]:
    """Return the page of a replay with at least so many events, and their number."""
    (small,) = RECORDED.glob("small-*")
    page = replay(load_run(small)).page
    (packed,) = PAYLOAD.findall(page)
    data = json.loads(gzip.decompress(base64.b64decode(packed)))
    data = repeated(data, -(-events // len(data["kind"])))
    payload = base64.b64encode(gzip.compress(json.dumps(data).encode())).decode()
    return PAYLOAD.sub(lambda _: payload, page), len(data["kind"])


def main() -> None:
    program = os.environ.get("CACHELAB_CHROMIUM") or shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        program = None
    if not program:
        print("Not measured: it needs Chromium and Playwright. Run `make test-browser` first.")
        return
    page_text, count = page_of(EVENTS)
    rng = np.random.default_rng(0)
    start = count // 2
    ways = {
        "the next event": list(range(start, start + STEPS)),
        "a pixel of the slider": np.linspace(0, count - 1, STEPS).astype(int).tolist(),
        "anywhere": rng.integers(0, count, STEPS).tolist(),
    }
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_content(page_text)
        page.get_by_text(f"of {count}, seq").wait_for()
        for way, places in ways.items():
            taken = np.array(page.evaluate(STEP, places))
            median, p99 = np.percentile(taken, [50, 99])
            print(
                f"{count:,} events, a step to {way}: median {median / BUDGET_MS:.3f},"
                f" p99 {p99 / BUDGET_MS:.3f} of a frame of {BUDGET_MS:.1f} ms ({STEPS:,} steps)"
            )
        browser.close()


if __name__ == "__main__":
    main()
