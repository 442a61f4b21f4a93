"""One optimiser step, on one device or as one rank of many (docs/method.md sections 5 to 7)."""

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from tcore_lib.data.views import ViewParams, make_views
from tcore_lib.params import Pretrain
from tcore_lib.training import optimiser as optimisers
from tcore_lib.training.draws import Draws
from tcore_lib.training.schedules import Hyper
from tcore_lib.training.tcore import TCoRe


class Trainer:
    """The bare `TCoRe`, its optimiser, and the step that moves them. With a process group every rank has one.

    `precision` is the loop's; `auto` has become bf16 on a GPU that has it, else fp32.
    """

    def __init__(self, settings: Pretrain, seed: int, device: torch.device) -> None:
        self.settings, self.device, self.precision = settings, device, settings.loop.precision
        if self.precision == "auto":
            has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
            self.precision = "bf16" if has_bf16 else "fp32"
        wide = torch.float64 if self.precision == "fp64" else torch.float32
        self.view_dtype = torch.bfloat16 if self.precision == "bf16" and device.type == "cuda" else wide
        self.model = TCoRe(settings, seed).to(device, wide).train()
        if settings.loop.compile and device.type == "cuda":
            self.model.compile_parts()
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self._module: Any = self.model
        if self.world > 1:
            self._module = DistributedDataParallel(self.model, broadcast_buffers=False, gradient_as_bucket_view=True)
        self.optimiser = optimisers.build(self.model.trained(), settings.optimiser, self.model.student.encoder.depth)
        self._counts = (0, 0)  # samples and masked patches of the current step, over all ranks

    def autocast(self) -> torch.autocast:
        """Inside, matrix products are in half precision where `precision` is bf16."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def inputs(self, frames: Tensor, views: ViewParams, draws: Draws) -> tuple[dict[str, Tensor], Draws]:
        """A `MicroBatch` -> its views and draws on the device; auxiliary crops only where a masked crop needs them."""
        needed, used = draws.masks.any(1).numpy(), self.model.auxiliary_frames
        auxiliary = {name: needed if name in used else np.zeros_like(needed) for name in ("past", "future")}
        options: dict[str, Any] = {"dtype": self.view_dtype, "auxiliary": auxiliary, "fused": self.model.compiled}
        frames = frames.to(self.device, non_blocking=True)
        return make_views(frames, views, self.settings.views, **options), draws.to(self.device)

    def gradients(self, micro_batches: Iterable[tuple[Mapping[str, Tensor], Draws]], hyper: Hyper) -> dict[str, Tensor]:
        """Forward and backward over `loop.accumulate` micro-batches; the gradients stand in `.grad`.

        The sum over micro-batches and ranks of what the model returns is the loss of the global batch, so nothing is
        divided by their number; DistributedDataParallel averages gradients, so every rank multiplies by theirs. Returns, on
        the device, `total` and each loss term: this rank's shares of the global values.
        """
        self.optimiser.zero_grad(set_to_none=True)
        values: dict[str, Tensor] = {}
        for i, (views, draws) in enumerate(micro_batches, 1):
            with self._module.no_sync() if self.world > 1 and i < self.settings.loop.accumulate else nullcontext():
                with self.autocast():
                    total, terms = self._module(views, draws, hyper.teacher_temperature)
                (total * self.world).backward()
            for name, value in ({"total": total.detach()} | terms).items():
                values[name] = values[name] + value if name in values else value
            self._counts = (draws.samples, draws.masked)
        return values

    def update(self, hyper: Hyper) -> dict[str, Tensor]:
        """Clip, AdamW, centres, teacher. Returns `grad_norm_<module>` before clipping, the same on every rank."""
        norms = optimisers.clip(self.model.trained(), self.settings.optimiser.clip_grad)
        optimisers.apply(self.optimiser, hyper)
        self.optimiser.step()
        self.model.update_centres(*self._counts)
        optimisers.ema(self.model.teacher.parameters(), self.model.student.parameters(), hyper.momentum)
        return {f"grad_norm_{name}": norm for name, norm in norms.items()}

    def step(self, micro_batches: Iterable[tuple[Mapping[str, Tensor], Draws]], hyper: Hyper) -> dict[str, Tensor]:
        """`gradients`, then `update`: one optimiser step. Returns both their values."""
        return self.gradients(micro_batches, hyper) | self.update(hyper)
