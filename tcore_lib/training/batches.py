"""Micro-batches for the training loop: frames from the workers, with everything random about them already drawn."""

import multiprocessing
import multiprocessing.connection
import os
import re
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tcore_lib.data.sandwich import CounterBatches, Sample, SandwichDataset, Videos, collate, loader_settings
from tcore_lib.data.views import ViewParams, draw_views
from tcore_lib.errors import InputError
from tcore_lib.machine.distributed import Place
from tcore_lib.machine.workpool import cores
from tcore_lib.params import Params
from tcore_lib.training.draws import Plan, draw_plan
from tcore_lib.training.schedules import Schedules


@dataclass(frozen=True)
class MicroBatch:
    """B samples on the host. What the device needs is `frames` and `plan`; `views` steers how crops are cut there."""

    frames: Tensor  # uint8 (B, 3, 3, H, W): roles past, current, future
    views: ViewParams
    plan: Plan
    counters: Tensor  # (B,) int64

    def pin_memory(self) -> "MicroBatch":
        """The same in pinned memory; a DataLoader calls it."""
        return MicroBatch(self.frames.pin_memory(), self.views, self.plan.pin_memory(), self.counters)


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
        plan = draw_plan(self.settings, self.seed, step, counters, self.schedules.at(step))
        return MicroBatch(batch["frames"], views, plan, batch["counter"])


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
        InputError: a file cannot be read, in the reader's own words; or a worker process died, with how it ended.
    """
    try:
        yield from source
    except InputError as error:  # torch puts the worker's whole traceback into the message, the sentence last
        last = str(error).strip().splitlines()[-1]
        raise InputError(last.removeprefix(f"{InputError.__module__}.{InputError.__name__}: ")) from error
    except (RuntimeError, EOFError, OSError) as error:  # the last two where it died while it handed over a batch
        if isinstance(error, RuntimeError) and not re.search(r"DataLoader worker \(pid.*?\) (is|exited) ", str(error)):
            raise
        workers = getattr(getattr(source, "_iterator", None), "_workers", [])
        multiprocessing.connection.wait([worker.sentinel for worker in workers], timeout=2.0)
        codes = [worker.exitcode for worker in workers if worker.exitcode]
        if not (codes or isinstance(error, RuntimeError)):
            raise
        how = f"was killed by {signal.Signals(-codes[0]).name}" if codes and codes[0] < 0 else "ended by itself"
        raise InputError(
            f"A process that loads data {how}, which mostly means that memory (or /dev/shm) ran out; lower "
            "pretrain.loop.workers and run the same command again, which continues from the last checkpoint."
        ) from error
