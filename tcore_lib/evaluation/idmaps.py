"""Clips labelled by an id per pixel: what DAVIS and VIP share. Reading, carrying, writing and scoring id maps."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tcore_lib.data.images import in_order, is_image
from tcore_lib.errors import InputError
from tcore_lib.evaluation import clips as clipfiles, labels as labelmaps
from tcore_lib.evaluation.clips import Clip, Ids
from tcore_lib.figures import style


class IdMaps:
    """A benchmark of id maps; see `benchmarks`."""

    palette: NDArray[np.uint8]
    classes: int | None = None  # ids are 0 ... classes - 1; None = those of a clip's first frame
    any_size = False  # of predictions that somebody else made
    resize: Callable[[Ids, tuple[int, ...]], Ids]  # nearest, of a prediction to its annotation's (H, W)
    counted: Callable[[Clip], list[int]]

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def largest(self, clip: Clip) -> int:
        """The largest id that may be predicted."""
        return max(clip.channels) if self.classes is None else self.classes - 1

    def first_map(self, clip: Clip, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
        """Labels of the first frame on the grid, (C, h, w); `size` is that of the network input."""
        assert clip.first is not None
        return labelmaps.first_soft_map(clip.first, size, grid)[0]

    def predict(self, clip: Clip, soft: Tensor, size: tuple[int, int]) -> list[Ids]:
        """Soft maps (B, C, h, w) to id maps of input size."""
        return list(labelmaps.to_ids(soft, clip.channels, size, self.settings.upsampling).cpu().numpy())

    def draw(self, image: NDArray[np.uint8], ids: Ids) -> NDArray[np.uint8]:
        """An id map over a frame (H, W, 3)."""
        return style.overlay_labels(image, ids, self.palette)

    # ------------------------------------------------------------------------------------------ files

    def prediction_files(self, folder: Path, clip: Clip) -> list[Path]:
        """Where each frame's predicted ids go: `<clip>/<frame>.png`, as the DAVIS server wants it."""
        return [folder / clip.name / f"{frame.stem}.png" for frame in clip.frames]

    def predictions(self, folder: Path, clip: Clip, frames: Sequence[int]) -> Ids:
        """Our own predictions of some frames, (n, H, W)."""
        files = self.prediction_files(folder, clip)
        return np.stack([clipfiles.read_ids(files[frame]) for frame in frames])

    def save(self, folder: Path, clip: Clip, predictions: Sequence[Ids], each: Callable[..., Any] = map) -> None:
        """Write predictions in the sizes of their annotations, else of the frames."""

        def write(frame: int, path: Path) -> None:
            true = clip.truth(frame)
            clipfiles.write_ids(path, self.resize(predictions[frame], clip.size if true is None else true.shape))

        list(each(write, range(len(clip)), self.prediction_files(folder, clip)))

    def others(self, folder: Path, clip: Clip) -> Callable[[int], Ids]:
        """Predictions that somebody else made, `<clip>/<frame>.png` of every counted frame: what reads that of a frame."""
        if not (folder / clip.name).is_dir():
            inside = [found for found in sorted(folder.glob(f"*/{clip.name}")) if found.is_dir()]
            hint = f"give {inside[0].parent}" if inside else "a score needs predictions of every clip"
            raise InputError(f"{folder} has no folder {clip.name}; {hint}.")
        files = self.prediction_files(folder, clip)
        there = in_order(path for path in (folder / clip.name).iterdir() if is_image(path.name))
        if extra := [path for path in there if path not in files]:
            raise InputError(
                f"{extra[0]} belongs to no frame: the files are {there[0].name} ... {there[-1].name}, the frames "
                f"{files[0].name} ... {files[-1].name}; give each PNG its frame's name (JPEG spoils ids, and counted from "
                "another number, every prediction would be scored against another frame)."
            )
        if missing := [files[frame] for frame in self.counted(clip) if files[frame] not in there]:
            raise InputError(f"{missing[0]} is missing; a score needs a prediction of every scored frame.")

        def read(frame: int) -> Ids:
            path, true = files[frame], clip.truth(frame)
            ids, largest = clipfiles.read_ids(path), self.largest(clip)
            with Image.open(path) as image:
                palette = image.getpalette() if image.mode == "P" else None
            if palette and palette[:3] != [0, 0, 0]:
                raise InputError(
                    f"{path} has a palette that does not begin with black: quantising a coloured image numbers its colours "
                    "anew. Write ids (0 = background), not colours."
                )
            if true is not None and ids.shape != true.shape and not self.any_size:
                sizes = [f"{height}x{width}" for height, width in (ids.shape, true.shape)]
                said = f"{path} is {sizes[0]} pixels (height x width), its annotation {sizes[1]}"
                raise InputError(f"{said}; resize predictions to the annotation's size (nearest).")
            if ids.max() > largest:
                said = f"{path} has the id {ids.max()}, but the ids of {clip.name} are 0 ... {largest}"
                raise InputError(f"{said}; write ids, 0 = background: no masks of 0 and 255, no probabilities.")
            return ids

        return read


def load(name: str, images: Path, labels: Path) -> Clip:
    """One clip from its folders of frames and of id maps, which have their frame's name; the first frame needs one."""
    frames = clipfiles.images_in(images)
    maps = {path.stem: path for path in clipfiles.images_in(labels)}
    if extra := in_order(maps.keys() - {frame.stem for frame in frames}):
        raise InputError(f"{maps[extra[0]]} has no frame of that name in {images}; unpack the frames again.")
    if frames[0].stem not in maps:
        raise InputError(
            f"{labels} has no annotation of the clip's first frame, {frames[0].name}; nothing to propagate."
        )
    annotations = tuple(maps.get(frame.stem) for frame in frames)
    return Clip(
        name, tuple(frames), clipfiles.size_of(frames[0]), annotations, clipfiles.read_ids(maps[frames[0].stem])
    )
