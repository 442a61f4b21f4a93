"""DAVIS-2017, JHMDB and VIP on disk as one `Clip` type, and writers of predictions in the layouts their scorers read.

(EVALUATION, "Files".) Nothing is ever written under a benchmark's root. Loading lists files and reads headers and
joints; whether every image decodes is the business of `doctor`.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tcore_lib import params
from tcore_lib.bodies import JOINTS
from tcore_lib.data.images import UNREADABLE, BadFile, check_size
from tcore_lib.errors import InputError
from tcore_lib.evaluation.matfile import read_array
from tcore_lib.files import atomic_path, read_json, write_json

Kind = Literal["davis", "jhmdb", "vip"]
LONGEST_NAME = 240  # bytes of a clip's name: file systems allow 255, and a suffix is added
FARTHEST = 1e5  # pixels a joint may lie from the image's corner


@dataclass(frozen=True)
class Clip:
    """One clip of a benchmark: where its frames are, and what is known about them.

    Attributes:
        name: unique within the benchmark.
        kind: which benchmark.
        frames: image files in order.
        size: (H, W) of the first frame in pixels.
        annotations: per frame its id map (DAVIS, VIP), None where a frame has none; empty for JHMDB.
        joints: float64 (N, 15, 2), x then y in pixels counted from 0 (JHMDB; the file counts from 1).
        source: folder or file the labels come from, for messages.
    """

    name: str
    kind: Kind
    frames: tuple[Path, ...]
    size: tuple[int, int]
    annotations: tuple[Path | None, ...] = ()
    joints: NDArray[np.float64] | None = None
    source: Path | None = None

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.frames)

    def digest(self) -> str:
        """Hex SHA-256 of the names and contents of all files of the clip.

        Raises:
            InputError: one of them cannot be read.
        """
        total = hashlib.sha256(f"{self.kind} {self.name}".encode())
        for path in (*self.frames, *(path for path in self.annotations if path is not None)):
            total.update(os.fsencode(path.name))
            try:
                total.update(path.read_bytes())
            except OSError as error:
                raise InputError(f"{path} cannot be read ({error.strerror}); fetch this file again.") from error
        if self.joints is not None:
            total.update(np.ascontiguousarray(self.joints).tobytes())
        return total.hexdigest()


# ---------------------------------------------------------------------------------------------- reading


def read_frame(path: Path) -> NDArray[np.uint8]:
    """An image as uint8 RGB (H, W, 3).

    Raises:
        InputError: the file is missing or does not decode.
    """
    try:
        with Image.open(path) as image:
            check_size(image)
            return np.array(image.convert("RGB"))
    except UNREADABLE as error:
        raise InputError(f"{path} cannot be decoded ({error}); fetch this file again.") from error


def read_ids(path: Path) -> NDArray[np.uint8]:
    """An annotation or prediction as uint8 (H, W), id per pixel: a palette or grey PNG.

    Raises:
        InputError: the file is missing, does not decode, or holds colours instead of ids.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in ("P", "L", "1"):
                raise InputError(
                    f"{path} is a {image.mode} image, not a palette or grey one; save it with one id per pixel."
                )
            check_size(image)
            return np.array(image).astype(np.uint8)
    except UNREADABLE as error:
        if isinstance(error, InputError) and not isinstance(error, BadFile):
            raise
        raise InputError(f"{path} cannot be decoded ({error}); fetch or write this file again.") from error


def image_size(path: Path) -> tuple[int, int]:
    """(H, W) from an image's header.

    Raises:
        InputError: the file is no image.
    """
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except UNREADABLE as error:
        raise InputError(f"{path} is not a readable image ({error}); fetch this file again.") from error


def read_joints(path: Path) -> NDArray[np.float64]:
    """Joints of a JHMDB `joint_positions.mat`, (N, 15, 2), x then y in pixels counted from 0.

    Raises:
        InputError: the file is missing, is no .mat file, or lacks a `pos_img` of 2 x 15 x N plausible numbers.
    """
    positions = read_array(path, "pos_img")
    if positions is None:
        raise InputError(f"{path} has no variable pos_img; take joint_positions.mat from JHMDB's joint_positions.zip.")
    if positions.ndim == 2:
        positions = positions[..., None]  # MATLAB drops the last axis of a single frame
    if positions.ndim != 3 or positions.shape[:2] != (2, len(JOINTS)):
        raise InputError(f"{path} has a pos_img of {positions.shape}, not 2 x 15 x frames of numbers; fetch it again.")
    if not (np.abs(positions) <= FARTHEST).all():  # NaN too
        raise InputError(f"{path} has joints that lie nowhere near an image; fetch this file again.")
    return positions.transpose(2, 1, 0) - 1.0


