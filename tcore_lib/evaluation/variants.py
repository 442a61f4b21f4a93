"""The same encoder, another number: conventions of other code bases (variants.yaml), measured beside the protocol.

They explain a difference of one to three points between two people with the same weights (docs/protocol.md, "Known ways to get
another number").
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import yaml

from tcore_lib.evaluation import scores
from tcore_lib.evaluation.benchmarks import benchmark_of, name_of
from tcore_lib.evaluation.clips import Clip
from tcore_lib.evaluation.evaluate import evaluate
from tcore_lib.model.encoders import FeatureEncoder
from tcore_lib.params import Benchmark


def table(settings: Benchmark) -> pd.DataFrame:
    """The variants that a benchmark has: variant, what, expected, settings, reports; see variants.yaml."""
    known = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    rows = []
    for variant in known:
        own = {name: value for name, value in variant["settings"].items() if name in type(settings).model_fields}
        if own or not variant["settings"]:
            rows.append({**variant, "settings": own})
    return pd.DataFrame(rows)


def compare(
    encoder: FeatureEncoder,
    clips: Sequence[Clip],
    settings: Benchmark,
    *,
    without: Sequence[str] = (),
    output: str | Path | None = None,
    progress: bool = True,
    device: str = "cpu",
) -> pd.DataFrame:
    """Measure the variants, but for those in `without`, with one encoder on the same clips; otherwise as `evaluate`.

    One or two clips show the size of an effect, the whole split its direction.

    Returns:
        One row per variant: variant, the headline score in percent, difference to the protocol in points, its 95 % interval
        low and high over clips (paired), expected, settings, reports, what.
    """
    name, headline = name_of(settings), benchmark_of(settings).headline
    described = table(settings)[["variant", "expected", "settings", "reports", "what"]]
    measured: dict[str, pd.DataFrame] = {}  # settings -> rows: some variants are the same
    rows = []
    for variant, changes in zip(described["variant"], described["settings"], strict=True):
        if variant in without:
            continue
        changed = type(settings).model_validate({**settings.model_dump(), **changes, "save_predictions": False})
        key = changed.model_dump_json()
        if key not in measured:
            place = None if output is None else Path(output) / variant.replace(" ", "_").replace(",", "")
            measured[key] = evaluate({"": encoder}, clips, changed, output=place, progress=progress, device=device)
        found, protocol = measured[key], next(iter(measured.values()))
        score = scores.summarise(found, name).set_index("score").loc[headline, "value"]
        paired = scores.paired_difference(found, protocol, name).set_index("score").loc[headline]
        rows.append({"variant": variant, headline: score, **paired[["difference", "low", "high"]]})
    return pd.DataFrame(rows).merge(described, on="variant")
