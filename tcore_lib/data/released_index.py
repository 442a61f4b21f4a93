"""The released code's index: entries-TRAIN.npy, class-ids-TRAIN.npy, class-names-TRAIN.npy, labels.txt. No pickle.

Layout after the released `base_model/data/datasets/kinetics.py`: an entry is (video_id, class_index, class_id,
class_name); `class_index` counts the class folders in sorted order, `class_id` is "class_<id>", and labels.txt has a
line "<id>,<name>" per class.
"""

import csv
import re
import tokenize
import zipfile
from pathlib import Path

import numpy as np

from tcore_lib.data.images import one_line
from tcore_lib.data.index import FrameIndex
from tcore_lib.errors import InputError
from tcore_lib.files import atomic_path, write_text


def export_released(index: FrameIndex, folder: str | Path, split: str = "train") -> list[Path]:
    """Write the four files for an index of `<class>/<video>` frame folders; returns their paths.

    The ids in labels.txt are the positions in `index.class_names`.

    Raises:
        InputError: the index is of another kind, or its folders are not `<class>/<video>`.
    """
    folder = Path(folder)
    parts = [str(path).split("/") for path in index.paths]
    if index.kind != "frames" or any(len(p) != 2 or p[0] != index.class_name(i) for i, p in enumerate(parts)):
        raise InputError(
            f"The index of {index.root} is not of <class>/<video> frame folders; only such a one can be exported."
        )
    used = sorted({class_name for class_name, _ in parts})
    position = {name: k for k, name in enumerate(used)}
    ids = np.array([f"class_{index.class_names.index(name)}" for name in used])
    names = np.array(used)
    longest = max([25, *(len(video) for _, video in parts)])  # 25 in the released file, which cuts longer names
    dtype = [("video_id", f"<U{longest}"), ("class_index", "<u4"), ("class_id", ids.dtype), ("class_name", names.dtype)]
    rows = [(video, position[name], ids[position[name]], name) for name, video in parts]
    arrays = {"entries": np.array(rows, dtype=dtype), "class-ids": ids, "class-names": names}
    written = [folder / f"{name}-{split.upper()}.npy" for name in arrays]
    for path, array in zip(written, arrays.values(), strict=True):
        with atomic_path(path) as temporary:
            np.save(temporary, array, allow_pickle=False)
    write_text(folder / "labels.txt", "".join(f"{k},{name}\n" for k, name in enumerate(index.class_names)))
    return [*written, folder / "labels.txt"]


def read_released(path: str | Path) -> tuple[list[tuple[str, str]], list[str]]:
    """Read an entries-*.npy and, where it lies beside it, labels.txt.

    Returns:
        (class, video) of every entry, in its order, and all class names in the order of their ids.

    Raises:
        InputError: a file is missing, is no plain array (pickled objects are refused), or a name is not a plain folder
            name.
    """
    path = Path(path)
    try:
        with open(path, "rb") as stream:
            if stream.read(6) != b"\x93NUMPY":  # an archive of arrays, or a pickle, is opened by no means
                raise ValueError("it is no NumPy array")
        # Mapped, not read: a header may claim any number of rows.
        entries = np.load(path, mmap_mode="r", allow_pickle=False)
        classes, videos, labels = (_texts(entries[key]) for key in ("class_name", "video_id", "class_id"))
        ids = dict(zip(classes, labels, strict=True))
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); the released code's dump_files.py writes it."
        ) from error
    except (
        ValueError, KeyError, IndexError, TypeError, EOFError, AttributeError, SyntaxError, OverflowError, MemoryError,
        RecursionError, tokenize.TokenError, zipfile.BadZipFile,
    ) as error:  # fmt: skip
        raise InputError(f"{path} is not a released index ({one_line(error)}); write it again.") from error
    for class_name, video in zip(classes, videos, strict=True):
        if not (_is_plain(class_name) and _is_plain(video)):
            raise InputError(
                f"{path} names the video {video!r} of class {class_name!r}, which is no plain folder name."
            )
    numbers = _labels(path.with_name("labels.txt"))
    if not numbers:
        numbers = {name: int(found[0]) for name, text in ids.items() if (found := re.findall(r"\d+$", text))}
    names = sorted(numbers, key=lambda name: numbers[name])
    return list(zip(classes, videos, strict=True)), names + sorted(set(classes) - set(names))


def _texts(column: np.ndarray) -> list[str]:
    """A column of text as strings. NumPy makes strings even of numbers that are no letters, and Python stumbles later."""
    if column.dtype.kind != "U" or column.ndim != 1:
        raise ValueError("a column is not text")
    letters = np.ascontiguousarray(column).view(np.dtype(np.uint32).newbyteorder(column.dtype.byteorder))
    if ((letters > 0x10FFFF) | ((letters >= 0xD800) & (letters < 0xE000))).any():
        raise ValueError("a column is not text")
    return [str(text) for text in column.tolist()]


def _labels(path: Path) -> dict[str, int]:
    """Class name -> id, of a labels.txt; empty where there is none."""
    if not path.is_file():
        return {}
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            return {row[1]: int(row[0]) for row in csv.reader(stream) if len(row) == 2 and row[0].isdecimal()}
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({one_line(error)}); restore it or remove it.") from error


def _is_plain(name: str) -> bool:
    return bool(name) and name not in (".", "..") and not set(name) & set("/\\\0")
