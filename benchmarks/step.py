"""The training step against a plain transcription of METHOD sections 5 to 7, in one run on one device.

Question: what does one optimiser step cost, part by part, and what is gained over computing every sentence of the method
as it stands (tests/plain_step.py: all crops through everything, attention weights, CLS through the head twice, logits
held, losses one by one, AdamW and EMA tensor by tensor)?

Where a CPU has bf16, ours is timed in bf16 too: the same step, not the same digits.
Rounds alternate, so that a busy machine slows all; medians are written to results/benchmarks/step-<device>.json.
Views are random numbers: making them is benchmarks/views.py. Target: at least 1.5 times the samples/s.

    python benchmarks/step.py [--device cuda] [--arch vit_base] [--batch 64] [--precision bf16] [--rounds 5]
"""

import argparse
import ctypes
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
import plain_step  # noqa: E402

from tcore_lib import files, params, runs  # noqa: E402
from tcore_lib.machine import Meter  # noqa: E402
from tcore_lib.training import optimiser as optimisers  # noqa: E402
from tcore_lib.training.draws import Plan, draw_plan  # noqa: E402
from tcore_lib.training.schedules import Hyper, Schedules  # noqa: E402
from tcore_lib.training.step import AUTOCAST, Trainer  # noqa: E402

STEP = 20_000  # after the warm-up, prototypes no longer frozen
HALF_RATE = {"NVIDIA H200": 989e12, "NVIDIA H100 80GB HBM3": 989e12, "NVIDIA A100-SXM4-80GB": 312e12}  # dense bf16


def settings(args: argparse.Namespace) -> params.Params:
    """The K400 row with another batch, encoder and precision."""
    loop = {"batch_size": args.batch, "precision": args.precision, "compile": args.compile}
    sections = {"encoder": {"arch": args.arch}, "head": {"prototypes": args.prototypes}, "loop": loop}
    return params.parse({"pretrain": sections, "run": {"device": args.device}}, "benchmarks/step.py")


def random_views(pretrain: params.Pretrain, device: torch.device, dtype: torch.dtype, crops: int) -> dict[str, Tensor]:
    """Views of a batch; past and future hold the crops of masked crops only, as in training."""
    views, batch = pretrain.views, pretrain.loop.batch_size
    large, small = (3, views.global_size, views.global_size), (3, views.local_size, views.local_size)
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype, generator=generator)

    return {
        "current": draw(2 * batch, *large),
        "past": draw(2 * batch if crops < 0 else crops, *large),
        "future": draw(2 * batch if crops < 0 else crops, *large),
        "local": draw(views.num_local * batch, *small),
    }


def plain_update(trainer: Trainer, stepper: torch.optim.AdamW, hyper: Hyper) -> None:
    """Clip, step and average tensor by tensor; the centres have already moved."""
    for module in trainer.model.trained().values():
        torch.nn.utils.clip_grad_norm_(module.parameters(), trainer.settings.optimiser.clip_grad, foreach=False)
    optimisers.apply(stepper, hyper)
    stepper.step()
    with torch.no_grad():
        pairs = zip(trainer.model.teacher.parameters(), trainer.model.student.parameters(), strict=True)
        for teacher, student in pairs:
            teacher.mul_(hyper.momentum).add_((1 - hyper.momentum) * student)


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 by itself."""
    info = Path("/proc/cpuinfo")
    return info.exists() and any(flag in info.read_text() for flag in ("avx512_bf16", "amx_bf16"))


def give_back() -> None:
    """Memory that is free inside this process goes back to the system, where the C library can do that."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


class Parts:
    """Seconds of each part of a step by itself: what runs inside another part is not counted there."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.steps: list[dict[str, float]] = []
        self._inside: list[float] = []  # seconds of nested parts, for each open one

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time what happens inside."""
        self.meter.wait()
        start = time.perf_counter()
        self._inside.append(0.0)
        yield
        self.meter.wait()
        spent = time.perf_counter() - start
        own = spent - self._inside.pop()
        if self._inside:
            self._inside[-1] += spent
        self.steps[-1][name] = self.steps[-1].get(name, 0.0) + own

    def medians(self) -> dict[str, float]:
        """Of each part over the steps."""
        return {name: statistics.median(step.get(name, 0.0) for step in self.steps) for name in self.steps[0]}


