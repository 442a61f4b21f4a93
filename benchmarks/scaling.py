"""One process and two, measured: a step of one rank alone, a step of two ranks, the all-reduce of the gradients by itself.

    python benchmarks/scaling.py            about a minute on two free cores; into results/benchmarks/scaling.json

Each rank has one thread and 8 samples of the quick profile. Two ranks share two cores, their caches and a local socket: this says
that the ranks work and what DistributedDataParallel costs in the worst place, not how GPUs scale.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from step import random_views

from tcore_lib import files, params, runs
from tcore_lib.data.sandwich import counters
from tcore_lib.machine import Meter, joined, place_of
from tcore_lib.training.draws import draw
from tcore_lib.training.schedules import Schedules
from tcore_lib.training.step import Trainer

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
PER_RANK = 8  # samples


def child(steps: int) -> None:
    """One rank: its median step, and the exchange of its gradients; the leading rank prints them as the last line."""
    torch.set_num_threads(1)
    place, quick = place_of(), params.load("quick").pretrain
    loops = (quick.loop.model_copy(update={"batch_size": n * PER_RANK}) for n in (1, place.world))
    own, pretrain = (quick.model_copy(update={"loop": loop}) for loop in loops)
    meter = Meter(CPU)
    with joined(place, CPU):
        trainer = Trainer(pretrain, 0, CPU)
        for step in range(steps + 2):
            (samples,) = counters(step, pretrain.loop.batch_size, place.rank, place.world, 1)
            hyper = Schedules(pretrain).at(step)
            draws = draw(pretrain, 0, step, samples)
            views = random_views(own, CPU, torch.float32, len(draws.crops))
            with meter("step"):
                trainer.step([(views, draws)], hyper)
        gradients = torch.cat([p.grad.flatten() for m in trainer.model.trained().values() for p in m.parameters()])
        for _ in range(10 if place.world > 1 else 0):
            with meter("exchange"):
                dist.all_reduce(gradients)
    found = {"seconds_per_step": statistics.median(meter.seconds["step"][2:]), "gradient_bytes": 4 * len(gradients)}
    if place.world > 1:
        found["seconds_of_exchange"] = meter.median("exchange")
    if place.leads:
        print(json.dumps(found), flush=True)


def measured(world: int, steps: int) -> dict[str, float]:
    """Figures of `world` ranks on this machine."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}", __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*words, "--child", "--steps", str(steps)], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    return found | {"ranks": world, "samples_per_second": world * PER_RANK / found["seconds_per_step"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "benchmarks" / "scaling.json")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.steps)
        return
    started, ranks = time.time(), [measured(world, args.steps) for world in (1, 2)]
    result = {
        "what": f"quick profile, {PER_RANK} samples per rank, one thread each, gloo",
        "ranks": ranks,
        "efficiency_of_two": ranks[1]["samples_per_second"] / (2 * ranks[0]["samples_per_second"]),
    }
    files.write_json(args.output, result | {"provenance": runs.provenance(params.load("quick"), started)})
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
