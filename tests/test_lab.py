"""Both widgets in JupyterLab itself: an executed notebook opened again, then run with a live kernel; figures in it."""

import json
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

MaskPainter(clip, lambda mask: [np.roll(mask, 16 * n, axis=1) for n in range(3)])
"""
FIGURES = """
import pandas as pd

from tcore_lib import figures

log = pd.DataFrame({"step": [0, 10, 20], "total": [3.0, 2.0, 1.0]})
figures.histogram([1, 2, 3]);
curves = figures.LiveCurves(["total"])
curves.update(log.head(1))
curves.close(log);
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path, Any]]:
    """A JupyterLab on a folder with an executed, trusted notebook: its address, the folder, the notebook."""
    for name in ("CONFIG", "DATA", "RUNTIME"):
        monkeypatch.setenv(f"JUPYTER_{name}_DIR", str(tmp_path / name.lower()))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("MPLBACKEND", raising=False)
    folder = tmp_path / "work"
    for path in (folder, tmp_path / "data"):
        path.mkdir()
    cells = [nbformat.v4.new_code_cell(text.strip()) for text in (EXPLORER, PAINTER, FIGURES)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, resources={"metadata": {"path": str(folder)}}, timeout=PATIENCE).execute()
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
            yield f"http://127.0.0.1:{port}/lab/tree/widgets.ipynb?reset", folder, notebook
        finally:
            server.terminate()
            server.wait(20)


def wait_for(found: Any) -> Any:
    """The first true value of `found()`; what it raises until then does not count."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            value = found()
        except Exception:
            value = None
        if value:
            return value
        time.sleep(0.2)
    raise AssertionError(f"not within {PATIENCE} s")


@pytest.mark.browser
def test_widgets_and_figures_in_a_notebook_reopened_and_run(browser: Any, lab: tuple[str, Path, Any]) -> None:
    address, folder, notebook = lab
    shown = ["image/png" in output.get("data", {}) for output in notebook.cells[2].outputs]
    assert shown == [True, True]  # the histogram once, the live curves in one place
    page = browser.new_page(viewport={"width": 1200, "height": 1400})
    page.set_default_timeout(1000 * PATIENCE)
    wait_for(lambda: page.goto(address))  # the server needs some seconds
    page.wait_for_selector(".tcx[data-ready=true]")

    def click_patch(row: int, column: int) -> None:
        canvas = page.locator(".tcx-canvas").first
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        canvas.click(position={"x": (column + 0.5) * box["width"] / 8, "y": (row + 0.5) * box["height"] / 6})

    # From the saved notebook alone: the cells have not been run in this session.
    (folder / "pick.json").unlink(missing_ok=True)
    click_patch(2, 3)
    page.wait_for_selector(".tcx[data-pick='0,2,3']")
    assert "Best match in frame 1: row 2, column 4, cosine 1.00" in page.locator(".tcx-status").first.inner_text()
    assert not (folder / "pick.json").exists()

    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_function("document.querySelectorAll(\".tcx[data-ready=true][data-pick='0,3,4']\").length == 1")
    wait_for((folder / "pick.json").exists)  # the browser has sent the matches of the first pick
    click_patch(1, 5)
    pick = wait_for(lambda: (p := json.loads((folder / "pick.json").read_text())).get("row") == 1 and p)
    match = {"frame": 2, "row": 1, "column": 7, "cosine": pytest.approx(1, abs=0.02)}
    assert (pick["column"], pick["matches"]["teacher"][1]) == (5, match)

    canvas = page.get_by_label("First frame. Drag to paint.")
    canvas.scroll_into_view_if_needed()
    canvas.click(position={"x": 60, "y": 60})
    page.get_by_role("button", name="Propagate").click()
    page.wait_for_function(
        "[...document.querySelectorAll('.tcx-status')].some((s) => s.textContent === '3 frames labelled.')"
    )
    page.screenshot(path=str(folder / "lab.png"))
