"""Weight files in and out: every layout, every kind of damage, bit-equal round trips."""

import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_encoder import drawn_vit, images
from torch import Tensor

from tcore_lib import fetch, params
from tcore_lib.errors import InputError
from tcore_lib.files import sha256
from tcore_lib.model.contents import expected_parameters, inspect
from tcore_lib.model.encoders import FeatureEncoder, load_encoder
from tcore_lib.model.export import FORMATS, export
from tcore_lib.model.vit import official_state_dict
from tcore_lib.model.weights import OURS, read_weights
from tcore_lib.training import checkpoints, tcore

State = dict[str, Tensor]
README = Path(__file__).parents[1] / "README.md"
NARROW = params.Encoder(arch="custom", width=64, depth=2, heads=1)  # one head of 64: what a width alone tells


def state_of(settings: params.Encoder = NARROW, img_size: int = 64, seed: int = 0) -> State:
    return {name: value.clone() for name, value in official_state_dict(drawn_vit(settings, img_size, seed)).items()}


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


def official_file(path: Path, state: State) -> Path:
    torch.save({"teacher": prefixed(state, "backbone.") | {"dino_head.last_layer.weight_v": torch.randn(8, 4)}}, path)
    return path


def same(encoder: FeatureEncoder, state: State) -> bool:
    loaded = official_state_dict(encoder.network)
    return list(loaded) == list(state) and all(torch.equal(loaded[name], state[name]) for name in state)


# ------------------------------------------------------------------------------------------------ in


def test_official_file(tmp_path: Path) -> None:
    state = state_of()
    encoder = load_encoder(official_file(tmp_path / "vit.pth", state))
    assert same(encoder, state)
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert (encoder.patch_size, encoder.width, encoder.prefix) == (16, 64, 5)
    assert torch.equal(encoder(images(1, 3, 48, 80)).flatten(1, 2), drawn_vit(NARROW)(images(1, 3, 48, 80))[1])


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"backbone._fsdp_wrapped_module.{name}".replace("blocks.1.", "blocks.1._fsdp_wrapped_module."),
        lambda name: f"module.backbone.{name}",
        lambda name: f"_orig_mod.backbone.{name}",
        lambda name: "backbone." + re.sub(r"^blocks\.(\d+)", lambda m: f"blocks.{int(m[1]) // 2}.{m[1]}", name),
    ],
    ids=["fsdp", "ddp", "compile", "chunked"],
)
def test_wrapped_names(tmp_path: Path, rename: Callable[[str], str]) -> None:
    state = state_of()
    torch.save({"teacher": {rename(name): value for name, value in state.items()}}, tmp_path / "wrapped.pth")
    assert same(load_encoder(tmp_path / "wrapped.pth"), state)


def test_teacher_and_student_of_a_training_checkpoint(tmp_path: Path) -> None:
    """As `pretrain` writes it: both networks, optimiser, parameters; 4 heads of 16 are known from the parameters."""
    teacher, student = state_of(seed=1), state_of(seed=2)
    whole = params.Params(pretrain=params.Pretrain(encoder=NARROW.model_copy(update={"heads": 4})))
    content = {
        "format": 1,
        "step": 300,
        "teacher": prefixed(teacher, "backbone."),
        "student": prefixed(student, "backbone."),
        "auxiliary": {"auxiliary_decoder.decoder.0.auxiliary_linear.weight": torch.randn(64, 64)},
        "optimiser": {
            "state": {0: {"exp_avg": torch.zeros(3), "step": torch.tensor(5.0)}},
            "param_groups": [{"lr": 1.0}],
        },
        "params": whole.model_dump(mode="json"),
    }
    path = tmp_path / "step-00000300.pt"
    torch.save(content, path)
    encoder = load_encoder(path)
    assert same(encoder, teacher)
    assert same(load_encoder(str(path), which="student"), student)
    assert encoder.network.heads == 4
    assert encoder.metadata["step"] == 300
    with pytest.raises(InputError, match="ask for the teacher or the student"):
        load_encoder(path, which="ema")
    target = export(path, tmp_path / "out.safetensors", metadata={"run": "r1", "scores": {"davis": 0.6}})
    about = read_weights(target).metadata[OURS]
    assert (about["step"], about["run"], about["scores"]) == (300, "r1", {"davis": 0.6})
    assert about["params_sha256"] == whole.digest()
    assert load_encoder(target).network.heads == 4


