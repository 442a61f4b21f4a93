"""The propagation protocol by brute force, straight from docs/protocol.md: padded context, dense affinity, no tricks.

Among equal similarities the first of the list votes (long memory, then preceding frames oldest first, each row by row).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def brute_force(
    features: Tensor,
    first_labels: Tensor,
    *,
    top_k: int = 7,
    temperature: float = 0.7,
    radius: float = 20.0,
    context: int = 20,
    radius_inclusive: bool = False,
    restrict_first: bool = False,
    repeat_first: bool = True,
) -> Tensor:
    """Features (N, h, w, D), labels (C, h, w) -> soft maps (N, C, h, w); the dtype of the features is kept."""
    number, h, w, _ = features.shape
    features = F.normalize(features, dim=-1).flatten(1, 2)  # (N, P, D)
    rows, columns = torch.arange(h * w) // w, torch.arange(h * w) % w
    distance = ((rows[:, None] - rows) ** 2 + (columns[:, None] - columns) ** 2).double().sqrt()
    near = distance <= radius if radius_inclusive else distance < radius  # (P keys, P queries)
    labels = [first_labels.to(features.dtype).flatten(1)]  # each (C, P)
    for time in range(1, number):
        preceding = [max(i, 0) for i in range(time - context, time) if i >= 0 or repeat_first]
        frames = [0, *preceding]  # frame 0 as long memory, then the context
        affinity = torch.stack([features[i] @ features[time].T for i in frames])  # (frames, P keys, P queries)
        affinity[0 if restrict_first else 1 :].masked_fill_(~near, -math.inf)
        values, index = (affinity.flatten(0, 1) / temperature).sort(dim=0, descending=True, stable=True)
        weights = values[:top_k].softmax(0)
        known = torch.cat([labels[i] for i in frames], dim=1)  # (C, frames * P)
        labels.append((known[:, index[:top_k]] * weights).sum(1))
    return torch.stack(labels).unflatten(2, (h, w))
