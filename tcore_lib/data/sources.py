"""What lies on disk: a folder of videos, of frame folders, or of images -> items, in the same order every time.

Nothing is dropped in silence: whatever is not used stands in `Source.left_out` with its reason.
"""

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from tcore_lib import params
from tcore_lib.data import images
from tcore_lib.data.decode import VIDEO_SUFFIXES
from tcore_lib.errors import InputError
from tcore_lib.files import reading

UNLABELLED = "unlabelled"
Layout = Literal["videos", "frames", "images"]
SPLITS = ("train", "val", "valid", "validate", "validation", "test", "annotations")
# Folders that network disks, operating systems and viewers put between a person's own.
STRAY = re.compile(r"\..*|@.*|#.*|\$.*|__MACOSX|_?thumb(nail)?s?|lost\+found|System Volume Information", re.IGNORECASE)


OURS = re.compile(r"bad_files\.csv|left_out\.csv|index-[\w-]+\.parquet")  # written by `prepare` into its root


@dataclass(frozen=True)
class Item:
    """One video, frame folder or image: `<class>/<name>` is its own in a source."""

    class_name: str
    name: str
    path: Path

    @property
    def target(self) -> str:
        """`<class>/<name>`."""
        return f"{self.class_name}/{self.name}"


@dataclass
class Source:
    """What `find` found."""

    root: Path  # the folder that was looked through
    layout: Layout
    guessed: str = ""  # what `layout: auto` was guessed from; empty where the layout was given
    items: list[Item] = field(default_factory=list)  # sorted
    left_out: list[tuple[str, str]] = field(default_factory=list)  # (file, folder or row; why it is not used)
    class_names: list[str] = field(default_factory=list)  # all that the annotations name, sorted

    def summary(self) -> str:
        """What is going to be used and what is not, in counts, for a person to check before anything is written."""
        classes = len({item.class_name for item in self.items})
        what = {"videos": "videos", "frames": "videos as folders of frames", "images": "single images (no motion)"}
        lines = [f"{self.root}: {len(self.items)} {what[self.layout]} in {classes} class{'es' * (classes != 1)}"]
        if self.guessed:
            lines.append(f"  guessed from {self.guessed}; data.layout (--layout) says it for certain")
        for reason, count in Counter(reason for _, reason in self.left_out).most_common():
            example = next(name for name, why in self.left_out if why == reason)
            lines.append(f"  left out: {count} {reason}, such as {example}")
        return "\n".join(lines).encode(errors="backslashreplace").decode()


def frames_folder(cfg: params.Data) -> Path:
    """Where `prepare` puts the frames of videos: `<root>/frames/<split>/<class>/<video>/00000.jpg`."""
    return params.resolve(cfg.root) / "frames" / cfg.split


def recipe_file(cfg: params.Data) -> Path:
    """What `prepare` made the frames with; where it is missing, the frames are somebody else's."""
    return params.resolve(cfg.root) / f".prepare-{cfg.split}" / "settings.json"


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
    root = Path(source) if source is not None else params.resolve(cfg.source)
    if not root.is_dir():
        raise InputError(f"data.source = {root} is not a folder; give a folder of videos, frame folders or images.")
    made = params.resolve(cfg.root).glob(".prepare-*/settings.json")
    ours = {params.resolve(cfg.root) / "frames" / path.parent.name.removeprefix(".prepare-") for path in made}
    inodes = {_identity(folder) for folder in ours if folder.exists()}
    root = _step_into_split(root, cfg.split, inodes)
    tree = list(_walk(root, inodes))
    layout, why = (cfg.layout, "") if cfg.layout != "auto" else _guess(root, tree)
    found = Source(root, layout, why)
    found.left_out += [(str(root / folder), "stray folders of a disk or viewer") for folder in _stray(root, tree)]
    {"videos": _videos, "frames": _frames, "images": _images}[layout](found, tree)
    if cfg.annotations:
        _label(found, params.resolve(cfg.annotations), cfg.split)
    _one_target_each(found)
    if not found.items:
        raise InputError(f"No {layout} to use (data.layout = {cfg.layout}). {found.summary()}; check data.source.")
    found.items.sort(key=lambda item: item.target)
    return found


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _step_into_split(root: Path, split: str, ours: set[tuple[int, int]]) -> Path:
    """Into frames/train (the released layout) or into train beside val, but not beside classes, nor into our own."""
    released = root / "frames" / split
    if released.is_dir() and _identity(released) not in ours:
        return released
    inner = [entry.name for entry in os.scandir(root) if entry.is_dir() and not STRAY.fullmatch(entry.name)]
    return root / split if split in inner and set(inner) <= {split, *SPLITS} else root


Tree = list[tuple[str, list[str], list[str]]]  # (folder relative to the root, stray folders in it, files), sorted