# ---------------------------------------------------------------------------------------------- listing


def _in_order(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """Image files of a folder, by number where all names are numbers, else by name."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; check the root and that the dataset is unpacked completely.")
    files = [path for path in folder.iterdir() if path.suffix.lower() in suffixes and not path.name.startswith(".")]
    if not files:
        raise InputError(f"{folder} holds no {' or '.join(suffixes)} file; unpack this clip again.")
    if all(path.stem.isdecimal() for path in files):
        return sorted(files, key=lambda path: int(path.stem))
    return sorted(files)


def _lines(path: Path) -> list[str]:
    """Lines of a split list that say anything."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); the benchmark needs its split list.") from error
    return [line for line in lines if line]


def _chosen(names: list[str], wanted: list[str] | None, split: Path) -> list[str]:
    """The clips asked for, in the split's order."""
    if not names:
        raise InputError(f"{split} names no clip; fetch the split list again.")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{split} names the clip {twice} twice; remove one of the lines.")
    strange = next((name for name in names if not _is_plain(name)), None)
    if strange is not None:
        raise InputError(
            f"{split} names the clip {strange[:80]!r}, which is no name of a folder inside the benchmark; remove that line."
        )
    unknown = [name for name in wanted or [] if name not in names]
    if unknown:
        raise InputError(f"The clip {unknown[0]!r} is not in {split}; choose from its {len(names)} clips.")
    return names if wanted is None else [name for name in names if name in wanted]


def _is_plain(name: str) -> bool:
    """Whether a clip's name stays inside the folders it is looked up in and written to."""
    if "\\" in name or "\0" in name:
        return False
    return all(part not in ("", ".", "..") and len(part.encode()) <= LONGEST_NAME for part in name.split("/"))


def _davis_names(settings: params.Davis, root: Path) -> list[str]:
    split = root / "ImageSets" / "2017" / f"{settings.split}.txt"
    return _chosen(_lines(split), settings.clips, split)


def _davis_clip(root: Path, name: str) -> Clip:
    frames = _in_order(root / "JPEGImages" / "480p" / name, (".jpg", ".jpeg"))
    folder = root / "Annotations" / "480p" / name
    stems = {path.stem: path for path in _in_order(folder, (".png",))}
    missing = [frame.stem for frame in frames if frame.stem not in stems]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise InputError(f"{folder / (missing[0] + '.png')}{more} is missing; every frame needs its annotation.")
    _no_extra(stems, frames)
    annotations = tuple(stems[frame.stem] for frame in frames)
    return Clip(name, "davis", tuple(frames), image_size(frames[0]), annotations, source=folder)


def _jhmdb_names(settings: params.Jhmdb, root: Path) -> list[str]:
    pattern = f"*_test_split{settings.split}.txt"
    lists = sorted(path for path in (root / "splits").glob(pattern) if not path.name.startswith("."))
    if not lists:
        raise InputError(f"{root / 'splits'} holds no {pattern}; unpack JHMDB's splits there.")
    class_of: dict[str, str] = {}
    for path in lists:
        for line in _lines(path):
            words = line.split()
            if len(words) != 2 or words[1] not in ("0", "1", "2"):
                raise InputError(f"{path} has the line {line!r}; each should be `<clip>.avi` and 0, 1 or 2.")
            if words[1] == "2":
                class_of[words[0].removesuffix(".avi")] = path.name.removesuffix(pattern[1:])
    return [f"{class_of[name]}/{name}" for name in _chosen(list(class_of), settings.clips, root / "splits")]


def _jhmdb_clip(root: Path, name: str) -> Clip:
    frames = _in_order(root / "Rename_Images" / name, (".png",))
    source = root / "joint_positions" / name / "joint_positions.mat"
    joints = read_joints(source)
    if len(joints) != len(frames):
        raise InputError(
            f"{source} has joints of {len(joints)} frames, {frames[0].parent} has {len(frames)}; unpack both again."
        )
    return Clip(name.split("/")[-1], "jhmdb", tuple(frames), image_size(frames[0]), joints=joints, source=source)


def _vip_names(settings: params.Vip, root: Path) -> list[str]:
    split = root / "lists" / f"{settings.split}_videos.txt"
    return _chosen([line.split()[0].strip("/") for line in _lines(split)], settings.clips, split)


