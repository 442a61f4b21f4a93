"""Pictures: what is drawn where, in which colour and with which number; every figure draws without a warning."""

import io
import itertools
from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tcore_lib.errors import InputError
from tcore_lib.figures import diagram, panels, pictures, plots, style as look

GREY = np.full((32, 48, 3), 100, dtype=np.uint8)


def clip(count: int = 3, size: tuple[int, int] = (48, 64)) -> list[np.ndarray]:
    """Frames of noise."""
    return list(np.random.default_rng(0).integers(0, 256, (count, *size, 3), dtype=np.uint8))


# ---- colours and painting -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "vision",
    [
        np.eye(3),
        # Linear RGB as seen without M cones and without L cones (Machado, Oliveira, Fernandes 2009, severity 1).
        np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
        np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
    ],
    ids=["all cones", "deuteranopia", "protanopia"],
)
def test_the_first_objects_and_the_roles_stay_apart_for_every_eye(vision: np.ndarray) -> None:
    for colours in (look.object_palette(7)[1:], [look.to_rgb8(c) for c in look.ROLE_COLOURS.values()]):
        linear = (np.array(colours) / 255) ** 2.2
        seen = 255 * np.clip(linear @ vision.T, 0, 1) ** (1 / 2.2)
        distance = np.linalg.norm(seen[:, None] - seen[None], axis=-1) + 1e3 * np.eye(len(seen))
        assert distance.min() > 40  # of 442


def test_overlay_blends_inside_outlines_in_full_and_leaves_background_and_void() -> None:
    labels = np.zeros((32, 48), dtype=int)
    labels[8:24, 8:24] = 1
    labels[:, 40:] = 255
    palette = np.array([(0, 0, 0), (200, 0, 60)], dtype=np.uint8)
    painted = look.overlay_labels(GREY, labels, palette, alpha=0.5)
    assert painted[16, 16].tolist() == [150, 50, 80]  # (100 + 200) / 2, (100 + 0) / 2, (100 + 60) / 2
    assert painted[8, 16].tolist() == [200, 0, 60]
    assert painted[7, 16].tolist() == painted[16, 44].tolist() == [100, 100, 100]


def test_a_grid_is_enlarged_cell_by_cell() -> None:
    large = look.enlarge(np.array([[1, 2, 3], [4, 5, 6]]), (4, 6))
    assert large.tolist() == [[1, 1, 2, 2, 3, 3]] * 2 + [[4, 4, 5, 5, 6, 6]] * 2


def test_heat_is_strongest_at_the_largest_value_and_uses_the_given_limits() -> None:
    values = np.zeros((4, 6))
    values[1, 5] = 1.0
    painted = look.overlay_heat(GREY, values, alpha=1.0).astype(int)
    assert painted[12, 44].tolist() == [253, 231, 37]  # the bright end of viridis, row 1 of 4, column 5 of 6
    assert painted[12, 4].max() < 110
    assert (look.overlay_heat(GREY, values, limits=(0, 2), alpha=1.0)[12, 44] < painted[12, 44]).any()
    assert np.ptp(look.overlay_heat(GREY, np.ones((4, 6)))) == np.ptp(look.overlay_heat(GREY, np.ones((1, 1))))


def test_hidden_patches_cover_rows_and_columns_as_the_mask_says() -> None:
    mask = np.zeros((4, 6), dtype=bool)
    mask[3, 1] = True
    covered = np.argwhere((look.hide_patches(GREY, mask, "#000000") == 0).all(-1))
    assert covered.min(0).tolist() == [24, 8]
    assert covered.max(0).tolist() == [31, 15]
    with pytest.raises(InputError, match="10 patches is not a square grid"):
        look.hide_patches(GREY, np.zeros(10, dtype=bool))


def test_denormalise_inverts_the_networks_input() -> None:
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    frames = np.stack(clip(2))
    inputs = np.moveaxis((frames / 255 - IMAGENET_DEFAULT_MEAN) / IMAGENET_DEFAULT_STD, -1, 1)
    assert np.array_equal(look.denormalise(inputs), frames)


@pytest.mark.parametrize("frame", [np.zeros((8, 8)), np.zeros((8, 8, 3)), np.zeros((3, 8, 8), np.uint8)])
def test_a_picture_that_is_no_frame_is_refused(frame: np.ndarray) -> None:
    with pytest.raises(InputError, match="a frame to draw has shape"):
        look.to_frame(frame)


# ---- figures of frames ----------------------------------------------------------------------------------------------


