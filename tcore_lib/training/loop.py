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
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, TypeVar

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
from tcore_lib.files import reading, writable
from tcore_lib.machine import Meter, Place, choose_device, cores, joined, memory_is_full, place_of
from tcore_lib.params import Params, Pretrain, load
from tcore_lib.runs import provenance, run_folder
from tcore_lib.training import checkpoints
from tcore_lib.training.batches import loader, micro_batches, sentence_in
from tcore_lib.training.log import LOG_NAME, ROWS, Log, Row, averages, check_collapse, read_log
from tcore_lib.training.schedules import Schedules
from tcore_lib.training.step import Trainer

T = TypeVar("T")
OnLog = Callable[[Row], object] | None  # what is called with every row of the log
CHECKPOINTS = "checkpoints"  # folder in the run's folder
PATIENCE = 30.0  # seconds a training waits for the processes of a killed one, which still write a checkpoint


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
    settings, device, loop = params.pretrain, trainer.device, params.pretrain.loop
    schedules, meter, started = Schedules(settings), Meter(device), time.time()
    step, last = restore(trainer, params, len(index), output / CHECKPOINTS), schedules.steps
    log = Log(output, step, params) if place.leads else None
    batches = micro_batches(loader(params, index, place, device, step, last))
    crops = one_ahead((trainer.inputs(*batch) for batch in batches), device)
    pending: list[Tensor] = []  # values of the steps since the last row, on the device
    recent: list[Row] = []  # last rows of the log
    warned, clock = False, time.perf_counter()
    shown = {"desc": "pretraining", "unit": "step", "file": sys.stdout, "disable": not (progress and place.leads)}
    bar = tqdm(total=last, initial=step, **shown)
    with bar, noted_signals() as noted:
        if step == last == 0 and place.leads:  # no step at all: the checkpoint is the start
            save(trainer, params, len(index), output / CHECKPOINTS, step, started)
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
                row |= averages(list(values), pending, step, settings)
                row |= {name: float(value) for name, value in trainer.model.diagnostics().items()} | vars(hyper)
                now = time.perf_counter()
                row["samples_per_second"] = len(pending) * loop.batch_size / max(now - clock, 1e-9)
                row["peak_memory_gb"] = meter.peak() / 1e9
                clock, pending, recent = now, [], [*recent, row][-2 * ROWS :]
                bar.set_postfix_str(f"{row['samples_per_second']:.1f} samples/s, loss {row['total']:.4f}")
                if log is not None:
                    log.append(row)
                    if on_log is not None:
                        on_log(row)
                warned = check_collapse(recent, settings, warned)

            # checkpoint
            if (save_due or stop) and place.leads:
                save(trainer, params, len(index), output / CHECKPOINTS, step, started)

            # stop
            if stop:
                raise Interrupted(stop, f"at step {step} of {last}", output)
    if log is not None:
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


def pretrain(
    params: Params, index: Videos, output: Path, *, resume: bool = True, progress: bool = True, on_log: OnLog = None
) -> pd.DataFrame:
    """Train, or go on training, in this process (docs/method.md); as one rank of many where torchrun started it.

    Written to `output`: `log.csv` (one row per `loop.log_every` steps: means over these steps of the terms before their
    weights and of the gradient norms before clipping, `TCoRe.diagnostics`, the last step's schedule values, speed, peak
    memory; also returned, and row by row given to `on_log`) and `checkpoints/step-<8 digits>.pt`. `resume` continues from the
    newest of these, False removes them. Ctrl-C or SIGTERM: a checkpoint is written and `Interrupted` raised.
    """
    place = place_of()
    device = choose_device(params.run.device, place)
    with sole_owner(output) if place.leads else nullcontext(), joined(place, device), full_memory_told(params.pretrain):
        if not resume and place.leads:
            for file in checkpoints.steps_in(output / CHECKPOINTS).values():
                file.unlink()
        if place.world > 1:
            dist.barrier()
        trainer = Trainer(params.pretrain, params.run.seed, device)
        run_steps(trainer, params, index, output, place, progress, on_log)
    return read_log(output / LOG_NAME)


