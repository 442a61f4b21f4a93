"""The mask painter: paint the objects of a clip's first frame in the notebook, watch them carried through the clip.

Letters: N frames, H W pixels of a frame, h w patch grid.
"""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import traitlets
from PIL import Image

from tcore_lib import params
from tcore_lib.errors import InputError
from tcore_lib.evaluation import clips, labels as labelmaps
from tcore_lib.evaluation.evaluate import encode
from tcore_lib.evaluation.propagation import Propagator, propagator_settings
from tcore_lib.figures import style
from tcore_lib.model.encoders import FeatureEncoder
from tcore_lib.widgets import payload
from tcore_lib.widgets.base import STYLE, StandaloneWidget, module

OBJECTS = 4  # colours on offer at least
LONG_SIDE = 960  # pixels that shown frames are reduced to
Propagate = Callable[[np.ndarray], Iterable[np.ndarray]]


class MaskPainter(StandaloneWidget):
    """A first frame to paint on, a button that propagates, a player for the result.

    Attributes:
        mask: uint8 (H, W), what is painted now: 0 = background, 1 ... = objects. May be assigned.
        labels: uint8 (N, H, W), the propagated label maps; None before the first run.
    """

    _esm = module("painter.js")
    _css = STYLE
    _meta = traitlets.Dict().tag(sync=True)
    _frames = traitlets.Bytes().tag(sync=True)
    _mask = traitlets.Bytes().tag(sync=True)
    _results = traitlets.Bytes().tag(sync=True)
    _results_meta = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        frames: Sequence[np.ndarray],
        propagate: Propagate,
        *,
        mask: np.ndarray | None = None,
        output: str | Path | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        """Pack the frames for the browser: N pictures of one size, uint8 (H, W, 3), and their `names`.

        `propagate` is called with the mask when the button is pressed and gives the N label maps one after the other (a
        generator shows its progress), frame 0 first, at the frame's size or any smaller one: see `mask_propagator`. `mask` is
        one to begin with; the save button writes to the folder `output`, without which it is not there.
        """
        sizes = {style.to_frame(frame).shape for frame in frames}
        if len(sizes) != 1:
            raise InputError(f"the painter's frames have sizes {sorted(sizes)}; give at least one, all of one size.")
        self.labels: np.ndarray | None = None
        self._count, self._shape = len(frames), frames[0].shape[:2]
        self._propagate, self._output = propagate, Path(output) if output is not None else None
        jpegs, about = payload.pack_frames(frames, LONG_SIDE)
        first = self._checked(np.zeros(self._shape, np.uint8) if mask is None else mask)
        meta = {
            "frames": about,
            "names": list(names or (f"frame {i}" for i in range(len(frames)))),
            "palette": style.object_palette(1 + max(OBJECTS, int(first.max()))).tolist(),
            "saves": output is not None,
        }
        super().__init__(_meta=meta, _frames=jpegs, _mask=first.tobytes())
        self.on_msg(self._on_message)

    def _checked(self, mask: np.ndarray) -> np.ndarray:
        """A mask of the frame's size, uint8; void (255) becomes background."""
        if mask.shape != self._shape:
            raise InputError(f"the mask is {mask.shape} pixels, the frames are {self._shape}; give one of their size.")
        return np.where(mask == 255, 0, mask).astype(np.uint8)

    @property
    def mask(self) -> np.ndarray:
        """uint8 (H, W): what is painted."""
        return np.frombuffer(self._mask, np.uint8).reshape(self._shape).copy()

    @mask.setter
    def mask(self, value: np.ndarray) -> None:
        self._mask = self._checked(np.asarray(value)).tobytes()

    def run(self) -> np.ndarray:
        """What the button does: propagate the mask, show every frame as it comes, return uint8 (N, H, W)."""
        mask, count = self.mask, self._count
        if not mask.any():
            raise InputError("nothing is painted; paint at least one object on the first frame.")
        self.send({"kind": "started", "text": f"Propagating through {count} frames ..."})
        found: list[np.ndarray] = []
        pngs: list[bytes] = []
        for number, labels in enumerate(self._propagate(mask)):
            found.append(style.enlarge(np.asarray(labels), self._shape).astype(np.uint8))
            pngs.append(_grey_png(found[-1]))
            self.send({"kind": "frame", "frame": number, "text": f"frame {number + 1} of {count}"}, [pngs[-1]])
        if len(found) != count:
            raise InputError(
                f"propagate gives {len(found)} label maps for a clip of {count} frames; give one per frame."
            )
        self.labels = np.stack(found)
        self.set_trait("_results", b"".join(pngs))
        self.set_trait("_results_meta", {"lengths": [len(png) for png in pngs]})
        self.send({"kind": "done", "text": f"{count} frames labelled."})
        return self.labels

    def _on_message(self, _: Any, content: dict[str, Any], buffers: Sequence[Any]) -> None:
        """A button was pressed. What a person can get wrong is told in the widget; a bug is told and raised."""
        kind = content.get("kind")
        try:
            if kind == "propagate":
                pixels = np.frombuffer(buffers[0], np.uint8)
                if pixels.size != self._shape[0] * self._shape[1]:
                    raise InputError(f"the browser sent {pixels.size} pixels of a mask; reload the page.")
                self.mask = pixels.reshape(self._shape)
                self.run()
            elif kind == "save" and self._output is not None:
                self.send({"kind": "saved", "text": self.save(self._output)})
        except InputError as error:
            self.send({"kind": "error", "text": str(error)})
        except Exception as error:
            self.send({"kind": "error", "text": f"{type(error).__name__}: {error} (a bug; the log has the traceback)"})
            raise

    def save(self, folder: str | Path) -> str:
        """Write the label maps as `masks/00000.png` ..., DAVIS's palette PNGs; returns a sentence about it."""
        if self.labels is None:
            raise InputError("there is no result to save yet; press Propagate first.")
        for frame, labels in enumerate(self.labels):
            clips.write_ids(Path(folder) / "masks" / f"{frame:05d}.png", labels)
        return f"Saved {len(self.labels)} label maps in {Path(folder) / 'masks'}."


def _grey_png(labels: np.ndarray) -> bytes:
    """A label map for the browser, which colours it."""
    stream = io.BytesIO()
    Image.fromarray(labels).save(stream, "PNG", compress_level=3)
    return stream.getvalue()


def mask_propagator(
    encoder: FeatureEncoder, frames: Sequence[np.ndarray], settings: params.Davis, device: str = "cpu"
) -> Propagate:
    """The callback of a painter: an encoder's features and the DAVIS protocol (docs/protocol.md), frame by frame.

    Features are computed once, when they are first needed; a second mask only costs the propagation.
    """
    size = labelmaps.whole_patches(settings.input_size, encoder.patch_size)
    known: list[torch.Tensor] = []

    def features(frame: int) -> torch.Tensor:
        if frame == len(known):
            image = labelmaps.to_input(torch.tensor(frames[frame])[None], size).to(device)
            known.append(encode(encoder, image, settings.precision)[0])
        return known[frame]

    def propagate(mask: np.ndarray) -> Iterator[np.ndarray]:
        first = features(0)
        soft, ids = labelmaps.first_soft_map(mask, size, (first.shape[0], first.shape[1]))
        carried = Propagator(first, soft.to(device), **propagator_settings(settings))
        yield mask
        for frame in range(1, len(frames)):
            soft = carried.step(features(frame))
            yield labelmaps.to_ids(soft[None], ids, size, settings.upsampling)[0].cpu().numpy()

    return propagate
