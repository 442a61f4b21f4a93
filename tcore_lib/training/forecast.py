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

from tcore_lib import machine
from tcore_lib.data.images import read_rgb
from tcore_lib.data.sandwich import SandwichDataset, Videos
from tcore_lib.data.shards import open_index
from tcore_lib.machine import Meter, Place, choose_device
from tcore_lib.params import Params, load
from tcore_lib.training.batches import Collate, on_device, worker_count
from tcore_lib.training.loop import in_one_sentence
from tcore_lib.training.schedules import Schedules
from tcore_lib.training.step import Trainer

ON_A_CPU = 8  # samples measured at most: a CPU takes as long for each sample of a larger micro-batch


def forecast(
    params: Params, index: Videos, device: torch.device, *, steps: int = 20, seconds: float = 10.0
) -> pd.Series:
    """Measure a profile's steps with a throw-away model; no file is written and no generator is moved.

    A micro-batch is measured, on a CPU of at most 8 samples, and times and memory are scaled up to a step.

    Args:
        params: sections `run` and `pretrain` are read.
        index: the videos.
        device: where to measure.
        steps: how many steps to measure.
        seconds: stop measuring after about that long, with at least one step.

    Returns:
        `hours` of the whole schedule (without checkpoints and without exchange between ranks), `samples_per_second` over
        all ranks, `bottleneck` (`loader` or `step`), `memory_gb` (peak, 1e9 bytes, of the GPU or of this process),
        `workers` the run will use and `enough_workers` with which a GPU never waits; and what they follow from: `device`,
        `devices`, `steps`, `batch_size`, `load_seconds` (one loader process), `views_seconds` and `model_seconds` of a rank's
        step, `measured_steps` of `measured_samples`, `gradient_gb` that ranks exchange in a step.

    Raises:
        InputError: the device's memory is full, or a frame cannot be read.
    """
    loop = params.pretrain.loop
    share = max(1, loop.batch_size // loop.devices)  # samples of a rank's step
    micro = max(1, share // loop.accumulate)
    samples = min(micro, ON_A_CPU) if device.type == "cpu" else micro
    with in_one_sentence(params.pretrain):
        meter, resting, parameters = _measure(params, index, device, samples, steps, seconds)
    scale = share / samples
    load, views = scale * meter.median("load"), scale * meter.median("views")
    model = scale * meter.median("model") + meter.median("update")
    workers = worker_count(loop.workers, device, Place(world=loop.devices))
    step = max(views + model, load / workers) if workers else load + views + model
    total = Schedules(params.pretrain).steps
    found = {
        "hours": total * step / 3600,
        "samples_per_second": loop.batch_size / step,
        "bottleneck": "loader" if load / max(1, workers) > views + model else "step",
        "memory_gb": (resting + max(0, meter.peak() - resting) * micro / samples) / 1e9,
        "workers": workers,
        "enough_workers": 0 if device.type == "cpu" else math.ceil(load / (views + model)),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "devices": loop.devices,
        "steps": total,
        "batch_size": loop.batch_size,
        "load_seconds": load,
        "views_seconds": views,
        "model_seconds": model,
        "measured_steps": len(meter.seconds["update"]),
        "measured_samples": samples,
        "gradient_gb": parameters / 1e9,
    }
    return pd.Series(found, name="forecast")


def _measure(
    params: Params, index: Videos, device: torch.device, samples: int, steps: int, seconds: float
) -> tuple[Meter, int, int]:
    """Seconds of `load`, `views`, `model` and `update` of up to `steps` steps, at least one, within about `seconds`.

    Returns:
        The meter; bytes in use between steps; bytes of the trained parameters.
    """
    loop = params.pretrain.loop.model_copy(update={"batch_size": samples, "accumulate": 1, "devices": 1})
    params = params.model_copy(update={"pretrain": params.pretrain.model_copy(update={"loop": loop})})
    meter, schedules, end = Meter(device), Schedules(params.pretrain), time.perf_counter() + seconds
    meter.reset_peak()
    trainer, collate = Trainer(params.pretrain, params.run.seed, device), Collate(params)
    dataset = SandwichDataset(index, params.pretrain.sandwich, params.run.seed)
    threads, resting = torch.get_num_threads(), 0
    for step in range(steps + 1):
        if step > 1 and time.perf_counter() > end:
            break
        torch.set_num_threads(1)  # as in a worker
        with meter("load"):
            batch = collate([dataset[i] for i in range(step * samples, (step + 1) * samples)])
        torch.set_num_threads(threads)
        with meter("views"):
            inputs = on_device(trainer, batch)
        with meter("model"):
            trainer.gradients([inputs], schedules.at(step))
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
        rng = np.random.default_rng(0)
        coarse = Image.fromarray(rng.integers(0, 256, (25, 34, 3), dtype=np.uint8)).resize((340, 256))
        picture = np.asarray(coarse) + rng.normal(
            0, 4.5, (256, 340, 3)
        )  # compresses as a video frame does, to some 30 kB
        encoded = io.BytesIO()
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(encoded, "JPEG", quality=95)
        self._jpeg = encoded.getvalue()

    def __len__(self) -> int:
        return len(self.num_frames)

    def read(self, i: int, frame_indices: Sequence[int]) -> list[np.ndarray]:
        """The same frame whatever is asked for."""
        return [read_rgb(self._jpeg) for _ in frame_indices]


def sentence(cost: pd.Series) -> str:
    """A forecast as one sentence."""
    where = "a CPU" if cost.device == "cpu" else f"{cost.devices} x {cost.device}"
    long = f"{60 * cost.hours:.1f} minutes" if cost.hours < 1 else f"{cost.hours:,.1f} hours"
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
    if (busy := machine.load()) > 0.5:
        print(
            f"This machine is busy: others keep {busy:.1f} of {machine.cores()} cores. Alone, the run will be faster."
        )
    index = MadeUpFrames() if made_up_frames else open_index(params.data)
    print(sentence(forecast(params, index, choose_device(params.run.device), steps=steps, seconds=seconds)))
