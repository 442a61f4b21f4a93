"""Parameter files: what may stand in one (`schema`), how one is read and refused (`reading`), what its paths mean (`places`).

Everything public can be had from here: `params.load("quick").pretrain.loop.batch_size`.
"""

from tcore_lib.params.places import find_profile, project_root, resolve
from tcore_lib.params.reading import changed, checked, dotted, from_notebook, load, parse, read_yaml
from tcore_lib.params.schema import (
    ARCHITECTURES,
    SECTIONS,
    Attention,
    Benchmark,
    Checkpoint,
    Data,
    Davis,
    Decoder,
    Encoder,
    Head,
    Int,
    Jhmdb,
    Loop,
    Loss,
    Masks,
    Optimiser,
    Params,
    Positive,
    Pretrain,
    Run,
    Sandwich,
    Section,
    SyntheticData,
    Views,
    Vip,
)

__all__ = [
    "ARCHITECTURES", "SECTIONS", "Attention", "Benchmark", "Checkpoint", "Data", "Davis", "Decoder", "Encoder", "Head", "Int",
    "Jhmdb", "Loop", "Loss", "Masks", "Optimiser", "Params", "Positive", "Pretrain", "Run", "Sandwich", "Section",
    "SyntheticData", "Views", "Vip", "changed", "checked", "dotted", "find_profile", "from_notebook", "load", "parse",
    "project_root", "read_yaml", "resolve",
]  # fmt: skip
