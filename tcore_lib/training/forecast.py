"""What a training will cost on this machine, from a few measured steps: hours, memory, and who waits for whom.

Loader and step are timed apart, each with the machine to itself: one loader process making micro-batches, and the
device making views, forward, backward and update. On a GPU they then run side by side, on a CPU one after the other.
"""

import io
import math
import time
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from PIL import Image

from tcore_lib.data.images import read_rgb
from tcore_lib.data.sandwich import SandwichDataset, Videos, counters
from tcore_lib.data.shards import open_index
from tcore_lib.machine import Meter, Place, choose_device
from tcore_lib.params import Params, load
from tcore_lib.training.batches import Collate, on_device, worker_count
from tcore_lib.training.loop import in_one_sentence
from tcore_lib.training.schedules import Schedules
from tcore_lib.training.step import Trainer

PROBE = 4  # samples of the small step that says whether whole ones fit the time
FEWEST = 3  # whole steps that have to fit it; else smaller ones are measured, and times and memory scaled up


def forecast(
    params: Params, index: Videos, device: torch.device, *, steps: int = 20, seconds: float = 10.0
) -> pd.Series:
    """Measure a profile's steps with a throw-away model; no file is written and no generator is moved.

    Args:
        params: sections `run` and `pretrain` are read.
        index: the videos.
        device: where to measure.
        steps: how many steps to measure.
        seconds: measure for about that long: fewer steps where they are slow, and of fewer samples where not even
            three fit.

    Returns:
        `hours` of the whole schedule (without checkpoints and without exchange between ranks), `samples_per_second` over
        all ranks, `bottleneck` (`loader` or `step`), `memory_gb` (peak, 1e9 bytes, of the GPU or of this process),
        `workers` the run will use and `enough_workers` with which a GPU never waits; and what they follow from: `device`,
        `devices`, `steps`, `batch_size`, `load_seconds` (one loader process), `views_seconds` and `model_seconds` of a rank's
        step, `measured_steps` of `measured_samples`, `gradient_gb` that ranks exchange in a step.

    Raises:
        InputError: the device's memory is full, or a frame cannot be read.
    """
    loop, devices = params.pretrain.loop, params.pretrain.loop.devices
    share = max(1, loop.batch_size // devices)  # samples of a rank's step
    micro = max(1, share // loop.accumulate)
    end = time.perf_counter() + seconds
    with in_one_sentence(params.pretrain):
        meter, resting, parameters = _measure(params, index, device, min(PROBE, micro), 1, 1, end)
        samples, spent = (
            min(PROBE, micro),
            sum(meter.seconds[part][-1] for part in ("load", "views", "model", "update")),
        )
        if share > samples:
            fits = int((end - time.perf_counter()) / (FEWEST + 1) / spent * samples)  # the first does not count
            larger = share if fits >= share else max(samples, min(micro, fits))
            if larger > samples:
                samples = larger
                accumulate = loop.accumulate if samples == share else 1
                meter, resting, parameters = _measure(params, index, device, samples, accumulate, steps, end)
    scale, peak = share / samples, meter.peak()
    load, views = scale * meter.median("load"), scale * meter.median("views")
    model = scale * meter.median("model") + meter.median("update")
    workers = worker_count(loop.workers, device, Place(world=devices))
    step = max(views + model, load / workers) if workers else load + views + model
    activations = max(0, peak - resting) * min(scale, micro / samples)
    total = Schedules(params.pretrain).steps
    return pd.Series(
        {
            "hours": total * step / 3600,
            "samples_per_second": loop.batch_size / step,
            "bottleneck": "loader" if load / max(1, workers) > views + model else "step",
            "memory_gb": (peak if samples == share else resting + activations) / 1e9,
            "workers": workers,
            "enough_workers": 0 if device.type == "cpu" else math.ceil(load / (views + model)),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "devices": devices,
            "steps": total,
            "batch_size": loop.batch_size,
            "load_seconds": load,
            "views_seconds": views,
            "model_seconds": model,
            "measured_steps": len(meter.seconds["update"]),
            "measured_samples": samples,
            "gradient_gb": parameters / 1e9,
        },
        name="forecast",
    )


def sentence(cost: pd.Series) -> str:
    """A forecast as one sentence."""
    where = "a CPU" if cost.device == "cpu" else f"{cost.devices} x {cost.device}"
    hours = cost.hours
    long = (
        f"{60 * hours:.1f} minutes" if hours < 1 else f"{hours:.1f} hours" if hours < 72 else f"{hours / 24:,.0f} days"
    )
    return (
        f"{cost.steps:,} steps of {cost.batch_size} samples on {where}: {long} at {cost.samples_per_second:.3g} samples/s and "
        f"{cost.memory_gb:.2g} GB; the {cost.bottleneck} is the bottleneck ({cost.workers} loader processes, "
        f"{cost.enough_workers} are enough). Measured: {cost.measured_steps} steps of {cost.measured_samples} samples."
    )


def forecast_command(profile: str, *, steps: int = 20, seconds: float = 60.0, made_up_frames: bool = False) -> None:
    """Measure some steps of a profile: hours, memory, bottleneck, workers.

    Args:
        profile: a parameter file, or the name of one in params/.
        steps: to measure.
        seconds: stop measuring after about that long.
        made_up_frames: no data yet: frames of 340x256 made up.
    """
    params = load(profile)
    index = MadeUpFrames() if made_up_frames else open_index(params.data)
    print(sentence(forecast(params, index, choose_device(params.run.device), steps=steps, seconds=seconds)))


def _measure(
    params: Params, index: Videos, device: torch.device, samples: int, accumulate: int, steps: int, end: float
) -> tuple[Meter, int, int]:
    """Seconds of `load`, `views`, `model` and `update` of up to `steps` steps, at least one, until the time `end`.

    Returns:
        The meter; bytes in use between steps; bytes of the trained parameters.
    """
    loop = params.pretrain.loop.model_copy(update={"batch_size": samples, "accumulate": accumulate, "devices": 1})
    params = params.model_copy(update={"pretrain": params.pretrain.model_copy(update={"loop": loop})})
    meter, schedules = Meter(device), Schedules(params.pretrain)
    meter.reset_peak()
    trainer, collate = Trainer(params.pretrain, params.run.seed, device), Collate(params)
    dataset = SandwichDataset(index, params.pretrain.sandwich, params.run.seed)
    threads, resting = torch.get_num_threads(), 0
    for step in range(steps + 1):
        if step > 1 and time.perf_counter() > end:
            break
        torch.set_num_threads(1)  # as in a worker
        with meter("load"):
            batches = [collate([dataset[i] for i in part]) for part in counters(step, samples, 0, 1, accumulate)]
        torch.set_num_threads(threads)
        with meter("views"):
            inputs = [on_device(trainer, batch) for batch in batches]
        with meter("model"):
            trainer.gradients(inputs, schedules.at(step))
        with meter("update"):
            trainer.update(schedules.at(step))
        if step == 0:  # it also makes the optimiser's state and fills memory pools: it does not count
            del inputs
            trainer.optimiser.zero_grad(set_to_none=True)
            resting = meter.in_use()
            meter.seconds.clear()
    parameters = (p for module in trainer.model.trained().values() for p in module.parameters())
    return meter, resting, sum(p.numel() * p.element_size() for p in parameters)


class MadeUpFrames:
    """An index of one JPEG frame of 340 x 256, decoded whenever one is asked for: for a forecast before there is data."""

    num_frames = np.full(1000, 20)

    def __init__(self) -> None:
        rng, (width, height) = np.random.default_rng(0), (340, 256)
        coarse = Image.fromarray(rng.integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
        picture = smooth + rng.normal(0, 4.5, smooth.shape)  # compresses as a video frame does, to some 30 kB
        encoded = io.BytesIO()
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(encoded, "JPEG", quality=95)
        self._jpeg = encoded.getvalue()

    def __len__(self) -> int:
        return len(self.num_frames)

    def read(self, i: int, frame_indices: Sequence[int]) -> list[np.ndarray]:
        """The same frame whatever is asked for."""
        return [read_rgb(self._jpeg) for _ in frame_indices]
