"""The same encoder, another number: conventions of other code bases, as named changes of the settings.

docs/protocol.md, "Known ways to get another number". None of them is the paper's protocol; they explain a difference of one to
three points between two people with the same weights. `compare` measures each on the same clips.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from tcore_lib.evaluation import scores
from tcore_lib.evaluation.benchmarks import benchmark_of, name_of
from tcore_lib.evaluation.clips import Clip
from tcore_lib.evaluation.evaluate import evaluate
from tcore_lib.model.encoders import FeatureEncoder
from tcore_lib.params import Benchmark


class Variant(NamedTuple):
    """One convention."""

    name: str
    what: str  # is done otherwise, and whose convention it is
    expected: str  # `lower`, `higher` or `either`: which way a good encoder's score goes, where that is known
    changes: dict[
        str, Any
    ]  # settings that differ from the protocol's; those a benchmark does not have are left out of it
    reports: str = ""  # public reports of people whom it may have met


VARIANTS = (
    Variant("protocol", "the paper's protocol (videowalk, CropMAE), all settings as given", "", {}),
    # one change each
    Variant("inclusive radius", "a patch at a distance equal to the radius counts too", "either",
            {"radius_inclusive": True}),
    Variant("frame 0 restricted", "the radius holds for frame 0 too: an object that has moved far cannot be found again",
            "lower", {"restrict_first": True}, "videowalk #2"),
    Variant("frame 0 once", "frame 0 does not stand in for frames before the clip", "either",
            {"repeat_first": False}, "videowalk #12, videowalk #25"),
    Variant("nearest upsampling", "soft maps are enlarged by copying cells: objects have steps of 16 pixels", "lower",
            {"upsampling": "nearest"}),
    Variant("scored at input size", "J and F on masks resized to the input size, 480x880 (`DAVIS_480_880` of CropMAE, RSP)",
            "either", {"score_size": "input"}, "videowalk #38"),
    Variant("bf16 features", "the encoder in half precision", "either", {"precision": "bf16"}),
    Variant("short context", "4 preceding frames instead of 20", "lower", {"context": 4}, "videowalk #10"),
    # whole conventions
    Variant("DINO", "5 votes from frame 0 and 7 preceding frames, all within a window of 12 (a square there, a disc here), softmax "
            "at 0.1. Not changed: DINO also resizes by the frame's aspect and stretches each channel to 0 ... 1", "either",
            {"top_k": 5, "temperature": 0.1, "radius": 12.0, "context": 7, "radius_inclusive": True,
             "restrict_first": True, "repeat_first": False}, "dino #94, dino #37"),
    Variant("videowalk, its README", "10 votes, radius 12, softmax at 0.05", "either",
            {"top_k": 10, "temperature": 0.05, "radius": 12.0}, "videowalk #2, videowalk #10"),
    Variant("CropMAE, RSP", "the paper's propagation, scored on `DAVIS_480_880`", "either", {"score_size": "input"}),
    Variant("official toolkit", "davis2017-evaluation: native masks, without first and last frame, 255 is void: what the "
            "protocol does", "", {"score_size": "native"}, "vos-benchmark #2"),
)  # fmt: skip


def table(settings: Benchmark) -> pd.DataFrame:
    """The variants that a benchmark has, without measuring: variant, what, settings, expected, reports."""
    rows = [
        {"variant": variant.name, "what": variant.what, "settings": ", ".join(f"{k}: {v}" for k, v in changes.items()),
         "expected": variant.expected, "reports": variant.reports}
        for variant, changes in _of(settings)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def _of(settings: Benchmark) -> Iterator[tuple[Variant, dict[str, Any]]]:
    """The variants that a benchmark has, with what each changes there."""
    for variant in VARIANTS:
        changes = {name: value for name, value in variant.changes.items() if name in type(settings).model_fields}
        if changes or not variant.changes:
            yield variant, changes


def compare(
    encoder: FeatureEncoder,
    clips: Sequence[Clip],
    settings: Benchmark,
    *,
    names: Sequence[str] | None = None,
    output: str | Path | None = None,
    progress: bool = True,
    device: str = "cpu",
    seed: int = 0,
) -> pd.DataFrame:
    """Measure the variants with one encoder on the same clips.

    Args:
        encoder: any.
        clips: one or two show the size of an effect, the whole split its direction.
        settings: the benchmark's section: the protocol.
        names: of variants; None = all. The protocol is always measured.
        output: as for `evaluate`: what is finished is not computed again.
        progress: show bars.
        device: torch device.
        seed: of the bootstrap.

    Returns:
        One row per variant: variant, the headline score in percent, difference to the protocol in points, its 95 % interval
        low and high over clips (paired), expected, settings, reports, what.
    """
    name, headline = name_of(settings), benchmark_of(settings).headline
    measured: dict[str, pd.DataFrame] = {}  # settings -> rows: some variants are the same
    rows = []
    for variant, changes in _of(settings):
        if names is not None and variant.name not in ("protocol", *names):
            continue
        changed = type(settings).model_validate({**settings.model_dump(), **changes, "save_predictions": False})
        key = changed.model_dump_json()
        if key not in measured:
            place = None if output is None else Path(output) / variant.name.replace(" ", "_").replace(",", "")
            measured[key] = evaluate({"": encoder}, clips, changed, output=place, progress=progress, device=device)
        found, protocol = measured[key], next(iter(measured.values()))
        score = scores.summarise(found, name, seed=seed).set_index("score").loc[headline, "value"]
        paired = scores.paired_difference(found, protocol, name, seed=seed).set_index("score").loc[headline]
        rows.append({"variant": variant.name, headline: score, **paired[["difference", "low", "high"]]})
    described = table(settings)[["variant", "expected", "settings", "reports", "what"]]
    return pd.DataFrame(rows).merge(described, on="variant")
