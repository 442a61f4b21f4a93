"""Static pictures: arrays and tables in, matplotlib figures out. `from tcore_lib import figures` gives all of them."""

# isort: off
from tcore_lib.figures.frames import (
    attention_compared, contact_sheet, heatmap_on_frame, masks_overlay, match_links, method_figure,
    pca_components, pose, sandwich, top_k_links,
)  # fmt: skip
from tcore_lib.figures.plots import TITLES, LiveCurves, clip_bars, curves, histogram, score_table

__all__ = [
    "TITLES", "LiveCurves", "attention_compared", "clip_bars", "contact_sheet", "curves",
    "heatmap_on_frame", "histogram", "masks_overlay", "match_links", "method_figure", "pca_components", "pose", "sandwich",
    "score_table", "top_k_links",
]  # fmt: skip
