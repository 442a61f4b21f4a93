"""What a weight file holds; and an encoder out of this library: a file, or a folder for timm and the hub with a model card."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from tcore_lib import fetch
from tcore_lib.errors import InputError
from tcore_lib.files import write_text
from tcore_lib.model import weights
from tcore_lib.model.encoders import FeatureEncoder, load_encoder, plain_vit
from tcore_lib.model.vit import ViT, timm_arguments
from tcore_lib.params import Encoder

FORMATS = {"safetensors": ".safetensors", "official": ".pth", "timm": ""}  # format -> ending; timm's is a folder


def export(
    source: FeatureEncoder | str | Path,
    target: str | Path,
    format: str = "safetensors",
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write an encoder for use elsewhere, under the names it came in with (`ViT.layout`), and return the target.

    `source` is an encoder, or anything `load_encoder` takes. `format`: safetensors; official (.pth,
    `{"teacher": {"backbone.*": ...}}`, what the authors' evaluation code reads); timm (a folder, `save_for_hf`). `metadata` is what
    shall be known about the weights (run, commit, scores, ...).
    """
    target = Path(target).expanduser()
    if target.suffix != FORMATS[format] and format != "timm":
        raise InputError(f"{target} cannot hold the format {format}; give a file that ends in {FORMATS[format]}.")
    if format == "timm":
        return save_for_hf(source, target, metadata=metadata)
    vit, about = _network_and_facts(source, metadata)
    state = weights.to_layout(vit.state_dict(), vit.layout)
    if format == "safetensors":
        weights.write_safetensors(target, state, about)
    else:
        teacher = {f"backbone.{name}": value.cpu().clone() for name, value in state.items()}
        weights.write_torch(target, {"teacher": teacher, weights.OURS: about})
    return target


def save_for_hf(
    source: FeatureEncoder | str | Path,
    folder: str | Path,
    *,
    metadata: Mapping[str, Any] | None = None,
    scores: pd.DataFrame | None = None,
    data: str = "not stated",
    licence: str = "other",
) -> Path:
    """Write a folder for `timm.create_model("local-dir:FOLDER", pretrained=True)`: weights, config.json, model card.

    The features stay the same bits. For the card: `scores`, rows such as benchmark, metric, value, low, high, clips; `data`,
    what the encoder was trained on; `licence` of the weights, as the hub writes it. The rest is as for `export`.
    """
    folder = Path(folder).expanduser()
    if folder.is_file():
        raise InputError(f"{folder} is a file, but the format timm is a folder; give another target.")
    vit, about = _network_and_facts(source, metadata)
    # The function of timm that builds it; all it decides stands in the arguments, but for the MLP.
    builder = "vit_giant_patch14_dinov2" if vit.settings.mlp == "swiglu" else "vit_small_patch16_224"
    model = timm.create_model(builder, num_classes=0, global_pool="token", **timm_arguments(vit.settings, vit.img_size))
    model.load_state_dict(weights.to_layout(vit.state_dict(), "timm"))
    images = {"input_size": (3, vit.img_size, vit.img_size), "crop_pct": 1.0}
    images |= {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
    timm.models.save_for_hf(
        model, str(folder), model_config={weights.OURS: about}, safe_serialization=True, data_config=images
    )
    samples = about.get("step", 0) * about.get("params", {}).get("pretrain", {}).get("loop", {}).get("batch_size", 0)
    card = CARD.format(
        name=folder.name,
        data=data,
        licence=licence,
        budget=f"{about['step']:,} steps, {samples:,} samples of three frames" if samples else "not stated",
        scores="not measured" if scores is None else scores.to_markdown(index=False, floatfmt=".3f"),
        **about["encoder"],
    )
    write_text(folder / "README.md", card)
    return folder


CARD = """---
license: {licence}
library_name: timm
tags: [image-feature-extraction, self-supervised, video, correspondence, timm]
---
# {name}

A vision transformer for dense features: width {width}, {depth} blocks, {heads} heads, patches of {patch_size} pixels,
{registers} registers. Pretrained without labels on video by T-CoRe (temporal correspondence, CVPR 2025, arXiv 2503.15096).

* Data: {data}
* Budget: {budget}
* Licence: {licence}

## Scores

{scores}

`low` and `high`, where given, are the bounds of a 95 % bootstrap interval over clips.

## How to load it

```python
import timm, torch

model = timm.create_model("hf-hub:OWNER/{name}", pretrained=True).eval()  # or "local-dir:" and this folder's path
images = torch.zeros(1, 3, 480, 880)  # ImageNet-normalised; sides are multiples of {patch_size}
tokens = model.forward_features(images)[:, model.num_prefix_tokens :]  # (B, P, {width}), patches row by row
```
"""


def push_to_hub(source: FeatureEncoder | str | Path, repository: str, *, private: bool = True, **card: Any) -> str:
    """Upload the folder of `save_for_hf`, whose arguments `card` are, to huggingface.co and return its address.

    The repository (owner/name) is made if need be, as the account that is logged in here.
    """
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as place:
        folder = save_for_hf(source, Path(place) / repository.rpartition("/")[2], **card)
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=folder))


