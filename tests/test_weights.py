"""Weight files in and out: every layout, checkpoints from the field, every kind of damage, bit-equal round trips."""

import argparse
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import huggingface_hub
import numpy as np
import pandas as pd
import pytest
import timm
import torch
from conftest import SHARED
from safetensors.torch import load_file, save_file
from test_encoder import drawn_vit, images
from torch import Tensor

from tcore_lib import fetch, params
from tcore_lib.errors import InputError
from tcore_lib.model.encoders import FeatureEncoder, load_encoder, plain_vit, start_from
from tcore_lib.model.export import export, inspect, inspect_command, push_to_hub, save_for_hf
from tcore_lib.model.vit import initial_vit
from tcore_lib.model.weights import OURS, read_weights, to_layout
from tcore_lib.training import checkpoints, tcore

State = dict[str, Tensor]
NARROW = params.Encoder(arch="custom", width=64, depth=2, heads=1)  # one head of 64: what a width alone tells


def state_of(settings: params.Encoder = NARROW, img_size: int = 64, seed: int = 0) -> State:
    return {name: value.clone() for name, value in drawn_vit(settings, img_size, seed).state_dict().items()}


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def official_file(path: Path, state: State) -> Path:
    return saved(path, {"teacher": prefixed(state, "backbone.") | {"dino_head.last_layer.weight_v": torch.randn(8, 4)}})


def same(encoder: FeatureEncoder, state: State) -> bool:
    loaded = encoder.network.state_dict()
    return set(loaded) == set(state) and all(torch.equal(loaded[name], state[name]) for name in state)


def test_files_folders_and_wrapped_names(tmp_path: Path) -> None:
    state, folder = state_of(), tmp_path / "folder"
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    chunked = {re.sub(r"^blocks\.", "blocks.0.", name): value for name, value in state.items()}
    for source in (
        saved(tmp_path / "bare.pth", state),
        saved(tmp_path / "old.pth", state, _use_new_zipfile_serialization=False),
        folder / "model.safetensors",
        f"local-dir:{folder}",
        official_file(tmp_path / "official.pth", state),
        saved(tmp_path / "fsdp.pth", {"teacher": prefixed(state, "backbone._fsdp_wrapped_module.")}),
        saved(tmp_path / "chunked.pth", {"teacher": chunked}),
    ):
        encoder = load_encoder(source)
        assert same(encoder, state), source
        assert not encoder.training
        assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_the_teacher_of_what_pretraining_saves(tmp_path: Path) -> None:
    """The real model through the real writer; 4 heads of 16 are known from the parameters, the layout from the network."""
    encoder = NARROW.model_copy(update={"heads": 4})
    section = params.Pretrain(encoder=encoder, head=params.Head(prototypes=32, hidden=16, bottleneck=8))
    model, whole = tcore.TCoRe(section, seed=0), params.Params(pretrain=section)
    with torch.no_grad():
        model.student.encoder.mask_token.add_(1.0)
    content = {**checkpoints.official_weights(model), "params": whole.model_dump(mode="json")}
    path = checkpoints.write(tmp_path, 7, content)
    found = load_encoder(path)
    assert same(found, model.teacher.encoder.state_dict())
    assert found.network.heads == 4
    assert (inspect(path).encoder["difference"] == 0).all()
    about = read_weights(export(path, tmp_path / "out.safetensors", metadata={"run": "r1"})).metadata[OURS]
    assert (about["step"], about["run"], about["params"]) == (7, "r1", whole.model_dump(mode="json"))


@pytest.mark.parametrize(
    ("change", "img_size"),
    [
        ({"patch_size": 8, "qkv_bias": False}, 64),
        ({"patch_size": 14, "layer_scale": None}, 98),
        ({"registers": 0, "mlp": "swiglu", "mlp_ratio": 5.375}, 32),
        ({"depth": 3, "width": 128, "heads": 2}, 96),
    ],
)
def test_every_plain_shape_is_recognised_continued_and_given_back(
    tmp_path: Path, change: dict[str, Any], img_size: int
) -> None:
    """Loaded, continued from with equal features, exported in the layout that came in, and read by timm itself."""
    settings = NARROW.model_copy(update=change)
    state, batch = state_of(settings, img_size), images(1, 3, 5 * settings.patch_size, 7 * settings.patch_size)
    for layout in ("official", "plain", "timm"):
        given = to_layout(state, layout)
        path = saved(tmp_path / f"{layout}.pth", given)
        encoder = load_encoder(path)
        expected = drawn_vit(settings, img_size).tokens(batch)
        assert (encoder.tokens(batch) - expected).abs().max() < 1e-5
        student = initial_vit(encoder.network.settings, 224, seed=1)
        start_from(student, path)
        with torch.no_grad():
            assert torch.equal(student.tokens(batch), encoder.tokens(batch))
        back = load_file(export(FeatureEncoder(student, "x"), tmp_path / f"{layout}.safetensors"))
        assert set(back) == set(given)
        assert all(torch.equal(back[name], given[name]) for name in given)
    model = timm.create_model(f"local-dir:{export(path, tmp_path / 'hub', 'timm')}", pretrained=True).eval()
    with torch.no_grad():
        assert (model.forward_features(batch) - expected).abs().max() < 1e-5