def _vip_clip(root: Path, name: str) -> Clip:
    frames = _in_order(root / "Images" / name, (".jpg", ".jpeg"))
    folder = root / "Annotations" / "Category_ids" / name
    stems = {path.stem: path for path in _in_order(folder, (".png",))}
    _no_extra(stems, frames)
    if frames[0].stem not in stems:
        raise InputError(
            f"{folder} has no annotation of the clip's first frame, {frames[0].name}; nothing to propagate."
        )
    annotations = tuple(stems.get(frame.stem) for frame in frames)
    return Clip(name, "vip", tuple(frames), image_size(frames[0]), annotations, source=folder)


def _no_extra(stems: dict[str, Path], frames: Sequence[Path]) -> None:
    extra = sorted(stems.keys() - {frame.stem for frame in frames})
    if extra:
        raise InputError(f"{stems[extra[0]]} has no frame of that name in {frames[0].parent}; unpack the frames again.")


_READERS: dict[type, tuple[Callable[..., list[str]], Callable[[Path, str], Clip]]] = {
    params.Davis: (_davis_names, _davis_clip),
    params.Jhmdb: (_jhmdb_names, _jhmdb_clip),
    params.Vip: (_vip_names, _vip_clip),
}


def clip_names(settings: params.Benchmark, root: str | Path) -> list[str]:
    """The clips of the settings' split (or those chosen from it), in its order; JHMDB's as `<class>/<clip>`.

    Raises:
        InputError: the split list is missing or malformed, or a chosen clip is not in it.
    """
    return _READERS[type(settings)][0](settings, Path(root))


def load_clip(settings: params.Benchmark, root: str | Path, name: str) -> Clip:
    """One clip by its name in `clip_names`.

    Raises:
        InputError: a folder, frame, annotation or joint is missing, or they do not pair up.
    """
    return _READERS[type(settings)][1](Path(root), name)


def load_clips(settings: params.Benchmark, root: str | Path) -> list[Clip]:
    """All clips of a benchmark: DAVIS, JHMDB or VIP, whichever section the settings are. See `clip_names`, `load_clip`.

    DAVIS: every frame needs its annotation. JHMDB: as many joints as frames. VIP: the first frame needs its annotation;
    other frames without one are carried through but not scored.

    Raises:
        InputError: names what is missing or does not fit.
    """
    return [load_clip(settings, root, name) for name in clip_names(settings, root)]


# ---------------------------------------------------------------------------------------------- writing


def palette() -> list[int]:
    """The DAVIS (and PASCAL VOC) palette, 256 RGB triples in a row.

    The bits of an id are dealt to R, G, B in turn, lowest bits first, and fill each colour from its highest bit down.
    """
    return [
        sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3))
        for index in range(256)
        for channel in range(3)
    ]


def write_ids(target: Path, labels: NDArray[np.uint8]) -> None:
    """Write an id map (H, W) as palette PNG, atomically."""
    image = Image.fromarray(labels)
    image.putpalette(palette())
    with atomic_path(target) as temporary:
        image.save(temporary, format="PNG", compress_level=3)


def write_joints(target: Path, clip: Clip, joints: NDArray[np.floating]) -> None:
    """Write predicted joints (N, 15, 2), pixels of the clip's own size counted from 0, as JSON; null = not found."""
    rows = [
        [None if np.isnan(joint).any() else [round(float(c), 4) for c in joint] for joint in frame] for frame in joints
    ]
    write_json(target, {"clip": clip.name, "joints": list(JOINTS), "unit": "pixels from 0, x then y", "frames": rows})


def read_predicted_joints(path: Path) -> NDArray[np.float64]:
    """What `write_joints` wrote, (N, 15, 2), NaN where a joint was not found.

    Raises:
        InputError: the file is missing or damaged.
    """
    content = read_json(path)
    try:
        frames = [[[np.nan] * 2 if joint is None else joint for joint in frame] for frame in content["frames"]]
        joints = np.array(frames, dtype=np.float64)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{path} holds no predicted joints ({type(error).__name__}); evaluate the clip again."
        ) from error
    if joints.shape[1:] != (len(JOINTS), 2):
        raise InputError(f"{path} holds joints of shape {joints.shape}, not frames x 15 x 2; evaluate the clip again.")
    return joints


def prediction_path(folder: Path, clip: Clip, frame: int) -> Path:
    """Where a frame's prediction goes: `<clip>/<frame>.png` as the DAVIS server wants, `<clip>.json` for joints."""
    if clip.kind == "jhmdb":
        return folder / f"{clip.name}.json"
    return folder / clip.name / f"{clip.frames[frame].stem}.png"
