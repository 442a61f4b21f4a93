"""One T-CoRe step written down from docs/method.md sections 5 and 6 as it stands there, sentence by sentence.

Nothing is saved or left out: every crop goes through everything, attention weights are computed, the CLS tokens go
through the head twice, all logits are held. `tcore_lib.training.tcore` has to give the same numbers; `benchmarks/step.py`
measures against it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tcore_lib.training.tcore import TCoRe


def attend(attention: nn.Module, x: Tensor) -> Tensor:
    """Timm's self-attention with its weights written out."""
    batch, tokens, width = x.shape
    q, k, v = attention.qkv(x).reshape(batch, tokens, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-2, -1) * attention.scale).softmax(-1)
    return attention.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, width))


def drop(x: Tensor, rate: float) -> Tensor:
    """Stochastic depth: whole samples are dropped, the others scaled up."""
    if rate == 0:
        return x
    keep = torch.rand(len(x), 1, 1, device=x.device) >= rate
    return x * keep / (1 - rate)


def encode(vit: nn.Module, images: Tensor, masks: Tensor | None = None, rate: float = 0.0) -> tuple[Tensor, Tensor]:
    """The encoder: CLS (B, D) and patches (B, P, D)."""
    x = vit.embed(images, masks)
    for block in vit.blocks:
        x = x + drop(block.ls1(attend(block.attn, block.norm1(x))), rate)
        x = x + drop(block.ls2(block.mlp(block.norm2(x))), rate)
    x = vit.norm(x)
    return x[:, 0], x[:, vit.prefix :]


def decode(decoder: nn.Module, x: Tensor, auxiliary: Tensor) -> Tensor:
    """The decoder on all patches, with attention weights."""
    for block in decoder.blocks:
        x = block.norm1(block.attn_mul * block.cross_attn(x, auxiliary, auxiliary)[0] + x)
        x = block.norm2(block.self_attn(x, x, x)[0] + x)
        x = block.norm3(block.linear(x) + x)
    return x


def entropy(teacher: Tensor, student: Tensor) -> Tensor:
    """H(t, s) row by row."""
    return -(teacher * F.log_softmax(student / 0.1, dim=-1)).sum(-1)


def koleo(features: Tensor) -> Tensor:
    """Mean over one view's samples."""
    features = F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)
    products = features @ features.T
    products.fill_diagonal_(-1)
    nearest = features[products.argmax(1)]
    return -(F.pairwise_distance(features, nearest, eps=1e-8) + 1e-8).log().mean()


def losses(
    model: TCoRe, views: dict[str, Tensor], masks: Tensor, sharp: float, rate: float = 0.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Total and terms of a whole batch on one rank with the decoder on and one head; then both centres move.

    Of the model its networks are used, its `forward` is not. `views` are as for `TCoRe.forward`, masks (2B, P) bool; `sharp` is
    the teacher's temperature, `rate` of the student's stochastic depth.
    """
    student, teacher, batch = model.student, model.teacher, len(masks) // 2

    def head(networks: nn.Module, tokens: Tensor) -> Tensor:
        return networks.head(tokens) @ networks.head.last_layer().T.to(tokens.dtype)

    with torch.no_grad():
        cls, patches = encode(teacher.encoder, views["current"])
        logits, patch_logits = head(teacher, torch.cat([cls[batch:], cls[:batch]])), head(teacher, patches[masks])
        targets = F.softmax((logits - model.cls_centre) / sharp, dim=-1)
        patch_targets = F.softmax((patch_logits - model.patch_centre) / sharp, dim=-1)
        past = encode(student.encoder, views["past"], None, rate)[1]
        future = encode(student.encoder, views["future"], None, rate)[1]
    cls, patches = encode(student.encoder, views["current"], masks, rate)
    local = encode(student.encoder, views["local"], None, rate)[0]
    restored = {
        "past": decode(model.decoder, patches, past)[masks],
        "future": decode(model.decoder, patches, future)[masks],
    }
    number = len(local) // batch
    out = head(student, torch.cat([local, cls, restored["past"]]))
    again = head(student, torch.cat([cls, restored["future"]]))  # the second pass, whose CLS part nobody uses
    local_logits, cls_logits, past_logits = out.split([len(local), len(cls), len(out) - len(local) - len(cls)])
    future_logits = again[len(cls) :]

    pairs = 2 + 2 * number
    weights = (1 / masks.sum(1).clamp(min=1).to(past_logits.dtype))[:, None].expand_as(masks)[masks]
    terms = {
        "dino_global": entropy(targets, cls_logits).mean() * 2 / pairs,
        "dino_local": sum(
            entropy(t, s).mean() for s in local_logits.chunk(number) for t in targets.chunk(2)
        ) / pairs,
        "koleo": sum(koleo(view) for view in cls.chunk(2)),
        "patch_past": (entropy(patch_targets, past_logits) * weights).sum() / (2 * batch),
        "patch_future": (entropy(patch_targets, future_logits) * weights).sum() / (2 * batch),
        "agreement": F.mse_loss(past_logits, future_logits),
    }  # fmt: skip
    factors = {"koleo": 0.1, "patch_past": 0.8, "patch_future": 0.8, "agreement": 20.0}
    total = sum(factors.get(name, 1.0) * term for name, term in terms.items())
    with torch.no_grad():
        model.cls_centre.copy_(model.cls_centre * 0.9 + logits.mean(0) * 0.1)
        model.patch_centre.copy_(model.patch_centre * 0.9 + patch_logits.mean(0) * 0.1)
    return total, terms
