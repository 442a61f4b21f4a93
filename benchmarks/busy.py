"""A training step on a quiet and on a busy machine, with OpenMP's threads asleep while they wait and with them spinning.

By default a thread that waits for the others spins. Where two other processes compete for the cores, the one thread that has work
does not get one, and all of them wait for it; `tcore_lib` therefore sets OMP_WAIT_POLICY=PASSIVE and GOMP_SPINCOUNT=3000 before
torch is loaded. The work is torch alone: an encoder of the quick profile's size, forward, backward and AdamW. Four fresh processes
per round, in turn; medians go to results/benchmarks/busy.json. Target: quiet, passive loses at most 3 %; busy, it takes little
more than twice as long, its fair share of the cores.

    python benchmarks/busy.py [--rounds 3]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from itertools import product
from pathlib import Path

from tcore_lib import machine, params, runs  # sets the policy of this process
from tcore_lib.files import write_json

ROOT = Path(__file__).parents[1]
POLICIES = {"passive": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "3000"}, "default": {}}
WORK = """
import statistics, sys, time, torch
threads, steps = map(int, sys.argv[1:])
torch.set_num_threads(threads)
layer = torch.nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True, norm_first=True)
network = torch.nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
optimiser = torch.optim.AdamW(network.parameters())
tokens, seconds = torch.randn(64, 41, 128), []  # 32 videos, two crops of 96 pixels: 36 patches, CLS, 4 registers
for _ in range(steps + 2):
    start = time.perf_counter()
    optimiser.zero_grad()
    network(tokens).square().mean().backward()
    optimiser.step()
    seconds.append(time.perf_counter() - start)
print(statistics.median(seconds[2:]))  # the first two make memory pools and AdamW's state
"""


def measured(policy: str, threads: int, steps: int) -> float:
    """Median seconds of a step in a fresh process with an OpenMP policy."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-c", WORK, str(threads), str(steps)]
    done = subprocess.run(command, env=plain | POLICIES[policy], capture_output=True, text=True, check=True)
    return float(done.stdout)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds, threads = parser.parse_args().rounds, machine.cores()
    started, before = time.time(), machine.load(2.0)
    seconds: dict[str, list[float]] = defaultdict(list)
    for _, competitors, policy in product(range(rounds), (0, 2), POLICIES):
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(competitors)]
        try:
            seconds[f"{'busy' if others else 'quiet'}, {policy}"].append(measured(policy, threads, steps=20))
        finally:
            for process in others:
                process.kill()
                process.wait()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    figures = {
        "what": f"{threads} threads; busy = two processes that compute without end",
        "cores_busy_before": round(before, 2),
        "milliseconds_per_step": {name: round(1000 * value, 1) for name, value in medians.items()},
        "quiet_passive_over_default": round(medians["quiet, passive"] / medians["quiet, default"], 3),
        "busy_default_over_passive": round(medians["busy, default"] / medians["busy, passive"], 2),
        "busy_passive_over_quiet_passive": round(medians["busy, passive"] / medians["quiet, passive"], 2),
        "rounds": rounds,
    }
    result = figures | {"provenance": runs.provenance(params.Params(), started)}
    write_json(ROOT / "results/benchmarks/busy.json", result)
    print(json.dumps(figures, indent=1))
