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
from tcore_lib.machine import Meter, Place, choose_device
from tcore_lib.params import Params, load
from tcore_lib.training.batches import Collate, worker_count
from tcore_lib.training.loop import full_memory_told
from tcore_lib.training.schedules import Schedules
from tcore_lib.training.step import Trainer

ON_A_CPU = 8  # samples measured at most: a CPU takes as long for each sample of a larger micro-batch


def forecast(
    params: Params, index: Videos, device: torch.device, *, steps: int = 20, seconds: float = 10.0
) -> pd.Series:
    """Measure up to `steps` steps of a profile for about `seconds` with a throw-away model, and scale them up.

    `hours` of the whole schedule (without checkpoints and exchange between ranks), `samples_per_second` over all ranks,
    `bottleneck` (`loader` or `step`), `memory_gb` (peak, 1e9 bytes, of the GPU or of this process), `workers` the run will use
    and `enough_workers` with which a GPU never waits; `load_seconds` (one loader process) and `step_seconds` of a rank's step.
    """
    loop = params.pretrain.loop
    share = max(1, loop.batch_size // loop.devices)  # samples of a rank's step
    micro = max(1, share // loop.accumulate)
    samples = min(micro, ON_A_CPU) if device.type == "cpu" else micro
    with full_memory_told(params.pretrain):
        meter, resting = _measure(params, index, device, samples, steps, seconds)
    load = share / samples * meter.median("load")
    step = share / samples * meter.median("gradients") + meter.median("update")
    workers = worker_count(loop.workers, device, Place(world=loop.devices))
    each = max(step, load / workers) if workers else load + step
    found = {
        "hours": Schedules(params.pretrain).steps * each / 3600,
        "samples_per_second": loop.batch_size / each,
        "bottleneck": "loader" if load / max(1, workers) > step else "step",
        "memory_gb": (resting + max(0, meter.peak() - resting) * micro / samples) / 1e9,
        "workers": workers,
        "enough_workers": 0 if device.type == "cpu" else math.ceil(load / step),
        "load_seconds": load,
        "step_seconds": step,
    }
    return pd.Series(found, name="forecast")


def _measure(
    params: Params, index: Videos, device: torch.device, samples: int, steps: int, seconds: float
) -> tuple[Meter, int]:
    """Seconds of `load`, `gradients` (with the views), `update` of at least one step, and the bytes in use between steps."""
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
        with meter("gradients"):
            trainer.gradients([trainer.inputs(*batch)], schedules.at(step))
        with meter("update"):
            trainer.update(schedules.at(step))
        if step == 0:  # it also makes the optimiser's state and fills memory pools: it does not count
            trainer.optimiser.zero_grad(set_to_none=True)
            resting = meter.in_use()
            meter.seconds.clear()
    return meter, resting


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
