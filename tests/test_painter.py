"""The mask painter: what its buttons do in Python, and painting in the exported page in a real browser."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tcore_lib.errors import InputError
from tcore_lib.model.encoders import load_encoder
from tcore_lib.params import Davis
from tcore_lib.widgets.painter import MaskPainter, mask_propagator

N, H, W = 3, 60, 96
SQUARE = np.zeros((H, W), np.uint8)
SQUARE[20:40, 30:60] = 1


def frames() -> list[np.ndarray]:
    return [np.full((H, W, 3), 60 + 20 * n, np.uint8) for n in range(N)]


def move_right(mask: np.ndarray) -> Iterator[np.ndarray]:
    """Labels of frame n: the mask moved by 5 n pixels."""
    for n in range(N):
        yield np.roll(mask, 5 * n, axis=1)


def painter(messages: list[dict[str, Any]] | None = None, **more: Any) -> MaskPainter:
    widget = MaskPainter(frames(), more.pop("propagate", move_right), **more)
    if messages is not None:
        widget.send = lambda content, buffers=(): messages.append(content | {"buffers": list(buffers)})  # type: ignore[method-assign]
    return widget


def press(widget: MaskPainter, kind: str, *buffers: bytes) -> None:
    """What arrives when a button is pressed in the browser."""
    widget._on_message(widget, {"kind": kind}, [memoryview(buffer) for buffer in buffers])


# ---- in Python ------------------------------------------------------------------------------------------------------


def test_propagate_reports_every_frame_and_keeps_the_labels() -> None:
    messages: list[dict[str, Any]] = []
    widget = painter(messages)
    press(widget, "propagate", SQUARE.tobytes())
    assert [message["kind"] for message in messages] == ["started", "frame", "frame", "frame", "done"]
    assert messages[2]["text"] == "frame 2 of 3"
    np.testing.assert_array_equal(widget.labels, [np.roll(SQUARE, 5 * n, axis=1) for n in range(N)])
    np.testing.assert_array_equal(widget.mask, SQUARE)
    assert sum(widget._results_meta["lengths"]) == len(widget._results)  # what a re-opened notebook shows


def test_errors_are_told_in_the_widget_and_bugs_are_raised() -> None:
    messages: list[dict[str, Any]] = []
    press(painter(messages), "propagate", bytes(H * W))
    press(painter(messages, propagate=lambda mask: [mask] * 2), "propagate", SQUARE.tobytes())
    press(painter(messages), "propagate", bytes(5))
    press(painter(messages, output="x"), "save")
    with pytest.raises(ZeroDivisionError):
        press(painter(messages, propagate=lambda mask: [1 // 0]), "propagate", SQUARE.tobytes())
    for message, text in zip((message["text"] for message in messages if message["kind"] == "error"), (
        "nothing is painted", "propagate gives 2 label maps for a clip of 3 frames", "the browser sent 5 pixels",
        "there is no result to save yet", "ZeroDivisionError: integer division",
    ), strict=True):  # fmt: skip
        assert message.startswith(text)
    with pytest.raises(InputError, match=r"the mask is \(4, 4\) pixels, the frames are \(60, 96\)"):
        painter().mask = np.zeros((4, 4))


def test_saved_masks_are_palette_files(tmp_path: Path) -> None:
    messages: list[dict[str, Any]] = []
    widget = painter(messages, mask=SQUARE, output=tmp_path / "out")
    widget.run()
    press(widget, "save")
    paths = sorted((tmp_path / "out/masks").iterdir())
    assert [path.name for path in paths] == ["00000.png", "00001.png", "00002.png"]
    with Image.open(paths[1]) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.array(image), np.roll(SQUARE, 5, axis=1))


def test_an_encoder_carries_a_painted_object_along() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    clip = [np.roll(picture, n, axis=1).repeat(16, 0).repeat(16, 1) for n in range(N)]  # a patch to the right per frame
    mask = np.zeros((64, 96), np.uint8)
    mask[16:48, 16:48] = 1
    settings = Davis(input_size=(71, 100), top_k=1)  # floored to whole patches
    for n, found in enumerate(mask_propagator(load_encoder("pixels"), clip, settings)(mask)):
        assert (found == np.roll(mask, 16 * n, axis=1)).mean() > 0.95  # the linear resize rounds the corners
        assert found[32, 32 + 16 * n] == 1


# ---- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    path = painter(output="somewhere").to_html(tmp_path_factory.mktemp("page") / "painter.html", "Painter")
    opened = browser.new_page(viewport={"width": 1000, "height": 1000})
    trouble: list[str] = []
    opened.on("console", lambda message: trouble.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: trouble.append(str(error)))
    opened.goto(path.as_uri())
    opened.wait_for_selector(".tcx[data-ready=true]")
    yield opened
    assert trouble == []


def mask_in(page: Any) -> np.ndarray:
    values = page.evaluate("[...new Uint8Array(document.getElementById('explorer').model.get('_mask').buffer)]")
    return np.array(values, np.uint8).reshape(H, W)


def drag(page: Any, *points: tuple[float, float]) -> None:
    """Press, move through and release at points (x, y) of the frame."""
    box = page.locator(".tcx-canvas").bounding_box()
    to_page = [(box["x"] + x * box["width"] / W, box["y"] + y * box["height"] / H) for x, y in points]
    page.mouse.move(*to_page[0])
    page.mouse.down()
    for x, y in to_page[1:]:
        page.mouse.move(x, y, steps=4)
    page.mouse.up()


@pytest.mark.browser
def test_brush_eraser_and_undo_write_the_mask(page: Any) -> None:
    page.get_by_role("button", name="Clear").click()
    page.get_by_label("brush radius").fill("4")
    drag(page, (20, 30), (60, 30))
    brush = mask_in(page)
    assert brush[30, 20:60].all()
    assert (np.argwhere(brush).min(0).tolist(), np.argwhere(brush).max(0).tolist()) == ([26, 16], [33, 63])  # 4 around
    page.get_by_role("button", name="2", exact=True).click()
    drag(page, (80, 10), (80, 50))
    two = mask_in(page)
    assert (two == 2).sum() == pytest.approx(8 * 40 + np.pi * 16, rel=0.1)
    assert ((two == 2).any(0).nonzero()[0] == np.arange(76, 84)).all()
    page.get_by_role("button", name="Eraser").click()
    drag(page, (50, 5), (50, 55))
    assert (mask_in(page)[:, 46:54] == 0).all()
    page.get_by_role("button", name="Take back").click()
    np.testing.assert_array_equal(mask_in(page), two)
    assert page.locator(".tcx-status").inner_text().startswith("Objects: 2.")


@pytest.mark.browser
def test_the_button_sends_the_mask_and_shows_what_comes_back(page: Any) -> None:
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("button", name="1", exact=True).click()
    drag(page, (30, 30), (50, 30))
    page.get_by_role("button", name="Propagate").click()
    assert (
        page.locator(".tcx-status").inner_text() == "Asked the kernel. If nothing follows, it is busy or does not run."
    )
    sent = page.evaluate("[...new Uint8Array(document.getElementById('explorer').sent.at(-1).buffers[0])]")
    np.testing.assert_array_equal(np.array(sent, np.uint8).reshape(H, W), mask_in(page))
    messages: list[dict[str, Any]] = []
    widget = painter(messages)
    press(widget, "propagate", bytes(sent))
    for message in messages:
        buffers = [list(buffer) for buffer in message.pop("buffers")]
        script = "([content, buffers]) => document.getElementById('explorer').deliver(content, buffers.map((b) => new DataView(Uint8Array.from(b).buffer)))"  # noqa: E501
        page.evaluate(script, [message, buffers])
    page.wait_for_function("document.querySelector('.tcx-status').textContent === '3 frames labelled.'")
    page.wait_for_timeout(100)
    assert page.get_by_role("button", name="Propagate").is_enabled()
    page.get_by_label("time: frame shown").press("End")
    page.wait_for_timeout(100)
    script = (
        "(c) => [32, 50].map((x) => [...c.getContext('2d').getImageData(c.width * x / 96, c.height / 2, 1, 1).data])"
    )
    left, painted = page.locator(".tcx-canvas").evaluate(script)
    assert left[2] == left[0]
    assert painted[2] > painted[0] + 50  # painted 30 to 50, in frame 2 ten further right
