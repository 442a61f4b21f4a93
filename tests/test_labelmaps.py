"""Labels on and off the grid, by hand."""

import numpy as np
import pytest
import torch

from tcore_lib.evaluation import labels as labelmaps
from tcore_lib.evaluation.jhmdb import joint_soft_map, to_joints


def test_input_is_normalised_and_resized_linearly_without_antialias() -> None:
    frame = torch.zeros(1, 2, 2, 3, dtype=torch.uint8)
    frame[0, :, 1, 0] = 255  # the right column is red
    # Four columns from two: centres at -0.25, 0.25, 0.75, 1.25 of the old ones, so 0, 1/4, 3/4, 1 of red.
    wide = labelmaps.to_input(frame, (2, 4))[0, 0, 0] * 0.229 + 0.485
    torch.testing.assert_close(wide, torch.tensor([0, 0.25, 0.75, 1.0]))
    # Half of the columns: every new pixel is the mean of exactly two old ones; antialias would blend four.
    small = labelmaps.to_input(frame.repeat(1, 1, 2, 1), (2, 2))[0, 0, 0] * 0.229 + 0.485
    torch.testing.assert_close(small, torch.tensor([0.5, 0.5]))


def test_nearest_takes_the_pixel_that_opencv_and_torch_take() -> None:
    # floor(i * 5 / 3) = 0, 1, 3 and floor(i * 3 / 5) = 0, 0, 1, 1, 2
    line = np.arange(5, dtype=np.uint8)[None]
    assert labelmaps.resize_ids(line, (1, 3))[0].tolist() == [0, 1, 3]
    assert labelmaps.resize_ids(line[:, :3], (1, 5))[0].tolist() == [0, 0, 1, 1, 2]


def test_first_soft_map_is_a_share_of_each_id() -> None:
    labels = np.zeros((4, 4), np.uint8)
    labels[:, 1] = 3
    soft, ids = labelmaps.first_soft_map(labels, (4, 4), (2, 2))
    assert ids == [0, 3]
    # A cell of 2 x 2 pixels: the left column's cells are half background, half object 3.
    torch.testing.assert_close(soft[1], torch.tensor([[0.5, 0.0], [0.5, 0.0]]))
    torch.testing.assert_close(soft.sum(0), torch.ones(2, 2))


def test_ids_are_the_largest_channel_at_input_size() -> None:
    soft = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])  # (1, C = 2, h = 1, w = 2)
    # Linear to 4 columns: channel 1 is 0, 1/4, 3/4, 1.
    assert labelmaps.to_ids(soft, [0, 7], (1, 4))[0, 0].tolist() == [0, 0, 7, 7]
    soft = torch.tensor([[[[0.6, 0.3, 0.6]], [[0.4, 0.7, 0.4]]]])
    assert labelmaps.to_ids(soft, [0, 7], (1, 6), "nearest")[0, 0].tolist() == [0, 0, 7, 7, 0, 0]
    # A tie goes to the lowest id.
    assert labelmaps.to_ids(torch.full((1, 2, 1, 1), 0.5), [0, 7], (1, 1)).item() == 0


def test_joints_at_and_beyond_the_border_are_cut() -> None:
    soft = joint_soft_map(np.array([[9.9, 9.9], [-0.6, 5.0], [30.0, 5.0], [-8.0, -8.0]]), (10, 10))
    assert soft[1, 8:, 8:].count_nonzero() == soft[1].count_nonzero() == 4  # first cell (8, 8): two rows and columns
    # u = -0.6: the window begins at int(-2.1) = -2 and ends before int(1.9) = 1, so only its third column is left.
    assert soft[2].nonzero()[:, 1].tolist() == [0] * 4
    assert soft[2, 5, 0] == 1
    assert soft[3:].count_nonzero() == 0  # wholly outside


def test_a_joint_is_the_weighted_mean_of_five_cells() -> None:
    soft = torch.zeros(1, 3, 4, 5)
    for (row, column), value in {(1, 1): 4, (1, 2): 2, (2, 1): 1, (3, 4): 1, (0, 1): 2, (0, 0): 0.5}.items():
        soft[0, 1, row, column] = value
    # The five largest: weights 4, 2, 1, 1, 2 of 10; the cell of 0.5 is left out.
    x = (4 * 1 + 2 * 2 + 1 * 1 + 1 * 4 + 2 * 1) / 10
    y = (4 * 1 + 2 * 1 + 1 * 2 + 1 * 3 + 2 * 0) / 10
    joints = to_joints(soft)[0]
    assert joints[0].tolist() == pytest.approx([x, y], abs=1e-6)
    assert joints[1].isnan().all()  # an empty map is not found
    assert to_joints(torch.full((1, 2, 2, 2), 0.25))[0, 0].tolist() == [0.5, 0.5]  # four cells, fewer than five


def test_of_equal_cells_the_earlier_ones_make_the_joint() -> None:
    """Seven cells of 0.1 that differ by rounding: the first five, at x = 1 ... 5, whichever came out largest."""
    noise = torch.tensor([0.0, 3.0, -2.0, 1.0, 0.0, 5.0, 6.0]) * 1e-8
    soft = torch.zeros(2, 2, 1, 8)
    soft[0, 1, 0, 1:] = 0.1 + noise
    soft[1, 1, 0, 1:] = 0.1 - noise
    assert to_joints(soft)[:, 0].tolist() == [pytest.approx([3.0, 0.0], abs=1e-5)] * 2
