"""Evaluate frozen encoders on clips: (encoders, clips, settings) -> one row per object, joint or class.

Frames are streamed: decoded ahead by threads, encoded and propagated a few at a time, scored by the same threads, then
forgotten. Several encoders share the decoded frames. Each finished clip leaves one file, so that a killed run continues
with the first unfinished clip; under torchrun each rank takes its share of the clips and all return the whole table.

Letters: B frames of a batch, H W pixels, h w grid, C label channels, K joints.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from tcore_lib import clips as clipfiles
from tcore_lib import labelmaps, scoring
from tcore_lib.clips import Clip
from tcore_lib.encoder import FeatureEncoder
from tcore_lib.errors import InputError
from tcore_lib.files import read_json, write_json
from tcore_lib.params import Benchmark, Davis, Vip
from tcore_lib.propagation import DTYPES, Neighbours, Propagator

PROTOCOL = 1  # raise it when a change of the code changes scores: finished clips are then evaluated again
NOT_A_RESULT = {"enabled", "root", "clips", "save_predictions", "split"}  # settings that do not change a clip's scores
BATCH = {"cpu": 2, "cuda": 16}  # frames encoded at a time
WAITING = 64  # frames that may wait to be scored


# ---------------------------------------------------------------------------------------------- geometry and settings


def input_size(clip: Clip, settings: Benchmark, patch_size: int) -> tuple[int, int]:
    """(H, W) that a clip's frames are resized to: the benchmark's, floored to multiples of the encoder's patch.

    VIP: the long side is given, the short side is scaled by `int()` and floored to a multiple of 64 (EVALUATION).

    Raises:
        InputError: nothing is left of a side.
    """
    if isinstance(settings, Vip):
        h, w = clip.size
        long = settings.long_side
        short = int(min(h, w) * long / max(h, w)) // 64 * 64
        size = (short, long) if w > h else (long, short)
    else:
        size = tuple(settings.input_size)  # type: ignore[attr-defined]
    floored = (size[0] // patch_size * patch_size, size[1] // patch_size * patch_size)
    if min(floored) == 0:
        raise InputError(
            f"{clip.name} ({clip.size[1]}x{clip.size[0]}) would be resized to {size[1]}x{size[0]}, less than one patch "
            f"of {patch_size} pixels; enlarge the input size."
        )
    return floored


def propagator_settings(settings: Benchmark) -> dict[str, Any]:
    """The arguments of `Propagator`."""
    names = ("top_k", "temperature", "radius", "context", "long_memory", "precision")
    variants = ("radius_inclusive", "restrict_first", "repeat_first")
    return {name: getattr(settings, name) for name in (*names, *variants)}


def fingerprint(encoder: FeatureEncoder) -> str:
    """Hex SHA-256 of an encoder's weights and patch size."""
    total = hashlib.sha256(f"{type(encoder).__name__} {encoder.patch_size} {encoder.width}".encode())
    total.update(str(type(getattr(encoder, "network", None)).__name__).encode())
    for name, value in sorted(encoder.state_dict().items()):
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


# ---------------------------------------------------------------------------------------------- one encoder, one clip


