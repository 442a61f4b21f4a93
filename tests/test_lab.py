"""Both widgets in JupyterLab itself: an executed notebook opened again, then run with a live kernel."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.sign import NotebookNotary

ROOT = Path(__file__).parents[1]
PATIENCE = 180  # seconds: a busy machine may take a minute to start a server, a browser or a kernel
EXPLORER = """
import json
from pathlib import Path

import numpy as np

from tcore_lib.widgets.explorer import Explorer

rng = np.random.default_rng(0)
features = rng.normal(size=(6, 8, 32))
picture = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
clip = [np.roll(picture, 16 * n, axis=1) for n in range(3)]
explorer = Explorer(clip, {"teacher": np.stack([np.roll(features, n, axis=1) for n in range(3)])})
explorer.observe(lambda change: Path("pick.json").write_text(json.dumps(change["new"])), "pick")
explorer
"""
PAINTER = """
from tcore_lib.widgets.painter import MaskPainter

painter = MaskPainter(clip, lambda mask: [np.roll(mask, 16 * n, axis=1) for n in range(3)])
painter
"""
FIGURES = """
import pandas as pd

from tcore_lib import figures

log = pd.DataFrame({"step": [0, 10, 20], "total": [3.0, 2.0, 1.0]})
figures.histogram([1, 2, 3]);
curves = figures.LiveCurves(every=0)
for rows in (1, 2, 3):
    curves.update(log.head(rows))
curves.close(log);
"""


def test_a_figure_is_shown_once_and_live_curves_in_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("MPLBACKEND", raising=False)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(FIGURES.strip())])
    NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}}, timeout=120).execute()
    pictures = [output for output in notebook.cells[0].outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == len(notebook.cells[0].outputs) == 2  # the histogram, the curves


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """A JupyterLab on a folder with an executed, trusted notebook: its address and the folder."""
    if CHROMIUM is None:
        pytest.skip("no browser: apt-get install chromium, or set CHROMIUM to one")
    for name in ("CONFIG", "DATA", "RUNTIME"):
        monkeypatch.setenv(f"JUPYTER_{name}_DIR", str(tmp_path / name.lower()))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    folder = tmp_path / "work"
    for path in (folder, tmp_path / "data"):
        path.mkdir()
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text.strip()) for text in (EXPLORER, PAINTER)])
    NotebookClient(notebook, resources={"metadata": {"path": str(folder)}}, timeout=120).execute()
    nbformat.write(notebook, folder / "widgets.ipynb")
    NotebookNotary(data_dir=str(tmp_path / "data")).sign(notebook)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--no-browser", "--allow-root", "--IdentityProvider.token=", "--LabApp.expose_app_in_browser=True"]
    options += ["--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={folder}"]
    with open(tmp_path / "lab.log", "wb") as log:
        server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], stdout=log, stderr=log, cwd=folder)
        try:
            yield f"http://127.0.0.1:{port}/lab/tree/widgets.ipynb?reset", folder
        finally:
            server.terminate()
            server.wait(20)


def click_patch(page: Any, row: int, column: int) -> None:
    canvas = page.locator(".tcx-canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    canvas.click(position={"x": (column + 0.5) * box["width"] / 8, "y": (row + 0.5) * box["height"] / 6})


def wait_for(found: Any, seconds: float = PATIENCE) -> Any:
    """The first true value of `found()`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = found()
        if value:
            return value
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s")


def open_page(context: Any, address: str) -> Any:
    page = context.new_page()
    page.set_default_timeout(1000 * PATIENCE)
    for _ in range(4 * PATIENCE):  # the server needs some seconds
        try:
            page.goto(address)
            return page
        except Exception:
            time.sleep(0.3)
    raise AssertionError("JupyterLab did not come up")


@pytest.mark.browser
def test_widgets_work_in_a_reopened_notebook_and_with_a_kernel(lab: tuple[str, Path]) -> None:
    from playwright.sync_api import sync_playwright

    address, folder = lab
    (folder / "pick.json").unlink(missing_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = open_page(browser.new_context(viewport={"width": 1200, "height": 1400}), address)
        page.wait_for_selector(".tcx[data-ready=true]", timeout=1000 * PATIENCE)
        # From the saved notebook alone: the cells have not been run in this session.
        click_patch(page, 2, 3)
        page.wait_for_selector(".tcx[data-pick='0,2,3']")
        assert "Best match in frame 1: row 2, column 4, cosine 1.00" in page.locator(".tcx-status").first.inner_text()
        assert not (folder / "pick.json").exists()

        page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
        page.wait_for_function(
            "document.querySelectorAll(\".tcx[data-ready=true][data-pick='0,3,4']\").length == 1",
            timeout=1000 * PATIENCE,
        )
        wait_for((folder / "pick.json").exists)  # the browser has sent the matches of the first pick
        click_patch(page, 1, 5)
        pick = wait_for(lambda: (p := json.loads((folder / "pick.json").read_text() or "{}")).get("row") == 1 and p)
        assert pick["column"] == 5
        assert pick["matches"]["teacher"][1] == {
            "frame": 2,
            "row": 1,
            "column": 7,
            "cosine": pytest.approx(1, abs=0.02),
        }

        canvas = page.get_by_label("First frame. Drag to paint.")
        canvas.scroll_into_view_if_needed()
        canvas.click(position={"x": 60, "y": 60})
        page.get_by_role("button", name="Propagate").click()
        page.wait_for_function(
            "[...document.querySelectorAll('.tcx-status')].some((s) => s.textContent === '3 frames labelled.')"
        )
        page.screenshot(path=str(folder / "lab.png"))
        browser.close()
