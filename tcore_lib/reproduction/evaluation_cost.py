"""How long an evaluation will take on this machine, measured on a few made-up frames before it begins.

Time depends on sizes only, not on weights or pictures: so random weights of the encoder's shape and random frames do.
"""

import statistics
import time
from collections.abc import Sequence

import pandas as pd
import torch

from tcore_lib.evaluation.benchmarks import benchmark_of
from tcore_lib.evaluation.clips import Clip
from tcore_lib.evaluation.evaluate import encode
from tcore_lib.evaluation.propagation import Propagator, propagator_settings
from tcore_lib.evaluation.scores import HEADLINE
from tcore_lib.model.encoders import FeatureEncoder, random_encoder
from tcore_lib.params import Benchmark, Encoder, Params
from tcore_lib.reproduction import profile as profiles

WORTH_SAYING = 1000  # frames; below that, measuring costs more than it tells
RELEASED = {"vits16_inet": "vit_small", "vits16_k400": "vit_small", "vitb16_k400": "vit_base"}
CHANNELS = 8  # label channels of the trial; their number hardly counts


def seconds_per_frame(encoder: FeatureEncoder, clip: Clip, settings: Benchmark, device: str) -> float:
    """Seconds to encode and propagate one frame of a clip with a full context; decoding and scoring run beside it."""
    h, w = benchmark_of(settings).Scorer(clip, settings, encoder.patch_size).size
    image = torch.zeros(1, 3, h, w, device=device)
    features = encode(encoder, image, settings.precision)[0]  # also warms up
    began = time.perf_counter()
    encode(encoder, image, settings.precision)[0, 0, 0, 0].item()  # .item() waits for a GPU
    encoding = time.perf_counter() - began
    source = torch.Generator(device=device).manual_seed(0)
    labels = torch.rand(CHANNELS, *features.shape[:2], generator=source, device=device)
    propagator = Propagator(
        torch.rand(features.shape, generator=source, device=device), labels, **propagator_settings(settings)
    )
    times = []
    for _ in range(settings.context + 3):
        frame = torch.rand(features.shape, generator=source, device=device)
        began = time.perf_counter()
        propagator.step(frame)[0, 0, 0].item()
        times.append(time.perf_counter() - began)
    return encoding + statistics.median(times[-3:])


def _stand_in(params: Params, name: str) -> tuple[FeatureEncoder, str]:
    """An encoder of the shape that `checkpoint.encoders` names, and what shape was taken."""
    source = params.checkpoint.encoders[name]
    own = params.pretrain.encoder
    shape = own if source in ("run", "random") else Encoder(arch=RELEASED.get(source, "vit_small"))
    known = source in ("run", "random") or source in RELEASED
    text = f"width {shape.shape[0]}, depth {shape.shape[1]}, patch {shape.patch_size}"
    return random_encoder(shape, params.pretrain.views.global_size, 0), text if known else f"assumed: {text}"


def estimate(params: Params, *, smallest: int = WORTH_SAYING) -> pd.DataFrame:
    """What a profile's evaluations on real data will cost here.

    Args:
        params: the checked profile; benchmarks on rendered clips, which need no estimate, are left out.
        smallest: benchmarks with fewer frames are left out.

    Returns:
        One row per benchmark and encoder: `benchmark`, `encoder`, `shape`, `clips`, `frames`, `seconds per frame` (measured now),
        `hours`.

    Raises:
        InputError: a benchmark's data is missing or damaged.
    """
    device = str(profiles.device(params))
    rows = []
    for name in profiles.BENCHMARKS:
        settings = getattr(params, name)
        if not settings.enabled or settings.root == profiles.SYNTHETIC:
            continue
        clips = profiles.clips(params, name)
        frames = sum(map(len, clips))
        if frames < smallest:
            continue
        measured: dict[str, float] = {}
        for encoder_name in params.checkpoint.encoders:
            encoder, shape = _stand_in(params, encoder_name)
            if shape not in measured:
                measured[shape] = seconds_per_frame(encoder.to(device), _typical(clips), settings, device)
            seconds = measured[shape]
            rows.append(
                {"benchmark": f"{name}, {HEADLINE[name]}", "encoder": encoder_name, "shape": shape, "clips": len(clips),
                 "frames": frames, "seconds per frame": seconds, "hours": frames * seconds / 3600}
            )  # fmt: skip
    columns = ["benchmark", "encoder", "shape", "clips", "frames", "seconds per frame", "hours"]
    return pd.DataFrame(rows, columns=columns)


def _typical(clips: Sequence[Clip]) -> Clip:
    """The clip with the median aspect ratio: input sizes may differ by it."""
    return sorted(clips, key=lambda clip: clip.size[1] / clip.size[0])[len(clips) // 2]


def sentence(table: pd.DataFrame) -> str:
    """An estimate for a terminal; empty where there is nothing to say."""
    if table.empty:
        return ""
    shown = table.assign(**{"seconds per frame": table["seconds per frame"].round(3), "hours": table["hours"].round(2)})
    total = table["hours"].sum()
    return (
        f"{shown.to_string(index=False)}\nevaluation, measured on this machine just now: about {total:.1f} hours in all"
    )
