"""Speed of the synthetic scenes: one fresh clip of each kind, and the clip of the mini Kinetics, on one core.

Target: a fresh clip (20 frames of 340x256) well under 0.5 s of CPU time, so that scenes can serve as an endless data
set; the whole default set under 60 s. Best of some repeats, CPU seconds.

    python benchmarks/scenes.py [--repeats 3] [--output results/benchmarks/scenes.json]
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tcore_lib import files, params
from tcore_lib.scenes import synthetic
from tcore_lib.scenes.scenes import DOMAINS, KINDS, render_scene


def cpu_seconds(work: Callable[[], object], repeats: int) -> float:
    """Least CPU time of some repeats."""
    spent = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        spent.append(time.process_time() - start)
    return round(min(spent), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", default="results/benchmarks/scenes.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    fresh = DOMAINS["fresh"]
    render_scene("walking", 0, fresh, 0, num_frames=1)  # warm up
    result: dict[str, object] = {
        "fresh_clip_20_frames_340x256": {
            kind: cpu_seconds(lambda kind=kind: render_scene(kind, 0, fresh, 1), arguments.repeats) for kind in KINDS
        }
    }
    settings = params.SyntheticData()
    whole = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("videos", "davis", "jhmdb", "vip"):
            write = getattr(synthetic, f"write_{name}")
            root = Path(folder) / name
            whole[name] = cpu_seconds(lambda w=write, r=root: w(r, settings, 0, progress=False, workers=1), 1)
    result["default_sets"] = whole | {"all": round(sum(whole.values()), 1)}
    files.write_json(arguments.output, result)
    print(result)


if __name__ == "__main__":
    main()
