"""From one process to many: measured here for one and two ranks, projected for 1, 8, 64 and 512 GPUs.

    python benchmarks/scaling.py            about two minutes on two free cores; into results/benchmarks/scaling.json

Measured, each rank with one thread and 8 samples of the quick profile: a step of one rank alone, a step of two ranks,
and the all-reduce of the gradients by itself. Measured too: matrix operations per sample of the paper's three rows.

The model has four inputs per step and rank: operations, the rate they are done at, gradient bytes G, and the bandwidth B
of an all-reduce. With n ranks the exchange takes 2 (n - 1) / n G / B. DistributedDataParallel does it while the backward
pass goes on: the step lies between max(compute, exchange) (all hidden) and compute + exchange (nothing hidden). Latency,
stragglers and checkpoints are not in it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from step import STEP, flops_of, random_views

from tcore_lib import files, params, runs
from tcore_lib.data.sandwich import counters
from tcore_lib.machine import Meter, joined, place_of
from tcore_lib.training.draws import draw_plan
from tcore_lib.training.schedules import Schedules
from tcore_lib.training.step import Trainer

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
ROWS = ("k400_vits16_400ep", "k400_vitb16_200ep", "imagenet_vits16_100ep")
PER_RANK = 8  # samples
ASSUMED = {
    "peak_flops": 989e12,  # H200, dense bf16, by its data sheet
    "utilisation": 0.23,  # of the peak: ViT-S's step, measured (results/benchmarks/h200/step.json)
    "inside_a_node": 300e9,  # bytes/s of an all-reduce over NVLink (8 GPUs)
    "between_nodes": 40e9,  # bytes/s with one 400 Gbit/s link per node, 80 % used
    "cpu_seconds_per_sample": None,  # of a loader process: results/benchmarks/views.json
    "jpeg_bytes_per_frame": 25e3,
    "dollars_per_gpu_hour": 3.0,
}


@dataclass(frozen=True)
class Projection:
    """A step on n GPUs. Seconds of computing and of exchanging; samples of all ranks."""

    gpus: int
    samples: int
    compute: float
    exchange: float

    @property
    def best(self) -> float:
        """Samples per second with the exchange hidden behind the backward pass."""
        return self.samples / max(self.compute, self.exchange)

    @property
    def worst(self) -> float:
        """Samples per second with nothing hidden."""
        return self.samples / (self.compute + self.exchange)


def project(
    gpus: int, samples: int, flops_per_sample: float, gradient_bytes: float, assumed: dict[str, Any]
) -> Projection:
    """The model of this file's first lines.

    Args:
        gpus: n; 8 to a node.
        samples: of a step, over all ranks.
        flops_per_sample: forward, backward, teacher and losses.
        gradient_bytes: G.
        assumed: as `ASSUMED`.
    """
    compute = samples / gpus * flops_per_sample / (assumed["peak_flops"] * assumed["utilisation"])
    bandwidth = assumed["inside_a_node"] if gpus <= 8 else assumed["between_nodes"]
    return Projection(gpus, samples, compute, 2 * (gpus - 1) / gpus * gradient_bytes / bandwidth)


def operations(name: str, batch: int = 4) -> dict[str, float]:
    """Matrix operations per sample and gradient bytes of a profile, from one real step on the CPU."""
    loaded = params.load(name)
    loop = loaded.pretrain.loop.model_copy(update={"batch_size": batch, "accumulate": 1, "precision": "fp32"})
    pretrain = loaded.pretrain.model_copy(update={"loop": loop})
    trainer, hyper = Trainer(pretrain, 0, CPU), Schedules(pretrain).at(STEP)
    plan = draw_plan(pretrain, 0, STEP, range(STEP * batch, (STEP + 1) * batch), hyper)
    views = random_views(pretrain, CPU, torch.float32, len(plan.crops))
    flops = flops_of(lambda: trainer.step([(views, plan)], hyper))
    weights = sum(p.numel() for module in trainer.model.trained().values() for p in module.parameters())
    schedule = Schedules(loaded.pretrain)
    return {
        "flops_per_sample": flops / batch,
        "gradient_bytes": 4.0 * weights,
        "samples": float(schedule.steps * loaded.pretrain.loop.batch_size),
    }


def child(steps: int) -> None:
    """One rank: its median step, and the exchange of its gradients; the leading rank prints them as the last line."""
    torch.set_num_threads(1)
    place = place_of(os.environ)
    loaded = params.load("quick")
    loop = {"batch_size": PER_RANK * place.world, "precision": "fp32"}
    pretrain = loaded.pretrain.model_copy(update={"loop": loaded.pretrain.loop.model_copy(update=loop)})
    with joined(place, CPU):
        trainer, meter = Trainer(pretrain, 0, CPU), Meter(CPU)
        for step in range(steps + 2):
            (own,) = counters(step, loop["batch_size"], place.rank, place.world, 1)
            hyper = Schedules(pretrain).at(step)
            plan = draw_plan(pretrain, 0, step, own, hyper)
            local = pretrain.model_copy(update={"loop": pretrain.loop.model_copy(update={"batch_size": PER_RANK})})
            views = random_views(local, CPU, torch.float32, len(plan.crops))
            with meter("step"):
                trainer.step([(views, plan)], hyper)
        gradients = torch.cat([p.grad.flatten() for m in trainer.model.trained().values() for p in m.parameters()])
        if place.world > 1:
            for _ in range(10):
                with meter("exchange"):
                    dist.all_reduce(gradients)
    if place.leads:
        found = {"seconds_per_step": statistics.median(meter.seconds["step"][2:])}
        if place.world > 1:
            found["seconds_of_exchange"] = statistics.median(meter.seconds["exchange"])
        print(json.dumps(found | {"gradient_bytes": 4 * len(gradients)}), flush=True)


def measured(world: int, steps: int) -> dict[str, float]:
    """Figures of `world` ranks on this machine."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}", __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*words, "--child", "--steps", str(steps)], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    found = json.loads(done.stdout.splitlines()[-1])
    return found | {"ranks": world, "samples_per_second": world * PER_RANK / found["seconds_per_step"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rows", nargs="*", default=ROWS, help="profiles to count operations of")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "benchmarks" / "scaling.json")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.steps)
        return
    started = time.time()
    ranks = [measured(world, args.steps) for world in (1, 2)]
    result = {
        "what": f"quick profile, {PER_RANK} samples per rank, one thread each, gloo",
        "ranks": ranks,
        "efficiency_of_two": ranks[1]["samples_per_second"] / (2 * ranks[0]["samples_per_second"]),
        "rows": {name: operations(name) for name in args.rows},
        "provenance": runs.provenance(params.load("quick"), started),
    }
    files.write_json(args.output, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
