"""What a training will cost on this machine, from a few measured steps: hours, memory, and who waits for whom.

Loader and step are timed apart, each with the machine to itself: one loader process making micro-batches, and the
device making views, forward, backward and update. On a GPU they then run side by side, on a CPU one after the other.
"""

import io
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from PIL import Image

from tcore_lib.data.images import read_rgb
from tcore_lib.data.sandwich import SandwichDataset, Videos, counters
from tcore_lib.machine.distributed import Place
from tcore_lib.machine.meter import Meter
from tcore_lib.machine.workpool import cores
from tcore_lib.params import Params
from tcore_lib.training.batches import Collate, MicroBatch, worker_count
from tcore_lib.training.draws import Plan
from tcore_lib.training.schedules import Schedules
from tcore_lib.training.step import Trainer, out_of_memory

PROBE = 4  # samples of the first, small step, which says whether whole ones fit the time
FEWEST = 3  # whole steps that have to fit the time; else smaller ones are measured


@dataclass(frozen=True)
class Forecast:
    """What was measured, per optimiser step of one rank, and what follows from it.

    Attributes:
        device: `cpu`, or the GPU's name.
        cores: CPU cores this process may use.
        devices: ranks the step is shared among.
        steps: of the whole schedule.
        batch_size: samples of a step over all ranks.
        measured_samples: samples of the steps that were measured; fewer than a rank's share where that was too large
            for the time allowed, and then times and memory are extrapolated.
        measured_steps: how many.
        load_seconds: one loader process: reading, decoding and drawing a rank's share of a step.
        views_seconds: crops and photometry on the device.
        model_seconds: forward, backward and update.
        workers: loader processes the run will use; 0 = the training process loads by itself.
        memory_gb: peak in 1e9 bytes, of the GPU or of this process.
        gradient_gb: what ranks exchange in each step.
    """

    device: str
    cores: int
    devices: int
    steps: int
    batch_size: int
    measured_samples: int
    measured_steps: int
    load_seconds: float
    views_seconds: float
    model_seconds: float
    workers: int
    memory_gb: float
    gradient_gb: float

    @property
    def step_seconds(self) -> float:
        """What the device needs for a step."""
        return self.views_seconds + self.model_seconds

    @property
    def seconds(self) -> float:
        """One step with its loading. Exchange between ranks is not in it (see benchmarks/README.md)."""
        if self.workers == 0:
            return self.load_seconds + self.step_seconds
        return max(self.step_seconds, self.load_seconds / self.workers)

    @property
    def samples_per_second(self) -> float:
        """Over all ranks."""
        return self.batch_size / self.seconds

    @property
    def hours(self) -> float:
        """The whole schedule. Checkpoints are not in it."""
        return self.steps * self.seconds / 3600

    @property
    def bottleneck(self) -> str:
        """`loader` or `step`: what a faster machine should be faster at."""
        return "loader" if self.load_seconds / max(1, self.workers) > self.step_seconds else "step"

    @property
    def enough_workers(self) -> int:
        """Loader processes per rank with which the device never waits. On a CPU they would only take its cores."""
        return 0 if self.device == "cpu" else math.ceil(self.load_seconds / self.step_seconds)

    @property
    def extrapolated(self) -> bool:
        """Whether whole steps were too large to be measured."""
        return self.measured_samples < self.batch_size // self.devices

    def _measured(self, what: str) -> str:
        return f"{self.measured_steps} {what}{'' if self.measured_steps == 1 else 's'}"

    def table(self) -> pd.DataFrame:
        """Quantities and values, for a notebook."""
        rows = {
            "steps of the schedule": f"{self.steps:,} of {self.batch_size} samples",
            "measured": f"{self._measured('step')} of {self.measured_samples} samples on {self.device}",
            "loading, one process": f"{1e3 * self.load_seconds:.0f} ms per step",
            "views": f"{1e3 * self.views_seconds:.0f} ms per step",
            "forward, backward, update": f"{1e3 * self.model_seconds:.0f} ms per step",
            "samples per second": f"{self.samples_per_second:.3g}",
            "the whole run": readable(self.hours),
            "peak memory": f"{self.memory_gb:.2g} GB",
            "bottleneck": f"the {self.bottleneck}",
            "workers": f"{self.workers}; {self.enough_workers} are enough",
        }
        return pd.DataFrame({"value": rows})

    def __str__(self) -> str:
        """The forecast in sentences."""
        where = f"{self.device} ({self.cores} cores)" if self.device == "cpu" else f"{self.devices} x {self.device}"
        basis = f"{self._measured('measured step')} of {self.measured_samples} samples"
        return (
            f"{self.steps:,} steps of {self.batch_size} samples on {where}: {readable(self.hours)} at "
            f"{self.samples_per_second:.3g} samples/s, and {self.memory_gb:.2g} GB of memory"
            f"{' per rank' if self.devices > 1 else ''}. A step takes {self.step_seconds:.3g} s (views "
            f"{self.views_seconds:.2g} s), loading it takes one process {self.load_seconds:.2g} s: the "
            f"{self.bottleneck} is the bottleneck, {self.enough_workers} workers per rank are enough (this run uses "
            f"{self.workers}). From {basis}{'; extrapolated to the whole batch' if self.extrapolated else ''}."
        )


def readable(hours: float) -> str:
    """A duration in the unit people think in."""
    if hours < 0.1:
        return f"{60 * hours:.1f} minutes"
    return f"{hours:.1f} hours" if hours < 72 else f"{hours / 24:,.0f} days"


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


