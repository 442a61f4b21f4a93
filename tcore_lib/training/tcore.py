"""T-CoRe itself: student, teacher, decoder and heads, and one `forward` from views to the loss (METHOD sections 4 to 6).

Read `TCoRe.forward` first; notebook 01 says the same with all logits held. Every loss value is this micro-batch's *share*:
summed over micro-batches and ranks it is the value of the global batch, however that is split.

Letters: B samples, N samples of the global batch, P patches of a crop, D width of a token, d width of a head's feature, K
prototypes, L local crops of a sample, C crops with masked patches, M masked patches.
"""

import copy
import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tcore_lib import params
from tcore_lib.machine import summed
from tcore_lib.model.decoder import AuxiliaryDecoder
from tcore_lib.model.encoders import start_from
from tcore_lib.model.heads import ProjectionHead
from tcore_lib.model.vit import ViT, initial_vit, seeded
from tcore_lib.training.draws import Draws
from tcore_lib.training.losses import Temperatures, agreement, koleo, prototype_cross_entropy, sinkhorn_centre
from tcore_lib.training.optimiser import ema


def term_weights(settings: params.Pretrain) -> dict[str, float]:
    """The loss terms of a run and their weights in the total, in the order of the log. A term of weight 0 is left out."""
    loss, decoder = settings.loss, settings.decoder
    weights = {"dino_global": loss.dino, "dino_local": loss.dino if settings.views.num_local else 0.0}
    if decoder.enabled:
        weights["patch_past"] = loss.patch_past if decoder.branches != "future" else 0.0
        weights["patch_future"] = loss.patch_future if decoder.branches != "past" else 0.0
        weights["agreement"] = loss.agreement if decoder.branches == "both" else 0.0
    else:
        weights["patch"] = loss.patch
    weights["koleo"] = loss.koleo
    return {name: weight for name, weight in weights.items() if weight > 0}


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