def _walk(root: Path, ours: set[tuple[int, int]]) -> Iterator[tuple[str, list[str], list[str]]]:
    """Every folder below root. Links to folders are followed, each folder is entered once; hidden files do not count."""
    entered = set(ours)
    for folder, inner, files in os.walk(root, followlinks=True):
        if _identity(Path(folder)) in entered:
            inner.clear()
            continue
        entered.add(_identity(Path(folder)))
        stray = sorted(name for name in inner if STRAY.fullmatch(name))
        inner[:] = sorted(set(inner) - set(stray))
        relative = os.path.relpath(folder, root)
        yield (
            "" if relative == "." else relative,
            stray,
            sorted(n for n in files if n[0] != "." and not OURS.fullmatch(n)),
        )


def _stray(root: Path, tree: Tree) -> list[str]:
    """Stray folders that hold something; hidden ones (.git, .ipynb_checkpoints) are nobody's data."""
    named = [os.path.join(folder, name) for folder, stray, _ in tree for name in stray if not name.startswith(".")]
    return [name for name in named if any((root / name).iterdir())]


def _is_video(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


# ---------------------------------------------------------------------------------------------- which layout


def _guess(root: Path, tree: Tree) -> tuple[Layout, str]:
    """The layout and what speaks for it.

    Raises:
        InputError: nothing there, or it may be read in two ways; a wrong guess would train on stills without a word.
    """
    videos = sum(_is_video(name) for _, _, files in tree for name in files)
    folders = {folder: [name for name in files if images.is_image(name)] for folder, _, files in tree}
    pictures = sum(map(len, folders.values()))
    sequences = {folder: names for folder, names in folders.items() if _is_sequence(names, root / folder)}
    frames = sum(map(len, sequences.values()))
    counts = (
        f"{videos} video files, {len(sequences)} folders of numbered pictures ({frames}), {pictures} pictures in all"
    )
    ask = f"{root} holds {counts}, which may be read in two ways; say data.layout (--layout)"
    if not videos and not pictures:
        kinds = Counter(os.path.splitext(name)[1].lower() or name for _, _, files in tree for name in files)
        held = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5)) or "nothing"
        raise InputError(f"{root} holds no videos, frame folders or images, but {held}; check data.source.")
    if videos:
        if pictures > 4 * videos:
            raise InputError(f"{ask} videos, frames or images.")
        return "videos", counts
    if frames < 0.1 * pictures:
        return "images", counts
    if frames < 0.9 * pictures:
        raise InputError(f"{ask} frames or images.")
    if _sizes_differ(root, sequences):
        return "images", f"{counts}, of different sizes in one folder"
    deep = all(os.sep in folder for folder in sequences)  # <class>/<video>/<frame>
    if deep or all(_named_as_frames(folder, names[0]) for folder, names in sequences.items()):
        return "frames", counts
    raise InputError(
        f"{ask} frames for {len(sequences)} videos, or images for {frames} photos in {len(sequences)} classes."
    )


def _named_as_frames(folder: str, first: str) -> bool:
    """frame_0001.jpg, img_f1.png; 00000.jpg, as this library counts; or any name in a folder called clip.mp4."""
    stem = os.path.splitext(first)[0].lower()
    return bool(re.search(r"(^|[\W_])(frame|frm|f)[\W_]*\d", stem)) or stem == "00000" or _is_video(folder)


def _is_sequence(names: list[str], folder: Path) -> bool:
    """Whether a number in the names of pictures grows in steps that are the same nine times of ten."""
    try:
        ordered, _ = images.sequence(names, folder)
    except InputError:
        return False
    numbers = [re.findall(r"\d+(?:\.\d+)?", os.path.splitext(name)[0]) for name in ordered]
    for column in zip(*numbers, strict=False) if len(ordered) > 1 else ():
        steps = np.diff([float(number) for number in column]).round(6)
        values, counts = np.unique(steps, return_counts=True)
        if values[counts.argmax()] > 0 and counts.max() >= 0.9 * len(steps):
            return True
    return False


def _sizes_differ(root: Path, sequences: dict[str, list[str]]) -> bool:
    """Whether a folder holds pictures of several sizes, by the first pictures of three folders."""
    for folder, names in list(sequences.items())[:3]:
        sizes = set()
        for name in names[:8]:
            with suppress(InputError):
                sizes.add(images.size_of(root / folder / name))
        if len(sizes) > 1:
            return True
    return False


# ---------------------------------------------------------------------------------------------- three layouts


def _named(folder: str, name: str, path: Path) -> Item:
    """The item of a file or folder below `folder`: the first folder is the class, deeper ones go before the name."""
    first, *deeper = folder.split(os.sep) if folder else [UNLABELLED]
    return Item(first, "".join(f"{part}_" for part in deeper) + name, path)


