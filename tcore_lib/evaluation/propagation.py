"""Label propagation: carry the labels of a clip's first frame through the clip by patch similarity.

The protocol is docs/protocol.md, "One frame" (released code: CropMAE's propagation, from videowalk). Notebook 03 writes it out
in its dense form; this module gives the same result faster, with a memory that does not depend on the clip's length:

* Features are kept and compared once per frame, in a ring buffer of the last `context` frames. Frame 0, which the protocol
  lists several times, is searched once, and its best patches are then repeated.
* Who is within the radius depends on positions alone. Affinities are computed for strips of the query grid against the
  part of the grid within reach. Their maximum over the context frames is taken per patch, and only the k patches with the
  largest maxima are looked at again: the k best entries lie in them.

**A patch has two numbers.** Example: the grid of 2 rows and 3 columns.

    patch (how features lie in memory)      order (how the protocol lists them)
        0  2  4                                 0  1  2
        1  3  5                                 3  4  5

`patch` runs along the short side first, so that a strip across the grid, and what it can reach, is one slice of memory:
on DAVIS' grid of 30 x 55 patches and radius 20 that saves a third of the affinities. `order` runs row by row; it is needed
where similarities are equal, and for what leaves this module. On a grid that is at least as tall as wide both are the same.

**Equal similarities** are frequent (a still background, a duplicated frame) and decide who votes. Here they go by the
protocol's list of context patches: long memory, then preceding frames oldest first, each row by row; the earlier one wins.
The dense form leaves it to `torch.topk`, which nearly always does the same on a CPU and promises nothing. A context
patch's place in that list, `place in the list of frames * P + order`, is called its entry.

Letters: h w grid, P = h*w patches, D width, C label channels, N frames, n frames compared at once, Q queries of a strip,
S patches within a strip's reach, k = top-k.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

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


class Strip(NamedTuple):
    """Lines of the grid that are searched together, and the lines that they can reach; both as slices of patches."""

    queries: slice
    keys: slice
    too_far: Tensor  # bool (Q, S)


class Propagator:
    """Carries labels from frame to frame and remembers the context, nothing older.

    A feature of length 0 has similarity 0 to everything. Variants: docs/protocol.md, "Known ways to get another number".

    Args:
        features: (h, w, D), patch features of frame 0. They need not be normalised; here they are, in float32.
        labels: float (C, h, w), soft labels of frame 0, which keeps them.
        top_k: entries that vote.
        temperature: divides similarities before the softmax.
        radius: a context patch counts if its Euclidean grid distance is strictly below it.
        context: number of preceding frames; where the clip has none yet, frame 0 stands in. Frame 0 votes once more as
            long memory, from anywhere.
        radius_inclusive: variant, distance <= radius.
        restrict_first: variant, the radius holds for the long memory too.
        repeat_first: false = variant, frame 0 does not stand in for frames that do not exist.
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
        if labels.shape[1:] != (h, w):
            raise ValueError(f"labels are on the grid {tuple(labels.shape[1:])}, features on {(h, w)}")
        self.top_k, self.temperature, self.context = top_k, temperature, context
        self.radius, self.inclusive = radius, radius_inclusive
        self.restrict_first, self.repeat_first = restrict_first, repeat_first
        self.device, self.turned = features.device, w > h
        self.long, self.short = max(h, w), min(h, w)  # lines of the grid, patches of a line
        self.all = torch.arange(h * w, device=self.device)  # (P,)
        self.order = self._flat(self.all.view(h, w))  # (P,): patch -> order
        self.patch = self.order.argsort()  # (P,): order -> patch
        # Slot 0 holds frame 0, the others are a ring: frame t > 0 is in slot 1 + (t - 1) % context.
        self.features = torch.zeros(1 + context, h * w, width, device=self.device)
        self.labels = torch.zeros(labels.shape[0], 1 + context, h * w, device=self.device)
        self.strips = self._strips()
        self.memory = torch.empty(0, device=self.device)
        self.time = 0  # index of the last frame that is known
        self.features[0] = self._normalised(features)
        self.labels[:, 0] = self._flat(labels.float().permute(1, 2, 0)).T

    def step(self, features: Tensor) -> Tensor:
        """Features (h, w, D) of the next frame -> its soft labels, float32 (C, h, w); it then joins the context."""
        query = self._normalised(features)
        frame, patch, _, weight = self._search(query)  # each (k, P)
        known = self.labels.flatten(1)[:, self._slot(frame) * len(self.patch) + patch]  # (C, k, P)
        soft = (known * weight).sum(1)  # (C, P)
        self.time += 1
        slot = self._slot(self.time)
        self.features[slot], self.labels[:, slot] = query, soft
        grid = soft.unflatten(1, (self.long, self.short))  # (C, h, w), or turned
        return grid.transpose(1, 2) if self.turned else grid

    def neighbours(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Who votes on each patch of the next frame, with features (h, w, D); nothing is remembered.

        Returns:
            Four tensors (P, k), best first, patches row by row: index of the voter's frame in the clip, its patch,
            similarity (-inf where fewer than k patches count), and weight; weights of a patch sum to 1. A patch of
            frame 0, which the protocol lists several times, may take several of the k places.
        """
        frame, patch, scaled, weight = self._search(self._normalised(features))
        frame, patch, similarity, weight = (
            part.T[self.patch] for part in (frame, self.order[patch], scaled * self.temperature, weight)
        )
        return frame, patch, similarity, weight

    # ------------------------------------------------------------------------------------------ grid and memory

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

    def _strips(self) -> list[Strip]:
        """The grid cut along its long side."""
        if self.device.type == "cpu":
            lines = max(1, STRIP_QUERIES // self.short)
        else:
            lines = max(1, STRIP_BYTES // (4 * len(self.features) * self.short * len(self.patch)))
        reach = min(math.floor(self.radius) if self.inclusive else math.ceil(self.radius) - 1, self.long)
        strips = []
        for first in range(0, self.long, lines):
            last = min(first + lines, self.long)
            queries = slice(first * self.short, last * self.short)
            keys = slice(max(0, first - reach) * self.short, min(self.long, last + reach) * self.short)
            strips.append(Strip(queries, keys, self._too_far(self.all[queries, None], self.all[keys])))
        return strips

    # ------------------------------------------------------------------------------------------ the search

    def _search(self, query: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Frame, patch, similarity / temperature and weight of the voters on features (P, D), each (k, P).

        The protocol's list of frames: frame 0 as long memory; frame 0 as often as it stands in, and once for itself while
        it is within the context; then the others.
        """
        now = self.time + 1
        preceding = [t for t in range(now - self.context, now) if t >= 0 or self.repeat_first]
        repeats = sum(t <= 0 for t in preceding)
        listed = [0] * (1 + repeats) + [t for t in preceding if t > 0]
        found = torch.cat([self._search_strip(strip, query, repeats, listed) for strip in self.strips])  # (P, k)
        # (k, P) from here on, the layout of the dense form: sums of the same values round in the same way, and cells that
        # are equal there stay equal here.
        scaled, entry = unpack(found.T.contiguous())
        frame = torch.tensor(listed, device=self.device)[entry.div(len(self.patch), rounding_mode="floor")]
        return frame, self.patch[entry % len(self.patch)], scaled, scaled.softmax(0)

    def _search_strip(self, strip: Strip, query: Tensor, repeats: int, listed: list[int]) -> Tensor:
        """The k best entries of each query of a strip, packed, (Q, k)."""
        asked, keys = query[strip.queries], strip.keys
        used = 1 + min(self.time, self.context)
        size = (used, *strip.too_far.shape)
        # One piece of memory for every strip: fresh pages would cost more than the product.
        if self.memory.numel() < math.prod(size):
            self.memory = self.memory.new_empty(math.prod(size))
        affinity = self.memory[: math.prod(size)].view(size)  # (1 + n, Q, S), frame 0 first
        torch.bmm(asked.expand(used, -1, -1), self.features[:used, keys].transpose(1, 2), out=affinity)
        # Frame 0 as long memory: also what lies beyond the strip's reach.
        before, after = self.features[0, : keys.start], self.features[0, keys.stop :]
        first = torch.cat([asked @ before.T, affinity[0], asked @ after.T], dim=1)  # (Q, P)
        rows = self.all[strip.queries, None]
        found = self._best(first[None], self.order, self._too_far(rows, self.all) if self.restrict_first else None, [0])
        # Frame 0's best entries once more for each time it is listed as a preceding frame, within the radius only. If its k
        # best patches lie too far away, those within the radius are among them or do not vote: an entry of the long memory
        # beats a repeated one of the same or a lower similarity, and there are k of those.
        value, entry = unpack(found)
        value = value.masked_fill(self._too_far(rows, self.patch[entry % len(self.patch)]), -math.inf)
        entries = [found]
        entries += [pack(value, entry + i * len(self.patch)) for i in range(1, min(repeats, self.top_k) + 1)]
        # The other frames, in the order of their slots; `place` says where each stands in the protocol's list.
        place = {self._slot(t): place for place, t in enumerate(listed) if t > 0}
        if place:
            order = [place[slot] for slot in range(1, used)]
            entries.append(self._best(affinity[1:], self.order[keys], strip.too_far, order))
        best = torch.cat(entries, dim=1)
        return best.topk(min(self.top_k, best.shape[1]), dim=1).values

    def _best(self, affinity: Tensor, order: Tensor, forbidden: Tensor | None, place: list[int]) -> Tensor:
        """The k best entries of affinities to one or several frames, packed, (Q, k).

        Args:
            affinity: (n, Q, S).
            order: (S,), of the patches compared with.
            forbidden: bool (Q, S), what does not count; None = everything counts.
            place: of the n frames in the protocol's list.
        """
        start = torch.tensor(place, device=self.device)[:, None, None] * len(
            self.patch
        )  # entry of a frame's first patch

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
    """Features, N of (h, w, D), and labels float (C, h, w) of frame 0 on the same device -> soft labels float32 (N, C, h, w).

    `settings` are those of `Propagator`; frame 0 keeps its labels.
    """
    frames = iter(features)
    propagator = Propagator(next(frames), first_labels, **settings)
    return torch.stack([first_labels.float(), *(propagator.step(frame) for frame in frames)])
