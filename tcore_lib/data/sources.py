"""What lies on disk: a folder of videos, of frame folders or of images -> items, in the same order every time.

Nothing is dropped in silence: whatever is not used stands in `Source.left_out` with its reason.
"""

import csv
import io
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from tcore_lib import params
from tcore_lib.data import images
from tcore_lib.data.decode import VIDEO_SUFFIXES
from tcore_lib.errors import InputError
from tcore_lib.files import reading

UNLABELLED = "unlabelled"
SPLITS = {"train", "val", "valid", "validate", "validation", "test", "annotations"}
# Folders that network disks, operating systems and viewers put between a person's own.
STRAY = re.compile(r"\..*|@.*|#.*|\$.*|__MACOSX|_?thumb(nail)?s?|lost\+found|System Volume Information", re.IGNORECASE)
OURS = re.compile(r"(bad_files|left_out)-[\w-]+\.csv|index-[\w-]+\.parquet")  # written by `prepare` into its root

OFFICIAL = "data.annotations takes the official CSV (label, youtube_id, time_start, time_end, split)"

Layout = Literal["videos", "frames", "images"]
LeftOut = list[tuple[str, str]]  # (file, folder or row; why it is not used)
Key = tuple[str, ...]  # (id, start, end) of a row of Kinetics' CSV, or (id,)
Named = list[tuple[str, Path]]  # `<class>/<name>`, file or folder
Folders = dict[Path, list[str]]  # folder -> names of its files, or pictures; each folder before those inside it


@dataclass
class Source:
    """What `find` found."""

    root: Path  # the folder that was looked through
    layout: Layout
    guessed: str  # what `layout: auto` was guessed from; empty where the layout was given
    items: dict[str, Path]  # `<class>/<name>` -> a video, a folder of frames or an image; sorted
    left_out: LeftOut

    def summary(self) -> str:
        """What is going to be used and what is not, in counts, for a person to check before anything is written."""
        classes = len({target.split("/")[0] for target in self.items})
        what = {"videos": "videos", "frames": "videos as folders of frames", "images": "single images (no motion)"}
        lines = [f"{self.root}: {len(self.items)} {what[self.layout]} in {classes} class{'es' * (classes != 1)}"]
        if self.guessed:
            lines.append(f"guessed from {self.guessed}; data.layout (--layout) says it for certain")
        examples = {reason: name for name, reason in reversed(self.left_out)}
        for reason, count in Counter(reason for _, reason in self.left_out).most_common():
            lines.append(f"left out: {count} {reason}, such as {examples[reason]}")
        return "\n  ".join(lines).encode(errors="backslashreplace").decode()


def find(cfg: params.Data, source: Path | None = None) -> Source:
    """Look at what `cfg.source`, or `source` instead, holds. What `prepare` wrote there itself is not looked into.

    Raises:
        InputError: no folder, nothing usable in it, or `layout: auto` finds what may be read in two ways.
    """
    root = params.resolve(cfg.source) if source is None else source
    if not root.is_dir():
        raise InputError(f"data.source = {root} is not a folder; give a folder of videos, frame folders or images.")
    prepared = params.resolve(cfg.root)
    splits = [path.parent.name.removeprefix(".prepare-") for path in prepared.glob(".prepare-*/settings.json")]
    ours = {os.path.realpath(prepared / "frames" / split) for split in splits}
    root = _step_into_split(root, cfg.split, ours)

    left_out: LeftOut = []
    tree = _walk(root, ours, left_out)
    videos = [folder / name for folder, names in tree.items() for name in names if _is_video(name)]
    folders = {folder: pictures for folder, names in tree.items() if (pictures := list(filter(images.is_image, names)))}
    layout, guessed = _guess(root, len(videos), folders) if cfg.layout == "auto" else (cfg.layout, "")
    fits = _is_video if layout == "videos" else images.is_image
    strange = [folder / name for folder, names in tree.items() for name in names if not fits(name)]
    left_out += [(str(path), f"files of type {path.suffix.lower() or path.name!r}") for path in strange]
    wanted = videos
    if layout == "frames":
        wanted = _frame_folders(folders, left_out)
    elif layout == "images":
        wanted = [folder / name for folder, names in folders.items() for name in names]
    named = _by_annotations(wanted, layout, cfg, left_out) if cfg.annotations else _by_folder(wanted, layout, root)
    items = _distinct(named, left_out)
    found = Source(root, layout, guessed, dict(sorted(items.items())), left_out)
    if not items:
        told = "; ".join(found.summary().split("\n  "))
        raise InputError(f"There is nothing to use in {told}; check data.source and data.layout.")
    return found


