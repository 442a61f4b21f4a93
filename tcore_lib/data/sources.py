"""What lies on disk: videos in class folders, flat with the official CSV, in tar archives; frame folders; images.

Everything becomes a stream of `Item`s, the same for every shard and every restart.
"""

import itertools
import os
import tarfile
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from tcore_lib import params
from tcore_lib.data import decode, images
from tcore_lib.data.annotations import SPLITS, UNLABELLED, Annotations, class_folder
from tcore_lib.errors import InputError

_ARCHIVES = (".tar", ".tar.gz", ".tgz")
_LARGEST_MEMBER = 2 << 30  # bytes; a member is held in memory while it is decoded
_REPLACEMENT = "replacement"  # beside the splits of CVDF's Kinetics: whole files for those that are corrupted there
Layout = Literal["videos", "frames", "images"]


@dataclass(frozen=True)
class Item:
    """One video, frame folder or image.

    Attributes:
        class_name: its class folder.
        name: its own name below the class folder.
        path: the file or folder; for a member of an archive, the archive.
        member: name inside the archive.
        data: bytes of the member.
        problem: why it cannot be used, known without reading it.
    """

    class_name: str
    name: str
    path: Path
    member: str | None = None
    data: bytes | None = field(default=None, repr=False)
    problem: str | None = None

    @property
    def target(self) -> str:
        """`<class>/<name>`, unique in a source."""
        return f"{self.class_name}/{self.name}"

    @property
    def shown(self) -> str:
        """The file as a person would name it."""
        shown = f"{self.path}!{self.member}" if self.member else str(self.path)
        return shown if _is_text(shown) else ascii(shown)[1:-1]


@dataclass
class Source:
    """What `find` found: `root` is what paths are relative to, `unlisted` counts files the annotations do not name."""

    root: Path
    layout: Layout
    items: list[Item]
    archives: list[Path] = field(default_factory=list)
    annotations: Annotations | None = None
    unlisted: int = 0

    @property
    def total(self) -> int | None:
        """Number of items; None where archives would have to be read to know."""
        return None if self.archives else len(self.items)

    def shard(self, shard: tuple[int, int], skip: Callable[[str], bool] = lambda target: False) -> Iterator[Item]:
        """The items of shard i of n whose target is not to be skipped; members of archives come with their bytes.

        Items are dealt out in turn. So are archives where there are at least n; fewer are read by every shard, which
        takes its members in turn.
        """
        i, n = shard
        loose = {item.target for item in self.items}  # a loose file stands for the member of the same name
        yield from (item for item in itertools.islice(self.items, i, None, n) if not skip(item.target))
        by_archive = len(self.archives) >= n
        for archive in self.archives[i::n] if by_archive else self.archives:
            members = _members(archive, self.annotations, lambda target: target in loose or skip(target))
            for position, item in enumerate(members):
                if item is not None and (by_archive or position % n == i):
                    yield item


def find(settings: params.Data, source: Path | None = None) -> Source:
    """Look at what `settings.source` holds.

    Args:
        settings: source, layout, annotations and split are read.
        source: used instead of `settings.source`.

    Raises:
        InputError: nothing usable is there.
    """
    if settings.source == "synthetic" and source is None:
        raise InputError(
            "data.source is synthetic: these videos are drawn by notebook 00, which then says where they lie."
        )
    root = Path(source) if source is not None else params.resolve(settings.source)
    if not root.is_dir():
        raise InputError(f"data.source = {root} is not a folder; give a folder of videos, frame folders or images.")
    root = _split_root(root, settings.split)
    annotations = Annotations(params.resolve(settings.annotations), settings.split) if settings.annotations else None
    layout = settings.layout if settings.layout != "auto" else _guess(root)
    found = {"videos": _videos, "frames": _frames, "images": _images}[layout](root, annotations)
    if not found.items and not found.archives:
        raise InputError(
            f"{root} holds no {layout} (data.layout = {settings.layout}); check data.source and data.layout."
        )
    return found


def _split_root(root: Path, split: str) -> Path:
    """Step into frames/train (the released layout) or into train beside val (but not beside other classes)."""
    if (root / "frames" / split).is_dir():
        return root / "frames" / split
    splits = {split, *SPLITS, _REPLACEMENT, "annotations"}
    return root / split if (root / split).is_dir() and splits.issuperset(_folders(root)) else root


def _walk(root: Path) -> Iterator[tuple[str, str]]:
    """(folder relative to root, file name) of every file below root, sorted, without hidden ones.

    Links to folders are followed, each folder is entered once.
    """
    entered: set[tuple[int, int]] = set()
    for folder, inner, files in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in entered:
            inner.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        relative = os.path.relpath(folder, root)
        for name in sorted(files):
            if not name.startswith("."):
                yield "" if relative == "." else relative, name


def _is_text(name: str) -> bool:
    """False for what a CSV line or an index cannot hold: control characters, bytes that are no UTF-8."""
    return not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name)


