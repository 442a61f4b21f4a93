"""From a checked profile to the things it names: device, videos, encoders, clips. What every notebook's first cells call."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from tcore_lib import runs
from tcore_lib.errors import InputError
from tcore_lib.evaluation.benchmarks import benchmark_of, load_clips
from tcore_lib.evaluation.clips import Clip
from tcore_lib.evaluation.evaluate import folder_name
from tcore_lib.machine import choose_device, place_of
from tcore_lib.model.encoders import FeatureEncoder, load_encoder, random_encoder
from tcore_lib.params import Benchmark, Params, resolve
from tcore_lib.scenes import synthetic
from tcore_lib.training import checkpoints
from tcore_lib.training.tcore import TCoRe

SYNTHETIC = "synthetic"


def device(params: Params) -> torch.device:
    """Where the run computes."""
    return choose_device(params.run.device, place_of())


# --- videos and clips -------------------------------------------------------------------------------------------------


def source(params: Params) -> Path:
    """The folder of training videos: as given, or where the rendered ones lie."""
    given = params.data.source
    return resolve(params.data.root) / "videos" if given == SYNTHETIC else resolve(given)


def benchmark_root(params: Params, name: str) -> Path:
    """The folder of a benchmark (`davis`, `jhmdb` or `vip`): as given, or where the rendered one lies."""
    given = getattr(params, name).root
    return resolve(params.data.root) / name if given == SYNTHETIC else resolve(given)


def render(params: Params, *, progress: bool = True) -> list[Path]:
    """Draw what the profile calls `synthetic`: training videos and enabled benchmarks. What is there already stays.

    Returns:
        The folders that hold them; empty where the profile names real data only.
    """
    settings = params.data.synthetic
    seed = params.run.seed if settings.seed is None else settings.seed
    drawn = {"videos": source(params)} if params.data.source == SYNTHETIC else {}
    for name in runs.BENCHMARKS:
        if getattr(params, name).enabled and getattr(params, name).root == SYNTHETIC:
            drawn[name] = benchmark_root(params, name)
    for name, folder in drawn.items():
        synthetic.write_set(name, folder, settings, seed, progress=progress)
    return list(drawn.values())


def clips(params: Params, name: str) -> list[Clip]:
    """The clips of a benchmark."""
    return load_clips(getattr(params, name), benchmark_root(params, name))


def data_digest(clips: Sequence[Clip]) -> str:
    """Hex SHA-256 of a benchmark's clips: the names and contents of all frames and annotations."""
    return hashlib.sha256("".join(clip.digest() for clip in clips).encode()).hexdigest()


def described(params: Params, name: str, found: Sequence[Clip]) -> str:
    """What a score was measured on, for the table: real split or rendered clips, and how many."""
    section = getattr(params, name)
    if section.root == SYNTHETIC:
        return f"rendered {name.upper()}-style clips, {len(found)} clips"
    kind = {"davis": "DAVIS-2017", "jhmdb": "JHMDB split", "vip": "VIP"}[name]
    return f"{kind} {section.split}, {len(found)} clips, {section.root}"


def settings_table(settings: Benchmark) -> pd.DataFrame:
    """A benchmark's settings and what they mean: index setting, columns value, meaning."""
    meanings = {name: field.description or "" for name, field in type(settings).model_fields.items()}
    values = {name: str(value) for name, value in settings}
    return pd.DataFrame({"value": values, "meaning": meanings}).rename_axis("setting")


# --- encoders and models ----------------------------------------------------------------------------------------------


def encoder_source(params: Params, name: str) -> FeatureEncoder | Path | str:
    """What `checkpoint.encoders` means by `name`: a file or folder, a name `load_encoder` knows, or the random encoder."""
    sources = params.checkpoint.encoders
    if name not in sources:
        raise InputError(f"checkpoint.encoders has no {name!r}; it has {', '.join(sources)}.")
    kind, _, step = sources[name].partition("@")
    if kind == "random":
        return random_encoder(params.pretrain.encoder, params.pretrain.views.global_size, params.run.seed)
    if kind == "run":
        return newest_checkpoint(params, int(step) if step.isdigit() else None)
    path = resolve(sources[name])
    return path if path.exists() else sources[name]


def encoder(params: Params, name: str) -> FeatureEncoder:
    """The encoder that `checkpoint.encoders` calls `name`, on the run's device."""
    source = encoder_source(params, name)
    found = source if isinstance(source, FeatureEncoder) else load_encoder(source)
    found.name = name
    return found.to(device(params))


def encoders(params: Params) -> dict[str, FeatureEncoder]:
    """All encoders of the profile, by name: what is evaluated."""
    return {name: encoder(params, name) for name in params.checkpoint.encoders}


def networks(params: Params) -> dict[str, FeatureEncoder]:
    """The encoders of the profile that are networks, by name: what has weights, blocks and attention to look at."""
    return {
        name: encoder(params, name)
        for name, kind in params.checkpoint.encoders.items()
        if kind.partition(":")[0] != "pixels"
    }


def newest_checkpoint(params: Params, step: int | None = None) -> Path:
    """The run's last training checkpoint, or the one after `step` steps."""
    folder = runs.run_folder(params) / "checkpoints"
    found = checkpoints.steps_in(folder)
    step = max(found, default=None) if step is None else step
    if step not in found:
        missing = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        raise InputError(f"{folder} holds {missing}; run notebooks/01_pretraining.ipynb with the same parameters.")
    return found[step]


def untrained_model(params: Params) -> TCoRe:
    """Student, teacher and decoder as the run's training started from them."""
    model = TCoRe(params.pretrain, params.run.seed)
    if (source := params.pretrain.encoder.init) is not None:
        model.start_from(source)
    return model.to(device(params)).eval()


def trained_model(params: Params) -> TCoRe:
    """Student, teacher and decoder of `checkpoint.model`, or of the run's last checkpoint."""
    given = params.checkpoint.model
    path = newest_checkpoint(params) if given is None else resolve(given)
    model = checkpoints.read_model(path)
    ours, theirs = params.pretrain, model.settings
    if given and (theirs.encoder, theirs.decoder) != (ours.encoder, ours.decoder):
        raise InputError(
            f"checkpoint.model = {path} was trained with another encoder or decoder than pretrain says; copy these "
            "two sections from the file it was trained with (tcore inspect FILE)."
        )
    return model.to(device(params))


def predictions(settings: Benchmark, output: Path, encoder_name: str, clip: Clip, frames: Sequence[int]) -> np.ndarray:
    """What an evaluation with its `output` predicted for some frames of a clip: id maps uint8 (n, H, W), or joints (n, 15, 2).

    Joints are in pixels, NaN = not found.
    """
    read = benchmark_of(settings).predictions(output / "predictions" / folder_name(encoder_name), clip)
    return np.stack([read(frame) for frame in frames])
