"""Patch features of frames, and what they tell: matches between frames, norms by depth, likeness of two encoders.

Letters: n frames, H W pixels, h w grid of patches, P = h * w, D width. Sizes are (height, width) in pixels.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from tcore_lib.data.decode import read_video
from tcore_lib.data.images import is_image, read_rgb
from tcore_lib.errors import InputError
from tcore_lib.model.encoders import FeatureEncoder, layer_tokens, load_encoder


def whole_patches(shape: Sequence[int], patch_size: int, zoom: float = 1.0) -> tuple[int, int]:
    """The size nearest to `zoom` times a frame's (H, W, ...) that holds whole patches."""
    height, width = (max(1, round(zoom * side / patch_size)) * patch_size for side in shape[:2])
    return height, width


def to_input(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 RGB frames (n, H, W, 3) -> ImageNet-normalised float32 (n, 3, *size), resized as OpenCV's linear does."""
    images = frames.permute(0, 3, 1, 2).float() / 255.0
    if tuple(images.shape[2:]) != tuple(size):
        images = F.interpolate(images, size, mode="bilinear", align_corners=False)
    return normalised(images)


def normalised(images: Tensor) -> Tensor:
    """RGB of 0..1 (n, 3, H, W) by ImageNet's means and deviations, in place."""
    mean, std = (images.new_tensor(one)[:, None, None] for one in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return images.sub_(mean).div_(std)


def as_frames(source: Any) -> NDArray[np.uint8]:
    """uint8 (n, H, W, 3), from a path (image, video, folder of frames), an array or a tensor of one or more."""
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        return read_rgb(path)[None] if is_image(path.name) else read_video(path)
    array = np.asarray(source)
    return read_video(array[None] if array.ndim == 3 else array)


def features(encoder: FeatureEncoder | str | Path, frames: Any, size: tuple[int, int] | None = None) -> Tensor:
    """Patch features of frames as the benchmarks read them: float32 (n, h, w, D) on the CPU, of length 1.

    `encoder` is what `load_encoder` gives or takes, `frames` what `as_frames` takes; they are resized to `size`, None = their
    own, rounded to whole patches. An `InputError` where a feature is not finite.
    """
    encoder = encoder if isinstance(encoder, FeatureEncoder) else load_encoder(encoder)
    stacked = as_frames(frames)
    whole = whole_patches(size or stacked.shape[1:3], encoder.patch_size)
    found = [encoder(to_input(torch.tensor(one, device=encoder.device)[None], whole))[0].float() for one in stacked]
    result = torch.stack(found)  # (n, h, w, D)
    if not torch.isfinite(result).all():
        raise InputError(
            f"The encoder {encoder.name} gives features that are no finite numbers; its weights are broken."
        )
    return F.normalize(result, dim=-1).cpu()


def matches(
    first: Any, second: Any, encoder: FeatureEncoder | str | Path | None = None, *, count: int = 12
) -> pd.DataFrame:
    """Patches of one frame that find each other in another: mutual nearest neighbours by cosine, the clearest ones.

    A match is clear if its patch is much more like its partner than like any patch that does not touch the partner. The
    clearest is taken first; the next ones keep a distance from those taken, so that the whole frame is covered.

    `first` and `second` are features (h, w, D), as array or tensor; with an encoder (what `load_encoder` gives or takes)
    frames: paths or uint8 (H, W, 3). Returns at most `count` rows, clearest first: `row`, `column` in the first grid, `to_row`,
    `to_column` in the second, `similarity` (cosine), `clarity` (similarity minus the best of the patches apart).
    """
    if encoder is not None:
        first, second = features(encoder, first)[0], features(encoder, second)[0]
    if len(first.shape) != 3 or len(second.shape) != 3 or first.shape[-1] != second.shape[-1]:
        raise InputError(
            f"matches needs two (h, w, D) of one encoder, not {tuple(first.shape)}, {tuple(second.shape)}."
        )
    p, q = (F.normalize(torch.as_tensor(one).float().cpu().flatten(0, 1), dim=-1) for one in (first, second))
    similar = p @ q.T  # (P, P')
    similarity, partner = similar.max(1)
    mutual = similar.argmax(0)[partner] == torch.arange(len(similar))
    place = torch.from_numpy(np.indices(second.shape[:2]).reshape(2, -1))  # (2, P')
    to = place[:, partner]  # (2, P)
    beside = (place[:, None] - to[:, :, None]).abs().amax(0) <= 1  # (P, P')
    clarity = similarity - similar.masked_fill(beside, -1).max(1).values
    row, column = np.indices(first.shape[:2]).reshape(2, -1)  # (P,) each
    columns = {"row": row, "column": column, "to_row": to[0], "to_column": to[1]}
    table = pd.DataFrame({**columns, "similarity": similarity, "clarity": clarity})
    table = table[mutual.numpy()].sort_values("clarity", ascending=False, kind="stable")
    table = table.head(max(count, len(table) // 2))  # the unclear half only where too few are left
    places, chosen = table[["row", "column"]].to_numpy(float), list[int]()
    distance = np.sqrt(len(similar) / max(count, 1))  # it shrinks until it leaves enough of them
    while len(chosen) < min(count, len(table)):
        for i, one in enumerate(places):
            apart = np.linalg.norm(places[chosen] - one, axis=1)
            if len(chosen) < count and i not in chosen and apart.min(initial=np.inf) >= distance:
                chosen.append(i)
        distance = distance * 0.7 if distance > 0.5 else 0.0
    return table.iloc[sorted(chosen)].reset_index(drop=True)


def _by_depth(values: Mapping[tuple[str, str], list[float]]) -> pd.DataFrame:
    """A value per block of each (quantity, encoder) -> index `block`, columns (quantity, encoder), NaN past an encoder's end."""
    series = {key: pd.Series(values[key], dtype=float) for key in sorted(values, key=lambda key: key[0])}
    return pd.DataFrame(series).rename_axis(index="block", columns=["quantity", "encoder"])


def weight_norms(encoders: Mapping[str, FeatureEncoder]) -> pd.DataFrame:
    """Frobenius norm of each block's weights: quantities `attention`, `mlp` and, where there is one, `layer_scale`."""
    values: dict[tuple[str, str], list[float]] = {}
    for quantity, start, ndim in (("attention", "attn.", 2), ("mlp", "mlp.", 2), ("layer_scale", "ls", 1)):
        for name, encoder in encoders.items():
            for block in encoder.network.blocks:
                named = [(key, p.detach().double()) for key, p in block.named_parameters() if p.ndim == ndim]
                norms = [p.norm() for key, p in named if key.startswith(start)]
                if norms:
                    values.setdefault((quantity, name), []).append(torch.stack(norms).norm().item())
    return _by_depth(values)


def _layers(encoder: FeatureEncoder, frames: Sequence[NDArray[np.uint8]], size: tuple[int, int]) -> Tensor:
    """Tokens (depth, n, T, D) of frames that are resized to `size`, in whole patches."""
    stacked = torch.from_numpy(np.stack(frames)).to(encoder.device)
    return layer_tokens(encoder, to_input(stacked, whole_patches(size, encoder.patch_size)))


def token_norms(
    encoders: Mapping[str, FeatureEncoder], frame: NDArray[np.uint8], size: tuple[int, int]
) -> pd.DataFrame:
    """Mean L2 norm of a frame's tokens, uint8 (H, W, 3), after each block: quantities `CLS`, `registers`, `patches`."""
    values: dict[tuple[str, str], list[float]] = {}
    for name, encoder in encoders.items():
        norms, prefix = _layers(encoder, [frame], size)[:, 0].norm(dim=-1), encoder.prefix  # (depth, T)
        parts = {"CLS": norms[:, : min(1, prefix)], "registers": norms[:, 1:prefix], "patches": norms[:, prefix:]}
        values |= {(key, name): part.mean(1).tolist() for key, part in parts.items() if part.shape[1]}
    return _by_depth(values)


def linear_cka(first: Tensor, second: Tensor) -> float:
    """Linear centred kernel alignment of two descriptions (n, D), (n, D') of the same n things (Kornblith et al., 2019)."""
    x, y = (value.double() - value.double().mean(0) for value in (first, second))
    return ((y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())).item()


def similarity_by_layer(
    encoder: FeatureEncoder,
    others: Mapping[str, FeatureEncoder],
    frames: Sequence[NDArray[np.uint8]],
    size: tuple[int, int],
) -> pd.DataFrame:
    """Linear CKA between the patch tokens of an encoder and of others on some frames: a row per block, a column per other.

    An encoder of another depth is compared at the same relative depth; tokens of another grid are resized bilinearly.
    """

    def patches(one: FeatureEncoder) -> list[Tensor]:
        """After every block (n, D, h, w)."""
        grid = one.grid(*whole_patches(size, one.patch_size))
        return [layer[:, one.prefix :].mT.unflatten(2, grid).cpu() for layer in _layers(one, frames, size)]

    own = patches(encoder)
    columns: dict[str, list[float]] = {}
    for name, other in others.items():
        theirs, columns[name] = patches(other), []
        for i, layer in enumerate(own):
            same = theirs[round(i * (len(theirs) - 1) / max(len(own) - 1, 1))]
            same = F.interpolate(same, layer.shape[2:], mode="bilinear", align_corners=False)
            rows = [tokens.transpose(0, 1).flatten(1).T for tokens in (layer, same)]  # (n * P, D)
            columns[name].append(linear_cka(*rows))
    return pd.DataFrame(columns, index=pd.RangeIndex(len(own), name="block"))
