"""What both widgets share: their browser side needs only its state, so it also lives in a page without kernel and network."""

import base64
import copy
import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anywidget

from tcore_lib import files

HERE = Path(__file__).parent
STYLE = (HERE / "widget.css").read_text(encoding="utf-8")
VIEW = "application/vnd.jupyter.widget-view+json"
STATE = "application/vnd.jupyter.widget-state+json"


def module(name: str) -> str:
    """The browser module of a widget: the shared part, then its own; one text, because a page cannot import files."""
    return "".join((HERE / part).read_text(encoding="utf-8") for part in ("widget.js", name))


class StandaloneWidget(anywidget.AnyWidget):
    """A widget whose browser side needs nothing but its state. Traits of subclasses are what it reads."""

    def _state(self) -> dict[str, Any]:
        own = {name for kind in type(self).__mro__ if issubclass(kind, StandaloneWidget) for name in vars(kind)}
        return {name: getattr(self, name) for name in self.traits(sync=True) if name in own}

    def to_html(self, path: str | Path, title: str = "Correspondence explorer") -> Path:
        """Write one self-contained page that opens from disk, without a network; `title` is also its heading."""
        state = {
            key: {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value
            for key, value in self._state().items()
        }
        heading = html.escape(title)
        files.write_text(
            path,
            "<!doctype html>\n<html lang='en' class='tcx-page'><head><meta charset='utf-8'>\n"
            "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
            f"<title>{heading}</title></head>\n<body><h1>{heading}</h1>\n"
            f"{fragment('explorer', state, str(self._esm), str(self._css))}</body></html>\n",
        )
        return Path(path)


def fragment(name: str, state: Mapping[str, Any], program: str, style: str) -> str:
    """A widget as a piece of HTML that works by itself; `name` is the id of its element, bytes are `{"base64": text}`."""
    # `<` cannot close the script element it stands in when it is written as an escape of JSON.
    text = json.dumps(state, allow_nan=False).replace("<", "\\u003c")
    host = (HERE / "host.js").read_text(encoding="utf-8").replace("ID", name)
    return (
        f"<style>{style}</style>\n<div id='{name}'></div>\n"
        f"<script type='application/json' id='{name}-state'>{text}</script>\n"
        f"<script type='module'>\n{program.replace('export default', 'const widget =', 1)}{host}</script>\n"
    )


def embed(notebook: Any) -> Any:
    """A copy of an executed notebook in which our widgets are plain HTML that works without kernel and network.

    Each output that shows one of our widgets becomes `text/html`, made of the state that Jupyter has saved in the notebook's
    metadata. The metadata goes, so that nbconvert loads no widget manager from the internet; widgets of others stay as they are.
    """
    notebook = copy.deepcopy(notebook)
    models = notebook.metadata.pop("widgets", {}).get(STATE, {}).get("state", {})
    outputs = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if VIEW in output.get("data", {})
    ]
    for number, output in enumerate(outputs):
        model = models.get(output.data[VIEW]["model_id"], {})
        traits = dict(model.get("state", {}))
        if not str(traits.get("_anywidget_id", "")).startswith("tcore_lib."):
            continue
        traits |= {buffer["path"][0]: {"base64": buffer["data"]} for buffer in model.get("buffers", [])}
        program, style = traits.pop("_esm"), traits.pop("_css")
        output.data = {"text/html": fragment(f"widget-{number}", traits, program, style)}
    return notebook
