"""The training loop: resumable, logged, on one device or as one rank of many. Read `run_steps` first.

tcore pretrain PROFILE                                       one process, or `pretrain.loop.devices` of them
torchrun --nproc-per-node=8 -m tcore_lib pretrain PROFILE    one machine, eight GPUs
srun torchrun --nnodes=4 --nproc-per-node=8 ... -m tcore_lib pretrain PROFILE    SLURM, any number of machines
"""

import csv
import importlib
import io
import math
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

import cyclopts
import pandas as pd
import torch
import torch.distributed as dist
from filelock import FileLock, Timeout
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from tcore_lib.data.sandwich import CounterBatches, Sample, SandwichDataset, Videos, collate, loader_settings
from tcore_lib.data.shards import open_index
from tcore_lib.data.views import ViewParams, draw_views
from tcore_lib.errors import InputError
from tcore_lib.files import reading, reason, writable
from tcore_lib.machine import Meter, Place, choose_device, cores, joined, memory_is_full, place_of, summed
from tcore_lib.params import Params, Pretrain, load, resolve
from tcore_lib.runs import provenance, run_folder
from tcore_lib.training import checkpoints
from tcore_lib.training.draws import Draws, draw
from tcore_lib.training.schedules import Schedules
from tcore_lib.training.step import Trainer

CHECKPOINTS = "checkpoints"  # folder in the run's folder
LOG_NAME = "log.csv"
PATIENCE = 30.0  # seconds a training waits for the processes of a killed one, which still write a checkpoint
Row = dict[str, float]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM came; a checkpoint has been written. The message says where and how to go on."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


class TrainingStopped(InputError):
    """The training cannot go on with these settings. The message says at which step, which term, and what to try."""


# ---- the loop -------------------------------------------------------------------------------------------------------


def run_steps(
    trainer: Trainer,
    params: Params,
    index: Videos,
    output: Path,
    place: Place,
    progress: bool,
    on_log: Callable[[Row], None] | None,
) -> None:
    """Make all steps that are left: data, step, log, checkpoint, stop. Arguments as in `pretrain`."""
    settings, device, loop = params.pretrain, trainer.device, params.pretrain.loop
    schedules, meter, started = Schedules(settings), Meter(device), time.time()
    step, last = restore(trainer, params, len(index), output / CHECKPOINTS), schedules.steps
    log = Log(output, step, params) if place.leads else None
    batches = micro_batches(loader(params, index, place, device, step, last))
    pending: list[Tensor] = []  # values of the steps since the last row, on the device
    recent: list[Row] = []  # last rows of the log
    warned = False
    clock = time.perf_counter()
    hide = not (progress and place.leads)
    bar = tqdm(total=last, initial=step, unit="step", desc="pretraining", file=sys.stdout, disable=hide)
    with bar, noted_signals() as noted:
        if step == last == 0:  # no step at all: the checkpoint is the start
            save(trainer, params, len(index), output / CHECKPOINTS, step, place, started)
        while step < last:
            # data: the workers have drawn everything random; crops are cut on the device
            hyper = schedules.at(step)
            inputs = (on_device(trainer, next(batches)) for _ in range(loop.accumulate))

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
                row = {
                    "step": step,
                    "samples": step * loop.batch_size,
                    **averages(list(values), pending, step, settings),
                }
                row |= {name: float(value) for name, value in trainer.model.diagnostics().items()} | hyper.columns()
                now = time.perf_counter()
                row["samples_per_second"] = len(pending) * loop.batch_size / max(now - clock, 1e-9)
                row["peak_memory_gb"] = meter.peak() / 1e9
                clock, pending = now, []
                bar.set_postfix_str(f"{row['samples_per_second']:.1f} samples/s, loss {row['total']:.4f}")
                if log is not None:
                    log.append(row)
                    if on_log is not None:
                        on_log(row)
                recent = [*recent, row][-2 * ROWS :]
                warned = check_collapse(recent, settings, warned)

            # checkpoint
            if save_due or stop:
                save(trainer, params, len(index), output / CHECKPOINTS, step, place, started)

            # stop
            if stop:
                raise Interrupted(
                    f"Stopped at step {step} of {last} by {signal.Signals(stop).name}; a checkpoint is in "
                    f"{output / CHECKPOINTS}, the same call or command continues from it.",
                    stop,
                )
    if log is not None:
        log.close()


