"""Label maps and scores of the evaluation as it was before it was rewritten: equal to the bit, scores to rounding.

Frozen in golden/evaluation.json by the older code: SHA-256 over all predicted id maps of a clip (JHMDB: the joints of its last
frame) and the rows, on small made-up clips with every variant, on the first 12 frames of six real DAVIS clips, on a JHMDB clip.
"""

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import small_clips

from tcore_lib import params
from tcore_lib.evaluation import clips as clipfiles
from tcore_lib.evaluation.benchmarks import benchmark_of, load_clips
from tcore_lib.evaluation.clips import Clip
from tcore_lib.evaluation.evaluate import evaluate
from tcore_lib.model.encoders import load_encoder

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("TCORE_SHARED", ROOT.parent / "shared"))
GOLDEN = json.loads((Path(__file__).parent / "golden" / "evaluation.json").read_text())
SOURCES = {"pixels": "pixels", "evening": str(ROOT / "results" / "encoders" / "evening.safetensors")}
VARIANTS: dict[str, dict[str, Any]] = {
    "davis": {},  # the protocol
    "inclusive": {"radius_inclusive": True},
    "restrict": {"restrict_first": True},
    "once": {"repeat_first": False},
    "nearest": {"upsampling": "nearest"},
    "input": {"score_size": "input"},
    "radius": {"radius": 3.0, "top_k": 10, "context": 2},
}


def assert_as_before(name: str, encoder: str, clips: list[Clip], settings: params.Benchmark, output: Path) -> None:
    frozen = GOLDEN[f"{name} {encoder}"]
    table = evaluate({"e": load_encoder(SOURCES[encoder])}, clips, settings, output=output, progress=False)
    for clip in clips:
        predictions, labels = output / "predictions" / "e", frozen[clip.name]["labels"]
        if clip.joints is None:
            total = hashlib.sha256()
            for path in sorted((predictions / clip.name).iterdir()):
                total.update(path.stem.encode() + clipfiles.read_ids(path).tobytes())
            assert total.hexdigest() == labels, clip.name
        else:  # pixels, of the last frame
            joints = benchmark_of(settings).predictions(predictions, clip)(len(clip) - 1)
            np.testing.assert_allclose(joints, np.array(labels, float), atol=0.01)
        rows = table[table["clip"] == clip.name]
        rows = rows[(rows["true"] > 0) | (rows["predicted"] > 0)] if "true" in rows else rows
        expected = pd.DataFrame(frozen[clip.name]["rows"])
        found = rows[list(expected.columns)].reset_index(drop=True)
        pd.testing.assert_frame_equal(found, expected, check_dtype=False, rtol=0, atol=1e-8)


@pytest.mark.parametrize("encoder", SOURCES)
@pytest.mark.parametrize("name", ["jhmdb", "vip", *VARIANTS])
def test_small_clips(name: str, encoder: str, tmp_path: Path) -> None:
    cases: dict[str, tuple[Any, params.Benchmark]] = {
        "jhmdb": (small_clips.write_small_jhmdb, params.Jhmdb()),
        "vip": (small_clips.write_small_vip, params.Vip(long_side=320)),
    }
    davis = params.Davis(input_size=(192, 320), **VARIANTS.get(name, {}))
    write, settings = cases.get(name, (small_clips.write_small_davis, davis))
    root = write(tmp_path / "data")
    key = f"small davis {name}" if VARIANTS.get(name) else f"small {name}"
    assert_as_before(key, encoder, load_clips(settings, root), settings, tmp_path / "out")


@pytest.mark.skipif(
    not SHARED.is_dir(), reason="the real clips lie beside the checkout, in ../shared, and are not here"
)
@pytest.mark.parametrize("encoder", SOURCES)
@pytest.mark.parametrize("name", ["jhmdb", "davis 12", "davis whole"])
def test_real_clips(name: str, encoder: str, tmp_path: Path) -> None:
    if name == "davis whole" and "TCORE_WHOLE" not in os.environ:
        pytest.skip("minutes: set TCORE_WHOLE=1 to carry one clip to its end")
    kind = name.split()[0]
    settings = params.Davis() if kind == "davis" else params.Jhmdb()
    found = load_clips(settings, SHARED / "data" / f"{kind}-sample")
    if name == "davis 12":
        cut = [{"frames": clip.frames[:12], "annotations": clip.annotations[:12]} for clip in found]
        found = [dataclasses.replace(clip, **part) for clip, part in zip(found, cut, strict=True)]
    if name == "davis whole":
        found = [clip for clip in found if clip.name == "car-shadow"]
    assert_as_before(name, encoder, found, settings, tmp_path / "out")
