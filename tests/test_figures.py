"""Pictures: what is drawn where, in which colour and with which number; every figure draws without a warning.

Colours are told apart by people with colour-blindness: by a simulation.
"""

import io
from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from tcore_lib import figures
from tcore_lib.errors import InputError
from tcore_lib.figures import style

GREY = np.full((32, 48, 3), 100, dtype=np.uint8)
F = list(np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3), dtype=np.uint8))
IDS = [np.eye(6, 8, dtype=int)] * 3


# ---- colours and painting -------------------------------------------------------------------------------------------


def test_labels_blend_inside_have_opaque_outlines_and_leave_background_and_void() -> None:
    labels = np.zeros((32, 48), dtype=int)
    labels[8:24, 8:24], labels[:, 40:] = 1, 255
    painted = style.overlay_labels(GREY, labels, np.array([(0, 0, 0), (200, 0, 60)], dtype=np.uint8), alpha=0.5)
    assert painted[16, 16].tolist() == [150, 50, 80]  # (100 + 200) / 2, (100 + 0) / 2, (100 + 60) / 2
    assert painted[8, 16].tolist() == [200, 0, 60]
    assert painted[7, 16].tolist() == painted[16, 44].tolist() == [100, 100, 100]


def test_the_transparency_of_heat_follows_the_value() -> None:
    values = np.zeros((4, 6))
    values[1, 5], values[2, 2] = 1.0, 0.5
    painted = style.overlay_heat(GREY, values).astype(int)
    assert painted[12, 44].tolist() == [
        228,
        209,
        44,
    ]  # 85 % of viridis' bright end (253, 231, 37), row 1, column 5; 0.85 * 100
    assert painted[12, 4].tolist() == [85, 85, 85]  # nothing of the map where it is lowest: 0.85 * 100
    middle = 255 * np.array(plt.get_cmap("viridis")(0.5)[:3])
    np.testing.assert_allclose(painted[20, 20], 85 + 0.85 * (middle - 85) / 2, atol=1)
    assert (style.overlay_heat(GREY, values, limits=(0, 2))[12, 44] == painted[20, 20]).all()


def test_frames_are_uint8_and_network_inputs_become_pictures_again() -> None:
    inputs = (torch.tensor(np.stack(F)) / 255 - torch.tensor(IMAGENET_DEFAULT_MEAN)) / torch.tensor(
        IMAGENET_DEFAULT_STD
    )
    assert np.array_equal(style.denormalise(inputs.permute(0, 3, 1, 2)), F)
    for no_frame in (np.zeros((8, 8)), np.zeros((8, 8, 3)), np.zeros((3, 8, 8), np.uint8)):
        with pytest.raises(InputError, match="a frame to draw has shape"):
            style.to_frame(no_frame)


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


# ---- figures of frames ----------------------------------------------------------------------------------------------


def titles(figure: Figure) -> list[str]:
    return [ax.get_title(loc="left") for ax in figure.axes if ax.get_visible() and ax.images]


def test_states_stand_side_by_side_on_one_scale_with_the_query_outlined_and_hidden_patches_veiled() -> None:
    before, after = {"past": np.full((4, 6, 8), 1 / 48)}, {"past": np.full((2, 6, 8), 0.25 / 47)}
    after["past"][:, 3, 2] = 0.75
    mask = np.arange(6)[:, None].repeat(8, 1) >= 2
    figure = figures.attention_compared(F[0], (1, 6), {"past": F[0]}, {"before": before, "after": after}, mask)
    assert {patch.get_xy() for ax in figure.axes for patch in ax.patches} == {
        (6, 1)
    }  # x from the column, y from the row
    assert figure.axes[0].images[0].get_extent() == [0, 8, 6, 0]  # the axes' unit is a patch
    assert titles(figure) == ["query: row 1, column 6", "past", "before: up to 2.1%", "after: up to 75.0%"]
    shown = figure.axes[3].images[0].get_array()
    np.testing.assert_array_equal(shown, style.overlay_heat(F[0], after["past"].mean(0), limits=(0, 0.75)))
    query = figure.axes[0].images[0].get_array()
    np.testing.assert_array_equal(query[:16], F[0][:16])
    assert query[16:].min() > 130


