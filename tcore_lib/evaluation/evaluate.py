"""Evaluate frozen encoders on clips: (encoders, clips, settings) -> one row per object, joint or class.

Frames are streamed: decoded ahead by threads, encoded and propagated a few at a time, scored by the same threads, then
forgotten. Several encoders share the decoded frames. Each finished clip leaves one file, so that a killed run continues
with the first unfinished clip; under torchrun each rank takes its share of the clips and all return the whole table.

Letters: B frames of a batch, H W pixels, h w grid, C label channels, K joints.
"""

import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from tcore_lib.errors import InputError
from tcore_lib.evaluation import clips as clipfiles, labels as labelmaps
from tcore_lib.evaluation.clips import Clip
from tcore_lib.evaluation.finished import FinishedClips, fingerprint
from tcore_lib.evaluation.propagation import DTYPES, Propagator
from tcore_lib.evaluation.protocol import input_size, make_scorer, propagator_settings
from tcore_lib.machine.distributed import memory_is_full
from tcore_lib.model.encoders import FeatureEncoder
from tcore_lib.params import Benchmark, Vip

BATCH = {"cpu": 2, "cuda": 16}  # frames encoded at a time
WAITING = 64  # frames that may wait to be scored


def encode(encoder: FeatureEncoder, images: Tensor, precision: str = "fp32") -> Tensor:
    """Patch features float (B, h, w, D) of normalised images (B, 3, H, W), computed in a precision.

    Raises:
        InputError: a feature is not finite.
    """
    reduced = torch.autocast(images.device.type, DTYPES[precision], enabled=precision != "fp32")
    # By default cuDNN computes the patch embedding's float32 convolution in TF32, with 10 bits of mantissa.
    whole = torch.backends.cudnn.flags(enabled=True, benchmark=torch.backends.cudnn.benchmark, allow_tf32=False)
    with torch.no_grad(), whole, reduced:
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
        InputError: an image is missing or broken, an encoder gives no finite features, there is no clip, the device's
            memory is full.
    """
    encoders = dict(encoders) if isinstance(encoders, Mapping) else {getattr(encoders, "name", "encoder"): encoders}
    if not clips or not encoders:
        raise InputError(f"There is nothing to evaluate: {len(encoders)} encoder(s) and {len(clips)} clip(s).")
    with _ranks() as (rank, world, gather):
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if device == "cuda" and world > 1 else device
        for encoder in encoders.values():
            encoder.to(device).eval()
        fingerprints = {name: fingerprint(encoder) for name, encoder in encoders.items()} if output else {}
        finished = FinishedClips(None if output is None else Path(output), settings, fingerprints)
        mine = share(clips, rank, world)
        try:
            rows = gather(_evaluate(encoders, mine, settings, finished, workers, progress and rank == 0, device))
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            if not memory_is_full(error):
                raise
            raise _too_large(settings) from error
    ordered = [
        {"encoder": name, **row} for name in encoders for clip in clips for row in rows[name, clip.name]
    ]  # the order of the arguments, whoever computed what
    return pd.DataFrame(ordered)


def _too_large(settings: Benchmark) -> InputError:
    """The sentence for a full device."""
    section = type(settings).__name__.lower()
    size = "long_side" if isinstance(settings, Vip) else "input_size"
    half = f"set {section}.precision: bf16, or " if settings.precision == "fp32" else ""
    return InputError(
        f"The device's memory is full with {section}.{size} = {getattr(settings, size)} and {section}.context = "
        f"{settings.context}; {half}lower {section}.context or {section}.{size} (another protocol than the paper's)."
    )


def _evaluate(
    encoders: Mapping[str, FeatureEncoder],
    clips: Sequence[Clip],
    settings: Benchmark,
    finished: FinishedClips,
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
            pixels = torch.from_numpy(frames).to(device)
            images: dict[tuple[int, int], Tensor] = {}
            for run in active.values():
                if run.size not in images:
                    images[run.size] = labelmaps.to_input(pixels, run.size)
                run.feed(images[run.size])
            bar.update(len(frames))
            while closing:  # the clip before was scored while the first frames of this one were computed
                close()
            if first + len(frames) == len(clip):
                closing.extend((name, clip, run) for name, run in active.items())
                active = {}
        while closing:
            close()
    return rows


def share(clips: Sequence[Clip], rank: int, world: int) -> list[Clip]:
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
        dist.all_gather_object(parts, mine, group=group)  # type: ignore[arg-type]
        return {key: value for part in parts for key, value in part.items()}

    try:
        yield dist.get_rank(), world, gather
    finally:
        if own:
            dist.destroy_process_group()
