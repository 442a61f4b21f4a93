"""The book of a run: its executed notebooks as one static site, or some of them as markdown, written by nbconvert.

The site needs no network: pictures stand in the pages, formulas are MathML, the explorer brings its own code. `book.html` is the
template of a page, `book.css` its style.
"""

import base64
import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import latex2mathml.converter
import nbformat
import yaml
from nbconvert import HTMLExporter, MarkdownExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from PIL import Image
from pygments.formatters import HtmlFormatter

from tcore_lib import runs
from tcore_lib.errors import InputError
from tcore_lib.files import write_text
from tcore_lib.reproduction import table
from tcore_lib.widgets.base import embed

TEMPLATE, STYLE = (Path(__file__).with_name(name) for name in ("book.html", "book.css"))
CHAPTERS = "01,03,06"  # what is kept as markdown
HIDDEN = {"parameters", "injected-parameters"}  # cells that the index shows as settings
CARD = (640, 400)  # pixels of a chapter's picture on the index


def book(run: str | Path, *, output: str | None = None, markdown: str | None = None, only: str = CHAPTERS) -> int:
    """Turn a run's executed notebooks into a site: one page a chapter, and an index with the table.

    Args:
        run: a run's folder, such as results/quick.
        output: folder of the site; RUN/book by default.
        markdown: write chapters as markdown with pictures into this folder, instead of the site.
        only: the chapters that become markdown.

    """
    folder = Path(run).absolute()
    chosen = (
        [number.strip().zfill(2) for number in only.split(",")] if markdown else [stage[:2] for stage in runs.STAGES]
    )
    paths = {stage: folder / "notebooks" / f"{stage}.ipynb" for stage in runs.STAGES if stage[:2] in chosen}
    notebooks = {stage: nbformat.read(path, as_version=4) for stage, path in paths.items() if path.is_file()}
    if not notebooks:
        raise InputError(f"{folder} has no such executed notebooks; run tcore reproduce first, or give another folder.")
    target = Path(markdown or output or folder / "book")
    if markdown:
        write_markdown(notebooks, target)
    else:
        write_site(folder, notebooks, target)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target} ({len(notebooks)} chapters, {size / 1e6:.1f} MB)")
    return 0


# --- what a notebook shows --------------------------------------------------------------------------------------------


def readable(notebook: NotebookNode) -> NotebookNode:
    """A copy for readers: without parameter cells, and with our widgets as HTML that works without kernel and network."""
    notebook = embed(notebook)
    notebook.cells = [cell for cell in notebook.cells if not HIDDEN & set(cell.metadata.get("tags", []))]
    return notebook


def title(notebook: NotebookNode) -> str:
    """The notebook's heading, without its number."""
    return re.sub(r"^# +(\d+ · )?", "", notebook.cells[0].source.partition("\n")[0])


def question(notebook: NotebookNode) -> str:
    """What the first cell says after **Question.**; "" where it does not."""
    found = re.search(r"\*\*Question\.\*\*\s*(.+)", notebook.cells[0].source)
    return found[1] if found else ""


