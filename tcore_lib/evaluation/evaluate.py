"""Evaluate frozen encoders on clips: (encoders, clips, settings) -> one row per object, joint or class.

Frames are streamed: decoded ahead by threads, encoded and propagated a few at a time, scored by the same threads, then
forgotten. Several encoders share the decoded frames.

**Resuming and sharing.** A finished clip leaves one file, `clips/<encoder>/<clip>/<key>.json`, whose name is the digest of
all that its rows depend on: what exists is finished. A clip that is worked on has a lock file. So any number of processes,
on one machine or on several over a common folder, may be given the same arguments: each takes the next clip that nobody
has, and all return the whole table. A lock ends with its process, so a killed one leaves its clip to the others.

Letters: B frames of a batch, H W pixels, h w grid, C label channels, D width.
"""

import hashlib
import itertools
import json
import math
import os
import re
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from tcore_lib.errors import InputError
from tcore_lib.evaluation import clips as clipfiles, labels as labelmaps
from tcore_lib.evaluation.benchmarks import benchmark_of, name_of
from tcore_lib.evaluation.clips import Clip
from tcore_lib.evaluation.propagation import Propagator, propagator_settings
from tcore_lib.files import read_json, writable, write_json
from tcore_lib.machine import memory_is_full
from tcore_lib.model.encoders import FeatureEncoder
from tcore_lib.params import Benchmark, Vip

BATCH = {"cpu": 2, "cuda": 16}  # frames encoded at a time
WAITING = 64  # frames that may wait to be scored
POLL = 0.5  # seconds between looks at clips that another process works on
PROTOCOL = 2  # raise it when a change of the code changes scores: finished clips are then evaluated again
NOT_A_RESULT = {"enabled", "root", "clips", "save_predictions", "split"}  # settings that do not change a clip's scores
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SAMPLED = 8  # values kept of a frame's features

Encoders = Mapping[str, FeatureEncoder]
Record = dict[str, Any]


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


# ---------------------------------------------------------------------------------------------- finished clips


