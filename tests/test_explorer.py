"""The explorer's numbers in Python, and the exported page in a real browser: what is clicked, shown and picked."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from PIL import Image

from tcore_lib.errors import InputError
from tcore_lib.widgets.base import STATE, VIEW, embed
from tcore_lib.widgets.explorer import Explorer
from tcore_lib.widgets.payload import pack_attention

N, H, W, D = 4, 10, 16, 48  # frames, grid, width; frames are 160 x 256 pixels
SHIFT = (1, -2)  # rows and columns that everything moves from one frame to the next
NAUGHTY = ("<img src=x onerror=alert(1)>", "</script><b>swan</b>")


def shifted_clip() -> tuple[list[np.ndarray], np.ndarray]:
    """Frames and features: every patch of frame 0 is found again in frame n, moved by n * SHIFT (around the edges)."""
    rng = np.random.default_rng(0)
    colours = rng.integers(30, 200, (H, W, 3), dtype=np.uint8)
    features = rng.normal(size=(H, W, D))
    moved = [(SHIFT[0] * n, SHIFT[1] * n) for n in range(N)]
    frames = [np.roll(colours, shift, (0, 1)).repeat(16, 0).repeat(16, 1) for shift in moved]
    return frames, np.stack([np.roll(features, shift, (0, 1)) for shift in moved])


def one_hot_attention(h: int = H, w: int = W) -> np.ndarray:
    """Two heads (2, P, P): head 1 looks one row further down, head 2 looks everywhere alike."""
    return np.stack([np.roll(np.eye(h * w), w, axis=1), np.full((h * w, h * w), 1 / (h * w))])


def explorer(**more: Any) -> Explorer:
    """A clip seen by two encoders."""
    frames, features = shifted_clip()
    other = np.random.default_rng(9).normal(size=features.shape)
    return Explorer(frames, {"teacher": features, "other": other}, pick=(0, 4, 9), **more)


# ---- in Python ------------------------------------------------------------------------------------------------------


def test_the_payload_is_bounded_and_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    full, size = explorer(), (H * W) ** 2
    assert f"{N} frames of {H} x {W} patches" in full._meta["note"]
    assert len(full._features) == 2 * N * H * W * 48
    maps = {(0, 1): one_hot_attention(), (1, 0): one_hot_attention()}
    assert explorer(cross_attention=maps)._meta["attention"]["heads"] == 2
    monkeypatch.setattr("tcore_lib.widgets.explorer.MAX_BYTES", 4 * size)
    fewer = explorer(cross_attention=maps)  # 2 x 3 maps do not fit
    assert "attention on 10 x 16 patches, mean of the heads" in fewer._meta["note"]
    assert len(fewer._attention) == 2 * size + 4 * 2 * H * W
    with pytest.raises(InputError, match="give fewer pairs"):
        pack_attention(maps, (H, W), N, size)
    monkeypatch.setattr("tcore_lib.widgets.explorer.MAX_BYTES", 2 * N * H * W * 20)
    assert len(explorer()._features) == 2 * N * H * W * 20
    monkeypatch.setattr("tcore_lib.widgets.explorer.MAX_BYTES", 1000)
    with pytest.raises(InputError, match="do not fit 1,000 bytes; show fewer frames"):
        explorer()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros((N, 2, H, W + 1))}, r"labels have shape \(4, 2, 10, 17\); give"),
        ({"cross_attention": {(0, N): one_hot_attention()}}, r"cross_attention\[0, 4\] has shape"),
        ({"mode": "attention"}, "mode 'attention' is not there; this explorer has similarity"),
        ({"pick": (N, 0, 0)}, r"pick\['frame'\] is 4; give a whole number from 0 to 3"),
        ({"features": {"a": np.zeros((2, H, W, D))}}, r"features\['a'\] has shape \(2, 10, 16, 48\) for 4 frames"),
        ({"features": {"a": np.full((N, H, W, D), np.nan)}}, "not finite"),
        ({"features": {"a": np.ones((N, H, W, D)), "b": np.ones((N, 5, W, D))}}, "must be one"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    frames, features = shifted_clip()
    given = {"frames": frames, "features": {"teacher": features, "other": features}} | change
    with pytest.raises(InputError, match=message):
        Explorer(**given)


def executed_notebook(widget: Explorer) -> Any:
    """A notebook whose one cell shows the widget and one of somebody else, with the state that Jupyter saves."""
    from ipywidgets import Widget

    widgets = Widget.get_manager_state(widgets=[widget])
    shown = [{VIEW: {"model_id": name}, "text/plain": "x"} for name in (widget.model_id, "another")]
    outputs = [nbformat.v4.new_output("display_data", data) for data in shown]
    cell = nbformat.v4.new_code_cell("explorer", outputs=outputs)
    return nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {STATE: widgets}})


# ---- in a browser ---------------------------------------------------------------------------------------------------


class Page:
    """A page with an explorer, and what went wrong in it."""

    def __init__(self, browser: Any, path: Path) -> None:
        self.context = browser.new_context(viewport={"width": 1000, "height": 900}, offline=True)
        self.page = self.context.new_page()
        self.trouble: list[str] = []
        self.page.on("console", lambda message: self.trouble.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.trouble.append(str(error)))
        self.page.on("request", lambda request: request.url == path.as_uri() or self.trouble.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector(".tcx[data-ready=true]")

    def canvas(self, i: int) -> Any:
        """0 = the query, 1 = the first encoder, 2 = the second."""
        return self.page.locator(".tcx-canvas").nth(i)

    def point(self, locator: Any, row: int, column: int) -> dict[str, float]:
        """The middle of a patch, in pixels of the element."""
        box = locator.bounding_box()
        return {"x": (column + 0.5) * box["width"] / W, "y": (row + 0.5) * box["height"] / H}

    def click(self, where: Any, row: int, column: int) -> None:
        locator = self.canvas(where) if isinstance(where, int) else where
        locator.click(position=self.point(locator, row, column))
        self.settle()

    def press(self, label: str, key: str) -> None:
        self.page.get_by_label(label, exact=True).press(key)
        self.settle()

    def choose(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).first.click()
        self.settle()

    def settle(self) -> None:
        """Wait until what was asked for is drawn."""
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def get(self, name: str) -> Any:
        return self.page.evaluate("(name) => document.getElementById('explorer').model.get(name)", name)

    def picked(self) -> tuple[int, ...]:
        return tuple(self.get("pick")[name] for name in ("frame", "row", "column"))

    def status(self) -> str:
        return str(self.page.locator(".tcx-status").inner_text())

    def pixels(self, i: int) -> np.ndarray:
        """What a canvas shows, (H, W, 3)."""
        encoded = self.canvas(i).evaluate("(canvas) => canvas.toDataURL('image/png').split(',')[1]")
        with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
            return np.asarray(image.convert("RGB")).astype(int)

    def marked(self, i: int) -> tuple[int, int]:
        """Row and column of the patch in which a canvas shows the orange dot of the best match."""
        pixels = self.pixels(i)
        orange = np.argwhere(np.abs(pixels - (0xE6, 0x9F, 0x00)).max(-1) < 12)
        row, column = orange.mean(0) / pixels.shape[:2] * (H, W)
        return int(row), int(column)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    labels = np.zeros((N, 2, H, W))
    labels[:, 0] = 1.0
    labels[:, :, 2:5, 6:12] = np.array([0.25, 0.75])[:, None, None]
    more = {
        "labels": labels,
        "label_names": ["background", NAUGHTY[1]],
        "cross_attention": {(0, 1): one_hot_attention(5, 8)},  # a grid of half as many rows and columns
        "attention_grid": (5, 8),
    }
    widget = explorer(names=[NAUGHTY[0], "frame 1", "frame 2", "frame 3"], **more)
    path = tmp_path_factory.mktemp("page") / "explorer.html"
    return widget.to_html(path, 'Clip <1> & "2" </title><script>x</script>')


@pytest.fixture
def page(browser: Any, exported: Path) -> Iterator[Page]:
    opened = Page(browser, exported)
    yield opened
    opened.context.close()
    assert opened.trouble == []  # no error, nothing fetched from anywhere


@pytest.mark.browser
def test_a_click_moves_pick_map_and_matches_and_the_numbers_are_python_s(page: Page) -> None:
    assert page.picked() == (0, 4, 9)
    assert page.marked(1) == (5, 7)  # frame 1: (4 + 1, 9 - 2)
    before = page.pixels(1)
    page.click(0, 2, 13)
    assert page.marked(1) == (3, 11)
    assert "row 2, column 13. Best match in frame 1: row 3, column 11, cosine 1.00" in page.status()
    assert (np.abs(page.pixels(1) - before).max(-1) > 60).mean() > 0.01
    page.choose("Compare")
    for i, name in enumerate(("teacher", "other"), 1):
        similarity = explorer().similarity(name, 0, 2, 13)
        for match in page.get("pick")["matches"][name]:
            values = similarity[match["frame"]]
            assert (match["row"], match["column"]) == np.unravel_index(values.argmax(), (H, W))
            assert match["cosine"] == pytest.approx(values.max(), abs=1e-4)
        assert page.marked(i) == np.unravel_index(similarity[1].argmax(), (H, W))


@pytest.mark.browser
def test_drag_click_elsewhere_and_keys_move_the_pick(page: Page) -> None:
    box, mouse = page.canvas(0).bounding_box(), page.page.mouse
    start, end = (page.point(page.canvas(0), *cell) for cell in ((1, 1), (8, 14)))
    mouse.move(box["x"] + start["x"], box["y"] + start["y"])
    mouse.down()
    assert page.picked() == (0, 1, 1)
    mouse.move(box["x"] + end["x"], box["y"] + end["y"], steps=5)
    mouse.up()
    mouse.move(box["x"] + 5, box["y"] + 5)
    assert page.picked() == (0, 8, 14)
    page.click(1, 5, 7)  # in the shown frame 1: query and target change places
    assert (page.picked(), page.get("frame"), page.marked(1)) == ((1, 5, 7), 0, (4, 9))
    page.click(page.page.locator(".tcx-thumb").nth(3), 7, 3)
    assert (page.picked(), page.marked(1)) == ((3, 7, 3), (4, 9))
    for key in ("ArrowRight", "ArrowDown", "Shift+ArrowLeft"):
        page.canvas(0).press(key)
    assert page.picked() == (3, 8, 0)  # 3 + 1 - 4
    page.canvas(1).press("ArrowUp")  # in the shown frame: it becomes the query
    assert page.picked() == (0, 7, 0)
    page.press("time: frame compared with the query", "ArrowLeft")
    assert (page.get("frame"), page.marked(1)) == (2, (9, 12))  # (7 + 2, 0 - 4 + 16)


@pytest.mark.browser
def test_temperature_and_top_k_change_the_map(page: Page) -> None:
    shown = [page.pixels(1)]
    for key in ("End", "Home"):
        page.press("temperature", key)
        shown.append(page.pixels(1))
    covered = [np.ptp(picture, axis=-1).mean() for picture in shown]  # the frame below is grey
    assert covered[2] <= covered[0] < 0.95 * covered[1]  # 0.01, 0.1, 1: the map widens
    page.press("top k", "Home")
    assert (page.get("temperature"), page.get("top_k")) == (0.01, 1)
    assert (page.pixels(1) != shown[2]).any()


@pytest.mark.browser
def test_cross_attention_reads_the_row_of_the_picked_patch_on_its_own_grid(page: Page) -> None:
    page.choose("Cross-attention")
    page.choose("head 1")
    page.click(0, 2, 13)  # of 10 x 16: row 1, column 6 of 5 x 8; head 1 looks one row further down
    assert "row 1, column 6. Best match in frame 1: row 2, column 6, attention 100.0 %" in page.status()
    assert page.marked(1) in [(4, 12), (5, 12), (4, 13), (5, 13)]  # the middle of that patch, on the fine grid
    page.choose("mean")
    assert "attention 51.2 %" in page.status()  # (1 + 1 / 40) / 2
    page.choose("frame 2")
    assert "not looked at" in page.status()


@pytest.mark.browser
def test_propagated_labels_are_read_out_and_names_stay_text(page: Page) -> None:
    page.choose("Propagated label")
    page.click(0, 3, 7)
    assert page.status().endswith(f"row 3, column 7: {NAUGHTY[1]}, 75 %.")
    page.click(0, 8, 1)
    assert page.status().endswith("background, 100 %.")
    assert page.page.title() == page.page.locator("h1").inner_text() == 'Clip <1> & "2" </title><script>x</script>'
    assert page.page.locator("img").count() == 0
    assert page.page.get_by_role("button", name=NAUGHTY[0]).count() == 1


@pytest.mark.browser
def test_it_adapts_to_a_narrow_cell_and_every_control_has_a_name(page: Page) -> None:
    page.page.set_viewport_size({"width": 380, "height": 900})
    page.settle()
    boxes = [page.canvas(i).bounding_box() for i in range(2)]
    assert boxes[1]["y"] > boxes[0]["y"] + boxes[0]["height"]  # below each other
    assert page.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    nameless = page.page.evaluate(
        "[...document.querySelectorAll('button, input, select, [tabindex]')].filter((node) =>"
        " !node.getAttribute('aria-label') && !node.textContent.trim() && !node.closest('label')).length"
    )
    assert nameless == 0


@pytest.mark.browser
def test_it_works_in_a_page_made_of_an_executed_notebook(browser: Any, tmp_path: Path) -> None:
    from nbconvert import HTMLExporter

    made = embed(executed_notebook(explorer()))
    assert [list(output.data) for output in made.cells[0].outputs] == [["text/html"], [VIEW, "text/plain"]]
    assert "widgets" not in made.metadata
    text, _ = HTMLExporter(require_js_url="", mathjax_url="").from_notebook_node(made)
    (tmp_path / "book.html").write_text(text, encoding="utf-8")
    page = Page(browser, tmp_path / "book.html")
    page.click(0, 2, 13)
    assert page.marked(1) == (3, 11)
    page.context.close()
    assert page.trouble == []