class TCoRe(nn.Module):
    """The networks of one run and the loss of a step.

    Args:
        settings: the whole section `pretrain`.
        seed: initial weights follow from it.

    Attributes:
        student, teacher: encoders with heads; the teacher never learns by gradient.
        decoder: of the student's side alone; None where it is switched off.
        cls_centre, patch_centre: (K,), taken from the teacher's logits: running means of them, or factors of the last batch.
        weights: loss term -> weight in the total.
        compiled: whether losses and blocks run as generated code.
    """

    cls_centre: Tensor
    patch_centre: Tensor
    _target_sums: Tensor
    _entropy_sums: Tensor
    _spread: Tensor

    def __init__(self, settings: params.Pretrain, seed: int) -> None:
        super().__init__()
        self.settings = settings
        self.weights = term_weights(settings)
        self.student = Networks(settings, seed)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.decoder: AuxiliaryDecoder | None = None
        if settings.decoder.enabled:
            with seeded(seed, 2):
                self.decoder = AuxiliaryDecoder(self.student.encoder.width, settings.decoder)
        prototypes = settings.head.prototypes
        self.register_buffer("cls_centre", torch.zeros(prototypes))
        self.register_buffer("patch_centre", torch.zeros(prototypes))
        # sums for `diagnostics`, since it was last called: of CLS and of patches
        self.register_buffer("_target_sums", torch.zeros(2, prototypes), persistent=False)
        self.register_buffer("_entropy_sums", torch.zeros(2), persistent=False)
        self.register_buffer("_spread", torch.zeros(2), persistent=False)
        self._feature_sums: dict[str, Tensor] = {}  # for `update_centres`
        self.compiled = False

    def compile_parts(self) -> None:
        """From now on run generated code (torch.compile) for the encoders' blocks and for the losses."""
        self.compiled = True
        for networks in (self.student, self.teacher):
            networks.encoder.compile_blocks = True

    def start_from(self, source: str) -> None:
        """Give student and teacher the weights of an encoder from anywhere (`pretrain.encoder.init`).

        Heads and decoder stay as they were initialised, and their first gradients know nothing: the encoder can be held
        meanwhile (`optimiser.hold_steps`), and after that moves slowly (`optimiser.encoder_lr`, `layer_decay`). Post-training
        of dense features does so too: NeCo (Pariza et al., 2025) continues DINOv2 with AdamW at 1e-5 for the encoder and 1e-4
        for the heads, teacher momentum 0.9995 to 1, batch 64; TimeT (Salehi et al., 2023) moves the last two blocks of DINO
        on video, heads at a higher rate; MoSiC (Salehi et al., 2025) continues DINOv2 on video in the same way.

        Raises:
            InputError: the encoder cannot be had, or has another shape than the settings say.
        """
        start_from(self.student.encoder, source)
        self.teacher.encoder.load_state_dict(self.student.encoder.state_dict())
        self.teacher.encoder.layout = self.student.encoder.layout

    @property
    def auxiliary_frames(self) -> tuple[str, ...]:
        """Which of `past` and `future` a forward pass looks at."""
        both = "agreement" in self.weights
        return tuple(frame for frame in ("past", "future") if both or f"patch_{frame}" in self.weights)

    def trained(self) -> dict[str, nn.Module]:
        """The modules the optimiser steps; gradients are clipped for each of them."""
        modules = {"encoder": self.student.encoder, "head": self.student.head, "decoder": self.decoder}
        return {name: module for name, module in modules.items() if module is not None}

    # ---- the loss, from top to bottom as METHOD section 5 has it ------------------------------------------------------

    def forward(
        self, views: Mapping[str, Tensor], draws: Draws, teacher_temperature: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one micro-batch.

        Args:
            views: `current`, `past`, `future` (2B, 3, S, S) and `local` (L * B, 3, s, s), crop-major; past and future may
                hold the C crops of `draws.crops` only.
            draws: masks and stochastic depth of the same samples.
            teacher_temperature: of this step.

        Returns:
            The total, to differentiate; and each term before its weight (METHOD section 6), detached.
        """
        student, teacher, frames = self.student, self.teacher, self.auxiliary_frames
        with_cls = "dino_global" in self.weights
        with_patches = (bool(frames) or "patch" in self.weights) and len(draws.crops) > 0
        temperatures = Temperatures(self.settings.loss.student_temperature, teacher_temperature)

        # 1. The teacher sees the current crops whole. Its features, centred and sharpened, are the targets.
        with torch.no_grad():
            cls, patches = teacher.encoder(views["current"])  # (2B, D), (2B, P, D)
            masked = _select(patches[draws.crops], draws.patches)  # (M, D)
            cls_target, patch_target = teacher.head(cls), teacher.head(masked)  # (2B, d), (M, d)
            if self.settings.loss.centring == "sinkhorn":
                self._balance(cls_target, patch_target, teacher_temperature)
            self._record(cls, cls_target, patch_target)

        # 2. The student on the whole crops of past and future, without gradient: what the decoder may look at.
        with torch.no_grad():
            auxiliary = self._auxiliary(views, draws) if frames and with_patches else None  # (frames * C, P, D)

        # 3. The student on the masked current crops and on the local crops.
        cls, patches = self._encode(views["current"], draws, "current", draws.masks)  # (2B, D), (2B, P, D)
        tokens = [cls]
        if "dino_local" in self.weights:
            tokens.append(self._encode(views["local"], draws, "local")[0])  # (L * B, D)

        # 4. The decoder restores the masked crops once from each frame; the masked patches are kept.
        restored: list[Tensor] = []  # (M, D) for each frame, or the student's own patches where there is no decoder
        if with_patches:
            hidden = patches.index_select(0, draws.crops)  # (C, P, D)
            if self.decoder is not None:
                hidden = self.decoder(hidden.repeat(len(frames), 1, 1), auxiliary)  # (frames * C, P, D)
            restored = [_select(part, draws.patches) for part in hidden.chunk(max(1, len(frames)))]

        # 5. The head, once for all CLS tokens and once for all restored patches.
        terms = {name: cls.new_zeros((), dtype=cls_target.dtype) for name in self.weights}
        if with_cls:
            features = _in_one_pass(student.head, tokens)  # (2B, d), (L * B, d)
            terms |= self._dino(features, cls_target, draws, temperatures)
        if with_patches:
            features = _in_one_pass(student.head, restored)  # (M, d) each
            terms |= self._patch(features, patch_target, draws, temperatures)
        if "koleo" in self.weights:
            terms["koleo"] = sum(koleo(view) for view in cls.chunk(2)) / draws.samples

        # 6. The weighted sum.
        total = sum(weight * terms[name] for name, weight in self.weights.items())
        total = total + self._untouched(with_cls, with_patches)
        return total, {name: term.detach() for name, term in terms.items()}

    def _encode(self, images: Tensor, draws: Draws, keep: str, masks: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The student's encoder with the stochastic depth of these crops."""
        self.student.encoder.set_drop_keep(draws.keep.get(keep))
        return self.student.encoder(images, masks)

    def _auxiliary(self, views: Mapping[str, Tensor], draws: Draws) -> Tensor:
        """Patches (frames * C, P, D) of the auxiliary crops that belong to a masked crop, in one pass."""
        crops = [views[frame] for frame in self.auxiliary_frames]
        crops = [x if len(x) == len(draws.crops) else x[draws.crops] for x in crops]
        keep = [draws.keep[frame] for frame in self.auxiliary_frames if frame in draws.keep]
        self.student.encoder.set_drop_keep(torch.cat(keep, dim=-1) if keep else None)
        return self.student.encoder(torch.cat(crops))[1]

    def _dino(
        self, features: list[Tensor], target: Tensor, draws: Draws, temperatures: Temperatures
    ) -> dict[str, Tensor]:
        """CLS of (2B, d) global and (L * B, d) local crops against the teacher's (2B, d)."""
        prototypes, theirs = self.student.head.last_layer(), self.teacher.head.last_layer()  # (K, d)
        own, *local = features
        batch = len(target) // 2
        scale = 1 / (
            (2 + 2 * self.settings.views.num_local) * draws.samples
        )  # a mean over samples of all pairs of crops
        ones = own.new_ones(2 * batch)
        swapped = target.roll(batch, 0)[None]  # (1, 2B, d): each crop answers for the other one
        inputs = (self.cls_centre, ones, temperatures)
        loss, targets, entropy = prototype_cross_entropy(
            own[None], prototypes, swapped, theirs, *inputs, fused=self.compiled
        )
        self._count_targets(0, targets, entropy)
        terms = {"dino_global": scale * loss[0]}
        if local:  # every local crop answers for both
            small, both = local[0].unflatten(0, (-1, batch)), target.unflatten(0, (2, batch))  # (L, B, d), (2, B, d)
            inputs = (self.cls_centre, ones[:batch], temperatures)
            loss, _, _ = prototype_cross_entropy(small, prototypes, both, theirs, *inputs, fused=self.compiled)
            terms["dino_local"] = scale * loss.sum()
        return terms

    def _patch(
        self, features: list[Tensor], target: Tensor, draws: Draws, temperatures: Temperatures
    ) -> dict[str, Tensor]:
        """Restored patches (M, d) of each frame against the teacher's (M, d), and against each other."""
        prototypes, theirs = self.student.head.last_layer(), self.teacher.head.last_layer()
        names = [f"patch_{frame}" for frame in self.auxiliary_frames] or ["patch"]
        counted = {name: x for name, x in zip(names, features, strict=True) if name in self.weights}
        terms = {}
        if counted:
            loss, targets, entropy = prototype_cross_entropy(
                torch.stack(list(counted.values())),
                prototypes,
                target[None],
                theirs,
                self.patch_centre,
                draws.weights,
                temperatures,
                fused=self.compiled,
            )
            self._count_targets(1, targets, entropy)
            terms = {name: value / (2 * draws.samples) for name, value in zip(counted, loss.unbind(), strict=True)}
        if "agreement" in self.weights:
            terms["agreement"] = agreement(*features, prototypes) / (draws.masked * len(prototypes))
        return terms

    def _balance(self, cls_target: Tensor, patch_target: Tensor, temperature: float) -> None:
        """Set both centres to this micro-batch's Sinkhorn-Knopp factors; every rank takes part, with patches or without."""
        for centre, features in ((self.cls_centre, cls_target), (self.patch_centre, patch_target)):
            centre.copy_(sinkhorn_centre(features, self.teacher.head.last_layer(), temperature))

    def _untouched(self, with_cls: bool, with_patches: bool) -> Tensor | float:
        """0, as a function of every parameter that this pass left out: DistributedDataParallel waits for all gradients."""
        used = {"encoder"} if with_cls or with_patches or "koleo" in self.weights else set()
        if with_patches:
            used |= {"decoder", "head"}
        if with_cls:
            used |= {"head"}
        unused = [module for name, module in self.trained().items() if name not in used]
        return sum((0.0 * p.sum() for module in unused for p in module.parameters()), start=0.0)

    # ---- what is counted on the way -------------------------------------------------------------------------------

    def _record(self, cls: Tensor, cls_target: Tensor, patch_target: Tensor) -> None:
        """Sum up the teacher's features for the centres, and how far its CLS tokens (2B, D) lie apart."""
        for name, features in (("cls", cls_target), ("patch", patch_target)):
            self._feature_sums[name] = self._feature_sums.get(name, 0.0) + features.sum(0)
        spread = F.normalize(cls.float(), dim=-1).std(0, correction=0).mean() * cls.shape[1] ** 0.5
        self._spread += torch.stack([spread * len(cls), torch.full_like(spread, len(cls))])

    def _count_targets(self, kind: int, targets: Tensor, entropy: Tensor) -> None:
        self._target_sums[kind] += targets
        self._entropy_sums[kind] += entropy

    @torch.no_grad()
    def diagnostics(self) -> dict[str, Tensor]:
        """What the teacher's outputs were like since the last call, over all micro-batches and ranks; all ranks call it.

        Returns:
            `teacher_entropy`: mean entropy of the CLS targets, in nats. `information_cls` and `information_patch`: entropy
            of the mean target minus mean entropy of the targets, in nats: what a target says about its crop or patch, 0
            where all are alike, whether uniform or one winning prototype; `..._share`: the same as a share of ln K.
            `feature_std`: of the teacher's L2-normalised CLS over the batch, 1 = spread evenly, 0 = all equal.
            `centre_norm`: of the CLS centre.
        """
        targets, entropies, spread = (summed(x.clone()) for x in (self._target_sums, self._entropy_sums, self._spread))
        for sums in (self._target_sums, self._entropy_sums, self._spread):
            sums.zero_()
        rows = targets.sum(-1).clamp_min(1.0)  # (2,): a distribution sums to 1
        entropy = entropies / rows
        information = torch.special.entr(targets / rows[:, None]).sum(-1) - entropy  # (2,)
        share = information / max(math.log(targets.shape[1]), 1e-9)
        return {
            "teacher_entropy": entropy[0],
            "information_cls": information[0],
            "information_patch": information[1],
            "information_cls_share": share[0],
            "information_patch_share": share[1],
            "feature_std": spread[0] / spread[1].clamp_min(1.0),
            "centre_norm": torch.linalg.vector_norm(self.cls_centre),
        }

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
        sums = summed(torch.stack([self._feature_sums[kind] for kind in ("cls", "patch")]))  # (2, d)
        self._feature_sums = {}
        if self.settings.loss.centring == "sinkhorn":
            return
        centres, counts = (self.cls_centre, self.patch_centre), (2 * samples, masked)
        for centre, total, count in zip(centres, sums, counts, strict=True):
            if count > 0:
                mean = self.teacher.head.last_layer.logits(total / count)
                centre.lerp_(mean.to(centre.dtype), 1 - self.settings.loss.centre_momentum)

    def update_teacher(self, momentum: float) -> None:
        """Move the teacher towards the student: EMA of every weight of encoder and heads."""
        ema(self.teacher.parameters(), self.student.parameters(), momentum)


def _in_one_pass(head: ProjectionHead, sets: list[Tensor]) -> list[Tensor]:
    """Features (R, d) of each set of tokens (R, D)."""
    return list(head(torch.cat(sets)).split([len(tokens) for tokens in sets]))


def _select(patches: Tensor, wanted: Tensor) -> Tensor:
    """(C, P, D), (M,) among C * P -> (M, D)."""
    return patches.flatten(0, 1).index_select(0, wanted)