class _MaskScorer:
    """DAVIS and VIP: soft maps to id maps, scored (and written) by threads."""

    def __init__(self, clip: Clip, settings: Benchmark, size: tuple[int, int], folder: Path | None) -> None:
        self.clip, self.settings, self.size, self.folder = clip, settings, size, folder
        first = clipfiles.read_ids(clip.annotations[0])  # type: ignore[arg-type]
        self.labels = scoring.without_void(first) if clip.kind == "davis" else first
        self.objects = scoring.number_of_objects(first)
        if clip.kind == "davis" and self.objects == 0:
            raise InputError(f"{clip.annotations[0]} shows no object; a DAVIS clip needs one in its first frame.")

    def soft_map(self, grid: tuple[int, int]) -> Tensor:
        """Labels of the first frame on the grid, (C, h, w)."""
        soft, self.ids = labelmaps.first_soft_map(self.labels, self.size, grid)
        return soft

    def predict(self, soft: Tensor) -> list[NDArray[Any]]:
        """Soft maps (B, C, h, w) to id maps (H, W) of input size."""
        return list(labelmaps.to_ids(soft, self.ids, self.size, self.settings.upsampling).cpu().numpy())

    def score(self, frame: int, prediction: NDArray[np.uint8]) -> NDArray[Any] | None:
        """J and F, or the confusion matrix, of one frame; None where it does not count. Runs in a thread."""
        path = self.clip.annotations[frame]
        davis = self.clip.kind == "davis"
        counts = path is not None and not (davis and frame in (0, len(self.clip) - 1))
        if not counts and self.folder is None:
            return None
        truth = clipfiles.read_ids(path) if path is not None else None
        native = truth.shape if truth is not None else self.clip.size
        result = None
        if davis and isinstance(self.settings, Davis) and self.settings.score_size == "input":
            small = labelmaps.resize_ids(torch.from_numpy(truth), self.size).numpy()
            result = scoring.davis_frame(prediction, small, self.objects) if counts else None
            counts = False
        if davis:
            prediction = labelmaps.resize_ids(torch.from_numpy(prediction), native).numpy()
        else:
            prediction = scoring.resize_part_ids(prediction, native)
        if self.folder is not None:
            clipfiles.write_ids(clipfiles.prediction_path(self.folder, self.clip, frame), prediction)
        if counts and davis:
            return scoring.davis_frame(prediction, truth, self.objects)
        return scoring.vip_frame(prediction, truth) if counts else result

    def rows(self, results: Sequence[NDArray[Any] | None]) -> list[dict[str, Any]]:
        """Rows of the table."""
        counted = [result for result in results if result is not None]
        if self.clip.kind == "vip":
            return scoring.vip_rows(self.clip, np.sum(counted, axis=0))
        return scoring.davis_rows(self.clip, np.stack(counted) if counted else np.empty((0, self.objects, 2)))


class _JointScorer:
    """JHMDB: soft maps to joints, scored when all are there."""

    def __init__(self, clip: Clip, size: tuple[int, int], patch_size: int, folder: Path | None) -> None:
        self.clip, self.size, self.patch_size, self.folder = clip, size, patch_size, folder

    def soft_map(self, grid: tuple[int, int]) -> Tensor:
        """Joints of the first frame on the grid, (1 + K, h, w)."""
        assert self.clip.joints is not None
        to_grid = np.array([self.size[1] / self.clip.size[1], self.size[0] / self.clip.size[0]]) / self.patch_size
        return labelmaps.joint_soft_map(self.clip.joints[0] * to_grid, grid)

    def predict(self, soft: Tensor) -> list[NDArray[Any]]:
        """Soft maps (B, 1 + K, h, w) to joints (K, 2) in pixels of the clip's own size."""
        h, w = soft.shape[2:]
        joints = labelmaps.to_joints(soft).cpu().numpy()
        return list(joints / (w, h) * (self.clip.size[1], self.clip.size[0]))

    def score(self, frame: int, prediction: NDArray[np.float64]) -> NDArray[Any]:
        """Nothing to do per frame."""
        return prediction

    def rows(self, results: Sequence[NDArray[Any]]) -> list[dict[str, Any]]:
        """Rows of the table."""
        joints = np.stack(results)
        if self.folder is not None:
            clipfiles.write_joints(clipfiles.prediction_path(self.folder, self.clip, 0), self.clip, joints)
        return scoring.jhmdb_rows(self.clip, joints)


def make_scorer(
    clip: Clip, settings: Benchmark, patch_size: int, folder: Path | None = None
) -> _MaskScorer | _JointScorer:
    """What turns a clip's first labels into a soft map and its soft maps into scores."""
    size = input_size(clip, settings, patch_size)
    if clip.kind == "jhmdb":
        return _JointScorer(clip, size, patch_size, folder)
    return _MaskScorer(clip, settings, size, folder)


