"""Labels that are an id per pixel: on and off the patch grid, through any clip, and what DAVIS and VIP share.

(docs/protocol.md; joints: `jhmdb`.) Letters: B N frames, H W pixels, h w grid, C label channels.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tcore_lib.data.images import in_order, is_image
from tcore_lib.errors import InputError
from tcore_lib.evaluation import clips as clipfiles, propagation
from tcore_lib.evaluation.clips import Clip, Ids
from tcore_lib.model import features as patches
from tcore_lib.model.encoders import FeatureEncoder, load_encoder
from tcore_lib.model.features import to_input as to_input


def whole_patches(size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """(H, W) in pixels, floored to whole patches, at least one."""
    height, width = (max(1, side // patch_size) * patch_size for side in size)
    return height, width


def resize_ids(labels: Ids, size: tuple[int, ...]) -> Ids:
    """Nearest resize of an id map (H, W) to `size`; the pixel that OpenCV's INTER_NEAREST takes (in float64 torch does, too)."""
    pixels = torch.from_numpy(labels).double()[None, None]
    return F.interpolate(pixels, tuple(size), mode="nearest")[0, 0].byte().numpy()


def first_soft_map(labels: Ids, size: tuple[int, int], grid: tuple[int, int]) -> tuple[Tensor, list[int]]:
    """Ids (H, W) of the first frame, at a network input of `size` -> float32 (C, *grid), a channel per id; and the ids."""
    at_input = torch.from_numpy(resize_ids(labels, size))
    ids = torch.unique(torch.from_numpy(labels))
    one_hot = (at_input == ids[:, None, None]).float()  # (C, H, W)
    return F.interpolate(one_hot[None], grid, mode="bilinear", align_corners=False)[0], ids.tolist()


def to_ids(soft: Tensor, ids: list[int], size: tuple[int, int], upsampling: str = "linear") -> Tensor:
    """Soft maps float (B, C, h, w) -> predicted ids uint8 (B, *size): resized to `size`, then the largest channel."""
    linear = upsampling == "linear"
    soft = F.interpolate(soft, size, mode="bilinear" if linear else "nearest", align_corners=False if linear else None)
    # The largest channel, the first of equal ones. Channel by channel: argmax along a strided dimension is 40 times
    # slower on a CPU.
    largest = soft[:, 0].clone()
    predicted = torch.full_like(largest, ids[0], dtype=torch.uint8)
    for channel, label in zip(soft.unbind(1)[1:], ids[1:], strict=True):
        predicted.masked_fill_(channel > largest, label)
        torch.maximum(largest, channel, out=largest)
    return predicted


def propagate(source: Any, first_mask: Any, encoder: FeatureEncoder | str | Path, **settings: Any) -> NDArray[np.uint8]:
    """Carry the labels of a clip's first frame through it: uint8 (N, H, W), ids; frame 0 is the mask.

    Args:
        source: the clip, a path (video, folder of frames) or uint8 frames (N, H, W, 3).
        first_mask: ids of the first frame, integers 0..255 (H, W), or the path of a PNG whose values (not colours) are ids.
        encoder: from `load_encoder`, or what that takes.
        settings: of `propagation.Propagator`, such as `top_k`.
    """
    encoder = encoder if isinstance(encoder, FeatureEncoder) else load_encoder(encoder)
    frames = patches.as_frames(source)
    mask = clipfiles.read_ids(Path(first_mask)) if isinstance(first_mask, str | Path) else np.asarray(first_mask)
    size = (frames.shape[1], frames.shape[2])
    if mask.shape != size or mask.dtype.kind not in "iub" or mask.min() < 0 or mask.max() > 255:
        has = f"The mask holds {mask.dtype} {mask.shape}"
        raise InputError(f"{has}; give integers 0..255 of the first frame's own size, {size}.")
    found = patches.features(encoder, frames)  # (N, h, w, D)
    at_input, grid = patches.whole_patches(size, encoder.patch_size), (found.shape[1], found.shape[2])
    soft, ids = first_soft_map(mask.astype(np.uint8), at_input, grid)  # (C, h, w)
    labels = torch.cat([to_ids(one[None], ids, size) for one in propagation.propagate(found, soft, **settings)]).numpy()
    labels[0] = mask
    return labels


# ---------------------------------------------------------------------------------------------- DAVIS and VIP


