"""What a weight file holds: every tensor in a table, the network recognised or why not, its parameters counted."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd
import torch

from tcore_lib import fetch
from tcore_lib.errors import InputError
from tcore_lib.model.encoders import FeatureEncoder, load_encoder
from tcore_lib.model.vit import ViT
from tcore_lib.model.weights import OURS, State, WeightFile, architecture, find_encoder, read_weights, to_vit
from tcore_lib.params import Encoder


class Inspection(NamedTuple):
    """What `inspect` found in a source."""

    about: str  # one line: the recognised network, or why none was
    tensors: pd.DataFrame  # a row per tensor: tensor, shape, dtype, values, bytes, finite
    encoder: pd.DataFrame  # measured beside expected parameters per part of the encoder; empty if none was recognised
    metadata: dict[str, Any]  # everything that is not a tensor

    def tree(self, depth: int = 2) -> str:
        """Tensors, values and megabytes below each name of `depth` parts."""
        below = self.tensors["tensor"].str.split(".").str[:depth].str.join(".")
        table = self.tensors.groupby(below, sort=False).agg(
            tensors=("bytes", "size"), values=("values", "sum"), MB=("bytes", "sum")
        )
        table.loc["all"] = table.sum()
        return (
            table.assign(MB=(table["MB"] / 1e6).round(2))
            .rename_axis(None)
            .to_string(formatters={"values": "{:,}".format})
        )


def inspect(source: FeatureEncoder | str | Path, which: str = "teacher") -> Inspection:
    """Read everything that an encoder, or anything `load_encoder` takes, holds; `which` of two encoders is counted.

    A file that is no weight file is an `InputError`; one with NaN or of an unknown network is reported, not refused.
    """
    if str(source) == "pixels" or str(source).startswith("timm:"):
        source = load_encoder(str(source))
    if isinstance(source, FeatureEncoder):
        file = WeightFile(Path(source.name), source.network.state_dict(), source.metadata)
        heads = getattr(source.network, "heads", None)
    else:
        file = read_weights(fetch.weights(str(source)) if source in fetch.CHECKPOINTS else source)
        heads = file.heads
    rows = []
    for key, tensor in file.tensors.items():
        shape, dtype = "x".join(map(str, tensor.shape)) or "scalar", str(tensor.dtype).removeprefix("torch.")
        rows.append((key, shape, dtype, tensor.numel(), tensor.nbytes, bool(tensor.isfinite().all())))
    table = pd.DataFrame(rows, columns=["tensor", "shape", "dtype", "values", "bytes", "finite"])
    about, counted = "", pd.DataFrame(columns=["measured", "expected", "difference"])
    try:
        state = to_vit(find_encoder(file, which))[0]
        settings = architecture(state, heads, file.path)
        width, depth, heads = settings.shape
        about = (
            f"{settings.arch}, width {width}, {depth} blocks, {heads} heads, patch {settings.patch_size}, "
            f"{settings.registers} registers, positions for {settings.img_size}x{settings.img_size} pixels"
        )
        counted = _counted(state, settings)
    except InputError as error:
        about = str(error)
    return Inspection(about, table, counted, {key: value for key, value in file.metadata.items() if key != OURS})


def _counted(state: State, settings: Encoder) -> pd.DataFrame:
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


def inspect_command(file: str, *, which: Literal["teacher", "student"] = "teacher") -> None:
    """Say what is in a weight file.

    Args:
        file: the file, or anything that `evaluate --encoder` takes.
        which: the encoder whose parameters are counted.
    """
    found = inspect(file, which)
    broken = ", ".join(found.tensors["tensor"][~found.tensors["finite"].astype(bool)])
    print(f"{file}: {found.about}", found.tree(3), found.encoder.to_string(), sep="\n\n")
    print(*(f"{name} = {' '.join(str(value).split())[:200]}" for name, value in found.metadata.items()), sep="\n")
    if broken:
        print(f"NOT FINITE: {broken}")