def _videos(found: Source, tree: Tree) -> None:
    for folder, _, files in tree:
        for name in files:
            stem, suffix = os.path.splitext(name)
            if _is_video(name):
                found.items.append(_named(folder, stem, found.root / folder / name))
            else:
                kind = (
                    "pictures beside the videos"
                    if images.is_image(name)
                    else f"files of type {suffix.lower() or name!r}"
                )
                found.left_out.append((str(found.root / folder / name), kind))


def _frames(found: Source, tree: Tree) -> None:
    """Folders of frames, wherever they lie. What lies inside a folder of frames is no video of its own."""
    counts = {folder: sum(map(images.is_image, files)) for folder, _, files in tree}
    below: Counter[str] = Counter()  # pictures in the folders below a folder
    for folder, count in counts.items():
        while folder:
            folder = os.path.dirname(folder)
            below[folder] += count
    inside: str | None = None  # the folder of frames we are in
    for folder, _, files in tree:
        path, pictures = found.root / folder, [name for name in files if images.is_image(name)]
        found.left_out += [(str(path / name), "files that are no pictures") for name in files if name not in pictures]
        if not pictures:
            continue
        if inside is not None and folder.startswith(os.path.join(inside, "")):
            found.left_out.append((str(path), "folders inside a video's folder"))
            continue
        if below[folder] > 5 * len(pictures) or (below[folder] and not _is_sequence(pictures, path)):
            found.left_out += [(str(path / name), "pictures outside a video's folder") for name in pictures]
            continue
        inside = folder
        found.items.append(_named(os.path.dirname(folder), os.path.basename(folder) or found.root.name, path))
        with suppress(InputError):  # no sequence: said when the folder is examined
            _, others = images.sequence(pictures, path)
            found.left_out += [(str(path / name), "pictures without a number among frames") for name in others]


def _images(found: Source, tree: Tree) -> None:
    for folder, _, files in tree:
        for name in files:
            if images.is_image(name):
                found.items.append(_named(folder, name, found.root / folder / name))
            else:
                found.left_out.append((str(found.root / folder / name), "files that are no pictures"))


def _one_target_each(found: Source) -> None:
    """a.mp4 beside a.avi: the second one keeps its suffix. A name that no index can hold is left out."""
    taken: set[str] = set()
    items, found.items = found.items, []
    for item in items:
        if item.target in taken:
            item = Item(item.class_name, f"{item.name}{item.path.suffix}", item.path)
        if item.target in taken or not _is_text(str(item.path)):
            why = (
                "files whose name another one has"
                if item.target in taken
                else "files whose name is no text; rename them"
            )
            found.left_out.append((ascii(str(item.path))[1:-1], why))
            continue
        taken.add(item.target)
        found.items.append(item)


def _is_text(name: str) -> bool:
    """False for bytes that are no UTF-8, which no index can hold."""
    return not any(0xD800 <= ord(letter) < 0xE000 for letter in name)


# ---------------------------------------------------------------------------------------------- classes


def _label(found: Source, path: Path, split: str) -> None:
    """Give the items the classes of Kinetics' official CSV (label, youtube_id, time_start, time_end, split).

    A file belongs to the row of its whole name (`<id>_<start>_<end>`, with zeros before the numbers or not), else to the
    first row of its id. Files without a row and rows without a file are noted in `left_out`.
    """
    labels: dict[tuple[str, ...], str] = {}  # (id, start, end), and (id,) alone
    with reading(path, "data.annotations takes the official CSV (label, youtube_id, time_start, time_end, split)"):
        for row in _csv_rows(path):
            if _split(row.get("split") or split) == _split(split):
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
        clip: tuple[str, ...] = (parts[1], str(int(parts[2])), str(int(parts[3]))) if parts else (stem,)
        key = clip if clip in labels else clip[:1]
        if key not in labels:
            found.left_out.append((str(item.path), "files that the annotations do not name"))
            continue
        used.add(key)
        found.items.append(Item(labels[key], item.path.name if found.layout == "images" else stem, item.path))
    missing = [key for key in labels if len(key) == 3 and key not in used and key[:1] not in used]
    found.left_out += [("_".join(key), "rows of the annotations without a file") for key in missing]
    found.class_names = sorted(set(labels.values()))


def _csv_rows(path: Path) -> "csv.DictReader[str]":
    """Rows of a CSV as people save it: with a byte order mark, in UTF-16, with semicolons or tabs."""
    data = path.read_bytes()
    text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    header = text.partition("\n")[0]
    return csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count))


def _split(split: str) -> str:
    return "val" if split.startswith("val") else split


def class_folder(label: str) -> str:
    """A label as the released layout names its folder: "golf (putting)" -> "golf_putting"."""
    cleaned = label.strip().replace("/", "_").replace(" ", "_")
    return "".join(c for c in cleaned if c not in '()"\\\0').lstrip(".") or UNLABELLED
