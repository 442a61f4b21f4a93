"""Speed of the correspondence explorer in a browser: from a pick to the drawn maps, and the size of what is sent.

Target: under 100 ms from pick to picture. Measured by the page itself while a drag moves the pick, median and largest
of 25 picks, in Chromium without a GPU; frames of noise, random features of width 384. Into results/benchmarks/explorer.json.
"""

import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import sync_playwright

from tcore_lib import files
from tcore_lib.widgets.explorer import Explorer

# Frames, patch grid, encoders: a DAVIS clip at the protocol's resolution, and at twice of it.
CASES = [(8, (30, 55), 1), (8, (30, 55), 2), (20, (30, 55), 2), (8, (60, 110), 2)]
PICKS = 25


def build(frames: int, grid: tuple[int, int], encoders: int) -> Explorer:
    """An explorer on noise."""
    rng = np.random.default_rng(0)
    pictures = list(rng.integers(0, 256, (frames, 480, 880, 3), dtype=np.uint8))
    features = {f"encoder {i}": rng.normal(size=(frames, *grid, 384)).astype(np.float32) for i in range(encoders)}
    return Explorer(pictures, features)


def measure(page: Any, path: Path) -> list[float]:
    """Milliseconds from pick to picture, as the page states them."""
    page.goto(path.as_uri())
    page.wait_for_selector(".tcx[data-ready=true]")
    if page.get_by_role("button", name="Compare").count():
        page.get_by_role("button", name="Compare").click()
    box = page.locator(".tcx-canvas").first.bounding_box()
    page.mouse.move(box["x"] + 9, box["y"] + 9)
    page.mouse.down()
    found = []
    for i in range(PICKS):
        page.mouse.move(box["x"] + 9 + i * box["width"] / 28, box["y"] + 9 + i * box["height"] / 28)
        page.wait_for_timeout(150)
        found.append(float(page.locator(".tcx").get_attribute("data-milliseconds")))
    page.mouse.up()
    return found


if __name__ == "__main__":
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    rows = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        for frames, grid, encoders in CASES:
            began = time.perf_counter()
            path = build(frames, grid, encoders).to_html(Path(folder) / "explorer.html")
            seconds, times = time.perf_counter() - began, measure(page, path)
            rows.append({"frames": frames, "grid": list(grid), "encoders": encoders, "build_seconds": round(seconds, 2),
                         "page_bytes": path.stat().st_size,
                         "median_ms": statistics.median(times), "largest_ms": max(times)})  # fmt: skip
            print(rows[-1])
        browser.close()
    files.write_json(Path(__file__).parents[1] / "results/benchmarks/explorer.json", {"picks": PICKS, "cases": rows})
