"""The propagation protocol by brute force, straight from EVALUATION: padded context, dense affinity, no tricks.

The tests hold the engine (`tcore_lib.evaluation.propagation`) against it; `benchmarks/propagation.py` times the engine against it.
Among equal similarities the first of the list votes (long memory, then preceding frames oldest first, each row by row).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def radius_mask(h: int, w: int, radius: float, inclusive: bool = False) -> Tensor:
    """Bool (P, P): may the key patch (row) vote on the query patch (column)?"""
    rows, columns = torch.arange(h * w) // w, torch.arange(h * w) % w
    distance = ((rows[:, None] - rows) ** 2 + (columns[:, None] - columns) ** 2).double().sqrt()
    return distance <= radius if inclusive else distance < radius


def context_frames(time: int, context: int, long_memory: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """(long-memory frames, preceding frames) of frame `time`, with repetitions; 0 stands in for what is not there."""
    return [m if m < time else 0 for m in long_memory], [max(i, 0) for i in range(time - context, time)]


def brute_force(
    features: Tensor,
    first_labels: Tensor,
    *,
    top_k: int = 7,
    temperature: float = 0.7,
    radius: float = 20.0,
    context: int = 20,
    long_memory: tuple[int, ...] = (0,),
    radius_inclusive: bool = False,
    restrict_first: bool = False,
    repeat_first: bool = True,
) -> Tensor:
    """Features (N, h, w, D), labels (C, h, w) -> soft maps (N, C, h, w); the dtype of the features is kept."""
    number, h, w, _ = features.shape
    features = F.normalize(features, dim=-1).flatten(1, 2)  # (N, P, D)
    mask = radius_mask(h, w, radius, radius_inclusive)
    labels = [first_labels.to(features.dtype).flatten(1)]  # each (C, P)
    for time in range(1, number):
        long, near = context_frames(time, context, long_memory)
        if not repeat_first:
            near = [i for i in range(time - context, time) if i >= 0]
        affinity = torch.stack([features[i] @ features[time].T for i in [*long, *near]])  # (frames, P keys, P queries)
        restricted = 0 if restrict_first else len(long)
        affinity[restricted:].masked_fill_(~mask, -math.inf)
        affinity = affinity.flatten(0, 1) / temperature
        values, index = affinity.sort(dim=0, descending=True, stable=True)
        values, index = values[:top_k], index[:top_k]  # (k, P queries)
        weights = values.softmax(0)
        known = torch.cat([labels[i] for i in [*long, *near]], dim=1)  # (C, frames * P)
        labels.append((known[:, index] * weights).sum(1))
    return torch.stack(labels).unflatten(2, (h, w))