def test_continuing_says_what_to_set(tmp_path: Path) -> None:
    other = saved(tmp_path / "o.pth", state_of(NARROW.model_copy(update={"registers": 0, "layer_scale": None}), 96))
    said = 'set pretrain.encoder: {arch: "custom", width: 64, depth: 2, heads: 1, registers: 0, layer_scale: null, img_size: 96}'
    with pytest.raises(InputError, match=re.escape(said)):
        start_from(initial_vit(params.Encoder(), 224, 0), other)
    for source in ("pixels", "timm:vit_xsmall_patch16_clip_224:random", "timm:vit_small_patch16_dinov3:random"):
        with pytest.raises(InputError, match=r"plain ViT|norm_pre"):
            start_from(initial_vit(params.Encoder(), 224, 0), source)


def test_another_normalisation_is_folded_into_the_patches() -> None:
    """timm's ViT-Ti expects mean 0.5: its pixels are not ImageNet's, its features stay."""
    source, batch = "timm:vit_tiny_patch16_224:random", images(1, 3, 64, 48)
    encoder = load_encoder(source)
    vit = initial_vit(plain_vit(encoder).settings, 224, 0)
    start_from(vit, source)
    assert (encoder.scale != 1).all()
    with torch.no_grad():
        assert (vit.tokens(batch) - encoder.tokens(batch)).abs().max() < 1e-4


REFUSED = {
    "dinov3_vits16_pretrain.pth": "timm:vit_small_patch16_dinov3.lvd1689m",
    "videomae.pth": "patches span 2 frames",
    "whole_model.pth": r"torch.save\(model.state_dict\(\), FILE\)",
}


def test_checkpoints_people_bring(tmp_path: Path) -> None:
    """A whole encoder loads whatever stands beside it; a refusal names the way that works; nothing is to be deleted."""
    script = SHARED / "field" / "checkpoints.py"
    if not script.is_file():
        pytest.skip(f"{script} is not here")
    subprocess.run([sys.executable, script, tmp_path], check=True)
    for path in sorted(tmp_path.iterdir()):
        if path.name in REFUSED:
            with pytest.raises(InputError, match=REFUSED[path.name]) as caught:
                load_encoder(path)
            assert "delete" not in str(caught.value)
            continue
        content = torch.load(path, weights_only=False)
        parts = [content, *(part for part in content.values() if isinstance(part, dict))]
        known = [value for part in parts for name, value in part.items() if name.endswith("blocks.1.mlp.fc1.weight")]
        loaded = load_encoder(path).network.state_dict()
        if known:  # the averaged network stands last
            assert torch.equal(loaded["blocks.1.mlp.fc1.weight"], known[-1].float()), path.name
    distilled = load_encoder(tmp_path / "deit_distilled.pth").network  # its second token is a register with a position
    model = timm.create_model("deit_small_distilled_patch16_224", embed_dim=64, depth=2, num_heads=1, num_classes=10)
    model.load_state_dict(torch.load(tmp_path / "deit_distilled.pth")["model"])
    batch = images(1, 3, 224, 224)
    with torch.no_grad():
        assert (model.eval().forward_features(batch) - distilled.tokens(batch)).abs().max() < 1e-5


def test_options_beside_weights(tmp_path: Path) -> None:
    content = {"model": state_of(), "args": argparse.Namespace(lr=1.0), "best": np.float32(0.5), "dir": Path("a")}
    assert load_encoder(saved(tmp_path / "a.pth", content)).metadata["args"] == {"lr": 1.0}


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("kind", ["zip", "old torch", "pickle"])
def test_code_in_a_file_is_not_run(tmp_path: Path, kind: str) -> None:
    marker, path = tmp_path / "marker", tmp_path / "evil.pth"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Evil(marker), protocol=2))
    else:
        saved(path, {"teacher": state_of(), "extra": Evil(marker)}, _use_new_zipfile_serialization=kind == "zip")
    for read in (load_encoder, inspect):
        with pytest.raises(InputError, match="wants to run code when it is opened"):
            read(path)
    assert not marker.exists()
    if kind != "pickle":  # the file is a real one: opened without care it does run
        torch.load(path, weights_only=False)
        assert marker.exists()


