"""A whole model in one file: what goes in comes out, and encoders are read from it too."""

from pathlib import Path

import pytest
import torch

from tcore_lib import params
from tcore_lib.__main__ import main
from tcore_lib.errors import InputError
from tcore_lib.model.encoders import load_encoder
from tcore_lib.reproduction import profile as profiles
from tcore_lib.training import checkpoints
from tcore_lib.training.model_file import read_model, write_model
from tcore_lib.training.official import official_weights
from tcore_lib.training.tcore import TCoRe

SETTINGS = {
    "pretrain": {
        "encoder": {"arch": "custom", "width": 48, "depth": 2, "heads": 3, "layer_scale": 0.1},
        "views": {"global_size": 64, "local_size": 32},
        "decoder": {"heads": 4},
        "head": {"prototypes": 32, "hidden": 32, "bottleneck": 16},
    }
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    settings = params.parse(SETTINGS, "test")
    model = TCoRe(settings.pretrain, 3)
    content = {**official_weights(model), "params": settings.model_dump(mode="json"), "provenance": {"commit": None}}
    return checkpoints.save(tmp_path, 7, content)


def test_weights_come_back_in_16_bit_precision(checkpoint: Path, tmp_path: Path) -> None:
    path = write_model(checkpoint, tmp_path / "model.safetensors", facts={"scores": {"davis": 1.0}})
    assert path.stat().st_size < 0.6 * checkpoint.stat().st_size
    before, after = checkpoints.load(checkpoint), official_weights(read_model(path))
    for role in ("student", "teacher", "auxiliary"):
        assert set(before[role]) == set(after[role])
        for name, tensor in before[role].items():
            torch.testing.assert_close(after[role][name], tensor.half().float(), rtol=1e-6, atol=1e-7)


def test_it_is_an_encoder_too(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    assert main(["export", str(checkpoint), str(path), "--format", "model"]) == 0
    images = torch.rand(1, 3, 64, 96)
    for which in ("teacher", "student"):
        expected = load_encoder(checkpoint, which=which)(images)
        torch.testing.assert_close(load_encoder(path, which=which)(images), expected, rtol=5e-3, atol=5e-3)


def test_a_profile_looks_at_it(checkpoint: Path, tmp_path: Path) -> None:
    path = write_model(checkpoint, tmp_path / "model.safetensors")
    profile = params.parse(SETTINGS | {"checkpoint": {"model": str(path)}}, "test")
    assert profiles.trained_model(profile).decoder is not None
    other = SETTINGS["pretrain"] | {"decoder": {"heads": 2}}
    with pytest.raises(InputError, match="copy these two sections"):
        profiles.trained_model(params.parse({"pretrain": other, "checkpoint": {"model": str(path)}}, "test"))


def test_bad_files_are_one_sentence(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ends in \.safetensors"):
        write_model(checkpoint, tmp_path / "model.pt")
    encoder = tmp_path / "encoder.safetensors"
    assert main(["export", str(checkpoint), str(encoder)]) == 0
    with pytest.raises(InputError, match=r"does not fit|says nothing"):
        read_model(encoder)
    path = write_model(checkpoint, tmp_path / "model.safetensors")
    damaged = bytearray(path.read_bytes())
    damaged[-5] ^= 255
    path.write_bytes(damaged)
    with pytest.raises(InputError, match="checksum"):
        read_model(path)
