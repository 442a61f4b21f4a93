"""From a profile to the explorer on one of its clips: every encoder's similarity, the decoder's attention, carried labels.

Notebook 06 shows it. Letters: N frames, h w patch grid, D width, C label channels.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tcore_lib import runs
from tcore_lib.data import videos
from tcore_lib.errors import InputError
from tcore_lib.evaluation import clips, propagation
from tcore_lib.evaluation.benchmarks import benchmark_of
from tcore_lib.figures import style
from tcore_lib.model import attention, features
from tcore_lib.model.encoders import FeatureEncoder
from tcore_lib.params import Benchmark, Params
from tcore_lib.reproduction import profile as profiles
from tcore_lib.training.tcore import TCoRe
from tcore_lib.widgets.explorer import Explorer

SHORT_SIDE = 480  # pixels that a video of the index is enlarged to, at most threefold: more patches


class Scene(NamedTuple):
    """Some frames of one clip, evenly spread over it, the first one first."""

    title: str
    frames: list[np.ndarray]  # N pictures uint8 (H, W, 3)
    names: list[str]
    clip: clips.Clip | None = None  # the benchmark's, whose first frame is labelled; None for a video of the index
    settings: Benchmark | None = None  # of its benchmark


def scene(run: Params) -> Scene:
    """The first clip of the first benchmark that the profile has and this machine holds; else the index's first video."""

    def spread(length: int) -> list[int]:
        return np.linspace(0, length - 1, min(run.attention.clip_frames, length)).astype(int).tolist()

    for kind in runs.BENCHMARKS:
        settings = getattr(run, kind)
        if settings.enabled and profiles.benchmark_root(run, kind).is_dir():
            clip = profiles.clips(run, kind)[0]
            shown = spread(len(clip))
            frames = [clips.read_frame(clip.frames[i]) for i in shown]
            return Scene(f"{clip.name} ({kind.upper()})", frames, [f"frame {i}" for i in shown], clip, settings)
    path = videos.index_path(run.data)
    if not path.exists():
        raise InputError(f"The run's clips are not on this machine (no benchmark's folder and no {path}).")
    index = videos.FrameIndex.load(path)
    shown = spread(int(index.num_frames[0]))
    return Scene(index.path(0).name, index.read(0, shown), [f"frame {i}" for i in shown])


def decoders(run: Params) -> dict[str, TCoRe]:
    """The profile's model before and after training, by these names; none where there is no decoder to look at.

    A profile has one where it trains, or names a whole model (`checkpoint.model`). Published encoders come without.
    """
    has_weights = run.pretrain.enabled or run.checkpoint.model is not None
    if not (has_weights and run.pretrain.decoder.enabled):
        return {}
    return {"before training": profiles.untrained_model(run), "after training": profiles.trained_model(run)}


def first_mask(shown: Scene) -> np.ndarray:
    """Objects of the first frame, uint8 (H, W): its annotation where it has one, else a disc in its middle."""
    height, width = shown.frames[0].shape[:2]
    path = shown.clip.annotations[0] if shown.clip is not None and shown.clip.annotations else None
    if path is not None:
        return style.enlarge(clips.read_ids(path), (height, width))
    y, x = np.ogrid[:height, :width]
    disc = (y - height / 2) ** 2 + (x - width / 2) ** 2 < (min(height, width) / 5) ** 2
    return disc.astype(np.uint8)


def _decoder_size(model: TCoRe, frame: np.ndarray) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) in pixels, and the patch grid, on which a whole frame's patches are as large as in training."""
    patch = model.settings.encoder.patch_size
    zoom = model.settings.views.global_size / min(frame.shape[:2])
    height, width = features.whole_patches(frame.shape, patch, zoom)
    return (height, width), (height // patch, width // patch)


def around_the_middle(model: TCoRe, shown: Scene) -> attention.CrossAttention:
    """Where every patch of the scene's middle frame looks in the frame before and after it, each while it is hidden."""
    middle = len(shown.frames) // 2
    three = [shown.frames[i] for i in (middle - 1, middle, min(middle + 1, len(shown.frames) - 1))]
    size, (h, w) = _decoder_size(model, three[0])
    maps = attention.attention_of_every_query(model, three, size, reach=1)
    unflat = {role: maps[1, key].reshape(-1, h, w, h, w) for role, key in (("past", 0), ("future", 2))}
    return attention.CrossAttention(np.stack(three), np.ones((h, w), bool), unflat)


def explore(
    shown: Scene, encoders: Mapping[str, FeatureEncoder], model: TCoRe | None = None, **settings: Any
) -> Explorer:
    """The explorer on a scene.

    Args:
        shown: from `scene`.
        encoders: name -> encoder. Those whose patches differ in size from the first one's are left out.
        model: adds the decoder's cross-attention, on the grid it was trained with.
        settings: further arguments of `Explorer`.

    Returns:
        The widget; with labels, carried by the first encoder, where the scene's first frame has some.
    """
    patch = next(iter(encoders.values())).patch_size
    shape = shown.frames[0].shape
    size = features.whole_patches(shape, patch, min(3.0, SHORT_SIDE / min(shape[:2])))
    if shown.clip is not None and shown.settings is not None:
        size = benchmark_of(shown.settings).input_size(shown.clip, patch)
    alike = {name: encoder for name, encoder in encoders.items() if encoder.patch_size == patch}
    found = {name: features.features(encoder, shown.frames, size) for name, encoder in alike.items()}
    if shown.clip is not None and shown.settings is not None:
        settings = _carried_labels(shown.clip, shown.settings, size, next(iter(found.values()))) | settings
    if model is not None and model.decoder is not None:
        size, grid = _decoder_size(model, shown.frames[0])
        maps = attention.attention_of_every_query(model, shown.frames, size)
        settings = {"cross_attention": maps, "attention_grid": grid} | settings
    return Explorer(shown.frames, found, names=shown.names, **settings)


def _carried_labels(clip: clips.Clip, settings: Benchmark, size: tuple[int, int], of_frames: Tensor) -> dict[str, Any]:
    """The first frame's labels carried along features (N, h, w, D), and a pick on the first object: Explorer's arguments."""
    benchmark = benchmark_of(settings)
    soft = benchmark.first_map(clip, size, tuple(of_frames.shape[1:3]))  # (C, h, w)
    carried = propagation.Propagator(of_frames[0], soft, **propagation.propagator_settings(settings))
    labels = torch.stack([soft, *(carried.step(later).cpu() for later in of_frames[1:])])  # (N, C, h, w)
    ids = clip.channels if clip.joints is None else list(range(len(soft)))  # of joints, 0 = background
    if ids[0] != 0:  # every pixel of the first frame is labelled
        labels, ids = torch.nn.functional.pad(labels, (0, 0, 0, 0, 1, 0)), [0, *ids]
    names = [f"object {i}" if i else "background" for i in ids]
    arguments = {"labels": labels.numpy(), "label_names": names, "palette": style.object_palette()[ids]}
    cells = np.argwhere(labels[0].argmax(0).numpy() == 1)  # of the first object
    if len(cells):
        row, column = cells[np.abs(cells - cells.mean(0)).sum(1).argmin()].tolist()
        arguments["pick"] = (0, row, column)
    return arguments
