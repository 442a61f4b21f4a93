"""A clip's attention as files: `python -m tcore_lib attention WEIGHTS CLIP FOLDER`.

What the released `visualize_attention_map.py` makes of debug dumps of a training run, made of a checkpoint and a clip:
the three crops, the masked crop, and for every patch the outlined query and its map over the past and the future crop;
besides these an overview of all patches and the weights themselves.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm.auto import tqdm

from tcore_lib import params
from tcore_lib.data import decode, masking
from tcore_lib.errors import InputError
from tcore_lib.figures import attention_atlas, style as look
from tcore_lib.files import atomic_path
from tcore_lib.model import attention
from tcore_lib.model.attention import Looked
from tcore_lib.training import checkpoints
from tcore_lib.training.checkpoints import model_of
from tcore_lib.training.tcore import TCoRe

OFFSET = 0.2  # share of a clip between current and past or future: the middle of what training draws (METHOD section 1)
HIDDEN = (0.25, 0.4)  # share of patches hidden in the picture of a masked crop


def load_model(path: str | Path) -> TCoRe:
    """Student, teacher and decoder of a training checkpoint (`step-*.pt`) or of a model file (`export --format model`).

    Raises:
        InputError: the file is missing, damaged, or holds no decoder, as published encoders do not.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f"{path} is no file; give a checkpoint (step-*.pt) or a model file.")
    if path.suffix == ".safetensors":
        return checkpoints.read_model(path)
    content = checkpoints.load(path)
    if not isinstance(content.get("params"), dict):
        raise InputError(f"{path} does not say how it was trained; give a checkpoint of this library.")
    run = params.parse(content["params"], f"{path}, its parameters")
    return model_of(run.pretrain, run.run.seed, content, str(path))


def read_sandwich(clip: str | Path, frames: Sequence[int] | None = None) -> list[np.ndarray]:
    """Past, current and future frame of a video file or a folder of images, uint8 (H, W, 3).

    Args:
        clip: the video, or the folder.
        frames: their numbers, from 0; by default the middle of the clip and a fifth of it away from there.

    Raises:
        InputError: nothing can be read, or there are fewer frames.
    """
    clip = Path(clip).expanduser()
    video = decode.read_video(clip)
    return [video[i] for i in _chosen(len(video), frames, clip)]


def _chosen(length: int, frames: Sequence[int] | None, clip: Path) -> list[int]:
    if length == 0:
        raise InputError(f"{clip} holds no frames; give a video or a folder of images.")
    if frames is None:
        current, offset = (length - 1) // 2, round(OFFSET * length)
        return [max(0, current - offset), current, min(length - 1, current + offset)]
    if len(frames) != 3 or not all(0 <= i < length for i in frames):
        raise InputError(f"the frames {list(frames)} are not in {clip}; give three numbers from 0 to {length - 1}.")
    return list(frames)


def look_from_everywhere(model: TCoRe, frames: Sequence[np.ndarray]) -> Looked:
    """Where every patch of the current crop looks, each while it is hidden: as `attention.look_around` hides them."""
    views, patch = model.settings.views, model.settings.encoder.patch_size
    size, side = views.global_size, views.global_size // patch
    crops = look.denormalise(attention.centre_crops(frames, size, views))
    maps = attention.look_around(model, list(crops), (size, size), reach=1)
    grids = {role: maps[1, key].reshape(-1, side, side, side, side) for role, key in (("past", 0), ("future", 2))}
    return Looked(attention.shown_crops(frames, views), np.ones((side, side), bool), grids)


def write_attention(
    weights: str | Path, clip: str | Path, folder: str | Path, frames: Sequence[int] | None = None
) -> Path:
    """Write everything; see the module.

    Args:
        weights: see `load_model`.
        clip: see `read_sandwich`.
        folder: gets `past.jpg`, `current.jpg`, `future.jpg`, `current_masked.jpg`, `overview.png`, `weights.npz` (`past` and
            `future`, float32 (heads, h, w, h, w)) and `patches/row01_column02_{query,past,future}.jpg`.
        frames: see `read_sandwich`.

    Returns:
        The folder.

    Raises:
        InputError: see `load_model` and `read_sandwich`.
    """
    folder = Path(folder).expanduser()
    looked = look_from_everywhere(load_model(weights), read_sandwich(clip, frames))
    side = len(looked.mask)
    crops = dict(zip(("past", "current", "future"), looked.crops, strict=True))
    for name, crop in crops.items():
        _save(folder / f"{name}.jpg", crop)
    mask = masking.block_masks(0, 1, 2, (side, side), 1.0, HIDDEN)[0].reshape(side, side)
    _save(folder / "current_masked.jpg", look.hide_patches(crops["current"], mask))
    with atomic_path(folder / "weights.npz") as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(stream, past=looked.maps["past"], future=looked.maps["future"])
    overview = attention_atlas(crops["current"], looked.maps, looked.mask, title=Path(clip).name)
    with atomic_path(folder / "overview.png") as temporary:
        overview.savefig(temporary, dpi=150)
    for row, column in tqdm(list(np.ndindex(side, side)), desc="attention", unit="patch"):
        stem = f"row{row:02d}_column{column:02d}"
        _save(folder / "patches" / f"{stem}_query.jpg", outlined(crops["current"], (row, column), side))
        for role, maps in looked.of(row, column).items():
            mean = maps.mean(0)
            _save(
                folder / "patches" / f"{stem}_{role}.jpg", look.overlay_heat(crops[role], mean, limits=(0, mean.max()))
            )
    return folder


def outlined(crop: np.ndarray, cell: tuple[int, int], side: int) -> np.ndarray:
    """A crop uint8 (S, S, 3) with the patch in row and column `cell` of `side` x `side` framed in orange."""
    picture = Image.fromarray(crop)
    height, width = crop.shape[0] / side, crop.shape[1] / side
    (row, column), line = cell, max(2, round(crop.shape[0] / 110))
    box = [round(column * width), round(row * height), round((column + 1) * width) - 1, round((row + 1) * height) - 1]
    ImageDraw.Draw(picture).rectangle(box, outline=look.OKABE_ITO["orange"], width=line)
    return np.asarray(picture)


def _save(path: Path, picture: np.ndarray) -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary, "JPEG", quality=92)
