"""Sandwich sampling (docs/method.md section 1): ranges by hand, samples and batches. Workers and ranks: test_pretrain."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from tcore_lib.data.sandwich import SandwichDataset, collate, counters, epoch_order, sandwich_indices, video_of
from tcore_lib.params import Sandwich
from tcore_lib.randomness import generator

DEFAULT = Sandwich()


class Coded:
    """An index whose frames say which video and frame they are: channel 0 = video, channel 1 = frame, by content."""

    def __init__(self, num_frames: Sequence[int], sizes: Sequence[tuple[int, int]]) -> None:
        self.num_frames = np.array(num_frames, dtype=np.int32)
        self.sizes = sizes
        self.reads: list[tuple[int, list[int]]] = []

    def __len__(self) -> int:
        return len(self.num_frames)

    def read(self, i: int, frame_indices: Sequence[int]) -> list[np.ndarray]:
        self.reads.append((i, list(frame_indices)))
        height, width = self.sizes[i % len(self.sizes)]
        return [np.broadcast_to(np.array([i, j, 7], np.uint8), (height, width, 3)).copy() for j in frame_indices]


def draws(num_frames: int, count: int, ranges: Sandwich = DEFAULT) -> np.ndarray:
    return np.array([sandwich_indices(num_frames, ranges, generator(0, "frames", k)) for k in range(count)])


@pytest.mark.parametrize("num_frames", [1, 2, 3, 7])
def test_too_short_clips_give_one_frame_anywhere_in_three_roles(num_frames: int) -> None:
    got = draws(num_frames, 300)
    assert (got == got[:, :1]).all()
    assert set(got[:, 0]) == set(range(num_frames))


@pytest.mark.parametrize(
    ("num_frames", "current", "offsets"),
    [
        (4, (1, 1), (0, 1)),  # int(1.2) .. int(2.8) - 1; int(0.6) .. int(1.0)
        (8, (2, 4), (1, 2)),  # int(2.4) .. int(5.6) - 1; int(1.2) .. int(2.0)
        (90, (27, 61), (13, 22)),  # 0.7 * 90 = 62.99999999999999 in floating point: int() gives 62, so 61, not 62
        (300, (90, 209), (45, 75)),  # 0.7 * 300 = 210 exactly
    ],
)
def test_ranges_by_hand(num_frames: int, current: tuple[int, int], offsets: tuple[int, int]) -> None:
    past, now, future = draws(num_frames, 3000).T
    assert (now.min(), now.max()) == current
    for distance in (now - past, future - now):
        assert (distance.min(), distance.max()) == offsets


def test_an_epoch_shows_each_video_once_and_the_next_in_another_order() -> None:
    first, second = ([video_of(3, counter, 50) for counter in range(e * 50, e * 50 + 50)] for e in (0, 1))
    assert sorted(first) == sorted(second) == list(range(50))
    assert first not in (second, [video_of(4, counter, 50) for counter in range(50)])
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(3, 0, 50)[0] = 1


def test_sample_holds_the_frames_it_drew() -> None:
    index = Coded([20, 20, 20, 1], [(4, 6)])
    dataset = SandwichDataset(index, DEFAULT, seed=1)
    for counter in range(40):
        sample = dataset[counter]
        video = video_of(1, counter, 4)
        roles = sandwich_indices(int(index.num_frames[video]), DEFAULT, generator(1, "frames", counter))
        assert (sample["frames"].shape, sample["frames"].dtype) == ((3, 3, 4, 6), torch.uint8)
        assert sample["frames"].permute(0, 2, 3, 1).is_contiguous()  # as decoded, not copied
        assert (sample["counter"], sample["video"]) == (counter, video)
        assert sample["frames"][:, 0].unique().tolist() == [video]
        assert sample["frames"][:, 1, 0, 0].tolist() == list(roles)
        assert index.reads[-1] == (video, sorted(set(roles)))  # a lone frame is read once


def test_collate_pads_right_and_bottom_and_keeps_the_true_sizes() -> None:
    dataset = SandwichDataset(Coded([20] * 3, [(4, 6), (5, 3), (2, 2)]), DEFAULT, seed=0)
    batch = collate([dataset[counter] for counter in range(3)])
    assert batch["frames"].shape == (3, 3, 3, 5, 6)
    assert batch["counter"].tolist() == [0, 1, 2]
    assert sorted(batch["sizes"].tolist()) == [[2, 2], [4, 6], [5, 3]]
    for frames, (h, w), video in zip(batch["frames"], batch["sizes"].tolist(), batch["video"], strict=True):
        assert (frames[:, 0, :h, :w] == video).all()
        assert (frames[:, 2, :h, :w] == 7).all()
        assert frames[..., h:, :].sum() == frames[..., w:].sum() == 0


def test_ranks_and_micro_batches_take_turns_at_the_steps_samples() -> None:
    per_rank = [counters(7, 24, rank, world=2, accumulate=3) for rank in range(2)]
    assert [sample for micro in zip(*per_rank, strict=True) for part in micro for sample in part] == [*range(168, 192)]
