"""Does our step compute what the original's does? Recorded steps of the original against ours, in float64.

    python tests/parity.py [tests/golden/pretraining_steps.npz]

prints the largest relative deviation of each quantity in each step, and `parity holds` (exit 0) where all are within
docs/method.md section 8's tolerances. A recording is a pair NAME.npz / NAME.json: the json has the network's sizes and each step's
hyper-parameters and displayed losses; the npz the weights, inputs, masks, gradients, centres and the weights afterwards.
"""

import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from tcore_lib import params
from tcore_lib.training.checkpoints import load_official_weights, official_weights
from tcore_lib.training.draws import of_masks
from tcore_lib.training.schedules import Hyper
from tcore_lib.training.step import Trainer
from tcore_lib.training.tcore import TCoRe

STEPS = Path(__file__).parent / "golden" / "pretraining_steps.npz"
TOLERANCE = {"losses": 1e-9, "gradients": 1e-8, "gradient of pos_embed": 1e-6, "weights": 1e-6, "centres": 1e-6}
OURS = {  # their name of a schedule's value -> ours
    "aux_lr": "decoder_lr", "wd": "weight_decay", "teacher_temp": "teacher_temperature",
}  # fmt: skip
DISPLAYED = {  # our term -> its name in the released logs, and the factor it is shown with
    "dino_local": ("dino_local_crops_loss", 1.0),
    "dino_global": ("dino_global_crops_loss", 1.0),
    "koleo": ("koleo_loss", 0.05),  # with its weight 0.1, and halved
    "patch_past": ("past_tea_ibot_loss", 0.5),
    "patch_future": ("future_tea_ibot_loss", 0.5),
    "agreement": ("past_future_MSE_loss", 0.5),
}


def relative(value: Tensor, expected: Tensor) -> float:
    """Largest |value - expected| over largest |expected|."""
    return ((value.reshape(expected.shape) - expected).abs().max() / expected.abs().max().clamp_min(1e-300)).item()


def worst(quantity: str, step: int, found: dict[str, float]) -> dict[str, Any]:
    """The largest relative deviation of one kind of quantity in one step, and where it is; NaN is the largest."""
    where = max(found, key=lambda name: (np.isnan(found[name]), found[name]))
    return {
        "quantity": quantity,
        "step": step,
        "largest": found[where],
        "tolerance": TOLERANCE[quantity],
        "where": where,
    }


def without_keys(name: str, tensor: Tensor) -> Tensor:
    """A packed attention bias without its key third: its gradient is 0 in exact arithmetic, Adam makes it noise."""
    if name.endswith(("qkv.bias", "in_proj_bias")):
        query, _, value = tensor.chunk(3)
        return torch.cat([query, value])
    return tensor


def network(sizes: dict[str, Any]) -> params.Pretrain:
    """The settings that build the recorded network."""
    encoder, local, head, decoder = (sizes[key] for key in ("encoder", "local", "head", "decoder"))
    shape = {key: encoder[key] for key in ("width", "depth", "heads", "registers")}
    section = {
        "encoder": {"arch": "custom", "patch_size": encoder["patch"], "drop_path": 0.0, **shape},
        "views": {"global_size": encoder["image"], "local_size": local["size"], "num_local": local["number"]},
        "decoder": {"heads": decoder["heads"], "num_blocks": decoder["blocks"], "attn_mul": float(decoder["attn_mul"])},
        "head": {key: head[key] for key in ("hidden", "bottleneck", "prototypes", "layers")},
        "loop": {"batch_size": sizes["batch"], "precision": "fp64"},
        "optimiser": {"clip_grad": float(sizes["clip_grad"])},
    }
    return params.parse({"pretrain": section}, "the recording").pretrain


def gradients_of(model: TCoRe) -> dict[str, dict[str, Tensor]]:
    """The model's gradients under official names: a copy whose values are the gradients."""
    shadow = copy.deepcopy(model)
    for parameter, source in zip(shadow.parameters(), model.parameters(), strict=True):
        parameter.data = torch.zeros_like(source) if source.grad is None else source.grad.clone()
    return official_weights(shadow)


def compare(steps_npz: Path) -> pd.DataFrame:
    """Make every recorded step with our code, from the recorded initial weights on, and compare all it gives."""
    with np.load(steps_npz, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    spec = json.loads(steps_npz.with_suffix(".json").read_text(encoding="utf-8"))

    def tensor(name: str) -> Tensor:
        return torch.from_numpy(arrays[name]).double()

    def weights(prefix: str) -> dict[str, dict[str, Tensor]]:
        """`<prefix>/<role>/<name>` as role -> name -> tensor."""
        found: dict[str, dict[str, Tensor]] = {"student": {}, "teacher": {}, "auxiliary": {}}
        for key in arrays:
            if key.startswith(f"{prefix}/") and key.count("/") == prefix.count("/") + 2:
                role, name = key.removeprefix(f"{prefix}/").split("/")
                found[role][name] = tensor(key)
        return found

    def deviations(ours: dict[str, dict[str, Tensor]], theirs: dict[str, dict[str, Tensor]]) -> dict[str, float]:
        return {
            f"{role}/{name}": relative(without_keys(name, ours[role][name]), without_keys(name, value))
            for role, named in theirs.items()
            for name, value in named.items()
        }

    trainer = Trainer(network(spec), 0, torch.device("cpu"))
    model, rows = trainer.model, []
    load_official_weights(model, weights("init"), str(steps_npz))
    model.cls_centre.copy_(tensor("init/dino_center").flatten())
    model.patch_centre.copy_(tensor("init/patch_center").flatten())
    for k, step in enumerate(spec["steps"]):
        used = {"dino": model.cls_centre, "patch": model.patch_centre}
        found = {kind: relative(c, tensor(f"step{k}/{kind}_center_used").flatten()) for kind, c in used.items()}
        rows.append(worst("centres", k, found))

        given = {OURS.get(name, name): value for name, value in step["hyper"].items()}
        hyper = Hyper(
            **{name: given[name] for name in Hyper.__dataclass_fields__ if name in given}, encoder_lr=given["lr"]
        )
        masks = arrays[f"step{k}/masks"].astype(bool)
        views = {name: tensor(f"step{k}/{name}") for name in ("current", "local", "past", "future")}
        values = trainer.gradients([(views, of_masks(masks, spec["batch"], int(masks.sum())))], hyper)

        expected = step["reported_losses"] | {"total": step["total"]}
        losses = {shown: values[name].item() * factor for name, (shown, factor) in DISPLAYED.items()}
        losses["total"] = values["total"].item()
        rows.append(worst("losses", k, {name: abs(losses[name] / value - 1) for name, value in expected.items()}))

        found = deviations(gradients_of(model), weights(f"step{k}/grad"))
        positions = {name: found.pop(name) for name in list(found) if name.endswith("pos_embed")}
        rows += [worst("gradients", k, found), worst("gradient of pos_embed", k, positions)]

        trainer.update(hyper)
        if any((after := weights(f"step{k}/after")).values()):
            rows.append(worst("weights", k, deviations(official_weights(model), after)))
    table = pd.DataFrame(rows)
    return table.assign(holds=table["largest"] <= table["tolerance"])  # NaN is not


def main(steps_npz: str | Path = STEPS) -> int:
    """Print every deviation. Returns 0, or 1 where one is above its tolerance."""
    table = compare(Path(steps_npz))
    print(table.to_string(index=False, float_format="{:.1e}".format))
    failed = int((~table["holds"]).sum())
    print("parity holds" if not failed else f"parity is broken: {failed} of {len(table)} quantities are off")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
