"""What the widgets send to the browser: frames, features, attention and labels, small and self-describing.

Every packer returns (bytes, description); the description is plain JSON and holds what the browser needs to read them.
Letters: N frames, h w grid, P = h w patches, D width, d kept components, C label channels.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from tcore_lib.errors import InputError
from tcore_lib.figures import style

Packed = tuple[bytes, dict[str, Any]]


def pack_frames(frames: Sequence[np.ndarray], long_side: int) -> Packed:
    """Frames uint8 (H, W, 3) -> JPEG files one after the other, reduced to `long_side` pixels."""
    files = []
    for frame in frames:
        image = Image.fromarray(style.to_frame(frame))
        image.thumbnail((long_side, long_side), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=85)
        files.append(stream.getvalue())
    return b"".join(files), {"lengths": [len(file) for file in files], "size": list(frames[0].shape[:2])}


def pack_features(features: Any, dims: int) -> Packed:
    """Patch features float (N, h, w, D) -> int8 (N, P, d) whose weighted dot product is about the cosine similarity.

    L2-normalised features are projected onto the d leading directions of their second moment (a PCA without centring keeps dot
    products best) and quantised with a scale per direction: cos(a, b) ~ sum_i scale_i^2 a_i b_i. `energy` is the share of the
    squared norm that is kept, `error` the largest error of a cosine in 4,096 pairs, both over what was really packed.
    """
    array = np.asarray(style.to_array(features), dtype=np.float32)
    flat = array.reshape(-1, array.shape[-1])  # (N P, D)
    flat = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    dims = min(dims, flat.shape[1])
    _, vectors = np.linalg.eigh((flat.T @ flat).astype(np.float64))
    projected = flat @ vectors[:, ::-1][:, :dims].astype(np.float32)  # (N P, d)
    scales = np.maximum(np.abs(projected).max(axis=0), 1e-12) / 127
    codes = np.round(projected / scales).astype(np.int8)
    restored = codes * scales
    pairs = np.random.default_rng(0).integers(len(flat), size=(2, 4096))
    exact = (flat[pairs[0]] * flat[pairs[1]]).sum(1)
    error = float(np.abs((restored[pairs[0]] * restored[pairs[1]]).sum(1) - exact).max())
    energy = float((projected**2).sum() / max(float((flat**2).sum()), 1e-12))
    return codes.tobytes(), {"dims": dims, "scales": scales.tolist(), "energy": energy, "error": error}


def pack_attention(maps: Mapping[tuple[int, int], Any], grid: tuple[int, int], frames: int, max_bytes: int) -> Packed:
    """Attention (heads, P, P) of (query frame, looked-at frame) -> uint8 rows, scaled to their largest.

    The mean over heads comes first; where the heads do not fit `max_bytes`, it is packed alone, and `heads` is 0.
    """
    patches = grid[0] * grid[1]
    arrays = {pair: np.asarray(style.to_array(weights), np.float32) for pair, weights in maps.items()}
    heads = len(next(iter(arrays.values())))
    for (query, key), array in arrays.items():
        if max(query, key) >= frames or array.shape != (heads, patches, patches):
            raise InputError(
                f"cross_attention[{query}, {key}] has shape {array.shape} for {frames} frames of {grid[0]} x {grid[1]} "
                f"patches; give ({heads}, {patches}, {patches}) and frames below {frames}."
            )
    if len(maps) * patches**2 > max_bytes:
        raise InputError(
            f"attention between {len(maps)} pairs of frames does not fit {max_bytes:,} bytes; give fewer pairs."
        )
    heads = heads if len(maps) * (heads + 1) * patches**2 <= max_bytes else 0
    codes, largest = [], []
    for array in arrays.values():
        rows = np.concatenate([array.mean(0, keepdims=True), array[:heads]])  # (1 + heads, P, P)
        peak = np.maximum(rows.max(-1, keepdims=True), 1e-12)
        codes.append(np.round(255 * rows / peak).astype(np.uint8).tobytes())
        largest.append(peak[..., 0].astype(np.float32).tobytes())
    return b"".join([*codes, *largest]), {"pairs": [list(pair) for pair in maps], "heads": heads, "grid": list(grid)}


def pack_labels(labels: Any, grid: tuple[int, int], names: Sequence[str], palette: np.ndarray | None) -> Packed:
    """Soft label maps (N, C, h, w), channel 0 = background -> uint8 (2, N, P).

    First every patch's channel with the largest share, then 255 x that share.
    """
    array = np.asarray(style.to_array(labels))
    names = list(names or ["background", *(f"object {i}" for i in range(1, array.shape[1]))])
    if array.shape[1:] != (len(names), *grid):
        raise InputError(
            f"labels have shape {array.shape}; give (N, C, h, w), with {len(names)} names on a grid {grid}."
        )
    colours = style.object_palette(len(names)) if palette is None else np.asarray(palette)[: len(names)]
    share = np.clip(array / np.maximum(array.sum(1, keepdims=True), 1e-12), 0, 1)
    codes = np.round(255 * share).astype(np.uint8)  # the largest of these: of equal ones the first channel
    data = np.stack([codes.argmax(1), codes.max(1)]).astype(np.uint8).tobytes()
    return data, {"names": names, "palette": colours.tolist()}