class IdMaps:
    """A benchmark of id maps; see `benchmarks`."""

    lists: str  # split -> file of clip names
    folders: tuple[str, str]  # of frames and annotations
    classes: int | None = None  # ids are 0 ... classes - 1; None = those of a clip's first frame
    resize: Callable[[Ids, tuple[int, ...]], Ids]  # nearest, of a prediction to its annotation's (H, W)
    counted: Callable[[Clip], list[int]]

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def names(self, root: Path) -> list[str]:
        """Clips of the split, or those chosen from it, in its order."""
        split = root / self.lists.format(self.settings.split)
        listed = [line.split()[0].strip("/") for line in clipfiles.lines_of(split)]
        return clipfiles.chosen(listed, self.settings.clips, split)

    def load(self, root: Path, name: str) -> Clip:
        """One clip. Id maps have their frame's name; the first frame needs one, others without one are not scored."""
        images, labels = (root / folder / name for folder in self.folders)
        frames = clipfiles.images_in(images)
        maps = {path.stem: path for path in clipfiles.images_in(labels)}
        if extra := in_order(maps.keys() - {frame.stem for frame in frames}):
            raise InputError(f"{maps[extra[0]]} has no frame of that name in {images}; unpack the frames again.")
        annotations = tuple(maps.get(frame.stem) for frame in frames)
        if annotations[0] is None:
            raise InputError(f"{labels} has no annotation of the clip's first frame, {frames[0].name}.")
        height, width, _ = clipfiles.read_frame(frames[0]).shape
        return Clip(name, tuple(frames), (height, width), annotations, clipfiles.read_ids(annotations[0]))

    def largest(self, clip: Clip) -> int:
        """The largest id that may be predicted."""
        return max(clip.channels) if self.classes is None else self.classes - 1

    def first_map(self, clip: Clip, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
        """Labels of the first frame on the grid, (C, h, w); `size` is that of the network input."""
        assert clip.first is not None
        return first_soft_map(clip.first, size, grid)[0]

    def predict(self, clip: Clip, soft: Tensor, size: tuple[int, int]) -> list[Ids]:
        """Soft maps (B, C, h, w) to id maps of input size."""
        return list(to_ids(soft, clip.channels, size, self.settings.upsampling).cpu().numpy())

    def prediction_files(self, folder: Path, clip: Clip) -> list[Path]:
        """Where each frame's predicted ids go: `<clip>/<frame>.png`, as the DAVIS server wants it."""
        return [folder / clip.name / f"{frame.stem}.png" for frame in clip.frames]

    def save(self, folder: Path, clip: Clip, predictions: Sequence[Ids]) -> None:
        """Write predictions in the sizes of their annotations, else of the frames."""
        for frame, path in enumerate(self.prediction_files(folder, clip)):
            true = clip.truth(frame)
            clipfiles.write_ids(path, self.resize(predictions[frame], clip.size if true is None else true.shape))

    def predictions(self, folder: Path, clip: Clip) -> Callable[[int], Ids]:
        """What reads the prediction of a frame, ours or somebody else's; an `InputError` where files do not fit the frames."""
        files, place = self.prediction_files(folder, clip), folder / clip.name
        there = in_order(path for path in place.iterdir() if is_image(path.name)) if place.is_dir() else []
        extra = [path for path in there if path not in files]
        missing = [files[frame] for frame in self.counted(clip) if files[frame] not in there]
        if extra or missing:
            wrong = (
                f"{extra[0]} belongs to no frame" if extra else f"{missing[0]} is missing, every scored frame is needed"
            )
            has = f"the files are {there[0].name} ... {there[-1].name}" if there else f"{place} is no folder of images"
            # JPEG spoils ids, and counted from another number every prediction would be scored against another frame.
            frames = f"the frames {files[0].name} ... {files[-1].name}"
            raise InputError(f"{wrong}; {has}, {frames}; give each prediction its frame's name, as PNG.")

        def read(frame: int) -> Ids:
            path, true = files[frame], clip.truth(frame)
            ids, largest = clipfiles.read_ids(path), self.largest(clip)
            with Image.open(path) as image:
                palette = image.getpalette() if image.mode == "P" else None
            if palette and palette[:3] != [0, 0, 0]:
                wrong = "a palette that does not begin with black: quantising a coloured image numbers its colours anew"
            elif ids.max() > largest:
                wrong = f"the id {ids.max()}, but the ids of {clip.name} are 0 ... {largest}"
            elif true is not None and ids.shape != true.shape:
                wrong = f"the size (H, W) = {ids.shape}, its annotation {true.shape}: resize it (nearest)"
            else:
                return ids
            raise InputError(f"{path} has {wrong}; write ids, 0 = background: no colours, masks of 255, probabilities.")

        return read
