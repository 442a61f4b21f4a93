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
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
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
from tcore_lib.machine import full_memory_told
from tcore_lib.model.encoders import FeatureEncoder
from tcore_lib.params import Benchmark

BATCH = {"cpu": 2, "cuda": 16}  # frames encoded at a time
CLOSING = 4  # clips at most whose predictions wait in memory for their scores
POLL = 0.5  # seconds between looks at clips that another process works on
PROTOCOL = 3  # raise it when a change of the code changes scores or records: finished clips are then evaluated again
# Settings, also of earlier versions, that do not change a clip's scores.
NOT_A_RESULT = {"enabled", "root", "clips", "save_predictions", "split"}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SAMPLED = 8  # values kept of a frame's features


def evaluate(
    encoders: Mapping[str, FeatureEncoder] | FeatureEncoder,
    clips: Sequence[Clip],
    settings: Benchmark,
    *,
    output: str | Path | None = None,
    progress: bool = True,
    device: str = "cpu",
) -> pd.DataFrame:
    """Scores of frozen encoders (name in the table -> encoder, or one) on clips of one benchmark (docs/protocol.md).

    They are moved to `device`. `output` is a folder for finished clips (`clips/`), from which a killed run continues and which
    processes share, and for predictions (`predictions/<encoder>/`); None = keep nothing.

    Returns:
        One row per encoder and object (DAVIS), joint (JHMDB) or class (VIP) of each clip. J, F, IoU are fractions, PCK
        is in percent. What cannot be measured is NaN. `attrs["clips"]`: per encoder and clip a dict of encoder, clip, frames,
        seconds; checksums of weights, data and all predicted labels; some values of the first, middle and last features.

    Raises:
        InputError: no clip; a broken image, a feature that is not finite, a full device (the other clips are finished first).
    """
    if output is None:
        with tempfile.TemporaryDirectory(prefix="tcore-") as folder:
            return evaluate(encoders, clips, settings, output=folder, progress=progress, device=device)
    named = encoders if isinstance(encoders, Mapping) else {encoders.name: encoders}
    if not clips or not named:
        raise InputError(f"There is nothing to evaluate: {len(named)} encoder(s) and {len(clips)} clip(s).")
    weights = {name: fingerprint(encoder.to(device).eval()) for name, encoder in named.items()}
    tasks: list[_Task] = []
    failed: dict[Any, InputError] = {}  # an encoder on a clip; it does not stop the others
    for clip in clips:
        try:
            data = clip.digest()
        except InputError as error:
            failed[clip.name] = error
            continue
        for name, encoder in named.items():
            known = {"encoder": name, "clip": clip.name, "frames": len(clip), "weights": weights[name], "data": data}
            tasks.append(_Task(encoder, clip, settings, Path(output), known))

    def is_over(task: _Task) -> bool:
        return task in failed or task.read() is not None

    frames, cores = sum(len(task.clip) for task in tasks if not is_over(task)), os.cpu_count() or 1
    closing: deque[Future[None]] = deque()  # clips that are scored and written meanwhile
    with (
        ThreadPoolExecutor(cores) as readers,
        ThreadPoolExecutor(cores) as scorers,
        tqdm(total=frames, unit="frame", desc="evaluate", file=sys.stdout, disable=not progress or not frames) as bar,
    ):
        # First what nobody works on; then what others had, each when it is finished or its process has died.
        for timeout, task in itertools.product((0, -1), tasks):
            while len(closing) > (0 if timeout else CLOSING):  # 0: a lock may be our own
                closing.popleft().result()
            if is_over(task):
                continue
            bar.set_postfix_str(task.clip.name)
            with ExitStack() as held:
                if not task.lock(held, timeout) or is_over(task):
                    continue
                try:
                    with full_memory_told("set the benchmark's precision: bf16, or lower its context or input size"):
                        predictions = task.follow(torch.device(device), readers, bar)
                except InputError as error:
                    failed[task] = error
                else:
                    closing.append(scorers.submit(task.close, predictions, failed, held.pop_all()))
        while closing:
            closing.popleft().result()
    if failed:
        more = f" ({len(failed) - 1} more failed; all others are finished)" if len(failed) > 1 else ""
        raise InputError(f"{next(iter(failed.values()))}{more}")
    records = [task.read() or {} for name in named for task in tasks if task.known["encoder"] == name]
    table = pd.DataFrame([{"encoder": record["encoder"], **row} for record in records for row in record.pop("rows")])
    table.attrs["clips"] = records
    return table


