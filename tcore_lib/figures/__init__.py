"""Static pictures: arrays and tables in, matplotlib figures out. `from tcore_lib import figures` gives all of them."""

from tcore_lib.figures.curves import (
    TITLES,
    LiveCurves,
    course,
    depth_curves,
    loss_curves,
    running_mean,
    schedules,
    study_curves,
)
from tcore_lib.figures.frames import (
    contact_sheet,
    masks_overlay,
    method_figure,
    parts,
    pca_components,
    pca_rgb,
    pose,
    sandwich,
    segmentation_strip,
)
from tcore_lib.figures.matches import (
    attention_atlas,
    attention_compared,
    attention_grid,
    attention_matrix,
    heatmap_on_frame,
    match_links,
    top_k_links,
)
from tcore_lib.figures.scores import (
    class_counts,
    clip_bars,
    histogram,
    score_table,
    study_seeds,
)

__all__ = [
    "TITLES", "LiveCurves", "attention_atlas", "attention_compared", "attention_grid", "attention_matrix", "class_counts",
    "clip_bars", "contact_sheet", "course", "depth_curves", "heatmap_on_frame", "histogram", "loss_curves",
    "masks_overlay", "match_links", "method_figure", "parts", "pca_components", "pca_rgb", "pose", "running_mean",
    "sandwich", "schedules", "score_table", "segmentation_strip", "study_curves", "study_seeds",
    "top_k_links",
]  # fmt: skip
