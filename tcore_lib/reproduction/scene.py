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
    mask: np.ndarray  # objects of the first frame, uint8 (H, W): its annotation, or a disc in its middle
    clip: clips.Clip | None = None  # the benchmark's, whose first frame is labelled; None for a video of the index
    settings: Benchmark | None = None  # of its benchmark


def scene(run: Params) -> Scene:
    """The first clip of the first benchmark that the profile has and this machine holds; else the index's first video."""
    clip = None
    for kind in runs.BENCHMARKS:
        settings, root = getattr(run, kind), profiles.root(run, kind)
        if settings.enabled and root.is_dir():
            benchmark = benchmark_of(settings)
            clip = benchmark.load(root, benchmark.names(root)[0])
            title, length = f"{clip.name} ({kind.upper()})", len(clip)
            break
    else:
        path, settings = videos.index_path(run.data), None
        if not path.exists():
            raise InputError(f"The run's clips are not on this machine (no benchmark's folder and no {path}).")
        index = videos.FrameIndex.load(path)
        title, length = index.path(0).name, int(index.num_frames[0])
    shown = np.linspace(0, length - 1, min(run.attention.clip_frames, length)).astype(int).tolist()
    frames = index.read(0, shown) if clip is None else [clips.read_frame(clip.frames[i]) for i in shown]
    height, width = frames[0].shape[:2]
    if clip is not None and clip.annotations and clip.annotations[0] is not None:
        mask = style.enlarge(clips.read_ids(clip.annotations[0]), (height, width))
    else:
        y, x = np.ogrid[:height, :width]
        mask = ((y - height / 2) ** 2 + (x - width / 2) ** 2 < (min(height, width) / 5) ** 2).astype(np.uint8)
    return Scene(title, frames, [f"frame {i}" for i in shown], mask, clip, settings)


def explore(shown: Scene, encoders: Mapping[str, FeatureEncoder], model: TCoRe | None = None) -> Explorer:
    """The explorer on a scene.

    Args:
        shown: from `scene`.
        encoders: name -> encoder. Those whose patches differ in size from the first one's are left out.
        model: adds the decoder's cross-attention, on a grid whose patches are as large as in training.

    Returns:
        The widget; with labels, carried by the first encoder, where the scene's first frame has some.
    """
    patch, shape = next(iter(encoders.values())).patch_size, shown.frames[0].shape
    size = features.whole_patches(shape, patch, min(3.0, SHORT_SIDE / min(shape[:2])))
    if shown.clip is not None and shown.settings is not None:
        size = benchmark_of(shown.settings).input_size(shown.clip, patch)
    alike = {name: encoder for name, encoder in encoders.items() if encoder.patch_size == patch}
    found = {name: features.features(encoder, shown.frames, size) for name, encoder in alike.items()}
    settings: dict[str, Any] = {}
    if shown.clip is not None and shown.settings is not None:
        settings = _carried_labels(shown.clip, shown.settings, size, next(iter(found.values())))
    if model is not None and model.decoder is not None:
        patch = model.settings.encoder.patch_size
        size = features.whole_patches(shape, patch, model.settings.views.global_size / min(shape[:2]))
        settings["cross_attention"] = attention.attention_of_every_query(model, shown.frames, size)
        settings["attention_grid"] = (size[0] // patch, size[1] // patch)
    return Explorer(shown.frames, found, names=shown.names, **settings)


def _carried_labels(clip: clips.Clip, settings: Benchmark, size: tuple[int, int], of_frames: Tensor) -> dict[str, Any]:
    """The first frame's labels carried along features (N, h, w, D), and a pick on the first object: Explorer's arguments."""
    soft = benchmark_of(settings).first_map(clip, size, tuple(of_frames.shape[1:3]))  # (C, h, w)
    labels = propagation.propagate(of_frames, soft, **propagation.propagator_settings(settings))  # (N, C, h, w)
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
