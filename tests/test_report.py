"""The report of a run: what it says, what it refuses, and how it behaves in a real browser."""

import base64
import io
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from small_clips import write_small_davis, write_small_jhmdb, write_small_vip
from tiny_problem import tiny

from tcore_lib import params, runs
from tcore_lib.__main__ import main
from tcore_lib.errors import InputError
from tcore_lib.evaluation import evaluate, scores as summary
from tcore_lib.figures import plots
from tcore_lib.params import Params
from tcore_lib.reproduction import profile as profiles, table
from tcore_lib.training import checkpoints
from tcore_lib.training.official import official_weights
from tcore_lib.training.tcore import TCoRe
from tcore_lib.widgets import report
from tcore_lib.widgets.report_page import figure

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
NASTY = "<img src=x onerror=alert(1)>"
TABLES = {"davis": "objects", "jhmdb": "joints", "vip": "parts"}


def profile(folder: Path) -> Params:
    """A tiny run below `folder` whose encoders are raw pixels and a small network, on small benchmarks."""
    sections = tiny().model_dump(mode="json")
    sections["run"] |= {"name": "tiny", "title": f"a title with {NASTY}", "results": str(folder / "results")}
    sections["data"] |= {"root": str(folder / "data")}
    sections["checkpoint"] = {"encoders": {"trained": "run", "</script>random": "random"}, "paper_rows": {}}
    sections["davis"] |= {"root": str(folder / "davis"), "input_size": [96, 160]}
    sections["jhmdb"] |= {"root": str(folder / "jhmdb"), "input_size": [96, 96]}
    sections["vip"] |= {"root": str(folder / "vip"), "long_side": 160}
    return params.parse(sections, "test")


def finish(run: Params, stage: str, result: dict[str, Any], tables: dict[str, pd.DataFrame] | None = None) -> None:
    """Leave behind what a notebook leaves behind."""
    folder = runs.run_folder(run)
    folder.mkdir(parents=True, exist_ok=True)
    runs.StageRun(stage, run, folder, "key").finish(result, tables)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Params:
    """A run in which 01, 03, 04, 05 and 06 were done; 00, 02 and 07 were not."""
    folder = tmp_path_factory.mktemp("report")
    write_small_davis(folder / "davis", (NASTY, "two"))
    write_small_jhmdb(folder / "jhmdb")
    write_small_vip(folder / "vip")
    made = profile(folder)
    content = official_weights(TCoRe(made.pretrain, 3)) | {"params": made.model_dump(mode="json")}
    checkpoints.save(runs.run_folder(made) / "checkpoints", 2, content)
    log = pd.DataFrame({"step": [1, 2, 3], "total": [3.0, 2.5, 2.0], "lr": [0.0, 1e-4, 1e-5]})
    finish(
        made,
        "01_pretraining",
        {"description": "6 videos, 3 steps of 4", "first": {"total": 3.0}, "last": {"total": 2.0}},
        {"log": log},
    )
    for kind, (stage, _) in table.BENCHMARKS.items():
        found = profiles.clips(made, kind)
        output = runs.run_folder(made) / "predictions" / kind
        rows = evaluate.evaluate(profiles.encoders(made), found, getattr(made, kind), output=output, device="cpu")
        scores = summary.summarise(rows, kind)
        result = {"scores": table.headline(scores, kind), "data": profiles.described(made, kind, found)}
        finish(made, stage, result, {TABLES[kind]: rows, "scores": scores})
    statistics = pd.DataFrame({"index": ["before training", "after training"], "sharpness": [0.1, 0.2]})
    finish(made, "06_attention_visualization", {"uniform_share": 0.0625}, {"statistics": statistics})
    return made


@pytest.fixture(scope="module")
def written(run: Params) -> Path:
    return report.write_report(runs.run_folder(run))


def section(path: Path, key: str) -> str:
    return path.read_text().split(f"<section id='{key}'>")[1].split("</section>")[0]