def _network_and_facts(
    source: FeatureEncoder | str | Path, given: Mapping[str, Any] | None
) -> tuple[ViT, dict[str, Any]]:
    """The network, and what goes into the file: its shape, what is known of its training, and what the caller adds."""
    encoder = source if isinstance(source, FeatureEncoder) else load_encoder(source)
    vit = plain_vit(encoder)
    shape = {"arch": vit.settings.arch, "width": vit.width, "depth": vit.depth, "heads": vit.heads}
    shape |= {"patch_size": vit.patch_size, "registers": vit.settings.registers, "img_size": vit.img_size}
    known = {key: encoder.metadata[key] for key in ("step", "params") if key in encoder.metadata}
    facts = {**encoder.metadata.get(weights.OURS, {}), **known, **(given or {}), "layout": vit.layout, "encoder": shape}
    return vit, json.loads(json.dumps(facts, default=str))


class Inspection(NamedTuple):
    """What `inspect` found in a source."""

    about: str  # one line: the recognised network, or why none was
    tensors: pd.DataFrame  # a row per tensor: tensor, shape, dtype, values, bytes, finite
    encoder: pd.DataFrame  # measured beside expected parameters per part of the encoder; empty if none was recognised
    metadata: dict[str, Any]  # everything that is not a tensor

    def tree(self, depth: int = 2) -> pd.DataFrame:
        """Tensors, values and bytes below each name of `depth` parts."""
        below = self.tensors["tensor"].str.split(".").str[:depth].str.join(".")
        table = self.tensors.assign(tensors=1).groupby(below, sort=False)[["tensors", "values", "bytes"]].sum()
        table.loc["all"] = table.sum()
        return table


def inspect(source: FeatureEncoder | str | Path) -> Inspection:
    """Read everything that an encoder, or anything `load_encoder` takes, holds.

    A file that is no weight file is an `InputError`; one with NaN or of an unknown network is reported, not refused.
    """
    if str(source).partition(":")[0] in ("pixels", "timm"):
        source = load_encoder(str(source))
    if isinstance(source, FeatureEncoder):
        file = weights.WeightFile(Path(source.name), source.network.state_dict(), source.metadata)
        heads = getattr(source.network, "heads", None)
    else:
        file = weights.read_weights(fetch.weights(str(source)) if source in fetch.CHECKPOINTS else source)
        heads = file.heads
    rows = []
    for key, tensor in file.tensors.items():
        shape, dtype = "x".join(map(str, tensor.shape)) or "scalar", str(tensor.dtype).removeprefix("torch.")
        rows.append((key, shape, dtype, tensor.numel(), tensor.nbytes, bool(tensor.isfinite().all())))
    table = pd.DataFrame(rows, columns=["tensor", "shape", "dtype", "values", "bytes", "finite"])
    about, counted = "", pd.DataFrame(columns=["measured", "expected", "difference"])
    try:
        state = weights.to_vit(weights.find_encoder(file))[0]
        settings = weights.architecture(state, heads, file.path)
        width, depth, heads = settings.shape
        about = (
            f"{settings.arch}, width {width}, {depth} blocks, {heads} heads, patch {settings.patch_size}, "
            f"{settings.registers} registers, positions for {settings.img_size}x{settings.img_size} pixels"
        )
        counted = _counted(state, settings)
    except InputError as error:
        about = str(error)
    return Inspection(
        about, table, counted, {key: value for key, value in file.metadata.items() if key != weights.OURS}
    )


def _counted(state: weights.State, settings: Encoder) -> pd.DataFrame:
    """A ViT's parameters beside those of a fresh one, by part: `blocks.3`, `norm`, `tokens` (positions among them)."""
    with torch.device("meta"):
        fresh = ViT(settings, settings.img_size or 0).state_dict()
    names = pd.Index([*fresh, *(name for name in state if name not in fresh)])
    counts = {"measured": state, "expected": fresh}
    table = pd.DataFrame({key: [own[n].numel() if n in own else 0 for n in names] for key, own in counts.items()})
    parts = names.str.replace(r"^\w*(token|pos_embed).*", "tokens", regex=True).str.extract(r"^(blocks\.\d+|[^.]*)")[0]
    table = table.groupby(parts.to_numpy(), sort=False).sum()
    table.loc["all"] = table.sum()
    return table.assign(difference=table["measured"] - table["expected"])


def inspect_command(file: str) -> None:
    """Say what is in a weight file.

    Args:
        file: the file, or anything that `evaluate --encoder` takes.
    """
    found = inspect(file)
    print(f"{file}: {found.about}", found.tree(3).to_string(), found.encoder.to_string(), sep="\n\n")
    print(*(f"{name} = {' '.join(str(value).split())[:200]}" for name, value in found.metadata.items()), sep="\n")
    for name in found.tensors["tensor"][found.tensors["finite"].eq(False)]:
        print(f"NOT FINITE: {name}")
