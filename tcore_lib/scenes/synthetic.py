"""The embedded default data: synthetic scenes as a mini Kinetics, DAVIS-2017, JHMDB and VIP, in their own formats.

Every set is drawn from scenes of its own (never one of another set), so what is trained on is not what is tested on.
"""

import multiprocessing
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

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


def _clip(what: str, settings: SyntheticData, i: int) -> tuple[str, str, tuple[int, int]]:
    """Clip `i` of a set: its name as its format has it, its kind of motion (the class of a video), its (width, height)."""
    if what == "videos":
        kind = list(KINDS)[i % settings.classes]
        return f"{kind}/{kind}_{i // settings.classes:03d}.mp4", kind, settings.video_size
    if what == "davis":
        kind = DAVIS_KINDS[i % len(DAVIS_KINDS)]
        return f"{kind}-{i:02d}", kind, DAVIS_SIZES[i % len(DAVIS_SIZES)]
    if what == "jhmdb":
        name, kind = list(JHMDB_CLASSES.items())[i % len(JHMDB_CLASSES)]
        return f"{name}/Synthetic_{name}_f_cm_np1_fr_med_{i}", kind, (320, 240)
    return f"videos{i + 1}", VIP_KINDS[i % len(VIP_KINDS)], VIP_SIZES[i % len(VIP_SIZES)]


# ---- writing a clip into a set's folder ------------------------------------------------------------------------------


