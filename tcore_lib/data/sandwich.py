"""Sandwich sampling: the past, current and future frame of one video as a function of (seed, global sample counter).

docs/method.md section 1. Letters: B samples, H W pixels, T frames of a video, n videos. Roles always stand in the order past,
current, future.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Protocol, TypedDict

import numpy as np
import torch
from torch.utils.data import Dataset

from tcore_lib import params, randomness
from tcore_lib.errors import InputError


class Videos(Protocol):
    """What the dataset needs of an index (`FrameIndex`, `ShardIndex`)."""

    num_frames: np.ndarray  # (n,) frames of each video

    def __len__(self) -> int: ...

    def read(self, i: int, frame_indices: Sequence[int]) -> list[np.ndarray]:
        """Frames of video i as uint8 (H, W, 3) RGB."""


class Sample(TypedDict):
    """One sample: frames uint8 (3 roles, 3 channels, H, W), its counter and the index of its video."""

    frames: torch.Tensor
    counter: int
    video: int


class Batch(TypedDict):
    """B samples: frames uint8 (B, 3, 3, Hmax, Wmax), sizes (B, 2) true (H, W), counter and video (B,), all int64."""

    frames: torch.Tensor
    sizes: torch.Tensor
    counter: torch.Tensor
    video: torch.Tensor


def sandwich_indices(num_frames: int, ranges: params.Sandwich, rng: np.random.Generator) -> tuple[int, int, int]:
    """Draw the frame indices (past, current, future) of one sample.

    Current is uniform over `int(0.3 T) ... int(0.7 T) - 1`, past and future at offsets `int(0.15 T) ... int(0.25 T)`
    from it, every end included. `int()` truncates the floating-point product, so 0.7 T is one short at T = 90, 170,
    ...: kept, as in the released code. Where a range is empty or the roles could not be told apart, one frame, uniform
    over the clip, takes all three roles (docs/method.md section 1).

    Args:
        num_frames: T >= 1, frames of the video.
        ranges: shares of T.
        rng: generator of this sample.

    Returns:
        Indices with 0 <= past <= current <= future < T.
    """
    first = int(ranges.current_range[0] * num_frames)
    stop = int(ranges.current_range[1] * num_frames)
    past_near, past_far = (int(share * num_frames) for share in ranges.past_offset_range)
    future_near, future_far = (int(share * num_frames) for share in ranges.future_offset_range)
    # past_start < past_end <= current <= future_start < future_end, written as offsets from the current frame
    if first >= stop or past_near >= past_far or future_near >= future_far:
        only = int(rng.integers(num_frames))
        return only, only, only
    current = int(rng.integers(first, stop))
    past = int(rng.integers(current - past_far, current - past_near, endpoint=True))
    future_end = min(current + future_far, num_frames - 1)
    future = int(rng.integers(current + future_near, future_end, endpoint=True))
    return past, current, future


@lru_cache(maxsize=4)  # a batch touches at most two epochs; a permutation of 240,000 videos takes 2 MB
def epoch_order(seed: int, epoch: int, num_videos: int) -> np.ndarray:
    """The order (n,) int64 in which epoch number `epoch` walks through the videos, each once. Read-only."""
    order = randomness.generator(seed, "order", epoch).permutation(num_videos)
    order.flags.writeable = False
    return order


def video_of(seed: int, counter: int, num_videos: int) -> int:
    """The video that sample number `counter` is taken from."""
    epoch, position = divmod(counter, num_videos)
    return int(epoch_order(seed, epoch, num_videos)[position])


class SandwichDataset(Dataset[Sample]):
    """Samples by their global counter: `dataset[counter]`, for any counter >= 0 and in any order.

    The same counter gives the same sample for any number of workers, ranks and restarts. Every epoch (`len(dataset)`
    counters) shows each video once.

    Args:
        index: the videos, e.g. a `FrameIndex`.
        ranges: where the three frames lie.
        seed: the run's seed.

    Raises:
        InputError: when reading: a frame is missing, undecodable or of another size than its clip.
    """

    def __init__(self, index: Videos, ranges: params.Sandwich, seed: int) -> None:
        self.index, self.ranges, self.seed = index, ranges, seed

    def __len__(self) -> int:
        """Videos of one epoch; counters go on beyond it."""
        return len(self.index)

    def __getitem__(self, counter: int) -> Sample:
        """Read one sample (see `Sample`)."""
        video = video_of(self.seed, counter, len(self.index))
        rng = randomness.generator(self.seed, "frames", counter)
        roles = sandwich_indices(int(self.index.num_frames[video]), self.ranges, rng)
        distinct = sorted(set(roles))  # one frame in three roles is read once
        frames = dict(zip(distinct, self.index.read(video, distinct), strict=True))
        shapes = {frame.shape for frame in frames.values()}
        if len(shapes) > 1:
            raise InputError(
                f"Video {video} of the index holds frames of different sizes {sorted(shapes)}; give each size a folder of "
                "its own and run `tcore prepare` again."
            )
        stacked = np.stack([frames[role] for role in roles])  # (3, H, W, 3)
        return {
            "frames": torch.from_numpy(stacked).permute(0, 3, 1, 2),  # as decoded: pixel by pixel in memory
            "counter": counter,
            "video": video,
        }


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples, padded with zeros at the right and the bottom to the largest height and width among them.

    In memory the three channels of a pixel stay together, as decoders give them: turning them apart is the device's.
    """
    sizes = torch.tensor([sample["frames"].shape[-2:] for sample in samples], dtype=torch.int64)  # (B, 2)
    height, width = sizes.amax(dim=0).tolist()
    frames = torch.zeros((len(samples), 3, height, width, 3), dtype=torch.uint8).permute(0, 1, 4, 2, 3)
    for target, sample, (h, w) in zip(frames, samples, sizes.tolist(), strict=True):
        target[..., :h, :w] = sample["frames"]
    return {
        "frames": frames,
        "sizes": sizes,
        "counter": torch.tensor([sample["counter"] for sample in samples], dtype=torch.int64),
        "video": torch.tensor([sample["video"] for sample in samples], dtype=torch.int64),
    }


