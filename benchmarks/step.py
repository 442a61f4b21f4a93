"""The training step against a plain transcription of METHOD sections 5 to 7, in one run on one device.

Question: what does one optimiser step cost, part by part, and what is gained over computing every sentence of the method
as it stands (benchmarks/plain_step.py: all crops through everything, attention weights, CLS through the head twice, logits
held, losses one by one, AdamW and EMA tensor by tensor)?

Rounds alternate, so that a busy machine slows all; medians are written to results/benchmarks/step-<device>.json.
Views are random numbers: making them is benchmarks/views.py. Target: at least 1.5 times the samples/s.

    python benchmarks/step.py [--device cuda] [--arch vit_base] [--batch 64] [--precision bf16] [--rounds 5]
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import plain_step
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tcore_lib import files, params, runs
from tcore_lib.machine import Meter
from tcore_lib.training import optimiser as optimisers
from tcore_lib.training.draws import draw
from tcore_lib.training.schedules import Hyper, Schedules
from tcore_lib.training.step import AUTOCAST, Trainer

ROOT = Path(__file__).parents[1]
STEP = 20_000  # after the warm-up, prototypes no longer frozen
HALF_RATE = {"NVIDIA H200": 989e12, "NVIDIA H100 80GB HBM3": 989e12, "NVIDIA A100-SXM4-80GB": 312e12}  # dense bf16


def random_views(pretrain: params.Pretrain, device: torch.device, dtype: torch.dtype, crops: int) -> dict[str, Tensor]:
    """Views of a batch; past and future hold `crops` crops, those of masked crops in training."""
    views, batch = pretrain.views, pretrain.loop.batch_size
    generator = torch.Generator(device).manual_seed(0)

    def noise(number: int, side: int) -> Tensor:
        return torch.randn(number, 3, side, side, device=device, dtype=dtype, generator=generator)

    sizes = {"current": 2 * batch, "past": crops, "future": crops}
    large = {name: noise(number, views.global_size) for name, number in sizes.items()}
    return large | {"local": noise(views.num_local * batch, views.local_size)}


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


@contextmanager
def timed_parts(trainer: Trainer, meter: Meter, spent: dict[str, float]) -> Iterator[None]:
    """Inside, the parts of a step are timed one by one (which makes a GPU wait between them) and added up in `spent`."""
    model = trainer.model
    owners: dict[str, tuple[Any, str]] = {
        "teacher": (model.teacher.encoder, "forward"),
        "student on auxiliary crops": (model, "_auxiliary"),
        "student on global and local crops": (model, "_encode"),
        "decoder": (model.decoder, "forward"),
        "DINO losses": (model, "_dino"),
        "patch losses": (model, "_patch"),
        "backward": (Tensor, "backward"),
    }
    originals = {part: getattr(*place) for part, place in owners.items()}

    def timed(part: str) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            with meter(part):
                found = originals[part](*args, **named)
            spent[part] = spent.get(part, 0.0) + meter.seconds[part][-1]
            return found

        return call

    for part, (owner, name) in owners.items():
        setattr(owner, name, timed(part))
    try:
        yield
    finally:
        for part, (owner, name) in owners.items():
            setattr(owner, name, originals[part]) if owner is Tensor else delattr(owner, name)


def parts_of(trainer: Trainer, batch: Any, hyper: Hyper, rounds: int) -> dict[str, float]:
    """Median seconds of each part of a step; `rest` is what is in none of them."""
    meter, found = Meter(trainer.device), []
    for _ in range(rounds):
        spent: dict[str, float] = {}
        with timed_parts(trainer, meter, spent), meter("gradients"):
            trainer.gradients([batch], hyper)
        with meter("update"):
            trainer.update(hyper)
        rest = meter.seconds["gradients"][-1] - sum(spent.values())
        found.append(spent | {"rest": rest, "clip, AdamW, centres, EMA": meter.seconds["update"][-1]})
    return {part: round(statistics.median(spent[part] for spent in found), 4) for part in found[0]}


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Multiply-add operations (counted as two) per second of a large square product, best of several."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    meter = Meter(device)
    for _ in range(6):
        with meter("product"):
            a @ b
    return 2 * side**3 / min(meter.seconds["product"])


def flops_of(step: Callable[[], object]) -> int:
    """Operations of all matrix products of a step, attention included."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def measure(args: argparse.Namespace, pretrain: params.Pretrain) -> dict[str, Any]:
    """All figures."""
    device, hyper = torch.device(args.device), Schedules(pretrain).at(STEP)
    ours, plain = (Trainer(pretrain, 0, device) for _ in range(2))
    draws = draw(pretrain, 0, STEP, range(STEP * args.batch, (STEP + 1) * args.batch), hyper).to(device)
    few = random_views(pretrain, device, ours.view_dtype, len(draws.crops))
    full = random_views(pretrain, device, ours.view_dtype, 2 * args.batch)
    stepper = torch.optim.AdamW(
        plain.optimiser.param_groups, lr=0.0, betas=pretrain.optimiser.betas, foreach=False, fused=False
    )

    def plainly() -> None:
        stepper.zero_grad()
        with torch.autocast(device.type, dtype=AUTOCAST.get(ours.precision), enabled=ours.precision in AUTOCAST):
            rate = pretrain.encoder.drop_path
            total, _ = plain_step.losses(plain.model, full, draws.masks, hyper.teacher_temperature, rate)
        plain.scaler.scale(total).backward()
        plain.scaler.unscale_(stepper)
        plain_update(plain, stepper, hyper)

    variants: dict[str, Callable[[], Any]] = {"ours": lambda: ours.step([(few, draws)], hyper), "plain": plainly}
    counted = ours
    if ours.model.compiled:
        loop = pretrain.loop.model_copy(update={"compile": False})
        counted = eager = Trainer(pretrain.model_copy(update={"loop": loop}), 0, device)
        variants["ours, not compiled"] = lambda: eager.step([(few, draws)], hyper)
    meter, peaks, first = Meter(device), {}, {}
    for name, step in list(variants.items()):  # the first step makes memory pools, compiled code and AdamW's state
        try:
            with meter(f"first, {name}"):
                step()
            first[name] = round(meter.seconds[f"first, {name}"][-1], 1)
        except torch.OutOfMemoryError:  # the plain way holds what ours does not
            del variants[name]
    for _ in range(args.rounds):
        for name, step in variants.items():
            resting = meter.in_use()
            meter.reset_peak()
            with meter(name):
                step()
            peaks[name] = max(peaks.get(name, 0), meter.peak() - resting)
    seconds = {name: meter.median(name) for name in variants}
    if args.profile is not None:
        write_profile(variants["ours"], meter, args.profile)
    parts, flops = (
        parts_of(ours, (few, draws), hyper, args.rounds),
        flops_of(lambda: counted.step([(few, draws)], hyper)),
    )
    dtype = AUTOCAST.get(ours.precision, ours.view_dtype)
    rate, achieved = matrix_rate(device, dtype), flops / seconds["ours"]
    nominal = HALF_RATE.get(torch.cuda.get_device_name()) if device.type == "cuda" and dtype.itemsize == 2 else None
    what = f"{args.arch}, K = {args.prototypes}, batch {args.batch}, {ours.precision}"
    return {
        "what": f"{what}, {len(draws.patches)} masked patches",
        "threads": torch.get_num_threads(),
        "samples_per_second": {name: round(args.batch / value, 3) for name, value in seconds.items()},
        "seconds_per_step": {name: round(value, 4) for name, value in seconds.items()},
        "seconds_of_first_step": first,  # with the time to compile
        "speed_up": round(seconds["plain"] / seconds["ours"], 2) if "plain" in seconds else None,
        "memory_of_a_step_gb": {name: round(value / 1e9, 2) for name, value in peaks.items()},
        "seconds_per_part": parts,
        "teraflop_per_step": round(flops / 1e12, 3),
        "share_of_measured_matrix_rate": round(achieved / rate, 3),
        "measured_matrix_rate_tflops": round(rate / 1e12, 2),
        "share_of_nominal_matrix_rate": None if nominal is None else round(achieved / nominal, 3),
        "compiled": ours.model.compiled,
        "rounds": args.rounds,
        "target": "speed_up >= 1.5",
    }