def _named(item: Item) -> Item:
    """The item itself, or one with a problem where its name cannot be written into an index."""
    if _is_text(item.target):
        return item
    class_name, name = (ascii(part)[1:-1].replace("\\", "_") for part in (item.class_name, item.name))
    return Item(class_name, name, item.path, problem="the file's or folder's name is not plain text; rename it")


def _is_video(name: str) -> bool:
    return _suffix(name) in decode.VIDEO_SUFFIXES and not name.startswith(".")


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _guess(root: Path) -> Layout:
    """Videos, where any file is one (there may be thumbnails beside them); else frame folders or images."""
    first: Layout | None = None
    for folder, name in itertools.islice(_walk(root), 20_000):
        if _is_video(name) or name.lower().endswith(_ARCHIVES):
            return "videos"
        if first is None and _suffix(name) in images.IMAGE_SUFFIXES:
            deep = os.sep in folder  # <class>/<video>/<frame>
            first = "frames" if deep or os.path.splitext(name)[0].isdecimal() else "images"
    if first is None:
        raise InputError(f"{root} holds no videos, frame folders or images; check data.source.")
    return first


def _split_folder(folder: str) -> tuple[str, str]:
    """Folder relative to the root -> (class, what goes before the name: deeper folders, joined)."""
    first, *deeper = folder.split(os.sep) if folder else [UNLABELLED]
    return first, "".join(f"{part}_" for part in deeper)


def _videos(root: Path, annotations: Annotations | None) -> Source:
    found = Source(root, "videos", [], annotations=annotations)
    taken: set[str] = set()
    better = _replacements(root)
    for folder, name in _walk(root):
        if name.lower().endswith(_ARCHIVES):
            found.archives.append(root / folder / name)
        if not _is_video(name):
            continue
        path = better.pop(name, root / folder / name)
        class_name, prefix = _split_folder(folder)
        stem = os.path.splitext(name)[0]
        if annotations is not None:
            label = annotations.label(stem)
            if label is None:
                found.unlisted += 1
                continue
            class_name = label
        item = Item(class_name, prefix + stem, path)
        if item.target in taken:  # a.mp4 beside a.avi
            item = Item(class_name, prefix + name, path)
        if item.target in taken:
            raise InputError(
                f"{path} would get the same frame folder {item.target!r} as another file; rename one of them."
            )
        taken.add(item.target)
        found.items.append(_named(item))
    if annotations is not None:  # of the rest, those of this split: their corrupted versions are inside archives
        rest = [(annotations.label(path.stem), path) for _, path in sorted(better.items())]
        found.items += [Item(label, path.stem, path) for label, path in rest if label is not None]
    return found


def _replacements(root: Path) -> dict[str, Path]:
    """File name -> the file in the folder `replacement` beside `root`."""
    folder = root.parent / _REPLACEMENT
    if root.name == _REPLACEMENT or not folder.is_dir():
        return {}
    return {name: folder / inner / name for inner, name in _walk(folder) if _is_video(name)}


def _frames(root: Path, annotations: Annotations | None) -> Source:
    """Folders that hold frames: <class>/<video>/ or <video>/."""
    found = Source(root, "frames", [], annotations=annotations)
    for first in _folders(root):
        inner = _folders(root / first)
        folders = [Item(first, name, root / first / name) for name in inner] or [Item(UNLABELLED, first, root / first)]
        for item in folders:
            label = annotations.label(item.name) if annotations else item.class_name
            if label is None:
                found.unlisted += 1
            else:
                found.items.append(_named(replace(item, class_name=label)))
    return found


def _folders(root: Path) -> list[str]:
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _images(root: Path, annotations: Annotations | None) -> Source:
    found = Source(root, "images", [], annotations=annotations)
    for folder, name in _walk(root):
        if _suffix(name) in images.IMAGE_SUFFIXES:
            class_name, prefix = _split_folder(folder)
            found.items.append(_named(Item(class_name, prefix + name, root / folder / name)))
    return found


def _members(archive: Path, annotations: Annotations | None, skip: Callable[[str], bool]) -> Iterator[Item | None]:
    """Videos of a tar archive, read front to back without unpacking; None stands for one that is not wanted.

    An archive that breaks off gives a last item with the problem.
    """
    try:
        with tarfile.open(archive, "r|*") as tar:
            for member in tar:
                parts = [part for part in member.name.split("/") if part not in ("", ".", "..")]
                if not parts or not member.isfile() or not _is_video(parts[-1]):
                    continue
                stem = os.path.splitext(parts[-1])[0]
                folder = "" if len(parts) == 1 or parts[-2] in SPLITS else parts[-2]
                label = annotations.label(stem) if annotations else class_folder(folder)
                item = _named(Item(label or "", stem, archive, member.name))
                if label is None or skip(item.target):
                    yield None
                elif member.size > _LARGEST_MEMBER:
                    yield replace(item, problem="larger than 2 GiB inside an archive; unpack it")
                else:
                    content = tar.extractfile(member)
                    yield replace(item, data=content.read() if content else b"")
    except (tarfile.TarError, OSError, EOFError) as error:
        name = archive.name.split(".")[0]
        yield Item(UNLABELLED, f"archive {name}", archive, problem=f"archive is damaged: {images.one_line(error)}")
