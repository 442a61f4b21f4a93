"""The renderer's pictures do not change: small scenes of every kind, held to `golden/scenes.json`.

`python tests/test_golden_scenes.py` wrote that file. Label maps are compared bit for bit. Colours and joints are floats before
they are rounded, and differ in the last bits between processors: pictures are compared as means over cells, within one level.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcore_lib.scenes.scenes import KINDS, render_scene

GOLDEN = Path(__file__).parent / "golden" / "scenes.json"
SIZE, FRAMES = (144, 112), 3
CELL = 16  # pixels


def measured(kind: str) -> dict[str, Any]:
    """What is kept of a scene."""
    scene = render_scene(kind, 7, 1, 2, size=SIZE, num_frames=FRAMES, seconds=2.0)
    n, h, w, _ = scene.frames.shape
    cells = scene.frames.reshape(n, h // CELL, CELL, w // CELL, CELL, 3).mean((2, 4))
    return {
        "objects": hashlib.sha256(scene.objects.tobytes()).hexdigest()[:16],
        "parts": hashlib.sha256(scene.parts.tobytes()).hexdigest()[:16],
        "visible": np.packbits(scene.visible).tobytes().hex(),
        "joints": [] if np.isnan(scene.joints).all() else scene.joints[-1].round(3).tolist(),
        "cells": cells.round(2).ravel().tolist()[::7],
    }


@pytest.mark.parametrize("kind", KINDS)
def test_scenes_are_as_they_were(kind: str) -> None:
    golden, now = json.loads(GOLDEN.read_text())[kind], measured(kind)
    for exact in ("objects", "parts", "visible"):
        assert now[exact] == golden[exact], exact
    np.testing.assert_allclose(now["joints"], golden["joints"], atol=2e-3)
    np.testing.assert_allclose(now["cells"], golden["cells"], atol=1.0)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({kind: measured(kind) for kind in KINDS}, separators=(",", ":")) + "\n")
