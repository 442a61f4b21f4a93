"""Recorded steps of the original implementation: read, checked, and where need be mended.

A recording is a pair `NAME.npz` / `NAME.json` (METHOD section 8). The json has the network's sizes and each step's
hyper-parameters and displayed losses; the npz the weights, inputs, masks, gradients, centres and the weights afterwards,
under official names.
"""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tcore_lib import params
from tcore_lib.errors import InputError
from tcore_lib.training.optimiser import Multipliers, lr_and_decay, multipliers
from tcore_lib.training.schedules import Hyper

MODULES = {"backbone": "encoder", "dino_head": "head", "ibot_head": "patch_head", "auxiliary_decoder": "decoder"}


@dataclass(frozen=True)
class Recording:
    """Recorded steps: `arrays` by name, `steps` and the section `pretrain` that builds the same network."""

    arrays: dict[str, np.ndarray]
    steps: list[dict[str, Any]]
    settings: params.Pretrain
    origin: Path

    def tensor(self, name: str) -> Tensor:
        """One array in float64.

        Raises:
            InputError: the recording does not hold it.
        """
        if name not in self.arrays:
            raise InputError(f"{self.origin} holds no array {name!r}; record the steps again.")
        return torch.from_numpy(self.arrays[name]).double()

    def weights(self, prefix: str) -> dict[str, dict[str, Tensor]]:
        """`<prefix>/<role>/<name>` as role -> name -> tensor."""
        found: dict[str, dict[str, Tensor]] = {"student": {}, "teacher": {}, "auxiliary": {}}
        for key in self.arrays:
            if key.startswith(f"{prefix}/") and key.count("/") == prefix.count("/") + 2:
                role, name = key.removeprefix(f"{prefix}/").split("/")
                found.setdefault(role, {})[name] = self.tensor(key)
        return found


def _settings(sizes: Mapping[str, Any], origin: Path) -> params.Pretrain:
    encoder, local, head, decoder = (sizes[key] for key in ("encoder", "local", "head", "decoder"))
    if encoder.get("mlp_ratio", 4) != 4:
        raise InputError(f"{origin}: encoder.mlp_ratio = {encoder['mlp_ratio']} is not supported; only 4 is.")
    section = {
        "encoder": {
            "arch": "custom",
            "width": encoder["width"],
            "depth": encoder["depth"],
            "heads": encoder["heads"],
            "patch_size": encoder["patch"],
            "registers": encoder["registers"],
            "drop_path": 0.0,
        },
        "views": {"global_size": encoder["image"], "local_size": local["size"], "num_local": local["number"]},
        "decoder": {
            "heads": decoder["heads"],
            "num_blocks": decoder["blocks"],
            "attn_mul": float(decoder["attn_mul"]),
        },
        "head": {key: head[key] for key in ("hidden", "bottleneck", "prototypes", "layers")},
        "loop": {"batch_size": sizes["batch"], "precision": "fp64"},
        "optimiser": {"clip_grad": float(sizes["clip_grad"])},
    }
    return params.parse({"pretrain": section}, str(origin)).pretrain


def read_recording(steps_npz: str | Path) -> Recording:
    """Read a recording and check its form.

    Raises:
        InputError: a file is missing or damaged, or a size, an array or a step is missing or impossible.
    """
    steps_npz = Path(steps_npz)
    beside = steps_npz.with_suffix(".json")
    try:
        with open(steps_npz, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, AttributeError, KeyError) as error:
        raise InputError(f"{steps_npz} is not a readable .npz file ({error}); check the path.") from error
    try:
        spec = json.loads(beside.read_text(encoding="utf-8"))
        settings = _settings(spec, beside)
        steps = spec["steps"]
        for step in steps:
            for key in ("lr", "wd", "momentum", "teacher_temp", "last_layer_lr", "aux_lr"):
                float(step["hyper"][key])
            if not 0 < step["hyper"]["momentum"] <= 1:
                raise ValueError("momentum must lie in 0..1")
            float(step["total"])
            {name: float(value) for name, value in step["reported_losses"].items()}
        if not steps:
            raise KeyError("steps")
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{beside}, which describes {steps_npz.name}, cannot be read ({error.strerror}).") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{beside} does not describe recorded steps ({error!r}); record them again.") from error
    recording = Recording(arrays, steps, settings, steps_npz)
    _check_arrays(recording)
    return recording


