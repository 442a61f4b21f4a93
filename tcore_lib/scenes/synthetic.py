"""The embedded default data: synthetic scenes as a mini Kinetics, DAVIS-2017, JHMDB and VIP, in their own formats.

Every set is drawn from scenes of its own (never one of another set), so what is trained on is not what is tested on.
A set appears at its place in one step, complete; one with the same settings that is already there is kept.
"""

import multiprocessing
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import scipy.io
import torch
from filelock import FileLock
from PIL import Image
from tqdm import tqdm

from tcore_lib.bodies import palette
from tcore_lib.errors import InputError
from tcore_lib.files import read_json, write_json, write_text
from tcore_lib.machine import cores
from tcore_lib.params import SyntheticData
from tcore_lib.scenes.scenes import DOMAINS, KINDS, Scene, render_scene

# Part of every set's identity: raise it when a change of the renderer changes the pictures.
RENDERER = 1
RECORD = "settings.json"
EVAL_FPS = 10.0  # scene time between two benchmark frames: 1 / EVAL_FPS s

DAVIS_KINDS = ("bouncing", "swimming", "walking", "orbiting", "rolling", "jumping", "drifting", "dancing", "spinning",
               "waving")  # fmt: skip
DAVIS_SIZES = ((854, 480), (640, 480), (854, 480), (910, 480))
JHMDB_CLASSES = {"walk": "walking", "wave": "waving", "jump": "jumping", "dance": "dancing"}  # class -> kind of motion
VIP_KINDS = ("walking", "dancing", "waving", "jumping")
VIP_SIZES = ((640, 360), (1280, 720), (640, 480))


Clip = tuple[str, str, tuple[int, int]]  # name below the folder of clips, kind of motion, (width, height)


class Set(NamedTuple):
    """One of the sets."""

    settings: tuple[str, ...]  # of `SyntheticData` that decide it; the first one is the number of clips
    home: str  # folder of its clips
    clip: Callable[[SyntheticData, int], Clip]
    save: Callable[[Path, str, Scene, SyntheticData], None]  # folder of the set, name of the clip
    fit: Callable[[Scene], float] | None  # 1 = fit for the benchmark; None = no benchmark
    lists: Callable[[list[str]], dict[str, str]]  # names of the clips -> the set's text files


# ---- mini Kinetics: <class>/<class>_000.mp4; the class is the kind of motion ------------------------------------------


def _video(settings: SyntheticData, i: int) -> Clip:
    kind = list(KINDS)[i % settings.classes]
    return f"{kind}/{kind}_{i // settings.classes:03d}.mp4", kind, settings.video_size


def _save_video(folder: Path, name: str, scene: Scene, settings: SyntheticData) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    encode(folder / name, scene.frames, settings.fps)