def test_what_pretraining_saves(tmp_path: Path) -> None:
    """The real model through the real writer: the layout cannot drift apart from what is read here."""
    encoder = NARROW.model_copy(update={"heads": 4})
    section = params.Pretrain(encoder=encoder, head=params.Head(prototypes=32, hidden=16, bottleneck=8))
    model = tcore.TCoRe(section, seed=0)
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(1.0)
    whole = params.Params(pretrain=section).model_dump(mode="json")
    path = checkpoints.save(tmp_path, 7, {**checkpoints.official_weights(model), "params": whole})
    for role, networks in (("teacher", model.teacher), ("student", model.student)):
        found = load_encoder(path, which=role)
        assert same(found, official_state_dict(networks.encoder))
        assert found.network.heads == 4
    assert (inspect(path).encoder["difference"] == 0).all()


def test_a_missing_role_is_named(tmp_path: Path) -> None:
    torch.save({"student": prefixed(state_of(), "backbone.")}, tmp_path / "student.pth")
    with pytest.raises(InputError, match="holds no teacher, but student"):
        load_encoder(tmp_path / "student.pth")
    torch.save(state_of(), tmp_path / "bare.pth")
    with pytest.raises(InputError, match="only one encoder without a role"):
        load_encoder(tmp_path / "bare.pth", which="student")


def test_bare_files_and_folders(tmp_path: Path) -> None:
    state = state_of()
    torch.save(state, tmp_path / "bare.pth")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    folder = tmp_path / "folder"
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    for source in (tmp_path / "bare.pth", tmp_path / "old.pth", folder / "model.safetensors", folder):
        assert same(load_encoder(source), state)
    half = {name: value.bfloat16() for name, value in state.items()}
    torch.save(half, tmp_path / "half.pth")
    assert same(load_encoder(tmp_path / "half.pth"), {name: value.float() for name, value in half.items()})


@pytest.mark.parametrize(
    ("change", "img_size"),
    [
        ({"patch_size": 8}, 64),
        ({"patch_size": 14}, 98),
        ({"registers": 0}, 32),
        ({"depth": 3, "width": 128, "heads": 2}, 96),
    ],
)
def test_shapes_are_recognised(tmp_path: Path, change: dict[str, int], img_size: int) -> None:
    settings = NARROW.model_copy(update=change)
    state = state_of(settings, img_size)
    torch.save(state, tmp_path / "bare.pth")
    network = load_encoder(tmp_path / "bare.pth").network
    assert network.img_size == img_size
    assert network.settings.shape == settings.shape
    assert (network.patch_size, network.settings.registers) == (settings.patch_size, settings.registers)


def test_named_sizes_are_recognised_and_others_need_heads(tmp_path: Path) -> None:
    torch.save(state_of(params.Encoder(arch="vit_tiny", registers=0), 32), tmp_path / "tiny.pth")
    assert load_encoder(tmp_path / "tiny.pth").network.settings.arch == "vit_tiny"
    narrow = params.Encoder(arch="custom", width=32, depth=1, heads=2)
    torch.save(state_of(narrow), tmp_path / "narrow.pth")
    with pytest.raises(InputError, match="width 32, from which"):
        load_encoder(tmp_path / "narrow.pth")
    assert load_encoder(tmp_path / "narrow.pth", heads=2).network.heads == 2


