"""What a weight file holds: every tensor in a table, the network recognised or why not, parameters against a formula."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from tcore_lib import fetch, params
from tcore_lib.errors import InputError
from tcore_lib.model.encoders import FeatureEncoder, load_encoder
from tcore_lib.model.vit import ViT, official_state_dict
from tcore_lib.model.weights import OURS, architecture, find_encoder, known_heads, read_weights, to_official


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found.

    Attributes:
        source: as it was given.
        about: one line: the recognised network, or why none was.
        tensors: a row per tensor: tensor, part, shape, dtype, values, bytes, norm (L2), mean, std, largest (absolute
            value), finite.
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
        sums: dict[tuple[str, ...], list[int]] = {}
        for name, values, size in self.tensors[["tensor", "values", "bytes"]].itertuples(index=False):
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


def inspect(source: FeatureEncoder | str | Path, which: str = "teacher") -> Inspection:
    """Read everything a source holds, without trusting it to be an encoder.

    Args:
        source: an encoder, or anything `load_encoder` takes.
        which: the encoder whose parameters are counted, "teacher" or "student".

    Raises:
        InputError: the file is no weight file; one with NaN or of an unknown network is reported, not refused.
    """
    text = source.name if isinstance(source, FeatureEncoder) else str(source)
    if text == "pixels" or text.startswith("timm:"):
        source = load_encoder(text) if isinstance(source, str | Path) else source
    about, counted = "", pd.DataFrame()
    if isinstance(source, FeatureEncoder):
        network, metadata = source.network, source.metadata
        tensors = official_state_dict(network) if isinstance(network, ViT) else dict(network.state_dict())
        about = f"patch {source.patch_size}, width {source.width}, {len(network.blocks)} blocks"
        if isinstance(network, ViT):
            settings = network.settings.model_copy(update={"img_size": network.img_size})
            about, counted = _words("encoder", settings), _counted(tensors, settings)
    else:
        file = read_weights(fetch.weights(text) if text in fetch.CHECKPOINTS else text)
        tensors, metadata = file.tensors, {name: value for name, value in file.metadata.items() if name != OURS}
        metadata |= file.facts[OURS]
        try:
            state = to_official(find_encoder(file.tensors, which, file.path))
            settings = architecture(state, known_heads(file.facts), file.path)
            about, counted = _words(which, settings), _counted(state, settings)
        except InputError as error:
            about = str(error)
    rows = pd.DataFrame([_row(name, tensor) for name, tensor in tensors.items()], columns=COLUMNS)
    return Inspection(text, about, rows, counted, metadata)


COLUMNS = ["tensor", "part", "shape", "dtype", "values", "bytes", "norm", "mean", "std", "largest", "finite"]


def _row(name: str, tensor: Tensor) -> dict[str, Any]:
    row: dict[str, Any] = {
        "tensor": name,
        "part": part_of(name),
        "shape": "x".join(str(size) for size in tensor.shape) or "scalar",
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "values": tensor.numel(),
        "bytes": tensor.numel() * tensor.element_size(),
    }
    if tensor.is_floating_point() and tensor.numel():
        x = tensor.detach().float()
        row |= {"norm": x.norm().item(), "mean": x.mean().item(), "std": x.std(correction=0).item()}
        row |= {"largest": x.abs().max().item(), "finite": bool(torch.isfinite(x).all())}
    return row


def part_of(name: str) -> str:
    """The part of a network a tensor belongs to: `backbone.blocks.3.norm1.bias` -> `backbone.blocks.3`."""
    block = re.match(r"^((?:.*\.)?blocks\.\d+)\.", name)
    if block:
        return block[1]
    stem, _, last = name.rpartition(".")
    if last.endswith(("_token", "_tokens", "pos_embed", "cls_pos")):
        return f"{stem}.tokens" if stem else "tokens"
    return stem.removesuffix(".proj") or last


def _words(role: str, settings: params.Encoder) -> str:
    width, depth, heads = settings.shape
    return (
        f"{role}: {settings.arch}, width {width}, {depth} blocks, {heads} heads, patch {settings.patch_size}, "
        f"{settings.registers} registers, positions for {settings.img_size}x{settings.img_size} pixels"
    )


def expected_parameters(settings: params.Encoder, img_size: int) -> pd.Series:
    """How many parameters each part of the encoder has by its formula.

    With width D, hidden width H of the MLP, patch p, R registers and P patches: patch_embed (3 p p + 1) D; tokens
    (1 + 1 + P + R + 1) D (CLS, positions of CLS and patches, registers, mask token); a block 4 D D + D (attention and its
    output's bias) + 3 D (bias of query, key, value) + (D + 1) H + (H + 1) D (MLP; a SwiGLU halves its second H) + 4 D (two
    norms) + 2 D (two LayerScales); norm 2 D.
    """
    width, depth, _ = settings.shape
    hidden = int(width * settings.mlp_ratio)
    inner = hidden // 2 if settings.mlp == "swiglu" else hidden
    block = 4 * width**2 + 5 * width + (width + 1) * hidden + (inner + 1) * width
    block += 3 * width * settings.qkv_bias + 2 * width * (settings.layer_scale is not None)
    counts = {
        "patch_embed": (3 * settings.patch_size**2 + 1) * width,
        "tokens": (3 + (img_size // settings.patch_size) ** 2 + settings.registers) * width,
        **{f"blocks.{i}": block for i in range(depth)},
        "norm": 2 * width,
    }
    return pd.Series(counts, name="expected")


def _counted(state: Mapping[str, Tensor], settings: params.Encoder) -> pd.DataFrame:
    measured = pd.Series({name: value.numel() for name, value in state.items()}).groupby(part_of).sum()
    expected = expected_parameters(settings, settings.img_size or 0)
    order = [*expected.index, *(part for part in measured.index if part not in expected.index)]
    table = pd.DataFrame({"measured": measured, "expected": expected}).reindex(order).fillna(0).astype(int)
    table.loc["all"] = table.sum()
    table["difference"] = table["measured"] - table["expected"]
    return table


def inspect_command(file: str, *, which: Literal["teacher", "student"] = "teacher") -> None:
    """Say what is in a weight file.

    Args:
        file: the file, or anything that `evaluate --encoder` takes.
        which: the encoder whose parameters are counted.
    """
    print(inspect(file, which))