def rectangles(figure: Figure) -> list[tuple[float, ...]]:
    return [
        (*patch.get_xy(), patch.get_width(), patch.get_height())
        for ax in figure.axes
        for patch in ax.patches
        if isinstance(patch, Rectangle) and not patch.get_fill()
    ]


def test_the_query_patch_is_outlined_at_its_row_and_column() -> None:
    maps = np.full((4, 6, 8), 1 / 48)
    figure = pictures.attention_grid(clip(1)[0], (1, 6), {"past": clip(1)[0]}, {"past": maps})
    assert set(rectangles(figure)) == {(6 * 8 - 0.5, 1 * 8 - 0.5, 8.0, 8.0)}  # x from the column, y from the row


def test_several_maps_on_one_picture_get_a_row_each() -> None:
    maps = {"past": np.full((4, 6, 8), 1 / 48), "past, untrained": np.full((4, 6, 8), 1 / 48)}
    figure = pictures.attention_grid(clip(1)[0], (1, 6), {"past": clip(1)[0]}, maps)
    assert [ax.get_title(loc="left") for ax in figure.axes][1::3] == ["past", "past, untrained"]


def looks_from(row: int, column: int, to: tuple[int, int]) -> np.ndarray:
    """Two heads (2, 6, 8, 6, 8): the patch at (row, column) gives 3/4 to `to`; everything else is even."""
    maps = np.full((2, 6, 8, 6, 8), 1 / 48)
    maps[:, row, column] = 0.25 / 47
    maps[:, row, column, to[0], to[1]] = 0.75
    return maps


def test_states_stand_side_by_side_on_one_scale() -> None:
    frame = clip(1)[0]
    before, after = {"past": np.full((4, 6, 8), 1 / 48)}, {"past": looks_from(1, 6, (3, 2))[:, 1, 6]}
    figure = pictures.attention_compared(frame, (1, 6), {"past": frame}, {"before": before, "after": after})
    assert set(rectangles(figure)) == {(6 * 8 - 0.5, 1 * 8 - 0.5, 8.0, 8.0)}
    titles = [ax.get_title(loc="left") for ax in figure.axes[:4]]
    assert titles == ["query: row 1, column 6", "past", "before: up to 2.1%", "after: up to 75.0%"]
    even, peaked = (figure.axes[i].images[0].get_array().astype(int) for i in (2, 3))
    assert np.abs(even - even[::8, ::8].repeat(8, 0).repeat(8, 1)).max() > 0  # the frame shows through
    assert peaked[28, 20].tolist() == look.overlay_heat(frame, after["past"].mean(0), limits=(0, 0.75))[28, 20].tolist()


def test_the_atlas_puts_each_map_at_its_patch_and_marks_both_places() -> None:
    mask = np.zeros((6, 8), bool)
    mask[1, 6] = True
    figure = pictures.attention_atlas(clip(1)[0], {"past": looks_from(1, 6, (3, 2))}, mask)
    sheet = figure.axes[1].images[0].get_array()
    assert sheet.shape == (6 * 18 + 5 * 3, 8 * 24 + 7 * 3, 3)  # tiles of 18 x 24 pixels, gaps of 3
    tile = sheet[1 * 21 : 1 * 21 + 18, 6 * 27 : 6 * 27 + 24]
    assert tile[3 * 3 + 1, 2 * 3 + 1].tolist() == list(look.to_rgb8(look.OKABE_ITO["orange"]))  # looks most at (3, 2)
    assert tile[1 * 3 + 1, 6 * 3 + 1].tolist() == [255, 255, 255]  # its own place
    assert tile[3 * 3, 2 * 3].tolist() == [253, 231, 37]  # the bright end of viridis, at full strength
    paler = sheet[:18, :24]
    assert paler[10, 10].astype(int).sum() > 600  # not hidden


def test_the_matrix_has_a_row_per_hidden_patch() -> None:
    mask = np.zeros((6, 8), bool)
    mask[1, 6] = mask[4, 0] = True
    figure = pictures.attention_matrix({"past": looks_from(1, 6, (3, 2)), "future": looks_from(4, 0, (0, 0))}, mask)
    past, future = (figure.axes[i].images[0].get_array() for i in (0, 1))
    assert past.shape == (2, 48)
    assert np.unravel_index(past.argmax(), past.shape) == (0, 3 * 8 + 2)
    assert np.unravel_index(future.argmax(), future.shape) == (1, 0)
    own = figure.axes[0].collections[0].get_offsets()
    assert own.tolist() == [[1 * 8 + 6, 0], [4 * 8, 1]]


