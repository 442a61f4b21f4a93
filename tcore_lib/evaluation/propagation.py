"""Label propagation: carry the labels of a clip's first frame through the clip by patch similarity (docs/protocol.md).

Notebook 03 writes the protocol out in its dense form; this gives the same faster, in memory that the clip's length does not change:

* Features are kept and compared once per frame, in a ring of the last `context` frames. Frame 0, which the protocol lists
  several times, is searched once, and its best patches are then repeated.
* Affinities are computed for strips of the query grid against the part of the grid within the radius. Their maximum over the
  frames is taken per patch; only the k patches with the largest maxima are looked at again: the k best entries lie in them.

**A patch has two numbers.** `patch` runs along the short side of the grid first, so that a strip and what it can reach is one
slice of memory: that saves a third of the affinities on DAVIS' grid. `order` runs row by row. On 2 rows and 3 columns:

    patch   0  2  4     order   0  1  2
            1  3  5             3  4  5

**Equal similarities** are frequent (a still background) and decide who votes: the earlier in the protocol's list of context
patches (long memory, then preceding frames oldest first, each row by row). `place of the frame * P + order` is called an entry.

Letters: h w grid, P = h*w patches, D width, C label channels, N frames, n frames compared at once, Q queries of a strip,
S patches within a strip's reach, k = top-k.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tcore_lib.params import Benchmark

STRIP_QUERIES = 256  # on a CPU: a strip's affinities stay in the last-level cache
STRIP_BYTES = 2**30  # on a GPU: few, large strips
LARGEST = 2**31 - 1


def pack(value: Tensor, entry: Tensor) -> Tensor:
    """Float32 values and entries in 0 ... 2^31 - 1 as int64 that sort by value, and among equal values by lowest entry.

    The bits of a float, read as an integer, sort like the float; those of negative ones the other way round, so they are
    flipped. They go to the upper half, `LARGEST - entry` to the lower: (0.5, entry 3) > (0.5, entry 7) > (-0.5, entry 0).
    """
    bits = (value + 0.0).view(torch.int32)  # + 0.0: no negative zero
    ordered = torch.where(bits < 0, bits ^ LARGEST, bits).long()
    return (ordered << 32) + (LARGEST - entry)


def unpack(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Value and entry of `pack`."""
    ordered = (packed >> 32).int()
    bits = torch.where(ordered < 0, ordered ^ LARGEST, ordered)
    return bits.view(torch.float32), LARGEST - (packed & 0xFFFFFFFF)