def pretrain(
    params: Params,
    index: Videos,
    output: str | Path,
    *,
    resume: bool = True,
    progress: bool = True,
    on_log: Callable[[Row], None] | None = None,
) -> pd.DataFrame:
    """Train, or go on training, in this process (METHOD); as one rank of many where torchrun started it.

    Written to `output`: `log.csv` (one row per `loop.log_every` steps: means over these steps of the terms before their
    weights and of the gradient norms before clipping, `TCoRe.diagnostics`, the last step's schedule values, speed, peak
    memory), `checkpoints/step-<8 digits>.pt`, and `tensorboard/` on request.

    Args:
        params: the whole parameter file; sections `run` (name, seed, device) and `pretrain` are read.
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
    output, place = Path(output), place_of()
    device = choose_device(params.run.device, place)
    check_feasible(params, place.world)
    with sole_owner(output) if place.leads else nullcontext(), joined(place, device), in_one_sentence(params.pretrain):
        if not resume and place.leads:
            for file in checkpoints.steps_in(output / CHECKPOINTS).values():
                file.unlink()
        if place.world > 1:
            dist.barrier()
        trainer = Trainer(params.pretrain, params.run.seed, device)
        run_steps(trainer, params, index, output, place, progress, on_log)
    return read_log(output / LOG_NAME)


# ---- data -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MicroBatch:
    """B samples on the host. What the device needs is `frames` and `draws`; `views` steers how crops are cut there."""

    frames: Tensor  # uint8 (B, 3, 3, H, W): roles past, current, future
    views: ViewParams
    draws: Draws
    counters: Tensor  # (B,) int64

    def pin_memory(self) -> "MicroBatch":
        """The same in pinned memory; a DataLoader calls it."""
        return MicroBatch(self.frames.pin_memory(), self.views, self.draws.pin_memory(), self.counters)


class Collate:
    """Stacks samples and draws their views, masks and stochastic depth; runs in the worker.

    Args:
        params: seed and settings.
    """

    def __init__(self, params: Params) -> None:
        self.seed, self.settings = params.run.seed, params.pretrain
        self.schedules = Schedules(params.pretrain)

    def __call__(self, samples: Sequence[Sample]) -> MicroBatch:
        """One micro-batch; all samples belong to one step."""
        batch = collate(samples)
        counters = batch["counter"].tolist()
        step = counters[0] // self.settings.loop.batch_size
        views = draw_views(self.seed, counters, batch["sizes"].numpy(), self.settings.views)
        draws = draw(self.settings, self.seed, step, counters, self.schedules.at(step))
        return MicroBatch(batch["frames"], views, draws, batch["counter"])


def worker_count(wanted: int | None, device: torch.device, place: Place) -> int:
    """Loader processes of this rank.

    As asked; else none on a CPU, which they would only compete for, and on a GPU the machine's cores shared out among
    its ranks, at most 16 each.
    """
    if wanted is not None:
        return wanted
    if device.type == "cpu":
        return 0
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", torch.cuda.device_count() if place.world > 1 else 1))
    return max(1, min(16, cores() // max(1, ranks) - 1))


def loader(
    params: Params, index: Videos, place: Place, device: torch.device, first_step: int, last_step: int
) -> DataLoader:
    """Micro-batches of this rank for steps first_step ... last_step - 1, in order.

    Raises:
        InputError: the batch does not divide among ranks and micro-batches.
    """
    loop = params.pretrain.loop
    workers = worker_count(loop.workers, device, place)
    settings: dict[str, Any] = loader_settings(workers) | {"collate_fn": Collate(params)}
    if workers:
        # Fork and threads do not go together. The server imports once what each worker would import for ten seconds.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        settings["multiprocessing_context"] = context
    return DataLoader(
        SandwichDataset(index, params.pretrain.sandwich, params.run.seed),
        batch_sampler=CounterBatches(first_step, last_step, loop.batch_size, place.rank, place.world, loop.accumulate),
        pin_memory=device.type == "cuda",
        **settings,
    )


def micro_batches(source: DataLoader) -> Iterator[MicroBatch]:
    """The loader's micro-batches; what goes wrong in a worker process is said in one sentence.

    Raises:
        InputError: a file cannot be read, in the reader's own words; or a worker process died.
    """
    try:
        yield from source
    except InputError as error:  # torch puts the worker's whole traceback into the message, the sentence last
        sentence = str(error).strip().splitlines()[-1]
        raise InputError(sentence.removeprefix(f"{InputError.__module__}.{InputError.__name__}: ")) from error
    except (RuntimeError, ConnectionError, EOFError) as error:
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise InputError(
            f"A process that loads data died ({reason(error)}), which mostly means that memory (or /dev/shm) ran out; lower "
            "pretrain.loop.workers and run the same command again, which continues from the last checkpoint."
        ) from error


def on_device(trainer: Trainer, batch: MicroBatch) -> tuple[dict[str, Tensor], Draws]:
    """The crops of a micro-batch, and its draws, where the model is."""
    return trainer.views(batch.frames, batch.views, batch.draws.masks), batch.draws.to(trainer.device)


# ---- log ------------------------------------------------------------------------------------------------------------


def averages(names: Sequence[str], pending: Sequence[Tensor], step: int, settings: Pretrain) -> Row:
    """Means over the steps since the last row, over all ranks; waits for the device.

    Args:
        names: of the values of one step.
        pending: (names,) of each step.
        step: the last of them, counted from 1.
        settings: what the advice is about.

    Raises:
        TrainingStopped: a value is NaN or infinite; names the first step and term, and remedies.
    """
    table = torch.stack(list(pending))  # (steps, names)
    shared = [i for i, name in enumerate(names) if not name.startswith("grad_norm")]
    table[:, shared] = summed(table[:, shared].contiguous())
    table = table.double().cpu()
    for row, values in enumerate(table.tolist(), start=step - len(table) + 1):
        for name, value in zip(names, values, strict=True):
            skipped = settings.loop.precision == "fp16" and name.startswith("grad_norm")  # by the loss scaler
            if not math.isfinite(value) and not skipped:
                safer = "" if settings.loop.precision in ("fp32", "fp64") else ", or set pretrain.loop.precision: fp32"
                clip = "" if settings.optimiser.clip_grad > 0 else ", or set pretrain.optimiser.clip_grad: 3.0"
                raise TrainingStopped(
                    f"Training stopped at step {row}: {name} became {value}; resume from an earlier checkpoint or start "
                    f"anew, and lower pretrain.optimiser.base_lr or lengthen warmup_epochs{clip}{safer}."
                )
    return dict(zip(names, table.mean(0).tolist(), strict=True))


class Log:
    """`log.csv`, appended and flushed row by row, and the tracker that `loop.tracker` names.

    Args:
        output: the run's folder.
        step: steps already made; rows after it are dropped, a resumed run makes them again.
        params: the run's name and `loop.tracker`.

    Raises:
        InputError: the tracker is not installed; the CSV is no log of ours, or cannot be written.
    """

    def __init__(self, output: Path, step: int, params: Params) -> None:
        self.path = output / LOG_NAME
        log = read_log(self.path) if step else pd.DataFrame()
        kept = int((log["step"] <= step).sum()) if len(log) else 0
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)[: kept + 1] if kept else []
        with writable(self.path):
            output.mkdir(parents=True, exist_ok=True)
            self.path.write_text("".join(lines), encoding="utf-8")
        self.columns = lines[0].strip().split(",") if lines else []
        self._track, self._close = tracker(params, output, step)

    def append(self, row: Row) -> None:
        """Add a row; the first one fixes the columns."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if not self.columns:
            self.columns = list(row)
            writer.writerow(self.columns)
        writer.writerow(row[name] if isinstance(row[name], int) else f"{row[name]:.9g}" for name in self.columns)
        with writable(self.path), open(self.path, "a", encoding="utf-8") as stream:
            stream.write(text.getvalue())
        self._track(row)

    def close(self) -> None:
        """Finish the tracker's run; the CSV is complete at any time."""
        self._close()


