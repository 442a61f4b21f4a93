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

import numpy as np

from tcore_lib import params
from tcore_lib.data import images
from tcore_lib.data.decode import VIDEO_SUFFIXES
from tcore_lib.errors import InputError
from tcore_lib.files import reading
from tcore_lib.params import Layout

UNLABELLED = "unlabelled"
SPLITS = {"train", "val", "valid", "validate", "validation", "test", "annotations"}
# Folders that network disks, operating systems and viewers put between a person's own.
STRAY = re.compile(r"\..*|@.*|#.*|\$.*|__MACOSX|_?thumb(nail)?s?|lost\+found|System Volume Information", re.IGNORECASE)
OURS = re.compile(r"(bad_files|left_out)-[\w-]+\.csv|index-[\w-]+\.parquet")  # written by `prepare` into its root

Folders = dict[Path, list[str]]  # folder -> names of its files, or pictures; each folder before those inside it


@dataclass
class Source:
    """What `find` found."""

    root: Path  # the folder that was looked through
    layout: Layout  # not auto
    guessed: str  # what `layout: auto` was guessed from; empty where the layout was given
    items: dict[str, Path]  # `<class>/<name>` -> a video, a folder of frames or an image; sorted
    left_out: list[tuple[str, str]]  # (file, folder or row; why it is not used)

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
    inner = {path.name for path in root.iterdir() if path.is_dir()}
    if (root / "frames" / cfg.split).is_dir() and not any(name.startswith(".prepare-") for name in inner):
        root = root / "frames" / cfg.split  # the released layout
    elif cfg.split in inner and {name for name in inner if not STRAY.fullmatch(name)} <= {cfg.split, *SPLITS}:
        root = root / cfg.split  # train beside val, but not beside classes

    found = Source(root, cfg.layout, "", {}, [])
    tree = _walk(found)
    wanted = [folder / name for folder, names in tree.items() for name in names if _is_video(name)]
    folders = {folder: pictures for folder, names in tree.items() if (pictures := list(filter(images.is_image, names)))}
    if cfg.layout == "auto":
        found.layout, found.guessed = _guess(root, len(wanted), folders)
    fits = _is_video if found.layout == "videos" else images.is_image
    strange = [folder / name for folder, names in tree.items() for name in names if not fits(name)]
    found.left_out += [(str(path), f"files of type {path.suffix.lower() or path.name!r}") for path in strange]
    if found.layout == "frames":
        wanted = _frame_folders(folders, found)
    elif found.layout == "images":
        wanted = [folder / name for folder, names in folders.items() for name in names]
    _name(wanted, found, cfg)
    if not found.items:
        told = "; ".join(found.summary().split("\n  "))
        raise InputError(f"There is nothing to use in {told}; check data.source and data.layout.")
    return found


def _walk(found: Source) -> Folders:
    """The files below the root. Links to folders are followed, each folder is entered once; hidden files do not count."""
    tree: Folders = {}
    entered: set[str] = set()
    for folder, inner, files in os.walk(found.root, followlinks=True):
        real = os.path.realpath(folder)
        if real in entered:
            inner.clear()
            continue
        entered.add(real)
        ours = {"frames"} if any(name.startswith(".prepare-") for name in inner) else set()
        stray = set(filter(STRAY.fullmatch, inner))
        inner[:] = sorted(set(inner) - stray - ours)
        disks = [f"{folder}/{name}" for name in sorted(stray) if name[0] != "."]
        found.left_out += [(path, "stray folders of a disk or viewer") for path in disks]
        tree[Path(folder)] = sorted(name for name in files if name[0] != "." and not OURS.fullmatch(name))
    return tree


