"""What a weight file holds: every tensor in a table, parts with their sizes, the network recognised or why not."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from tcore_lib import fetch, params
from tcore_lib.errors import InputError
from tcore_lib.model.encoders import FeatureEncoder, load_encoder
from tcore_lib.model.vit import ViT, official_state_dict
from tcore_lib.model.weights import (
    WeightFile,
    architecture,
    find_encoder,
    known_heads,
    read_weights,
    to_official,
)

_TOKENS = ("cls_token", "pos_embed", "register_tokens", "reg_token", "mask_token", "cls_pos")


def part_of(name: str) -> str:
    """The part of a network a tensor belongs to: `backbone.blocks.3.norm1.bias` -> `backbone.blocks.3`."""
    block = re.match(r"^((?:.*\.)?blocks\.\d+)\.", name)
    if block:
        return block[1]
    stem, _, last = name.rpartition(".")
    if last in _TOKENS:
        return f"{stem}.tokens" if stem else "tokens"
    if last in ("weight", "bias") and stem.endswith((".proj", ".projection")):
        return stem.rpartition(".")[0]  # patch_embed.proj.weight -> patch_embed
    return ".".join((stem or last).split(".")[:2])


def expected_parameters(settings: params.Encoder, img_size: int) -> pd.Series:
    """How many parameters METHOD section 4 gives each part of the encoder, from the formula.

    With width D, patch p, R registers and P patches: patch_embed (3 p p + 1) D, tokens (1 + 1 + P + R + 1) D (CLS,
    positions of CLS and patches, registers, mask token), a block 12 D D + 15 D (attention 4 D D + 4 D, MLP 8 D D + 5 D,
    two norms 4 D, two LayerScales 2 D), norm 2 D.
    """
    width, depth, _ = settings.shape
    patches = (img_size // settings.patch_size) ** 2
    counts = {
        "patch_embed": (3 * settings.patch_size**2 + 1) * width,
        "tokens": (3 + patches + settings.registers) * width,
        **{f"blocks.{i}": 12 * width**2 + 15 * width for i in range(depth)},
        "norm": 2 * width,
    }
    return pd.Series(counts, name="expected")


def _row(name: str, tensor: Tensor) -> dict[str, Any]:
    block = re.search(r"blocks\.(\d+)\.(.*)$", name)
    row: dict[str, Any] = {
        "tensor": name,
        "part": part_of(name),
        "block": int(block[1]) if block else None,
        "kind": block[2] if block else name.rpartition("tokens.")[2],
        "shape": "x".join(str(size) for size in tensor.shape) or "scalar",
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "values": tensor.numel(),
        "bytes": tensor.numel() * tensor.element_size(),
    }
    if tensor.is_floating_point() and tensor.numel():
        values = tensor.detach().float()
        row |= {
            "norm": values.norm().item(),
            "mean": values.mean().item(),
            "std": values.std(correction=0).item(),
            "largest": values.abs().max().item(),
            "finite": bool(torch.isfinite(values).all()),
        }
    return row


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found.

    Attributes:
        source: as it was given.
        tensors: a row per tensor: tensor, part, block, kind, shape, dtype, values, bytes, norm (L2), mean, std, largest
            (absolute value), finite.
        parts: a row per part in the file's order: tensors, values, bytes, norm.
        encoder: measured beside expected parameters per part of the encoder; empty if none was recognised.
        about: one line: the recognised network, or why none was.
        metadata: everything in the file that is not a tensor.
    """

    source: str
    tensors: pd.DataFrame
    parts: pd.DataFrame
    encoder: pd.DataFrame
    about: str
    metadata: dict[str, Any]

    def tree(self, depth: int = 2) -> str:
        """The names as a tree down to `depth` levels, with tensors, values and megabytes below each."""
        return tree(self.tensors, depth)

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.about}", "", self.tree(3), ""]
        if len(self.encoder):
            lines += [self.encoder.to_string(), ""]
        bad = self.tensors.loc[self.tensors["finite"].eq(False), "tensor"].tolist()
        if bad:
            lines += [f"NOT FINITE: {', '.join(bad)}", ""]
        for name, value in self.metadata.items():
            text = " ".join(str(value).split())
            lines.append(f"{name} = {text if len(text) <= 200 else text[:197] + '...'}")
        return "\n".join(lines).rstrip()


