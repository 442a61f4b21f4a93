"""Evaluate frozen encoders on clips: (encoders, clips, settings) -> one row per object, joint or class.

Frames are decoded ahead by threads, encoded and propagated a few at a time; a clip's predictions are scored and written by
threads while the next clip is computed.

**Resuming and sharing.** A finished clip leaves one file, `clips/<encoder>/<clip>/<key>.json`, whose name is the digest of
all that its rows depend on: what exists is finished. A clip that is worked on is locked by a file beside it. So any number of
processes, on one machine or on several over a common folder, may be given the same arguments: each takes the next clip that
nobody has, and all return the whole table. A lock ends with its process, so a killed one leaves its clip to the others.
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
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from filelock import FileLock, Timeout
from torch import Tensor, nn
from tqdm import tqdm

from tcore_lib.errors import InputError
from tcore_lib.evaluation import labels as labelmaps
from tcore_lib.evaluation.benchmarks import benchmark_of, name_of
from tcore_lib.evaluation.clips import Clip
from tcore_lib.evaluation.propagation import Propagator, propagator_settings
from tcore_lib.files import read_json, writable, write_json
from tcore_lib.machine import memory_is_full
from tcore_lib.model.encoders import FeatureEncoder
from tcore_lib.params import Benchmark

BATCH = {"cpu": 2, "cuda": 16}  # frames encoded at a time
POLL = 0.5  # seconds between looks at clips that another process works on
PROTOCOL = 3  # raise it when a change of the code changes scores or records: finished clips are then evaluated again
NOT_A_RESULT = {"enabled", "root", "clips", "save_predictions", "split"}  # settings that do not change a clip's scores
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SAMPLED = 8  # values kept of a frame's features

Encoders = Mapping[str, FeatureEncoder]
# Of one encoder on one clip: encoder, clip, frames, seconds; checksums of weights, data and all predicted labels; some values
# of the first, middle and last frame's features; `rows` of the table.
Record = dict[str, Any]


def evaluate(
    encoders: Encoders | FeatureEncoder,
    clips: Sequence[Clip],
    settings: Benchmark,
    *,
    output: str | Path | None = None,
    progress: bool = True,
    device: str = "cpu",
) -> pd.DataFrame:
    """Scores of frozen encoders on clips of one benchmark (docs/protocol.md).

    Args:
        encoders: name in the table -> encoder, or one encoder. They are moved to `device`.
        clips: what `load_clips` gives.
        settings: the benchmark's section.
        output: folder for finished clips (`clips/`), from which a killed run continues and which processes share, and for
            predictions (`predictions/<encoder>/`) where `settings.save_predictions`; None = keep nothing.
        progress: show a bar over frames.
        device: torch device.

    Returns:
        One row per encoder and object (DAVIS), joint (JHMDB) or class (VIP) of each clip. J, F, IoU are fractions, PCK
        is in percent. What cannot be measured is NaN: a joint never found, a class that never occurs in the clip, an
        object of a clip of which no frame is scored.

    Raises:
        InputError: an image is missing or broken or a feature is not finite (when all other clips are finished), there is no
            clip, the device's memory is full.
    """
    named = encoders if isinstance(encoders, Mapping) else {encoders.name: encoders}
    if output is not None:
        return table_of(evaluate_clips(named, clips, settings, Path(output), progress=progress, device=device))
    quiet = settings.model_copy(update={"save_predictions": False})
    with tempfile.TemporaryDirectory(prefix="tcore-") as folder:
        return evaluate(named, clips, quiet, output=folder, progress=progress, device=device)


def table_of(records: Sequence[Record]) -> pd.DataFrame:
    """The table of `evaluate` from the records of `evaluate_clips`."""
    return pd.DataFrame([{"encoder": record["encoder"], **row} for record in records for row in record["rows"]])


def score_predictions(clips: Sequence[Clip], settings: Benchmark, folder: Path) -> pd.DataFrame:
    """As `evaluate`, of predictions that somebody else made; an `InputError` names the file that does not fit."""
    benchmark, rows = benchmark_of(settings), []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for clip in clips:
            rows += benchmark.score(clip, benchmark.others(folder, clip), pool.map)
    return pd.DataFrame(rows)


def evaluate_clips(
    encoders: Encoders, clips: Sequence[Clip], settings: Benchmark, output: Path, *, progress: bool, device: str
) -> list[Record]:
    """As `evaluate`, but a record per encoder and clip."""
    if not clips or not encoders:
        raise InputError(f"There is nothing to evaluate: {len(encoders)} encoder(s) and {len(clips)} clip(s).")
    for encoder in encoders.values():
        encoder.to(device).eval()
    work = _Work(encoders, clips, settings, output, device)
    waiting = work.waiting()
    frames = sum(len(clip) for _, clip in waiting)
    with tqdm(total=frames, unit="frame", desc="evaluate", file=sys.stdout, disable=not progress or not frames) as bar:
        while waiting:
            try:
                taken = work.share(waiting, bar)
            except RuntimeError as error:  # torch.OutOfMemoryError is one
                if not memory_is_full(error):
                    raise
                raise InputError(
                    f"The device's memory is full; set {name_of(settings)}.precision: bf16, or lower "
                    f"{name_of(settings)}.context or its input size (another protocol than the paper's)."
                ) from error
            if not taken:
                bar.set_postfix_str(f"another process has {waiting[0][1].name}")
                time.sleep(POLL)
            waiting = work.waiting()
    if work.failed:
        more = f" ({len(work.failed) - 1} more failed; all others are finished)" if len(work.failed) > 1 else ""
        raise InputError(f"{next(iter(work.failed.values()))}{more}")
    records = [work.read(name, clip) for name in encoders for clip in clips]
    return [record for record in records if record is not None]


# ---------------------------------------------------------------------------------------------- the clips of a folder


class _Work:
    """Encoders on clips, and the records of finished ones below a folder."""

    def __init__(
        self, encoders: Encoders, clips: Sequence[Clip], settings: Benchmark, output: Path, device: str
    ) -> None:
        self.encoders, self.clips, self.settings = encoders, clips, settings
        self.output, self.device, self.benchmark = output, device, benchmark_of(settings)
        self.weights = {name: fingerprint(encoder) for name, encoder in encoders.items()}
        self.data: dict[str, str] = {}  # clip -> checksum
        self.failed: dict[tuple[str, str], InputError] = {}  # of an encoder on a clip; it does not stop the others
        for clip in clips:
            try:
                self.data[clip.name] = clip.digest()
            except InputError as error:
                self.failed |= {(name, clip.name): error for name in encoders}

    def path(self, name: str, clip: Clip) -> Path:
        """Where the record of an encoder on a clip goes."""
        settings = self.settings.model_dump(mode="json", exclude=NOT_A_RESULT)
        parts = [PROTOCOL, name_of(self.settings), settings, self.weights[name], self.data[clip.name]]
        key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
        return self.output / "clips" / folder_name(name) / clip.name / f"{key}.json"

    def read(self, name: str, clip: Clip) -> Record | None:
        """The record of a finished clip; None where it, or a prediction that is wanted, is missing."""
        path, folder = self.path(name, clip), self.output / "predictions" / folder_name(name)
        wanted = self.benchmark.prediction_files(folder, clip) if self.settings.save_predictions else []
        if not all(file.exists() for file in (path, *wanted)):
            return None
        record = read_json(path, "remove this file")
        rows = [{key: math.nan if value is None else value for key, value in row.items()} for row in record["rows"]]
        return {**record, "encoder": name, "rows": rows}

    def waiting(self) -> list[tuple[str, Clip]]:
        """What is still to be evaluated, by anybody."""
        pairs = [(name, clip) for clip in self.clips for name in self.encoders if (name, clip.name) not in self.failed]
        return [(name, clip) for name, clip in pairs if self.read(name, clip) is None]

    def share(self, waiting: Sequence[tuple[str, Clip]], bar: "tqdm[Any]") -> bool:
        """Evaluate each of these that no other process has finished or works on; whether there was one."""
        taken, cores = False, os.cpu_count()
        # Scorers of their own: else a clip's first frames would wait behind the last clip's scores.
        with (
            ThreadPoolExecutor(cores) as readers,
            ThreadPoolExecutor(cores) as scorers,
            ThreadPoolExecutor(1) as closer,
        ):
            closing = closer.submit(lambda: None)
            for name, clip in waiting:
                with ExitStack() as lock:
                    if not self.lock(self.path(name, clip), lock) or self.read(name, clip) is not None:
                        continue
                    taken = True
                    try:
                        record, predictions = self.follow(name, clip, readers, bar)
                    except InputError as error:
                        self.failed[name, clip.name] = error
                        continue
                    closing.result()
                    closing = closer.submit(self.close, clip, record, predictions, scorers, lock.pop_all())
            closing.result()
        return taken

    def lock(self, path: Path, held: ExitStack) -> bool:
        """Take a clip, and remove what other settings, weights or data left of it; False where another process has it."""
        with writable(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                held.enter_context(FileLock(path.with_name("lock"), timeout=0, thread_local=False))
            except Timeout:
                return False
        for stale in path.parent.glob("*.json"):
            if stale != path:
                stale.unlink()
        return True

    def follow(self, name: str, clip: Clip, readers: Executor, bar: "tqdm[Any]") -> tuple[Record, list[Any]]:
        """Carry a clip's labels to its end: the record without its rows, and the predictions of all frames."""
        began, encoder = time.perf_counter(), self.encoders[name]
        size = self.benchmark.input_size(clip, encoder.patch_size)
        propagator: Propagator | None = None
        predictions: list[Any] = []
        sampled: list[float] = []
        labels = hashlib.sha256()
        for pixels in _batches(clip, BATCH[torch.device(self.device).type], readers):
            images = labelmaps.to_input(pixels.to(self.device), size)
            soft: list[Tensor] = []
            for features in encode(encoder, images, self.settings.precision):  # (h, w, D)
                if propagator is None:
                    soft.append(self.benchmark.first_map(clip, size, features.shape[:2]).to(features.device))
                    propagator = Propagator(features, soft[0], **propagator_settings(self.settings))
                else:
                    soft.append(propagator.step(features))
                if len(predictions) + len(soft) - 1 in (0, len(clip) // 2, len(clip) - 1):
                    # Some values, evenly spread; no digest, as the last bits of a feature differ between machines.
                    flat = F.normalize(features, dim=-1).flatten()
                    sampled += flat[:: max(1, len(flat) // SAMPLED)][:SAMPLED].tolist()
            for prediction in self.benchmark.predict(clip, torch.stack(soft), size):
                joints = prediction.dtype.kind == "f"  # rounded: their last bits differ between machines
                labels.update((np.nan_to_num(prediction, nan=-1).round(3) if joints else prediction).tobytes())
                predictions.append(prediction)
            bar.update(len(pixels))
        seconds, checksums = time.perf_counter() - began, {"weights": self.weights[name], "data": self.data[clip.name]}
        record = {"encoder": name, "clip": clip.name, "frames": len(clip), "seconds": round(seconds, 3), **checksums}
        some = " ".join(str(round(value, 5)) for value in sampled)
        return {**record, "features": some, "labels": labels.hexdigest()}, predictions

    def close(self, clip: Clip, record: Record, predictions: list[Any], scorers: Executor, lock: ExitStack) -> None:
        """Score and write the predictions of a clip, then its record; it is then free."""
        name = record["encoder"]
        with lock:
            try:
                rows = self.benchmark.score(clip, predictions.__getitem__, scorers.map)
            except InputError as error:
                self.failed[name, clip.name] = error
                return
            if self.settings.save_predictions:
                self.benchmark.save(self.output / "predictions" / folder_name(name), clip, predictions, scorers.map)
            write_json(self.path(name, clip), {**record, "rows": [plain(row) for row in rows]})


def encode(encoder: FeatureEncoder, images: Tensor, precision: str = "fp32") -> Tensor:
    """Patch features float (B, h, w, D) of normalised images (B, 3, H, W); an `InputError` where one is not finite."""
    reduced = torch.autocast(images.device.type, DTYPES[precision], enabled=precision != "fp32")
    # By default cuDNN computes the patch embedding's float32 convolution in TF32, with 10 bits of mantissa.
    whole = torch.backends.cudnn.flags(enabled=True, benchmark=torch.backends.cudnn.benchmark, allow_tf32=False)
    with torch.no_grad(), whole, reduced:
        features = encoder(images).float()
    if not torch.isfinite(features).all():
        remedy = "its weights are broken" if precision == "fp32" else f"in {precision}; try fp32"
        raise InputError(f"The encoder {encoder.name} gives features that are not finite numbers; {remedy}.")
    return features


def _batches(clip: Clip, size: int, readers: Executor) -> Iterator[Tensor]:
    """All frames of a clip, uint8 (B, H, W, 3), the next ones being decoded meanwhile."""
    jobs = (readers.submit(clip.image, frame) for frame in range(len(clip)))
    waiting = deque(itertools.islice(jobs, 3 * size))
    while waiting:
        part = [waiting.popleft().result() for _ in range(min(size, len(waiting)))]
        waiting.extend(itertools.islice(jobs, len(part)))
        yield torch.from_numpy(np.stack(part))


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
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", encoder).strip("._")[-80:] or "encoder"
    return safe if safe == encoder else f"{safe}-{hashlib.sha256(encoder.encode()).hexdigest()[:8]}"


def plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as JSON has it: NaN -> None, NumPy numbers -> Python's."""
    numbers = {key: value.item() if hasattr(value, "item") else value for key, value in row.items()}
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in numbers.items()}
