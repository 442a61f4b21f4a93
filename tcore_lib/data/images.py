"""One image file, or the names of a folder of frames: read as RGB, reduced, ordered, or refused with a reason."""

import io
import os
import re
from collections import Counter
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
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2"})
MOST_PIXELS = 100_000_000  # of a frame; a small file can claim any number and fill the memory


def read_rgb(source: Path | bytes, remedy: str = "replace it with a whole image") -> np.ndarray:
    """Read an image file, or its content, as uint8 (H, W, 3) RGB: what training, evaluation and widgets see of a file.

    It is upright by EXIF. Deeper grey than 8 bits is scaled down, floating-point grey is taken as 0..1 where nothing
    exceeds 1 and else as 0..255, transparency is dropped. InputError: missing, damaged, no image, over `MOST_PIXELS`.
    """
    shown = "an image" if isinstance(source, bytes) else source
    with reading(shown, remedy), Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
        refuse_huge(*opened.size)
        opened.load()
        image: Image.Image = opened
        with suppress(Exception):  # a damaged EXIF block says nothing about the picture
            ImageOps.exif_transpose(image, in_place=True)
        if image.mode == "F":
            grey = np.nan_to_num(np.asarray(image), posinf=0, neginf=0)  # (H, W)
            grey = np.rint(grey * 255 if grey.max() <= 1 else grey)
            image = Image.fromarray(grey.clip(0, 255).astype(np.uint8))
        elif image.mode.startswith("I"):  # 16 bits; convert("RGB") would clip instead of scale
            grey = np.asarray(image, dtype=np.uint32) >> 8  # (H, W)
            image = Image.fromarray(grey.clip(0, 255).astype(np.uint8))
        elif image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        return np.asarray(image.convert("RGB"))


def refuse_huge(width: int, height: int) -> None:
    """Raises: ValueError: more than `MOST_PIXELS`."""
    if width * height > MOST_PIXELS:
        raise ValueError(f"{width}x{height} pixels, which no frame has")


def reduced_size(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """(width, height) with the short side at most `short_side` pixels and the aspect kept. Never enlarges."""
    short = min(width, height)
    if short_side is None or short <= short_side:
        return width, height
    return max(1, round(width * short_side / short)), max(1, round(height * short_side / short))


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize uint8 (H, W, 3) to `size` = (width, height), bicubic with antialias (Pillow)."""
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def reduce_short_side(image: np.ndarray, short_side: int | None) -> np.ndarray:
    """`resize` to `reduced_size`."""
    return resize(image, reduced_size(image.shape[1], image.shape[0], short_side))


def common_size(folder: Path, frames: Iterable[np.ndarray]) -> tuple[int, int]:
    """(width, height) of the frames (H, W, 3) of a folder. InputError: they differ."""
    sizes = {(image.shape[1], image.shape[0]) for image in frames}
    if len(sizes) > 1:
        shown = ", ".join(f"{width}x{height}" for width, height in sorted(sizes)[:3])
        raise InputError(f"{folder} holds frames of different sizes ({shown}); give each size a folder of its own.")
    return sizes.pop()


def in_order(names: Iterable[Name]) -> list[Name]:
    """Frame files (names, or paths by their last part) in the order of their numbers, whatever the padding or prefix.

    Everything that orders frames does it here. Case and suffix do not count. Names that hold one decimal number each
    (seconds: 0.04, 0.1, 0.12) go by its value, unless two would be equal (1.1 and 1.10: frames 1 and 10 of video 1).
    """
    chosen = list(names)
    return [name for _, _, name in sorted(zip(_keys(chosen), map(str, chosen), chosen, strict=True))]


def _keys(names: Sequence[str | Path]) -> list[tuple[object, ...]]:
    """What frames are ordered by: text and numbers in turn, ("frame_", 10, ""), or with one decimal number each."""
    stems = [_stem(name) for name in names]
    decimals = [re.fullmatch(r"(\D*)(\d+\.\d+)(\D*)", stem) for stem in stems]
    keys: list[tuple[object, ...]] = [(found[1], Decimal(found[2]), found[3]) for found in decimals if found]
    if len(set(keys)) == len(stems):
        return keys
    parts = [re.split(r"(\d+)", stem) for stem in stems]
    return [tuple(int(part) if k % 2 else part for k, part in enumerate(one)) for one in parts]


def _stem(name: str | Path) -> str:
    return os.path.splitext(os.path.basename(name))[0].casefold()


def is_image(name: str) -> bool:
    """Whether a file name is that of an image; hidden files are none (a Mac's `._00000.jpg` holds no picture)."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def has_number(name: str) -> bool:
    """Whether a picture may be one of several frames; cover.jpg and thumbnail.jpg beside them are none."""
    return bool(re.search(r"\d", _stem(name)))


def pattern(name: str) -> str:
    """A name without its numbers: frame_# for both frame_0007.jpg and frame_12.jpg."""
    return re.sub(r"\d+", "#", _stem(name))


def frame_names(folder: Path) -> list[str]:
    """The `sequence` of a folder."""
    return sequence(list(filter(is_image, os.listdir(folder))), folder)


def sequence(names: list[str], folder: Path) -> list[str]:
    """The frames among the pictures of a folder, `in_order`: those that carry a number, or the one picture there is.

    InputError: no picture, none with a number, or several sequences (the names of one differ in their numbers alone).
    """
    if len(names) == 1:
        return names
    numbered = in_order(filter(has_number, names))
    if not numbered:
        raise InputError(f"{folder} holds {len(names)} pictures, none with a number in its name; number them.")
    patterns = Counter(map(pattern, numbered))
    if len(patterns) > 1 or _starts_again(_keys(numbered)):
        shown = ", ".join(f"{count} like {pattern!r}" for pattern, count in patterns.most_common(3))
        raise InputError(
            f"{folder} holds several sequences or a number twice ({shown}); give each sequence a folder of its own."
        )
    return numbered


def _starts_again(keys: list[tuple[object, ...]]) -> bool:
    """Whether a number stands twice, or the last one starts again where another changes: cam1_01 ... cam2_01 ..."""
    varying = [column for column in zip(*keys, strict=True) if len(set(column)) > 1]
    runs = Counter(zip(*varying[:-1], strict=True))
    again = len(runs) > 1 and max(runs.values()) > 1 and len(set(varying[-1])) < len(keys)
    return again or len(set(keys)) < len(keys)