def encode(encoder: FeatureEncoder, images: Tensor, precision: str = "fp32") -> Tensor:
    """Patch features float (B, h, w, D) of normalised images (B, 3, H, W), computed in a precision.

    Raises:
        InputError: a feature is not finite.
    """
    reduced = torch.autocast(images.device.type, DTYPES[precision], enabled=precision != "fp32")
    with torch.no_grad(), reduced:
        features = encoder(images).float()
    if not torch.isfinite(features).all():
        raise InputError(
            f"The encoder {getattr(encoder, 'name', '')} gives features that are not finite numbers"
            f"{f' in {precision}; try fp32' if precision != 'fp32' else '; its weights are broken'}."
        )
    return features


class _ClipRun:
    """One encoder on one clip, fed with frames in order."""

    def __init__(
        self, encoder: FeatureEncoder, clip: Clip, settings: Benchmark, pool: ThreadPoolExecutor, folder: Path | None
    ) -> None:
        self.encoder, self.clip, self.settings, self.pool = encoder, clip, settings, pool
        self.scorer = make_scorer(clip, settings, encoder.patch_size, folder)
        self.size = input_size(clip, settings, encoder.patch_size)
        self.propagator: Propagator | None = None
        self.results: list[Future[Any]] = []
        self.seconds = 0.0

    def feed(self, images: Tensor) -> None:
        """The next frames, normalised and resized: (B, 3, H, W)."""
        began = time.perf_counter()
        soft = []
        for features in encode(self.encoder, images, self.settings.precision):
            if self.propagator is None:
                first = self.scorer.soft_map((features.shape[0], features.shape[1])).to(features.device)
                self.propagator = Propagator(features, first, **propagator_settings(self.settings))
                soft.append(first)
            else:
                soft.append(self.propagator.step(features))
        for prediction in self.scorer.predict(torch.stack(soft)):
            frame = len(self.results)
            self.results.append(self.pool.submit(self.scorer.score, frame, prediction))
            if frame >= WAITING:
                self.results[frame - WAITING].result()
        self.seconds += time.perf_counter() - began

    def finish(self) -> list[dict[str, Any]]:
        """Rows of the clip, when all its frames are scored."""
        self.propagator = None
        return self.scorer.rows([future.result() for future in self.results])


# ---------------------------------------------------------------------------------------------- all clips


@dataclass(frozen=True)
class _Finished:
    """The files of finished clips under `output/clips/<encoder>/`, valid as long as nothing they depend on changed."""

    output: Path | None
    settings: Benchmark
    fingerprints: Mapping[str, str]

    def key(self, encoder: str, digest: str) -> str:
        settings = self.settings.model_dump(mode="json", exclude=NOT_A_RESULT)
        parts = [PROTOCOL, type(self.settings).__name__, settings, self.fingerprints[encoder], digest]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _path(self, encoder: str, clip: Clip) -> Path:
        assert self.output is not None
        return self.output / "clips" / folder_name(encoder) / f"{clip.name}.json"

    def predictions(self, encoder: str) -> Path | None:
        """Where predictions go, if they are wanted."""
        if self.output is None or not self.settings.save_predictions:
            return None
        return self.output / "predictions" / folder_name(encoder)

    def read(self, encoder: str, clip: Clip, digest: str) -> list[dict[str, Any]] | None:
        if self.output is None or not self._path(encoder, clip).exists():
            return None
        saved = read_json(self._path(encoder, clip))
        if saved.get("key") != self.key(encoder, digest):
            return None
        folder = self.predictions(encoder)
        wanted = range(len(clip)) if folder is not None else ()
        if not all(clipfiles.prediction_path(folder, clip, frame).exists() for frame in wanted):  # type: ignore[arg-type]
            return None
        return [{name: math.nan if value is None else value for name, value in row.items()} for row in saved["rows"]]

    def write(self, encoder: str, clip: Clip, digest: str, rows: list[dict[str, Any]], seconds: float) -> None:
        if self.output is None:
            return
        plain = [
            {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}
            for row in rows
        ]
        record = {
            "clip": clip.name,
            "frames": len(clip),
            "seconds": round(seconds, 3),
            "key": self.key(encoder, digest),
        }
        write_json(self._path(encoder, clip), {**record, "rows": plain})