def write_profile(step: Callable[[], object], meter: Meter, path: Path) -> None:
    """One step's operations and kernels by their own time, as torch.profiler counts it."""
    with torch.profiler.profile() as profile:
        step()
        meter.wait()
    key = "self_cuda_time_total" if meter.device.type == "cuda" else "self_cpu_time_total"
    files.write_text(path, profile.key_averages().table(sort_by=key, row_limit=70, max_name_column_width=80))


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
    torch.set_num_threads(args.threads or torch.get_num_threads())
    loop = {"batch_size": args.batch, "precision": args.precision, "compile": args.compile}
    sections = {"encoder": {"arch": args.arch}, "head": {"prototypes": args.prototypes}, "loop": loop}
    wanted, started = params.parse({"pretrain": sections, "run": {"device": args.device}}, "step.py"), time.time()
    figures = measure(args, wanted.pretrain)
    device = torch.cuda.get_device_name().lower().replace(" ", "-") if on_gpu else "cpu"
    name = f"step-{device}{'' if args.arch == 'vit_small' else '-' + args.arch}.json"
    path = args.output or ROOT / "results" / "benchmarks" / name
    files.write_json(path, figures | {"provenance": runs.provenance(wanted, started)})
    print("\n".join(f"{key}: {value}" for key, value in figures.items()), f"written to {path}", sep="\n")


if __name__ == "__main__":
    main()