def test_a_long_title_is_cut_in_its_middle() -> None:
    shown = titles(figures.contact_sheet(F * 2, [f"Synthetic_walk_f_cm_np1_fr_med_0, frame {i}" for i in range(6)]))
    assert all(len(text) <= 23 and text.startswith("Synth") for text in shown)
    assert [text[-8:] for text in shown] == [f" frame {i}" for i in range(6)]


VOTES = pd.DataFrame({"place": [0, 0, 1], "row": [1, 2, 3], "col": [2, 2, 3], "weight": [0.5, 0.2, 0.3]})


def test_votes_state_each_frames_share_and_matches_join_centres() -> None:
    figure = figures.top_k_links(F[0], (1, 2), F[:2], VOTES, (6, 8), ["a", "b"])
    assert titles(figure)[1:] == ["a: 2 votes, 70%", "b: 1 vote, 30%"]
    matches = pd.DataFrame({"row": [1], "column": [6], "to_row": [2], "to_column": [0], "similarity": [0.9]})
    drawn = figures.match_links(*F[:2], matches, (6, 8), ["a", "b"])
    assert [ax.lines[0].get_xydata()[0].tolist() for ax in drawn.axes] == [[6.5, 1.5], [0.5, 2.5]]  # x, y in patches


def test_objects_carry_their_number_and_one_frame_of_several_encoders_stands_side_by_side() -> None:
    labels = np.zeros((48, 64), int)
    labels[10:21, 30:41], labels[5, 5] = 2, 255
    figure = figures.masks_overlay(F[:1], {"ground truth": [labels], "a": [labels], "b": [labels]})
    assert titles(figure) == ["ground truth", "a", "b"]
    assert [(text.get_text(), *text.get_position()) for text in figure.axes[1].texts] == [("2", 35, 15)]
    named = figures.masks_overlay(F[:1], [labels], classes=["background", "dog", "swan"])
    assert [text.get_text() for text in named.legends[0].get_texts()] == ["swan"]
    assert not named.axes[0].texts


def test_joints_that_were_not_found_are_not_drawn_and_bones_join_all() -> None:
    joints = np.random.default_rng(0).uniform(10, 40, (15, 2))
    joints[3], joints[4] = -1, np.nan
    ax = figures.pose(F[:1], [joints]).axes[0]
    assert [len(dots.get_offsets()) for dots in ax.collections] == [0, 13]  # no ground truth; 15 - 2
    assert len(ax.lines) == len([bone for bone in style.JHMDB_BONES if not {3, 4} & set(bone)])
    assert {j for bone in style.JHMDB_BONES for j in bone} == set(range(15))


# ---- figures of numbers ---------------------------------------------------------------------------------------------


def log(rows: int = 20) -> pd.DataFrame:
    names = ("total", "koleo", "information_patch", "teacher_entropy")
    return pd.DataFrame({name: np.linspace(9, 5, rows) for name in names}).assign(step=np.arange(rows) * 10, mine=1.0)


def test_curves_draw_known_terms_in_order_and_hide_no_other() -> None:
    figure = figures.curves(log(), smooth=True)
    shown = [ax.get_title(loc="left") for ax in figure.axes if ax.get_visible()]
    assert shown == ["total loss", "KoLeo", "information in the targets, patches", "teacher entropy", "mine"]
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_xydata()[0], [0, 9])
    rise = pd.DataFrame({"step": [0, 1, 2], "lr": [0.0, 0.5, 0.1]})
    assert figures.curves(rise).axes[0].get_title(loc="left") == "learning rate:  0 → 0.5 → 0.1"
    with pytest.raises(InputError, match="no row to draw"):
        figures.curves(log(0))


