"""What a training will cost on this machine, from a few measured steps: hours, memory, and who waits for whom.

Loader and step are timed apart, each with the machine to itself. On a GPU they then run side by side. On a CPU the next step's
loading and views run beside the model, but on the same cores: the sum is what a training takes at most.
"""

import math
import time

import pandas as pd
import torch

from tcore_lib import machine
from tcore_lib.data.sandwich import SandwichDataset, Videos
from tcore_lib.data.shards import open_index
from tcore_lib.machine import Meter, Place, choose_device, full_memory_told
from tcore_lib.params import Params, load
from tcore_lib.training.batches import stacked, worker_count
from tcore_lib.training.loop import FULL
from tcore_lib.training.schedules import Schedules
from tcore_lib.training.step import Trainer

ON_A_CPU = 8  # samples measured at most: a CPU takes as long for each sample of a larger micro-batch


def forecast(
    params: Params, index: Videos, device: torch.device, *, steps: int = 20, seconds: float = 10.0
) -> pd.Series:
    """Measure up to `steps` steps of a profile for about `seconds` with a throw-away model, and scale them up.

    `hours` of the whole schedule (without checkpoints and exchange between ranks), `samples_per_second` over all ranks,
    `bottleneck` (`loader` or `step`), `memory_gb` (peak of the GPU, 1e9 bytes; NaN on a CPU), `workers` the run will use
    and `enough_workers` with which a GPU never waits; `load_seconds` (one loader process) and `step_seconds` of a rank's step.
    """
    loop = params.pretrain.loop
    micro = max(1, loop.batch_size // (loop.devices * loop.accumulate))
    samples = min(micro, ON_A_CPU) if device.type == "cpu" else micro
    with full_memory_told(FULL.format(**loop.model_dump())):
        meter = _measured(params, index, device, samples, steps, seconds)
    parts = loop.batch_size / loop.devices / samples  # of a rank's step
    load, step = parts * meter.median("load"), parts * meter.median("gradients") + meter.median("update")
    workers = worker_count(loop.workers, device, Place(world=loop.devices))
    each = max(step, load / workers) if workers else load + step
    found = {
        "hours": Schedules(params.pretrain).steps * each / 3600,
        "samples_per_second": loop.batch_size / each,
        "bottleneck": "loader" if load / max(1, workers) > step else "step",
        "memory_gb": meter.peak() / 1e9 if device.type == "cuda" else math.nan,
        "workers": workers,
        "enough_workers": 0 if device.type == "cpu" else math.ceil(load / step),
        "load_seconds": load,
        "step_seconds": step,
    }
    return pd.Series(found, name="forecast")


def _measured(params: Params, index: Videos, device: torch.device, samples: int, steps: int, seconds: float) -> Meter:
    """Seconds of `load`, `gradients` (with the views) and `update` of at least one step of so many samples."""
    loop = params.pretrain.loop.model_copy(update={"batch_size": samples, "accumulate": 1, "devices": 1})
    params = params.model_copy(update={"pretrain": params.pretrain.model_copy(update={"loop": loop})})
    meter, schedules, end = Meter(device), Schedules(params.pretrain), time.perf_counter() + seconds
    meter.reset_peak()
    trainer = Trainer(params.pretrain, params.run.seed, device)
    dataset = SandwichDataset(index, params.pretrain.sandwich, params.run.seed)
    for step in range(steps + 1):
        if step == 1:  # the first one also fills memory pools: it does not count
            meter.seconds.clear()
        elif step and time.perf_counter() > end:
            break
        with meter("load"):
            batch = stacked(params, [dataset[i] for i in range(step * samples, (step + 1) * samples)])
        with meter("gradients"):
            trainer.gradients([trainer.inputs(*batch)], schedules.at(step))
        with meter("update"):
            trainer.update(schedules.at(step))
    return meter


def forecast_command(profile: str, *, steps: int = 20, seconds: float = 60.0) -> None:
    """Measure some steps of a profile: hours, memory, bottleneck, workers.

    Args:
        profile: a parameter file, or the name of one in params/.
        steps: to measure.
        seconds: stop measuring after about that long.
    """
    params, busy = load(profile), machine.load()
    if busy > 0.5:
        print(f"Others keep {busy:.1f} of this machine's {machine.cores()} cores busy: alone, the run will be faster.")
    print(forecast(params, open_index(params.data), choose_device(params.run.device), steps=steps, seconds=seconds))
