"""An encoder out of this library: one file of weights, or a folder for timm and the Hugging Face hub with a model card."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from tcore_lib.errors import InputError
from tcore_lib.files import write_text
from tcore_lib.model.encoders import FeatureEncoder, load_encoder, plain_vit
from tcore_lib.model.vit import ViT, timm_arguments
from tcore_lib.model.weights import OURS, to_layout, write_safetensors, write_torch

FORMATS = {"safetensors": ".safetensors", "official": ".pth", "timm": ""}  # format -> ending; timm's is a folder


def export(
    source: FeatureEncoder | str | Path,
    target: str | Path,
    format: str = "safetensors",
    metadata: Mapping[str, Any] | None = None,
    *,
    which: str = "teacher",
) -> Path:
    """Write an encoder for use elsewhere, under the names it came in with (`ViT.layout`), and return the target.

    Args:
        source: an encoder, or anything `load_encoder` takes.
        target: the file to write, or for timm the folder.
        format: safetensors (with metadata); official (.pth, `{"teacher": {"backbone.*": ...}}`, what the authors' evaluation
            code reads); timm (`save_for_hf`).
        metadata: what shall be known about the weights (run, commit, scores, ...), values that JSON can hold.
        which: "teacher" or "student", where the source holds both.
    """
    target = Path(target).expanduser()
    if target.suffix != FORMATS[format] and format != "timm":
        raise InputError(f"{target} cannot hold the format {format}; give a file that ends in {FORMATS[format]}.")
    if format == "timm":
        return save_for_hf(source, target, metadata=metadata, which=which)
    vit, about = _network_and_facts(source, metadata, which)
    state = to_layout(vit.state_dict(), vit.layout)
    if format == "safetensors":
        write_safetensors(target, state, about)
    else:
        teacher = {f"backbone.{name}": value.cpu().clone() for name, value in state.items()}
        write_torch(target, {"teacher": teacher, OURS: about})
    return target


def save_for_hf(
    source: FeatureEncoder | str | Path,
    folder: str | Path,
    *,
    metadata: Mapping[str, Any] | None = None,
    scores: pd.DataFrame | None = None,
    data: str = "not stated",
    licence: str = "other",
    which: str = "teacher",
) -> Path:
    """Write a folder for `timm.create_model("local-dir:FOLDER", pretrained=True)`: weights, config.json, model card.

    The features stay the same bits. Arguments are as for `export`, and for the card: `scores`, rows such as benchmark,
    metric, value, low, high, clips; `data`, what the encoder was trained on; `licence` of the weights, as the hub writes it.
    """
    folder = Path(folder).expanduser()
    if folder.is_file():
        raise InputError(f"{folder} is a file, but the format timm is a folder; give another target.")
    vit, about = _network_and_facts(source, metadata, which)
    # The function of timm that builds it; all it decides stands in the arguments, but for the MLP.
    builder = "vit_giant_patch14_dinov2" if vit.settings.mlp == "swiglu" else "vit_small_patch16_224"
    model = timm.create_model(builder, num_classes=0, global_pool="token", **timm_arguments(vit.settings, vit.img_size))
    model.load_state_dict(to_layout(vit.state_dict(), "timm"))
    images = {"input_size": (3, vit.img_size, vit.img_size), "crop_pct": 1.0}
    images |= {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
    timm.models.save_for_hf(model, str(folder), model_config={OURS: about}, safe_serialization=True, data_config=images)
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
    source: FeatureEncoder | str | Path, given: Mapping[str, Any] | None, which: str
) -> tuple[ViT, dict[str, Any]]:
    """The network, and what goes into the file: its shape, what is known of its training, and what the caller adds."""
    encoder = source if isinstance(source, FeatureEncoder) else load_encoder(source, which=which)
    vit = plain_vit(encoder)
    shape = {"arch": vit.settings.arch, "width": vit.width, "depth": vit.depth, "heads": vit.heads}
    shape |= {"patch_size": vit.patch_size, "registers": vit.settings.registers, "img_size": vit.img_size}
    known = {key: encoder.metadata[key] for key in ("step", "params") if key in encoder.metadata}
    facts = {**encoder.metadata.get(OURS, {}), **known, **(given or {}), "layout": vit.layout, "encoder": shape}
    return vit, json.loads(json.dumps(facts, default=str))