def _check_arrays(recording: Recording) -> None:
    """Every array is finite, and inputs, masks and centres are of the sizes the json gives."""
    settings, batch = recording.settings, recording.settings.loop.batch_size
    for name, array in recording.arrays.items():
        if array.dtype.kind not in "fb" or not np.isfinite(array).all():
            raise InputError(f"{recording.origin}: {name} holds {array.dtype} values that are not all finite numbers.")
    large, small = settings.views.global_size, settings.views.local_size
    shapes: dict[str, tuple[int, ...]] = {name: (2 * batch, 3, large, large) for name in ("current", "past", "future")}
    shapes["local"] = (settings.views.num_local * batch, 3, small, small)
    shapes["masks"] = (2 * batch, (large // settings.encoder.patch_size) ** 2)
    expected = {f"step{k}/{name}": shape for k in range(len(recording.steps)) for name, shape in shapes.items()}
    for name, shape in expected.items():
        found = tuple(recording.tensor(name).shape)
        if found != shape:
            raise InputError(
                f"{recording.origin}: {name} is {found}, but the json says {shape}; record the steps again."
            )
    weights = _under(recording.arrays, "init/")
    trained = {name for name in weights if not name.startswith("teacher/")}
    strangers = [name for name in weights if not _module(name)]
    strangers += [
        n for n in weights if n.startswith("teacher/") and n.replace("teacher/", "student/", 1) not in trained
    ]
    if strangers or not trained:
        raise InputError(f"{recording.origin}: init/ holds no complete student and teacher ({strangers[:3]}).")
    for k in range(len(recording.steps)):
        different = sorted(trained ^ set(_under(recording.arrays, f"step{k}/grad/")))
        if different:
            raise InputError(f"{recording.origin}: the gradients of step {k} are not those of init/ ({different[:3]}).")
        for name in trained:
            if recording.arrays[f"step{k}/grad/{name}"].shape != recording.arrays[f"init/{name}"].shape:
                raise InputError(f"{recording.origin}: step{k}/grad/{name} has another shape than the weight.")
    for kind in ("dino", "patch"):
        for name in (f"init/{kind}_center", *(f"step{k}/{kind}_center_used" for k in range(len(recording.steps)))):
            if recording.tensor(name).numel() != settings.head.prototypes:
                raise InputError(f"{recording.origin}: {name} does not hold {settings.head.prototypes} values.")


def hyper_of(step: Mapping[str, Any]) -> Hyper:
    """The schedules' values that a recorded step was made with."""
    hyper = step["hyper"]
    return Hyper(
        lr=hyper["lr"],
        decoder_lr=hyper["aux_lr"],
        last_layer_lr=hyper["last_layer_lr"],
        weight_decay=hyper["wd"],
        momentum=hyper["momentum"],
        teacher_temperature=hyper["teacher_temp"],
        mask_share=0.5,
        mask_ratio=(0.1, 0.5),
    )


# ---- a recording whose weights were saved by reference --------------------------------------------------------------


def saved_by_reference(recording: Recording) -> bool:
    """Whether `init` and every `after` are one and the same: the weights after the last step, saved under all names.

    It happens when a recorder keeps references to tensors that the optimiser then changes in place. The shipped
    `golden/pretraining_steps.npz` is such a file: its lr is 1e-3 and yet no weight differs between `init` and
    `step2/after`.
    """
    moved = any(step["hyper"]["lr"] > 0 for step in recording.steps)
    after = [name for name in recording.arrays if "/after/" in name]
    pairs = [(name, "init/" + name.split("/after/")[1]) for name in after]
    arrays = recording.arrays
    return moved and bool(pairs) and all(b in arrays and np.array_equal(arrays[a], arrays[b]) for a, b in pairs)


def restore_weights(recording: Recording) -> Recording:
    """Undo the steps: the weights before and after each one, from the last ones and the recorded gradients.

    AdamW's update is a function of the gradients alone and its decay is a factor, so a step can be undone exactly (to
    rounding), and so can the EMA. What this assumes of the optimiser is checked by what follows: with a wrong update
    the losses and gradients recorded for the following steps would not come out.
    """
    arrays = dict(recording.arrays)
    updates = _adamw_updates(recording)
    weights = {name: arrays[f"init/{name}"] for name in updates[0]}
    teachers = {name: arrays[f"init/{name}"] for name in _under(arrays, "init/") if name.startswith("teacher/")}
    for k in range(len(recording.steps) - 1, -1, -1):
        for name, value in (weights | teachers).items():
            if f"step{k}/after/{name}" in arrays:
                arrays[f"step{k}/after/{name}"] = value
        momentum = recording.steps[k]["hyper"]["momentum"]
        for name, value in teachers.items():
            student = weights[name.replace("teacher/", "student/", 1)]
            teachers[name] = (value - (1 - momentum) * student) / momentum
        for name, (change, decay) in updates[k].items():
            weights[name] = (weights[name] + change) / decay
    arrays |= {f"init/{name}": value for name, value in (weights | teachers).items()}
    return Recording(arrays, recording.steps, recording.settings, recording.origin)


def _adamw_updates(recording: Recording) -> list[dict[str, tuple[np.ndarray, float]]]:
    """What each step did to each weight w: w <- decay w - change, as (change, decay), from the recorded gradients."""
    settings, trained = recording.settings.optimiser, _under(recording.arrays, "step0/grad/")
    first, second = settings.betas
    moments = {name: (np.zeros(()), np.zeros(())) for name in trained}
    updates = []
    for k, step in enumerate(recording.steps, start=1):
        gradients = {name: recording.tensor(f"step{k - 1}/grad/{name}").numpy() for name in trained}
        update = {}
        for name, gradient in gradients.items():
            together = [other for key, other in gradients.items() if _module(key) == _module(name)]
            norm = float(np.sqrt(sum(np.square(other).sum() for other in together)))
            clipped = gradient * (min(1.0, settings.clip_grad / (norm + 1e-6)) if settings.clip_grad else 1.0)
            m, v = moments[name]
            m, v = first * m + (1 - first) * clipped, second * v + (1 - second) * clipped**2
            moments[name] = (m, v)
            direction = m / (1 - first**k) / (np.sqrt(v / (1 - second**k)) + 1e-8)
            lr, decay = lr_and_decay(_multipliers(name, recording.settings), hyper_of(step))
            update[name] = (lr * direction, 1 - lr * decay)
        updates.append(update)
    return updates


def _under(arrays: Mapping[str, Any], prefix: str) -> list[str]:
    """`<role>/<name>` of every tensor of a network under a prefix."""
    names = [name.removeprefix(prefix) for name in arrays if name.startswith(prefix)]
    return [name for name in names if name.count("/") == 1]


def _module(name: str) -> str:
    """Which module `<role>/<name>` belongs to, in our words; empty if none."""
    return MODULES.get(name.split("/")[1].split(".")[0], "")


def _multipliers(name: str, settings: params.Pretrain) -> Multipliers:
    """Of a recorded parameter, e.g. `student/backbone.norm.bias`."""
    own = name.split("/")[1].split(".", 1)[1].replace("auxiliary_layer_norm", "norm")
    return multipliers(_module(name), own, settings.optimiser, settings.encoder.shape[1])