def _is_video(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def _guess(root: Path, videos: int, folders: Folders) -> tuple[Layout, str]:
    """The layout and what speaks for it. InputError: two ways to read it; a wrong guess would train on stills unnoticed."""
    sequences = [(folder, names) for folder, names in folders.items() if _is_sequence(names)]
    pictures, frames = sum(map(len, folders.values())), sum(len(names) for _, names in sequences)
    counts = (
        f"{videos} video files, {len(sequences)} folders of numbered pictures ({frames}), {pictures} pictures in all"
    )
    if pictures <= 4 * videos:
        return "videos", counts
    if not videos and frames < 0.1 * pictures:
        return "images", counts
    # <class>/<video>/<frame>, or named as frames: frame_0001.jpg, img_f1.png; 00000.jpg, as this library counts; in a folder
    # called clip.mp4. <folder>/0001.jpg may as well be a class of photos.
    named = re.compile(r"(.*[\W_])?(frame|frm|f)[\W_]*\d|00000\.", re.IGNORECASE)
    certain = all(
        folder.parent not in (root, root.parent) or named.match(names[0]) or _is_video(folder.name)
        for folder, names in sequences
    )
    if not videos and frames >= 0.9 * pictures and certain:
        return "frames", counts
    raise InputError(
        f"{root} holds {counts}, which may be read in several ways; say data.layout (--layout): {'videos, ' * bool(videos)}"
        f"frames for {len(sequences)} videos, or images for {pictures} photos."
    )


def _is_sequence(names: list[str]) -> bool:
    """Whether nine pictures of ten are frames: a number in their names grows in steps of which nine of ten are alike.

    Alike is within a tenth, or within 1: every 2.5th frame is 0, 2, 5, 7; at 30 a second, seconds are 0.033, 0.067, 0.100. Names
    that differ in more than numbers (0001_rgb, 0001_depth) are looked at apart; 1.jpg and 1.png count once. Such a folder holds
    frames, too, though not of one sequence.
    """
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(images.pattern(name), []).append(name)
    regular = 0
    for group in alike.values():
        stems = list(dict.fromkeys(os.path.splitext(name)[0] for name in images.in_order(group)))
        for column in zip(*(re.findall(r"\d+(?:\.\d+)?", stem) for stem in stems), strict=False):
            steps = np.diff(np.array(column, dtype=float))
            middle = np.median(steps) if len(steps) else 0.0
            rounding = 0.0 if "." in "".join(column) else 1.0
            if middle > 0 and np.mean(np.abs(steps - middle) <= max(rounding, 0.1 * middle)) >= 0.9:
                regular += len(group)
                break
    return regular >= 0.9 * len(names)


def _frame_folders(folders: Folders, source: Source) -> list[Path]:
    """The folders that hold a video's frames. What lies inside one is no video of its own."""
    found: list[Path] = []
    below: Counter[Path] = Counter()  # pictures in the folders below a folder
    for folder, names in folders.items():
        below.update(dict.fromkeys(folder.parents, len(names)))
    for folder, names in folders.items():
        if found and found[-1] in folder.parents:
            source.left_out.append((str(folder), "folders inside a video's folder"))
        elif below[folder] > 5 * len(names) or (below[folder] and not _is_sequence(names)):
            source.left_out += [(str(folder / name), "pictures outside a video's folder") for name in names]
        else:
            found.append(folder)
            others = [name for name in names if len(names) > 1 and not images.has_number(name)]
            source.left_out += [(str(folder / name), "pictures without a number among frames") for name in others]
    return found


def _name(paths: list[Path], found: Source, cfg: params.Data) -> None:
    """Fill in `<class>/<name>` -> path: the class is the first folder below the root; deeper ones go before the name.

    With annotations, a file belongs to the row of its whole name, else to the first row of its id. The second of a.mp4 and
    a.avi keeps its suffix; a name that no index can hold is left out.
    """
    labels = _labels(params.resolve(cfg.annotations), cfg.split) if cfg.annotations else {}
    used, items = set(), {}
    for path in paths:
        stem = path.stem if found.layout == "videos" else path.name
        class_name, *deeper = path.relative_to(found.root).parts[:-1] or [UNLABELLED]
        if cfg.annotations:  # <id>_<start>_<end>, with zeros before the numbers or not
            parts = re.fullmatch(
                r"(.+)_0*(\d+)_0*(\d+)", os.path.splitext(stem)[0] if found.layout == "images" else stem
            )
            clip = parts.groups() if parts else (stem,)
            key = clip if clip in labels else clip[:1]
            if key not in labels:
                found.left_out.append((str(path), "files that the annotations do not name"))
                continue
            used.add(key)
            class_name, deeper = labels[key], []
        target = f"{class_name}/{'_'.join([*deeper, stem])}"
        unique = f"{target}{path.suffix}" if target in items else target
        if unique in items:
            found.left_out.append((str(path), "files whose name another one has"))
        elif str(path).encode(errors="replace").decode() != str(path):
            found.left_out.append((ascii(str(path)), "files whose name is no text; rename them"))
        else:
            items[unique] = path
    found.items = dict(sorted(items.items()))
    missing = sorted(key for key in labels if len(key) == 3 and key not in used and key[:1] not in used)
    found.left_out += [("_".join(key), "rows of the annotations without a file") for key in missing]


def _labels(annotations: Path, split: str) -> dict[tuple[str, ...], str]:
    """(id, start, end) and (id,) -> class, by Kinetics' official CSV, with a byte order mark, in UTF-16, with semicolons."""
    labels: dict[tuple[str, ...], str] = {}
    with reading(
        annotations, "data.annotations takes the official CSV (label, youtube_id, time_start, time_end, split)"
    ):
        data = annotations.read_bytes()
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        separator = max(",;\t", key=text.partition("\n")[0].count)
        for row in csv.DictReader(io.StringIO(text, newline=""), delimiter=separator):
            if (row.get("split") or split)[:3] == split[:3]:  # val, validate
                start, end = (str(int(float(row[name]))) for name in ("time_start", "time_end"))
                # named as in the released layout: "golf (putting)" -> "golf_putting"
                label = re.sub(r'[()"\\\0]', "", re.sub(r"[/ ]", "_", (row.get("label") or "").strip())).lstrip(".")
                for key in ((row["youtube_id"], start, end), (row["youtube_id"],)):
                    labels.setdefault(key, label or UNLABELLED)
    if not labels:
        raise InputError(f"{annotations} has no row of split {split!r}; check data.split and data.annotations.")
    return labels
