"""What lies on disk: a folder of videos, of frame folders or of images -> items, in the same order every time.

Nothing is dropped in silence: whatever is not used stands in `Source.left_out` with its reason.
"""

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

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
OURS = re.compile(r"bad_files\.csv|left_out\.csv|index-[\w-]+\.parquet")  # written by `prepare` into its root

Layout = Literal["videos", "frames", "images"]
LeftOut = list[tuple[str, str]]  # (file, folder or row; why it is not used)
Tree = dict[str, list[str]]  # folder relative to the root -> its files; each folder before those inside it


class Item(NamedTuple):
    """One video, frame folder or image."""

    class_name: str
    name: str
    path: Path

    @property
    def target(self) -> str:
        """`<class>/<name>`, which no other item of a source has."""
        return f"{self.class_name}/{self.name}"


@dataclass
class Source:
    """What `find` found."""

    root: Path  # the folder that was looked through
    layout: Layout
    guessed: str  # what `layout: auto` was guessed from; empty where the layout was given
    items: list[Item] = field(default_factory=list)  # sorted by target
    left_out: LeftOut = field(default_factory=list)
    class_names: list[str] = field(default_factory=list)  # all that the annotations name, sorted

    def summary(self) -> str:
        """What is going to be used and what is not, in counts, for a person to check before anything is written."""
        classes = len({item.class_name for item in self.items})
        what = {"videos": "videos", "frames": "videos as folders of frames", "images": "single images (no motion)"}
        lines = [f"{self.root}: {len(self.items)} {what[self.layout]} in {classes} class{'es' * (classes != 1)}"]
        if self.guessed:
            lines.append(f"  guessed from {self.guessed}; data.layout (--layout) says it for certain")
        examples = {reason: name for name, reason in reversed(self.left_out)}
        for reason, count in Counter(reason for _, reason in self.left_out).most_common():
            lines.append(f"  left out: {count} {reason}, such as {examples[reason]}")
        return "\n".join(lines).encode(errors="backslashreplace").decode()


def find(cfg: params.Data, source: Path | None = None) -> Source:
    """Look at what `cfg.source` holds. What `prepare` wrote there itself is not looked into.

    Args:
        cfg: source, layout, annotations, root and split are read.
        source: used instead of `cfg.source`.

    Raises:
        InputError: no folder, nothing usable in it, or `layout: auto` finds what may be read in two ways.
    """
    if cfg.source == "synthetic" and source is None:
        raise InputError(
            "data.source is synthetic: these videos are drawn by notebook 00, which then says where they lie."
        )
    root = params.resolve(cfg.source) if source is None else Path(source)
    if not root.is_dir():
        raise InputError(f"data.source = {root} is not a folder; give a folder of videos, frame folders or images.")
    prepared = params.resolve(cfg.root)
    splits = [path.parent.name.removeprefix(".prepare-") for path in prepared.glob(".prepare-*/settings.json")]
    ours = {os.path.realpath(prepared / "frames" / split) for split in splits}
    root = _step_into_split(root, cfg.split, ours)
    left_out: LeftOut = []
    tree = _walk(root, ours, left_out)
    layout, guessed = _guess(root, tree) if cfg.layout == "auto" else (cfg.layout, "")
    if layout == "frames":
        items = _frame_folders(root, tree, left_out)
    else:
        items = _single_files(root, tree, _is_video if layout == "videos" else images.is_image, left_out)
    found = Source(root, layout, guessed, items, left_out)
    if cfg.annotations:
        _label(found, params.resolve(cfg.annotations), cfg.split)
    found.items = sorted(_distinct(found), key=lambda item: item.target)
    if not found.items:
        raise InputError(f"No {layout} to use (data.layout = {cfg.layout}). {found.summary()}; check data.source.")
    return found


def _step_into_split(root: Path, split: str, ours: set[str]) -> Path:
    """Into frames/train (the released layout) or into train beside val, but not beside classes, nor into our own."""
    released = root / "frames" / split
    if released.is_dir() and os.path.realpath(released) not in ours:
        return released
    inner = {entry.name for entry in os.scandir(root) if entry.is_dir() and not STRAY.fullmatch(entry.name)}
    return root / split if split in inner and inner <= {split, *SPLITS} else root


