"""What a weight file holds: every tensor in a table, the network recognised or why not, its parameters counted."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch

from tcore_lib import fetch
from tcore_lib.errors import InputError
from tcore_lib.model.encoders import FeatureEncoder, load_encoder
from tcore_lib.model.vit import ViT
from tcore_lib.model.weights import OURS, State, architecture, find_encoder, read_weights, to_vit


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found in a source."""

    source: str
    about: str  # one line: the recognised network, or why none was
    tensors: pd.DataFrame  # a row per tensor: tensor, shape, dtype, values, bytes, norm (L2), finite
    encoder: pd.DataFrame  # measured beside expected parameters per part of the encoder; empty if none was recognised
    metadata: dict[str, Any]  # everything that is not a tensor

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
        broken = self.tensors.loc[self.tensors["finite"].eq(False), "tensor"]
        known = [f"{name} = {' '.join(str(value).split())[:200]}" for name, value in self.metadata.items()]
        parts = [f"{self.source}: {self.about}", self.tree(3), self.encoder.to_string() if len(self.encoder) else ""]
        parts += [f"NOT FINITE: {', '.join(broken)}" if len(broken) else "", "\n".join(known)]
        return "\n\n".join(part for part in parts if part)


def inspect(source: FeatureEncoder | str | Path, which: str = "teacher") -> Inspection:
    """Read everything that an encoder, or anything `load_encoder` takes, holds; `which` of two encoders is counted.

    Raises:
        InputError: the file is no weight file; one with NaN or of an unknown network is reported, not refused.
    """
    name = source.name if isinstance(source, FeatureEncoder) else str(source)
    if not isinstance(source, FeatureEncoder) and (name == "pixels" or name.startswith("timm:")):
        source = load_encoder(source)
    counted = pd.DataFrame()
    if isinstance(source, FeatureEncoder):
        tensors, metadata = source.network.state_dict(), source.metadata
        about = f"patch {source.patch_size}, width {source.width}, {len(source.network.blocks)} blocks"
        if isinstance(source.network, ViT):
            about, counted = _recognised(tensors, source.network.heads, name)
    else:
        file = read_weights(fetch.weights(name) if name in fetch.CHECKPOINTS else source)
        tensors, metadata = file.tensors, file.metadata
        try:
            about, counted = _recognised(to_vit(find_encoder(file, which)), file.heads, name)
        except InputError as error:
            about = str(error)
    rows = []
    for key, tensor in tensors.items():
        x = tensor.detach().float()
        shape, dtype = "x".join(map(str, x.shape)) or "scalar", str(tensor.dtype).removeprefix("torch.")
        rows.append((key, shape, dtype, x.numel(), tensor.nbytes, x.norm().item(), bool(x.isfinite().all())))
    table = pd.DataFrame(rows, columns=["tensor", "shape", "dtype", "values", "bytes", "norm", "finite"])
    return Inspection(name, about, table, counted, {key: value for key, value in metadata.items() if key != OURS})


def _recognised(state: State, heads: int | None, origin: str) -> tuple[str, pd.DataFrame]:
    """The network that a ViT's tensors belong to in words, and its parameters: measured beside those of a fresh one."""
    settings = architecture(state, heads, origin)
    width, depth, heads = settings.shape
    with torch.device("meta"):
        expected = ViT(settings, settings.img_size or 0).state_dict()
    counts = {
        "measured": {name: value.numel() for name, value in state.items()},
        "expected": {name: value.numel() for name, value in expected.items()},
    }
    table = pd.DataFrame(counts).reindex(list(expected | state)).fillna(0).astype(int)
    table = table.groupby(_part, sort=False).sum()
    table.loc["all"] = table.sum()
    table["difference"] = table["measured"] - table["expected"]
    about = (
        f"{settings.arch}, width {width}, {depth} blocks, {heads} heads, patch {settings.patch_size}, "
        f"{settings.registers} registers, positions for {settings.img_size}x{settings.img_size} pixels"
    )
    return about, table


def _part(name: str) -> str:
    """The part of an encoder a tensor belongs to: `blocks.3.norm1.bias` -> `blocks.3`; tokens and positions are one."""
    if block := re.match(r"blocks\.\d+", name):
        return block[0]
    return "tokens" if "token" in name or name == "pos_embed" else name.split(".")[0]


def inspect_command(file: str, *, which: Literal["teacher", "student"] = "teacher") -> None:
    """Say what is in a weight file.

    Args:
        file: the file, or anything that `evaluate --encoder` takes.
        which: the encoder whose parameters are counted.
    """
    print(inspect(file, which))