def tracker(params: Params, output: Path, step: int) -> tuple[Callable[[Row], object], Callable[[], object]]:
    """How a row reaches the tracker that `pretrain.loop.tracker` names, and how the tracker's run is closed.

    Raises:
        InputError: it is not installed.
    """
    name = params.pretrain.loop.tracker
    try:
        if name == "tensorboard":
            writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(output / name, purge_step=step)
            return lambda row: [writer.add_scalar(key, value, row["step"]) for key, value in row.items()], writer.close
        if name in ("trackio", "wandb"):  # one and the same interface
            package = importlib.import_module(name)
            package.init(project="tcore", name=params.run.name, config=params.model_dump(mode="json"))
            return package.log, package.finish
    except ImportError as error:
        raise InputError(
            f"pretrain.loop.tracker = {name} needs a package; run `pip install {name}`, or set it to none."
        ) from error
    return lambda row: None, lambda: None


def read_log(path: str | Path) -> pd.DataFrame:
    """The log as it stands now: one row per logged step, numbers only; empty where nothing has been logged yet.

    Raises:
        InputError: the file is damaged.
    """
    path = Path(path)
    with reading(path, "it is no training log: move it out of the folder"):
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        complete = text[: text.rfind("\n") + 1]  # a last line cut off by a crash is left out
        if not complete:
            return pd.DataFrame()
        log = pd.read_csv(io.StringIO(complete), dtype=float)
        return log.astype({"step": int, "samples": int})


