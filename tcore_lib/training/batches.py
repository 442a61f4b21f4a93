"""Micro-batches for the training loop: frames from the workers, with everything random about them already drawn."""

import multiprocessing
import os
import re
from collections.abc import Iterator, Sequence
from functools import partial
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


class MicroBatch(NamedTuple):
    """B samples on the host: what `Trainer.inputs` cuts crops from."""

    frames: Tensor  # uint8 (B, 3, 3, H, W): roles past, current, future
    views: ViewParams
    draws: Draws


def stacked(params: Params, samples: Sequence[Sample]) -> MicroBatch:
    """Samples of one step with their views, masks and stochastic depth; runs in the worker."""
    batch, settings = collate(samples), params.pretrain
    counters = batch["counter"].tolist()
    views = draw_views(params.run.seed, counters, batch["sizes"].numpy(), settings.views)
    draws = draw(settings, params.run.seed, counters[0] // settings.loop.batch_size, counters)
    return MicroBatch(batch["frames"], views, draws)


def worker_count(wanted: int | None, device: torch.device, place: Place) -> int:
    """Loader processes of this rank, where none are asked for: on a GPU the machine's cores shared out among its ranks."""
    if wanted is not None or device.type == "cpu":
        return wanted or 0  # on a CPU they would only compete for it
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", torch.cuda.device_count() if place.world > 1 else 1))
    return max(1, min(16, cores() // max(1, ranks) - 1))


def loader(
    params: Params, index: Videos, place: Place, device: torch.device, first_step: int, last_step: int
) -> DataLoader:
    """Micro-batches of this rank for steps first_step ... last_step - 1, in order."""
    loop = params.pretrain.loop
    split = (loop.batch_size, place.rank, place.world, loop.accumulate)
    settings: dict[str, Any] = {}
    if workers := worker_count(loop.workers, device, place):
        # Fork and threads do not go together. The server imports once what each worker would import for ten seconds.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        settings = {"num_workers": workers, "persistent_workers": True, "prefetch_factor": 4}
        settings["multiprocessing_context"] = context
    return DataLoader(
        SandwichDataset(index, params.pretrain.sandwich, params.run.seed),
        batch_sampler=(batch for step in range(first_step, last_step) for batch in counters(step, *split)),
        collate_fn=partial(stacked, params),
        pin_memory=device.type == "cuda",
        **settings,
    )


def sentence_in(error: BaseException) -> InputError | None:
    """The `InputError` of another process, whose traceback torch makes a message: our sentence is its last line."""
    found = re.search(r"^tcore_lib\.[\w.]+: (.*)\s*\Z", str(error), re.MULTILINE)
    return InputError(found[1]) if found else None


def micro_batches(source: DataLoader) -> Iterator[MicroBatch]:
    """The loader's micro-batches; an unreadable file, or a worker process that died, is said in one sentence."""
    try:
        yield from source
    except InputError as error:
        raise sentence_in(error) or error from None
    except (RuntimeError, ConnectionError, EOFError) as error:
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise InputError(
            f"A process that loads data died ({reason(error)}), which mostly means that memory (or /dev/shm) ran out; lower "
            "pretrain.loop.workers and run the same command again, which continues from the last checkpoint."
        ) from error