def test_a_long_title_shrinks_and_is_then_cut_in_its_middle() -> None:
    assert panels.fitted("frame 3", 100) == (9.0, "frame 3")
    size, words = panels.fitted("a title of some length", 90)
    assert panels.SMALLEST <= size < 9
    assert words == "a title of some length"
    size, words = panels.fitted("Synthetic_walk_f_cm_np1_fr_med_0, frame 8", 100)
    assert size == panels.SMALLEST
    assert words.startswith("Synth")
    assert words.endswith("frame 8")
    assert " … " in words


def test_titles_of_neighbouring_pictures_do_not_touch() -> None:
    names = [f"a_very_long_name_of_a_clip_number_{i}, frame {i}" for i in range(6)]
    figure = pictures.contact_sheet(clip(6), names)
    figure.canvas.draw()
    spans = [ax._left_title.get_window_extent() for ax in figure.axes]
    assert all(left.x1 <= right.x0 for left, right in itertools.pairwise(spans))


def test_a_row_of_the_clip_figure_is_named_by_the_index() -> None:
    table = pd.DataFrame({"a": [10.0, 20.0]}, index=pd.Index(["neck", "belly"], name="joint"))
    assert plots.clip_bars(table).axes[0].get_xlabel() == "%   (dotted: mean over 2 joints)"
    assert plots.clip_bars(table.rename_axis(None)).axes[0].get_xlabel() == "%   (dotted: mean over 2 clips)"


def test_the_legend_of_scores_names_only_what_is_drawn() -> None:
    scores = pd.DataFrame({"encoder": ["a"], "benchmark": ["DAVIS"], "measured": [50.0]})
    texts = [text.get_text() for text in plots.score_table(scores).legends[0].get_texts()]
    assert texts == ["measured here"]
    texts = [text.get_text() for text in plots.score_table(scores.assign(paper=60.0)).legends[0].get_texts()]
    assert sorted(texts) == ["measured here", "paper"]


def test_links_state_each_frames_share_of_the_vote() -> None:
    positions = np.array([[0, 1, 2], [0, 2, 2], [1, 3, 3]])
    figure = pictures.top_k_links(clip(1)[0], (1, 2), clip(2), positions, np.array([0.5, 0.2, 0.3]), (6, 8))
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles[1:] == ["context 0: 2 votes, 70%", "context 1: 1 vote, 30%"]


def test_matches_are_joined_from_patch_centre_to_patch_centre() -> None:
    matches = pd.DataFrame({"row": [1], "column": [6], "to_row": [2], "to_column": [0], "similarity": [0.9]})
    figure = pictures.match_links(*clip(2), matches, (6, 8))
    ends = [ax.lines[0].get_xydata()[0].tolist() for ax in figure.axes]
    assert ends == [[51.5, 11.5], [3.5, 19.5]]  # (6.5 * 8 - 0.5, 1.5 * 8 - 0.5), (0.5 * 8 - 0.5, 2.5 * 8 - 0.5)


def test_one_frame_of_several_encoders_stands_side_by_side() -> None:
    figure = pictures.segmentation_strip(F[:1], {"a": IDS[:1], "b": IDS[:1]}, IDS[:1], ["frame 3"])
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["ground truth", "a", "b"]


def test_in_a_notebook_the_figure_stays_open_for_the_end_of_the_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matplotlib.get_backend", lambda: "module://matplotlib_inline.backend_inline")
    figure = plots.histogram([1, 2, 3])
    assert plt.get_fignums() == [figure.number]
    plt.close(figure)


def test_joints_that_were_not_found_are_not_drawn() -> None:
    joints = np.random.default_rng(0).uniform(10, 40, (15, 2))
    joints[3] = -1
    joints[4] = np.nan
    figure = pictures.pose(clip(1)[0], joints)
    assert len(figure.axes[0].collections[0].get_offsets()) == 13  # 15 - 2
    assert len(figure.axes[0].lines) == len([bone for bone in look.JHMDB_BONES if not {3, 4} & set(bone)])


def test_bones_join_every_joint_once() -> None:
    assert len(look.JHMDB_BONES) == 14
    assert {j for bone in look.JHMDB_BONES for j in bone} == set(range(15))
    assert len(look.VIP_CLASSES) == len(look.VIP_PALETTE) == 20


def test_pca_gives_one_colour_to_one_thing_in_all_frames() -> None:
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 3, (2, 6, 8))
    features = rng.normal(size=(3, 20))[kinds] + 0.01 * rng.normal(size=(2, 6, 8, 20))
    colours = pictures.pca_components(features)[..., :2]  # three points span two directions
    means = np.array([colours[kinds == kind].mean(0) for kind in range(3)])
    assert np.abs(colours - means[kinds]).max() < 0.1
    assert min(np.linalg.norm(means[a] - means[b]) for a, b in ((0, 1), (0, 2), (1, 2))) > 0.5


