"""The list of benchmarks. A fourth one is a file with the names of `Benchmark`, a line here, and its section of the parameters.

A benchmark's settings are the section of the parameters that carries its name: `Params.davis` goes with `davis.py`.
"""

from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
from numpy.typing import NDArray

from tcore_lib import params
from tcore_lib.evaluation import davis, jhmdb, vip
from tcore_lib.evaluation.clips import Clip

Rows = list[dict[str, Any]]


class Benchmark(Protocol):
    """What a benchmark's file has.

    Attributes:
        TITLE: its name, for people.
        OFFICIAL: split, number of clips and of frames (None = not known) that published figures are measured on.
        TABLE: what a row of the table is, in the plural.
        HEADLINE: the score that it is known by.
        Scorer: one encoder on one clip, `Scorer(clip, settings, patch_size, folder)`; writes predictions to `folder`. It has
            `size` (H, W) of the network input and `channels` of a soft map, and turns labels into rows:
            `first_map(grid)` -> (C, h, w); `predict(soft (B, C, h, w))` -> B predictions; `score(frame, prediction)`, called
            by threads; `rows(what score returned for all frames, in order)`, each with `clip` and `frames`.
    """

    TITLE: str
    OFFICIAL: tuple[str, int, int | None]
    TABLE: str
    HEADLINE: str
    Scorer: Any

    def names(self, settings: Any, root: Path) -> list[str]:
        """Clips of the split, or those chosen from it."""

    def load(self, settings: Any, root: Path, name: str) -> Clip:
        """One clip by its name in `names`."""

    def counted(self, clip: Clip) -> list[int]:
        """The frames that are scored."""

    def score_files(self, clip: Clip, folder: Path, pool: Executor) -> Rows:
        """Rows of predictions that somebody else made."""

    def sums(self, rows: pd.DataFrame) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
        """Score -> part and whole per clip, each (clips, items): the score is the mean over items of part / whole."""

    def check(self, clip: Clip, settings: Any, decode: bool) -> tuple[list[str], list[str]]:
        """Problems and remarks about a clip's labels, for the doctor."""

    def has_predictions(self, folder: Path, clip: Clip) -> bool:
        """Whether the predictions of a clip are all there."""

    def predictions(self, folder: Path, clip: Clip, frames: Sequence[int]) -> NDArray[Any]:
        """Predictions of some frames, (n, ...)."""

    def truth(self, clip: Clip, frame: int) -> NDArray[Any] | None:
        """The labels of a frame, in the form of a prediction."""

    def draw(self, image: NDArray[Any], labels: NDArray[Any]) -> NDArray[Any]:
        """Labels over a frame uint8 (H, W, 3)."""

    def legend(self, channels: Sequence[Any]) -> tuple[list[str], NDArray[Any]]:
        """Names and colours of a soft map's channels."""


BENCHMARKS: dict[str, Benchmark] = {"davis": davis, "jhmdb": jhmdb, "vip": vip}


def name_of(settings: params.Benchmark) -> str:
    """The benchmark that a section of the parameters belongs to: `davis` for `Davis`."""
    return type(settings).__name__.lower()


def benchmark_of(settings: params.Benchmark) -> Benchmark:
    """The file of a section's benchmark."""
    return BENCHMARKS[name_of(settings)]


def load_clips(settings: params.Benchmark, root: str | Path) -> list[Clip]:
    """All clips of a benchmark, or those that the settings choose, in the split's order.

    Raises:
        InputError: names what is missing or does not fit.
    """
    benchmark = benchmark_of(settings)
    return [benchmark.load(settings, Path(root), name) for name in benchmark.names(settings, Path(root))]
