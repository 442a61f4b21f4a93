"""What a weight file holds: every tensor in a table, the network recognised or why not, its parameters counted."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from tcore_lib import fetch
from tcore_lib.errors import InputError
from tcore_lib.model.encoders import FeatureEncoder, load_encoder
from tcore_lib.model.vit import ViT, official_state_dict
from tcore_lib.model.weights import OURS, State, architecture, find_encoder, known_heads, read_weights, to_official


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found.

    Attributes:
        source: as it was given.
        about: one line: the recognised network, or why none was.
        tensors: a row per tensor: tensor, part, shape, dtype, values, bytes, norm (L2), largest (absolute value), finite.
        encoder: measured beside expected parameters per part of the encoder; empty if none was recognised.
        metadata: everything in the file that is not a tensor.
    """

    source: str
    about: str
    tensors: pd.DataFrame
    encoder: pd.DataFrame
    metadata: dict[str, Any]

    def tree(self, depth: int = 2) -> str:
        """The names as a tree down to `depth` levels, with tensors, values and megabytes below each."""

        def lines(table: pd.DataFrame, label: str, level: int) -> Iterator[str]:
            values, size = table["values"].sum(), table["bytes"].sum() / 1e6
            yield f"{'  ' * level + label:<36}{len(table):>6} tensors {values:>13,} values {size:>9.2f} MB"
            if level < depth and len(table):
                for name, part in table.groupby(table["tensor"].str.split(".").str[level], sort=False):
                    yield from lines(part, str(name), level + 1)

        return "\n".join(lines(self.tensors, "all", 0))

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.about}", "", self.tree(3), ""]
        if len(self.encoder):
            lines += [self.encoder.to_string(), ""]
        if bad := self.tensors.loc[self.tensors["finite"].eq(False), "tensor"].tolist():
            lines += [f"NOT FINITE: {', '.join(bad)}", ""]
        for name, value in self.metadata.items():
            text = " ".join(str(value).split())
            lines.append(f"{name} = {text if len(text) <= 200 else text[:197] + '...'}")
        return "\n".join(lines).rstrip()


def inspect(source: FeatureEncoder | str | Path, which: str = "teacher") -> Inspection:
    """Read everything a source holds, without trusting it to be an encoder.

    Args:
        source: an encoder, or anything `load_encoder` takes.
        which: the encoder whose parameters are counted, "teacher" or "student".

    Raises:
        InputError: the file is no weight file; one with NaN or of an unknown network is reported, not refused.
    """
    name = source.name if isinstance(source, FeatureEncoder) else str(source)
    if not isinstance(source, FeatureEncoder) and (name == "pixels" or name.startswith("timm:")):
        source = load_encoder(source)
    counted = pd.DataFrame()
    if isinstance(source, FeatureEncoder):
        network, metadata = source.network, source.metadata
        if isinstance(network, ViT):
            tensors = official_state_dict(network)
            about, counted = _recognised(tensors, network.heads, name)
        else:
            tensors = network.state_dict()
            about = f"patch {source.patch_size}, width {source.width}, {len(network.blocks)} blocks"
    else:
        file = read_weights(fetch.weights(name) if name in fetch.CHECKPOINTS else source)
        tensors, metadata = file.tensors, file.metadata
        try:
            about, counted = _recognised(to_official(find_encoder(file, which)), known_heads(metadata), name)
        except InputError as error:
            about = str(error)
    metadata = {key: value for key, value in metadata.items() if key != OURS}
    table = pd.DataFrame([_row(key, tensor) for key, tensor in tensors.items()], columns=COLUMNS)
    return Inspection(name, about, table, counted, metadata)


COLUMNS = ["tensor", "part", "shape", "dtype", "values", "bytes", "norm", "largest", "finite"]


def _row(name: str, tensor: Tensor) -> tuple[Any, ...]:
    shape = "x".join(str(size) for size in tensor.shape) or "scalar"
    row = (name, part_of(name), shape, str(tensor.dtype).removeprefix("torch."), tensor.numel(), tensor.nbytes)
    if not tensor.is_floating_point() or not tensor.numel():
        return (*row, None, None, None)
    x = tensor.detach().float()
    return (*row, x.norm().item(), x.abs().max().item(), bool(x.isfinite().all()))


def part_of(name: str) -> str:
    """The part of a network a tensor belongs to: `backbone.blocks.3.norm1.bias` -> `backbone.blocks.3`."""
    if block := re.match(r"^((?:.*\.)?blocks\.\d+)\.", name):
        return block[1]
    name = re.sub(r"(\w+_tokens?|pos_embed)$", "tokens.", name)  # all tokens and their positions are one part
    stem, _, last = name.rpartition(".")
    return stem.removesuffix(".proj") or last


def _recognised(state: State, heads: int | None, origin: str) -> tuple[str, pd.DataFrame]:
    """The network that official tensors belong to in words, and its parameters: measured beside those of a fresh one."""
    settings = architecture(state, heads, origin)
    width, depth, heads = settings.shape
    with torch.device("meta"):
        expected = official_state_dict(ViT(settings, settings.img_size or 0))
    counts = {
        "measured": {name: value.numel() for name, value in state.items()},
        "expected": {name: value.numel() for name, value in expected.items()},
    }
    table = pd.DataFrame(counts).reindex([*expected, *(name for name in state if name not in expected)]).fillna(0)
    table = table.astype(int).groupby(part_of, sort=False).sum()
    table.loc["all"] = table.sum()
    table["difference"] = table["measured"] - table["expected"]
    about = (
        f"{settings.arch}, width {width}, {depth} blocks, {heads} heads, patch {settings.patch_size}, "
        f"{settings.registers} registers, positions for {settings.img_size}x{settings.img_size} pixels"
    )
    return about, table


def inspect_command(file: str, *, which: Literal["teacher", "student"] = "teacher") -> None:
    """Say what is in a weight file.

    Args:
        file: the file, or anything that `evaluate --encoder` takes.
        which: the encoder whose parameters are counted.
    """
    print(inspect(file, which))
