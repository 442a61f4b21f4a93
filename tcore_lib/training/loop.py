"""The training loop: resumable, logged, on one device or as one rank of many. Also what torchrun and srun start.

python -m tcore_lib pretrain PROFILE                                     one process
torchrun --nproc-per-node=8 -m tcore_lib pretrain PROFILE                one machine, eight GPUs
srun --ntasks-per-node=8 python -m tcore_lib pretrain PROFILE            SLURM, any number of machines
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.distributed as dist
from tqdm import tqdm

from tcore_lib.data.sandwich import Videos
from tcore_lib.data.shards import open_index
from tcore_lib.errors import InputError
from tcore_lib.machine.distributed import Place, choose_device, joined, place_of, summed
from tcore_lib.machine.locks import sole_owner
from tcore_lib.machine.meter import Meter
from tcore_lib.machine.orphans import follow_parent
from tcore_lib.params import Params, load
from tcore_lib.runs import provenance, run_folder
from tcore_lib.training import checkpoints
from tcore_lib.training.batches import MicroBatch, loader, micro_batches
from tcore_lib.training.feasible import check_feasible, refuse_other_run
from tcore_lib.training.official import load_official_weights, official_weights
from tcore_lib.training.schedules import Schedules
from tcore_lib.training.step import Trainer, not_compiled, out_of_memory
from tcore_lib.training.training_log import LOG_NAME, TrainingLog, read_log
from tcore_lib.training.watch import check_collapse, check_finite

CHECKPOINTS = "checkpoints"
LOCK = ".training.lock"  # in the run's folder
PATIENCE = 30.0  # seconds a training waits for the ranks of a killed one, which still write a checkpoint


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM came; a checkpoint has been written. The message says where and how to go on."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Inside, SIGINT and SIGTERM are only noted, in the list this yields. Other threads than the main one cannot."""
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda received, _: noted.append(received))
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Loop:
    """One run of the training loop; `pretrain` makes one and calls `run`."""

    def __init__(self, params: Params, index: Videos, output: Path, place: Place, device: torch.device) -> None:
        self.params, self.settings, self.place, self.device = params, params.pretrain, place, device
        self.folder, self.log_path = output / CHECKPOINTS, output / LOG_NAME
        self.started, self.meter = time.time(), Meter(device)
        self.schedules = Schedules(self.settings)
        self.num_videos, self.index = len(index), index
        self.trainer = Trainer(self.settings, params.run.seed, device)
        self.step = 0  # steps made
        self.pending: list[torch.Tensor] = []  # values of the steps since the last row, on the device
        self.names: list[str] = []
        self.recent: list[dict[str, float]] = []  # last rows of the log
        self.clock = time.perf_counter()

    # ---- checkpoints

    def save(self) -> None:
        """Write a checkpoint; only the leading rank does."""
        if not self.place.leads:
            return
        model, trainer = self.trainer.model, self.trainer
        content = {
            **official_weights(model),
            "centres": {"cls": model.cls_centre, "patch": model.patch_centre},
            "optimiser": trainer.optimiser.state_dict(),
            "scaler": trainer.scaler.state_dict(),
            "num_videos": self.num_videos,
            "params": self.params.model_dump(mode="json"),
            "provenance": provenance(self.params, self.started),
        }
        checkpoints.save(self.folder, self.step, content)
        checkpoints.prune(self.folder, self.step, self.settings.loop.keep_last, self.settings.loop.milestone_every)

    def resume(self) -> None:
        """Continue from the newest readable checkpoint, if there is one."""
        content = checkpoints.load_newest(self.folder)
        if content is None:
            return
        origin = str(checkpoints.path_of(self.folder, content["step"]))
        refuse_other_run(content, self.params, self.num_videos, origin)
        model, trainer = self.trainer.model, self.trainer
        load_official_weights(model, content, origin)
        try:
            with torch.no_grad():
                model.cls_centre.copy_(content["centres"]["cls"])
                model.patch_centre.copy_(content["centres"]["patch"])
            trainer.optimiser.load_state_dict(content["optimiser"])
            trainer.scaler.load_state_dict(content["scaler"])
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise InputError(
                f"{origin} does not hold the state of this training ({type(error).__name__}: {error}); delete it."
            ) from error
        self.step = content["step"]

    # ---- steps

    def make(self, batches: Iterator[MicroBatch]) -> None:
        """Make the next step from the next micro-batches."""
        hyper = self.schedules.at(self.step)

        def on_device() -> Iterator[tuple[dict[str, torch.Tensor], Any]]:
            for _ in range(self.settings.loop.accumulate):
                batch = next(batches)
                yield self.trainer.views(batch.frames, batch.views, batch.plan), batch.plan.to(self.device)

        values = self.trainer.step(on_device(), hyper)
        self.names = list(values)
        self.pending.append(torch.stack([value.float() for value in values.values()]))
        self.step += 1

    def row(self) -> dict[str, float]:
        """Fetch the pending steps' values, check them, and average them to a row of the log."""
        table = torch.stack(self.pending)  # (steps, names)
        first = self.step - len(self.pending) + 1
        self.pending = []
        shared = [i for i, name in enumerate(self.names) if not name.startswith("grad_norm")]
        table[:, shared] = summed(table[:, shared].contiguous())
        values = table.double().cpu()  # waits for the device
        check_finite(self.names, values.tolist(), first, self.settings)
        now = time.perf_counter()
        rate = len(values) * self.settings.loop.batch_size / max(now - self.clock, 1e-9)
        self.clock = now
        hyper = asdict(self.schedules.at(self.step - 1))
        low, high = hyper.pop("mask_ratio")
        means = dict(zip(self.names, values.mean(0).tolist(), strict=True))
        row = {"step": self.step, "samples": self.step * self.settings.loop.batch_size, "total": means.pop("total")}
        row |= means | hyper | {"mask_ratio_low": low, "mask_ratio_high": high}
        return row | {"samples_per_second": rate, "peak_memory_gb": self.meter.peak() / 1e9}

    def stop_wanted(self, noted: list[int], row_due: bool) -> int:
        """The signal to stop for, or 0; the same on all ranks. GPUs are asked only when they are waited for anyway."""
        if self.place.world == 1:
            return noted[-1] if noted else 0
        if self.device.type == "cuda" and not row_due:
            return 0
        wanted = torch.tensor(noted[-1] if noted else 0, device=self.device)
        dist.all_reduce(wanted, dist.ReduceOp.MAX)
        return int(wanted)

    def run(self, events: Path | None, progress: bool, on_log: Callable[[dict[str, float]], None] | None) -> None:
        """Make all remaining steps."""
        loop, last = self.settings.loop, self.schedules.steps
        batches = micro_batches(loader(self.params, self.index, self.place, self.device, self.step, last))
        log = TrainingLog(self.log_path, self.step, events) if self.place.leads else None
        hide = not (progress and self.place.leads)
        bar = tqdm(total=last, initial=self.step, unit="step", desc="pretraining", file=sys.stdout, disable=hide)
        self.clock = time.perf_counter()
        try:
            with bar, _signals() as noted:
                while self.step < last:
                    self.make(batches)
                    bar.update()
                    save_due = self.step == last or self.step % loop.checkpoint_every == 0
                    if loop.milestone_every is not None:
                        save_due |= self.step % loop.milestone_every == 0
                    row_due = save_due or self.step % loop.log_every == 0
                    signum = self.stop_wanted(noted, row_due)
                    if row_due or signum:
                        self.record(log, bar, on_log)
                    if save_due or signum:
                        self.save()
                    if signum:
                        raise Interrupted(
                            f"Stopped at step {self.step} of {last} by {signal.Signals(signum).name}; a checkpoint is "
                            f"in {self.folder}, the same call or command continues from it.",
                            signum,
                        )
        finally:
            if log is not None:
                log.close()

    def record(
        self, log: TrainingLog | None, bar: "tqdm[Any]", on_log: Callable[[dict[str, float]], None] | None
    ) -> None:
        """Write a row of the log, show it, and look for collapse."""
        row = self.row()
        bar.set_postfix_str(f"{row['samples_per_second']:.1f} samples/s, loss {row['total']:.4f}")
        if log is not None:
            log.append(row)
            if on_log is not None:
                on_log(row)
        self.recent = [*self.recent, row][-64:]
        check_collapse(pd.DataFrame(self.recent), self.settings)


