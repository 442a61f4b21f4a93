"""Clips of a benchmark on disk: what DAVIS, JHMDB and VIP share.

(docs/protocol.md, "Files".) Nothing is ever written under a benchmark's root. Loading a clip lists files and reads headers;
whether every image decodes is the business of `doctor`.
"""

import hashlib
import os
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
    """

    name: str
    frames: tuple[Path, ...]
    size: tuple[int, int]
    annotations: tuple[Path | None, ...] = ()
    joints: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.frames)

    def digest(self) -> str:
        """Hex SHA-256 of the names and contents of all files of the clip.

        Raises:
            InputError: one of them cannot be read.
        """
        total = hashlib.sha256(self.name.encode())
        for path in (*self.frames, *filter(None, self.annotations)):
            total.update(os.fsencode(path.name))
            with reading(path, "fetch this file again"):
                total.update(path.read_bytes())
        if self.joints is not None:
            total.update(np.ascontiguousarray(self.joints).tobytes())
        return total.hexdigest()


# ---------------------------------------------------------------------------------------------- images


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


def write_ids(target: Path, labels: NDArray[np.uint8]) -> None:
    """Write an id map (H, W) as palette PNG, atomically."""
    image = Image.fromarray(labels)
    image.putpalette(palette())
    with atomic_path(target) as temporary:
        image.save(temporary, format="PNG", compress_level=3)


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
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{split} names the clip {name} twice; remove one of the lines.")
        parts = name.split("/")
        inside = not {"", ".", ".."} & set(parts) and max(len(part.encode()) for part in parts) <= LONGEST_NAME
        if not inside or "\\" in name or "\0" in name:
            raise InputError(
                f"{split} names the clip {name[:80]!r}, which is no name of a folder inside the benchmark; remove that line."
            )
    unknown = [name for name in wanted or [] if name not in names]
    if unknown:
        raise InputError(f"The clip {unknown[0]!r} is not in {split}; choose from its {len(names)} clips.")
    return names if wanted is None else [name for name in names if name in wanted]