def folder_name(encoder: str) -> str:
    """An encoder's name as a folder name; names that would collide are told apart by a digest."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", encoder).strip("._")[-80:] or "encoder"
    return plain if plain == encoder else f"{plain}-{hashlib.sha256(encoder.encode()).hexdigest()[:8]}"


def _decoded(
    clips: Sequence[Clip], batch: int, pool: ThreadPoolExecutor
) -> Iterator[tuple[Clip, int, NDArray[np.uint8]]]:
    """Batches of decoded frames, (clip, first frame, uint8 (B, H, W, 3)), read ahead across clips."""
    jobs = [(clip, frame) for clip in clips for frame in range(len(clip))]
    ahead = iter(jobs)
    waiting: deque[tuple[Clip, int, Future[NDArray[np.uint8]]]] = deque()

    def submit() -> None:
        for clip, frame in ahead:
            waiting.append((clip, frame, pool.submit(clipfiles.read_frame, clip.frames[frame])))
            return

    for _ in range(3 * batch):
        submit()
    frames: list[NDArray[np.uint8]] = []
    while waiting:
        clip, frame, future = waiting.popleft()
        submit()
        image = future.result()
        if image.shape[:2] != clip.size:
            raise InputError(
                f"{clip.frames[frame]} is {image.shape[1]}x{image.shape[0]} pixels, the clip's first frame "
                f"{clip.size[1]}x{clip.size[0]}; frames of a clip must have one size."
            )
        frames.append(image)
        if len(frames) == batch or frame == len(clip) - 1:
            yield clip, frame + 1 - len(frames), np.stack(frames)
            frames = []


def evaluate(
    encoders: Mapping[str, FeatureEncoder] | FeatureEncoder,
    clips: Sequence[Clip],
    settings: Benchmark,
    *,
    output: str | Path | None = None,
    workers: int | None = None,
    progress: bool = True,
    device: str = "cpu",
) -> pd.DataFrame:
    """Scores of frozen encoders on clips (EVALUATION).

    Args:
        encoders: name in the table -> encoder, or one encoder. They are moved to `device`.
        clips: of one benchmark.
        settings: that benchmark's section.
        output: folder for finished clips (`clips/`), from which a killed run continues, and for predictions
            (`predictions/<encoder>/`) where `settings.save_predictions`; None = keep nothing.
        workers: threads that decode and score; None = one per core.
        progress: show a bar over frames.
        device: torch device; under torchrun `cuda` becomes the rank's own.

    Returns:
        One row per encoder and object (DAVIS), joint (JHMDB) or class (VIP) of each clip. J, F, IoU are fractions, PCK
        is in percent. What cannot be measured is NaN: a joint never found, a class that never occurs in the clip.

    Raises:
        InputError: an image is missing or broken, an encoder gives no finite features, there is no clip.
    """
    encoders = dict(encoders) if isinstance(encoders, Mapping) else {getattr(encoders, "name", "encoder"): encoders}
    if not clips or not encoders:
        raise InputError(f"There is nothing to evaluate: {len(encoders)} encoder(s) and {len(clips)} clip(s).")
    with _ranks() as (rank, world, gather):
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if device == "cuda" and world > 1 else device
        for encoder in encoders.values():
            encoder.to(device).eval()
        fingerprints = {name: fingerprint(encoder) for name, encoder in encoders.items()} if output else {}
        finished = _Finished(None if output is None else Path(output), settings, fingerprints)
        mine = _share(clips, rank, world)
        rows = gather(_evaluate(encoders, mine, settings, finished, workers, progress and rank == 0, device))
    ordered = [
        {"encoder": name, **row} for name in encoders for clip in clips for row in rows[name, clip.name]
    ]  # the order of the arguments, whoever computed what
    return pd.DataFrame(ordered)


def _evaluate(
    encoders: Mapping[str, FeatureEncoder],
    clips: Sequence[Clip],
    settings: Benchmark,
    finished: _Finished,
    workers: int | None,
    progress: bool,
    device: str,
) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """(encoder, clip) -> rows, of this rank's clips."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    digests = {clip.name: clip.digest() if finished.output else "" for clip in clips}
    for clip in clips:
        for name in encoders:
            saved = finished.read(name, clip, digests[clip.name])
            if saved is not None:
                rows[name, clip.name] = saved
    todo = [clip for clip in clips if any((name, clip.name) not in rows for name in encoders)]
    batch = BATCH[torch.device(device).type]
    closing: deque[tuple[str, Clip, _ClipRun]] = deque()

    def close() -> None:
        name, clip, run = closing.popleft()
        rows[name, clip.name] = run.finish()
        finished.write(name, clip, digests[clip.name], rows[name, clip.name], run.seconds)

    bar = tqdm(
        total=sum(map(len, todo)), unit="frame", file=sys.stdout, disable=not progress or not todo, desc="evaluate"
    )
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool, bar:
        active: dict[str, _ClipRun] = {}
        for clip, first, frames in _decoded(todo, batch, pool):
            if first == 0:
                active = {
                    name: _ClipRun(encoder, clip, settings, pool, finished.predictions(name))
                    for name, encoder in encoders.items()
                    if (name, clip.name) not in rows
                }
                # Scoring of the clip before goes on while this one is computed; of older ones it is over.
                while len(closing) > len(encoders):
                    close()
            pixels = torch.from_numpy(frames).to(device)
            images: dict[tuple[int, int], Tensor] = {}
            for run in active.values():
                if run.size not in images:
                    images[run.size] = labelmaps.to_input(pixels, run.size)
                run.feed(images[run.size])
            bar.update(len(frames))
            if first + len(frames) == len(clip):
                closing.extend((name, clip, run) for name, run in active.items())
                active = {}
        while closing:
            close()
    return rows


