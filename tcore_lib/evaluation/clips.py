"""Clips of a benchmark on disk, and the label files of predictions: what DAVIS, JHMDB and VIP share.

(EVALUATION, "Files".) Nothing is ever written under a benchmark's root. Loading a clip lists files and reads headers;
whether every image decodes is the business of `doctor`.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tcore_lib.bodies import palette
from tcore_lib.data.images import IMAGE_SUFFIXES, MOST_PIXELS, in_order, read_rgb
from tcore_lib.errors import InputError
from tcore_lib.files import atomic_path, reading

LONGEST_NAME = 240  # bytes of a clip's name: file systems allow 255, and a suffix is added
ROTATED = (5, 6, 7, 8)  # EXIF orientations that exchange height and width
ORIENTATION = 0x0112  # the EXIF tag


@dataclass(frozen=True)
class Clip:
    """One clip of a benchmark: where its frames are, and what is known about them.

    Attributes:
        name: unique within the benchmark.
        frames: image files in order.
        size: (H, W) of the first frame in pixels.
        annotations: per frame its id map (DAVIS, VIP), None where a frame has none; empty for JHMDB.
        joints: float64 (N, 15, 2), x then y in pixels counted from 0 (JHMDB; the file counts from 1).
        source: folder or file the labels come from, for messages.
    """

    name: str
    frames: tuple[Path, ...]
    size: tuple[int, int]
    annotations: tuple[Path | None, ...] = ()
    joints: NDArray[np.float64] | None = None
    source: Path | None = None

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.frames)

    def digest(self) -> str:
        """Hex SHA-256 of the names and contents of all files of the clip.

        Raises:
            InputError: one of them cannot be read.
        """
        total = hashlib.sha256(self.name.encode())
        for path in (*self.frames, *(path for path in self.annotations if path is not None)):
            total.update(os.fsencode(path.name))
            with reading(path, "fetch this file again"):
                total.update(path.read_bytes())
        if self.joints is not None:
            total.update(np.ascontiguousarray(self.joints).tobytes())
        return total.hexdigest()


# ---------------------------------------------------------------------------------------------- reading


def read_frame(path: Path) -> NDArray[np.uint8]:
    """An image as uint8 RGB (H, W, 3).

    Raises:
        InputError: the file is missing or does not decode.
    """
    return read_rgb(path, "fetch this file again")


def read_ids(path: Path) -> NDArray[np.uint8]:
    """An annotation or prediction as uint8 (H, W), id per pixel: a palette, grey or one-bit image.

    Raises:
        InputError: the file is missing, does not decode, or holds colours, transparency or 16-bit numbers instead of ids.
    """
    with reading(path, "fetch or write this file again"), Image.open(path) as image:
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"{image.width}x{image.height} pixels, which no label map has")
        if image.mode not in ("P", "L", "1"):
            deep = image.mode.startswith(("I", "F"))
            holds = "numbers of more than 8 bits" if deep else "transparency" if "A" in image.mode else "colours"
            raise InputError(
                f"{path} is a {image.mode} image, not a palette or grey one: it holds {holds}. Save it as an 8-bit PNG "
                "with one id per pixel."
            )
        return np.array(image).astype(np.uint8)


def image_size(path: Path) -> tuple[int, int]:
    """(H, W) from an image's header, as `read_frame` turns it.

    Raises:
        InputError: the file is no image.
    """
    with reading(path, "fetch this file again"), Image.open(path) as image:
        turned = image.getexif().get(ORIENTATION) in ROTATED
        return (image.width, image.height) if turned else (image.height, image.width)


# ---------------------------------------------------------------------------------------------- listing


def images_in(folder: Path) -> list[Path]:
    """Image files of a folder in the order of their numbers.

    Raises:
        InputError: there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; check the root and that the data set is unpacked completely.")
    files = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != "."]
    if not files:
        raise InputError(f"{folder} holds no image; unpack this clip again.")
    return in_order(files)


def annotations_of(folder: Path, frames: Sequence[Path]) -> tuple[Path | None, ...]:
    """The label image of each frame, by name; None where there is none.

    Raises:
        InputError: a label image has no frame, or the first frame has no label.
    """
    stems = {path.stem: path for path in images_in(folder)}
    extra = in_order(stems.keys() - {frame.stem for frame in frames})
    if extra:
        raise InputError(f"{stems[extra[0]]} has no frame of that name in {frames[0].parent}; unpack the frames again.")
    if frames[0].stem not in stems:
        raise InputError(
            f"{folder} has no annotation of the clip's first frame, {frames[0].name}; nothing to propagate."
        )
    return tuple(stems.get(frame.stem) for frame in frames)


def lines_of(path: Path) -> list[str]:
    """Lines of a split list that say anything.

    Raises:
        InputError: the file is missing or is no text.
    """
    with reading(path, "the benchmark needs its split list; fetch it again"):
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]