def _walk(root: Path, ours: set[str], left_out: LeftOut) -> Tree:
    """The files below root. Links to folders are followed, each folder is entered once; hidden files do not count."""
    tree: Tree = {}
    entered = set(ours)
    for folder, inner, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in entered:
            inner.clear()
            continue
        entered.add(real)
        stray = sorted(name for name in inner if STRAY.fullmatch(name))
        inner[:] = sorted(set(inner) - set(stray))
        left_out += [(f"{folder}/{name}", "stray folders of a disk or viewer") for name in stray if name[0] != "."]
        relative = os.path.relpath(folder, root)
        tree["" if relative == "." else relative] = sorted(
            name for name in files if name[0] != "." and not OURS.fullmatch(name)
        )
    return tree


def _is_video(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


# ---------------------------------------------------------------------------------------------- which layout


def _guess(root: Path, tree: Tree) -> tuple[Layout, str]:
    """The layout and what speaks for it.

    Raises:
        InputError: nothing there, or it may be read in two ways; a wrong guess would train on stills without a word.
    """
    files = [name for names in tree.values() for name in names]
    videos, pictures = sum(map(_is_video, files)), sum(map(images.is_image, files))
    if not videos and not pictures:
        kinds = Counter(os.path.splitext(name)[1].lower() or name for name in files)
        held = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5)) or "nothing"
        raise InputError(f"{root} holds no videos, frame folders or images, but {held}; check data.source.")
    by_folder = {folder: list(filter(images.is_image, names)) for folder, names in tree.items()}
    sequences = {folder: names for folder, names in by_folder.items() if _is_sequence(names, root / folder)}
    frames = sum(map(len, sequences.values()))
    counts = (
        f"{videos} video files, {len(sequences)} folders of numbered pictures ({frames}), {pictures} pictures in all"
    )
    if videos and pictures <= 4 * videos:
        return "videos", counts
    if not videos and frames < 0.1 * pictures:
        return "images", counts
    # <class>/<video>/<frame>, or frames by name; <folder>/0001.jpg may as well be a class of photos
    certain = all(os.sep in folder or _named_as_frames(folder, names[0]) for folder, names in sequences.items())
    if not videos and frames >= 0.9 * pictures and certain:
        return "frames", counts
    raise InputError(
        f"{root} holds {counts}, which may be read in several ways; say data.layout (--layout): {'videos, ' * bool(videos)}"
        f"frames for {len(sequences)} videos, or images for {pictures} photos."
    )


def _named_as_frames(folder: str, first: str) -> bool:
    """frame_0001.jpg, img_f1.png; 00000.jpg, as this library counts; or any name in a folder called clip.mp4."""
    stem = os.path.splitext(first)[0].lower()
    return bool(re.search(r"(^|[\W_])(frame|frm|f)[\W_]*\d", stem)) or stem == "00000" or _is_video(folder)


def _is_sequence(names: list[str], folder: Path) -> bool:
    """Whether a number in the names of pictures grows in steps that are the same nine times of ten."""
    ordered: list[str] = []
    with suppress(InputError):
        ordered, _ = images.sequence(names, folder)
    numbers = [re.findall(r"\d+(?:\.\d+)?", os.path.splitext(name)[0]) for name in ordered]
    for column in zip(*numbers, strict=False) if len(ordered) > 1 else ():
        values, counts = np.unique(np.diff(np.array(column, dtype=float)).round(6), return_counts=True)
        if values[counts.argmax()] > 0 and counts.max() >= 0.9 * counts.sum():
            return True
    return False


# ---------------------------------------------------------------------------------------------- the items


def _item(folder: str, name: str, path: Path) -> Item:
    """The item of a file or folder below `folder`: the first folder is the class, deeper ones go before the name."""
    first, *deeper = folder.split(os.sep) if folder else [UNLABELLED]
    return Item(first, "_".join([*deeper, name]), path)


def _single_files(root: Path, tree: Tree, wanted: Callable[[str], bool], left_out: LeftOut) -> list[Item]:
    """A video or an image each. A video goes by its name without the suffix."""
    items = []
    for folder, files in tree.items():
        for name in files:
            stem, suffix = os.path.splitext(name)
            if wanted(name):
                items.append(_item(folder, stem if _is_video(name) else name, root / folder / name))
            else:
                left_out.append((str(root / folder / name), f"files of type {suffix.lower() or name!r}"))
    return items