CONTENTS: dict[str, tuple[Any, str]] = {  # bytes of a file, or what torch saves -> what is said
    "empty": (b"", "is no weight file (it begins with b'')"),
    "video": (b"\0\0\0\x20ftypisom" + bytes(500), "is a video; here an encoder is wanted"),
    "cut": (b"PK\x03\x04" + bytes(500), "cannot be read"),
    "nothing": ({"step": 3}, "holds no tensors"),
    "no encoder": ({"fc.weight": torch.zeros(3, 3)}, "no vision transformer (no patch_embed.proj.weight)"),
    "transformers": (
        {"embeddings.patch_embeddings.projection.weight": torch.zeros(3)},
        "timm:vit_small_patch14_dinov2",
    ),
    "nan": (state_of() | {"norm.bias": torch.full((64,), torch.nan)}, "norm.bias holds NaN, infinity or torch.float32"),
    "two": (prefixed(state_of(), "a.") | prefixed(state_of(), "b."), "several encoders (a., b.)"),
    "oblong": (state_of() | {"pos_embed": torch.zeros(1, 13, 64)}, "size mismatch for pos_embed"),
    "more": (state_of() | {"surplus": torch.zeros(2)}, 'Unexpected key(s) in state_dict: "surplus"'),
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_what_is_no_encoder_is_named_in_one_sentence(tmp_path: Path, kind: str) -> None:
    path, (content, said) = tmp_path / "file.pth", CONTENTS[kind]
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        load_encoder(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) < 600 + len(message.split(": ")[0])


def test_published_encoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline: one sentence with why, from where, to where."""

    def nothing(*names: Any, **options: Any) -> str:
        raise OSError("no connection")

    monkeypatch.setattr(fetch, "resolve", lambda _: tmp_path)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", nothing)
    monkeypatch.setattr(timm, "create_model", nothing)
    address = "https://huggingface.co/yafeng19/T-CORE/resolve/main/ckpt/vits16_400ep_K400.pth"
    with pytest.raises(
        InputError, match=rf"{address} cannot .*\(no connection\); download it and put it at {tmp_path}"
    ):
        load_encoder("vits16_k400")
    with pytest.raises(InputError, match=r"timm:vit_tiny_patch16_224 .*\(no connection\)"):
        load_encoder("timm:vit_tiny_patch16_224")
    official_file(tmp_path / "vits16_400ep_K400.pth", state_of(seed=1))
    assert same(load_encoder("vits16_k400"), state_of(seed=1))


@pytest.mark.parametrize(("format", "target"), [("safetensors", "out.safetensors"), ("official", "out.pth")])
def test_what_is_known_goes_along(tmp_path: Path, format: str, target: str) -> None:
    """Metadata and heads, twice over, beside the same bits; readable without us."""
    vit = drawn_vit(NARROW.model_copy(update={"heads": 4}))
    first = export(FeatureEncoder(vit, "x"), tmp_path / target, format, {"run": "r1"})
    again = load_encoder(export(first, tmp_path / f"again-{target}", format, {"scores": {"davis": 0.5}}))
    assert same(again, vit.state_dict())
    assert (again.network.heads, again.metadata["run"], again.metadata["scores"]) == (4, "r1", {"davis": 0.5})
    plain = load_file(first) if format == "safetensors" else torch.load(first, weights_only=True)["teacher"]
    assert {name.removeprefix("backbone.") for name in plain} == set(vit.state_dict())  # the authors' code strips that


def test_timm_folder_and_its_card(tmp_path: Path) -> None:
    """`create_model` from the folder and back here: the same features, bit for bit; the card says what was measured."""
    vit = drawn_vit(NARROW.model_copy(update={"heads": 2}))
    row = {"benchmark": "DAVIS", "metric": "J&F_m", "value": 0.5, "low": 0.4, "high": 0.6, "clips": 30}
    known = {"run": "r1", "step": 300, "params": {"pretrain": {"loop": {"batch_size": 16}}}}
    about = {"metadata": known, "scores": pd.DataFrame([row]), "data": "six videos", "licence": "apache-2.0"}
    folder = save_for_hf(FeatureEncoder(vit, "x"), tmp_path / "hub", **about)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    batch = images(2, 3, 48, 96)
    with torch.no_grad():
        expected = vit.tokens(batch)
        assert torch.equal(model.forward_features(batch), expected)
        assert torch.equal(model(batch), expected[:, 0])  # pooled: CLS
    assert tuple(model.pretrained_cfg["mean"]) == (0.485, 0.456, 0.406)
    back = load_encoder(folder)
    assert torch.equal(back.tokens(batch), expected)
    assert (back.metadata["run"], back.network.heads) == ("r1", 2)
    card = (folder / "README.md").read_text()
    for part in ("license: apache-2.0", "six videos", "300 steps, 4,800 samples", "0.400", "hf-hub:OWNER/hub"):
        assert part in card, part


def test_a_folder_of_timm_itself(tmp_path: Path) -> None:
    """Another architecture of timm, as its own export writes it."""
    model = timm.create_model("eva02_tiny_patch14_224", depth=2, num_classes=0).eval()
    timm.models.save_for_hf(model, str(tmp_path), model_args={"depth": 2}, safe_serialization=True)
    encoder, batch = load_encoder(tmp_path), images(1, 3, 224, 224)
    with torch.no_grad():
        theirs = model.forward_features(batch * encoder.scale + encoder.shift)[:, encoder.prefix :]
    assert (encoder(batch).flatten(1, 2) - theirs).abs().max() < 1e-4
    state = load_file(tmp_path / "model.safetensors")
    del state["blocks.1.norm1.weight"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r'Missing key.*"blocks\.1\.norm1\.weight"'):
        load_encoder(tmp_path)


def test_pushing_uploads_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    api = mock.Mock()
    api.upload_folder = lambda repo_id, folder_path: [repo_id, *sorted(path.name for path in folder_path.iterdir())]
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    uploaded = push_to_hub(FeatureEncoder(drawn_vit(NARROW), "x"), "me/small")
    assert uploaded == str(["me/small", "README.md", "config.json", "model.safetensors"])
    api.create_repo.assert_called_once_with("me/small", private=True, exist_ok=True)


def test_bad_targets_and_sources(tmp_path: Path) -> None:
    encoder = FeatureEncoder(drawn_vit(NARROW), "x")
    (tmp_path / "file").touch()
    for source, format, target, said in (
        (encoder, "safetensors", "a.pth", "ends in .safetensors"),
        (encoder, "timm", "file", "is a folder; give another target"),
        ("pixels", "official", "a.pth", "pixels is no plain ViT"),
    ):
        with pytest.raises(InputError, match=said):
            export(source, tmp_path / target, format)


def test_inspection(tmp_path: Path) -> None:
    state = state_of()
    found = inspect(official_file(tmp_path / "vit.pth", state))
    words = "custom, width 64, 2 blocks, 1 heads, patch 16, 4 registers, positions for 64x64 pixels"
    assert found.about == words
    total = sum(value.numel() for value in state.values())
    assert found.tensors["values"].sum() == total + 8 * 4
    row = found.tensors.set_index("tensor").loc["teacher.backbone.blocks.1.attn.qkv.weight"]
    assert (row["shape"], row["values"], row["bytes"]) == ("192x64", 192 * 64, 4 * 192 * 64)
    assert (found.encoder["difference"] == 0).all()
    assert set(found.encoder.index) == {"patch_embed", "tokens", "blocks.0", "blocks.1", "norm", "all"}
    assert found.encoder.loc["all", "measured"] == total
    # 2 x (12 x 4096 + 15 x 64) values, 14 tensors a block
    assert found.tree(3).loc["teacher.backbone.blocks"].tolist() == [28, 100_224, 4 * 100_224]
    assert inspect(load_encoder(tmp_path / "vit.pth")).encoder.equals(found.encoder)
    assert inspect("pixels").tensors.empty


def test_inspection_shows_what_cannot_be_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = state_of()
    state["norm.bias"][0] = float("nan")
    inspect_command(str(official_file(tmp_path / "nan.pth", state)))
    assert "NOT FINITE: teacher.backbone.norm.bias" in capsys.readouterr().out
    found = inspect(saved(tmp_path / "other.pth", {"fc.weight": torch.zeros(3, 3), "step": 4}))
    assert "no patch_embed.proj.weight" in found.about
    assert found.metadata == {"step": 4}
