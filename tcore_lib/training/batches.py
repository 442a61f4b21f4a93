"""Micro-batches for the training loop: frames from the workers, with everything random about them already drawn."""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tcore_lib.data.sandwich import Sample, SandwichDataset, Videos, collate, counters
from tcore_lib.data.views import ViewParams, draw_views
from tcore_lib.errors import InputError
from tcore_lib.files import reason
from tcore_lib.machine import Place, cores
from tcore_lib.params import Params
from tcore_lib.training.draws import Draws, draw
from tcore_lib.training.schedules import Schedules
from tcore_lib.training.step import Trainer


class MicroBatch(NamedTuple):
    """B samples on the host. What the device needs is `frames` and `draws`; `views` steers how crops are cut there."""

    frames: Tensor  # uint8 (B, 3, 3, H, W): roles past, current, future
    views: ViewParams
    draws: Draws
    counters: Tensor  # (B,) int64


class Collate:
    """Stacks samples and draws their views, masks and stochastic depth; runs in the worker."""

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
    """Micro-batches of this rank for steps first_step ... last_step - 1, in order."""
    loop = params.pretrain.loop
    split = (loop.batch_size, place.rank, place.world, loop.accumulate)
    workers = worker_count(loop.workers, device, place)
    settings: dict[str, Any] = {}
    if workers:
        settings |= {"num_workers": workers, "persistent_workers": True, "prefetch_factor": 4}
        # Fork and threads do not go together. The server imports once what each worker would import for ten seconds.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        settings["multiprocessing_context"] = context
    return DataLoader(
        SandwichDataset(index, params.pretrain.sandwich, params.run.seed),
        batch_sampler=(batch for step in range(first_step, last_step) for batch in counters(step, *split)),
        collate_fn=Collate(params),
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
