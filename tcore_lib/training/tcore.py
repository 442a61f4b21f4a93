"""T-CoRe itself: student, teacher, decoder and heads, and one `forward` from views to the loss (docs/method.md sections 4 to 6).

Read `TCoRe.forward` first; notebook 01 says the same with all logits held. Every loss value is this micro-batch's *share*:
summed over micro-batches and ranks it is the value of the global batch, however that is split.

Letters: B samples, N samples of the global batch, P patches of a crop, D width of a token, d width of a head's feature, K
prototypes, L local crops of a sample, C crops with masked patches, M masked patches, F auxiliary frames (2, 1 or 0).
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
from tcore_lib.training.losses import agreement, koleo, prototype_cross_entropy


def term_weights(settings: params.Pretrain) -> dict[str, float]:
    """The loss terms of a run and their weights in the total, in the order of the log. A term of weight 0 is left out."""
    loss, branches = settings.loss, settings.decoder.branches if settings.decoder.enabled else "none"
    weights = {
        "dino_global": loss.dino,
        "dino_local": loss.dino * (settings.views.num_local > 0),
        "patch_past": loss.patch_past * (branches in ("both", "past")),
        "patch_future": loss.patch_future * (branches in ("both", "future")),
        "agreement": loss.agreement * (branches == "both"),
        "patch": loss.patch * (branches == "none"),
        "koleo": loss.koleo,
    }
    return {name: weight for name, weight in weights.items() if weight > 0}


class Networks(nn.Module):
    """An encoder with its heads: the student, or the teacher. Initial weights follow from the seed."""

    def __init__(self, settings: params.Pretrain, seed: int) -> None:
        super().__init__()
        self.encoder: ViT = initial_vit(settings.encoder, settings.views.global_size, seed)
        with seeded(seed, 1):
            self.head = ProjectionHead(self.encoder.width, settings.head)


class TCoRe(nn.Module):
    """The networks of one run and the loss of a step; initial weights follow from the seed alone.

    `student` and `teacher`, which never learns by gradient, are encoders with heads; `decoder` is None where it is switched off.
    `cls_centre`, `patch_centre` (K,): running means of the teacher's logits. `weights`: loss term -> weight in the total.
    `auxiliary_frames`: which of `past` and `future` are looked at. `compiled`: losses and blocks run as generated code.
    """

    cls_centre: Tensor
    patch_centre: Tensor

    def __init__(self, settings: params.Pretrain, seed: int) -> None:
        super().__init__()
        self.settings = settings
        self.weights = term_weights(settings)
        both = "agreement" in self.weights
        self.auxiliary_frames = [name for name in ("past", "future") if both or f"patch_{name}" in self.weights]
        self.student = Networks(settings, seed)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.decoder: AuxiliaryDecoder | None = None
        if settings.decoder.enabled:
            with seeded(seed, 2):
                self.decoder = AuxiliaryDecoder(self.student.encoder.width, settings.decoder)
        self.register_buffer("cls_centre", torch.zeros(settings.head.prototypes))
        self.register_buffer("patch_centre", torch.zeros(settings.head.prototypes))
        self._sums: dict[str, Tensor] = {}  # of what the teacher said, for `update_centres` and `diagnostics`
        self.compiled = False

    def compile_parts(self) -> None:
        """From now on run generated code for the encoders' blocks and for the losses."""
        self.compiled = self.student.encoder.compile_blocks = self.teacher.encoder.compile_blocks = True

    def start_from(self, source: str) -> None:
        """Give student and teacher the weights of an encoder from anywhere (`pretrain.encoder.init`).

        Heads and decoder start fresh, and their first gradients know nothing: the encoder can be held meanwhile
        (`optimiser.hold_steps`) and then moves slowly (`encoder_lr`, `layer_decay`). NeCo (Pariza et al., 2025) continues DINOv2
        at 1e-5 for the encoder and 1e-4 for the heads, teacher momentum 0.9995 to 1, batch 64; TimeT (Salehi et al., 2023)
        moves the last two blocks of DINO, heads at a higher rate. See also MoSiC (Salehi et al., 2025).
        """
        path = params.resolve(source)
        start_from(self.student.encoder, path if path.exists() else source)
        self.teacher.encoder.load_state_dict(self.student.encoder.state_dict())
        self.teacher.encoder.layout = self.student.encoder.layout

    def trained(self) -> dict[str, nn.Module]:
        """The modules the optimiser steps; gradients are clipped for each of them."""
        modules = {"encoder": self.student.encoder, "head": self.student.head, "decoder": self.decoder}
        return {name: module for name, module in modules.items() if module is not None}

    # ---- the loss, from top to bottom as docs/method.md section 5 has it --------------------------------------------

    def forward(
        self, views: Mapping[str, Tensor], draws: Draws, teacher_temperature: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one micro-batch: the total, to differentiate; and each term before its weight, detached.

        Views are `current`, `past`, `future` (2B, 3, S, S) and `local` (L * B, 3, s, s), crop-major; past and future may hold
        the C crops of `draws.crops` only.
        """
        student, teacher, frames = self.student, self.teacher, self.auxiliary_frames
        with_patches = (frames or "patch" in self.weights) and len(draws.crops) > 0
        temperatures = (self.settings.loss.student_temperature, teacher_temperature)

        # 1. The teacher sees the current crops whole. Its features, centred and sharpened, are the targets.
        with torch.no_grad():
            cls, patches = teacher.encoder(views["current"])  # (2B, D), (2B, P, D)
            masked = _select(patches[draws.crops], draws.patches)  # (M, D)
            cls_target, patch_target = teacher.head(cls), teacher.head(masked)  # (2B, d), (M, d)
            theirs = teacher.head.last_layer()  # (K, d)
            spread = F.normalize(cls.float(), dim=-1).std(0, correction=0).mean() * cls.shape[1] ** 0.5
            self._add(cls_features=cls_target.sum(0), patch_features=patch_target.sum(0))
            self._add(spread=spread * len(cls), crops=torch.full_like(spread, len(cls)))

        # 2. The student on past and future, where a masked crop needs them, without gradient: what the decoder may look at.
        auxiliary = None
        if frames and with_patches:
            with torch.no_grad():
                crops = [views[f] if len(views[f]) == len(draws.crops) else views[f][draws.crops] for f in frames]
                keep = torch.cat([draws.keep[f] for f in frames], dim=-1) if draws.keep else None
                _, auxiliary = student.encoder(torch.cat(crops), keep=keep)  # (F * C, P, D)

        # 3. The student on the masked current crops and on the local crops.
        cls, patches = student.encoder(views["current"], draws.masks, draws.keep.get("current"))  # (2B, D), (2B, P, D)
        tokens = [cls]
        if "dino_local" in self.weights:
            tokens.append(student.encoder(views["local"], keep=draws.keep.get("local"))[0])  # (L * B, D)

        # 4. The head, once for all CLS tokens and once for all restored patches; and the terms.
        terms = {name: cls.new_zeros((), dtype=cls_target.dtype) for name in self.weights}
        ours = student.head.last_layer()  # (K, d)

        def cross_entropy(own: Tensor, target: Tensor, *centre_and_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            inputs = (own, ours, target, theirs, *centre_and_weights, temperatures)
            return prototype_cross_entropy(*inputs, fused=self.compiled)

        own, *local = student.head(torch.cat(tokens)).split([len(some) for some in tokens])  # (2B, d), (L * B, d)
        batch, ones, pairs = len(cls) // 2, own.new_ones(len(cls)), 2 + 2 * self.settings.views.num_local
        scale = 1 / (pairs * draws.samples)  # mean over samples and over all pairs of a target and a crop
        swapped = cls_target.roll(batch, 0)[None]  # (1, 2B, d): each crop answers for the other one
        loss, targets, entropy = cross_entropy(own[None], swapped, self.cls_centre, ones)
        self._add(cls_targets=targets, cls_entropy=entropy)
        terms["dino_global"] = scale * loss[0]
        for small in local:  # every local crop answers for both: (L, B, d) against (2, B, d)
            sets, both = small.unflatten(0, (-1, batch)), cls_target.unflatten(0, (2, batch))
            terms["dino_local"] = scale * cross_entropy(sets, both, self.cls_centre, ones[:batch])[0].sum()
        if with_patches:
            hidden = patches.index_select(0, draws.crops)  # (C, P, D)
            if self.decoder is not None and auxiliary is not None:
                hidden = self.decoder(hidden.repeat(len(frames), 1, 1), auxiliary)  # (F * C, P, D)
            names = [f"patch_{frame}" for frame in frames] or ["patch"]
            restored = [_select(part, draws.patches) for part in hidden.chunk(len(names))]  # (M, D) each
            sets = student.head(torch.cat(restored)).unflatten(0, (len(names), -1))  # (F, M, d)
            loss, targets, entropy = cross_entropy(sets, patch_target[None], self.patch_centre, draws.weights)
            self._add(patch_targets=targets, patch_entropy=entropy)
            terms |= dict(zip(names, (loss / (2 * draws.samples)).unbind(), strict=True))
            if "agreement" in self.weights:
                past, future = sets
                terms["agreement"] = agreement(past, future, ours) / (draws.masked * len(ours))
        if "koleo" in self.weights:
            terms["koleo"] = sum(koleo(crop) for crop in cls.chunk(2)) / draws.samples

        # 5. The weighted sum.
        total = sum((weight * terms[name] for name, weight in self.weights.items()), cls_target.new_zeros(()))
        if not with_patches:  # DistributedDataParallel waits for a gradient of every parameter
            total = sum((0.0 * p.sum() for module in self.trained().values() for p in module.parameters()), total)
        return total, {name: terms[name].detach() for name in self.weights}

    # ---- what is counted on the way, and what follows the optimiser's step ------------------------------------------

    def _add(self, **values: Tensor) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def _take(self, *names: str, shape: tuple[int, ...]) -> Tensor:
        """These sums (len(names), *shape) over all micro-batches and ranks; they begin anew. Nothing counted is 0."""
        return summed(torch.stack([self._sums.pop(name, self.cls_centre.new_zeros(shape)) for name in names]))

    @torch.no_grad()
    def diagnostics(self) -> dict[str, Tensor]:
        """What the teacher's outputs were like since the last call, over all micro-batches and ranks; all ranks call it.

        `teacher_entropy`: mean entropy of the CLS targets, in nats. `information_...`: entropy of the mean target minus mean
        entropy of the targets, in nats: what a target says about its crop or patch, 0 where all are alike, whether uniform or
        one winning prototype; `..._share`: as a share of ln K. `feature_std`: of the teacher's L2-normalised CLS over the batch, 1
        = spread evenly, 0 = all equal. `centre_norm`: of the CLS centre.
        """
        targets = self._take("cls_targets", "patch_targets", shape=self.cls_centre.shape)  # (2, K)
        entropies = self._take("cls_entropy", "patch_entropy", shape=())  # (2,)
        spread, crops = self._take("spread", "crops", shape=())
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
            "feature_std": spread / crops.clamp_min(1.0),
            "centre_norm": torch.linalg.vector_norm(self.cls_centre),
        }

    @torch.no_grad()
    def update_centres(self, samples: int, masked: int) -> None:
        """Move both centres towards the mean logit of all the step's forward passes, on all ranks, before the teacher moves.

        The mean logit is the mean feature times the prototypes, so d numbers travel between ranks instead of K. `samples` is N,
        `masked` counts the masked patches of the global batch; without any the patch centre stays.
        """
        sums = self._take("cls_features", "patch_features", shape=(self.settings.head.bottleneck,))  # (2, d)
        centres, counts = (self.cls_centre, self.patch_centre), (2 * samples, masked)
        for centre, total, count in zip(centres, sums, counts, strict=True):
            if count > 0:
                mean = self.teacher.head.last_layer.logits(total / count)
                centre.lerp_(mean.to(centre.dtype), 1 - self.settings.loss.centre_momentum)


def _select(patches: Tensor, wanted: Tensor) -> Tensor:
    """(C, P, D), (M,) among C * P -> (M, D)."""
    return patches.flatten(0, 1).index_select(0, wanted)