@dataclass(frozen=True, eq=False)
class _Task:
    """One encoder on one clip."""

    encoder: FeatureEncoder
    clip: Clip
    settings: Benchmark
    output: Path
    known: dict[str, Any]  # of the record, which `follow` and `close` complete

    @cached_property
    def path(self) -> Path:
        """Where the record goes."""
        settings = self.settings.model_dump(mode="json", exclude=NOT_A_RESULT)
        parts = [PROTOCOL, name_of(self.settings), settings, self.known["weights"], self.known["data"]]
        key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
        return self.output / "clips" / folder_name(self.known["encoder"]) / self.clip.name / f"{key}.json"

    @property
    def predictions(self) -> Path:
        """The folder of the encoder's predictions."""
        return self.output / "predictions" / folder_name(self.known["encoder"])

    def read(self) -> dict[str, Any] | None:
        """The finished record; None where that, or a prediction, is missing."""
        files = benchmark_of(self.settings).prediction_files(self.predictions, self.clip)
        if not all(file.exists() for file in (self.path, *files)):
            return None
        record = read_json(self.path, "remove this file")
        rows = [{key: math.nan if value is None else value for key, value in row.items()} for row in record["rows"]]
        return {**record, "encoder": self.known["encoder"], "rows": rows}

    def lock(self, held: ExitStack, timeout: float) -> bool:
        """Take it, and remove what other settings, weights or data left; False where another process keeps it."""
        with writable(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path.with_name("lock"), thread_local=False)
            try:
                held.enter_context(lock.acquire(timeout, POLL))
            except Timeout:
                return False
        for stale in self.path.parent.glob("*.json"):
            if stale != self.path:
                stale.unlink()
        return True

    def follow(self, device: torch.device, readers: Executor, bar: "tqdm[Any]") -> list[Any]:
        """Carry the clip's labels to its end: the predictions of all frames."""
        began, clip, benchmark = time.perf_counter(), self.clip, benchmark_of(self.settings)
        size = benchmark.input_size(clip, self.encoder.patch_size)
        propagator: Propagator | None = None
        predictions: list[Any] = []
        sampled: list[float] = []
        labels = hashlib.sha256()
        for pixels in _batches(clip, BATCH[device.type], readers):
            images = labelmaps.to_input(pixels.to(device), size)
            soft: list[Tensor] = []
            for features in encode(self.encoder, images, self.settings.precision):  # (h, w, D)
                if propagator is None:
                    soft.append(benchmark.first_map(clip, size, features.shape[:2]).to(features.device))
                    propagator = Propagator(features, soft[0], **propagator_settings(self.settings))
                else:
                    soft.append(propagator.step(features))
                if len(predictions) + len(soft) - 1 in (0, len(clip) // 2, len(clip) - 1):
                    # Some values, evenly spread; no digest, as the last bits of a feature differ between machines.
                    flat = F.normalize(features, dim=-1).flatten()
                    sampled += flat[:: max(1, len(flat) // SAMPLED)][:SAMPLED].tolist()
            for prediction in benchmark.predict(clip, torch.stack(soft), size):
                joints = prediction.dtype.kind == "f"  # rounded: their last bits differ between machines
                labels.update((np.nan_to_num(prediction, nan=-1).round(3) if joints else prediction).tobytes())
                predictions.append(prediction)
            bar.update(len(pixels))
        self.known.update(seconds=round(time.perf_counter() - began, 3), labels=labels.hexdigest())
        self.known["features"] = " ".join(str(round(value, 5)) for value in sampled)
        return predictions

    def close(self, predictions: list[Any], failed: dict[Any, InputError], held: ExitStack) -> None:
        """Score and write the predictions, then the record; the clip is then free."""
        benchmark = benchmark_of(self.settings)
        with held:
            try:
                rows = benchmark.score(self.clip, predictions.__getitem__)
                benchmark.save(self.predictions, self.clip, predictions)
                write_json(self.path, {**self.known, "rows": plain(rows)})
            except InputError as error:
                failed[self] = error


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


def plain(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON has them: NaN -> None, NumPy numbers -> Python's."""
    return table.astype(object).where(table.notna(), None).to_dict("records")