@contextmanager
def timed_parts(trainer: Trainer, parts: Parts) -> Iterator[None]:
    """Inside, the parts of a step are timed one by one (which makes a GPU wait between them)."""
    model = trainer.model
    originals: list[tuple[Any, str, Any]] = []

    def patch(owner: Any, attribute: str, part: str) -> None:
        original = getattr(owner, attribute)
        originals.append((owner, attribute, original))

        def timed(*args: Any, **named: Any) -> Any:
            with parts(part):
                return original(*args, **named)

        setattr(owner, attribute, timed)

    patch(model, "_teach", "teacher")
    patch(model, "_auxiliary", "student on auxiliary crops")
    patch(model, "_dino", "DINO losses with their gradient")
    patch(model, "_patch", "patch losses with their gradient")
    patch(model, "_koleo", "KoLeo")
    patch(model.student, "project", "student head")
    patch(model.student.encoder, "embed", "embedding")
    if model.compiled:  # a compiled block is one piece
        patch(model.student.encoder, "tokens", "student blocks, forward")
    else:
        for block in model.student.encoder.blocks:
            patch(block.attn, "forward", "student attention, forward")
            patch(block.mlp, "forward", "student MLP, forward")
    if model.decoder is not None:
        patch(model.decoder, "forward", "decoder")
    patch(Tensor, "backward", "backward")
    try:
        yield
    finally:
        for owner, attribute, original in originals:
            setattr(owner, attribute, original) if owner is Tensor else delattr(owner, attribute)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Multiply-add operations (counted as two) per second of a large square product, best of several."""
    side = 8192 if device.type == "cuda" else 2048
    layer = torch.nn.Linear(side, side, bias=False, device=device, dtype=dtype)
    x = torch.randn(side, side, device=device).to(dtype)
    meter = Meter(device)
    with torch.no_grad():
        for _ in range(6):
            with meter("product"):
                layer(x)
    return 2 * side**3 / min(meter.seconds["product"])


def _flops_of_linear(x: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    return int(2 * x[-1] * math.prod(out_shape))


def flops_of(step: Callable[[], object]) -> int:
    """Operations of all matrix products of a step, attention included."""
    known = {}
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):  # torch counts its own products only
        known[torch.ops.mkldnn._linear_pointwise] = _flops_of_linear
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=known) as counter:
        step()
    return counter.get_total_flops()


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    wanted, device = settings(args), torch.device(args.device)
    pretrain = wanted.pretrain
    hyper = Schedules(pretrain).at(STEP)
    counters = range(STEP * args.batch, (STEP + 1) * args.batch)
    ours, plain = (Trainer(pretrain, 0, device) for _ in range(2))
    stepper = optimisers.build(plain.model.trained(), pretrain.optimiser, pretrain.encoder.shape[1])
    stepper = torch.optim.AdamW(
        stepper.param_groups, lr=0.0, betas=pretrain.optimiser.betas, foreach=False, fused=False
    )
    plan: Plan = draw_plan(pretrain, 0, STEP, counters, hyper).to(device)
    few = random_views(pretrain, device, ours.view_dtype, len(plan.crops))
    full = random_views(pretrain, device, ours.view_dtype, -1)
    meter, peaks = Meter(device), dict.fromkeys(("ours", "plain"), 0)

    def plain_step_once() -> None:
        stepper.zero_grad()
        with torch.autocast(device.type, dtype=AUTOCAST.get(ours.precision), enabled=ours.precision in AUTOCAST):
            rate = pretrain.encoder.drop_path
            total, _ = plain_step.losses(plain.model, full, plan.masks, hyper.teacher_temperature, rate)
        plain.scaler.scale(total).backward()
        plain.scaler.unscale_(stepper)
        plain_update(plain, stepper, hyper)

    variants: dict[str, Callable[[], Any]] = {
        "ours": lambda: ours.step([(few, plan)], hyper),
        "plain": plain_step_once,
    }
    trainers = [ours, plain]

    def also(name: str, **loop: Any) -> None:
        """One more variant: ours with another setting of the loop."""
        changed = pretrain.loop.model_copy(update=loop)
        trainer = Trainer(pretrain.model_copy(update={"loop": changed}), 0, device)
        trainers.append(trainer)
        variants[name] = lambda: trainer.step([(few, plan)], hyper)
        peaks[name] = 0

    if ours.model.compiled:
        also("ours, not compiled", compile=False)
    if device.type == "cpu" and ours.precision == "fp32" and cpu_has_bf16():
        also("ours in bf16", precision="bf16")
    # the first step makes memory pools, compiled code and AdamW's state; all variants begin with the same weights
    first, seconds_of_first = {}, {}
    for name, step in list(variants.items()):
        start = time.perf_counter()
        try:
            first[name] = step()
        except torch.OutOfMemoryError:  # the plain way holds what ours does not
            del variants[name]
            continue
        meter.wait()
        seconds_of_first[name] = round(time.perf_counter() - start, 1)
    totals = {name: float(values["total"]) for name, values in first.items() if values is not None}
    for _ in range(args.rounds):
        for name, step in variants.items():
            for trainer in trainers:
                trainer.optimiser.zero_grad(set_to_none=True)
            give_back()
            resting = meter.in_use()  # weights and optimiser, but neither activations nor gradients
            meter.reset_peak()
            step()  # a step begins with memory that the one before gave back, as in a training
            peaks[name] = max(peaks[name], meter.peak() - resting)
            with meter(name):
                step()
    if args.profile is not None:
        write_profile(variants["ours"], meter, args.profile)
    parts = Parts(Meter(device))
    for _ in range(args.rounds):
        parts.steps.append({})
        with timed_parts(ours, parts), parts("rest of forward"):
            ours.gradients([(few, plan)], hyper)
        with parts("clip, AdamW, centres, EMA"):
            ours.update(hyper)
    seconds = {name: meter.median(name) for name in variants}
    counted = variants["ours, not compiled" if ours.model.compiled else "ours"]
    figures = report(args, ours, seconds, peaks, parts.medians(), flops_of(counted), len(plan.tokens))
    figures["seconds_of_first_step"] = seconds_of_first  # with the time to compile
    figures["first_loss"] = {name: round(value, 5) for name, value in totals.items()}
    if "ours in bf16" in variants and "plain" in variants:
        figures["speed_up_in_bf16"] = round(seconds["plain"] / seconds["ours in bf16"], 2)
    return figures


def write_profile(step: Callable[[], object], meter: Meter, path: Path) -> None:
    """One step's operations and kernels by their own time, as torch.profiler counts it."""
    with torch.profiler.profile() as profile:
        step()
        meter.wait()
    key = "self_cuda_time_total" if meter.device.type == "cuda" else "self_cpu_time_total"
    files.write_text(path, profile.key_averages().table(sort_by=key, row_limit=70, max_name_column_width=80))


