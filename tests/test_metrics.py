"""J, F, PCK and mean IoU on cases a reader checks by hand, and the properties that hold for every case."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from tcore_lib.evaluation import davis, jhmdb, vip


def picture(*rows: str) -> NDArray[np.bool_]:
    """A mask drawn with # and dots."""
    return np.array([[character == "#" for character in row] for row in rows])


EMPTY = np.zeros((4, 6), bool)
LEFT = picture("##....", "##....", "##....", "......")  # 6 pixels
RIGHT = picture(".##...", ".##...", ".##...", "......")  # 6 pixels, one column further


def test_j_by_hand() -> None:
    assert davis.region_similarity(LEFT, RIGHT) == 3 / (6 + 6 - 3)  # the middle column is in both


@pytest.mark.parametrize("measure", [davis.region_similarity, davis.boundary_measure])
def test_j_and_f_of_equal_and_empty_masks(measure: Callable[..., float]) -> None:
    assert measure(LEFT, LEFT) == 1
    assert measure(EMPTY, EMPTY) == 1
    assert measure(LEFT, EMPTY) == 0
    assert measure(EMPTY, LEFT) == 0


def test_void_is_left_out_of_both_maps() -> None:
    void = picture("#.....", "#.....", "......", "......")
    found, true = LEFT.astype(np.uint8), RIGHT.astype(np.uint8)
    assert davis.frame_scores(found, np.where(void, 255, true), 1)[0, 0] == 3 / (
        4 + 6 - 3
    )  # two pixels of LEFT are void
    assert davis.frame_scores(found, np.where(LEFT, 255, 0), 1).tolist() == [[1, 1]]  # nothing is left of either


def test_boundary_by_hand() -> None:
    # Pixel by pixel: does it differ from its right, lower, or lower right neighbour?
    mask = picture("......", "..##..", "..##..", "......")
    assert davis.boundary(mask).tolist() == picture(".###..", ".#.#..", ".###..", "......").tolist()
    # In the last row and column only the neighbour inside the image counts, and the corner is no boundary.
    corner = picture("......", "......", "....##", "....##")
    assert davis.boundary(corner).tolist() == picture("......", "...###", "...#..", "...#..").tolist()


def test_f_by_hand() -> None:
    found, true = np.zeros((4, 10), bool), np.zeros((4, 10), bool)
    found[:, :2], true[:, :4] = True, True  # boundaries: column 1 and column 3, 4 pixels each, 2 apart
    assert davis.boundary_measure(found, true, tolerance=2) == 1
    assert davis.boundary_measure(found, true, tolerance=1) == 0
    assert davis.boundary_tolerance((480, 854)) == 8  # 0.008 * 979.65 = 7.84
    assert davis.boundary_tolerance((480, 880)) == 9  # 0.008 * 1002.4 = 8.02
    true = found.copy()
    true[:, 8:] = True  # a second object, boundary in column 7: 4 more true pixels that nobody found
    assert davis.boundary_measure(found, true, tolerance=2) == pytest.approx(2 / 3)  # 2 * 1 * 4/8 / (1 + 4/8)


def test_mean_recall_and_decay_by_hand() -> None:
    values = np.array([1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    mean, recall, decay = davis.sequence_statistics(values)
    assert mean == pytest.approx(3.9 / 8)
    assert recall == 3 / 8  # 0.5 is not above 0.5
    # Limits of the four bins: frames 1, 3, 5, 6, 8. First bin: frames 1-3, mean 0.8. Last: frames 6-8, mean 0.2.
    assert decay == pytest.approx(0.8 - 0.2)
    assert all(math.isnan(value) for value in davis.sequence_statistics(np.array([])))
    assert davis.sequence_statistics(np.array([0.7])) == (0.7, 1.0, 0.0)


def test_distances_by_hand() -> None:
    # Three joints on a box of 30 x 40 pixels: diagonal 50, unit 0.6 * 50 = 30 pixels.
    truth = np.array([[[0, 0], [30, 0], [30, 40]]], float)
    prediction = truth + np.array([[0, 0], [3, 0], [0, -15]])
    assert jhmdb.joint_distances(prediction, truth)[0] == pytest.approx([0, 0.1, 0.5])  # 3 / 30, 15 / 30
    found, correct = jhmdb.joint_counts(jhmdb.joint_distances(prediction, truth))
    assert found.tolist() == [1, 1, 1]
    # Thresholds 0.1, 0.2, 0.3, 0.4, 0.5; a distance equal to the threshold is correct.
    assert correct.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]]


def test_the_box_is_that_of_the_found_joints() -> None:
    truth = np.array([[[0, 0], [30, 40], [3000, 4000]]], float)
    prediction = truth + np.array([[0, 3], [0, 0], [math.nan, math.nan]])
    distances = jhmdb.joint_distances(prediction, truth)[0]
    assert distances[:2] == pytest.approx([0.1, 0])  # 3 / (0.6 * 50): the far joint was not found
    assert math.isnan(distances[2])


def test_iou_by_hand() -> None:
    truth = np.array([[0, 0, 1, 1], [0, 0, 2, 255]], np.uint8)
    prediction = np.array([[0, 1, 1, 1], [0, 0, 1, 3]], np.uint8)
    matrix = vip.confusion(prediction, truth, 5)
    assert matrix[:3, :3].tolist() == [[3, 1, 0], [0, 2, 0], [0, 1, 0]]  # the pixel of id 255 is left out
    assert matrix.sum() == 7
    iou = vip.class_iou(matrix)
    # Hit 3, true 4, predicted 3; hit 2, true 2, predicted 4; true, never predicted; neither there nor predicted.
    np.testing.assert_array_equal(iou, [3 / 4, 2 / 4, 0, np.nan, np.nan])