def test_one_entry_per_frame_is_asked_for() -> None:
    with pytest.raises(InputError, match="labels has 2 entries for 3 frames"):
        pictures.masks_overlay(clip(3), [np.zeros((48, 64), int)] * 2)


# ---- figures of numbers ---------------------------------------------------------------------------------------------


def log(rows: int = 20) -> pd.DataFrame:
    names = (
        "total",
        "dino_local",
        "dino_global",
        "koleo",
        "patch_past",
        "patch_future",
        "agreement",
        "teacher_entropy",
    )
    table = pd.DataFrame({name: np.linspace(9, 5, rows) for name in names})
    return table.assign(step=np.arange(rows) * 10, my_term=1.0)


def test_running_mean_is_centred_shorter_at_the_ends_and_skips_nan() -> None:
    values = np.array([1.0, 3.0, 5.0, np.nan, 9.0])
    assert plots.running_mean(values, 3).tolist() == [2, 3, 4, 7, 9]  # (1+3)/2, (1+3+5)/3, (3+5)/2, (5+9)/2, 9


def test_loss_curves_draw_known_terms_in_order_and_hide_no_other() -> None:
    figure = plots.loss_curves(log())
    titles = [ax.get_title(loc="left") for ax in figure.axes if ax.get_visible()]
    assert titles[:3] == ["total loss", "DINO, local crops", "DINO, global crops"]
    assert titles[-2:] == ["teacher entropy", "my term"]
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_xydata()[0], [0, 9])


def test_an_empty_log_and_an_unknown_column_are_refused() -> None:
    with pytest.raises(InputError, match="log is empty"):
        plots.loss_curves(log(0))
    with pytest.raises(InputError, match="no column 'loss_x'"):
        plots.loss_curves(log(), ["loss_x"])


def test_live_curves_redraw_one_display_and_not_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, Figure]] = []

    class Handle:
        def update(self, figure: Figure) -> None:
            shown.append(("update", figure))

    def display(figure: Figure, display_id: bool) -> Handle:
        assert display_id
        shown.append(("display", figure))
        return Handle()

    monkeypatch.setattr("IPython.get_ipython", lambda: object())
    monkeypatch.setattr("IPython.display.display", display)
    live = plots.LiveCurves(every=3600)
    for rows in (0, 1, 2, 3):
        live.update(log(rows))
    final = live.close(log(4))
    assert [kind for kind, _ in shown] == ["display", "update"]
    assert shown[-1][1] is final
    assert len(final.axes[0].lines[0].get_xdata()) == 4


def test_score_bars_have_the_measured_length_and_say_what_was_not_run() -> None:
    table = pd.DataFrame(
        {
            "encoder": ["a", "b"],
            "benchmark": ["J&F", "J&F"],
            "measured": [64.1, np.nan],
            "low": [60.0, np.nan],
            "high": [68.0, np.nan],
            "paper": [64.7, 66.4],
        }
    )
    ax = plots.score_table(table).axes[0]
    assert [bar.get_width() for bar in ax.patches] == [64.1, 0.0]
    assert [text.get_text() for text in ax.texts] == ["64.1", "not run"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]


def test_a_histogram_marks_the_median_and_counts_what_it_leaves_out() -> None:
    ax = plots.histogram([1, 2, 3, 4, 100, np.nan], "frames", "lengths").axes[0]
    assert "median 3" in [text.get_text() for text in ax.texts]
    assert ax.get_title(loc="left") == "lengths  (1 not finite, left out)"
    assert ax.get_title(loc="right") == "n = 5"


def test_a_histogram_of_one_value_is_one_bar_with_one_mark() -> None:
    ax = plots.histogram([20, 20, 20], "frames").axes[0]
    assert [text.get_text() for text in ax.texts] == ["all 20"]
    assert all(tick == round(tick) for tick in ax.get_xticks())
    left, right = ax.get_xlim()
    assert right - left == pytest.approx(5)  # the bar and two places on either side


def test_class_counts_tell_how_many_are_not_drawn() -> None:
    ax = plots.class_counts({"a": 5, "b": 3, "c": 2, "d": 1}, top=2).axes[0]
    assert [bar.get_width() for bar in ax.patches] == [5, 3]
    assert "2 more classes with 3 videos" in ax.get_xlabel()  # 2 + 1