def picture_of(notebook: NotebookNode) -> str:
    """The upper part of the largest picture, as wide as a card: JPEG in base64, "" where there is none."""
    shown = [output.data["image/png"] for output in _outputs(notebook) if "image/png" in output.get("data", {})]
    pictures = [Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA") for data in shown]
    if not pictures:
        return ""
    largest = max(pictures, key=lambda picture: picture.width * picture.height)
    flat = Image.alpha_composite(Image.new("RGBA", largest.size, "white"), largest).convert("RGB")
    flat = flat.resize((CARD[0], round(CARD[0] * flat.height / flat.width)), Image.Resampling.LANCZOS)
    return base64.b64encode(_jpeg(flat.crop((0, 0, CARD[0], min(CARD[1], flat.height))))).decode()


def _outputs(notebook: NotebookNode) -> Iterator[NotebookNode]:
    for cell in notebook.cells:
        yield from cell.get("outputs", [])


def _jpeg(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=72, subsampling=0, optimize=True)
    return stream.getvalue()


# --- the site ---------------------------------------------------------------------------------------------------------


class _Renderer(IPythonRenderer):
    """Markdown as HTML, formulas as MathML, which browsers draw by themselves."""

    def inline_math(self, body: str) -> str:
        return latex2mathml.converter.convert(body)

    def block_math(self, body: str) -> str:
        return f'<div class="formula">{latex2mathml.converter.convert(body, display="block")}</div>'


def _markdown(source: str) -> str:
    return MarkdownWithMath(renderer=_Renderer(escape=False, exclude_anchor_links=True)).render(source)


def write_site(folder: Path, notebooks: dict[str, NotebookNode], target: Path) -> None:
    """Write `index.html` and one page per executed notebook (by stage) into `target`; the run's folder gives the table."""
    template = jinja2.Template(TEMPLATE.read_text(encoding="utf-8"), autoescape=True)
    common = {
        "run": folder.name, "notebooks": notebooks, "title": title, "style": STYLE.read_text(encoding="utf-8"),
        "code_light": HtmlFormatter(style="tango").get_style_defs(".highlight"),
        "code_dark": HtmlFormatter(style="github-dark").get_style_defs(".highlight"),
    }  # fmt: skip
    no_prompts = {"exclude_input_prompt": True, "exclude_output_prompt": True}
    exporter = HTMLExporter(template_name="basic", filters={"markdown2html": _markdown}, **no_prompts)
    stages = list(notebooks)
    for number, (stage, notebook) in enumerate(notebooks.items()):
        body, _ = exporter.from_notebook_node(readable(notebook))
        around = stages[max(0, number - 1) : number] + stages[number + 1 : number + 2]
        page = template.render(common, heading=title(notebook), here=stage, body=body, around=around)
        write_text(target / f"{stage}.html", page)
    index = template.render(common, heading=f"T-CoRe: {folder.name}", **_index(folder))
    write_text(target / "index.html", index)


def _index(folder: Path) -> dict[str, Any]:
    """What the first page shows: facts, tables, a card for every chapter, settings."""
    records = runs.read_results(folder)
    origins = [record["provenance"] for record in records.values()]
    settings = {name: section for record in records.values() for name, section in record["settings"].items()}
    tables, facts = [table.show(table.of_runs([folder])).drop(columns="run")], {}
    if len(ahead := table.differences(folder)):
        tables.append(table.show_differences(ahead))
    if origins:
        last = max(origins, key=lambda origin: str(origin["finished"]))
        facts = {
            "notebooks": f"{len(records)} of {len(runs.STAGES)}",
            "training": records.get("01_pretraining", {}).get("result", {}).get("description", table.NOT_RUN),
            "time": f"{sum(origin['seconds'] for origin in origins) / 60:.1f} minutes",
            "machine": runs.machine(last),
            "finished": str(last["finished"]).replace("T", " ").replace("+00:00", " UTC"),
            "code": runs.commit(last),
        }
    return {
        "tables": tables, "facts": facts, "settings": settings, "yaml": yaml.safe_dump(settings, sort_keys=False),
        "stages": list(runs.STAGES), "question": question, "picture_of": picture_of, "markdown": _markdown,
    }  # fmt: skip


# --- markdown ---------------------------------------------------------------------------------------------------------


def write_markdown(notebooks: dict[str, NotebookNode], target: Path) -> None:
    """Write notebooks as `<stage>.md` with pictures in `<stage>_files/`; earlier ones are replaced."""
    for stage, notebook in notebooks.items():
        shown = readable(notebook)
        for output in _outputs(shown):
            _lighten(output)
        names = {"unique_key": stage, "output_files_dir": f"{stage}_files"}
        body, resources = MarkdownExporter().from_notebook_node(shown, names)
        body, drawings = _drawings(body, f"{stage}_files")
        shutil.rmtree(target / f"{stage}_files", ignore_errors=True)
        (target / f"{stage}_files").mkdir(parents=True)
        for name, content in (resources["outputs"] | drawings).items():
            (target / name).write_bytes(content)
        write_text(target / f"{stage}.md", body)


def _drawings(body: str, folder: str) -> tuple[str, dict[str, bytes]]:
    """Markdown whose embedded SVGs, which a forge does not show, are files of `folder`; and the files."""
    parts = re.split(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", body)  # text, drawing, text, ...
    files = {f"{folder}/drawing_{i}.svg": base64.b64decode(drawing) for i, drawing in enumerate(parts[1::2])}
    parts[1::2] = list(files)
    return "".join(parts), files


def _lighten(output: NotebookNode) -> None:
    """For a page that is read on a forge: pictures as small as they go, no style sheets, no scripts."""
    data = output.get("data", {})
    if "image/png" in data:
        png = base64.b64decode(data.pop("image/png"))
        jpeg = _jpeg(Image.open(io.BytesIO(png)).convert("RGB"))
        kind, content = ("image/png", png) if len(png) <= len(jpeg) else ("image/jpeg", jpeg)
        data[kind] = base64.b64encode(content).decode()
    if "<script" in data.get("text/html", ""):
        output.data = nbformat.from_dict({"text/markdown": "*Interactive in the notebook, and in the book of a run.*"})
    elif "text/html" in data:
        data["text/html"] = re.sub(r"<style.*?</style>", "", data["text/html"], flags=re.DOTALL)
