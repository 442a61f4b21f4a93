"""Label propagation: carry the labels of a clip's first frame through the clip by patch similarity.

The protocol is EVALUATION, "Propagation" (released code: CropMAE's propagation, from videowalk). The result is that of
its dense formulation; the way there is shorter, and its memory does not depend on the length of the clip:

* Features are kept and compared once per frame. The frame that the protocol counts several times (frame 0, early in a
  clip) is copied only after its best patches have been found.
* Who is within the radius depends on positions alone. Affinities are computed for strips of the query grid against the
  part of the grid within reach; their maximum over the context frames is taken per position, and only the k best
  positions are looked at again. (The k largest entries lie in the k positions with the largest maxima.)
* A ring buffer holds features and labels of the last `context` frames; older ones are forgotten.

Equal similarities are frequent (a still background, a duplicated frame) and decide who votes. Here they go by the
protocol's list of context patches: long memory, then preceding frames oldest first, each row by row; the earlier patch
wins. The dense formulation leaves it to `torch.topk`, which nearly always does the same on a CPU and promises nothing.

Letters: h w grid, P = h*w patches, D width, C label channels, N frames, R context frames, n frames compared at once,
Q queries of a strip, S positions within a strip's reach, k = top-k.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

STRIP_QUERIES = 256  # on a CPU: a strip's affinities stay in the last-level cache
STRIP_BYTES = 2**30  # on a GPU: few, large strips
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LAST = 2**31 - 1


@dataclass(frozen=True)
class Neighbours:
    """The k context patches that vote on each patch, best first; fewer where the context has fewer.

    A patch of a frame that the protocol counts several times may take several of the k places.

    Attributes:
        frame: int64 (P, k), index in the clip.
        patch: int64 (P, k), row-major position on the grid.
        similarity: float32 (P, k), dot product of normalised features; -inf where fewer than k patches count.
        weight: float32 (P, k), softmax of similarity / temperature. Rows sum to 1.
    """

    frame: Tensor
    patch: Tensor
    similarity: Tensor
    weight: Tensor


def pack(value: Tensor, index: Tensor) -> Tensor:
    """Float32 values and indices in 0 ... 2^31 - 1 as int64 that sort by value, then by lowest index."""
    bits = (value + 0.0).view(torch.int32)  # + 0.0: no negative zero
    ordered = torch.where(bits < 0, bits ^ LAST, bits).long()
    return (ordered << 32) + (LAST - index)


def unpack(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Value and index of `pack`."""
    ordered = (packed >> 32).int()
    bits = torch.where(ordered < 0, ordered ^ LAST, ordered)
    return bits.view(torch.float32), LAST - (packed & 0xFFFFFFFF)


class Strip(NamedTuple):
    """Grid lines that are searched together, and the grid lines they can reach; both as positions."""

    queries: slice
    keys: slice
    out_of_reach: Tensor  # bool (Q, S)


