"""Label propagation: carry the labels of a clip's first frame through the clip by patch similarity.

The protocol is EVALUATION, "Propagation" (released code: CropMAE's propagation, from videowalk). The result is that of its
dense formulation; the way there is shorter, and its memory does not depend on the length of the clip:

* Features are kept once per frame. A frame that the protocol counts several times (frame 0, early in a clip) is a
  multiplicity of its patches, not a copy: the k best *distinct* patches are found, then multiplicities fill up k places.
* Who is within the radius depends on positions alone. Affinities are computed for strips of the query grid against the part
  of the grid within reach; their maximum over the context frames is taken per position, and only the k best positions are
  looked at again. (The k largest entries lie in the k positions with the largest maxima.)
* A ring buffer holds features and labels of the last `context` frames; older ones are forgotten.

Letters: h w grid, P = h*w patches, D width, C label channels, N frames, R context frames, Q queries of a strip, S positions
within a strip's reach, k = top-k.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

STRIP_QUERIES = 192  # on a CPU: a strip's affinities stay in the last-level cache
STRIP_BYTES = 2**30  # on a GPU: few, large strips
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Neighbours:
    """The best distinct context patches of every query patch, best first; k of them, or as many as there are.

    Attributes:
        frame: int64 (P, k), index in the clip.
        patch: int64 (P, k), row-major position on the grid.
        similarity: float32 (P, k), dot product of normalised features; -inf where fewer than k patches count.
        count: int64 (P, k), how many of the k places the patch fills (frame 0 may fill several; the last ones none).
        weight: float32 (P, k), softmax over the k places, summed over the places of a patch. Rows sum to 1.
    """

    frame: Tensor
    patch: Tensor
    similarity: Tensor
    count: Tensor
    weight: Tensor


class Strip(NamedTuple):
    """Queries that are searched together, and what they can reach: the grid lines `queries` and `keys`, as positions."""

    queries: slice
    keys: slice
    out_of_reach: Tensor  # bool (Q, S)


class Grid:
    """Numbering of the patches: along the short side first, so that a strip across the grid is one slice of memory."""

    def __init__(self, h: int, w: int, radius: float, inclusive: bool, device: torch.device) -> None:
        self.h, self.w, self.radius, self.inclusive, self.device = h, w, radius, inclusive, device
        self.turned = w > h
        self.long, self.short = max(h, w), min(h, w)

    def flatten(self, grid: Tensor) -> Tensor:
        """(h, w, ...) -> (P, ...)."""
        return (grid.transpose(0, 1) if self.turned else grid).flatten(0, 1)

    def unflatten(self, rows: Tensor) -> Tensor:
        """(P, ...) -> (h, w, ...)."""
        grid = rows.unflatten(0, (self.long, self.short))
        return grid.transpose(0, 1) if self.turned else grid

    def row_major(self, position: Tensor) -> Tensor:
        """Position here -> row-major position."""
        if not self.turned:
            return position
        return position % self.short * self.w + position.div(self.short, rounding_mode="floor")

    def within(self, query: Tensor, key: Tensor) -> Tensor:
        """Bool: is the distance of two positions within the radius? Broadcasts."""
        along = query.div(self.short, rounding_mode="floor") - key.div(self.short, rounding_mode="floor")
        across = query % self.short - key % self.short
        squared = along * along + across * across
        return squared <= self.radius**2 if self.inclusive else squared < self.radius**2

    def strips(self, lines: int) -> list[Strip]:
        """The grid cut along its long side into strips of `lines` lines."""
        reach = min(math.floor(self.radius) if self.inclusive else math.ceil(self.radius) - 1, self.long)
        position = torch.arange(self.long * self.short, device=self.device)
        strips = []
        for first in range(0, self.long, lines):
            last = min(first + lines, self.long)
            queries = slice(first * self.short, last * self.short)
            keys = slice(max(0, first - reach) * self.short, min(self.long, last + reach) * self.short)
            strips.append(Strip(queries, keys, ~self.within(position[queries, None], position[None, keys])))
        return strips


class Propagator:
    """Carries labels from frame to frame and remembers the context, nothing older.

    Args:
        features: (h, w, D), patch features of frame 0. Features need not be normalised; here they are, in float32.
        labels: float (C, h, w), soft labels of frame 0, which keeps them.
        top_k: places that vote.
        temperature: divides similarities before the softmax.
        radius: a context patch counts if its Euclidean grid distance is strictly below it.
        context: number R of preceding frames; where the clip has none yet, frame 0 stands in.
        long_memory: frames that vote besides, without radius; for one that is not past yet, frame 0 stands in.
        precision: of the candidate search. Candidates of a bf16 or fp16 search are ranked again in float32.
        radius_inclusive: variant, `<=` radius.
        restrict_first: variant, the radius holds for long memory too.
        repeat_first: false = variant, frame 0 does not stand in for preceding frames that do not exist.

    Which of several *equal* similarities takes the last place is not specified, as in `torch.topk`. A feature of length 0
    has similarity 0 to everything. The variants are those of EVALUATION, "Known ways to get another number".
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
        long_memory: Sequence[int] = (0,),
        precision: str = "fp32",
        radius_inclusive: bool = False,
        restrict_first: bool = False,
        repeat_first: bool = True,
    ) -> None:
        h, w, width = features.shape
        if labels.shape[1:] != (h, w):
            raise ValueError(f"labels are on the grid {tuple(labels.shape[1:])}, features on {(h, w)}")
        self.top_k, self.temperature, self.context = top_k, temperature, context
        self.long_memory, self.restrict_first, self.repeat_first = tuple(long_memory), restrict_first, repeat_first
        self.device, self.channels = features.device, labels.shape[0]
        self.grid = Grid(h, w, radius, radius_inclusive, self.device)
        on_cpu = self.device.type == "cpu"
        line = self.grid.short if on_cpu else 4 * context * self.grid.short * h * w
        self.strips = self.grid.strips(max(1, (STRIP_QUERIES if on_cpu else STRIP_BYTES) // line))
        # Slots 0 ... R-1 are the ring; after them the frames that are kept for good, frame 0 first.
        self.kept = {frame: context + i for i, frame in enumerate(sorted({0, *self.long_memory}))}
        slots = context + len(self.kept)
        self.frame_in_slot = torch.zeros(slots, dtype=torch.int64, device=self.device)
        self.labels = torch.zeros(slots, h * w, self.channels, device=self.device)
        self.features = torch.zeros(slots, h * w, width, device=self.device)
        half = DTYPES[precision] != torch.float32
        self.search = self.features.to(DTYPES[precision]) if half else self.features
        self.candidates = max(4 * top_k, 32) if half else top_k
        self.affinity = torch.empty(0, dtype=self.search.dtype, device=self.device)
        self.time = 0
        self._store(self.kept[0], self._normalised(features), self.grid.flatten(labels.float().permute(1, 2, 0)))

    def step(self, features: Tensor) -> Tensor:
        """Soft labels of the next frame, which then joins the context.

        Args:
            features: (h, w, D).

        Returns:
            float32 (C, h, w).
        """
        flat = self._normalised(features)
        slot, position, _, _, weight = self._search(flat)
        soft = (self.labels[slot, position] * weight[..., None]).sum(1)  # (P, k, C) -> (P, C)
        self.time += 1
        self._store((self.time - 1) % self.context, flat, soft)
        if self.time in self.kept:
            self._store(self.kept[self.time], flat, soft)
        return self.grid.unflatten(soft).permute(2, 0, 1)

    def neighbours(self, features: Tensor) -> Neighbours:
        """Who votes on the next frame with features (h, w, D); nothing is remembered."""
        slot, position, *rest = self._search(self._normalised(features))
        parts = (self.frame_in_slot[slot], self.grid.row_major(position), *rest)
        return Neighbours(*(self.grid.unflatten(part).flatten(0, 1) for part in parts))

    def _normalised(self, features: Tensor) -> Tensor:
        """(h, w, D) -> float32 (P, D) of length 1."""
        return F.normalize(self.grid.flatten(features).float(), dim=-1)

    def _store(self, slot: int, flat: Tensor, labels: Tensor) -> None:
        self.frame_in_slot[slot] = self.time
        self.features[slot] = flat
        self.labels[slot] = labels
        if self.search is not self.features:
            self.search[slot] = flat.to(self.search.dtype)

    def _multiplicities(self) -> tuple[dict[int, int], dict[int, int]]:
        """How often a past frame's patches occur in the next frame's context: within the radius, and anywhere."""
        now = self.time + 1
        near: dict[int, int] = {}
        for frame in range(now - self.context, now):
            if frame >= 0 or self.repeat_first:
                near[max(frame, 0)] = near.get(max(frame, 0), 0) + 1
        far: dict[int, int] = {}
        for frame in self.long_memory:
            known = frame if frame < now else 0
            far[known] = far.get(known, 0) + 1
        if self.restrict_first:
            return {frame: near.get(frame, 0) + far.get(frame, 0) for frame in {*near, *far}}, {}
        return near, far

    def _search(self, flat: Tensor) -> tuple[Tensor, ...]:
        """Slot, position, similarity, count and weight of the neighbours of features (P, D), each (P, k)."""
        near, far = self._multiplicities()
        ring = sorted((frame - 1) % self.context for frame in near if frame not in self.kept)
        times = torch.zeros(2, len(self.frame_in_slot), dtype=torch.int64)  # (near or far, slot)
        times[0, ring] = 1
        for row, counts in enumerate((near, far)):
            for frame in counts.keys() & self.kept.keys():
                times[row, self.kept[frame]] = counts[frame]
        kept = times[:, self.context :].any(0).nonzero()[:, 0] + self.context
        times = times.to(self.device)
        query = flat.to(self.search.dtype)
        parts = [self._search_strip(strip, flat, query, ring, kept.tolist(), times) for strip in self.strips]
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))

    def _search_strip(
        self, strip: Strip, flat: Tensor, query: Tensor, ring: list[int], kept: list[int], times: Tensor
    ) -> tuple[Tensor, ...]:
        """`_search` for the queries of one strip; each result (Q, k)."""
        here = torch.arange(strip.queries.start, strip.queries.stop, device=self.device)[:, None]
        found = [self._search_kept(strip, query, slot, here, bool(times[1, slot])) for slot in kept]
        if ring:
            found.append(self._search_ring(strip, query, ring))
        similarity, slot, position = (torch.cat(part, dim=1) for part in zip(*found, strict=True))
        if self.search is not self.features:
            similarity, order = similarity.topk(min(self.candidates, similarity.shape[1]), dim=1, sorted=False)
            slot, position = slot.gather(1, order), position.gather(1, order)
            exact = torch.einsum("qd,qkd->qk", flat[strip.queries], self.features[slot, position])
            similarity = exact.masked_fill(similarity.isneginf(), -math.inf)
        similarity, order = similarity.topk(min(self.top_k, similarity.shape[1]), dim=1)
        slot, position = slot.gather(1, order), position.gather(1, order)
        occurs = times[0][slot] * self.grid.within(here, position) + times[1][slot]
        taken = occurs.cumsum(1) - occurs  # places filled by better patches
        count = (self.top_k - taken).clamp(min=0).minimum(occurs) * ~similarity.isneginf()
        weight = count * ((similarity - similarity[:, :1]) / self.temperature).exp()
        return slot, position, similarity, count, weight / weight.sum(1, keepdim=True)

    def _search_kept(self, strip: Strip, query: Tensor, slot: int, here: Tensor, anywhere: bool) -> tuple[Tensor, ...]:
        """The best patches of one kept frame: similarity, slot, position, each (Q, k)."""
        affinity = (query[strip.queries] @ self.search[slot].T).float()  # (Q, P)
        if not anywhere:
            there = torch.arange(affinity.shape[1], device=self.device)
            affinity.masked_fill_(~self.grid.within(here, there), -math.inf)
        similarity, position = affinity.topk(min(self.candidates, affinity.shape[1]), dim=1, sorted=False)
        return similarity, torch.full_like(position, slot), position

    def _search_ring(self, strip: Strip, query: Tensor, ring: list[int]) -> tuple[Tensor, ...]:
        """The best patches of the ring's frames within the radius: similarity, slot, position, each (Q, k * frames)."""
        queries, keys, out_of_reach = strip
        frames, size = len(ring), (len(ring), *out_of_reach.shape)
        # Only a long-memory frame can leave a gap in the ring; without one the slots are a view, not a copy.
        rows = self.search[:frames] if ring[-1] == frames - 1 else self.search[ring]
        # One piece of memory for every strip: fresh pages would cost more than the product.
        if self.affinity.numel() < math.prod(size):
            self.affinity = self.affinity.new_empty(math.prod(size))
        affinity = self.affinity[: math.prod(size)].view(size)  # (frames, Q, S)
        torch.bmm(query[queries].expand(frames, -1, -1), rows[:, keys].transpose(1, 2), out=affinity)
        best = affinity.amax(0).masked_fill_(out_of_reach, -math.inf)  # (Q, S)
        best, position = best.topk(min(self.candidates, best.shape[1]), dim=1, sorted=False)  # (Q, k)
        similarity = affinity.gather(2, position.expand(frames, -1, -1)).float()  # (frames, Q, k)
        similarity.masked_fill_(best.isneginf(), -math.inf)
        slot = torch.tensor(ring, device=self.device)[:, None, None].expand_as(similarity)
        position = (position + keys.start).expand_as(similarity)
        return tuple(part.transpose(0, 1).flatten(1) for part in (similarity, slot, position))


def propagate(features: Tensor | Iterable[Tensor], first_labels: Tensor, **settings: object) -> Tensor:
    """Soft label maps of a whole clip.

    Args:
        features: (N, h, w, D), or any iterable of (h, w, D), one per frame.
        first_labels: float (C, h, w), on the same device.
        settings: those of `Propagator`.

    Returns:
        float32 (N, C, h, w); frame 0 is `first_labels`.
    """
    frames = iter(features)
    propagator = Propagator(next(frames), first_labels, **settings)  # type: ignore[arg-type]
    return torch.stack([first_labels.float(), *(propagator.step(frame) for frame in frames)])