@contextmanager
def full_memory_told(settings: Pretrain) -> Iterator[None]:
    """Inside, a full memory is said in one sentence."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not memory_is_full(error):
            raise
        raise InputError(
            f"The device's memory is full with pretrain.loop.batch_size = {settings.loop.batch_size}; raise "
            f"pretrain.loop.accumulate to {2 * settings.loop.accumulate}, set pretrain.loop.activation_checkpointing: true, "
            "or use more devices."
        ) from error


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
    """The signal to stop for, or 0; the same on all ranks. GPUs are asked only when they are waited for anyway."""
    own = noted[-1] if noted else 0
    if place.world == 1:
        return own
    if device.type == "cuda" and not row_due:
        return 0
    wanted = torch.tensor(own, device=device)
    dist.all_reduce(wanted, dist.ReduceOp.MAX)
    return int(wanted)


def sole_owner(output: Path) -> AbstractContextManager[Any]:
    """Hold a run's folder against other trainings."""
    try:
        with writable(output):
            output.mkdir(parents=True, exist_ok=True)
            return FileLock(output / ".training.lock", timeout=PATIENCE).acquire()
    except Timeout as error:
        raise InputError(
            f"{output} is in use by another training; wait for it, or give this run another run.name."
        ) from error


def save(trainer: Trainer, params: Params, num_videos: int, folder: Path, step: int, started: float) -> None:
    """Write a checkpoint."""
    model, loop = trainer.model, params.pretrain.loop
    content = {
        **checkpoints.official_weights(model),
        "layout": model.student.encoder.layout,  # how an encoder that was continued came in: it goes out the same way
        "centres": {"cls": model.cls_centre, "patch": model.patch_centre},
        "optimiser": trainer.optimiser.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "num_videos": num_videos,
        "params": params.model_dump(mode="json"),
        "provenance": provenance(params, started),
    }
    checkpoints.save(folder, step, content)
    checkpoints.prune(folder, step, loop.keep_last, loop.milestone_every)


def restore(trainer: Trainer, params: Params, num_videos: int, folder: Path) -> int:
    """Load the newest sound checkpoint, else the encoder that `pretrain.encoder.init` names. Returns the steps made."""
    content, model = checkpoints.load_newest(folder), trainer.model
    if content is None:
        if (source := params.pretrain.encoder.init) is not None:
            model.start_from(source)
        return 0
    origin = checkpoints.path_of(folder, content["step"])
    checkpoints.refuse_other_run(content, params, num_videos, str(origin))
    checkpoints.load_official_weights(model, content, str(origin))
    with torch.no_grad(), reading(origin, "it does not hold the state of this training: move it out of the folder"):
        model.cls_centre.copy_(content["centres"]["cls"])
        model.patch_centre.copy_(content["centres"]["patch"])
        model.student.encoder.layout = model.teacher.encoder.layout = content["layout"]
        trainer.optimiser.load_state_dict(content["optimiser"])
        trainer.scaler.load_state_dict(content["scaler"])
    return int(content["step"])


def train(params: Params, *, resume: bool = True, progress: bool = True, on_log: OnLog = None) -> pd.DataFrame:
    """`pretrain` a profile into its run folder, on the index that notebook 00 made.

    With `pretrain.loop.devices` > 1 in as many processes on this machine, one per GPU (on a CPU they share the cores);
    they end with this one.
    """
    devices, output = params.pretrain.loop.devices, run_folder(params)
    if devices == 1 or place_of().world > 1:
        return pretrain(params, open_index(params.data), output, resume=resume, progress=progress, on_log=on_log)
    rows = torch.multiprocessing.get_context("spawn").SimpleQueue()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = torch.multiprocessing.spawn(_rank, (params, port, resume, progress, rows), nprocs=devices, join=False)
    try:
        ended = False
        while not ended:
            ended = ranks.join(timeout=0.2)
            while not rows.empty():
                row = rows.get()
                if on_log is not None:
                    on_log(row)
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


def _rank(rank: int, params: Params, port: int, resume: bool, progress: bool, rows: Any) -> None:
    """One of the processes that `train` starts; what it raises is raised there."""
    world = str(params.pretrain.loop.devices)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(max(1, cores() // int(world)))
    pretrain(params, open_index(params.data), run_folder(params), resume=resume, progress=progress, on_log=rows.put)


def pretrain_command(
    profile: str, *, fresh: bool = False, changes: Annotated[tuple[str, ...], cyclopts.Parameter(name="--set")] = ()
) -> int:
    """Train a profile on the index that notebook 00 made; also under torchrun.

    Args:
        profile: a parameter file, or the name of one in params/.
        fresh: start anew instead of resuming.
        changes: replace one setting, section.key=value; may be repeated.
    """
    try:
        train(load(profile, changes), resume=not fresh, progress=place_of().leads)
    except Interrupted as stop:
        if place_of().leads:
            print(f"tcore: {stop}", file=sys.stderr)
        return stop.exit_code
    return 0
