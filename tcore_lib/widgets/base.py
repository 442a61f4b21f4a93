"""What both notebook widgets share: their browser side needs only its state, so it also lives in a plain HTML page."""

import base64
import html
import json
from pathlib import Path
from typing import Any

import anywidget

from tcore_lib import files
from tcore_lib.errors import InputError

HERE = Path(__file__).parent
STYLE = (HERE / "widget.css").read_text(encoding="utf-8")

# The part of anywidget's model that a widget uses, for a page without a kernel.
HOST = """
const state = JSON.parse(document.getElementById("%(id)s-state").textContent);
for (const [name, value] of Object.entries(state)) {
  if (value && value.base64 !== undefined) {
    const text = atob(value.base64);
    state[name] = new DataView(Uint8Array.from(text, (c) => c.charCodeAt(0)).buffer);
  }
}
const listeners = {};
const sent = [];
const model = {
  get: (name) => state[name],
  set: (name, value) => {
    state[name] = value;
    (listeners["change:" + name] || []).slice().forEach((run) => run());
  },
  save_changes: () => {},
  send: (content, callbacks, buffers) => sent.push({ content, buffers }),
  on: (event, run) => (listeners[event] = listeners[event] || []).push(run),
  off: (event, run) => (listeners[event] = (listeners[event] || []).filter((known) => known !== run)),
};
const el = document.getElementById("%(id)s");
el.model = model;
el.sent = sent;
el.deliver = (content, buffers) => (listeners["msg:custom"] || []).forEach((run) => run(content, buffers));
widget.render({ model, el });
"""


def module(name: str) -> str:
    """The browser module of a widget: the shared part, then its own; one text, because a page cannot import files."""
    return "".join((HERE / part).read_text(encoding="utf-8") for part in ("widget.js", name))


class StandaloneWidget(anywidget.AnyWidget):
    """A widget whose browser side needs nothing but its state, and that can therefore be written into an HTML page."""

    def _state(self) -> dict[str, Any]:
        """The traits that the browser side reads."""
        return {name: getattr(self, name) for name, trait in self.traits(sync=True).items() if _is_own(self, name)}

    @property
    def payload_bytes(self) -> int:
        """Size in bytes of what the browser gets, besides about 30 kB of program."""
        return sum(
            len(value) if isinstance(value, bytes) else len(json.dumps(value)) for value in self._state().values()
        )

    def to_fragment(self, name: str = "explorer") -> str:
        """The widget as a piece of HTML, to be put into a page's body; nothing is loaded from elsewhere.

        Args:
            name: the id of its element; letters, digits and hyphens, different for every widget of a page.
        """
        if not name.replace("-", "").isalnum():
            raise InputError(f"the element name {name!r} may only hold letters, digits and hyphens.")
        state = {
            key: {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value
            for key, value in self._state().items()
        }
        # `<` cannot close the script element it stands in when it is written as an escape of JSON.
        text = json.dumps(state, allow_nan=False).replace("<", "\\u003c")
        program = str(self._esm).replace("export default", "const widget =", 1)
        return (
            f"<style>{self._css}</style>\n<div id='{name}'></div>\n"
            f"<script type='application/json' id='{name}-state'>{text}</script>\n"
            f"<script type='module'>\n{program}\n{HOST % {'id': name}}</script>\n"
        )

    def to_html(self, path: str | Path, title: str = "Correspondence explorer") -> Path:
        """Write one self-contained page that opens from disk, without a network.

        Args:
            path: the file to write; its folder is made.
            title: heading and title of the page.
        """
        heading = html.escape(title)
        files.write_text(
            path,
            "<!doctype html>\n<html lang='en' class='tcx-page'><head><meta charset='utf-8'>\n"
            "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
            f"<title>{heading}</title>\n<style>:root {{ color-scheme: light dark; background: var(--tcx-paper) }}\n"
            "body { max-width: 1400px; margin: 0 auto; padding: 16px; color: var(--tcx-ink) }\n"
            "h1 { font: 600 19px system-ui, 'DejaVu Sans', sans-serif; margin: 4px 0 14px }</style></head>\n"
            f"<body><h1>{heading}</h1>\n{self.to_fragment()}</body></html>\n",
        )
        return Path(path)


def _is_own(widget: StandaloneWidget, name: str) -> bool:
    """True for a trait that a subclass of ours declares, not the widget machinery's."""
    return any(name in vars(kind) for kind in type(widget).__mro__ if issubclass(kind, StandaloneWidget))