def counters(step: int, batch_size: int, rank: int, world: int, accumulate: int) -> list[list[int]]:
    """This rank's global sample counters of one optimiser step, one list per micro-batch.

    The step's global batch is counters `step * batch_size ... (step + 1) * batch_size - 1`. It is cut into
    `accumulate * world` consecutive blocks; rank r takes block `m * world + r` as its micro-batch m. So all ranks
    together work on consecutive samples at any time, and two ranks do what one rank does in two accumulation steps.

    Raises:
        InputError: batch_size is no multiple of world * accumulate.
    """
    size, rest = divmod(batch_size, world * accumulate)
    if rest or size == 0:
        raise InputError(
            f"loop.batch_size = {batch_size} is not a multiple of processes x accumulate = {world} x {accumulate}; "
            "change one of them."
        )
    starts = (step * batch_size + (micro * world + rank) * size for micro in range(accumulate))
    return [list(range(start, start + size)) for start in starts]


class CounterBatches:
    """Micro-batches of this rank from one step to another, for a DataLoader's `batch_sampler`.

    Args:
        first_step, last_step: steps first_step ... last_step - 1; a resumed run begins where it stopped.
        batch_size, rank, world, accumulate: as in `counters`.
    """

    def __init__(
        self, first_step: int, last_step: int, batch_size: int, rank: int, world: int, accumulate: int
    ) -> None:
        self.steps = range(first_step, last_step)
        self.split = (batch_size, rank, world, accumulate)
        counters(first_step, *self.split)  # refuse an impossible split now, not in the loop

    def __len__(self) -> int:
        """Number of micro-batches."""
        return len(self.steps) * self.split[3]

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the counters of one micro-batch after the other."""
        for step in self.steps:
            yield from counters(step, *self.split)
