"""What figures and widgets compute, held to values frozen before they were rewritten (tests/golden/figures.json).

Integers and bytes are compared exactly, floats as stored samples. To make the file anew: `python tests/test_golden_figures.py`.
"""

import hashlib
import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pytest

from tcore_lib import figures
from tcore_lib.figures import style
from tcore_lib.widgets.explorer import Explorer

GOLDEN = Path(__file__).parent / "golden/figures.json"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def small_explorer() -> Explorer:
    """Four frames of 5 x 8 patches, two encoders, two pairs of attention, soft labels of three channels."""
    rng = np.random.default_rng(7)
    frames = list(rng.integers(0, 256, (4, 80, 128, 3), dtype=np.uint8))
    features = {name: rng.normal(size=(4, 5, 8, 24)) @ rng.normal(size=(24, 40)) for name in ("teacher", "other")}
    attention = {pair: rng.dirichlet(np.ones(40), size=(2, 40)) for pair in ((0, 1), (3, 2))}
    labels = rng.dirichlet(np.ones(3), size=(4, 5, 8)).transpose(0, 3, 1, 2)
    with mock.patch("tcore_lib.widgets.explorer.DIMS", 20):
        return Explorer(frames, features, cross_attention=attention, labels=labels, pick=(1, 2, 3))


def measured() -> dict[str, Any]:
    """Every frozen value."""
    rng = np.random.default_rng(3)
    explorer = small_explorer()
    rng.dirichlet(np.ones(12), size=(2, 3, 4))  # drawn here when the values were frozen
    mask = np.eye(3, 4, dtype=bool)
    pca = figures.pca_components(rng.normal(size=(2, 5, 6, 3)) @ np.diag([3, 2, 1]) @ rng.normal(size=(3, 12)))
    joints = rng.uniform(10, 90, (2, 15, 2))
    joints[0, 3], joints[1, 4] = -1, np.nan
    pose = figures.pose(list(np.zeros((2, 120, 160, 3), np.uint8)), joints, joints + 2)
    clips = pd.DataFrame({"a": rng.uniform(0, 100, 9), "b": rng.uniform(0, 100, 9)})
    lengths = rng.integers(20, 90, 200)
    image = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return {
        "explorer": {
            "attention": digest(explorer._attention),
            "labels": digest(explorer._labels),
            "feature_bytes": len(explorer._features),
            "grid": explorer._meta["grid"],
            "size": explorer._meta["frames"]["size"],
            "pairs": explorer._meta["attention"]["pairs"],
            "palette_channels": len(explorer._meta["labels"]["palette"]),
            "similarity": [
                explorer.similarity(name, 1, 2, 3)[:, ::2, ::3].ravel().tolist() for name in explorer.encoders
            ],
            "energy": [about["energy"] for about in explorer._meta["encoders"]],
            "error": [about["error"] for about in explorer._meta["encoders"]],
        },
        "painting": {
            "hidden": digest(style.hide_patches(image, mask).tobytes()),
            "enlarged": digest(style.enlarge(np.arange(12).reshape(3, 4), (12, 16)).tobytes()),
            "outline": digest(style.outline(np.arange(12).reshape(3, 4).repeat(4, 0).repeat(4, 1), 1).tobytes()),
            "colours": digest(style.to_colours(np.linspace(0, 1, 256)).tobytes()),
        },
        "figures": {
            "pca": pca[:, ::2, ::3].ravel().tolist(),
            "pose_windows": [[*ax.get_xlim(), *ax.get_ylim()] for ax in pose.axes],
            "clip_order": [label.get_text() for label in figures.clip_bars(clips, top=4).axes[0].get_yticklabels()],
            "histogram_marks": [text.get_text() for text in figures.histogram(lengths).axes[0].texts],
        },
    }


@pytest.mark.parametrize("part", ["explorer", "painting", "figures"])
def test_values_are_those_of_before(part: str) -> None:
    found, frozen = measured()[part], json.loads(GOLDEN.read_text())[part]
    assert found.keys() == frozen.keys()
    for name, value in frozen.items():
        if name in ("similarity", "energy", "error", "pca", "pose_windows"):
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
        else:
            assert found[name] == value, name


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(measured()) + "\n")