def report(
    args: argparse.Namespace,
    trainer: Trainer,
    seconds: dict[str, float],
    peaks: dict[str, int],
    parts: dict[str, float],
    flops: int,
    masked: int,
) -> dict[str, Any]:
    """The figures as plain values."""
    device = trainer.device
    dtype = AUTOCAST.get(trainer.precision, trainer.view_dtype)
    rate = matrix_rate(device, dtype)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    nominal = HALF_RATE.get(name) if dtype != torch.float32 else None
    achieved = flops / seconds["ours"]
    return {
        "what": f"{args.arch}, K = {args.prototypes}, batch {args.batch}, {trainer.precision}, {masked} masked patches",
        "threads": torch.get_num_threads(),
        "samples_per_second": {key: round(args.batch / value, 3) for key, value in seconds.items()},
        "seconds_per_step": {key: round(value, 4) for key, value in seconds.items()},
        "speed_up": round(seconds["plain"] / seconds["ours"], 2) if "plain" in seconds else None,
        "memory_of_a_step_gb": {key: round(value / 1e9, 2) for key, value in peaks.items()},
        "seconds_per_part": {key: round(value, 4) for key, value in parts.items()},
        "teraflop_per_step": round(flops / 1e12, 3),
        "share_of_measured_matrix_rate": round(achieved / rate, 3),
        "measured_matrix_rate_tflops": round(rate / 1e12, 2),
        "share_of_nominal_matrix_rate": None if nominal is None else round(achieved / nominal, 3),
        "compiled": trainer.model.compiled,
        "rounds": args.rounds,
        "target": "speed_up >= 1.5",
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--arch", default="vit_small", choices=("vit_tiny", "vit_small", "vit_base"))
    parser.add_argument("--batch", type=int, default=None, help="samples; default 256 on a GPU, 8 on a CPU")
    parser.add_argument("--prototypes", type=int, default=65536)
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--profile", type=Path, default=None, help="also write the kernels of one step to that file")
    parser.add_argument("--output", type=Path, default=None)
    args = parser.parse_args()
    on_gpu = args.device.startswith("cuda")
    args.batch = args.batch or (256 if on_gpu else 8)
    if args.threads:
        torch.set_num_threads(args.threads)
    started = time.time()
    figures = measure(args)
    device = torch.cuda.get_device_name().lower().replace(" ", "-") if on_gpu else "cpu"
    default = (
        ROOT / "results" / "benchmarks" / f"step-{device}{'' if args.arch == 'vit_small' else '-' + args.arch}.json"
    )
    path = args.output or default
    files.write_json(path, figures | {"provenance": runs.provenance(settings(args), started)})
    for name, value in figures.items():
        print(f"{name}: {value}")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
