"""The book of a run: its executed notebooks as one static site, written by nbconvert.

It needs no network: pictures stand in the pages, formulas are MathML, the explorer brings its own code. `book.html` is the
template of a page, `book.css` its style.
"""

import base64
import io
import re
from pathlib import Path

import jinja2
import latex2mathml.converter
import nbformat
import yaml
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from PIL import Image, ImageOps
from pygments.formatters import HtmlFormatter

from tcore_lib import runs
from tcore_lib.errors import InputError
from tcore_lib.files import write_text
from tcore_lib.reproduction import table
from tcore_lib.widgets.base import embed

TEMPLATE, STYLE = (Path(__file__).with_name(name) for name in ("book.html", "book.css"))
HIDDEN = {"parameters", "injected-parameters"}  # cells that the index shows as settings
CARD = (640, 400)  # pixels of a chapter's picture on the index


def book(run: str | Path, *, output: str | None = None) -> int:
    """Turn a run's executed notebooks into a site: one page a chapter, and an index with the table.

    Args:
        run: a run's folder, such as results/quick.
        output: folder of the site; RUN/book by default.
    """
    folder = Path(run).absolute()
    notebooks = executed(folder)
    target = Path(output or folder / "book")
    write_site(folder, notebooks, target)
    size = sum(path.stat().st_size for path in target.iterdir())
    print(f"{target} ({len(notebooks)} chapters, {size / 1e6:.1f} MB)")
    return 0


def executed(folder: Path) -> dict[str, NotebookNode]:
    """A run's executed notebooks by stage, without parameters, and with our widgets as HTML that needs no kernel."""
    paths = {stage: folder / "notebooks" / f"{stage}.ipynb" for stage in runs.STAGES}
    found = {stage: embed(nbformat.read(path, as_version=4)) for stage, path in paths.items() if path.is_file()}
    if not found:
        raise InputError(f"{folder} has no executed notebooks; run tcore reproduce first, or give another folder.")
    for notebook in found.values():
        notebook.cells = [cell for cell in notebook.cells if not HIDDEN & set(cell.metadata.get("tags", []))]
    return found


def title(notebook: NotebookNode) -> str:
    """The notebook's heading, without its number."""
    return re.sub(r"^# +(\d+ · )?", "", notebook.cells[0].source.partition("\n")[0])


def question(notebook: NotebookNode) -> str:
    """What the first cell says after **Question.**; "" where it does not."""
    found = re.search(r"\*\*Question\.\*\*\s*(.+)", notebook.cells[0].source)
    return found[1] if found else ""


def picture(notebook: NotebookNode) -> str:
    """The upper left part of the richest picture, as large as a card: JPEG in base64, "" where there is none."""
    shown = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    png = max((data["image/png"] for data in shown if "image/png" in data), key=len, default="")
    if not png:
        return ""
    stream, image = io.BytesIO(), Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    ImageOps.fit(image, CARD, centering=(0.0, 0.0)).save(stream, "JPEG", quality=72, subsampling=0, optimize=True)
    return base64.b64encode(stream.getvalue()).decode()


class _Renderer(IPythonRenderer):
    """Markdown as HTML, formulas as MathML, which browsers draw by themselves."""

    def inline_math(self, body: str) -> str:
        return latex2mathml.converter.convert(body)

    def block_math(self, body: str) -> str:
        return f'<div class="formula">{latex2mathml.converter.convert(body, display="block")}</div>'


def _markdown(source: str) -> str:
    return MarkdownWithMath(renderer=_Renderer(escape=False, exclude_anchor_links=True)).render(source)


def write_site(folder: Path, notebooks: dict[str, NotebookNode], target: Path) -> None:
    """Write `index.html` and one page per executed notebook (by stage) into `target`; the run's folder gives the tables."""
    records = runs.read_results(folder)
    settings = {name: section for record in records.values() for name, section in record["settings"].items()}
    tables = [
        table.show(table.of_runs([folder])).drop(columns="run"),
        table.show_differences(table.differences(folder)),
    ]
    template = jinja2.Template(TEMPLATE.read_text(encoding="utf-8"), autoescape=True)
    template.globals |= {
        "run": folder.name, "notebooks": notebooks, "stages": list(runs.STAGES), "style": STYLE.read_text(encoding="utf-8"),
        "code_light": HtmlFormatter(style="tango").get_style_defs(".highlight"),
        "code_dark": HtmlFormatter(style="github-dark").get_style_defs(".highlight"),
        "tables": tables, "provenance": table.provenance(folder).round(2), "yaml": yaml.safe_dump(settings, sort_keys=False),
        "heading": settings.get("run", {}).get("title", ""),
        "title": title, "question": question, "picture": picture, "markdown": _markdown,
    }  # fmt: skip
    no_prompts = {"exclude_input_prompt": True, "exclude_output_prompt": True}
    exporter = HTMLExporter(template_name="basic", filters={"markdown2html": _markdown}, **no_prompts)
    for stage, notebook in notebooks.items():
        write_text(target / f"{stage}.html", template.render(here=stage, body=exporter.from_notebook_node(notebook)[0]))
    write_text(target / "index.html", template.render())