def _share(clips: Sequence[Clip], rank: int, world: int) -> list[Clip]:
    """This rank's clips: longest first, each to the rank with the fewest frames so far; then in the given order."""
    load = [0] * world
    owner = {}
    for clip in sorted(clips, key=len, reverse=True):
        owner[clip.name] = load.index(min(load))
        load[owner[clip.name]] += len(clip)
    return [clip for clip in clips if owner[clip.name] == rank]


@contextlib.contextmanager
def _ranks() -> Iterator[tuple[int, int, Callable[[dict[Any, Any]], dict[Any, Any]]]]:
    """(rank, world, merge of every rank's dictionary) of torchrun, or of a single process."""
    world = dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield 0, 1, lambda mine: mine
        return
    own = not dist.is_initialized()
    if own:
        dist.init_process_group("gloo")
    group = dist.group.WORLD if own else dist.new_group(backend="gloo")

    def gather(mine: dict[Any, Any]) -> dict[Any, Any]:
        parts: list[dict[Any, Any]] = [{} for _ in range(world)]
        dist.all_gather_object(parts, mine, group=group)
        return {key: value for part in parts for key, value in part.items()}

    try:
        yield dist.get_rank(), world, gather
    finally:
        if own:
            dist.destroy_process_group()


# ---------------------------------------------------------------------------------------------- one step, for the eye


@dataclass(frozen=True)
class Step:
    """Everything that happens between two frames, seen from one patch of the later one.

    Attributes:
        frame: index of the frame.
        query: (row, col) of the patch on the grid.
        image: uint8 (H, W, 3), the frame at its own size.
        context: indices of the distinct frames that may vote, oldest first.
        context_images: uint8 (n, H, W, 3) of them.
        features: float32 (h, w, D), L2-normalised, of the frame.
        context_features: float32 (n, h, w, D).
        affinity: float32 (n, h, w), similarity of the patch to each context patch, NaN where the radius forbids it.
        votes: table of the patch's voters, best first: frame, row, col, similarity, count (places), weight.
        soft: float32 (C, h, w), soft label map of the frame.
        context_labels: float32 (n, C, h, w), soft label maps of the context.
        prediction: uint8 (H, W) ids at input size, or float64 (K, 2) joints in pixels.
        channels: what the channels of `soft` are: ids, or `background` and the joints.
        neighbours: the voters of every patch.
    """

    frame: int
    query: tuple[int, int]
    image: NDArray[np.uint8]
    context: list[int]
    context_images: NDArray[np.uint8]
    features: Tensor
    context_features: Tensor
    affinity: Tensor
    votes: pd.DataFrame
    soft: Tensor
    context_labels: Tensor
    prediction: NDArray[Any]
    channels: list[Any]
    neighbours: Neighbours


