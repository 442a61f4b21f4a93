"""One image file, or a folder of them: read as RGB, reduced, or refused with a reason."""

import io
import os
import re
import struct
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

from tcore_lib.errors import InputError
from tcore_lib.files import reading

Name = TypeVar("Name", str, Path)

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


def in_order(names: Iterable[Name]) -> list[Name]:
    """Frame files in the order of their numbers, whatever the padding or prefix: 1, 2, ... 10; frame_1, frame_2, ...

    Everything that orders frames does it here. Digits compare as numbers, the rest as text without regard to case, the
    suffix not at all. Names that hold one decimal number each (seconds: 0.04, 0.1, 0.12) go by its value, unless two of
    them would be equal (1.1 and 1.10 are the first and the tenth frame of video 1).

    Args:
        names: file names or paths; of a path the last part counts.
    """
    chosen = list(names)
    stems = [os.path.splitext(os.path.basename(name))[0].casefold() for name in chosen]
    decimals = [re.fullmatch(r"(\D*)(\d+\.\d+)(\D*)", stem) for stem in stems]
    keys: list[tuple[object, ...]] = [(found[1], Decimal(found[2]), found[3]) for found in decimals if found]
    if len(set(keys)) < len(chosen):  # text and number in turn: ("frame_", 10, "")
        parts = [re.split(r"(\d+)", stem) for stem in stems]
        keys = [tuple(int(part) if k % 2 else part for k, part in enumerate(one)) for one in parts]
    order = sorted(range(len(chosen)), key=lambda k: (keys[k], str(chosen[k])))
    return [chosen[k] for k in order]


def read_rgb(source: Path | bytes, remedy: str = "replace it with a whole image") -> np.ndarray:
    """Read an image file as uint8 (H, W, 3) RGB, upright. Training, evaluation and widgets see this picture of a file.

    Deeper grey than 8 bits is scaled down, floating-point grey is taken as 0..1 where nothing exceeds 1 and else as
    0..255, transparency is dropped, of an animation the first picture is taken, and EXIF orientation is obeyed.

    Args:
        source: a file, or its content.
        remedy: what the person may do, for the message.

    Raises:
        InputError: missing, empty, damaged, no image, or larger than `MOST_PIXELS`.
    """
    shown = "image" if isinstance(source, bytes) else source
    with reading(shown, remedy), Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"{image.width}x{image.height} pixels, which no frame has")
        image.load()
        with suppress(Exception):  # a damaged EXIF block says nothing about the picture
            ImageOps.exif_transpose(image, in_place=True)
        if image.mode == "F":
            grey = np.nan_to_num(np.asarray(image), posinf=0, neginf=0)  # (H, W)
            grey = grey * 255 if grey.max() <= 1 else grey
            return np.repeat(np.rint(grey.clip(0, 255)).astype(np.uint8)[..., None], 3, axis=-1)
        if image.mode.startswith("I"):  # 16 bits; convert("RGB") would clip instead of scale
            grey = (np.asarray(image, dtype=np.uint32) >> 8).clip(0, 255).astype(np.uint8)  # (H, W)
            return np.repeat(grey[..., None], 3, axis=-1)
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        return np.asarray(image.convert("RGB"))


def check_size(image: Image.Image) -> None:
    """Refuse an opened image whose header claims too many pixels, before any is decoded.

    Raises:
        BadFile: more than `MOST_PIXELS`.
    """
    if image.width * image.height > MOST_PIXELS:
        raise BadFile(f"{image.width}x{image.height} pixels, which no frame has")


def frame_names(folder: Path) -> list[str]:
    """Names of the frame files of a folder, `in_order`. Hidden files and other types do not count."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith(".")]
    return in_order(name for name in names if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES)


def are_numbered(names: Sequence[str]) -> bool:
    """True where the sorted names are exactly 00000.jpg, 00001.jpg, ..."""
    return all(name == f"{j:05d}.jpg" for j, name in enumerate(names))
