"""Views: the released per-image pipeline against batched views, in one run on one core.

Question: what does one sample of 14 crops cost, from three JPEG frames to normalised tensors?

(a) as released: PIL and torchvision, 30 crops per sample, of which 16 auxiliary local ones are thrown away;
(c) ours on a CPU: decode, draw, `make_views`;
(d) ours where a GPU makes the views: what is left for the loader's worker, decode and draw.

Rounds of all alternate, so that a busy machine slows all of them; medians of CPU and wall time per sample are written to
results/benchmarks/views.json. Targets: (a) / (d) >= 20 in CPU time, (a) / (c) >= 2.5 in samples/s.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torchvision import transforms as T
from torchvision.transforms import functional as TF
from tqdm import tqdm

from tcore_lib import files, runs
from tcore_lib.data.index import FrameIndex
from tcore_lib.data.sandwich import SandwichDataset, collate
from tcore_lib.data.views import centre_boxes, draw_views, make_views
from tcore_lib.params import Params, Run, Sandwich, Views

SIZE = (256, 340)  # (H, W) of a Kinetics frame with its short side at 256
VIDEOS, FRAMES, SAMPLES, ROUNDS = 8, 20, 8, 7
SETTINGS = Views()


def write_frames(root: Path, videos: int = VIDEOS) -> FrameIndex:
    """Folders of JPEG frames with edges, texture and noise at quality 95, and their index."""
    rng = np.random.default_rng(0)
    height, width = SIZE
    y, x = np.mgrid[0:height, 0:width]
    for video in range(videos):
        small = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        base = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
        for frame in range(FRAMES):
            disc = (x - 40 - 12 * frame) ** 2 + (y - 128) ** 2 < 2500
            picture = np.where(disc[..., None], 255 - base, base) + rng.normal(0, 4.5, (height, width, 3))
            path = root / f"{video:02d}" / f"{frame:05d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path, quality=95)
    sizes = {"widths": [width] * videos, "heights": [height] * videos}
    return FrameIndex(root, [f"{video:02d}" for video in range(videos)], [FRAMES] * videos, **sizes, kind="videos")


def photometry(blur: float, solarize: float) -> T.Compose:
    """One view's photometry with the trained probabilities (docs/method.md section 2), on PIL images."""
    jitter = T.ColorJitter(SETTINGS.brightness, SETTINGS.contrast, SETTINGS.saturation, SETTINGS.hue)
    return T.Compose([
        T.RandomApply([jitter], SETTINGS.jitter),
        T.RandomGrayscale(SETTINGS.grayscale),
        T.RandomApply([T.GaussianBlur(SETTINGS.blur_kernel, SETTINGS.blur_sigma)], blur),
        T.RandomSolarize(128, solarize),
        T.ToTensor(),
        T.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    ])  # fmt: skip


COLOURS = (photometry(SETTINGS.blur_global_1, 0.0), photometry(SETTINGS.blur_global_2, SETTINGS.solarize_global_2))
LOCAL = T.Compose([
    T.RandomResizedCrop(SETTINGS.local_size, SETTINGS.local_scale, interpolation=T.InterpolationMode.BICUBIC),
    T.RandomHorizontalFlip(SETTINGS.local_flip),
    photometry(SETTINGS.blur_local, 0.0),
])  # fmt: skip
GLOBAL = T.RandomResizedCrop(SETTINGS.global_size, SETTINGS.global_scale, interpolation=T.InterpolationMode.BICUBIC)


def per_image(index: FrameIndex, counter: int) -> list[torch.Tensor]:
    """One sample as the released loader makes it: one PIL image and one torchvision transform at a time."""
    video = counter % len(index)
    past, current, future = (Image.open(path).convert("RGB") for path in index.frame_paths(video, (6, 10, 14)))
    crops = [colour(GLOBAL(current)) for colour in COLOURS]
    crops += [LOCAL(current) for _ in range(SETTINGS.num_local)]
    top, left, height, width = centre_boxes(np.array([SIZE]), SETTINGS.ratio)[0].tolist()
    size = [SETTINGS.global_size] * 2
    for frame in (past, future):
        for colour in COLOURS:
            box = TF.resized_crop(frame, top, left, height, width, size, T.InterpolationMode.BICUBIC)
            crops.append(colour(box))
        crops += [LOCAL(frame) for _ in range(SETTINGS.num_local)]  # thrown away
    return crops


def measure(index: FrameIndex) -> pd.DataFrame:
    """Median CPU and wall milliseconds per sample of every contestant; the first round warms up and is not counted."""
    dataset = SandwichDataset(index, Sandwich(), seed=0)

    def released(start: int) -> object:
        return [per_image(index, counter) for counter in range(start, start + SAMPLES)]

    def worker(start: int) -> tuple:
        batch = collate([dataset[counter] for counter in range(start, start + SAMPLES)])
        return batch, draw_views(0, batch["counter"].tolist(), batch["sizes"], SETTINGS)

    def ours(start: int) -> object:
        batch, views = worker(start)
        return make_views(batch["frames"], views, SETTINGS)

    ways = {"a_released_30_crops": released, "c_ours_cpu": ours, "d_ours_worker_for_gpu": worker}
    rows = []
    for turn in tqdm(range(ROUNDS + 1), desc="rounds", file=sys.stdout):
        for name, run in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run(turn * SAMPLES)
            spent = {"cpu_ms_per_sample": time.process_time() - cpu, "wall_ms_per_sample": time.perf_counter() - wall}
            rows += [{"name": name} | {key: 1e3 * value / SAMPLES for key, value in spent.items()}] if turn else []
    medians = pd.DataFrame(rows).groupby("name").median()
    return medians.assign(samples_per_second=1e3 / medians["wall_ms_per_sample"])


if __name__ == "__main__":
    started = time.time()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(write_frames(Path(folder)))
    cpu, rate = figures["cpu_ms_per_sample"], figures["samples_per_second"]
    a, c, d = figures.index
    ratios = {
        "a_over_d_cpu": round(cpu[a] / cpu[d], 1),
        "c_over_a_samples_per_second": round(rate[c] / rate[a], 2),
    }
    result = {
        "what": f"from 3 JPEG frames of 340x256 to 14 crops, one core, medians of {ROUNDS} rounds of {SAMPLES} samples",
        "figures": figures.round(3).to_dict("index"),
        "ratios": ratios,
        "provenance": runs.provenance(Params(run=Run(device="cpu")), started),
    }
    files.write_json(Path(__file__).parents[1] / "results/benchmarks/views.json", result)
    print(figures.round(1).to_string(), ratios, sep="\n")