class Grid:
    """Numbering of the patches: along the short side first, so that a strip across the grid is one slice of memory.

    Attributes:
        row_major: int64 (P,), row-major number of the patch at a position.
        position: int64 (P,), position of the patch with a row-major number.
    """

    def __init__(self, h: int, w: int, radius: float, inclusive: bool, device: torch.device) -> None:
        self.radius, self.inclusive, self.device, self.patches = radius, inclusive, device, h * w
        self.turned, self.long, self.short = w > h, max(h, w), min(h, w)
        self.row_major = self.flatten(torch.arange(h * w, device=device).view(h, w))
        self.position = self.row_major.argsort()

    def flatten(self, grid: Tensor) -> Tensor:
        """(h, w, ...) -> (P, ...)."""
        return (grid.transpose(0, 1) if self.turned else grid).flatten(0, 1)

    def unflatten(self, rows: Tensor) -> Tensor:
        """(P, ...) -> (h, w, ...)."""
        grid = rows.unflatten(0, (self.long, self.short))
        return grid.transpose(0, 1) if self.turned else grid

    def within(self, query: Tensor, key: Tensor) -> Tensor:
        """Bool: is the distance of two positions within the radius? Broadcasts."""
        along = query.div(self.short, rounding_mode="floor") - key.div(self.short, rounding_mode="floor")
        across = query % self.short - key % self.short
        squared = along * along + across * across
        return squared <= self.radius**2 if self.inclusive else squared < self.radius**2

    def strips(self, lines: int) -> list[Strip]:
        """The grid cut along its long side into strips of `lines` lines."""
        reach = min(math.floor(self.radius) if self.inclusive else math.ceil(self.radius) - 1, self.long)
        position = torch.arange(self.patches, device=self.device)
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

    A feature of length 0 has similarity 0 to everything. The variants are those of EVALUATION, "Known ways to get
    another number".
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
        # The first slots hold the frames that are kept for good, frame 0 first; the others are the ring.
        self.kept = {frame: slot for slot, frame in enumerate(sorted({0, *self.long_memory}))}
        slots = len(self.kept) + context
        on_cpu = self.device.type == "cpu"
        line = self.grid.short if on_cpu else 4 * slots * self.grid.short * h * w
        self.strips = self.grid.strips(max(1, (STRIP_QUERIES if on_cpu else STRIP_BYTES) // line))
        self.frame_in_slot = torch.zeros(slots, dtype=torch.int64, device=self.device)
        self.labels = torch.zeros(self.channels, slots * h * w, device=self.device)
        self.features = torch.zeros(slots, h * w, width, device=self.device)
        self.half = DTYPES[precision] != torch.float32
        self.search = self.features.to(DTYPES[precision]) if self.half else self.features
        self.candidates = max(3 * top_k, 16) if self.half else top_k
        self.memory = torch.empty(0, dtype=self.search.dtype, device=self.device)
        self.time = 0
        self._store(self.kept[0], self._normalised(features), self._flat_labels(labels))

    def step(self, features: Tensor) -> Tensor:
        """Soft labels of the next frame, which then joins the context.

        Args:
            features: (h, w, D).

        Returns:
            float32 (C, h, w).
        """
        flat = self._normalised(features)
        slot, position, _, weight = self._search(flat)
        known = self.labels[:, slot * self.grid.patches + position]  # (C, k, P)
        soft = (known * weight).sum(1)  # (C, P)
        self.time += 1
        self._store(self._ring_slot(self.time), flat, soft)
        if self.time in self.kept:
            self._store(self.kept[self.time], flat, soft)
        return self.grid.unflatten(soft.T).permute(2, 0, 1)

    def neighbours(self, features: Tensor) -> Neighbours:
        """Who votes on the next frame with features (h, w, D); nothing is remembered."""
        slot, position, scaled, weight = self._search(self._normalised(features))
        parts = (self.frame_in_slot[slot], self.grid.row_major[position], scaled * self.temperature, weight)
        return Neighbours(*(self.grid.unflatten(part.T).flatten(0, 1) for part in parts))

    def _normalised(self, features: Tensor) -> Tensor:
        """(h, w, D) -> float32 (P, D) of length 1."""
        return F.normalize(self.grid.flatten(features).float(), dim=-1)

    def _flat_labels(self, labels: Tensor) -> Tensor:
        """(C, h, w) -> float32 (C, P)."""
        return self.grid.flatten(labels.float().permute(1, 2, 0)).T

    def _store(self, slot: int, flat: Tensor, labels: Tensor) -> None:
        self.frame_in_slot[slot] = self.time
        self.features[slot] = flat
        self.labels.view(self.channels, -1, self.grid.patches)[:, slot] = labels
        if self.half:
            self.search[slot] = flat.to(self.search.dtype)

    def _ring_slot(self, frame: int) -> int:
        return len(self.kept) + (frame - 1) % self.context

    def context_list(self) -> list[tuple[int, bool]]:
        """The protocol's list of context frames of the next frame, in order: (frame, within the radius only?)."""
        now = self.time + 1
        long = [(frame if frame < now else 0, self.restrict_first) for frame in self.long_memory]
        preceding = range(now - self.context, now)
        return long + [(max(frame, 0), True) for frame in preceding if frame >= 0 or self.repeat_first]

    def _search(self, flat: Tensor) -> tuple[Tensor, ...]:
        """Slot, position, similarity / temperature and weight of the voters on features (P, D), each (k, P)."""
        listed = self.context_list()
        slot_at = [self.kept.get(frame, self._ring_slot(frame)) for frame, _ in listed]  # per place in the list
        slots = torch.tensor(slot_at, device=self.device)
        query = flat.to(self.search.dtype)
        found = torch.cat([self._search_strip(strip, flat, query, listed, slots) for strip in self.strips])
        # (k, P) from here on, the layout of the dense formulation: sums of the same values round in the same way, and
        # cells that are equal there stay equal here.
        scaled, index = unpack(found.T.contiguous())
        place, patch = index.div(self.grid.patches, rounding_mode="floor"), index % self.grid.patches
        return slots[place], self.grid.position[patch], scaled, scaled.softmax(0)

    def _search_strip(
        self, strip: Strip, flat: Tensor, query: Tensor, listed: list[tuple[int, bool]], slots: Tensor
    ) -> Tensor:
        """The k best patches of each query of a strip, packed (value, place in the list * P + patch), (Q, k)."""
        affinity = self._affinities(strip, query)
        found = []
        for frame, slot in self.kept.items():
            places = [(place, near) for place, (other, near) in enumerate(listed) if other == frame]
            if places:
                found.append(self._best_kept(strip, flat, query, affinity[slot], places, slots))
        ring = {self._ring_slot(frame): place for place, (frame, _) in enumerate(listed) if frame not in self.kept}
        if ring:
            rows = affinity[len(self.kept) :]
            for row in range(len(rows)):
                if row + len(self.kept) not in ring:  # a long-memory frame, dealt with above
                    rows[row].fill_(-math.inf)
            place = [ring.get(len(self.kept) + row, 0) for row in range(len(rows))]
            found.append(self._best(strip, flat, rows, strip.out_of_reach, strip.keys.start, place, slots))
        entries = torch.cat(found, dim=1)
        return entries.topk(min(self.top_k, entries.shape[1]), dim=1).values

    def _affinities(self, strip: Strip, query: Tensor) -> Tensor:
        """Similarities of a strip's queries to what they can reach in every slot used so far, (n, Q, S)."""
        used = min(len(self.kept) + self.time, len(self.frame_in_slot))
        size = (used, *strip.out_of_reach.shape)
        # One piece of memory for every strip: fresh pages would cost more than the product.
        if self.memory.numel() < math.prod(size):
            self.memory = self.memory.new_empty(math.prod(size))
        affinity = self.memory[: math.prod(size)].view(size)
        keys = self.search[:used, strip.keys].transpose(1, 2)  # (n, D, S)
        return torch.bmm(query[strip.queries].expand(used, -1, -1), keys, out=affinity)

    def _best_kept(
        self,
        strip: Strip,
        flat: Tensor,
        query: Tensor,
        reachable: Tensor,
        places: list[tuple[int, bool]],
        slots: Tensor,
    ) -> Tensor:
        """The best patches of one frame that may count several times, one entry for each of its places in the list."""
        slot = slots[places[0][0]]
        affinity = query[strip.queries] @ self.search[slot].T  # (Q, P)
        # Products of another shape may round differently: equal patches must stay equal.
        affinity[:, strip.keys] = reachable
        forbidden = None
        if places[0][1]:  # long memory comes first in the list: all places are restricted
            forbidden = torch.ones_like(affinity, dtype=torch.bool)
            forbidden[:, strip.keys] = strip.out_of_reach
        once = self._best(strip, flat, affinity[None], forbidden, 0, [places[0][0]], slots)
        value, index = unpack(once)
        here = torch.arange(strip.queries.start, strip.queries.stop, device=self.device)[:, None]
        near = self.grid.within(here, self.grid.position[index % self.grid.patches])
        entries = []
        for place, restricted in places[: self.top_k]:
            allowed = value.where(near, -math.inf) if restricted else value
            entries.append(pack(allowed, index + (place - places[0][0]) * self.grid.patches))
        return torch.cat(entries, dim=1)

    def _best(
        self,
        strip: Strip,
        flat: Tensor,
        affinity: Tensor,
        forbidden: Tensor | None,
        start: int,
        places: list[int],
        slots: Tensor,
    ) -> Tensor:
        """The k best entries of affinities to several frames, packed, (Q, k).

        Args:
            strip: the queries.
            flat: (P, D), features of the frame in float32.
            affinity: (n, Q, S).
            forbidden: bool (Q, S), positions that do not count.
            start: position of the first of S.
            places: of the n frames in the list.
            slots: slot of each place.
        """
        best = affinity.amax(0).float()  # (Q, S)
        if forbidden is not None:
            best.masked_fill_(forbidden, -math.inf)
        count = min(self.candidates, best.shape[1])
        best, chosen = best.topk(min(count + 1, best.shape[1]), dim=1)
        rest, chosen = best[:, count:], chosen[:, :count]
        value = affinity.gather(2, chosen.expand(len(affinity), -1, -1)).float()  # (n, Q, k)
        value.masked_fill_(best[:, :count].isneginf(), -math.inf)
        first = torch.tensor(places, device=self.device)[:, None, None] * self.grid.patches
        patch = self.grid.row_major[start + chosen]
        entries = pack(value / self.temperature, first + patch).transpose(0, 1).flatten(1)  # (Q, n * k)
        entries = entries.topk(min(self.candidates, entries.shape[1]), dim=1).values
        if self.half:
            return self._rank_again(flat[strip.queries], entries, slots)
        # A position left out may hold an entry equal to the last one: then all of them have to be compared.
        tied = (unpack(entries[:, -1:])[0] == rest / self.temperature) & ~rest.isneginf()
        rows = tied.any(1).nonzero()[:, 0]
        if len(rows):
            value = affinity[:, rows] / self.temperature
            if forbidden is not None:
                value.masked_fill_(forbidden[rows], -math.inf)
            patch = self.grid.row_major[start : start + value.shape[2]]
            every = pack(value, first + patch).transpose(0, 1).flatten(1)
            entries[rows] = every.topk(entries.shape[1], dim=1).values
        return entries

    def _rank_again(self, query: Tensor, entries: Tensor, slots: Tensor) -> Tensor:
        """Candidates (Q, k) of a half-precision search with their similarities in float32."""
        value, index = unpack(entries)
        place, patch = index.div(self.grid.patches, rounding_mode="floor"), index % self.grid.patches
        exact = torch.einsum("qd,qkd->qk", query, self.features[slots[place], self.grid.position[patch]])
        exact = (exact / self.temperature).where(~value.isneginf(), -math.inf)
        return pack(exact, index).topk(min(self.top_k, entries.shape[1]), dim=1).values


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