def forecast(
    params: Params, index: Videos, device: torch.device, *, steps: int = 20, seconds: float = 10.0
) -> Forecast:
    """Measure a profile's steps with a throw-away model; no file is written and no generator is moved.

    Args:
        params: sections `run` and `pretrain` are read.
        index: the videos.
        device: where to measure.
        steps: how many steps to measure.
        seconds: measure for about that long: fewer steps where they are slow, and of fewer samples where not even
            three fit.

    Raises:
        InputError: the device's memory is full, or a frame cannot be read.
    """
    wanted, devices = params.pretrain.loop, params.pretrain.loop.devices
    share = max(1, wanted.batch_size // devices)
    micro = max(1, share // wanted.accumulate)
    try:
        trial = _Trial(params, index, device, min(PROBE, micro), 1)
        start = time.perf_counter()
        trial.warm_up()
        trial.step()
        if share > trial.samples:
            left = seconds - (time.perf_counter() - start)
            fits = int(left / (FEWEST + 1) / trial.last_step * trial.samples)  # one step more than counts: the first
            samples = share if fits >= share else max(trial.samples, min(micro, fits))
            if samples > trial.samples:
                trial = _Trial(params, index, device, samples, wanted.accumulate if samples == share else 1)
                trial.warm_up()
        trial.measure(steps, seconds - (time.perf_counter() - start))
    except (torch.OutOfMemoryError, RuntimeError) as error:
        sentence = out_of_memory(error, params.pretrain)
        if sentence is None:
            raise
        raise sentence from error
    return trial.forecast(params, devices, share)


class _Trial:
    """A throw-away model and its loader.

    Args:
        params: the profile.
        index: the videos.
        device: where.
        samples: of a step.
        accumulate: micro-batches of a step.
    """

    def __init__(self, params: Params, index: Videos, device: torch.device, samples: int, accumulate: int) -> None:
        loop = {"batch_size": samples, "accumulate": accumulate, "devices": 1}
        pretrain = params.pretrain.model_copy(update={"loop": params.pretrain.loop.model_copy(update=loop)})
        self.params = params.model_copy(update={"pretrain": pretrain})
        self.samples, self.accumulate, self.at = samples, accumulate, 0
        self.meter = Meter(device)
        self.meter.reset_peak()
        self.trainer = Trainer(pretrain, params.run.seed, device)
        self.collate = Collate(self.params)
        self.dataset = SandwichDataset(index, pretrain.sandwich, params.run.seed)
        self.schedules = Schedules(pretrain)
        self.resting = 0

    def warm_up(self) -> None:
        """The first step also makes the optimiser's state and fills memory pools: it does not count."""
        self.step()
        self.trainer.optimiser.zero_grad(set_to_none=True)
        self.resting = self.meter.in_use()  # weights and optimiser, but no activations
        self.meter.seconds.clear()

    def step(self) -> None:
        """One optimiser step, its parts timed one by one."""
        meter, trainer, hyper = self.meter, self.trainer, self.schedules.at(self.at)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in a worker
        with meter("load"):
            batches = [
                self.collate([self.dataset[c] for c in chosen])
                for chosen in counters(self.at, self.samples, 0, 1, self.accumulate)
            ]
        torch.set_num_threads(threads)
        spent = 0.0

        def on_device(batch: MicroBatch) -> tuple[dict[str, torch.Tensor], Plan]:
            nonlocal spent
            with meter("micro-batch"):
                made = trainer.views(batch.frames, batch.views, batch.plan)
            spent += meter.seconds["micro-batch"][-1]
            return made, batch.plan.to(meter.device)

        with meter("views and gradients"):
            trainer.gradients(map(on_device, batches), hyper)
        with meter("update"):
            trainer.update(hyper)
        meter.seconds["views"].append(spent)
        meter.seconds["gradients"].append(meter.seconds["views and gradients"][-1] - spent)
        self.at += 1

    @property
    def last_step(self) -> float:
        """Seconds of the latest step with its loading."""
        return sum(self.meter.seconds[part][-1] for part in ("load", "views", "gradients", "update"))

    def measure(self, steps: int, seconds: float) -> None:
        """Make steps until `steps` have been counted or that long has passed; one at least."""
        start = time.perf_counter()
        while (made := len(self.meter.seconds["update"])) < steps and (
            made == 0 or time.perf_counter() - start < seconds
        ):
            self.step()

    def forecast(self, params: Params, devices: int, share: int) -> Forecast:
        """What follows for the whole schedule; `share` = samples of a rank's step."""
        meter, scale = self.meter, share / self.samples
        peak = meter.peak()
        activations = max(0, peak - self.resting) * min(scale, share / params.pretrain.loop.accumulate / self.samples)
        parameters = [p for module in self.trainer.model.trained().values() for p in module.parameters()]
        device = meter.device
        return Forecast(
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            cores=cores(),
            devices=devices,
            steps=Schedules(params.pretrain).steps,
            batch_size=params.pretrain.loop.batch_size,
            measured_samples=self.samples,
            measured_steps=len(meter.seconds["update"]),
            load_seconds=scale * meter.median("load"),
            views_seconds=scale * meter.median("views"),
            model_seconds=scale * meter.median("gradients") + meter.median("update"),
            workers=worker_count(params.pretrain.loop.workers, device, Place(world=devices)),
            memory_gb=(peak if scale == 1 else self.resting + activations) / 1e9,
            gradient_gb=sum(p.numel() * p.element_size() for p in parameters) / 1e9,
        )
