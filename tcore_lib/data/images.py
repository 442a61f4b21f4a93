"""One image file, or a folder of them: read as RGB, reduced, or refused with a reason."""

import io
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tcore_lib.errors import InputError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
MOST_PIXELS = 100_000_000  # of a frame; a small file can claim any number and fill the memory
# What Pillow raises for a file that is no whole image, whatever is wrong with it.
UNREADABLE = (
    OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, AttributeError, OverflowError, MemoryError,
    NotImplementedError, struct.error, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip


class BadFile(InputError):
    """A file that cannot be used. The message is the reason alone, fit for a line of bad_files.csv."""


def one_line(error: BaseException) -> str:
    """The message of a library's error, without its paths and line breaks."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:150]


def reduced_size(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """(width, height) with the short side at most `short_side` pixels and the aspect kept. Never enlarges."""
    short = min(width, height)
    if short_side is None or short <= short_side:
        return width, height
    return max(1, round(width * short_side / short)), max(1, round(height * short_side / short))


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize uint8 (H, W, 3) to `size` = (width, height), bicubic with antialias (Pillow)."""
    if (image.shape[1], image.shape[0]) == size:
        return image
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def reduce_short_side(image: np.ndarray, short_side: int | None) -> np.ndarray:
    """`resize` to `reduced_size`."""
    return resize(image, reduced_size(image.shape[1], image.shape[0], short_side))


def read_image(source: Path | bytes, short_side: int | None = None) -> np.ndarray:
    """Read one image file as uint8 (H, W, 3) RGB, its short side reduced. EXIF orientation is not applied.

    Raises:
        BadFile: missing, empty, truncated, not an image, or too large to be one.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            check_size(image)
            if image.mode == "P" and "transparency" in image.info:
                return reduce_short_side(np.asarray(image.convert("RGBA").convert("RGB")), short_side)
            if image.mode.startswith("I"):  # 16 bits a channel; convert("RGB") would clip instead of scale
                grey = (np.asarray(image, dtype=np.uint32) >> 8).clip(0, 255).astype(np.uint8)
                return reduce_short_side(np.repeat(grey[..., None], 3, axis=-1), short_side)
            return reduce_short_side(np.asarray(image.convert("RGB")), short_side)
    except BadFile:
        raise
    except UNREADABLE as error:
        raise BadFile(f"not a readable image ({one_line(error)})") from error


def check_size(image: Image.Image) -> None:
    """Refuse an opened image whose header claims too many pixels, before any is decoded.

    Raises:
        BadFile: more than `MOST_PIXELS`.
    """
    if image.width * image.height > MOST_PIXELS:
        raise BadFile(f"{image.width}x{image.height} pixels, which no frame has")


def frame_names(folder: Path) -> list[str]:
    """Names of the frame files of a folder, sorted. Hidden files and other types do not count."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith(".")]
    return sorted(name for name in names if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES)


def are_numbered(names: Sequence[str]) -> bool:
    """True where the sorted names are exactly 00000.jpg, 00001.jpg, ..."""
    return all(name == f"{j:05d}.jpg" for j, name in enumerate(names))