def test_clip_bars_say_how_many_are_left_out() -> None:
    ax = plots.clip_bars(pd.DataFrame({"a": np.arange(10.0)}), top=4).axes[0]
    assert ax.get_title(loc="left").endswith("(6 in the middle left out)")
    assert ax.collections[1].get_offsets()[:, 0].tolist() == [9, 8, 1, 0]


# ---- all of them ----------------------------------------------------------------------------------------------------

F, IDS = clip(), [np.eye(6, 8, dtype=int)] * 3
BOXES = {"current": [("global 1", (0, 0, 30, 40)), ("local 1", (5, 5, 9, 9))], "past": [("auxiliary", (0, 0, 48, 64))]}
CROPS = {
    "global": clip(2, (32, 32)),
    "past": clip(2, (32, 32)),
    "future": clip(2, (32, 32)),
    "local": clip(3, (16, 16)),
}
DEPTH = pd.DataFrame({("norm", "a"): [1.0, 2.0], ("norm", "b"): [2.0, 1.0], ("parameters", "a"): [2e6, 2e6]})
FIGURES: dict[str, Callable[[], Figure]] = {
    "contact_sheet": lambda: pictures.contact_sheet(F, ["a", "b", "c"], 2, title="clip"),
    "one frame": lambda: pictures.contact_sheet(F[:1]),
    "sandwich": lambda: pictures.sandwich(F, BOXES, CROPS, np.eye(4, dtype=bool), indices=(1, 5, 8), num_frames=20),
    "masks_overlay": lambda: pictures.masks_overlay(F, IDS),
    "segmentation_strip": lambda: pictures.segmentation_strip(
        F, {"a": IDS}, IDS, ["1", "2", "3"], classes=["", "swan"]
    ),
    "parts": lambda: pictures.parts(F[0], np.arange(48).reshape(6, 8) % 20),
    "pose": lambda: pictures.pose(F, np.full((3, 15, 2), 20.0), np.full((3, 15, 2), 21.0), reach=[3, 4, 5]),
    "heatmap_on_frame": lambda: pictures.heatmap_on_frame(F[0], np.eye(6, 8), "map", unit="cosine", query=(1, 2)),
    "attention_grid": lambda: pictures.attention_grid(
        F[0], (1, 6), {"past": F[1]}, {"past": looks_from(1, 6, (3, 2))[:, 1, 6]}, title="after training"
    ),
    "attention_compared": lambda: pictures.attention_compared(
        F[0], (1, 6), {"past": F[1]}, {"after": {"past": looks_from(1, 6, (3, 2))[:, 1, 6]}}, title="one patch"
    ),
    "attention_atlas": lambda: pictures.attention_atlas(
        F[0], {role: looks_from(1, 6, (3, 2)) for role in ("past", "future")}, np.eye(6, 8, dtype=bool), title="all"
    ),
    "attention_matrix": lambda: pictures.attention_matrix({"past": looks_from(1, 6, (3, 2))}),
    "top_k_links": lambda: pictures.top_k_links(F[0], (1, 2), F, np.array([[2, 1, 1]]), np.array([1.0]), (6, 8)),
    "one frame, classes": lambda: pictures.segmentation_strip(F[:1], {"a": IDS[:1]}, classes=["", "swan"]),
    "pca_rgb": lambda: pictures.pca_rgb(F, {"a": np.zeros((3, 6, 8, 3))}, ["1", "2", "3"]),
    "schedules": lambda: plots.schedules(
        pd.DataFrame({"epoch": [0, 1, 2], "lr": [0, 1e-3, 1e-6], "momentum": [0.9] * 3})
    ),
    "loss_curves": lambda: plots.loss_curves({"a": log(100), "b": log(1)}, title="run"),
    "depth_curves": lambda: plots.depth_curves(DEPTH),
    "method_figure": lambda: diagram.method_figure(F),
}


@pytest.mark.parametrize("theme", look.THEMES)
@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_draws_in_both_themes_at_notebook_width(name: str, theme: str) -> None:
    look.use(theme)
    try:
        figure = FIGURES[name]()
        stream = io.BytesIO()
        figure.savefig(stream, dpi=30)
    finally:
        look.use("light")
    assert figure.get_figwidth() == 10
    assert figure.get_figheight() < 12
    assert plt.get_fignums() == []  # nothing piles up
    assert figure.get_facecolor()[:3] == tuple(np.array(look.to_rgb8(look.THEMES[theme]["paper"])) / 255)


def test_an_unknown_theme_is_refused() -> None:
    with pytest.raises(InputError, match="theme 'blue' is unknown; choose one of light, dark"):
        look.use("blue")
