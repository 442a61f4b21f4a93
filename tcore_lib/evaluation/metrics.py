"""The three benchmarks' scores: arrays in, numbers out. J, F and intersection over union are fractions in 0..1.

Letters: H W pixels, N frames, K joints or classes.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

VOID = 255  # DAVIS: pixels of this id are left out of J and F (`davis.frame_scores`)
BOUNDARY_TOLERANCE = 0.008  # share of the image diagonal
PCK_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)
BOX_SHARE = 0.6  # PCK: share of the person box's diagonal that a distance is divided by

Mask = NDArray[np.bool_]


def region_similarity(prediction: Mask, truth: Mask) -> float:
    """J: intersection over union of two masks (H, W), 1 if both are empty, as in the DAVIS-2017 toolkit."""
    union = np.count_nonzero(prediction | truth)
    return 1.0 if union == 0 else np.count_nonzero(prediction & truth) / union


def boundary(mask: Mask) -> Mask:
    """One-pixel boundary of a mask (H, W): pixels that differ from the next one right, below, or below right.

    The last row looks right only, the last column below only, the corner is never boundary (DAVIS-2017 toolkit).
    """
    edge = np.zeros(mask.shape, bool)
    edge[:, :-1] = mask[:, 1:] ^ mask[:, :-1]
    edge[:-1] |= mask[1:] ^ mask[:-1]
    edge[:-1, :-1] |= mask[1:, 1:] ^ mask[:-1, :-1]
    return edge


def boundary_tolerance(shape: tuple[int, ...]) -> int:
    """Pixels by which boundaries may miss each other: 0.8 % of the diagonal of (H, W), rounded up."""
    return math.ceil(BOUNDARY_TOLERANCE * math.hypot(*shape[:2]))


def boundary_measure(prediction: Mask, truth: Mask, tolerance: float | None = None) -> float:
    """F: harmonic mean of boundary precision and recall of two masks (H, W), as in the DAVIS-2017 toolkit.

    A boundary pixel is matched if the other boundary has a pixel within `tolerance` (pixels; None = 0.8 % of the
    diagonal, rounded up). Both boundaries empty give 1, one empty gives 0.
    """
    reach = boundary_tolerance(prediction.shape) if tolerance is None else tolerance
    found, true = np.argwhere(boundary(prediction)), np.argwhere(boundary(truth))
    if len(found) == 0 or len(true) == 0:
        return float(len(found) == len(true))
    # The tree wants a bound that is never reached; squared distances of pixels are integers, so half of one is room.
    bound = math.sqrt(reach**2 + 0.5)
    precision = np.isfinite(KDTree(true).query(found, distance_upper_bound=bound)[0]).mean()
    recall = np.isfinite(KDTree(found).query(true, distance_upper_bound=bound)[0]).mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def sequence_statistics(values: NDArray[np.floating]) -> tuple[float, float, float]:
    """Mean, recall and decay of a measure over a clip's frames (N,), as in the DAVIS-2017 toolkit; NaN without a frame.

    Recall is the share of frames above 0.5. Decay is the mean of the first minus the mean of the last of four bins; the
    limits of a bin belong to it and to its neighbour.
    """
    if len(values) == 0:
        return math.nan, math.nan, math.nan
    limits = (np.round(np.linspace(1, len(values), 5) + 1e-10) - 1).astype(int)
    first, last = values[limits[0] : limits[1] + 1], values[limits[3] : limits[4] + 1]
    return float(np.mean(values)), float(np.mean(values > 0.5)), float(np.mean(first) - np.mean(last))


def joint_distances(prediction: NDArray[np.floating], truth: NDArray[np.floating]) -> NDArray[np.float64]:
    """Distance of predicted and true joints (N, K, 2) in pixels, in units of 0.6 x the person's box diagonal, (N, K).

    NaN where a joint was not found, as in the prediction. The box is that around the true joints *whose prediction was
    found* (docs/protocol.md, JHMDB); a box without extent makes every distance infinite.
    """
    found = np.isfinite(prediction).all(-1)  # (N, K)
    distances = np.full(found.shape, math.nan)
    for frame in np.flatnonzero(found.any(1)):
        here = found[frame]
        joints = truth[frame, here]  # (found, 2)
        diagonal = BOX_SHARE * np.linalg.norm(joints.max(0) - joints.min(0))
        missed = np.linalg.norm(prediction[frame, here] - joints, axis=-1)
        distances[frame, here] = missed / diagonal if diagonal > 0 else math.inf
    return distances


def joint_counts(distances: NDArray[np.floating]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Distances (N, K) -> how often each joint was found (K,) and correct (K, 5), at most a threshold of `PCK_THRESHOLDS` away."""
    found = ~np.isnan(distances)
    correct = [(distances <= threshold).sum(0) for threshold in PCK_THRESHOLDS]
    return found.sum(0), np.stack(correct, axis=-1)


def confusion(prediction: NDArray[np.integer], truth: NDArray[np.integer], classes: int) -> NDArray[np.int64]:
    """Pixel counts (true class, predicted class), (K, K), of two label maps (H, W); true ids beyond the classes are left out."""
    assert prediction.max(initial=0) < classes
    counted = truth < classes
    pairs = truth[counted].astype(np.int64) * classes + prediction[counted]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def class_iou(matrix: NDArray[np.integer]) -> NDArray[np.float64]:
    """Intersection over union per class (..., K) of confusion matrices (..., K, K); NaN for a class neither true nor predicted."""
    hit = np.diagonal(matrix, axis1=-2, axis2=-1)
    union = matrix.sum(-1) + matrix.sum(-2) - hit
    return np.divide(hit, union, out=np.full(hit.shape, math.nan), where=union > 0)