# ---- what stops a training ------------------------------------------------------------------------------------------

SETTLING_STEPS = 2000
ROWS = 20  # rows of the log that a judgement is made on
SAME_FEATURES = 0.01  # feature_std; 1 = spread evenly over the sphere
NO_INFORMATION = 0.05  # share of ln K


def check_collapse(recent: Sequence[Row], settings: Pretrain, warned: bool = False) -> bool:
    """Refuse a teacher that says the same of every image for long; warn, once, of targets that say nearly nothing.

    The official initialisation makes nearly equal CLS tokens, which looks like collapse until the network has learnt
    something. So nothing is judged before the end of the warm-up; a run is stopped after 2,000 steps at the earliest, and
    warned after half of a shorter one.

    Args:
        recent: the log's last rows; the last `ROWS` are looked at.
        settings: for the number of prototypes, the schedules and the advice.
        warned: whether it has been warned of before.

    Returns:
        Whether it has been warned of now.

    Raises:
        TrainingStopped: names step, figures and remedies.
    """
    warmup = int(settings.optimiser.warmup_epochs * settings.optimiser.iterations_per_epoch)
    settled = max(warmup, min(SETTLING_STEPS, Schedules(settings).steps // 2))
    rows = [row for row in recent if row["step"] > settled][-ROWS:]
    if len(rows) < ROWS or settings.loss.dino == 0:
        return warned
    most, last = math.log(settings.head.prototypes), rows[-1]
    if any(row["information_cls_share"] > NO_INFORMATION for row in rows):
        return warned
    uniform = last["teacher_entropy"] > most / 2
    what = "uniform" if uniform else "those of one winning prototype"
    said = (
        f"the targets are nearly {what} (information_cls {last['information_cls']:.3f} and teacher_entropy "
        f"{last['teacher_entropy']:.3f} of at most {most:.3f} nats, feature_std {last['feature_std']:.1e}, over {ROWS} rows of "
        "the log)"
    )
    remedy = (
        "lower pretrain.optimiser.base_lr, teacher_temperature or momentum, or raise pretrain.loss.koleo"
        if uniform
        else "raise pretrain.optimiser.teacher_temperature, or lower pretrain.loss.centre_momentum or base_lr"
    )
    if rows[0]["step"] > SETTLING_STEPS and all(row["feature_std"] < SAME_FEATURES for row in rows):
        raise TrainingStopped(f"Training stopped at step {last['step']:.0f}: it has collapsed, {said}; {remedy}.")
    if not warned:
        warnings.warn(f"Step {last['step']:.0f}: {said}; little is learnt from them: {remedy}.", stacklevel=2)
    return True


def check_feasible(params: Params, world: int) -> None:
    """Refuse what can be known to fail before anything starts.

    Raises:
        InputError: names the setting.
    """
    loop = params.pretrain.loop
    own = loop.batch_size // (world * loop.accumulate)
    if own == 1 and params.pretrain.loss.koleo > 0:
        raise InputError(
            f"KoLeo looks for a nearest neighbour, but a micro-batch holds one sample of batch_size = {loop.batch_size}; "
            "lower pretrain.loop.accumulate, raise batch_size, or set pretrain.loss.koleo: 0.0."
        )


@contextmanager
def in_one_sentence(settings: Pretrain) -> Iterator[None]:
    """Inside, a full memory and a missing compiler are said in one sentence."""
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        loop = settings.loop
        if memory_is_full(error):
            more = "" if loop.activation_checkpointing else ", set pretrain.loop.activation_checkpointing: true"
            raise InputError(
                f"The device's memory is full with pretrain.loop.batch_size = {loop.batch_size} in {loop.accumulate} "
                f"micro-batches; raise pretrain.loop.accumulate to {2 * loop.accumulate}{more}, or use more devices."
            ) from error
        if isinstance(error, torch._dynamo.exc.BackendCompilerFailed):
            raise InputError(
                "pretrain.loop.compile is true, but torch.compile cannot generate code here "
                f"({reason(error.inner_exception)}); install a C compiler, or set it to false."
            ) from error
        raise


@contextmanager
def noted_signals() -> Iterator[list[int]]:
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


def signal_to_stop(noted: Sequence[int], device: torch.device, place: Place, row_due: bool) -> int:
    """The signal to stop for, or 0; the same on all ranks. GPUs are asked only when they are waited for anyway."""
    if place.world == 1:
        return noted[-1] if noted else 0
    if device.type == "cuda" and not row_due:
        return 0
    wanted = torch.tensor(noted[-1] if noted else 0, device=device)
    dist.all_reduce(wanted, dist.ReduceOp.MAX)
    return int(wanted)


@contextmanager
def sole_owner(output: Path) -> Iterator[None]:
    """Hold a run's folder against other trainings.

    Raises:
        InputError: another process holds it, or the folder cannot be written.
    """
    with writable(output):
        output.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output / ".training.lock")
    try:
        with writable(output):
            lock.acquire(timeout=PATIENCE)
    except Timeout as error:
        raise InputError(
            f"{output} is in use by another training; wait for it, or give this run another run.name."
        ) from error
    try:
        yield
    finally:
        lock.release()


# ---- checkpoints ----------------------------------------------------------------------------------------------------


def save(
    trainer: Trainer, params: Params, num_videos: int, folder: Path, step: int, place: Place, started: float
) -> None:
    """Write a checkpoint; only the leading rank does."""
    if not place.leads:
        return
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
    """Load the newest readable checkpoint, else the encoder that `pretrain.encoder.init` names. Returns the steps made."""
    content = checkpoints.load_newest(folder)
    if content is None:
        if (source := params.pretrain.encoder.init) is not None:
            trainer.model.start_from(str(resolve(source)) if resolve(source).exists() else source)
        return 0
    origin, model = str(checkpoints.path_of(folder, content["step"])), trainer.model
    checkpoints.refuse_other_run(content, params, num_videos, origin)
    checkpoints.load_official_weights(model, content, origin)
    with (
        reading(Path(origin), "it does not hold the state of this training: move it out of the folder"),
        torch.no_grad(),
    ):
        model.cls_centre.copy_(content["centres"]["cls"])
        model.patch_centre.copy_(content["centres"]["patch"])
        model.student.encoder.layout = model.teacher.encoder.layout = content["layout"]
        trainer.optimiser.load_state_dict(content["optimiser"])
        trainer.scaler.load_state_dict(content["scaler"])
    return int(content["step"])


# ---- several devices, and the command -------------------------------------------------------------------------------


def train(
    params: Params,
    *,
    resume: bool = True,
    progress: bool = True,
    on_log: Callable[[Row], None] | None = None,
) -> pd.DataFrame:
    """Train a profile into its run folder, on the index that notebook 00 made: what notebook 01 and the command call.

    With `pretrain.loop.devices` > 1 in as many processes on this machine, one per GPU (on a CPU they share the cores);
    they end with this one. Arguments, result and errors as of `pretrain`.
    """
    devices = params.pretrain.loop.devices
    if devices == 1 or place_of().world > 1:
        if params.run.threads is not None:
            torch.set_num_threads(max(1, params.run.threads // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
        return pretrain(
            params, open_index(params.data), run_folder(params), resume=resume, progress=progress, on_log=on_log
        )
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if params.run.device != "cpu" and available and devices > available:
        raise InputError(f"pretrain.loop.devices = {devices}, but this machine has {available} GPUs; lower it.")
    messages = torch.multiprocessing.get_context("spawn").SimpleQueue()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = torch.multiprocessing.spawn(_rank, (params, port, resume, messages), nprocs=devices, join=False)
    bar = tqdm(
        total=Schedules(params.pretrain).steps, unit="step", desc="pretraining", file=sys.stdout, disable=not progress
    )
    try:
        with bar:
            ended = False
            while not ended:
                ended = ranks.join(timeout=0.2)
                _hand_over(messages, bar, on_log)
    except (torch.multiprocessing.ProcessExitedException, torch.multiprocessing.ProcessRaisedException):
        _hand_over(messages, bar, on_log)  # a sentence of ours, if there is one
        raise
    finally:
        for process in ranks.processes:  # on Ctrl-C: they write a checkpoint and end
            process.terminate()
            process.join()
    return read_log(run_folder(params) / LOG_NAME)


def _hand_over(messages: Any, bar: "tqdm[Any]", on_log: Callable[[Row], None] | None) -> None:
    """Rows that a rank has logged, to the bar and to `on_log`; its error or stop is raised here."""
    while not messages.empty():
        row = messages.get()
        if isinstance(row, InputError):
            raise row
        if isinstance(row, tuple):
            raise Interrupted(*row)
        bar.n = row["step"]
        bar.set_postfix_str(f"{row['samples_per_second']:.1f} samples/s, loss {row['total']:.4f}")
        if on_log is not None:
            on_log(row)


def _rank(rank: int, params: Params, port: int, resume: bool, messages: Any) -> NoReturn:
    """One of the processes that `train` starts."""
    world = str(params.pretrain.loop.devices)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(max(1, (params.run.threads or cores()) // int(world)))
    try:
        index = open_index(params.data)
        on_log = messages.put if rank == 0 else None
        pretrain(params, index, run_folder(params), resume=resume, progress=False, on_log=on_log)
    except InputError as error:
        messages.put(InputError(str(error)))
        sys.exit(2)
    except Interrupted as stop:
        if rank == 0:
            messages.put((str(stop), stop.exit_code - 128))
    sys.exit(0)


def pretrain_command(
    profile: str, *, fresh: bool = False, changes: Annotated[tuple[str, ...], cyclopts.Parameter(name="--set")] = ()
) -> int:
    """Train a profile on the index that notebook 00 made; also under torchrun.

    Args:
        profile: a parameter file, or the name of one in params/.
        fresh: start anew instead of resuming.
        changes: replace one setting, section.key=value; may be repeated.

    Returns:
        0; 130 or 143 where a signal stopped it.
    """
    try:
        train(load(profile, changes), resume=not fresh, progress=place_of().leads)
    except Interrupted as stop:
        if place_of().leads:
            print(f"tcore: {stop}", file=sys.stderr)
        return stop.exit_code
    return 0