class Propagator:
    """Carries labels from frame to frame and remembers the context, nothing older.

    Args:
        features: (h, w, D), patch features of frame 0. They need not be normalised; here they are, in float32.
        labels: float (C, h, w), soft labels of frame 0, which keeps them.
        top_k: entries that vote; their similarities are divided by `temperature` before the softmax.
        radius: a context patch counts if its Euclidean grid distance is strictly below it (`radius_inclusive`: or equal).
        context: number of preceding frames; where the clip has none yet, frame 0 stands in (`repeat_first`). Frame 0 votes
            once more as long memory, from anywhere (`restrict_first`: within the radius).
    """

    def __init__(
        self,
        features: Tensor,
        labels: Tensor,
        *,
        top_k: int = 7,
        temperature: float = 0.7,
        radius: float = 20.0,
        context: int = 20,
        radius_inclusive: bool = False,
        restrict_first: bool = False,
        repeat_first: bool = True,
    ) -> None:
        h, w, width = features.shape
        assert labels.shape[1:] == (h, w)
        self.top_k, self.temperature, self.context = top_k, temperature, context
        self.radius, self.inclusive = radius, radius_inclusive
        self.restrict_first, self.repeat_first = restrict_first, repeat_first
        self.device, self.turned, self.patches = features.device, w > h, h * w
        self.long, self.short = max(h, w), min(h, w)  # lines of the grid, patches of a line
        self.reach = (math.floor(radius) if radius_inclusive else math.ceil(radius) - 1) * self.short
        self.all = torch.arange(h * w, device=self.device)  # (P,)
        self.order = self._flat(self.all.view(h, w))  # (P,): patch -> order
        self.patch = self.order.argsort()  # (P,): order -> patch
        # Slot 0 holds frame 0, the others are a ring: frame t > 0 is in slot 1 + (t - 1) % context.
        self.features = torch.zeros(1 + context, h * w, width, device=self.device)
        self.labels = torch.zeros(labels.shape[0], 1 + context, h * w, device=self.device)
        self.memory = torch.empty(0, device=self.device)
        on_gpu = STRIP_BYTES // (4 * len(self.features) * h * w)
        queries = STRIP_QUERIES if self.device.type == "cpu" else on_gpu
        self.strip = max(1, queries // self.short) * self.short  # patches of whole lines that are searched together
        self.time = 0  # index of the last frame that is known
        self.features[0] = self._normalised(features)
        self.labels[:, 0] = self._flat(labels.float().permute(1, 2, 0)).T

    def step(self, features: Tensor) -> Tensor:
        """Features (h, w, D) of the next frame -> its soft labels, float32 (C, h, w); it then joins the context."""
        query = self._normalised(features)
        frame, patch, weight = self._search(query)  # each (k, P)
        known = self.labels.flatten(1)[:, self._slot(frame) * self.patches + patch]  # (C, k, P)
        soft = (known * weight).sum(1)  # (C, P)
        self.time += 1
        slot = self._slot(self.time)
        self.features[slot], self.labels[:, slot] = query, soft
        grid = soft.unflatten(1, (self.long, self.short))  # (C, h, w), or turned
        return grid.transpose(1, 2) if self.turned else grid

    def _flat(self, grid: Tensor) -> Tensor:
        """(h, w, ...) -> (P, ...), along the short side first."""
        return (grid.transpose(0, 1) if self.turned else grid).flatten(0, 1)

    def _normalised(self, features: Tensor) -> Tensor:
        """(h, w, D) -> float32 (P, D) of length 1."""
        return F.normalize(self._flat(features).float(), dim=-1)

    def _slot(self, frame: Any) -> Any:
        """Of one frame or of a tensor of them."""
        return (frame > 0) * (1 + (frame - 1) % self.context)

    def _too_far(self, query: Tensor, key: Tensor) -> Tensor:
        """Bool: does the radius forbid `key` to vote on `query`? Patches; broadcasts."""
        along = query.div(self.short, rounding_mode="floor") - key.div(self.short, rounding_mode="floor")
        across = query % self.short - key % self.short
        squared = along * along + across * across
        return squared > self.radius**2 if self.inclusive else squared >= self.radius**2

    def _search(self, query: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Frame, patch and weight of the voters on features (P, D), each (k, P).

        The protocol's list of frames: frame 0 as long memory; frame 0 as often as it stands in, and once for itself while
        it is within the context; then the others.
        """
        now = self.time + 1
        preceding = [t for t in range(now - self.context, now) if t >= 0 or self.repeat_first]
        repeats = sum(t <= 0 for t in preceding)
        listed = [0] * (1 + repeats) + [t for t in preceding if t > 0]
        strips = range(0, self.patches, self.strip)
        found = torch.cat([self._search_strip(start, query, repeats, listed) for start in strips])  # (P, k)
        # (k, P) from here on, the layout of the dense form: sums of the same values round in the same way, and cells that
        # are equal there stay equal here.
        scaled, entry = unpack(found.T.contiguous())
        frame = torch.tensor(listed, device=self.device)[entry.div(self.patches, rounding_mode="floor")]
        return frame, self.patch[entry % self.patches], scaled.softmax(0)

    def _search_strip(self, start: int, query: Tensor, repeats: int, listed: list[int]) -> Tensor:
        """The k best entries of each query of a strip, packed, (Q, k)."""
        rows, asked = self.all[start : start + self.strip, None], query[start : start + self.strip]
        keys = slice(max(0, start - self.reach), min(self.patches, start + len(asked) + self.reach))
        used = 1 + min(self.time, self.context)
        size = (used, len(asked), keys.stop - keys.start)
        # One piece of memory for every strip: fresh pages would cost more than the product.
        if self.memory.numel() < math.prod(size):
            self.memory = self.memory.new_empty(math.prod(size))
        affinity = self.memory[: math.prod(size)].view(size)  # (1 + n, Q, S), frame 0 first
        torch.bmm(asked.expand(used, -1, -1), self.features[:used, keys].transpose(1, 2), out=affinity)
        # Frame 0 as long memory: also what lies beyond the strip's reach.
        before, after = self.features[0, : keys.start], self.features[0, keys.stop :]
        first = torch.cat([asked @ before.T, affinity[0], asked @ after.T], dim=1)  # (Q, P)
        found = self._best(first[None], self.order, self._too_far(rows, self.all) if self.restrict_first else None, [0])
        # Frame 0's best entries once more for each time it is listed as a preceding frame, within the radius only. If its k
        # best patches lie too far away, those within the radius are among them or do not vote: an entry of the long memory
        # beats a repeated one of the same or a lower similarity, and there are k of those.
        value, entry = unpack(found)
        value = value.masked_fill(self._too_far(rows, self.patch[entry % self.patches]), -math.inf)
        entries = [pack(value, entry + i * self.patches) for i in range(1, min(repeats, self.top_k) + 1)]
        # The other frames, in the order of their slots; `place` says where each stands in the protocol's list.
        place = {self._slot(t): place for place, t in enumerate(listed) if t > 0}
        if place:
            order = [place[slot] for slot in range(1, used)]
            entries.append(self._best(affinity[1:], self.order[keys], self._too_far(rows, self.all[keys]), order))
        best = torch.cat([found, *entries], dim=1)
        return best.topk(min(self.top_k, best.shape[1]), dim=1).values

    def _best(self, affinity: Tensor, order: Tensor, forbidden: Tensor | None, place: list[int]) -> Tensor:
        """The k best entries of affinities (n, Q, S) to n frames, packed, (Q, k).

        Of the S patches compared with, `order`; `forbidden`, bool (Q, S), do not count; `place` of the frames in the list.
        """
        start = torch.tensor(place, device=self.device)[:, None, None] * self.patches  # entry of a frame's first patch

        def top(value: Tensor, order: Tensor, ruled_out: Tensor) -> Tensor:
            """The k best of some patches' entries: (n, q, s) -> (q, k)."""
            packed = pack((value / self.temperature).masked_fill_(ruled_out, -math.inf), start + order)
            packed = packed.transpose(0, 1).flatten(1)  # (q, n * s)
            return packed.topk(min(self.top_k, packed.shape[1]), dim=1).values

        maxima = affinity.amax(0)  # (Q, S)
        if forbidden is not None:
            maxima.masked_fill_(forbidden, -math.inf)
        count = min(self.top_k, maxima.shape[1])
        best, chosen = maxima.topk(min(count + 1, maxima.shape[1]), dim=1)
        rest, chosen = best[:, count:], chosen[:, :count]  # `rest`: the best one that is left out
        value = affinity.gather(2, chosen.expand(len(affinity), -1, -1))  # (n, Q, k)
        found = top(value, order[chosen], best[:, :count].isneginf())
        # A patch left out may hold an entry equal to the last one found: then all of them have to be compared.
        tied = (unpack(found[:, -1:])[0] == rest / self.temperature) & ~rest.isneginf()
        rows = tied.any(1).nonzero()[:, 0]
        if len(rows):
            found[rows] = top(affinity[:, rows], order, maxima[rows].isneginf())
        return found


def propagator_settings(settings: Benchmark) -> dict[str, Any]:
    """The arguments of `Propagator` in a benchmark's section of the parameters."""
    names = ("top_k", "temperature", "radius", "context", "radius_inclusive", "restrict_first", "repeat_first")
    return {name: getattr(settings, name) for name in names}


def propagate(features: Tensor | Iterable[Tensor], first_labels: Tensor, **settings: Any) -> Tensor:
    """Features, N of (h, w, D), and labels float (C, h, w) of frame 0 on the same device -> soft labels float32 (N, C, h, w)."""
    frames = iter(features)
    propagator = Propagator(next(frames), first_labels, **settings)
    return torch.stack([first_labels.float(), *(propagator.step(frame) for frame in frames)])