def fingerprint(encoder: nn.Module) -> str:
    """Hex SHA-256 of an encoder's weights, width and patch size; of its kind where it has no weights."""
    state = encoder.state_dict()
    kind = "" if state else type(getattr(encoder, "network", encoder)).__name__
    total = hashlib.sha256(f"{encoder.patch_size} {encoder.width} {kind}".encode())
    for value in state.values():
        total.update(f"{value.dtype} {tuple(value.shape)}".encode())
        total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def folder_name(encoder: str) -> str:
    """An encoder's name as a folder name; names that would collide are told apart by a digest."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", encoder).strip("._")[-80:] or "encoder"
    return plain if plain == encoder else f"{plain}-{hashlib.sha256(encoder.encode()).hexdigest()[:8]}"


class Finished:
    """The records of finished clips below a folder.

    A record: clip, frames, seconds, the digests `weights`, `data`, `labels` (of all predictions), `features` (samples of
    the first, middle and last frame's) and `rows`.
    """

    def __init__(self, output: Path, settings: Benchmark, encoders: Encoders) -> None:
        self.output, self.settings = output, settings
        self.weights = {name: fingerprint(encoder) for name, encoder in encoders.items()}
        self.data: dict[str, str] = {}  # clip -> its digest

    def path(self, encoder: str, clip: Clip) -> Path:
        """Where a clip's record goes."""
        settings = self.settings.model_dump(mode="json", exclude=NOT_A_RESULT)
        parts = [PROTOCOL, name_of(self.settings), settings, self.weights[encoder], self.data[clip.name]]
        key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
        return self.output / "clips" / folder_name(encoder) / clip.name / f"{key}.json"

    def predictions(self, encoder: str) -> Path | None:
        """Where predictions go, if they are wanted."""
        return self.output / "predictions" / folder_name(encoder) if self.settings.save_predictions else None

    def read(self, encoder: str, clip: Clip) -> Record | None:
        """The record of a finished clip, None if it has to be evaluated; also if the record is damaged."""
        path, folder = self.path(encoder, clip), self.predictions(encoder)
        if not path.exists() or (folder is not None and not benchmark_of(self.settings).has_predictions(folder, clip)):
            return None
        try:
            record = read_json(path)
        except InputError:
            return None
        rows = [{key: math.nan if value is None else value for key, value in row.items()} for row in record["rows"]]
        return {**record, "rows": rows}

    def missing(self, clip: Clip) -> list[str]:
        """The encoders that still have to be evaluated on a clip."""
        return [name for name in self.weights if self.read(name, clip) is None]

    def write(self, encoder: str, clip: Clip, record: Record) -> None:
        """Keep the record of a clip; everything else of it has been written before."""
        digests = {"weights": self.weights[encoder], "data": self.data[clip.name]}
        write_json(self.path(encoder, clip), {**record, **digests, "rows": [plain(row) for row in record["rows"]]})

    def lock(self, clip: Clip) -> FileLock | None:
        """The lock of a clip that is to be worked on, taken; None where another process has it."""
        path = self.output / "clips" / "locks" / f"{clip.name}.lock"
        lock = FileLock(path, timeout=0, thread_local=False)
        try:
            with writable(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                lock.acquire()
        except Timeout:
            return None
        return lock


def plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as JSON has it: NaN -> None, NumPy numbers -> Python's."""
    numbers = {key: value.item() if hasattr(value, "item") else value for key, value in row.items()}
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in numbers.items()}


# ---------------------------------------------------------------------------------------------- one clip


class _ClipRun:
    """One encoder on one clip, fed with frames in order."""

    def __init__(
        self, encoder: FeatureEncoder, clip: Clip, settings: Benchmark, pool: Executor, folder: Path | None
    ) -> None:
        self.encoder, self.clip, self.settings, self.pool = encoder, clip, settings, pool
        self.scorer = benchmark_of(settings).Scorer(clip, settings, encoder.patch_size, folder)
        self.propagator: Propagator | None = None
        self.results: list[Future[Any]] = []
        self.features: list[list[float]] = []
        self.labels = hashlib.sha256()
        self.seconds = 0.0

    def feed(self, images: Tensor) -> None:
        """The next frames, normalised and resized: (B, 3, H, W)."""
        began = time.perf_counter()
        soft: list[Tensor] = []
        for features in encode(self.encoder, images, self.settings.precision):  # (h, w, D)
            frame = len(self.results) + len(soft)
            if self.propagator is None:
                first = self.scorer.first_map(features.shape[:2]).to(features.device)
                self.propagator = Propagator(features, first, **propagator_settings(self.settings))
                soft.append(first)
            else:
                soft.append(self.propagator.step(features))
            if frame in (0, len(self.clip) // 2, len(self.clip) - 1):
                # Some values, evenly spread; no digest, as the last bits of a feature differ between machines.
                flat = F.normalize(features, dim=-1).flatten()
                sampled = flat[:: max(1, len(flat) // SAMPLED)][:SAMPLED].tolist()
                self.features.append([round(value, 5) for value in sampled])
        for prediction in self.scorer.predict(torch.stack(soft)):
            if prediction.dtype.kind == "f":  # joints: their last bits differ between machines
                self.labels.update(np.nan_to_num(prediction, nan=-1).round(3).tobytes())
            else:
                self.labels.update(prediction.tobytes())
            self.results.append(self.pool.submit(self.scorer.score, len(self.results), prediction))
            if len(self.results) > WAITING:
                self.results[-WAITING].result()
        self.seconds += time.perf_counter() - began

    def record(self) -> Record:
        """The clip's record, when all its frames are scored."""
        return {
            "clip": self.clip.name,
            "frames": len(self.clip),
            "seconds": round(self.seconds, 3),
            "features": self.features,
            "labels": self.labels.hexdigest(),
            "rows": self.scorer.rows([result.result() for result in self.results]),
        }


def _batches(clip: Clip, size: int, pool: Executor) -> Iterator[Tensor]:
    """All frames of a clip, uint8 (B, H, W, 3), the next ones being decoded meanwhile."""
    jobs = (pool.submit(_frame, clip, frame) for frame in range(len(clip)))
    waiting = deque(itertools.islice(jobs, 3 * size))
    while waiting:
        part = [waiting.popleft().result() for _ in range(min(size, len(waiting)))]
        waiting.extend(itertools.islice(jobs, len(part)))
        yield torch.from_numpy(np.stack(part))


def _frame(clip: Clip, frame: int) -> NDArray[np.uint8]:
    image = clipfiles.read_frame(clip.frames[frame])
    if image.shape[:2] != clip.size:
        raise InputError(
            f"{clip.frames[frame]} is {image.shape[1]}x{image.shape[0]} pixels, the clip's first frame "
            f"{clip.size[1]}x{clip.size[0]}; frames of a clip must have one size."
        )
    return image


# ---------------------------------------------------------------------------------------------- all clips


def evaluate(
    encoders: Encoders | FeatureEncoder,
    clips: Sequence[Clip],
    settings: Benchmark,
    *,
    output: str | Path | None = None,
    progress: bool = True,
    device: str = "cpu",
) -> pd.DataFrame:
    """Scores of frozen encoders on clips (docs/protocol.md).

    Args:
        encoders: name in the table -> encoder, or one encoder. They are moved to `device`.
        clips: of one benchmark.
        settings: that benchmark's section.
        output: folder for finished clips (`clips/`), from which a killed run continues and which processes share, and for
            predictions (`predictions/<encoder>/`) where `settings.save_predictions`; None = keep nothing.
        progress: show a bar over frames.
        device: torch device.

    Returns:
        One row per encoder and object (DAVIS), joint (JHMDB) or class (VIP) of each clip. J, F, IoU are fractions, PCK
        is in percent. What cannot be measured is NaN: a joint never found, a class that never occurs in the clip, an
        object of a clip of which no frame is scored.

    Raises:
        InputError: an image is missing or broken (the other clips are finished before), an encoder gives no finite features,
            there is no clip, the device's memory is full.
    """
    named = encoders if isinstance(encoders, Mapping) else {getattr(encoders, "name", "encoder"): encoders}
    if output is not None:
        return table_of(evaluate_clips(named, clips, settings, Path(output), progress=progress, device=device))
    quiet = settings.model_copy(update={"save_predictions": False})
    with tempfile.TemporaryDirectory(prefix="tcore-") as folder:
        return table_of(evaluate_clips(named, clips, quiet, Path(folder), progress=progress, device=device))


def table_of(records: Mapping[tuple[str, str], Record]) -> pd.DataFrame:
    """The table of `evaluate` from the records of `evaluate_clips`."""
    return pd.DataFrame([{"encoder": name, **row} for (name, _), record in records.items() for row in record["rows"]])


def score_predictions(clips: Sequence[Clip], settings: Benchmark, folder: str | Path) -> pd.DataFrame:
    """Table of predictions that somebody else made, one row per object (DAVIS), joint (JHMDB) or class (VIP).

    Args:
        clips: of one benchmark; a clip without predictions is an error, not a skip.
        settings: that benchmark's section.
        folder: holds `<clip>/<frame>.png`, palette or grey, or `<clip>.json`.

    Raises:
        InputError: names the file that is missing, misnamed or unreadable, or has a wrong size or id.
    """
    scorer = benchmark_of(settings).Scorer
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return pd.DataFrame([row for clip in clips for row in scorer(clip, settings).score_files(Path(folder), pool)])


def evaluate_clips(
    encoders: Encoders,
    clips: Sequence[Clip],
    settings: Benchmark,
    output: Path,
    *,
    progress: bool = True,
    device: str = "cpu",
) -> dict[tuple[str, str], Record]:
    """As `evaluate`, but (encoder, clip) -> record, see `Finished`."""
    if not clips or not encoders:
        raise InputError(f"There is nothing to evaluate: {len(encoders)} encoder(s) and {len(clips)} clip(s).")
    for encoder in encoders.values():
        encoder.to(device).eval()
    finished = Finished(output, settings, encoders)
    failed: dict[str, InputError] = {}  # a broken clip does not stop the others
    for clip in clips:
        try:
            finished.data[clip.name] = clip.digest()
        except InputError as error:
            failed[clip.name] = error

    def remaining() -> list[Clip]:
        return [clip for clip in clips if clip.name not in failed and finished.missing(clip)]

    waiting = remaining()
    frames = sum(map(len, waiting))
    with tqdm(total=frames, unit="frame", desc="evaluate", file=sys.stdout, disable=not progress or not frames) as bar:
        while waiting:
            try:
                _work(encoders, waiting, finished, failed, bar, device)
            except RuntimeError as error:  # torch.OutOfMemoryError is one
                if not memory_is_full(error):
                    raise
                raise _too_large(settings) from error
            waiting = remaining()
            if waiting:
                bar.set_postfix_str(f"another process has {waiting[0].name}")
                time.sleep(POLL)
    if failed:
        more = f" ({len(failed) - 1} more clips failed)" if len(failed) > 1 else ""
        raise InputError(f"{next(iter(failed.values()))}{more}")
    records = {(name, clip.name): finished.read(name, clip) for name in encoders for clip in clips}
    return {key: record for key, record in records.items() if record is not None}


def _work(
    encoders: Encoders,
    clips: Sequence[Clip],
    finished: Finished,
    failed: dict[str, InputError],
    bar: "tqdm[Any]",
    device: str,
) -> None:
    """Evaluate every clip that is not finished and that no other process works on."""
    settings, batch = finished.settings, BATCH[torch.device(device).type]

    def close(runs: Mapping[str, _ClipRun], clip: Clip, lock: FileLock) -> None:
        """Wait for the last scores of a clip and write its records; meanwhile the next clip is computed."""
        try:
            for name, run in runs.items():
                finished.write(name, clip, run.record())
        except InputError as error:  # a broken annotation, a full disk
            failed[clip.name] = error
        finally:
            lock.release()

    closing: list[Future[None]] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool, ThreadPoolExecutor(1) as closer:
        for clip in clips:
            lock = finished.lock(clip)
            if lock is None:
                continue
            try:
                runs = {}
                for name in finished.missing(clip):
                    for stale in finished.path(name, clip).parent.glob("*.json"):  # of other settings, weights or data
                        stale.unlink(missing_ok=True)
                    runs[name] = _ClipRun(encoders[name], clip, settings, pool, finished.predictions(name))
                for pixels in _batches(clip, batch, pool) if runs else ():
                    on_device = pixels.to(device)
                    images = {
                        size: labelmaps.to_input(on_device, size) for size in {r.scorer.size for r in runs.values()}
                    }
                    for run in runs.values():
                        run.feed(images[run.scorer.size])
                    bar.update(len(pixels))
            except InputError as error:
                failed[clip.name] = error
                runs = {}
            except BaseException:
                lock.release()
                raise
            closing.append(closer.submit(close, runs, clip, lock))
    for done in closing:
        done.result()


def _too_large(settings: Benchmark) -> InputError:
    """The sentence for a full device."""
    section = name_of(settings)
    size = "long_side" if isinstance(settings, Vip) else "input_size"
    half = f"set {section}.precision: bf16, or " if settings.precision == "fp32" else ""
    return InputError(
        f"The device's memory is full with {section}.{size} = {getattr(settings, size)} and {section}.context = "
        f"{settings.context}; {half}lower {section}.context or {section}.{size} (another protocol than the paper's)."
    )