def tree(tensors: pd.DataFrame, depth: int) -> str:
    """Names as a tree, with the number of tensors, values and megabytes; what lies deeper than `depth` is summed up."""
    sums: dict[tuple[str, ...], list[int]] = {}
    for name, values, size in zip(tensors["tensor"], tensors["values"], tensors["bytes"], strict=True):
        names = tuple(name.split("."))
        for level in range(min(depth, len(names)) + 1):
            entry = sums.setdefault(names[:level], [0, 0, 0])
            entry[0], entry[1], entry[2] = entry[0] + 1, entry[1] + values, entry[2] + size
    first = {path: i for i, path in enumerate(sums)}
    lines = []
    for path in sorted(sums, key=lambda path: [first[path[:level]] for level in range(len(path) + 1)]):
        label = "  " * len(path) + (path[-1] if path else "all")
        count, values, size = sums[path]
        lines.append(f"{label:<36}{count:>6} tensors {values:>13,} values {size / 1e6:>9.2f} MB")
    return "\n".join(lines)


def _recognise(file: WeightFile, which: str) -> tuple[str, pd.DataFrame]:
    """The network in a file, in words, and its parameter counts; or why there is none."""
    try:
        found = find_encoder(file.tensors, which, file.path)
        state = to_official(found)
        settings = architecture(state, known_heads(file.metadata), file.path)
        img_size = settings.img_size or 0
    except InputError as error:
        return str(error), pd.DataFrame()
    return _words(settings, img_size, which), _compared(state, settings, img_size)


def _words(settings: params.Encoder, img_size: int, role: str) -> str:
    width, depth, heads = settings.shape
    return (
        f"{role}: {settings.arch}, width {width}, {depth} blocks, {heads} heads, patch {settings.patch_size}, "
        f"{settings.registers} registers, positions for {img_size}x{img_size} pixels"
    )


def _compared(state: Mapping[str, Tensor], settings: params.Encoder, img_size: int) -> pd.DataFrame:
    measured = pd.Series({name: value.numel() for name, value in state.items()}).groupby(part_of).sum()
    expected = expected_parameters(settings, img_size)
    table = pd.DataFrame({"measured": measured, "expected": expected}).reindex(
        [*expected.index, *(part for part in measured.index if part not in expected.index)]
    )
    table = table.fillna(0).astype(int)
    table.loc["all"] = table.sum()
    table["difference"] = table["measured"] - table["expected"]
    return table


def inspect(source: FeatureEncoder | str | Path, which: str = "teacher") -> Inspection:
    """Read everything a source holds, without trusting it to be an encoder.

    Args:
        source: an encoder, or anything `load_encoder` takes.
        which: the encoder whose parameters are counted, "teacher" or "student".

    Raises:
        InputError: the file is no weight file; one with NaN or of an unknown network is reported, not refused.
    """
    text = source.name if isinstance(source, FeatureEncoder) else str(source)
    if not isinstance(source, FeatureEncoder) and (text == "pixels" or text.startswith("timm:")):
        source = load_encoder(text)
    tensors: Mapping[str, Tensor]
    if isinstance(source, FeatureEncoder):
        network = source.network
        if isinstance(network, ViT):
            tensors, metadata = official_state_dict(network), source.metadata
            about = _words(network.settings, network.img_size, "encoder")
            counted = _compared(tensors, network.settings, network.img_size)
        else:
            tensors, metadata, counted = dict(network.state_dict()), source.metadata, pd.DataFrame()
            about = f"patch {source.patch_size}, width {source.width}, {len(network.blocks)} blocks"
    else:
        file = read_weights(fetch.weights(text) if text in fetch.CHECKPOINTS else text)
        tensors, metadata = file.tensors, file.metadata
        about, counted = _recognise(file, which)
    table = pd.DataFrame([_row(name, tensor) for name, tensor in tensors.items()])
    return Inspection(text, table, _parts(table), counted, about, metadata)


def _parts(table: pd.DataFrame) -> pd.DataFrame:
    if not len(table):
        return pd.DataFrame(columns=["tensors", "values", "bytes", "norm"])
    grouped = table.assign(square=table["norm"] ** 2 if "norm" in table else 0.0).groupby("part", sort=False)
    parts = grouped.agg(
        tensors=("tensor", "size"), values=("values", "sum"), bytes=("bytes", "sum"), s=("square", "sum")
    )
    return parts.assign(norm=parts["s"] ** 0.5).drop(columns="s")
