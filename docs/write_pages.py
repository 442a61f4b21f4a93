"""Pages that are computed: README's tables from what is published, and three chapters of a run as markdown.

    python docs/write_pages.py [RUN]

Renews README's blocks from `results/published`; with a run's folder (results/quick) also docs/chapters from its notebooks.
"""

import base64
import io
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from nbconvert import MarkdownExporter
from nbformat import NotebookNode
from PIL import Image

from tcore_lib import fetch
from tcore_lib.files import read_json, write_text
from tcore_lib.params import project_root
from tcore_lib.reproduction import table
from tcore_lib.reproduction.book import executed

CHAPTERS = ("01_pretraining", "03_davis_evaluation", "06_attention_visualization")
SHOWN = ("quick", "released_checkpoints")  # published runs in README's table
SEEDS = ("quick", "quick_seed1", "quick_seed2")  # whose differences stand there: three seeds of one profile
ON_REAL_CLIPS = {  # name in results/reference -> what README calls it
    "pixels": "raw pixels, patches of 16",
    "pixels:8": "raw pixels, patches of 8",
    "random": "ViT-S/16, random initialisation",
    "small": "**shipped**: a small ViT, trained from scratch here",
    "vits14_real": "a real ViT-S/14 (DINOv2-S, lightly fine-tuned)",
    "continued_200": "that ViT-S/14, continued with T-CoRe for 200 steps",
}
COST_OF = "quick"  # the run whose stages stand in README's table of costs


def write_readme() -> None:
    """Renew every block of README.md that stands between `<!-- NAME:begin ... -->` and `<!-- NAME:end -->`."""
    path = project_root() / "README.md"
    text = path.read_text(encoding="utf-8")
    for name, block in blocks().items():
        old = re.search(rf"<!-- {name}:begin[^\n]*-->\n(.*?)<!-- {name}:end -->", text, re.DOTALL)
        if old:
            text = f"{text[: old.start(1)]}{block}\n{text[old.end(1) :]}"
    write_text(path, text)


def on_real_clips() -> pd.DataFrame:
    """What encoders reach on real clips, from `results/reference`, as text: a row per encoder, a column per benchmark."""
    columns = {}
    for name in ("davis", "jhmdb"):
        scores: dict[str, Any] = {}
        for folder in (name, f"continued/{name}"):
            scores |= read_json(project_root() / "results" / "reference" / folder / "summary.json")["scores"]
        known = {
            shown: scores[encoder][table.METRICS[name]] for encoder, shown in ON_REAL_CLIPS.items() if encoder in scores
        }
        columns[table.HEADINGS[name]] = {
            shown: table.text(score["value"], score["low"], score["high"]) for shown, score in known.items()
        }
    return (
        pd.DataFrame(columns, index=ON_REAL_CLIPS.values()).fillna(table.NOT_RUN).rename_axis("encoder").reset_index()
    )


def blocks() -> dict[str, str]:
    """README's blocks as markdown, by name."""
    shown = table.show(table.of_runs(map(table.published, SHOWN)))
    shown["run"] = [f"[{run}](results/published/{run})" if run else "" for run in shown["run"]]

    data = fetch.datasets_table()
    data["data"] = "[" + data["name"] + "](" + data["page"] + ")"
    data["layout"] = "`" + data["layout"] + "`"
    data["checksum"] = data["checksum"].str.replace(r"([0-9a-f]{8})[0-9a-f]+", r"\1…", regex=True)
    data["get it"] = [f"`{how}`" if how.startswith("tcore") else "by hand" for how in data["how"]]

    cost = table.provenance(table.published(COST_OF)).round(1).astype(str)
    cost["command"] = [f"`tcore reproduce {COST_OF} --only {stage[:2]}`" for stage in cost["stage"]]
    return {
        "table": table.markdown(shown),
        "differences": table.markdown(
            table.show_differences(pd.concat(map(table.differences, map(table.published, SEEDS))))
        ),
        "real": table.markdown(on_real_clips()),
        "data": table.markdown(data[["data", "use", "licence", "size", "checksum", "layout", "get it"]]),
        "cost": table.markdown(cost[["stage", "minutes", "peak memory, GB", "machine", "command"]]),
    }


def write_markdown(notebooks: dict[str, NotebookNode], target: Path) -> None:
    """Write notebooks as `<stage>.md` with pictures in `<stage>_files/`; earlier ones are replaced."""
    for stage in CHAPTERS:
        notebook = notebooks[stage]
        for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
            _lighten(output.get("data", {}))
        names = {"unique_key": stage, "output_files_dir": f"{stage}_files"}
        body, resources = MarkdownExporter().from_notebook_node(notebook, names)
        shutil.rmtree(target / f"{stage}_files", ignore_errors=True)
        (target / f"{stage}_files").mkdir(parents=True)
        for name, content in resources["outputs"].items():
            (target / name).write_bytes(content)
        write_text(target / f"{stage}.md", body)


def _lighten(data: dict[str, str]) -> None:
    """For a page that is read on a forge: pictures as small as they go, no style sheets, no scripts."""
    html = data.get("text/html", "")
    if "image/png" in data:
        stream, png = io.BytesIO(), base64.b64decode(data["image/png"])
        Image.open(io.BytesIO(png)).convert("RGB").save(stream, "JPEG", quality=72, subsampling=0, optimize=True)
        if stream.tell() < len(png):
            del data["image/png"]
            data["image/jpeg"] = base64.b64encode(stream.getvalue()).decode()
    if "<script" in html:
        data.clear()
        data["text/markdown"] = "*Interactive in the notebook, and in the book of a run.*"
    elif html:
        data["text/html"] = re.sub(r"<style.*?</style>", "", html, flags=re.DOTALL)


if __name__ == "__main__":
    write_readme()
    for run in sys.argv[1:]:
        write_markdown(executed(Path(run)), Path(__file__).parent / "chapters")
