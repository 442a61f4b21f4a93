"""Clips labelled by an id per pixel: what DAVIS and VIP share. Reading, carrying, writing and scoring id maps.

Letters: B N frames, H W pixels, h w grid, C label channels.
"""

from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tcore_lib.data.images import IMAGE_SUFFIXES, in_order
from tcore_lib.errors import InputError
from tcore_lib.evaluation import clips as clipfiles, labels as labelmaps
from tcore_lib.evaluation.clips import Clip

Ids = NDArray[np.uint8]

# ---------------------------------------------------------------------------------------------- files


def load(name: str, images: Path, labels: Path) -> Clip:
    """One clip from its folders of frames and of id maps, which have their frame's name.

    Raises:
        InputError: a folder is missing or empty, an id map has no frame, or the first frame has no id map.
    """
    frames = clipfiles.images_in(images)
    maps = {path.stem: path for path in clipfiles.images_in(labels)}
    extra = in_order(maps.keys() - {frame.stem for frame in frames})
    if extra:
        raise InputError(f"{maps[extra[0]]} has no frame of that name in {images}; unpack the frames again.")
    if frames[0].stem not in maps:
        raise InputError(
            f"{labels} has no annotation of the clip's first frame, {frames[0].name}; nothing to propagate."
        )
    annotations = tuple(maps.get(frame.stem) for frame in frames)
    return Clip(name, tuple(frames), clipfiles.image_size(frames[0]), annotations)


def truth(clip: Clip, frame: int) -> Ids | None:
    """The annotation of a frame, (H, W); None where it has none."""
    path = clip.annotations[frame]
    return None if path is None else clipfiles.read_ids(path)


def label_file(folder: Path, clip: Clip, frame: int) -> Path:
    """Where a frame's predicted ids go: `<clip>/<frame>.png`, as the DAVIS server wants it."""
    return folder / clip.name / f"{clip.frames[frame].stem}.png"


def has_predictions(folder: Path, clip: Clip) -> bool:
    """Whether the prediction of every frame is there."""
    return all(label_file(folder, clip, frame).exists() for frame in range(len(clip)))


def predictions(folder: Path, clip: Clip, frames: Sequence[int]) -> Ids:
    """Our own predictions of some frames, (n, H, W)."""
    return np.stack([clipfiles.read_ids(label_file(folder, clip, int(frame))) for frame in frames])


def readable(paths: Sequence[Path]) -> tuple[list[tuple[Path, Ids]], list[str]]:
    """The id maps that can be read, and a sentence for each of the others."""
    maps, problems = [], []
    for path in paths:
        try:
            maps.append((path, clipfiles.read_ids(path)))
        except InputError as error:
            problems.append(str(error))
    return maps, problems


# ---------------------------------------------------------------------------------------------- one encoder, one clip


