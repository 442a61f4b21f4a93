"""Sandwich sampling: the past, current and future frame of one video as a function of (seed, global sample counter).

docs/method.md section 1. Letters: B samples, H W pixels, T frames of a video, n videos.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from tcore_lib import params, randomness
from tcore_lib.data.index import FrameIndex
from tcore_lib.errors import InputError

Videos = FrameIndex  # or what has its `num_frames`, `len` and `read`
Sample = dict[str, Any]  # frames uint8 (3 roles, 3 channels, H, W), counter, video (row of the index)


def sandwich_indices(num_frames: int, ranges: params.Sandwich, rng: np.random.Generator) -> tuple[int, int, int]:
    """Draw the frame indices (past, current, future) of one sample out of T = `num_frames` >= 1.

    Current is uniform over `int(0.3 T) ... int(0.7 T) - 1`, past and future at offsets `int(0.15 T) ... int(0.25 T)` from
    it. `int()` truncates the floating-point product, so 0.7 T is one short at T = 90, 170, ...: as in the released code.
    Where a range is empty, one frame, uniform over the clip, takes all three roles.
    """
    first, stop = (int(share * num_frames) for share in ranges.current_range)
    past_near, past_far = (int(share * num_frames) for share in ranges.past_offset_range)
    future_near, future_far = (int(share * num_frames) for share in ranges.future_offset_range)
    # past_start < past_end <= current <= future_start < future_end, written as offsets from the current frame
    if first >= stop or past_near >= past_far or future_near >= future_far:
        return (int(rng.integers(num_frames)),) * 3
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

    Every epoch (`len(dataset)` counters) shows each video once. Reading raises InputError: a frame is missing or damaged.
    """

    def __init__(self, index: Videos, ranges: params.Sandwich, seed: int) -> None:
        self.index, self.ranges, self.seed = index, ranges, seed

    def __len__(self) -> int:
        """Videos of one epoch; counters go on beyond it."""
        return len(self.index)

    def __getitem__(self, counter: int) -> Sample:
        """Read one sample."""
        video = video_of(self.seed, counter, len(self.index))
        rng = randomness.generator(self.seed, "frames", counter)
        roles = sandwich_indices(int(self.index.num_frames[video]), self.ranges, rng)
        distinct = sorted(set(roles))  # one frame in three roles is read once
        frames = dict(zip(distinct, self.index.read(video, distinct), strict=True))
        stacked = np.stack([frames[role] for role in roles])  # (3, H, W, 3): pixel by pixel in memory, as decoded
        return {"frames": torch.from_numpy(stacked).permute(0, 3, 1, 2), "counter": counter, "video": video}


def collate(samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
    """Stack B samples: frames uint8 (B, 3 roles, 3, Hmax, Wmax), zero right and below; sizes (B, 2), counter (B,), video (B,).

    In memory the three channels of a pixel stay together, as decoders give them: turning them apart is the device's.
    """
    sizes = torch.tensor([sample["frames"].shape[-2:] for sample in samples])
    height, width = sizes.amax(dim=0).tolist()
    frames = torch.zeros((len(samples), 3, height, width, 3), dtype=torch.uint8).permute(0, 1, 4, 2, 3)
    for target, sample, (h, w) in zip(frames, samples, sizes.tolist(), strict=True):
        target[..., :h, :w] = sample["frames"]
    numbers = {name: torch.tensor([sample[name] for sample in samples]) for name in ("counter", "video")}
    return {"frames": frames, "sizes": sizes, **numbers}


def counters(step: int, batch_size: int, rank: int, world: int, accumulate: int) -> list[list[int]]:
    """This rank's global sample counters of one optimiser step, one list per micro-batch.

    The step's batch, counters `step * batch_size ...`, is cut into `accumulate * world` consecutive blocks; rank r takes block
    `m * world + r` as its micro-batch m: two ranks do what one does in two accumulation steps. InputError: it does not divide.
    """
    size, rest = divmod(batch_size, world * accumulate)
    if rest or size == 0:
        raise InputError(
            f"loop.batch_size = {batch_size} is not a multiple of processes x accumulate = {world} x {accumulate}; "
            "change one of them."
        )
    starts = (step * batch_size + (micro * world + rank) * size for micro in range(accumulate))
    return [list(range(start, start + size)) for start in starts]
