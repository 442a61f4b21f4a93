"""Speed of the synthetic scenes on one core, in CPU seconds: a fresh clip of each kind, and the whole default set.

Target: a fresh clip (20 frames of 340x256) well under 0.5 s, so that scenes can serve as an endless data set; the set under 60 s.
Into results/benchmarks/scenes.json.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tcore_lib import files, params
from tcore_lib.scenes import synthetic
from tcore_lib.scenes.scenes import DOMAINS, KINDS, render_scene


def cpu_seconds(work: Callable[..., object], *args: object, repeats: int = 1, **named: object) -> float:
    """Least CPU time of some repeats."""
    spent = []
    for _ in range(repeats):
        start = time.process_time()
        work(*args, **named)
        spent.append(time.process_time() - start)
    return round(min(spent), 3)


if __name__ == "__main__":
    torch.set_num_threads(1)
    fresh = DOMAINS["fresh"]
    render_scene("walking", 0, fresh, 0, num_frames=1)  # warm up
    clips = {kind: cpu_seconds(render_scene, kind, 0, fresh, 1, repeats=3) for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        work = [(name, Path(folder) / name, params.SyntheticData(), 0) for name in synthetic.SETS]
        whole = {one[0]: cpu_seconds(synthetic.write_set, *one, progress=False, workers=1) for one in work}
    found = {"fresh_clip_20_frames_340x256": clips, "default_sets": whole | {"all": round(sum(whole.values()), 1)}}
    files.write_json(Path(__file__).parents[1] / "results/benchmarks/scenes.json", found)
    print(found)