def test_transformers_names(tmp_path: Path) -> None:
    """The layout of transformers' Dinov2WithRegisters: query, key and value apart."""
    state, theirs = state_of(), {}
    names = {
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "norm.": "layernorm.",
    }
    for name, value in state.items():
        if match := re.match(r"blocks\.(\d)\.attn\.qkv\.(\w+)", name):
            for kind, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
                theirs[f"encoder.layer.{match[1]}.attention.attention.{kind}.{match[2]}"] = part.contiguous()
            continue
        if name in ("cls_token", "mask_token", "register_tokens"):
            name = f"embeddings.{name}"
        for ours, other in names.items():
            name = other + name.removeprefix(ours) if name.startswith(ours) else name
        name = re.sub(r"^blocks\.(\d)\.ls(\d)\.gamma", r"encoder.layer.\1.layer_scale\2.lambda1", name)
        name = re.sub(r"^blocks\.(\d)\.attn\.proj", r"encoder.layer.\1.attention.output.dense", name)
        theirs[re.sub(r"^blocks\.", "encoder.layer.", name)] = value
    save_file(theirs, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dinov2_with_registers", "num_attention_heads": 2}))
    encoder = load_encoder(tmp_path)
    assert same(encoder, state)
    assert encoder.network.heads == 2


def test_a_folder_of_timm_itself(tmp_path: Path) -> None:
    """Another architecture of timm, as its own export writes it."""
    model = timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=0).eval()
    timm.models.save_for_hf(model, str(tmp_path), model_args={"depth": 2}, safe_serialization=True)
    encoder = load_encoder(tmp_path)
    batch = images(1, 3, 224, 224)
    assert encoder.network.architecture == "vit_tiny_patch16_224"
    own = (torch.tensor(model.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    mean, std = own
    pixels = batch * torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    pixels = pixels + torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    with torch.no_grad():
        theirs = model.forward_features((pixels - mean) / std)[:, 1:]
    assert (encoder(batch).flatten(1, 2) - theirs).abs().max() < 1e-4
    state = load_file(tmp_path / "model.safetensors")
    del state["blocks.1.norm1.weight"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"1 missing: blocks\.1\.norm1\.weight"):
        load_encoder(tmp_path)


def test_strict(tmp_path: Path) -> None:
    """Every tensor that is missing, unexpected or misshapen is listed."""
    state = state_of()
    del state["blocks.0.attn.qkv.bias"], state["norm.bias"]
    state |= {"surplus": torch.zeros(2), "blocks.1.mlp.fc1.weight": torch.zeros(64, 256)}
    path = official_file(tmp_path / "broken.pth", state)
    with pytest.raises(InputError) as caught:
        load_encoder(path)
    for part in (
        "broken.pth",
        "2 missing: blocks.0.attn.qkv.bias, norm.bias",
        "1 unexpected: surplus",
        "1 misshapen: blocks.1.mlp.fc1.weight is (64, 256), not (256, 64)",
    ):
        assert part in str(caught.value)


# ------------------------------------------------------------------------------------------------ safe


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("kind", ["zip", "old torch", "pickle 2", "pickle 4"])
def test_code_in_a_file_is_not_run(tmp_path: Path, kind: str) -> None:
    marker, path = tmp_path / "marker", tmp_path / "evil.pth"
    content = {"teacher": prefixed(state_of(), "backbone."), "extra": Evil(marker)}
    if kind.startswith("pickle"):
        path.write_bytes(pickle.dumps(content["extra"], protocol=int(kind[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    for read in (load_encoder, inspect):
        with pytest.raises(InputError, match="wants to run code when it is opened"):
            read(path)
    assert not marker.exists()
    if kind.startswith("pickle"):  # the file is a real one: opened without care it does run
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert marker.exists()


def _flipped(path: Path, state: State, bit: int) -> None:
    """Flip one bit of a value in the middle of a tensor's bytes."""
    whole = bytearray(path.read_bytes())
    middle = state["blocks.1.mlp.fc1.weight"].numpy().tobytes()[4000:4064]
    at = whole.find(middle)
    assert at > 0
    whole[at + 3 if bit == 30 else at] ^= 1 << (bit % 8)  # little endian: bit 30 of a float32 is in its fourth byte
    path.write_bytes(whole)


def _damaged(kind: str, folder: Path) -> Path:
    state = state_of()
    path = official_file(folder / "vit.pth", state)
    if kind.startswith("safetensors"):
        path = export(path, folder / "vit.safetensors")
    if kind.startswith("foreign"):
        path = folder / "foreign.safetensors"
        save_file(state, path)
    if kind.startswith("old"):
        path = folder / "old.pth"
        torch.save(state, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    match kind:
        case "missing":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "web page":
            path.write_text("\n<!DOCTYPE html><html><body>Not Found</body></html>")
        case "lfs":
            path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
        case "text":
            path.write_text("step,loss\n1,2\n")
        case "picture":
            path.write_bytes(b"\xff\xd8\xff\xe0" + bytes(5000))
        case "zip":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("a.txt", "hello")
        case "truncated" | "safetensors truncated" | "foreign truncated" | "old truncated":
            path.write_bytes(whole[: len(whole) * 6 // 10])
        case "barely truncated":
            path.write_bytes(whole[:-1])
        case "bit" | "safetensors bit":
            _flipped(path, state, 0)
        case "foreign bit" | "old bit":
            _flipped(path, state, 30)
        case "safetensors header":
            path.write_bytes(b"\xff" * 8 + whole[8:])
        case "list":
            torch.save([1, 2, 3], path)
        case "no tensors":
            torch.save({"step": 3, "note": "x"}, path)
        case "no encoder":
            torch.save({"fc.weight": torch.zeros(3, 3)}, path)
        case "flat":
            torch.save({"teacher": {"backbone._flat_param": torch.zeros(30)}}, path)
        case "nan":
            state["blocks.0.norm1.weight"][3] = float("nan")
            official_file(path, state)
        case "infinite":
            state["cls_token"][..., 0] = float("inf")
            official_file(path, state)
        case "integers":
            official_file(path, state | {"norm.bias": torch.zeros(64, dtype=torch.int32)})
        case "claims":
            official_file(path, state | {"norm.bias": torch.zeros(1).expand(1 << 40)})
        case "module":
            torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), path)
    return path


DAMAGE = {
    "missing": "neither a file",
    "empty": "is empty",
    "web page": "is a web page",
    "lfs": "git-lfs pointer",
    "text": "no weight file",
    "picture": "no weight file",
    "zip": "no torch file",
    "truncated": "truncated or damaged",
    "barely truncated": "truncated",
    "old truncated": "truncated",
    "safetensors truncated": "no intact safetensors",
    "foreign truncated": "no intact safetensors",
    "bit": "does not match its checksum",
    "safetensors bit": "do not match its checksum",
    "foreign bit": "fc1.weight holds the value",
    "old bit": "fc1.weight holds the value",
    "safetensors header": "no intact safetensors",
    "list": "holds a list",
    "no tensors": "holds no tensors",
    "no encoder": "no vision transformer",
    "flat": "flattened shards",
    "nan": "norm1.weight holds the value nan",
    "infinite": "cls_token holds the value inf",
    "integers": "norm.bias holds torch.int32",
    "claims": "claims more values than the file holds",
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_in_one_sentence(tmp_path: Path, kind: str) -> None:
    path = _damaged(kind, tmp_path)
    with pytest.raises(InputError) as caught:
        load_encoder(path)
    message = str(caught.value)
    assert DAMAGE[kind] in message
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 400 + len(str(path)) * 2


@pytest.mark.parametrize("ours", ["[1]", '"text"', "3"])
def test_metadata_that_is_no_mapping_is_named_in_one_sentence(tmp_path: Path, ours: str) -> None:
    save_file(state_of(), tmp_path / "a.safetensors", {OURS: ours})
    torch.save({"teacher": prefixed(state_of(), "backbone."), OURS: json.loads(ours)}, tmp_path / "a.pth")
    for name in ("a.safetensors", "a.pth"):
        with pytest.raises(InputError, match=rf"{name} is damaged: its metadata"):
            load_encoder(tmp_path / name)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_a_program_is_not_weights(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="TorchScript"):
        load_encoder(_damaged("module", tmp_path))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], "holds no weights"),
        (["a.pth", "b.pth"], "holds 2 weight files"),
        (["model.safetensors.index.json"], "several shards"),
    ],
)
def test_folders_without_one_weight_file(tmp_path: Path, files: list[str], said: str) -> None:
    for name in files:
        (tmp_path / name).write_text("x")
    with pytest.raises(InputError, match=said):
        load_encoder(tmp_path)


# ------------------------------------------------------------------------------------------------ fetched


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty weights folder, and no network."""

    def nothing(*names: object, **options: object) -> str:
        raise OSError("no connection")

    monkeypatch.setattr(fetch, "weights_folder", lambda: tmp_path / "weights")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", nothing)
    monkeypatch.setattr("tcore_lib.model.encoders.get_session", nothing)
    monkeypatch.setattr("tcore_lib.model.encoders.try_to_load_from_cache", lambda *names: None)
    return tmp_path / "weights"


def test_published_encoder_offline(offline: Path) -> None:
    """One sentence: why, from where, to where."""
    with pytest.raises(InputError) as caught:
        load_encoder("vits16_k400")
    address = "https://huggingface.co/yafeng19/T-CORE/resolve/main/ckpt/vits16_400ep_K400.pth"
    assert f"(no connection); download {address} and put it at {offline / 'vits16_400ep_K400.pth'}." in str(
        caught.value
    )
    with pytest.raises(InputError, match=r"weights of timm:vit_tiny_patch16_224 .*\(no connection\)"):
        load_encoder("timm:vit_tiny_patch16_224")


def test_published_encoder_is_fetched_once_and_recorded(
    offline: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What the hub's client brings lands in the weights folder; later another file of that name is refused."""
    source = official_file(tmp_path / "remote.pth", state_of(seed=1))

    def download(repository: str, name: str, *, local_dir: Path, **options: object) -> str:
        assert (repository, name) == ("yafeng19/T-CORE", "ckpt/vitb16_200ep_K400.pth")
        (local_dir / "ckpt").mkdir(parents=True)
        return str(source.rename(local_dir / name))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert same(load_encoder("vitb16_k400"), state_of(seed=1))
    path = offline / "vitb16_200ep_K400.pth"
    assert json.loads((offline / "checksums.json").read_text()) == {path.name: sha256(path)}
    assert same(load_encoder("vitb16_k400"), state_of(seed=1))
    official_file(path, state_of(seed=2))
    with pytest.raises(InputError, match="as recorded"):
        load_encoder("vitb16_k400")


# ------------------------------------------------------------------------------------------------ out


@pytest.mark.parametrize(("format", "target"), [("safetensors", "out.safetensors"), ("official", "out.pth")])
def test_lossless_round_trips(tmp_path: Path, format: str, target: str) -> None:
    """Every tensor, bit for bit, and the metadata; twice over changes nothing."""
    state = state_of(NARROW.model_copy(update={"heads": 4}))
    torch.save(state, tmp_path / "in.pth")
    encoder = load_encoder(tmp_path / "in.pth", heads=4)
    first = export(encoder, tmp_path / target, format, {"run": "r1", "commit": "0123456"})
    second = export(first, tmp_path / f"again-{target}", format, {"scores": {"davis": 0.5}})
    for path in (first, second):
        again = load_encoder(path)
        assert same(again, state)
        assert again.network.heads == 4
        assert (again.metadata["run"], again.metadata["commit"]) == ("r1", "0123456")
    assert load_encoder(second).metadata["scores"] == {"davis": 0.5}


def test_safetensors_is_readable_without_us(tmp_path: Path) -> None:
    state = state_of()
    path = export(FeatureEncoder(drawn_vit(NARROW), "x"), tmp_path / "out.safetensors", metadata={"run": "r1"})
    assert all(torch.equal(value, state[name]) for name, value in load_file(path).items())
    with safe_open(path, "pt") as archive:
        about = json.loads(archive.metadata()["tcore_lib"])
    assert about["encoder"]["heads"] == 1
    assert about["run"] == "r1"


def test_official_file_is_readable_by_the_original_code(tmp_path: Path) -> None:
    """The authors' evaluation takes file["teacher"] and strips `module.` and `backbone.`."""
    path = export(official_file(tmp_path / "in.pth", state_of()), tmp_path / "out.pth", "official")
    teacher = torch.load(path, weights_only=True)["teacher"]
    assert {name.replace("module.", "").replace("backbone.", "") for name in teacher} == set(state_of())


def test_timm_folder(tmp_path: Path) -> None:
    """`create_model` from the folder, `load_checkpoint` from the file, back here: the same features, bit for bit."""
    vit = drawn_vit(NARROW.model_copy(update={"heads": 2}))
    folder = export(FeatureEncoder(vit, "x"), tmp_path / "hub", "timm", {"run": "r1"})
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    batch = images(2, 3, 48, 96)
    with torch.no_grad():
        expected = vit.tokens(batch)
        assert torch.equal(model.forward_features(batch), expected)
        assert torch.equal(model(batch), expected[:, 0])  # pooled: CLS
    fresh = timm.create_model(f"local-dir:{folder}", pretrained=False)
    timm.models.load_checkpoint(fresh, str(folder / "model.safetensors"))
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in model.state_dict().items())
    back = load_encoder(folder)
    assert torch.equal(back.tokens(batch), expected)
    assert back.metadata["run"] == "r1"
    again = export(back, tmp_path / "again", "timm")
    first, second = (load_file(place / "model.safetensors") for place in (folder, again))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert tuple(model.pretrained_cfg["mean"]) == (0.485, 0.456, 0.406)


def test_a_published_size_in_timm(tmp_path: Path) -> None:
    """ViT-S/16 with registers: the plain timm name and arguments suffice."""
    vit = drawn_vit(params.Encoder(), 224)
    folder = export(FeatureEncoder(vit, "x"), tmp_path / "hub", "timm")
    model = timm.create_model(
        "vit_small_patch16_224",
        num_classes=0,
        reg_tokens=4,
        no_embed_class=True,
        init_values=1e-5,
        dynamic_img_size=True,
    )
    timm.models.load_checkpoint(model, str(folder / "model.safetensors"))
    with torch.no_grad():
        assert torch.equal(model.eval().forward_features(images(1, 3, 96, 96)), vit.tokens(images(1, 3, 96, 96)))


def test_torch_export(tmp_path: Path) -> None:
    """One program for any batch and size; it computes the same bits without our code."""
    encoder = FeatureEncoder(drawn_vit(NARROW), "x").eval()
    path = export(encoder, tmp_path / "out.pt2", "pt2", {"run": "r1"})
    files = {"tcore_lib": ""}
    program = torch.export.load(path, extra_files=files).module()
    assert json.loads(files["tcore_lib"])["run"] == "r1"
    for batch in (images(1, 3, 64, 64), images(3, 3, 32, 80), images(1, 3, 480, 880)):
        assert torch.equal(program(batch), encoder(batch))


def test_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = FeatureEncoder(drawn_vit(NARROW), "x").eval()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install onnx onnxscript"):
        export(encoder, tmp_path / "out.onnx", "onnx")
    monkeypatch.undo()
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(export(encoder, tmp_path / "out.onnx", "onnx"))
    for batch in (images(1, 3, 64, 64), images(2, 3, 480, 880)):
        features = session.run(None, {"images": batch.numpy()})[0]
        assert abs(features - encoder(batch).numpy()).max() < 1e-4


@pytest.mark.parametrize(
    ("format", "target", "said"),
    [
        ("onxx", "a.onnx", "does not exist; choose one of safetensors, timm"),
        ("safetensors", "a.pth", "ends in .safetensors"),
        ("official", "folder", "ends in .pth"),
        ("timm", "file", "is a folder; give another target"),
    ],
)
def test_bad_targets(tmp_path: Path, format: str, target: str, said: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=said):
        export(FeatureEncoder(drawn_vit(), "x"), tmp_path / target, format)


def test_what_has_no_weights_of_ours_is_not_written(tmp_path: Path) -> None:
    for format, (suffix, _) in FORMATS.items():
        with pytest.raises(InputError, match="pixels has no weights"):
            export("pixels", tmp_path / f"out{suffix}", format)
    with pytest.raises(InputError, match="cannot be written as JSON"):
        export(FeatureEncoder(drawn_vit(), "x"), tmp_path / "a.safetensors", metadata={"score": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_the_recipe_in_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """README's ten lines that take an encoder into plain timm and torch, run as they stand."""
    if not README.is_file():
        pytest.skip(f"{README} is not written yet")
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    recipe = next(block for block in blocks if "local-dir:tcore_encoder" in block)
    assert "tcore_lib" not in recipe
    assert len(recipe.splitlines()) <= 12
    encoder = FeatureEncoder(drawn_vit(NARROW), "x")
    export(encoder, tmp_path / "tcore_encoder", "timm")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (480, 854, 3), dtype=np.uint8)).save(
        tmp_path / "image.jpg"
    )
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(recipe, names)
    assert names["features"].shape == (1, 64, 30, 55)
    assert (names["features"].permute(0, 2, 3, 1) - encoder(names["image"][None])).abs().max() < 1e-5


# ------------------------------------------------------------------------------------------------ inspected


def test_inspection(tmp_path: Path) -> None:
    state = state_of()
    found = inspect(official_file(tmp_path / "vit.pth", state))
    assert (
        found.about == "teacher: custom, width 64, 2 blocks, 1 heads, patch 16, 4 registers, positions for 64x64 pixels"
    )
    assert found.tensors["values"].sum() == sum(value.numel() for value in state.values()) + 8 * 4
    assert found.parts.loc["teacher.backbone.blocks.1", "values"] == 12 * 64**2 + 15 * 64
    assert found.parts.loc["teacher.backbone.tokens", "tensors"] == 4
    row = found.tensors.set_index("tensor").loc["teacher.backbone.blocks.1.attn.qkv.weight"]
    assert (row["block"], row["kind"], row["shape"]) == (1, "attn.qkv.weight", "192x64")
    assert row["norm"] == pytest.approx(state["blocks.1.attn.qkv.weight"].norm().item())
    assert (found.encoder["difference"] == 0).all()
    assert found.encoder.loc["all", "measured"] == sum(value.numel() for value in state.values())
    text = str(found)
    assert "teacher" in found.tree().splitlines()[1]
    assert re.search(r"blocks +28 tensors +100,224 values +0.40 MB", text)  # 2 x (12 x 4096 + 15 x 64), 14 a block
    live = inspect(load_encoder(tmp_path / "vit.pth"))
    assert live.encoder.equals(found.encoder)
    assert inspect("pixels").tensors.empty


def test_inspection_of_what_cannot_be_loaded(tmp_path: Path) -> None:
    """Damage is shown, not refused: this is where one looks for it."""
    state = state_of()
    state["norm.bias"][0] = float("nan")
    found = inspect(official_file(tmp_path / "nan.pth", state))
    assert "NOT FINITE: teacher.backbone.norm.bias" in str(found)
    torch.save({"fc.weight": torch.zeros(3, 3), "step": 4}, tmp_path / "other.pth")
    found = inspect(tmp_path / "other.pth")
    assert "no vision transformer" in found.about
    assert found.metadata == {"step": 4}


@pytest.mark.parametrize(("arch", "registers", "millions"), [("vit_small", 4, 21.68), ("vit_base", 4, 85.82)])
def test_expected_parameters(arch: Any, registers: int, millions: float) -> None:
    """ViT-S/16 of DINOv2's size has 22 M parameters, ViT-B/16 has 86 M."""
    assert expected_parameters(params.Encoder(arch=arch, registers=registers), 224).sum() / 1e6 == pytest.approx(
        millions, abs=0.01
    )
