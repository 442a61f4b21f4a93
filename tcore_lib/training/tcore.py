"""T-CoRe itself: student, teacher, decoder and heads; one `forward` from views to loss terms (METHOD sections 4 to 6).

Every number a forward pass returns is this micro-batch's *share*: summed over micro-batches and ranks it is the value
of the global batch, whatever the split. (On one rank without accumulation the share is the value.)

Letters: B samples, N global batch, P patches, D width, d bottleneck, K prototypes, C crops with masked patches, Q the
most masked patches of a crop, M masked patches, L local crops.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from tcore_lib import params
from tcore_lib.model.decoder import AuxiliaryDecoder
from tcore_lib.model.heads import ProjectionHead
from tcore_lib.model.vit import ViT, initial_vit, seeded
from tcore_lib.training.draws import Plan
from tcore_lib.training.losses import agreement, koleo, prototype_cross_entropy
from tcore_lib.training.optimiser import ema


class Networks(nn.Module):
    """An encoder with its heads: the student, or the teacher.

    Args:
        settings: the whole section `pretrain`.
        seed: initial weights follow from it; torch's own generator is left as it was.
    """

    def __init__(self, settings: params.Pretrain, seed: int) -> None:
        super().__init__()
        self.encoder: ViT = initial_vit(settings.encoder, settings.views.global_size, seed)
        self.encoder.activation_checkpointing = settings.loop.activation_checkpointing
        with seeded(seed, 1):
            self.head = ProjectionHead(self.encoder.width, settings.head)
            separate = settings.head.separate_patch_head
            self.patch_head = ProjectionHead(self.encoder.width, settings.head) if separate else None

    def prototypes(self) -> tuple[Tensor, Tensor]:
        """Prototypes (K, d) of the CLS tokens and of the patches; one tensor where they share a head."""
        of_cls = self.head.last_layer()
        return of_cls, of_cls if self.patch_head is None else self.patch_head.last_layer()

    def project(self, cls: list[Tensor], patches: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Features (R, d) of each set of CLS tokens and of each set of patch tokens; one pass of each head."""
        if self.patch_head is None:
            features = _in_one_pass(self.head, [*cls, *patches])
            return features[: len(cls)], features[len(cls) :]
        return _in_one_pass(self.head, cls), _in_one_pass(self.patch_head, patches)


def _in_one_pass(head: ProjectionHead, sets: list[Tensor]) -> list[Tensor]:
    return list(head(torch.cat(sets)).split([len(tokens) for tokens in sets])) if sets else []


