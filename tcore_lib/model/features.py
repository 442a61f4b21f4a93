"""Patch features of frames, and what they tell: matches between frames, norms by depth, likeness of two encoders.

Letters: n frames, H W pixels, h w grid of patches, P = h * w, D width.
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

# ---------------------------------------------------------------------------------------------- frames to features


def whole_patches(shape: Sequence[int], patch_size: int, zoom: float = 1.0) -> tuple[int, int]:
    """The (height, width) in pixels nearest to `zoom` times a frame's (H, W, ...) that holds whole patches."""
    height, width = (max(1, round(zoom * side / patch_size)) * patch_size for side in shape[:2])
    return height, width


def to_input(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 RGB frames (n, H, W, 3) -> ImageNet-normalised float32 (n, 3, *size).

    Resized linearly without antialias, in 0..1, as OpenCV does.
    """
    images = frames.permute(0, 3, 1, 2).float() / 255.0
    if tuple(images.shape[2:]) != tuple(size):
        images = F.interpolate(images, size, mode="bilinear", align_corners=False)
    mean = images.new_tensor(IMAGENET_DEFAULT_MEAN)[:, None, None]
    std = images.new_tensor(IMAGENET_DEFAULT_STD)[:, None, None]
    return images.sub_(mean).div_(std)


def as_frames(source: Any) -> NDArray[np.uint8]:
    """Frames as uint8 (n, H, W, 3), from a path (image, video, folder of frames), an array or a tensor of one or more.

    Raises:
        InputError: they are no RGB frames in 0..255, or the file cannot be read.
    """
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        return read_rgb(path)[None] if is_image(path.name) else read_video(path)
    array = np.asarray(source)
    return read_video(array[None] if array.ndim == 3 else array)


def features(
    encoder: FeatureEncoder | str | Path, frames: Any, size: tuple[int, int] | None = None, *, normalise: bool = True
) -> Tensor:
    """Patch features of frames, as the benchmarks read them.

    Args:
        encoder: from `load_encoder`, or what that takes.
        frames: a path (image, video, folder of frames), or uint8 (H, W, 3) or (n, H, W, 3) as array or tensor.
        size: (height, width) in pixels the frames are resized to, rounded to whole patches; None = as they are.
        normalise: to length 1.

    Returns:
        float32 (n, h, w, D) on the CPU.

    Raises:
        InputError: encoder or frames cannot be read, or a feature is not finite.
    """
    encoder = encoder if isinstance(encoder, FeatureEncoder) else load_encoder(encoder)
    stacked = as_frames(frames)
    whole = whole_patches(size or stacked.shape[1:3], encoder.patch_size)
    found = [encoder(to_input(torch.tensor(one, device=encoder.device)[None], whole))[0].float() for one in stacked]
    result = torch.stack(found)  # (n, h, w, D)
    if not torch.isfinite(result).all():
        raise InputError(
            f"The encoder {encoder.name} gives features that are not finite numbers; its weights are broken."
        )
    return (F.normalize(result, dim=-1) if normalise else result).cpu()


# ---------------------------------------------------------------------------------------------- matches


def _array(features: Any) -> Tensor:
    """(h, w, D) features of any kind -> float32 (P, D) of length 1."""
    return F.normalize(torch.as_tensor(features).float().cpu().flatten(0, 1), dim=-1)


def _places(shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Row and column of every patch of a grid, (P,) each."""
    return torch.arange(shape[0]).repeat_interleave(shape[1]), torch.arange(shape[1]).repeat(shape[0])


def matches(
    first: Any, second: Any, encoder: FeatureEncoder | str | Path | None = None, *, count: int = 12
) -> pd.DataFrame:
    """Patches of one frame that find each other in another: mutual nearest neighbours by cosine, the clearest ones.

    A match is clear if its patch is much more like its partner than like any patch that does not touch the partner. The
    clearest is taken first; the next ones keep a distance from those taken, so that the whole frame is covered.

    Args:
        first: (h, w, D) features as array or tensor; with an encoder, a frame: a path or uint8 (H, W, 3).
        second: the same of another frame, (h', w', D).
        encoder: from `load_encoder`, or what that takes; None = `first` and `second` are features.
        count: at most so many.

    Returns:
        a row per match, clearest first: `row`, `column` in the first grid, `to_row`, `to_column` in the second,
        `similarity` (cosine), `clarity` (similarity minus the best of the patches apart).

    Raises:
        InputError: the two are not features of one encoder.
    """
    if encoder is not None:
        encoder = encoder if isinstance(encoder, FeatureEncoder) else load_encoder(encoder)
        first, second = features(encoder, first)[0], features(encoder, second)[0]
    if len(first.shape) != 3 or len(second.shape) != 3 or first.shape[-1] != second.shape[-1]:
        raise InputError(
            f"matches needs two (h, w, D) of one encoder, not {tuple(first.shape)}, {tuple(second.shape)}."
        )
    similar = _array(first) @ _array(second).T  # (P, P')
    similarity, partner = similar.max(1)
    mutual = similar.argmax(0)[partner] == torch.arange(len(similar))
    row, column = _places(first.shape)
    place_row, place_column = _places(second.shape)
    to_row, to_column = place_row[partner], place_column[partner]
    beside = (place_row - to_row[:, None]).abs().le(1) & (place_column - to_column[:, None]).abs().le(1)  # (P, P')
    clarity = similarity - similar.masked_fill(beside, -1).max(1).values
    table = pd.DataFrame(
        {
            "row": row, "column": column, "to_row": to_row, "to_column": to_column,
            "similarity": similarity, "clarity": clarity,
        }
    )  # fmt: skip
    table = table[mutual.numpy()].sort_values("clarity", ascending=False, kind="stable")
    table = table.head(max(count, len(table) // 2))  # the unclear half only where too few are left
    return _spread(table, count, first.shape[0] * first.shape[1])


def _spread(table: pd.DataFrame, count: int, patches: int) -> pd.DataFrame:
    """The first `count` rows that keep a distance, as large as leaves enough of them."""
    places = table[["row", "column"]].to_numpy(float)
    distance = np.sqrt(patches / max(count, 1))
    chosen: list[int] = []
    while len(chosen) < min(count, len(table)):
        for i, place in enumerate(places):
            if len(chosen) < count and i not in chosen:
                apart = np.linalg.norm(places[chosen] - place, axis=1)
                if not len(chosen) or apart.min() >= distance:
                    chosen.append(i)
        distance = distance * 0.7 if distance > 0.5 else 0.0
    return table.iloc[sorted(chosen)].reset_index(drop=True)


# ---------------------------------------------------------------------------------------------- figures by depth


def _by_depth(values: Mapping[tuple[str, str], Sequence[float]]) -> pd.DataFrame:
    """(quantity, encoder) -> a value per block, as a table: index `block`, columns of two levels, NaN past an end."""
    if not values:
        return pd.DataFrame(index=pd.RangeIndex(0, name="block"))
    table = pd.DataFrame({key: pd.Series(list(column), dtype=float) for key, column in values.items()})
    table.columns = pd.MultiIndex.from_tuples(list(values), names=["quantity", "encoder"])
    table = table.dropna(axis="columns", how="all").rename_axis("block")
    return table.sort_index(axis="columns", level="quantity", sort_remaining=False)


def weight_norms(encoders: Mapping[str, FeatureEncoder]) -> pd.DataFrame:
    """Frobenius norm of each block's weights.

    Args:
        encoders: name -> encoder; those without blocks (pixels) are left out.

    Returns:
        index `block`; columns (quantity, encoder) with the quantities `attention` (its matrices together), `mlp`, and
        `layer_scale` where the network has it.
    """
    kinds = {"attention": ("attn.", 2), "mlp": ("mlp.", 2), "layer_scale": ("ls", 1)}
    values: dict[tuple[str, str], list[float]] = {}
    for quantity, (start, ndim) in kinds.items():
        for name, encoder in encoders.items():
            for block in encoder.network.blocks:
                weights = [
                    p.double() for key, p in block.named_parameters() if key.startswith(start) and p.ndim == ndim
                ]
                norm = torch.cat([weight.detach().flatten() for weight in weights]).norm().item() if weights else np.nan
                values.setdefault((quantity, name), []).append(norm)
    return _by_depth(values)


def _images(encoder: FeatureEncoder, frames: Sequence[NDArray[np.uint8]], size: tuple[int, int]) -> Tensor:
    """Frames as the encoder takes them, (n, 3, H, W) on its device; `size` is rounded to multiples of its patch."""
    stacked = torch.from_numpy(np.stack(frames)).to(encoder.device)
    return to_input(stacked, whole_patches(size, encoder.patch_size))


def token_norms(
    encoders: Mapping[str, FeatureEncoder], frame: NDArray[np.uint8], size: tuple[int, int]
) -> pd.DataFrame:
    """Mean L2 norm of the tokens after each block, before the final norm.

    Args:
        encoders: name -> encoder; those without blocks (pixels) are left out.
        frame: uint8 (H, W, 3).
        size: (height, width) in pixels the frame is resized to.

    Returns:
        index `block`; columns (quantity, encoder); quantities `CLS`, `registers`, `patches`, where there are any.
    """
    values: dict[tuple[str, str], list[float]] = {}
    for name, encoder in encoders.items():
        if not len(encoder.network.blocks):
            continue
        norms = layer_tokens(encoder, _images(encoder, [frame], size))[:, 0].norm(dim=-1)  # (depth, T)
        parts = {"CLS": norms[:, :1], "registers": norms[:, 1 : encoder.prefix], "patches": norms[:, encoder.prefix :]}
        if encoder.prefix == 0:
            parts = {"patches": norms}
        for quantity, part in parts.items():
            if part.shape[1]:
                values[quantity, name] = part.mean(1).tolist()
    return _by_depth(values)


def linear_cka(first: Tensor, second: Tensor) -> float:
    """Linear centred kernel alignment of two descriptions of the same n things, 0..1 (Kornblith et al., 2019).

    1 = the same up to rotation and one scale.

    Args:
        first: (n, D).
        second: (n, D').
    """
    x, y = (value.double() - value.double().mean(0) for value in (first, second))
    return ((y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())).item()


def _patch_layers(encoder: FeatureEncoder, images: Tensor) -> list[Tensor]:
    """Patch tokens (n, D, h, w) after every block; for pixels, the pixels."""
    grid = encoder.grid(*images.shape[2:])
    layers = layer_tokens(encoder, images) if len(encoder.network.blocks) else encoder.tokens(images)[None]
    return [layer[:, encoder.prefix :].transpose(1, 2).unflatten(2, grid).cpu() for layer in layers]


def similarity_by_layer(
    encoder: FeatureEncoder,
    others: Mapping[str, FeatureEncoder],
    frames: Sequence[NDArray[np.uint8]],
    size: tuple[int, int],
) -> pd.DataFrame:
    """Linear CKA between the patch tokens of an encoder and of others, block by block.

    An encoder of another depth is compared at the same relative depth; tokens of another grid are resized bilinearly.

    Args:
        encoder: its blocks are the rows.
        others: name -> encoder, the columns.
        frames: uint8 (H, W, 3), of one size; all their patches are the things described.
        size: (height, width) in pixels the frames are resized to.

    Returns:
        index `block`, a column per other encoder, 0..1.
    """
    own = _patch_layers(encoder, _images(encoder, frames, size))
    grid = tuple(own[0].shape[2:])
    columns: dict[str, list[float]] = {}
    for name, other in others.items():
        theirs = _patch_layers(other, _images(other, frames, size))
        columns[name] = []
        for i, layer in enumerate(own):
            same = theirs[round(i * (len(theirs) - 1) / max(len(own) - 1, 1))]
            if tuple(same.shape[2:]) != grid:
                same = F.interpolate(same, grid, mode="bilinear", align_corners=False)
            rows = [tokens.transpose(0, 1).flatten(1).T for tokens in (layer, same)]  # (n * P, D)
            columns[name].append(linear_cka(*rows))
    return pd.DataFrame(columns, index=pd.RangeIndex(len(own), name="block"))
