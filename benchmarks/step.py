"""The training step against a plain transcription of docs/method.md sections 5 to 7, in one run on one device.

What does a step cost, part by part, and what is gained over computing every sentence of the method as it stands
(benchmarks/plain_step.py)? Rounds alternate, so that a busy machine slows all; medians go to
results/benchmarks/step-<device>.json. Views are random numbers. Target: at least 1.5 times the samples/s.

    python benchmarks/step.py [--device cuda] [--arch vit_base] [--batch 64] [--precision bf16] [--rounds 5]
"""

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack
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
from tcore_lib.training.draws import Draws, draw
from tcore_lib.training.schedules import Hyper, Schedules
from tcore_lib.training.step import Trainer

ROOT = Path(__file__).parents[1]
STEP = 20_000  # after the warm-up, prototypes no longer frozen


def random_views(pretrain: params.Pretrain, device: torch.device, dtype: torch.dtype, crops: int) -> dict[str, Tensor]:
    """Views of a batch; past and future hold `crops` crops, those of masked crops in training."""
    views, batch = pretrain.views, pretrain.loop.batch_size
    sizes = {"current": (2 * batch, views.global_size), "local": (views.num_local * batch, views.local_size)}
    sizes |= {name: (crops, views.global_size) for name in ("past", "future")}
    return {name: torch.randn(n, 3, side, side, device=device, dtype=dtype) for name, (n, side) in sizes.items()}


def plain_way(trainer: Trainer, views: dict[str, Tensor], draws: Draws, hyper: Hyper) -> Callable[[], None]:
    """A step of plain_step's losses that clips, steps and averages tensor by tensor."""
    settings, model = trainer.settings, trainer.model
    groups = trainer.optimiser.param_groups
    stepper = torch.optim.AdamW(groups, lr=0.0, betas=settings.optimiser.betas, foreach=False, fused=False)

    def step() -> None:
        stepper.zero_grad()
        with trainer.autocast():
            sharp, rate = hyper.teacher_temperature, settings.encoder.drop_path
            total, _ = plain_step.losses(model, views, draws.masks, sharp, rate)
        total.backward()
        for module in model.trained().values():
            torch.nn.utils.clip_grad_norm_(module.parameters(), settings.optimiser.clip_grad, foreach=False)
        optimisers.apply(stepper, hyper)
        stepper.step()
        with torch.no_grad():
            for slow, fast in zip(model.teacher.parameters(), model.student.parameters(), strict=True):
                slow.mul_(hyper.momentum).add_((1 - hyper.momentum) * fast)

    return step


def parts_of(trainer: Trainer, batch: tuple[dict[str, Tensor], Draws], hyper: Hyper) -> dict[str, float]:
    """Seconds of each part of one step; a GPU waits between them."""
    meter, model, open_parts, hooks = Meter(trainer.device), trainer.model, ExitStack(), []
    parts = {"teacher": model.teacher.encoder, "student": model.student.encoder, "decoder": model.decoder}
    for name, module in (parts | {"head": model.student.head}).items():
        # A hook's result would take the place of the module's input or output: both give None.
        hooks.append(module.register_forward_pre_hook(lambda *_, n=name: open_parts.enter_context(meter(n))))
        hooks.append(module.register_forward_hook(lambda *_: open_parts.close()))
    with meter("losses and backward"):
        trainer.gradients([batch], hyper)
    with meter("clip, AdamW, centres, EMA"):
        trainer.update(hyper)
    for hook in hooks:
        hook.remove()
    spent = {name: sum(seconds) for name, seconds in meter.seconds.items()}
    spent["losses and backward"] -= sum(spent[name] for name in (*parts, "head"))  # what is in none of them
    return {name: round(seconds, 4) for name, seconds in spent.items()}


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Multiply-add operations (counted as two) per second of a large square product, best of several."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    meter = Meter(device)
    for _ in range(6):
        with meter("product"):
            a @ b
    return 2 * side**3 / min(meter.seconds["product"])


def measure(args: argparse.Namespace, pretrain: params.Pretrain) -> dict[str, Any]:
    device, hyper = torch.device(args.device), Schedules(pretrain).at(STEP)
    eager = pretrain.model_copy(update={"loop": pretrain.loop.model_copy(update={"compile": False})})
    ours, uncompiled, plain = (Trainer(settings, 0, device) for settings in (pretrain, eager, eager))
    draws = draw(pretrain, 0, STEP, range(STEP * args.batch, (STEP + 1) * args.batch)).to(device)
    few = random_views(pretrain, device, ours.view_dtype, len(draws.crops))
    full = random_views(pretrain, device, ours.view_dtype, 2 * args.batch)
    variants: dict[str, Callable[[], Any]] = {
        "ours": lambda: ours.step([(few, draws)], hyper),
        "ours, not compiled": lambda: uncompiled.step([(few, draws)], hyper),
        "plain": plain_way(plain, full, draws, hyper),
    }
    if not ours.model.compiled:
        del variants["ours, not compiled"]
    meter, peaks = Meter(device), dict.fromkeys(variants, 0)
    for name, step in list(variants.items()):  # the first step makes memory pools, compiled code and AdamW's state
        try:
            with meter(f"first, {name}"):
                step()
        except torch.OutOfMemoryError:  # the plain way holds what ours does not
            del variants[name]
    for _ in range(args.rounds):
        for name, step in variants.items():
            resting = meter.in_use()
            meter.reset_peak()
            with meter(name):
                step()
            peaks[name] = max(peaks[name], meter.peak() - resting)
    seconds = {name: meter.median(name) for name in variants}
    if args.profile is not None:
        with torch.profiler.profile() as profile:
            variants["ours"]()
            meter.wait()
        key = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
        files.write_text(args.profile, profile.key_averages().table(key, row_limit=70, max_name_column_width=80))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # attention's products count, too
        uncompiled.step([(few, draws)], hyper)
    flops, half = counter.get_total_flops(), ours.precision == "bf16"
    rate = matrix_rate(device, torch.bfloat16 if half else ours.view_dtype)
    what = f"{args.arch}, K = {args.prototypes}, batch {args.batch}, {ours.precision}"
    return {
        "what": f"{what}, {len(draws.patches)} masked patches",
        "threads": torch.get_num_threads(),
        "samples_per_second": {name: round(args.batch / value, 3) for name, value in seconds.items()},
        "seconds_per_step": {name: round(value, 4) for name, value in seconds.items()},
        "seconds_of_first_step": {name: round(meter.median(f"first, {name}"), 1) for name in variants},  # compiling too
        "speed_up": round(seconds["plain"] / seconds["ours"], 2) if "plain" in seconds else None,
        "memory_of_a_step_gb": {name: round(peaks[name] / 1e9, 2) for name in variants} if meter.gpu else None,
        "seconds_per_part": parts_of(ours, (few, draws), hyper),
        "teraflop_per_step": round(flops / 1e12, 3),
        "share_of_measured_matrix_rate": round(flops / seconds["ours"] / rate, 3),
        "measured_matrix_rate_tflops": round(rate / 1e12, 2),
        "compiled": ours.model.compiled,
        "rounds": args.rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--arch", default="vit_small", choices=("vit_tiny", "vit_small", "vit_base"))
    parser.add_argument("--batch", type=int, default=None, help="samples; default 256 on a GPU, 8 on a CPU")
    parser.add_argument("--prototypes", type=int, default=65536)
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
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