class IdScorer:
    """From a clip's first id map to a soft map, from soft maps to id maps, from these to rows of the table.

    A benchmark adds `resize`, `measure` and `rows`, and says which ids (0 ... `largest`) and which sizes it takes.

    Args:
        clip: annotated in its first frame.
        first: its labels, (H, W).
        size: (H, W) of the network input, whole patches.
        counted: frames that are scored.
        upsampling: of soft maps, linear or nearest.
        folder: where predictions are written; None = nowhere.
    """

    largest: int
    any_size = False

    def __init__(
        self, clip: Clip, first: Ids, size: tuple[int, int], counted: list[int], upsampling: str, folder: Path | None
    ) -> None:
        self.clip, self.first, self.size, self.upsampling, self.folder = clip, first, size, upsampling, folder
        self.counted = set(counted)
        self.channels: list[int] = np.unique(first).tolist()  # id of each channel

    def resize(self, ids: Ids, size: tuple[int, ...]) -> Ids:
        """Nearest resize of a prediction to the (H, W) of its annotation."""
        raise NotImplementedError

    def measure(self, native: Ids, true: Ids, at_input: Ids | None = None) -> NDArray[Any]:
        """What one frame adds to the rows: its prediction in the annotation's size, and at input size if it is ours."""
        raise NotImplementedError

    def rows(self, results: Sequence[NDArray[Any] | None]) -> list[dict[str, Any]]:
        """Rows of the table from the results of all frames; None = not counted."""
        raise NotImplementedError

    def first_map(self, grid: tuple[int, int]) -> Tensor:
        """Labels of the first frame on the grid, (C, h, w)."""
        return labelmaps.first_soft_map(self.first, self.size, grid)[0]

    def predict(self, soft: Tensor) -> list[Ids]:
        """Soft maps (B, C, h, w) to id maps (H, W) of input size."""
        return list(labelmaps.to_ids(soft, self.channels, self.size, self.upsampling).cpu().numpy())

    def score(self, frame: int, prediction: Ids) -> NDArray[Any] | None:
        """Result of one frame from its prediction at input size, None where it does not count. Runs in a thread."""
        counts = frame in self.counted
        if not counts and self.folder is None:
            return None
        true = truth(self.clip, frame)
        native = self.resize(prediction, self.clip.size if true is None else true.shape)
        if self.folder is not None:
            clipfiles.write_ids(label_file(self.folder, self.clip, frame), native)
        return self.measure(native, true, prediction) if counts and true is not None else None

    def score_files(self, folder: Path, pool: Executor) -> list[dict[str, Any]]:
        """Rows of label PNGs that somebody else made: `<clip>/<frame>.png` of every counted frame.

        Raises:
            InputError: names the file that is missing, misnamed or unreadable, or has a wrong size or id.
        """
        frames = sorted(self.counted)
        return self.rows(list(pool.map(self._score_file, self._files(folder, frames), frames)))

    def _score_file(self, path: Path, frame: int) -> NDArray[Any]:
        ids, true = clipfiles.read_ids(path), truth(self.clip, frame)
        assert true is not None
        with Image.open(path) as image:
            black = image.mode != "P" or (image.getpalette() or [0, 0, 0])[:3] == [0, 0, 0]
        if not black:
            raise InputError(
                f"{path} has a palette that does not begin with black: quantising a coloured image numbers its colours anew. "
                "Write ids (0 = background), not colours."
            )
        if ids.shape != true.shape and not self.any_size:
            raise InputError(
                f"{path} is {ids.shape[0]}x{ids.shape[1]} pixels (height x width), its annotation "
                f"{true.shape[0]}x{true.shape[1]}; resize predictions to the annotation's size (nearest)."
            )
        if ids.max() > self.largest:
            raise InputError(
                f"{path} has the id {ids.max()}, but the ids of {self.clip.name} are 0 ... {self.largest}; write ids, "
                "0 = background: no masks of 0 and 255, no probabilities."
            )
        return self.measure(self.resize(ids, true.shape), true)

    def _files(self, folder: Path, frames: Sequence[int]) -> list[Path]:
        """The label files of some frames, made by somebody else."""
        place = folder / self.clip.name
        if not place.is_dir():
            inside = [found for found in sorted(folder.glob(f"*/{self.clip.name}")) if found.is_dir()]
            hint = f"give {inside[0].parent}" if inside else "a score needs predictions of every clip"
            raise InputError(f"{folder} has no folder {self.clip.name}; {hint}.")
        names = in_order(path.name for path in place.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        expected = [f"{frame.stem}.png" for frame in self.clip.frames]
        extra = [name for name in names if name not in expected]
        if extra:
            raise InputError(
                f"{place / extra[0]} belongs to no frame: the files are {names[0]} ... {names[-1]}, the frames "
                f"{expected[0]} ... {expected[-1]}; give each PNG its frame's name (JPEG spoils ids, and counted from "
                "another number, every prediction would be scored against another frame)."
            )
        missing = [expected[frame] for frame in frames if expected[frame] not in names]
        if missing:
            raise InputError(f"{place / missing[0]} is missing; a score needs a prediction of every scored frame.")
        return [place / expected[frame] for frame in frames]
