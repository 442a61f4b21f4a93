"""From a checked profile to the things it names: device, folders, encoders, models. What every notebook's first cells call."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from tcore_lib import runs
from tcore_lib.errors import InputError
from tcore_lib.evaluation.clips import Clip
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


def _given(params: Params, name: str) -> str:
    return str(params.data.source if name == "videos" else getattr(params, name).root)


def root(params: Params, name: str) -> Path:
    """The folder of the training `videos`, or of a benchmark: as given, or where the rendered ones lie."""
    given = _given(params, name)
    return resolve(params.data.root) / name if given == SYNTHETIC else resolve(given)


def render(params: Params, *, progress: bool = True) -> list[Path]:
    """Draw what the profile calls `synthetic`: training videos and enabled benchmarks. What is there already stays.

    Returns:
        The folders that hold them; empty where the profile names real data only.
    """
    settings = params.data.synthetic
    seed = params.run.seed if settings.seed is None else settings.seed
    names = ["videos", *(name for name in runs.BENCHMARKS if getattr(params, name).enabled)]
    drawn = {name: root(params, name) for name in names if _given(params, name) == SYNTHETIC}
    for name, folder in drawn.items():
        synthetic.write_set(name, folder, settings, seed, progress=progress)
    return list(drawn.values())


def data_digest(clips: Sequence[Clip]) -> str:
    """Hex SHA-256 of a benchmark's clips: the names and contents of all frames and annotations."""
    return hashlib.sha256("".join(clip.digest() for clip in clips).encode()).hexdigest()


def settings_table(settings: Benchmark) -> pd.DataFrame:
    """A benchmark's settings and what they mean: index setting, columns value, meaning."""
    meanings = {name: field.description or "" for name, field in type(settings).model_fields.items()}
    values = {name: str(value) for name, value in settings}
    return pd.DataFrame({"value": values, "meaning": meanings}).rename_axis("setting")


# --- encoders and models ----------------------------------------------------------------------------------------------


def encoder_source(params: Params, name: str) -> FeatureEncoder | Path | str:
    """What `checkpoint.encoders` means by `name`: a file or folder, a name `load_encoder` knows, or the random encoder."""
    given = params.checkpoint.encoders[name]
    kind, _, step = given.partition("@")
    if kind == "random":
        return random_encoder(params.pretrain.encoder, params.pretrain.views.global_size, params.run.seed)
    if kind == "run":
        return newest_checkpoint(params, int(step) if step.isdigit() else None)
    path = resolve(given)
    return path if path.exists() else given


def encoders(params: Params) -> dict[str, FeatureEncoder]:
    """All encoders of the profile, by name, on the run's device: what is evaluated."""
    found = {}
    for name in params.checkpoint.encoders:
        source = encoder_source(params, name)
        found[name] = (source if isinstance(source, FeatureEncoder) else load_encoder(source)).to(device(params))
        found[name].name = name
    return found


def networks(params: Params) -> dict[str, FeatureEncoder]:
    """The encoders of the profile that are networks, not pixels: what has weights, blocks and attention to look at."""
    return {name: encoder for name, encoder in encoders(params).items() if len(encoder.network.blocks)}


def newest_checkpoint(params: Params, step: int | None = None) -> Path:
    """The run's last training checkpoint, or the one after `step` steps."""
    folder = runs.run_folder(params) / "checkpoints"
    found = checkpoints.steps_in(folder)
    step = max(found, default=None) if step is None else step
    if step not in found:
        missing = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        raise InputError(f"{folder} holds {missing}; run notebooks/01_pretraining.ipynb with the same parameters.")
    return found[step]


def decoders(params: Params) -> dict[str, TCoRe]:
    """Student, teacher and decoder `before training` and `after training`; none where there is no decoder to look at.

    A profile has one where it trains, or names a whole model (`checkpoint.model`). Published encoders come without.
    """
    settings, given = params.pretrain, params.checkpoint.model
    if not settings.decoder.enabled or not (settings.enabled or given):
        return {}
    before = TCoRe(settings, params.run.seed)
    if settings.encoder.init is not None:
        before.start_from(settings.encoder.init)
    path = newest_checkpoint(params) if given is None else resolve(given)
    after = checkpoints.read_model(path)
    if given and (after.settings.encoder, after.settings.decoder) != (settings.encoder, settings.decoder):
        raise InputError(
            f"checkpoint.model = {path} was trained with another encoder or decoder than pretrain says; copy these "
            "two sections from the file it was trained with (tcore inspect FILE)."
        )
    models = {"before training": before.eval(), "after training": after}
    return {name: model.to(device(params)) for name, model in models.items()}
