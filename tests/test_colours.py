"""Colours that people with colour-blindness tell apart, by a simulation."""

import numpy as np
import pytest

from tcore_lib.figures import style


def lab(rgb: np.ndarray, vision: np.ndarray) -> np.ndarray:
    """CIELAB (D65) of colours 0..255 (n, 3) as seen with a `vision` (3, 3) of linear RGB."""
    share = rgb / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4) @ vision.T
    to_xyz = np.array([[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]])
    xyz = np.clip(linear, 0, 1) @ to_xyz.T / (0.9505, 1.0, 1.0888)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


@pytest.mark.parametrize(
    "vision",
    [
        np.eye(3),
        # Without M cones and without L cones (Machado, Oliveira, Fernandes 2009, severity 1).
        np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]),
        np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    ],
    ids=["all cones", "deuteranopia", "protanopia"],
)
def test_objects_and_roles_stay_apart_for_every_eye_and_on_orange_things(vision: np.ndarray) -> None:
    def closest(colours: np.ndarray, others: np.ndarray) -> float:
        return float(np.linalg.norm(lab(colours, vision)[:, None] - lab(others, vision), axis=-1).min())

    objects = style.object_palette(5)[1:]
    roles = np.array([style.to_rgb8(colour) for colour in style.ROLE_COLOURS.values()])
    for colours, least in ((objects, 45), (roles, 20)):
        assert min(closest(colours[[i]], np.delete(colours, i, 0)) for i in range(len(colours))) > least
    fur = np.array([(200, 110, 40), (160, 80, 30), (230, 150, 60), (120, 70, 30)])
    assert closest(objects, fur) > 25
    assert closest(objects[:1], fur) > 80