class TCoRe(nn.Module):
    """The networks of one run and their common step.

    Args:
        settings: the whole section `pretrain`.
        seed: initial weights follow from it.
    """

    cls_centre: Tensor
    patch_centre: Tensor

    def __init__(self, settings: params.Pretrain, seed: int) -> None:
        super().__init__()
        self.settings = settings
        self.student = Networks(settings, seed)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.decoder: AuxiliaryDecoder | None = None
        if settings.decoder.enabled:
            with seeded(seed, 2):
                self.decoder = AuxiliaryDecoder(self.student.encoder.width, settings.decoder)
        self.register_buffer("cls_centre", torch.zeros(settings.head.prototypes))
        self.register_buffer("patch_centre", torch.zeros(settings.head.prototypes))
        self.compiled = False
        self._seen: dict[str, Tensor] = {}  # sums of the teacher's features since the centres were last updated
        weights, branches = settings.loss, settings.decoder.branches
        pair = settings.decoder.enabled and branches == "both" and weights.agreement > 0
        self._agreement = weights.agreement if pair else 0.0
        self._branches: dict[str, float] = {}  # auxiliary frame -> weight of its patch term
        for frame, weight in (("past", weights.patch_past), ("future", weights.patch_future)):
            if settings.decoder.enabled and branches in ("both", frame) and (weight > 0 or pair):
                self._branches[frame] = weight

    def compile_parts(self) -> None:
        """From now on run generated code (torch.compile) for the encoders' blocks and for the losses."""
        self.compiled = True
        for networks in (self.student, self.teacher):
            networks.encoder.compile_blocks = True

    @property
    def term_names(self) -> list[str]:
        """The loss terms a forward pass returns: those whose weight is not 0."""
        weights = self.settings.loss
        names = (["dino_global"] + ["dino_local"] * (self.settings.views.num_local > 0)) if weights.dino > 0 else []
        if self.decoder is None:
            names += ["patch"] * (weights.patch > 0)
        names += [f"patch_{frame}" for frame, weight in self._branches.items() if weight > 0]
        return names + ["agreement"] * (self._agreement > 0) + ["koleo"] * (weights.koleo > 0)

    @property
    def auxiliary_frames(self) -> tuple[str, ...]:
        """Which of `past` and `future` a forward pass looks at."""
        return tuple(self._branches)

    def trained(self) -> dict[str, nn.Module]:
        """The modules the optimiser steps; gradients are clipped for each of them."""
        modules = {"encoder": self.student.encoder, "head": self.student.head, "patch_head": self.student.patch_head}
        return {name: module for name, module in {**modules, "decoder": self.decoder}.items() if module is not None}

    # ---- one step, part by part ---------------------------------------------------------------------

    @torch.no_grad()
    def _teach(self, current: Tensor, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
        """Teacher on the unmasked current crops: CLS (2B, D), features of CLS (2B, d) and of masked patches (M, d)."""
        cls, patches = self.teacher.encoder.some(current, plan.tokens)
        (features,), (patch_features,) = self.teacher.project([cls], [patches])
        self._count("cls", features)
        self._count("patch", patch_features)
        return cls, features, patch_features

    def _count(self, kind: str, features: Tensor) -> None:
        total = features.sum(0)
        self._seen[kind] = self._seen[kind] + total if kind in self._seen else total

    @torch.no_grad()
    def _auxiliary(self, views: Mapping[str, Tensor], plan: Plan) -> Tensor:
        """Student, in train mode, on the clean auxiliary crops that a masked crop needs: (branches * C, P, D)."""
        encoder = self.student.encoder
        keep = [getattr(plan, f"keep_{frame}") for frame in self._branches]
        encoder.set_drop_keep(None if keep[0] is None else torch.cat(keep, dim=-1))
        crops = [views[frame] for frame in self._branches]
        return encoder(torch.cat([x if len(x) == len(plan.crops) else x[plan.crops] for x in crops]))[1]

    def _looked_at(self, plan: Plan) -> Tensor:
        """Which patches (N,) of the student's current crops a loss depends on, among all 2B * P."""
        if not (self.settings.loss.patch > 0 if self.decoder is None else self._branches):
            return plan.tokens[:0]
        if self.decoder is None:
            return plan.tokens
        patches = plan.masks.shape[1]
        every = torch.arange(patches, device=plan.crops.device)
        return (plan.crops[:, None] * patches + every).flatten()

    def _masked_patches(self, patches: Tensor, views: Mapping[str, Tensor], plan: Plan) -> list[Tensor]:
        """The student's tokens (M, D) at the masked positions: one set per branch, or its own without a decoder.

        Args:
            patches: (N, D), those `_looked_at`, at least one.
            views: of the micro-batch.
            plan: of the micro-batch.
        """
        if self.decoder is None:
            return [patches]
        auxiliary = self._auxiliary(views, plan)
        times = len(self._branches)
        masked = patches.unflatten(0, (len(plan.crops), -1)).repeat(times, 1, 1)
        restored = self.decoder(masked, auxiliary, plan.wanted.repeat(times, 1))  # (branches * C, Q, D)
        return [part.flatten(0, 1)[plan.rows] for part in restored.chunk(times)]

    def _koleo(self, cls: Tensor) -> Tensor:
        """KoLeo of both views' CLS (2B, D); the neighbours are sought in the rank's samples or in all ranks'."""
        world = dist.get_world_size() if dist.is_initialized() else 1
        first, second = cls.chunk(2)
        if self.settings.loss.koleo_scope == "rank" or world == 1:
            return koleo(first) + koleo(second)
        everyone = [torch.empty_like(cls) for _ in range(world)]
        dist.all_gather(everyone, cls.detach().contiguous())
        everyone[dist.get_rank()] = cls  # the others' features are constants here; their ranks make their gradients
        firsts, seconds = zip(*(rank.chunk(2) for rank in everyone), strict=True)
        whole = koleo(torch.cat(firsts)) + koleo(torch.cat(seconds))
        return whole - whole.detach() * (1 - 1 / world)  # the whole gradient, a rank's share of the value

    def forward(self, views: Mapping[str, Tensor], plan: Plan, teacher_temperature: float) -> dict[str, Any]:
        """Loss of one micro-batch.

        Args:
            views: `current`, `past`, `future` (2B, 3, S, S) and `local` (L * B, 3, s, s) of `views.make_views`; past
                and future may hold the crops of `plan.crops` only.
            plan: masks and stochastic depth of the same samples.
            teacher_temperature: of this step.

        Returns:
            `total`, the weighted sum to differentiate; `terms`, name -> value before its weight (METHOD section 6);
            `diagnostics`: `teacher_entropy` in nats, `feature_std` (of the teacher's L2-normalised CLS over the batch,
            1 = spread evenly, 0 = all equal), `centre_norm`. All are shares of the global batch's value, on the
            device, detached but for `total`.
        """
        weights, batch = self.settings.loss, len(plan.masks) // 2
        encoder = self.student.encoder
        cls_teacher, cls_targets, patch_targets = self._teach(views["current"], plan)

        encoder.set_drop_keep(plan.keep_global)
        cls, patches = encoder.some(views["current"], self._looked_at(plan), plan.masks)
        rows = []  # global CLS, local CLS
        if weights.dino > 0:
            rows.append(cls)
            if len(views["local"]):
                encoder.set_drop_keep(plan.keep_local)
                rows.append(encoder.some(views["local"], plan.tokens[:0])[0])
        sets = self._masked_patches(patches, views, plan) if len(patches) else []
        features, patch_features = self.student.project(rows, sets)

        total = cls.new_zeros((), dtype=cls_targets.dtype)
        terms = dict.fromkeys(self.term_names, total)  # a micro-batch without masked patches has patch terms of 0
        entropy = total
        if rows or sets:
            own, taught = self.student.prototypes(), self.teacher.prototypes()
            if rows:
                pair = (own[0], taught[0])
                total, entropy = self._dino(features, cls_targets, pair, plan, teacher_temperature, terms)
            if sets:
                pair = (own[1], taught[1])
                total = total + self._patch(patch_features, patch_targets, pair, plan, teacher_temperature, terms)
        if weights.koleo > 0:
            value = self._koleo(cls) / plan.samples
            terms["koleo"] = value.detach()
            total = total + weights.koleo * value
        total = total + self._untouched(bool(rows), bool(sets))
        share = batch / plan.samples
        spread = F.normalize(cls_teacher.float(), dim=-1).std(0, correction=0).mean() * cls.shape[1] ** 0.5
        diagnostics = {
            "teacher_entropy": entropy * share,
            "feature_std": spread * share,
            "centre_norm": torch.linalg.vector_norm(self.cls_centre) * share,
        }
        return {"total": total, "terms": terms, "diagnostics": diagnostics}

    def _untouched(self, with_cls: bool, with_patches: bool) -> Tensor | float:
        """Zero, but a function of every parameter this pass left out: DistributedDataParallel waits for all gradients.

        Args:
            with_cls: CLS tokens went through the head.
            with_patches: restored patches went through decoder and head.
        """
        used = {"encoder"} if with_cls or with_patches or self.settings.loss.koleo > 0 else set()
        used |= {"head"} if with_cls or (with_patches and self.student.patch_head is None) else set()
        used |= {"patch_head", "decoder"} if with_patches else set()
        unused = [module for name, module in self.trained().items() if name not in used]
        return sum((p.sum() * 0.0 for module in unused for p in module.parameters()), start=0.0)

    def _dino(
        self,
        features: list[Tensor],
        targets: Tensor,
        prototypes: tuple[Tensor, Tensor],
        plan: Plan,
        sharp: float,
        terms: dict[str, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Both DINO terms; features (2B, d) and, with local crops, (L * B, d); targets (2B, d).

        Returns:
            Their weighted sum, and the teacher's entropy.
        """
        weight, batch = self.settings.loss.dino, len(targets) // 2
        current, *local = features
        num_local = sum(map(len, local)) // batch
        ones = current.new_ones(2 * batch)
        # 2 global and 2 L local pairs; each pair is a mean over the N samples
        scale = 1.0 / ((2 + 2 * num_local) * plan.samples)
        total, values, entropy = prototype_cross_entropy(
            current[None],
            prototypes[0],
            targets.roll(batch, 0)[None],  # the other crop's
            prototypes[1],
            self.cls_centre,
            ones,
            coefficients=(weight,),
            student_temperature=self.settings.loss.student_temperature,
            teacher_temperature=sharp,
            scale=scale,
            with_entropy=True,
            fused=self.compiled,
        )
        terms["dino_global"] = values[0]
        if num_local:
            more, values, _ = prototype_cross_entropy(
                local[0].unflatten(0, (num_local, batch)),
                prototypes[0],
                targets.unflatten(0, (2, batch)),
                prototypes[1],
                self.cls_centre,
                ones[:batch],
                coefficients=(weight,) * num_local,
                student_temperature=self.settings.loss.student_temperature,
                teacher_temperature=sharp,
                scale=scale,
                fused=self.compiled,
            )
            terms["dino_local"] = values.sum()
            total = total + more
        return total, entropy

    def _patch(
        self,
        sets: list[Tensor],
        targets: Tensor,
        prototypes: tuple[Tensor, Tensor],
        plan: Plan,
        sharp: float,
        terms: dict[str, Tensor],
    ) -> Tensor:
        """Patch terms and the agreement; sets of (M, d), targets (M, d). Returns their weighted sum."""
        chosen = {"patch": self.settings.loss.patch}
        if self.decoder is not None:
            chosen = {f"patch_{frame}": weight for frame, weight in self._branches.items()}
        counted = {name: x for name, x in zip(chosen, sets, strict=True) if chosen[name] > 0}
        total = targets.new_zeros(())
        if counted:
            total, values, _ = prototype_cross_entropy(
                torch.stack(list(counted.values())),
                prototypes[0],
                targets[None],
                prototypes[1],
                self.patch_centre,
                plan.weights,
                coefficients=tuple(chosen[name] for name in counted),
                student_temperature=self.settings.loss.student_temperature,
                teacher_temperature=sharp,
                scale=1.0 / (2 * plan.samples),
                fused=self.compiled,
            )
            terms |= dict(zip(counted, values.unbind(), strict=True))
        if self._agreement > 0:
            past, future = sets
            value = agreement(past, future, prototypes[0]) / (plan.masked * len(prototypes[0]))
            terms["agreement"] = value.detach()
            total = total + self._agreement * value
        return total

    # ---- after the optimiser's step -------------------------------------------------------------------------------

    @torch.no_grad()
    def update_centres(self, samples: int, masked: int) -> None:
        """Move both centres towards the mean logit of all the step's forward passes, on all ranks.

        The mean logit is the mean feature times the prototypes, so d numbers travel between ranks instead of K. Call it
        before the teacher moves: the logits were made with its weights of this step.

        Args:
            samples: N, the global batch.
            masked: masked patches of the global batch; without any the patch centre stays.
        """
        sums = torch.stack([self._seen[kind] for kind in ("cls", "patch")])
        self._seen = {}
        if dist.is_initialized():
            dist.all_reduce(sums)
        centres, counts = (self.cls_centre, self.patch_centre), (2 * samples, masked)
        heads = (self.teacher.head, self.teacher.patch_head or self.teacher.head)
        for centre, head, total, count in zip(centres, heads, sums, counts, strict=True):
            if count > 0:
                mean = head.last_layer.logits(total / count)
                centre.lerp_(mean.to(centre.dtype), 1 - self.settings.loss.centre_momentum)

    def update_teacher(self, momentum: float) -> None:
        """Move the teacher towards the student: EMA of every weight of encoder and heads."""
        ema(self.teacher.parameters(), self.student.parameters(), momentum)
