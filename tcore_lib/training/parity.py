"""Does our step compute what the original does? Recorded steps of the original against ours, in float64."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tcore_lib.errors import InputError
from tcore_lib.training.draws import plan_masks
from tcore_lib.training.official import load_official_weights, official_weights, reported
from tcore_lib.training.recording import Recording, hyper_of, read_recording, restore_weights, saved_by_reference
from tcore_lib.training.step import Trainer
from tcore_lib.training.tcore import TCoRe

TOLERANCE = {"losses": 1e-9, "gradients": 1e-8, "gradient of pos_embed": 1e-6, "weights": 1e-6, "centres": 1e-6}
VIEWS = ("current", "local", "past", "future")
TERMS = ("dino_local", "dino_global", "koleo", "patch", "patch_past", "patch_future", "agreement")


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
        values = trainer.gradients([(views, plan)], hyper_of(step))
        deviations += _compare_step(recording, k, values, gradients_of(model))
        trainer.update(hyper_of(step))
        after = recording.weights(f"step{k}/after")
        if any(after.values()):
            own = official_weights(model)
            strangers = [
                f"{role}/{name}" for role, named in after.items() for name in set(named) - set(own.get(role, {}))
            ]
            if strangers:
                raise InputError(
                    f"{recording.origin}: step{k}/after holds {strangers[:3]}, which this network has not."
                )
            found = {
                f"{role}/{name}": relative(_without_keys(name, own[role][name]), _without_keys(name, value))
                for role, named in after.items()
                for name, value in named.items()
            }
            deviations.append(_worst("weights", k, found))
    return deviations


def gradients_of(model: TCoRe) -> dict[str, dict[str, Tensor]]:
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
    found = {name: relative(ours[name], theirs[name]) for name in theirs}
    positions = {name: found.pop(name) for name in list(found) if name.endswith("pos_embed")}
    return [*rows, _worst("gradients", k, found), _worst("gradient of pos_embed", k, positions)]


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