def _step_into_split(root: Path, split: str, ours: set[str]) -> Path:
    """Into frames/train (the released layout) or into train beside val, but not beside classes, nor into our own."""
    released = root / "frames" / split
    if released.is_dir() and os.path.realpath(released) not in ours:
        return released
    inner = {path.name for path in root.iterdir() if path.is_dir() and not STRAY.fullmatch(path.name)}
    return root / split if split in inner and inner <= {split, *SPLITS} else root


def _walk(root: Path, ours: set[str], left_out: LeftOut) -> Folders:
    """The files below root. Links to folders are followed, each folder is entered once; hidden files do not count."""
    found: Folders = {}
    entered = set(ours)
    for folder, inner, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in entered:
            inner.clear()
            continue
        entered.add(real)
        stray = sorted(filter(STRAY.fullmatch, inner))
        inner[:] = sorted(set(inner) - set(stray))
        left_out += [(f"{folder}/{name}", "stray folders of a disk or viewer") for name in stray if name[0] != "."]
        found[Path(folder)] = sorted(name for name in files if name[0] != "." and not OURS.fullmatch(name))
    return found


def _is_video(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


# ---------------------------------------------------------------------------------------------- frames or photos


def _guess(root: Path, videos: int, folders: Folders) -> tuple[Layout, str]:
    """The layout and what speaks for it.

    Raises:
        InputError: it may be read in two ways; a wrong guess would train on stills without a word.
    """
    sequences = [(folder, names) for folder, names in folders.items() if _is_sequence(names, folder)]
    pictures, frames = sum(map(len, folders.values())), sum(len(names) for _, names in sequences)
    counts = (
        f"{videos} video files, {len(sequences)} folders of numbered pictures ({frames}), {pictures} pictures in all"
    )
    if pictures <= 4 * videos:
        return "videos", counts
    if not videos and frames < 0.1 * pictures:
        return "images", counts
    # <class>/<video>/<frame>, or frames by name; <folder>/0001.jpg may as well be a class of photos
    certain = all(
        folder.parent not in (root, root.parent) or _named_as_frames(folder.name, names[0])
        for folder, names in sequences
    )
    if not videos and frames >= 0.9 * pictures and certain:
        return "frames", counts
    raise InputError(
        f"{root} holds {counts}, which may be read in several ways; say data.layout (--layout): {'videos, ' * bool(videos)}"
        f"frames for {len(sequences)} videos, or images for {pictures} photos."
    )


def _named_as_frames(folder: str, first: str) -> bool:
    """frame_0001.jpg, img_f1.png; 00000.jpg, as this library counts; or any name in a folder called clip.mp4."""
    return bool(re.match(r"(.*[\W_])?(frame|frm|f)[\W_]*\d|00000\.", first.lower())) or _is_video(folder)


def _is_sequence(names: list[str], folder: Path) -> bool:
    """Whether a number in the names of pictures grows in steps that are the same nine times of ten."""
    try:
        ordered = images.sequence(names, folder)
    except InputError:
        return False
    numbers = [re.findall(r"\d+(?:\.\d+)?", os.path.splitext(name)[0]) for name in ordered]
    for column in zip(*numbers, strict=False):
        steps, counts = np.unique(np.diff(np.array(column, dtype=float)).round(6), return_counts=True)
        if (steps[counts >= 0.9 * counts.sum()] > 0).any():
            return True
    return False


def _frame_folders(folders: Folders, left_out: LeftOut) -> list[Path]:
    """The folders that hold a video's frames. What lies inside one is no video of its own."""
    found: list[Path] = []
    below: Counter[Path] = Counter()  # pictures in the folders below a folder
    for folder, names in folders.items():
        below.update(dict.fromkeys(folder.parents, len(names)))
    for folder, names in folders.items():
        if found and found[-1] in folder.parents:
            left_out.append((str(folder), "folders inside a video's folder"))
        elif below[folder] > 5 * len(names) or (below[folder] and not _is_sequence(names, folder)):
            left_out += [(str(folder / name), "pictures outside a video's folder") for name in names]
        else:
            found.append(folder)
            others = [name for name in names if len(names) > 1 and not images.has_number(name)]
            left_out += [(str(folder / name), "pictures without a number among frames") for name in others]
    return found


# ---------------------------------------------------------------------------------------------- names and classes


def _by_folder(paths: list[Path], layout: Layout, root: Path) -> Named:
    """`<class>/<name>`: the first folder below the root is the class, deeper ones go before the name."""
    named = []
    for path in paths:
        class_name, *deeper = path.relative_to(root).parts[:-1] or [UNLABELLED]
        named.append((f"{class_name}/{'_'.join([*deeper, path.stem if layout == 'videos' else path.name])}", path))
    return named


def _distinct(named: Named, left_out: LeftOut) -> dict[str, Path]:
    """a.mp4 beside a.avi: the second one keeps its suffix. A name that no index can hold is left out."""
    items: dict[str, Path] = {}
    for target, path in named:
        unique = f"{target}{path.suffix}" if target in items else target
        if unique in items:
            left_out.append((str(path), "files whose name another one has"))
        elif str(path).encode(errors="replace").decode() != str(path):
            left_out.append((ascii(str(path)), "files whose name is no text; rename them"))
        else:
            items[unique] = path
    return items


def _by_annotations(paths: list[Path], layout: Layout, cfg: params.Data, left_out: LeftOut) -> Named:
    """`<class>/<name>` by Kinetics' official CSV.

    A file belongs to the row of its whole name (`<id>_<start>_<end>`, with zeros before the numbers or not), else to the
    first row of its id.
    """
    labels: dict[Key, str] = {}
    annotations, split = params.resolve(str(cfg.annotations)), cfg.split
    with reading(annotations, OFFICIAL):
        for row in _csv_rows(annotations):
            if (row.get("split") or split)[:3] == split[:3]:  # val, validate
                start, end = (str(int(float(row[name]))) for name in ("time_start", "time_end"))
                for whole in ((row["youtube_id"], start, end), (row["youtube_id"],)):
                    labels.setdefault(whole, _class_folder(row.get("label") or UNLABELLED))
    if not labels:
        raise InputError(f"{annotations} has no row of split {split!r}; check data.split and data.annotations.")
    named, used = [], set()
    for path in paths:
        stem = path.name if layout == "frames" else path.stem
        parts = re.fullmatch(r"(.+)_0*(\d+)_0*(\d+)", stem)
        clip: Key = parts.groups() if parts else (stem,)
        key = clip if clip in labels else clip[:1]
        if key in labels:
            used.add(key)
            named.append((f"{labels[key]}/{path.name if layout == 'images' else stem}", path))
        else:
            left_out.append((str(path), "files that the annotations do not name"))
    missing = sorted(key for key in labels if len(key) == 3 and key not in used and key[:1] not in used)
    left_out += [("_".join(key), "rows of the annotations without a file") for key in missing]
    return named


def _csv_rows(path: Path) -> "csv.DictReader[str]":
    """Rows of a CSV as people save it: with a byte order mark, in UTF-16, with semicolons or tabs."""
    data = path.read_bytes()
    text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    header = text.partition("\n")[0]
    return csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count))


def _class_folder(label: str) -> str:
    """A label as the released layout names its folder: "golf (putting)" -> "golf_putting"."""
    return re.sub(r'[()"\\\0]', "", re.sub(r"[/ ]", "_", label.strip())).lstrip(".") or UNLABELLED
