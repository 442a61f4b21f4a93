"""Does our step compute what the original does? Recorded steps of the original against ours, in float64.

A recording is a pair `NAME.npz` / `NAME.json` as METHOD section 8 and the golden folder's README describe it: the json
has the network's sizes and each step's hyper-parameters and displayed losses, the npz the weights, inputs, masks,
gradients, centres and the weights afterwards, under official names.
"""

import copy
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tcore_lib import optimiser as optimisers
from tcore_lib import params
from tcore_lib.errors import InputError
from tcore_lib.official import load_official_weights, official_weights, reported
from tcore_lib.plan import plan_masks
from tcore_lib.schedules import Hyper
from tcore_lib.trainer import Trainer

TOLERANCE = {"losses": 1e-9, "gradients": 1e-8, "gradient of pos_embed": 1e-6, "weights": 1e-6, "centres": 1e-6}
MODULES = {"backbone": "encoder", "dino_head": "head", "ibot_head": "patch_head", "auxiliary_decoder": "decoder"}
VIEWS = ("current", "local", "past", "future")


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
    shapes = {name: (2 * batch, 3, large, large) for name in ("current", "past", "future")}
    shapes["local"] = (settings.views.num_local * batch, 3, small, small)
    shapes["masks"] = (2 * batch, (large // settings.encoder.patch_size) ** 2)
    expected = {f"step{k}/{name}": shape for k in range(len(recording.steps)) for name, shape in shapes.items()}
    for name, shape in expected.items():
        found = tuple(recording.tensor(name).shape)
        if found != shape:
            raise InputError(
                f"{recording.origin}: {name} is {found}, but the json says {shape}; record the steps again."
            )
    for kind in ("dino", "patch"):
        for name in (f"init/{kind}_center", *(f"step{k}/{kind}_center_used" for k in range(len(recording.steps)))):
            if recording.tensor(name).numel() != settings.head.prototypes:
                raise InputError(f"{recording.origin}: {name} does not hold {settings.head.prototypes} values.")


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
    settings, arrays = recording.settings, dict(recording.arrays)
    trained = [name for name in arrays if name.startswith("step0/grad/")]
    trained = [name.removeprefix("step0/grad/") for name in trained]
    module = {name: MODULES[name.split("/")[1].split(".")[0]] for name in trained}
    first, second = (np.float64(beta) for beta in settings.optimiser.betas)
    state = {name: (arrays[f"init/{name}"], np.float64(0), np.float64(0)) for name in trained}
    updates: list[dict[str, tuple[float, np.ndarray]]] = []
    for k, step in enumerate(recording.steps):
        gradients = {name: recording.tensor(f"step{k}/grad/{name}").numpy() for name in trained}
        update = {}
        for name in trained:
            norm = np.sqrt(sum((gradients[other] ** 2).sum() for other in trained if module[other] == module[name]))
            limit = settings.optimiser.clip_grad
            gradient = gradients[name] * (min(1.0, limit / (norm + 1e-6)) if limit else 1.0)
            weight, m, v = state[name]
            m, v = first * m + (1 - first) * gradient, second * v + (1 - second) * gradient**2
            state[name] = (weight, m, v)
            change = m / (1 - first ** (k + 1)) / (np.sqrt(v / (1 - second ** (k + 1))) + 1e-8)
            lr, decay = optimisers.lr_and_decay(_multipliers(name, settings), _hyper(step))
            update[name] = (lr * change, 1 - lr * decay)
        updates.append(update)
    weights = {name: arrays[f"init/{name}"] for name in trained}
    teachers = {name: arrays[f"init/{name}"] for name in _names(arrays, "init/teacher/")}
    for k in range(len(recording.steps) - 1, -1, -1):
        momentum = recording.steps[k]["hyper"]["momentum"]
        for name, value in (weights | teachers).items():
            if f"step{k}/after/{name}" in arrays:
                arrays[f"step{k}/after/{name}"] = value
        for name, value in teachers.items():
            student = weights[name.replace("teacher/", "student/", 1)]
            teachers[name] = (value - (1 - momentum) * student) / momentum
        for name, value in weights.items():
            change, decay = updates[k][name]
            weights[name] = (value + change) / decay
    arrays |= {f"init/{name}": value for name, value in (weights | teachers).items()}
    return Recording(arrays, recording.steps, settings, recording.origin)


def _names(arrays: Mapping[str, Any], prefix: str) -> list[str]:
    return [name.removeprefix("init/") for name in arrays if name.startswith(prefix)]


def _multipliers(name: str, settings: params.Pretrain) -> optimisers.Multipliers:
    """Of a recorded parameter, e.g. `student/backbone.norm.bias`."""
    prefix, rest = name.split("/")[1].split(".", 1)
    rest = rest.replace("auxiliary_layer_norm", "norm")
    return optimisers.multipliers(MODULES[prefix], rest, settings.optimiser, settings.encoder.shape[1])


# ---- the comparison -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Deviation:
    """The largest relative deviation of one kind of quantity in one step, and where it is."""

    quantity: str
    step: int
    largest: float
    where: str

    @property
    def tolerance(self) -> float:
        """Allowed deviation."""
        return TOLERANCE[self.quantity]

    @property
    def holds(self) -> bool:
        """Whether it is within tolerance; NaN is not."""
        return self.largest <= self.tolerance


def relative(value: Tensor, expected: Tensor) -> float:
    """Largest |value - expected| over largest |expected|."""
    scale = expected.abs().max().clamp_min(1e-300)
    return ((value.reshape(expected.shape) - expected).abs().max() / scale).item()


def _hyper(step: Mapping[str, Any]) -> Hyper:
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


def _without_keys(name: str, tensor: Tensor) -> Tensor:
    """A packed attention bias without its key third: its gradient is 0 in exact arithmetic, Adam makes it noise."""
    if name.endswith(("qkv.bias", "in_proj_bias")):
        third = len(tensor) // 3
        return torch.cat([tensor[:third], tensor[2 * third :]])
    return tensor


def _worst(quantity: str, step: int, found: Mapping[str, float]) -> Deviation:
    where = max(found, key=lambda name: (np.isnan(found[name]), found[name]))
    return Deviation(quantity, step, found[where], where)


def compare(recording: Recording) -> list[Deviation]:
    """Run every recorded step with our code, from the recorded initial weights on, and compare all it gives.

    Raises:
        InputError: recorded weights do not fit the sizes, or a compared array is missing.
    """
    torch.manual_seed(0)
    settings = recording.settings
    trainer = Trainer(settings, 0, torch.device("cpu"))
    model = trainer.model
    load_official_weights(model, recording.weights("init"), str(recording.origin))
    model.cls_centre.copy_(recording.tensor("init/dino_center").flatten())
    model.patch_centre.copy_(recording.tensor("init/patch_center").flatten())
    deviations = []
    for k, step in enumerate(recording.steps):
        centres = {
            "dino": relative(model.cls_centre, recording.tensor(f"step{k}/dino_center_used").flatten()),
            "patch": relative(model.patch_centre, recording.tensor(f"step{k}/patch_center_used").flatten()),
        }
        deviations.append(_worst("centres", k, centres))
        masks = recording.arrays[f"step{k}/masks"].astype(bool)
        views = {name: recording.tensor(f"step{k}/{name}") for name in VIEWS}
        plan = plan_masks(masks, settings.loop.batch_size, int(masks.sum()))
        values = trainer.gradients([(views, plan)], _hyper(step))
        deviations += _compare_step(recording, k, values, _gradients(model))
        trainer.update(_hyper(step))
        after = recording.weights(f"step{k}/after")
        if any(after.values()):
            own = official_weights(model)
            found = {
                f"{role}/{name}": relative(_without_keys(name, own[role][name]), _without_keys(name, value))
                for role, named in after.items()
                for name, value in named.items()
            }
            deviations.append(_worst("weights", k, found))
    return deviations


def _gradients(model: Any) -> dict[str, dict[str, Tensor]]:
    """The model's gradients under official names: a copy whose values are the gradients."""
    shadow = copy.deepcopy(model)
    for parameter, source in zip(shadow.parameters(), model.parameters(), strict=True):
        parameter.data = torch.zeros_like(source) if source.grad is None else source.grad.clone()
    return official_weights(shadow)


def _compare_step(
    recording: Recording, k: int, values: Mapping[str, Tensor], gradients: Mapping[str, Mapping[str, Tensor]]
) -> list[Deviation]:
    step = recording.steps[k]
    losses = reported({name: values[name].item() for name in values if name in TERMS}, recording.settings.loss)
    losses["total"] = values["total"].item()
    expected = step["reported_losses"] | {"total": step["total"]}
    missing = sorted(set(expected) - set(losses))
    if missing:
        raise InputError(f"{recording.origin}: step {k} reports {missing}, which this network does not compute.")
    found = {name: abs(losses[name] - value) / max(abs(value), 1e-300) for name, value in expected.items()}
    rows = [_worst("losses", k, found)]
    recorded = recording.weights(f"step{k}/grad")
    ours = {f"{role}/{name}": tensor for role, named in gradients.items() for name, tensor in named.items()}
    theirs = {f"{role}/{name}": tensor for role, named in recorded.items() for name, tensor in named.items()}
    trained = {name for name in ours if not name.startswith("teacher/")}
    if trained != set(theirs):
        different = sorted(trained ^ set(theirs))[:4]
        raise InputError(f"{recording.origin}: the gradients of step {k} are not those of this network ({different}).")
    found = {name: relative(ours[name], theirs[name]) for name in theirs}
    positions = {name: found.pop(name) for name in list(found) if name.endswith("pos_embed")}
    return [*rows, _worst("gradients", k, found), _worst("gradient of pos_embed", k, positions)]


TERMS = ("dino_local", "dino_global", "koleo", "patch", "patch_past", "patch_future", "agreement")


def run(steps_npz: str | Path) -> int:
    """The command: print the largest deviation per quantity and step.

    Returns:
        0, or 1 if one is above its tolerance.
    """
    recording = read_recording(steps_npz)
    if saved_by_reference(recording):
        print(
            f"{steps_npz}: init/* and */after/* hold one and the same weights, those after the last step. "
            "The weights before and after each step are restored by undoing AdamW and EMA with the recorded gradients."
        )
        recording = restore_weights(recording)
    deviations = compare(recording)
    print(f"{'quantity':<24}{'step':>4}  {'largest relative deviation':>27}  {'tolerance':>9}  where")
    for row in deviations:
        verdict = "" if row.holds else "  <-- ABOVE TOLERANCE"
        print(f"{row.quantity:<24}{row.step:>4}  {row.largest:>27.1e}  {row.tolerance:>9.0e}  {row.where}{verdict}")
    failed = sum(not row.holds for row in deviations)
    print("parity holds" if not failed else f"parity is broken: {failed} of {len(deviations)} quantities are off")
    return int(failed > 0)
