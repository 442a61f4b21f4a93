"""Static pictures: arrays and tables in, matplotlib figures out. `from tcore_lib import figures` gives all of them."""

from tcore_lib.figures.curves import TITLES, LiveCurves, curves
from tcore_lib.figures.frames import (
    contact_sheet,
    masks_overlay,
    method_figure,
    pca_components,
    pose,
    sandwich,
    segmentation_strip,
)
from tcore_lib.figures.matches import attention_atlas, attention_compared, heatmap_on_frame, match_links, top_k_links
from tcore_lib.figures.scores import clip_bars, histogram, score_table

__all__ = [
    "TITLES", "LiveCurves", "attention_atlas", "attention_compared", "clip_bars", "contact_sheet", "curves",
    "heatmap_on_frame", "histogram", "masks_overlay", "match_links", "method_figure", "pca_components", "pose", "sandwich",
    "score_table", "segmentation_strip", "top_k_links",
]  # fmt: skip
