"""The list of benchmarks. A fourth one is a file with the names below, a line here, and its section of the parameters.

A benchmark's settings are the section of the parameters that carries its name: `Params.davis` goes with `davis.py`, which has

* `TITLE`, for people; `OFFICIAL`: split, clips and frames (None = not known) of published figures; `TABLE`: what a row of the
  table is, in the plural; `HEADLINE`: the score it is known by;
* `names(settings, root)`, clips of the split; `load(settings, root, name)` -> `Clip`; `counted(clip)`, the frames that are scored;
* `Scorer(clip, settings, patch_size, folder)`, one encoder on one clip: `size` (H, W) of the network input, `channels` of a
  soft map, `first_map(grid)` -> (C, h, w), `predict(soft (B, C, h, w))` -> B predictions, `score(frame, prediction)`, called by
  threads, `rows(what it returned for all frames)`, each with `clip` and `frames`; and `score_files(folder, pool)` -> rows;
* `sums(rows)`: score -> part and whole per clip, each (clips, items): the score is the mean over items of part / whole;
* `check(clip, settings, decode)` -> problems and remarks about its labels;
* `truth(clip, frame)`, in the form of a prediction; `has_predictions(folder, clip)`; `predictions(folder, clip, frames)`;
* `draw(image, labels)` over a frame; `legend(channels)` -> names and colours.
"""

from pathlib import Path
from typing import Any

from tcore_lib import params
from tcore_lib.evaluation import davis, jhmdb, vip
from tcore_lib.evaluation.clips import Clip

BENCHMARKS: dict[str, Any] = {"davis": davis, "jhmdb": jhmdb, "vip": vip}


def name_of(settings: params.Benchmark) -> str:
    """The benchmark that a section of the parameters belongs to: `davis` for `Davis`."""
    return type(settings).__name__.lower()


def benchmark_of(settings: params.Benchmark) -> Any:
    """The file of a section's benchmark."""
    return BENCHMARKS[name_of(settings)]


def load_clips(settings: params.Benchmark, root: str | Path) -> list[Clip]:
    """All clips of a benchmark, or those that the settings choose, in the split's order.

    Raises:
        InputError: names what is missing or does not fit.
    """
    benchmark = benchmark_of(settings)
    return [benchmark.load(settings, Path(root), name) for name in benchmark.names(settings, Path(root))]