def test_live_curves_redraw_one_display_and_not_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    class Display:
        def __init__(self, figure: Figure, display_id: bool) -> None:
            shown.append("display")

        def update(self, figure: Figure) -> None:
            shown.append("update")

    monkeypatch.setattr("IPython.display.display", Display)
    live = figures.LiveCurves(["total", "later"])
    for rows in (0, 1, 2, 3):
        live.update(log(rows))
    assert len(live.close(log(4)).axes[0].lines[0].get_xdata()) == 4
    assert shown == ["display", "update"]


def test_scores_of_any_number_of_encoders_say_what_was_not_run_and_what_pixels_reach() -> None:
    table = pd.DataFrame({"encoder": ["a", "b", "pixels"], "benchmark": "J&F", "value": [64.1, np.nan, 30.0]})
    table = table.assign(low=[60.0, np.nan, 25.0], high=[68.0, np.nan, 35.0], paper=[64.7, 66.4, np.nan])
    figure = figures.score_table(table)
    ax = figure.axes[0]
    assert [text.get_text() for text in ax.texts] == ["64.1", "not run", "30.0"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b", "pixels"]
    assert ax.lines[0].get_xdata() == [30, 30]
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named == ["pixels", "95 % interval over clips", "measured here", "paper"]


# ---- all of them ----------------------------------------------------------------------------------------------------

BOXES = {"current": [("global 1", (0, 0, 30, 40)), ("local 1", (5, 5, 9, 9))], "past": [("auxiliary", (0, 0, 48, 64))]}
CROPS = {name: [F[0][:side, :side]] * n for name, side, n in
         (("global", 32, 2), ("past", 32, 2), ("future", 32, 2), ("local", 16, 3))}  # fmt: skip
DEPTH = pd.DataFrame({("norm", "a"): [1.0, 2.0], ("norm", "b"): [2.0, 1.0], ("parameters", "a"): [2e6, 2e6]})
FIGURES: dict[str, Callable[[], Figure]] = {
    "contact_sheet": lambda: figures.contact_sheet(F, ["a", "b", "c"], 2, title="clip"),
    "one frame": lambda: figures.contact_sheet(F[:1]),
    "clip_bars": lambda: figures.clip_bars(pd.DataFrame({"a": np.arange(10.0)}), top=4),
    "sandwich": lambda: figures.sandwich(F, BOXES, CROPS, np.eye(4, dtype=bool)),
    "masks_overlay": lambda: figures.masks_overlay(F, IDS),
    "strip": lambda: figures.masks_overlay(F, {"a": IDS, "b": IDS}, ["1", "2", "3"], classes=["", "swan"], title="t"),
    "pose": lambda: figures.pose(F, np.full((3, 15, 2), 20.0), np.full((3, 15, 2), 21.0)),
    "heatmap_on_frame": lambda: figures.heatmap_on_frame(F[0], np.eye(6, 8), "map", unit="cosine", query=(1, 2)),
    "one value": lambda: figures.histogram([20, 20, 20], "frames", "lengths"),
    "top_k_links": lambda: figures.top_k_links(F[0], (1, 2), F, VOTES, (6, 8), ["a", "b", "c"]),
    "schedules": lambda: figures.curves(pd.DataFrame({"epoch": [0, 1, 2], "lr": [0, 1e-3, 1e-6], "x": [0.9] * 3})),
    "logs": lambda: figures.curves({"a": log(100), "b": log(1)}, title="run", smooth=True),
    "depth": lambda: figures.curves(DEPTH),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_draws_at_notebook_width(name: str) -> None:
    figure = FIGURES[name]()
    figure.savefig(io.BytesIO(), dpi=30)
    assert figure.get_figwidth() == 10
    assert figure.get_figheight() < 12
    assert plt.get_fignums() == []  # nothing piles up


def test_in_a_notebook_the_figure_stays_open_for_the_end_of_the_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matplotlib.get_backend", lambda: "module://matplotlib_inline.backend_inline")
    figure = figures.histogram([1, 2, 3])
    assert plt.get_fignums() == [figure.number]
    plt.close(figure)
