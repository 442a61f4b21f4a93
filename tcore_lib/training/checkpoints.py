"""Training checkpoints: `<folder>/step-00000936.pt`, written whole or not at all, read without trust, continued exactly.

The weights in them have the original's names, so that any reader of released T-CoRe weights understands a checkpoint.
"""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tcore_lib import params
from tcore_lib.errors import InputError
from tcore_lib.files import reading
from tcore_lib.model.export import export
from tcore_lib.model.weights import leaves, load_exactly, read_torch, read_weights, write_safetensors, write_torch
from tcore_lib.params import Params, dotted
from tcore_lib.runs import provenance
from tcore_lib.training.step import Trainer
from tcore_lib.training.tcore import TCoRe

FORMAT = 3  # raised when an older checkpoint can no longer be continued
# Settings of `pretrain.loop` that say how far and how a run goes on, not what it computes: they may change between its parts.
FREE = {
    "max_steps", "devices", "workers", "checkpoint_every", "keep_last", "milestone_every", "log_every", "tracker",
    "accumulate", "compile",
}  # fmt: skip


def path_of(folder: Path, step: int) -> Path:
    """The checkpoint after `step` steps."""
    return folder / f"step-{step:08d}.pt"


def steps_in(folder: Path) -> dict[int, Path]:
    """Step -> file of every checkpoint in a folder, oldest first."""
    found = {int(match[1]): file for file in folder.glob("*.pt") if (match := re.match(r"step-(\d{8})\.pt", file.name))}
    return dict(sorted(found.items()))


def write(folder: Path, step: int, content: Mapping[str, Any]) -> Path:
    """Write one checkpoint, atomically. `content` holds tensors and plain values only."""
    path = path_of(folder, step)
    write_torch(path, {"format": FORMAT, "step": step, **content})
    return path


def save(trainer: Trainer, params: Params, num_videos: int, folder: Path, step: int, started: float) -> None:
    """Write the training's checkpoint. Older ones go, but for the newest and the milestones.

    A file of a later step is one that `load_newest` has passed over as damaged: it does not count as kept.
    """
    model, loop = trainer.model, params.pretrain.loop
    content = {
        **official_weights(model),
        "layout": model.student.encoder.layout,  # how an encoder that was continued came in: it goes out the same way
        "centres": {"cls": model.cls_centre, "patch": model.patch_centre},
        "optimiser": trainer.optimiser.state_dict(),
        "num_videos": num_videos,
        "params": params.model_dump(mode="json"),
        "provenance": provenance(params, started),
    }
    write(folder, step, content)
    known = [(older, file) for older, file in steps_in(folder).items() if older <= step]
    for older, file in known[: -loop.keep_last]:
        if loop.milestone_every is None or older % loop.milestone_every:
            file.unlink(missing_ok=True)


def restore(trainer: Trainer, params: Params, num_videos: int, folder: Path) -> int:
    """Load the newest sound checkpoint, else the encoder that `pretrain.encoder.init` names. Returns the steps made."""
    content, model = load_newest(folder), trainer.model
    if content is None:
        if (source := params.pretrain.encoder.init) is not None:
            model.start_from(source)
        return 0
    origin = path_of(folder, content["step"])
    refuse_other_run(content, params, num_videos, str(origin))
    load_official_weights(model, content, str(origin))
    with torch.no_grad(), reading(origin, "it does not hold the state of this training: move it out of the folder"):
        model.cls_centre.copy_(content["centres"]["cls"])
        model.patch_centre.copy_(content["centres"]["patch"])
        model.student.encoder.layout = model.teacher.encoder.layout = content["layout"]
        trainer.optimiser.load_state_dict(content["optimiser"])
    return int(content["step"])


def load(path: Path) -> dict[str, Any]:
    """Read one checkpoint onto the CPU; an `InputError` where it is damaged, holds NaN, or is none of ours."""
    with reading(path, "it is damaged or no checkpoint of this library: move it out of the folder"):
        content = read_torch(path)
        if not {"format", "step"} <= set(content):
            raise ValueError("it has no step")
        for name, value in leaves(content):
            if isinstance(value, Tensor) and not value.isfinite().all():
                raise ValueError(f"{name} holds NaN or infinity")
        return content


def load_newest(folder: Path) -> dict[str, Any] | None:
    """The newest sound checkpoint, None without any; a damaged one is passed over with a warning, the last one refused."""
    files = list(steps_in(folder).values())
    while files:
        try:
            return load(files.pop())
        except InputError as error:
            if not files:
                raise
            warnings.warn(f"{error} The run continues from the checkpoint before it.", stacklevel=2)
    return None