def _frame_folders(root: Path, tree: Tree, left_out: LeftOut) -> list[Item]:
    """Folders of frames, wherever they lie. What lies inside a folder of frames is no video of its own."""
    items: list[Item] = []
    below: Counter[Path] = Counter()  # pictures in the folders below a folder
    for folder, files in tree.items():
        below.update(dict.fromkeys((root / folder).parents, sum(map(images.is_image, files))))
    for folder, files in tree.items():
        path, pictures = root / folder, list(filter(images.is_image, files))
        left_out += [(str(path / name), "files that are no pictures") for name in files if name not in pictures]
        if not pictures:
            continue
        if items and items[-1].path in path.parents:
            left_out.append((str(path), "folders inside a video's folder"))
        elif below[path] > 5 * len(pictures) or (below[path] and not _is_sequence(pictures, path)):
            left_out += [(str(path / name), "pictures outside a video's folder") for name in pictures]
        else:
            items.append(_item(os.path.dirname(folder), os.path.basename(folder) or root.name, path))
            with suppress(InputError):  # no sequence: said when the folder is examined
                others = images.sequence(pictures, path)[1]
                left_out += [(str(path / name), "pictures without a number among frames") for name in others]
    return items


def _distinct(found: Source) -> list[Item]:
    """a.mp4 beside a.avi: the second one keeps its suffix. A name that no index can hold is left out."""
    items: dict[str, Item] = {}
    for item in found.items:
        if item.target in items:
            item = item._replace(name=f"{item.name}{item.path.suffix}")
        path = str(item.path)
        if item.target in items:
            found.left_out.append((path, "files whose name another one has"))
        elif path.encode(errors="replace").decode() != path:
            found.left_out.append((ascii(path), "files whose name is no text; rename them"))
        else:
            items[item.target] = item
    return list(items.values())


# ---------------------------------------------------------------------------------------------- classes


def _label(found: Source, path: Path, split: str) -> None:
    """Give the items the classes of Kinetics' official CSV (label, youtube_id, time_start, time_end, split).

    A file belongs to the row of its whole name (`<id>_<start>_<end>`, with zeros before the numbers or not), else to the
    first row of its id. Files without a row and rows without a file are noted in `left_out`.
    """
    labels: dict[tuple[str, ...], str] = {}  # (id, start, end), and (id,) alone
    with reading(path, "data.annotations takes the official CSV (label, youtube_id, time_start, time_end, split)"):
        for row in _csv_rows(path):
            if (row.get("split") or split)[:3] == split[:3]:  # val, validate
                whole = (row["youtube_id"], *(str(int(float(row[key]))) for key in ("time_start", "time_end")))
                for key in (whole, whole[:1]):
                    labels.setdefault(key, class_folder(row.get("label") or UNLABELLED))
    if not labels:
        raise InputError(f"{path} has no row of split {split!r}; check data.split and data.annotations.")
    used: set[tuple[str, ...]] = set()
    items, found.items = found.items, []
    for item in items:
        stem = item.path.name if found.layout == "frames" else item.path.stem
        parts = re.fullmatch(r"(.+)_(\d+)_(\d+)", stem)
        clip = (parts[1], str(int(parts[2])), str(int(parts[3]))) if parts else (stem,)
        key = clip if clip in labels else clip[:1]
        if key in labels:
            used.add(key)
            found.items.append(Item(labels[key], item.path.name if found.layout == "images" else stem, item.path))
        else:
            found.left_out.append((str(item.path), "files that the annotations do not name"))
    missing = [key for key in labels if len(key) == 3 and key not in used and key[:1] not in used]
    found.left_out += [("_".join(key), "rows of the annotations without a file") for key in missing]
    found.class_names = sorted(set(labels.values()))


def _csv_rows(path: Path) -> "csv.DictReader[str]":
    """Rows of a CSV as people save it: with a byte order mark, in UTF-16, with semicolons or tabs."""
    data = path.read_bytes()
    text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    header = text.partition("\n")[0]
    return csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count))


def class_folder(label: str) -> str:
    """A label as the released layout names its folder: "golf (putting)" -> "golf_putting"."""
    cleaned = label.strip().replace("/", "_").replace(" ", "_")
    return "".join(c for c in cleaned if c not in '()"\\\0').lstrip(".") or UNLABELLED
