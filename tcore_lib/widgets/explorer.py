"""The correspondence explorer: click a patch in one frame, see where every other frame has its like.

All it shows is computed in the browser from its own state, so it keeps working in a re-opened, trusted notebook without a
kernel, in the file that `to_html` writes, and in a book of notebooks (`base.embed`).
"""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import traitlets

from tcore_lib.errors import InputError
from tcore_lib.figures import style
from tcore_lib.widgets import payload
from tcore_lib.widgets.base import STYLE, StandaloneWidget, module

DIMS = 64  # directions kept of a feature; fewer where the features would not fit
FEWEST_DIMS = 16  # below this a similarity map is not worth showing
MAX_BYTES = 16_000_000  # of the features, and of the attention
LONG_SIDE = 640  # pixels that shown frames are reduced to


class Explorer(StandaloneWidget):
    """Frames side by side; a patch is picked, every frame shows its similarity to it.

    Traits: `pick`, `{"frame", "row", "column", "matches"}`, of which the first three may be assigned and the browser adds the
    best match in every other frame, per encoder; `frame`, the one compared with the query; `mode`, `similarity`, `attention`
    (the decoder's) or `labels` (propagated); `encoder`, or `compare` for all; `temperature` tau, 0.01 to 1, of the map
    exp((cosine - best cosine) / tau); `top_k`, the patches marked per frame.
    """

    _esm = module("explorer.js")
    _css = STYLE
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
        label_names: Sequence[str] = (),
        palette: np.ndarray | None = None,
        cross_attention: Mapping[tuple[int, int], Any] | None = None,
        attention_grid: tuple[int, int] | None = None,
        names: Sequence[str] | None = None,
        pick: tuple[int, int, int] | None = None,
        **traits: Any,
    ) -> None:
        """Pack everything for the browser; what does not fit together, or into `MAX_BYTES`, is an InputError.

        N `frames` of one size, uint8 (H, W, 3), and their `names`; `features`: encoder -> patch features (N, h, w, D) of any
        scale, one grid for all; `labels`: soft maps on that grid, (N, C, h, w), channel 0 = background, with a name and a
        colour uint8 (C, 3) per channel; `cross_attention`: (query frame, looked-at frame) -> weights (heads, P, P), rows sum
        to 1, on an `attention_grid` of its own; `pick`: (frame, row, column); `traits` to begin with.
        """
        arrays = {name: style.to_array(value) for name, value in features.items()}
        self._grid, self._count = grid, count = _check(frames, arrays), len(frames)
        room = MAX_BYTES // (count * grid[0] * grid[1] * len(arrays))
        if room < FEWEST_DIMS:
            raise InputError(
                f"{count} frames of {grid[0]} x {grid[1]} patches and {len(arrays)} encoders do not fit {MAX_BYTES:,} "
                "bytes; show fewer frames."
            )
        packed = {name: payload.pack_features(array, min(DIMS, room)) for name, array in arrays.items()}
        data = {"_features": b"".join(codes for codes, _ in packed.values())}
        meta: dict[str, Any] = {
            "grid": list(grid),
            "names": list(names or (f"frame {i}" for i in range(count))),
            "encoders": [{"name": name} | about for name, (_, about) in packed.items()],
            "colours": style.to_colours(np.linspace(0, 1, 256)).tolist(),
        }
        data["_frames"], meta["frames"] = payload.pack_frames(frames, LONG_SIDE)
        if cross_attention:
            own = attention_grid or grid
            data["_attention"], meta["attention"] = payload.pack_attention(cross_attention, own, count, MAX_BYTES)
        if labels is not None:
            data["_labels"], meta["labels"] = payload.pack_labels(labels, grid, label_names, palette)
        meta["note"] = _describe(meta, arrays, sum(map(len, data.values())))
        where = pick or (0, grid[0] // 2, grid[1] // 2)
        super().__init__(
            _meta=meta,
            pick=dict(zip(("frame", "row", "column"), map(operator.index, where), strict=True)),
            **data,
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

    @traitlets.validate("mode", "encoder")
    def _check_choice(self, proposal: Any) -> str:
        modes = ["similarity", *(name for name in ("attention", "labels") if name in self._meta)]
        name, value = proposal["trait"].name, proposal["value"]
        known = modes if name == "mode" else [*self.encoders, "compare"]
        if value not in known:
            raise InputError(f"{name} {value!r} is not there; this explorer has {', '.join(known)}.")
        return value

    @property
    def encoders(self) -> list[str]:
        """Names of the encoders that answer."""
        return [about["name"] for about in self._meta["encoders"]]

    def similarity(self, encoder: str, frame: int, row: int, column: int) -> np.ndarray:
        """What the browser computes: cosine of one patch with all patches, float32 (N, h, w), from packed features."""
        sizes = [self._count * self._grid[0] * self._grid[1] * about["dims"] for about in self._meta["encoders"]]
        number = self.encoders.index(encoder)
        codes = np.frombuffer(self._features, np.int8)[sum(sizes[:number]) :][: sizes[number]]
        scales = np.array(self._meta["encoders"][number]["scales"], np.float32)
        restored = codes.reshape(self._count, *self._grid, -1) * scales
        return restored @ restored[frame, row, column]


def _check(frames: Sequence[np.ndarray], arrays: Mapping[str, np.ndarray]) -> tuple[int, int]:
    """The common grid (h, w)."""
    if len(frames) == 0 or not arrays:
        raise InputError("the explorer needs at least one frame and one encoder's features.")
    sizes = {style.to_frame(frame).shape for frame in frames}
    if len(sizes) > 1:
        raise InputError(f"the explorer's frames have different sizes {sorted(sizes)}; give frames of one clip.")
    for name, array in arrays.items():
        if array.ndim != 4 or len(array) != len(frames):
            raise InputError(f"features[{name!r}] has shape {array.shape} for {len(frames)} frames; give (N, h, w, D).")
        if not np.isfinite(array).all():
            raise InputError(f"features[{name!r}] holds values that are not finite; check the encoder and its input.")
    grids = {name: array.shape[1:3] for name, array in arrays.items()}
    if len(set(grids.values())) > 1 or "compare" in arrays:
        raise InputError(f"the encoders' grids {grids} must be one, and none may be called `compare`.")
    return next(iter(grids.values()))


def _describe(meta: dict[str, Any], arrays: Mapping[str, np.ndarray], total: int) -> str:
    h, w = meta["grid"]
    kept = [
        f"{about['name']}: {about['dims']} of {arrays[about['name']].shape[-1]} dimensions, {about['energy']:.1%} of "
        f"the energy, cosine error up to {about['error']:.3f}"
        for about in meta["encoders"]
    ]
    if "attention" in meta:
        (rows, columns), heads = meta["attention"]["grid"], meta["attention"]["heads"]
        kept.append(f"attention on {rows} x {columns} patches, " + (f"{heads} heads" if heads else "mean of the heads"))
    return f"{len(meta['names'])} frames of {h} x {w} patches, {total / 1e6:.1f} MB. {'; '.join(kept)}."
