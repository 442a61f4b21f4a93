"""The list of benchmarks, and the data doctor. A fourth benchmark is a file, a line here, and its section of the parameters.

`Params.davis` goes with `davis.Davis(settings)`, which has

* `title`; `official`: split, clips and frames (None = not known) of published figures; `table`: what a row is, in the
  plural; `headline`: the score it is known by;
* `names(root)`, clips of the split; `load(root, name)` -> `Clip`; `check(clip)`: an `InputError` where labels do not fit;
  `counted(clip)`, the frames that are scored;
* `input_size(clip, patch_size)` -> (H, W) of the network input; `first_map(clip, size, grid)` -> (C, h, w); `predict(clip,
  soft (B, C, h, w), size)` -> B predictions;
* `score(clip, read)` -> a table of rows, with `clip` and `frames`; `read` gives the prediction of a frame; `sums(rows)`: score
  -> part and whole per clip, each (clips, items): the score is the mean over items of part / whole;
* `prediction_files(folder, clip)`, `save(folder, clip, predictions)` and `predictions(folder, clip)`, which gives `read`.
"""

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tcore_lib import params
from tcore_lib.errors import InputError
from tcore_lib.evaluation.clips import Clip
from tcore_lib.evaluation.davis import Davis
from tcore_lib.evaluation.jhmdb import Jhmdb
from tcore_lib.evaluation.vip import Vip

BENCHMARKS: dict[str, Any] = {"davis": Davis, "jhmdb": Jhmdb, "vip": Vip}
SHOWN = 12  # problems, or clips without a score, that are named


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


def examine(settings: params.Benchmark, root: str | Path, *, progress: bool = True) -> list[Clip]:
    """`load_clips`, when every image and annotation was read to its end and is what the protocol expects; prints what there is.

    Most scores that are off by one to three points with the right weights come from here: resized annotations, another
    split, a missing clip. All problems are printed, one a clip; the first is raised.
    """
    benchmark, root = benchmark_of(settings), Path(root)
    names, (split, number, whole) = benchmark.names(root), benchmark.official

    def look(name: str) -> Clip | InputError:
        try:
            clip = benchmark.load(root, name)
            for frame in range(len(clip)):
                clip.image(frame)
            benchmark.check(clip)
            return clip
        except InputError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(look, names)
        looked = list(tqdm(found, "doctor", len(names), unit="clip", file=sys.stdout, disable=not progress))
    clips = [one for one in looked if isinstance(one, Clip)]
    problems = [str(one) for one in looked if isinstance(one, InputError)]
    frames, scored = sum(map(len, clips)), sum(len(benchmark.counted(clip)) for clip in clips)
    said = [
        f"{benchmark.title}, split {settings.split}, in {root}",  # type: ignore[attr-defined]
        f"clips       {len(clips)} complete of {len(names)} {'listed' if settings.clips is None else 'chosen'}",
        f"frames      {frames}, {scored} of them are scored",
    ]
    complete = settings.clips is not None or (len(clips) == number and whole in (None, frames))
    if str(settings.split) != split or not complete:  # type: ignore[attr-defined]
        said.append(f"remark      not comparable with published scores, which are of {number} clips of split {split}")
    remark, _ = without_score(settings, clips)
    said += [f"remark      {remark}"] * bool(remark) + [f"problem     {problem}" for problem in problems[:SHOWN]]
    print("\n  ".join([*said, f"{'NOT ' if problems else ''}fit for evaluation"]), flush=True)
    if problems:
        raise InputError(problems[0] + (f" ({len(problems) - 1} more problems)" if len(problems) > 1 else ""))
    return clips


def without_score(settings: params.Benchmark, clips: Sequence[Clip]) -> tuple[str, bool]:
    """What is to be said of clips of which no frame is scored, if there are any; and whether a server has to score them all.

    That is where only first frames are annotated, as in DAVIS' test-dev.
    """
    benchmark = benchmark_of(settings)
    names = [f"{clip.name} ({len(clip)} frames)" for clip in clips if not benchmark.counted(clip)]
    if names and all(clip.joints is None and len(clip) > 1 and not any(clip.annotations[1:]) for clip in clips):
        return (
            "no frame is scored: only first frames are annotated; the predictions are for the benchmark's server",
            True,
        )
    shown = ", ".join(names[:SHOWN]) + (" ..." if len(names) > SHOWN else "")
    mean = f"no frame is scored of {shown}; the other {len(clips) - len(names)} clips make the mean"
    return mean if names else "", False
