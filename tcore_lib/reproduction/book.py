"""The book of a run: its executed notebooks as one static site, or some of them as markdown, written by nbconvert.

The site needs no network and opens from disk: pictures stand in the pages, formulas are MathML, the explorer brings its own code.
"""

import base64
import html
import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import latex2mathml.converter
import nbformat
import pandas as pd
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

STYLE = Path(__file__).with_name("book.css")
CHAPTERS = "01,03,06"  # what is kept as markdown
HIDDEN = ("parameters", "injected-parameters")  # cells that the index shows as settings
CARD = (640, 400)  # pixels of a chapter's picture on the index


def book(run: str | Path, *, output: str | None = None, markdown: str | None = None, only: str = CHAPTERS) -> int:
    """Turn a run's executed notebooks into a site: one page a chapter, and an index with the table.

    Args:
        run: a run's folder, such as results/quick.
        output: folder of the site; RUN/book by default.
        markdown: write chapters as markdown with pictures into this folder, instead of the site.
        only: the chapters that become markdown.

    Returns:
        The exit code, 0.

    Raises:
        InputError: no notebook of the run has been executed.
    """
    folder = Path(run).absolute()
    found = {path.stem: nbformat.read(path, as_version=4) for path in sorted((folder / "notebooks").glob("*.ipynb"))}
    notebooks = {stage: found[stage] for stage in runs.STAGES if stage in found}
    if not notebooks:
        raise InputError(
            f"{folder} has no executed notebooks; run tcore reproduce first, or give another run's folder."
        )
    if markdown:
        chosen = [number.strip().zfill(2) for number in only.split(",")]
        written = write_markdown(
            {stage: notebooks[stage] for stage in notebooks if stage[:2] in chosen}, Path(markdown)
        )
    else:
        written = write_site(folder, notebooks, Path(output) if output else folder / "book")
    size = sum(path.stat().st_size for path in written[0].parent.rglob("*") if path.is_file())
    print(f"{written[0]} ({len(written)} pages, {size / 1e6:.1f} MB)")
    return 0


# --- what a notebook shows --------------------------------------------------------------------------------------------


def title(notebook: NotebookNode) -> str:
    """The notebook's first heading, without its number."""
    lines = (line for cell in notebook.cells if cell.cell_type == "markdown" for line in cell.source.splitlines())
    heading = next((line for line in lines if line.startswith("# ")), "# untitled")
    return re.sub(r"^# +(\d+ · )?", "", heading)


def question(notebook: NotebookNode) -> str:
    """What the first cell says after **Question.**; "" where it does not."""
    found = re.search(r"\*\*Question\.\*\*\s*(.+)", notebook.cells[0].source)
    return found[1] if found else ""


def readable(notebook: NotebookNode) -> NotebookNode:
    """A copy for readers: without parameter cells, and with our widgets as HTML that works without kernel and network."""
    notebook = embed(notebook)
    notebook.cells = [cell for cell in notebook.cells if not set(HIDDEN) & set(cell.metadata.get("tags", []))]
    return notebook


def pictures(notebook: NotebookNode) -> list[Image.Image]:
    """Every PNG that the notebook shows."""
    found = [output.data["image/png"] for output in _outputs(notebook) if "image/png" in output.get("data", {})]
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


def _outputs(notebook: NotebookNode) -> Iterator[NotebookNode]:
    for cell in notebook.cells:
        yield from cell.get("outputs", [])


# --- the site ---------------------------------------------------------------------------------------------------------


class _Renderer(IPythonRenderer):
    """Markdown as HTML, formulas as MathML, which browsers draw by themselves."""

    def inline_math(self, body: str) -> str:
        return latex2mathml.converter.convert(body)

    def block_math(self, body: str) -> str:
        return f'<div class="formula">{latex2mathml.converter.convert(body, display="block")}</div>'


def _markdown(source: str) -> str:
    return MarkdownWithMath(renderer=_Renderer(escape=False, exclude_anchor_links=True)).render(source)


def write_site(folder: Path, notebooks: dict[str, NotebookNode], target: Path) -> list[Path]:
    """Write `index.html` and one page per notebook.

    Args:
        folder: the run's folder, for the table.
        notebooks: stage -> executed notebook.
        target: folder of the site; pages of an earlier one are replaced.

    Returns:
        The pages, the index first.
    """
    exporter = HTMLExporter(
        template_name="basic",
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        filters={"markdown2html": _markdown},
    )
    pages, stages = {}, list(notebooks)
    for number, stage in enumerate(stages):
        body, _ = exporter.from_notebook_node(readable(notebooks[stage]))
        around = [
            (stages[place], notebooks[stages[place]]) for place in (number - 1, number + 1) if 0 <= place < len(stages)
        ]
        links = "".join(f'<a href="{name}.html">{html.escape(title(other))}</a>' for name, other in around)
        text = f'<article>{body}</article><nav class="turn">{links}</nav>'
        pages[f"{stage}.html"] = _page(title(notebooks[stage]), folder.name, notebooks, stage, text)
    pages["index.html"] = _page(f"T-CoRe: {folder.name}", folder.name, notebooks, "", _index(folder, notebooks))
    for name, page in pages.items():
        write_text(target / name, page)
    return [target / "index.html", *(target / f"{stage}.html" for stage in stages)]


def _page(heading: str, run: str, notebooks: dict[str, NotebookNode], here: str, body: str) -> str:
    """A whole page: style, bar with all chapters, body."""
    links = [f'<a href="{stage}.html"{" class=here" * (stage == here)}>{stage[:2]}</a>' for stage in notebooks]
    code = "\n".join([
        HtmlFormatter(style="tango").get_style_defs(".highlight"),
        f"@media (prefers-color-scheme: dark) {{ {HtmlFormatter(style='github-dark').get_style_defs('.highlight')} }}",
    ])  # fmt: skip
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(heading)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>\n{code}\n{STYLE.read_text(encoding='utf-8')}</style></head>\n"
        f'<body><nav class="bar"><a href="index.html">{html.escape(run)}</a><span>{"".join(links)}</span></nav>\n'
        f"<main>{body}</main></body></html>\n"
    )