def test_it_shows_the_run_s_own_figures(run: Params, written: Path) -> None:
    assert written == runs.run_folder(run) / "report.html"
    scores = pd.read_csv(runs.run_folder(run) / "03_davis_evaluation.scores.csv").set_index(["encoder", "score"])
    value = scores.loc[("trained", "J&F_m"), "value"]
    assert f"<td>{value:.1f}</td>" in section(written, "scores")
    assert f"<td>{value:.1f}  [" in section(written, "davis")
    rows = pd.read_csv(runs.run_folder(run) / "05_vip_evaluation.parts.csv")
    assert f"{len(rows)} rows, one per encoder, clip and part" in section(written, "vip")
    for key in ("davis", "jhmdb", "vip"):
        part = section(written, key)
        assert "best clip of trained" in part
        assert "worst clip of trained" in part
        assert part.count("data:image/jpeg") == 2 * 3 * (3 if key == "vip" else 5)  # clips, rows, frames
    assert "2.0000" in section(written, "training")
    assert str(run.davis.top_k) in section(written, "settings")
    assert runs.code_digest()[:16] in section(written, "provenance")


def test_what_was_not_run_is_shown_as_not_run(written: Path) -> None:
    assert "not run (notebooks/02_checkpoint_inspection.ipynb)" in section(written, "weights")
    states = re.findall(r"<td>(0\d_\w+)</td><td>(run|not run)</td>", section(written, "provenance"))
    assert [name for name, state in states if state == "not run"] == [
        "00_data_prep",
        "02_checkpoint_inspection",
        "07_paper_table",
    ]
    assert "5 of 8" in written.read_text()


def test_without_clips_and_weights_the_rest_is_still_shown(run: Params, tmp_path: Path) -> None:
    shutil.copytree(
        runs.run_folder(run), tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoints", "report.html")
    )
    for path in (tmp_path / "copy").glob("*.json"):
        path.write_text(path.read_text().replace(str(Path(run.davis.root).parent), "/nowhere"))
    page = report.write_report(tmp_path / "copy", tmp_path / "report.html")
    assert "Not shown: the clips are not on this machine (/nowhere/davis)" in section(page, "davis")
    assert "Not shown: The run&#x27;s clips are not on this machine" in section(page, "explorer")
    assert "<td>two</td>" in section(page, "davis")


def test_bad_input_is_one_sentence(run: Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"There is no run folder .*/results/other; .*/results has tiny\."):
        report.write_report(runs.run_folder(run).parent / "other")
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    with pytest.raises(InputError, match=r"No notebook has finished in .*/begun yet"):
        report.write_report(tmp_path / "begun")
    half = tmp_path / "half"
    half.mkdir()
    shutil.copy(runs.run_folder(run) / "03_davis_evaluation.json", half)
    with pytest.raises(InputError, match=r"03_davis_evaluation.scores.csv cannot be read .* rerun notebooks/03"):
        report.write_report(half)
    (half / "03_davis_evaluation.json").write_text('{"result": {}}')
    with pytest.raises(InputError, match=r"03_davis_evaluation.json is no result of a stage; rerun notebooks/03"):
        report.write_report(half)
    (half / "03_davis_evaluation.json").write_text('{"resu')
    with pytest.raises(InputError, match="is not a JSON file"):
        report.write_report(half)
    assert main(["report", str(tmp_path / "none")]) == 2
    assert "There is no run folder" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.html"))