def refuse_other_run(content: Mapping[str, Any], params: Params, num_videos: int, origin: str) -> None:
    """A checkpoint is continued only with the settings that made it, as far as they change what is computed."""
    free = {f"pretrain.loop.{key}" for key in FREE} | {"pretrain.enabled"}

    def settings(dumped: Mapping[str, Any], form: int, videos: int) -> dict[str, Any]:
        known = {"the checkpoints' format": form, "the number of videos": videos, "run.seed": dumped["run"]["seed"]}
        return known | dotted(dumped["pretrain"], "pretrain")

    before = settings(content["params"], content["format"], content["num_videos"])
    for key, value in settings(params.model_dump(mode="json"), FORMAT, num_videos).items():
        if key not in free and before.get(key) != value:
            raise InputError(
                f"{key} = {value!r}, but {origin} was trained with {before.get(key)!r}; set it back where this version still "
                "takes that value, or start anew in another output folder or with resume=False."
            )


_DECODER_NAMES = (
    (r"\bblocks\.", "decoder."),
    (r"\.(cross_attn|self_attn|linear)\.", r".auxiliary_\1."),
    (r"\.norm(\d)\.", r".auxiliary_layer_norm\1."),
)


def _modules(model: TCoRe) -> dict[str, nn.ModuleDict]:
    """Role -> its modules by their names in released files."""
    networks = {"student": model.student, "teacher": model.teacher}
    modules = {role: nn.ModuleDict({"backbone": n.encoder, "dino_head": n.head}) for role, n in networks.items()}
    return modules | {"auxiliary": nn.ModuleDict({"auxiliary_decoder": model.decoder} if model.decoder else {})}


def _official(name: str) -> str:
    """The name that a parameter of `_modules` has in released files: another one inside the decoder."""
    for pattern, new in _DECODER_NAMES if name.startswith("auxiliary_decoder.") else ():
        name = re.sub(pattern, new, name)
    return name


def official_weights(model: TCoRe) -> dict[str, dict[str, Tensor]]:
    """All weights of a model as released checkpoints hold them, sharing memory with it.

    `student` and `teacher`: `backbone.*` and `dino_head.*`; `auxiliary`: `auxiliary_decoder.*`, empty without a decoder.
    """
    parts = {role: module.state_dict() for role, module in _modules(model).items()}
    return {role: {_official(name): value for name, value in state.items()} for role, state in parts.items()}


def load_official_weights(model: TCoRe, weights: Mapping[str, Mapping[str, Tensor]], origin: str) -> None:
    """Copy weights in the layout of `official_weights` into the model, exactly (`load_exactly`)."""
    for role, module in _modules(model).items():
        names = {_official(name): name for name in module.state_dict()}
        given = {names.get(name, name): value for name, value in weights.get(role, {}).items()}
        load_exactly(module, given, f"{origin}, its {role},")


ROLES = ("student", "teacher", "auxiliary")


def write_model(checkpoint: str | Path, target: str | Path) -> Path:
    """Write student, teacher and decoder of a checkpoint in 16 bit: a third of its size. `load_encoder` reads it too."""
    content, target = load(Path(checkpoint).expanduser()), Path(target).expanduser()
    tensors = {f"{role}.{name}": tensor.half() for role in ROLES for name, tensor in content[role].items()}
    write_safetensors(target, tensors, {key: content[key] for key in ("step", "params", "provenance")})
    return target


def read_model(path: str | Path) -> TCoRe:
    """The model in a checkpoint or a file of `write_model`, on the CPU, in float32 and evaluation mode."""
    file = read_weights(path)
    with reading(path, "give a training checkpoint, or what export --format model writes of one"):
        network = {name: file.metadata["params"]["pretrain"][name] for name in ("encoder", "views", "decoder", "head")}
        network["encoder"].pop("init_scheme", None)  # a setting of earlier versions
    weights: dict[str, dict[str, Tensor]] = {role: {} for role in ROLES}
    for name, tensor in file.tensors.items():
        role, _, rest = name.partition(".")
        if role in ROLES:
            weights[role][rest] = tensor.float()
    model = TCoRe(params.parse({"pretrain": network}, f"{path}, its parameters").pretrain, 0)
    load_official_weights(model, weights, str(path))
    return model.eval()


def export_command(
    file: str, target: Path, *, format: Literal["safetensors", "timm", "official", "model"] = "safetensors"
) -> None:
    """Write an encoder for use elsewhere.

    Args:
        file: a checkpoint, or anything that `evaluate --encoder` takes.
        target: the file to write; for timm a folder.
        format: model = student, teacher and decoder of a training checkpoint.
    """
    print(write_model(file, target) if format == "model" else export(file, target, format))
