"""The correspondence explorer: click a patch in one frame, see where every other frame has its like.

A notebook widget (anywidget). All it shows is computed in the browser from its own state, so it keeps working in a
re-opened, trusted notebook without a kernel, and in the HTML file that `to_html` writes.
Letters: N frames, h w patch grid, P = h w, D feature width, C label channels.
"""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anywidget
import matplotlib as mpl
import numpy as np
import traitlets

from tcore_lib import files, look, payload
from tcore_lib.errors import InputError

HERE = Path(__file__).parent
FEWEST_DIMS = 16  # below this a similarity map is not worth showing

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
widget.render({ model, el });
"""


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


class Explorer(StandaloneWidget):
    """Frames side by side; a patch is picked, every frame shows its similarity to it.

    Attributes:
        pick: `{"frame", "row", "column", "matches"}`, the picked patch; the browser adds `matches`: encoder -> one
            `{"frame", "row", "column", "cosine"}` per other frame. Assign the first three to move the pick.
        frame: the frame compared with the query.
        mode: `similarity`, `attention` (the decoder's cross-attention) or `labels` (propagated labels).
        encoder: the encoder shown, or `compare` for all.
        temperature: tau of the map exp((cosine - best cosine) / tau), 0.01 to 1.
        top_k: patches marked per frame.
        payload_bytes: what the browser gets.
        description: one line about what was packed: sizes, dimensions kept, largest error of a cosine.
    """

    _esm = HERE / "explorer.js"
    _css = HERE / "explorer.css"
    _meta = traitlets.Dict().tag(sync=True)
    _frames = traitlets.Bytes().tag(sync=True)
    _features = traitlets.Bytes().tag(sync=True)
    _attention = traitlets.Bytes().tag(sync=True)
    _labels = traitlets.Bytes().tag(sync=True)
    pick = traitlets.Dict().tag(sync=True)
    frame = traitlets.Int(0).tag(sync=True)
    mode = traitlets.Unicode("similarity").tag(sync=True)
    encoder = traitlets.Unicode().tag(sync=True)
    temperature = traitlets.Float(0.1).tag(sync=True)
    top_k = traitlets.Int(7).tag(sync=True)

    def __init__(
        self,
        frames: Sequence[np.ndarray],
        features: Mapping[str, Any],
        *,
        labels: Any = None,
        label_names: Sequence[str] | None = None,
        palette: np.ndarray | None = None,
        cross_attention: Mapping[tuple[int, int], Any] | None = None,
        names: Sequence[str] | None = None,
        pick: tuple[int, int, int] | None = None,
        dims: int = 64,
        max_bytes: int = 16_000_000,
        long_side: int = 640,
        cmap: str = "viridis",
        **traits: Any,
    ) -> None:
        """Pack everything for the browser.

        Args:
            frames: N pictures of one size, uint8 (H, W, 3).
            features: encoder name -> patch features (N, h, w, D), any scale (they are L2-normalised); one grid for all.
            labels: propagated labels on the grid, ids (N, h, w) or soft (N, C, h, w); channel 0 is the background.
            label_names: one per channel.
            palette: uint8 (C, 3).
            cross_attention: (query frame, looked-at frame) -> weights (heads, P, P) or (P, P), rows sum to 1.
            names: of the frames; `frame 0` ... by default.
            pick: (frame, row, column) at the start; the middle of the first frame by default.
            dims: directions kept of a feature; lowered where `max_bytes` demands it.
            max_bytes: bound on the features' part of the payload.
            long_side: pixels that shown frames are reduced to.
            cmap: matplotlib colour map of the maps.
            traits: initial `mode`, `encoder`, `temperature`, `top_k`, `frame`.

        Raises:
            InputError: shapes that do not fit each other, or more patches than `max_bytes` can hold.
        """
        arrays = {name: look.to_array(value) for name, value in features.items()}
        grid = _check(frames, arrays)
        count = len(frames)
        room = max_bytes // (count * grid[0] * grid[1] * len(arrays))
        if room < min(FEWEST_DIMS, dims):
            raise InputError(
                f"{count} frames of {grid[0]} x {grid[1]} patches and {len(arrays)} encoders do not fit {max_bytes:,} "
                "bytes; show fewer frames, or raise max_bytes."
            )
        packed = {name: payload.pack_features(array, min(dims, room)) for name, array in arrays.items()}
        jpegs, about_frames = payload.pack_frames(frames, long_side)
        meta: dict[str, Any] = {
            "grid": list(grid),
            "frames": about_frames,
            "names": list(names) if names is not None else [f"frame {i}" for i in range(count)],
            "encoders": [{"name": name} | about for name, (_, about) in packed.items()],
            "colours": _colour_table(cmap),
        }
        if len(meta["names"]) != count:
            raise InputError(f"names has {len(meta['names'])} entries for {count} frames; give one per frame.")
        attention_bytes = label_bytes = b""
        if cross_attention:
            attention_bytes, meta["attention"] = payload.pack_attention(cross_attention, grid, count)
        if labels is not None:
            label_bytes, meta["labels"] = payload.pack_labels(labels, grid, label_names, palette)
        where = pick if pick is not None else (0, grid[0] // 2, grid[1] // 2)
        self._grid, self._count = grid, count
        feature_bytes = b"".join(data for data, _ in packed.values())
        total = len(jpegs) + len(feature_bytes) + len(attention_bytes) + len(label_bytes)
        meta["note"] = self.description = _describe(grid, meta["encoders"], arrays, count, total)
        super().__init__(
            _meta=meta,
            _frames=jpegs,
            _features=feature_bytes,
            _attention=attention_bytes,
            _labels=label_bytes,
            pick=dict(zip(("frame", "row", "column"), where, strict=True)),
            **{"encoder": next(iter(arrays)), "frame": min(1, count - 1)} | traits,
        )

    @traitlets.validate("pick")
    def _check_pick(self, proposal: Any) -> dict[str, Any]:
        pick = proposal["value"]
        limits = {"frame": self._count, "row": self._grid[0], "column": self._grid[1]}
        for key, limit in limits.items():
            if not isinstance(pick.get(key), int) or not 0 <= pick[key] < limit:
                raise InputError(f"pick[{key!r}] is {pick.get(key)!r}; give a whole number from 0 to {limit - 1}.")
        return pick

    @traitlets.validate("mode")
    def _check_mode(self, proposal: Any) -> str:
        known = ["similarity", *(name for name in ("attention", "labels") if name in self._meta)]
        if proposal["value"] not in known:
            raise InputError(f"mode {proposal['value']!r} is not there; this explorer has {', '.join(known)}.")
        return proposal["value"]

    @traitlets.validate("encoder")
    def _check_encoder(self, proposal: Any) -> str:
        known = [encoder["name"] for encoder in self._meta["encoders"]] + ["compare"]
        if proposal["value"] not in known:
            raise InputError(f"encoder {proposal['value']!r} is not there; this explorer has {', '.join(known)}.")
        return proposal["value"]

    def similarity(self, encoder: str, frame: int, row: int, column: int) -> np.ndarray:
        """What the browser computes: cosine of one patch with all patches, float32 (N, h, w), from packed features."""
        start = 0
        for about in self._meta["encoders"]:
            length = self._count * self._grid[0] * self._grid[1] * about["dims"]
            if about["name"] == encoder:
                codes = np.frombuffer(self._features, np.int8)[start : start + length]
                restored = codes.reshape(self._count, *self._grid, -1) * np.array(about["scales"], np.float32)
                return restored @ restored[frame, row, column]
            start += length
        raise InputError(f"encoder {encoder!r} is not in this explorer.")


def _check(frames: Sequence[np.ndarray], arrays: Mapping[str, np.ndarray]) -> tuple[int, int]:
    """The common grid (h, w)."""
    if len(frames) == 0 or not arrays:
        raise InputError("the explorer needs at least one frame and one encoder's features.")
    sizes = {look.to_frame(frame).shape for frame in frames}
    if len(sizes) > 1:
        raise InputError(f"the explorer's frames have different sizes {sorted(sizes)}; give frames of one clip.")
    grids = {name: array.shape[1:3] for name, array in arrays.items()}
    for name, array in arrays.items():
        if array.ndim != 4 or len(array) != len(frames):
            raise InputError(f"features[{name!r}] has shape {array.shape} for {len(frames)} frames; give (N, h, w, D).")
        if not np.isfinite(array).all():
            raise InputError(f"features[{name!r}] holds values that are not finite; check the encoder and its input.")
    if len(set(grids.values())) > 1 or "compare" in arrays:
        raise InputError(f"the encoders' grids {grids} must be one, and none may be called `compare`.")
    return next(iter(grids.values()))


def _colour_table(cmap: str) -> str:
    """256 colours of a colour map as hex digits, six each."""
    colours = np.round(255 * mpl.colormaps[cmap](np.linspace(0, 1, 256))[:, :3]).astype(np.uint8)
    return colours.tobytes().hex()


def _describe(
    grid: tuple[int, int], encoders: list[dict[str, Any]], arrays: Mapping[str, np.ndarray], count: int, total: int
) -> str:
    kept = "; ".join(
        f"{about['name']}: {about['dims']} of {arrays[about['name']].shape[-1]} dimensions, {about['energy']:.1%} of "
        f"the energy, cosine error up to {about['error']:.3f}"
        for about in encoders
    )
    return f"{count} frames of {grid[0]} x {grid[1]} patches, {total / 1e6:.1f} MB. {kept}."
