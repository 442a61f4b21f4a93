"""Static pictures: arrays and tables in, matplotlib figures out. `from tcore_lib import figures` gives all of them."""

from tcore_lib.figures.diagram import method_figure
from tcore_lib.figures.pictures import (
    attention_atlas,
    attention_compared,
    attention_grid,
    attention_matrix,
    contact_sheet,
    heatmap_on_frame,
    masks_overlay,
    match_links,
    parts,
    pca_components,
    pca_rgb,
    pose,
    sandwich,
    segmentation_strip,
    top_k_links,
)
from tcore_lib.figures.plots import (
    TITLES,
    LiveCurves,
    class_counts,
    clip_bars,
    depth_curves,
    histogram,
    loss_curves,
    running_mean,
    schedules,
    score_table,
)

__all__ = [
    "TITLES", "LiveCurves", "attention_atlas", "attention_compared", "attention_grid", "attention_matrix", "class_counts",
    "clip_bars", "contact_sheet", "depth_curves", "heatmap_on_frame", "histogram", "loss_curves", "masks_overlay",
    "match_links", "method_figure", "parts", "pca_components", "pca_rgb", "pose", "running_mean", "sandwich", "schedules",
    "score_table", "segmentation_strip", "top_k_links",
]  # fmt: skip