def _index(folder: Path, notebooks: dict[str, NotebookNode]) -> str:
    """The first page: facts, the table, a card for every chapter, settings."""
    records = runs.read_results(folder)
    settings = {name: section for record in records.values() for name, section in record["settings"].items()}
    lead = ": ".join(filter(None, [f"run {folder.name}", settings.get("run", {}).get("title")]))
    parts = [f"<h1>T-CoRe in eight notebooks</h1><p class=lead>{html.escape(lead)}</p>"]
    if records:
        parts += [_facts(records), _table(table.show(table.of_runs([folder])).drop(columns="run"))]
        parts.append("<p class=note>Percent, in brackets the 95 % interval over clips. <i>paper</i>: the authors' figures; "
                     "<i>reproduced</i>: the same rows as measured here; <i>ours</i>: every other encoder, not comparable with "
                     "the paper where clips are rendered.</p>")  # fmt: skip
        ahead = table.differences(folder)
        parts += [_table(table.show_differences(ahead))] if len(ahead) else []
    parts.append(
        f"<h2>Chapters</h2><div class=cards>{''.join(_card(stage, notebooks.get(stage)) for stage in runs.STAGES)}</div>"
    )
    text = html.escape(yaml.safe_dump(settings, sort_keys=False))
    parts.append(
        f"<h2>Settings</h2><details><summary>all of them, defaults filled in</summary><pre>{text}</pre></details>"
    )
    return "\n".join(parts)


def _facts(records: dict[str, dict[str, Any]]) -> str:
    origins = [record["provenance"] for record in records.values()]
    last = runs.latest(records)
    facts = {
        "notebooks": f"{len(records)} of {len(runs.STAGES)}",
        "training": records.get("01_pretraining", {}).get("result", {}).get("description", table.NOT_RUN),
        "time": f"{sum(origin['seconds'] for origin in origins) / 60:.1f} minutes",
        "machine": runs.machine(last),
        "finished": str(last["finished"]).replace("T", " ").replace("+00:00", " UTC"),
        "code": runs.commit(last),
    }
    return (
        "<dl>"
        + "".join(f"<div><dt>{name}</dt><dd>{html.escape(str(fact))}</dd></div>" for name, fact in facts.items())
        + "</dl>"
    )


def _table(shown: pd.DataFrame) -> str:
    return f'<div class="wide">{shown.to_html(index=False, border=0)}</div>'


def _card(stage: str, notebook: NotebookNode | None) -> str:
    """A chapter on the index: its title, its question, its largest picture."""
    if notebook is None:
        return f"<div class=card><h3><b>{stage[:2]}</b> {stage[3:].replace('_', ' ')}</h3><p>{table.NOT_RUN}</p></div>"
    shown = max(pictures(notebook), key=lambda picture: picture.width * picture.height, default=None)
    image = f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(_thumbnail(shown)).decode()}">' if shown else ""
    text = f"<h3><b>{stage[:2]}</b> {html.escape(title(notebook))}</h3>{_markdown(question(notebook))}"
    return f'<a class=card href="{stage}.html">{image}{text}</a>'


def _thumbnail(picture: Image.Image) -> bytes:
    """The upper part of a picture, as wide as a card, as JPEG on white."""
    flat = Image.new("RGB", picture.size, "white")
    flat.paste(picture, mask=picture.getchannel("A") if "A" in picture.getbands() else None)
    flat = flat.resize((CARD[0], round(CARD[0] * flat.height / flat.width)), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    flat.crop((0, 0, CARD[0], min(CARD[1], flat.height))).save(stream, "JPEG", quality=85)
    return stream.getvalue()


# --- markdown ---------------------------------------------------------------------------------------------------------


def write_markdown(notebooks: dict[str, NotebookNode], target: Path) -> list[Path]:
    """Write notebooks as `<stage>.md` with pictures in `<stage>_files/`; earlier ones are replaced. Returns the pages."""
    written = []
    for stage, notebook in notebooks.items():
        shown = readable(notebook)
        for output in _outputs(shown):
            _lighten(output)
        body, resources = MarkdownExporter().from_notebook_node(
            shown, {"unique_key": stage, "output_files_dir": f"{stage}_files"}
        )
        shutil.rmtree(target / f"{stage}_files", ignore_errors=True)
        for name, content in resources["outputs"].items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(content)
        write_text(target / f"{stage}.md", body)
        written.append(target / f"{stage}.md")
    if not written:
        raise InputError("None of these chapters has been executed; see --only.")
    return written


def _lighten(output: NotebookNode) -> None:
    """For a page that is read on a forge: pictures as small as they go, no style sheets, no scripts."""
    data = output.get("data", {})
    if "image/png" in data:
        png = base64.b64decode(data.pop("image/png"))
        stream = io.BytesIO()
        Image.open(io.BytesIO(png)).convert("RGB").save(stream, "JPEG", quality=85, subsampling=0, optimize=True)
        kind, content = min(("image/png", png), ("image/jpeg", stream.getvalue()), key=lambda pair: len(pair[1]))
        data[kind] = base64.b64encode(content).decode()
    if "<script" in data.get("text/html", ""):
        output.data = nbformat.from_dict({"text/markdown": "*Interactive in the notebook, and in the book of a run.*"})
    elif "text/html" in data:
        data["text/html"] = re.sub(r"<style.*?</style>", "", data["text/html"], flags=re.DOTALL)
