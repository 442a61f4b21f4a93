"""The mask of a clip's first frame -> label maps of all its frames: the protocol of the benchmarks, on anything."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tcore_lib.errors import InputError
from tcore_lib.evaluation import propagation
from tcore_lib.evaluation.clips import read_ids
from tcore_lib.evaluation.labels import first_soft_map, to_ids
from tcore_lib.model.encoders import FeatureEncoder, load_encoder
from tcore_lib.model.features import as_frames, features, whole_patches


def propagate(
    source: Any, first_mask: Any, encoder: FeatureEncoder | str | Path | None = None, **settings: Any
) -> NDArray[np.uint8]:
    """Carry the labels of the first frame through a clip by patch similarity.

    Args:
        source: with an encoder, the clip: a path (video, folder of frames) or uint8 frames (N, H, W, 3); without one, its
            patch features float (N, h, w, D), e.g. from `features`.
        first_mask: ids of the first frame, integers 0..255 (H, W) as array or tensor, or the path of a PNG whose values
            (not colours) are ids.
        encoder: from `load_encoder`, or what that takes.
        settings: `top_k` (7), `temperature` (0.7), `radius` in patches (20), `context` in frames (20), see
            `propagation.Propagator`.

    Returns:
        uint8 (N, H, W), ids in the mask's size; frame 0 is the mask.
    """
    mask = read_ids(Path(first_mask)) if isinstance(first_mask, str | Path) else np.asarray(first_mask)
    if mask.ndim != 2 or mask.dtype.kind not in "iub" or mask.min() < 0 or mask.max() > 255:
        raise InputError(f"A mask holds integers 0..255 of shape (H, W), not {mask.dtype} {mask.shape}; convert it.")
    mask, (height, width) = mask.astype(np.uint8), mask.shape
    at_input = (height, width)
    if encoder is not None:
        encoder = encoder if isinstance(encoder, FeatureEncoder) else load_encoder(encoder)
        frames = as_frames(source)
        if frames.shape[1:3] != mask.shape:
            sizes = f"The mask has {mask.shape} pixels, the frames {frames.shape[1:3]}"
            raise InputError(f"{sizes}; give the first frame's own mask.")
        source, at_input = features(encoder, frames), whole_patches(at_input, encoder.patch_size)
    patches = torch.as_tensor(source)
    if patches.ndim != 4 or not patches.is_floating_point():
        needs = f"propagate needs features (N, h, w, D), not {tuple(patches.shape)}"
        raise InputError(f"{needs}; give an encoder too if these are frames.")
    soft, ids = first_soft_map(mask, at_input, (patches.shape[1], patches.shape[2]))  # (C, h, w)
    carried = propagation.propagate(patches, soft.to(patches.device), **settings)  # (N, C, h, w)
    labels = torch.cat([to_ids(one[None].cpu(), ids, (height, width)) for one in carried]).numpy()
    labels[0] = mask
    return labels