def encode(path: Path, frames: np.ndarray, fps: int) -> None:
    """Write frames (N, H, W, 3) uint8, H and W even, as .mp4 in H.264."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "17", "preset": "superfast"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # the bytes depend on it
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _save_davis(folder: Path, name: str, scene: Scene) -> None:
    for i, (frame, ids) in enumerate(zip(scene.frames, scene.objects, strict=True)):
        _save(folder / "JPEGImages" / "480p" / name / f"{i:05d}.jpg", Image.fromarray(frame))
        image = Image.fromarray(ids)
        image.putpalette(palette())
        _save(folder / "Annotations" / "480p" / name / f"{i:05d}.png", image)


def _save_jhmdb(folder: Path, name: str, scene: Scene) -> None:
    for i, frame in enumerate(scene.frames):
        _save(folder / "Rename_Images" / name / f"{i + 1:05d}.png", Image.fromarray(frame))
    target = folder / "joint_positions" / name / "joint_positions.mat"
    target.parent.mkdir(parents=True, exist_ok=True)
    # (T, 15, 2) 0-based -> (2, 15, T), x then y, 1-based as in MATLAB
    scipy.io.savemat(target, {"pos_img": scene.joints.transpose(2, 1, 0) + 1})


def _save_vip(folder: Path, name: str, scene: Scene) -> None:
    for i, (frame, parts) in enumerate(zip(scene.frames, scene.parts, strict=True)):
        _save(folder / "Images" / name / f"{i + 1:012d}.jpg", Image.fromarray(frame))
        _save(folder / "Annotations" / "Category_ids" / name / f"{i + 1:012d}.png", Image.fromarray(parts))


def _save(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=95, compress_level=4)  # of JPEG, of PNG


# ---- which scenes a benchmark can use: 1 = fit, down to 0 ------------------------------------------------------------


def _fit_for_davis(scene: Scene) -> float:
    """Two objects or more, each clearly seen in the first frame and in most others."""
    ids = range(1, int(scene.objects.max()) + 1)
    opening = [float((scene.objects[0] == i).mean()) for i in ids]
    lasting = [float(((scene.objects == i).mean((1, 2)) > 0.002).mean()) for i in ids]
    return (len(ids) >= 2) * min(1.0, min(opening) / 0.008, min(lasting) / 0.8)


def _fit_for_jhmdb(scene: Scene) -> float:
    """Every joint within the frame throughout, most of them seen in the first one."""
    height, width = scene.objects.shape[1:]
    inside = ((scene.joints >= 2) & (scene.joints <= [width - 3, height - 3])).all(-1)
    return min(1.0, float(inside.mean()), float(scene.visible[0].mean()) / 0.8)


def _fit_for_vip(scene: Scene) -> float:
    """A figure of some size with many classes in the first frame, and still there at the end."""
    opening, last = scene.parts[0], scene.parts[-1]
    classes = len(np.unique(opening)) - 1
    return min(1.0, float((opening > 0).mean()) / 0.05, classes / 7, float((last > 0).mean()) / 0.03)


# ---- the sets --------------------------------------------------------------------------------------------------------


# Benchmark -> how a clip is saved, how fit a scene is, the text file that lists the clips, its line (JHMDB: class/clip).
FORMATS = {
    "davis": (_save_davis, _fit_for_davis, "ImageSets/2017/val.txt", "{name}"),
    "jhmdb": (_save_jhmdb, _fit_for_jhmdb, "splits/{kind}_test_split1.txt", "{clip}.avi 2"),
    "vip": (_save_vip, _fit_for_vip, "lists/val_videos.txt", "{name}"),
}
# Set -> the settings that decide it; the first one is the number of clips.
SETS = {
    "videos": ("videos", "classes", "video_size", "video_seconds", "fps"),
    **{name: (f"{name}_clips", "eval_frames") for name in FORMATS},
}


def write_set(
    what: str,
    root: str | Path,
    settings: SyntheticData,
    seed: int,
    *,
    progress: bool = True,
    workers: int | None = None,
) -> None:
    """Write a whole set of `SETS` into the folder `root`, or keep the one that is there if it is the same and complete.

    An older set of the same kind is replaced; whatever else `root` holds is never removed (InputError). `workers` are
    processes, by default one per core, fewer for a small set; the pictures do not depend on it.
    """
    root, count = Path(root).absolute(), getattr(settings, SETS[what][0])
    chosen = settings.model_dump(mode="json", include=set(SETS[what]))
    record = {"set": what, "renderer": RENDERER, "seed": seed, "settings": chosen}
    if _is_there(root, record):
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(root.with_name(f".{root.name}.lock")):
        if _is_there(root, record):  # another process was faster
            return
        folder = root.with_name(f".{root.name}.tmp")
        shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed: whoever has the lock is alone
        folder.mkdir()
        try:
            _draw_all(partial(_draw, what, folder, settings, seed), count, what, progress, workers)
            _write_lists(what, folder, [_clip(what, settings, i)[0] for i in range(count)])
            write_json(folder / RECORD, record | {"files": _count(folder)})
            if root.exists():
                shutil.rmtree(root)
            folder.rename(root)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


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
    """Draw all clips, in this process or in a pool: starting a process takes about as long as drawing four clips."""
    processes = min(workers or max(1, min(cores(), count // 4)), count)
    context = multiprocessing.get_context("spawn")  # the fork of a process that has started torch's threads may hang
    with ProcessPoolExecutor(processes, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        drawn = map(draw, range(count)) if processes == 1 else pool.map(draw, range(count))
        for _ in tqdm(drawn, f"drawing {what}", count, file=sys.stdout, disable=not progress):
            pass


def _draw(what: str, folder: Path, settings: SyntheticData, seed: int, index: int) -> None:
    """Draw and save one clip: of a benchmark the first scene that is fit for it, or the best of ten."""
    name, kind, size = _clip(what, settings, index)
    draw = partial(render_scene, kind, seed, DOMAINS[what], index, size=size)
    if what == "videos":
        seconds = settings.video_seconds
        scene = draw(num_frames=max(1, round(seconds * settings.fps)), seconds=seconds)
        return encode(folder / name, scene.frames, settings.fps)
    save, fit, highest = *FORMATS[what][:2], -1.0
    for attempt in range(10):
        scene = draw(attempt, num_frames=settings.eval_frames, seconds=settings.eval_frames / EVAL_FPS)
        if (fitness := fit(scene)) > highest:
            best, highest = scene, fitness
        if fitness >= 1:
            break
    return save(folder, name, best)


def _write_lists(what: str, folder: Path, names: list[str]) -> None:
    lists: dict[str, str] = {}
    for name in names if what in FORMATS else []:
        (kind, _, clip), (*_, file, line) = name.partition("/"), FORMATS[what]
        path = file.format(kind=kind)
        lists[path] = lists.get(path, "") + line.format(name=name, clip=clip) + "\n"
    for path, text in lists.items():
        write_text(folder / path, text)