def pretrain(
    params: Params,
    index: Videos,
    output: str | Path,
    *,
    resume: bool = True,
    progress: bool = True,
    on_log: Callable[[dict[str, float]], None] | None = None,
) -> pd.DataFrame:
    """Train, or go on training, in this process (METHOD). As one rank of many where torchrun or srun started it.

    Written to `output`: `log.csv` (one row per `loop.log_every` steps: means of the terms over these steps before their
    weights, diagnostics, gradient norms before clipping, the last step's schedule values, speed, peak memory),
    `checkpoints/step-<8 digits>.pt`, and `tensorboard/` on request.

    Args:
        params: the whole parameter file; sections `run` (seed, device) and `pretrain` are read.
        index: the videos.
        output: the run's folder.
        resume: continue from the newest checkpoint there; False removes the folder's checkpoints and starts anew.
        progress: show a progress bar.
        on_log: called with every row of the log, e.g. to draw it.

    Returns:
        The log, one row per logged step.

    Raises:
        InputError: impossible settings, a checkpoint of other settings, another process that trains this run, a full
            device or disk, a frame that cannot be read, a loader process that died, or training that went wrong
            (`TrainingStopped`).
        Interrupted: Ctrl-C or SIGTERM; a checkpoint has been written.
    """
    output, place = Path(output), place_of(os.environ)
    device = choose_device(params.run.device, place)
    check_feasible(params, place.world)
    owner = sole_owner(output / LOCK, PATIENCE) if place.leads else nullcontext()
    try:
        with owner, joined(place, device):
            run = _Loop(params, index, output, place, device)
            if resume:
                run.resume()
            elif place.leads:
                for file in checkpoints.steps_in(run.folder).values():
                    file.unlink()
            events = output / "tensorboard" if params.pretrain.loop.tensorboard else None
            run.run(events, progress, on_log)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        sentence = out_of_memory(error, params.pretrain) or not_compiled(error)
        if sentence is None:
            raise
        raise sentence from error
    return read_log(output / LOG_NAME)


def run_profile(params: Params, *, resume: bool = True, progress: bool = True) -> int:
    """The command: train what a parameter file says, on the index notebook 00 made, into the run's folder.

    Returns:
        The exit code: 0, 2 for bad input, 130 or 143 when stopped by a signal.
    """
    place = place_of(os.environ)
    follow_parent()
    if params.run.threads is not None:
        torch.set_num_threads(max(1, params.run.threads // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    try:
        index = open_index(params.data)
        pretrain(params, index, run_folder(params), resume=resume, progress=progress)
    except InputError as error:
        if place.leads:
            print(f"tcore_lib: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        if place.leads:
            print(f"tcore_lib: {stop}", file=sys.stderr)
        return stop.exit_code
    return 0


if __name__ == "__main__":
    profile, *options = sys.argv[1:]
    sys.exit(run_profile(load(profile), resume="--fresh" not in options, progress=False))
