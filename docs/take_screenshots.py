"""README's pictures: the correspondence explorer on a run's first benchmark clip, as a browser shows it.

    python docs/take_screenshots.py [PROFILE] [--output docs/explorer.png] [--pick FRAME ROW COLUMN] [--frame N] [--dark]

PROFILE is `explore` by default: the shipped encoder, so that only notebook 00 has to have run
(`tcore reproduce explore --only 0`). Needs Chromium (`apt-get install chromium`, or CHROMIUM=path).
"""

import argparse
import io
import os
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from tcore_lib import params
from tcore_lib.errors import InputError
from tcore_lib.files import atomic_path
from tcore_lib.reproduction import profile as profiles, scene as correspondences

WIDTHS = (1600, 1400, 1200, 1040, 900)  # pixels; the first one whose file is small enough
LIMIT = 300_000  # bytes


def photograph(page_file: Path, dark: bool) -> Image.Image:
    """The widget of a page, 1040 pixels wide at twice the resolution, without its last line."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        look = {"device_scale_factor": 2, "color_scheme": "dark" if dark else "light"}
        page = browser.new_page(viewport={"width": 1072, "height": 1200}, **look)
        page.goto(page_file.as_uri())
        page.wait_for_selector(".tcx[data-ready=true]")
        page.add_style_tag(content=".tcx-note { display: none } .tcx { border-radius: 0 }")
        page.wait_for_timeout(300)
        png = page.locator(".tcx").screenshot()
        browser.close()
    return Image.open(io.BytesIO(png)).convert("RGB")


def main() -> int:
    """Write the picture; 256 colours, and smaller if it must be, so that it stays below the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile", nargs="?", default="explore")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "explorer.png")
    parser.add_argument("--pick", type=int, nargs=3, metavar=("FRAME", "ROW", "COLUMN"))
    parser.add_argument("--frame", type=int, help="the frame compared with the query; the middle one by default")
    parser.add_argument("--dark", action="store_true")
    arguments = parser.parse_args()
    run = params.load(arguments.profile)
    scene = correspondences.scene(run)
    model = profiles.decoders(run).get("after training")
    widget = correspondences.explore(scene, profiles.encoders(run), model)
    widget.temperature = 0.05
    widget.encoder = "compare" if len(widget.encoders) > 1 else widget.encoders[0]
    widget.frame = len(scene.frames) // 2 if arguments.frame is None else arguments.frame
    if arguments.pick is not None:
        widget.pick = dict(zip(("frame", "row", "column"), arguments.pick, strict=True))
    with tempfile.TemporaryDirectory() as folder:
        picture = photograph(widget.to_html(Path(folder) / "explorer.html"), arguments.dark)
    for width in WIDTHS:
        small = picture.resize((width, round(width * picture.height / picture.width)), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        # Every colour of the scale has a place of its own, however few pixels it has: median cut would drop it.
        palette = small.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
        palette.save(stream, "PNG", optimize=True)
        if stream.tell() < LIMIT:
            break
    with atomic_path(arguments.output) as temporary:
        temporary.write_bytes(stream.getvalue())
    print(f"{arguments.output}: {width} pixels wide, {stream.tell() / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        sys.exit(str(error))