def test_the_command_writes_where_it_is_told(run: Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "out" / "page.html"
    folder = str(runs.run_folder(run))
    assert main(["report", folder, "--output", str(target), "--no-explorer"]) == 0
    assert capsys.readouterr().out.startswith(str(target))
    assert "id='explorer'" not in target.read_text()


def test_a_figure_takes_the_page_s_theme() -> None:
    code = figure(plots.histogram([1, 2, 3], title=NASTY), NASTY)
    assert NASTY not in code
    picture = base64.b64decode(re.search(r"base64,([^']*)'", code)[1]).decode()  # type: ignore[index]
    assert NASTY not in picture
    assert "prefers-color-scheme:dark" in picture
    assert "var(--ink)" in picture
    assert "#1f2430" not in picture.split("</style>", 1)[1].lower()


# ---- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no browser: apt-get install chromium, or set CHROMIUM to one")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        instance = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield instance
        instance.close()


def opened(browser: Any, path: Path, **context: Any) -> tuple[Any, list[str]]:
    """The page, and what went wrong or was fetched besides the file itself."""
    page = browser.new_context(viewport={"width": 1200, "height": 900}, **context).new_page()
    trouble: list[str] = []
    page.on("console", lambda message: trouble.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("dialog", lambda dialog: trouble.append(dialog.message))
    page.on("request", lambda request: trouble.append(request.url) if outside(request.url, path) else None)
    page.goto(path.as_uri())
    page.wait_for_selector(".tcx[data-ready=true]")
    return page, trouble


def outside(address: str, path: Path) -> bool:
    return address != path.as_uri() and not address.startswith(("data:", "blob:"))


@pytest.mark.browser
def test_a_click_in_the_report_moves_the_pick_and_the_map(browser: Any, written: Path) -> None:
    page, trouble = opened(browser, written)
    query, match = page.locator(".tcx-canvas").nth(0), page.locator(".tcx-canvas").nth(1)
    query.scroll_into_view_if_needed()
    before = page.locator(".tcx").get_attribute("data-pick"), match.evaluate("(canvas) => canvas.toDataURL()")
    box = query.bounding_box()
    query.click(position={"x": box["width"] * 2.5 / 10, "y": box["height"] * 1.5 / 6})  # 10 x 6 patches of 16 pixels
    page.wait_for_selector(".tcx[data-pick='0,1,2']")
    page.wait_for_timeout(100)
    assert before[0] != "0,1,2"
    assert match.evaluate("(canvas) => canvas.toDataURL()") != before[1]
    for mode in ("Cross-attention", "Propagated label"):
        page.get_by_role("button", name=mode).click()
        page.wait_for_timeout(100)
        assert "frame 0, row 1, column" in page.locator(".tcx-status").inner_text()
    assert trouble == []


@pytest.mark.browser
def test_names_stay_text_and_ids_are_unique(browser: Any, written: Path) -> None:
    page, trouble = opened(browser, written)
    assert page.locator("img[src=x]").count() == 0
    assert page.locator("header p").inner_text() == f"a title with {NASTY}"
    assert NASTY in page.locator("#davis").inner_text()
    assert "</script>random" in page.locator("#scores").inner_text()
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((node) => node.id)")
    assert len(ids) == len(set(ids))
    broken = page.evaluate("[...document.images].filter((image) => !image.complete || !image.naturalWidth).length")
    assert broken == 0
    unnamed = page.evaluate("[...document.images].filter((image) => !image.alt).length")
    assert unnamed == 0
    targets = page.evaluate("[...document.querySelectorAll('nav a')].map((a) => a.getAttribute('href').slice(1))")
    assert set(targets) <= set(ids)
    assert trouble == []


@pytest.mark.browser
@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_it_follows_the_reader_s_theme(browser: Any, written: Path, scheme: str, dark: bool) -> None:
    page, trouble = opened(browser, written, color_scheme=scheme)
    colours = page.evaluate(
        "['html', 'body', '.tcx', 'td'].map((name) => getComputedStyle(document.querySelector(name)))"
        ".map((style) => [style.backgroundColor, style.color])"
    )
    paper = [int(value) for value in re.findall(r"\d+", colours[0][0])[:3]]
    assert bool(np.mean(paper) < 60) is dark
    for _, ink in colours[1:]:
        assert bool(np.mean([int(value) for value in re.findall(r"\d+", ink)[:3]]) > 160) is dark
    # A figure's text is drawn in the theme's ink: look at the pixels of the first one.
    shown = page.locator("#training figure img").first
    shown.scroll_into_view_if_needed()
    with Image.open(io.BytesIO(shown.screenshot())) as image:
        grey = np.asarray(image.convert("L"), float)
    assert bool(np.median(grey) < 60) is dark
    assert (grey.max() > 200) if dark else (grey.min() < 60)
    assert trouble == []


@pytest.mark.browser
def test_it_fits_a_telephone(browser: Any, written: Path) -> None:
    page, trouble = opened(browser, written)
    page.set_viewport_size({"width": 390, "height": 800})
    page.wait_for_timeout(200)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert trouble == []