def chosen(names: list[str], wanted: list[str] | None, split: Path) -> list[str]:
    """The clips asked for (None = all), in the split's order.

    Raises:
        InputError: the list is empty, names a clip twice or in a way that leaves the benchmark's folder, or lacks one.
    """
    if not names:
        raise InputError(f"{split} names no clip; fetch the split list again.")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{split} names the clip {twice} twice; remove one of the lines.")
    strange = next((name for name in names if not _is_plain(name)), None)
    if strange is not None:
        raise InputError(
            f"{split} names the clip {strange[:80]!r}, which is no name of a folder inside the benchmark; remove that line."
        )
    unknown = [name for name in wanted or [] if name not in names]
    if unknown:
        raise InputError(f"The clip {unknown[0]!r} is not in {split}; choose from its {len(names)} clips.")
    return names if wanted is None else [name for name in names if name in wanted]


def _is_plain(name: str) -> bool:
    """Whether a clip's name stays inside the folders it is looked up in and written to."""
    if "\\" in name or "\0" in name:
        return False
    return all(part not in ("", ".", "..") and len(part.encode()) <= LONGEST_NAME for part in name.split("/"))


# ---------------------------------------------------------------------------------------------- label files


def write_ids(target: Path, labels: NDArray[np.uint8]) -> None:
    """Write an id map (H, W) as palette PNG, atomically."""
    image = Image.fromarray(labels)
    image.putpalette(palette())
    with atomic_path(target) as temporary:
        image.save(temporary, format="PNG", compress_level=3)


def label_file(folder: Path, clip: Clip, frame: int) -> Path:
    """Where a frame's predicted ids go: `<clip>/<frame>.png`, as the DAVIS server wants it."""
    return folder / clip.name / f"{clip.frames[frame].stem}.png"


def label_files(folder: Path, clip: Clip, frames: Sequence[int]) -> list[Path]:
    """The label files of some frames, made by somebody else.

    Raises:
        InputError: the clip's folder does not fit its frames; says in which way (counted from 1, another suffix, not padded,
            a frame too few or too many).
    """
    place = folder / clip.name
    if not place.is_dir():
        inside = [found for found in sorted(folder.glob(f"*/{clip.name}")) if found.is_dir()]
        hint = f"give {inside[0].parent}" if inside else "a score needs predictions of every clip"
        raise InputError(f"{folder} has no folder {clip.name}; {hint}.")
    names = in_order(path.name for path in place.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    expected = [f"{frame.stem}.png" for frame in clip.frames]
    missing = [expected[frame] for frame in frames if expected[frame] not in names]
    extra = [name for name in names if name not in expected]
    if extra:
        raise InputError(f"{place / extra[0]} {_misnamed(extra, names, expected)}")
    if missing:
        raise InputError(f"{place / missing[0]} is missing; a score needs a prediction of every scored frame.")
    return [place / expected[frame] for frame in frames]


def _misnamed(extra: list[str], names: list[str], expected: list[str]) -> str:
    """Why files have other names than frames."""
    if extra[0].lower() in expected:
        return f"should be called {extra[0].lower()}; rename the clip's files."
    if Path(extra[0]).stem in {Path(name).stem for name in expected} and not extra[0].lower().endswith(".png"):
        return "is no PNG; ids do not survive another format. Write PNG files."
    numbers, wanted = (
        [int(Path(name).stem) for name in some if Path(name).stem.isdecimal()] for some in (names, expected)
    )
    if numbers and wanted and numbers[-1] == wanted[-1] + 1:
        return (
            f"has no frame: the names seem to count from {numbers[0]}, the frames from {wanted[0]}. Rename them, or every "
            "prediction is scored against the frame after it."
        )
    if set(numbers) <= set(wanted) and len(numbers) == len(names):
        return f"should be called as its frame, {Path(expected[0]).stem} with all its zeros and .png; rename the files."
    return f"has no frame of that name in the clip ({expected[0]} ... {expected[-1]}); remove or rename it."


def has_label_files(folder: Path, clip: Clip) -> bool:
    """Whether the prediction of every frame is there."""
    return all(label_file(folder, clip, frame).exists() for frame in range(len(clip)))


def read_label_files(folder: Path, clip: Clip, frames: Sequence[int]) -> NDArray[np.uint8]:
    """Our own predictions of some frames, (n, H, W)."""
    return np.stack([read_ids(label_file(folder, clip, int(frame))) for frame in frames])


def annotation(clip: Clip, frame: int) -> NDArray[np.uint8] | None:
    """The annotation of a frame, (H, W); None where it has none."""
    path = clip.annotations[frame]
    return None if path is None else read_ids(path)


def read_prediction(path: Path) -> NDArray[np.uint8]:
    """A label file made by somebody else, as `read_ids`.

    Raises:
        InputError: as there, or the palette was sorted anew, which exchanges ids.
    """
    ids = read_ids(path)
    with Image.open(path) as image:
        first = (image.getpalette() or [0, 0, 0])[:3] if image.mode == "P" else [0, 0, 0]
    if first != [0, 0, 0]:
        raise InputError(
            f"{path} has a palette that begins with the colour {tuple(first)} instead of black: quantising a coloured image "
            "numbers its colours anew. Write ids (0 = background), not colours."
        )
    return ids
