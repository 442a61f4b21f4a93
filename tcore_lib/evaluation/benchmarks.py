"""The list of benchmarks. A fourth one is a file with such a class, a line here, and its section of the parameters.

A benchmark's settings are the section of the parameters that carries its name: `Params.davis` goes with `davis.Davis(settings)`,
which has

* `title`, for people; `official`: split, clips and frames (None = not known) of published figures; `table`: what a row of the
  table is, in the plural; `headline`: the score it is known by;
* `names(root)`, clips of the split; `load(root, name)` -> `Clip`; `check(clip)` -> remarks about its labels, an `InputError`
  where they do not fit; `counted(clip)`, the frames that are scored;
* `input_size(clip, patch_size)` -> (H, W) of the network input; `first_map(clip, size, grid)` -> (C, h, w); `predict(clip,
  soft (B, C, h, w), size)` -> B predictions;
* `score(clip, read, each)` -> rows, each with `clip` and `frames`; `read` gives the prediction of a frame, `each` maps over
  frames; `sums(rows)`: score -> part and whole per clip, each (clips, items): the score is the mean over items of part / whole;
* `prediction_files`, `save` and `predictions` of ours, `others` that somebody else made; `draw(image, labels)`, labels over a
  frame; `legend(clip)` -> names and colours of a soft map's channels.
"""

from pathlib import Path
from typing import Any

from tcore_lib import params
from tcore_lib.evaluation.clips import Clip
from tcore_lib.evaluation.davis import Davis
from tcore_lib.evaluation.jhmdb import Jhmdb
from tcore_lib.evaluation.vip import Vip

BENCHMARKS: dict[str, Any] = {"davis": Davis, "jhmdb": Jhmdb, "vip": Vip}


def name_of(settings: params.Benchmark) -> str:
    """The benchmark that a section of the parameters belongs to: `davis` for `Davis`."""
    return type(settings).__name__.lower()


def benchmark_of(settings: params.Benchmark) -> Any:
    """A section's benchmark."""
    return BENCHMARKS[name_of(settings)](settings)


def load_clips(settings: params.Benchmark, root: str | Path) -> list[Clip]:
    """All clips of a benchmark, or those that the settings choose, in the split's order."""
    benchmark = benchmark_of(settings)
    return [benchmark.load(Path(root), name) for name in benchmark.names(Path(root))]