def encode(path: Path, frames: np.ndarray, fps: int) -> None:
    """Write frames (N, H, W, 3) uint8, H and W even, as .mp4 in H.264."""
    with av.open(str(path), "w") as container:
        options = {"crf": "17", "preset": "superfast"}
        stream = container.add_stream("libx264", rate=Fraction(fps), options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # the bytes depend on it
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


# ---- mini DAVIS-2017 -------------------------------------------------------------------------------------------------


def _davis(settings: SyntheticData, i: int) -> Clip:
    kind = DAVIS_KINDS[i % len(DAVIS_KINDS)]
    return f"{kind}-{i:02d}", kind, DAVIS_SIZES[i % len(DAVIS_SIZES)]


def _save_davis(folder: Path, name: str, scene: Scene, settings: SyntheticData) -> None:
    for i, (frame, ids) in enumerate(zip(scene.frames, scene.objects, strict=True)):
        _save(folder / "JPEGImages" / "480p" / name / f"{i:05d}.jpg", Image.fromarray(frame))
        image = Image.fromarray(ids)
        image.putpalette(palette())
        _save(folder / "Annotations" / "480p" / name / f"{i:05d}.png", image)


def _fit_for_davis(scene: Scene) -> float:
    """Two objects or more, each clearly seen in the first frame and in most others."""
    ids = range(1, int(scene.objects.max()) + 1)
    opening = [float((scene.objects[0] == i).mean()) for i in ids]
    lasting = [float(((scene.objects == i).mean((1, 2)) > 0.002).mean()) for i in ids]
    return (len(ids) >= 2) * min(1.0, min(opening) / 0.008, min(lasting) / 0.8)


# ---- mini JHMDB, all clips in the test part of split 1 ----------------------------------------------------------------


def _jhmdb(settings: SyntheticData, i: int) -> Clip:
    name, kind = list(JHMDB_CLASSES.items())[i % len(JHMDB_CLASSES)]
    return f"{name}/Synthetic_{name}_f_cm_np1_fr_med_{i}", kind, (320, 240)


def _save_jhmdb(folder: Path, name: str, scene: Scene, settings: SyntheticData) -> None:
    for i, frame in enumerate(scene.frames):
        _save(folder / "Rename_Images" / name / f"{i + 1:05d}.png", Image.fromarray(frame))
    target = folder / "joint_positions" / name / "joint_positions.mat"
    target.parent.mkdir(parents=True, exist_ok=True)
    # (T, 15, 2) 0-based -> (2, 15, T), x then y, 1-based as in MATLAB
    scipy.io.savemat(target, {"pos_img": scene.joints.transpose(2, 1, 0) + 1})


def _fit_for_jhmdb(scene: Scene) -> float:
    """Every joint within the frame throughout, most of them seen in the first one."""
    height, width = scene.objects.shape[1:]
    inside = ((scene.joints >= 2) & (scene.joints <= [width - 3, height - 3])).all(-1)
    return min(1.0, float(inside.mean()), float(scene.visible[0].mean()) / 0.8)


def _lists_of_jhmdb(names: list[str]) -> dict[str, str]:
    lists: dict[str, str] = {}
    for kind, clip in (name.split("/") for name in names):
        file = f"splits/{kind}_test_split1.txt"
        lists[file] = lists.get(file, "") + f"{clip}.avi 2\n"
    return lists


# ---- mini VIP --------------------------------------------------------------------------------------------------------


def _vip(settings: SyntheticData, i: int) -> Clip:
    return f"videos{i + 1}", VIP_KINDS[i % len(VIP_KINDS)], VIP_SIZES[i % len(VIP_SIZES)]


def _save_vip(folder: Path, name: str, scene: Scene, settings: SyntheticData) -> None:
    for i, (frame, parts) in enumerate(zip(scene.frames, scene.parts, strict=True)):
        _save(folder / "Images" / name / f"{i + 1:012d}.jpg", Image.fromarray(frame))
        _save(folder / "Annotations" / "Category_ids" / name / f"{i + 1:012d}.png", Image.fromarray(parts))


def _fit_for_vip(scene: Scene) -> float:
    """A figure of some size with many classes in the first frame, and still there at the end."""
    opening, last = scene.parts[0], scene.parts[-1]
    classes = len(np.unique(opening)) - 1
    return min(1.0, float((opening > 0).mean()) / 0.05, classes / 7, float((last > 0).mean()) / 0.03)


def _save(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=95, compress_level=4)  # of JPEG, of PNG


def _one_list(file: str, names: list[str]) -> dict[str, str]:
    return {file: "".join(f"{name}\n" for name in names)}


# ---- all of them -----------------------------------------------------------------------------------------------------

SETS = {
    "videos": Set(
        ("videos", "classes", "video_size", "video_seconds", "fps"),
        "", _video, _save_video, None, lambda names: {},
    ),
    "davis": Set(
        ("davis_clips", "eval_frames"),
        "JPEGImages/480p", _davis, _save_davis, _fit_for_davis, partial(_one_list, "ImageSets/2017/val.txt"),
    ),
    "jhmdb": Set(
        ("jhmdb_clips", "eval_frames"),
        "Rename_Images", _jhmdb, _save_jhmdb, _fit_for_jhmdb, _lists_of_jhmdb,
    ),
    "vip": Set(
        ("vip_clips", "eval_frames"),
        "Images", _vip, _save_vip, _fit_for_vip, partial(_one_list, "lists/val_videos.txt"),
    ),
}  # fmt: skip


def write_set(
    what: str,
    root: str | Path,
    settings: SyntheticData,
    seed: int,
    *,
    progress: bool = True,
    workers: int | None = None,
) -> list[Path]:
    """Write a whole set, or keep the one that is there if it is the same and complete.

    Args:
        what: a key of `SETS`.
        root: the set's folder. One that holds an older set of the same kind is replaced.
        settings: number, size, length and frame rate of the clips.
        seed: the run's seed.
        progress: show a bar.
        workers: processes; None = one per core, fewer for a small set. The pictures do not depend on it.

    Returns:
        The videos, or the clips' image folders, in the order they were drawn in.

    Raises:
        InputError: `root` holds something else, which is never removed.
    """
    of, root = SETS[what], Path(root).absolute()
    names = [of.clip(settings, i)[0] for i in range(getattr(settings, of.settings[0]))]
    chosen = settings.model_dump(mode="json", include=set(of.settings))
    record = {"set": what, "renderer": RENDERER, "seed": seed, "settings": chosen}
    if not _is_there(root, record):
        root.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(root.with_name(f".{root.name}.lock")):
            if not _is_there(root, record):  # another process was faster
                folder = root.with_name(f".{root.name}.tmp")
                shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed: whoever has the lock is alone
                folder.mkdir()
                try:
                    for name, text in of.lists(names).items():
                        write_text(folder / name, text)
                    _draw_all(partial(_draw, what, folder, settings, seed), len(names), what, progress, workers)
                    write_json(folder / RECORD, record | {"files": _count(folder)})
                    if root.exists():
                        shutil.rmtree(root)
                    folder.rename(root)
                finally:
                    shutil.rmtree(folder, ignore_errors=True)
    return [root / of.home / name for name in names]


def _is_there(root: Path, record: dict[str, Any]) -> bool:
    """Whether `root` holds exactly this set."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    if not (root / RECORD).is_file():
        raise InputError(f"{root} exists and was not written by the scene renderer; choose another folder.")
    found = read_json(root / RECORD)
    if not isinstance(found, dict) or found.get("set") != record["set"]:
        raise InputError(f"{root} holds another kind of data set; choose another folder.")
    return found == record | {"files": _count(root)}


def _count(folder: Path) -> int:
    return sum(path.is_file() and path.name != RECORD for path in folder.rglob("*"))


def _draw_all(draw: Callable[[int], None], count: int, what: str, progress: bool, workers: int | None) -> None:
    """Draw all clips, in this process or in a pool."""
    # Starting a process takes about as long as drawing four clips.
    processes = min(workers or max(1, min(cores(), count // 4)), count)
    with tqdm(total=count, desc=f"drawing {what}", file=sys.stdout, disable=not progress) as bar:
        if processes == 1:
            for i in range(count):
                draw(i)
                bar.update()
            return
        # spawn: the fork of a process that has started torch's threads may hang
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            try:
                for done in as_completed([pool.submit(draw, i) for i in range(count)]):
                    done.result()
                    bar.update()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)  # nothing is left but after an error


def _draw(what: str, folder: Path, settings: SyntheticData, seed: int, index: int) -> None:
    """Draw and save one clip: of a benchmark the first scene that is fit for it, or the best of ten."""
    of = SETS[what]
    name, kind, size = of.clip(settings, index)
    if of.fit is None:
        seconds, frames = settings.video_seconds, max(1, round(settings.video_seconds * settings.fps))
        best = render_scene(kind, seed, DOMAINS[what], index, size=size, num_frames=frames, seconds=seconds)
    else:
        seconds, frames, highest = settings.eval_frames / EVAL_FPS, settings.eval_frames, -1.0
        for attempt in range(10):
            found = render_scene(
                kind, seed, DOMAINS[what], index, attempt, size=size, num_frames=frames, seconds=seconds
            )
            if (fitness := of.fit(found)) > highest:
                best, highest = found, fitness
            if fitness >= 1:
                break
    of.save(folder, name, best, settings)
