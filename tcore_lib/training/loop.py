"""The training loop: resumable, logged, on one device or as one rank of many. Read `run_steps` first.

tcore pretrain PROFILE                                       one process, or `pretrain.loop.devices` of them
torchrun --nproc-per-node=8 -m tcore_lib pretrain PROFILE    one machine, eight GPUs
srun torchrun --nnodes=4 --nproc-per-node=8 ... -m tcore_lib pretrain PROFILE    SLURM, any number of machines
"""

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, TypeVar

import cyclopts
import pandas as pd
import torch
import torch.distributed as dist
from filelock import FileLock, Timeout
from torch import Tensor
from tqdm import tqdm

from tcore_lib.data.sandwich import Videos
from tcore_lib.data.shards import open_index
from tcore_lib.errors import InputError
from tcore_lib.files import writable
from tcore_lib.machine import Meter, Place, choose_device, cores, full_memory_told, joined, place_of
from tcore_lib.params import Params, load
from tcore_lib.runs import run_folder
from tcore_lib.training import checkpoints
from tcore_lib.training.batches import loader, micro_batches, sentence_in
from tcore_lib.training.log import LOG_NAME, Log, Row, averages, read_log
from tcore_lib.training.schedules import Schedules
from tcore_lib.training.step import Trainer

T = TypeVar("T")
OnLog = Callable[[], object] | None  # called when the log has grown
CHECKPOINTS = "checkpoints"  # folder in the run's folder
PATIENCE = 30.0  # seconds a training waits for the processes of a killed one, which still write a checkpoint
FULL = (
    "pretrain.loop.batch_size = {batch_size} is too much for accumulate = {accumulate}; raise that, or use more devices"
)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM came; a checkpoint has been written. The message says where and how to go on."""

    def __init__(self, signum: int, where: str, output: Path) -> None:
        name, folder = signal.Signals(signum).name, output / CHECKPOINTS
        super().__init__(
            f"Stopped {where} by {name}; a checkpoint is in {folder}, the same call or command continues from it."
        )
        self.exit_code = 128 + signum


def run_steps(
    trainer: Trainer, params: Params, index: Videos, output: Path, place: Place, progress: bool, on_log: OnLog
) -> None:
    """Make all steps that are left: data, step, log, checkpoint, stop. Arguments as in `pretrain`."""
    device, loop, folder = trainer.device, params.pretrain.loop, output / CHECKPOINTS
    schedules, meter, started = Schedules(params.pretrain), Meter(device), time.time()
    step, last = checkpoints.restore(trainer, params, len(index), folder), schedules.steps
    log = Log(output, step, params, place.leads)
    batches = micro_batches(loader(params, index, place, device, step, last))
    crops = one_ahead((trainer.inputs(*batch) for batch in batches), device)
    pending: list[Tensor] = []  # values of the steps since the last row, on the device
    clock = time.perf_counter()
    shown = {"desc": "pretraining", "unit": "step", "file": sys.stdout, "disable": not (progress and place.leads)}
    bar = tqdm(total=last, initial=step, **shown)
    with bar, noted_signals() as noted:
        if step == last == 0 and place.leads:  # no step at all: the checkpoint is the start
            checkpoints.save(trainer, params, len(index), folder, step, started)
        while step < last:
            # data: the workers have drawn everything random; crops are cut on the device
            hyper = schedules.at(step)
            inputs = (next(crops) for _ in range(loop.accumulate))

            # step: loss, gradients, AdamW, centres, teacher
            values = trainer.step(inputs, hyper)
            pending.append(torch.stack([value.float() for value in values.values()]))
            step += 1
            bar.update()

            # log: only now are the losses waited for
            save_due = step == last or step % loop.checkpoint_every == 0 or step % (loop.milestone_every or last) == 0
            row_due = save_due or step % loop.log_every == 0
            stop = signal_to_stop(noted, device, place, row_due)
            if row_due or stop:
                row: Row = {"step": step, "samples": step * loop.batch_size}
                row |= averages(list(values), pending, step)
                row |= {name: float(value) for name, value in trainer.model.diagnostics().items()} | vars(hyper)
                now = time.perf_counter()
                row["samples_per_second"] = len(pending) * loop.batch_size / max(now - clock, 1e-9)
                row["peak_memory_gb"] = meter.peak() / 1e9
                clock, pending = now, []
                bar.set_postfix_str(f"{row['samples_per_second']:.1f} samples/s, loss {row['total']:.4f}")
                log.append(row)
                if on_log is not None:
                    on_log()

            # checkpoint
            if (save_due or stop) and place.leads:
                checkpoints.save(trainer, params, len(index), folder, step, started)

            # stop
            if stop:
                raise Interrupted(stop, f"at step {step} of {last}", output)
    log.close()


def one_ahead(made: Iterator[T], device: torch.device) -> Iterator[T]:
    """The same, but on a CPU a thread makes the next one meanwhile; a GPU gets its work long before it does it."""
    if device.type != "cpu":
        yield from made
        return
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(next, made, None)
        while (ready := waiting.result()) is not None:
            waiting = thread.submit(next, made, None)
            yield ready


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Inside, SIGINT and SIGTERM are only noted, in the list this yields."""
    noted: list[int] = []
    before = {n: signal.signal(n, lambda received, _: noted.append(received)) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def signal_to_stop(noted: Sequence[int], device: torch.device, place: Place, row_due: bool) -> int:
    """The signal to stop for, or 0; the same on all ranks, which ask each other when they wait for the device anyway."""
    own = noted[-1] if noted else 0
    if place.world == 1:
        return own
    if not row_due:
        return 0
    wanted = torch.tensor(own, device=device)
    dist.all_reduce(wanted, dist.ReduceOp.MAX)
    return int(wanted)


def pretrain(
    params: Params, index: Videos, output: Path, *, resume: bool = True, progress: bool = True, on_log: OnLog = None
) -> pd.DataFrame:
    """Train, or go on training, in this process (docs/method.md); as one rank of many where torchrun started it.

    Written to `output`: `log.csv` (one row per `loop.log_every` steps: means over these steps of the terms before their
    weights and of the gradient norms before clipping, `TCoRe.diagnostics`, the last step's schedule values, speed, peak
    memory; also returned; `on_log` is called after each) and `checkpoints/step-<8 digits>.pt`. `resume` continues from the
    newest of these, False removes them. Ctrl-C or SIGTERM: a checkpoint is written and `Interrupted` raised.
    """
    place = place_of()
    device = choose_device(params.run.device, place)
    with writable(output):
        output.mkdir(parents=True, exist_ok=True)
        lock = FileLock(output / ".training.lock", timeout=PATIENCE)
        try:
            held = lock.acquire() if place.leads else nullcontext()
        except Timeout as error:
            other = "wait for it, or give this run another run.name"
            raise InputError(f"{output} is in use by another training; {other}.") from error
    with held, joined(place, device), full_memory_told(FULL.format(**params.pretrain.loop.model_dump())):
        if not resume and place.leads:
            for file in checkpoints.steps_in(output / CHECKPOINTS).values():
                file.unlink()
        if place.world > 1:
            dist.barrier()
        trainer = Trainer(params.pretrain, params.run.seed, device)
        run_steps(trainer, params, index, output, place, progress, on_log)
    return read_log(output / LOG_NAME)


def train(params: Params, *, resume: bool = True, progress: bool = True, on_log: OnLog = None) -> pd.DataFrame:
    """`pretrain` a profile into its run folder, on the index that notebook 00 made.

    With `pretrain.loop.devices` > 1 in as many processes on this machine, one per GPU (on a CPU they share the cores);
    they end with this one, and `on_log` is called every second.
    """
    devices, output = params.pretrain.loop.devices, run_folder(params)
    if devices == 1 or place_of().world > 1:
        return pretrain(params, open_index(params.data), output, resume=resume, progress=progress, on_log=on_log)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = torch.multiprocessing.spawn(_rank, (params, port, resume, progress), nprocs=devices, join=False)
    try:
        ended = False
        while not ended:
            ended = ranks.join(timeout=1.0)
            if on_log is not None:
                on_log()
    except torch.multiprocessing.ProcessRaisedException as error:
        raise sentence_in(error) or error from None
    except KeyboardInterrupt:
        pass  # the ranks are told, too
    finally:
        for process in ranks.processes:  # where they still run, they write a checkpoint and end
            process.terminate()
            process.join()
    log = read_log(output / LOG_NAME)
    if max(log["step"], default=0) < Schedules(params.pretrain).steps:
        raise Interrupted(signal.SIGINT, "before the end", output)
    return log


def _rank(rank: int, params: Params, port: int, resume: bool, progress: bool) -> None:
    """One of the processes that `train` starts; what it raises is raised there."""
    world = str(params.pretrain.loop.devices)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(max(1, cores() // int(world)))
    pretrain(params, open_index(params.data), run_folder(params), resume=resume, progress=progress)


def pretrain_command(
    profile: str, *, fresh: bool = False, changes: Annotated[tuple[str, ...], cyclopts.Parameter(name="--set")] = ()
) -> None:
    """Train a profile on the index that notebook 00 made; also under torchrun.

    Args:
        profile: a parameter file, or the name of one in params/.
        fresh: start anew instead of resuming.
        changes: replace one setting, section.key=value; may be repeated.
    """
    train(load(profile, changes), resume=not fresh, progress=place_of().leads)
