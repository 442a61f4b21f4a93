"""The projection head onto prototypes."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tcore_lib.params import Head


class Prototypes(nn.Module):
    """K directions with a length each: a weight-normalised linear layer without bias. Names as in released files."""

    def __init__(self, bottleneck: int, count: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(count, 1))
        self.weight_v = nn.Parameter(nn.Linear(bottleneck, count, bias=False).weight.detach())

    def forward(self) -> Tensor:
        """(K, d): each row of `weight_v` scaled to length `weight_g`."""
        with torch.autocast(self.weight_v.device.type, enabled=False):
            return torch._weight_norm(self.weight_v, self.weight_g, 0)

    def logits(self, feature: Tensor) -> Tensor:
        """(d,) one feature -> (K,), without the scaled prototypes in between."""
        return (self.weight_v @ feature) * (self.weight_g[:, 0] / torch.linalg.vector_norm(self.weight_v, dim=1))


class ProjectionHead(nn.Module):
    """MLP width -> hidden -> ... -> bottleneck d with GELU, L2 normalisation, K prototypes.

    Linear weights start truncated normal 0.02 with zero biases, prototypes as torch's linear layer with length 1.
    """

    def __init__(self, width: int, settings: Head) -> None:
        super().__init__()
        sizes = [width, *[settings.hidden] * (settings.layers - 1), settings.bottleneck]
        layers: list[nn.Module] = []
        for narrow, wide in pairwise(sizes):
            layers += [nn.Linear(narrow, wide), nn.GELU()]
        self.mlp = nn.Sequential(*layers[:-1])
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last_layer = Prototypes(settings.bottleneck, settings.prototypes)

    def forward(self, tokens: Tensor) -> Tensor:
        """(R, D) tokens -> (R, d) features of length 1, float32 at least; `features @ head.last_layer().T` are logits."""
        x = self.mlp(tokens)
        return F.normalize(x if x.dtype == torch.float64 else x.float(), dim=-1)
