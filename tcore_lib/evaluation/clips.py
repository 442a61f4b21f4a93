"""Clips of a benchmark on disk: what DAVIS, JHMDB and VIP share (docs/protocol.md, "Files")."""

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tcore_lib.bodies import palette
from tcore_lib.data.images import in_order, is_image, read_rgb, refuse_huge
from tcore_lib.errors import InputError
from tcore_lib.files import atomic_path, read_text, reading

LONGEST_NAME = 240  # bytes of a clip's name: file systems allow 255, and a suffix is added
Ids = NDArray[np.uint8]  # id map (H, W)


@dataclass(frozen=True)
class Clip:
    """One clip of a benchmark: where its frames are, and what is known about them."""

    name: str  # unique within the benchmark
    frames: tuple[Path, ...]  # image files in order
    size: tuple[int, int]  # (H, W) of the first frame in pixels
    annotations: tuple[Path | None, ...] = ()  # DAVIS, VIP: per frame its id map, None where a frame has none
    first: Ids | None = None  # DAVIS, VIP: the ids that are carried, those of the first frame
    joints: NDArray[np.float64] | None = None  # JHMDB: (N, 15, 2), x then y in pixels from 0; the file counts from 1

    def __len__(self) -> int:
        return len(self.frames)

    @cached_property
    def channels(self) -> list[int]:
        """The id of each channel of a soft map: those of `first`, ascending."""
        assert self.first is not None
        return np.unique(self.first).tolist()

    def image(self, frame: int) -> NDArray[np.uint8]:
        """A frame, uint8 (H, W, 3)."""
        image = read_frame(self.frames[frame])
        if image.shape[:2] != self.size:
            sizes = "is {1}x{0} pixels, the clip's first frame {3}x{2}".format(*image.shape[:2], *self.size)
            raise InputError(f"{self.frames[frame]} {sizes}; unpack the clip again.")
        return image

    def truth(self, frame: int) -> NDArray[Any] | None:
        """A frame's annotation, ids (H, W) or joints (15, 2); None where it has none."""
        if self.joints is not None:
            return self.joints[frame]
        path = self.annotations[frame]
        return None if path is None else read_ids(path)

    def digest(self) -> str:
        """Hex SHA-256 of the names and contents of all files of the clip."""
        total = hashlib.sha256(self.name.encode())
        for path in (*self.frames, *filter(None, self.annotations)):
            total.update(os.fsencode(path.name))
            with reading(path, "fetch this file again"):
                total.update(path.read_bytes())
        if self.joints is not None:
            total.update(np.ascontiguousarray(self.joints).tobytes())
        return total.hexdigest()


def read_frame(path: Path) -> NDArray[np.uint8]:
    """An image as uint8 RGB (H, W, 3), as training reads it."""
    return read_rgb(path, "fetch this file again")


def read_ids(path: Path) -> Ids:
    """An annotation or prediction, id per pixel: a palette, grey or one-bit image; no colours, no 16-bit numbers."""
    with reading(path, "fetch or write this file again"), Image.open(path) as image:
        refuse_huge(*image.size)
        if image.format == "JPEG":
            raise InputError(
                f"{path} is a JPEG, which changes ids at outlines; fetch the original PNG, or save ids as PNG."
            )
        if image.mode not in ("P", "L", "1"):
            deep = image.mode.startswith(("I", "F"))
            holds = "numbers of more than 8 bits" if deep else "transparency" if "A" in image.mode else "colours"
            raise InputError(f"{path} is a {image.mode} image: it holds {holds}. Save it as an 8-bit PNG of ids.")
        return np.array(image).astype(np.uint8)


def write_ids(target: Path, labels: Ids) -> None:
    """Write an id map as palette PNG, atomically."""
    image = Image.fromarray(labels)
    image.putpalette(palette())
    with atomic_path(target) as temporary:
        image.save(temporary, format="PNG", compress_level=3)


def images_in(folder: Path) -> list[Path]:
    """Image files of a folder in the order of their numbers; an `InputError` where there are none."""
    files = [path for path in folder.iterdir() if is_image(path.name)] if folder.is_dir() else []
    if not files:
        raise InputError(f"{folder} is not a folder of images; check the root, and unpack this clip again.")
    return in_order(files)


def lines_of(path: Path) -> list[str]:
    """Lines of a split list that say anything."""
    text = read_text(path, "the benchmark needs its split list; fetch it again")
    return [line.strip() for line in text.splitlines() if line.strip()]


def chosen(names: list[str], wanted: list[str] | None, split: Path) -> list[str]:
    """The clips asked for (None = all), in the split's order; names come from a stranger and become folders."""
    if not names:
        raise InputError(f"{split} names no clip; fetch the split list again.")
    for name in names:
        parts = name.split("/")
        inside = not {"", ".", ".."} & set(parts) and max(len(part.encode()) for part in parts) <= LONGEST_NAME
        if not inside or "\\" in name or "\0" in name:
            raise InputError(f"{split} names the clip {name[:80]!r}, no name of a folder inside the benchmark.")
        if names.count(name) > 1:
            raise InputError(f"{split} names the clip {name} twice; remove one of the lines.")
    for name in wanted or ():
        if name not in names:
            raise InputError(f"The clip {name!r} is not in {split}; choose from its {len(names)} clips.")
    return [name for name in names if wanted is None or name in wanted]