def inspect_step(
    encoder: FeatureEncoder,
    clip: Clip,
    settings: Benchmark,
    frame: int,
    query: tuple[int, int],
    *,
    device: str = "cpu",
) -> Step:
    """Propagate a clip up to `frame` and show how one patch gets its label; everything is returned on the CPU.

    Args:
        encoder: as for `evaluate`.
        clip: any.
        settings: the benchmark's section.
        frame: 1 ... N - 1.
        query: (row, col) on the patch grid.
        device: torch device.

    Raises:
        InputError: frame or query lie outside the clip or the grid.
    """
    if not 1 <= frame < len(clip):
        raise InputError(f"Frame {frame} of {clip.name} cannot be inspected; choose 1 to {len(clip) - 1}.")
    scorer = make_scorer(clip, settings, encoder.patch_size)
    size = input_size(clip, settings, encoder.patch_size)
    h, w = size[0] // encoder.patch_size, size[1] // encoder.patch_size
    if not (0 <= query[0] < h and 0 <= query[1] < w):
        raise InputError(f"The patch {tuple(query)} is not on the grid of {h} rows and {w} columns; choose another.")
    encoder.to(device).eval()
    images, features, soft = [], [], [scorer.soft_map((h, w))]
    propagator: Propagator | None = None
    for index in range(frame + 1):
        images.append(clipfiles.read_frame(clip.frames[index]))
        pixels = torch.from_numpy(images[-1]).to(device)[None]
        found = encode(encoder, labelmaps.to_input(pixels, size), settings.precision)[0]
        features.append(torch.nn.functional.normalize(found.float(), dim=-1).cpu())
        if propagator is None:
            propagator = Propagator(found, soft[0].to(device), **propagator_settings(settings))
        else:
            neighbours = propagator.neighbours(found) if index == frame else None
            soft.append(propagator.step(found).cpu())
    assert neighbours is not None
    neighbours = Neighbours(*(getattr(neighbours, name).cpu() for name in Neighbours.__dataclass_fields__))
    free = {m for m in settings.long_memory if m < frame} | ({0} if settings.long_memory else set())
    near = {max(i, 0) for i in range(frame - settings.context, frame) if i >= 0 or settings.repeat_first}
    context = sorted(free | near)
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    squared = (rows - query[0]) ** 2 + (columns - query[1]) ** 2
    within = squared <= settings.radius**2 if settings.radius_inclusive else squared < settings.radius**2
    affinity = torch.stack([features[i] @ features[frame][query] for i in context])
    for position, index in enumerate(context):
        if settings.restrict_first or index not in free:
            affinity[position][~within] = math.nan
    patch = query[0] * w + query[1]
    voters = {
        name: getattr(neighbours, name)[patch].numpy() for name in ("frame", "patch", "similarity", "count", "weight")
    }
    votes = pd.DataFrame(voters).query("count > 0")
    votes = votes.assign(row=votes["patch"] // w, col=votes["patch"] % w)
    channels = list(scorer.ids) if isinstance(scorer, _MaskScorer) else ["background", *clipfiles.JOINTS]
    return Step(
        frame=frame,
        query=(int(query[0]), int(query[1])),
        image=images[frame],
        context=context,
        context_images=np.stack([images[i] for i in context]),
        features=features[frame],
        context_features=torch.stack([features[i] for i in context]),
        affinity=affinity,
        votes=votes[["frame", "row", "col", "similarity", "count", "weight"]].reset_index(drop=True),
        soft=soft[frame],
        context_labels=torch.stack([soft[i] for i in context]),
        prediction=scorer.predict(soft[frame][None])[0],
        channels=channels,
        neighbours=neighbours,
    )
